"""What each kind of network adapts, how it starts, that it learns, and that its file says exactly what was trained."""
import json

import pytest
import torch
from adapter_models import randomise, tiny_unet
from pydantic import ValidationError
from torch import Tensor, nn

from trainer.adapters.network_metadata import metadata_of
from trainer.methods import lora
from trainer.methods.targets import plan
from trainer.options import Network
from trainer.typed import SpecError

KINDS = {
    "lora": Network(rank=4, alpha=3.0),
    "rslora": Network(rank=4, alpha=3.0, rank_stabilized=True),
    "dora": Network(rank=4, alpha=3.0, decompose=True, targets="transformer+conv", conv_rank=2),
    "lora with convolutions": Network(rank=4, alpha=3.0, targets="transformer+conv", conv_rank=2, conv_alpha=5.0),
    "loha": Network(rank=4, alpha=3.0, kind="loha", targets="transformer+conv", conv_rank=3),
    "lokr": Network(rank=4, alpha=3.0, kind="lokr", targets="transformer+conv"),
    "lokr, low rank": Network(rank=1, alpha=3.0, kind="lokr", targets="transformer+conv", lokr_factor=2),
}
every_kind = pytest.mark.parametrize("network", KINDS.values(), ids=KINDS.keys())


def predict(unet: nn.Module) -> Tensor:
    numbers = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(1, 4, 8, 8, generator=numbers), torch.randn(1, 5, 32, generator=numbers)
    return unet(noisy, torch.tensor([500]), encoder_hidden_states=text, return_dict=False)[0]


def names_of(kind: type[nn.Module]) -> set[str]:
    return {name for name, module in tiny_unet().named_modules() if isinstance(module, kind)}


def in_transformers() -> set[str]:
    return {name for name in names_of(nn.Linear) | names_of(nn.Conv2d) if ".attentions." in name}


def convolutions() -> set[str]:
    found = names_of(nn.Conv2d) - in_transformers() - {"conv_in", "conv_out"}
    return {name for name in found if not name.endswith("conv_shortcut")}


def test_attention_means_the_projections_of_both_attentions() -> None:
    assert set(plan(tiny_unet(), Network(targets="attention"))) == {
        name for name in in_transformers() if ".attn1." in name or ".attn2." in name
    }


def test_attention_and_ff_leaves_only_the_ends_of_a_transformer_alone() -> None:
    assert set(plan(tiny_unet(), Network(targets="attention+ff"))) == {
        name for name in in_transformers() if not name.endswith(("proj_in", "proj_out"))
    }


def test_transformer_is_the_default_and_means_every_layer_inside_the_transformers() -> None:
    assert set(plan(tiny_unet(), Network())) == in_transformers()


def test_all_linear_means_every_linear_layer_of_the_unet() -> None:
    found = set(plan(tiny_unet(), Network(targets="all linear")))
    assert found == names_of(nn.Linear)
    assert "time_embedding.linear_1" in found


def test_convolutions_come_with_the_preset_or_with_a_rank_of_their_own() -> None:
    with_preset = plan(tiny_unet(), Network(rank=8, alpha=4.0, targets="transformer+conv"))
    assert set(with_preset) == in_transformers() | convolutions()
    assert {(size.rank, size.alpha) for size in with_preset.values()} == {(8, 4.0)}
    by_rank = plan(tiny_unet(), Network(rank=8, alpha=4.0, targets="attention", conv_rank=2))
    assert {by_rank[name].rank for name in convolutions()} == {2}
    assert {by_rank[name].alpha for name in convolutions()} == {1.0}
    assert {by_rank[name].rank for name in set(by_rank) - convolutions()} == {8}


def test_a_pattern_replaces_the_preset() -> None:
    found = plan(tiny_unet(), Network(pattern=r".*attn2\.to_[kv]|conv_in"))
    assert found.keys() == {"conv_in", *(name for name in in_transformers() if name.endswith(("attn2.to_k", "attn2.to_v")))}


