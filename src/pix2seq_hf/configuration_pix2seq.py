"""Which network is it, and which numbers mean what: the configuration of a Pix2Seq model."""

import math

from transformers import PreTrainedConfig

# Widths, depths and head counts of the four released architectures.
# Source: `configs/config_base.py` of the reference implementation.
PRESETS = {
    "vit-b": {
        "resnet_variant": "c1",
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "decoder_num_hidden_layers": 6,
        "decoder_hidden_size": 512,
        "decoder_intermediate_size": 2048,
        "decoder_num_attention_heads": 16,
    },
    "vit-l": {
        "resnet_variant": "c1",
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "decoder_num_hidden_layers": 8,
        "decoder_hidden_size": 512,
        "decoder_intermediate_size": 2048,
        "decoder_num_attention_heads": 16,
    },
    "resnet": {
        "resnet_variant": "standard",
        "resnet_depth": 50,
        "num_hidden_layers": 6,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "decoder_num_hidden_layers": 6,
        "decoder_hidden_size": 256,
        "decoder_intermediate_size": 1024,
        "decoder_num_attention_heads": 8,
    },
    "resnet-c": {
        "resnet_variant": "c4",
        "resnet_depth": 50,
        "num_hidden_layers": 12,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 16,
        "decoder_num_hidden_layers": 8,
        "decoder_hidden_size": 512,
        "decoder_intermediate_size": 2048,
        "decoder_num_attention_heads": 16,
    },
}

