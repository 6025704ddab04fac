"""Object detection: every object of a picture is five tokens, its box `ymin, xmin, ymax, xmax` and its class.

After the objects come noise boxes with the fake class (30), so that the model keeps writing to the end and the score
of a class says whether there is an object. What the decoder reads has its class tokens corrupted: a class must not be
guessed from the classes before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .grammar_pix2seq import BoxGrammar
from .image_processing_pix2seq import scale_boxes
from .task_base import Frame, Targets, Task, counts_by_row, resize_to, shift_right

TOKENS_PER_OBJECT = 5
CLASS_LABEL_CORRUPTIONS = ("none", "rand_cls", "rand_n_fake_cls", "real_n_fake_cls", "real_n_rand_n_fake_cls")


class CorruptionDraws(NamedTuple):
    """The random numbers of one corruption, in the order they are drawn; one of each per object slot."""

    class_offset: torch.Tensor  # int64 in [0, coord_vocab_shift - base_vocab_shift)
    rand_n_fake: torch.Tensor  # float32 in [0, 1), like the two below
    real_n_fake: torch.Tensor
    real_n_rand_n_fake: torch.Tensor


@dataclass
class Detections:
    r"""What a batch of detection streams says.

    Args:
        labels (`torch.LongTensor` of shape `(batch, num_slots)`): Raw label ids; 0 where a slot names no class.
        scores (`torch.FloatTensor` of shape `(batch, num_slots)`): In `[0, 1]`.
        boxes_yxyx (`torch.FloatTensor` of shape `(batch, num_slots, 4)`): In `[0, 1]` of the padded model input; the
            corners are as written, not sorted.
        malformed (`list[dict[str, int]]`): Per sequence, how many slots are malformed in which way, see
            [`malformed`]."""

    labels: torch.Tensor
    scores: torch.Tensor
    boxes_yxyx: torch.Tensor
    malformed: list[dict[str, int]]


class ObjectDetection(Task):
    """The task `object_detection`, prompt token 10."""

    name = "object_detection"
    prompt_id = 10
    required_fields = ("boxes_yxyx", "labels")
    metric = "boxes"
    generation_defaults = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 0.4}
    records = "classes"

    def grammar(self, config, labels=None, stop_when_noise=False, **options):
        first = config.base_vocab_shift + 1
        classes = range(first, config.coord_vocab_shift) if labels is None else [first - 1 + label for label in labels]
        coordinates = range(config.coord_vocab_shift, config.coord_vocab_shift + config.quantization_bins)
        return BoxGrammar(coordinates, classes, stop_when_noise)

    def max_response_length(self, config: Any) -> int:
        return 5 * config.max_instances_per_image

    def target_options(self, config: Any) -> dict[str, Any]:
        return {"max_instances_per_image": config.max_instances_per_image}

    def targets(
        self,
        record: Mapping[str, Any],
        vocabulary: Any,
        rng: np.random.Generator | None = None,
        *,
        max_instances_per_image: int = 100,
        max_seq_len: int | None = None,
        class_label_corruption: str = "rand_n_fake_cls",
        noise_bbox_weight: float = 1.0,
        eos_token_weight: float = 0.1,
    ) -> Targets:
        r"""Write the training sequence of one record.

        Args:
            record (`Mapping[str, Any]`): With `boxes_yxyx` and `labels`; cut or padded to `max_instances_per_image`.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
            rng (`numpy.random.Generator`, *optional*): Needed for every corruption but `"none"`.
            max_instances_per_image (`int`): Object slots of the sequence.
            max_seq_len (`int`, *optional*): Length of the sequence, by default five times the slots.
            class_label_corruption (`str`): One of `CLASS_LABEL_CORRUPTIONS`.
            noise_bbox_weight (`float`): Loss weight of the class token of a noise box; its coordinates have none.
            eos_token_weight (`float`): Loss weight of padding.
        Returns:
            [`Targets`] of rank 1.
        Raises:
            ValueError: If a field is missing, a label has no token, or the sequence does not fit."""
        self.require_fields(record)
        boxes_yxyx = torch.as_tensor(record["boxes_yxyx"], dtype=torch.float32).reshape(-1, 4)
        labels = torch.as_tensor(record["labels"], dtype=torch.int64).reshape(-1)
        if len(boxes_yxyx) != len(labels):
            raise ValueError(
                f"record of image {record.get('image_id', 'without id')} has {len(boxes_yxyx)} boxes "
                f"but {len(labels)} labels"
            )
        draws = None
        if class_label_corruption != "none":
            if rng is None:
                raise ValueError(
                    f"class_label_corruption {class_label_corruption!r} draws random numbers: pass rng, "
                    "or class_label_corruption='none'"
                )
            draws = draw_corruption(rng, max_instances_per_image, vocabulary)
        return build_targets(
            resize_to(boxes_yxyx, max_instances_per_image),
            resize_to(labels, max_instances_per_image),
            vocabulary,
            draws,
            prompt=self.prompt(vocabulary),
            max_seq_len=max_seq_len,
            class_label_corruption=class_label_corruption,
            noise_bbox_weight=noise_bbox_weight,
            eos_token_weight=eos_token_weight,
        )

    def prompt(self, vocabulary: Any = None) -> torch.Tensor:
        """The prompt token alone: `torch.LongTensor` of shape `(1,)`."""
        return torch.tensor([self.prompt_id])

    def parse(
        self,
        sequences: torch.Tensor,
        scores: tuple[torch.Tensor, torch.Tensor] | None,
        vocabulary: Any,
    ) -> Detections:
        r"""Read boxes and classes. Nothing ends a stream: every slot of five tokens is returned.

        Args:
            sequences (`torch.LongTensor` of shape `(batch, length)`): Responses, without the prompt.
            scores (`tuple[torch.Tensor, torch.Tensor]`, *optional*): `class_labels` and `class_scores` of shape
                `(batch, num_slots)`, as generation recorded them from the logits at the class positions; the sampled
                class tokens are then ignored, as in the reference. Without it the sampled tokens are the classes,
                with score 1.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
        Returns:
            [`Detections`] with `length // 5` slots.
        Source: `task_utils.decode_object_seq_to_bbox` of the reference implementation."""
        sequences = sequences.long()
        slots, _ = split_slots(sequences)
        if scores is None:
            labels = vocabulary.decode_labels(slots[..., 4])
            class_scores = (labels > 0).float()
        else:
            labels, class_scores = (resize_to(recorded, slots.shape[1], dim=1) for recorded in scores)
        return Detections(
            labels=labels,
            scores=class_scores.float(),
            boxes_yxyx=vocabulary.decode_boxes(slots[..., :4]),
            malformed=malformed(sequences, vocabulary),
        )

    def results(
        self,
        sequences: torch.Tensor,
        output: Mapping[str, Any],
        frames: Sequence[Frame],
        processor: Any,
        threshold: float = 0.0,
    ) -> list[dict[str, Any]]:
        r"""Place the objects of every sequence in its picture.

        Args:
            sequences, frames, processor, threshold: See [`Task.results`].
            output (`Mapping[str, Any]`): Read are `class_labels` and `class_scores`, see [`parse`].
        Returns:
            `list[dict]`, per row of `sequences`: `scores`, `labels`, `boxes` and `malformed`; the boxes as `xmin, ymin,
            xmax, ymax`, in pixels or, of frames without a size, normalised by the padded model input."""
        has_classes = output.get("class_labels") is not None
        scores = (output["class_labels"], output["class_scores"]) if has_classes else None
        found = self.parse(sequences, scores, processor.vocabulary)
        samples = len(sequences) // max(len(frames), 1)
        results = []
        for row, malformed_slots in enumerate(found.malformed):
            frame = frames[row // samples]
            keep = (found.labels[row] > 0) & (found.scores[row] >= threshold)
            boxes_yxyx = found.boxes_yxyx[row][keep]
            if frame.size is None:
                boxes_xyxy = boxes_yxyx[:, [1, 0, 3, 2]]
            else:
                boxes_xyxy = scale_boxes(boxes_yxyx, frame.size, frame.input_size)
            objects = {"scores": found.scores[row][keep], "labels": found.labels[row][keep], "boxes": boxes_xyxy}
            results.append({**objects, "malformed": malformed_slots})
        return results


def build_targets(
    boxes_yxyx: torch.Tensor,
    labels: torch.Tensor,
    vocabulary: Any,
    draws: CorruptionDraws | None,
    *,
    prompt: torch.Tensor,
    max_seq_len: int | None,
    class_label_corruption: str,
    noise_bbox_weight: float,
    eos_token_weight: float,
) -> Targets:
    r"""Serialise padded objects; any leading batch shape.

    Args:
        boxes_yxyx (`torch.FloatTensor` of shape `(..., num_slots, 4)`): Normalised boxes.
        labels (`torch.LongTensor` of shape `(..., num_slots)`): 0 for padding, -70 for noise boxes.
        draws ([`CorruptionDraws`], *optional*): Tensors of the shape of `labels`; unused without corruption.
        prompt (`torch.LongTensor` of shape `(prompt_length,)`): First tokens of every sequence.
        others: See [`ObjectDetection.targets`].
    Returns:
        [`Targets`] with tensors of shape `(..., max_seq_len)`."""
    objects = object_tokens(boxes_yxyx, labels, vocabulary)
    read = torch.cat(
        [objects[..., :4], corrupt_class_tokens(objects[..., 4:], draws, class_label_corruption, vocabulary)], -1
    )
    weights = object_weights(objects, vocabulary, noise_bbox_weight).flatten(-2)  # (..., 5 * num_slots)
    length = TOKENS_PER_OBJECT * labels.shape[-1] if max_seq_len is None else max_seq_len
    prompt = prompt.expand(*labels.shape[:-1], -1)
    inputs, targets = shift_right(prompt, read.flatten(-2), objects.flatten(-2), length)
    weights = resize_to(weights, length, -1).masked_fill(targets == vocabulary.padding_token, eos_token_weight)
    return Targets(decoder_input_ids=inputs, labels=targets, label_weights=weights)


def object_tokens(boxes_yxyx: torch.Tensor, labels: torch.Tensor, vocabulary: Any) -> torch.Tensor:
    """Tokens `(..., num_slots, 5)` of boxes `(..., num_slots, 4)` and labels `(..., num_slots)`; 0 for padding."""
    tokens = torch.cat([vocabulary.encode_boxes(boxes_yxyx), vocabulary.encode_labels(labels)[..., None]], -1)
    return tokens.masked_fill((labels == vocabulary.padding_label)[..., None], vocabulary.padding_token)


def object_weights(objects: torch.Tensor, vocabulary: Any, noise_bbox_weight: float) -> torch.Tensor:
    """Loss weights `(..., num_slots, 5)`: 1, but for noise boxes 0 four times and `noise_bbox_weight`."""
    is_noise = objects[..., 4:] == vocabulary.fake_class_token
    noise_weights = torch.tensor([0.0, 0.0, 0.0, 0.0, noise_bbox_weight], device=objects.device)
    return torch.where(is_noise, noise_weights, torch.ones_like(noise_weights))


def draw_corruption(rng: np.random.Generator, num_slots: int, vocabulary: Any) -> CorruptionDraws:
    """Draw what [`corrupt_class_tokens`] needs, always all of it, so that the mode does not change later draws."""
    num_classes = vocabulary.coord_vocab_shift - vocabulary.base_vocab_shift
    class_offset = torch.from_numpy(rng.integers(0, num_classes, num_slots))
    return CorruptionDraws(class_offset, *(torch.from_numpy(rng.random(num_slots, np.float32)) for _ in range(3)))


def corrupt_class_tokens(
    class_tokens: torch.Tensor, draws: CorruptionDraws | None, class_label_corruption: str, vocabulary: Any
) -> torch.Tensor:
    r"""Replace the class tokens that the decoder reads; padding stays.

    Args:
        class_tokens (`torch.LongTensor` of shape `(..., num_slots, 1)`): True class tokens.
        draws ([`CorruptionDraws`]): Tensors of shape `(..., num_slots)`; may be `None` for `"none"`.
        class_label_corruption (`str`): `"none"`; `"rand_cls"` (a random class); `"rand_n_fake_cls"` (random or fake);
            `"real_n_fake_cls"` (true or fake); `"real_n_rand_n_fake_cls"` (true, or random or fake).
    Raises:
        ValueError: If the corruption is unknown.
    Source: `build_response_seq_from_bbox` of the reference implementation."""
    if class_label_corruption == "none":
        return class_tokens
    if class_label_corruption not in CLASS_LABEL_CORRUPTIONS:
        raise ValueError(
            f"unknown class_label_corruption {class_label_corruption!r}: "
            f"choose one of {', '.join(CLASS_LABEL_CORRUPTIONS)}"
        )
    class_offset, rand_n_fake, real_n_fake, real_n_rand_n_fake = (draw[..., None] for draw in draws)
    fake = torch.full_like(class_tokens, vocabulary.fake_class_token)
    random = vocabulary.base_vocab_shift + class_offset
    random_or_fake = torch.where(rand_n_fake > 0.5, random, fake)
    corrupted = {
        "rand_cls": random,
        "rand_n_fake_cls": random_or_fake,
        "real_n_fake_cls": torch.where(real_n_fake > 0.5, class_tokens, fake),
        "real_n_rand_n_fake_cls": torch.where(real_n_rand_n_fake > 0.5, class_tokens, random_or_fake),
    }[class_label_corruption]
    return corrupted.masked_fill(class_tokens == vocabulary.padding_token, vocabulary.padding_token)


def split_slots(sequences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut responses `(batch, length)` into slots `(batch, length // 5, 5)` and the tokens that are left over."""
    num_slots = sequences.shape[1] // TOKENS_PER_OBJECT
    whole = num_slots * TOKENS_PER_OBJECT
    slots = sequences[:, :whole].reshape(len(sequences), num_slots, TOKENS_PER_OBJECT)
    return slots, sequences[:, whole:]


