"""From pictures and annotations to what the model takes, and from what it writes back to objects in pixels."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from .configuration_pix2seq import Pix2SeqConfig
from .image_processing_pix2seq import best_image_processor, channels_first, pixel_size, upright_size
from .records_pix2seq import checked_boxes, coco_records, crop_record, object_frames, pad_record
from .task_base import Frame, Task, join_results, resize_to
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
KEYPOINT_FIELDS = ("keypoint_names", "keypoint_skeleton", "keypoint_pairs", "keypoint_labels")
LIMIT_FIELDS = ("max_instances_per_image", "max_points_per_object", "max_caption_length", "mask_crop_pad_scale")
TOKENIZER_FOLDER = "caption_tokenizer"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def find_task(name: str | None) -> Task:
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
    (found,) = processor.post_process_generation(output, task="object_detection", target_sizes=[(height, width)])

    asked = {"boxes": [found["boxes"]], "labels": [found["labels"]]}
    inputs = processor(images=image, task="instance_segmentation", **asked, return_tensors="pt")
    output = model.generate(**inputs)
    processor.post_process_generation(
        output, task="instance_segmentation", target_sizes=[(height, width)], **asked
    )
    ```

    Args:
        image_processor ([`Pix2SeqImageProcessor`], *optional*): Makes pixels of pictures; by default for 640 x 640.
        caption_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of captions; saved in a sub-folder of its own name.
        vocab_size, quantization_bins, base_vocab_shift, coord_vocab_shift, text_vocab_shift (`int`, *optional*):
            The model's token layout, see [`Pix2SeqVocabulary`].
        id2label (`dict[int, str]`, *optional*): Name per raw label id, from 1 on, gaps allowed.
        max_instances_per_image (`int`, *optional*, defaults to 100): Object slots of a training sequence.
        max_points_per_object (`int`, *optional*, defaults to 128): Points of a polygon, separators included.
        max_caption_length (`int`, *optional*, defaults to 128): Tokens of a caption, its end included.
        mask_crop_pad_scale (`float`, *optional*): How much around a box outlines are asked for, see [`Pix2SeqConfig`].
        keypoint_names, keypoint_skeleton, keypoint_pairs, keypoint_labels (*optional*, default to COCO's persons):
            The keypoints of an object, see [`Pix2SeqConfig`].
    Raises:
        ValueError: If the numbers of the token layout contradict each other, or labels have no token."""

    skip_tensor_conversion = ["task"]

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
        max_points_per_object=128,
        max_caption_length=128,
        mask_crop_pad_scale=None,
        keypoint_names=None,
        keypoint_skeleton=None,
        keypoint_pairs=None,
        keypoint_labels=None,
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
        self.max_points_per_object = max_points_per_object
        self.max_caption_length = max_caption_length
        self.mask_crop_pad_scale = mask_crop_pad_scale
        # The configuration checks and completes what belongs to keypoints.
        keypoints = Pix2SeqConfig(
            keypoint_names=keypoint_names,
            keypoint_skeleton=keypoint_skeleton,
            keypoint_pairs=keypoint_pairs,
            keypoint_labels=keypoint_labels,
        )
        for name in KEYPOINT_FIELDS:
            setattr(self, name, getattr(keypoints, name))
        self.vocabulary = Pix2SeqVocabulary.from_config(self)

    @classmethod
    def from_config(cls, config: Any, image_processor: Any = None, caption_tokenizer: Any = None):
        r"""Build the processor that belongs to a model.

        Args:
            config ([`Pix2SeqConfig`]): Read are `image_size`, the token layout, `id2label`, the limits, the keypoints.
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
            **{name: getattr(config, name) for name in (*LIMIT_FIELDS, *KEYPOINT_FIELDS)},
        )

    @property
    def model_input_names(self) -> list[str]:
        """What a call without annotations returns."""
        return [*self.image_processor.model_input_names, "decoder_input_ids", "task"]

    def __call__(
        self,
        images: Any = None,
        annotations: Any = None,
        task: str | None = None,
        boxes: Any = None,
        labels: Any = None,
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
                "category_id": 18, ...}, ...]}` in pixels of the upright picture, with `segmentation` (polygons or run
                lengths) or `keypoints` (x, y, v) where the task needs them; for captioning `[{"caption": "..."}, ...]`.
                Crowds and boxes without area are left out, as in the reference's training, and for keypoints objects
                without a visible one.
            task (`str`, *optional*, defaults to `"object_detection"`): A name in `TASKS`.
            boxes (`list`, *optional*):
                For tasks about objects: per picture `(num_boxes, 4)` as xmin, ymin, xmax, ymax in pixels of the upright
                picture. What reaches outside of the picture is cut off, with a warning.
            labels (`list`, *optional*): With `boxes`: per picture `(num_boxes,)` raw label ids or names.
            task_options (`Mapping[str, Any]`, *optional*): Options of the task's `targets`, for example
                `{"class_label_corruption": "none"}`; only with annotations.
            rng (`numpy.random.Generator`, *optional*):
                Source of the random choices in training sequences; by default seeded from torch's generator.
            **kwargs: `return_tensors`, and options of the image processor such as `size` or `device`.
        Returns:
            `BatchFeature` with `pixel_values` `(batch, 3, height, width)`, `decoder_input_ids` and `task`, ready for
            `generate`. The prompts are `(batch, 1)` for tasks about pictures and `(batch, max_boxes, 6)` for tasks
            about objects, zeros where a picture has fewer. For keypoints every object is a picture of its own:
            `pixel_values` `(num_boxes, 3, height, width)` of all pictures' boxes one after the other, prompts
            `(num_boxes, 6)`.

            With annotations `decoder_input_ids` is the whole sequence, and there are `labels` and `label_weights` of
            the same shape: `(batch, length)`, for polygons and captions `(batch, num_sequences, length)`, for keypoints
            `(num_objects, length)`.
        Raises:
            ValueError: If there are no pictures, the task is unknown, boxes, labels or annotations do not fit the
                pictures or the task, or the task needs text and there is no tokenizer."""
        task = find_task(task)
        self._check_tokenizer(task)
        if images is None:
            raise ValueError("no pictures were given: pass images=")
        options = self._merge_kwargs(**kwargs)["images_kwargs"]
        return_tensors = options.pop("return_tensors", None)
        images = self.image_processor._prepare_images_structure(images)
        sizes = [upright_size(image, options.get("input_data_format")) for image in images]
        if annotations is None:
            features = self._generation_inputs(task, images, sizes, boxes, labels, options)
        elif boxes is not None or labels is not None:
            raise ValueError("give annotations= to train or boxes= and labels= to generate, not both")
        else:
            features = self._training_inputs(task, images, sizes, annotations, task_options or {}, rng, options)
        if return_tensors is not None:
            features = {name: self._stacked(rows) for name, rows in features.items()}
        if annotations is None:
            features["task"] = task.name
        return BatchFeature(features, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def _generation_inputs(self, task, images, sizes, boxes, labels, options) -> dict[str, Any]:
        """Pixels and prompts: lists, or tensors that are whole batches."""
        if not task.needs_boxes:
            if boxes is not None or labels is not None:
                raise ValueError(f"{task.name} takes no boxes= and labels=: it is about whole pictures")
            pixel_values = self.image_processor(images, **options)["pixel_values"]
            return {"pixel_values": pixel_values, "decoder_input_ids": [task.prompt(self.vocabulary)] * len(images)}
        if boxes is None:
            raise ValueError(f"{task.name} is asked about objects: pass boxes= and labels=")
        asked = checked_boxes(boxes, labels, None, sizes, self.vocabulary)
        do_resize = options.get("do_resize", self.image_processor.do_resize)
        input_size = self._input_size(images, options)
        frames = object_frames(*asked, sizes, input_size, task.crop_pad_scale(self), do_resize)
        if task.crop_pad_scale(self) is None:
            pixel_values = self.image_processor(images, **options)["pixel_values"]
        else:
            pixel_values = self._cut_out(images, frames, input_size, options)
        prompts = [task.prompt(self.vocabulary, frame.boxes_yxyx, frame.labels) for frame in frames]
        if task.crop_pad_scale(self) is None:
            max_boxes = max(map(len, prompts))
            prompts = [resize_to(prompt, max_boxes) for prompt in prompts]
        else:
            prompts = torch.cat([torch.zeros(0, 6, dtype=torch.int64), *prompts])
        return {"pixel_values": pixel_values, "decoder_input_ids": prompts}

    def _training_inputs(self, task, images, sizes, annotations, task_options, rng, options) -> dict[str, Any]:
        """Pixels and the fields of the task's `Targets`, each a list with one entry per record."""
        if task.needs_tokenizer:
            task_options = {"tokenizer": self.caption_tokenizer, **task_options}
        task_options = {**task.target_options(self), **task_options}
        records = coco_records(annotations, sizes, self.vocabulary, task.required_fields, self)
        do_resize = options.get("do_resize", self.image_processor.do_resize)
        input_size = self._input_size(images, options)
        if task.crop_pad_scale(self) is None:
            pixel_values = self.image_processor(images, **options)["pixel_values"]
        else:
            frames, cuts = [], []
            for picture, record in enumerate(records):
                for index in range(len(record["labels"])):
                    cut, region = crop_record(record, index, task.crop_pad_scale(self))
                    cuts.append(cut)
                    frames.append(Frame(picture, region[2:], input_size, region[:2]))
            if not cuts:
                raise ValueError(f"the annotations hold no object for {task.name}")
            records = cuts
            pixel_values = self._cut_out(images, frames, input_size, options)
        if rng is None:
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
        targets = [
            task.targets(pad_record(record, input_size, do_resize), self.vocabulary, rng, **task_options).as_dict()
            for record in records
        ]
        sequences = {name: [target[name] for target in targets] for name in targets[0]}
        if task.crop_pad_scale(self) is not None:  # one object per cut
            sequences = {name: [rows[0] for rows in values] for name, values in sequences.items()}
        return {"pixel_values": pixel_values, **sequences}

    def _input_size(self, images, options) -> tuple[int, int]:
        """Height and width of the padded model input."""
        if options.get("do_pad", self.image_processor.do_pad) and options.get("pad_size") is None:
            size = self.image_processor._standardize_kwargs(size=options.get("size", self.image_processor.size))["size"]
            return size.height, size.width
        return tuple(self.image_processor(images[:1], **options)["pixel_values"][0].shape[-2:])

    def _cut_out(self, images, frames, input_size, options) -> Any:
        """Pixels of the frames, one after the other."""
        convert, data_format = options.get("do_convert_rgb", self.image_processor.do_convert_rgb), "input_data_format"
        upright = {
            picture: channels_first(images[picture], convert, options.get(data_format))
            for picture in {frame.picture for frame in frames}
        }
        cuts = []
        for frame in frames:
            (top, left), (height, width) = frame.offset, frame.size
            cuts.append(upright[frame.picture][:, top : top + height, left : left + width])
        if not cuts:
            return torch.zeros(0, 3, *input_size, device=options.get("device"))
        return self.image_processor(cuts, **{**options, data_format: "channels_first"})["pixel_values"]

    def _stacked(self, rows: Any) -> torch.Tensor:
        """One tensor of a list of tensors or arrays."""
        return rows if isinstance(rows, torch.Tensor) else torch.stack([torch.as_tensor(row) for row in rows])

    def _check_tokenizer(self, task: Task):
        if task.needs_tokenizer and self.caption_tokenizer is None:
            raise ValueError(
                f"{task.name} needs a tokenizer, and the model was saved without one: give Pix2SeqProcessor a "
                "caption_tokenizer"
            )

    def post_process_generation(
        self,
        output: Any,
        task: str | None = None,
        target_sizes: Any = None,
        threshold: float = 0.0,
        boxes: Any = None,
        labels: Any = None,
        scores: Any = None,
        task_options: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        r"""Turn generated sequences into objects in pixels of the original pictures, or into text.

        Args:
            output (`ModelOutput`, `dict` or `torch.LongTensor` of shape `(rows, length)`):
                What `generate` returned. With `class_labels` and `class_scores` in it, these are the classes of
                detected objects, with `token_scores` keypoints have scores; from bare sequences the sampled class
                tokens are taken, and scores are 1.
            task (`str`, *optional*, defaults to `"object_detection"`): The task that was asked for.
            target_sizes (`torch.Tensor` of shape `(batch, 2)` or `list[tuple[int, int]]`, *optional*):
                Height and width of every original picture, upright. Without it the boxes of detection stay normalised
                by the padded network input; tasks about objects need it. With several sequences per picture each size
                counts for as many rows.
            threshold (`float`, *optional*, defaults to 0): Objects of a lower score are left out.
            boxes, labels (`list`, *optional*): For tasks about objects: what the prompts were made of.
            scores (`list`, *optional*): With `boxes`: per picture `(num_boxes,)`, by default 1.
            task_options (`Mapping[str, Any]`, *optional*): Options of the task's `results`, for example
                `{"ensemble_threshold": 0.6}`.
        Returns:
            `list[dict]`, all with `malformed` `dict[str, int]`, what breaks the grammar by kind:

            - detection, per row: `scores` `(num_objects,)`, `labels` `(num_objects,)` raw label ids, `boxes`
              `(num_objects, 4)` as `xmin, ymin, xmax, ymax`, neither sorted nor cut to the picture. Slots without a
              label are left out.
            - segmentation, per picture: the same for the boxes asked about, `masks` `torch.uint8` `(num_objects,
              height, width)`, `rles` COCO run lengths, `polygons_xy` per object a list of parts `[x, y, ...]`.
            - keypoints, per picture: the same, `keypoints` `(num_objects, num_keypoints, 2)` as x, y,
              `keypoint_visible` and `keypoint_scores` `(num_objects, num_keypoints)`.
            - captioning, per picture: `captions`, a `list[str]` with one entry per sequence.
        Raises:
            ValueError: If the task is unknown, target sizes or boxes do not fit the rows, or there is no tokenizer for
                a task that writes text."""
        task = find_task(task)
        self._check_tokenizer(task)
        fields = {}
        if isinstance(output, Mapping):
            fields, output = output, output["sequences"]
        sequences = self._without_prompt(task, torch.as_tensor(output))
        size = self.image_processor.size
        input_size = size["height"], size["width"]
        options = {"threshold": threshold, **(task_options or {})}
        sizes = None if target_sizes is None else [pixel_size(size) for size in target_sizes]
        if not task.needs_boxes:
            num_rows = len(sequences)
            if sizes is not None and (num_rows % len(sizes) if sizes else num_rows):
                raise ValueError(f"{len(sizes)} target_sizes were given for {num_rows} sequences")
            frames = [
                Frame(i, size, input_size) for i, size in enumerate([None] * num_rows if sizes is None else sizes)
            ]
            return task.results(sequences, fields, frames, self, **options)

        if sizes is None or boxes is None:
            raise ValueError(f"{task.name} needs target_sizes=, boxes= and labels= as they were given for the prompts")
        asked = checked_boxes(boxes, labels, scores, sizes, self.vocabulary, is_quiet=True)
        frames = object_frames(*asked, sizes, input_size, task.crop_pad_scale(self))
        results = task.results(sequences, fields, frames, self, **options)
        if task.crop_pad_scale(self) is None:
            return results
        # Frames without objects give every picture its empty result.
        nothing = object_frames(*([rows[:0] for rows in field] for field in asked), sizes, input_size, None)
        parts = [[empty] for empty in task.results(sequences[:0], {}, nothing, self, **options)]
        for frame, result in zip(frames, results):
            parts[frame.picture].append(result)
        return [join_results(part) for part in parts]

    def _without_prompt(self, task: Task, sequences: torch.Tensor) -> torch.Tensor:
        """Responses of sequences that may begin with their prompts; prompts of padding are zeros."""
        if not sequences.shape[-1]:
            return sequences
        is_prompt = sequences[:, 0] == task.prompt_id
        if task.needs_boxes:
            return sequences[:, 6:] if is_prompt.any() and (is_prompt | (sequences[:, 0] == 0)).all() else sequences
        return sequences[:, task.prompt(self.vocabulary).shape[-1] :] if is_prompt.all() else sequences

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


__all__ = ["TASKS", "Pix2SeqProcessor"]
