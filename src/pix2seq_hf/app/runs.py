"""How one request becomes a series of results, each with more in it, until all is found, or time is up, or enough."""

import dataclasses
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from pix2seq_hf.app.limits import StoppedError, Watch
from pix2seq_hf.engine import CAPTIONS, DETECTION, KEYPOINTS, SEGMENTATION, TaskOptions, TaskRun, make_objects
from pix2seq_hf.given_boxes import Boxes
from pix2seq_hf.masks_pix2seq import mask_to_rle, rle_to_mask
from pix2seq_hf.results import Pix2SeqObject, Pix2SeqResult
from pix2seq_hf.streaming import ObjectStreamer

STAGES = {
    DETECTION: "Looking for objects",
    KEYPOINTS: "Looking for keypoints",
    SEGMENTATION: "Drawing outlines",
    CAPTIONS: "Writing a caption",
}
OUTLINES_AT_ONCE = 64  # fewer than usual, so that masks appear earlier


@dataclasses.dataclass
class Progress:
    r"""What is known so far.

    Args:
        result ([`Pix2SeqResult`]): Objects and captions.
        stage (`str`): What is done now; empty at the end.
        problem (`str`): Why the end came early; empty if it did not."""

    result: Pix2SeqResult
    stage: str = ""
    problem: str = ""


class WatchedStreamer(ObjectStreamer):
    """An [`ObjectStreamer`] that ends when its watch says so."""

    def __init__(self, watch: Watch, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.watch = watch

    def put(self, value):
        super().put(value)
        self.watch.check()


def look(model: Any, processor: Any, picture: Image.Image, options: TaskOptions, watch: Watch) -> Iterator[Progress]:
    r"""Run tasks on one picture and hand over what is known whenever there is more.

    Args:
        model, processor: See [`run_tasks`].
        picture (`PIL.Image.Image`): Upright, RGB.
        options ([`TaskOptions`]): What to look for.
        watch ([`Watch`]): When to end.
    Yields:
        [`Progress`]: The last one has no stage; without a problem it holds what [`run_tasks`] finds.
    Raises:
        ValueError: If the model was not trained for a task, or a task lacks what it needs."""
    options = dataclasses.replace(
        options, generate_kwargs={**options.generate_kwargs, "streamer": watch}, max_sequences=OUTLINES_AT_ONCE
    )
    run = TaskRun(model, processor, [picture], options)
    [empty] = run.results([Boxes.empty()], [[]], [[]])
    objects: list[Pix2SeqObject] = []
    captions: list[str] = []

    def progress(task: str = "", problem: str = "") -> Progress:
        result = dataclasses.replace(empty, objects=list(objects), captions=captions, malformed=run.malformed[0])
        return Progress(result, STAGES.get(task, ""), problem)

    try:
        watch.check()
        boxes = Boxes.empty()
        if run.to_detect:
            yield progress(DETECTION)
            for entry in (detection := _Detection(run, watch)):
                objects.append(entry)
                yield progress(DETECTION)
            boxes = detection.boxes
        fields: list[dict[str, Any]] = [{} for _ in range(len(boxes))]

        def complete() -> list[Pix2SeqObject]:
            return make_objects(boxes, model.config.id2label, fields)

        if KEYPOINTS in run.tasks and len(boxes):
            yield progress(KEYPOINTS)
            [points] = run.find_keypoints([boxes])
            for entry, found in zip(fields, points):
                entry.update(found)
            objects = complete()
        if SEGMENTATION in run.tasks and len(boxes):
            yield progress(SEGMENTATION)
            first = 0
            for group in run.segment(0, boxes):
                for number, mask in enumerate(group, start=first):
                    fields[number].update(mask)
                first += len(group)
                objects = complete()
                yield progress(SEGMENTATION)
        if CAPTIONS in run.tasks:
            yield progress(CAPTIONS)
            [captions] = run.caption()
    except StoppedError as reason:
        yield progress(problem=str(reason))
    else:
        yield progress()


class _Detection:
    """The objects of a picture one by one, and at the end all of them as [`Boxes`]."""

    def __init__(self, run: TaskRun, watch: Watch):
        options = run.options
        self.streamer = WatchedStreamer(watch, run.processor, run.sizes, options.threshold, options.cut_to_picture)
        self.run, self.boxes = run, Boxes.empty()

    def _detect(self):
        [self.boxes] = self.run.detect(self.streamer)

    def __iter__(self) -> Iterator[Pix2SeqObject]:
        thread = threading.Thread(target=self.streamer.run, args=(self._detect,), daemon=True)
        thread.start()
        try:
            for _, entry in self.streamer:
                yield entry
        finally:  # also when nobody wants more
            self.streamer.close()
            thread.join()


def seldom(updates: Iterable[Progress], seconds: float) -> Iterator[Progress]:
    """Leave out updates that come less than `seconds` after another of the same stage; the last one is kept."""
    stage, end_time = None, 0.0
    for update in updates:
        if not update.stage or update.stage != stage or time.monotonic() >= end_time:
            yield update
            stage, end_time = update.stage, time.monotonic() + seconds


def shrink(result: Pix2SeqResult, side: int) -> Pix2SeqResult:
    r"""Make a result smaller for showing.

    Args:
        result ([`Pix2SeqResult`]): With a picture.
        side (`int`): Longest side in pixels.
    Returns:
        [`Pix2SeqResult`]: That of the picture at this size; the same one if it is not larger."""
    height, width = result.size
    share = side / max(height, width)
    if share >= 1:
        return result
    size = max(1, round(width * share)), max(1, round(height * share))

    def smaller(found: Pix2SeqObject) -> Pix2SeqObject:
        rle, points = found.rle, found.keypoints
        if rle is not None:
            mask = Image.fromarray(rle_to_mask(rle)).resize(size, Image.Resampling.NEAREST)
            rle = mask_to_rle(np.asarray(mask))
        if points is not None:
            points = [point._replace(x=point.x * share, y=point.y * share) for point in points]
        box_xyxy = tuple(number * share for number in found.box_xyxy)
        return dataclasses.replace(found, box_xyxy=box_xyxy, rle=rle, keypoints=points, polygons_xy=None)

    picture = result.image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    objects = [smaller(found) for found in result.objects]
    return dataclasses.replace(result, size=size[::-1], image=picture, objects=objects)
