"""How does the reference's ResNet turn pixels into a feature map: standard, c4, c3, dc5, selective kernels.

Not timm's ResNet: paddings, the max pool, the ResNet-D shortcut and the batch norm statistics differ, and a released
checkpoint only gives its numbers with the reference's own.
"""

import torch
from torch import nn

BLOCKS_PER_GROUP = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


class Pix2SeqBatchNorm(nn.Module):
    r"""Batch norm whose running variance is the biased batch variance, as Keras keeps it.

    PyTorch's running variance is the unbiased one; on the small maps at the end of a ResNet the two differ by
    percents after a few steps. Source: `BatchNormRelu` of the reference implementation (momentum 0.9, epsilon 1e-5)."""

    initial_weight = 1.0

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                hidden_states, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        # With momentum 1 the buffers receive the statistics of this batch alone.
        batch_mean, batch_var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        normalised = nn.functional.batch_norm(
            hidden_states, batch_mean, batch_var, self.weight, self.bias, True, 1.0, self.eps
        )
        with torch.no_grad():
            count = hidden_states.numel() // self.num_features
            self.running_mean.lerp_(batch_mean, self.momentum)
            self.running_var.lerp_(batch_var * ((count - 1) / count), self.momentum)
        return normalised

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class Pix2SeqConvNorm(nn.Module):
    r"""Convolution without bias, batch norm, optional ReLU.

    Padding is symmetric and fixed by the kernel, also for strided convolutions (TensorFlow's `SAME` would not be)."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, dilation=1, use_relu=True):
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
        self.norm = Pix2SeqBatchNorm(out_channels)
        self.use_relu = use_relu

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm(self.conv(hidden_states))
        return nn.functional.relu(hidden_states) if self.use_relu else hidden_states


class Pix2SeqSelectiveKernelConv(nn.Module):
    r"""Two 3x3 branches mixed per channel by their global average (arXiv 1903.06586).

    Source: `SK_Conv2D` of the reference implementation; it ignores dilation, and so does this."""

    def __init__(self, in_channels, filters, stride, sk_ratio, min_hidden_channels=32):
        super().__init__()
        hidden_channels = max(int(filters * sk_ratio), min_hidden_channels)
        self.conv = nn.Conv2d(in_channels, int(2 * filters), 3, stride, 1, bias=False)
        self.norm = Pix2SeqBatchNorm(int(2 * filters))
        self.reduce = nn.Conv2d(int(2 * filters) // 2, hidden_channels, 1, bias=False)
        self.reduce_norm = Pix2SeqBatchNorm(hidden_channels)
        self.expand = nn.Conv2d(hidden_channels, int(2 * filters), 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = nn.functional.relu(self.norm(self.conv(hidden_states)))
        branches = torch.stack(hidden_states.chunk(2, dim=1))  # (2, batch, channels, height, width)
        summary = branches.sum(0).mean((2, 3), keepdim=True)
        summary = nn.functional.relu(self.reduce_norm(self.reduce(summary)))
        mixing = torch.stack(self.expand(summary).chunk(2, dim=1)).softmax(0)
        return (branches * mixing).sum(0)


class Pix2SeqResNetShortcut(nn.Module):
    r"""Projection of a block's input; with selective kernels preceded by a 2x2 average pool (ResNet-D)."""

    def __init__(self, in_channels, out_channels, stride, use_pooling):
        super().__init__()
        self.stride, self.use_pooling = stride, use_pooling
        projection = Pix2SeqConvNorm(in_channels, out_channels, 1, 1 if use_pooling else stride, use_relu=False)
        self.conv, self.norm = projection.conv, projection.norm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.use_pooling:
            # The reference pads with zeros before a strided pool; at stride 1 it averages the pixels that exist, which
            # for a window of two is the same as repeating the last row and column.
            mode = "constant" if self.stride > 1 else "replicate"
            hidden_states = nn.functional.pad(hidden_states, (0, 1, 0, 1), mode=mode)
            hidden_states = nn.functional.avg_pool2d(hidden_states, 2, self.stride)
        return self.norm(self.conv(hidden_states))


