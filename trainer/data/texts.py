"""Captions as the UNet sees them: encoded once before training where there are few, at each step where their tags are drawn."""
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..events import Event, Phase, Warned
from ..families.protocol import Conditioning, Family, TextPart
from ..messages import listed
from ..options import NewWord
from .cache import Cache, key_of

_AT_ONCE = 16


class Texts(Protocol):
    """Gives the conditioning of captions, in fp32: a row for each, without sizes."""

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """See the class."""
        ...


class LiveTexts:
    """Encodes at each call; the text encoders stay on the device. `parts` may be replaced by ones that are trained."""

    def __init__(self, family: Family, parts: list[TextPart], trained: bool) -> None:
        self._family, self.parts, self._trained = family, parts, trained

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """See `Texts`; on the text encoders' device, with gradients where they are trained."""
        with torch.set_grad_enabled(self._trained and torch.is_grad_enabled()):
            return self._family.encode_text(self.parts, list(captions)).map(Tensor.float)


class EncodedTexts:
    """Every caption encoded beforehand, on the CPU. `rows`: one caption each; the empty one, of one chunk, is among them."""

    def __init__(self, rows: dict[str, Conditioning]) -> None:
        self._rows = rows

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """See `Texts`. Raises KeyError for a caption that was not encoded."""
        rows = [self._rows[caption] for caption in captions]
        longest = max(row.hidden.shape[1] for row in rows)
        pooled = [row.pooled for row in rows if row.pooled is not None]
        whole = Conditioning(torch.cat([self._filled_up(row.hidden, longest) for row in rows]), torch.cat(pooled) if pooled else None)
        return whole.map(Tensor.float)

    def _filled_up(self, hidden: Tensor, length: int) -> Tensor:
        empty = self._rows[""].hidden
        return torch.cat([hidden, *[empty] * ((length - hidden.shape[1]) // empty.shape[1])], dim=1)


def encoded_texts(
    family: Family,
    parts: Callable[[], list[TextPart]],
    captions: Iterable[str],
    cache: Cache,
    precision: str,
    emit: Callable[[Event], None],
) -> tuple[EncodedTexts, int]:
    """Every different caption encoded once, and how many were not in the cache. `parts` loads the text encoders when the first one is not.

    `precision`: the text encoders' number format, on which an entry depends.
    """
    unique = list(dict.fromkeys(["", *captions]))
    digest = family.text_digest()
    keys = {caption: key_of("text", caption, digest, precision) for caption in unique}
    rows: dict[str, Conditioning] = {}
    for caption in unique:
        entry = cache.get(keys[caption])
        if entry is not None:
            rows[caption] = Conditioning(entry["hidden"], entry.get("pooled"))
    missing = [caption for caption in unique if caption not in rows]
    # Captions of several chunks differ in length, so each of them is encoded by itself.
    together = _AT_ONCE if family.text.chunks == 1 else 1
    for start in range(0, len(missing), together):
        emit(Phase(name="encoding captions", done=start, total=len(missing)))
        batch = missing[start : start + together]
        with torch.no_grad():
            encoded = family.encode_text(parts(), batch).map(lambda tensor: tensor.cpu())
        for index, caption in enumerate(batch):
            row = rows[caption] = encoded.rows(torch.tensor([index]))
            cache.put(keys[caption], {"hidden": row.hidden} | ({} if row.pooled is None else {"pooled": row.pooled}))
    return EncodedTexts(rows), len(missing)


def warn_of_long(family: Family, captions: Iterable[str], word: NewWord | None, emit: Callable[[Event], None]) -> None:
    """Tell of captions whose end is cut off. `word`: one that takes as many tokens as it has vectors."""
    words = {word.placeholder: (0,) * word.vectors} if word else {}
    long = [caption for caption in dict.fromkeys(captions) if family.too_long(caption, words)]
    if long:
        emit(
            Warned(
                message=f"{len(long)} captions are longer than {family.text.max_tokens} tokens, and their ends are not trained (max_tokens of Text "
                f"Encoder Options can be raised to 225): {listed([caption[:80] for caption in long])}"
            )
        )
