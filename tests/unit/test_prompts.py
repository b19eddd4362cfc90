"""Prompts without some of their words."""
import pytest

from trainer.prompts import parse_words, without_words


@pytest.mark.parametrize(
    ("prompt", "words", "left"),
    [
        ("smiley, grinning face, at night", "at night", "smiley, grinning face"),
        ("smiley, grinning face, at night", "smiley", "grinning face, at night"),
        ("smiley, grinning face, at night", "grinning face", "smiley, at night"),
        ("smiley,grinning face,at night", "smiley", "grinning face,at night"),
        ("a photo of sks dog on a beach", "sks dog", "a photo of on a beach"),
        ("red sks, big dog", "sks", "red, big dog"),
        ("sks, a dog and sks, sks", "sks", "a dog and"),
        ("red sks, dog house", "dog, sks", "red, house"),
        ("sks dog, sks", "sks, sks dog", ""),
        ("at  night, a street", "at night", "a street"),
        ("(sks:1.2) dog, :3", "sks", "dog, :3"),
        ("a ((sks)) dog", "sks", "a dog"),
        ("(sks, dog:1.2)", "sks", "(dog:1.2)"),
        ("(dog, sks:1.2), night", "sks", "(dog:1.2), night"),
        ("a dog (at night). Rain", "at night", "a dog. Rain"),
        ("a (b), embedding:bun, food", "embedding:bun", "a (b), food"),
    ],
)
def test_words_go_with_what_they_leave_behind(prompt: str, words: str, left: str) -> None:
    assert without_words([prompt], parse_words(words)) == {prompt: left}


def test_a_prompt_without_the_words_stays_as_it_is_if_another_has_them() -> None:
    other = "red-haired , Red, redder"
    assert without_words([other, "red apple"], ["red"]) == {other: other, "red apple": "apple"}


@pytest.mark.parametrize("words", ["red", "apple, red", "haired face"])
def test_words_that_no_prompt_holds_are_named_with_the_prompts(words: str) -> None:
    missing = parse_words(words)[-1]
    with pytest.raises(ValueError, match=rf'no line of the prompt holds "{missing}" \(red-haired face / Red apple\)'):
        without_words(["red-haired face", "Red apple"], parse_words(words))


def test_words_are_what_commas_separate() -> None:
    assert parse_words(" at  night,, sks,at night\n") == ("at night", "sks")
    assert parse_words(" , ") == ()
    assert without_words(["a dog"], ()) == {"a dog": "a dog"}
