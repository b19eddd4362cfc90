"""Who may import whom: the trainer runs without ComfyUI, and ComfyUI's side never loads the heavy libraries."""
import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
COMFY = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"}
HEAVY = ("diffusers", "peft", "accelerate", "transformers")


def sources(folder: str) -> list[Path]:
    found = sorted((PACK / folder).rglob("*.py"))
    assert found
    return found


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(level, module, line) of every import statement, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", node.lineno


@pytest.mark.parametrize("path", sources("trainer"), ids=lambda path: str(path.relative_to(PACK)))
def test_the_trainer_knows_nothing_of_comfyui(path: Path) -> None:
    depth = len(path.relative_to(PACK / "trainer").parts)  # the levels that still lie inside trainer/
    wrong = [
        f"line {line}: {'.' * level}{module}"
        for level, module, line in imports(path)
        if level > depth or (level == 0 and module.split(".")[0] in COMFY)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", [*sources("trainer"), *sources("nodes"), PACK / "__init__.py"], ids=lambda path: str(path.relative_to(PACK)))
def test_nothing_imports_a_top_level_nodes_or_trainer(path: Path) -> None:
    # `nodes` is ComfyUI's own module, and custom node packs are not packages that can be imported by name.
    assert [(module, line) for level, module, line in imports(path) if level == 0 and module.split(".")[0] in ("nodes", "trainer")] == []


def test_nodes_take_from_the_trainer_only_what_is_light() -> None:
    light = {"spec", "options", "typed", "events", "history", "data.sources", "data.captions", "families.detect", "dataset", "checkpoint"}
    light |= {"grid", "method_table", "templates", "data.framing", "data.images", "data.image_formats", "data.colors", "messages", "captioning.store"}
    light |= {"folder_memory", "data.image_folders", "past_runs"}
    light |= {"file_names", "placing", "patience", "failures", "prompts"}
    taken = {
        module.removeprefix("trainer.")
        for path in sources("nodes")
        for level, module, _ in imports(path)
        if level == 2 and module.split(".")[0] == "trainer"
    }
    assert taken
    assert {module for module in taken if not module.startswith("adapters.")} <= light


def test_light_modules_do_not_load_the_heavy_libraries() -> None:
    light = ["spec", "checkpoint", "data.images", "options", "events", "history", "data.sources", "families.detect", "grid", "job"]
    light += ["folder_memory", "data.image_folders", "past_runs", "placing", "failures", "captioning.store", "prompts"]
    light += [f"adapters.{path.stem}" for path in sources("trainer/adapters") if path.stem != "__init__"]
    # In turn in one process: what a module loads is told with the first that loads it.
    code = (
        "import importlib, json, sys; told = {}\n"
        f"for module in {light!r}:\n"
        "    importlib.import_module(f'trainer.{module}')\n"
        f"    told |= {{name: module for name in {HEAVY!r} if name in sys.modules and name not in told}}\n"
        "print(json.dumps(told))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == {}


def test_a_hidden_package_looks_missing_until_it_is_not_hidden_any_more() -> None:
    code = (
        "import importlib.util as u, json, math, sys; from trainer.hidden import hidden\n"
        "with hidden('colorsys', 'math'): inside = [u.find_spec('colorsys') is None, 'math' in sys.modules and u.find_spec('math') is not None]\n"
        "import colorsys; print(json.dumps([*inside, colorsys.ONE_THIRD > 0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [True, True, True]
