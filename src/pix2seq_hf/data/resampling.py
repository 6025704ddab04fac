r"""How is a part of a resized picture made without resizing the whole: pixels of the part alone, in one pass.

`F.interpolate` computes every pixel of the resized picture in the order of planes; a crop then throws most of an
enlarged picture away. Here columns are gathered, which also turns interleaved bytes into planes, and then rows."""

from typing import NamedTuple

import numpy as np
import torch

ROWS_AT_ONCE = 64  # so that what is computed in between stays in the cache


class Taps(NamedTuple):
    """The two neighbours of every new position, and how far it lies from the first towards the second."""

    low: np.ndarray  # (count,) int64
    high: np.ndarray  # (count,) int64
    share: np.ndarray  # (count,) float32 in [0, 1)


def find_taps(old_length: int, new_length: int, start: int, count: int) -> Taps:
    r"""Neighbours of the positions `start` to `start + count` of an axis that is resized with half-pixel centres.

    Args:
        old_length, new_length (`int`): Pixels of the axis before and after.
        start, count (`int`): Which of the new positions.
    Returns:
        [`Taps`]: The numbers that `F.interpolate` uses: a float32 scale, and one rounding per position."""
    scale = np.float64(np.float32(old_length) / np.float32(new_length))
    places = ((np.arange(start, start + count) + 0.5) * scale - 0.5).astype(np.float32).clip(0)
    low = np.minimum(places.astype(np.int64), old_length - 1)
    return Taps(low, np.minimum(low + 1, old_length - 1), places - low.astype(np.float32))


def resample(
    image: torch.Tensor,
    size: tuple[int, int],
    region: tuple[int, int, int, int],
    is_flipped: bool = False,
    canvas: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Resize a picture, bilinear without antialiasing, crop it, and mirror it if wanted.

    Args:
        image (`torch.Tensor` of shape `(3, height, width)`): `torch.uint8`, or `torch.float32` in [0, 1]; fastest for
            bytes whose colours lie next to each other in memory, as decoders write them.
        size (`tuple[int, int]`): (height, width) that the whole picture is resized to.
        region (`tuple[int, int, int, int]`): top, left, height, width of the crop in the resized picture.
        is_flipped (`bool`): Mirror the crop.
        canvas (`torch.FloatTensor` of shape `(3, at least height, at least width)`, *optional*): Where to write.
    Returns:
        `torch.FloatTensor` of shape `(3, height, width)`: New, or the top left corner of the canvas."""
    top, left, height, width = region
    channels, old_height, old_width = image.shape
    rows, columns = find_taps(old_height, size[0], top, height), find_taps(old_width, size[1], left, width)
    if is_flipped:
        columns = Taps(*(numbers[::-1].copy() for numbers in columns))
    if canvas is None:
        canvas = image.new_empty((channels, height, width), dtype=torch.float32)
    result = canvas[:, :height, :width]
    first_column, last_column = int(columns.low.min()), int(columns.high.max())
    pixels = image[..., first_column : last_column + 1].permute(1, 2, 0).flatten(1)  # (old_height, columns * channels)
    low, high = (
        torch.from_numpy(((numbers - first_column) * channels + np.arange(channels)[:, None]).ravel())
        for numbers in (columns.low, columns.high)
    )  # (channels * width,), plane by plane
    column_share = torch.from_numpy(columns.share).repeat(channels)
    row_share = torch.from_numpy(rows.share)[:, None, None]
    for start in range(0, height, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        first, last = int(rows.low[part][0]), int(rows.high[part][-1])
        old = pixels[first : last + 1]
        if old.dtype == torch.uint8:
            old = old.float().mul_(1 / 255)
        wide = old.index_select(1, low).lerp_(old.index_select(1, high), column_share)
        wide = wide.view(-1, channels, width)  # (rows of the picture, channels, width)
        above, below = (
            wide.index_select(0, torch.from_numpy(numbers[part] - first)) for numbers in (rows.low, rows.high)
        )
        torch.lerp(above, below, row_share[part], out=result[:, part].transpose(0, 1))
    return result
