"""Which names a file can have on every system that it may be copied to; whoever takes a name for a new file asks here, when it is queued."""
import re
import unicodedata

from .messages import shown

_LONGEST = 100
_LONGEST_BYTES = 255  # of most file systems, in UTF-8
# What is put around a name at the most: a number, a step, the ending, and what marks a file that is still being written (see `replacing`).
_AROUND = len(".-9999-step00001000.safetensors.12345678.tmp")
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file: with an ending too, in capitals or not.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE | re.DOTALL)


def check_file_name(name: str) -> None:
    """Raises ValueError that says what is wrong with `name`, which is given without the ending, and what to do."""
    if not name or len(name) > _LONGEST or name.endswith((".", " ")) or not _begins(name[0]) or not all(map(_is_plain, name)):
        raise ValueError(
            f"the name {shown(repr(name))} is not a plain file name: use letters, digits, spaces and . _ + - (at most {_LONGEST}), with "
            "a letter, a digit or _ at the beginning and no dot or space at the end"
        )
    if _DEVICE.fullmatch(name):
        raise ValueError(f"the name {name!r} is not one that a file can have on Windows, where it is a device's: choose another")
    size, most = len(name.encode()), _LONGEST_BYTES - _AROUND
    if size > most:
        raise ValueError(f"the name {name!r} is too long for a file system: it has {size} bytes, and {most} is the most. Choose a shorter one")


def check_word_name(name: str) -> None:
    """The same for an embedding's file, by whose name prompts call it as one word. Raises ValueError."""
    check_file_name(name)
    if " " in name:
        raise ValueError(f"the name {name!r} has spaces, and prompts call an embedding by its file's name as one word: write _ for them")


def _begins(character: str) -> bool:
    return character.isalnum() or character == "_"


def _is_plain(character: str) -> bool:
    # Marks are part of letters: of some scripts always, and of what a Mac writes as letter and accent.
    # So are the joiners that Persian and the scripts of India write between letters.
    return _begins(character) or character in " .+-\u200c\u200d" or unicodedata.category(character) in ("Mn", "Mc")
