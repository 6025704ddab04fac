"""What happens to one record between the source and the model: pure functions first, thin random classes after.

A record is the dict of tensors described in `task_base`. Every function handles every geometry field that the record
has, leaves the record it was given alone, and returns a new one. The random numbers of a function are arguments; the
classes draw them from a `numpy.random.Generator`.

The reserved numbers -1, -2 and -3 of polygons and keypoints are no places, so nothing moves them. The reference moves
them like coordinates and puts the old values back at the end, at the old positions; that comes to the same, except for
its two faults with keypoints, which are said at `pad` and `flip_horizontally`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pix2seq_hf.data.photometric import draw_color_jitter, jitter_colors
from pix2seq_hf.data.resampling import resample
from pix2seq_hf.image_processing_pix2seq import crop_region as object_region
from pix2seq_hf.image_processing_pix2seq import resized_size
from pix2seq_hf.tokenization_pix2seq import FAKE_CLASS_LABEL, INVISIBLE_FLOAT, PADDING_FLOAT, preserve_reserved

Record = Mapping[str, Any]
Size = tuple[int, int]  # height, width

POINT_FIELDS = ("boxes_yxyx", "polygons_yx", "keypoints_yx")  # (num_objects, 2 * num_points): y, x, y, x, ...
OBJECT_FIELDS = (*POINT_FIELDS, "labels", "areas", "is_crowd", "scores", "num_keypoints")  # (num_objects, ...)
OBJECT_ORDERS = ("none", "random", "scores", "area")

BACKGROUND = 0.3  # of padding, as in the image processor
DUPLICATE_JITTER = 0.05  # deviation of a duplicate's corners, in units of its height and width
NOISE_BOX_DEVIATION = 0.5  # of the height and width of random boxes


# --- Images -----------------------------------------------------------------------------------------------------------


def image_to_float(image: torch.Tensor) -> torch.Tensor:
    """Turn `torch.uint8` pixels into `torch.float32` in [0, 1]; float pixels stay as they are."""
    # The reference multiplies by the reciprocal; a division differs in the last bit for half of the values.
    return image * torch.tensor(1 / 255) if image.dtype == torch.uint8 else image


def scaled_size(image_size: Size, target_size: Size, scale: float) -> Size:
    r"""Size of an image that is resized, keeping its aspect ratio, to fit into `scale` times the target.

    Args:
        image_size, target_size (`tuple[int, int]`): (height, width) in pixels.
        scale (`float`): Factor on the target, drawn by [`RandomView`].
    Returns:
        `tuple[int, int]`: Truncated to whole pixels."""
    size, target = np.asarray(image_size, np.float32), np.asarray(target_size, np.float32)
    height, width = (size * (target * np.float32(scale) / size).min()).astype(int)
    # The reference fails on sides that truncate to nothing, such as those of a 1 x 5000 picture.
    return max(int(height), 1), max(int(width), 1)


def resize(record: Record, size: Size, antialias: bool = False) -> dict[str, Any]:
    r"""Resize the image, bilinear with half-pixel centres; coordinates are normalised and stay.

    Args:
        record (`Mapping`): Any.
        size (`tuple[int, int]`): (height, width) in pixels.
        antialias (`bool`): The reference antialiases in evaluation and not in training."""
    image = image_to_float(record["image"])
    if tuple(image.shape[-2:]) != tuple(size):
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=antialias)[0]
    return {**record, "image": image}


def fit(record: Record, target_size: tuple[float, float]) -> dict[str, Any]:
    """Resize the image as the image processor does: as large as fits into `target_size`, antialiased."""
    return resize(record, resized_size(tuple(record["image"].shape[-2:]), target_size), antialias=True)


def pad(record: Record, size: Size) -> dict[str, Any]:
    r"""Pad the image at the bottom and at the right, and refer the coordinates to the padded image.

    Args:
        record (`Mapping`): Its image is at most `size`. A `canvas`, a `torch.FloatTensor` of shape `(3, height, width)`
            for example of a batch, is where the padded image is written to.
        size (`tuple[int, int]`): (height, width) in pixels.
    Returns:
        `dict`: With `unpadded_image_size`, the image's size before.
    Raises:
        ValueError: If the image is larger than `size`."""
    image = image_to_float(record["image"])
    height, width = image.shape[-2:]
    if height > size[0] or width > size[1]:
        raise ValueError(f"an image of {height} x {width} pixels cannot be padded to {size[0]} x {size[1]}: crop first")
    canvas = record.get("canvas")
    if canvas is None:
        canvas = image.new_empty((len(image), *size))
    if image.data_ptr() != canvas.data_ptr():  # otherwise it was made there
        canvas[:, :height, :width] = image
    canvas[:, height:] = BACKGROUND
    canvas[:, :height, width:] = BACKGROUND
    ratio_yx = torch.tensor([height, width], dtype=torch.float32) / torch.tensor(size, dtype=torch.float32)
    # Departure: the reference scales a keypoint that a crop has made invisible too, and -3 becomes for example -2.2,
    # which it then writes as coordinate 0.
    points = _map_points(record, lambda pairs, _: pairs * ratio_yx)
    return {**record, **points, "image": canvas, "unpadded_image_size": (height, width)}


# --- Geometry ---------------------------------------------------------------------------------------------------------


def crop_region(image_size: Size, target_size: Size, position: float) -> tuple[int, int, int, int]:
    r"""Region of at most the target size inside an image.

    Args:
        image_size, target_size (`tuple[int, int]`): (height, width) in pixels.
        position (`float`): In [0, 1): 0 is the top left corner, towards 1 the bottom right. One number for both axes,
            as in the reference.
    Returns:
        `tuple[int, int, int, int]`: top, left, height, width in pixels."""
    room = np.maximum(np.subtract(image_size, target_size), 0).astype(np.float32)
    top, left = (int(offset) for offset in room * np.float32(position))
    return top, left, min(target_size[0], image_size[0] - top), min(target_size[1], image_size[1] - left)


def crop(record: Record, region: tuple[int, int, int, int]) -> dict[str, Any]:
    r"""Cut a region out of the image.

    Boxes and polygons are clipped to the region, so an object outside becomes empty; a keypoint on the border or
    outside becomes invisible.

    Args:
        record (`Mapping`): Any.
        region (`tuple[int, int, int, int]`): top, left, height, width in pixels.
    Returns:
        `dict`: With `crop_offset` (top, left), added up over several crops."""
    top, left, height, width = region
    image = record["image"][:, top : top + height, left : left + width]
    return {**_crop_points(record, record["image"].shape[-2:], region), "image": image}


def _crop_points(record: Record, image_size: Size, region: tuple[int, int, int, int]) -> dict[str, Any]:
    """Everything of [`crop`] but the image."""
    top, left, height, width = region
    image_size = torch.tensor(image_size, dtype=torch.float32)
    offset_yx = torch.tensor([top, left], dtype=torch.float32) / image_size
    scale_yx = image_size / torch.tensor([height, width], dtype=torch.float32)

    def move(pairs, field):
        return _handle_out_of_frame((pairs - offset_yx) * scale_yx, field)

    before_yx = record.get("crop_offset", (0, 0))
    return {
        **record,
        **_map_points(record, move),
        "crop_offset": (before_yx[0] + top, before_yx[1] + left),
    }


def crop_to_object(record: Record, index: int, pad_scale: float) -> dict[str, Any]:
    r"""Make a record of one object: the image around its box.

    Args:
        record (`Mapping`): With `boxes_yxyx`.
        index (`int`): Which object.
        pad_scale (`float`): What is added on each side, as a share of the box's height and width; 0.5 doubles it.
    Returns:
        `dict`: With one object; `image_size` and all coordinates are those of the crop, `crop_offset` says where it
        was.
    Raises:
        ValueError: If the box has no pixel in the image."""
    image_size = tuple(record["image"].shape[-2:])
    region = object_region(record["boxes_yxyx"][index], image_size, pad_scale)
    if min(region[2:]) < 1:
        raise ValueError(
            f"object {index} of image {record.get('image_id', 'without id')} has the box "
            f"{record['boxes_yxyx'][index].tolist()}, which has no pixel in the image"
        )
    return {**crop(select_objects(record, torch.tensor([index])), region), "image_size": region[2:]}


def flip_horizontally(record: Record, keypoint_pairs: Iterable[tuple[int, int]] | None = None) -> dict[str, Any]:
    r"""Mirror the image and the coordinates; left and right keypoints change places.

    Args:
        record (`Mapping`): Any.
        keypoint_pairs (`Iterable[tuple[int, int]]`, *optional*): Keypoints that change places; by default 1 and 2, 3
            and 4, and so on, which suits COCO's persons (the first, the nose, stays).
    Returns:
        `dict`: The mirrored record."""
    return {**_flip_points(record, keypoint_pairs), "image": record["image"].flip(-1)}


def _flip_points(record: Record, keypoint_pairs: Iterable[tuple[int, int]] | None) -> dict[str, Any]:
    """Everything of [`flip_horizontally`] but the image."""
    fields = _map_points(record, lambda pairs, _: torch.stack([pairs[..., 0], 1.0 - pairs[..., 1]], -1))
    if "boxes_yxyx" in fields:  # the left edge was the right edge
        fields["boxes_yxyx"] = fields["boxes_yxyx"][:, [0, 3, 2, 1]]
    if "keypoints_yx" in fields:
        # Departure: the number -3 of an invisible keypoint travels with it. The reference puts it back at the old
        # position, where it hides the keypoint of the other side, and therefore leaves the flip out.
        pairs = fields["keypoints_yx"].unflatten(-1, (-1, 2))
        order = torch.arange(pairs.shape[-2])
        if keypoint_pairs is None:
            keypoint_pairs = zip(range(1, len(order), 2), range(2, len(order), 2), strict=False)
        for left, right in keypoint_pairs:
            order[left], order[right] = right, left
        fields["keypoints_yx"] = pairs[:, order].flatten(-2)
    return {**record, **fields}


def resize_and_crop(
    record: Record,
    size: Size,
    region: tuple[int, int, int, int],
    is_flipped: bool = False,
    keypoint_pairs: Iterable[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    r"""Do what [`resize`], [`crop`] and [`flip_horizontally`] do one after the other, for the pixels that stay.

    Args:
        record (`Mapping`): Any; an image without antialiasing is written to its `canvas`, see [`pad`].
        size (`tuple[int, int]`): (height, width) of the resized picture.
        region (`tuple[int, int, int, int]`): top, left, height, width in the resized picture.
        is_flipped (`bool`): Mirror what is left.
        keypoint_pairs (`Iterable[tuple[int, int]]`, *optional*): See [`flip_horizontally`].
    Returns:
        `dict`: The record of the crop; pixels differ from those of the three functions in their last bits."""
    image = resample(record["image"], size, region, is_flipped, record.get("canvas"))
    moved = _crop_points(record, size, region)
    return {**(_flip_points(moved, keypoint_pairs) if is_flipped else moved), "image": image}


def _map_points(record: Record, function: Callable[[torch.Tensor, str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Apply `function(pairs, field)` to the places of every point field, as pairs (num_objects, num_points, 2)."""
    moved = {}
    for field in POINT_FIELDS:
        if record.get(field) is not None:
            moved[field] = function(record[field].unflatten(-1, (-1, 2)), field).flatten(-2)
            if field != "boxes_yxyx":
                moved[field] = preserve_reserved(moved[field], record[field])
    return moved


