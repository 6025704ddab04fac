"""The model card: what the Hub's own reader finds in it, and what a person reads."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hub_server import serve_hub
from pix2seq_hf import cli
from pix2seq_hf.card import metrics, name_of
from tiny_models import make_model

CONFIG = {
    "model_type": "pix2seq",
    "image_size": [480, 640],
    "quantization_bins": 1000,
    "tasks": ["object_detection", "instance_segmentation", "captioning"],
    "id2label": {"10": "no | pipe", "9": "cat <b>"},
}
EVALUATION = {
    "model": "runs/mine/final",
    "data": "/home/somebody/secret/coco_mini",
    "split": "val2017",
    "num_images": 40,
    "seconds": 3.5,
    "versions": {"pix2seq_hf": "0.1.0", "torch": "2.8"},
    "options": {"boxes": "annotated", "max_images": None, "image_ids": None},
    "tasks": {
        "object_detection": {"AP": 0.4321, "AP_small": -1.0, "AR_max_100": 0.5, "num_malformed": 3},
        "instance_segmentation": {"AP": 0.25},
        "captioning": {"BLEU_4": 0.34, "CIDEr": 1.171, "reproduced": 2, "num_captions": 40},
    },
}
RUN = {
    "data": {"path": "/home/somebody/secret/coco", "num_pictures": [118287], "fingerprint": "ab"},
    "num_parameters": 36600000,
    "recipe": {
        "model": {"pretrained": "/home/somebody/secret/resnet/final"},
        "optimization": {"learning_rate": 3e-05},
        "training": {"batch_size": 128, "seed": 0},
    },
    "starts": [{"command": ["pix2seq", "/home/somebody"], "num_processes": 8, "device": "cuda", "versions": {}}],
}


@pytest.fixture
def model(tmp_path):
    """The folder that a run leaves, without weights."""
    folder = tmp_path / "street" / "final"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_the_hub_reads_the_results(model, tmp_path, capsys):
    numbers = write(tmp_path / "numbers.json", EVALUATION)
    some = {
        **EVALUATION,
        "split": "train2017",
        "options": {"max_images": 40},
        "tasks": {"object_detection": {"AP": 1.0}},
    }
    assert cli.main(["card", "--model", str(model), "--json", numbers, write(tmp_path / "some.json", some)]) == 0
    assert "6 results" in capsys.readouterr().out
    card = ModelCard.load(model / "README.md")
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "apache-2.0", "object-detection")
    assert data.model_name == "street"
    assert data.tags == ["pix2seq", "vision", "object-detection", "image-segmentation", "image-to-text"]
    found = {(item.task_type, item.dataset_name, item.metric_name): item for item in data.eval_results}
    assert {key: item.metric_value for key, item in found.items()} == {
        ("object-detection", "coco_mini val2017", "AP"): 0.4321,
        ("object-detection", "coco_mini val2017", "AR max 100"): 0.5,
        ("image-segmentation", "coco_mini val2017", "AP (annotated boxes given)"): 0.25,
        ("image-to-text", "coco_mini val2017", "BLEU 4"): 0.34,
        ("image-to-text", "coco_mini val2017", "CIDEr"): 1.171,
        ("object-detection", "coco_mini train2017 (40 of its pictures)", "AP"): 1.0,
    }
    assert {item.dataset_type for item in data.eval_results} == {"coco_mini"}
    assert {item.dataset_split for item in data.eval_results} == {"val2017", "train2017"}


def test_the_text_tells_results_training_and_classes_but_no_paths(model, tmp_path):
    write(model / "training.json", {"step": 9000, "end": "finished"})
    write(model.parent / "run.json", RUN)
    arguments = [
        "card",
        "--model",
        str(model),
        "--json",
        write(tmp_path / "n.json", EVALUATION),
        "--name",
        "me/streets",
    ]
    assert cli.main(arguments) == 0
    text = (model / "README.md").read_text()
    assert "somebody" not in text and "secret" not in text
    for line in (
        "# streets",
        "| AP | 43.2 % |",
        "| BLEU 4 | 0.34 |",
        "| CIDEr | 1.171 |",
        "**Instance segmentation (annotated boxes given) on coco_mini val2017**",
        "| data | coco, 118,287 pictures |",
        "| parameters | 36,600,000 |",
        "| started from | resnet |",
        "| steps | 9000 |",
        "| learning rate | 3e-05 |",
        "| device | 8 x cuda |",
        "| seed | 0 |",
        "| 9 | cat &lt;b> |",
        "| 10 | no \\| pipe |",
        'detect = pipeline("object-detection", model="me/streets")',
    ):
        assert line in text.splitlines(), line
    assert text.index("| 9 | cat") < text.index("| 10 | no")  # by number, not as texts
    assert "small" not in text and "malformed" not in text and "were used in training" not in text


def test_pictures_that_could_not_be_used_are_said(model, tmp_path):
    for changes, line in (
        ({"num_failed": 2, "left_out": ["a.xml: broken"]}, "**3 pictures were missing or broken: the numbers are not"),
        ({"num_failed": 1}, "**1 picture was missing or broken"),
        ({"num_failed": 0, "left_out": []}, None),
    ):
        numbers = write(tmp_path / "n.json", {**EVALUATION, **changes})
        assert cli.main(["card", "--model", str(model), "--json", numbers, "--force"]) == 0
        text = (model / "README.md").read_text()
        assert line in text if line else "missing or broken" not in text


def test_results_on_the_pictures_of_the_training_are_called_that(model, tmp_path):
    recipe = {"data": {"split": "val2017"}}
    write(model.parent / "run.json", {"data": {"path": "/elsewhere/coco_mini"}, "recipe": recipe})
    assert cli.main(["card", "--model", str(model), "--json", write(tmp_path / "n.json", EVALUATION)]) == 0
    assert "These pictures were used in training" in (model / "README.md").read_text()


def test_the_code_in_the_card_is_python(model):
    assert cli.main(["card", "--model", str(model)]) == 0
    text = (model / "README.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


def test_a_model_that_was_not_evaluated(model):
    (model / "config.json").write_text(json.dumps({**CONFIG, "tasks": ["captioning"], "id2label": {}}))
    assert cli.main(["card", "--model", str(model)]) == 0
    card = ModelCard.load(model / "README.md")
    assert card.data.eval_results is None and card.data.pipeline_tag == "image-to-text"
    assert "It was not evaluated." in card.text and "Nothing is known of its training" in card.text


def test_a_card_that_is_there_stays(model, capsys):
    (model / "README.md").write_text("mine")
    assert cli.main(["card", "--model", str(model)]) == 2
    assert "--force" in capsys.readouterr().err and (model / "README.md").read_text() == "mine"
    assert cli.main(["card", "--model", str(model), "--force"]) == 0
    assert (model / "README.md").read_text() != "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[1]", "no JSON object"),
        ('{"AP": 0.5}', "no numbers by task"),
        ('{"tasks": {"object_detection": 0.5}}', "no numbers by task"),
        ('{"tasks": {"depth": {"AP": 0.5}}}', "unknown task 'depth'"),
    ],
)
def test_files_that_are_no_results(model, tmp_path, capsys, content, message):
    (tmp_path / "numbers.json").write_text(content)
    assert cli.main(["card", "--model", str(model), "--json", str(tmp_path / "numbers.json")]) == 2
    error = capsys.readouterr().err
    assert message in error and "numbers.json" in error and error.count("\n") == 1
    assert not (model / "README.md").exists()


def test_folders_that_are_no_model(tmp_path, capsys):
    assert cli.main(["card", "--model", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    write(tmp_path / "config.json", {"model_type": "detr"})
    assert cli.main(["card", "--model", str(tmp_path)]) == 2
    assert "'detr'" in capsys.readouterr().err


def test_what_can_be_quoted():
    numbers = {"AP": 0.5, "AP_small": -1.0, "x": math.nan, "num_captions": 4, "reproduced": 1, "classes": {"cat": 1}}
    assert metrics(numbers) == {"AP": 0.5}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/mine/final", "mine"),
        ("runs/mine/checkpoints/step-200", "mine"),
        ("../vit-b", "vit-b"),
        ("final", "final"),
        ("me/street-detector", "street-detector"),
    ],
)
def test_names_of_folders(path, name):
    assert name_of(Path(path)) == name


PUSH = """
import sys
from pathlib import Path
from pix2seq_hf import Pix2SeqForConditionalGeneration

