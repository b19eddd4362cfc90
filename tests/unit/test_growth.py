"""What a server holds after many datasets is what it held after the first."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PACK = Path(__file__).resolve().parents[2]
SCAN = """
import json, sys
from pathlib import Path
from trainer.data.sources import scan_folder
held = []
for folder in sorted(Path(sys.argv[1]).iterdir()):
    scan_folder(folder, folder.name, trigger_word="bun", missing_captions="use the trigger word")
    held.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
print(json.dumps(held))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_datasets_leave_nothing_behind(tmp_path: Path) -> None:
    large = Image.effect_noise((400, 300), 80).convert("RGB").resize((3000, 2000))
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        for other in range(4):
            large.rotate(number * 4 + other).save(tmp_path / str(number) / f"{other}.jpg")
    done = subprocess.run([sys.executable, "-c", SCAN, str(tmp_path)], cwd=PACK, capture_output=True, text=True, timeout=300, check=True)
    held = json.loads(done.stdout)
    # One image takes 18 MB; decoders at work differ by a few of them from one moment to the next.
    assert max(held[5:]) < max(held[:2]) + 75e6
