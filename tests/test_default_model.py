"""The model in the box: who takes it where none is named, and what it is, where this package has one."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, pipeline

import pix2seq_hf
from pix2seq_hf import DEFAULT_MODEL, TASKS, cli, default_model, prediction
from pix2seq_hf.app.server import model_title
from pix2seq_hf.data.scene_things import SCENE_CLASSES
from pix2seq_hf.data.scenes import draw_scene
from pix2seq_hf.evaluation import command as evaluation
from tiny_multitask import save_multitask

MEGABYTE = 1_000_000
# What a command needs besides.
NEEDED = {"predict": ["a.jpg", "--output", "x"], "predict-dataset": ["--data", "x", "--output", "x"]}
WITH_MODEL = ["predict", "predict-dataset", "benchmark", "card", "app"]


def test_it_is_a_folder_of_the_package():
    assert Path(DEFAULT_MODEL).is_absolute() and Path(DEFAULT_MODEL).parent == Path(pix2seq_hf.__file__).parent
    code = "import sys; from pix2seq_hf import DEFAULT_MODEL; print({'torch', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("name", WITH_MODEL)
def test_commands_take_it_where_none_is_named(name):
    parser = cli.build_parser(name, importlib.import_module(cli.COMMANDS[name].module))
    assert parser.parse_args(NEEDED.get(name, [])).model == DEFAULT_MODEL
    assert parser.parse_args([*NEEDED.get(name, []), "--model", "mine"]).model == "mine"
    assert "the model in the box" in " ".join(parser.format_help().split())


def test_no_command_insists_on_a_model():
    for name, command in cli.COMMANDS.items():
        parser = cli.build_parser(name, importlib.import_module(command.module))
        assert not any("--model" in action.option_strings and action.required for action in parser._actions), name


def test_evaluation_takes_it_unless_another_is_measured(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(evaluation, "run_model", lambda args: asked.append(args.model) or 0)
    assert cli.main(["evaluate", "--data", "scenes", "--split", "test"]) == 0
    assert cli.main(["evaluate", "--data", "scenes", "--split", "test", "--model", "mine"]) == 0
    assert asked == [DEFAULT_MODEL, "mine"]
    assert cli.main(["evaluate", "--data", "scenes", "--split", "test", "--results", str(tmp_path / "none.json")]) == 2
    assert asked == [DEFAULT_MODEL, "mine"] and "none.json" in capsys.readouterr().err


def test_the_web_page_says_which_it_is():
    assert model_title(DEFAULT_MODEL) == "the model in the box" and model_title("runs/mine") == "mine"


def test_without_it_there_is_one_line(monkeypatch, tmp_path, capsys):
    missing = str(tmp_path / "box_model")
    for module in (default_model, prediction):
        monkeypatch.setattr(module, "DEFAULT_MODEL", missing, raising=False)
    (tmp_path / "a.png").touch()
    assert cli.main(["predict", str(tmp_path / "a.png"), "--output", str(tmp_path / "found"), "--quiet"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert missing in line and "the model in the box is missing" in line
    with pytest.raises(ValueError, match="`pix2seq convert` and `pix2seq train` write a folder with one"):
        prediction.load_model(str(tmp_path / "other"))


def test_half_precision_on_disk_is_single_on_a_processor(tmp_path):
    model, _ = save_multitask(tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded, _ = prediction.load_model(str(tmp_path), "cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.float())


def test_it_is_small_and_knows_scenes(box_model):
    files = [path for path in Path(box_model).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * MEGABYTE
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= {path.name for path in files}
    config = json.loads(Path(box_model, "config.json").read_text(encoding="utf-8"))
    assert {int(label): name for label, name in config["id2label"].items()} == SCENE_CLASSES
    assert config["tasks"] == list(TASKS)


def test_it_is_computed_in_single_precision_where_nobody_says_otherwise(box_model):
    assert AutoModelForImageTextToText.from_pretrained(box_model).dtype is torch.float32
    assert AutoModelForImageTextToText.from_pretrained(box_model, dtype=torch.bfloat16).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_pipelines_take_it(box_model, dtype):
    scene = draw_scene(0, "pipelines", 0)
    detector = pipeline("object-detection", model=DEFAULT_MODEL, dtype=dtype or "auto", device="cpu")
    for found in detector(scene.picture, threshold=0.0):
        assert found["label"] in SCENE_CLASSES.values() and {*found["box"]} == {"xmin", "ymin", "xmax", "ymax"}
    look = pipeline("pix2seq", model=DEFAULT_MODEL, dtype=dtype or "auto", device="cpu")
    result = look(scene.picture, tasks="all", max_objects=2, num_samples=1, threshold=0.0, seed=0)
    assert result.tasks == tuple(TASKS) and len(result.captions) == 1
