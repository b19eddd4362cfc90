"""A caption as chunks of CLIP tokens with weights, the way ComfyUI takes a prompt apart (SDTokenizer and token_weights in comfy/sd1_clip.py of
https://github.com/comfyanonymous/ComfyUI), so that a caption is trained as the tokens that CLIPTextEncode draws with.

A caption is first cut into segments of one weight each, a single one without emphasis. Every segment is tokenised by itself, and their tokens
fill chunks of 75 between a start and an end token.
"""
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

TOKENS = 77
_ROOM = TOKENS - 2
_START, _END = 49406, 49407
# From this number of tokens on, a segment is torn where a chunk ends; a shorter one begins the next chunk.
_TORN_FROM = 8
_STRONGER = 1.1
_PARENTHESIS = re.compile(r"(?<!\\)[()]")
_EMPHASISED = re.compile(r"\((.*)(?<!\\)\)", re.DOTALL)
_ESCAPED = re.compile(r"\\([()])")

_Weighted = tuple[int, float]
Words = Mapping[str, Sequence[int]]
"""Tokens by word."""


@dataclass(frozen=True)
class Chunk:
    """77 tokens of a caption: `ids` with start, end and padding; `weights` as many, 1.0 where nothing is emphasised."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def chunks(
    tokenizer: Any, caption: str, padding: int, *, emphasis: bool = False, most: int = 1, words: Words = MappingProxyType({})
) -> list[Chunk]:
    r"""At least one and at most `most` chunks; what does not fit is cut off. An empty caption is one chunk of padding.

    `tokenizer` is transformers' CLIPTokenizer; `padding` the token that fills a chunk: 49407 for CLIP-L, 0 for OpenCLIP's encoders.
    With `emphasis`, parentheses weigh as in a prompt of ComfyUI: `(word)` is 1.1 times what is around it, `(word:1.2)` is 1.2 wherever it is,
    `\(` and `\)` are parentheses of the text. Without, every character is text, as ComfyUI reads it with `\` before each parenthesis.
    `embedding:name` is text too, where ComfyUI would load a file. `words`: such as are no text but these tokens, wherever they stand as whole words;
    they are to the text around them what an embedding is in ComfyUI.
    """
    found: list[Chunk] = []
    for tokens in _filled(tokenizer, caption, emphasis, words)[:most]:
        padded = [(_START, 1.0), *tokens, (_END, 1.0), *[(padding, 1.0)] * (_ROOM - len(tokens))]
        found.append(Chunk(tuple(token for token, _ in padded), tuple(weight for _, weight in padded)))
    return found


def too_long(tokenizer: Any, caption: str, *, emphasis: bool = False, most: int = 1, words: Words = MappingProxyType({})) -> bool:
    """Whether the end of the caption does not fit into `most` chunks."""
    return len(_filled(tokenizer, caption, emphasis, words)) > most


def _filled(tokenizer: Any, caption: str, emphasis: bool, words: Words) -> list[list[_Weighted]]:
    """All the caption's chunks, each of up to 75 weighted tokens. Only the first can be empty."""
    filled: list[list[_Weighted]] = [[]]
    for text, weight in _segments(caption) if emphasis else [(caption, 1.0)]:
        for ids in _groups(tokenizer, text, words):
            tokens = [(token, weight) for token in ids]
            room = _ROOM - len(filled[-1])
            if room < len(tokens) < _TORN_FROM:
                room = 0
            filled[-1] += tokens[:room]
            filled += [tokens[start : start + _ROOM] for start in range(room, len(tokens), _ROOM)]
    return filled


def _groups(tokenizer: Any, text: str, words: Words) -> Iterator[Sequence[int]]:
    """The tokens of a text, cut around `words`: what is to stay together where a chunk ends."""
    pattern = "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words)
    # The tokenizer reads no capitals, so no word of its text has any.
    for piece in re.split(f"({pattern})", text, flags=re.IGNORECASE) if words else [text]:
        known = next((tokens for word, tokens in words.items() if piece.lower() == word.lower()), None)
        if known is not None:
            yield known
        elif piece or not words:
            # Not verbose: the tokenizer would warn of more than 77 tokens, which is what chunks are for.
            yield tokenizer(piece, add_special_tokens=False, truncation=False, verbose=False).input_ids


def _segments(caption: str) -> Iterator[tuple[str, float]]:
    """The caption's texts without the parentheses that emphasise them, in order, with their weights."""
    # A stack and no recursion: a caption may be any file's text, with more parentheses in each other than Python nests calls.
    left = [(piece, 1.0) for piece in reversed(_pieces(caption))]
    while left:
        piece, weight = left.pop()
        emphasised = _EMPHASISED.fullmatch(piece)
        if emphasised is None:
            yield _ESCAPED.sub(r"\1", piece), weight
            continue
        text = emphasised[1]
        weight *= _STRONGER
        before, _, after = text.rpartition(":")
        if before:
            try:
                text, weight = before, float(after)
            except ValueError:
                pass  # a colon of the text
        left += [(piece, weight) for piece in reversed(_pieces(text))]


def _pieces(text: str) -> list[str]:
    """`text` cut around each outermost pair of parentheses.

    What is unbalanced follows from counting as ComfyUI does: an open parenthesis that is never closed takes the rest with it, and one that was
    closed before it was opened makes the next open one text.
    """
    found: list[str] = []
    start = depth = 0
    for parenthesis in _PARENTHESIS.finditer(text):
        opens = parenthesis[0] == "("
        before, depth = depth, depth + (1 if opens else -1)
        if opens and before == 0:
            cut = parenthesis.start()
        elif not opens and depth == 0:
            cut = parenthesis.end()
        else:
            continue
        found.append(text[start:cut])
        start = cut
    found.append(text[start:])
    return [piece for piece in found if piece]