def malformed(sequences: torch.Tensor, vocabulary: Any) -> list[dict[str, int]]:
    r"""Count the slots that break the grammar of detection; slots of five padding tokens do not.

    Args:
        sequences (`torch.LongTensor` of shape `(batch, length)`): Responses, without the prompt.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
    Returns:
        `list[dict[str, int]]`: Per sequence the kinds that occur: `out_of_vocabulary` (some token of the slot),
        `coordinate` (a token of the vocabulary that is no coordinate, where one belongs), `class` (neither a class nor
        the fake class where a class belongs), `inverted` (four coordinates, and a maximum below its minimum),
        `incomplete` (1 if tokens other than padding follow the last slot). A slot can be of several kinds."""
    slots, rest = split_slots(sequences)
    is_known, is_coordinate = vocabulary.is_known(slots), vocabulary.is_coordinate(slots)
    is_class = vocabulary.is_class(slots) | (slots == vocabulary.fake_class_token)
    is_object = (slots != vocabulary.padding_token).any(-1)
    is_inverted = (slots[..., 2:4] < slots[..., 0:2]).any(-1)
    kinds = {
        "out_of_vocabulary": (~is_known).any(-1),
        "coordinate": (is_known & ~is_coordinate)[..., :4].any(-1),
        "class": (is_known & ~is_class)[..., 4],
        "inverted": is_inverted & is_coordinate[..., :4].all(-1),
    }
    counts = {kind: (is_object & found).sum(-1) for kind, found in kinds.items()}  # each (batch,)
    return counts_by_row({**counts, "incomplete": (rest != vocabulary.padding_token).any(-1).long()})


