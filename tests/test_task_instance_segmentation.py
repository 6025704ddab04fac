"""Polygons to sequences and back to masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pix2seq_hf.image_processing_pix2seq import padding_scale
from pix2seq_hf.masks_pix2seq import join_parts, mask_to_parts, mask_to_rle, rasterize
from pix2seq_hf.task_base import Frame, rows_of_objects
from pix2seq_hf.task_instance_segmentation import InstanceSegmentation
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary, scale_points

TASK = InstanceSegmentation()
VOCABULARY = Pix2SeqVocabulary()
RECORD = {
    "image_id": 7,
    "boxes_yxyx": torch.tensor([[0.0, 0.25, 0.5, 1.0], [0.1, 0.1, 0.3, 0.2]]),
    "labels": torch.tensor([18, -70]),
    "polygons_yx": torch.tensor([[0, 0.5, 0.5, 1, 0.25, 0.25, -1, -1], [0.1, 0.1, 0.2, 0.2, -2, -2, 0.3, 0.2]]),
}


def test_sequences_of_one_record():
    targets = TASK.targets(RECORD, VOCABULARY, max_instances_per_image=3, max_points_per_object=4, eos_token_weight=0.5)
    first = [11, 1000, 1250, 1500, 1999, 118, 1000, 1500, 1500, 1999, 1250, 1250, 0, 0]
    noise = [11, 1100, 1100, 1300, 1200, 30, 1100, 1100, 1200, 1200, 40, 40, 1300, 1200]
    assert targets.decoder_input_ids.tolist() == [first[:-1], noise[:-1], [0] * 13]
    assert targets.labels.tolist() == [first[1:], noise[1:], [0] * 13]
    expected = [[0.0] * 5 + [1.0] * 6 + [0.5] * 2, [0.0] * 13, [0.5] * 13]  # a noise box has no outline to learn
    assert targets.label_weights.tolist() == expected


def test_prompts():
    prompts = TASK.prompt(VOCABULARY, RECORD["boxes_yxyx"], torch.tensor([18, 0]))
    assert prompts.tolist() == [[11, 1000, 1250, 1500, 1999, 118], [0] * 6]
    assert TASK.prompt(VOCABULARY, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).shape == (0, 6)
    many = TASK.prompt(VOCABULARY, torch.rand(400, 4), torch.ones(400, dtype=torch.long))
    assert many.shape == (400, 6)


def test_records_without_objects_and_of_numpy_arrays():
    record = {
        "boxes_yxyx": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "polygons_yx": np.zeros((0, 0)),
    }  # fmt: skip
    targets = TASK.targets(record, VOCABULARY, max_instances_per_image=2)
    assert targets.labels.equal(torch.zeros(2, 261, dtype=torch.long)) and (targets.label_weights == 1).all()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"polygons_yx": None}, {}, "image 7 lacks polygons_yx, which instance_segmentation needs"),
        ({"labels": [1]}, {}, "2 boxes, 1 labels and 2 rows of polygons_yx"),
        ({"labels": [1, 900]}, {}, "label 900"),
        ({}, {"max_points_per_object": 5}, r"shape \(2, 8\), the model takes 5 points: \(objects, 10\)"),
        ({}, {"max_seq_len": 12}, "13 tokens does not fit into max_seq_len 12"),
    ],
)
def test_impossible_targets_are_refused(changes, options, message):
    with pytest.raises(ValueError, match=message):
        TASK.targets({**RECORD, **changes}, VOCABULARY, **{"max_points_per_object": 4, **options})


parts = st.lists(st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=3, max_size=6),
                 min_size=1, max_size=3)  # fmt: skip


@settings(deadline=None)
@given(st.lists(parts, min_size=0, max_size=4), st.sampled_from([2, 64, 400, 1000, 2000]), st.data())
def test_a_record_returns_within_half_a_bin(objects, num_bins, data):
    vocabulary = Pix2SeqVocabulary(quantization_bins=num_bins)
    size = len(objects)
    flat = [join_parts([np.array(part).reshape(-1) for part in polygon], 24) for polygon in objects]
    labels = data.draw(st.lists(st.integers(1, 899), min_size=size, max_size=size))
    record = {
        "boxes_yxyx": torch.rand(size, 4), "labels": torch.tensor(labels),
        "polygons_yx": torch.tensor(np.array(flat), dtype=torch.float32).reshape(size, 48),
    }  # fmt: skip
    targets = TASK.targets(record, vocabulary, max_instances_per_image=4, max_points_per_object=24)
    found = TASK.parse(targets.labels[:, 5:], None, vocabulary)
    assert found.malformed[:size] == [{}] * size
    for before, after in zip(record["polygons_yx"], found.points_yx):
        assert (after - before).abs().max() <= 0.5 / (num_bins - 1) + 1e-6
        assert ((after < 0) == (before < 0)).all()  # reserved numbers exactly where they were
    assert (found.points_yx[size:] == -1).all()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(2, 14), st.floats(0.2, 0.9))
def test_masks_with_holes_and_islands_survive(seed, height, width, share):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    outline = torch.from_numpy(join_parts(mask_to_parts(mask), 600)).float()
    one = {"boxes_xyxy": torch.zeros(1, 4), "labels": torch.tensor([1]), "scores": torch.ones(1)}
    frame = Frame(0, (height, width), (640, 640), **one)
    one_by_scale = 1 / torch.from_numpy(padding_scale(frame.size, frame.input_size))
    tokens = VOCABULARY.encode_points(scale_points(outline, one_by_scale))[None]
    processor = SimpleNamespace(vocabulary=VOCABULARY)
    (result,) = TASK.results(tokens, {}, [frame], processor)
    assert (result["masks"][0].numpy() == mask).all()
    assert result["rles"] == [mask_to_rle(mask)] and result["masks"].dtype == torch.uint8


int64 = st.one_of(st.integers(-50, 3100), st.sampled_from([0, 40, 41]), st.integers(-(2**63), 2**63 - 1))


@settings(deadline=None)
@given(st.integers(0, 2), st.integers(0, 23), st.data())
def test_no_stream_raises(objects, length, data):
    tokens = data.draw(st.lists(int64, min_size=2 * objects * length, max_size=2 * objects * length))
    sequences = torch.tensor(tokens, dtype=torch.int64).reshape(2 * objects, length)
    asked = {"labels": torch.ones(objects, dtype=torch.long), "scores": torch.ones(objects)}
    frame = Frame(0, (20, 30), (64, 64), boxes_xyxy=torch.rand(objects, 4), **asked)
    (found,) = TASK.results(sequences, {}, [frame], SimpleNamespace(vocabulary=VOCABULARY))
    assert found["masks"].shape == (objects, 20, 30) and len(found["rles"]) == len(found["polygons_xy"]) == objects
    assert all(count > 0 for count in found["malformed"].values())


TRIANGLE = [1100, 1100, 1500, 1100, 1500, 1500]


@pytest.mark.parametrize(
    ("stream", "counts"),
    [
        (TRIANGLE + [0, 0], {}),
        (TRIANGLE, {}),  # full, without an end
        (TRIANGLE + [40, 40] + TRIANGLE + [0] * 4, {}),
        (TRIANGLE + [40, 1100] + TRIANGLE, {"half": 1}),
        (TRIANGLE + [0, 1100, 0, 0], {"half": 1}),
        (TRIANGLE + [0, 0, 1100, 1100, 0, 0], {"after_end": 1}),
        (TRIANGLE + [41, 41, 101, 1100], {"coordinate": 2}),
        (TRIANGLE + [3000, 41, -1, 5], {"out_of_vocabulary": 2, "coordinate": 2}),
        (TRIANGLE + [40, 40] + TRIANGLE[:4] + [0, 0], {"short_part": 1}),
        ([0, 0], {"short_part": 1}),
        ([], {"short_part": 1}),
        (TRIANGLE + [1100], {"incomplete": 1}),
        (TRIANGLE + [0], {}),
    ],
)
def test_malformed_points_are_counted(stream, counts):
    sequences = torch.tensor([stream], dtype=torch.int64)
    assert TASK.parse(sequences, None, VOCABULARY).malformed == [counts]


def test_samples_of_an_object_become_one_mask():
    other = [1300, 1300, 1700, 1300, 1700, 1700]
    sequences = torch.tensor([TRIANGLE, TRIANGLE, other, [0] * 6] + [[0] * 6] * 4 + [other] * 4 + [TRIANGLE] * 4)
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 1, 8, 8]])
    frames = [
        Frame(0, (50, 50), (640, 640), (0, 0), boxes[:1], None, torch.tensor([3]), torch.tensor([0.5])),
        Frame(1, (40, 80), (640, 640), (0, 0), boxes, None, torch.tensor([4, 5]), torch.tensor([0.25, 0.75])),
    ]
    processor = SimpleNamespace(vocabulary=VOCABULARY)
    first, second = TASK.results(sequences, {}, frames, processor)
    single = TASK.results(sequences[:1], {}, frames[:1], processor)[0]
    assert first["masks"].equal(single["masks"]) and first["rles"] == single["rles"]  # two of four are enough
    assert second["labels"].tolist() == [4, 5] and second["boxes"].equal(boxes)
    assert first["malformed"] == {"short_part": 1} and second["malformed"] == {}
    for result in (first, second):
        for mask, parts in zip(result["masks"].numpy(), result["polygons_xy"]):
            drawn = rasterize([[np.array(part) for part in parts]], mask.shape)
            assert mask.any() and (drawn.full() == mask).all()
    (strict,) = TASK.results(sequences[:4], {}, frames[:1], processor, ensemble_threshold=1.0)
    assert not strict["masks"].any() and strict["polygons_xy"] == [[]]
    kept = TASK.results(sequences, {}, frames, processor, threshold=0.5)
    assert [result["labels"].tolist() for result in kept] == [[3], [5]]
    assert kept[1]["masks"].equal(second["masks"][1:])
    with pytest.raises(ValueError, match="3 sequences do not belong to 2 x 2 boxes"):
        TASK.results(sequences[:3], {}, frames, processor)


def test_rows_belong_to_frames_objects_and_samples():
    def frames(*numbers):
        return [Frame(0, (1, 1), (1, 1), labels=torch.ones(number)) for number in numbers]

    assert rows_of_objects(8, frames(2, 1)).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert rows_of_objects(0, frames(0, 0)).shape == (2, 0, 0)
    assert rows_of_objects(0, []).shape == (0, 0, 0)
    for rows in (1, 3):
        with pytest.raises(ValueError, match="do not belong"):
            rows_of_objects(rows, frames(0) if rows == 1 else frames(2, 1))


def test_defaults_and_limits_come_from_the_configuration():
    config = SimpleNamespace(max_points_per_object=24, coord_vocab_shift=1000, quantization_bins=400)
    assert TASK.generation_settings(config) == {
        "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 0.8, "num_return_sequences": 8,
        "max_new_tokens": 48,
    }  # fmt: skip
    assert TASK.target_options(config) == {"max_points_per_object": 24}
    grammar = TASK.grammar(config)
    assert grammar.max_points == 24 and grammar.token_set(0) == (0, 40, *range(1000, 1400))
    assert TASK.grammar(config, max_points=5).max_points == 5
