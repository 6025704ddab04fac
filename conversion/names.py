"""Which variable of the reference is which tensor of ours: one table, read in both directions.

A variable of the reference is named by its checkpoint key without `/.ATTRIBUTES/VARIABLE_VALUE`, for example
`model/encoder/output_ln/gamma` (in keys `.S` stands for `/`). Ours are the names in the state dict of
[`Pix2SeqForConditionalGeneration`]. The table is written in modules: a row pairs a module of the reference with one of
ours, and `LEAVES` says which tensors a module of that kind has and how their axes are arranged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pix2seq_hf.modeling_pix2seq_resnet import BLOCKS_PER_GROUP

KEY_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"

# --- how an array is arranged: (reference -> ours, ours -> reference with the number of heads) ------------------------

LAYOUTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray, int], np.ndarray]]] = {
    "same": (lambda array: array, lambda array, heads: array),
    # Dense (in, out) <-> Linear (out, in)
    "dense": (lambda array: array.T, lambda array, heads: array.T),
    # Conv2D (height, width, in, out) <-> Conv2d (out, in, height, width)
    "conv": (lambda array: array.transpose(3, 2, 0, 1), lambda array, heads: array.transpose(2, 3, 1, 0)),
    # query, key, value: (in, heads, head_size) <-> (heads * head_size, in)
    "to_heads": (
        lambda array: array.reshape(array.shape[0], -1).T,
        lambda array, heads: array.T.reshape(array.shape[1], heads, -1),
    ),
    # bias of query, key, value: (heads, head_size) <-> (heads * head_size,)
    "heads": (lambda array: array.reshape(-1), lambda array, heads: array.reshape(heads, -1)),
    # output of an attention: (heads, head_size, out) <-> (out, heads * head_size)
    "from_heads": (
        lambda array: array.reshape(-1, array.shape[-1]).T,
        lambda array, heads: array.T.reshape(heads, -1, array.shape[0]),
    ),
}
LAYOUT_RANKS = {"same": (1, 2), "dense": (2,), "conv": (4,), "to_heads": (3,), "heads": (2,), "from_heads": (3,)}

# --- the tensors of each kind of module: (reference, ours, layout) ----------------------------------------------------

LEAVES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "parameter": (("", "", "same"),),
    "dense": (("/kernel", ".weight", "dense"), ("/bias", ".bias", "same")),
    "conv": (("/kernel", ".weight", "conv"),),
    "conv_with_bias": (("/kernel", ".weight", "conv"), ("/bias", ".bias", "same")),
    "layer_norm": (("/gamma", ".weight", "same"), ("/beta", ".bias", "same")),
    "batch_norm": (
        ("/gamma", ".weight", "same"),
        ("/beta", ".bias", "same"),
        ("/moving_mean", ".running_mean", "same"),
        ("/moving_variance", ".running_var", "same"),
    ),
    "attention": (
        ("/_query_dense/kernel", ".q_proj.weight", "to_heads"),
        ("/_query_dense/bias", ".q_proj.bias", "heads"),
        ("/_key_dense/kernel", ".k_proj.weight", "to_heads"),
        ("/_key_dense/bias", ".k_proj.bias", "heads"),
        ("/_value_dense/kernel", ".v_proj.weight", "to_heads"),
        ("/_value_dense/bias", ".v_proj.bias", "heads"),
        ("/_output_dense/kernel", ".out_proj.weight", "from_heads"),
        ("/_output_dense/bias", ".out_proj.bias", "same"),
    ),
}

# --- the modules: (reference, ours, kind[, condition]) ----------------------------------------------------------------

TOP = (
    ("encoder/stem_conv", "encoder.embeddings.patch_embeddings", "conv_with_bias", "vit"),
    ("encoder/stem_projection", "encoder.embeddings.projection", "dense", "resnet"),
    ("encoder/stem_ln", "encoder.embeddings.norm", "layer_norm"),
    ("encoder/vit.Scls_token_embedding", "encoder.embeddings.class_token", "parameter", "vit class_token"),
    ("encoder/rest.Scls_token_embedding", "encoder.embeddings.class_token", "parameter", "resnet class_token"),
    ("encoder/vit.Svis_pos_embedding", "encoder.embeddings.position_embeddings", "parameter", "vit learned"),
    ("encoder/rest.Svis_pos_embedding", "encoder.embeddings.position_embeddings", "parameter", "resnet learned"),
    ("encoder/output_ln", "encoder.norm", "layer_norm"),
    ("proj", "encoder.projection.linear", "dense"),
    ("proj_ln", "encoder.projection.norm", "layer_norm"),
    ("proj.Svis_pos_embedding", "encoder.projection.position_embeddings", "parameter", "learned project_positions"),
    ("proj_mlp/layernorms/0", "encoder.projection.mlp_norm", "layer_norm", "project_mlp"),
    ("proj_mlp/mlp_layers/0/dense1", "encoder.projection.mlp.fc1", "dense", "project_mlp"),
    ("proj_mlp/mlp_layers/0/dense2", "encoder.projection.mlp.fc2", "dense", "project_mlp"),
    ("decoder/ar_decoder.Stoken_embedding", "decoder.token_embeddings.weight", "parameter", "shared"),
    ("decoder/ar_decoder.Sinp_token_embedding", "decoder.token_embeddings.weight", "parameter", "separate"),
    ("decoder/ar_decoder.Soutp_token_embedding", "lm_head.weight", "parameter", "separate"),
    ("decoder/ar_decoder.Soutp_bias", "lm_head.bias", "parameter", "output_bias"),
    ("decoder/ar_decoder.Sseq_pos_embedding", "decoder.position_embeddings", "parameter", "learned_text"),
    ("decoder/output_ln", "decoder.norm", "layer_norm"),
)
FEED_FORWARD = (
    ("mlp/layernorms/0", "mlp_norm", "layer_norm"),
    ("mlp/mlp_layers/0/dense1", "mlp.fc1", "dense"),
    ("mlp/mlp_layers/0/dense2", "mlp.fc2", "dense"),
)
ENCODER_LAYER = (
    ("mha_ln", "self_attention_norm", "layer_norm"),
    ("mha", "self_attention", "attention"),
    *FEED_FORWARD,
)
DECODER_LAYER = (
    ("self_ln", "self_attention_norm", "layer_norm"),
    ("self_mha", "self_attention", "attention"),
    ("cross_ln", "cross_attention_norm", "layer_norm"),
    ("cross_mha", "cross_attention", "attention"),
    *FEED_FORWARD,
)
# The lists of the reference's ResNet also hold layers without variables (padding, pooling, identity, DropBlock), which
# is why the indices have gaps.
RESNET_STEM = (
    ("initial_conv_relu_max_pool/0/conv2d", "stem.0.conv", "conv"),
    ("initial_conv_relu_max_pool/2/bn", "stem.0.norm", "batch_norm"),
)
RESNET_D_STEM = (
    ("initial_conv_relu_max_pool/0/conv2d", "stem.0.conv", "conv"),
    ("initial_conv_relu_max_pool/1/bn", "stem.0.norm", "batch_norm"),
    ("initial_conv_relu_max_pool/2/conv2d", "stem.1.conv", "conv"),
    ("initial_conv_relu_max_pool/3/bn", "stem.1.norm", "batch_norm"),
    ("initial_conv_relu_max_pool/4/conv2d", "stem.2.conv", "conv"),
    ("initial_conv_relu_max_pool/6/bn", "stem.2.norm", "batch_norm"),
)
BASIC_BLOCK = (
    ("conv2d_bn_layers/0/conv2d", "convs.0.conv", "conv"),
    ("conv2d_bn_layers/1/bn", "convs.0.norm", "batch_norm"),
    ("conv2d_bn_layers/2/conv2d", "convs.1.conv", "conv"),
    ("conv2d_bn_layers/3/bn", "convs.1.norm", "batch_norm"),
)
BOTTLENECK_BLOCK = (
    ("conv_relu_dropblock_layers/0/conv2d", "convs.0.conv", "conv"),
    ("conv_relu_dropblock_layers/1/bn", "convs.0.norm", "batch_norm"),
    ("conv_relu_dropblock_layers/3/conv2d", "convs.1.conv", "conv"),
    ("conv_relu_dropblock_layers/4/bn", "convs.1.norm", "batch_norm"),
    ("conv_relu_dropblock_layers/6/conv2d", "convs.2.conv", "conv"),
    ("conv_relu_dropblock_layers/7/bn", "convs.2.norm", "batch_norm"),
)
SELECTIVE_KERNEL_BLOCK = (
    ("conv_relu_dropblock_layers/0/conv2d", "convs.0.conv", "conv"),
    ("conv_relu_dropblock_layers/1/bn", "convs.0.norm", "batch_norm"),
    ("conv_relu_dropblock_layers/3/conv2d_fixed_padding/conv2d", "convs.1.conv", "conv"),
    ("conv_relu_dropblock_layers/3/batch_norm_relu/bn", "convs.1.norm", "batch_norm"),
    ("conv_relu_dropblock_layers/3/conv2d_0", "convs.1.reduce", "conv"),
    ("conv_relu_dropblock_layers/3/batch_norm_relu_1/bn", "convs.1.reduce_norm", "batch_norm"),
    ("conv_relu_dropblock_layers/3/conv2d_1", "convs.1.expand", "conv"),
    ("conv_relu_dropblock_layers/5/conv2d", "convs.2.conv", "conv"),
    ("conv_relu_dropblock_layers/6/bn", "convs.2.norm", "batch_norm"),
)
SHORTCUT = (
    ("{shortcut}/{conv}/conv2d", "shortcut.conv", "conv"),
    ("{shortcut}/{norm}/bn", "shortcut.norm", "batch_norm"),
)

RESNET_GROUPS = {"standard": 4, "dc5": 4, "c4": 3, "c3": 2}


@dataclass(frozen=True)
class Variable:
    """One row of the table for one configuration.

    Args:
        reference (`str`): Checkpoint key without the suffix, `model/...`.
        ours (`str`): Name in the state dict of [`Pix2SeqForConditionalGeneration`].
        layout (`str`): A key of `LAYOUTS`.
        num_heads (`int`): Heads of the attention that the tensor belongs to; 0 outside attentions.
    """

    reference: str
    ours: str
    layout: str
    num_heads: int = 0

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Arrange an array of the reference as ours.

        Raises:
            ValueError: If the number of axes is not that of the layout.
        """
        if array.ndim not in LAYOUT_RANKS[self.layout]:
            raise ValueError(
                f"the variable {self.reference!r} has the shape {tuple(array.shape)}; "
                f"expected {' or '.join(map(str, LAYOUT_RANKS[self.layout]))} axes"
            )
        return LAYOUTS[self.layout][0](array)

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """Arrange one of our arrays as the reference's."""
        return LAYOUTS[self.layout][1](array, self.num_heads)


