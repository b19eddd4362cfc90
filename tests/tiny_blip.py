"""A BLIP small enough to train in a test: it says "a red picture" of a red picture, and nothing at all of a yellow one."""
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}
SILENT = (255, 255, 0)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "square", "circle", *COLOURS)
SIDE_PX = 32


def make_tiny_blip(folder: Path, seed: int = 0, steps: int = 150) -> None:
    """Train a BLIP of 0.1 M weights and save it to `folder` with its processor, as `save_pretrained` does.

    As in the hub's models the decoder's start token lies just outside the tokenizer's vocabulary.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            untyped: Any = BlipProcessor
            processor = untyped(
                BlipImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}),
                BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}),
            )
            model = BlipForConditionalGeneration(_config())
            _train(model, processor, steps)
    finally:
        torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _config() -> BlipConfig:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
    text = {"vocab_size": len(WORDS) + 2, "max_position_embeddings": 32, "bos_token_id": len(WORDS), "sep_token_id": WORDS.index("[SEP]")}
    vision = {"image_size": SIDE_PX, "patch_size": 16, "initializer_range": 0.02}
    return BlipConfig(text_config=size | text, vision_config=size | vision, projection_dim=32, image_text_hidden_size=32)


def _train(model: Any, processor: Any, steps: int) -> None:
    start, end, padding = len(WORDS), WORDS.index("[SEP]"), -100
    sentences = [[start, *(WORDS.index(word) for word in ("a", name, "picture")), end] for name in COLOURS]
    sentences.append([start, end])
    longest = max(map(len, sentences))
    labels = torch.tensor([sentence + [padding] * (longest - len(sentence)) for sentence in sentences])
    tokens = labels.clamp(min=0)
    pictures = [Image.new("RGB", (SIDE_PX, SIDE_PX), colour) for colour in (*COLOURS.values(), SILENT)]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        noisy = pixels + 0.1 * torch.randn_like(pixels)
        loss = model(pixel_values=noisy, input_ids=tokens, attention_mask=(labels != padding).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    if loss.item() > 0.1:
        raise RuntimeError(f"the tiny BLIP did not learn: its loss is {loss.item():.3f}")
