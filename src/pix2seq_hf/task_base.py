"""What a task is: its name, its prompt, and the way from a record to tokens and back.

A record is a plain dict that describes one picture and its annotations. A task asks for the fields it needs:

    image               torch.FloatTensor (3, height, width) in [0, 1] (torch.uint8 before the transforms)
    image_id            int
    image_size          (height, width) of the original picture
    boxes_yxyx          (num_objects, 4) float32, normalised ymin, xmin, ymax, xmax
    labels              (num_objects,) int64, raw label ids; 0 is padding, -70 a noise box
    areas, is_crowd     (num_objects,)
    polygons_yx         (num_objects, 2 * max_points) float32, normalised; -1 padding, -2 separator
    keypoints_yx        (num_objects, 2 * num_keypoints) float32, normalised; -3 invisible
    captions            list[str]"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch


@dataclass
class Targets:
    r"""The token sequences of one record that a model is trained on.

    Rank 1 for tasks that write one sequence per picture, rank 2 `(num_instances, length)` for tasks that write one per
    object. All three have one shape, so a batch is stacked without looking at the task.

    Args:
        decoder_input_ids (`torch.LongTensor` of shape `(length,)`): What the decoder reads, from the prompt on.
        labels (`torch.LongTensor` of shape `(length,)`): The token to predict at each position.
        label_weights (`torch.FloatTensor` of shape `(length,)`): Weight of each position in the loss."""

    decoder_input_ids: torch.Tensor
    labels: torch.Tensor
    label_weights: torch.Tensor

    def as_dict(self) -> dict[str, torch.Tensor]:
        """The three tensors under the names of the model's arguments."""
        return vars(self).copy()


@dataclass
class Frame:
    r"""What the model looked at: a whole picture, or a part that was cut out around one object.

    Args:
        picture (`int`): Index of the picture.
        size (`tuple[int, int]`, *optional*): (height, width) in pixels before resizing; `None` if it is not known.
        input_size (`tuple[int, int]`): (height, width) of the padded model input.
        offset (`tuple[int, int]`): Top and left of a cut in its picture.
        boxes_xyxy (`torch.FloatTensor` of shape `(num_objects, 4)`, *optional*): The boxes that the prompts name, in
            pixels of the picture; `None` for tasks about whole pictures.
        boxes_yxyx (`torch.FloatTensor` of shape `(num_objects, 4)`, *optional*): The same, normalised by the padded
            model input.
        labels (`torch.LongTensor` of shape `(num_objects,)`, *optional*): Their raw label ids.
        scores (`torch.FloatTensor` of shape `(num_objects,)`, *optional*): Their scores.
        picture_size (`tuple[int, int]`, *optional*): (height, width) of the picture in pixels, where this is a cut."""

    picture: int
    size: tuple[int, int] | None
    input_size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)
    boxes_xyxy: torch.Tensor | None = None
    boxes_yxyx: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    picture_size: tuple[int, int] | None = None


