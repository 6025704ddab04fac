r"""How does a stream of rows become the samples of a run: one epoch after the other, from any position on.

Every process, of training and of workers, reads the whole stream and decodes only the pictures of its own part, so that
batches do not depend on the number of processes. Where reading is what takes time, convert the data set instead.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from pix2seq_hf.data.collation import BadSample, Sample, SampleKey
from pix2seq_hf.data.rows import load_record

BLOCK = 16  # rows that are taken from the stream together


class StreamDataset(torch.utils.data.IterableDataset):
    r"""Samples of a run from a [`~data.hub.StreamSplit`].

    Args:
        stream ([`~data.hub.StreamSplit`]): The rows.
        samples_of (`Callable`): Called with a row; returns what is learnt from it: the numbers of its objects for tasks
            that look at single objects, `[None]` for the whole picture, nothing to leave it out.
        seed (`int`): Decides the order.
        batch_size (`int`): Samples of a batch, over all training processes.
        process (`int`), num_processes (`int`): Which part of every batch this training process takes.
        start (`int`): Samples to leave out because an interrupted run has seen them.
        buffer_size (`int`): Rows among which the next one is drawn.
        **widths: `max_points_per_object` and `num_keypoints` of [`~data.rows.load_record`]."""

    def __init__(
        self,
        stream: Any,
        samples_of: Callable[[Mapping[str, Any]], list[int | None]],
        seed: int,
        batch_size: int,
        process: int = 0,
        num_processes: int = 1,
        start: int = 0,
        buffer_size: int = 1000,
        **widths: int,
    ):
        self.stream, self.samples_of, self.seed, self.batch_size = stream, samples_of, seed, batch_size
        self.process, self.num_processes = process, num_processes
        self.start, self.buffer_size, self.widths = start, buffer_size, widths

    @property
    def num_samples(self) -> int | None:
        """How many there are in an epoch, as far as the source says it."""
        return self.stream.num_rows

    def __iter__(self) -> Iterator[Sample]:
        worker = torch.utils.data.get_worker_info()
        mine, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        part = self.batch_size // self.num_processes
        for position, (key, row, index) in enumerate(self._samples(), -self.start):
            batch, place = divmod(position, self.batch_size)
            if position < 0 or batch % num_workers != mine or place // part != self.process:
                continue
            try:
                record = load_record(row, **self.widths)
            except (ValueError, OSError) as error:
                yield key, BadSample(str(error))
                continue
            yield key, record if index is None else {**record, "object_index": index}

    def _samples(self) -> Iterator[tuple[SampleKey, Mapping[str, Any], int | None]]:
        """All samples of an endless run."""
        epoch = 0
        while True:
            number = -1
            # Not row by row: in a worker process that would be the rows of some files only.
            for block in self.stream.rows(self.seed, epoch, self.buffer_size).iter(BLOCK):
                for values in zip(*block.values(), strict=True):
                    row = dict(zip(block, values, strict=True))
                    for index in self.samples_of(row):
                        number += 1
                        yield SampleKey(epoch, number), row, index
            if number < 0:
                raise ValueError("the stream has nothing to learn from for one of the tasks")
            epoch += 1

    def image_id(self, row: int) -> int:
        """What a sample is called in messages: its number in its epoch, since a stream has no index."""
        return row

    def describe(self, row: int, prepare: Callable | None = None) -> str:
        """Say which sample is bad; why it is cannot be found out again."""
        return f"number {row} of the stream"
