"""Which token means what: reserved, class, coordinate and text tokens, and the way between numbers and tokens.

    0 .. 99         reserved: 0 padding, 10 to 29 task prompts, 30 fake class, 40 separator, 41 invisible
    100 .. 999      class tokens: raw label id + base_vocab_shift (label 0 is padding and has no token)
    1000 .. 2999    coordinate tokens: bin + coord_vocab_shift (as many as there are bins)
    3000 ..         text tokens: caption tokenizer id + text_vocab_shift

The numbers are those of the released checkpoints; [`Pix2SeqVocabulary`] holds the ones of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

PADDING_TOKEN = 0
FAKE_CLASS_TOKEN = 30
SEPARATOR_TOKEN = 40
INVISIBLE_TOKEN = 41
BASE_VOCAB_SHIFT = 100

# A flat list of points holds these in place of a coordinate.
PADDING_FLOAT = -1.0
SEPARATOR_FLOAT = -2.0
INVISIBLE_FLOAT = -3.0
RESERVED = (
    (PADDING_FLOAT, PADDING_TOKEN),
    (SEPARATOR_FLOAT, SEPARATOR_TOKEN),
    (INVISIBLE_FLOAT, INVISIBLE_TOKEN),
)

PADDING_LABEL = 0
FAKE_CLASS_LABEL = FAKE_CLASS_TOKEN - BASE_VOCAB_SHIFT  # -70, marks a noise box in a record


def quantize(points: torch.Tensor, num_bins: int) -> torch.Tensor:
    r"""Map normalised coordinates to coordinate bins; [`dequantize`] undoes it up to half a bin.

    Args:
        points (`torch.FloatTensor` of any shape): Coordinates; 0 is top or left, 1 bottom or right. Others are clipped.
        num_bins (`int`): Bins per axis (1000 in the released checkpoints).
    Returns:
        `torch.LongTensor` of the shape of `points`: bins in `[0, num_bins - 1]`, not yet shifted into the vocabulary.
    Raises:
        ValueError: If `num_bins` is below 2.
    Source: `utils.quantize` of the reference implementation."""
    _check_num_bins(num_bins)
    bins = torch.round(points.float() * (num_bins - 1))  # halves to even, like the reference
    # Clipped before the cast: what a cast makes of NaN or of numbers beyond int64 depends on the machine.
    return bins.nan_to_num(0.0).clamp(0, num_bins - 1).long()


def dequantize(tokens: torch.Tensor, num_bins: int) -> torch.Tensor:
    r"""Map coordinate bins to normalised coordinates, without clipping.

    Args:
        tokens (`torch.LongTensor` of any shape): Bins, already without `coord_vocab_shift`.
        num_bins (`int`): Bins per axis.
    Returns:
        `torch.FloatTensor` of the shape of `tokens`, in `[0, 1]` for bins in `[0, num_bins - 1]`.
    Raises:
        ValueError: If `num_bins` is below 2.
    Source: `utils.dequantize` of the reference implementation."""
    _check_num_bins(num_bins)
    # A tensor as divisor: CUDA multiplies by the reciprocal of a Python number, which is off in the last bit.
    return tokens.float() / torch.full((), num_bins - 1, dtype=torch.float32, device=tokens.device)


def reserved_to_tokens(tokens: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Put the reserved tokens 0, 40, 41 where `points` is exactly -1, -2, -3 (each coordinate on its own)."""
    for number, token in RESERVED:
        tokens = tokens.masked_fill(points == number, token)
    return tokens


