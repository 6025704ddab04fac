"""What becomes of an annotation that is wrong: pure functions that mend one value, or say that it is to be left out."""

from collections.abc import Iterable
from typing import Any

ROUNDING = 1.0  # pixels; boxes that reach no further outside are left as they are, to the bit
LARGEST_NUMBER = 1e9  # far beyond any picture, well within what float32 and pycocotools can take


def mend_box(box_xywh: Any, image_size: tuple[int, int]) -> tuple[list[float] | None, str | None]:
    r"""Check a box and clip it to its picture.

    Args:
        box_xywh (`Any`): What stands there as x, y, width, height in pixels.
        image_size (`tuple[int, int]`): (height, width) in pixels.
    Returns:
        `tuple`: The box, the same object if it is good, or `None` if there is nothing to be learnt from it; and what is
        wrong with it, in a few words, or `None`."""
    if not isinstance(box_xywh, list) or len(box_xywh) != 4 or not all(map(is_number, box_xywh)):
        return None, "box that is not four finite numbers"
    (x, y, box_width, box_height), (height, width) = box_xywh, image_size
    if box_width < 0 or box_height < 0:
        return None, "box of negative size"
    if box_width == 0 or box_height == 0:
        return None, "box without area"
    right, bottom = x + box_width, y + box_height
    if x >= width or y >= height or right <= 0 or bottom <= 0:
        return None, "box outside of its picture"
    if min(x, y) < -ROUNDING or right > width + ROUNDING or bottom > height + ROUNDING:
        x, y, right, bottom = max(x, 0), max(y, 0), min(right, width), min(bottom, height)
        return [x, y, right - x, bottom - y], "box that reaches out of its picture"
    return box_xywh, None


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number that can be a coordinate: finite, and not too large for float32."""
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER  # NaN compares as False


def is_integer(value: Any) -> bool:
    """Whether a value of a file is an integer; `true` is none."""
    return type(value) is int


def choose_images(
    known: Iterable[int], image_ids: Iterable[int] | None, max_images: int | None, where: Any
) -> list[int]:
    r"""Say which pictures of a source are read.

    Args:
        known (`Iterable[int]`): Ids of all pictures, in the order of the source.
        image_ids (`Iterable[int]`, *optional*): Keep these only, in this order, each once.
        max_images (`int`, *optional*): Keep at most the first so many.
        where (`Any`): What lists the pictures; the message begins with it.
    Raises:
        ValueError: If an id is unknown, or nothing is left."""
    kept = list(known)
    if image_ids is not None:
        wanted, kept = set(kept), list(dict.fromkeys(int(image_id) for image_id in image_ids))
        missing = [image_id for image_id in kept if image_id not in wanted]
        if missing:
            raise ValueError(f"{where}: lists no picture with id {missing[0]}")
    if max_images is not None:
        kept = kept[:max_images]
    if not kept:
        raise ValueError(f"{where}: lists no pictures")
    return kept
