"""Attention on a processor: whichever kernel suits it, the numbers are those of attention written out."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from pix2seq_hf import modeling_pix2seq_attention
from pix2seq_hf.modeling_pix2seq_attention import Pix2SeqAttention, eager_attention_forward
from tiny_models import make_config


@pytest.fixture
def used(monkeypatch):
    """Names of the kernels that were used, on a processor with wide vectors."""
    names = []
    monkeypatch.setattr(modeling_pix2seq_attention, "has_wide_vectors", True)
    for name in ("eager_attention_forward", "product_attention_forward"):
        kernel = getattr(modeling_pix2seq_attention, name)

        def count(*args, kernel=kernel, name=name, **kwargs):
            names.append(name)
            return kernel(*args, **kwargs)

        monkeypatch.setattr(modeling_pix2seq_attention, name, count)
    return names


def make_attention(implementation="sdpa", **options):
    config = make_config()
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return Pix2SeqAttention(config, 24, 3, **options).eval()


def written_out(attention, hidden_states, source=None):
    """The definition, with the weights of the layer."""
    source = hidden_states if source is None else source
    split = [
        layer(states).unflatten(-1, (3, 8)).transpose(1, 2)
        for layer, states in ((attention.q_proj, hidden_states), (attention.k_proj, source), (attention.v_proj, source))
    ]
    return attention.out_proj(eager_attention_forward(attention, *split, None, attention.scaling)[0].flatten(2))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [255, 256, 801])
@torch.no_grad()
def test_many_queries(batch, length, used):
    attention, hidden_states = make_attention(), torch.randn(batch, length, 24)
    found, weights = attention(hidden_states)
    assert weights is None and used == (["product_attention_forward"] if length > 255 else [])
    torch.testing.assert_close(found, written_out(attention, hidden_states), rtol=0, atol=1e-5)


@torch.no_grad()
def test_many_queries_without_wide_vectors(used, monkeypatch):
    monkeypatch.setattr(modeling_pix2seq_attention, "has_wide_vectors", False)
    attention, hidden_states = make_attention(), torch.randn(2, 300, 24)
    found, _ = attention(hidden_states)
    assert not used
    torch.testing.assert_close(found, written_out(attention, hidden_states), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_sequences", [1, 4, 150])
@torch.no_grad()
def test_steps_of_sequences_that_look_at_a_picture(num_sequences, used):
    attention = make_attention(layer_idx=0)
    cache, picture = EncoderDecoderCache(DynamicCache(), DynamicCache()), torch.randn(2, 30, 24)
    for _ in range(3):
        hidden_states = torch.randn(2 * num_sequences, 1, 24)
        found, _ = attention(hidden_states, key_value_states=picture, cache=cache)
        expected = written_out(attention, hidden_states, picture.repeat_interleave(num_sequences, 0))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert set(used) == {"eager_attention_forward"}


@torch.no_grad()
def test_a_choice_is_heeded(used):
    hidden_states = torch.randn(1, 300, 24)
    make_attention("eager")(hidden_states)
    assert used.pop() == "eager_attention_forward"
    causal = make_attention(is_causal=True)(hidden_states)[0]
    torch.testing.assert_close(causal[:, -1:], make_attention()(hidden_states)[0][:, -1:], rtol=0, atol=1e-5)
    assert used == ["product_attention_forward"]  # not of the causal one
    with torch.enable_grad():
        make_attention()(hidden_states)[0].sum().backward()
    assert len(used) == 1