def _handle_out_of_frame(pairs: torch.Tensor, field: str) -> torch.Tensor:
    if field != "keypoints_yx":
        return pairs.clamp(0, 1)
    is_outside = ((pairs <= 0) | (pairs >= 1)).any(-1, keepdim=True)
    return pairs.masked_fill(is_outside, INVISIBLE_FLOAT)


# --- Objects ----------------------------------------------------------------------------------------------------------


def select_objects(record: Record, indices: torch.Tensor) -> dict[str, Any]:
    """Keep the objects at `indices` (`torch.LongTensor` of shape `(num_kept,)`), in that order."""
    return {**record, **{field: value[indices] for field, value in _object_fields(record)}}


def filter_invalid_objects(record: Record, drop_crowd: bool = True) -> dict[str, Any]:
    """Drop objects without height or width, and crowd regions."""
    ymin, xmin, ymax, xmax = record["boxes_yxyx"].unbind(-1)
    keep = (ymax > ymin) & (xmax > xmin)
    if drop_crowd and record.get("is_crowd") is not None:
        keep &= ~record["is_crowd"].bool()
    return select_objects(record, keep.nonzero()[:, 0])


def filter_without_polygon(record: Record) -> dict[str, Any]:
    """Drop objects whose polygon has no points; the reference cannot have them."""
    return select_objects(record, (record["polygons_yx"][:, 0] != PADDING_FLOAT).nonzero()[:, 0])


