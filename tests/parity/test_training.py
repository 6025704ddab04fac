"""Schedules and eight optimiser steps against the reference's trainer (golden/model, `schedules` and `train`)."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pix2seq_hf.training.arguments import build_recipe
from pix2seq_hf.training.build import build_optimizer, build_schedule
from pix2seq_hf.training.loop import train_step
from pix2seq_hf.training.optimization import WarmUpAndDecay, scale_learning_rate


def test_schedules_are_equal(golden_dir, parity_report):
    settings = json.loads((golden_dir / "model/schedules.json").read_text())
    golden = np.load(golden_dir / "model/schedules.npz")
    assert set(settings) == set(golden.files) and len(settings) == 10
    for name, arguments in settings.items():
        peak = scale_learning_rate(
            arguments["base_learning_rate"], arguments["learning_rate_scaling"], arguments["batch_size"]
        )
        schedule = WarmUpAndDecay(
            peak,
            arguments["total_steps"],
            arguments["warmup_steps"],
            arguments["learning_rate_schedule"],
            arguments["tail_steps"],
            arguments["end_lr_factor"],
        )
        rates = np.array([schedule(step) for step in range(len(golden[name]))], dtype=np.float32)
        parity_report(f"learning rates, {name}", np.abs(rates - golden[name]).max())


@pytest.mark.parametrize("case", ["vit", "resnet18"])
def test_eight_steps(case, golden_dir, parity_report):
    pytest.importorskip("tensorflow", reason="reads TensorFlow checkpoints")
    from pix2seq_hf.conversion.checkpoint import find_checkpoint, read_model_variables
    from pix2seq_hf.conversion.config import config_from_reference
    from pix2seq_hf.conversion.variables import convert_variables
    from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration

    folder = golden_dir / "model/train" / case
    golden = np.load(folder / "golden.npz")
    reference = json.loads((folder / "initial/config.json").read_text())
    config = config_from_reference(reference)
    model = Pix2SeqForConditionalGeneration(config)
    model.load_state_dict(convert_variables(read_model_variables(find_checkpoint(folder / "initial")), config))

    settings = reference["optimization"]
    recipe = build_recipe(
        {
            "optimization": {
                "learning_rate": settings["learning_rate"],
                "learning_rate_schedule": settings["learning_rate_schedule"],
                "learning_rate_scaling": settings["learning_rate_scaling"],
                "warmup_steps": settings["warmup_steps"],
                "end_lr_factor": settings["end_lr_factor"],
                "weight_decay": settings["weight_decay"],
                "beta1": settings["beta1"],
                "beta2": settings["beta2"],
                "eps": settings["eps"],
            },
            "training": {"batch_size": reference["train"]["batch_size"], "steps": reference["train"]["steps"]},
        }
    )
    batch = {
        "pixel_values": torch.from_numpy(golden["images"]).permute(0, 3, 1, 2),
        "decoder_input_ids": torch.from_numpy(golden["input_seq"]),
        "labels": torch.from_numpy(golden["target_seq"]),
        "label_weights": torch.from_numpy(golden["token_weights"]),
    }
    beside = {"sample_rows": torch.arange(2), "is_bad": torch.zeros(2, dtype=torch.bool)}
    accelerator = Accelerator(cpu=True)
    schedule = build_schedule(recipe, num_images=2)
    model, optimizer = accelerator.prepare(model.train(), build_optimizer(recipe, model))
    losses, rates, largest_weights = [], [], []
    for step in range(len(golden["loss"])):
        rates.append(schedule(step))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        batches = {"recorded": iter([{**batch, **beside}])}
        step = train_step(accelerator, model, optimizer, batches, {"recorded": 1.0}, None)
        losses.append(step["recorded"].loss.item())
        largest_weights.append(max(weight.abs().max().item() for weight in model.parameters()))

    assert losses[0] - losses[-1] > 10 * 1e-4  # the run moves by more than it may differ
    parity_report(f"training {case}, losses", np.abs(losses - golden["loss"]).max(), 1e-4)
    parity_report(f"training {case}, learning rates", np.abs(np.float32(rates) - golden["learning_rate"]).max())
    parity_report(f"training {case}, largest weights", np.abs(largest_weights - golden["weight_linf_norm"]).max(), 1e-3)

    model.eval()
    with torch.no_grad():
        logits = model(**{name: batch[name] for name in ("pixel_values", "decoder_input_ids")}).logits
    parity_report(f"training {case}, final logits", np.abs(logits.numpy() - golden["final_logits"]).max(), 1e-3)

    # Attention keys have biases whose gradient is rounding noise, which Adam turns into steps of full size.
    final = convert_variables(read_model_variables(find_checkpoint(folder / "final")), config)
    weights = model.state_dict()
    assert set(final) <= set(weights)
    largest = max((weights[name] - final[name]).abs().max().item() for name in final if "k_proj.bias" not in name)
    parity_report(f"training {case}, final weights", largest, 1e-3)
