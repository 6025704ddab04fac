"""The vocabulary: which token means what, and the way between numbers and tokens."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pix2seq_hf.tokenization_pix2seq import (
    FAKE_CLASS_LABEL,
    Pix2SeqVocabulary,
    class_labels_and_scores,
    dequantize,
    offset_points,
    preserve_reserved,
    quantize,
    scale_points,
    swap_yx,
)

VOCABULARY = Pix2SeqVocabulary()


def test_quantize_rounds_halves_to_even_and_clips():
    points = torch.tensor([0.0, 0.125, 0.375, 0.625, 1.0, -0.3, 7.0])  # times 4: 0, 0.5, 1.5, 2.5, 4
    assert quantize(points, 5).tolist() == [0, 0, 2, 2, 4, 0, 4]
    assert quantize(points, 5).dtype == torch.int64


def test_quantize_survives_numbers_that_no_integer_holds():
    points = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38])
    assert quantize(points, 1000).tolist() == [0, 999, 0, 999]


def test_dequantize_does_not_clip():
    assert dequantize(torch.tensor([-5, 0, 2, 4, 8]), 5).tolist() == [-1.25, 0.0, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("function", [quantize, dequantize])
def test_one_bin_is_refused(function):
    with pytest.raises(ValueError, match="at least 2, got 1"):
        function(torch.zeros(1, dtype=torch.long), 1)


@given(st.floats(0, 1, width=32), st.integers(2, 2000))
def test_a_coordinate_returns_within_half_a_bin(coordinate, num_bins):
    back = dequantize(quantize(torch.tensor(coordinate), num_bins), num_bins).item()
    assert abs(back - coordinate) <= 0.5 / (num_bins - 1) + 1e-6


@given(st.integers(2, 4000), st.data())
def test_a_bin_returns_exactly(num_bins, data):
    token = data.draw(st.integers(0, num_bins - 1))
    assert quantize(dequantize(torch.tensor(token), num_bins), num_bins).item() == token


def test_points_keep_reserved_numbers():
    points = torch.tensor([0.0, 1.0, -1.0, -2.0, -3.0, 0.5])
    tokens = VOCABULARY.encode_points(points)
    assert tokens.tolist() == [1000, 1999, 0, 40, 41, 1500]
    back = VOCABULARY.decode_points(tokens)
    assert back[:5].equal(points[:5]) and abs(back[5] - 0.5) < 6e-4


def test_geometry_keeps_reserved_numbers():
    points = torch.tensor([[0.5, -2.0, -3.0, 0.25]])
    assert scale_points(points, torch.tensor([10.0, 100.0])).tolist() == [[5.0, -2.0, -3.0, 25.0]]
    assert offset_points(points, torch.tensor([1, 2])).tolist() == [[1.5, -2.0, -3.0, 2.25]]
    assert preserve_reserved(torch.zeros(1, 4), points).tolist() == [[0.0, -2.0, -3.0, 0.0]]
    assert swap_yx(points).tolist() == [[-2.0, 0.5, 0.25, -3.0]]


def test_labels_and_class_tokens():
    labels = torch.tensor([0, 1, 90, 899, FAKE_CLASS_LABEL])
    assert VOCABULARY.encode_labels(labels).tolist() == [0, 101, 190, 999, 30]
    tokens = torch.tensor([0, 30, 99, 100, 101, 999, 1000, -4, 10**12])
    assert VOCABULARY.decode_labels(tokens).tolist() == [0, 0, 0, 0, 1, 899, 0, 0, 0]


def test_noise_boxes_have_the_fake_token_whatever_the_shifts():
    vocabulary = Pix2SeqVocabulary(
        vocab_size=400, quantization_bins=100, base_vocab_shift=50, coord_vocab_shift=200, text_vocab_shift=300
    )
    assert vocabulary.encode_labels(torch.tensor([0, 1, 149, FAKE_CLASS_LABEL])).tolist() == [0, 51, 199, 30]


@pytest.mark.parametrize("label", [900, -1, -69])
def test_a_label_without_a_token_is_refused(label):
    with pytest.raises(ValueError, match=rf"label {label} .* from 1 to 899"):
        VOCABULARY.encode_labels(torch.tensor([1, label]))


def test_boxes_are_clipped_and_not_sorted():
    tokens = torch.tensor([1999, 2500, 1000, 7])
    assert VOCABULARY.decode_boxes(tokens).tolist() == [1.0, 1.0, 0.0, 0.0]
    extremes = torch.tensor([-(2**63), 2**63 - 1])
    assert VOCABULARY.decode_boxes(extremes).tolist() == [0.0, 1.0]


class TestClassRule:
    """Softmax over all tokens, best class token, lowest on ties, token 0 when nothing is left."""

    def logits(self, **at):
        logits = torch.zeros(3000)
        for token, value in at.items():
            logits[int(token[1:])] = value
        return logits

    def test_the_best_class_wins_though_a_coordinate_is_better(self):
        logits = self.logits(t1500=12.0, t117=10.0, t30=11.0)
        label, score = VOCABULARY.class_labels_and_scores(logits)
        assert label.item() == 17
        assert score.item() == pytest.approx(torch.softmax(logits.double(), -1)[117].item(), abs=1e-6)

    def test_the_lowest_of_equals_wins(self):
        assert VOCABULARY.class_labels_and_scores(self.logits(t150=5.0, t140=5.0, t999=5.0))[0].item() == 40
        assert VOCABULARY.class_labels_and_scores(torch.zeros(3000))[0].item() == 0  # token 100

    def test_token_0_wins_when_all_classes_underflow(self):
        logits = self.logits(t1500=300.0, t0=299.0)
        label, score = VOCABULARY.class_labels_and_scores(logits)
        assert label.item() == 0
        assert score.item() == pytest.approx(1 / (1 + torch.e), abs=1e-6)

    def test_shapes_and_low_precision(self):
        logits = torch.randn(2, 3, 400, generator=torch.Generator().manual_seed(0)).bfloat16()
        labels, scores = class_labels_and_scores(logits, 100, 200)
        assert labels.shape == scores.shape == (2, 3)
        assert labels.dtype == torch.int64 and scores.dtype == torch.float32
        expected = torch.softmax(logits.float(), -1)[..., 100:200].max(-1)
        assert labels.equal(expected.indices) and scores.equal(expected.values)

    def test_suppressed_and_broken_logits_do_not_raise(self):
        label, score = VOCABULARY.class_labels_and_scores(torch.full((3000,), float("-inf")).index_fill_(
            0, torch.tensor([105]), 0.0
        ))  # fmt: skip
        assert (label.item(), score.item()) == (5, 1.0)
        VOCABULARY.class_labels_and_scores(torch.full((3000,), float("nan")))


class TestValidation:
    @pytest.mark.parametrize(
        ("numbers", "message"),
        [
            ({"quantization_bins": 1}, "at least 2, got 1"),
            ({"base_vocab_shift": 41}, "base_vocab_shift 41 overlaps the reserved tokens 0 to 41"),
            ({"coord_vocab_shift": 101}, "coord_vocab_shift 101 .* base_vocab_shift 100"),
            ({"vocab_size": 1999}, "1000 to 1999 do not fit into vocab_size 1999"),
            ({"quantization_bins": 2001, "vocab_size": 5000}, "1000 to 3000 overlap .* text_vocab_shift 3000"),
            ({"id2label": {900: "x"}}, "label id 900 .* from 1 to 899"),
            ({"id2label": {-1: "x"}}, "label id -1 .* from 1 to 899"),
            ({"id2label": {0: "cat", 1: "dog"}}, "label id 0 .'cat'. means padding"),
            ({"id2label": {n: f"c{n}" for n in range(1, 901)}}, "900 classes do not fit: .* room for 899"),
        ],
    )
    def test_impossible_numbers_are_refused(self, numbers, message):
        with pytest.raises(ValueError, match=message) as error:
            Pix2SeqVocabulary(**numbers)
        assert "\n" not in str(error.value)

    def test_the_largest_possible_numbers_are_taken(self):
        vocabulary = Pix2SeqVocabulary(
            quantization_bins=2000, id2label={str(n): f"class {n}" for n in range(1, 900)}
        )  # fmt: skip
        assert vocabulary.end_of_coordinates == vocabulary.vocab_size == 3000
        assert vocabulary.max_label == 899 and vocabulary.id2label[899] == "class 899"

    def test_a_vocabulary_may_end_before_the_text_tokens(self):
        assert Pix2SeqVocabulary(vocab_size=2000).end_of_coordinates == 2000

    def test_it_is_read_from_a_configuration(self):
        config = SimpleNamespace(
            vocab_size=35000, quantization_bins=1000, base_vocab_shift=100, coord_vocab_shift=1000,
            text_vocab_shift=3000, id2label={0: "LABEL_0", 1: "LABEL_1"},
        )  # fmt: skip
        vocabulary = Pix2SeqVocabulary.from_config(config)
        assert vocabulary.vocab_size == 35000
        assert vocabulary.id2label is None  # the stock names of transformers name nothing

    def test_it_is_immutable(self):
        with pytest.raises(AttributeError):
            VOCABULARY.vocab_size = 7
        assert hash(VOCABULARY) == hash(Pix2SeqVocabulary())
