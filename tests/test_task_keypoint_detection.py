"""Keypoints to sequences and back."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pix2seq_hf.task_base import Frame
from pix2seq_hf.task_keypoint_detection import (
    KeypointDetection,
    MaskingDraws,
    draw_masking,
    mask_inputs,
    replace_invisible,
    suppress_invisible,
    token_probabilities,
    triples_to_points,
    weighted_scores,
)
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary

TASK = KeypointDetection()
VOCABULARY = Pix2SeqVocabulary()
RECORD = {
    "image_id": 7,
    "boxes_yxyx": torch.tensor([[0.0, 0.25, 0.5, 1.0]]),
    "labels": torch.tensor([1]),
    "keypoints_yx": torch.tensor([[0.25, 0.5, -3, -3, 1.0, 0.0]]),
}
HAND = {"keypoint_names": [f"finger {number}" for number in range(5)], "keypoint_labels": [3]}


def test_sequences_of_one_record():
    options = {"num_keypoints": 3, "mask_inputs": False, "max_instances_per_image": 2, "eos_token_weight": 0.25}
    targets = TASK.targets(RECORD, VOCABULARY, **options)
    whole = [12, 1000, 1250, 1500, 1999, 101, 1250, 1500, 41, 41, 1999, 1000]
    assert targets.decoder_input_ids.tolist() == [whole[:-1], [0] * 11]
    assert targets.labels.tolist() == [whole[1:], [0] * 11]
    expected = torch.tensor([[0.0] * 5 + [1, 1, 0.1, 0.1, 1, 1], [0.25] * 11])
    assert targets.label_weights.equal(expected)


def test_masking_hides_a_share_of_what_is_read():
    options = {"num_keypoints": 17, "max_instances_per_image": 40}
    record = {**RECORD, "keypoints_yx": torch.rand(1, 34)}
    first, again, other = (
        TASK.targets(record, VOCABULARY, np.random.default_rng(seed), **options) for seed in (0, 0, 1)
    )
    plain = TASK.targets(record, VOCABULARY, mask_inputs=False, **options)
    assert first.decoder_input_ids.equal(again.decoder_input_ids) and first.labels.equal(plain.labels)
    assert not first.decoder_input_ids.equal(other.decoder_input_ids)
    changed = first.decoder_input_ids != plain.decoder_input_ids
    assert not changed[:, :6].any() and (first.decoder_input_ids[changed] == 41).all()
    ratio = draw_masking(np.random.default_rng(0), 40, 17).ratio
    assert abs(changed[:, 6:].float().mean() - ratio) < 0.05
    response = torch.tensor([1100, 1200, 1300, 1400])
    draws = MaskingDraws(0.5, torch.tensor([0.25, 0.5, 0.75]))
    assert mask_inputs(response, draws, VOCABULARY).tolist() == [41, 1200, 1300, 1400]
    with pytest.raises(ValueError, match="pass rng, or mask_inputs=False"):
        TASK.targets(record, VOCABULARY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints_yx": None}, "image 7 lacks keypoints_yx, which keypoint_detection needs"),
        ({"labels": [1, 1]}, "1 boxes, 2 labels and 1 rows of keypoints_yx"),
        ({"keypoints_yx": torch.zeros(1, 34)}, r"shape \(1, 34\), the model takes 3 points: \(objects, 6\)"),
    ],
)
def test_impossible_targets_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TASK.targets({**RECORD, **changes}, VOCABULARY, np.random.default_rng(0), num_keypoints=3)


places = st.one_of(st.none(), st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)))


@settings(deadline=None)
@given(st.sampled_from([1, 5, 17, 21]), st.sampled_from([2, 400, 1000]), st.integers(0, 3), st.data())
def test_a_record_returns_within_half_a_bin(num_keypoints, num_bins, objects, data):
    vocabulary = Pix2SeqVocabulary(quantization_bins=num_bins)
    rows = data.draw(st.lists(st.lists(places, min_size=num_keypoints, max_size=num_keypoints),
                              min_size=objects, max_size=objects))  # fmt: skip
    points = [[number for place in row for number in place or (-3.0, -3.0)] for row in rows]
    points = torch.tensor(points, dtype=torch.float32).reshape(objects, 2 * num_keypoints)
    boxes = torch.rand(objects, 4)
    record = {"boxes_yxyx": boxes, "labels": torch.full((objects,), 3), "keypoints_yx": points}
    targets = TASK.targets(record, vocabulary, np.random.default_rng(0), num_keypoints=num_keypoints,
                           max_instances_per_image=max(objects, 1))  # fmt: skip
    found = TASK.parse(targets.labels[:objects, 5:], None, vocabulary, num_keypoints=num_keypoints)
    assert found.points_yx.shape == (objects, 2 * num_keypoints) and found.malformed == [{}] * objects
    visible = [[place is not None for place in row] for row in rows]
    assert found.is_visible.tolist() == visible
    error = (found.points_yx - points).abs()
    assert not objects or error.max() <= 0.5 / (num_bins - 1) + 1e-6
    assert ((found.points_yx == -3) == (points == -3)).all()


int64 = st.one_of(st.integers(-50, 3100), st.sampled_from([0, 40, 41]), st.integers(-(2**63), 2**63 - 1))


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 14), st.booleans(), st.data())
def test_no_stream_raises(objects, length, with_scores, data):
    tokens = data.draw(st.lists(int64, min_size=objects * length, max_size=objects * length))
    sequences = torch.tensor(tokens, dtype=torch.int64).reshape(objects, length)
    output = {"token_scores": torch.rand(objects, length)} if with_scores else {}
    frames = [
        Frame(0, (20, 30), (64, 64), (3, 4), torch.rand(1, 4), torch.rand(1, 4), torch.tensor([3]), torch.ones(1))
        for _ in range(objects)
    ]
    results = TASK.results(sequences, output, frames, SimpleNamespace(vocabulary=VOCABULARY, **HAND))
    assert len(results) == objects
    for found in results:
        assert found["keypoints"].shape == (1, 5, 2) and found["keypoint_visible"].shape == (1, 5)
        assert found["scores"].isfinite().all() and found["keypoint_scores"].shape == (1, 5)


@pytest.mark.parametrize(
    ("stream", "counts"),
    [
        ([1100, 1200, 41, 41, 1000, 1999], {}),
        ([1100, 1200, 41, 1000, 1000, 41], {"half": 2}),
        ([1100, 101, 0, 0, 40, 40], {"coordinate": 3}),
        ([3000, 1200, -1, 41, 1000, 1999], {"out_of_vocabulary": 2, "half": 1}),
        ([1100, 1200, 1000], {"missing": 2}),
        ([1100, 1200, 41, 41, 1000, 1999, 0, 7, 8], {"after_end": 2}),
        ([], {"missing": 3}),
    ],
)
def test_malformed_keypoints_are_counted(stream, counts):
    sequences = torch.tensor([stream], dtype=torch.int64)
    assert TASK.parse(sequences, None, VOCABULARY, num_keypoints=3).malformed == [counts]


def test_an_invisible_coordinate_is_put_into_the_middle_of_the_box():
    tokens = torch.tensor([[41, 41, 1999, 41, 0, 1000]])
    found = TASK.parse(tokens, None, VOCABULARY, num_keypoints=3, boxes_yxyx=torch.tensor([[0.25, 0.0, 0.75, 0.5]]))
    assert found.points_yx.tolist() == [[0.5, 0.25, 1.0, 0.25, -1.0, 0.0]]
    assert found.is_visible.tolist() == [[False, False, False]]


def test_scores():
    tokens = torch.tensor([[1100, 1200, 0], [0, 0, 0], [1000, 41, 1000]])
    probabilities = torch.tensor([[0.5, 0.25, 0.9], [0.9, 0.9, 0.9], [1.0, 0.5, 0.75]])
    boxes = torch.tensor([0.8, 0.6, 0.4])
    assert weighted_scores(boxes, tokens, probabilities, 1.0, VOCABULARY).tolist() == [0.375, 0.0, 0.75]
    mixed = weighted_scores(boxes, tokens, probabilities, 0.25, VOCABULARY)
    assert mixed.tolist() == pytest.approx([0.25 * 0.375 + 0.6, 0.45, 0.25 * 0.75 + 0.3])
    samples = weighted_scores(boxes[:1], tokens, probabilities, 1.0, VOCABULARY)
    assert samples.tolist() == pytest.approx([0.375])  # one of three samples is nothing but padding: counts as 0
    found = TASK.parse(tokens, probabilities, VOCABULARY, num_keypoints=1, labels=torch.tensor([1, 1, 2]))
    assert found.scores.tolist() == [0.375, 0.0, 0.0]  # label 2 has no keypoints
    hands = TASK.parse(tokens, probabilities, VOCABULARY, num_keypoints=1, labels=torch.tensor([1, 1, 2]),
                       keypoint_labels=[2], box_scores=boxes, points_score_weight=0.0)  # fmt: skip
    assert hands.scores.tolist() == pytest.approx([0.0, 0.0, 0.4])
    assert hands.point_scores[:, 0].tolist() == pytest.approx([0.375, 0.9, 0.75])


def test_the_invisible_token_is_suppressed():
    logits = torch.randn(2, 3, 3000)
    logits[..., 41] = 50
    suppressed = suppress_invisible(logits, VOCABULARY)
    assert (logits[..., 41] == 50).all()  # the model goes on reading from its own logits
    assert (suppressed.argmax(-1) != 41).all() and suppressed[..., 42].equal(logits[..., 42])
    tokens = torch.tensor([[41, 1000, 0], [1, 41, 41]])
    assert replace_invisible(tokens, torch.full((2, 3), 7), VOCABULARY).tolist() == [[7, 1000, 0], [1, 7, 7]]
    assert token_probabilities(suppressed, torch.full((2, 3), 41)).tolist() == [[0.0] * 3] * 2
    assert (token_probabilities(logits, torch.full((2, 3), 41)) > 0.99).all()


def test_keypoints_of_annotations():
    points = triples_to_points([10, 20, 2, 30, 40, 1, 50, 60, 0], 3)
    assert points.tolist() == [20, 10, 40, 30, -3, -3]
    for wrong in ([1, 2, 2], [1, 2, 2] * 4, [1, 2, float("nan")] * 3):
        with pytest.raises(ValueError, match="keypoints must be 3 times x, y, v, got"):
            triples_to_points(wrong, 3)


def test_results_are_pixels_of_the_whole_picture():
    sequences = torch.tensor([[1000, 1000, 1999, 1999, 41, 41, 1999, 1000, 1000, 1999]])
    box = torch.tensor([[100.0, 50, 140, 90]])
    frame = Frame(
        0, (64, 32), (128, 128), (40, 90), box, torch.tensor([[0.0, 0, 1, 0.5]]), torch.tensor([3]), torch.ones(1)
    )
    scores = torch.tensor([[0.5] * 4 + [0.0] * 2 + [1.0] * 4])
    hidden = torch.zeros(1, 10, dtype=torch.bool)
    hidden[0, 3] = True
    output = {"token_scores": scores, "is_invisible": hidden}
    (found,) = TASK.results(sequences, output, [frame], SimpleNamespace(vocabulary=VOCABULARY, **HAND))
    # The cut fills the left half of the input: 64 of 128 columns stand for its 32 pixels.
    assert found["keypoints"].tolist() == [[[90, 40], [154, 104], [106, 72], [90, 104], [154, 40]]]
    assert found["keypoint_visible"].tolist() == [[True, False, False, True, True]]
    assert found["keypoint_scores"].tolist() == [[0.5, 0.5, 0.0, 1.0, 1.0]]
    assert found["scores"].tolist() == pytest.approx([0.6]) and found["boxes"].equal(box)
    (dropped,) = TASK.results(sequences, output, [frame], SimpleNamespace(vocabulary=VOCABULARY, **HAND), threshold=0.7)
    assert dropped["keypoints"].shape == (0, 5, 2) and dropped["labels"].shape == (0,)


def test_defaults_and_limits_come_from_the_configuration():
    config = SimpleNamespace(coord_vocab_shift=1000, quantization_bins=400, **HAND)
    assert TASK.generation_settings(config) == {
        "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 0.1, "max_new_tokens": 10,
    }  # fmt: skip
    assert TASK.target_options(config) == {"num_keypoints": 5}
    assert TASK.grammar(config).token_set(0) == (41, *range(1000, 1400))
