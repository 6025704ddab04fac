r"""How weights move: the reference's AdamW (the Keras form) and its learning-rate schedules.

The schedules are pure functions of the step, computed in float32 as the reference computes them, so nothing about them
has to be saved with a checkpoint.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

LEARNING_RATE_SCALINGS = ("none", "linear", "sqrt")
LEARNING_RATE_SCHEDULES = ("linear", "cosine", "cosine@<rate>", "exp@<rate>", "none")


def scale_learning_rate(learning_rate: float, scaling: str | None, batch_size: int) -> float:
    r"""Adapt a base learning rate to the batch size.

    Args:
        learning_rate (`float`): Base rate as written in a recipe.
        scaling (`str`, *optional*): `"none"`; `"linear"`: times `batch_size / 256`; `"sqrt"`: times its square root.
        batch_size (`int`): Pictures per optimiser step, over all processes.
    Returns:
        `float`: The peak rate of the schedule.
    Raises:
        ValueError: If `scaling` is none of the three words.
    Source: `WarmUpAndDecay.__init__` of the reference implementation."""
    if scaling is None or scaling == "none":
        return learning_rate
    if scaling == "linear":
        return learning_rate * batch_size / 256.0
    if scaling == "sqrt":
        return learning_rate * math.sqrt(batch_size)
    raise ValueError(f"unknown learning_rate_scaling {scaling!r}: use one of {', '.join(LEARNING_RATE_SCALINGS)}")


@dataclass(frozen=True)
class WarmUpAndDecay:
    r"""Linear warm-up from 0, then a decay; calling it with a step gives that step's learning rate.

    Args:
        peak_learning_rate (`float`): Rate at the end of the warm-up, already scaled by [`scale_learning_rate`].
        total_steps (`int`): Optimiser steps of the whole run.
        warmup_steps (`int`): Steps of the warm-up; the rate of step 0 is 0 if there are any.
        schedule (`str`): `"linear"`, `"cosine"`, `"cosine@r"` (the first part `r` of a cosine), `"exp@r"` (a factor `r`
            over the run) or `"none"`.
        tail_steps (`int`): Steps at the end that stay at the final rate (not for `exp`).
        end_lr_factor (`float`): Final rate of `linear` and `cosine` as a share of the peak.
    Raises:
        ValueError: If the schedule is unknown, has tail steps it cannot have, or has no steps left after the warm-up.
    Source: `WarmUpAndDecay` of the reference implementation and the Keras schedules it calls."""

    peak_learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    schedule: str = "linear"
    tail_steps: int = 0
    end_lr_factor: float = 0.0

    def __post_init__(self):
        name, _, rate = self.schedule.partition("@")
        if name not in ("linear", "cosine", "exp", "none") or (rate and name not in ("cosine", "exp")):
            known = ", ".join(LEARNING_RATE_SCHEDULES)
            raise ValueError(f"unknown learning_rate_schedule {self.schedule!r}: use one of {known}")
        if name == "exp" or rate:
            try:
                valid = float(rate) > 0
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(f"learning_rate_schedule {self.schedule!r} needs a positive number after '@'")
        if name == "exp" and self.tail_steps:
            raise ValueError(f"tail_steps={self.tail_steps} has no effect with schedule {self.schedule!r}: set it to 0")
        if name != "none" and self.total_steps - self.warmup_steps - self.tail_steps < 1:
            raise ValueError(
                f"no steps left to decay in: total_steps={self.total_steps}, warmup_steps={self.warmup_steps}, "
                f"tail_steps={self.tail_steps}"
            )

    def __call__(self, step: int) -> float:
        r"""The learning rate used at optimiser step `step` (the first step is 0), a float32 value."""
        peak = np.float32(self.peak_learning_rate)
        if step < self.warmup_steps:
            return float(np.float32(step) / np.float32(self.warmup_steps) * peak)
        name, _, rate = self.schedule.partition("@")
        if name == "none":
            return float(peak)

        decay_steps = self.total_steps - self.warmup_steps - self.tail_steps
        if name == "cosine" and rate:
            decay_steps = decay_steps / float(rate)
        decay_steps = np.float32(decay_steps)
        position = np.float32(step - self.warmup_steps)
        if name == "exp":  # goes on falling after the last step
            # A power of a float32 base, rounded once at the end, as the reference's kernel does.
            power = np.float32(math.pow(float(np.float32(rate)), float(position / decay_steps)))
            return float(peak * power)

        progress = min(position, decay_steps) / decay_steps
        if name == "linear":
            end = np.float32(self.peak_learning_rate * self.end_lr_factor)
            return float((peak - end) * (np.float32(1) - progress) + end)
        angle = np.float32(math.pi) * progress
        cosine = np.float32(0.5) * (np.float32(1) + np.float32(math.cos(float(angle))))
        return float(peak * (np.float32(1 - self.end_lr_factor) * cosine + np.float32(self.end_lr_factor)))


class AdamW(torch.optim.Optimizer):
    r"""AdamW as Keras computes it.

    It differs from `torch.optim.AdamW` in one place: epsilon is added to the square root of the *uncorrected* second
    moment (the bias corrections are folded into the step size), which makes a difference while gradients are small and
    the run is young. As there, weights decay by `lr * weight_decay` of their value before the step. All parameters of a
    group share one step count, so a parameter that sometimes has no gradient sees the count of the whole run.

    Args:
        params: Parameters or parameter groups, for instance from [`group_parameters`].
        lr (`float`): Learning rate; a training loop sets it before every step.
        betas (`tuple[float, float]`): Decay rates of the first and second moment.
        eps (`float`): Epsilon outside the bias correction.
        weight_decay (`float`): Decoupled weight decay, a share of the weight per unit of learning rate.
    Raises:
        ValueError: If a number is outside its range.
    Source: `tf.keras.optimizers.AdamW` of Keras 2.15, which the reference implementation uses."""

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"lr={lr}, eps={eps} and weight_decay={weight_decay} must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must be in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure=None):
        r"""Move every parameter that has a gradient; returns the closure's loss if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            group["step"] += 1
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            for param in params:
                if not self.state[param]:
                    self.state[param]["exp_avg"] = torch.zeros_like(param)
                    self.state[param]["exp_avg_sq"] = torch.zeros_like(param)
            grads = [param.grad for param in params]
            exp_avgs = [self.state[param]["exp_avg"] for param in params]
            exp_avg_sqs = [self.state[param]["exp_avg_sq"] for param in params]

            lr, step = group["lr"], group["step"]
            beta1, beta2 = group["betas"]
            if group["weight_decay"]:
                # As `p - lr * decay * p`, not `p * (1 - lr * decay)`: that factor would be rounded next to 1, which
                # changes the decay by per cents at small learning rates.
                torch._foreach_add_(params, params, alpha=-lr * group["weight_decay"])
            torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
            torch._foreach_mul_(exp_avg_sqs, beta2)
            torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)
            denominators = torch._foreach_sqrt(exp_avg_sqs)
            torch._foreach_add_(denominators, group["eps"])
            step_size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
            torch._foreach_addcdiv_(params, exp_avgs, denominators, value=-step_size)
        return loss


def group_parameters(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float, exclude: Iterable[str] = ()
) -> list[dict]:
    r"""Split trainable parameters into those that decay and those that do not.

    Args:
        named_parameters: As `model.named_parameters()` gives them.
        weight_decay (`float`): Decay of the first group.
        exclude (`Iterable[str]`): Regular expressions; a parameter whose name contains a match does not decay. The
            default excludes nothing: the reference decays biases, norms and embeddings too.
    Returns:
        `list[dict]`: One or two parameter groups for [`AdamW`], none of them empty.
    Raises:
        ValueError: If an expression is not valid, or matches no parameter (a spelling mistake would go unseen).
    """
    named_parameters = [(name, param) for name, param in named_parameters if param.requires_grad]
    kept_out = set()
    for pattern in exclude:
        try:
            matches = {name for name, _ in named_parameters if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"exclude_from_weight_decay: {pattern!r} is not a regular expression ({error})") from error
        if not matches:
            raise ValueError(f"exclude_from_weight_decay: {pattern!r} matches no parameter of the model")
        kept_out |= matches
    groups = [
        {"params": [param for name, param in named_parameters if name not in kept_out], "weight_decay": weight_decay},
        {"params": [param for name, param in named_parameters if name in kept_out], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
