"""What a run shows of itself: pictures with what is annotated on the left and what was found on the right."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from pix2seq_hf.contact_sheet import draw_items, side_by_side
from pix2seq_hf.data.rows import Split

MIN_SCORE = 0.3
MAX_OBJECTS = 30


def draw_samples(
    split: Split, results: Mapping[str, Sequence[Mapping[str, Any]]], num_pictures: int, config: Any
) -> dict[str, Image.Image]:
    r"""Draw the first pictures of a split, once for every task.

    Args:
        split ([`Split`]): Pictures and what is annotated.
        results (`Mapping[str, Sequence[Mapping]]`): What was found by task, in COCO results format.
        num_pictures (`int`): How many.
        config ([`Pix2SeqConfig`]): Of the model.
    Returns:
        `dict[str, PIL.Image.Image]`: By `TASK/NUMBER`."""
    drawn = {}
    for number in range(min(num_pictures, len(split.dataset))):
        try:
            record = split.load(number)
        except (ValueError, OSError):  # the evaluation has named it
            continue
        picture = Image.fromarray(record["image"].permute(1, 2, 0).numpy())
        for task, found in results.items():
            truth = {
                "keypoint_detection": split.keypoint_annotations,
                "captioning": split.caption_annotations,
            }.get(task, split.annotations)
            sides = []
            for items in (truth["annotations"], found):
                mine = [item for item in items if item["image_id"] == record["image_id"]]
                mine = [item for item in mine if item.get("score", 1.0) >= MIN_SCORE or task == "captioning"]
                mine.sort(key=lambda item: -item.get("score", 1.0))
                sides.append(
                    draw_items(picture, mine[:MAX_OBJECTS], task, split.id2label, config.keypoint_skeleton or ())
                )
            drawn[f"{task}/{number}"] = side_by_side(sides)
    return drawn
