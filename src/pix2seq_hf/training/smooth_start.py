r"""How a new network can begin with neighbours alike: coordinates and places in the picture as waves.

Drawn at random, the word of a coordinate says nothing about the words beside it, and each must be learnt from the few
objects that end just there. As points on waves, from half a turn over the picture to a few bins long, neighbours are
alike from the first step. The same is done with learned positions of the picture's tokens. Only the start differs:
every number is learnt on as before. On drawn scenes (recipe `box_model_near`, detection alone) the loss after 700 steps
was 1.93 instead of 2.18, and AP 20 instead of 13.
"""

import math

import torch

from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.modeling_pix2seq_embeddings import Pix2SeqImagePositions

LONGEST = 0.5  # turns over the whole length
BINS_PER_WAVE, CELLS_PER_WAVE = 4.0, 2.5  # of the shortest
POSITION_STD = 0.5  # of learned positions, which are added to normalised tokens


@torch.no_grad()
def start_smoothly(model: Pix2SeqForConditionalGeneration) -> None:
    r"""Let coordinate words and learned image positions of a new network begin as waves.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): Is changed in place."""
    config = model.config
    table = model.get_input_embeddings().weight
    size = table.shape[1]
    waves = sine_waves(config.quantization_bins, size, config.quantization_bins / BINS_PER_WAVE)
    # Any mixture of waves is as smooth, and uses all of the width alike.
    mixture, _ = torch.linalg.qr(torch.randn(size, size))
    words = slice(config.coord_vocab_shift, config.coord_vocab_shift + config.quantization_bins)
    table[words] = (config.initializer_range * waves @ mixture).to(table)
    for module in model.modules():
        if isinstance(module, Pix2SeqImagePositions) and isinstance(module.position_embeddings, torch.nn.Parameter):
            module.position_embeddings.copy_(POSITION_STD * grid_waves(config.grid_size, module.position_embeddings))


def sine_waves(length: int, dim: int, most_turns: float) -> torch.Tensor:
    r"""Sines and cosines of rising frequency, of mean square 1.

    Args:
        length (`int`): Number of places.
        dim (`int`): Number of waves.
        most_turns (`float`): Of the shortest wave over the whole length.
    Returns:
        `torch.FloatTensor` of shape `(length, dim)`."""
    places = torch.linspace(0, 1, length)[:, None]
    turns = LONGEST * (max(most_turns, LONGEST) / LONGEST) ** torch.linspace(0, 1, (dim + 1) // 2)
    angles = 2 * math.pi * places * turns
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim]


def grid_waves(grid_size: tuple[int, int], table: torch.Tensor) -> torch.Tensor:
    """Waves along the rows in the first half of a table `(rows * columns, dim)`, along the columns in the second."""
    rows, columns = grid_size
    half = table.shape[1] // 2
    down = sine_waves(rows, half, rows / CELLS_PER_WAVE)
    across = sine_waves(columns, table.shape[1] - half, columns / CELLS_PER_WAVE)
    both = [down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)]
    return torch.cat(both, dim=-1).flatten(0, 1)
