"""Keypoint detection: asked about a box and its class, the model writes the place of every keypoint, `y, x, y, x, ...`.

A keypoint without a place is the invisible token (41), twice. The picture is cut to twice the box, so that the object
is large. The model may say at once that it does not know a place; the released checkpoints do better when they are made
to name one, so that generation suppresses the invisible token and the score says how sure the model is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .grammar_pix2seq import KeypointGrammar
from .image_processing_pix2seq import padding_scale
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
from .tokenization_pix2seq import INVISIBLE_FLOAT, offset_points, scale_points

# Taken off the logit of the invisible token, as in the reference.
SUPPRESSION = 1e9


class MaskingDraws(NamedTuple):
    """The random numbers of one masking of what the decoder reads, in the order they are drawn."""

    ratio: float  # in [0, 1), of the whole batch in the reference, of a record here
    tokens: torch.Tensor  # float32 in [0, 1), (..., 2 * num_keypoints - 1)


@dataclass
class Keypoints:
    r"""What a batch of keypoint streams says.

    Args:
        points_yx (`torch.FloatTensor` of shape `(rows, 2 * num_keypoints)`): `y, x, ...`, 0 to 1 of the padded model
            input; an invisible coordinate is the middle of the box if boxes were given, else -3.
        is_visible (`torch.BoolTensor` of shape `(rows, num_keypoints)`): Whether the stream names a place.
        point_scores (`torch.FloatTensor` of shape `(rows, num_keypoints)`): Mean probability of the two tokens.
        scores (`torch.FloatTensor` of shape `(num_objects,)`): Of the objects.
        malformed (`list[dict[str, int]]`): Per row, see [`malformed`]."""

    points_yx: torch.Tensor
    is_visible: torch.Tensor
    point_scores: torch.Tensor
    scores: torch.Tensor
    malformed: list[dict[str, int]]


class KeypointDetection(Task):
    """The task `keypoint_detection`, prompt token 12."""

    name = "keypoint_detection"
    prompt_id = 12
    required_fields = ("boxes_yxyx", "labels", "keypoints_yx")
    metric = "keypoints"
    generation_defaults = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 0.1}
    records = "visible_tokens"
    needs_boxes = True

    def crop_pad_scale(self, config: Any) -> float:
        return 0.5

    def grammar(self, config: Any, **options) -> KeypointGrammar:
        return KeypointGrammar(range(config.coord_vocab_shift, config.coord_vocab_shift + config.quantization_bins))

    def max_response_length(self, config: Any) -> int:
        return 2 * len(config.keypoint_names)

    def target_options(self, config: Any) -> dict[str, Any]:
        return {"num_keypoints": len(config.keypoint_names)}

    def targets(
        self,
        record: Mapping[str, Any],
        vocabulary: Any,
        rng: np.random.Generator | None = None,
        *,
        max_instances_per_image: int = 1,
        num_keypoints: int = 17,
        max_seq_len: int | None = None,
        mask_inputs: bool = True,
        invisible_token_weight: float = 0.1,
        eos_token_weight: float = 0.0,
    ) -> Targets:
        r"""Write the training sequences of one record, one per object.

        Args:
            record (`Mapping[str, Any]`): With `boxes_yxyx`, `labels` and `keypoints_yx`; objects are cut or padded to
                `max_instances_per_image`.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
            rng (`numpy.random.Generator`, *optional*): Needed for `mask_inputs`.
            max_instances_per_image (`int`): Sequences per record; one, as each object is its own cut of the picture.
            num_keypoints (`int`): Keypoints of an object.
            max_seq_len (`int`, *optional*): Length of the sequences, by default what the keypoints need.
            mask_inputs (`bool`): Whether the decoder reads the invisible token in place of a random share of the
                coordinates, so that a keypoint must not be guessed from the ones before it.
            invisible_token_weight (`float`): Loss weight of invisible keypoints.
            eos_token_weight (`float`): Loss weight of padding.
        Returns:
            [`Targets`] with tensors of shape `(max_instances_per_image, max_seq_len)`.
        Raises:
            ValueError: If a field is missing, fields do not fit each other, or a label has no token."""
        self.require_fields(record)
        boxes_yxyx, labels, points_yx = object_points(record, "keypoints_yx", num_keypoints, max_instances_per_image)
        draws = None
        if mask_inputs:
            if rng is None:
                raise ValueError("mask_inputs draws random numbers: pass rng, or mask_inputs=False")
            draws = draw_masking(rng, max_instances_per_image, num_keypoints)
        return build_targets(
            boxes_yxyx,
            labels,
            points_yx,
            vocabulary,
            draws,
            max_seq_len=max_seq_len,
            invisible_token_weight=invisible_token_weight,
            eos_token_weight=eos_token_weight,
        )

    def prompt(self, vocabulary: Any, boxes_yxyx: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Prompts `(num_objects, 6)` of boxes `(num_objects, 4)` and labels `(num_objects,)`."""
        return box_prompts(self.prompt_id, boxes_yxyx, labels, vocabulary)

    def parse(
        self,
        sequences: torch.Tensor,
        scores: torch.Tensor | None,
        vocabulary: Any,
        *,
        num_keypoints: int = 17,
        boxes_yxyx: torch.Tensor | None = None,
        box_scores: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        keypoint_labels: Sequence[int] = (1,),
        points_score_weight: float = 1.0,
    ) -> Keypoints:
        r"""Read keypoints; nothing is clipped.

        Args:
            sequences (`torch.LongTensor` of shape `(rows, length)`): Responses, without the prompt.
            scores (`torch.FloatTensor` of shape `(rows, length)`, *optional*): Probability of every token, as
                generation recorded it; by default 1.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
            num_keypoints (`int`): Keypoints of an object; what a stream lacks is padding.
            boxes_yxyx (`torch.FloatTensor` of shape `(rows, 4)`, *optional*): Boxes of the prompts, normalised; their
                middle replaces invisible coordinates.
            box_scores (`torch.FloatTensor` of shape `(num_objects,)`, *optional*): By default 1; with fewer objects
                than rows, each has as many rows.
            labels (`torch.LongTensor` of shape `(num_objects,)`, *optional*): Raw label ids of the objects.
            keypoint_labels (`Sequence[int]`): Labels of objects that have keypoints; the score of others is 0.
            points_score_weight (`float`): Weight of the tokens' probability in the score, the rest is the box's score.
        Returns:
            [`Keypoints`].
        Source: `TaskKeypointDetection.postprocess_tpu` of the reference implementation."""
        sequences = sequences.long()
        if scores is None:
            scores = torch.ones(sequences.shape, device=sequences.device)
        tokens, probabilities = (resize_to(values, 2 * num_keypoints, 1) for values in (sequences, scores.float()))
        points_yx = vocabulary.decode_points(tokens)
        if boxes_yxyx is not None:
            ymin, xmin, ymax, xmax = boxes_yxyx.unbind(-1)
            middle = torch.stack([(ymax + ymin) / 2.0, (xmax + xmin) / 2.0], -1).repeat(1, num_keypoints)
            points_yx = torch.where(points_yx == INVISIBLE_FLOAT, middle, points_yx)
        object_scores = torch.ones(len(sequences)) if box_scores is None else box_scores
        if points_score_weight:
            object_scores = weighted_scores(object_scores, sequences, scores, points_score_weight, vocabulary)
        if labels is not None:
            has_keypoints = torch.isin(labels, torch.tensor(list(keypoint_labels), device=labels.device))
            object_scores = torch.where(has_keypoints, object_scores, 0.0)
        return Keypoints(
            points_yx=points_yx,
            is_visible=vocabulary.is_coordinate(tokens).unflatten(-1, (-1, 2)).all(-1),
            point_scores=probabilities.unflatten(-1, (-1, 2)).mean(-1),
            scores=object_scores,
            malformed=malformed(sequences, vocabulary, num_keypoints),
        )

    def results(
        self,
        sequences: torch.Tensor,
        output: Mapping[str, Any],
        frames: Sequence[Frame],
        processor: Any,
        threshold: float = 0.0,
        points_score_weight: float = 1.0,
    ) -> list[dict[str, Any]]:
        r"""Place the keypoints of every object in its picture.

        Args:
            sequences, frames, processor, threshold: See [`Task.results`].
            output (`Mapping[str, Any]`): Read are `token_scores` `(rows, length)`, the probability of every token, and
                `is_invisible` of the same shape, where the model wrote the invisible token before it was replaced.
            points_score_weight (`float`): See [`parse`].
        Returns:
            `list[dict]`, per frame: `keypoints` `(num_objects, num_keypoints, 2)` as x, y in pixels of the picture,
            `keypoint_visible` (`bool`) and `keypoint_scores` `(num_objects, num_keypoints)`, `scores`, `labels`,
            `boxes` (`xmin, ymin, xmax, ymax`) as they were asked for, `malformed`."""
        num_keypoints = len(processor.keypoint_names)
        token_scores, is_invisible = (
            None if output.get(name) is None else torch.as_tensor(output[name]).cpu()
            for name in ("token_scores", "is_invisible")
        )
        sequences = sequences.cpu()
        results = []
        for frame, objects in zip(frames, rows_of_objects(len(sequences), frames)):
            rows = objects[: len(frame.labels), 0] if objects.numel() else objects.new_zeros(0)
            found = self.parse(
                sequences[rows],
                None if token_scores is None else token_scores[rows],
                processor.vocabulary,
                num_keypoints=num_keypoints,
                boxes_yxyx=frame.boxes_yxyx,
                box_scores=frame.scores,
                labels=frame.labels,
                keypoint_labels=processor.keypoint_labels,
                points_score_weight=points_score_weight,
            )
            is_visible = found.is_visible
            if is_invisible is not None:
                hidden = resize_to(is_invisible[rows], 2 * num_keypoints, 1).unflatten(-1, (-1, 2)).any(-1)
                is_visible = is_visible & ~hidden
            scale_yx = torch.from_numpy(padding_scale(frame.size, frame.input_size))
            pixels_yx = offset_points(scale_points(found.points_yx, scale_yx), torch.tensor(frame.offset))
            keep = found.scores >= threshold
            results.append(
                {
                    "keypoints": pixels_yx.unflatten(-1, (-1, 2)).flip(-1)[keep],
                    "keypoint_visible": is_visible[keep],
                    "keypoint_scores": found.point_scores[keep],
                    "scores": found.scores[keep],
                    "labels": frame.labels[keep],
                    "boxes": frame.boxes_xyxy[keep],
                    "malformed": add_counts(found.malformed),
                }
            )
        return results


