"""A caption's chunks of tokens and weights are those that ComfyUI's own tokenizer makes."""
import json
import random
from typing import Any

import pytest
from loom_server import comfyui, told_in_comfyui
from transformers import CLIPTokenizer

from trainer.families.tokens import Chunk, chunks, too_long

END = 49407
PADDING = {"SD 1.x": END, "SDXL l": END, "SDXL g": 0}
MANY = 100

MARKS = [
    "",
    " ",
    "a red apple",
    "(word:1.2)",
    "(word)",
    "((a))",
    "((a:1.5))",
    "((a):1.5)",
    "a (b (c (d:0.3) e) f:1.4) g",
    r"\(literal\) (weighted \(literal\):1.3)",
    r"(ends in an escape\)",
    r"(a:1.2\))",
    r"\\(a\\)",
    "\\",
    "a \\",
    "(a:b)",
    "(a:)",
    "(:1.2)",
    "(:)",
    "()",
    "(())",
    "( )",
    "(a:1.2:1.3)",
    "(a: 1.2 )",
    "(a:-1)",
    "(a:0)",
    "(a:1e2)",
    "(a:1_0)",
    "(a:.5)",
    "(a:inf)",
    "(word:0.5)(x)",
    "red(apple)pie",
    # Unbalanced.
    "(",
    ")",
    ")(",
    "(a",
    "a)",
    "a) (b:1.2)",
    "a)( (b:1.2) c",
    "(a (b)",
    "(a (b:1.3)",
    "(a (b:1.3) c",
    "((a:1.2)",
    "(a:1.2))(b:1.3)",
    "a)) ((b)) (c)",
    # Smileys, as captions have them.
    "a cat :) and a dog :( (sad:1.2)",
]
UNICODE = [
    "A cat 🐈‍⬛, naïve café, Ünïcödé",
    "猫、(犬:1.2)、リンゴ（赤い）",
    "кошка (собака) 🍎🍏",
    "e\u0301 and é, ﬁ, Ⅳ, ½",
    "line one\nline two\r\nline three\ttab",
    "many     spaces   ( inside   parentheses :1.2 )   ",
    "\n\n(a\nb:1.2)\n",
    "non\u00a0breaking\u200bzero width\ufeff",
    "(arabic digits:١.٥)",
    "<|endoftext|> and <|startoftext|> in (a <|endoftext|>:1.2)",
    "DON'T! it's 50% of #1 & <b>html</b> &amp; x",
]
LONG_WORD = "pneumonoultramicroscopicsilicovolcanoconiosis"


