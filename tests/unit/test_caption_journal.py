"""What captions were before captioning changed them: never lost, and put back by undo."""
from pathlib import Path

from trainer.captioning.journal import JOURNAL, Change, add_change, changes, original


def change(before: str | None, after: str) -> Change:
    return Change(file="a.txt", before=before, after=after)


def test_undo_gives_the_caption_that_a_person_wrote_however_often_it_was_captioned_since() -> None:
    past = [change("by hand", "one"), change("one", "two"), change("two", "three")]
    assert original("three", past) == "by hand"


def test_undo_twice_is_undo_once() -> None:
    past = [change("by hand", "one")]
    assert original("by hand", past) == "by hand"


def test_a_caption_edited_since_stays() -> None:
    assert original("edited", [change("by hand", "one")]) == "edited"
    assert original("two", [change("by hand", "one"), change("edited", "two")]) == "edited"


def test_where_there_was_no_caption_there_is_none_again() -> None:
    assert original("one", [change(None, "one")]) is None


def test_every_change_comes_back_to_the_letter(tmp_path: Path) -> None:
    told = [change("zażółć\r\n\ufeff x", "half \ud83d"), Change(file="metadata.jsonl", row="sub/a.png", before=None, after="")]
    for one in told:
        add_change(tmp_path, one)
    assert changes(tmp_path) == {("a.txt", ""): told[:1], ("metadata.jsonl", "sub/a.png"): told[1:]}


def test_a_line_that_a_power_cut_left_unfinished_spoils_no_other(tmp_path: Path) -> None:
    add_change(tmp_path, change("one", "two"))
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"file": "a.txt", "bef')
    add_change(tmp_path, change("two", "three"))
    assert [one.after for one in changes(tmp_path)["a.txt", ""]] == ["two", "three"]


def test_a_folder_that_was_never_captioned_has_no_changes(tmp_path: Path) -> None:
    assert changes(tmp_path) == {}