def test_the_longest_prefix_gives_a_block_its_rank_and_zero_leaves_it_out() -> None:
    ranks = (("down_blocks", 2), ("down_blocks.0.attentions.0.transformer_blocks.0.attn2", 8), ("mid_block.", 0))
    sizes = plan(tiny_unet(), Network(rank=4, alpha=2.0, block_ranks=ranks))
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn"
    assert (sizes[attention + "2.to_k"].rank, sizes[attention + "2.to_k"].alpha) == (8, 4.0)
    assert (sizes[attention + "1.to_k"].rank, sizes[attention + "1.to_k"].alpha) == (2, 1.0)
    assert {size.rank for name, size in sizes.items() if name.startswith("up_blocks.")} == {4}
    assert not any(name.startswith("mid_block") for name in sizes)
    unet = tiny_unet()
    lora.inject(unet, Network(rank=4, alpha=2.0, block_ranks=ranks), seed=0)
    tensors = lora.adapter_tensors([lora.Adapted("lora_unet", unet)], Network(rank=4, alpha=2.0, block_ranks=ranks))
    key = "lora_unet_" + (attention + "2.to_k").replace(".", "_")
    assert tensors[key + ".lora_down.weight"].shape == (8, 32)
    assert tensors[key + ".alpha"] == 4.0
    assert not any("mid_block" in name for name in tensors)


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (Network(pattern="attn1"), "'attn1'"),
        (Network(block_ranks=(("down_blocks.7", 4),)), "'down_blocks.7'"),
        (Network(block_ranks=(("down", 4),)), "'down'"),
    ],
)
def test_a_request_that_matches_nothing_is_told_with_real_names(network: Network, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(tiny_unet(), network)
    assert told in str(caught.value)
    assert any(name in str(caught.value) for name in in_transformers())


def test_leaving_out_every_block_is_an_error() -> None:
    with pytest.raises(SpecError, match="every layer"):
        plan(tiny_unet(), Network(block_ranks=(("down_blocks", 0), ("mid_block", 0), ("up_blocks", 0))))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "loha", "dropout": 0.1}, "dropout"),
        ({"kind": "lokr", "decompose": True}, "decompose"),
        ({"kind": "lora", "rank_dropout": 0.1}, "loha and lokr"),
        ({"kind": "lora", "lokr_factor": 4}, "lokr_factor"),
        ({"conv_alpha": 4.0}, "conv_rank"),
        ({"block_ranks": (("mid_block", 4), ("mid_block.", 8))}, "two ranks"),
        ({"pattern": "("}, "regular expression"),
    ],
)
def test_options_that_cannot_go_together_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Network.model_validate(options)


@every_kind
def test_the_model_starts_as_it_was_and_one_step_changes_it(network: Network) -> None:
    unet = tiny_unet()
    with torch.no_grad():
        before = predict(unet)
    parameters = lora.inject(unet, network, seed=0)
    after = predict(unet)
    if network.decompose:
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(after, before)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    after.square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    optimizer.step()
    assert not torch.allclose(predict(unet), before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dora_starts_at_the_exact_norms_under_a_model_of_low_precision(dtype: torch.dtype) -> None:
    unet = tiny_unet().to(dtype)
    lora.inject(unet, Network(rank=4, decompose=True), seed=0)
    for _, layer in lora._layers(unet):
        weight = layer.get_base_layer().weight.float()
        torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.flatten(), weight.flatten(1).norm(dim=1), rtol=1e-6, atol=0)


