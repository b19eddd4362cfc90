"""Apply Adapters in both modes: one meaning, that of float64, whatever the order, and nothing left behind."""
from pathlib import Path
from typing import Any

import pytest
from loom_server import told_in_comfyui


def of_family(name: str, folder: Path) -> dict[str, Any]:
    found = told_in_comfyui("adapter_modes.py", name, folder)
    columns = ("changes", "merged weights", "merged", "live", "core")
    print(f"\n{name:28}" + "".join(f"{column:>16}" for column in columns))
    for case, errors in found["cases"].items():
        print(f"{case:28}" + "".join(f"{errors.get(column, float('nan')):16.1e}" for column in columns))
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return of_family("SD 1.x", tmp_path_factory.mktemp("modes"))


def test_both_modes_predict_what_the_sum_of_float64_does(told: dict[str, Any]) -> None:
    check(told["cases"])


def test_the_layers_of_sdxl_are_found_too(tmp_path: Path) -> None:
    check(of_family("SDXL", tmp_path)["cases"])


def check(cases: dict[str, dict[str, Any]]) -> None:
    for case, errors in cases.items():
        assert errors["changes"] > 0.01, f"{case}: too weak to show anything"
        assert errors["merged weights"] < 1e-6, (case, errors)
        assert errors["merged"] < 5e-5 and errors["live"] < 5e-5, (case, errors)
        assert errors.get("core", 0) < 5e-5, f"{case}: the reference is not what ComfyUI computes"


def test_live_patches_no_weight(told: dict[str, Any]) -> None:
    assert {errors["live patches"] for errors in told["cases"].values()} == {0}


def test_the_order_of_a_stack_changes_no_bit(told: dict[str, Any]) -> None:
    changes = [(case, what) for case, errors in told["cases"].items() for what in errors if what.startswith("the order changes")]
    assert len(changes) == 4
    assert not any(told["cases"][case][what] for case, what in changes)


def test_the_model_is_afterwards_what_it_was(told: dict[str, Any]) -> None:
    assert told["restored"]
    assert told["strength 0"]


def test_nodes_in_a_row_and_cores_around_ours_add_up(told: dict[str, Any]) -> None:
    for what in ("two {} nodes", "core's after {}", "core's before {}"):
        for mode in ("merged", "live"):
            assert told[what.format(mode)] < 2e-5, (what, mode)
    assert told["a dora after a lora, live"] < 2e-5


def test_a_controlnet_and_patches_of_attention_go_with_both_modes(told: dict[str, Any]) -> None:
    assert told["without them"] > 0.05
    for order in ("before", "after"):
        for mode in ("merged", "live"):
            assert told[f"with an image {order} {mode} and a control"] < 2e-5, (order, mode)


def test_a_changed_weight_is_computed_with_what_is_there_and_other_weights_are_not(told: dict[str, Any]) -> None:
    assert told["changed weights"] < 5e-5 and told["changed weights change"] > 0.01
    assert told["on changed weights"] < 5e-5
    assert told["core's 0.5 after a dora"] < 5e-5 and told["core's 1.0 after a dora"] < 5e-5


def test_a_model_that_is_not_used_any_more_is_freed(told: dict[str, Any]) -> None:
    assert told["freed"]


def test_comfyui_counts_what_live_mode_needs_on_the_device(told: dict[str, Any]) -> None:
    assert told["counted"] == 1


def test_a_schedule_is_followed(told: dict[str, Any]) -> None:
    assert told["scheduled"]["before"] and told["scheduled"]["after"]
    assert told["scheduled"]["rising"] < 1e-5


def test_blocks_are_weighted(told: dict[str, Any]) -> None:
    assert told["no blocks"]
    assert told["blocks of OUTALL"] == ["output_blocks"]


def test_the_report_tells_every_row(told: dict[str, Any]) -> None:
    lines = told["cases"]["of every kind"]["live report"].splitlines()
    assert [line.split(".")[0] for line in lines] == ["first", "dora", "loha", "lokr", "second"]
    assert "are for a text encoder, and none is connected" in lines[0]
