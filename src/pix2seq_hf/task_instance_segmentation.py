"""Instance segmentation: asked about a box and its class, the model writes the object's outline as points.

A polygon is `y, x, y, x, ...`, its parts divided by a separator (40) in place of a point and ended by padding. Several
outlines are drawn for every object, and a pixel belongs to the mask if enough of them enclose it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .grammar_pix2seq import PolygonGrammar
from .image_processing_pix2seq import padding_scale
from .masks_pix2seq import MIN_POINTS, MaskWindow, mask_to_parts, rasterize, split_parts
from .task_base import (
    Frame,
    Targets,
    Task,
    add_counts,
    box_prompts,
    counts_by_row,
    object_points,
    point_tokens,
    resize_to,
    rows_of_objects,
    shift_right,
)
from .tokenization_pix2seq import offset_points, preserve_reserved, scale_points


@dataclass
class Polygons:
    r"""What a batch of polygon streams says.

    Args:
        points_yx (`torch.FloatTensor` of shape `(rows, 2 * num_points)`): `y, x, ...`, 0 to 1 of the padded model input
            (tokens that are no coordinates give other numbers); -1 padding, -2 separator, -3 invisible.
        malformed (`list[dict[str, int]]`): Per row, see [`malformed`]."""

    points_yx: torch.Tensor
    malformed: list[dict[str, int]]


class InstanceSegmentation(Task):
    """The task `instance_segmentation`, prompt token 11."""

    name = "instance_segmentation"
    prompt_id = 11
    required_fields = ("boxes_yxyx", "labels", "polygons_yx")
    metric = "masks"
    # `num_return_sequences` is the reference's `ensemble_num_samples`.
    generation_defaults = {
        "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 0.8, "num_return_sequences": 8,
    }  # fmt: skip
    needs_boxes = True

    def crop_pad_scale(self, config: Any) -> float | None:
        return config.mask_crop_pad_scale

    def grammar(self, config: Any, max_points: int | None = None, **options) -> PolygonGrammar:
        coordinates = range(config.coord_vocab_shift, config.coord_vocab_shift + config.quantization_bins)
        return PolygonGrammar(coordinates, config.max_points_per_object if max_points is None else max_points)

    def max_response_length(self, config: Any) -> int:
        return 2 * config.max_points_per_object

    def target_options(self, config: Any) -> dict[str, Any]:
        return {"max_points_per_object": config.max_points_per_object}

    def targets(
        self,
        record: Mapping[str, Any],
        vocabulary: Any,
        rng: np.random.Generator | None = None,
        *,
        max_instances_per_image: int = 10,
        max_points_per_object: int = 128,
        max_seq_len: int | None = None,
        eos_token_weight: float = 1.0,
        point_jitter: float = 0.0,
    ) -> Targets:
        r"""Write the training sequences of one record, one per object.

        Args:
            record (`Mapping[str, Any]`): With `boxes_yxyx`, `labels` and `polygons_yx`; objects are cut or padded to
                `max_instances_per_image`.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
            rng (`numpy.random.Generator`, *optional*): Needed for `point_jitter`.
            max_instances_per_image (`int`): Sequences per record.
            max_points_per_object (`int`): Points of a polygon, separators included.
            max_seq_len (`int`, *optional*): Length of the sequences, by default what the polygons need.
            eos_token_weight (`float`): Loss weight of padding, which is the end of a polygon.
            point_jitter (`float`): Deviation of the points that the decoder reads, as a share of the picture, so that a
                point must not be guessed from those before it; 0 in the reference.
        Returns:
            [`Targets`] with tensors of shape `(max_instances_per_image, max_seq_len)`.
        Raises:
            ValueError: If a field is missing, fields do not fit each other, or a label has no token."""
        self.require_fields(record)
        boxes_yxyx, labels, points_yx = object_points(
            record, "polygons_yx", max_points_per_object, max_instances_per_image
        )
        read_yx = None
        if point_jitter:
            if rng is None:
                raise ValueError("point_jitter draws random numbers: pass rng, or point_jitter=0")
            noise = torch.from_numpy(rng.normal(0.0, point_jitter, tuple(points_yx.shape)).astype(np.float32))
            read_yx = preserve_reserved((points_yx + noise).clamp(0, 1), points_yx)
        return build_targets(boxes_yxyx, labels, points_yx, vocabulary, max_seq_len, eos_token_weight, read_yx)

    def prompt(self, vocabulary: Any, boxes_yxyx: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Prompts `(num_objects, 6)` of boxes `(num_objects, 4)` and labels `(num_objects,)`."""
        return box_prompts(self.prompt_id, boxes_yxyx, labels, vocabulary)

    def parse(self, sequences: torch.Tensor, scores: None, vocabulary: Any) -> Polygons:
        r"""Read points; nothing is clipped, and every point up to the end of the stream is returned.

        Args:
            sequences (`torch.LongTensor` of shape `(rows, length)`): Responses, without the prompt.
            scores: Not used.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
        Returns:
            [`Polygons`] with `length // 2` points.
        Source: `task_utils.decode_instance_seq_to_points` of the reference implementation."""
        sequences = sequences.long()
        whole = sequences.shape[1] // 2 * 2
        return Polygons(vocabulary.decode_points(sequences[:, :whole]), malformed(sequences, vocabulary))

    def results(
        self,
        sequences: torch.Tensor,
        output: Mapping[str, Any],
        frames: Sequence[Frame],
        processor: Any,
        threshold: float = 0.0,
        ensemble_threshold: float = 0.5,
    ) -> list[dict[str, Any]]:
        r"""Average the outlines of every object into one mask.

        Args:
            sequences, output, frames, processor, threshold: See [`Task.results`].
            ensemble_threshold (`float`): Share of an object's outlines that must enclose a pixel, in (0, 1].
        Returns:
            `list[dict]`, per picture: `masks` `torch.uint8` `(num_objects, height, width)`, `rles` COCO run lengths,
            `polygons_xy` per object a list of parts `[x, y, ...]` in pixels whose union is the mask, `scores`,
            `labels`, `boxes` (`xmin, ymin, xmax, ymax`) as they were asked for, `malformed`."""
        polygons = self.parse(sequences.cpu(), None, processor.vocabulary)
        results = []
        for frame, objects in zip(frames, rows_of_objects(len(sequences), frames)):
            keep = (frame.scores >= threshold).nonzero()[:, 0]
            height, width = frame.picture_size or frame.size
            masks = torch.zeros(len(keep), height, width, dtype=torch.uint8)
            rles, polygons_xy, used = [], [], []
            for mask, index in zip(masks, keep.tolist()):
                samples = objects[index]
                window, parts = draw_object(polygons.points_yx[samples], frame, ensemble_threshold)
                window.paste(mask.numpy())
                rles.append(window.rle())
                polygons_xy.append([part.tolist() for part in parts])
                used += samples.tolist()
            found = {"scores": frame.scores[keep], "labels": frame.labels[keep], "boxes": frame.boxes_xyxy[keep]}
            counts = add_counts(polygons.malformed[row] for row in used)
            results.append({"masks": masks, "rles": rles, "polygons_xy": polygons_xy, **found, "malformed": counts})
        return results


