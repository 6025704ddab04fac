"""Options of many devices: the files that start them, and precision."""

import os

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from pix2seq_hf.training.arguments import RECIPES
from pix2seq_hf.training.devices import build_accelerator_options, is_shared_out, unwrap, whole_model
from tiny_models import make_model, make_pictures, make_tokens

FILES = sorted((RECIPES / "accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate remembers the options of the first `Accelerator` of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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