def reserved_to_floats(points: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Put the reserved numbers -1, -2, -3 where `tokens` is 0, 40, 41 (each coordinate on its own)."""
    for number, token in RESERVED:
        points = points.masked_fill(tokens == token, number)
    return points


def preserve_reserved(points: torch.Tensor, original_points: torch.Tensor) -> torch.Tensor:
    """Put -1, -2, -3 back where `original_points` had them, after a computation that changed `points`."""
    for number, _ in RESERVED:
        points = points.masked_fill(original_points == number, number)
    return points


def scale_points(points_yx: torch.Tensor, scale_yx: torch.Tensor) -> torch.Tensor:
    r"""Multiply the coordinates of boxes or points; reserved numbers stay.

    Args:
        points_yx (`torch.FloatTensor` of shape `(..., 2 * num_points)`): `y, x, y, x, ...`; a box is two points.
        scale_yx (`torch.FloatTensor` of shape `(2,)` or broadcastable to `(..., 1, 2)`): Factors of y and x.
    Returns:
        `torch.FloatTensor` of the shape of `points_yx`.
    Source: `utils.scale_points` of the reference implementation."""
    pairs = points_yx.unflatten(-1, (-1, 2))  # (..., num_points, 2)
    return preserve_reserved((pairs * scale_yx).flatten(-2), points_yx)


def offset_points(points_yx: torch.Tensor, offset_yx: torch.Tensor) -> torch.Tensor:
    r"""Add an offset to every point; reserved numbers stay.

    Args:
        points_yx (`torch.FloatTensor` of shape `(..., 2 * num_points)`): `y, x, y, x, ...` in pixels of a crop.
        offset_yx (`torch.Tensor` of shape `(2,)` or broadcastable to `(..., 1, 2)`): Top left corner of the crop.
    Returns:
        `torch.FloatTensor` of the shape of `points_yx`."""
    pairs = points_yx.unflatten(-1, (-1, 2))  # (..., num_points, 2)
    return preserve_reserved((pairs + offset_yx.to(points_yx.dtype)).flatten(-2), points_yx)


def swap_yx(points: torch.Tensor) -> torch.Tensor:
    """Turn a flat list `y, x, y, x, ...` into `x, y, x, y, ...` and back."""
    return points.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def class_labels_and_scores(
    logits: torch.Tensor, base_vocab_shift: int = BASE_VOCAB_SHIFT, coord_vocab_shift: int = 1000
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Read the best class and its score from the logits at a class position.

    The softmax runs over the whole vocabulary, so a score is low where the model would rather write something else;
    the best of the class tokens is taken whatever token was sampled. Of equal probabilities the lowest token wins. If
    every class probability underflows to 0, the label is 0 and the score the probability of token 0.

    Args:
        logits (`torch.FloatTensor` of shape `(..., vocab_size)`): Raw logits, before temperature and filters.
        base_vocab_shift (`int`): First class token.
        coord_vocab_shift (`int`): First token after the class tokens.
    Returns:
        `tuple`: labels (`torch.LongTensor` of shape `(...)`, 0 for none) and scores (`torch.FloatTensor` of shape
        `(...)` in `[0, 1]`).
    Source: `task_utils.decode_object_seq_to_bbox` of the reference implementation."""
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
    classes = probabilities[..., base_vocab_shift:coord_vocab_shift]
    if not classes.shape[-1]:  # a vocabulary without class tokens
        return torch.zeros_like(probabilities[..., 0], dtype=torch.long), probabilities[..., 0]
    scores, labels = classes.max(dim=-1)
    none_left = scores == 0
    return labels.masked_fill(none_left, 0), torch.where(none_left, probabilities[..., 0], scores)


@dataclass(frozen=True)
class Pix2SeqVocabulary:
    r"""The token layout of one model.

    Args:
        vocab_size (`int`): Number of tokens.
        quantization_bins (`int`): Coordinate bins per axis.
        base_vocab_shift (`int`): Token of label 0, one before the first class token in use.
        coord_vocab_shift (`int`): Token of bin 0.
        text_vocab_shift (`int`): Token of caption tokenizer id 0; vocabularies that end before it have no text.
        id2label (`dict[int, str]`, *optional*): Name per raw label id, from 1 on, gaps allowed.
    Raises:
        ValueError: If the ranges overlap, leave the vocabulary, or do not hold the labels."""

    vocab_size: int = 3000
    quantization_bins: int = 1000
    base_vocab_shift: int = BASE_VOCAB_SHIFT
    coord_vocab_shift: int = 1000
    text_vocab_shift: int = 3000
    id2label: Mapping[int, str] | None = field(default=None, hash=False)

    padding_token: ClassVar[int] = PADDING_TOKEN
    fake_class_token: ClassVar[int] = FAKE_CLASS_TOKEN
    separator_token: ClassVar[int] = SEPARATOR_TOKEN
    invisible_token: ClassVar[int] = INVISIBLE_TOKEN
    padding_label: ClassVar[int] = PADDING_LABEL
    fake_class_label: ClassVar[int] = FAKE_CLASS_LABEL

    def __post_init__(self):
        _check_num_bins(self.quantization_bins)
        if self.base_vocab_shift <= INVISIBLE_TOKEN:
            raise ValueError(
                f"base_vocab_shift {self.base_vocab_shift} overlaps the reserved tokens 0 to {INVISIBLE_TOKEN}: "
                f"use {BASE_VOCAB_SHIFT} as in the released checkpoints"
            )
        if self.coord_vocab_shift < self.base_vocab_shift + 2:
            raise ValueError(
                f"coord_vocab_shift {self.coord_vocab_shift} leaves no class token after base_vocab_shift "
                f"{self.base_vocab_shift}: raise coord_vocab_shift to at least {self.base_vocab_shift + 2}"
            )
        if self.end_of_coordinates > self.vocab_size:
            raise ValueError(
                f"coordinate tokens {self.coord_vocab_shift} to {self.end_of_coordinates - 1} do not fit into "
                f"vocab_size {self.vocab_size}: lower quantization_bins {self.quantization_bins} or raise vocab_size"
            )
        if self.end_of_coordinates > self.text_vocab_shift:
            raise ValueError(
                f"coordinate tokens {self.coord_vocab_shift} to {self.end_of_coordinates - 1} overlap the text tokens "
                f"from text_vocab_shift {self.text_vocab_shift}: lower quantization_bins {self.quantization_bins} or "
                "raise text_vocab_shift"
            )
        object.__setattr__(self, "id2label", self._checked_labels())

    @classmethod
    def from_config(cls, config: Any) -> "Pix2SeqVocabulary":
        r"""Read the layout from anything with the fields of the same names.

        Args:
            config (`Pix2SeqConfig` or any object): Holds `vocab_size`, `quantization_bins`, the three shifts, and
                `id2label` (*optional*)."""
        names = ("vocab_size", "quantization_bins", "base_vocab_shift", "coord_vocab_shift", "text_vocab_shift")
        return cls(**{name: getattr(config, name) for name in names}, id2label=getattr(config, "id2label", None))

    @property
    def end_of_coordinates(self) -> int:
        """One after the last coordinate token."""
        return self.coord_vocab_shift + self.quantization_bins

    @property
    def max_label(self) -> int:
        """Largest raw label id that has a class token (899 in the released checkpoints)."""
        return self.coord_vocab_shift - self.base_vocab_shift - 1

    def encode_labels(self, labels: torch.Tensor) -> torch.Tensor:
        r"""Map raw label ids to class tokens; 0 becomes padding and a noise box the fake class token.

        Args:
            labels (`torch.LongTensor` of any shape): 0, -70 (a noise box), or in `[1, max_label]`.
        Returns:
            `torch.LongTensor` of the shape of `labels`.
        Raises:
            ValueError: If a label has no token."""
        labels = labels.long()
        is_noise = labels == FAKE_CLASS_LABEL
        unknown = ~is_noise & ((labels < 0) | (labels > self.max_label))
        if unknown.any():
            raise ValueError(
                f"label {labels[unknown][0].item()} has no class token: labels go from 1 to {self.max_label} "
                f"(0 is padding, {FAKE_CLASS_LABEL} a noise box)"
            )
        tokens = (labels + self.base_vocab_shift).masked_fill(is_noise, FAKE_CLASS_TOKEN)
        return tokens.masked_fill(labels == PADDING_LABEL, PADDING_TOKEN)

    def decode_labels(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map class tokens to raw label ids; every other token gives 0."""
        return torch.where(self.is_class(tokens), tokens - self.base_vocab_shift, PADDING_LABEL)

    def encode_boxes(self, boxes_yxyx: torch.Tensor) -> torch.Tensor:
        """Map normalised coordinates of any shape to coordinate tokens; coordinates outside [0, 1] are clipped."""
        return quantize(boxes_yxyx, self.quantization_bins) + self.coord_vocab_shift

    def decode_boxes(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens of any kind to normalised coordinates, clipped to [0, 1]; corners are not sorted."""
        tokens = tokens.clamp(self.coord_vocab_shift, self.end_of_coordinates - 1)
        return dequantize(tokens - self.coord_vocab_shift, self.quantization_bins)

    def encode_points(self, points_yx: torch.Tensor) -> torch.Tensor:
        """Map normalised coordinates to tokens; -1, -2, -3 become the padding, separator and invisible tokens."""
        return reserved_to_tokens(self.encode_boxes(points_yx), points_yx)

    def decode_points(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens to normalised coordinates without clipping; reserved tokens become -1, -2, -3."""
        points = dequantize(tokens - self.coord_vocab_shift, self.quantization_bins)
        return reserved_to_floats(points, tokens)

    def is_class(self, tokens: torch.Tensor) -> torch.Tensor:
        """True where a token names a class (label 1 or higher)."""
        return (tokens > self.base_vocab_shift) & (tokens < self.coord_vocab_shift)

    def is_coordinate(self, tokens: torch.Tensor) -> torch.Tensor:
        """True where a token is a coordinate bin."""
        return (tokens >= self.coord_vocab_shift) & (tokens < self.end_of_coordinates)

    def is_known(self, tokens: torch.Tensor) -> torch.Tensor:
        """True where a token lies inside the vocabulary."""
        return (tokens >= 0) & (tokens < self.vocab_size)

    def class_labels_and_scores(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[`class_labels_and_scores`] with the shifts of this vocabulary."""
        return class_labels_and_scores(logits, self.base_vocab_shift, self.coord_vocab_shift)

    def _checked_labels(self) -> dict[int, str] | None:
        if self.id2label is None:
            return None
        id2label = {int(label): str(name) for label, name in self.id2label.items()}
        if all(name == f"LABEL_{label}" for label, name in id2label.items()):
            return None  # the names transformers invents for a configuration without labels
        if len(id2label) > self.max_label:
            raise ValueError(
                f"{len(id2label)} classes do not fit: coord_vocab_shift {self.coord_vocab_shift} leaves room for "
                f"{self.max_label} after base_vocab_shift {self.base_vocab_shift}; raise coord_vocab_shift"
            )
        for label, name in sorted(id2label.items()):
            if label == PADDING_LABEL:
                raise ValueError(f"label id 0 ({name!r}) means padding: number the classes from 1 to {self.max_label}")
            if not 0 < label <= self.max_label:
                raise ValueError(
                    f"label id {label} ({name!r}) has no class token: label ids go from 1 to {self.max_label} "
                    f"(base_vocab_shift {self.base_vocab_shift}, coord_vocab_shift {self.coord_vocab_shift})"
                )
        return id2label


def _check_num_bins(num_bins: int):
    if num_bins < 2:
        raise ValueError(f"quantization_bins must be at least 2, got {num_bins}")


__all__ = ["Pix2SeqVocabulary", "class_labels_and_scores", "dequantize", "quantize"]
