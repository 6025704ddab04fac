r"""How do rows of a data set become a batch: which sample comes when, its randomness, its transforms, its tokens.

Everything random about a sample comes from a generator that follows from (seed, epoch, row, duplicate). A batch is
therefore the same whatever the number of worker processes, and whether or not a run was interrupted before it.

A sample that cannot be read or transformed does not end a run: another one stands in its place with weights of 0, and
the batch says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from pix2seq_hf.data.handover import Buffers, Lent
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.tokenization_pix2seq import PADDING_FLOAT

Sample = tuple["SampleKey", "Mapping[str, Any] | BadSample"]


class SampleKey(NamedTuple):
    r"""Names one sample of a training run.

    Args:
        epoch (`int`): How often all rows were seen before.
        row (`int`): Row of the data set, for [`ObjectDataset`] its object."""

    epoch: int
    row: int


class BadSample(NamedTuple):
    r"""Stands where a record should be.

    Args:
        message (`str`): One line that names the file and says what is wrong with it."""

    message: str


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

    def __getitem__(self, key: SampleKey) -> Sample:
        try:
            return key, self.read(key.row)
        except (ValueError, OSError) as error:
            return key, BadSample(str(error))

    @property
    def num_samples(self) -> int:
        """How many there are in an epoch."""
        return len(self)

    def read(self, row: int) -> dict[str, Any]:
        """Return the record of a row; transforms leave the records they are given alone."""
        if self.kept is None:
            return load_record(self.rows[row], **self.widths)
        if row not in self.kept:
            self.kept[row] = load_record(self.rows[row], **self.widths)
        return self.kept[row]

    def picture_row(self, row: int) -> int:
        """The row of the picture that a sample is about."""
        return row

    def image_id(self, row: int) -> int:
        """The id of the picture that a sample is about."""
        return int(self.rows[self.picture_row(row)]["image_id"])

    def describe(self, row: int, prepare: Callable[[SampleKey, Mapping[str, Any]], Any] | None = None) -> str:
        r"""Say what is wrong with a sample, by trying it once more.

        Args:
            row (`int`): As in a [`SampleKey`].
            prepare (`Callable`, *optional*): [`TrainingCollator.prepare`], to try that too.
        Returns:
            `str`: One line that begins with the picture's file."""
        picture = self.rows[self.picture_row(row)]
        name = picture["image"]["path"] or f"picture {picture['image_id']}"
        try:
            record = self.read(row)
            if prepare is not None:
                prepare(SampleKey(0, row), record)
        except (ValueError, OSError) as error:
            return str(error) if str(error).startswith(name) else f"{name}: {error}"
        return f"{name}: can be read, but no sequence can be made of it"


