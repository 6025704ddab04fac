"""`pix2seq evaluate`: the numbers of a model that knows the answer, files, and wrong options."""

import argparse
import json

import pytest
import torch

from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.scenes import SCENE_CLASSES, write_scenes
from pix2seq_hf.evaluation import command
from pix2seq_hf.generation_pix2seq import build_generation_config
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.processing_pix2seq import Pix2SeqProcessor
from pix2seq_hf.task_object_detection import object_tokens


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "val", 5, seed=0, image_size=(40, 64), max_objects=2)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = Pix2SeqConfig(
        image_size=(64, 64), patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=16, vocab_size=2000, max_instances_per_image=3, max_position_embeddings=15,
        id2label=SCENE_CLASSES,
    )  # fmt: skip
    model = Pix2SeqForConditionalGeneration(config)
    model.generation_config = build_generation_config(config)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    Pix2SeqProcessor.from_config(config).save_pretrained(folder)
    return folder


def evaluate(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_an_untrained_model_scores_about_zero(scenes, model_folder, tmp_path, capsys):
    options = ["--model", model_folder, "--data", scenes, "--split", "val", "--batch-size", 2, "--quiet"]
    assert evaluate(*options, "--json", tmp_path / "a.json", "--results", tmp_path / "found.json") == 0
    output = capsys.readouterr().out
    assert "average precision" in output and "5 pictures, " in output
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert 0 <= numbers["AP"] < 0.2 and numbers["num_images"] == 5
    found = json.loads((tmp_path / "found.json").read_text())
    assert {item["image_id"] for item in found} <= {1, 2, 3, 4, 5} and len(found) <= 15
    evaluate(*options, "--json", tmp_path / "b.json")
    again = json.loads((tmp_path / "b.json").read_text())
    assert {**numbers, "seconds": 0} == {**again, "seconds": 0}


def test_a_perfect_stream_scores_one(scenes, model_folder, monkeypatch, tmp_path):
    """Ground truth as tokens through decoding, rescaling and recording: what is lost is the width of the bins."""
    boxes = {}
    for row in read_coco(scenes, "val").dataset:
        # 40 x 64 pictures fill the upper 40 rows of the 64 x 64 input.
        boxes[len(boxes)] = torch.tensor(row["boxes_yxyx"]) * torch.tensor([40 / 64, 1, 40 / 64, 1]), row["labels"]
    position = iter(range(5))

    def write_the_truth(self, pixel_values, **kwargs):
        vocabulary = Pix2SeqProcessor.from_config(self.config).vocabulary
        rows = []
        for _ in pixel_values:
            boxes_yxyx, labels = boxes[next(position)]
            tokens = object_tokens(boxes_yxyx, torch.tensor(labels), vocabulary).flatten()
            rows.append(torch.cat([torch.tensor([10]), tokens, torch.zeros(15, dtype=torch.long)])[:16])
        return torch.stack(rows)

    monkeypatch.setattr(Pix2SeqForConditionalGeneration, "generate", write_the_truth)
    evaluate(
        *("--model", model_folder, "--data", scenes, "--split", "val", "--batch-size", 2, "--quiet"),
        *("--json", tmp_path / "numbers.json"),
    )
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["AP"] > 0.99 and numbers["num_malformed_slots"] == 0


def test_choice_of_pictures(scenes, model_folder, tmp_path):
    options = ["--model", model_folder, "--data", scenes, "--split", "val", "--quiet"]
    evaluate(*options, "--image-ids", "4,2", "--results", tmp_path / "found.json", "--json", tmp_path / "numbers.json")
    assert {item["image_id"] for item in json.loads((tmp_path / "found.json").read_text())} <= {2, 4}
    assert json.loads((tmp_path / "numbers.json").read_text())["num_images"] == 2


def test_wrong_options(scenes, model_folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="--batch-size 0: must be at least 1"):
        evaluate("--model", model_folder, "--data", scenes, "--batch-size", 0)
    with pytest.raises(OSError, match=r"instances_val2017\.json: no such file \(splits that are there: val\)"):
        evaluate("--model", model_folder, "--data", scenes)
    with pytest.raises((OSError, ValueError), match="empty"):
        evaluate("--model", tmp_path / "empty", "--data", scenes, "--split", "val")
    with pytest.raises(SystemExit):
        evaluate("--model", model_folder, "--data", scenes, "--image-ids", "4,b")
    assert "'4,b' is not a list of numbers" in capsys.readouterr().err