def order_objects(record: Record, order: str, permutation: np.ndarray | None = None) -> dict[str, Any]:
    r"""Reorder the objects.

    Args:
        record (`Mapping`): Any.
        order (`str`): `"none"`; `"random"` (the permutation); `"scores"` (descending, ties keep their order); `"area"`
            (descending by the integer part of the normalised area, as in the reference: it moves full-image boxes to
            the front and keeps the order of all others).
        permutation (`np.ndarray` of shape `(num_objects,)`, *optional*): Old position per new position.
    Raises:
        ValueError: If the order is unknown."""
    if order == "none":
        return dict(record)
    if order == "random":
        return select_objects(record, torch.as_tensor(permutation))
    if order == "scores":
        if record.get("scores") is None:  # ground truth: all scores are 1
            return dict(record)
        return select_objects(record, record["scores"].argsort(descending=True, stable=True))
    if order == "area":
        ymin, xmin, ymax, xmax = record["boxes_yxyx"].unbind(-1)
        areas = ((ymax - ymin) * (xmax - xmin)).long()
        return select_objects(record, areas.argsort(descending=True, stable=True))
    raise ValueError(f"unknown object order {order!r}: choose one of {', '.join(OBJECT_ORDERS)}")


def resize_objects(record: Record, num_objects: int) -> dict[str, Any]:
    """Keep the first `num_objects` objects, or append objects of zeros up to it; their label 0 means padding."""
    fields = {}
    for field, value in _object_fields(record):
        missing = max(num_objects - len(value), 0)
        fields[field] = torch.cat([value[:num_objects], value.new_zeros(missing, *value.shape[1:])])
    return {**record, **fields}


