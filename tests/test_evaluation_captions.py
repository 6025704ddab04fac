"""Scores of captions: by hand, against pycocoevalcap, with and without Java, and bad input."""

import logging
import math
import os
import random
import time
from pathlib import Path

import pytest

from pix2seq_hf.evaluation.caption_scores import bleu, cider, split_words
from pix2seq_hf.evaluation.captions import CAPTION_METRICS, SIMPLE_CAPTION_METRICS, evaluate_captions
from pix2seq_hf.evaluation.coco_captions import SPICE_MODELS, missing_tools, score_like_papers, split_like_papers

needs_java = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))


def each(*texts):
    return [text.split() for text in texts]


@pytest.fixture
def truth():
    """No `info`, no `categories`: what a captions file needs."""
    captions = [
        (5, "A man rides a brown horse."),
        (5, "a man on a horse in a green field"),
        (6, "Two dogs play with a red ball."),
        (6, "two dogs chase a ball"),
        (7, "a bus stands at the station"),
    ]
    return {
        "images": [{"id": 5}, {"id": 6}, {"id": 7}],
        "annotations": [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(captions)],
    }


def write(*pairs):
    return [{"image_id": image_id, "caption": caption} for image_id, caption in pairs]


PERFECT = write((5, "A man rides a brown horse."), (6, "two dogs chase a ball"), (7, "a bus stands at the station"))


class TestOwnScores:
    def test_words(self):
        assert split_words(" A dog's T-shirt, isn't it?  Café_3.5 -- ") == [
            "a", "dog's", "t-shirt", "isn't", "it", "café", "3", "5",
        ]  # fmt: skip
        assert split_words(" ... ") == []

    def test_bleu_counts_a_word_no_more_often_than_a_reference(self):
        references = [each("the cat is on the mat", "there is a cat on the mat")]
        assert bleu(each("the the the the the the the"), references) == pytest.approx([2 / 7, 0, 0, 0])
        # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples: "on the mat".
        scores = bleu(each("the cat was on the mat"), references)
        assert scores == pytest.approx([5 / 6, math.sqrt(5 / 6 * 3 / 5), (5 / 6 * 3 / 5 / 4) ** (1 / 3), 0])

    def test_bleu_of_short_captions(self):
        assert bleu(each("a dog"), [each("a dog runs fast")]) == pytest.approx([math.exp(-1), math.exp(-1), 0, 0])
        # The set counts as a whole: 4 + 0 words against 4 + 2.
        scores = bleu(each("a dog runs fast", ""), [each("a dog runs fast"), each("a cat")])
        assert scores == pytest.approx([math.exp(1 - 6 / 4)] * 4)
        assert bleu(each(""), [each("a")]) == [0, 0, 0, 0]

    def test_cider(self):
        assert cider(each("a b", "c d"), [each("a b"), each("c d")]) == pytest.approx(5)  # two of four orders have runs
        assert cider(each("a b c d", "e f g h"), [each("a b c d"), each("e f g h")]) == pytest.approx(10)
        assert cider(each("a", "a"), [each("a"), each("a")]) == 0  # a word in every picture says nothing
        assert cider(each("a b c d"), [each("a b c d")]) == 0
        # The first differs by one pair of words in length; the second is nowhere near.
        expected = (2.5 * math.exp(-1 / 72) + 0) / 2
        assert cider(each("a", "x y"), [each("a a"), each("c d")]) == pytest.approx(expected)
        assert cider([], []) == 0

    def test_the_scores_are_those_of_pycocoevalcap_for_the_same_words(self):
        pytest.importorskip("pycocoevalcap")
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider

        rng, words = random.Random(0), [f"w{i}" for i in range(12)]

        def sentence():
            return " ".join(rng.choices(words, weights=range(12, 0, -1), k=rng.randint(1, 12)))

        theirs = {picture: [sentence() for _ in range(rng.randint(1, 5))] for picture in range(40)}
        # The first reference, with some words exchanged, and its last ones left out.
        ours = {
            picture: [" ".join(word if rng.random() < 0.8 else "w0" for word in texts[0].split()[:10])]
            for picture, texts in theirs.items()
        }
        ours[0] = [""]
        captions = [each(*ours[picture])[0] for picture in ours]
        references = [each(*theirs[picture]) for picture in ours]
        expected, _ = Bleu(4).compute_score(theirs, ours, verbose=0)
        assert min(expected) > 0.05
        assert bleu(captions, references) == pytest.approx(expected, abs=1e-8)
        assert cider(captions, references) == pytest.approx(float(Cider().compute_score(theirs, ours)[0]), abs=1e-9)


