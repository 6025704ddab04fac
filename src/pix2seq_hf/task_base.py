"""What a task is: its name, its prompt, and the way from a record to tokens and back.

A record is a plain dict that describes one picture and its annotations. A task asks for the fields it needs:

    image               torch.FloatTensor (3, height, width) in [0, 1] (torch.uint8 before the transforms)
    image_id            int
    image_size          (height, width) of the original picture
    boxes_yxyx          (num_objects, 4) float32, normalised ymin, xmin, ymax, xmax
    labels              (num_objects,) int64, raw label ids; 0 is padding, -70 a noise box
    areas, is_crowd     (num_objects,)
    polygons_yx         (num_objects, 2 * max_points) float32, normalised; -1 padding, -2 separator
    keypoints_yx        (num_objects, 34) float32, normalised; -3 invisible
    captions            list[str]"""

from collections.abc import Mapping
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


class Task:
    r"""Everything between data and tokens for one task; stateless, one instance serves all.

    Attributes:
        name (`str`): The task's key in `TASKS`.
        prompt_id (`int`): First token of every sequence of the task.
        required_fields (`tuple[str, ...]`): Fields of a record that `targets` reads.
        metric (`str`): What `evaluation/` measures.
        generation_defaults (`dict`): Settings of `generate` for the task.
        records (`str`, *optional*): What generation keeps of the raw logits: `"classes"` or `"visible_tokens"`."""

    name: ClassVar[str]
    prompt_id: ClassVar[int]
    required_fields: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]
    generation_defaults: ClassVar[dict[str, Any]]
    records: ClassVar[str | None] = None

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


__all__ = ["Targets", "Task"]
