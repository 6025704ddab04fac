"""A new network that begins with neighbours alike."""

import pytest
import torch

from pix2seq_hf import Pix2SeqConfig
from pix2seq_hf.training.arguments import ModelArguments
from pix2seq_hf.training.build import build_model
from pix2seq_hf.training.smooth_start import grid_waves, sine_waves

SIZES = {
    "image_size": (128, 192), "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "decoder_hidden_size": 64, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "vocab_size": 320, "coord_vocab_shift": 110,
    "quantization_bins": 200, "text_vocab_shift": 310, "max_instances_per_image": 4, "max_position_embeddings": 20,
}  # fmt: skip


def build(**fields):
    torch.manual_seed(0)
    arguments = ModelArguments(config={**SIZES, **fields}, smooth_start=True)
    return build_model(arguments, {1: "cat", 2: "dog"})[0]


def likeness(table, distance):
    """Mean cosine of rows so far from each other."""
    return torch.cosine_similarity(table[:-distance], table[distance:], dim=-1).mean().item()


def test_coordinates_that_are_close_are_alike():
    table = build().get_input_embeddings().weight.detach()
    words = table[110:310]
    assert likeness(words, 1) > 0.8 > 0.5 > likeness(words, 20) > likeness(words, 100)
    assert abs(likeness(table[:110], 1)) < 0.1 and abs(likeness(table[310:], 1)) < 0.2  # the others are drawn as ever
    assert words.std() == pytest.approx(Pix2SeqConfig().initializer_range, rel=0.15)
    assert build().lm_head.weight[150].equal(build().get_input_embeddings().weight[150])  # one table, from the seed


def test_places_that_are_close_are_alike():
    model = build(position_encoding="learned")
    for module in (model.model.encoder.embeddings, model.model.encoder.projection):
        grid = module.position_embeddings.detach().unflatten(0, (8, 12))
        assert module.position_embeddings.requires_grad and grid.std() == pytest.approx(0.5, rel=0.2)
        half = grid.shape[-1] // 2
        for codes in (grid[:, 0, :half], grid[0, :, half:]):
            assert likeness(codes, 1) > likeness(codes, 4) + 0.2
        assert torch.pdist(grid.flatten(0, 1)).min() > 0.5  # and no two places are the same


def test_sine_positions_are_those_of_the_reference():
    model, plain = build(), build_model(ModelArguments(config=SIZES), {1: "cat", 2: "dog"})[0]
    assert model.model.encoder.embeddings.position_embeddings.equal(plain.model.encoder.embeddings.position_embeddings)


@pytest.mark.parametrize("dim", [6, 7])
def test_waves_fill_any_width(dim):
    assert sine_waves(5, dim, 2.0).shape == (5, dim)
    assert sine_waves(1, dim, 0.25).isfinite().all()
    assert grid_waves((3, 4), torch.zeros(12, dim)).shape == (12, dim)
