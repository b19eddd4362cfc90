"""New words: rows behind a text encoder's table of tokens, of which they alone train (https://arxiv.org/abs/2208.01618)."""
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..adapters.files import write_safetensors
from ..adapters.metadata import HASH, tensors_sha256
from ..data.order import generator
from ..families.protocol import Family, TextPart
from ..options import NewWord
from ..typed import SpecError


class Rows(nn.Module):
    """A table of tokens, frozen, with `vectors` (count, width) in fp32 behind it: token `table.num_embeddings` + i is row i of them.

    They are a parameter of their own, so whatever the optimiser does, the table stays as it is to the bit.
    """

    def __init__(self, table: nn.Embedding, vectors: Tensor) -> None:
        super().__init__()
        self.table = table
        self.vectors = nn.Parameter(vectors)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (*ids.shape, width) in the table's format."""
        known = ids < self.table.num_embeddings
        old = self.table(ids.where(known, 0))
        new = functional.embedding((ids - self.table.num_embeddings).clamp(min=0), self.vectors)
        return torch.where(known.unsqueeze(-1), old, new.to(old.dtype))


class Words:
    """The new word `word` in all text encoders of a family. The vectors start as `seed` says where the word has no initializer."""

    def __init__(self, word: NewWord, family: Family, seed: int) -> None:
        self._word, self._family, self._seed = word, family, seed
        self._rows: dict[str, Rows] = {}

    def check(self) -> None:
        """Raise SpecError where the base's tokenizer knows the placeholder as a word, or there are more tokens to begin with than vectors."""
        word, tokenizer = self._word, self._family.tokenizer
        if len(_tokens(tokenizer, word.placeholder)) < 2:
            raise SpecError(
                f"the placeholder {word.placeholder!r} is a word that the base knows already, and prompts with it would lose its meaning: choose one "
                f"that is none, such as <{word.placeholder.strip('<>')}>."
            )
        begin = _tokens(tokenizer, word.initializer)
        if len(begin) > word.vectors:
            raise SpecError(
                f"the initializer {word.initializer!r} is {len(begin)} tokens ({' '.join(tokenizer.convert_ids_to_tokens(begin))}), and the new word "
                f"has {word.vectors} vectors: set vectors to {len(begin)}, or choose a shorter initializer."
            )

    def numbers(self) -> int:
        """How many numbers the vectors hold."""
        widths = [_table(encoder).embedding_dim for encoder in self._family.empty_text_encoders()]
        return self._word.vectors * sum(widths)

    def add(self, parts: list[TextPart]) -> tuple[list[TextPart], list[nn.Parameter]]:
        """Put the vectors into the encoders, in place; gives the parts that know the word, and the vectors."""
        names = self._family.embedding_keys
        known = []
        for number, (name, part) in enumerate(zip(names, parts, strict=True)):
            encoder: Any = part.encoder
            table = _table(encoder)
            rows = self._rows[name] = Rows(table, self._first(part.tokenizer, table, number))
            encoder.set_input_embeddings(rows)
            ids = range(table.num_embeddings, table.num_embeddings + self._word.vectors)
            known.append(replace(part, words={self._word.placeholder: tuple(ids)}))
        return known, [rows.vectors for rows in self._rows.values()]

    def tensors(self) -> dict[str, Tensor]:
        """The vectors (count, width) by text encoder, in fp32, as they are."""
        return {name: rows.vectors.data for name, rows in self._rows.items()}

    def write(self, path: Path, metadata: Mapping[str, str]) -> str:
        """Write the embedding as ComfyUI and A1111 read it; gives the sha256 of the file's bytes. Raises FileError."""
        tensors = self.tensors()
        if len(tensors) == 1:
            tensors = {"emb_params": next(iter(tensors.values()))}
        return write_safetensors(path, tensors, {**metadata, HASH: "0x" + tensors_sha256(tensors)})

    def _first(self, tokenizer: Any, table: nn.Embedding, number: int) -> Tensor:
        weight = table.weight.detach().float()
        begin = _tokens(tokenizer, self._word.initializer)
        if begin:
            return weight[[begin[i % len(begin)] for i in range(self._word.vectors)]].clone()
        spread = torch.randn(self._word.vectors, weight.shape[1], generator=generator(self._seed, "new word", number)).to(weight)
        return weight.mean(0) + spread * weight.std(0)


def _table(encoder: Any) -> nn.Embedding:
    table = encoder.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return table


def _tokens(tokenizer: Any, text: str) -> Sequence[int]:
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False).input_ids if text.strip() else []
    return ids
