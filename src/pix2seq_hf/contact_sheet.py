"""How annotated pictures are shown side by side: a sheet of equal cells, each with a title, a picture, a sentence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pix2seq_hf.masks_pix2seq import rasterize
from pix2seq_hf.visualization import draw_detections, wrap_text

CELL = (560, 420)  # width and height in pixels of the place for a picture
MARGIN = 14
TITLE, TEXT = 17, 16  # heights of type
LARGEST_SCALE = 8  # of tiny pictures
LONGEST_SIDE = 640  # pixels, of annotations or results in COCO's form
GAP = 8  # pixels between the two
PAPER, GROUND, INK, PALE_INK = (250, 250, 250), (228, 228, 231), (24, 24, 27), (82, 82, 91)


def draw_row(
    picture: Image.Image,
    row: Mapping[str, Any],
    names: Mapping[int, str],
    skeleton: Sequence[tuple[int, int]] = (),
    cell: tuple[int, int] = CELL,
) -> Image.Image:
    r"""Draw the annotations of a row on its picture, at the size at which it is shown.

    Args:
        picture (`PIL.Image.Image`): The picture.
        row (`Mapping`): As in [`~data.rows.Split`]'s dataset.
        names (`Mapping[int, str]`): Name of each label id.
        skeleton (`Sequence[tuple[int, int]]`): Which keypoints are joined by a line.
        cell (`tuple[int, int]`): Width and height that it has to fit into.
    Returns:
        `PIL.Image.Image`: RGB; touches the cell on two sides, unless the picture is tiny."""
    scale = min(cell[0] / picture.width, cell[1] / picture.height, LARGEST_SCALE)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    filtering = Image.Resampling.LANCZOS if scale <= 2 else Image.Resampling.NEAREST
    shown = picture.convert("RGB").resize(size, filtering)
    scale_xy = np.array(size) / picture.size  # rounded sizes: not quite the same for both
    boxes = np.array(row["boxes_yxyx"], float).reshape(-1, 4)[:, [1, 0, 3, 2]] * np.tile(size, 2)
    masks = keypoints = None
    if "polygons_xy" in row:
        masks = [
            rasterize([[(np.reshape(part, (-1, 2)) * scale_xy).reshape(-1) for part in parts]], size[::-1]).full()
            if parts
            else None
            for parts in row["polygons_xy"]
        ]
    if "keypoints_xyv" in row:
        keypoints = [
            np.reshape(triples, (-1, 3)) * [*scale_xy, 1] if any(triples[2::3]) else None
            for triples in row["keypoints_xyv"]
        ]
    return draw_detections(shown, boxes, row["labels"], None, names, masks, keypoints, skeleton)


def draw_items(
    picture: Image.Image,
    items: Sequence[Mapping[str, Any]],
    task: str,
    names: Mapping[int, str],
    skeleton: Sequence[tuple[int, int]] = (),
) -> Image.Image:
    r"""Draw annotations or results in COCO's form on a copy of a picture that is made smaller if it is large.

    Args:
        picture (`PIL.Image.Image`): The picture.
        items (`Sequence[Mapping]`): Of this picture, all with a `score` or none.
        task (`str`): Says what is drawn: boxes, masks, keypoints or captions.
        names (`Mapping[int, str]`): Name of each label id.
        skeleton (`Sequence[tuple[int, int]]`): Which keypoints, counted from 0, are joined by a line.
    Returns:
        `PIL.Image.Image`: RGB, no side longer than `LONGEST_SIDE`, but for captions."""
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    if task == "captioning":
        return draw_detections(small, [], [], captions=[item["caption"] for item in items])
    masks = [_mask(item, picture.size, small.size) for item in items] if task == "instance_segmentation" else None
    points = None
    if task == "keypoint_detection":
        items = [item for item in items if any(item["keypoints"][2::3])]
        points = [np.array(item["keypoints"], dtype=float).reshape(-1, 3) * [scale, scale, 1] for item in items]
    boxes = [[side * scale for side in _corners(item)] for item in items]
    return draw_detections(
        small,
        boxes,
        [item["category_id"] for item in items],
        [item["score"] for item in items] if all("score" in item for item in items) else None,
        names,
        masks,
        points,
        skeleton,
    )


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures on one white sheet, from left to right."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def arrange(
    cells: Iterable[tuple[str, Image.Image, str]], num_columns: int = 4, cell: tuple[int, int] = CELL
) -> Image.Image:
    r"""Put pictures on a sheet.

    Args:
        cells (`Iterable[tuple[str, PIL.Image.Image, str]]`): Of each picture a title, the picture, no larger than
            `cell`, and what stands below it; what is too long ends with an ellipsis.
        num_columns (`int`): Most cells in a line.
        cell (`tuple[int, int]`): Width and height of the place for a picture.
    Returns:
        `PIL.Image.Image`: RGB."""
    cells = list(cells)
    num_columns = max(1, min(num_columns, len(cells)))
    title_font, font = ImageFont.load_default(TITLE), ImageFont.load_default(TEXT)
    title_height = round(1.6 * TITLE)
    text_height = round(1.4 * TEXT) if any(text for _, _, text in cells) else 0
    step_x, step_y = cell[0] + MARGIN, title_height + cell[1] + 2 * text_height + MARGIN
    num_lines = math.ceil(len(cells) / num_columns)
    sheet = Image.new("RGB", (MARGIN + num_columns * step_x, MARGIN + num_lines * step_y), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (title, picture, text) in enumerate(cells):
        left, top = MARGIN + number % num_columns * step_x, MARGIN + number // num_columns * step_y
        draw.text(
            (left, top + title_height / 2), fit_text(title, title_font, cell[0], 1)[0], INK, title_font, anchor="lm"
        )
        top += title_height
        draw.rectangle((left, top, left + cell[0] - 1, top + cell[1] - 1), fill=GROUND)
        sheet.paste(picture, (left + (cell[0] - picture.width) // 2, top + (cell[1] - picture.height) // 2))
        top += cell[1]
        for place, line in enumerate(fit_text(text, font, cell[0], 2) if text else []):
            draw.text((left, top + (place + 0.6) * text_height), line, PALE_INK, font, anchor="lm")
    return sheet


def fit_text(text: str, font: Any, width: int, num_lines: int) -> list[str]:
    """A text in at most `num_lines` lines of `width` pixels; the last one ends with an ellipsis if there is more."""
    lines = wrap_text(text, font, width) or [""]
    if len(lines) <= num_lines:
        return lines
    last = lines[num_lines - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: num_lines - 1], f"{last.rstrip()}…"]


def _corners(item: Mapping[str, Any]) -> list[float]:
    """The box of an annotation or a result: its own, or that of its mask or its keypoints."""
    if "bbox" in item:
        left, top, width, height = item["bbox"]
        return [left, top, left + width, top + height]
    if "segmentation" in item:
        from pycocotools import mask as coco_mask

        left, top, width, height = coco_mask.toBbox(item["segmentation"])
        return [left, top, left + width, top + height]
    points = np.array(item["keypoints"], dtype=float).reshape(-1, 3)
    points = points[points[:, 2] > 0]
    return [*points[:, :2].min(0), *points[:, :2].max(0)]


def _mask(item: Mapping[str, Any], size: tuple[int, int], small: tuple[int, int]) -> np.ndarray | None:
    """The mask of an annotation or a result on the smaller picture; sizes are (width, height)."""
    from pycocotools import mask as coco_mask

    region = item.get("segmentation")
    if not region:
        return None
    if isinstance(region, list):
        parts = [part for part in region if len(part) >= 6]
        if not parts:
            return None
        region = coco_mask.merge(coco_mask.frPyObjects(parts, size[1], size[0]))
    elif isinstance(region["counts"], list):
        region = coco_mask.frPyObjects(region, size[1], size[0])
    mask = Image.fromarray(coco_mask.decode(region) * np.uint8(255))
    return np.asarray(mask.resize(small, Image.Resampling.BILINEAR)) > 127
