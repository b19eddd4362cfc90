"""Help pages, locales and workflows name the nodes as the source does; the source is parsed, so no ComfyUI is needed."""
import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).resolve().parents[2]
LOCALES = ("en", "zh")
ZH_PAGES = ("LoomTrainLoRA", "LoomAdapterStack")


def _constants(call: ast.Call) -> dict[str, Any]:
    return {k.arg: k.value.value for k in call.keywords if k.arg and isinstance(k.value, ast.Constant)}


def _schema(call: ast.Call) -> dict[str, Any]:
    """A node's texts as `nodeDefs.json` has them in the source's own language."""
    parts = {k.arg: k.value for k in call.keywords}
    texts = _constants(call)
    found: dict[str, Any] = {"display_name": texts["display_name"], "description": texts["description"], "inputs": {}, "outputs": {}}
    for kind in ("inputs", "outputs"):
        elements = parts[kind]
        assert isinstance(elements, ast.List)
        for index, item in enumerate(elements.elts):
            assert isinstance(item, ast.Call)
            told = _constants(item)
            if kind == "inputs":
                assert isinstance(item.args[0], ast.Constant)
                name = item.args[0].value
                found[kind][name] = {"name": name, "tooltip": told["tooltip"]}
            else:
                found[kind][str(index)] = {"name": told["display_name"], "tooltip": told["tooltip"]}
    return found


def _schemas() -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted((PACK / "nodes").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "Schema":
                found[_constants(call)["node_id"]] = _schema(call)
    return found


SCHEMAS = _schemas()


def _locale(language: str) -> dict[str, Any]:
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def _rows(page: str, title: str) -> list[str]:
    """The first column of the table under a heading."""
    section = page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_every_node_of_the_source_is_parsed() -> None:
    named = [name for path in (PACK / "nodes").glob("*.py") for name in re.findall(r'node_id="([^"]+)"', path.read_text(encoding="utf-8"))]
    assert named and sorted(named) == sorted(SCHEMAS)


@pytest.mark.parametrize("node", SCHEMAS)
def test_a_node_has_a_help_page_with_its_inputs_and_outputs(node: str) -> None:
    page = (PACK / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {SCHEMAS[node]['display_name']}\n")
    assert _rows(page, "Inputs") == list(SCHEMAS[node]["inputs"])
    assert _rows(page, "Outputs") == [output["name"] for output in SCHEMAS[node]["outputs"].values()]


@pytest.mark.parametrize("node", ZH_PAGES)
def test_a_chinese_page_has_the_inputs_and_outputs(node: str) -> None:
    page = (PACK / "web" / "docs" / node / "zh.md").read_text(encoding="utf-8")
    assert _rows(page, "输入") == list(SCHEMAS[node]["inputs"])
    assert _rows(page, "输出") == [output["name"] for output in SCHEMAS[node]["outputs"].values()]


def test_there_is_no_page_for_a_node_that_is_not() -> None:
    docs = PACK / "web" / "docs"
    assert {path.stem for path in docs.glob("*.md")} | {path.name for path in docs.iterdir() if path.is_dir()} == set(SCHEMAS)


@pytest.mark.parametrize("language", LOCALES)
def test_a_locale_has_every_node_and_input_and_output(language: str) -> None:
    locale = _locale(language)
    assert set(locale) == set(SCHEMAS)
    for node, schema in SCHEMAS.items():
        texts = locale[node]
        assert texts["display_name"] and texts["description"]
        for kind in ("inputs", "outputs"):
            assert set(texts[kind]) == set(schema[kind]), (node, kind)
            assert all(entry["name"] and entry["tooltip"] for entry in texts[kind].values()), (node, kind)


def test_the_english_locale_says_what_the_source_says() -> None:
    assert _locale("en") == SCHEMAS


def test_workflows_are_for_a_full_size_checkpoint_and_ones_own_pictures() -> None:
    named: dict[str, set[Any]] = {}
    for path in (PACK / "workflows" / "api").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8")).values():
            for name, value in node["inputs"].items():
                if not isinstance(value, list):
                    named.setdefault(name, set()).add(value)
    # The name under which ComfyUI's own workflows have it.
    assert named["checkpoint"] == named["ckpt_name"] == {"v1-5-pruned-emaonly-fp16.safetensors"}
    assert named["folder"] == {"input/my_images", "input/my_images_heldout"}
    assert named["resolution"] == named["width"] == named["height"] == {512}
    assert named["buckets"] == {True}
    assert named["cfg"] == named["guidance_scale"] == {7}


def test_workflows_use_known_nodes_and_inputs() -> None:
    paths = sorted((PACK / "workflows" / "api").glob("*.json"))
    assert paths
    for path in paths:
        for node in json.loads(path.read_text(encoding="utf-8")).values():
            name = node["class_type"]
            if name.startswith("Loom"):
                assert name in SCHEMAS, f"{path.name}: {name}"
                assert set(node["inputs"]) <= set(SCHEMAS[name]["inputs"]), f"{path.name}: {name}"


def test_every_image_that_a_page_shows_is_there() -> None:
    pages = [PACK / "README.md", *(PACK / "docs").glob("*.md"), *(PACK / "web" / "docs").rglob("*.md")]
    shown = [(page, name) for page in pages for name in re.findall(r'(?:!\[[^\]]*\]\(|src=")([^)":]+)[)"]', page.read_text(encoding="utf-8"))]
    assert len(shown) >= 4
    for page, name in shown:
        assert (page.parent / name).is_file(), f"{page.name} shows {name}"
