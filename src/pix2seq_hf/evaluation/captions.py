"""How good are the captions: how many are word for word one of those that people wrote."""

from collections.abc import Mapping, Sequence


def normalize_caption(caption: str) -> str:
    """A caption without differences that nobody sees: runs of blanks are one blank, none at the ends."""
    return " ".join(caption.split())


def count_reproduced(captions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> dict[str, int]:
    r"""Count the captions that are word for word, letter for letter, one of their picture's.

    Args:
        captions (`Mapping[int, str]`): One per picture id.
        references (`Mapping[int, Sequence[str]]`): Those of the annotations, by picture id.
    Returns:
        `dict[str, int]`: `reproduced`, and `num_captions` in all.
    Raises:
        ValueError: If a picture has no reference."""
    reproduced = 0
    for image_id, caption in captions.items():
        if not references.get(image_id):
            raise ValueError(f"picture {image_id} has no caption to compare with")
        reproduced += normalize_caption(caption) in map(normalize_caption, references[image_id])
    return {"reproduced": reproduced, "num_captions": len(captions)}
