"""Which kernel computes a linear layer fastest? On a processor oneDNN's, where no gradient is wanted.

torch gives float32 products on a processor to MKL. For the shapes of decoding, a few rows times a large weight, and on
processors that are not Intel's for all shapes, oneDNN's kernels take a half to a fourth of the time (README, speed of
decoding). torch brings them along for the code that its compiler writes; they read the weight as it is."""

import torch
from torch import nn

try:
    onednn_linear = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
except (AttributeError, RuntimeError):  # another build of torch
    onednn_linear = None


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    r"""Multiply by a weight and add a bias, like `torch.nn.functional.linear`, up to the order of its sums.

    Args:
        inputs (`torch.Tensor` of shape `(..., in_features)`): Rows.
        weight (`torch.Tensor` of shape `(out_features, in_features)`): As in `torch.nn.Linear`.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): Added to every row.
    Returns:
        `torch.Tensor` of shape `(..., out_features)`."""
    if is_plain(inputs) and is_plain(weight) and is_plainly_computed():
        return onednn_linear(inputs, weight, bias, "none", [], "")
    return nn.functional.linear(inputs, weight, bias)


class Pix2SeqLinear(nn.Linear):
    """`torch.nn.Linear` computed by [`linear`]."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(inputs, self.weight, self.bias)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but float32 numbers in the processor's memory: not quantised, traced or pretended."""
    return (
        tensor.dtype is torch.float32
        and type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.numel() > 0
    )


def is_plainly_computed() -> bool:
    """Whether an operation is just done: not recorded for a gradient, traced, compiled, or cast on its way."""
    return not (
        onednn_linear is None
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
    )
