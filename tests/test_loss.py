import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pix2seq_hf import loss_pix2seq
from pix2seq_hf.loss_pix2seq import ROWS_AT_ONCE, projected_loss, sequence_loss, shift_right, token_losses
from tiny_models import make_model, make_pictures, make_tokens

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


# --- Without making the logits ----------------------------------------------------------------------------------------

BATCH, LENGTH, SIZE, WORDS = 3, 11, 6, 40
LOSS_TYPES = ["xent", "xent@0.1", "focal@2", "logistic"]


class LinearOfItsOwn(torch.nn.Linear):
    """Stands for adapters and quantised weights: what its call does is not to be guessed from its weight."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) + hidden_states.sum(-1, keepdim=True) * self.weight.sum(-1)


def make_positions(seed=0):
    """Hidden states, labels of which one is ignored, and weights of which a third is zero."""
    generator = torch.Generator().manual_seed(seed)
    hidden_states = torch.randn(BATCH, LENGTH, SIZE, generator=generator).requires_grad_()
    labels = torch.randint(0, WORDS, (BATCH, LENGTH), generator=generator)
    labels[0, 0] = -100
    weights = torch.rand(BATCH, LENGTH, generator=generator) * (torch.arange(LENGTH) % 3 > 0)
    return hidden_states, labels, weights


def make_head(kind=torch.nn.Linear, **options):
    torch.manual_seed(0)
    return kind(SIZE, WORDS, **options)


def gradients_of(loss, hidden_states, head):
    return torch.autograd.grad(loss, [hidden_states, *head.parameters()])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("use_bias", [True, False])
def test_projected_loss_is_the_loss_of_the_logits(loss_type, use_bias, monkeypatch):
    monkeypatch.setattr(loss_pix2seq, "ROWS_AT_ONCE", 4)  # 20 or 21 positions count: chunks of unequal size
    hidden_states, labels, weights = make_positions()
    head = make_head(bias=use_bias)
    for label_weights in (weights, None):
        expected = sequence_loss(head(hidden_states), labels, label_weights, loss_type)
        found = projected_loss(hidden_states, head, labels, label_weights, loss_type)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        for ours, plain in zip(
            gradients_of(found, hidden_states, head), gradients_of(expected, hidden_states, head), strict=True
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            assert projected_loss(hidden_states, head, labels, label_weights, loss_type) == found


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest result of any operation."""

    num_elements = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_logits_never_exist_all_at_once(loss_type):
    num_rows = 5 * ROWS_AT_ONCE
    labels = torch.randint(0, WORDS, (5, ROWS_AT_ONCE))
    hidden_states, head = torch.randn(5, ROWS_AT_ONCE, SIZE, requires_grad=True), make_head()
    with LargestTensor() as plain:
        sequence_loss(head(hidden_states), labels, None, loss_type).backward()
    with LargestTensor() as ours:
        projected_loss(hidden_states, head, labels, None, loss_type).backward()
    assert plain.num_elements == num_rows * WORDS
    assert ours.num_elements == ROWS_AT_ONCE * WORDS


def test_positions_without_weight_are_not_looked_at():
    hidden_states, labels, weights = make_positions()
    head = make_head()
    expected = projected_loss(hidden_states, head, labels, weights)
    spoiled = hidden_states.detach().masked_fill((weights == 0)[..., None], math.nan).requires_grad_()
    loss = projected_loss(spoiled, head, labels, weights)
    assert loss == expected
    loss.backward()
    assert (spoiled.grad[weights == 0] == 0).all() and spoiled.grad.isfinite().all()


def test_no_weight_at_all_still_gives_every_parameter_a_gradient():
    hidden_states, labels, weights = make_positions()
    head = make_head()
    loss = projected_loss(hidden_states, head, labels, weights * 0)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients_of(loss, hidden_states, head))


@pytest.mark.parametrize("kind", ["subclass", "hook", "patched"])
def test_a_head_that_does_more_is_called_once(kind, monkeypatch):
    monkeypatch.setattr(loss_pix2seq, "ROWS_AT_ONCE", 4)
    head = make_head(LinearOfItsOwn if kind == "subclass" else torch.nn.Linear)
    calls = []
    if kind == "hook":
        head.register_forward_hook(lambda module, inputs, output: output * 2)
    if kind == "patched":
        forward = head.forward
        head.forward = lambda hidden_states: forward(hidden_states) * 3
    hidden_states, labels, weights = make_positions()
    expected = sequence_loss(head(hidden_states), labels, weights)
    head.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    found = projected_loss(hidden_states, head, labels, weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for ours, plain in zip(
        gradients_of(found, hidden_states, head), gradients_of(expected, hidden_states, head), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
    assert calls == [(int((weights * (labels >= 0) > 0).sum()), SIZE)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exact_to_its_last_digit(dtype, monkeypatch):
    monkeypatch.setattr(loss_pix2seq, "ROWS_AT_ONCE", 4)
    hidden_states, labels, weights = make_positions()
    head = make_head()
    expected = gradients_of(sequence_loss(head(hidden_states), labels, weights), hidden_states, head)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
    with torch.autocast("cpu", dtype=dtype):
        loss = projected_loss(hidden_states, head, labels, weights)
    assert loss.dtype == torch.float32
    found = gradients_of(scaler.scale(loss), hidden_states, head)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours / scaler.get_scale() - exact).norm() < torch.finfo(dtype).eps * exact.norm()


def make_training_batch():
    weights = (torch.arange(6) < 4).float().expand(4, 6)  # two sequences a picture, padded
    return {"pixel_values": make_pictures(2), "labels": make_tokens(4, 6), "label_weights": weights}


@pytest.mark.parametrize("is_tied", [True, False])
def test_training_mode_skips_the_logits_and_learns_the_same(is_tied):
    model = make_model(tie_word_embeddings=is_tied, drop_path_rate=0.0, drop_units_rate=0.0).train()
    gradients = {}
    for skip_logits in (None, False):
        model.zero_grad()
        output = model(**make_training_batch(), skip_logits=skip_logits)
        assert (output.logits is None) == (skip_logits is None)
        output.loss.backward()
        gradients[skip_logits] = [parameter.grad.clone() for parameter in model.parameters()]
    torch.testing.assert_close(gradients[None], gradients[False], rtol=1e-4, atol=1e-7)


def test_evaluation_mode_gives_logits_unless_told_not_to():
    model, batch = make_model(), make_training_batch()
    with torch.no_grad():
        output, skipped = model(**batch), model(**batch, skip_logits=True)
    assert output.logits.shape == (4, 6, model.config.vocab_size) and skipped.logits is None
    torch.testing.assert_close(skipped.loss, output.loss, rtol=1e-6, atol=0)
    assert model.train()(batch["pixel_values"], decoder_input_ids=batch["labels"]).logits is not None
    with pytest.raises(ValueError, match="skip_logits=True leaves nothing to return without labels"):
        model(batch["pixel_values"], skip_logits=True)
