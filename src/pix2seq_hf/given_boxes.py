"""Which objects are masks and keypoints asked for: those that were detected, or those that a user names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .records_pix2seq import checked_boxes

SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class Boxes:
    r"""Objects of one picture before masks and keypoints.

    Args:
        boxes_xyxy (`torch.FloatTensor` of shape `(num_objects, 4)`): Pixels.
        labels (`torch.LongTensor` of shape `(num_objects,)`): Raw label ids.
        scores (`torch.FloatTensor` of shape `(num_objects,)`): In `[0, 1]`."""

    boxes_xyxy: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def empty(cls) -> "Boxes":
        """No objects."""
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> "Boxes":
        return Boxes(self.boxes_xyxy[index], self.labels[index], self.scores[index])

    @property
    def has_area(self) -> torch.Tensor:
        """Which boxes `(num_objects,)` have their corners in order and something between them."""
        return (self.boxes_xyxy[:, 2:] > self.boxes_xyxy[:, :2]).all(-1)

    def clip(self, size: tuple[int, int]) -> "Boxes":
        """The boxes cut to a picture of (height, width); some may have no area then."""
        limits = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
        return replace(self, boxes_xyxy=torch.minimum(self.boxes_xyxy.clamp(min=0), limits))


def read_boxes(
    size: tuple[int, int],
    vocabulary: Any,
    boxes: Any = None,
    labels: Any = None,
    scores: Any = None,
    objects: Sequence[Mapping[str, Any]] | None = None,
) -> Boxes | None:
    r"""Check the objects of one picture that a user asks about.

    Args:
        size (`tuple[int, int]`): (height, width) of the picture.
        vocabulary ([`Pix2SeqVocabulary`]): Says which labels there are.
        boxes (array of shape `(num_objects, 4)`): `xmin, ymin, xmax, ymax` in pixels of the upright picture.
        labels (`Sequence[int | str]`): Raw label id or name of each box.
        scores (`Sequence[float]`, *optional*): By default 1.
        objects (`Sequence[Mapping]`, *optional*): In place of the three: objects of an earlier result, with `box` and
            `label`, or COCO results, with `bbox` (x, y, width, height) and `category_id`; `score` may be left out.
    Returns:
        [`Boxes`], or `None` if nothing was named. Boxes are clipped to the picture, with a warning.
    Raises:
        ValueError: If a box has no label or one that the model does not know, is not four finite numbers, is reversed,
            or has no area inside the picture; the message names the box."""
    if objects is not None:
        if boxes is not None or labels is not None or scores is not None:
            raise ValueError("give either objects, or boxes and labels")
        entries = [_read_object(entry, f"objects[{number}]") for number, entry in enumerate(objects)]
        boxes, labels, scores = ([entry[part] for entry in entries] for part in range(3))
    if boxes is None:
        if labels is not None or scores is not None:
            raise ValueError("labels or scores without boxes: give boxes too")
        return None
    checked = checked_boxes(
        [boxes], None if labels is None else [labels], None if scores is None else [scores], [size], vocabulary
    )
    return Boxes(*(values[0] for values in checked))


def _read_object(entry: Any, name: str) -> tuple[list[float], Any, float]:
    """Box, label and score of an object in one of the two forms."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{name} must hold box and label, or bbox and category_id, got {entry!r:.80}")
    score = 1.0 if entry.get("score") is None else float(entry["score"])
    if "bbox" in entry:
        box, label = _four_numbers(entry["bbox"], f"{name}: bbox must be x, y, width, height"), entry.get("category_id")
        # Rounded, because x + (xmax - x) may be larger than xmax, and so than the picture, by the last bit.
        box = [*box[:2], round(box[0] + box[2], 4), round(box[1] + box[3], 4)]
    elif "box" in entry:
        box, label = entry["box"], getattr(entry, "label_id", entry.get("label_id", entry.get("label")))
        if isinstance(box, Mapping):
            box = [box.get(side) for side in SIDES]
        box = _four_numbers(box, f"{name}: box must be xmin, ymin, xmax, ymax")
    else:
        raise ValueError(f"{name} has neither box nor bbox")
    if label is None:
        raise ValueError(f"{name} has a box without a label: the model is asked about a box and its class")
    return box, label, score


def _four_numbers(box: Any, rule: str) -> list[float]:
    try:
        xmin, ymin, xmax, ymax = map(float, box)
    except (TypeError, ValueError):
        raise ValueError(f"{rule}, four numbers in pixels, got {box!r:.80}") from None
    return [xmin, ymin, xmax, ymax]


__all__ = ["Boxes", "read_boxes"]
