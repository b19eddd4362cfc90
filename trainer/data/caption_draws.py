"""Which caption a visit has, and what is left of it. See `dataset.CaptionUse`."""
import torch

from ..dataset import CaptionUse, Dataset, DatasetImage


def possible(dataset: Dataset, image: DatasetImage) -> list[str] | None:
    """Every caption that a visit may have, the plain first one in front; None where tags are drawn, so that there are too many to list."""
    if _draws_tags(dataset.caption_use):
        return None
    return [*dataset.captions(image), *([""] if dataset.caption_use.dropout else [])]


def drawn(dataset: Dataset, image: DatasetImage, generator: torch.Generator) -> str:
    """The caption of one visit."""
    use, captions = dataset.caption_use, dataset.captions(image)
    # All is drawn whatever is used, so that one setting does not shift what another draws.
    dropped, which = torch.rand(2, generator=generator).tolist()
    caption = captions[int(which * len(captions))]
    if _draws_tags(use):
        caption = _drawn_tags(caption, use, generator)
    return "" if dropped < use.dropout else caption


def _draws_tags(use: CaptionUse) -> bool:
    return use.shuffle or use.tag_dropout > 0


def _drawn_tags(caption: str, use: CaptionUse, generator: torch.Generator) -> str:
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    kept, others = tags[: use.keep_tokens], tags[use.keep_tokens :]
    order = torch.randperm(len(others), generator=generator).tolist()
    stays = (torch.rand(len(others), generator=generator) >= use.tag_dropout).tolist()
    positions = order if use.shuffle else range(len(others))
    return ", ".join([*kept, *(others[position] for position in positions if stays[position])])