class Task:
    r"""Everything between data and tokens for one task; stateless, one instance serves all.

    Attributes:
        name (`str`): The task's key in `TASKS`.
        prompt_id (`int`): First token of every sequence of the task.
        required_fields (`tuple[str, ...]`): Fields of a record that `targets` reads.
        metric (`str`): What `evaluation/` measures.
        generation_defaults (`dict`): Settings of `generate` for the task.
        records (`str`, *optional*): What generation keeps of the raw logits: `"classes"` or `"visible_tokens"`.
        needs_boxes (`bool`): Whether the task is asked about boxes with labels, one sequence per box.
        needs_tokenizer (`bool`): Whether the task reads or writes text."""

    name: ClassVar[str]
    prompt_id: ClassVar[int]
    required_fields: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]
    generation_defaults: ClassVar[dict[str, Any]]
    records: ClassVar[str | None] = None
    needs_boxes: ClassVar[bool] = False
    needs_tokenizer: ClassVar[bool] = False

    def crop_pad_scale(self, config: Any) -> float | None:
        r"""How much of the picture around a box the task looks at.

        Args:
            config (any object): A model's configuration or its processor.
        Returns:
            `float`, *optional*: Every box is looked at alone, in a cut that is larger than the box by so much of its
            height and width on each side; `None` if the task looks at whole pictures."""
        return None

    def targets(
        self, record: Mapping[str, Any], vocabulary: Any, rng: np.random.Generator | None, **options
    ) -> Targets:
        r"""Write the training sequences of one record.

        Args:
            record (`Mapping[str, Any]`): See the head of this file.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
            rng (`numpy.random.Generator`): Source of all randomness.
            **options: The task's own settings.
        Returns:
            [`Targets`].
        Raises:
            ValueError: If the record lacks a field or holds a label without a token."""
        raise NotImplementedError

    def prompt(self, vocabulary: Any, **conditions) -> torch.Tensor:
        r"""Return the tokens that generation starts from.

        Args:
            vocabulary (`Pix2SeqVocabulary`): The token layout.
            **conditions: What the task is asked about, such as boxes; nothing for tasks about the whole picture.
        Returns:
            `torch.LongTensor` of shape `(prompt_length,)` or `(num_instances, prompt_length)`."""
        raise NotImplementedError

    def parse(self, sequences: torch.Tensor, scores: Any, vocabulary: Any) -> Any:
        r"""Read generated tokens; any stream is read, nothing raises, and what is malformed is counted.

        Args:
            sequences (`torch.LongTensor` of shape `(batch, length)`): Responses, without the prompt.
            scores (*optional*): What generation recorded beside the tokens, see the task.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
        Returns:
            The task's own predictions, with `malformed`: per sequence a `dict[str, int]` of the kinds that occurred."""
        raise NotImplementedError

    def results(
        self,
        sequences: torch.Tensor,
        output: Mapping[str, Any],
        frames: Sequence[Frame],
        processor: Any,
        threshold: float = 0.0,
        **options,
    ) -> list[dict[str, Any]]:
        r"""Turn generated sequences into what a user wants to know, in pixels of the pictures.

        Args:
            sequences (`torch.LongTensor` of shape `(rows, length)`): Responses, without the prompt. Row order: frame,
                object, sample; all frames have as many rows.
            output (`Mapping[str, Any]`): What else `generate` returned; may be empty.
            frames (`Sequence[Frame]`): What the model looked at.
            processor (`Pix2SeqProcessor`): Holds `vocabulary`, `caption_tokenizer` and the numbers of the model.
            threshold (`float`): Objects of a lower score are left out.
            **options: The task's own settings.
        Returns:
            `list[dict[str, Any]]`: One per frame, with `malformed`, a `dict[str, int]`; see the task."""
        raise NotImplementedError

    def target_options(self, config: Any) -> dict[str, Any]:
        """Options of `targets` that a model's configuration, or anything with its fields, decides."""
        return {}

    def max_response_length(self, config: Any) -> int:
        """Most tokens that the task writes after its prompt, for a model with this configuration."""
        raise NotImplementedError

    def generation_settings(self, config: Any) -> dict[str, Any]:
        """Keyword arguments of `generate` for the task: the defaults, and where to stop."""
        return {**self.generation_defaults, "max_new_tokens": self.max_response_length(config)}

    def grammar(self, config: Any, **options) -> Any:
        r"""Return which tokens may stand where.

        Args:
            config ([`Pix2SeqConfig`]): The token layout and the limits.
            **options: The caller's narrowing: `labels`, `stop_when_noise`, `max_points`, `allowed_tokens`; a task reads
                those it knows.
        Returns:
            [`TokenGrammar`]."""
        raise NotImplementedError

    def require_fields(self, record: Mapping[str, Any]):
        """Raise a ValueError that names the fields of the task which the record lacks."""
        missing = [name for name in self.required_fields if record.get(name) is None]
        if missing:
            raise ValueError(
                f"record of image {record.get('image_id', 'without id')} lacks {', '.join(missing)}, "
                f"which {self.name} needs"
            )


def resize_to(values: torch.Tensor, size: int, dim: int = 0) -> torch.Tensor:
    """Cut `values` along `dim` to `size` entries, or append zeros up to it."""
    values = values.narrow(dim, 0, min(size, values.shape[dim]))
    shape = list(values.shape)
    shape[dim] = size - values.shape[dim]
    return torch.cat([values, values.new_zeros(shape)], dim)


def shift_right(prompt: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor, length: int):
    r"""Turn a prompt and a response into what the decoder reads and what it should write.

    Args:
        prompt (`torch.LongTensor` of shape `(..., prompt_length)`): Read as given, and part of the targets too.
        inputs (`torch.LongTensor` of shape `(..., response_length)`): The response as read, perhaps corrupted.
        targets (`torch.LongTensor` of shape `(..., response_length)`): The response as it should be.
        length (`int`): Length of the result; shorter sequences are padded with 0.
    Returns:
        `tuple`: decoder inputs and labels, both `torch.LongTensor` of shape `(..., length)`.
    Raises:
        ValueError: If prompt and response need more than `length` positions."""
    needed = prompt.shape[-1] + targets.shape[-1] - 1
    if needed > length:
        raise ValueError(f"a sequence of {needed} tokens does not fit into max_seq_len {length}")
    inputs, targets = (resize_to(torch.cat([prompt, part], -1), length + 1, -1) for part in (inputs, targets))
    return inputs[..., :-1], targets[..., 1:]