class TestWithoutJava:
    def evaluate(self, truth, results, **options):
        return evaluate_captions(truth, results, tokenizer="simple", **options)

    def test_perfect(self, truth):
        numbers = self.evaluate(truth, PERFECT)
        assert list(numbers) == [*SIMPLE_CAPTION_METRICS, "reproduced", "num_captions", "num_missing"]
        assert [numbers[f"BLEU_{order}_simple"] for order in range(1, 5)] == pytest.approx([1] * 4)
        assert numbers["CIDEr_simple"] > 5 and numbers["reproduced"] == 3

    def test_a_missing_caption_costs(self, truth):
        numbers = self.evaluate(truth, PERFECT[:2])
        assert numbers["num_missing"] == 1 and numbers["num_captions"] == 2
        assert numbers == {
            **self.evaluate(truth, [*PERFECT[:2], *write((7, " "))]),
            "num_missing": 1,
            "num_captions": 2,
        }
        assert numbers["BLEU_1_simple"] < 0.8
        only = self.evaluate(truth, PERFECT, image_ids=[5, 6])
        assert only["num_missing"] == 0 and only["BLEU_4_simple"] == pytest.approx(1) and only["num_captions"] == 2

    def test_nothing_to_compare(self, truth):
        none = self.evaluate(truth, [])
        assert {none[name] for name in SIMPLE_CAPTION_METRICS} == {0} and none["num_missing"] == 3
        empty = self.evaluate({"annotations": []}, [])
        assert {empty[name] for name in SIMPLE_CAPTION_METRICS} == {-1} and empty["num_missing"] == 0

    def test_bad_input(self, truth):
        with pytest.raises(ValueError, match=r"caption for picture 9, which the ground truth does not list"):
            self.evaluate(truth, write((5, "a"), (9, "a")))
        with pytest.raises(ValueError, match="picture 5 has two captions"):
            self.evaluate(truth, write((5, "a"), (5, "b")))
        with pytest.raises(ValueError, match=r"result 0 has no 'caption' \(it has image_id, bbox\)"):
            self.evaluate(truth, [{"image_id": 5, "bbox": [0, 0, 1, 1]}])
        with pytest.raises(ValueError, match=r"annotation 4 of picture 7 has no 'caption' .* another task"):
            del truth["annotations"][4]["caption"]
            self.evaluate(truth, PERFECT)
        with pytest.raises(ValueError, match="no list 'annotations'"):
            self.evaluate({"images": []}, [])
        truth["images"].append({"id": 8})
        del truth["annotations"][4]
        with pytest.raises(ValueError, match="picture 8 has no caption to compare with"):
            self.evaluate(truth, write((8, "a")))

    def test_one_line_says_that_java_is_missing(self, truth, monkeypatch, tmp_path, caplog):
        pytest.importorskip("pycocoevalcap")
        monkeypatch.setenv("PATH", str(tmp_path))
        with caplog.at_level(logging.WARNING, logger="pix2seq_hf"):
            assert set(SIMPLE_CAPTION_METRICS) < set(evaluate_captions(truth, PERFECT))
        assert len(caplog.messages) == 1 and "Java is not installed" in caplog.messages[0]
        assert "\n" not in caplog.messages[0]
        with pytest.raises(ValueError, match=r"^Java is not installed"):
            evaluate_captions(truth, PERFECT, tokenizer="ptb")
        with pytest.raises(ValueError, match="SPICE needs the tokenizer 'ptb'; Java is not installed"):
            evaluate_captions(truth, PERFECT, use_spice=True)

    def test_wrong_options(self, truth):
        with pytest.raises(ValueError, match="unknown tokenizer 'nltk' of captions: known are ptb, simple"):
            evaluate_captions(truth, PERFECT, tokenizer="nltk")
        with pytest.raises(ValueError, match="SPICE needs the tokenizer 'ptb'"):
            evaluate_captions(truth, PERFECT, tokenizer="simple", use_spice=True)


