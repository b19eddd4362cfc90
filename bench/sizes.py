"""What is trained on, at which size and for how long: the same checkpoint and pictures for every peer."""
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from mini_base.build import block_average_vae, build, name_seeded_clip_l
from PIL import Image
from safetensors.torch import save_file
from tiny_checkpoints import CLIP_L, UNET, Plan, TextPlan, shapes

PACK = Path(__file__).resolve().parent.parent
RANK, ALPHA, LEARNING_RATE, SEED = 16, 1.0, 1e-4, 1  # core's alpha is always 1
PICTURES = 8
# Core adapts every layer and gives no choice. These are all that ours can: each Linear and Conv2d.
PATTERN = ".*"
_SD15 = Plan((320, 640, 1280, 1280), (1, 1, 1, 0), 2, 1, 768, False, (TextPlan(CLIP_L, 768, 12, 3072),))
_SD15_UNET_WEIGHTS = 859_520_964
_FULL_BYTES = 5 * 2**30  # the checkpoint and what the runs leave until they are deleted


@dataclass(frozen=True)
class Size:
    """One size of the comparison. A peer takes `warm_up` steps that do not count and then as many that do, its own number of them."""

    name: str
    resolution: int
    repeats: int
    warm_up: int
    steps: dict[str, int]

    def total(self, peer: str) -> int:
        """Steps of one run of a peer."""
        return self.warm_up + self.steps[peer]


# Together about 25 minutes on two cores. A step of core takes more than twice as long as the others', so it takes fewer.
MINI = Size("mini", 128, 3, 4, {"ours": 40, "bare": 40, "core": 20})
FULL = Size("full", 256, 3, 1, {"ours": 5, "bare": 5, "core": 3})
QUICK = Size("mini", 128, 1, 2, {"ours": 8, "bare": 8, "core": 4})


def write_checkpoint(size: Size, path: Path) -> None:
    """The mini base, or a full-size SD 1.5 whose UNet is random. Raises OSError where there is no room for it."""
    if size.name == "mini":
        build(path)
        return
    free = shutil.disk_usage(path.parent).free
    if free < _FULL_BYTES:
        needed = _FULL_BYTES / 2**30
        raise OSError(f"{path.parent} has {free / 2**30:.1f} GiB free and the benchmark needs {needed:.0f}: set TMPDIR to another folder.")
    save_file(_full_size(), str(path))


def _full_size() -> dict[str, torch.Tensor]:
    """SD 1.5 in fp16 under LDM's names. The VAE is the mini base's, so that latents are pictures, of the same layers as the real one."""
    wanted = {name: shape for name, shape in shapes(_SD15).items() if name.startswith(UNET)}
    weights = sum(torch.Size(shape).numel() for shape in wanted.values())
    if weights != _SD15_UNET_WEIGHTS:
        raise RuntimeError(f"the UNet's plan has {weights} weights and SD 1.5 has {_SD15_UNET_WEIGHTS}: correct _SD15 in bench/sizes.py.")
    generator = torch.Generator().manual_seed(SEED)
    tensors = {name: _random(name, shape, generator) for name, shape in wanted.items()}
    for prefix, part in (("cond_stage_model.transformer.", name_seeded_clip_l()), ("first_stage_model.", block_average_vae())):
        tensors |= {prefix + name: tensor.half().contiguous() for name, tensor in part.items()}
    return tensors


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith(".weight"))).half()
    # A layer keeps the size of what comes in, about: nothing overflows, and nothing is so small that the CPU slows down over it.
    return torch.empty(shape).normal_(0, 0.7 / (torch.Size(shape).numel() / shape[0]) ** 0.5, generator=generator).half()


def write_pictures(size: Size, folder: Path) -> None:
    """Pictures of tests/food with their captions, opaque squares of the size's resolution already: no peer has to crop or flatten any."""
    folder.mkdir(parents=True)
    for source in sorted((PACK / "tests" / "food").glob("*.png"))[:PICTURES]:
        with Image.open(source) as opened:
            picture = opened.convert("RGBA").resize((size.resolution, size.resolution), Image.Resampling.LANCZOS)
        white = Image.new("RGBA", picture.size, "white")
        Image.alpha_composite(white, picture).convert("RGB").save(folder / source.name)
        shutil.copyfile(source.with_suffix(".txt"), folder / f"{source.stem}.txt")