def rescale_boxes(
    boxes_yxyx: torch.Tensor,
    image_size: torch.Tensor,
    unpadded_image_size: torch.Tensor,
    original_image_size: torch.Tensor,
) -> torch.Tensor:
    r"""Map boxes of the padded model input to pixels of the original pictures.

    Args:
        boxes_yxyx (`torch.FloatTensor` of shape `(batch, num_slots, 4)`): Normalised to `image_size`.
        image_size (`torch.Tensor` of shape `(2,)` or `(batch, 2)`): (height, width) of the padded model input.
        unpadded_image_size (`torch.Tensor` of shape `(batch, 2)`): Of the pictures in it, after resizing.
        original_image_size (`torch.Tensor` of shape `(batch, 2)`): Of the pictures before resizing.
    Returns:
        `torch.FloatTensor` of shape `(batch, num_slots, 4)`: Pixels, ymin, xmin, ymax, xmax."""
    # Divide first, multiply second, in float32: the reference's order, which decides the last bit.
    scale_yx = image_size.float() / unpadded_image_size.float() * original_image_size.float()
    return boxes_yxyx * scale_yx.repeat(1, 2)[:, None]  # (batch, 1, 4)


def coco_results(
    image_id: int, labels: torch.Tensor, scores: torch.Tensor, boxes_yxyx: torch.Tensor
) -> list[dict[str, Any]]:
    r"""List the detections of one picture in the results format of COCO; slots without a class (0) are left out.

    Args:
        image_id (`int`): The picture.
        labels (`torch.LongTensor` of shape `(num_slots,)`): Raw label ids.
        scores (`torch.FloatTensor` of shape `(num_slots,)`): In `[0, 1]`.
        boxes_yxyx (`torch.FloatTensor` of shape `(num_slots, 4)`): Pixels of the original picture.
    Returns:
        `list[dict]`: `image_id`, `category_id`, `bbox` (x, y, width, height) and `score` of each detection."""
    ymin, xmin, ymax, xmax = boxes_yxyx.unbind(-1)
    boxes_xywh = torch.stack([xmin, ymin, xmax - xmin, ymax - ymin], -1)
    return [
        {"image_id": int(image_id), "category_id": label, "bbox": box, "score": score}
        for label, score, box in zip(labels.tolist(), scores.tolist(), boxes_xywh.tolist())
        if label > 0
    ]


__all__ = ["Detections", "ObjectDetection"]