class TestWithJava:
    @needs_java
    def test_words_are_those_of_papers(self):
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        captions = ["A dog's T-shirt, isn't it?", "", "(Two) cats -- 3.5 feet.", "a ||| b", "...", "x"]
        split = split_like_papers(captions)
        assert split == ["a dog 's t-shirt is n't it", "", "-lrb- two -rrb- cats 3.5 feet", "a | | | b", "", "x"]
        folder = os.path.dirname(os.path.abspath(__import__(PTBTokenizer.__module__, fromlist=["_"]).__file__))
        if os.access(folder, os.W_OK):
            expected = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
            assert split == [expected[i][0] for i in range(len(captions))]
        assert split_like_papers(["Zwei Cafés", "naïve"]) == ["zwei cafés", "naïve"]

    @needs_java
    @pytest.mark.slow
    def test_scores(self, truth):
        """An empty caption is among them, and one of several lines."""
        results = write((5, "a man rides\u2028a horse\non a field"), (6, ""), (7, "a bus stands at the station"))
        numbers = evaluate_captions(truth, results)
        assert list(numbers) == [*CAPTION_METRICS, "reproduced", "num_captions", "num_missing"]
        simple = evaluate_captions(truth, results, tokenizer="simple")  # these captions split alike
        for name in ("BLEU_1", "BLEU_4", "CIDEr"):
            assert numbers[name] == pytest.approx(simple[f"{name}_simple"], abs=1e-6) and numbers[name] > 0
        assert 0.1 < numbers["METEOR"] < 0.9 and 0.3 < numbers["ROUGE_L"] < 0.9
        perfect = evaluate_captions(truth, PERFECT)
        assert [perfect[name] for name in ("BLEU_4", "METEOR", "ROUGE_L")] == pytest.approx([1] * 3)
        none = evaluate_captions(truth, [])
        assert {none[name] for name in CAPTION_METRICS} == {0}

    def test_java_that_fails(self, monkeypatch, tmp_path):
        pytest.importorskip("pycocoevalcap")
        (tmp_path / "java").write_text("#!/bin/sh\necho no memory left >&2\nexit 1\n")
        (tmp_path / "java").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        with pytest.raises(OSError, match="gave 0 lines for 1 captions: no memory left"):
            split_like_papers(["a"])
        with pytest.raises(OSError, match="METEOR's Java program failed"):
            score_like_papers({1: "a dog"}, {1: ["a dog"]})

    @needs_java
    def test_spice_without_a_network(self, truth, monkeypatch):
        """One line with the remedy, before the other scores take their time; nothing listens at the address."""
        from pycocoevalcap.spice import get_stanford_models

        if any((Path(get_stanford_models.__file__).parent / "lib" / name).is_file() for name in SPICE_MODELS):
            pytest.skip("the models of SPICE are there")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        start = time.monotonic()
        with pytest.raises(OSError, match=r"^the models of SPICE could not be loaded .*corenlp.*; or leave SPICE out$"):
            evaluate_captions(truth, PERFECT, use_spice=True)
        assert time.monotonic() - start < 5
