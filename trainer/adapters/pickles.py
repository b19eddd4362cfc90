"""Pickled files, opened only where a kind of adapter exists in no other format, and only as numbers.

`torch.load(weights_only=True)` runs no code of the file, but was itself open to attack before torch 2.10 (CVE-2025-32434, CVE-2026-24747).
"""
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..messages import shown, system_reason
from .files import FileError, begins_with_header

_SAFE_VERSION = (2, 10)


def is_pickle(path: Path) -> bool:
    """Whether the file begins as torch.save's files do, with a zip's or a pickle's first bytes, and not as a .safetensors file.

    Raises FileError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise FileError(f"{path.name} cannot be read: {system_reason(error)}.") from error
    return (start[:2] == b"PK" or start[:1] == b"\x80") and not begins_with_header(start)


def load_pickle(path: Path, limit_bytes: int, torch_version: str = torch.__version__) -> Any:
    """The content of a torch.save file, on the CPU, made of plain containers, numbers and tensors.

    Raises:
        FileError: torch is older than 2.10, the file is larger than `limit_bytes` (unpacked too), holds anything but numbers, or is damaged.
    """
    version = re.match(r"(\d+)\.(\d+)", torch_version)
    if not version or (int(version[1]), int(version[2])) < _SAFE_VERSION:
        raise FileError(
            f"{path.name} is a pickle, which torch {torch_version} cannot open safely. Convert it to .safetensors, or update torch to 2.10 or newer."
        )
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(part.file_size for part in archive.infolist())
        if size > limit_bytes:
            raise FileError(f"{path.name} holds {size} bytes, more than the {limit_bytes} that a file of its kind can need.")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileError:
        raise
    except Exception as error:
        raise FileError(
            f"{path.name} is a pickle that holds more than numbers, or is damaged: {shown(str(error).strip().partition(chr(10))[0])} "
            "Convert it to .safetensors where it was made."
        ) from error


def plain_tensor(tensor: Tensor, name: str, file: str) -> Tensor:
    """`tensor`, if it takes no more memory than the file gave it: a pickle can say that one number is a terabyte of them. Raises FileError."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise FileError(f"{file}: {shown(name)} is not a plain tensor. Convert the file to .safetensors where it was made.")
    return tensor.detach()
