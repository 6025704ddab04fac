r"""How do rows of a data set become a batch: which sample comes when, its randomness, its transforms, its tokens.

Everything random about a sample comes from a generator that follows from (seed, epoch, row, duplicate). A batch is
therefore the same whatever the number of worker processes, and whether or not a run was interrupted before it.

A sample that cannot be read or transformed does not end a run: another one stands in its place with weights of 0, and
the batch says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch

from pix2seq_hf.data.handover import Buffers, Piped
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


class Samples(Sequence):
    r"""The samples of a batch, read when they are looked at: a picture that is transformed at once is still in the
    processor's cache, and its memory serves for the next one.

    Args:
        dataset ([`RecordDataset`]): Reads them.
        keys (`Sequence[SampleKey]`): Which."""

    def __init__(self, dataset: "RecordDataset", keys: Sequence[SampleKey]):
        self.dataset, self.keys = dataset, keys
        self.rows = dataset.read_rows([key.row for key in keys])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Sample:
        return self.dataset.sample(self.keys[number], self.rows[number])


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
        return Samples(self, [key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> Samples:
        return Samples(self, keys)  # the whole batch, as a data loader asks for it

    def read_rows(self, rows: Sequence[int]) -> list[Mapping[str, Any] | None]:
        """Look up rows of the data set, without pixels, together; none if records are kept."""
        if self.kept is not None:
            return [None] * len(rows)
        return self.rows.__getitems__([self.picture_row(row) for row in rows])

    def sample(self, key: SampleKey, picture: Mapping[str, Any] | None) -> Sample:
        """Return the sample of a key; `picture` is its row of the data set, if that was looked up."""
        try:
            return key, self.read(key.row, picture)
        except (ValueError, OSError) as error:
            return key, BadSample(str(error))

    @property
    def num_samples(self) -> int:
        """How many there are in an epoch."""
        return len(self)

    def read(self, row: int, picture: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the record of a sample; transforms leave the records they are given alone."""
        number = self.picture_row(row)
        if self.kept is not None and number in self.kept:
            return self.kept[number]
        record = load_record(self.rows[number] if picture is None else picture, **self.widths)
        if self.kept is not None:
            self.kept[number] = record
        return record

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

    def read(self, row: int, picture: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {**super().read(row, picture), "object_index": int(self.objects[row, 1])}

    def picture_row(self, row: int) -> int:
        return int(self.objects[row, 0])


class TrainingCollator:
    r"""Transforms records and writes their sequences; the `collate_fn` of a training data loader.

    Args:
        task (`Task`): Writes the sequences.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
        transforms (`Callable`): Called with a record and a `numpy.random.Generator`.
        image_size (`tuple[int, int]`): (height, width) of the pictures that they make.
        seed (`int`): With the sample's key, decides all draws.
        batch_duplicates (`int`): Copies of each record in the batch, each with draws of its own.
        **task_options: Options of the task's `targets`."""

    def __init__(
        self,
        task: Any,
        vocabulary: Any,
        transforms: Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]],
        image_size: tuple[int, int],
        seed: int,
        batch_duplicates: int = 1,
        **task_options: Any,
    ):
        self.task, self.vocabulary, self.transforms = task, vocabulary, transforms
        self.image_size, self.seed = (int(image_size[0]), int(image_size[1])), seed
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
        size = len(samples) * self.batch_duplicates
        pixels = self.buffers.lend((size, 3, *self.image_size))
        keys: list[SampleKey] = []
        sequences: dict[int, dict[str, torch.Tensor]] = {}
        with one_thread():
            for key, record in samples:
                for duplicate in range(self.batch_duplicates):
                    keys.append(key)
                    if not isinstance(record, BadSample):
                        slot = len(keys) - 1
                        with suppress(ValueError, OSError):
                            sequences[slot] = self._prepare_into(pixels.tensor[slot], key, record, duplicate)
            good = list(sequences)
            if not good:
                sequences[0] = self._prepare_into(pixels.tensor[0], keys[0], self._blank_record())
        is_bad = torch.ones(size, dtype=torch.bool)
        is_bad[good] = False
        substitute = min(sequences)
        if is_bad.any():
            pixels.tensor[is_bad] = pixels.tensor[substitute].clone()
        filled = [sequences.get(slot, sequences[substitute]) for slot in range(size)]
        batch = {name: torch.stack([sequence[name] for sequence in filled]) for name in filled[0]}
        batch["label_weights"][is_bad] = 0
        batch |= {"sample_rows": torch.tensor([key.row for key in keys]), "is_bad": is_bad}
        if torch.utils.data.get_worker_info() is None:
            return {"pixel_values": pixels.keep(), **batch}
        return {"pixel_values": pixels, **{name: Piped(value) for name, value in batch.items()}}  # to the main process

    def _prepare_into(self, canvas: torch.Tensor, *sample: Any) -> dict[str, torch.Tensor]:
        """Write a picture into its place of the batch and return its sequences."""
        prepared = self.prepare(*sample, canvas=canvas)
        image = prepared.pop("pixel_values")
        assert image.shape == canvas.shape, f"an image of {tuple(image.shape)} in a batch of {tuple(canvas.shape)}"
        if image.data_ptr() != canvas.data_ptr():  # otherwise the transforms wrote there
            canvas.copy_(image)
        return prepared

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