def list_variables(config) -> list[Variable]:
    """List every variable of the network that `config` describes, each with both of its names.

    Args:
        config ([`Pix2SeqConfig`]): Any object with its fields does.
    Returns:
        `list[Variable]`: In the order of the network; both names are unique.
    Source: the module attributes of `architectures/transformers.py`, `architectures/resnet.py` and `models/ar_model.py`
    of the reference implementation.
    """
    return list(_iterate_variables(config))


def _iterate_variables(config) -> Iterator[Variable]:
    holds = _conditions(config)
    for reference, ours, kind, *condition in TOP:
        if holds.issuperset(" ".join(condition).split()):
            prefix = "" if ours.startswith("lm_head.") else "model."
            yield from _module(f"model/{reference}", f"{prefix}{ours}", kind)
    if "resnet" in holds:
        yield from _resnet(config, "model/encoder/resnet", "model.encoder.embeddings.backbone")
    for stack, layers, rows, count, num_heads in (
        ("encoder/transformer_encoder/enc_layers", "encoder.layers", ENCODER_LAYER,
         config.num_hidden_layers, config.num_attention_heads),
        ("decoder/decoder/dec_layers", "decoder.layers", DECODER_LAYER,
         config.decoder_num_hidden_layers, config.decoder_num_attention_heads),
    ):  # fmt: skip
        for i in range(count):
            for reference, ours, kind in rows:
                yield from _module(f"model/{stack}/{i}/{reference}", f"model.{layers}.{i}.{ours}", kind, num_heads)


