"""Linear layers on a processor: oneDNN's numbers are torch's, and where they may not be used torch's own are."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pix2seq_hf import linear_pix2seq
from pix2seq_hf.linear_pix2seq import Pix2SeqLinear, linear

needs_onednn = pytest.mark.skipif(linear_pix2seq.onednn_linear is None, reason="this torch has no oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the inputs that oneDNN was given."""
    shapes, onednn_linear = [], linear_pix2seq.onednn_linear

    def count(inputs, *others):
        shapes.append(tuple(inputs.shape))
        return onednn_linear(inputs, *others)

    monkeypatch.setattr(linear_pix2seq, "onednn_linear", count)
    return shapes


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (2, 3, 48), (2, 1, 5, 48)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_numbers_are_those_of_torch(shape, has_bias, calls):
    torch.manual_seed(0)
    layer, inputs = Pix2SeqLinear(48, 20, bias=has_bias), torch.randn(shape)
    with torch.no_grad():
        found = layer(inputs)
    assert calls == [shape]
    torch.testing.assert_close(found, nn.functional.linear(inputs, layer.weight, layer.bias), rtol=0, atol=1e-6)


@needs_onednn
@pytest.mark.parametrize("wants_gradient", [True, False])
def test_gelu_on_the_way(wants_gradient, calls):
    torch.manual_seed(0)
    layer, inputs = Pix2SeqLinear(48, 20), 3 * torch.randn(5, 48)
    with torch.set_grad_enabled(wants_gradient):
        found = layer(inputs, use_gelu=True)
    expected = nn.functional.gelu(nn.functional.linear(inputs, layer.weight, layer.bias))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(calls) == 1 and found.requires_grad == wants_gradient


@needs_onednn
@pytest.mark.parametrize("wants_gradient", [True, False])
@pytest.mark.parametrize(("has_wide_vectors", "expected"), [(True, 3), (False, 1)])
def test_many_rows_are_for_wide_vectors(has_wide_vectors, expected, wants_gradient, calls, monkeypatch):
    monkeypatch.setattr(linear_pix2seq, "has_wide_vectors", has_wide_vectors)
    torch.manual_seed(0)
    layer = Pix2SeqLinear(48, 20)
    with torch.set_grad_enabled(wants_gradient):
        for shape in [(255, 48), (256, 48), (4, 100, 48)]:
            inputs = torch.randn(shape)
            plain = nn.functional.gelu(nn.functional.linear(inputs, layer.weight, layer.bias))
            torch.testing.assert_close(layer(inputs, use_gelu=True), plain, rtol=0, atol=1e-6)
    assert len(calls) == expected


@needs_onednn
@torch.no_grad()
def test_a_weight_that_is_a_view_is_left_to_torch(calls):
    weight = torch.randn(48, 30).T
    assert linear(torch.ones(2, 48), weight).equal(nn.functional.linear(torch.ones(2, 48), weight)) and not calls


@needs_onednn
@torch.no_grad()
def test_parts_and_views(calls):
    torch.manual_seed(0)
    weight, bias, inputs = torch.randn(30, 48), torch.randn(30), torch.randn(4, 6, 48)
    for rows, part in [
        (inputs[:, -1], slice(None)),
        (inputs[:, ::2], slice(10, 20)),
        (inputs.mT.contiguous().mT, slice(3)),
    ]:
        expected = nn.functional.linear(rows, weight[part], bias[part])
        torch.testing.assert_close(linear(rows, weight[part], bias[part]), expected, rtol=0, atol=1e-5)
    assert len(calls) == 3


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 48), (2, 3, 48)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradients_are_those_of_torch(shape, has_bias, calls):
    torch.manual_seed(0)
    layer, inputs = Pix2SeqLinear(48, 20, bias=has_bias), torch.randn(shape, requires_grad=True)
    wanted = [inputs, *layer.parameters()]
    towards = torch.randn(*shape[:-1], 20)
    found = torch.autograd.grad(layer(inputs), wanted, towards)
    expected = torch.autograd.grad(nn.functional.linear(inputs, layer.weight, layer.bias), wanted, towards)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert len(calls) == 3


@needs_onednn
def test_only_gradients_that_are_wanted(calls):
    layer = Pix2SeqLinear(48, 20).requires_grad_(False)
    inputs = torch.randn(2, 48, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad is not None and len(calls) == 2
    layer.bias.requires_grad_(True)
    layer(inputs.detach()).sum().backward()
    assert layer.bias.grad.tolist() == [2.0] * 20 and len(calls) == 3


def test_transformed_functions(calls):
    layer, inputs = Pix2SeqLinear(8, 4), torch.randn(3, 8)
    assert torch.func.vmap(layer)(inputs).shape == (3, 4)
    assert torch.func.jacrev(layer)(inputs[0]).equal(layer.weight)
    assert not calls


@torch.no_grad()
def test_what_is_not_plain_is_left_to_torch(calls):
    layer = Pix2SeqLinear(8, 4)
    assert layer(torch.zeros(0, 8)).shape == (0, 4)
    assert layer.to(torch.bfloat16)(torch.zeros(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer = layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(2, 8)).dtype == torch.bfloat16
    assert layer.to("meta")(torch.zeros(2, 8, device="meta")).device.type == "meta"
    exported = torch.export.export(Pix2SeqLinear(8, 4), (torch.zeros(2, 8),)).module()
    assert exported(torch.ones(2, 8)).shape == (2, 4)
    assert not calls


def test_without_onednn_torch_does_it(monkeypatch):
    monkeypatch.setattr(linear_pix2seq, "onednn_linear", None)
    layer = Pix2SeqLinear(8, 4)
    with torch.no_grad():
        assert layer(torch.ones(2, 8)).equal(nn.functional.linear(torch.ones(2, 8), layer.weight, layer.bias))


needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no FBGEMM"
)


@needs_fbgemm
@pytest.mark.parametrize("shape", [(1, 64), (80, 64), (2, 3, 64)])
@pytest.mark.parametrize("use_gelu", [True, False])
def test_int8_is_near_and_only_without_gradients(shape, use_gelu):
    torch.manual_seed(0)
    layer, inputs = Pix2SeqLinear(64, 48), torch.randn(shape)
    exact = layer(inputs, use_gelu)
    layer.use_int8 = True
    assert torch.equal(layer(inputs, use_gelu), exact)  # gradients are wanted
    with torch.no_grad():
        found = layer(inputs, use_gelu)
    assert 0 < (found - exact).std() < 0.03 * exact.std()


@needs_fbgemm
@torch.no_grad()
def test_int8_follows_its_weight_and_is_not_saved():
    layer, inputs = Pix2SeqLinear(16, 16), torch.randn(4, 16)
    names = set(layer.state_dict())
    layer.use_int8 = True
    before = layer(inputs)
    layer.weight.mul_(2)
    layer.bias.mul_(2)
    torch.testing.assert_close(layer(inputs), 2 * before)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # as for other processes
        assert not twin.int8_weights.kept and torch.equal(twin(inputs), layer(inputs))
    assert set(layer.state_dict()) == names
    some = layer.int8_weight(range(3, 7))(inputs)
    torch.testing.assert_close(some, layer(inputs)[:, 3:7])
    assert layer.int8_weight(range(3, 7)) is layer.int8_weight(range(3, 7))  # made once


def test_a_torch_without_int8_says_so(monkeypatch):
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", property(lambda self: ["none"]))
    with pytest.raises(ValueError, match="int8 needs a torch with FBGEMM"):
        linear_pix2seq.Int8Weight(torch.ones(2, 2))
