"""training/run_folder.py and what a run goes on with: lost pictures, a lost pretrained model, more steps, other
settings; and two runs in one folder."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys

import datasets
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from pix2seq_hf import cli
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.convert import convert_splits
from pix2seq_hf.data.shapes import write_shapes
from pix2seq_hf.training import command, run_folder
from pix2seq_hf.training.arguments import load_recipe
from pix2seq_hf.training.loop import train
from pix2seq_hf.training.run_folder import find_start, hold
from pix2seq_hf.training.watch import Watch, most_bad
from test_training_survival import TINY, assert_same_weights, cut_picture, tiny, weights_of
from test_voc import DOG, describe

SIZE = "<size><width>40</width><height>20</height></size>"


def draw(folder, num_pictures=6):
    write_shapes(folder, "train2017", num_pictures, seed=0, image_size=(32, 32), max_objects=2)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("scenes"))


def train_quietly(recipe, data, output, **options):
    return train(recipe, data, output, show_progress=False, **options)


def go_back(run, *steps):
    """Make a finished run one that was stopped: without its result and its checkpoints after some steps."""
    shutil.rmtree(run / "final")
    for step in steps:
        shutil.rmtree(run / f"checkpoints/step-{step}")


# --- Pictures that are lost -------------------------------------------------------------------------------------------


def test_a_picture_that_is_deleted_between_two_runs(tmp_path, caplog):
    """It counts like one that cannot be decoded: the other samples stay what they were."""
    for name in ("deleted", "cut"):
        draw(tmp_path / name)
        train_quietly(tiny(), tmp_path / name, tmp_path / f"run_{name}")
        go_back(tmp_path / f"run_{name}", 4, 6)
    path = cut_picture(tmp_path / "deleted", 2)
    path.unlink()
    cut_picture(tmp_path / "cut", 2)
    for name in ("deleted", "cut"):
        train_quietly(tiny(), tmp_path / name, tmp_path / f"run_{name}")
    assert_same_weights(weights_of(tmp_path / "run_deleted"), weights_of(tmp_path / "run_cut"))
    assert f"left out: {path}: no such picture, but " in caplog.text
    [_, line] = (tmp_path / "run_deleted/bad_samples.txt").read_text().splitlines()
    assert line.startswith(f"object_detection\t2\t{path}: No such file")


@pytest.fixture
def voc(tmp_path):
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    for name in "abcdefgh":
        Image.new("RGB", (40, 20)).save(tmp_path / f"voc/JPEGImages/{name}.jpg")
        (tmp_path / f"voc/Annotations/{name}.xml").write_text(describe(DOG, size=SIZE))
    return tmp_path / "voc"


def test_what_is_broken_at_the_start_is_left_out(voc, tmp_path, caplog):
    recipe = tiny(data={"num_workers": 0, "max_bad": 0.25})
    (voc / "JPEGImages/b.jpg").unlink()
    (voc / "Annotations/d.xml").write_text(describe(DOG, size=SIZE)[:90])
    train_quietly(recipe, voc, tmp_path / "run")
    assert "b.xml: there is no picture b.jpg" in caplog.text and "d.xml: not valid XML" in caplog.text
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["recipe"]["data"]["split"] == "all"  # its only one
    assert facts["samples"] == {"object_detection": 7}  # b keeps its row, of d nothing is known
    go_back(tmp_path / "run", 6)
    train_quietly(recipe, voc, tmp_path / "run")
    (voc / "JPEGImages/c.jpg").unlink()
    with pytest.raises(ValueError, match=r"voc: 3 of 8 pictures cannot be used, more than data.max_bad 0.25; the"):
        train_quietly(recipe, voc, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    go_back(tmp_path / "run", 6)
    cut = (voc / "JPEGImages/e.jpg").read_bytes()[:200]
    (voc / "JPEGImages/b.jpg").write_bytes(cut)  # found when it is read: those that were left out count, too
    (voc / "JPEGImages/c.jpg").write_bytes(cut)
    with pytest.raises(ValueError, match=r"cannot be used, more than data.max_bad 0.25"):
        train_quietly(recipe, voc, tmp_path / "run")


def test_the_split_is_chosen_once(scenes, tmp_path):
    """A run that goes on keeps the split that it began with; one that is not there is answered with those that are."""
    shutil.copytree(scenes, tmp_path / "data")
    (tmp_path / "data/train2017").rename(tmp_path / "data/train")
    path = tmp_path / "data/annotations/instances_train2017.json"
    train_quietly(tiny(), shutil.move(path, path.with_stem("instances_train")).parents[1], tmp_path / "run")
    go_back(tmp_path / "run", 6)
    shutil.copytree(scenes, tmp_path / "data", dirs_exist_ok=True)  # there is a train2017 now
    train_quietly(tiny(), tmp_path / "data", tmp_path / "run")
    assert load_recipe(tmp_path / "run/recipe.yaml").data.split == "train"
    for section, splits in (("data", {"split": "trian"}), ("evaluation", {"split": "trian"})):
        words = rf"has no split 'trian', but train, train2017: choose one with --set {section}\.split=NAME"
        with pytest.raises(OSError, match=words):
            train_quietly(tiny(**{section: splits}), tmp_path / "data", tmp_path / "other")


def test_a_run_goes_on_where_rows_cannot_be_kept(tmp_path, caplog):
    """The pictures of a YOLO folder are those that are there, and their sizes are known from them alone."""
    for name in ("images", "labels"):
        (tmp_path / "yolo" / name).mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (40, 20)).save(tmp_path / f"yolo/images/{number}.png")
        (tmp_path / f"yolo/labels/{number}.txt").write_text(f"0 0.5 0.5 0.{number + 1} 0.2")
    (tmp_path / "yolo/classes.txt").write_text("dog")
    recipe = tiny()
    train_quietly(recipe, tmp_path / "yolo", tmp_path / "run")
    for number, steps in ((2, (4, 6)), (5, (6,))):
        go_back(tmp_path / "run", *steps)
        for name in (f"images/{number}.png", f"labels/{number}.txt"):
            (tmp_path / "yolo" / name).unlink()
        if number == 2:
            train_quietly(recipe, tmp_path / "yolo", tmp_path / "run")
            assert (
                "yolo: 1 of the 8 pictures that" in caplog.text and "are gone; it goes on without them" in caplog.text
            )
    with pytest.raises(ValueError, match=r"\(2 of its 8 pictures are gone\); choose another .* --max-bad of 0\.25"):
        train_quietly(recipe, tmp_path / "yolo", tmp_path / "run")
    (tmp_path / "yolo/labels/3.txt").write_text("0 0.5 0.5 0.55 0.2")
    with pytest.raises(
        ValueError, match=r"yolo: is not the data that .*have changed or come: 1 of 6\); choose another"
    ):
        train_quietly(tiny(data={"num_workers": 0, "max_bad": 0.5}), tmp_path / "yolo", tmp_path / "run")


def test_a_lost_picture_is_no_reason_not_to_evaluate(tmp_path, caplog):
    draw(tmp_path / "data")
    write_shapes(tmp_path / "data", "val2017", 3, seed=1, image_size=(32, 32), max_objects=2)
    next((tmp_path / "data/val2017").iterdir()).unlink()
    train_quietly(tiny(evaluation={"split": "val2017", "steps": 6}), tmp_path / "data", tmp_path / "run")
    assert "no such picture" in caplog.text and "evaluation: picture" in caplog.text


@pytest.mark.parametrize(
    ("share", "number", "most"),
    [(0.01, 50, 1), (0.01, 150, 1), (0.01, 199, 1), (0.01, 200, 2), (0.29, 100, 29), (0.3, 6, 1), (0, 100, 0)],
)
def test_shares_are_rounded_down_and_one_is_always_allowed(share, number, most):
    assert most_bad(share, number) == most


class Samples:
    num_samples = 1000

    def describe(self, row, prepare):
        return f"{row}.jpg: is\nbroken"


def test_processes_write_each_sample_once(tmp_path, caplog):
    """What one process finds, another does not write again; the first one says it, and all of them count it."""
    first, second = (
        Watch(tmp_path, {"boxes": Samples()}, {"boxes": None}, 1.0, 10.0, 0.003, process=process) for process in (0, 1)
    )
    second._note_bad("boxes", [7, 8])
    assert "left out" not in caplog.text
    first._note_bad("boxes", [8, 9])
    assert [record.message for record in caplog.records] == [
        f"boxes: left out: {row}.jpg: is broken" for row in (7, 8, 9)
    ]
    lines = [f"boxes\t{row}\t{row}.jpg: is broken" for row in (7, 8, 9)]
    assert (tmp_path / "bad_samples.txt").read_text().splitlines() == ["task\tsample\treason", *lines]
    assert first.num_bad == 3 and Watch(tmp_path, {"boxes": Samples()}, {}, 1.0, 10.0, 0.003).num_bad == 3
    with pytest.raises(ValueError, match=r"^4 of the 1000 samples of boxes cannot be used, .*; the last: 1\.jpg"):
        second._note_bad("boxes", [1])


# --- What a run goes on with ------------------------------------------------------------------------------------------


def test_the_pretrained_model_is_needed_at_the_start_only(scenes, tmp_path):
    pretrained = train_quietly(tiny(training={**TINY["training"], "steps": 3}), scenes, tmp_path / "first")
    recipe = tiny(model={"pretrained": str(pretrained), "config": {}})
    for name in ("straight", "broken"):
        train_quietly(recipe, scenes, tmp_path / name)
    go_back(tmp_path / "broken", 4, 6)
    shutil.rmtree(tmp_path / "first")
    train_quietly(recipe, scenes, tmp_path / "broken")
    assert_same_weights(weights_of(tmp_path / "straight"), weights_of(tmp_path / "broken"))
    configs = [(tmp_path / name / "final/config.json").read_text() for name in ("straight", "broken")]
    assert configs[0] == configs[1]
    assert find_start(recipe, tmp_path / "broken", None).is_finished  # the recipe of the run stays what it was


@pytest.mark.parametrize("was_stopped", [False, True])
def test_more_steps_prolong_a_run(scenes, tmp_path, caplog, was_stopped):
    """At a constant rate, the weights are those of a run that had the steps from the start."""
    constant = {"learning_rate": 1e-3, "warmup_steps": 2, "learning_rate_schedule": "none"}
    short, long = (tiny(optimization=constant, training={**TINY["training"], "steps": steps}) for steps in (6, 10))
    train_quietly(long, scenes, tmp_path / "straight")
    train_quietly(short, scenes, tmp_path / "run")
    if was_stopped:
        go_back(tmp_path / "run", 6)
    train_quietly(long, scenes, tmp_path / "run")
    assert f"prolonged from 6 to 10 steps, goes on after step {4 if was_stopped else 6}; from there" in caplog.text
    assert "the learning rate is that of a run of 10 steps: 0.001, not 0.001" in caplog.text
    assert_same_weights(weights_of(tmp_path / "straight"), weights_of(tmp_path / "run"))
    with pytest.raises(ValueError, match="has 10 steps and 6 are asked for: a run can be prolonged, not shortened"):
        train_quietly(short, scenes, tmp_path / "run")


def test_more_epochs_prolong_a_run(scenes, tmp_path, caplog):
    training = {"batch_size": 2, "epochs": 1, "steps": None, "checkpoint_steps": 2}
    optimization = {**TINY["optimization"], "warmup_steps": 1}
    train_quietly(tiny(training=training, optimization=optimization), scenes, tmp_path / "run")
    train_quietly(tiny(training={**training, "epochs": 2}, optimization=optimization), scenes, tmp_path / "run")
    assert "prolonged from 3 to 6 steps, goes on after step 3" in caplog.text
    assert json.loads((tmp_path / "run/final/training.json").read_text())["step"] == 6


def test_a_run_without_checkpoints_does_not_block_its_folder(scenes, tmp_path, caplog):
    recipe = tiny(training={**TINY["training"], "checkpoint_steps": None})
    with pytest.raises(ValueError, match="run: has no run that --resume could go on with"):
        train_quietly(recipe, scenes, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    train_quietly(recipe, scenes, tmp_path / "run")
    with pytest.raises(ValueError, match="is finished and has no checkpoint from which it could be prolonged"):
        train_quietly(tiny(training={**TINY["training"], "steps": 9}), scenes, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/final")
    (tmp_path / "run/bad_samples.txt").write_text("task\tsample\treason\nobject_detection\t0\tof an earlier run\n")
    other = tiny(training={**TINY["training"], "steps": 2, "batch_size": 2}, optimization={"warmup_steps": 0})
    train_quietly(other, scenes, tmp_path / "run", resume=False)
    assert caplog.text.count("starts at step 0") == 1 and not (tmp_path / "run/bad_samples.txt").exists()


def test_without_a_usable_checkpoint_it_starts_at_step_0(scenes, tmp_path, caplog):
    recipe = tiny(training={**TINY["training"], "keep_checkpoints": 1})
    train_quietly(recipe, scenes, tmp_path / "run")
    final = weights_of(tmp_path / "run")
    go_back(tmp_path / "run")
    (tmp_path / "run/checkpoints/step-6/model.safetensors").unlink()
    shutil.copytree(tmp_path / "run/checkpoints/step-6", tmp_path / "run/checkpoints/step-60")
    train_quietly(recipe, scenes, tmp_path / "run")
    assert "none of the checkpoints can be used: starts at step 0" in caplog.text
    assert_same_weights(final, weights_of(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-6"]  # damaged ones make room
    assert find_start(recipe, tmp_path / "run", None).is_finished


def test_a_finished_run_does_not_say_that_it_did_what_it_did_not(scenes, tmp_path):
    run = tmp_path / "run"
    train_quietly(tiny(), scenes, run)
    with pytest.raises(
        ValueError,
        match=r"is finished and nothing was done, but evaluation\.split was None and is 'train2017' now",
    ):
        train_quietly(tiny(evaluation={"split": "train2017"}), scenes, run)
    with pytest.raises(ValueError, match=r"cannot be continued, training\.seed was 0 and is 1 now"):
        train_quietly(tiny(training={**TINY["training"], "seed": 1}), scenes, run)
    with pytest.raises(ValueError, match=r"other: is not the data that .*run was trained on \(.*\); its run is"):
        train_quietly(tiny(), draw(tmp_path / "other", 5), run)
    shutil.copytree(scenes, tmp_path / "moved")
    assert train_quietly(tiny(), tmp_path / "moved", run) == run / "final"


# --- Two runs in one folder -------------------------------------------------------------------------------------------

HOLD = """
import os, sys, time
from pathlib import Path
from pix2seq_hf.training.run_folder import hold
with hold(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker, which outlives its parent for a moment
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(folder, seconds=0):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    return child


def test_two_runs_in_one_folder(scenes, tmp_path):
    child = start_holder(tmp_path / "run", seconds=3)
    try:
        with pytest.raises(ValueError, match=f"run: process {child.pid} on .*, since .*, is training there: wait"):
            train_quietly(tiny(), scenes, tmp_path / "run")
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert (tmp_path / "run/run.holder").is_file()  # it had no time to tidy up
    train_quietly(tiny(), scenes, tmp_path / "run")
    assert not (tmp_path / "run/run.holder").exists()


def test_one_process_of_many_holds_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with hold(tmp_path / "run"):
        assert not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")
    with hold(tmp_path / "run"):
        assert json.loads((tmp_path / "run/run.holder").read_text())["host"] == socket.gethostname()
        with pytest.raises(ValueError, match="is training there"), hold(tmp_path / "run"):
            pass
        assert (tmp_path / "run/run.holder").is_file()
        monkeypatch.setenv("RANK", "1")
        with hold(tmp_path / "run"):
            pass
        monkeypatch.setenv("RANK", "0")
    assert not (tmp_path / "run").exists()  # nothing was written
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), hold(tmp_path / "file"):
        pass


