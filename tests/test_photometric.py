"""Variation of colours."""

import numpy as np
import pytest
import torch

from pix2seq_hf.data.photometric import (
    HUE,
    ColorDraws,
    adjust_hue,
    adjust_saturation,
    draw_color_jitter,
    draw_factor,
    hsv_to_rgb,
    jitter_colors,
    rgb_to_hsv,
    to_gray,
)


def image_of(*colours):
    return torch.tensor(colours).T[:, None].float()  # (3, 1, number of colours)


def test_known_colours():
    hue, saturation, value = rgb_to_hsv(
        image_of((1, 0, 0), (0, 0.5, 0), (0, 0, 1), (1, 0, 1), (0.4, 0.4, 0.4), (0, 0, 0))
    )
    assert torch.allclose(hue[0], torch.tensor([0, 1 / 3, 2 / 3, 5 / 6, 0, 0]))
    assert saturation[0].tolist() == [1, 1, 1, 1, 0, 0]
    assert torch.allclose(value[0], torch.tensor([1, 0.5, 1, 1, 0.4, 0]))


def test_round_trip():
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hsv_to_rgb(*rgb_to_hsv(image)), image, atol=1e-6)


def test_hue_turns_and_saturation_fades():
    red = image_of((1, 0, 0))
    assert torch.allclose(adjust_hue(red, 1 / 3), image_of((0, 1, 0)), atol=1e-6)
    assert torch.allclose(adjust_hue(red, -1 / 3), image_of((0, 0, 1)), atol=1e-6)
    assert torch.allclose(adjust_saturation(red, 0.0), image_of((1, 1, 1)))


def test_gray_has_the_luminance():
    assert torch.allclose(to_gray(image_of((0, 1, 0)))[:, 0, 0], torch.full((3,), 0.587))


def test_order_matters_and_every_step_is_cut():
    image = image_of((0.9, 0.5, 0.1), (0.2, 0.5, 0.3))
    brighter_first = jitter_colors(image, ColorDraws(((0, 1.8), (1, 0.5)), False))
    contrast_first = jitter_colors(image, ColorDraws(((1, 0.5), (0, 1.8)), False))
    assert not torch.allclose(brighter_first, contrast_first)
    assert jitter_colors(image, ColorDraws(((0, 1.8), (0, 0.5)), False))[0, 0, 0] == 0.5  # not 0.81


def test_draws():
    draws = [draw_color_jitter(np.random.default_rng(seed), 0.5) for seed in range(1000)]
    assert 0.77 < np.mean([bool(draw.steps) for draw in draws]) < 0.83
    assert 0.17 < np.mean([draw.to_gray for draw in draws]) < 0.23
    assert all(sorted(operation for operation, _ in draw.steps) == [0, 1, 2, 3] for draw in draws if draw.steps)
    factors = {kind: [dict(draw.steps)[kind] for draw in draws if draw.steps] for kind in range(4)}
    for kind, values in factors.items():
        low, high = (-0.1, 0.1) if kind == HUE else (0.6, 1.4)
        assert low <= min(values) < low + 0.01 and high - 0.01 < max(values) <= high


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_factors_are_never_negative(strength):
    rng = np.random.default_rng(0)
    assert min(draw_factor(rng, 0, strength) for _ in range(500)) >= 0
