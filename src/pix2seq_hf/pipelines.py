"""`pipeline("pix2seq")`: pictures in, objects with masks and keypoints and captions out."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import Pipeline

from .engine import TaskOptions, run_tasks
from .given_boxes import Boxes, read_boxes
from .image_processing_pix2seq import load_rgb_image
from .results import Pix2SeqObject, Pix2SeqResult
from .streaming import stream_objects

OPTION_NAMES = tuple(option.name for option in dataclasses.fields(TaskOptions))
BOX_NAMES = ("boxes", "labels", "scores", "objects")
IGNORED = ("local_files_only",)  # `pipeline()` hands it over with the rest


class Pix2SeqPipeline(Pipeline):
    r"""All tasks of a Pix2Seq model on pictures.

    ```python
    from transformers import pipeline
    import pix2seq_hf

    look = pipeline("pix2seq", model=path)
    result = look("street.jpg", tasks=["object_detection", "instance_segmentation", "captioning"], threshold=0.5)
    result.draw().save("seen.png")
    look("street.jpg", boxes=[(12, 40, 96, 230)], labels=["person"], tasks="keypoint_detection")
    for found in look.stream("street.jpg"):
        print(found.label, found.box)
    ```

    Options are those of [`TaskOptions`], for the pipeline or for one call. `batch_size` and `num_workers` work as in
    every pipeline."""

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False

    def __call__(self, images: Any = None, **kwargs) -> Pix2SeqResult | list[Pix2SeqResult] | Iterator[Pix2SeqResult]:
        r"""Look at pictures.

        Args:
            images (`str`, `os.PathLike`, `PIL.Image.Image`, or a `list`, dataset or generator of them):
                Paths, addresses, base64 text or pictures; `{"image": ..., "boxes": ..., "labels": ...}` for one with
                boxes of its own.
            boxes (array of shape `(num_objects, 4)`, *optional*): Objects to ask about in place of detected ones, as
                `xmin, ymin, xmax, ymax` in pixels; for a list of pictures one such array each.
            labels (`list`, *optional*): Label id or name of each box.
            scores (`list`, *optional*): Score of each box, by default 1.
            objects (`list[dict]`, *optional*): In place of the three: objects of an earlier result, or COCO results.
            **kwargs: [`TaskOptions`], `timeout` in seconds for addresses, `batch_size`, `num_workers`.
        Returns:
            [`Pix2SeqResult`] for one picture; a list for a list, in its order; an iterator for datasets and generators.
        Raises:
            ValueError: If an option is unknown or makes no sense, the model was not trained for a task, or a box is
                unusable; the message names it."""
        images = kwargs.pop("inputs", None) if images is None else images
        if images is None:
            raise ValueError("no pictures were given")
        given = {name: kwargs.pop(name) for name in BOX_NAMES if kwargs.get(name) is not None}
        if isinstance(images, (list, tuple)):
            images = list(images)
            if not images:
                return []
            for name, values in given.items():
                if len(values) != len(images):
                    raise ValueError(f"{name} were given for {len(values)} pictures, there are {len(images)}")
            images = [
                _with_boxes(image, {name: values[index] for name, values in given.items()})
                for index, image in enumerate(images)
            ]
        elif given:
            images = _with_boxes(images, given)
        return super().__call__(images, **kwargs)

    def stream(self, image: Any, **kwargs) -> Iterator[Pix2SeqObject]:
        r"""Hand over the objects of one picture one by one; by default while they are being detected.

        Args:
            image: One picture, see [`__call__`].
            **kwargs: As for [`__call__`]; `tasks` is `"object_detection"` unless said otherwise.
        Returns:
            `Iterator[Pix2SeqObject]`: To stop early, close it or let go of it."""
        given = {name: kwargs.pop(name) for name in BOX_NAMES if kwargs.get(name) is not None}
        kwargs = {**self._preprocess_params, **self._forward_params, "tasks": "object_detection", **kwargs}
        preprocess_params, forward_params, _ = self._sanitize_parameters(**kwargs)
        picture, boxes = self._read(_with_boxes(image, given), **preprocess_params)
        return stream_objects(self.model, self.processor, picture, TaskOptions(**forward_params), boxes)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """Save model and processor; the library's pipelines would leave out the caption tokenizer."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        unknown = [name for name in kwargs if name not in (*OPTION_NAMES, "timeout", *IGNORED)]
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}: known are {', '.join(OPTION_NAMES)}")
        options = {name: value for name, value in kwargs.items() if name in OPTION_NAMES}
        TaskOptions(**options)
        return {name: kwargs[name] for name in ("timeout",) if name in kwargs}, options, {}

    def _read(self, entry: Any, timeout: float | None = None) -> tuple[Image.Image, Boxes | None]:
        """One picture, upright RGB, and the objects in it that were named."""
        given: Mapping[str, Any] = {}
        if isinstance(entry, Mapping):
            given = {name: value for name, value in entry.items() if name in BOX_NAMES}
            if entry.get("image") is None:
                raise ValueError(f"a picture is missing: {{'image': ...}} is needed, got {', '.join(map(str, entry))}")
            entry = entry["image"]
        if not isinstance(entry, (str, os.PathLike, Image.Image)):
            raise ValueError(f"a path, an address or a PIL picture is needed, got {type(entry).__name__}")
        picture = load_rgb_image(entry, timeout)
        return picture, read_boxes((picture.height, picture.width), self.processor.vocabulary, **given)

    # What passes between these three is lists of one per picture: the library then cuts batches up rightly.

    def preprocess(self, input_: Any, timeout: float | None = None) -> dict[str, Any]:
        picture, boxes = self._read(input_, timeout)
        pixel_values = self.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, "pictures": [picture], "boxes": [boxes]}

    def _forward(self, model_inputs: Mapping[str, Any], **options) -> dict[str, list]:
        pictures, boxes = model_inputs["pictures"], model_inputs["boxes"]
        is_batch = isinstance(pictures[0], list)
        if is_batch:
            pictures, boxes = ([entry for [entry] in entries] for entries in (pictures, boxes))
        found = run_tasks(
            self.model, self.processor, pictures, TaskOptions(**options), boxes, model_inputs["pixel_values"]
        )
        return {"results": [[result] for result in found] if is_batch else found}

    def postprocess(self, model_outputs: Mapping[str, Sequence[Pix2SeqResult]]) -> Pix2SeqResult:
        [result] = model_outputs["results"]
        return result


def _with_boxes(image: Any, given: Mapping[str, Any]) -> Any:
    """A picture and the objects in it as one entry."""
    if not given:
        return image
    return {**image, **given} if isinstance(image, Mapping) else {"image": image, **given}


__all__ = ["Pix2SeqPipeline"]
