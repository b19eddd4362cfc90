"""What the demo proves, as numbers: `report.json`, and its closing line."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from material import Material
from pictures import color_distance
from PIL import Image


def facts(result: dict[str, Any], material: Material) -> dict[str, Any]:
    """What the training node put into the history; the loss on held-out images, before and after, by their folder."""
    by_folder = result["validation_by_dataset"]
    if len(material.held_out) == 1:
        by_folder = {Path(material.held_out[0]).name: result["validation"]}
    return {
        "lora": result["adapter"],
        "base": material.checkpoint,
        **{key: result[key] for key in ("run", "steps", "first_loss", "last_loss", "seconds_per_step")},
        "held_out_loss": {folder: {"before": losses[0][1], "after": losses[-1][1]} for folder, losses in by_folder.items()},
    }


def distances(rows: Sequence[Sequence[Image.Image]]) -> dict[str, float]:
    """How far weight 1 moves a cell's colors from those at weight 0, with the style's words and without them: means over the rows of the grid.

    The first cell of a row is drawn at weight 0, the last but one at weight 1, the last at weight 1 without the words.
    """
    count = len(rows)
    return {
        "with_words": sum(color_distance(row[0], row[-2]) for row in rows) / count,
        "without_words": sum(color_distance(row[0], row[-1]) for row in rows) / count,
    }


def closing(report: dict[str, Any]) -> list[str]:
    """The same in a line or two."""
    losses = {"while training": {"before": report["first_loss"], "after": report["last_loss"]}} | report["held_out_loss"]
    told = [f"{name} {loss['before']:.4f} -> {loss['after']:.4f} ({loss['after'] / loss['before'] - 1:+.0%})" for name, loss in losses.items()]
    lines = [f"Loss: {', '.join(told)}"]
    if moved := report["color_distance"]:
        lines.append(f"Weight 1 changes colors by {moved['with_words']:.2f} with the style's words and by {moved['without_words']:.2f} without them")
    return lines
