"""Between Pillow's pictures and ComfyUI's IMAGE, (count, h, w, 3) in [0, 1]."""
import numpy as np
import torch
from PIL import Image


def as_image(picture: Image.Image) -> torch.Tensor:
    """An IMAGE of one."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0).unsqueeze(0)


def as_picture(image: torch.Tensor) -> Image.Image:
    """One picture (h, w, 3) of an IMAGE, rounded as core's Save Image does."""
    return Image.fromarray(np.clip(image.cpu().numpy() * 255.0, 0, 255).astype(np.uint8))