def box_prompts(prompt_id: int, boxes_yxyx: torch.Tensor, labels: torch.Tensor, vocabulary: Any) -> torch.Tensor:
    r"""Prompts that ask about objects: task, box, class; zeros for padding.

    Args:
        prompt_id (`int`): The task's token.
        boxes_yxyx (`torch.FloatTensor` of shape `(..., 4)`): Normalised by the padded model input.
        labels (`torch.LongTensor` of shape `(...)`): Raw label ids; 0 for padding.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
    Returns:
        `torch.LongTensor` of shape `(..., 6)`.
    Raises:
        ValueError: If a label has no token.
    Source: `task_utils.build_instance_prompt_seq` of the reference implementation."""
    task = torch.full_like(labels, prompt_id)[..., None]
    tokens = torch.cat([task, vocabulary.encode_boxes(boxes_yxyx), vocabulary.encode_labels(labels)[..., None]], -1)
    return tokens.masked_fill((labels == vocabulary.padding_label)[..., None], vocabulary.padding_token)


def object_points(
    record: Mapping[str, Any], field: str, num_points: int, num_objects: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Boxes, labels and points of a record, all cut or padded with zeros to `num_objects` objects.

    Args:
        record (`Mapping[str, Any]`): With `boxes_yxyx`, `labels` and the points.
        field (`str`): Name of the points, each row `y, x, y, x, ...`.
        num_points (`int`): Points that every object must have.
        num_objects (`int`): Objects of the result.
    Returns:
        `tuple`: boxes `(num_objects, 4)`, labels `(num_objects,)`, points `(num_objects, 2 * num_points)`.
    Raises:
        ValueError: If the fields do not fit each other, or there are not `num_points` points."""
    boxes_yxyx = torch.as_tensor(record["boxes_yxyx"], dtype=torch.float32).reshape(-1, 4)
    labels = torch.as_tensor(record["labels"], dtype=torch.int64).reshape(-1)
    points_yx = torch.as_tensor(record[field], dtype=torch.float32)
    if not len(labels) and not points_yx.numel():
        points_yx = points_yx.reshape(0, 2 * num_points)
    name = f"record of image {record.get('image_id', 'without id')}"
    if not len(boxes_yxyx) == len(labels) == len(points_yx):
        raise ValueError(
            f"{name} has {len(boxes_yxyx)} boxes, {len(labels)} labels and {len(points_yx)} rows of {field}"
        )
    if points_yx.ndim != 2 or points_yx.shape[1] != 2 * num_points:
        raise ValueError(
            f"{name} has {field} of shape {tuple(points_yx.shape)}, the model takes {num_points} points: (objects, "
            f"{2 * num_points})"
        )
    return tuple(resize_to(values, num_objects) for values in (boxes_yxyx, labels, points_yx))


def point_tokens(points_yx: torch.Tensor, labels: torch.Tensor, vocabulary: Any) -> torch.Tensor:
    """Tokens of points `(..., 2 * num_points)`; objects with label 0 (`labels` of shape `(...)`) are padding."""
    is_padding = (labels == vocabulary.padding_label)[..., None]
    return vocabulary.encode_points(points_yx).masked_fill(is_padding, vocabulary.padding_token)


def rows_of_objects(num_rows: int, frames: Sequence[Frame]) -> torch.Tensor:
    r"""Which rows of generated sequences belong to which object.

    Args:
        num_rows (`int`): Rows in the order frame, object, sample.
        frames (`Sequence[Frame]`): What the model looked at; those with fewer objects than others have padding rows.
    Returns:
        `torch.LongTensor` of shape `(num_frames, max_objects, num_samples)`.
    Raises:
        ValueError: If the rows cannot be shared out evenly."""
    max_objects = max((len(frame.labels) for frame in frames), default=0)
    slots = len(frames) * max_objects
    if num_rows % slots if slots else num_rows:
        raise ValueError(
            f"{num_rows} sequences do not belong to {len(frames)} x {max_objects} boxes: give the boxes that were "
            "given for the prompts"
        )
    return torch.arange(num_rows).reshape(len(frames), max_objects, num_rows // slots if slots else 0)


def counts_by_row(kinds: Mapping[str, torch.Tensor | Sequence[int]]) -> list[dict[str, int]]:
    """Turn numbers `(rows,)` per kind of fault into the kinds that occur, per row."""
    columns = [values.tolist() if isinstance(values, torch.Tensor) else values for values in kinds.values()]
    return [{kind: number for kind, number in zip(kinds, row) if number} for row in zip(*columns)]


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up the counts of several sequences, kind by kind."""
    total: dict[str, int] = {}
    for row in counts:
        for kind, number in row.items():
            total[kind] = total.get(kind, 0) + number
    return total


def join_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the results of several frames of one picture together: tensors and lists one after the other."""
    joined = {}
    for name, first in results[0].items():
        values = [result[name] for result in results]
        if name == "malformed":
            joined[name] = add_counts(values)
        else:
            joined[name] = (
                torch.cat(values) if isinstance(first, torch.Tensor) else [x for part in values for x in part]
            )
    return joined


__all__ = ["Frame", "Targets", "Task"]
