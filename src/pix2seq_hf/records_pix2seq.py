"""How what a user says about a picture, in pixels, becomes what tasks take: checked, normalised, perhaps cut out."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .image_processing_pix2seq import crop_points, crop_region, resized_size
from .masks_pix2seq import fit_parts, join_parts, segmentation_parts
from .task_base import Frame
from .task_keypoint_detection import triples_to_points
from .tokenization_pix2seq import INVISIBLE_FLOAT, preserve_reserved, scale_points

Size = tuple[int, int]  # height, width


# --- Boxes that a task is asked about ---------------------------------------------------------------------------------


def object_frames(
    boxes_xyxy: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    scores: Sequence[torch.Tensor],
    sizes: Sequence[Size],
    input_size: Size,
    crop_pad_scale: float | None,
    do_resize: bool = True,
) -> list[Frame]:
    r"""Say what the model looks at when it is asked about boxes.

    Args:
        boxes_xyxy, labels, scores (`Sequence[torch.Tensor]`): Per picture, as [`checked_boxes`] returns them.
        sizes (`Sequence[tuple[int, int]]`): (height, width) of each picture.
        input_size (`tuple[int, int]`): (height, width) of the padded model input.
        crop_pad_scale (`float`, *optional*): See [`Task`]; `None` leaves pictures whole.
        do_resize (`bool`): Whether pictures are resized before they are padded.
    Returns:
        `list[Frame]`: One per picture, or with `crop_pad_scale` one per box."""
    frames = []
    for picture, (boxes, names, values, size) in enumerate(zip(boxes_xyxy, labels, scores, sizes, strict=True)):
        one_by_size = 1 / torch.tensor(size, dtype=torch.float32)
        boxes_yxyx = scale_points(boxes[:, [1, 0, 3, 2]], one_by_size)
        if crop_pad_scale is None:
            share = padding_share(size, input_size, do_resize)
            frames.append(
                Frame(picture, size, input_size, (0, 0), boxes, scale_points(boxes_yxyx, share), names, values)
            )
            continue
        for index, box in enumerate(boxes_yxyx):
            region = crop_region(box, size, crop_pad_scale)
            inside = crop_points(box, region, size).clamp(0, 1)
            share = padding_share(region[2:], input_size, do_resize)
            one = slice(index, index + 1)
            frames.append(
                Frame(
                    picture,
                    region[2:],
                    input_size,
                    region[:2],
                    boxes[one],
                    scale_points(inside, share)[None],
                    names[one],
                    values[one],
                    size,
                )
            )
    return frames


def padding_share(size: Size, input_size: Size, do_resize: bool = True) -> torch.Tensor:
    """Share of the padded model input that a picture fills, as float32 factors of y and x."""
    unpadded = resized_size(size, input_size) if do_resize else size
    return torch.tensor(unpadded, dtype=torch.float32) / torch.tensor(input_size, dtype=torch.float32)


def checked_boxes(
    boxes: Any, labels: Any, scores: Any, sizes: Sequence[Size], vocabulary: Any, is_quiet: bool = False
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    r"""Check boxes and labels, and clip the boxes to their pictures.

    Args:
        boxes (`list`): Per picture `(num_boxes, 4)` as xmin, ymin, xmax, ymax in pixels; of one picture without list.
        labels (`list`): Per picture `(num_boxes,)` raw label ids or names.
        scores (`list`, *optional*): Per picture `(num_boxes,)`; by default 1.
        sizes (`Sequence[tuple[int, int]]`): (height, width) of each picture.
        vocabulary (`Pix2SeqVocabulary`): Says which labels there are.
        is_quiet (`bool`): Whether to clip without a warning.
    Returns:
        `tuple`: per picture boxes `(num_boxes, 4)` float32, labels `(num_boxes,)` int64, scores `(num_boxes,)` float32.
    Raises:
        ValueError: If numbers do not fit each other or the pictures, a box is not finite, has no area or does not
            touch its picture, or a label is unknown."""
    if labels is None and all(_is_empty(rows) for rows in boxes):
        labels = [[] for _ in boxes]  # no object in any picture
    if labels is None:
        raise ValueError("boxes without labels: pass labels= with one label per box")
    boxes = per_picture(boxes, len(sizes), 2, "boxes")
    labels = per_picture(labels, len(sizes), 1, "labels")
    scores = [None] * len(sizes) if scores is None else per_picture(scores, len(sizes), 1, "scores")
    checked, clipped = ([], [], []), []
    for picture, (size, rows, names, values) in enumerate(zip(sizes, boxes, labels, scores)):
        where = "boxes" if len(sizes) == 1 else f"boxes[{picture}]"
        rows = _box_array(rows, where)
        if len(names) != len(rows):
            raise ValueError(f"{len(names)} labels were given for the {len(rows)} boxes of picture {picture}")
        values = np.ones(len(rows)) if values is None else np.asarray(values, np.float64).reshape(-1)
        if len(values) != len(rows) or not np.isfinite(values).all():
            raise ValueError(f"scores[{picture}] must be one finite number for each of {len(rows)} boxes")
        inside = _clip(rows, size, where)
        clipped += [f"{where}[{index}]" for index in np.nonzero((inside != rows).any(-1))[0]]
        checked[0].append(torch.from_numpy(inside.astype(np.float32)))
        checked[1].append(torch.tensor([find_label(name, vocabulary) for name in names], dtype=torch.int64))
        checked[2].append(torch.from_numpy(values.astype(np.float32)))
    if clipped and not is_quiet:
        others = f" and {len(clipped) - 1} more" if len(clipped) > 1 else ""
        warnings.warn(f"{clipped[0]}{others} outside of the picture: clipped to it", stacklevel=4)
    return checked


def per_picture(values: Any, num_pictures: int, num_dims: int, name: str) -> list:
    r"""Turn values of one picture, or of several, into a list with one entry per picture.

    Raises:
        ValueError: If there is not one entry per picture."""
    if not hasattr(values, "__len__"):
        raise ValueError(f"{name} must be a list with one entry per picture, got {values!r}")
    if num_pictures == 1 and _depth(values) <= num_dims and not (len(values) == 1 and _is_empty(values[0])):
        values = [values]
    if len(values) != num_pictures:
        raise ValueError(f"{name} were given for {len(values)} pictures, there are {num_pictures}")
    return list(values)


def _depth(values: Any) -> int:
    if hasattr(values, "ndim"):
        return values.ndim
    if isinstance(values, str) or not isinstance(values, Sequence):
        return 0
    return 1 + max((_depth(value) for value in values), default=0)


def _is_empty(values: Any) -> bool:
    return not isinstance(values, str) and hasattr(values, "__len__") and len(values) == 0


def _box_array(rows: Any, where: str) -> np.ndarray:
    try:
        rows = np.asarray(rows.cpu() if isinstance(rows, torch.Tensor) else rows, np.float64)
    except (TypeError, ValueError):
        rows = None
    if rows is not None and rows.size == 0:
        return np.zeros((0, 4))
    if rows is None or rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"{where} must be rows of four numbers xmin, ymin, xmax, ymax")
    return rows


def _clip(rows: np.ndarray, size: Size, where: str) -> np.ndarray:
    """Boxes `(num_boxes, 4)` cut to a picture; raises a ValueError for one of which nothing is left."""
    height, width = size
    inside = np.clip(rows, 0, [width, height, width, height])
    for index, (row, cut) in enumerate(zip(rows, inside)):
        text = f"{where}[{index}] [{', '.join(f'{number:g}' for number in row)}]"
        if not np.isfinite(row).all():
            raise ValueError(f"{text} is not finite")
        if (row[2:] < row[:2]).any():
            raise ValueError(f"{text} is reversed: give xmin, ymin, xmax, ymax")
        if (row[2:] == row[:2]).any():
            raise ValueError(f"{text} has no area")
        if (cut[2:] <= cut[:2]).any():
            raise ValueError(f"{text} lies outside of its picture of {width} x {height} pixels")
    return inside


def find_label(name: Any, vocabulary: Any) -> int:
    r"""Return the raw label id of a class that is given by id or by name.

    Raises:
        ValueError: If the model does not know it."""
    id2label = vocabulary.id2label
    if isinstance(name, str):
        found = [label for label, known in (id2label or {}).items() if known == name]
        label = found[0] if found else None
    else:
        label = int(name)
    if label is None or (label not in id2label if id2label else not 1 <= label <= vocabulary.max_label):
        known = f"the model knows {', '.join(f'{k} {v}' for k, v in id2label.items())}" if id2label else (
            f"labels go from 1 to {vocabulary.max_label}"
        )  # fmt: skip
        raise ValueError(f"unknown label {name!r}: {known}")
    return label


# --- Annotations that a task is trained on ----------------------------------------------------------------------------


def coco_records(
    annotations: Any, sizes: Sequence[Size], vocabulary: Any, fields: Iterable[str], config: Any
) -> list[dict[str, Any]]:
    r"""Turn annotations in COCO's terms into records.

    Args:
        annotations (`dict` or `list[dict]`): One per picture, see [`Pix2SeqProcessor.__call__`].
        sizes (`Sequence[tuple[int, int]]`): Height and width of each original picture.
        vocabulary (`Pix2SeqVocabulary`): Says which labels have a token.
        fields (`Iterable[str]`): Names of the fields that a record needs, see `task_base`.
        config (any object): Holds `max_points_per_object`, `keypoint_names` and `keypoint_labels`; read only where the
            fields ask for them.
    Returns:
        `list[dict]`: Records as described in `task_base`, normalised by the picture itself, not yet padded. Crowds and
        boxes without area are left out, and for keypoints objects of other classes or without a visible keypoint.
    Raises:
        ValueError: If the number of annotations is not that of the pictures, or one is incomplete or impossible."""
    if isinstance(annotations, Mapping):
        annotations = [annotations]
    if len(annotations) != len(sizes):
        raise ValueError(f"{len(annotations)} annotations were given for {len(sizes)} pictures")
    fields = set(fields)
    records = []
    for number, (annotation, size) in enumerate(zip(annotations, sizes)):
        if not isinstance(annotation, Mapping) or "annotations" not in annotation:
            raise ValueError(
                f"annotations[{number}] must be a dict {{'image_id': ..., 'annotations': [...]}}, got "
                f"{type(annotation).__name__}{' without annotations' if isinstance(annotation, Mapping) else ''}"
            )
        image_id = annotation.get("image_id", number)
        name = f"annotations[{number}] (image {image_id})"
        entries = list(annotation["annotations"])
        record = {"image_id": image_id, "image_size": size}
        if "captions" in fields:
            record["captions"] = [_checked_caption(entry, f"{name}, entry {i}") for i, entry in enumerate(entries)]
        else:
            record.update(_object_fields(entries, size, name, vocabulary, fields, config))
        records.append(record)
    return records


def _object_fields(entries, size, name, vocabulary, fields, config) -> dict[str, torch.Tensor]:
    """The fields of a record that have a row per object."""
    boxes, labels, areas, polygons, keypoints = [], [], [], [], []
    for index, entry in enumerate(entries):
        where = f"{name}, object {index}"
        box, label = _checked_object(entry, where, vocabulary.max_label)
        if entry.get("iscrowd") or box[2] <= 0 or box[3] <= 0:
            continue
        if "polygons_yx" in fields:
            polygons.append(_checked_polygon(entry, size, where, config.max_points_per_object))
        if "keypoints_yx" in fields:
            points = _checked_keypoints(entry, where, len(config.keypoint_names))
            if label not in config.keypoint_labels or (points == INVISIBLE_FLOAT).all():
                continue
            keypoints.append(points)
        boxes.append(box)
        labels.append(label)
        areas.append(float(entry.get("area", box[2] * box[3])))
    x, y, width, height = np.array(boxes, dtype=np.float64).reshape(-1, 4).T
    found = {"boxes_yxyx": np.stack([y, x, y + height, x + width], axis=-1)}
    if "polygons_yx" in fields:
        found["polygons_yx"] = np.array(polygons).reshape(-1, 2 * config.max_points_per_object)
    if "keypoints_yx" in fields:
        found["keypoints_yx"] = np.array(keypoints).reshape(-1, 2 * len(config.keypoint_names))
    # In the reference's order: float64 corners, float32, times the inverse size.
    one_by_size = 1 / torch.tensor(size, dtype=torch.float32)
    record = {
        field: scale_points(torch.from_numpy(points.astype(np.float32)), one_by_size) for field, points in found.items()
    }
    return {
        **record,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "areas": torch.tensor(areas, dtype=torch.float32),
        "is_crowd": torch.zeros(len(labels), dtype=torch.bool),
    }


def pad_record(record: Mapping[str, Any], input_size: Size, do_resize: bool = True) -> dict[str, Any]:
    """Refer the coordinates of a record to the padded model input."""
    share = padding_share(record["image_size"], input_size, do_resize)
    points = {name: scale_points(values, share) for name, values in record.items() if name.endswith(("_yx", "_yxyx"))}
    return {**record, **points}


def crop_record(record: Mapping[str, Any], index: int, pad_scale: float) -> tuple[dict[str, Any], tuple[int, ...]]:
    r"""Cut one object with its keypoints or its outline out of a record.

    Args:
        record (`Mapping[str, Any]`): As [`coco_records`] returns it.
        index (`int`): The object.
        pad_scale (`float`): See [`crop_region`].
    Returns:
        `tuple`: the record of the cut, and its top, left, height and width in pixels."""
    size = record["image_size"]
    one = slice(index, index + 1)
    region = crop_region(record["boxes_yxyx"][index], size, pad_scale)
    cut = {
        "boxes_yxyx": crop_points(record["boxes_yxyx"][one], region, size).clamp(0, 1),
        "image_size": region[2:],
    }
    if "keypoints_yx" in record:
        points = record["keypoints_yx"][one]
        pairs = crop_points(points, region, size).unflatten(-1, (-1, 2))
        # As in the reference, a keypoint on the very border of the cut counts as outside.
        is_outside = ((pairs <= 0) | (pairs >= 1)).any(-1, keepdim=True)
        cut["keypoints_yx"] = preserve_reserved(pairs.masked_fill(is_outside, INVISIBLE_FLOAT).flatten(-2), points)
    if "polygons_yx" in record:
        points = record["polygons_yx"][one]
        cut["polygons_yx"] = preserve_reserved(crop_points(points, region, size).clamp(0, 1), points)
    return {**record, **{name: record[name][one] for name in ("labels", "areas", "is_crowd")}, **cut}, region


def _checked_object(entry: Any, where: str, max_label: int) -> tuple[np.ndarray, int]:
    """Box `(x, y, width, height)` in float64 and label of one annotated object."""
    if not isinstance(entry, Mapping) or "bbox" not in entry or "category_id" not in entry:
        raise ValueError(f"{where}: needs bbox [x, y, width, height] and category_id")
    box, label = np.asarray(entry["bbox"], dtype=np.float64), int(entry["category_id"])
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"{where}: bbox must be four finite numbers [x, y, width, height], got {entry['bbox']}")
    if not 1 <= label <= max_label:
        raise ValueError(f"{where}: category_id {label} has no token, number the classes from 1 to {max_label}")
    return box, label


def _checked_polygon(entry: Mapping[str, Any], size: Size, where: str, max_points: int) -> np.ndarray:
    """Points `y, x, ...` of one annotated object in pixels, made to fit into `max_points`."""
    if not entry.get("segmentation"):
        raise ValueError(f"{where}: needs a segmentation")
    try:
        return join_parts(fit_parts(segmentation_parts(entry["segmentation"], size), max_points), max_points)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _checked_keypoints(entry: Mapping[str, Any], where: str, num_keypoints: int) -> np.ndarray:
    """Points `y, x, ...` of one annotated object in pixels."""
    if entry.get("keypoints") is None:
        raise ValueError(f"{where}: needs keypoints")
    try:
        return triples_to_points(entry["keypoints"], num_keypoints)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _checked_caption(entry: Any, where: str) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("caption"), str):
        raise ValueError(f"{where}: needs a caption")
    return entry["caption"]


__all__ = ["checked_boxes", "coco_records", "object_frames"]
