"""How colours are varied in training: brightness, contrast, saturation and hue of one image, and gray.

Pure functions of images `torch.FloatTensor` `(3, height, width)` in [0, 1]; the random numbers of [`jitter_colors`] are
arguments, and [`draw_color_jitter`] draws them."""

from typing import NamedTuple

import numpy as np
import torch

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
JITTER_RATE = 0.8  # share of the images whose colours change
GRAY_RATE = 0.2  # share of the images that lose their colours
FACTOR_RANGE = 0.8  # of brightness, contrast and saturation at strength 1, around a factor of 1
HUE_RANGE = 0.2  # at strength 1, in turns of the colour circle
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green, blue


class ColorDraws(NamedTuple):
    """The random decisions of [`jitter_colors`]."""

    steps: tuple[tuple[int, float], ...]  # operation and its factor (a shift for the hue), in order; may be empty
    to_gray: bool


def draw_color_jitter(rng: np.random.Generator, strength: float) -> ColorDraws:
    """Draw what [`jitter_colors`] needs; `strength` 0 changes no colour (but may still remove them)."""
    steps = ()
    if rng.random() < JITTER_RATE:
        steps = tuple((int(operation), draw_factor(rng, operation, strength)) for operation in rng.permutation(4))
    return ColorDraws(steps, rng.random() < GRAY_RATE)


def draw_factor(rng: np.random.Generator, operation: int, strength: float) -> float:
    """Draw the factor of brightness, contrast or saturation, or the shift of the hue."""
    if operation == HUE:
        return rng.uniform(-HUE_RANGE * strength, HUE_RANGE * strength)
    return rng.uniform(max(1 - FACTOR_RANGE * strength, 0), 1 + FACTOR_RANGE * strength)


def jitter_colors(image: torch.Tensor, draws: ColorDraws) -> torch.Tensor:
    r"""Apply the drawn steps, each followed by a cut to [0, 1], and turn the image gray if that was drawn.

    Source: `data_utils.random_color_jitter` of the reference implementation."""
    functions = {
        BRIGHTNESS: adjust_brightness,
        CONTRAST: adjust_contrast,
        SATURATION: adjust_saturation,
        HUE: adjust_hue,
    }
    for operation, factor in draws.steps:
        image = functions[operation](image, factor).clamp(0, 1)
    return to_gray(image) if draws.to_gray else image


def adjust_brightness(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply all values."""
    return image * factor


def adjust_contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply the distance of all values from their channel's mean."""
    mean = image.mean((-2, -1), keepdim=True)
    return (image - mean) * factor + mean


def adjust_saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply the saturation in HSV."""
    hue, saturation, value = rgb_to_hsv(image)
    return hsv_to_rgb(hue, (saturation * factor).clamp(0, 1), value)


def adjust_hue(image: torch.Tensor, shift: float) -> torch.Tensor:
    """Turn the colour circle of HSV by `shift` (1 is a whole turn)."""
    hue, saturation, value = rgb_to_hsv(image)
    return hsv_to_rgb((hue + shift) % 1, saturation, value)


def to_gray(image: torch.Tensor) -> torch.Tensor:
    """Three equal channels with the luminance."""
    weights = torch.tensor(GRAY_WEIGHTS, dtype=image.dtype).view(3, 1, 1)
    return (image * weights).sum(0, keepdim=True).expand_as(image).contiguous()


def rgb_to_hsv(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hue, saturation and value, each `(height, width)` in [0, 1]; the hue of gray is 0."""
    red, green, blue = image
    value, low = image.amax(0), image.amin(0)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(value == red, (green - blue) / divisor, hue)
    hue = torch.where(chroma > 0, (hue / 6) % 1, 0)
    return hue, torch.where(value > 0, chroma / torch.where(value > 0, value, 1), 0), value


def hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The inverse of [`rgb_to_hsv`]."""
    sixths = hue * 6
    ramps = torch.stack([(sixths - 3).abs() - 1, 2 - (sixths - 2).abs(), 2 - (sixths - 4).abs()]).clamp(0, 1)
    return ((ramps - 1) * saturation + 1) * value