# The skeleton of COCO's person, in the order of its annotations.
COCO_KEYPOINT_NAMES = (  # noqa: SIM905
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip

# Output stride of the ResNet variants.
RESNET_STRIDES = {"standard": 32, "c4": 16, "dc5": 16, "c3": 8}
RESNET_DEPTHS = (18, 34, 50, 101, 152, 200)
LOSS_TYPES = ("xent", "focal", "logistic")


class Pix2SeqConfig(PreTrainedConfig):
    r"""Configuration of [`Pix2SeqModel`] and its heads; the defaults are the reference's ViT-B detector at 640 x 640.

    The image encoder uses the plain names (`hidden_size`, ...), the decoder the same names with `decoder_` in front.
    Treat an instance as immutable: build another one instead of changing a size.

    Args:
        image_size (`tuple[int, int]`, *optional*, defaults to `(640, 640)`):
            Height and width in pixels of the padded input; one number stands for both. Sine positions follow the
            input's true size at run time, learned positions are tied to this one.
        num_channels (`int`, *optional*, defaults to 3): Channels of the input.
        patch_size (`int`, *optional*, defaults to 16): Side of a ViT patch in pixels; unused by the ResNets.
        resnet_variant (`str`, *optional*, defaults to `"c1"`):
            `"c1"` is a ViT without ResNet; `"standard"` (stride 32), `"c4"` (16), `"dc5"` (16) and `"c3"` (8) are
            ResNets in front of the transformer encoder.
        resnet_depth (`int`, *optional*, defaults to 50): 18, 34, 50, 101, 152 or 200.
        resnet_width_multiplier (`float`, *optional*, defaults to 1): Factor on all channel counts; may be fractional.
        resnet_sk_ratio (`float`, *optional*, defaults to 0): Above 0, selective kernels and the ResNet-D stem.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`, *optional*): The encoder.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size
            (`int`, *optional*): The decoder.
        position_encoding (`str`, *optional*, defaults to `"sin_cos"`): `"sin_cos"` or `"learned"`, for the image.
        text_position_encoding (`str`, *optional*, defaults to `"learned"`): The same for the token sequence.
        use_class_token (`bool`, *optional*, defaults to `False`): Prepends a learned token to the image tokens.
        projection_mode (`str`, *optional*, defaults to `"mlp"`):
            From encoder to decoder width: `"linear"`, `"linear_p"` (adds positions), `"mlp"` (positions and an MLP).
        use_output_bias (`bool`, *optional*, defaults to `True`): A bias for every word of the vocabulary.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`): Input and output embeddings are one table.
        drop_path_rate (`float`, *optional*, defaults to 0.1): Stochastic depth of every residual branch.
        drop_units_rate (`float`, *optional*, defaults to 0.1): Dropout in the MLPs and before a ResNet's projection.
        drop_attention_rate (`float`, *optional*, defaults to 0): Dropout of attention probabilities.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of the layer norms.
        initializer_range (`float`, *optional*, defaults to 0.02): Deviation of new embeddings and learned positions.
        vocab_size (`int`, *optional*, defaults to 3000): Words, `reserved | classes | coordinates | text`.
        max_position_embeddings (`int`, *optional*, defaults to 512): Longest token sequence, prompt included.
        quantization_bins (`int`, *optional*, defaults to 1000): Coordinate bins per axis.
        base_vocab_shift (`int`, *optional*, defaults to 100): Token of label 0; labels start at 1.
        coord_vocab_shift (`int`, *optional*, defaults to 1000): Token of the first coordinate bin.
        text_vocab_shift (`int`, *optional*, defaults to 3000): Token of the caption tokenizer's id 0.
        max_instances_per_image (`int`, *optional*, defaults to 100): Objects that detection writes per picture.
        max_points_per_object (`int`, *optional*, defaults to 128): Points of a polygon, separators included.
        max_caption_length (`int`, *optional*, defaults to 128): Tokens of a caption, its end included.
        mask_crop_pad_scale (`float`, *optional*):
            Outlines are asked for in cuts of the picture, larger than the box by so much of its height and width on
            each side, as keypoints are (0.5 there): small objects become large. By default, as in the reference, in
            the whole picture, which is encoded once for all objects.
        keypoint_names (`list[str]`, *optional*, defaults to COCO's 17): One per keypoint, in the order of the tokens.
        keypoint_skeleton (`list[tuple[int, int]]`, *optional*, defaults to COCO's):
            Pairs of keypoints joined by a line, counted from 0.
        keypoint_pairs (`list[tuple[int, int]]`, *optional*):
            Keypoints that change places in a mirrored picture; by default `left_*` with `right_*`.
        keypoint_labels (`list[int]`, *optional*, defaults to `[1]`): Raw label ids of objects that have keypoints.
        tasks (`list[str]`, *optional*, defaults to `["object_detection"]`): The tasks the model was trained for.
        loss_type (`str`, *optional*, defaults to `"xent"`):
            `"xent"`, `"xent@0.1"` (label smoothing), `"focal@2"` (gamma) or `"logistic"`.
        id2label (`dict[int, str]`, *optional*): Names of the labels; ids need not be contiguous (COCO: 1 to 90).
        use_cache (`bool`, *optional*, defaults to `True`): Whether decoding keeps keys and values.

    Raises:
        ValueError: If two numbers contradict each other; the message names both.

    Source: `configs/config_det_finetune.py` and `config_multi_task.py` of the reference implementation."""

    model_type = "pix2seq"
    keys_to_ignore_at_inference = ["cache"]
    # Names by which library code looks for dropout rates.
    attribute_map = {
        "hidden_dropout_prob": "drop_units_rate",
        "attention_probs_dropout_prob": "drop_attention_rate",
        "attention_dropout": "drop_attention_rate",
    }

    image_size: int | list[int] | tuple[int, int] = (640, 640)
    num_channels: int = 3
    patch_size: int = 16
    resnet_variant: str = "c1"
    resnet_depth: int = 50
    resnet_width_multiplier: float | int = 1.0
    resnet_sk_ratio: float | int = 0.0
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 6
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    position_encoding: str = "sin_cos"
    text_position_encoding: str = "learned"
    use_class_token: bool = False
    projection_mode: str = "mlp"
    use_output_bias: bool = True
    tie_word_embeddings: bool = True
    drop_path_rate: float | int = 0.1
    drop_units_rate: float | int = 0.1
    drop_attention_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    vocab_size: int = 3000
    max_position_embeddings: int = 512
    quantization_bins: int = 1000
    base_vocab_shift: int = 100
    coord_vocab_shift: int = 1000
    text_vocab_shift: int = 3000
    max_instances_per_image: int = 100
    max_points_per_object: int = 128
    max_caption_length: int = 128
    mask_crop_pad_scale: float | int | None = None
    keypoint_names: list[str] | tuple[str, ...] | None = None
    keypoint_skeleton: list[list[int]] | tuple[tuple[int, int], ...] | None = None
    keypoint_pairs: list[list[int]] | tuple[tuple[int, int], ...] | None = None
    keypoint_labels: list[int] | tuple[int, ...] | None = None
    tasks: list[str] | tuple[str, ...] | None = None
    loss_type: str = "xent"
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = 10

    def __post_init__(self, **kwargs):
        if isinstance(self.image_size, int):
            self.image_size = (self.image_size, self.image_size)
        self.image_size = tuple(int(side) for side in self.image_size)
        self.tasks = ["object_detection"] if self.tasks is None else list(self.tasks)
        self._complete_keypoints()
        super().__post_init__(**kwargs)
        self._check_sizes()
        self._check_vocabulary()

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "Pix2SeqConfig":
        r"""Return the configuration of a released architecture.

        Args:
            name (`str`): `"vit-b"`, `"vit-l"`, `"resnet"` or `"resnet-c"`.
            **overrides: Fields that differ from the preset.
        Raises:
            ValueError: If there is no such preset."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def num_keypoints(self) -> int:
        """Keypoints of an object."""
        return len(self.keypoint_names)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of image tokens at `image_size`."""
        return self.grid_size_of(*self.image_size)

    def grid_size_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of image tokens for an input of `height` x `width` pixels."""
        if self.resnet_variant == "c1":
            return height // self.patch_size, width // self.patch_size
        stride = RESNET_STRIDES[self.resnet_variant]
        return math.ceil(height / stride), math.ceil(width / stride)

    def _complete_keypoints(self):
        if self.keypoint_names is None:
            self.keypoint_names = COCO_KEYPOINT_NAMES
            if self.keypoint_skeleton is None:
                self.keypoint_skeleton = COCO_SKELETON
        names = self.keypoint_names = list(self.keypoint_names)
        if len(set(names)) != len(names):
            raise ValueError(f"keypoint_names holds a name twice: {names}")
        if self.keypoint_pairs is None:
            mirrored = {name: name.replace("left", "right") for name in names if "left" in name}
            self.keypoint_pairs = [
                (names.index(left), names.index(right)) for left, right in mirrored.items() if right in names
            ]
        for field in ("keypoint_skeleton", "keypoint_pairs"):
            pairs = [tuple(pair) for pair in getattr(self, field) or ()]
            for pair in pairs:
                if len(pair) != 2 or not all(0 <= index < len(names) for index in pair):
                    raise ValueError(f"{field} holds {pair}, but keypoints count from 0 to {len(names) - 1}")
            setattr(self, field, pairs)
        self.keypoint_labels = [1] if self.keypoint_labels is None else list(self.keypoint_labels)

    def _check_sizes(self):
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size must be two positive numbers (height, width), got {self.image_size}")
        if self.resnet_variant == "c1":
            if self.patch_size < 1 or min(self.image_size) < self.patch_size:
                raise ValueError(
                    f"image_size {self.image_size} is smaller than patch_size {self.patch_size}: "
                    "the picture must hold at least one patch"
                )
        elif self.resnet_variant not in RESNET_STRIDES:
            raise ValueError(
                f"unknown resnet_variant {self.resnet_variant!r}: choose c1 (a ViT), {', '.join(RESNET_STRIDES)}"
            )
        elif self.resnet_depth not in RESNET_DEPTHS:
            raise ValueError(f"unknown resnet_depth {self.resnet_depth}: choose one of {RESNET_DEPTHS}")
        elif self.resnet_variant == "dc5" and self.resnet_depth < 50:
            raise ValueError(
                f"resnet_variant 'dc5' needs bottleneck blocks: resnet_depth {self.resnet_depth} is below 50"
            )
        if self.mask_crop_pad_scale is not None and not self.mask_crop_pad_scale >= 0:
            raise ValueError(f"mask_crop_pad_scale must be at least 0 or None, got {self.mask_crop_pad_scale}")
        for prefix in ("", "decoder_"):
            size, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if size < heads:
                raise ValueError(f"{prefix}num_attention_heads {heads} is larger than {prefix}hidden_size {size}")
            if heads < 1:
                raise ValueError(f"{prefix}num_attention_heads must be at least 1, got {heads}")
            if size % 2:  # sine and cosine in turn; heads need not divide it, as in the reference
                raise ValueError(f"{prefix}hidden_size must be even, got {size}")
        if self.intermediate_size < self.hidden_size:
            raise ValueError(
                f"intermediate_size {self.intermediate_size} is smaller than hidden_size {self.hidden_size}"
            )
        for name in ("drop_path_rate", "drop_units_rate", "drop_attention_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is outside [0, 1)")
        for name, choices in (
            ("position_encoding", ("sin_cos", "learned")),
            ("text_position_encoding", ("sin_cos", "learned")),
            ("projection_mode", ("linear", "linear_p", "mlp")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        name, _, parameter = self.loss_type.partition("@")
        try:
            float(parameter or 0)
        except ValueError:
            name = None
        if name not in LOSS_TYPES:
            raise ValueError(f"unknown loss_type {self.loss_type!r}: write xent, xent@0.1, focal@2 or logistic")

    def _check_vocabulary(self):
        if self.quantization_bins < 2:
            raise ValueError(f"quantization_bins must be at least 2, got {self.quantization_bins}")
        if self.base_vocab_shift >= self.coord_vocab_shift:
            raise ValueError(
                f"base_vocab_shift {self.base_vocab_shift} leaves no class below "
                f"coord_vocab_shift {self.coord_vocab_shift}"
            )
        end_of_bins = self.coord_vocab_shift + self.quantization_bins
        if end_of_bins > self.text_vocab_shift and self.vocab_size > self.text_vocab_shift:
            raise ValueError(
                f"coordinate tokens up to {end_of_bins - 1} overlap the text tokens from text_vocab_shift "
                f"{self.text_vocab_shift}: lower quantization_bins {self.quantization_bins} or raise text_vocab_shift"
            )
        if self.id2label:
            largest = max(self.id2label)
            limit = self.coord_vocab_shift - self.base_vocab_shift - 1
            if largest > limit or min(self.id2label) < 0:
                raise ValueError(
                    f"label id {largest if largest > limit else min(self.id2label)} does not fit: class tokens reach "
                    f"from label 1 to {limit} (coord_vocab_shift {self.coord_vocab_shift})"
                )


__all__ = ["Pix2SeqConfig"]
