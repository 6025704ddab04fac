"""How does a picture become tokens that know where they are: patches or a feature map, and positions."""

import torch
from torch import nn

from .configuration_pix2seq import Pix2SeqConfig
from .modeling_pix2seq_resnet import Pix2SeqResNet


def sine_positions_1d(length: int, dim: int) -> torch.Tensor:
    r"""Sine and cosine codes of positions that are spread over one turn.

    Args:
        length (`int`): Number of positions.
        dim (`int`): Width; the first half holds the sines, the second the cosines.
    Returns:
        `torch.FloatTensor` of shape `(length, dim)`.

    Source: `get_1d_position_codes` of the reference implementation; for one position it divides 0 by 0, here the
    position is 0."""
    positions = torch.arange(length, dtype=torch.float32) / max(length - 1, 1) * 6.2831852
    rates = 1 / torch.pow(10000.0, 2 * (torch.arange(dim) // 2).float() / dim)
    angles = positions[:, None] * rates
    return torch.cat([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1)


def sine_positions_2d(num_rows: int, num_columns: int, dim: int) -> torch.Tensor:
    r"""Sine codes of a grid: the row's code in the first half of the width, the column's in the second.

    Args:
        num_rows, num_columns (`int`): Size of the grid; a single row or column gets the code of a line.
        dim (`int`): Width.
    Returns:
        `torch.FloatTensor` of shape `(num_rows * num_columns, dim)`, row by row.

    Source: `add_vis_pos_emb` and `get_2d_position_codes` of the reference implementation."""
    if num_rows == 1 or num_columns == 1:
        return sine_positions_1d(num_rows * num_columns, dim)
    rows = sine_positions_1d(num_rows, dim // 2)[:, None].expand(-1, num_columns, -1)
    columns = sine_positions_1d(num_columns, dim // 2)[None].expand(num_rows, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class Pix2SeqImagePositions(nn.Module):
    """Base of the two modules that add positions to image tokens: a parameter if learned, else a sine table."""

    def make_position_embeddings(self, config: Pix2SeqConfig, dim: int):
        self.config = config
        table = torch.zeros(config.grid_size[0] * config.grid_size[1], dim)
        if config.position_encoding == "learned":
            self.position_embeddings = nn.Parameter(table)
        else:
            self.register_buffer("position_embeddings", sine_positions_2d(*config.grid_size, dim), persistent=False)

    def positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """Positions `(num_rows * num_columns, dim)` of a grid; sine codes exist for every grid."""
        if grid_size == self.config.grid_size:
            return self.position_embeddings
        if self.config.position_encoding == "learned":
            raise ValueError(
                f"the picture gives a grid of {grid_size} tokens, but the model has learned positions for "
                f"{self.config.grid_size}: resize pictures to {self.config.image_size}"
            )
        return sine_positions_2d(*grid_size, self.position_embeddings.shape[-1]).to(self.position_embeddings)


class Pix2SeqViTEmbeddings(Pix2SeqImagePositions):
    """Patches of the picture as tokens."""

    def __init__(self, config: Pix2SeqConfig):
        super().__init__()
        self.patch_embeddings = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.use_class_token:
            self.class_token = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.make_position_embeddings(config, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.patch_embeddings(pixel_values)
        return add_positions(self, self.norm(features.flatten(2).transpose(1, 2)), tuple(features.shape[-2:]))


class Pix2SeqResNetEmbeddings(Pix2SeqImagePositions):
    """Pixels of a ResNet's last feature map as tokens."""

    def __init__(self, config: Pix2SeqConfig):
        super().__init__()
        self.backbone = Pix2SeqResNet(config)
        self.drop_units_rate = config.drop_units_rate
        self.projection = nn.Linear(self.backbone.out_channels, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.use_class_token:
            self.class_token = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.make_position_embeddings(config, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.backbone(pixel_values)
        tokens = features.flatten(2).transpose(1, 2)  # (batch, num_rows * num_columns, channels)
        tokens = nn.functional.dropout(tokens, p=self.drop_units_rate, training=self.training)
        return add_positions(self, self.norm(self.projection(tokens)), tuple(features.shape[-2:]))


def add_positions(embeddings: Pix2SeqImagePositions, tokens: torch.Tensor, grid_size: tuple[int, int]):
    """Add the positions to the image tokens, then put the class token, if there is one, in front."""
    tokens = tokens + embeddings.positions(grid_size).to(tokens.dtype)
    if embeddings.config.use_class_token:
        tokens = torch.cat([embeddings.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
    return tokens, grid_size