def build_targets(
    boxes_yxyx: torch.Tensor,
    labels: torch.Tensor,
    points_yx: torch.Tensor,
    vocabulary: Any,
    max_seq_len: int | None,
    eos_token_weight: float,
    read_yx: torch.Tensor | None = None,
) -> Targets:
    r"""Serialise padded objects; any leading batch shape.

    Args:
        boxes_yxyx (`torch.FloatTensor` of shape `(..., 4)`): Normalised boxes.
        labels (`torch.LongTensor` of shape `(...)`): 0 for padding.
        points_yx (`torch.FloatTensor` of shape `(..., 2 * num_points)`): Polygons.
        vocabulary, max_seq_len, eos_token_weight: See [`InstanceSegmentation.targets`].
        read_yx (`torch.FloatTensor` of the shape of `points_yx`, *optional*): What the decoder reads in their place.
    Returns:
        [`Targets`] with tensors of shape `(..., max_seq_len)`."""
    prompt = box_prompts(InstanceSegmentation.prompt_id, boxes_yxyx, labels, vocabulary)
    response = point_tokens(points_yx, labels, vocabulary)
    length = prompt.shape[-1] + response.shape[-1] - 1 if max_seq_len is None else max_seq_len
    read = response if read_yx is None else point_tokens(read_yx, labels, vocabulary)
    inputs, targets = shift_right(prompt, read, response, length)
    weights = torch.cat([torch.zeros(prompt.shape[-1] - 1), torch.ones(response.shape[-1])])
    weights = resize_to(weights, length).expand(targets.shape).masked_fill((labels <= 0)[..., None], 0.0)
    # As in the reference, padding counts wherever it stands: sequences of padding objects, their prompts included, too.
    weights = weights.masked_fill(targets == vocabulary.padding_token, eos_token_weight)
    return Targets(decoder_input_ids=inputs, labels=targets, label_weights=weights)


