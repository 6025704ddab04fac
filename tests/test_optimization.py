"""The optimiser and the schedules against their definitions, worked out by hand or in float64."""

import math

import numpy as np
import pytest
import torch

from pix2seq_hf.training.optimization import AdamW, WarmUpAndDecay, group_parameters, scale_learning_rate


def keras_adamw(values, gradients, lr, beta1, beta2, eps, weight_decay):
    """One weight vector through several steps in float64, as the formula stands in the Keras documentation."""
    values, first, second = values.astype(np.float64), 0.0, 0.0
    for step, gradient in enumerate(gradients.astype(np.float64), start=1):
        values = values - lr * weight_decay * values
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        alpha = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        values = values - alpha * first / (np.sqrt(second) + eps)
    return values


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_adamw_follows_the_keras_formula(eps):
    generator = np.random.default_rng(0)
    values, gradients = generator.normal(size=12).astype("f4"), generator.normal(size=(9, 12)).astype("f4")
    parameter = torch.nn.Parameter(torch.from_numpy(values.copy()))
    optimizer = AdamW([parameter], lr=1e-2, betas=(0.9, 0.95), eps=eps, weight_decay=0.05)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    expected = keras_adamw(values, gradients, 1e-2, 0.9, 0.95, eps, 0.05)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-6)


def test_epsilon_is_outside_the_bias_correction():
    steps = {}
    for optimizer_class in (AdamW, torch.optim.AdamW):
        parameter = torch.nn.Parameter(torch.zeros(1))
        parameter.grad = torch.ones(1)
        optimizer_class([parameter], lr=1.0, betas=(0.9, 0.99), eps=0.1, weight_decay=0.0).step()
        steps[optimizer_class] = -parameter.item()
    # first moment 0.1, second 0.01; Keras: sqrt(0.01) / 0.1 * 0.1 / (sqrt(0.01) + 0.1)
    assert steps[AdamW] == pytest.approx(0.5, abs=1e-6)
    assert steps[torch.optim.AdamW] == pytest.approx(1 / 1.1, abs=1e-6)


def test_small_weight_decay_is_not_lost_in_rounding():
    parameter = torch.nn.Parameter(torch.linspace(1, 2, 10_001))
    before = parameter.detach().double().clone()
    optimizer = AdamW([parameter], lr=3e-5, weight_decay=0.05)
    for _ in range(200):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    shrinkage = (1 - parameter.detach().double() / before).mean().item()
    assert shrinkage == pytest.approx(200 * 3e-5 * 0.05, rel=0.03)


def test_parameters_without_gradient_stay_and_share_the_step_count():
    frozen, late = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([frozen, late], lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(3)) and torch.equal(late, torch.ones(3))
    late.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(3))
    alpha = 0.1 * math.sqrt(1 - 0.99**2) / (1 - 0.9**2)  # corrections of the second step
    assert late[0].item() == pytest.approx(0.95 - alpha * 0.1 / math.sqrt(0.01), abs=1e-5)


def test_state_survives_saving():
    def run(steps, optimizer, parameter):
        for step in steps:
            parameter.grad = torch.full((4,), math.sin(step))
            optimizer.step()

    straight = torch.nn.Parameter(torch.ones(4))
    run(range(6), AdamW([straight]), straight)
    first = torch.nn.Parameter(torch.ones(4))
    optimizer = AdamW([first])
    run(range(3), optimizer, first)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = AdamW([second])
    resumed.load_state_dict(optimizer.state_dict())
    run(range(3, 6), resumed, second)
    assert torch.equal(second, straight)


def test_impossible_optimizer_settings_are_refused():
    with pytest.raises(ValueError, match="weight_decay=-1"):
        AdamW([torch.nn.Parameter(torch.ones(1))], weight_decay=-1)
    with pytest.raises(ValueError, match=r"betas=\(0.9, 1.0\)"):
        AdamW([torch.nn.Parameter(torch.ones(1))], betas=(0.9, 1.0))


def test_group_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    (group,) = group_parameters(model.named_parameters(), 0.05)
    assert len(group["params"]) == 4 and group["weight_decay"] == 0.05
    model[0].weight.requires_grad_(False)
    decayed, kept_out = group_parameters(model.named_parameters(), 0.05, [r"bias$"])
    assert [len(decayed["params"]), len(kept_out["params"])] == [1, 2] and kept_out["weight_decay"] == 0
    with pytest.raises(ValueError, match="'biaz' matches no parameter"):
        group_parameters(model.named_parameters(), 0.05, ["biaz"])
    with pytest.raises(ValueError, match="not a regular expression"):
        group_parameters(model.named_parameters(), 0.05, ["("])


def test_learning_rate_scaling():
    assert scale_learning_rate(1e-3, "none", 128) == 1e-3
    assert scale_learning_rate(1e-3, "linear", 128) == 5e-4
    assert scale_learning_rate(1e-3, "sqrt", 16) == 4e-3
    with pytest.raises(ValueError, match="'square'"):
        scale_learning_rate(1e-3, "square", 16)


def test_schedules_at_their_corners():
    linear = WarmUpAndDecay(1.0, total_steps=14, warmup_steps=4, schedule="linear", end_lr_factor=0.5)
    assert [linear(step) for step in (0, 1, 4, 9, 14, 99)] == [0.0, 0.25, 1.0, 0.75, 0.5, 0.5]
    tail = WarmUpAndDecay(1.0, total_steps=14, warmup_steps=4, schedule="linear", tail_steps=5, end_lr_factor=0.5)
    assert [tail(step) for step in (4, 9, 14)] == [1.0, 0.5, 0.5]
    cosine = WarmUpAndDecay(1.0, total_steps=10, schedule="cosine")
    assert [cosine(0), cosine(5), cosine(10)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    half = WarmUpAndDecay(1.0, total_steps=10, schedule="cosine@0.5")
    assert half(10) == pytest.approx(0.5, abs=1e-6)
    exponential = WarmUpAndDecay(1.0, total_steps=10, schedule="exp@0.01")
    assert [exponential(0), exponential(5), exponential(10)] == pytest.approx([1.0, 0.1, 0.01], rel=1e-6)
    constant = WarmUpAndDecay(1.0, total_steps=10, warmup_steps=2, schedule="none")
    assert [constant(step) for step in (0, 1, 2, 10)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"schedule": "linaer"}, "unknown learning_rate_schedule 'linaer'"),
        ({"schedule": "linear@0.5"}, "unknown learning_rate_schedule"),
        ({"schedule": "exp"}, "positive number after '@'"),
        ({"schedule": "cosine@x"}, "positive number after '@'"),
        ({"schedule": "exp@0.1", "tail_steps": 2}, "tail_steps=2"),
        ({"warmup_steps": 10}, "no steps left"),
    ],
)
def test_impossible_schedules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WarmUpAndDecay(1e-3, total_steps=10, **settings)