def test_a_holder_whose_file_says_nothing(tmp_path):
    for text in ("", "{", json.dumps({"process": os.getpid(), "host": "elsewhere", "since": "today"})):
        (tmp_path / "run.holder").write_text(text)
        assert not run_folder._is_dead(tmp_path / "run.holder")
    assert run_folder._describe(tmp_path / "run.holder") == f"process {os.getpid()} on elsewhere, since today,"
    assert run_folder._describe(tmp_path / "nothing") == "another process"


# --- What the command says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_all_processes_is_said_once(tmp_path, monkeypatch, capsys, rank):
    """The others leave the launcher time to end them, and say it only if it does not: then it is an error of theirs."""
    waited = []
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(command.time, "sleep", waited.append)
    try:
        assert (
            cli.main(["train", "--recipe", "laptop", "--data", "no/such/folder", "--output", str(tmp_path / "run")])
            == 2
        )
    finally:
        datasets.enable_progress_bars()
    assert waited == [5] * rank and "no/such/folder: no such folder" in capsys.readouterr().err


def test_quiet_hides_bars_but_no_warnings(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    draw(tmp_path / "coco")
    split = read_coco(tmp_path / "coco", "train2017")
    convert_splits(tmp_path / "coco", {"train": split}, tmp_path / "parquet")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "mine.yaml", tmp_path / "run/recipe.yaml")  # of a run that came to nothing
    arguments = ["--recipe", tmp_path / "mine.yaml", "--data", tmp_path / "parquet", "--output", tmp_path / "run"]
    logger = logging.getLogger("pix2seq_hf")
    said = logging.StreamHandler()
    logger.addHandler(said)  # that of the command is kept from it by pytest's
    try:
        assert cli.main(["train", *map(str, arguments), "--resume", "--quiet"]) == 0
        found = capfd.readouterr()
        assert f"{tmp_path / 'run'}: has no checkpoint to go on from: starts at step 0\n" in found.err
        assert "Generating" not in found.err and "%|" not in found.err and found.out == ""
    finally:
        logger.removeHandler(said)
        datasets.enable_progress_bars()


def test_what_is_read_is_said(scenes, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="pix2seq_hf")
    train_quietly(tiny(evaluation={"split": "train2017", "steps": 6}), scenes, tmp_path / "run")
    assert f"reading the annotations of {scenes}, train2017" in caplog.text
    assert f"reading the annotations of {scenes}, train2017, to evaluate on" in caplog.text
    assert torch.isfinite(next(iter(load_file(tmp_path / "run/final/model.safetensors").values()))).all()
