"""Detection records to sequences and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pix2seq_hf.task_base import Targets, resize_to, shift_right
from pix2seq_hf.task_object_detection import (
    CLASS_LABEL_CORRUPTIONS,
    CorruptionDraws,
    ObjectDetection,
    coco_results,
    corrupt_class_tokens,
    draw_corruption,
    rescale_boxes,
)
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary

TASK = ObjectDetection()
VOCABULARY = Pix2SeqVocabulary()
RECORD = {
    "image_id": 7,
    "boxes_yxyx": torch.tensor([[0.0, 0.25, 0.5, 1.0], [0.1, 0.1, 0.3, 0.2]]),
    "labels": torch.tensor([18, -70]),
}


def test_sequence_of_one_record():
    targets = TASK.targets(
        RECORD, VOCABULARY, max_instances_per_image=3, class_label_corruption="none", noise_bbox_weight=0.5
    )
    assert targets.decoder_input_ids.tolist() == [
        10, 1000, 1250, 1500, 1999, 118, 1100, 1100, 1300, 1200, 30, 0, 0, 0, 0,
    ]  # fmt: skip
    assert targets.labels.tolist() == [1000, 1250, 1500, 1999, 118, 1100, 1100, 1300, 1200, 30, 0, 0, 0, 0, 0]
    expected = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0, 0, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert targets.label_weights.equal(expected)


def test_a_batch_is_a_stack():
    rows = [
        TASK.targets(RECORD, VOCABULARY, np.random.default_rng(seed), max_instances_per_image=4).as_dict()
        for seed in range(3)
    ]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert set(batch) == {"decoder_input_ids", "labels", "label_weights"}
    assert all(value.shape == (3, 20) for value in batch.values())


def test_records_of_numpy_arrays_and_without_objects():
    record = {"boxes_yxyx": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    targets = TASK.targets(record, VOCABULARY, np.random.default_rng(0), max_instances_per_image=2)
    assert targets.decoder_input_ids.tolist() == [10] + [0] * 9
    assert targets.label_weights.equal(torch.full((10,), 0.1))


@pytest.mark.parametrize("mode", CLASS_LABEL_CORRUPTIONS)
def test_corruption_touches_only_what_is_read(mode):
    record = {"boxes_yxyx": torch.rand(40, 4), "labels": torch.arange(1, 41)}
    options = {"max_instances_per_image": 50, "class_label_corruption": mode}
    targets = TASK.targets(record, VOCABULARY, np.random.default_rng(1), **options)
    again = TASK.targets(record, VOCABULARY, np.random.default_rng(1), **options)
    other = TASK.targets(record, VOCABULARY, np.random.default_rng(2), **options)
    plain = TASK.targets(record, VOCABULARY, **{**options, "class_label_corruption": "none"})
    assert targets.labels.equal(plain.labels)
    assert targets.decoder_input_ids.equal(again.decoder_input_ids)
    assert targets.decoder_input_ids.equal(other.decoder_input_ids) == (mode == "none")
    differs = targets.decoder_input_ids != plain.decoder_input_ids
    positions = differs.nonzero()[:, 0]
    assert (positions % 5 == 0).all() and (positions <= 200).all()
    read = targets.decoder_input_ids[5:201:5]
    fakes, reals = (read == 30).sum().item(), (read == torch.arange(101, 141)).sum().item()
    assert {
        "none": fakes == 0 and reals == 40,
        "rand_cls": fakes == 0 and reals < 5,
        "rand_n_fake_cls": 10 <= fakes <= 30 and reals < 5,
        "real_n_fake_cls": 10 <= fakes <= 30 and reals == 40 - fakes,
        "real_n_rand_n_fake_cls": 3 <= fakes <= 20 and 10 <= reals <= 30,
    }[mode]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [101, 102, 30, 0]),
        ("rand_cls", [105, 106, 107, 0]),
        ("rand_n_fake_cls", [105, 30, 107, 0]),  # random above one half
        ("real_n_fake_cls", [30, 102, 30, 0]),  # true above one half
        ("real_n_rand_n_fake_cls", [105, 30, 30, 0]),  # true above one half, for the third (a noise box) only
    ],
)
def test_corruption_with_given_draws(mode, expected):
    draws = CorruptionDraws(
        class_offset=torch.tensor([5, 6, 7, 8]),
        rand_n_fake=torch.tensor([0.75, 0.5, 0.75, 0.75]),
        real_n_fake=torch.tensor([0.25, 0.75, 0.5, 0.75]),
        real_n_rand_n_fake=torch.tensor([0.5, 0.25, 0.75, 0.75]),
    )
    tokens = torch.tensor([[101], [102], [30], [0]])
    assert corrupt_class_tokens(tokens, draws, mode, VOCABULARY)[:, 0].tolist() == expected


def test_every_corruption_draws_the_same_numbers():
    rng = np.random.default_rng(3)
    draws = draw_corruption(rng, 2000, VOCABULARY)
    assert draws.class_offset.min() >= 0 and 850 < draws.class_offset.max() < 900
    assert all(0 <= draw.min() and draw.max() < 1 for draw in draws[1:])
    after = rng.random()
    states = []
    for mode in CLASS_LABEL_CORRUPTIONS[1:]:
        rng = np.random.default_rng(3)
        TASK.targets(RECORD, VOCABULARY, rng, max_instances_per_image=2000, class_label_corruption=mode)
        states.append(rng.random())
    assert states == [after] * 4


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"image_id": 7, "labels": [1]}, {}, "image 7 lacks boxes_yxyx, which object_detection needs"),
        ({"image_id": 7, "boxes_yxyx": [[0, 0, 1, 1]], "labels": [1, 2]}, {}, "image 7 has 1 boxes but 2 labels"),
        ({"boxes_yxyx": [[0, 0, 1, 1]], "labels": [900]}, {}, "label 900"),
        (RECORD, {"rng": None}, "pass rng"),
        (RECORD, {"class_label_corruption": "fake"}, "unknown class_label_corruption 'fake'"),
        (RECORD, {"max_seq_len": 499}, "500 tokens does not fit into max_seq_len 499"),
    ],
)
def test_impossible_targets_are_refused(record, options, message):
    with pytest.raises(ValueError, match=message):
        TASK.targets(record, VOCABULARY, **{"rng": np.random.default_rng(0), **options})


boxes = st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), min_size=1, max_size=6)


@settings(deadline=None)
@given(boxes, st.sampled_from([2, 64, 1000, 2000]), st.data())
def test_a_record_returns_within_half_a_bin(boxes_yxyx, num_bins, data):
    vocabulary = Pix2SeqVocabulary(quantization_bins=num_bins)
    size = len(boxes_yxyx)
    labels = data.draw(st.lists(st.integers(1, 899), min_size=size, max_size=size))
    record = {"boxes_yxyx": torch.tensor(boxes_yxyx), "labels": torch.tensor(labels)}
    targets = TASK.targets(record, vocabulary, max_instances_per_image=8, class_label_corruption="none")
    found = TASK.parse(targets.labels[None], None, vocabulary)
    assert found.labels[0].tolist() == labels + [0] * (8 - size)
    assert found.scores[0].tolist() == [1.0] * size + [0.0] * (8 - size)
    error = (found.boxes_yxyx[0, :size] - record["boxes_yxyx"]).abs().max().item()
    assert error <= 0.5 / (num_bins - 1) + 1e-6
    assert set(found.malformed[0]) <= {"inverted"}


int64 = st.one_of(st.integers(-50, 3100), st.integers(-(2**63), 2**63 - 1))


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 23), st.booleans(), st.data())
def test_no_stream_raises(batch, length, with_scores, data):
    tokens = data.draw(st.lists(int64, min_size=batch * length, max_size=batch * length))
    sequences = torch.tensor(tokens, dtype=torch.int64).reshape(batch, length)
    scores = None
    if with_scores:  # of any length, as if generation had stopped early or late
        slots = data.draw(st.integers(0, 6))
        scores = torch.ones(batch, slots, dtype=torch.int64), torch.rand(batch, slots)
    found = TASK.parse(sequences, scores, VOCABULARY)
    assert found.labels.shape == found.scores.shape == (batch, length // 5)
    assert found.boxes_yxyx.shape == (batch, length // 5, 4)
    assert ((found.boxes_yxyx >= 0) & (found.boxes_yxyx <= 1)).all()
    assert ((found.labels >= 0) & (found.labels <= 899)).all()
    assert len(found.malformed) == batch
    assert all(0 < count <= max(length // 5, 1) for row in found.malformed for count in row.values())


GOOD = [1100, 1100, 1200, 1200, 101]


@pytest.mark.parametrize(
    ("stream", "counts"),
    [
        (GOOD + [0] * 10, {}),
        (GOOD[:4] + [30], {}),  # a noise box is a prediction like any other
        ([1100, 101, 1200, 1200, 101] + GOOD, {"coordinate": 1}),
        ([1100, 2000, 1200, 0, 101] + GOOD, {"coordinate": 1}),
        (GOOD[:4] + [1500] + GOOD[:4] + [0] + GOOD[:4] + [100], {"class": 3}),
        ([1200, 1100, 1100, 1200, 101] + [1100, 1200, 1200, 1100, 101], {"inverted": 2}),
        ([1100, 1100, 1100, 1100, 101], {}),  # empty, but not inverted
        (GOOD + [1100, 1100], {"incomplete": 1}),
        (GOOD + [0, 0], {}),
        ([-1, 1100, 1200, 1200, 101] + GOOD[:4] + [3000], {"out_of_vocabulary": 2}),
        ([3000, 5, 1200, 1200, 101], {"out_of_vocabulary": 1, "coordinate": 1}),
        ([], {}),
    ],
)
def test_malformed_slots_are_counted(stream, counts):
    sequences = torch.tensor([stream], dtype=torch.int64)
    assert TASK.parse(sequences, None, VOCABULARY).malformed == [counts]


def test_recorded_classes_replace_the_sampled_ones():
    sequences = torch.tensor([GOOD + GOOD[:4] + [30]])
    scores = torch.tensor([[5, 6]]), torch.tensor([[0.75, 0.125]])
    found = TASK.parse(sequences, scores, VOCABULARY)
    assert found.labels.tolist() == [[5, 6]] and found.scores.tolist() == [[0.75, 0.125]]
    sampled = TASK.parse(sequences, None, VOCABULARY)
    assert sampled.labels.tolist() == [[1, 0]] and sampled.scores.tolist() == [[1.0, 0.0]]


def test_boxes_return_to_the_original_picture():
    boxes_yxyx = torch.tensor([[[0.0, 0.0, 0.5, 0.75]], [[0.1, 0.2, 0.3, 0.4]]])
    pixels = rescale_boxes(
        boxes_yxyx, torch.tensor([64, 64]), torch.tensor([[32, 64], [64, 64]]), torch.tensor([[100, 200], [10, 10]])
    )
    assert torch.allclose(pixels, torch.tensor([[[0.0, 0.0, 100.0, 150.0]], [[1.0, 2.0, 3.0, 4.0]]]))


def test_coco_results_leave_out_what_has_no_class():
    boxes_yxyx = torch.tensor([[1.0, 2.0, 11.0, 22.0], [0.0, 0.0, 1.0, 1.0]])
    found = coco_results(9, torch.tensor([18, 0]), torch.tensor([0.5, 0.9]), boxes_yxyx)
    assert found == [{"image_id": 9, "category_id": 18, "bbox": [2.0, 1.0, 20.0, 10.0], "score": 0.5}]


def test_shift_right_and_resize_work_on_any_rank():
    prompt, response = torch.ones(2, 3, 2, dtype=torch.long), torch.full((2, 3, 4), 5)
    inputs, targets = shift_right(prompt, response, response, 6)
    assert inputs[1, 2].tolist() == [1, 1, 5, 5, 5, 5] and targets[1, 2].tolist() == [1, 5, 5, 5, 5, 0]
    assert resize_to(torch.ones(2, 3), 4, dim=1).tolist() == [[1, 1, 1, 0]] * 2
    assert resize_to(torch.ones(2, 3), 1, dim=0).shape == (1, 3)
    assert isinstance(TASK.targets(RECORD, VOCABULARY, np.random.default_rng(0)), Targets)
