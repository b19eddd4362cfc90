"""What is left of prompts without some of their words."""
import re
from collections.abc import Sequence

from .messages import listed, shown

# Stands where words were, until what they leave behind has gone too.
_GAP = "\0"
# Parentheses with nothing else in them, with their weight: ComfyUI would read the number as a word.
_EMPTY = re.compile(r"\([\s,\0]*\0[\s,]*(:[\d.]+\s*)?\)")
_LEFT_OVER = re.compile(r"(^|\()?([\s,\0]*\0[\s,]*)($|(?=[).]|:[\d.]+\s*\)))?")


def parse_words(text: str) -> tuple[str, ...]:
    """Words or phrases from text with commas between them, each once."""
    return tuple(dict.fromkeys(phrase for part in text.split(",") if (phrase := " ".join(part.split()))))


def without_words(prompts: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    """By prompt, what is left of it without `words` and their commas, spaces and weights; one that holds none of them stays as it is.

    Raises ValueError for words that no prompt holds: as whole words, in the same capitals.
    """
    for phrase in words:
        if not any(_pattern(phrase).search(prompt) for prompt in prompts):
            raise ValueError(
                f'without: no line of the prompt holds "{shown(phrase)}" ({listed([shown(prompt) for prompt in prompts], " / ", 3)}): '
                "write it as the prompt does, in whole words and the same capitals."
            )
    return {prompt: _left(prompt, words) for prompt in prompts}


def _left(prompt: str, words: Sequence[str]) -> str:
    text = prompt
    # The longer first: a word may be a part of a phrase.
    for phrase in sorted(words, key=len, reverse=True):
        text = _pattern(phrase).sub(_GAP, text)
    before = ""
    while text != before:
        before, text = text, _EMPTY.sub(_GAP, text)
    return _LEFT_OVER.sub(_joint, text)


def _pattern(phrase: str) -> re.Pattern[str]:
    """A hyphen makes one word of two: `red-haired` does not hold `red`."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<![\w-]){words}(?![\w-])")


def _joint(match: re.Match[str]) -> str:
    """What stands between the words on both sides."""
    opening, gap, end = match.groups()
    if opening is not None or end is not None:
        return opening or ""
    return ", " if "," in gap else " "