def _object_fields(record: Record) -> list[tuple[str, torch.Tensor]]:
    return [(field, record[field]) for field in OBJECT_FIELDS if record.get(field) is not None]


# --- Noise boxes ------------------------------------------------------------------------------------------------------


class NoiseDraws(NamedTuple):
    r"""The random numbers of [`noise_boxes`] in the order they are drawn.

    With `n` boxes, `m` noise boxes of which `d` are duplicates, and `t` tiled boxes (see [`num_tiled`])."""

    num_duplicates: int  # d, in [0, m]; 0 without boxes
    tiled_order: np.ndarray  # (t,) permutation
    shifted_yx: np.ndarray  # (2, min(t, m - d)) centres in [0, 1)
    random_yx: np.ndarray  # (2, m - d) centres in [0, 1)
    random_hw: np.ndarray  # (2, m - d) normal of deviation 0.5, cut at two deviations
    bad_order: np.ndarray  # (number of shifted and random boxes,) permutation
    duplicate_order: np.ndarray  # (t,) permutation, on top of tiled_order
    duplicate_rate: np.ndarray  # (d, 4) normal of deviation 0.05, cut at two deviations
    noise_order: np.ndarray  # (m,) permutation


def num_tiled(num_boxes: int, num_noise: int) -> int:
    """Boxes are repeated as a whole until there are at least `num_noise`; so many are there then."""
    return num_boxes * (num_noise // num_boxes + 1) if num_boxes else 0


def draw_noise(rng: np.random.Generator, num_boxes: int, num_noise: int) -> NoiseDraws:
    """Draw what [`noise_boxes`] needs for `num_boxes` real boxes and `num_noise` noise boxes."""
    num_duplicates = int(rng.integers(0, num_noise + 1)) if num_boxes else 0
    tiled = num_tiled(num_boxes, num_noise)
    num_bad = num_noise - num_duplicates
    num_shifted = min(tiled, num_bad)
    return NoiseDraws(
        num_duplicates=num_duplicates,
        tiled_order=rng.permutation(tiled),
        shifted_yx=rng.random((2, num_shifted), np.float32),
        random_yx=rng.random((2, num_bad), np.float32),
        random_hw=draw_truncated_normal(rng, (2, num_bad), NOISE_BOX_DEVIATION),
        bad_order=rng.permutation(num_shifted + num_bad),
        duplicate_order=rng.permutation(tiled),
        duplicate_rate=draw_truncated_normal(rng, (num_duplicates, 4), DUPLICATE_JITTER),
        noise_order=rng.permutation(num_noise),
    )


def draw_truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """Draw float32 normal numbers of mean 0; what lies beyond two deviations is drawn again."""
    numbers = rng.standard_normal(shape, np.float32)
    while (beyond := np.abs(numbers) > 2).any():
        numbers[beyond] = rng.standard_normal(beyond.sum(), np.float32)
    return numbers * np.float32(deviation)


# In NumPy, which takes a third of torch's time for arrays this small.


def noise_boxes(boxes_yxyx: np.ndarray, draws: NoiseDraws) -> np.ndarray:
    r"""Make noise boxes: jittered duplicates of the real boxes, real boxes at other places, and random boxes.

    Args:
        boxes_yxyx (`np.ndarray` of shape `(n, 4)`): The real boxes, normalised, float32.
        draws ([`NoiseDraws`]): Decide everything, also the number of boxes.
    Returns:
        `np.ndarray` of shape `(m, 4)`, clipped to [0, 1].
    Source: `data_utils.augment_bbox` of the reference implementation."""
    return np.concatenate([bad_boxes(boxes_yxyx, draws), duplicate_boxes(boxes_yxyx, draws)])[draws.noise_order]


def bad_boxes(boxes_yxyx: np.ndarray, draws: NoiseDraws) -> np.ndarray:
    """The noise boxes that fit no object: shifted and random boxes, `(m - d, 4)`."""
    num_bad = draws.random_yx.shape[1]
    tiled = _tile(boxes_yxyx, draws)[draws.tiled_order[:num_bad]]
    shifted, random = shift_boxes(tiled, draws.shifted_yx), boxes_around(draws.random_yx, draws.random_hw)
    return np.concatenate([shifted, random])[draws.bad_order[:num_bad]]


def duplicate_boxes(boxes_yxyx: np.ndarray, draws: NoiseDraws) -> np.ndarray:
    """The noise boxes that nearly fit an object: jittered duplicates, `(d, 4)`."""
    order = draws.tiled_order[draws.duplicate_order[: draws.num_duplicates]]
    return jitter_boxes(_tile(boxes_yxyx, draws)[order], draws.duplicate_rate)


def _tile(boxes_yxyx: np.ndarray, draws: NoiseDraws) -> np.ndarray:
    return np.tile(boxes_yxyx, (len(draws.tiled_order) // max(len(boxes_yxyx), 1), 1))


def shift_boxes(boxes_yxyx: np.ndarray, centres_yx: np.ndarray) -> np.ndarray:
    """Move boxes `(n, 4)` to other centres `(2, n)` and clip them."""
    return boxes_around(centres_yx, (boxes_yxyx[:, 2:] - boxes_yxyx[:, :2]).T)


def boxes_around(centres_yx: np.ndarray, sizes_hw: np.ndarray) -> np.ndarray:
    """Boxes `(n, 4)` from centres `(2, n)` and heights and widths `(2, n)` (their sign is ignored), clipped."""
    half = np.abs(sizes_hw) / np.float32(2)
    return np.concatenate([centres_yx - half, centres_yx + half]).T.clip(0, 1)


def jitter_boxes(boxes_yxyx: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Move each corner coordinate of boxes `(n, 4)` by a rate `(n, 4)` of the box's height or width, and clip."""
    sizes_hw = boxes_yxyx[:, 2:] - boxes_yxyx[:, :2]
    return (boxes_yxyx + np.concatenate([sizes_hw, sizes_hw], 1) * rates).clip(0, 1)


def inject_noise_boxes(record: Record, draws: NoiseDraws) -> dict[str, Any]:
    """Append noise boxes with the label -70; every other field of an object is 0 for them."""
    boxes = noise_boxes(record["boxes_yxyx"].numpy(), draws)
    num_objects = len(record["boxes_yxyx"])
    extended = resize_objects(record, num_objects + len(boxes))
    extended["boxes_yxyx"][num_objects:] = torch.from_numpy(boxes)
    extended["labels"][num_objects:] = FAKE_CLASS_LABEL
    return extended


# --- Transforms: draw, then call the function -------------------------------------------------------------------------


class RandomView:
    r"""Resize to a random share of the target size, crop what is larger at a random place, mirror half of the records.

    Args:
        target_size (`tuple[int, int]`): (height, width) of the model input.
        min_scale, max_scale (`float`): Range of the factor on the target size.
        use_evaluation_resize (`bool`): Resize as the image processor does.
        use_flip (`bool`): Whether to mirror at all.
        keypoint_pairs (`Iterable[tuple[int, int]]`, *optional*): See [`flip_horizontally`]."""

    def __init__(
        self,
        target_size: Size,
        min_scale: float,
        max_scale: float,
        use_evaluation_resize: bool = False,
        use_flip: bool = True,
        keypoint_pairs: Iterable[tuple[int, int]] | None = None,
    ):
        if not 0 < min_scale <= max_scale:
            raise ValueError(f"scales must satisfy 0 < min <= max, got {min_scale} and {max_scale}")
        self.target_size, self.min_scale, self.max_scale = target_size, min_scale, max_scale
        self.use_evaluation_resize, self.use_flip = use_evaluation_resize, use_flip
        self.keypoint_pairs = None if keypoint_pairs is None else tuple(keypoint_pairs)

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        scale, position = rng.uniform(self.min_scale, self.max_scale), rng.random()
        is_flipped = self.use_flip and rng.random() > 0.5
        if not self.use_evaluation_resize:
            size = scaled_size(record["image"].shape[-2:], self.target_size, scale)
            region = crop_region(size, self.target_size, position)
            return resize_and_crop(record, size, region, is_flipped, self.keypoint_pairs)
        record = fit(record, (scale * self.target_size[0], scale * self.target_size[1]))
        record = crop(record, crop_region(record["image"].shape[-2:], self.target_size, position))
        return flip_horizontally(record, self.keypoint_pairs) if is_flipped else record


class CropToObject:
    r"""Cut out the object that the record's `object_index` names, see [`crop_to_object`].

    Args:
        pad_scale (`float`): What is added to the box on each side, as a share of its height and width.
        box_jitter (`float`): Deviation of the box's corners, in units of its height and width: a detector's boxes are
            not as exact as people's. 0 in the reference."""

    def __init__(self, pad_scale: float, box_jitter: float = 0.0):
        if box_jitter < 0:
            raise ValueError(f"the jitter of boxes must not be negative, got {box_jitter}")
        self.pad_scale, self.box_jitter = pad_scale, box_jitter

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        if self.box_jitter:
            rates = draw_truncated_normal(rng, tuple(record["boxes_yxyx"].shape), self.box_jitter)
            boxes_yxyx = jitter_boxes(record["boxes_yxyx"].numpy(), rates)
            record = {**record, "boxes_yxyx": torch.from_numpy(boxes_yxyx)}
        return crop_to_object(record, record["object_index"], self.pad_scale)


class ColorJitter:
    """Vary the colours at random, see [`~data.photometric.jitter_colors`]."""

    def __init__(self, strength: float):
        if strength < 0:
            raise ValueError(f"the strength of colour jitter must not be negative, got {strength}")
        self.strength = strength

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        draws = draw_color_jitter(rng, self.strength)
        return {**record, "image": jitter_colors(image_to_float(record["image"]), draws)}


class OrderObjects:
    """Reorder the objects, see [`order_objects`]."""

    def __init__(self, order: str):
        if order not in OBJECT_ORDERS:
            raise ValueError(f"unknown object order {order!r}: choose one of {', '.join(OBJECT_ORDERS)}")
        self.order = order

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        permutation = rng.permutation(len(record["labels"])) if self.order == "random" else None
        return order_objects(record, self.order, permutation)


class InjectNoiseBoxes:
    """Fill a record up to `max_instances_per_image` objects with noise boxes."""

    def __init__(self, max_instances_per_image: int):
        self.max_instances_per_image = max_instances_per_image

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        num_objects = len(record["labels"])
        num_noise = self.max_instances_per_image - num_objects
        return inject_noise_boxes(record, draw_noise(rng, num_objects, num_noise)) if num_noise > 0 else dict(record)


class Apply:
    """Call a function that needs no random numbers: `Apply(pad, size)`."""

    def __init__(self, function: Callable[..., dict[str, Any]], *arguments):
        self.function, self.arguments = function, arguments

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        return self.function(record, *self.arguments)


class Compose:
    """Apply transforms one after the other, with one generator."""

    def __init__(self, transforms: Iterable[Callable[[Record, np.random.Generator], dict[str, Any]]]):
        self.transforms = tuple(transforms)

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        for transform in self.transforms:
            record = transform(record, rng)
        return record


def detection_training_transforms(
    image_size: Size,
    max_instances_per_image: int,
    *,
    min_scale: float = 0.3,
    max_scale: float = 2.0,
    use_evaluation_resize: bool = False,
    use_flip: bool = True,
    object_order: str = "random",
    use_noise_boxes: bool = True,
) -> Compose:
    r"""The reference's transforms for training detection.

    Args:
        image_size (`tuple[int, int]`): (height, width) of the model input.
        max_instances_per_image (`int`): Object slots; missing ones are filled with noise boxes.
        min_scale, max_scale (`float`): Range of [`RandomView`].
        use_evaluation_resize (`bool`): Antialias, and round sizes instead of cutting them, as in evaluation; the
            reference does neither in training.
        use_flip (`bool`): Mirror half of the records, at random.
        object_order (`str`): One of `OBJECT_ORDERS`.
        use_noise_boxes (`bool`): Fill missing slots with noise boxes instead of padding.
    Returns:
        [`Compose`], called with a record and a `numpy.random.Generator`.
    Source: `transform_configs.get_object_detection_train_transforms` of the reference implementation."""
    image_size = (int(image_size[0]), int(image_size[1]))
    return Compose(
        [
            RandomView(image_size, min_scale, max_scale, use_evaluation_resize, use_flip),
            Apply(filter_invalid_objects),
            OrderObjects(object_order),
            *([InjectNoiseBoxes(max_instances_per_image)] if use_noise_boxes else []),
            Apply(pad, image_size),
            Apply(resize_objects, max_instances_per_image),
        ]
    )


def segmentation_training_transforms(
    image_size: Size,
    max_instances_per_image: int,
    *,
    min_scale: float = 0.3,
    max_scale: float = 1.0,
    use_evaluation_resize: bool = False,
    use_flip: bool = True,
    object_order: str = "scores",
) -> Compose:
    r"""The reference's transforms for training instance segmentation.

    Args:
        image_size (`tuple[int, int]`): (height, width) of the model input.
        max_instances_per_image (`int`): Object slots; what comes after in the order is left out.
        others: See [`detection_training_transforms`].
    Returns:
        [`Compose`], called with a record and a `numpy.random.Generator`.
    Source: `transform_configs.get_instance_segmentation_train_transforms` of the reference implementation."""
    image_size = (int(image_size[0]), int(image_size[1]))
    return Compose(
        [
            Apply(filter_invalid_objects),
            Apply(filter_without_polygon),
            OrderObjects(object_order),
            Apply(resize_objects, max_instances_per_image),
            RandomView(image_size, min_scale, max_scale, use_evaluation_resize, use_flip),
            Apply(pad, image_size),
        ]
    )


def keypoint_training_transforms(
    image_size: Size,
    max_instances_per_image: int = 1,
    *,
    min_scale: float = 0.3,
    max_scale: float = 1.0,
    use_evaluation_resize: bool = False,
    use_flip: bool = False,
    keypoint_pairs: Iterable[tuple[int, int]] | None = None,
    object_order: str = "random",
) -> Compose:
    r"""The reference's transforms for training keypoint detection, on what [`crop_to_object`] cut out.

    Args:
        image_size (`tuple[int, int]`): (height, width) of the model input.
        max_instances_per_image (`int`): Object slots.
        use_flip (`bool`): Mirror half of the records; off in the reference, where it is faulty.
        keypoint_pairs (`Iterable[tuple[int, int]]`, *optional*): See [`flip_horizontally`].
        others: See [`detection_training_transforms`].
    Returns:
        [`Compose`], called with a record and a `numpy.random.Generator`.
    Source: `transform_configs.get_keypoint_detection_train_transforms` of the reference implementation."""
    image_size = (int(image_size[0]), int(image_size[1]))
    return Compose(
        [
            Apply(filter_invalid_objects),
            OrderObjects(object_order),
            Apply(resize_objects, max_instances_per_image),
            RandomView(image_size, min_scale, max_scale, use_evaluation_resize, use_flip, keypoint_pairs),
            Apply(pad, image_size),
        ]
    )


def captioning_training_transforms(
    image_size: Size,
    *,
    min_scale: float = 0.3,
    max_scale: float = 2.0,
    use_evaluation_resize: bool = False,
    use_flip: bool = True,
    color_jitter_strength: float = 0.5,
) -> Compose:
    r"""The reference's transforms for training captioning.

    Args:
        image_size (`tuple[int, int]`): (height, width) of the model input.
        color_jitter_strength (`float`): See [`~data.photometric.jitter_colors`]; 0 leaves all colours as they are.
        others: See [`detection_training_transforms`].
    Returns:
        [`Compose`], called with a record and a `numpy.random.Generator`.
    Source: `transform_configs.get_captioning_train_transforms` of the reference implementation."""
    image_size = (int(image_size[0]), int(image_size[1]))
    return Compose(
        [
            RandomView(image_size, min_scale, max_scale, use_evaluation_resize, use_flip),
            *([ColorJitter(color_jitter_strength)] if color_jitter_strength else []),
            Apply(pad, image_size),
        ]
    )


def evaluation_transforms(image_size: Size) -> Compose:
    """Resize and pad as the image processor does, and move the coordinates along."""
    image_size = (int(image_size[0]), int(image_size[1]))
    return Compose([Apply(fit, image_size), Apply(pad, image_size)])