def build_targets(
    boxes_yxyx: torch.Tensor,
    labels: torch.Tensor,
    points_yx: torch.Tensor,
    vocabulary: Any,
    draws: MaskingDraws | None,
    *,
    max_seq_len: int | None,
    invisible_token_weight: float,
    eos_token_weight: float,
) -> Targets:
    r"""Serialise padded objects; any leading batch shape.

    Args:
        boxes_yxyx (`torch.FloatTensor` of shape `(..., 4)`): Normalised boxes.
        labels (`torch.LongTensor` of shape `(...)`): 0 for padding.
        points_yx (`torch.FloatTensor` of shape `(..., 2 * num_keypoints)`): Keypoints.
        draws ([`MaskingDraws`], *optional*): What the decoder must not read; nothing is masked without.
        others: See [`KeypointDetection.targets`].
    Returns:
        [`Targets`] with tensors of shape `(..., max_seq_len)`."""
    prompt = box_prompts(KeypointDetection.prompt_id, boxes_yxyx, labels, vocabulary)
    response = point_tokens(points_yx, labels, vocabulary)
    read = response if draws is None else mask_inputs(response, draws, vocabulary)
    length = prompt.shape[-1] + response.shape[-1] - 1 if max_seq_len is None else max_seq_len
    inputs, targets = shift_right(prompt, read, response, length)
    weights = torch.cat([torch.zeros(prompt.shape[-1] - 1), torch.ones(response.shape[-1])])
    weights = resize_to(weights, length).expand(targets.shape)
    weights = weights.masked_fill(targets == vocabulary.invisible_token, invisible_token_weight)
    weights = weights.masked_fill((labels <= 0)[..., None], 0.0)
    weights = weights.masked_fill(targets == vocabulary.padding_token, eos_token_weight)
    return Targets(decoder_input_ids=inputs, labels=targets, label_weights=weights)


