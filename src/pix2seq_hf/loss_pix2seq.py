"""What does the model pay for a sequence: the reference's token losses and their weighted mean."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from .linear_pix2seq import Pix2SeqLinear, linear

# Positions whose logits exist at once: 36 MB in float32 with 35,000 words.
ROWS_AT_ONCE = 256


def token_losses(
    logits: torch.Tensor, labels: torch.Tensor, loss_type: str = "xent", length: int | None = None
) -> torch.Tensor:
    r"""Loss of every token.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, length, vocab_size)`): Unnormalised scores; with `length` given,
            those of any positions, `(num_positions, vocab_size)`.
        labels (`torch.LongTensor` of the shape of `logits` without its last axis): Target tokens, all inside the
            vocabulary.
        loss_type (`str`): `"xent"`, `"xent@smoothing"`, `"focal@gamma"` or `"logistic"`, as in [`Pix2SeqConfig`].
        length (`int`, *optional*): Of a whole sequence.
    Returns:
        `torch.FloatTensor` of the shape of `labels`.
    Raises:
        ValueError: If the loss type is unknown.

    Source: `model_utils.get_loss` of the reference implementation."""
    name, _, parameter = loss_type.partition("@")
    parameter = float(parameter or 0)
    logits = logits.float()
    if name == "xent":
        losses = nn.functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=parameter
        )
        return losses.view_as(labels)
    if name == "focal":
        probabilities = logits.softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
        losses = -torch.log(probabilities + 1e-8)
        return losses * (1 - probabilities) ** parameter if parameter > 0 else losses
    if name == "logistic":
        # The reference subtracts the log of the sequence length, not of the vocabulary size: copied.
        logits = logits - math.log(length or logits.shape[1])
        targets = torch.zeros_like(logits).scatter_(-1, labels[..., None], 1.0)
        if parameter > 0:
            targets = parameter + targets * (1 - 2 * parameter)
        return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)
    raise ValueError(f"unknown loss_type {loss_type!r}: write xent, xent@0.1, focal@2 or logistic")


def sequence_loss(
    logits: torch.Tensor, labels: torch.Tensor, label_weights: torch.Tensor | None = None, loss_type: str = "xent"
) -> torch.Tensor:
    r"""Weighted mean of the token losses: `sum(loss * weight) / (sum(weight) + 1e-9)`.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, length, vocab_size)`): Unnormalised scores.
        labels (`torch.LongTensor` of shape `(batch, length)`): Target tokens; -100 is ignored.
        label_weights (`torch.FloatTensor` of shape `(batch, length)`, *optional*): 1 everywhere by default.
        loss_type (`str`): See [`token_losses`].
    Returns:
        `torch.FloatTensor`: One number.

    Source: `ARTrainer.compute_loss` of the reference implementation."""
    weights = _position_weights(labels, label_weights)
    losses = token_losses(logits, labels.clamp(min=0), loss_type)
    return (losses * weights).sum() / (weights.sum() + 1e-9)


@torch.compiler.disable  # how many positions count is known only when it runs
def projected_loss(
    hidden_states: torch.Tensor,
    head: nn.Module,
    labels: torch.Tensor,
    label_weights: torch.Tensor | None = None,
    loss_type: str = "xent",
) -> torch.Tensor:
    r"""[`sequence_loss`] of the logits `head(hidden_states)`, which never exist all at once.

    Positions without weight get no logits. The others get theirs [`ROWS_AT_ONCE`] at a time, and once more for the
    gradient. A head whose call does more than a matrix product (an adapter, quantised or sharded weights, hooks) is
    called once, for all positions that count; what is then cut is the loss in float32.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(batch, length, hidden_size)`): Of the decoder.
        head (`nn.Module`): From `hidden_size` to `vocab_size`.
        labels, label_weights, loss_type: See [`sequence_loss`].
    Returns:
        `torch.FloatTensor`: One number."""
    weights = _position_weights(labels, label_weights)
    counted = weights.flatten().nonzero().squeeze(-1)
    if not len(counted):
        counted = counted.new_zeros(1)  # so that every parameter gets a gradient, which other processes wait for
    inputs = hidden_states.flatten(0, 1).index_select(0, counted)  # (num_counted, hidden_size)
    weight = bias = None
    head = getattr(head, "_orig_mod", head)  # compiled by itself, it is what it was
    if _is_plain(head):
        weight, bias = head.weight, head.bias
    else:
        inputs = head(inputs)
    labels, length = labels.clamp(min=0), labels.shape[-1]
    total = _LossInParts.apply(
        inputs, weight, bias, labels.flatten()[counted], weights.flatten()[counted], loss_type, length
    )
    return total / (weights.sum() + 1e-9)


def _position_weights(labels: torch.Tensor, label_weights: torch.Tensor | None) -> torch.Tensor:
    is_target = labels >= 0
    return is_target.float() if label_weights is None else label_weights.float() * is_target


def _is_plain(head: nn.Module) -> bool:
    """Whether calling the head is no more than multiplying with its weight and adding its bias."""
    has_hooks = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    return type(head) in (nn.Linear, Pix2SeqLinear) and "forward" not in vars(head) and not has_hooks


class _LossInParts(torch.autograd.Function):
    """Sum of the weighted losses of positions; `inputs` are their hidden states, or without `weight` their logits."""

    @staticmethod
    def forward(context, inputs, weight, bias, labels, label_weights, loss_type, length):
        device_type = inputs.device.type
        is_half = weight is not None and torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_half else inputs.dtype
        context.save_for_backward(inputs, weight, bias, labels, label_weights)
        context.options = (loss_type, length, dtype)
        total = torch.zeros((), device=inputs.device)
        with torch.autocast(device_type, enabled=False):
            factor, offset = _cast(weight, dtype), _cast(bias, dtype)
            for part in _parts(len(inputs)):
                logits = _project(inputs[part].to(dtype), factor, offset)
                total += (token_losses(logits, labels[part], loss_type, length) * label_weights[part]).sum()
                del logits
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, scale):
        inputs, weight, bias, labels, label_weights = context.saved_tensors
        loss_type, length, dtype = context.options
        input_grad = torch.empty_like(inputs) if context.needs_input_grad[0] else None
        # The parts' gradients add up in float32, whatever the precision of the products.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if context.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if context.needs_input_grad[2] else None
        factor, offset = _cast(weight, dtype), _cast(bias, dtype)
        for part in _parts(len(inputs)):
            hidden_states = inputs[part].to(dtype)
            logits = _project(hidden_states, factor, offset).detach().requires_grad_()
            with torch.enable_grad():
                loss = (token_losses(logits, labels[part], loss_type, length) * label_weights[part]).sum()
            (logits_grad,) = torch.autograd.grad(loss, logits, scale)
            del loss, logits  # two matrices of logits less while the next are made
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0)
            logits_grad = logits_grad.to(dtype)
            if input_grad is not None:
                input_grad[part] = logits_grad if weight is None else logits_grad @ factor
            if weight_grad is not None:
                _add_product(weight_grad, logits_grad.T, hidden_states)
            del logits_grad
        return input_grad, weight_grad, bias_grad, None, None, None, None


def _parts(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, num_rows, ROWS_AT_ONCE))


def _cast(parameter: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if parameter is None else parameter.detach().to(dtype)


def _project(inputs: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """Logits in float32."""
    return (inputs if weight is None else linear(inputs, weight, bias)).float()


def _add_product(total: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """Add `first @ second` to a float32 matrix."""
    if first.dtype == total.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second


def shift_right(labels: torch.Tensor, start_token_id: int, pad_token_id: int) -> torch.Tensor:
    """Decoder inputs for teacher forcing: the start token, then `labels` without their last column."""
    shifted = labels.roll(1, dims=-1)
    shifted[..., 0] = start_token_id
    return shifted.masked_fill(shifted == -100, pad_token_id)
