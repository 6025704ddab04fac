"""From pictures and annotations to what the model takes, and from what it writes back to objects in pixels."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from .image_processing_pix2seq import best_image_processor, pixel_size, resized_size, scale_boxes, upright_size
from .task_captioning import Captioning
from .task_instance_segmentation import InstanceSegmentation
from .task_keypoint_detection import KeypointDetection
from .task_object_detection import ObjectDetection
from .tokenization_pix2seq import Pix2SeqVocabulary

# Every task there is: name -> task. A new task is one file and one line here.
TASKS = {
    "object_detection": ObjectDetection(),
    "instance_segmentation": InstanceSegmentation(),
    "keypoint_detection": KeypointDetection(),
    "captioning": Captioning(),
}
DEFAULT_TASK = "object_detection"

VOCABULARY_FIELDS = ("vocab_size", "quantization_bins", "base_vocab_shift", "coord_vocab_shift", "text_vocab_shift")
TOKENIZER_FOLDER = "caption_tokenizer"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def find_task(name: str | None) -> Any:
    r"""Return a task by its name, the default task for `None`.

    Raises:
        ValueError: If there is no such task."""
    name = DEFAULT_TASK if name is None else name
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: known are {', '.join(TASKS)}")
    return TASKS[name]


class Pix2SeqProcessor(ProcessorMixin):
    r"""Pictures, annotations and a task in; tensors for the model out; and back.

    ```python
    inputs = processor(images=image, task="object_detection", return_tensors="pt")
    output = model.generate(**inputs)
    processor.post_process_generation(output, task="object_detection", target_sizes=[(height, width)])
    ```

    Args:
        image_processor ([`Pix2SeqImageProcessor`], *optional*): Makes pixels of pictures; by default for 640 x 640.
        caption_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of captions; saved in a sub-folder of its own name.
        vocab_size, quantization_bins, base_vocab_shift, coord_vocab_shift, text_vocab_shift (`int`, *optional*):
            The model's token layout, see [`Pix2SeqVocabulary`].
        id2label (`dict[int, str]`, *optional*): Name per raw label id, from 1 on, gaps allowed.
        max_instances_per_image (`int`, *optional*, defaults to 100): Object slots of a training sequence.
    Raises:
        ValueError: If the numbers of the token layout contradict each other, or labels have no token."""

    def __init__(
        self,
        image_processor=None,
        caption_tokenizer=None,
        vocab_size=3000,
        quantization_bins=1000,
        base_vocab_shift=100,
        coord_vocab_shift=1000,
        text_vocab_shift=3000,
        id2label=None,
        max_instances_per_image=100,
    ):
        super().__init__(best_image_processor() if image_processor is None else image_processor)
        if caption_tokenizer is not None:
            self.check_argument_for_proper_class("caption_tokenizer", caption_tokenizer)
        self.caption_tokenizer = caption_tokenizer
        self.vocab_size = vocab_size
        self.quantization_bins = quantization_bins
        self.base_vocab_shift = base_vocab_shift
        self.coord_vocab_shift = coord_vocab_shift
        self.text_vocab_shift = text_vocab_shift
        self.id2label = None if id2label is None else {int(label): name for label, name in id2label.items()}
        self.max_instances_per_image = max_instances_per_image
        self.vocabulary = Pix2SeqVocabulary.from_config(self)

    @classmethod
    def from_config(cls, config: Any, image_processor: Any = None, caption_tokenizer: Any = None):
        r"""Build the processor that belongs to a model.

        Args:
            config ([`Pix2SeqConfig`]): Read are `image_size`, the token layout, `id2label`, `max_instances_per_image`.
            image_processor ([`Pix2SeqImageProcessor`], *optional*): By default one for `config.image_size`.
            caption_tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for captioning only.
        Returns:
            [`Pix2SeqProcessor`]."""
        if image_processor is None:
            height, width = config.image_size
            image_processor = best_image_processor(size={"height": height, "width": width})
        vocabulary = Pix2SeqVocabulary.from_config(config)
        return cls(
            image_processor,
            caption_tokenizer,
            **{name: getattr(vocabulary, name) for name in VOCABULARY_FIELDS},
            id2label=None if vocabulary.id2label is None else dict(vocabulary.id2label),
            max_instances_per_image=config.max_instances_per_image,
        )

    @property
    def model_input_names(self) -> list[str]:
        """What a call without annotations returns."""
        return [*self.image_processor.model_input_names, "decoder_input_ids"]

    def __call__(
        self,
        images: Any = None,
        annotations: Any = None,
        task: str | None = None,
        task_options: Mapping[str, Any] | None = None,
        rng: np.random.Generator | None = None,
        **kwargs,
    ) -> BatchFeature:
        r"""Prepare pictures for generation, or with annotations for training.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str`, or (nested) lists of them):
                Pictures, paths or addresses.
            annotations (`dict` or `list[dict]`, *optional*):
                One per picture, in COCO's terms: `{"image_id": 1, "annotations": [{"bbox": [x, y, width, height],
                "category_id": 18, ...}, ...]}` in pixels of the upright picture. Crowds and boxes without area are
                left out, as in the reference's training.
            task (`str`, *optional*, defaults to `"object_detection"`): A name in `TASKS`.
            task_options (`Mapping[str, Any]`, *optional*): Options of the task's `targets`, for example
                `{"class_label_corruption": "none"}`; only with annotations.
            rng (`numpy.random.Generator`, *optional*):
                Source of the random choices in training sequences; by default seeded from torch's generator.
            **kwargs: `return_tensors`, and options of the image processor such as `size` or `device`.
        Returns:
            `BatchFeature` with `pixel_values` `(batch, 3, height, width)` and `decoder_input_ids`: the task's prompt
            `(batch, prompt_length)`; with annotations the whole sequence `(batch, length)`, and `labels` and
            `label_weights` of the same shape.
        Raises:
            ValueError: If there are no pictures, the task is unknown, or annotations do not fit the pictures."""
        task = find_task(task)
        if images is None:
            raise ValueError("no pictures were given: pass images=")
        options = self._merge_kwargs(**kwargs)["images_kwargs"]
        return_tensors = options.pop("return_tensors", None)
        images = self.image_processor._prepare_images_structure(images)
        pixel_values = self.image_processor(images, **options)["pixel_values"]

        if annotations is None:
            prompt = task.prompt(self.vocabulary)
            sequences = {"decoder_input_ids": [prompt] * len(images)}
        else:
            sizes = [upright_size(image, options.get("input_data_format")) for image in images]
            do_resize = options.get("do_resize", self.image_processor.do_resize)
            input_sizes = [tuple(pixels.shape[-2:]) for pixels in pixel_values]
            records = coco_records(annotations, sizes, input_sizes, self.vocabulary.max_label, do_resize)
            sequences = self._training_sequences(task, records, task_options or {}, rng)
        if return_tensors is not None:
            sequences = {name: torch.stack(rows) for name, rows in sequences.items()}
            if isinstance(pixel_values[0], torch.Tensor):
                sequences = {name: rows.to(pixel_values[0].device) for name, rows in sequences.items()}
        return BatchFeature({"pixel_values": pixel_values, **sequences}, tensor_type=return_tensors)

    def _training_sequences(self, task, records, task_options, rng) -> dict[str, list[torch.Tensor]]:
        """The fields of the task's `Targets`, each a list with one tensor per record."""
        if rng is None:
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
        task_options = {"max_instances_per_image": self.max_instances_per_image, **task_options}
        targets = [task.targets(record, self.vocabulary, rng, **task_options).as_dict() for record in records]
        return {name: [target[name] for target in targets] for name in targets[0]}

    def post_process_generation(
        self,
        output: Any,
        task: str | None = None,
        target_sizes: Any = None,
        threshold: float = 0.0,
    ) -> list[dict[str, Any]]:
        r"""Turn generated sequences into objects in pixels of the original pictures.

        Args:
            output (`ModelOutput`, `dict` or `torch.LongTensor` of shape `(rows, length)`):
                What `generate` returned. With `class_labels` and `class_scores` in it, these are the classes; from bare
                sequences the sampled class tokens are taken, with score 1.
            task (`str`, *optional*, defaults to `"object_detection"`): The task that was asked for.
            target_sizes (`torch.Tensor` of shape `(batch, 2)` or `list[tuple[int, int]]`, *optional*):
                Height and width of every original picture, upright. Without it boxes stay normalised by the padded
                network input. With several sequences per picture each size counts for as many rows.
            threshold (`float`, *optional*, defaults to 0): Objects of a lower score are left out.
        Returns:
            `list[dict]`, per row: `scores` `(num_objects,)`, `labels` `(num_objects,)` raw label ids, `boxes`
            `(num_objects, 4)` as `xmin, ymin, xmax, ymax`, neither sorted nor cut to the picture; `malformed`
            `dict[str, int]`: slots of the sequence that break the grammar, by kind. Slots without a label are left out.
        Raises:
            ValueError: If the task is unknown, or target sizes do not fit the rows."""
        task = find_task(task)
        scores = None
        if isinstance(output, Mapping):
            if output.get("class_labels") is not None:
                scores = output["class_labels"], output["class_scores"]
            output = output["sequences"]
        sequences = torch.as_tensor(output)
        prompt_length = task.prompt(self.vocabulary).shape[-1]
        if sequences.shape[-1] and (sequences[:, 0] == task.prompt_id).all():
            sequences = sequences[:, prompt_length:]
        detections = task.parse(sequences, scores, self.vocabulary)

        size = self.image_processor.size
        sizes = repeat_sizes(target_sizes, len(sequences))
        results = []
        for row, malformed in enumerate(detections.malformed):
            keep = (detections.labels[row] > 0) & (detections.scores[row] >= threshold)
            boxes_yxyx = detections.boxes_yxyx[row][keep]
            if sizes is None:
                boxes_xyxy = boxes_yxyx[:, [1, 0, 3, 2]]
            else:
                boxes_xyxy = scale_boxes(boxes_yxyx, sizes[row], (size["height"], size["width"]))
            found = {"scores": detections.scores[row][keep], "labels": detections.labels[row][keep]}
            results.append({**found, "boxes": boxes_xyxy, "malformed": malformed})
        return results

    # The caption tokenizer is optional, which the library's sub-processors are not: it is saved and loaded here.

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Names of the sub-processors that every instance has."""
        return ["image_processor"]

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds; tokenizers have files of their own."""
        tokenizer, self.caption_tokenizer = self.caption_tokenizer, None
        try:
            fields = super().to_dict()
        finally:
            self.caption_tokenizer = tokenizer
        del fields["caption_tokenizer"]
        return fields

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        r"""Save into a folder, the caption tokenizer into its sub-folder `caption_tokenizer`.

        Args:
            save_directory (`str` or `os.PathLike`): Made if it is missing.
            push_to_hub (`bool`, *optional*, defaults to `False`): As in transformers, like `kwargs`.
        Returns:
            `list[str]`: The file of the processor."""
        if self.caption_tokenizer is not None:
            self.caption_tokenizer.save_pretrained(os.path.join(save_directory, TOKENIZER_FOLDER))
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        arguments = super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        folder = os.path.join(kwargs.pop("subfolder", ""), TOKENIZER_FOLDER)
        found = cached_file(
            pretrained_model_name_or_path,
            "tokenizer_config.json",
            subfolder=folder,
            _raise_exceptions_for_missing_entries=False,
            **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs},
        )
        if found is None:
            return [*arguments, None]
        return [*arguments, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder=folder, **kwargs)]


def coco_records(
    annotations: Any,
    sizes: Sequence[tuple[int, int]],
    input_sizes: Sequence[tuple[int, int]],
    max_label: int,
    do_resize: bool = True,
) -> list[dict[str, Any]]:
    r"""Turn annotations in COCO's terms into records, with boxes normalised by the padded network input.

    Args:
        annotations (`dict` or `list[dict]`): One per picture, see [`Pix2SeqProcessor.__call__`].
        sizes (`Sequence[tuple[int, int]]`): Height and width of each original picture.
        input_sizes (`Sequence[tuple[int, int]]`): Height and width of each padded network input.
        max_label (`int`): Largest category id that has a token.
        do_resize (`bool`): Whether the pictures were resized before they were padded.
    Returns:
        `list[dict]`: Records as described in `task_base`, without crowds and boxes without area.
    Raises:
        ValueError: If the number of annotations is not that of the pictures, or one is incomplete or impossible."""
    if isinstance(annotations, Mapping):
        annotations = [annotations]
    if len(annotations) != len(sizes):
        raise ValueError(f"{len(annotations)} annotations were given for {len(sizes)} pictures")
    records = []
    for number, (annotation, size, input_size) in enumerate(zip(annotations, sizes, input_sizes)):
        if not isinstance(annotation, Mapping) or "annotations" not in annotation:
            raise ValueError(
                f"annotations[{number}] must be a dict {{'image_id': ..., 'annotations': [...]}}, got "
                f"{type(annotation).__name__}{' without annotations' if isinstance(annotation, Mapping) else ''}"
            )
        name = f"annotations[{number}] (image {annotation.get('image_id', number)})"
        boxes, labels, areas = [], [], []
        for index, entry in enumerate(annotation["annotations"]):
            box, label = _checked_object(entry, f"{name}, object {index}", max_label)
            if not entry.get("iscrowd") and box[2] > 0 and box[3] > 0:
                boxes.append(box)
                labels.append(label)
                areas.append(float(entry.get("area", box[2] * box[3])))
        unpadded = resized_size(size, input_size) if do_resize else size
        records.append(
            {
                "image_id": annotation.get("image_id", number),
                "image_size": size,
                "boxes_yxyx": _normalised_boxes(boxes, size, unpadded, input_size),
                "labels": np.array(labels, dtype=np.int64),
                "areas": np.array(areas, dtype=np.float32),
                "is_crowd": np.zeros(len(labels), dtype=bool),
            }
        )
    return records


def _checked_object(entry: Any, name: str, max_label: int) -> tuple[np.ndarray, int]:
    """Box `(x, y, width, height)` in float64 and label of one annotated object."""
    if not isinstance(entry, Mapping) or "bbox" not in entry or "category_id" not in entry:
        raise ValueError(f"{name}: needs bbox [x, y, width, height] and category_id")
    box, label = np.asarray(entry["bbox"], dtype=np.float64), int(entry["category_id"])
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"{name}: bbox must be four finite numbers [x, y, width, height], got {entry['bbox']}")
    if not 1 <= label <= max_label:
        raise ValueError(f"{name}: category_id {label} has no token, number the classes from 1 to {max_label}")
    return box, label


def _normalised_boxes(
    boxes: list[np.ndarray], size: tuple[int, int], unpadded: tuple[int, int], input_size: tuple[int, int]
) -> np.ndarray:
    r"""Boxes `(x, y, width, height)` in pixels to float32 `(num_boxes, 4)`: y, x, y, x by the padded network input.

    Source: `golden/tasks/README.md`, sections 1 and 5: float64 corners, float32, times the inverse size, times the
    share of the padded input that the picture fills."""
    x, y, width, height = np.array(boxes, dtype=np.float64).reshape(-1, 4).T
    corners = np.stack([y, x, y + height, x + width], axis=-1).astype(np.float32)  # (num_boxes, 4)
    one_by_size = np.float32(1) / np.array(size, dtype=np.float32)
    share = np.array(unpadded, dtype=np.float32) / np.array(input_size, dtype=np.float32)
    return corners * np.tile(one_by_size, 2) * np.tile(share, 2)


def repeat_sizes(target_sizes: Any, num_rows: int) -> list[tuple[int, int]] | None:
    r"""One `(height, width)` per row of sequences, from one per picture.

    Raises:
        ValueError: If the rows cannot be shared out evenly among the sizes."""
    if target_sizes is None:
        return None
    sizes = [pixel_size(size) for size in target_sizes]
    if not sizes or num_rows % len(sizes):
        raise ValueError(f"{len(sizes)} target_sizes were given for {num_rows} sequences")
    return [size for size in sizes for _ in range(num_rows // len(sizes))]


__all__ = ["TASKS", "Pix2SeqProcessor"]
