"""Many processes give the result of one: DDP over all tasks, FSDP2, and the files that start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file

from pix2seq_hf import Pix2SeqForConditionalGeneration
from pix2seq_hf.training import devices
from pix2seq_hf.training.arguments import RECIPES, save_recipe
from pix2seq_hf.training.devices import build_accelerator_options, is_shared_out, unwrap, whole_model
from pix2seq_hf.training.loop import train
from test_training import read_scalars
from test_training_tasks import ALL_TASKS, folder, tiny  # noqa: F401
from tiny_models import make_model, make_pictures, make_tokens
from two_processes import NUM_PARTS, NUM_STEPS, train_tiny

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((RECIPES / "accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate remembers the options of the first `Accelerator` of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run_two(script, *arguments):
    """Run a script in two processes of this machine, which talk by gloo."""
    # `accelerate launch --cpu --num_processes 2` would start one.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    paths = [str(ROOT / "tests"), *(path for path in sys.path if path)]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    found = subprocess.run(
        [*launch, script, *map(str, arguments)], env=environment, timeout=540, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-4000:]


# --- The files --------------------------------------------------------------------------------------------------------


def test_the_files_are_there():
    assert {path.stem for path in FILES} == {"ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "two_machines"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_launch_takes_every_file(path, monkeypatch):
    head = path.read_text().splitlines()[:8]
    assert all(any(word in line for line in head) for word in ("# command", "# hardware:"))
    written = yaml.safe_load(path.read_text())
    assert "mixed_precision" not in written  # the recipe says it
    loaded = load_config_from_file(str(path))  # refuses unknown keys
    assert loaded.num_processes == written["num_processes"]

    monkeypatch.setattr(os, "environ", dict(os.environ))
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "--num_processes=4", "train.py", "-x"])
    arguments, _, _ = _validate_launch_command(arguments)
    kinds = {"MULTI_GPU": "multi_gpu", "FSDP": "use_fsdp", "DEEPSPEED": "use_deepspeed"}
    assert [name for name in kinds.values() if getattr(arguments, name)] == [kinds[written["distributed_type"]]]
    assert arguments.num_processes == 4 and arguments.training_script_args == ["-x"]
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        _, environment = prepare_deepspeed_cmd_env(arguments)
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == path.stem[-1]
        assert environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"
        assert environment["ACCELERATE_GRADIENT_CLIPPING"] == "0.0"
    else:
        environment = prepare_multi_gpu_env(arguments)
    if arguments.use_fsdp:
        monkeypatch.setattr(os, "environ", environment)
        plugin, model = FullyShardedDataParallelPlugin(), make_model()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        plugin.set_auto_wrap_policy(model)
        assert set(plugin.transformer_cls_names_to_wrap) == {
            type(model.model.encoder.layers[0]).__name__, type(model.model.decoder.layers[0]).__name__
        }  # fmt: skip


# --- Two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_for_all_tasks(folder, tmp_path):  # noqa: F811
    recipe = tiny(
        **ALL_TASKS,
        training={"batch_size": 4, "gradient_accumulation_steps": 2, "steps": 3},
        optimization={"max_grad_norm": 1.0, "ema_decay": 0.5},
    )
    train(recipe, folder, tmp_path / "one", show_progress=False)
    save_recipe(recipe, tmp_path / "mine.yaml")
    options = ["--recipe", tmp_path / "mine.yaml", "--data", folder, "--output", tmp_path / "two", "--quiet"]
    run_two(ROOT / "scripts/train.py", *options)

    [start] = json.loads((tmp_path / "two/run.json").read_text())["starts"]
    assert start["num_processes"] == 2
    for name in ("loss", *(f"loss/{task}" for task in ALL_TASKS)):
        one, two = (read_scalars(tmp_path / run, name) for run in ("one", "two"))
        assert len(one) == 3 and two == pytest.approx(one, rel=1e-4), name
    one, two = (load_file(tmp_path / run / "final/model.safetensors") for run in ("one", "two"))
    for name, weight in one.items():
        if "k_proj.bias" not in name:  # whose gradient is rounding noise, which Adam turns into steps of full size
            torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-3, msg=name)


@pytest.mark.slow
def test_weights_that_two_processes_share_out_become_those_of_one(tmp_path):
    run_two(ROOT / "tests/two_processes.py", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    for name, found in report.items():
        assert found["num_processes"] == 2 and found["is_shared_out"]
        assert found["own_share"] == pytest.approx(0.5, abs=0.05)
        assert found["has_moved"] and found["is_restored"]
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, **build_accelerator_options(num_parts=NUM_PARTS))
        model, _, average, losses = train_tiny(accelerator, is_tied=name == "tied")
        assert len(losses) == NUM_STEPS and found["losses"] == pytest.approx(losses, rel=1e-5)
        final = Pix2SeqForConditionalGeneration.from_pretrained(tmp_path / name).state_dict()
        averaged = load_file(tmp_path / f"average-{name}.safetensors")
        for key, value in model.state_dict().items():
            if "k_proj.bias" not in key:
                torch.testing.assert_close(final[key], value, rtol=0, atol=1e-4, msg=key)
                if key in averaged:
                    expected = average.module.state_dict()[key]
                    torch.testing.assert_close(averaged[key], expected, rtol=0, atol=1e-4, msg=key)
    assert set(report) == {"tied", "separate"}


# --- Precision and compilation ----------------------------------------------------------------------------------------


def take_step(**options):
    """The loss of a step and the gradients, as an `Accelerator` with these options computes them."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, **build_accelerator_options(**options))
    model = make_model(drop_path_rate=0.0, drop_units_rate=0.0).train()
    prepared = accelerator.prepare(model)
    loss = prepared(pixel_values=make_pictures(2), labels=make_tokens(2, 6)).loss
    accelerator.backward(loss)
    assert unwrap(accelerator, prepared) is model is whole_model(accelerator, prepared)
    assert not is_shared_out(accelerator)
    return loss.item(), [parameter.grad for parameter in model.parameters()]


def test_bf16_keeps_weights_and_gradients_in_float32():
    loss, gradients = take_step()
    half_loss, half_gradients = take_step(mixed_precision="bf16")
    assert half_loss == pytest.approx(loss, rel=0.01) and half_loss != loss
    assert all(gradient.dtype == torch.float32 for gradient in half_gradients)
    whole, half = (torch.cat([each.flatten() for each in found]) for found in (gradients, half_gradients))
    assert torch.nn.functional.cosine_similarity(whole, half, dim=0) > 0.99


@pytest.mark.slow
def test_compiled_layers_compute_the_same():
    loss, gradients = take_step()
    compiled_loss, compiled_gradients = take_step(use_compile=True)
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    for compiled, eager in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-6)


def test_a_processor_without_bfloat16_computes_in_float32(monkeypatch, caplog):
    caplog.set_level("INFO", logger="pix2seq_hf")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(devices, "has_bfloat16", lambda: True)
    assert devices.choose_precision("bf16") == "bf16" and not caplog.text
    monkeypatch.setattr(devices, "has_bfloat16", lambda: False)
    assert [devices.choose_precision(name) for name in ("no", "fp16")] == ["no", "fp16"] and not caplog.text
    assert devices.choose_precision("bf16") == "no" and "no instructions for it" in caplog.text