def _conditions(config) -> set[str]:
    """The words of the condition column that hold for `config`."""
    words = {
        "vit": config.resnet_variant == "c1",
        "resnet": config.resnet_variant != "c1",
        "class_token": config.use_class_token,
        "learned": config.position_encoding == "learned",
        "learned_text": config.text_position_encoding == "learned",
        "project_positions": config.projection_mode in ("linear_p", "mlp"),
        "project_mlp": config.projection_mode == "mlp",
        "shared": config.tie_word_embeddings,
        "separate": not config.tie_word_embeddings,
        "output_bias": config.use_output_bias,
    }
    return {word for word, is_true in words.items() if is_true}


def _module(reference: str, ours: str, kind: str, num_heads: int = 0) -> Iterator[Variable]:
    for leaf, our_leaf, layout in LEAVES[kind]:
        yield Variable(reference + leaf, ours + our_leaf, layout, num_heads if kind == "attention" else 0)


def _resnet(config, reference: str, ours: str) -> Iterator[Variable]:
    blocks = BLOCKS_PER_GROUP[config.resnet_depth]
    is_selective = config.resnet_sk_ratio > 0  # selective kernels bring the stem and the shortcut of ResNet-D
    for row, our_row, kind in RESNET_D_STEM if is_selective or config.resnet_variant == "c3" else RESNET_STEM:
        yield from _module(f"{reference}/{row}", f"{ours}.{our_row}", kind)
    if config.resnet_depth < 50:
        rows, shortcut = BASIC_BLOCK, "shortcut_layers"
    else:
        rows, shortcut = SELECTIVE_KERNEL_BLOCK if is_selective else BOTTLENECK_BLOCK, "projection_layers"
    for group in range(RESNET_GROUPS[config.resnet_variant]):
        is_strided = _group_stride(config.resnet_variant, group) > 1
        conv = (is_strided + 1) if is_selective else 0  # after padding (if strided) and pooling
        for block in range(blocks[group]):
            path, our_path = f"{reference}/block_groups/{group}/layers/{block}", f"{ours}.groups.{group}.{block}"
            for row, our_row, kind in (*SHORTCUT, *rows) if block == 0 else rows:
                row = row.format(shortcut=shortcut, conv=conv, norm=conv + 1)
                yield from _module(f"{path}/{row}", f"{our_path}.{our_row}", kind)


def _group_stride(variant: str, group: int) -> int:
    """Stride of the first block of a group, which decides whether its ResNet-D shortcut pads before it pools."""
    if group == 0:
        return 2 if variant == "c3" else 1
    return 1 if variant == "dc5" and group == 3 else 2
