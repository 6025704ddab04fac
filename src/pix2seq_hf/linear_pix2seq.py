"""Which kernel computes a linear layer fastest? On a processor oneDNN's.

torch gives float32 products on a processor to MKL. For the shapes of decoding, a few rows times a large weight, and on
processors that are not Intel's for all shapes, oneDNN's kernels take a half to a fourth of the time (README, speed of
decoding). torch brings them along for the code that its compiler writes; they read the weight as it is.

Where a model's owner accepts its rounding, FBGEMM's kernels do with a fourth of the bytes: see [`Int8Weight`]."""

import platform
import warnings
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable

MOST_KEPT = 8  # weights in int8 of one layer: of all its outputs, and of some

try:  # measured on x86 only
    has_onednn = torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")
    onednn_linear = torch.ops.mkldnn._linear_pointwise.default if has_onednn else None
except (AttributeError, RuntimeError):  # another build of torch
    onednn_linear = None

# MKL is slow with many rows where it leaves wide vectors unused, on processors that are not Intel's; without these
# vectors it is faster there, by a tenth to a fourth.
has_wide_vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
MANY_ROWS = 256


def linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, use_gelu: bool = False
) -> torch.Tensor:
    r"""Multiply by a weight and add a bias, like `torch.nn.functional.linear`, up to the order of its sums.

    Args:
        inputs (`torch.Tensor` of shape `(..., in_features)`): Rows.
        weight (`torch.Tensor` of shape `(out_features, in_features)`): As in `torch.nn.Linear`.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): Added to every row.
        use_gelu (`bool`): Apply the exact (erf) GELU to the result, where it can be while that is still in the cache.
    Returns:
        `torch.Tensor` of shape `(..., out_features)`; it can be differentiated once."""
    # Of a weight that does not lie in one piece oneDNN's kernels are slow beyond measure.
    is_ours = is_plain(inputs) and is_plain(weight) and weight.is_contiguous() and is_plainly_computed()
    if is_ours and not has_wide_vectors:
        is_ours = inputs.numel() < MANY_ROWS * inputs.shape[-1]
    if is_ours and not torch.is_grad_enabled():
        return _multiply(inputs, weight, bias, "gelu" if use_gelu else "none")
    result = _Linear.apply(inputs, weight, bias) if is_ours else nn.functional.linear(inputs, weight, bias)
    return nn.functional.gelu(result) if use_gelu else result


def _multiply(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "none"
) -> torch.Tensor:
    return onednn_linear(inputs.contiguous(), weight, bias, activation, [], "none" if activation == "gelu" else "")


class _Linear(torch.autograd.Function):
    """The same kernel with its gradients, which are products too."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        return _multiply(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])  # (num_rows, out_features)
        of_inputs = _multiply(gradient, weight.T.contiguous()) if needs_inputs else None
        of_weight = None
        if needs_weight:
            of_weight = _multiply(rows.T.contiguous(), inputs.reshape(-1, inputs.shape[-1]).T.contiguous())
        return of_inputs, of_weight, rows.sum(0) if needs_bias else None


def check_int8() -> None:
    """Raise a ValueError if this build of torch has no kernels for int8."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise ValueError("int8 needs a torch with FBGEMM, which there is for x86 processors: use float32")


class Int8Weight:
    r"""A weight rounded to int8, with a scale for every output, as FBGEMM's kernels read it.

    Inputs are rounded as they come, all rows of a call with one scale: a result depends a little on what else is in the
    batch.

    Args:
        weight (`torch.FloatTensor` of shape `(out_features, in_features)`), bias (`torch.FloatTensor`, *optional*): Of
            a linear layer on a processor.
    Raises:
        ValueError: If this build of torch has no such kernels."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        check_int8()
        weight = weight.detach().float()
        scales = weight.abs().amax(1).clamp(min=1e-8) / 127
        with warnings.catch_warnings():  # torch is going to move the making of such tensors
            warnings.simplefilter("ignore", UserWarning)
            zeros = torch.zeros(len(scales), dtype=torch.long)
            table = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(table, None if bias is None else bias.detach().float())

    def __call__(self, inputs: torch.Tensor, use_gelu: bool = False) -> torch.Tensor:
        """As [`linear`] with this weight."""
        # Inputs have seven bits: sums of two products of eight do not fit into sixteen.
        result = torch.ops.quantized.linear_dynamic(inputs.float(), self.packed, True).to(inputs.dtype)
        return nn.functional.gelu(result) if use_gelu else result


class Int8Weights:
    """Weights in int8 that are made once, and anew where what they were made of has changed."""

    def __init__(self):
        self.kept: dict[Hashable, tuple[tuple, Int8Weight]] = {}

    def find(self, key: Hashable, parts: Sequence[torch.Tensor | None], make: Callable[[], Int8Weight]) -> Int8Weight:
        """What `make` makes of tensors; kept under a key as long as they stay as they are."""
        state = tuple(None if part is None else (part.data_ptr(), part._version) for part in parts)
        if key not in self.kept or self.kept[key][0] != state:
            if len(self.kept) >= MOST_KEPT:
                self.kept.clear()
            self.kept[key] = state, make()
        return self.kept[key][1]

    def __deepcopy__(self, memo):  # of models that are copied: packed weights are no tensors, and can be made again
        return Int8Weights()

    def __reduce__(self):
        return Int8Weights, ()


class Pix2SeqLinear(nn.Linear):
    """`torch.nn.Linear` computed by [`linear`], or without gradients on a processor in int8 if `use_int8` is set."""

    use_int8 = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.int8_weights = Int8Weights()

    def forward(self, inputs: torch.Tensor, use_gelu: bool = False) -> torch.Tensor:
        if self.use_int8 and suits_int8(inputs):
            return self.int8_weight()(inputs, use_gelu)
        return linear(inputs, self.weight, self.bias, use_gelu)

    def int8_weight(self, outputs: range | tuple[int, ...] | None = None) -> Int8Weight:
        """The weight in int8, of some outputs or of all."""

        def make() -> Int8Weight:
            index = slice(None) if outputs is None else torch.as_tensor(outputs)
            return Int8Weight(self.weight[index], None if self.bias is None else self.bias[index])

        return self.int8_weights.find(outputs, (self.weight, self.bias), make)


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # another build of torch: nothing is known
        return True


def suits_int8(inputs: torch.Tensor) -> bool:
    """Whether a product may be computed in int8: on a processor, without gradients, and not traced."""
    return inputs.device.type == "cpu" and not torch.is_grad_enabled() and is_plainly_computed()


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but float32 numbers in the processor's memory: not quantised, traced or pretended."""
    return (
        tensor.dtype is torch.float32
        and type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.numel() > 0
    )


def is_plainly_computed() -> bool:
    """Whether an operation is just done: not traced, compiled, transformed, or cast on its way."""
    return not (
        onednn_linear is None
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
    )
