"""The commands as users run them, one after the other: no warnings, nothing said when quiet, JSON alone when asked."""

import json
import os
import subprocess
import sys

import pytest

from pix2seq_hf.data.scene_things import SCENE_CLASSES
from tiny_multitask import save_multitask

RECIPE = """\
base: overfit_tasks
data: {split: train, image_ids: null}
keypoint_detection: null
optimization: {warmup_steps: 0}
training: {steps: 2, batch_size: 2, checkpoint_steps: 2}
evaluation: {split: val, image_ids: null, max_images: 2, batch_size: 2}
"""
SCENES = "data scenes --output scenes --count 3 --size 128x160 --workers 1"
COMMANDS = {
    "scenes": f"{SCENES} --split val --json -",
    "more scenes": f"{SCENES} --split train",
    "inspect": "data inspect scenes --sheet sheet.png --json -",
    "convert": "data convert scenes --output parquet --json -",
    "predict": "predict scenes/val --model model --output found --threshold 0 --json -",
    "predict-dataset": "predict-dataset --data parquet --split val --model model --output parts --json -",
    "evaluate": "evaluate --data scenes --model model --tasks all --boxes annotated --num-samples 1 --output answers "
    "--report report --per-class --json -",
    "again": "evaluate --data scenes --results answers --json numbers.json",
    "oracle": "evaluate --data scenes --oracle --json -",
    "benchmark": "benchmark --model model --objects 2 --repetitions 1 --device cpu --json -",
    "card": "card --model model --json numbers.json",
    "recipes": "recipes --json -",
    "recipe": "recipes overfit --resolved --json -",
    "train": "train --recipe mine.yaml --data scenes --output run",
    "prolong": "train --recipe mine.yaml --data scenes --output run --set training.steps=3 --resume",
}
# Every command in one process, which imports the libraries once; a line of NULs parts what they write.
DRIVER = """
import json, sys
from pix2seq_hf import cli
for arguments in json.load(sys.stdin):
    code = cli.main([*arguments, "--quiet"])
    for stream in (sys.stdout, sys.stderr):
        print("\\0", code, sep="", file=stream, flush=True)
"""
# Warnings to users: Java is missing, the model has learnt nothing, the schedule changes.
WARNINGS = ("captions are scored with other words than in papers", "none of the ", "run: prolonged from 2 to 3 steps")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The user's folder, and that of temporary files."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def said(tmp_path_factory, home):
    """Of every command its exit code, and what it wrote to standard output and standard error."""
    folder = tmp_path_factory.mktemp("here")
    save_multitask(folder / "model", max_instances_per_image=4, id2label=SCENE_CLASSES)
    (folder / "mine.yaml").write_text(RECIPE)
    places = ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "PIX2SEQ_HF_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in places}
    process = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([command.split() for command in COMMANDS.values()]),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**environment, "HOME": str(home), "TMPDIR": str(home), "PYTHONWARNINGS": "default"},
        timeout=500,
    )
    assert process.returncode == 0, process.stderr
    texts = (process.stdout, process.stderr)
    streams = [[part.partition("\n")[::2] for part in f"\n{text}".split("\0")] for text in texts]
    outputs, errors = ([text for _, text in parts[:-1]] for parts in streams)
    codes = [int(code) for code, _ in streams[0][1:]]
    return dict(zip(COMMANDS, zip(codes, outputs, errors, strict=True), strict=True))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_it_is_done_without_a_word(said, name):
    code, _, errors = said[name]
    assert code == 0, errors
    assert [line for line in errors.splitlines() if not line.startswith(WARNINGS)] == []


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if "--json -" in command])
def test_json_stands_alone(said, name):
    assert json.loads(said[name][1])


@pytest.mark.parametrize("name", ["more scenes", "card", "train", "prolong"])
def test_quiet_commands_without_a_result_print_nothing(said, name):
    assert said[name][1] == ""


def test_what_is_left_is_in_the_cache_of_the_libraries(said, home):
    kept = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    kept.discard(".keras/keras.json")  # where TensorFlow is installed, tensorboard imports it
    assert said and {name for name in kept if not name.startswith(".cache/huggingface/")} == set()


def test_what_is_in_the_json(said):
    found = {name: json.loads(text) for name, (_, text, _) in said.items() if "--json -" in COMMANDS[name]}
    assert found["scenes"]["num_pictures"] == 3 and found["scenes"]["annotations"]
    assert list(found["inspect"]["splits"]) == ["train", "val"] or list(found["inspect"]["splits"]) == ["val", "train"]
    assert found["convert"]["num_pictures"] == 6 and found["convert"]["left_out"] == []
    assert found["predict"]["num_pictures"] == 3 and found["predict"]["output"] == "found"
    assert found["predict-dataset"]["num_pictures"] == 3 and found["predict-dataset"]["missing_parts"] == []
    assert set(found["evaluate"]["tasks"]) == {
        *("object_detection", "instance_segmentation", "keypoint_detection", "captioning")
    }
    assert found["oracle"]["oracle"]["1000"]["object_detection"]["AP"] > 0.9
    assert [each["num_objects"] for each in found["benchmark"]["measurements"]] == [2]
    assert {"name", "summary", "path"} <= found["recipes"][0].keys()
    assert found["recipe"]["name"] == "overfit" and found["recipe"]["settings"]["training"]["steps"]
