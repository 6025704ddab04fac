r"""How do rows of a data set become a batch: which sample comes when, its randomness, its transforms, its tokens.

Everything random about a sample comes from a generator that follows from (seed, epoch, row, duplicate). A batch is
therefore the same whatever the number of worker processes, and whether or not a run was interrupted before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pix2seq_hf.data.rows import load_record


class SampleKey(NamedTuple):
    r"""Names one sample of a training run.

    Args:
        epoch (`int`): How often all rows were seen before.
        row (`int`): Row of the data set, for [`ObjectDataset`] its object."""

    epoch: int
    row: int


def sample_generator(seed: int, key: SampleKey, duplicate: int) -> np.random.Generator:
    """Return the source of randomness of one sample; `duplicate` counts its copies within a batch."""
    return np.random.default_rng([seed, key.epoch, key.row, duplicate])


class StreamSampler(torch.utils.data.Sampler):
    r"""Names the samples of a whole run, one epoch's permutation after the other, without a break between epochs.

    Args:
        num_rows (`int`): Rows of the data set.
        seed (`int`): Decides the permutations.
        stop (`int`): Number of samples in the run.
        start (`int`): Samples to leave out because an interrupted run has seen them."""

    def __init__(self, num_rows: int, seed: int, stop: int, start: int = 0):
        self.num_rows, self.seed, self.start, self.stop = num_rows, seed, start, stop

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, permutation = -1, None
        for position in range(self.start, self.stop):
            if position // self.num_rows != epoch:
                epoch = position // self.num_rows
                permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            yield SampleKey(epoch, int(permutation[position % self.num_rows]))


class RecordDataset(torch.utils.data.Dataset):
    r"""Rows of a `datasets.Dataset` as records with pixels, looked up by [`SampleKey`].

    Args:
        rows (`datasets.Dataset`): As [`~data.coco.read_coco`] returns it.
        keep_records (`bool`): Read every row once and keep it in memory, pixels included.
        **widths: `max_points_per_object` and `num_keypoints` of [`~data.rows.load_record`]."""

    def __init__(self, rows: Any, keep_records: bool = False, **widths: int):
        self.rows, self.widths = rows, widths
        self.kept: dict[int, dict[str, Any]] | None = {} if keep_records else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> tuple[SampleKey, dict[str, Any]]:
        return key, self.load(key.row)

    def load(self, row: int) -> dict[str, Any]:
        """Return the record of a row; transforms leave the records they are given alone."""
        if self.kept is None:
            return load_record(self.rows[row], **self.widths)
        if row not in self.kept:
            self.kept[row] = load_record(self.rows[row], **self.widths)
        return self.kept[row]


class ObjectDataset(RecordDataset):
    r"""Single objects, looked up by [`SampleKey`]: the picture's record, and `object_index` for [`CropToObject`].

    Args:
        rows (`datasets.Dataset`): As [`~data.coco.read_coco`] returns it.
        objects (`Sequence[tuple[int, int]]`): Row and index of every object.
        **options: As of [`RecordDataset`]."""

    def __init__(self, rows: Any, objects: Sequence[tuple[int, int]], **options: Any):
        super().__init__(rows, **options)
        self.objects = objects

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, key: SampleKey) -> tuple[SampleKey, dict[str, Any]]:
        row, index = self.objects[key.row]
        return key, {**self.load(row), "object_index": index}


class TrainingCollator:
    r"""Transforms records and writes their sequences; the `collate_fn` of a training data loader.

    Args:
        task (`Task`): Writes the sequences.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
        transforms (`Callable`): Called with a record and a `numpy.random.Generator`.
        seed (`int`): With the sample's key, decides all draws.
        batch_duplicates (`int`): Copies of each record in the batch, each with draws of its own.
        **task_options: Options of the task's `targets`."""

    def __init__(
        self,
        task: Any,
        vocabulary: Any,
        transforms: Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]],
        seed: int,
        batch_duplicates: int = 1,
        **task_options: Any,
    ):
        self.task, self.vocabulary, self.transforms, self.seed = task, vocabulary, transforms, seed
        self.batch_duplicates, self.task_options = batch_duplicates, task_options

    def __call__(self, samples: Sequence[tuple[SampleKey, Mapping[str, Any]]]) -> dict[str, torch.Tensor]:
        r"""Build a batch.

        Args:
            samples (`Sequence[tuple[SampleKey, Mapping]]`): As [`RecordDataset`] returns them.
        Returns:
            `dict[str, torch.Tensor]`: Arguments of the model: `pixel_values` of shape `(batch, 3, height, width)`, and
            `decoder_input_ids`, `labels` and `label_weights` of shape `(batch, length)`, or with several sequences per
            picture `(batch, sequences, length)`; the copies of a record stand next to each other."""
        batch: dict[str, list[torch.Tensor]] = {}
        for key, record in samples:
            for duplicate in range(self.batch_duplicates):
                rng = sample_generator(self.seed, key, duplicate)
                transformed = self.transforms(record, rng)
                targets = self.task.targets(transformed, self.vocabulary, rng, **self.task_options)
                for name, value in {"pixel_values": transformed["image"], **targets.as_dict()}.items():
                    batch.setdefault(name, []).append(value)
        return {name: torch.stack(values) for name, values in batch.items()}
