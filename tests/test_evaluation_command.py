"""`pix2seq evaluate`: the numbers of a model that knows the answer, files, and wrong options."""

import json
import sys

import pytest
import torch

from pix2seq_hf import cli
from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.shapes import SHAPE_CLASSES, write_shapes
from pix2seq_hf.evaluation import command
from pix2seq_hf.generation_pix2seq import build_generation_config
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.processing_pix2seq import Pix2SeqProcessor
from pix2seq_hf.task_object_detection import object_tokens


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder, "val", 5, seed=0, image_size=(40, 64), max_objects=2)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = Pix2SeqConfig(
        image_size=(64, 64), patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=16, vocab_size=2000, max_instances_per_image=3, max_position_embeddings=15,
        id2label=SHAPE_CLASSES,
    )  # fmt: skip
    model = Pix2SeqForConditionalGeneration(config)
    model.generation_config = build_generation_config(config)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    Pix2SeqProcessor.from_config(config).save_pretrained(folder)
    return folder


def evaluate(*arguments):
    parser = cli.build_parser("evaluate", command)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_an_untrained_model_scores_about_zero(scenes, model_folder, tmp_path, capsys):
    options = ["--model", model_folder, "--data", scenes, "--split", "val", "--batch-size", 2, "--quiet"]
    assert evaluate(*options, "--json", tmp_path / "a.json", "--output", tmp_path / "found") == 0
    output = capsys.readouterr().out
    assert "average precision" in output and "5 pictures, " in output
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert 0 <= numbers["tasks"]["object_detection"]["AP"] < 0.2 and numbers["num_images"] == 5
    assert {"model", "data", "split", "seconds", "pictures_per_second", "versions", "options"} <= set(numbers)
    found = json.loads((tmp_path / "found/object_detection.json").read_text())
    assert {item["image_id"] for item in found} <= {1, 2, 3, 4, 5} and len(found) <= 15
    assert evaluate(*options, "--json", tmp_path / "b.json", "--batch-size", 5) == 0  # the same draws in other batches
    again = json.loads((tmp_path / "b.json").read_text())
    assert again["tasks"] == numbers["tasks"]


def test_a_perfect_stream_scores_one(scenes, model_folder, monkeypatch, tmp_path):
    """Ground truth as tokens through decoding, rescaling and recording: what is lost is the width of the bins."""
    boxes = {}
    for row in read_coco(scenes, "val").dataset:
        # 40 x 64 pictures fill the upper 40 rows of the 64 x 64 input.
        boxes[len(boxes)] = torch.tensor(row["boxes_yxyx"]) * torch.tensor([40 / 64, 1, 40 / 64, 1]), row["labels"]
    position = iter(range(5))

    def write_the_truth(self, encoder_outputs, **kwargs):
        vocabulary = Pix2SeqProcessor.from_config(self.config).vocabulary
        rows = []
        for _ in encoder_outputs.last_hidden_state:
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
    numbers = numbers["tasks"]["object_detection"]
    assert numbers["AP"] > 0.99 and numbers["num_malformed"] == 0


def test_choice_of_pictures(scenes, model_folder, tmp_path):
    options = ["--model", model_folder, "--data", scenes, "--split", "val", "--quiet"]
    evaluate(*options, "--image-ids", "4,2", "--output", tmp_path / "found", "--json", tmp_path / "numbers.json")
    found = json.loads((tmp_path / "found/object_detection.json").read_text())
    assert {item["image_id"] for item in found} <= {2, 4}
    assert json.loads((tmp_path / "numbers.json").read_text())["num_images"] == 2


def test_wrong_options(scenes, model_folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="--batch-size 0: must be at least 1"):
        evaluate("--model", model_folder, "--data", scenes, "--batch-size", 0)
    with pytest.raises(OSError, match="has no split 'val2017', but val: choose one with --split NAME"):
        evaluate("--model", model_folder, "--data", scenes, "--split", "val2017")
    with pytest.raises((OSError, ValueError), match="empty"):
        evaluate("--model", tmp_path / "empty", "--data", scenes, "--split", "val")
    for options, message in (
        (["--top-p", 1.5], r"--top-p 1.5: must be above 0 and at most 1"),
        (["--temperature", 0], r"--temperature 0.0: must be above 0$"),
        (["--greedy", "--num-samples", 2], r"--num-samples: is for drawing, and --greedy draws nothing"),
        (["--tasks", "boxes"], r"--tasks: unknown task 'boxes': known are object_detection"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate("--model", model_folder, "--data", scenes, *options)
    with pytest.raises(ValueError, match=r"--min-score 5\.0: a score lies between 0 and 1"):
        evaluate("--model", model_folder, "--data", scenes, "--min-score", 5)
    with pytest.raises(ValueError, match=r"--interval 0\.0: must be above 0"):
        evaluate("--watch", model_folder, "--data", scenes, "--interval", 0)
    with pytest.raises(ValueError, match=r"--json: --watch writes \S+evaluations\.jsonl, a line per checkpoint"):
        evaluate("--watch", model_folder, "--data", scenes, "--json", "-")
    with pytest.raises(ValueError, match="--per-class: is for --model and --results"):
        evaluate("--oracle", "--data", scenes, "--per-class")
    with pytest.raises(ValueError, match="--spice: is for captions: --tasks captioning, or all"):
        evaluate("--model", model_folder, "--data", scenes, "--spice")
    with pytest.raises(ValueError, match="--spice: is for --model and --results"):
        evaluate("--oracle", "--data", scenes, "--spice")
    with pytest.raises(ValueError, match="--boxes: is for --model"):
        evaluate("--oracle", "--data", scenes, "--boxes", "annotated")
    with pytest.raises(SystemExit):
        evaluate("--model", model_folder, "--oracle", "--data", scenes)
    assert "not allowed with argument" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate("--model", model_folder, "--data", scenes, "--image-ids", "4,b")
    assert "'4,b' is not a list of numbers" in capsys.readouterr().err


def test_tasks_are_split_at_commas_whatever_blanks_there_are():
    assert command.split_tasks(None) == ["object_detection"]
    assert command.split_tasks("captioning, object_detection,captioning") == ["captioning", "object_detection"]


def test_an_engine_that_is_not_there_is_found_out_before_the_work(model_folder, scenes, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    options = ["--model", model_folder, "--data", scenes, "--engine", "faster-coco-eval"]
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"pip install 'pix2seq_hf\[fast\]'"):
        patch.setattr(command, "run_model", None)
        evaluate(*options)