class ObjectDataset(RecordDataset):
    r"""Single objects, looked up by [`SampleKey`]: the picture's record, and `object_index` for [`CropToObject`].

    Args:
        rows (`datasets.Dataset`): As [`~data.coco.read_coco`] returns it.
        objects (`Sequence[tuple[int, int]]`): Row and index of every object.
        **options: As of [`RecordDataset`]."""

    def __init__(self, rows: Any, objects: Sequence[tuple[int, int]], **options: Any):
        super().__init__(rows, **options)
        self.objects = np.asarray(objects, dtype=np.int32).reshape(-1, 2)  # a list would be copied by every worker

    def __len__(self) -> int:
        return len(self.objects)

    def read(self, row: int) -> dict[str, Any]:
        return {**super().read(self.picture_row(row)), "object_index": int(self.objects[row, 1])}

    def picture_row(self, row: int) -> int:
        return int(self.objects[row, 0])


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
        self.buffers = Buffers()

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        r"""Build a batch.

        Args:
            samples (`Sequence[tuple[SampleKey, Mapping or BadSample]]`): As [`RecordDataset`] returns them.
        Returns:
            `dict[str, torch.Tensor]`: Arguments of the model: `pixel_values` of shape `(batch, 3, height, width)`, and
            `decoder_input_ids`, `labels` and `label_weights` of shape `(batch, length)`, or with several sequences per
            picture `(batch, sequences, length)`; the copies of a record stand next to each other. Beside them, see
            [`split_batch`], `sample_rows` and `is_bad` of shape `(batch,)`. In the place of a bad sample is the first
            good one, or without any a gray picture, with weights of 0."""
        copies = [(key, record, copy) for key, record in samples for copy in range(self.batch_duplicates)]
        batch: dict[str, torch.Tensor] = {}
        lent: dict[str, Lent] = {}
        good = []
        with one_thread():
            for slot, (key, record, duplicate) in enumerate(copies):
                try:
                    if isinstance(record, BadSample):
                        continue
                    canvas = batch["pixel_values"][slot] if batch else None
                    sample = self.prepare(key, record, duplicate, canvas)
                except (ValueError, OSError):
                    continue
                self._place(sample, slot, len(copies), batch, lent)
                good.append(slot)
            if not good:
                self._place(self.prepare(copies[0][0], self._blank_record()), 0, len(copies), batch, lent)
        is_bad = torch.ones(len(copies), dtype=torch.bool)
        is_bad[good] = False
        if is_bad.any():
            for value in batch.values():
                value[is_bad] = value[good[0] if good else 0].clone()
            batch["label_weights"][is_bad] = 0
        rows = torch.tensor([key.row for key, _, _ in copies])
        return {
            **batch,
            **lent,
            "sample_rows": rows,
            "is_bad": is_bad,
        }  # from here, what is lent goes to the main process

    def prepare(
        self, key: SampleKey, record: Mapping[str, Any], duplicate: int = 0, canvas: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        r"""Transform a record and write its sequence.

        Args:
            key ([`SampleKey`]): Its name.
            record (`Mapping[str, Any]`): Without a batch dimension, and so the result.
            duplicate (`int`): Which of its copies.
            canvas (`torch.FloatTensor`, *optional*): Where transforms may write the picture, see [`~transforms.pad`].
        Returns:
            `dict[str, torch.Tensor]`: `pixel_values`, `decoder_input_ids`, `labels` and `label_weights`.
        Raises:
            ValueError, OSError: If the sample cannot be used."""
        rng = sample_generator(self.seed, key, duplicate)
        transformed = self.transforms({**record, "canvas": canvas}, rng)
        targets = self.task.targets(transformed, self.vocabulary, rng, **self.task_options)
        return {"pixel_values": transformed["image"], **targets.as_dict()}

    def _place(
        self,
        sample: Mapping[str, torch.Tensor],
        slot: int,
        size: int,
        batch: dict[str, torch.Tensor],
        lent: dict[str, Lent],
    ) -> None:
        """Write a sample into the batch, which the first sample makes."""
        if not batch:
            batch |= {name: value.new_empty((size, *value.shape)) for name, value in sample.items()}
            if torch.utils.data.get_worker_info() is not None:
                lent["pixel_values"] = self.buffers.lend(batch["pixel_values"].shape)
                batch["pixel_values"] = lent["pixel_values"].tensor
        for name, value in sample.items():
            place = batch[name][slot]
            assert value.shape == place.shape, f"{name} of {tuple(value.shape)} in a batch of {tuple(place.shape)}"
            if value.data_ptr() != place.data_ptr():  # otherwise the transforms wrote there
                place.copy_(value)

    def _blank_record(self) -> dict[str, Any]:
        """A gray picture with one object that has everything that a task may ask for."""
        polygon = torch.full((1, 2 * self.task_options.get("max_points_per_object", 128)), PADDING_FLOAT)
        polygon[0, :6] = torch.tensor([0.25, 0.25, 0.75, 0.25, 0.75, 0.75])
        return {
            "image": torch.full((3, 32, 32), 77, dtype=torch.uint8),
            "image_id": 0,
            "image_size": (32, 32),
            "boxes_yxyx": torch.tensor([[0.25, 0.25, 0.75, 0.75]]),
            "labels": torch.tensor([1]),
            "areas": torch.tensor([256.0]),
            "is_crowd": torch.tensor([False]),
            "polygons_yx": polygon,
            "keypoints_yx": torch.full((1, 2 * self.task_options.get("num_keypoints", 17)), 0.5),
            "num_keypoints": torch.tensor([1]),
            "captions": ["gray"],
            "object_index": 0,
        }


def split_batch(batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    r"""Take apart what a [`TrainingCollator`] made.

    Args:
        batch (`Mapping[str, torch.Tensor]`): From a data loader.
    Returns:
        `tuple`: Arguments of the model; `torch.LongTensor` `(batch,)`, the row of every sample in its data set, as
        [`RecordDataset.describe`] takes it; `torch.BoolTensor` `(batch,)`, the samples that another one stands for."""
    inputs = dict(batch)
    return inputs, inputs.pop("sample_rows"), inputs.pop("is_bad")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute as in a worker process: sums of floats depend on the number of threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
