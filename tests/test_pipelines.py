"""`pipeline("object-detection")` on a saved folder, as a user calls it."""

import logging

import pytest
import torch
import transformers
from transformers import pipeline

from tiny_model import NAMES, noise_picture, save_tiny_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    save_tiny_detector(folder, favourite_label=18)
    return str(folder)


@pytest.fixture
def messages(monkeypatch):
    """What transformers logs from warnings upwards; asking for input fails."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("asked for input"))
    yield records
    logger.removeHandler(handler)


@pytest.mark.filterwarnings("error")
def test_quiet(folder, messages):
    assert transformers.logging.get_verbosity() <= logging.WARNING
    detector = pipeline("object-detection", model=folder)
    detector(noise_picture())
    assert messages == []


def test_one_picture(folder, tmp_path):
    detector = pipeline("object-detection", model=folder)
    assert detector.tokenizer is None
    picture = noise_picture(400, 500)
    picture.save(tmp_path / "street.png")
    torch.manual_seed(0)
    found = detector(str(tmp_path / "street.png"), threshold=0.3)
    assert len(found) == 4
    for entry in found:
        assert set(entry) == {"score", "label", "box"} and set(entry["box"]) == {"xmin", "ymin", "xmax", "ymax"}
        assert entry["label"] == "dog" and 0.5 < entry["score"] <= 0.6
        assert all(isinstance(number, int) for number in entry["box"].values())
    assert max(entry["box"]["xmax"] for entry in found) > 48  # pixels of the picture, not of the network input
    torch.manual_seed(0)
    assert detector(picture, threshold=0.3) == found
    assert detector(picture, threshold=1.0) == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lists_and_batches(folder, batch_size):
    detector = pipeline("object-detection", model=folder)
    pictures = [noise_picture(40, 50), noise_picture(90, 20), noise_picture(8, 300)]
    found = detector(pictures, threshold=0.0, batch_size=batch_size)
    assert [len(entries) for entries in found] == [4, 4, 4]


def test_no_threshold_means_one_half(folder):
    detector = pipeline("object-detection", model=folder)
    assert len(detector(noise_picture())) == 4


def test_labels_without_a_name_do_not_fail(tmp_path):
    save_tiny_detector(tmp_path, favourite_label=17)  # between person, 1, and dog, 18
    detector = pipeline("object-detection", model=str(tmp_path))
    assert detector(noise_picture(), threshold=0.0) == []


def test_an_untrained_model_names_what_it_finds(tmp_path):
    save_tiny_detector(tmp_path)
    found = pipeline("object-detection", model=str(tmp_path))(noise_picture(), threshold=0.0)
    assert {entry["label"] for entry in found} <= set(NAMES.values())