class Pix2SeqResNetBlock(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, 3x3 or selective kernel, 1x1) residual block."""

    def __init__(self, in_channels, filters, stride, dilation, use_bottleneck, use_projection, sk_ratio):
        super().__init__()
        width, out_channels = int(filters), int(4 * filters) if use_bottleneck else int(filters)
        if use_bottleneck:
            if sk_ratio > 0:
                middle = Pix2SeqSelectiveKernelConv(width, filters, stride, sk_ratio)
            else:
                middle = Pix2SeqConvNorm(width, width, 3, stride, dilation)
            convs = [
                Pix2SeqConvNorm(in_channels, width, 1),
                middle,
                Pix2SeqConvNorm(width, out_channels, 1, use_relu=False),
            ]
        else:
            convs = [
                Pix2SeqConvNorm(in_channels, width, 3, stride),
                Pix2SeqConvNorm(width, width, 3, use_relu=False),
            ]
        self.convs = nn.ModuleList(convs)
        self.convs[-1].norm.initial_weight = 0.0  # a new block adds nothing to its input
        self.shortcut = None
        if use_projection:
            self.shortcut = Pix2SeqResNetShortcut(in_channels, out_channels, stride, use_pooling=sk_ratio > 0)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states if self.shortcut is None else self.shortcut(hidden_states)
        for conv in self.convs:
            hidden_states = conv(hidden_states)
        return nn.functional.relu(hidden_states + residual)


class Pix2SeqResNet(nn.Module):
    r"""The reference's ResNet without its pooling and classifier.

    Args:
        config ([`Pix2SeqConfig`]): Reads `num_channels` and the `resnet_*` fields.

    Source: `architectures/resnet.py` of the reference implementation."""

    def __init__(self, config):
        super().__init__()
        variant, sk_ratio = config.resnet_variant, config.resnet_sk_ratio
        base = 64 * config.resnet_width_multiplier  # may be fractional; channels round down, as Keras does
        if sk_ratio > 0 or variant == "c3":
            half, first_stride = int(base // 2), 1 if variant == "c3" else 2
            stem = [
                Pix2SeqConvNorm(config.num_channels, half, 3, first_stride),
                Pix2SeqConvNorm(half, half, 3),
                Pix2SeqConvNorm(half, int(base), 3),
            ]
        else:
            stem = [Pix2SeqConvNorm(config.num_channels, int(base), 7, 2)]
        self.stem = nn.ModuleList(stem)

        strides = [2 if variant == "c3" else 1, 2, 2, 1 if variant == "dc5" else 2]
        num_groups = {"c3": 2, "c4": 3}.get(variant, 4)
        use_bottleneck = config.resnet_depth >= 50
        in_channels, groups = int(base), []
        for group in range(num_groups):
            filters, blocks = base * 2**group, []
            for block in range(BLOCKS_PER_GROUP[config.resnet_depth][group]):
                dilation = 2 if variant == "dc5" and group == 3 and block > 0 else 1
                stride = strides[group] if block == 0 else 1
                blocks.append(
                    Pix2SeqResNetBlock(in_channels, filters, stride, dilation, use_bottleneck, block == 0, sk_ratio)
                )
                in_channels = int(4 * filters) if use_bottleneck else int(filters)
            groups.append(nn.ModuleList(blocks))
        self.groups = nn.ModuleList(groups)
        self.out_channels = in_channels

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        r"""Return the last feature map.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): Values in [0, 1].
        Returns:
            `torch.FloatTensor` of shape `(batch, out_channels, ceil(height / stride), ceil(width / stride))`."""
        # Convolutions are fastest with the channels of a pixel side by side: a quarter less time in float32 on a CPU.
        hidden_states = pixel_values.contiguous(memory_format=torch.channels_last)
        for conv in self.stem:
            hidden_states = conv(hidden_states)
        # TensorFlow's SAME padding: an even side is padded at its end only, an odd one at both.
        height, width = hidden_states.shape[-2:]
        padding = (width % 2, 1, height % 2, 1)
        hidden_states = nn.functional.pad(hidden_states, padding, value=float("-inf"))
        hidden_states = nn.functional.max_pool2d(hidden_states, 3, 2)
        for group in self.groups:
            for block in group:
                hidden_states = block(hidden_states)
        return hidden_states