def draw_masking(rng: np.random.Generator, num_objects: int, num_keypoints: int) -> MaskingDraws:
    """Draw what [`mask_inputs`] needs for `num_objects` sequences."""
    ratio = float(rng.random(dtype=np.float32))
    return MaskingDraws(ratio, torch.from_numpy(rng.random((num_objects, 2 * num_keypoints - 1), np.float32)))


def mask_inputs(response: torch.Tensor, draws: MaskingDraws, vocabulary: Any) -> torch.Tensor:
    """Put the invisible token over a share of the response `(..., 2 * num_keypoints)`; the last token is never read."""
    # As in the reference, this also hits the padding of padding objects, whose tokens have no weight.
    is_masked = torch.nn.functional.pad(draws.tokens < draws.ratio, (0, 1))
    return response.masked_fill(is_masked, vocabulary.invisible_token)


def suppress_invisible(logits: torch.Tensor, vocabulary: Any) -> torch.Tensor:
    """Logits `(..., vocab_size)` under which the invisible token is never chosen."""
    logits = logits.clone()
    logits[..., vocabulary.invisible_token] -= SUPPRESSION
    return logits


def replace_invisible(tokens: torch.Tensor, replacements: torch.Tensor, vocabulary: Any) -> torch.Tensor:
    """Tokens with those of `replacements` (of the same shape) in place of invisible ones."""
    return torch.where(tokens == vocabulary.invisible_token, replacements, tokens)