def points_in_pixels(points_yx: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Points `(rows, 2 * num_points)` of the padded model input in pixels of the picture; reserved numbers stay."""
    scale_yx = torch.from_numpy(padding_scale(frame.size, frame.input_size))
    return offset_points(scale_points(points_yx, scale_yx), torch.tensor(frame.offset))


def draw_object(
    points_yx: torch.Tensor, frame: Frame, ensemble_threshold: float
) -> tuple[MaskWindow, list[np.ndarray]]:
    r"""Average the outlines of one object.

    Args:
        points_yx (`torch.FloatTensor` of shape `(num_samples, 2 * num_points)`): Normalised.
        frame ([`Frame`]): What the model looked at.
        ensemble_threshold (`float`): See [`InstanceSegmentation.results`].
    Returns:
        `tuple`: the mask and its outline as parts `x, y, ...` in pixels, one sample's own parts if there is one."""
    samples = [split_parts(points) for points in points_in_pixels(points_yx, frame).numpy()]
    window = rasterize(samples, frame.picture_size or frame.size, ensemble_threshold)
    if len(samples) == 1:
        return window, samples[0]
    return window, mask_to_parts(window.pixels, window.top, window.left)


def malformed(sequences: torch.Tensor, vocabulary: Any) -> list[dict[str, int]]:
    r"""Count what breaks the grammar of polygons.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): Responses, without the prompt.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
    Returns:
        `list[dict[str, int]]`: Per row the kinds that occur: up to the end, points with a token `out_of_vocabulary`,
        `coordinate` (with a token of the vocabulary that is neither coordinate, separator nor padding) and `half` (a
        separator or padding in one of two places); `short_part` (parts of less than three points, none at all counts as
        one); `after_end` (points after the end that are not padding); `incomplete` (1 if half a point is left over)."""
    whole = sequences.shape[1] // 2 * 2
    pairs = sequences[:, :whole].unflatten(-1, (-1, 2))  # (rows, points, 2)
    is_padding, is_separator = pairs == vocabulary.padding_token, pairs == vocabulary.separator_token
    is_known = vocabulary.is_known(pairs)
    is_wrong = is_known & ~(is_padding | is_separator | vocabulary.is_coordinate(pairs))
    is_over = is_padding.any(-1).cumsum(-1) > 0  # from the first padding on
    is_first_end = is_padding.any(-1) & (is_over.cumsum(-1) == 1)
    is_half = (is_padding.any(-1) & ~is_padding.all(-1)) | (is_separator.any(-1) & ~is_separator.all(-1))
    counts = {
        "out_of_vocabulary": (~is_known).any(-1) & ~is_over,
        "coordinate": is_wrong.any(-1) & ~is_over,
        "half": is_half & (~is_over | is_first_end),
        "after_end": ~is_padding.all(-1) & is_over & ~is_first_end,
    }
    counts = {kind: found.sum(-1) for kind, found in counts.items()}
    counts["short_part"] = _short_parts(is_over, is_separator.any(-1))
    counts["incomplete"] = (sequences[:, whole:] != vocabulary.padding_token).sum(-1)
    return counts_by_row(counts)


def _short_parts(is_over: torch.Tensor, is_separator: torch.Tensor) -> list[int]:
    """Parts of less than three points, of every row; both arguments `(rows, num_points)`."""
    rows = []
    for over, borders in zip(is_over.tolist(), is_separator.tolist()):
        lengths = [0]
        for is_end, is_border in zip(over, borders):
            if is_end:
                break
            if is_border:
                lengths.append(0)
            else:
                lengths[-1] += 1
        rows.append(sum(length < MIN_POINTS for length in lengths))
    return rows


__all__ = ["InstanceSegmentation", "Polygons"]
