"""A run that survives: kills, signals, damaged checkpoints, full disks, bad pictures, losses that explode."""

import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from pix2seq_hf.data.shapes import write_shapes
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.training.arguments import build_recipe
from pix2seq_hf.training.checkpoints import (
    check_space,
    find_checkpoint,
    find_damage,
    load_checkpoint,
    save_checkpoint,
)
from pix2seq_hf.training.interruption import StopSignals
from pix2seq_hf.training.loop import train
from test_training import TINY as PLAIN

TINY = {**PLAIN, "training": {**PLAIN["training"], "checkpoint_steps": 2}}


def tiny(**sections):
    return build_recipe({name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder, "train2017", 6, seed=0, image_size=(32, 32), max_objects=2)
    return folder


def weights_of(run, name="final"):
    return load_file(run / name / "model.safetensors")


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# --- Kills and signals ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(scenes, tmp_path):
    """A real process, with a worker, dropout and averaged weights; killed at random steps, stopped, interrupted."""
    settings = {
        **TINY,
        "data": {"num_workers": 1},
        "optimization": {"learning_rate": 1e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "training": {"batch_size": 4, "steps": 240, "log_steps": 10, "checkpoint_steps": 7, "keep_checkpoints": 2},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "pix2seq_hf.cli", "train", "--recipe", tmp_path / "mine.yaml", "--data", scenes]
    # Sums depend on the number of threads, and other tests change that of this process.
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    straight = [*map(str, command), "--output", str(tmp_path / "straight"), "--quiet"]
    subprocess.run(straight, env=environment, check=True, timeout=300)

    run = tmp_path / "broken"
    waits = random.Random(time.time_ns())  # a different run each time: whatever the moment, the weights are the same
    reached = 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        child = subprocess.Popen(
            [*map(str, command), "--output", str(run), "--quiet"],
            env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 300
            while find_checkpoint(run / "checkpoints")[0] <= reached and child.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(waits.uniform(0, 0.2))
        finally:
            os.killpg(child.pid, number)  # as a terminal and a cluster do: the whole group
        said = child.communicate(timeout=60)[1]
        if child.returncode == 0:  # it was faster than its killer
            break
        step, _ = find_checkpoint(run / "checkpoints")
        assert step > reached
        reached = step
        if number == signal.SIGKILL:
            assert child.returncode == -signal.SIGKILL
        else:
            assert child.returncode == 128 + number, said
            assert f"at step {step} of 240, saved in {run / 'checkpoints'}; the same command goes on" in said
            assert "Traceback" not in said
    assert 0 < reached < 240
    subprocess.run([*map(str, command), "--output", str(run), "--quiet"], env=environment, check=True, timeout=300)
    assert_same_weights(weights_of(tmp_path / "straight"), weights_of(run))
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert len(starts) >= 3 and [start["step"] for start in starts] == sorted(start["step"] for start in starts)
    assert starts[-1]["end"] == "finished" and starts[-1]["end_step"] == 240
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-238", "step-240"}


def test_the_second_signal_does_not_wait():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_finished_run_is_left_alone(scenes, tmp_path, caplog):
    recipe = tiny()
    final = train(recipe, scenes, tmp_path / "run", show_progress=False)
    before = (final / "model.safetensors").stat().st_mtime_ns
    assert train(recipe, scenes, tmp_path / "run", show_progress=False) == final
    assert "the run is finished" in caplog.text and (final / "model.safetensors").stat().st_mtime_ns == before


def test_what_is_shown_may_change_but_not_what_is_learnt(scenes, tmp_path):
    train(tiny(), scenes, tmp_path / "run", show_progress=False)
    shutil.rmtree(tmp_path / "run/final")
    shutil.rmtree(tmp_path / "run/checkpoints/step-6")
    train(tiny(training={**TINY["training"], "log_steps": 1}), scenes, tmp_path / "run", show_progress=False)
    other = tmp_path / "other"
    write_shapes(other, "train2017", 6, seed=1, image_size=(32, 32), max_objects=2)
    shutil.rmtree(tmp_path / "run/final")
    with pytest.raises(ValueError, match=r"other: is not the data that .*run was trained on so far"):
        train(tiny(), other, tmp_path / "run", show_progress=False)


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over(scenes, tmp_path, caplog):
    run = tmp_path / "run"
    final = weights_of(train(tiny(), scenes, run, show_progress=False).parent)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-2", "step-4", "step-6"]
    with open(run / "checkpoints/step-6/optimizer.bin", "r+b") as file:
        file.truncate(100)
    (run / "checkpoints/step-4/complete.json").unlink()
    (run / "checkpoints/unfinished-8").mkdir()
    assert find_damage(run / "checkpoints/step-2") is None
    assert find_checkpoint(run / "checkpoints") == (2, run / "checkpoints/step-2")
    assert "optimizer.bin has 100 bytes of" in caplog.text and "step-4: passed over, it is unfinished" in caplog.text
    shutil.rmtree(run / "final")
    train(tiny(), scenes, run, show_progress=False)
    assert_same_weights(final, weights_of(run))
    assert [entry.step for entry in log_of(run).Scalars("loss")] == [2, 4, 6]  # what was done again is not told twice


def small_accelerator(value=0.0, size=1000):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(size, 1)
    torch.nn.init.constant_(model.weight, value)
    return accelerator, accelerator.prepare(model)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, caplog):
    accelerator, model = small_accelerator(1.0, size=50_000)
    folder = tmp_path / "checkpoints"
    assert save_checkpoint(accelerator, folder, 1, {"note": "first"}, keep=1) == folder / "step-1"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # writing more fails, as on a full disk
    try:
        assert save_checkpoint(accelerator, folder, 2, {"note": "second"}, keep=1) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step 2: the checkpoint could not be saved" in caplog.text and "the earlier ones stand" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["step-1"]
    torch.nn.init.zeros_(model.weight)
    assert load_checkpoint(accelerator, folder / "step-1") == {"note": "first"} and model.weight.mean() == 1
    assert save_checkpoint(accelerator, folder, 3, {}, keep=1) and [path.name for path in folder.iterdir()] == [
        "step-3"
    ]


def test_a_disk_without_room_is_said_before_the_start(tmp_path):
    check_space(tmp_path / "not/there/yet", 1000)
    with pytest.raises(OSError, match=r"GB are free on its disk, two checkpoints need 2000000000\.0 GB"):
        check_space(tmp_path / "not/there/yet", 10**18)


# --- Data that fails in mid-run ---------------------------------------------------------------------------------------


def cut_picture(folder, number):
    path = sorted((folder / "train2017").iterdir())[number]
    path.write_bytes(path.read_bytes()[:-60])
    return path


def test_a_bad_picture_is_left_out_and_named(tmp_path, caplog):
    write_shapes(tmp_path, "train2017", 6, seed=0, image_size=(32, 32), max_objects=2)
    path = cut_picture(tmp_path, 2)
    final = train(tiny(), tmp_path, tmp_path / "run", show_progress=False)
    assert all(value.isfinite().all() for value in weights_of(final.parent).values())
    lines = (tmp_path / "run/bad_samples.txt").read_text().splitlines()
    assert lines[0] == "task\tsample\treason"
    assert len(lines) == 2 and str(path) in lines[1] and lines[1].startswith("object_detection\t2\t")
    assert caplog.text.count(f"left out: {path}") == 1
    shutil.rmtree(final)
    shutil.rmtree(tmp_path / "run/checkpoints/step-6")
    train(tiny(), tmp_path, tmp_path / "run", show_progress=False)  # it goes on, and knows what it has named
    assert (tmp_path / "run/bad_samples.txt").read_text().splitlines() == lines


def test_too_many_bad_pictures_end_the_run(tmp_path):
    write_shapes(tmp_path, "train2017", 6, seed=0, image_size=(32, 32), max_objects=2)
    for number in (1, 4):
        cut_picture(tmp_path, number)
    with pytest.raises(ValueError, match=r"^2 of the 6 samples of object_detection cannot be used, more than data"):
        train(tiny(), tmp_path, tmp_path / "run", show_progress=False)
    train(tiny(data={"num_workers": 0, "max_bad": 0.34}), tmp_path, tmp_path / "more", show_progress=False)


def test_an_exploding_loss_ends_the_run(scenes, tmp_path):
    recipe = tiny(
        training={**TINY["training"], "steps": 60, "max_loss_factor": 1.0}, optimization={"learning_rate": 3.0}
    )
    with pytest.raises(ValueError, match=r"^step \d+: the loss of object_detection is \d.*, which is above \d.*"):
        train(recipe, scenes, tmp_path / "run", show_progress=False)
    assert len(list((tmp_path / "run/failed").iterdir())) == 1


# --- Evaluation in the loop, averages ---------------------------------------------------------------------------------


def log_of(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    return log


def test_evaluation_keeps_the_best_and_stops_early(scenes, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="pix2seq_hf")
    recipe = tiny(
        optimization={"learning_rate": 0.0, "warmup_steps": 0},  # it never gets better
        evaluation={"split": "train2017", "steps": 2, "patience": 2, "num_pictures": 1},
        training={**TINY["training"], "steps": 20},
    )
    final = train(recipe, scenes, tmp_path / "run", show_progress=False)
    run = tmp_path / "run"
    assert json.loads((run / "best/training.json").read_text())["step"] == 2
    assert json.loads((final / "training.json").read_text()) == {
        "step": 6, "end": "stopped early, the best was step 2"
    }  # fmt: skip
    assert "step 6: stopped early" in caplog.text
    log = log_of(run)
    assert [entry.step for entry in log.Scalars("object_detection/AP")] == [2, 4, 6]
    assert [entry.step for entry in log.Images("object_detection/0")] == [2, 4, 6]
    assert {"loss", "learning_rate", "pictures_per_second", "memory_gb", "bad_samples"} <= set(log.Tags()["scalars"])


def test_evaluation_does_not_change_the_training(scenes, tmp_path):
    train(tiny(), scenes, tmp_path / "without", show_progress=False)
    recipe = tiny(evaluation={"split": "train2017", "steps": 2, "max_images": 2})
    train(recipe, scenes, tmp_path / "with", show_progress=False)
    assert_same_weights(weights_of(tmp_path / "without"), weights_of(tmp_path / "with"))


def test_averaged_weights_are_what_is_saved(scenes, tmp_path):
    train(tiny(), scenes, tmp_path / "plain", show_progress=False)
    averaged = tiny(optimization={**TINY["optimization"], "ema_decay": 0.9})
    train(averaged, scenes, tmp_path / "averaged", show_progress=False)
    plain, average = weights_of(tmp_path / "plain"), weights_of(tmp_path / "averaged")
    last = load_file(tmp_path / "averaged/checkpoints/step-6/model.safetensors")
    name = "model.decoder.token_embeddings.weight"
    loaded = Pix2SeqForConditionalGeneration.from_pretrained(tmp_path / "averaged/checkpoints/step-6")
    assert torch.equal(loaded.state_dict()[name], last[name])
    assert torch.equal(plain[name], last[name]) and not torch.equal(average[name], last[name])
    # A mean of the weights on the way lies between the first and the last.
    assert (average[name] - last[name]).norm() < last[name].norm()


def test_unknown_metric(scenes, tmp_path):
    recipe = tiny(evaluation={"split": "train2017", "steps": 2, "metric": "object_detection/AP50"})
    with pytest.raises(ValueError, match=r"evaluation.metric 'object_detection/AP50': there are object_detection/AP, "):
        train(recipe, scenes, tmp_path / "run", show_progress=False)
    recipe = tiny(evaluation={"split": "train2017", "steps": 2, "metric": "captioning/reproduced"})
    with pytest.raises(ValueError, match=r"evaluation.metric 'captioning/reproduced': there are object_detection/AP, "):
        train(recipe, scenes, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run/checkpoints").exists()  # it is said before the first step
    recipe = tiny(evaluation={"split": "train2017", "steps": 6, "metric": "object_detection/AR_max_10"})
    train(recipe, scenes, tmp_path / "run", show_progress=False)
    assert (tmp_path / "run/best").is_dir()


def test_run_json(scenes, tmp_path):
    train(tiny(), scenes, tmp_path / "run", show_progress=False)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["total_steps"] == 6 and facts["samples"] == {"object_detection": 6}
    assert facts["data"]["num_pictures"] == [6] and len(facts["data"]["fingerprint"]) == 16
    (start,) = facts["starts"]
    assert torch.__version__.startswith(start["versions"]["torch"]) and start["end"] == "finished"
    assert facts["recipe"]["training"]["batch_size"] == 4
