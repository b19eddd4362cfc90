"""An adapter applies to every model that its layers fit by key and shape; the family that its names look like refuses nothing."""
from typing import Any

import pytest
from loom_server import told_in_comfyui

FAMILIES = ("Flux", "Chroma", "Flux2", "HunyuanVideo", "HunyuanImage21", "CosmosT2IPredict2", "PixArtSigma", "ACEStep", "SVD_img2vid")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = told_in_comfyui("other_families_in_comfyui.py", tmp_path_factory.mktemp("families"))
    print("\n".join(f"{name}: {what}" for name, what in found.items()))
    return found


@pytest.mark.parametrize("scheme", ["ComfyUI's names", "kohya's names"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_every_family_applies_to_its_own_model(told: dict[str, Any], family: str, scheme: str) -> None:
    found = told[f"{family} {scheme}"]
    assert found["layers"] > 50 and found["not understood"] == 0
    assert found["found"] == found["layers"], found["left out"]
    assert found["left out"] == ""


def test_layers_apply_under_the_names_of_the_programs_that_train_them(told: dict[str, Any]) -> None:
    own = {name: found for name, found in told.items() if name.endswith("its own names")}
    assert len(own) == 7
    assert {name: found.get("found") for name, found in own.items()} == dict.fromkeys(own, 1), own


def test_an_adapter_that_fits_in_part_applies_and_its_report_says_what_is_left_out(told: dict[str, Any]) -> None:
    found = told["Flux's on Chroma"]
    assert 0 < found["found"] < found["layers"]
    assert "not in this model: diffusion_model.double_blocks.0." in found["left out"]
    assert found["left out"].endswith("it looks like an adapter for Flux, and the model is Chroma")


def test_an_adapter_of_which_nothing_fits_is_refused_with_the_guess_as_a_hint(told: dict[str, Any]) -> None:
    sizes = told["Flux's on Flux2"]["error"]
    assert sizes.startswith("none of the ") and "are of another size, as diffusion_model.double_blocks.0." in sizes and len(sizes) < 600
    assert "it looks like an adapter for Flux, and the model is FLUX.2" in sizes
    names = told["PixArtSigma's on Flux"]["error"]
    assert names.startswith("none of the ") and "the model is Flux" in names and len(names) < 600
