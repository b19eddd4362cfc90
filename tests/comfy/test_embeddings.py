"""Embeddings in every layout in which they are served, against ComfyUI's own tokenizers."""
from pathlib import Path

import pytest
import torch
from loom_server import told_in_comfyui
from safetensors.torch import save_file

from trainer.adapters.embedding import embedding_tensors, read_embedding
from trainer.adapters.reading import describe_file

WIDE = {"l": torch.randn(3, 768), "g": torch.randn(3, 1280)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of embeddings: as downloaded, and each saved in our own layout beside it, in `ours`."""
    place = tmp_path_factory.mktemp("embeddings")
    for name in ("cat-toy", "deep/er", "ours"):
        (place / name).mkdir(parents=True)
    torch.save({"<cat-toy>": WIDE["l"][0].clone()}, place / "cat-toy" / "learned_embeds.bin")
    save_file({"<bird>": WIDE["l"].clone()}, place / "deep" / "er" / "learned_embeds.safetensors")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": WIDE["l"]}, "name": "x", "step": 1}, place / "a1111(v2).pt")
    save_file({"emb_params": WIDE["l"].half()}, place / "kohya.safetensors")
    save_file({"clip_l": WIDE["l"], "clip_g": WIDE["g"]}, place / "xl.safetensors")
    save_file({"text_encoders_0": WIDE["l"], "text_encoders_1": WIDE["g"]}, place / "advanced.safetensors")
    save_file({"text_encoders_0": WIDE["l"]}, place / "advanced_1.safetensors")
    for number, file in enumerate(sorted(path for path in place.rglob("*.*") if path.is_file())):
        save_file(embedding_tensors(read_embedding(file)), place / "ours" / f"{number}.safetensors")
    return place


def test_what_is_told_of_a_file_is_what_comfyui_reads_of_it(folder: Path) -> None:
    told = told_in_comfyui("embeddings_in_comfyui.py", folder)
    assert len(told) == 14
    assert told == {name: describe_file(folder / name).whole_in_comfyui for name in told}
    assert [name for name, whole in told.items() if not whole] == ["advanced.safetensors"]
