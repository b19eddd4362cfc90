"""Lists of folders: what is in them, what is left out with a word in the log, and that nothing is read twice."""
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unreadable import open_place, unprivileged

from trainer.data.image_folders import image_folders
from trainer.data.images import SUFFIXES
from trainer.folder_memory import FolderMemory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there, and its folders cannot be made unreadable so")


@pytest.fixture
def root() -> Iterator[Path]:
    with open_place() as place:
        yield place


def images(root: Path, *folders: str) -> None:
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "a.png").touch()


def found(root: Path, memory: FolderMemory | None = None, inside: tuple[Path, ...] = ()) -> list[str]:
    memory = memory or FolderMemory(SUFFIXES)
    names = list(image_folders("input", str(root), memory.read, [os.path.realpath(place) for place in (root, *inside)]))
    memory.forget_unread()
    return names


def test_folders_with_images_in_them_or_below_are_found_in_order(root: Path) -> None:
    images(root, "b", "a/one/two/three/too_deep", "numbered/3_cat", ".hidden", "x:y", "back\\slash")
    (root / "a" / "one" / "UPPER.JPG").touch()
    (root / "texts").mkdir()
    (root / "texts" / "a.txt").touch()
    (root / "a.png").mkdir()
    names = ["a", "a/one", "a/one/two", "a/one/two/three", "b", "back\\slash", "numbered", "numbered/3_cat", "x:y"]
    assert found(root) == [f"input/{name}" for name in names]


@pytest.mark.parametrize("link", ["itself", "two in a circle"])
def test_a_link_that_leads_in_a_circle_hides_nothing(root: Path, link: str, caplog: pytest.LogCaptureFixture) -> None:
    images(root, "a", "z")
    if link == "itself":
        (root / "loop").symlink_to("loop")
        (root / "a" / "zz.png").symlink_to("zz.png")
    else:
        (root / "loop").symlink_to("other")
        (root / "other").symlink_to("loop")
    assert [found(root), found(root)] == [["input/a", "input/z"]] * 2
    told = [message for message in caplog.messages if f"in {root} some names cannot be followed" in message]
    assert len(told) == 1
    assert "loop (Too many levels of symbolic links)" in told[0]


def test_a_link_to_a_folder_above_is_not_followed_round_and_round(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    images(root, "a/b")
    (root / "a" / "b" / "up").symlink_to(root / "a", target_is_directory=True)
    assert found(root) == ["input/a", "input/a/b"]
    assert "up leads back to a folder that it lies in" in caplog.text


def test_a_folder_that_may_not_be_read_hides_nothing_and_is_told_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    images(root, "a", "lost+found", "z")
    (root / "lost+found").chmod(0)
    with unprivileged():
        assert [found(root), found(root)] == [["input/a", "input/z"]] * 2
    assert [message for message in caplog.messages if "lost+found" in message] == [
        f"LoRA Loom: {root}/lost+found cannot be read (Permission denied) and is left out of the lists."
    ]
    (root / "lost+found").chmod(0o755)
    assert "input/lost+found" in found(root)


def test_a_folder_whose_contents_cannot_be_looked_at_hides_nothing(root: Path) -> None:
    images(root, "a", "names_only/inner", "z")
    (root / "names_only").chmod(0o644)  # its names may be read, and nothing else
    with unprivileged():
        assert found(root) == ["input/a", "input/z"]


def test_a_name_that_is_not_text_is_told_in_the_log_all_the_same(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    images(root, "a")
    os.symlink(b"caf\xe9", os.fsencode(root) + b"/caf\xe9")
    assert found(root) == ["input/a"]
    assert "caf\\xe9" in caplog.text
    caplog.text.encode()


def test_a_link_that_leads_out_is_told_with_the_line_that_registers_its_folder(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images(root, "a")
    images(tmp_path, "photos", "photos/more")
    (root / "elsewhere").symlink_to(tmp_path / "photos", target_is_directory=True)
    assert found(root) == ["input/a", "input/elsewhere"], "it is not looked into any further"
    assert f'lora_loom: {{datasets: "{tmp_path}/photos"}}' in caplog.text
    assert found(root, inside=(tmp_path,)) == ["input/a", "input/elsewhere", "input/elsewhere/more"]


def test_what_comes_and_goes_is_seen(root: Path) -> None:
    memory = FolderMemory(SUFFIXES)
    images(root, "a", "b")
    (root / "disk").symlink_to(root / ".not_there_yet")
    assert found(root, memory) == ["input/a", "input/b"]
    (root / "b" / "a.png").unlink()
    images(root, "c/d")
    assert found(root, memory) == ["input/a", "input/c", "input/c/d"]
    images(root, ".not_there_yet")
    assert "input/disk" in found(root, memory)


def test_folders_that_have_not_changed_are_not_read_again(root: Path) -> None:
    images(root, *(f"{name}/{number}" for name in "abc" for number in range(20)))
    memory = FolderMemory(SUFFIXES)
    read: list[str] = []
    sys.addaudithook(lambda event, arguments: read.append(arguments[0]) if event == "os.scandir" else None)
    time.sleep(3.1)  # until a change in the same tick of the file system's clock can be ruled out
    names = found(root, memory)
    assert len(read) == 64
    read.clear()
    assert found(root, memory) == names
    assert read == []
    images(root, "b/21")
    assert found(root, memory) == sorted([*names, "input/b/21"], key=lambda name: name.split("/"))
    assert sorted(set(read)) == [str(root / "b"), str(root / "b" / "21")]


def test_nothing_is_said_of_links_to_what_is_not_there(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    images(root, "a")
    (root / "a" / "b.png").symlink_to("gone.png")
    assert found(root) == ["input/a"]
    assert caplog.messages == []
