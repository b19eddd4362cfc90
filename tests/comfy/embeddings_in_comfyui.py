"""Run in ComfyUI's folder: whether its tokenizers take from each embedding's file what `read_embedding` does, as JSON by the file's name.

    python embeddings_in_comfyui.py FOLDER
"""
import json
import sys
from pathlib import Path

import torch
from comfy.cli_args import args

from trainer.adapters.embedding import Embedding, read_embedding
from trainer.adapters.stack import EMBEDDING, Row, embedding_words


def main(folder: Path) -> None:
    # ComfyUI chooses its device when these are imported.
    args.cpu = True
    from comfy.sd1_clip import SD1Tokenizer
    from comfy.sdxl_clip import SDXLTokenizer

    tokenizers = {"SD 1.x": SD1Tokenizer(embedding_directory=str(folder)), "SDXL": SDXLTokenizer(embedding_directory=str(folder))}
    short = {"clip_l": "l", "clip_g": "g"}

    def taken(embedding: Embedding, words: str) -> bool:
        """Whether each of the file's encoders gets its vectors."""
        tokens = tokenizers[embedding.family].tokenize_with_weights(f"a {words} toy")
        for encoder, table in embedding.vectors.items():
            given = [token for token, _ in tokens[short[encoder]][0] if isinstance(token, torch.Tensor)]
            if len(given) != len(table) or not all(torch.equal(one, other) for one, other in zip(given, table, strict=True)):
                return False
        return True

    told = {}
    for file in sorted(path for path in folder.rglob("*.*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        told[name] = taken(read_embedding(file), embedding_words(Row(name=EMBEDDING + name)))
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