folder = Path(sys.argv[1])
model = Pix2SeqForConditionalGeneration.from_pretrained(folder)
model.push_to_hub("me/pushed", tags=["streets"], token="hf_none")
model.save_pretrained(folder, push_to_hub=True, repo_id="me/saved", token="hf_none")  # where the card itself lies
(folder / "README.md").unlink()
model.push_to_hub("me/without", token="hf_none")
"""


def test_the_card_goes_to_the_hub_with_the_model(tmp_path):
    """Uploaded in both ways of the library, which would write a card without results over it; tags are added."""
    folder = tmp_path / "street"
    make_model().save_pretrained(folder)
    assert cli.main(["card", "--model", str(folder), "--json", write(tmp_path / "n.json", EVALUATION)]) == 0
    own = ModelCard.load(folder / "README.md")
    with serve_hub() as hub:  # in a new process, for the library reads the address of the Hub when it is imported
        places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
        environment = {**os.environ, **places, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", PUSH, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(hub.files["me/pushed"]) >= {"README.md", "config.json", "model.safetensors"}
    cards = {name: ModelCard(files["README.md"].decode()) for name, files in hub.files.items()}
    for name, tags in (("me/pushed", ["streets"]), ("me/saved", [])):
        assert cards[name].text == own.text and "43.2 %" in own.text
        assert cards[name].data.eval_results[0].metric_value == 0.4321
        assert cards[name].data.tags == [*own.data.tags, *tags]
    assert "automatically generated" in cards["me/without"].text
