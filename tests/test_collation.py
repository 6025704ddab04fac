"""From rows to batches: every sample once per epoch, and the same batch whatever happened before it."""

import numpy as np
import pytest
import torch

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.collation import (
    ObjectDataset,
    RecordDataset,
    SampleKey,
    StreamSampler,
    TrainingCollator,
    sample_generator,
)
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.scenes import write_scenes
from pix2seq_hf.data.transforms import CropToObject, detection_training_transforms
from pix2seq_hf.task_object_detection import ObjectDetection
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", 5, seed=0, image_size=(48, 64))
    return read_coco(folder, "train").dataset


def make_collator(seed=0, batch_duplicates=1, **task_options):
    return TrainingCollator(
        ObjectDetection(),
        Pix2SeqVocabulary(),
        detection_training_transforms((64, 64), 8),
        seed,
        batch_duplicates,
        max_instances_per_image=8,
        **task_options,
    )


def batches(rows, num_workers=0, start=0, seed=0):
    loader = torch.utils.data.DataLoader(
        RecordDataset(rows),
        batch_size=3,
        sampler=StreamSampler(len(rows), seed, stop=12, start=start),
        collate_fn=make_collator(seed),
        num_workers=num_workers,
    )
    return list(loader)


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_sampler_shows_every_row_once_per_epoch():
    keys = list(StreamSampler(5, seed=3, stop=13))
    assert [key.epoch for key in keys] == [0] * 5 + [1] * 5 + [2] * 3
    assert sorted(key.row for key in keys[:5]) == sorted(key.row for key in keys[5:10]) == list(range(5))
    assert [key.row for key in keys[:5]] != [key.row for key in keys[5:10]]
    assert keys != list(StreamSampler(5, seed=4, stop=13))


def test_sampler_continues_where_it_stopped():
    whole, rest = StreamSampler(5, seed=3, stop=13), StreamSampler(5, seed=3, stop=13, start=7)
    assert list(rest) == list(whole)[7:] and len(rest) == 6


def test_generators_differ_by_everything_that_names_a_sample():
    draws = {
        sample_generator(seed, SampleKey(epoch, row), duplicate).random()
        for seed, epoch, row, duplicate in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    }
    assert len(draws) == 5


def test_batch_is_what_the_task_writes_for_the_transformed_record(rows):
    dataset, collator = RecordDataset(rows), make_collator(eos_token_weight=0.25)
    samples = [dataset[SampleKey(2, 4)], dataset[SampleKey(2, 1)]]
    batch = collator(samples)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values": (2, 3, 64, 64),
        "decoder_input_ids": (2, 40),
        "labels": (2, 40),
        "label_weights": (2, 40),
    }
    key, record = samples[1]
    rng = np.random.default_rng([0, 2, 1, 0])
    record = detection_training_transforms((64, 64), 8)(record, rng)
    targets = ObjectDetection().targets(
        record, Pix2SeqVocabulary(), rng, max_instances_per_image=8, eos_token_weight=0.25
    )
    assert key == (2, 1)
    assert torch.equal(batch["pixel_values"][1], record["image"])
    assert all(torch.equal(batch[name][1], value) for name, value in targets.as_dict().items())


def test_duplicates_share_the_picture_and_nothing_else(rows):
    dataset = RecordDataset(rows)
    samples = [dataset[SampleKey(0, 0)], dataset[SampleKey(0, 1)]]
    batch, once = make_collator(batch_duplicates=3)(samples), make_collator()(samples)
    assert batch["labels"].shape == (6, 40)
    assert torch.equal(batch["labels"][[0, 3]], once["labels"])
    assert len({tuple(row) for row in batch["decoder_input_ids"].tolist()}) == 6


@pytest.fixture
def one_thread():
    """Means of colours are summed in an order that depends on the number of threads, and a worker has one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_batches_do_not_depend_on_workers_or_interruptions(rows, one_thread):
    whole = batches(rows)
    assert_equal(batches(rows, num_workers=2), whole)
    assert_equal(batches(rows, start=6), whole[2:])
    assert not torch.equal(batches(rows, seed=1)[0]["labels"], whole[0]["labels"])


def test_kept_records_give_the_same_batches(rows, monkeypatch):
    reads = []

    def read(row, **widths):
        reads.append(row["image_id"])
        return load_record(row, **widths)

    monkeypatch.setattr("pix2seq_hf.data.collation.load_record", read)
    found = []
    for keep_records in (False, True):
        records = RecordDataset(rows, keep_records)
        collator = make_collator()
        found.append([collator([records[SampleKey(epoch, row)] for row in range(2)]) for epoch in range(3)])
    assert_equal(*found)
    assert len(reads) == 6 + 2


def test_objects_are_cut_out(rows):
    records = RecordDataset(rows)
    objects = [(row, index) for row in range(len(rows)) for index in range(len(rows[row]["labels"]))]
    dataset, cut_out = ObjectDataset(rows, objects), CropToObject(0.0)
    assert len(dataset) == len(objects)
    for number, (row, index) in enumerate(objects):
        key, found = dataset[SampleKey(0, number)]
        found = cut_out(found, np.random.default_rng(0))
        whole = records[SampleKey(0, row)][1]
        assert key.row == number and found["labels"].tolist() == whole["labels"][[index]].tolist()
        height, width = found["image_size"]
        ymin, xmin, ymax, xmax = whole["boxes_yxyx"][index].tolist()
        assert abs(height - (ymax - ymin) * 48) < 2.5 and abs(width - (xmax - xmin) * 64) < 2.5
