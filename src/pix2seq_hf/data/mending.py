r"""What becomes of an annotation that is wrong: pure functions that mend one value, or say that it is to be left out.

What is good is returned as the same object, to the bit. Beside the value, each returns its [`Faults`].
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pix2seq_hf.masks_pix2seq import rle_to_mask, segmentation_parts

ROUNDING = 1.0  # pixels; boxes that reach no further outside are left as they are
LARGEST_NUMBER = 1e9  # far beyond any picture, well within what float32 and pycocotools can take
MAX_CAPTION = 1000  # characters; a sentence has a hundred


class Fault(NamedTuple):
    r"""Something that is wrong with a value.

    Args:
        kind (`str`): What it is, the same for all of its kind.
        words (`str`): The rest of a line that begins with what has the fault: what is wrong, and what was done."""

    kind: str
    words: str


Faults = Sequence[Fault]
NO_FAULTS: Faults = ()


def mend_box(box_xywh: Any, image_size: tuple[int, int]) -> tuple[list[float] | None, str | None]:
    r"""Check a box and clip it to its picture.

    Args:
        box_xywh (`Any`): What stands there as x, y, width, height in pixels.
        image_size (`tuple[int, int]`): (height, width) in pixels.
    Returns:
        `tuple`: The box, or `None` if there is nothing to be learnt from it; and what is wrong with it in a few words,
        or `None`."""
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


def mend_object(
    item: dict[str, Any], images: Mapping[int, Mapping], id2label: Mapping[int, str]
) -> tuple[dict[str, Any] | None, Faults]:
    r"""Check what every task needs of an entry of a COCO file: its picture, class, box, area and crowd sign.

    Args:
        item (`dict`): The entry; a copy is changed.
        images (`Mapping[int, Mapping]`): Entries of pictures by id, with `height` and `width`.
        id2label (`Mapping[int, str]`): The classes.
    Returns:
        `tuple`: The entry or `None`, and its faults."""
    image_id, label = item.get("image_id"), item.get("category_id")
    if not is_integer(image_id) or image_id not in images:
        return None, [
            Fault("object of an unknown picture", f"is of picture {image_id!r}, which is not listed: left out")
        ]
    if not is_integer(label) or label not in id2label:
        return None, [Fault("object of an unknown category", f"has category {label!r}, which is not listed: left out")]
    image = images[image_id]
    box, kind = mend_box(item.get("bbox"), (image["height"], image["width"]))
    if box is None:
        return None, [Fault(kind, f"has bbox {shorten(item.get('bbox'))}: {kind}: left out")]
    faults, area = [], item.get("area", 0)
    if kind is not None:
        faults.append(Fault(kind, f"has bbox {item['bbox']}: {kind}: clipped"))
        item = {**item, "bbox": box}
    if not is_number(area) or area < 0:
        faults.append(Fault("area that is no number", f"has area {shorten(area)}: that of its box is taken"))
        item = {**item, "area": box[2] * box[3]}
    if item.get("iscrowd", 0) not in (0, 1):
        faults.append(Fault("crowd sign that is not 0 or 1", f"has iscrowd {shorten(item['iscrowd'])}: taken as 0"))
        item = {**item, "iscrowd": 0}
    return item, faults


def mend_outline(item: dict[str, Any], image_size: tuple[int, int]) -> tuple[dict[str, Any], list, Faults]:
    r"""Check the polygons or run lengths of an entry of a COCO file.

    Args:
        item (`dict`): An entry with a good `bbox`; a copy is changed. Where nothing under `segmentation` can be used,
            its box takes that place: evaluation cannot do without, training does not use it.
        image_size (`tuple[int, int]`): (height, width) in pixels.
    Returns:
        `tuple`: The entry; its parts as lists x, y, x, y, ... for training, none for crowd regions, which segmentation
        leaves out; and its faults."""
    segmentation, is_crowd = item.get("segmentation"), bool(item.get("iscrowd", 0))
    parts, faults = [], []
    if isinstance(segmentation, dict):
        try:
            if is_crowd:
                rle_to_mask(_check_rle(segmentation, image_size))
                return item, [], NO_FAULTS
            parts = [part.tolist() for part in segmentation_parts(_check_rle(segmentation, image_size), image_size)]
        except (ValueError, TypeError) as error:
            faults.append(Fault("unusable run lengths", f"has {error}: left out"))
        if parts:
            return item, parts, [Fault("run lengths", "has run lengths: made a polygon")]
    else:
        for part in segmentation if isinstance(segmentation, list) else []:
            try:
                parts += [points.tolist() for points in segmentation_parts([part], image_size)]
            except ValueError as error:
                faults.append(Fault("unusable polygon", f"has a part that is left out: {error}"))
    if not parts:
        faults.append(Fault("object without outline", "has no usable polygon: not used for segmentation"))
        x, y, width, height = item["bbox"]
        outline = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        return {**item, "segmentation": outline}, [], faults
    if faults:
        item = {**item, "segmentation": parts}
    return item, [] if is_crowd else parts, faults


def _check_rle(segmentation: Mapping[str, Any], image_size: tuple[int, int]) -> Mapping[str, Any]:
    """Run lengths whose outline is right; a ValueError otherwise."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or tuple(size) != tuple(image_size):
        raise ValueError(f"run lengths for {shorten(size)} pixels in a picture of {list(image_size)}")
    if not isinstance(counts, str | list):
        raise ValueError(f"run lengths with counts {shorten(counts)}")
    return segmentation


def mend_keypoints(triples: Any, num_keypoints: int) -> tuple[list[float] | None, Faults]:
    r"""Check keypoints.

    Args:
        triples (`Any`): What stands there as x, y, visibility of each.
        num_keypoints (`int`): How many an object has.
    Returns:
        `tuple`: The keypoints or `None`, and their faults."""
    if not isinstance(triples, list) or len(triples) != 3 * num_keypoints:
        found = f"keypoints of {len(triples)} numbers" if isinstance(triples, list) else f"keypoints {triples!r}"
        found = "no keypoints" if triples is None else found
        words = f"has {found}; {num_keypoints} keypoints are {3 * num_keypoints}: x, y and visibility of each"
        return None, [Fault("keypoints of a wrong length", words)]
    if not all(map(is_number, triples)):
        return None, [Fault("keypoints that are no numbers", "has keypoints that are not finite numbers: left out")]
    return triples, NO_FAULTS


def mend_caption(text: Any) -> tuple[str | None, Faults]:
    r"""Check a caption: blanks at its ends and runs of blanks go; a blank one is left out, a very long one is cut.

    Args:
        text (`Any`): What stands there.
    Returns:
        `tuple`: The caption, of any language, or `None`; and its faults."""
    if not isinstance(text, str):
        return None, [Fault("caption that is no text", "has no text under 'caption': left out")]
    caption, faults = " ".join(text.split()), []
    if not caption:
        return None, [Fault("empty caption", "has an empty caption: left out")]
    readable = caption.encode("utf-8", "replace").decode()
    if readable != caption:
        faults.append(Fault("caption with broken characters", "has a caption with half characters: replaced by '?'"))
    if len(readable) > MAX_CAPTION:
        words = f"has a caption of {len(readable):,} characters: cut after {MAX_CAPTION:,}"
        readable = readable[:MAX_CAPTION].rstrip()
        faults.append(Fault("caption that is too long", words))
    return readable, faults


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number that can be a coordinate: finite, and not too large for float32."""
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER  # NaN compares as False


def is_integer(value: Any) -> bool:
    """Whether a value of a file is an integer; `true` is none."""
    return type(value) is int


def shorten(value: Any) -> str:
    """A value of a file as part of a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


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
