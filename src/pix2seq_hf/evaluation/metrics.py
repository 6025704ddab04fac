r"""How the numbers come as modules of the library `evaluate`, which also work alone, with any model's results.

```python
metric = Pix2SeqMetric("boxes")  # or evaluate.load(pix2seq_hf.evaluation.metrics.__file__, "boxes")
for batch in batches:
    metric.add_batch(predictions=found, references=annotated)
metric.compute(per_class=True)
```

One prediction and one reference per picture. Objects are COCO's, with boxes as x, y, width, height in pixels:

| configuration | a prediction | a reference |
| --- | --- | --- |
| `boxes`, `voc` | a list of `{category_id, bbox, score}` | `{image_id, annotations: [{category_id, bbox}]}` |
| `masks` | a list of `{category_id, segmentation, score}` | the same with `segmentation`; `height` and `width` beside |
| `keypoints` | a list of `{category_id, keypoints, score}` | the same with `bbox` and `keypoints` |
| `captions` | a text | a list of texts |

`area`, `iscrowd`, `num_keypoints` and `difficult` of annotations are optional, other fields are left out. Options of
`compute` are those of the functions: `engine`, `sigmas`, `tokenizer`, `use_spice`; `per_class=True` adds the table of
classes, and `categories`, as in a COCO file, their names and those that occur in no annotation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets

import evaluate
from pix2seq_hf.evaluation.boxes import evaluate_boxes
from pix2seq_hf.evaluation.captions import evaluate_captions
from pix2seq_hf.evaluation.coco_numbers import per_class as class_table
from pix2seq_hf.evaluation.keypoints import evaluate_keypoints
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.evaluation.voc import evaluate_voc

INTEGER, NUMBER, TEXT = (datasets.Value(name) for name in ("int64", "float64", "string"))
NUMBERS = datasets.List(NUMBER)
RUN_LENGTHS = {"size": datasets.List(INTEGER), "counts": TEXT}

# What an object has besides its category, in results and in annotations.
GEOMETRY = {
    "boxes": ({"bbox": NUMBERS}, {"bbox": NUMBERS}),
    "voc": ({"bbox": NUMBERS}, {"bbox": NUMBERS, "difficult": INTEGER}),
    "masks": ({"segmentation": RUN_LENGTHS}, {"segmentation": RUN_LENGTHS, "bbox": NUMBERS}),
    "keypoints": ({"keypoints": NUMBERS}, {"keypoints": NUMBERS, "bbox": NUMBERS, "num_keypoints": INTEGER}),
}
FUNCTIONS: dict[str, Callable[..., dict[str, float]]] = {
    "boxes": evaluate_boxes,
    "voc": evaluate_voc,
    "masks": evaluate_masks,
    "keypoints": evaluate_keypoints,
    "captions": evaluate_captions,
}


class Pix2SeqMetric(evaluate.Metric):
    r"""Numbers of boxes, masks, keypoints or captions, picture by picture.

    Args:
        config_name (`str`): `"boxes"`, `"voc"`, `"masks"`, `"keypoints"` or `"captions"`.
        **kwargs: Of `evaluate.Metric`: `num_process`, `process_id` and `experiment_id` for several processes.
    Raises:
        ValueError: If there is no such configuration."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in FUNCTIONS:
            raise ValueError(f"unknown configuration {self.config_name!r}: known are {', '.join(FUNCTIONS)}")
        if self.config_name == "captions":
            features = {"predictions": TEXT, "references": datasets.List(TEXT)}
        else:
            found, annotated = GEOMETRY[self.config_name]
            annotation = {"category_id": INTEGER, **annotated, "area": NUMBER, "iscrowd": INTEGER}
            reference = {"image_id": INTEGER, "annotations": datasets.List(annotation)}
            if self.config_name == "masks":
                reference |= {"height": INTEGER, "width": INTEGER}
            found = {"category_id": INTEGER, **found, "score": NUMBER}
            features = {"predictions": datasets.List(found), "references": reference}
        return evaluate.MetricInfo(
            description=FUNCTIONS[self.config_name].__doc__,
            citation="",
            inputs_description=__doc__,
            features=datasets.Features(features),
        )

    def add_batch(self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any):
        """Add the results and the annotations of some pictures, in the same order."""
        predictions, references = list(predictions or ()), list(references or ())
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references: one each per picture")
        if self.config_name != "captions" and references:
            pairs = [self._plain(*pair) for pair in zip(predictions, references, strict=True)]
            predictions, references = map(list, zip(*pairs, strict=True))
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any):
        """Add the results and the annotations of one picture."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def _plain(self, prediction: Sequence[Mapping], reference: Mapping[str, Any]) -> tuple[list[dict], dict[str, Any]]:
        """One row with exactly the columns of the features: optional fields may be missing, masks are run lengths."""
        columns, found = self.info.features["references"], self.info.features["predictions"].feature
        missing = [name for name in columns if reference.get(name) is None]
        if missing:
            raise ValueError(f"a reference has no {missing[0]!r} (it has {', '.join(reference)})")
        size = reference.get("height"), reference.get("width")
        row = {name: reference[name] for name in columns}
        row["annotations"] = [_choose(item, columns["annotations"].feature, size) for item in reference["annotations"]]
        return [_choose(item, found, size) for item in prediction], row

    def _compute(self, predictions: Sequence, references: Sequence, **options: Any) -> dict[str, Any]:
        kind = self.config_name
        if kind == "captions":
            truth = [(index, text) for index, texts in enumerate(references) for text in texts]
            ground_truth = {"annotations": [{"image_id": index, "caption": text} for index, text in truth]}
            results = [{"image_id": index, "caption": text} for index, text in enumerate(predictions)]
            return evaluate_captions(ground_truth, results, **options)
        ground_truth = _ground_truth(references, options.pop("categories", None))
        results = [
            {"image_id": reference["image_id"], **_filled(item)}
            for found, reference in zip(predictions, references, strict=True)
            for item in found
        ]
        wants_table = options.pop("per_class", False)
        numbers: dict[str, Any] = FUNCTIONS[kind](ground_truth, results, **options)
        if wants_table and kind != "voc":  # whose numbers name the classes anyway
            numbers["per_class"] = class_table(ground_truth, results, kind, **options)
        return numbers


def _choose(item: Mapping[str, Any], names: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    chosen = {name: item.get(name) for name in names}
    if chosen.get("segmentation") is not None:
        chosen["segmentation"] = _run_lengths(chosen["segmentation"], size)
    return chosen


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons, or run lengths of any form, as run lengths that are text."""
    from pycocotools import mask

    from pix2seq_hf.masks_pix2seq import mask_to_rle, rle_to_mask, segmentation_parts

    if not isinstance(segmentation, Mapping):
        parts = [part.tolist() for part in segmentation_parts(segmentation, size)]
        if not parts:
            raise ValueError("an object has an empty segmentation")
        segmentation = mask.merge(mask.frPyObjects(parts, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_to_rle(rle_to_mask(dict(segmentation)))
    counts = segmentation["counts"]
    return {"size": list(segmentation["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _ground_truth(references: Sequence[Mapping], categories: Sequence[Mapping] | None) -> dict[str, Any]:
    """The references as the content of a COCO file."""
    image_ids, annotations = set(), []
    for reference in references:
        if reference["image_id"] in image_ids:
            raise ValueError(f"picture {reference['image_id']} was added twice")
        image_ids.add(reference["image_id"])
        for item in reference["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": reference["image_id"], **_filled(item)})
    names = ("height", "width")
    images = [{"id": item["image_id"], **{name: item[name] for name in names if name in item}} for item in references]
    used = sorted({item["category_id"] for item in annotations})
    categories = [{"id": label} for label in used] if categories is None else list(categories)
    return {"images": images, "annotations": annotations, "categories": categories}


def _filled(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if value is not None}
