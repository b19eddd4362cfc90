"""Run in ComfyUI's folder: how ComfyUI tokenises captions, as JSON on the last line.

    python tokens_in_comfyui.py FILE

FILE is a JSON list of captions. The answer has, for each encoder, a list of [ids, weights] of every chunk, for every caption.
"""
import json
import sys
from pathlib import Path

from comfy.cli_args import args


def main(file: Path) -> None:
    args.cpu = True
    from comfy.sd1_clip import SD1Tokenizer
    from comfy.sdxl_clip import SDXLTokenizer

    captions = json.loads(file.read_text())
    sd1, sdxl = SD1Tokenizer(), SDXLTokenizer()
    told: dict[str, list[list[tuple[list[int], list[float]]]]] = {"SD 1.x": [], "SDXL l": [], "SDXL g": []}
    for caption in captions:
        xl = sdxl.tokenize_with_weights(caption)
        for encoder, chunks in (("SD 1.x", sd1.tokenize_with_weights(caption)["l"]), ("SDXL l", xl["l"]), ("SDXL g", xl["g"])):
            told[encoder].append([([token for token, _ in chunk], [weight for _, weight in chunk]) for chunk in chunks])
    print(json.dumps(told))


main(Path(sys.argv[1]))