def long_captions() -> list[str]:
    """Captions of 80 to 300 tokens, and a word or a segment of every length at every place about the end of a chunk."""
    found = []
    for length in (74, 75, 76, 80, 149, 150, 151, 200, 225, 226, 300):
        found.append(" ".join(["apple"] * length))
        found.append(f"({' '.join(['apple'] * length)}:1.2)")
        found.append(", ".join(f"(word {number}:1.{number % 10})" for number in range(length // 4)))
    for before in range(64, 76):
        start = " ".join(["apple"] * before)
        found.append(f"{start} {LONG_WORD} {LONG_WORD} end")
        found.append(f"{start} ({LONG_WORD}:1.2) end")
        found += [f"{start} ({' '.join(['red'] * length)}:0.8) pie" for length in (1, 2, 6, 7, 8, 9, 80, 150)]
    found.append("apple " * 70 + "(a b c d e f g:1.1) " * 40)
    return found


def random_captions(count: int) -> list[str]:
    """Seeded: strings of everything that has a meaning, of up to some hundred tokens."""
    draw = random.Random(0)
    alphabet = ["(", ")", "(", ")", ":", "1.2", "0.5", "7", "\\", "\\(", "\\)", ",", " ", "  ", "\n", "apple", "red", "photo of", "🍎", LONG_WORD]
    return ["".join(draw.choices(alphabet, k=draw.choice((3, 8, 20, 60, 250)))) for _ in range(count)]


def escaped(caption: str) -> str:
    return caption.replace("(", "\\(").replace(")", "\\)")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(comfyui() / "comfy" / "sd1_tokenizer", local_files_only=True, model_max_length=77)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return MARKS + UNICODE + long_captions() + random_captions(600)


@pytest.fixture(scope="module")
def told(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Chunk]]]:
    """What ComfyUI makes of every caption, and then of every caption with escaped parentheses."""
    file = tmp_path_factory.mktemp("tokens") / "captions.json"
    file.write_text(json.dumps(captions + [escaped(caption) for caption in captions]))
    answer = told_in_comfyui("tokens_in_comfyui.py", file)
    return {
        encoder: [[Chunk(tuple(ids), tuple(weights)) for ids, weights in caption] for caption in answered] for encoder, answered in answer.items()
    }


@pytest.mark.parametrize("encoder", PADDING)
@pytest.mark.parametrize("emphasis", [True, False])
def test_chunks_are_comfyuis(encoder: str, emphasis: bool, tokenizer: Any, captions: list[str], told: dict[str, list[list[Chunk]]]) -> None:
    theirs = told[encoder][: len(captions)] if emphasis else told[encoder][len(captions) :]
    assert {len(found) for found in theirs} > {1, 2, 3, 4}
    weights = {weight for found in theirs for chunk in found for weight in chunk.weights}
    assert len(weights) > 20 if emphasis else weights == {1.0}
    for caption, expected in zip(captions, theirs, strict=True):
        assert all(len(chunk.ids) == len(chunk.weights) == 77 for chunk in expected)
        assert chunks(tokenizer, caption, PADDING[encoder], emphasis=emphasis, most=MANY) == expected, caption
        for most in (1, 2):
            assert chunks(tokenizer, caption, PADDING[encoder], emphasis=emphasis, most=most) == expected[:most], caption
            assert too_long(tokenizer, caption, emphasis=emphasis, most=most) == (len(expected) > most), caption


def test_one_chunk_without_emphasis_is_what_transformers_truncates_to(tokenizer: Any, captions: list[str]) -> None:
    lengths = set()
    for caption in captions:
        ids = tokenizer(caption, truncation=True, max_length=77).input_ids
        (chunk,) = chunks(tokenizer, caption, END)
        assert chunk.ids == (*ids, *[END] * (77 - len(ids))), caption
        length = len(tokenizer(caption, truncation=False).input_ids) - 2
        assert too_long(tokenizer, caption) == (length > 75)
        lengths.add(length)
    assert {0, 74, 75, 76} < lengths


def test_a_short_emphasised_segment_that_does_not_fit_begins_the_next_chunk(tokenizer: Any) -> None:
    caption = "apple " * 73 + "(red green blue:1.2)"
    assert too_long(tokenizer, caption, emphasis=True)
    first, second = chunks(tokenizer, caption, 0, emphasis=True, most=2)
    assert first.ids[73:] == (first.ids[73], END, 0, 0)
    assert second.weights[:5] == (1.0, 1.2, 1.2, 1.2, 1.0)
    assert not too_long(tokenizer, caption, emphasis=True, most=2)


def test_too_long_counts_what_is_left_of_the_caption(tokenizer: Any) -> None:
    fits = " ".join(["apple"] * 75)
    assert not too_long(tokenizer, "")
    assert not too_long(tokenizer, fits)
    assert too_long(tokenizer, f"{fits} pie")
    # Its marks are tokens only where they are text.
    assert not too_long(tokenizer, f"({fits}:1.2)", emphasis=True)
    assert too_long(tokenizer, f"({fits}:1.2)")
    assert not too_long(tokenizer, f"{fits} {fits}", most=2)
    assert too_long(tokenizer, f"{fits} {fits} pie", most=2)


def test_parentheses_may_nest_deeper_than_calls_do(tokenizer: Any) -> None:
    deep = 1500
    (chunk,) = chunks(tokenizer, "(" * deep + "a:0.5" + ")" * deep, END, emphasis=True)
    assert chunk.weights[:3] == (1.0, 0.5, 1.0)