@every_kind
def test_the_same_seed_gives_the_same_numbers_and_leaves_the_global_generator_alone(network: Network) -> None:
    def started(seed: int) -> dict[str, Tensor]:
        unet = tiny_unet()
        lora.inject(unet, network, seed)
        return lora.parameters_by_name([lora.Adapted("lora_unet", unet)])

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = started(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = started(1), started(2)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_kind
def test_a_prediction_outside_training_draws_nothing(network: Network) -> None:
    unet = tiny_unet()
    lora.inject(unet, network, seed=0)
    state = torch.get_rng_state()
    predict(unet)
    assert torch.equal(torch.get_rng_state(), state)


def test_writing_into_the_parameters_changes_the_model() -> None:
    unet = tiny_unet()
    lora.inject(unet, Network(), seed=0)
    with torch.no_grad():
        before = predict(unet)
        for tensor in lora.parameters_by_name([lora.Adapted("lora_unet", unet)]).values():
            tensor += 0.1
        assert not torch.allclose(predict(unet), before)


@pytest.mark.parametrize(
    "network",
    [
        Network(rank=4),
        Network(rank=4, dropout=0.5),
        Network(rank=4, kind="loha", rank_dropout=0.5),
        Network(rank=4, kind="lokr", module_dropout=0.5),
    ],
    ids=["none", "lora", "loha, rows", "lokr, layers"],
)
def test_dropout_is_drawn_in_training_only(network: Network) -> None:
    unet = tiny_unet()
    randomise(lora.inject(unet, network, seed=0))
    with torch.no_grad():
        assert torch.equal(predict(unet), predict(unet))
        unet.train()
        assert torch.equal(predict(unet), predict(unet)) == (not lora.trained_with_dropout(network))


def delta_of_file(tensors: dict[str, Tensor], key: str, shape: torch.Size) -> Tensor:
    """What the file adds to a layer of `shape`, by kohya's and LyCORIS's formulas."""
    layer = {name.removeprefix(key + "."): tensor.double() for name, tensor in tensors.items() if name.startswith(key + ".")}
    alpha = layer["alpha"]
    if "lora_up.weight" in layer:
        up, down = layer["lora_up.weight"].flatten(1), layer["lora_down.weight"].flatten(1)
        return (alpha / down.shape[0] * up @ down).reshape(shape)
    if "hada_w1_a" in layer:
        product = (layer["hada_w1_a"] @ layer["hada_w1_b"]) * (layer["hada_w2_a"] @ layer["hada_w2_b"])
        return (alpha / layer["hada_w1_b"].shape[0] * product).reshape(shape)
    first = layer["lokr_w1"]
    if "lokr_w2" in layer:
        second, scale = layer["lokr_w2"], torch.tensor(1.0)
    else:
        second, scale = layer["lokr_w2_a"] @ layer["lokr_w2_b"], alpha / layer["lokr_w2_b"].shape[0]
    if second.dim() == 4:
        first = first[:, :, None, None]
    return (scale * torch.kron(first, second)).reshape(shape)


@every_kind
def test_the_file_says_what_was_trained(network: Network) -> None:
    unet = tiny_unet()
    randomise(lora.inject(unet, network, seed=0))
    tensors = lora.adapter_tensors([lora.Adapted("lora_unet", unet)], network, dtype=torch.float32)
    layers = dict(lora._layers(unet))
    assert layers.keys() == plan(tiny_unet(), network).keys()
    plain = dict(tiny_unet().named_modules())
    for name, layer in layers.items():
        key = "lora_unet_" + name.replace(".", "_")
        weight = plain[name].weight.double()
        delta = delta_of_file(tensors, key, weight.shape)
        assert delta.norm() > 1e-3
        torch.testing.assert_close(delta, layer.get_delta_weight("default").double(), rtol=1e-4, atol=1e-6)
        if network.decompose:
            scale = tensors[key + ".dora_scale"].double()
            assert scale.shape == (weight.shape[0], *[1] * (weight.dim() - 1))
            # ComfyUI's arithmetic: the norm of the base, not of the sum.
            rows = weight.flatten(1).norm(dim=1).reshape(scale.shape)
            layer.merge()
            torch.testing.assert_close((weight + delta) * scale / rows, layer.get_base_layer().weight.double(), rtol=1e-4, atol=1e-6)


def test_alpha_and_magnitudes_keep_their_bits_in_a_half_precision_file() -> None:
    network = Network(rank=7, alpha=3.3, rank_stabilized=True, decompose=True)
    unet = tiny_unet()
    lora.inject(unet, network, seed=0)
    tensors = lora.adapter_tensors([lora.Adapted("lora_unet", unet)], network, torch.float16)
    kinds = {name.split(".", 1)[1]: tensor.dtype for name, tensor in tensors.items()}
    half, full = torch.float16, torch.float32
    assert kinds == {"lora_down.weight": half, "lora_up.weight": half, "alpha": full, "dora_scale": full}
    assert {round(tensor.item(), 5) for name, tensor in tensors.items() if name.endswith(".alpha")} == {round(3.3 * 7**0.5, 5)}


def test_the_metadata_names_the_module_that_other_tools_know() -> None:
    plain = metadata_of(Network(rank=8, alpha=4.0))
    assert plain["ss_network_module"] == "networks.lora"
    assert (plain["ss_network_dim"], plain["ss_network_alpha"], json.loads(plain["ss_network_args"])) == ("8", "4.0", {})
    loha = metadata_of(Network(rank=8, alpha=4.0, kind="loha", conv_rank=2))
    assert loha["ss_network_module"] == "lycoris.kohya"
    assert json.loads(loha["ss_network_args"]) == {"algo": "loha", "conv_dim": "2", "conv_alpha": "1.0"}
    assert json.loads(metadata_of(Network(decompose=True))["ss_network_args"])["dora_wd"] == "True"
