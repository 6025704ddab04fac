"""What was found in one picture: objects with box, mask and keypoints, captions, and the picture that shows them."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .masks_pix2seq import rle_to_mask
from .visualization import draw_detections

REPR_SIDE = 1024  # longest side in pixels of the picture that notebooks show


class Keypoint(NamedTuple):
    r"""One keypoint of an object.

    Args:
        name (`str`): Of the configuration's `keypoint_names`.
        x, y (`float`): Pixels of the picture.
        score (`float`): Mean probability of its two tokens.
        visible (`bool`): Whether the model wrote a place of its own accord; else the place is its best guess."""

    name: str
    x: float
    y: float
    score: float
    visible: bool


class FieldMapping(Mapping):
    """Reads like the dict of its `KEYS`, each the attribute of that name."""

    KEYS: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        if key not in self.KEYS:
            raise KeyError(f"{key!r}: there are {', '.join(self.KEYS)}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.KEYS)

    def __len__(self) -> int:
        return len(self.KEYS)

    # A mapping compares its values, but arrays have no single answer: compare `to_json()`.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(eq=False, frozen=True, repr=False)
class Pix2SeqObject(FieldMapping):
    r"""One object: `object.box` or `object["box"]`.

    Args:
        score (`float`): Class probability; 1 for objects that were given without one.
        label (`str`): Name of the class.
        label_id (`int`): Its raw id, a key of the configuration's `id2label`.
        box_xyxy (`tuple[float, float, float, float]`): `xmin, ymin, xmax, ymax` in pixels.
        rle (`dict`, *optional*): Mask as COCO run lengths: `{"size": [height, width], "counts": str}`.
        polygons_xy (`list[list[float]]`, *optional*): Outline of the mask, parts `x, y, x, y, ...` in pixels.
        keypoints (`list[Keypoint]`, *optional*): In the order of `keypoint_names`.
        keypoints_score (`float`, *optional*): Score of the keypoints together, as COCO's metric takes it."""

    KEYS = ("score", "label", "box", "mask", "keypoints")

    score: float
    label: str
    label_id: int
    box_xyxy: tuple[float, float, float, float]
    rle: dict[str, Any] | None = None
    polygons_xy: list[list[float]] | None = None
    keypoints: list[Keypoint] | None = None
    keypoints_score: float | None = None

    def __repr__(self) -> str:
        box = ", ".join(f"{number:.0f}" for number in self.box_xyxy)
        extras = {"mask": self.rle, "keypoints": self.keypoints}
        words = [name for name, value in extras.items() if value is not None]
        return f"Pix2SeqObject({self.label!r}, score {self.score:.2f}, box ({box}){', '.join(['', *words])})"

    @property
    def box(self) -> dict[str, float]:
        """The box by the names that `pipeline("object-detection")` uses."""
        return dict(zip(("xmin", "ymin", "xmax", "ymax"), self.box_xyxy))

    @property
    def mask(self) -> np.ndarray | None:
        """The mask as a new array `(height, width)`, uint8, 0 or 1; `None` if no mask was asked for."""
        return None if self.rle is None else rle_to_mask(self.rle)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists and dicts only; the mask is its run lengths."""
        entry = {
            "score": round(self.score, 5),
            "label": self.label,
            "label_id": self.label_id,
            "box": {side: round(number, 2) for side, number in self.box.items()},
        }
        if self.rle is not None:
            entry["rle"] = self.rle
        if self.keypoints is not None:
            points = [point._replace(x=round(point.x, 2), y=round(point.y, 2), score=round(point.score, 5)) for point in
                      self.keypoints]  # fmt: skip
            entry["keypoints"] = [point._asdict() for point in points]
            entry["keypoints_score"] = round(self.keypoints_score, 5)
        return entry

    def to_coco(self, image_id: int) -> dict[str, Any]:
        """One entry of COCO's results format, with all that is known of the object."""
        xmin, ymin, xmax, ymax = self.box_xyxy
        entry = {
            "image_id": image_id,
            "category_id": self.label_id,
            "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            "score": self.score,
        }
        if self.rle is not None:
            entry["segmentation"] = self.rle
        if self.keypoints is not None:
            entry["keypoints"] = [number for point in self.keypoints for number in (point.x, point.y, 1)]
        return entry


