"""What malloc keeps of memory that is freed is given back to the system when images have been encoded."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from workshop import PACK, Workshop

ENCODE = """
import json, sys
import psutil, torch
torch.set_num_threads(1)
from pathlib import Path
from trainer.data.cache import Cache
from trainer.data.examples import Encoder
from trainer.dataset import Dataset
from trainer.families import load_family
from trainer.options import TextOptions
from trainer.spec import Base

base, dataset = json.loads(sys.argv[1])
family = load_family(Base(**base), TextOptions())
vae = family.load_vae(torch.device("cpu"))
encoder = Encoder(family, lambda: vae, torch.device("cpu"), Cache(None), lambda event: None)

def rss():
    return psutil.Process().memory_info().rss

# As the activations of many images leave it: large blocks that were freed, between small ones that stay. The first one teaches malloc to keep such.
large = torch.ones(30 * 2**18)
del large
blocks = [(torch.ones(2 * 2**20), torch.ones(2**14)) for _ in range(60)]
stays = [small for _, small in blocks]
del blocks
before = rss()
with torch.no_grad():
    examples = encoder.examples([Dataset(**dataset)], "encoding")
print(json.dumps((before - rss()) / 2**20))
"""


def test_encoding_gives_back_what_is_freed(workshop: Workshop) -> None:
    if sys.platform != "linux":
        pytest.skip("malloc_trim is glibc's")
    dataset = workshop.dataset("lemon", "banana", "bread")
    done = subprocess.run(
        [sys.executable, "-c", ENCODE, json.dumps([workshop.base, dataset])], cwd=Path(PACK), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) > 300, "MiB of the 480 that were freed"
