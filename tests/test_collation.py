"""From rows to batches: every sample once per epoch, and the same batch whatever happened before it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.collation import (
    BadSample,
    ObjectDataset,
    RecordDataset,
    SampleKey,
    StreamSampler,
    TrainingCollator,
    sample_generator,
    split_batch,
)
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.shapes import write_shapes
from pix2seq_hf.data.transforms import (
    Apply,
    Compose,
    CropToObject,
    captioning_training_transforms,
    detection_training_transforms,
    keypoint_training_transforms,
    resize_objects,
    segmentation_training_transforms,
)
from pix2seq_hf.loss_pix2seq import sequence_loss
from pix2seq_hf.processing_pix2seq import TASKS
from pix2seq_hf.task_object_detection import ObjectDetection
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary
from tiny_multitask import multitask_config, multitask_processor, tiny_tokenizer


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder, "train", 5, seed=0, image_size=(48, 64))
    return read_coco(folder, "train").dataset


def make_collator(seed=0, batch_duplicates=1, **task_options):
    return TrainingCollator(
        ObjectDetection(),
        Pix2SeqVocabulary(),
        detection_training_transforms((64, 64), 8),
        (64, 64),
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
        "sample_rows": (2,),
        "is_bad": (2,),
    }
    inputs, sample_rows, is_bad = split_batch(batch)
    assert sample_rows.tolist() == [4, 1] and not is_bad.any()
    assert set(batch) - set(inputs) == {"sample_rows", "is_bad"}
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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_do_not_depend_on_workers_or_interruptions(rows, num_workers):
    whole = batches(rows)
    assert_equal(batches(rows, num_workers), whole)
    assert_equal(batches(rows, num_workers, start=6), whole[2:])
    assert not torch.equal(batches(rows, seed=1)[0]["labels"], whole[0]["labels"])


def test_processes_share_what_one_has(rows):
    """As Accelerate shares batches out: every process makes its part of every batch alone."""
    whole, dataset, collator = batches(rows), RecordDataset(rows), make_collator()
    keys = list(StreamSampler(len(rows), 0, stop=12))
    for number, batch in enumerate(whole):
        parts = [keys[3 * number : 3 * number + 2], keys[3 * number + 2 : 3 * number + 3]]
        found = [collator([dataset[key] for key in part]) for part in parts]
        assert_equal([{name: torch.cat([part[name] for part in found]) for name in batch}], [batch])


def test_colours_do_not_depend_on_workers(rows):
    """Means of colours are sums, whose order could depend on the number of threads."""
    collator = make_collator()
    collator.transforms = Compose([*captioning_training_transforms((64, 64)).transforms, Apply(resize_objects, 8)])
    samples = [RecordDataset(rows)[SampleKey(0, row)] for row in range(5)]
    found, before = [], torch.get_num_threads()
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        found.append(collator(samples))
        assert torch.get_num_threads() == num_threads
    torch.set_num_threads(before)
    assert_equal(found[:1], found[1:])


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


@pytest.fixture
def damaged(rows, tmp_path):
    """The rows with one picture cut off, one of another size, and one that is missing."""
    pictures = [dict(row["image"]) for row in rows]
    content = Path(pictures[1]["path"]).read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    for row, name in {1: "cut.png", 2: "small.png", 4: "missing.png"}.items():
        pictures[row] = {"path": str(tmp_path / name), "bytes": None}
    return rows.remove_columns("image").add_column("image", pictures, feature=rows.features["image"])


WORDS = {1: "cut.png: is truncated", 2: "small.png: the picture is 30 x 20", 4: "missing.png: No such file"}


def test_bad_samples_do_not_end_an_epoch(rows, damaged):
    good, found = batches(rows), batches(damaged)
    assert_equal(batches(damaged, num_workers=2), found)
    for before, after in zip(good, found, strict=True):
        assert torch.equal(before["sample_rows"], after["sample_rows"])
        is_bad = torch.isin(after["sample_rows"], torch.tensor([1, 2, 4]))
        assert torch.equal(after["is_bad"], is_bad) and not before["is_bad"].any()
        for name in split_batch(before)[0]:
            assert torch.equal(after[name][~is_bad], before[name][~is_bad])
        assert not after["label_weights"][is_bad].any()
        if (~is_bad).any():  # the picture of a bad sample is that of the first good one
            first = after["pixel_values"][~is_bad][:1]
            assert (after["pixel_values"][is_bad] == first).all()
    assert {row for batch in found for row in batch["sample_rows"][batch["is_bad"]].tolist()} == {1, 2, 4}


def test_bad_samples_are_described(damaged):
    dataset = RecordDataset(damaged)
    for row, words in WORDS.items():
        key, sample = dataset[SampleKey(0, row)]
        assert key == (0, row) and isinstance(sample, BadSample)
        assert words in sample.message and sample.message == dataset.describe(row)
        assert "\n" not in sample.message
    assert dataset.image_id(2) == damaged[2]["image_id"]


def test_a_batch_of_bad_samples_costs_nothing(damaged):
    dataset = RecordDataset(damaged)
    batch = make_collator(batch_duplicates=2)([dataset[SampleKey(0, row)] for row in (1, 4)])
    inputs, sample_rows, is_bad = split_batch(batch)
    assert sample_rows.tolist() == [1, 1, 4, 4] and is_bad.all()
    assert inputs["pixel_values"].shape == (4, 3, 64, 64) and inputs["pixel_values"].isfinite().all()
    assert not inputs["label_weights"].any()
    logits = torch.randn(4, 40, 3000, requires_grad=True)
    loss = sequence_loss(logits, inputs["labels"], inputs["label_weights"])
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_do_without_samples(name):
    config = multitask_config()
    transforms = {
        "object_detection": detection_training_transforms((64, 64), 8),
        "instance_segmentation": segmentation_training_transforms((64, 64), 4),
        "keypoint_detection": Compose([CropToObject(0.5), *keypoint_training_transforms((64, 64)).transforms]),
        "captioning": captioning_training_transforms((64, 64)),
    }[name]
    options = TASKS[name].target_options(config)
    if name == "captioning":
        options["tokenizer"] = tiny_tokenizer()
    processor = multitask_processor(config)
    collator = TrainingCollator(TASKS[name], processor.vocabulary, transforms, (64, 64), 0, **options)
    batch = collator([(SampleKey(0, 3), BadSample("a.png: is empty"))] * 2)
    assert batch["is_bad"].all() and not batch["label_weights"].any()
    assert batch["labels"].shape[:1] == batch["pixel_values"].shape[:1] == (2,)


def test_records_that_no_sequence_can_be_made_of(rows):
    transforms, dataset, collator = detection_training_transforms((64, 64), 8), RecordDataset(rows), make_collator()

    def transform(record, rng):
        found = transforms(record, rng)
        return (
            {**found, "labels": found["labels"].clamp(min=950)} if record["image_id"] == dataset.image_id(3) else found
        )

    collator.transforms = transform
    batch = collator([dataset[SampleKey(0, 3)], dataset[SampleKey(0, 1)]])
    assert batch["is_bad"].tolist() == [True, False] and not batch["label_weights"][0].any()
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])
    assert "label 950" in dataset.describe(3, collator.prepare)
    assert dataset.describe(3).startswith(f"{rows[3]['image']['path']}: can be read")
    with pytest.raises(TypeError):  # a fault of the program is none of the data
        collator.transforms = lambda record, rng: record + 1
        collator([dataset[SampleKey(0, 3)]])


def test_a_loader_reads_a_batch_as_single_samples_are_read(rows):
    records, keys = RecordDataset(rows), [SampleKey(0, 3), SampleKey(1, 0), SampleKey(0, 3)]
    together = records.__getitems__(keys)
    assert len(together) == 3
    for (key, record), expected in zip(together, keys, strict=True):
        alone = records[expected][1]
        assert key == expected and record.keys() == alone.keys()
        assert record["image"].equal(alone["image"]) and record["boxes_yxyx"].equal(alone["boxes_yxyx"])


def test_batches_without_workers_do_not_share_memory(rows):
    collator, dataset = make_collator(), RecordDataset(rows)
    first = collator([dataset[SampleKey(0, 0)]])["pixel_values"]
    before = first.clone()
    second = collator([dataset[SampleKey(0, 1)]])["pixel_values"]
    assert first.equal(before) and not second.equal(first)