def token_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Softmax probability, over the whole vocabulary, of tokens `(...)` under logits `(..., vocab_size)`."""
    return torch.softmax(logits, -1, dtype=torch.float32).gather(-1, tokens[..., None]).squeeze(-1)


def weighted_scores(
    box_scores: torch.Tensor,
    tokens: torch.Tensor,
    token_scores: torch.Tensor,
    points_score_weight: float,
    vocabulary: Any,
) -> torch.Tensor:
    r"""Scores of objects from those of their boxes and the probabilities of their tokens.

    Args:
        box_scores (`torch.FloatTensor` of shape `(num_objects,)`): In `[0, 1]`.
        tokens (`torch.LongTensor` of shape `(num_objects * num_samples, length)`): Responses; padding does not count.
        token_scores (`torch.FloatTensor` of the shape of `tokens`): Their probabilities.
        points_score_weight (`float`): Weight of the mean probability.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
    Returns:
        `torch.FloatTensor` of shape `(num_objects,)`.
    Source: `task_utils.compute_weighted_scores` of the reference implementation."""
    counts = (tokens != vocabulary.padding_token).float()
    # Departure: the mean over no token is 0; the reference divides by zero, and one NaN spoils all of an object.
    means = (token_scores * counts).sum(-1) / counts.sum(-1).clamp(min=1)
    means = means.reshape(len(box_scores), -1).mean(-1) if len(box_scores) else means
    return points_score_weight * means + (1 - points_score_weight) * box_scores


def triples_to_points(triples: Any, num_keypoints: int) -> np.ndarray:
    r"""Read keypoints as COCO writes them.

    Args:
        triples (`Sequence[float]`): x, y, v per keypoint, in pixels; with v = 0 the keypoint has no place.
        num_keypoints (`int`): Keypoints of the model.
    Returns:
        `np.ndarray` of shape `(2 * num_keypoints,)`, float64: `y, x, ...`; -3 for a keypoint without a place.
    Raises:
        ValueError: If there are not as many finite numbers."""
    triples = np.asarray(triples, np.float64).reshape(-1)
    if len(triples) != 3 * num_keypoints or not np.isfinite(triples).all():
        raise ValueError(f"keypoints must be {num_keypoints} times x, y, v, got {len(triples)} numbers")
    triples = triples.reshape(num_keypoints, 3)
    return np.where(triples[:, 2:] == 0, INVISIBLE_FLOAT, triples[:, 1::-1]).reshape(-1)


def malformed(sequences: torch.Tensor, vocabulary: Any, num_keypoints: int) -> list[dict[str, int]]:
    r"""Count the keypoints that break the grammar.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): Responses, without the prompt.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
        num_keypoints (`int`): Keypoints of an object.
    Returns:
        `list[dict[str, int]]`: Per row the kinds that occur: keypoints with a token `out_of_vocabulary`, `coordinate`
        (with a token of the vocabulary that is neither a coordinate nor invisible), `half` (invisible in one of two
        places), `missing` (keypoints that the stream is too short for), `after_end` (tokens after the last keypoint
        that are not padding)."""
    written = min(sequences.shape[1] // 2, num_keypoints)
    pairs = sequences[:, : 2 * written].unflatten(-1, (-1, 2))  # (rows, written, 2)
    is_known, is_invisible = vocabulary.is_known(pairs), pairs == vocabulary.invisible_token
    kinds = {
        "out_of_vocabulary": (~is_known).any(-1).sum(-1),
        "coordinate": (is_known & ~is_invisible & ~vocabulary.is_coordinate(pairs)).any(-1).sum(-1),
        "half": (is_invisible.any(-1) & ~is_invisible.all(-1)).sum(-1),
        "missing": torch.full((len(sequences),), num_keypoints - written),
        "after_end": (sequences[:, 2 * num_keypoints :] != vocabulary.padding_token).sum(-1),
    }
    return counts_by_row(kinds)


__all__ = ["KeypointDetection", "Keypoints"]
