"""How objects are handed over one by one while the model still writes."""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .engine import CAPTIONS, KEYPOINTS, SEGMENTATION, TaskOptions, TaskRun, make_objects
from .given_boxes import Boxes
from .image_processing_pix2seq import scale_boxes
from .results import Pix2SeqObject

END = object()


class StreamClosedError(RuntimeError):
    """Raised inside of `generate` when nobody wants further objects."""


class ObjectStreamer:
    r"""A streamer for `generate`: iterate over it to get objects as soon as their class is written.

    ```python
    streamer = ObjectStreamer(processor, target_sizes=[(height, width)])
    threading.Thread(target=streamer.run, args=(lambda: model.generate(**inputs, streamer=streamer),)).start()
    for picture, found in streamer:
        ...
    ```

    Args:
        processor ([`Pix2SeqProcessor`]): That of the model.
        target_sizes (`Sequence[tuple[int, int]]`): (height, width) of every picture of the batch.
        threshold (`float`, *optional*, defaults to 0): Objects of a lower score are left out.
        cut_to_picture (`bool`, *optional*, defaults to `True`): Whether boxes are cut to the picture, and those without
            area left out.
        timeout (`float`, *optional*): Seconds to wait for the next object before `queue.Empty` is raised."""

    def __init__(
        self,
        processor: Any,
        target_sizes: Sequence[tuple[int, int]],
        threshold: float = 0.0,
        cut_to_picture: bool = True,
        timeout: float | None = None,
    ):
        self.processor, self.target_sizes = processor, list(target_sizes)
        self.threshold, self.cut_to_picture, self.timeout = threshold, cut_to_picture, timeout
        self.queue: queue.Queue = queue.Queue()
        self.is_closed = False

    def put_objects(
        self,
        slot: int,
        rows: torch.LongTensor,
        box_tokens: torch.LongTensor,
        labels: torch.LongTensor,
        scores: torch.FloatTensor,
    ):
        r"""Take the objects that were just written, one per row of the batch; `generate` calls this.

        Args:
            slot (`int`): How many objects were written before.
            rows (`torch.LongTensor` of shape `(live_rows,)`): Indices in the batch.
            box_tokens (`torch.LongTensor` of shape `(live_rows, 4)`): Their boxes.
            labels (`torch.LongTensor` of shape `(live_rows,)`): Raw label ids, 0 for none.
            scores (`torch.FloatTensor` of shape `(live_rows,)`): In `[0, 1]`."""
        if self.is_closed:
            raise StreamClosedError("the stream of objects was closed")
        vocabulary = self.processor.vocabulary
        is_written = (box_tokens != vocabulary.padding_token).any(-1)  # rows that have ended write padding
        keep = is_written & (labels > 0) & (scores >= self.threshold)
        size = self.processor.image_processor.size
        columns = (values[keep].cpu() for values in (rows, vocabulary.decode_boxes(box_tokens), labels, scores))
        for row, box_yxyx, label, score in zip(*columns):
            target = self.target_sizes[int(row)]
            boxes_xyxy = scale_boxes(box_yxyx[None], target, (size["height"], size["width"]))
            found = Boxes(boxes_xyxy, label[None], score[None])
            if self.cut_to_picture:
                found = found.clip(target)
                found = found[found.has_area]
            for entry in make_objects(found, vocabulary.id2label or {}):
                self.queue.put((int(row), entry))

    def put(self, value: torch.LongTensor):
        """Take the next tokens; single tokens are no objects yet."""
        if self.is_closed:
            raise StreamClosedError("the stream of objects was closed")

    def end(self):
        """No further objects come; `generate` calls this."""
        self.queue.put(END)

    def run(self, generate: Any):
        """Call `generate`, for use as the target of a thread: what it raises is raised where the objects are read."""
        try:
            generate()
        except StreamClosedError:
            self.end()
        except BaseException as error:
            self.queue.put(error)
        else:
            self.end()

    def close(self):
        """Make `generate` stop at its next token."""
        self.is_closed = True

    def __iter__(self) -> Iterator[tuple[int, Pix2SeqObject]]:
        return self

    def __next__(self) -> tuple[int, Pix2SeqObject]:
        entry = self.queue.get(timeout=self.timeout)
        if entry is END:
            self.queue.put(END)  # whoever asks again gets the same answer
            raise StopIteration
        if isinstance(entry, BaseException):
            self.queue.put(END)
            raise entry
        return entry


def stream_objects(
    model: Any, processor: Any, picture: Any, options: TaskOptions | None = None, boxes: Boxes | None = None
) -> Iterator[Pix2SeqObject]:
    r"""Find the objects of one picture and hand each over as soon as it is complete.

    Detected objects come while the rest is being written; with masks or keypoints they come after detection, in groups
    of `options.max_sequences` outlines.

    Args:
        model, processor: See [`run_tasks`].
        picture (`PIL.Image.Image` or array): Upright.
        options ([`TaskOptions`], *optional*): What to look for; captions are not streamed.
        boxes ([`Boxes`], *optional*): The objects to ask about; by default they are detected.
    Yields:
        [`Pix2SeqObject`]: Those that [`run_tasks`] finds, in the same order.
    Raises:
        ValueError: If the model was not trained for a task, or a task lacks what it needs."""
    run = TaskRun(model, processor, [picture], options, None if boxes is None else [boxes])
    if run.tasks == (CAPTIONS,):
        raise ValueError("captions are no objects: name a task that finds objects")
    if SEGMENTATION in run.tasks or KEYPOINTS in run.tasks:
        return _complete_objects(run)
    return _detected_objects(run)


def _detected_objects(run: TaskRun) -> Iterator[Pix2SeqObject]:
    options, id2label = run.options, run.model.config.id2label
    if not run.to_detect:
        yield from make_objects(run.boxes[0], id2label)
        return
    streamer = ObjectStreamer(run.processor, run.sizes, options.threshold, options.cut_to_picture)
    thread = threading.Thread(target=streamer.run, args=(lambda: run.detect(streamer),), daemon=True)
    thread.start()
    try:
        for _, entry in streamer:
            yield entry
    finally:
        streamer.close()
        thread.join()


def _complete_objects(run: TaskRun) -> Iterator[Pix2SeqObject]:
    [found] = run.detect()
    points = run.find_keypoints([found])[0] if KEYPOINTS in run.tasks else [{} for _ in range(len(found))]
    groups = run.segment(0, found) if SEGMENTATION in run.tasks else [[{} for _ in range(len(found))]]
    first = 0
    for masks in groups:
        last = first + len(masks)
        additions = [{**mask, **point} for mask, point in zip(masks, points[first:last])]
        yield from make_objects(found[first:last], run.model.config.id2label, additions)
        first = last


__all__ = ["ObjectStreamer", "stream_objects"]
