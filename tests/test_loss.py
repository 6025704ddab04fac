import math

import pytest
import torch

from pix2seq_hf.loss_pix2seq import sequence_loss, shift_right, token_losses

LOGITS = torch.tensor([[[2.0, 0.0, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0]]])
LABELS = torch.tensor([[0, 3]])


def written_out(loss_type):
    """The losses of the first token by their formulas, in Python floats."""
    logits = LOGITS[0, 0].tolist()
    total = sum(map(math.exp, logits))
    probabilities = [math.exp(value) / total for value in logits]
    if loss_type == "xent":
        return -math.log(probabilities[0])
    if loss_type == "xent@0.1":
        targets = [0.9 + 0.1 / 4] + [0.1 / 4] * 3
        return -sum(target * math.log(p) for target, p in zip(targets, probabilities, strict=True))
    if loss_type == "focal@2":
        return -((1 - probabilities[0]) ** 2) * math.log(probabilities[0] + 1e-8)
    shifted = [value - math.log(2) for value in logits]  # the log of the sequence length, 2
    return sum(math.log1p(math.exp(-value if k == 0 else value)) for k, value in enumerate(shifted))


@pytest.mark.parametrize("loss_type", ["xent", "xent@0.1", "focal@2", "logistic"])
def test_token_losses_follow_their_formulas(loss_type):
    losses = token_losses(LOGITS, LABELS, loss_type)
    assert losses.shape == LABELS.shape
    assert losses[0, 0].item() == pytest.approx(written_out(loss_type), rel=1e-6)


def test_sequence_loss_is_the_weighted_mean():
    first, second = token_losses(LOGITS, LABELS)[0].tolist()
    weights = torch.tensor([[0.1, 1.0]])
    assert sequence_loss(LOGITS, LABELS, weights).item() == pytest.approx((0.1 * first + second) / 1.1, rel=1e-6)
    assert sequence_loss(LOGITS, LABELS).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_ignored_labels_and_no_weight_at_all():
    ignored = torch.tensor([[0, -100]])
    assert sequence_loss(LOGITS, ignored).item() == pytest.approx(token_losses(LOGITS, LABELS)[0, 0].item())
    assert sequence_loss(LOGITS, LABELS, torch.zeros(1, 2)).item() == 0


def test_shift_right_handles_both_ranks():
    labels = torch.tensor([[[7, -100, 9]]])
    assert shift_right(labels, 10, 0).tolist() == [[[10, 7, 0]]]
    assert labels.tolist() == [[[7, -100, 9]]]
