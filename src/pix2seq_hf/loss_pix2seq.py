"""What does the model pay for a sequence: the reference's token losses and their weighted mean."""

import math

import torch
from torch import nn


def token_losses(logits: torch.Tensor, labels: torch.Tensor, loss_type: str = "xent") -> torch.Tensor:
    r"""Loss of every token.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, length, vocab_size)`): Unnormalised scores.
        labels (`torch.LongTensor` of shape `(batch, length)`): Target tokens, all inside the vocabulary.
        loss_type (`str`): `"xent"`, `"xent@smoothing"`, `"focal@gamma"` or `"logistic"`, as in [`Pix2SeqConfig`].
    Returns:
        `torch.FloatTensor` of shape `(batch, length)`.
    Raises:
        ValueError: If the loss type is unknown.

    Source: `model_utils.get_loss` of the reference implementation."""
    name, _, parameter = loss_type.partition("@")
    parameter = float(parameter or 0)
    logits = logits.float()
    if name == "xent":
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=parameter
        )
        return losses.view_as(labels)
    if name == "focal":
        probabilities = logits.softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
        losses = -torch.log(probabilities + 1e-8)
        return losses * (1 - probabilities) ** parameter if parameter > 0 else losses
    if name == "logistic":
        # The reference subtracts the log of the sequence length, not of the vocabulary size: copied.
        logits = logits - math.log(logits.shape[1])
        targets = nn.functional.one_hot(labels, logits.shape[-1]).to(logits.dtype)
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
    is_target = labels >= 0
    weights = is_target.float() if label_weights is None else label_weights.float() * is_target
    losses = token_losses(logits, labels.clamp(min=0), loss_type)
    return (losses * weights).sum() / (weights.sum() + 1e-9)


def shift_right(labels: torch.Tensor, start_token_id: int, pad_token_id: int) -> torch.Tensor:
    """Decoder inputs for teacher forcing: the start token, then `labels` without their last column."""
    shifted = labels.roll(1, dims=-1)
    shifted[..., 0] = start_token_id
    return shifted.masked_fill(shifted == -100, pad_token_id)