@dataclass(eq=False)
class Pix2SeqResult(FieldMapping):
    r"""All that was found in one picture: `result.objects` or `result["objects"]`.

    Args:
        size (`tuple[int, int]`): (height, width) of the picture in pixels.
        objects (`list[Pix2SeqObject]`): In the order in which the model wrote them, or they were given.
        captions (`list[str]`): Empty if none was asked for.
        tasks (`tuple[str, ...]`): What was asked for.
        malformed (`dict[str, dict[str, int]]`): Per task, how much of what the model wrote was malformed, by kind.
        image (`PIL.Image.Image`, *optional*): The picture, upright; needed to draw.
        id2label (`Mapping[int, str]`): Names of the classes.
        keypoint_names, keypoint_skeleton (`Sequence`): Those of the configuration."""

    KEYS = ("objects", "captions")

    size: tuple[int, int]
    objects: list[Pix2SeqObject] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    tasks: tuple[str, ...] = ()
    malformed: dict[str, dict[str, int]] = field(default_factory=dict)
    image: Image.Image | None = None
    id2label: Mapping[int, str] = field(default_factory=dict)
    keypoint_names: Sequence[str] = ()
    keypoint_skeleton: Sequence[tuple[int, int]] = ()

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """Boxes `(num_objects, 4)`, float32, pixels."""
        return np.array([entry.box_xyxy for entry in self.objects], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> np.ndarray:
        """Scores `(num_objects,)`, float32."""
        return np.array([entry.score for entry in self.objects], np.float32)

    @property
    def label_ids(self) -> np.ndarray:
        """Raw label ids `(num_objects,)`, int64."""
        return np.array([entry.label_id for entry in self.objects], np.int64)

    @property
    def masks(self) -> np.ndarray:
        """Masks `(num_objects, height, width)`, uint8; an object without one has an empty mask."""
        masks = np.zeros((len(self.objects), *self.size), np.uint8)
        for mask, entry in zip(masks, self.objects):
            if entry.rle is not None:
                mask[:] = entry.mask
        return masks

    @property
    def keypoints_xy(self) -> np.ndarray:
        """Keypoints `(num_objects, num_keypoints, 2)`, float32, pixels; NaN for an object without."""
        points = np.full((len(self.objects), len(self.keypoint_names), 2), np.nan, np.float32)
        for place, entry in zip(points, self.objects):
            if entry.keypoints is not None:
                place[:] = [(point.x, point.y) for point in entry.keypoints]
        return points

    def to_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists and dicts only; `objects` of it can be given to the pipeline again."""
        height, width = self.size
        return {
            "width": width,
            "height": height,
            "tasks": list(self.tasks),
            "objects": [entry.to_dict() for entry in self.objects],
            "captions": list(self.captions),
            "malformed": {task: counts for task, counts in self.malformed.items() if counts},
        }

    def to_json(self, indent: int | None = None) -> str:
        """[`to_dict`] as JSON, on one line unless `indent` is given."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    def to_coco(self, image_id: int = 1, task: str | None = None) -> list[dict[str, Any]]:
        r"""List what was found in COCO's results formats.

        Args:
            image_id (`int`): The picture's id.
            task (`str`, *optional*): By default one entry per object with all that is known of it and the box's score.
                With a task the entries that its metric takes: `"object_detection"` boxes, `"instance_segmentation"`
                masks, `"keypoint_detection"` keypoints with their own score, `"captioning"` captions.
        Returns:
            `list[dict]`.
        Raises:
            ValueError: If the task is unknown."""
        fields = {
            "object_detection": ("bbox",),
            "instance_segmentation": ("segmentation",),
            "keypoint_detection": ("keypoints",),
            "captioning": (),
            None: ("bbox", "segmentation", "keypoints"),
        }
        if task not in fields:
            raise ValueError(f"unknown task {task!r}: known are {', '.join(filter(None, fields))}")
        if task == "captioning":
            return [{"image_id": image_id, "caption": caption} for caption in self.captions]
        entries = []
        for found in self.objects:
            entry = found.to_coco(image_id)
            if task is not None and fields[task][0] not in entry:
                continue
            if task == "keypoint_detection":
                entry["score"] = found.keypoints_score
            kept = {"image_id", "category_id", "score", *fields[task]}
            entries.append({name: value for name, value in entry.items() if name in kept})
        return entries

    def draw(self) -> Image.Image:
        r"""Draw all that was found on a copy of the picture.

        Returns:
            `PIL.Image.Image`: Of the picture's size, or higher if there are captions, which stand below.
        Raises:
            ValueError: If the result has no picture."""
        if self.image is None:
            raise ValueError("this result has no picture to draw on: set result.image")
        return draw_detections(
            self.image,
            self.boxes_xyxy,
            self.label_ids,
            self.scores,
            self.id2label,
            masks=[entry.rle for entry in self.objects],
            keypoints=[
                # a point that the model took for invisible is only a guess: score 0 leaves it out
                entry.keypoints and [(point.x, point.y, point.score * point.visible) for point in entry.keypoints]
                for entry in self.objects
            ],
            skeleton=self.keypoint_skeleton,
            captions=self.captions,
        )

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows."""
        if self.image is None:
            return None
        drawing = self.draw()
        drawing.thumbnail((REPR_SIDE, REPR_SIDE))
        content = io.BytesIO()
        drawing.save(content, "PNG")
        return content.getvalue()

    def __repr__(self) -> str:
        counts = Counter(entry.label for entry in self.objects)
        found = ", ".join(f"{number} {name}" for name, number in counts.items()) or "no objects"
        texts = "".join(f", {caption!r}" for caption in self.captions)
        return f"Pix2SeqResult({self.size[1]} x {self.size[0]}: {found}{texts})"


__all__ = ["Keypoint", "Pix2SeqObject", "Pix2SeqResult"]
