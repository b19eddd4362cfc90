"""What a run tells of its memory is its own."""
import subprocess
import sys

import pytest
from loom_server import PACK

TOLD = "import torch; from trainer.precision import peak_memory; print(peak_memory(torch.device('cpu')))"
HELD = 2**30


@pytest.mark.skipif(sys.platform == "win32", reason="not told there")
def test_peak_memory_is_not_that_of_the_process_which_started_this_one() -> None:
    # As ComfyUI does with models in memory: on Linux getrusage tells a child of its parent's size.
    parent = f"import subprocess, sys; held = bytes([1]) * {HELD}; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    alone, of_parent = (
        int(subprocess.run([sys.executable, "-c", *code], cwd=PACK, capture_output=True, text=True, check=True).stdout)
        for code in ([TOLD], [parent, TOLD])
    )
    assert 50 * 2**20 < of_parent < HELD
    assert abs(of_parent - alone) < 0.3 * alone
