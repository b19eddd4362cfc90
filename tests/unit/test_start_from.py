"""A training goes on from any adapter that Load Adapter reads: what is in both is taken over, what is in one is told, what differs is refused."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import NETWORKS, randomise, tiny_unet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.adapters.reading import read_adapter
from trainer.adapters.renaming import renamed
from trainer.methods import lora
from trainer.methods.start import Start, start_of, take_over
from trainer.options import Network
from trainer.typed import SpecError

LORA = Network(rank=4, alpha=3.0, targets="attention")


def network_of(network: Network, seed: int = 1) -> tuple[nn.Module, dict[str, Any]]:
    unet = tiny_unet()
    lora.inject(unet, network, seed)
    return unet, dict(lora.keyed_layers([lora.Adapted("lora_unet", unet)]))


def trained(path: Path, network: Network, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> dict[str, Tensor]:
    """Write an adapter of random numbers; gives the change of each of its layers."""
    unet = tiny_unet()
    randomise(lora.inject(unet, network, seed=0))
    adapted = [lora.Adapted("lora_unet", unet)]
    save_file(change(lora.adapter_tensors(adapted, network, torch.float32)), path)
    return {key: layer.get_delta_weight("default") for key, layer in lora.keyed_layers(adapted)}


def started(path: Path, network: Network) -> tuple[dict[str, Tensor], Start]:
    _, layers = network_of(network)
    start = start_of(layers, network, path, "SD 1.x")
    take_over(layers, network, start)
    return {key: layer.get_delta_weight("default") for key, layer in layers.items()}, start


def refused(path: Path, network: Network) -> str:
    _, layers = network_of(network)
    before = {key: layer.get_delta_weight("default").clone() for key, layer in layers.items()}
    with pytest.raises(SpecError) as caught:
        start_of(layers, network, path, "SD 1.x")
    assert all(torch.equal(layer.get_delta_weight("default"), before[key]) for key, layer in layers.items())
    message = str(caught.value)
    assert path.name in message and len(message) < 900
    return message


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["LoRA", "LoCon", "LoHa", "LoKr"])
@pytest.mark.parametrize("alpha", [3.0, 1.0])
def test_every_kind_that_is_trained_goes_on_where_it_ended(kind: str, alpha: float, tmp_path: Path) -> None:
    wanted = trained(tmp_path / "a.safetensors", NETWORKS[kind])
    found, start = started(tmp_path / "a.safetensors", NETWORKS[kind].model_copy(update={"alpha": alpha}))
    same(found, wanted)
    assert start.warnings == ()


@pytest.mark.parametrize("scheme", ["diffusers", "PEFT"])
def test_every_naming_is_taken(scheme: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    wanted = trained(path, LORA)
    save_file(renamed(read_adapter(path).layers, scheme), path)
    assert read_adapter(path).naming == scheme
    same(started(path, LORA)[0], wanted)


def ldm_named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # The only level of the small UNet whose numbers are those of real ones.
    return {name.replace("down_blocks_0_attentions_0_", "input_blocks_1_1_"): tensor for name, tensor in tensors.items() if "down_blocks_0" in name}


def test_ldm_names_are_taken_and_layers_that_the_file_lacks_begin_as_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    wanted = trained(path, LORA, ldm_named)
    assert all(name.startswith("lora_unet_input_blocks_1_1_") for name in load_file(path))
    found, start = started(path, LORA)
    (warning,) = start.warnings
    new = [key for key in found if "down_blocks_0" not in key]
    assert warning.startswith(f"start_from: {len(new)} of {len(found)} of this network's layers are not in a.safetensors and begin as new ones")
    same({key: found[key] for key in found if key not in new}, {key: wanted[key] for key in wanted if "down_blocks_0" in key})
    assert not any(found[key].any() for key in new)


def test_layers_that_only_the_file_has_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    wanted = trained(path, LORA.model_copy(update={"targets": "transformer"}), lambda tensors: tensors | {"odd.thing": torch.zeros(3)})
    found, start = started(path, LORA)
    first, second = start.warnings
    assert first.startswith(f"start_from: {len(wanted) - len(found)} layers of a.safetensors are not in this network, are not trained")
    assert second == "start_from: 1 tensors of a.safetensors are not understood and not taken over: odd.thing"
    same(found, {key: wanted[key] for key in found})


def with_core(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The 3x3 convolutions with a Tucker core, as LyCORIS has them."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("lora_down.weight") and tensor.dim() == 4 and tensor.shape[2] == 3:
            rank, inputs = tensor.shape[:2]
            core = torch.randn(rank, rank, 3, 3, generator=torch.Generator().manual_seed(rank)) * 0.2
            made |= {name: tensor.mean((2, 3), keepdim=True), name.replace("lora_down", "lora_mid"): core}
            assert inputs
        else:
            made[name] = tensor
    return made


def test_a_tucker_core_is_folded_in(tmp_path: Path) -> None:
    from trainer.adapters.delta import delta

    path = tmp_path / "a.safetensors"
    trained(path, NETWORKS["LoCon"], with_core)
    layers = read_adapter(path).layers
    assert any("lora_mid.weight" in layer for layer in layers.values())
    found, _ = started(path, NETWORKS["LoCon"])
    same(found, {key: delta(layers[key]).reshape(found[key].shape) for key in found})


def test_what_differs_is_refused_by_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    trained(path, LORA)
    count = len(network_of(LORA)[1])
    assert f"4 in the file and 8 here in {count} of {count} layers" in refused(path, LORA.model_copy(update={"rank": 8}))
    assert "is no loha like this one" in refused(path, NETWORKS["LoHa"])
    trained(path, NETWORKS["DoRA"])
    assert "dora_scale" in refused(path, NETWORKS["DoRA"].model_copy(update={"decompose": False}))
    narrow = {name: tensor[..., :8].contiguous() if name.endswith("down.weight") else tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in narrow.items() if not name.endswith("dora_scale")}, path)
    assert "another size" in refused(path, LORA)


def test_a_file_that_load_adapter_refuses_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    trained(path, LORA, lambda tensors: {name: tensor * float("nan") if "up" in name else tensor for name, tensor in tensors.items()})
    assert "NaN" in refused(path, LORA)
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated" in refused(path, LORA)
    save_file({"emb_params": torch.ones(2, 768)}, path)
    assert "embedding" in refused(path, LORA)
    save_file({"lora_unet_conv_in.lora_down.weight": torch.ones(4, 64)}, path)
    assert "without lora_up.weight" in refused(path, LORA)


def test_an_adapter_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    names = {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{end}.weight": shape for end, shape in (("up", (96, 4)), ("down", (4, 32)))}
    save_file({name: torch.ones(shape) for name, shape in names.items()}, path)
    message = refused(path, LORA)
    assert "none of the 1 layers of a.safetensors is in this network; by its names it is for Flux" in message
