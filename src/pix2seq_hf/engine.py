"""How all tasks are run on a batch of pictures: objects first, then masks and keypoints for them, then captions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutput

from .given_boxes import Boxes
from .image_processing_pix2seq import upright_size
from .processing_pix2seq import TASKS
from .records_pix2seq import object_frames
from .results import Keypoint, Pix2SeqObject, Pix2SeqResult
from .task_base import add_counts

DETECTION, SEGMENTATION, KEYPOINTS, CAPTIONS = (
    "object_detection", "instance_segmentation", "keypoint_detection", "captioning",
)  # fmt: skip
SAMPLING = ("top_p", "top_k", "temperature")


@dataclass(frozen=True)
class TaskOptions:
    r"""What to look for and how.

    Args:
        tasks (`str` or `Sequence[str]`): Names of tasks, or `"all"` that the model was trained for. Masks and keypoints
            need objects: these are detected first, unless they are given.
        threshold (`float`): Detected objects of a lower score are left out before masks and keypoints are asked for.
        classes (`Iterable[int | str]`, *optional*): Labels or names that may be detected.
        max_objects (`int`, *optional*): Objects that detection writes per picture.
        max_points (`int`, *optional*): Points that segmentation writes per outline.
        num_samples (`int`, *optional*): Outlines per object that are averaged into its mask; by default the model's.
        num_captions (`int`): Captions per picture.
        allowed_words (`Iterable[str]`, *optional*): Words that captions may be made of, punctuation included.
        ensemble_threshold (`float`): Share of an object's outlines that must enclose a pixel of its mask.
        generate_kwargs (`Mapping[str, Any]`): Arguments of `generate` in place of a task's own, such as `top_p`; under
            the name of a task a dict of those for that task alone.
        seed (`int`, *optional*): Makes sampling reproducible, and leaves torch's generators as they were. The same
            pictures in the same batches give the same results; in a batch of another size a picture may get another
            sample of what the model would say.
        stop_when_noise (`bool`): Whether detection stops at what the model takes for noise.
        cut_to_picture (`bool`): Whether detected boxes are cut to the picture, and those without area left out.
        max_sequences (`int`): Outlines that are written at once; fewer need less memory.
        max_crops (`int`): Cuts that are searched for keypoints, or for outlines where the model wants cuts, at once.
    Raises:
        ValueError: If a number makes no sense."""

    tasks: str | Sequence[str] = "all"
    threshold: float = 0.3
    classes: Iterable[int | str] | None = None
    max_objects: int | None = None
    max_points: int | None = None
    num_samples: int | None = None
    num_captions: int = 1
    allowed_words: Iterable[str] | None = None
    ensemble_threshold: float = 0.5
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    stop_when_noise: bool = False
    cut_to_picture: bool = True
    max_sequences: int = 256
    max_crops: int = 32

    def __post_init__(self):
        for name in ("max_objects", "max_points", "num_samples", "num_captions", "max_sequences", "max_crops"):
            value, least = getattr(self, name), 3 if name == "max_points" else 1
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}")
        if not 0 < self.ensemble_threshold <= 1:
            raise ValueError(f"ensemble_threshold must be above 0 and at most 1, got {self.ensemble_threshold}")
        for chosen in (self.generate_kwargs, *(self.generate_kwargs.get(name, {}) for name in TASKS)):
            if "num_return_sequences" in chosen:
                raise ValueError("num_return_sequences: say num_samples for outlines and num_captions for captions")


def choose_tasks(config: Any, processor: Any, tasks: str | Sequence[str] = "all") -> tuple[str, ...]:
    r"""Check which tasks to run.

    Args:
        config ([`Pix2SeqConfig`]): Read is `tasks`.
        processor ([`Pix2SeqProcessor`]): Whether it has a caption tokenizer.
        tasks (`str` or `Sequence[str]`): Names, one name, several with commas, or `"all"`.
    Returns:
        `tuple[str, ...]`: Names in the order of `TASKS`, each once.
    Raises:
        ValueError: If there is no such task, the model was not trained for it, or text lacks its tokenizer."""
    if isinstance(tasks, str):
        tasks = config.tasks if tasks == "all" else [name.strip() for name in tasks.split(",")]
    if not tasks:
        raise ValueError("tasks is empty: name at least one, or write 'all'")
    for name in tasks:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}: known are {', '.join(TASKS)}, or 'all'")
        if name not in config.tasks:
            raise ValueError(
                f"the model was not trained for {name!r}: its tasks are {', '.join(config.tasks)} (config.tasks)"
            )
        if TASKS[name].needs_tokenizer and processor.caption_tokenizer is None:
            raise ValueError(
                f"{name} needs a tokenizer and the processor has none: give Pix2SeqProcessor a caption_tokenizer and "
                "save it with the model, or name the other tasks"
            )
    return tuple(name for name in TASKS if name in tasks)


def word_tokens(words: Iterable[str], processor: Any) -> list[int]:
    r"""Tokens of the vocabulary that words are written with, at the start of a caption and within it.

    Args:
        words (`Iterable[str]`): Words, punctuation marks, or whole phrases.
        processor ([`Pix2SeqProcessor`]): With a caption tokenizer.
    Returns:
        `list[int]`, ascending.
    Raises:
        ValueError: If the tokenizer does not know a word, or there is none."""
    tokenizer, tokens = processor.caption_tokenizer, set()
    for word in [words] if isinstance(words, str) else words:
        ids = {id for text in (word, f" {word}") for id in tokenizer.encode(text, add_special_tokens=False)}
        if not ids or tokenizer.unk_token_id in ids:
            raise ValueError(f"allowed_words: the caption tokenizer does not know {word!r}")
        tokens |= {id + processor.vocabulary.text_vocab_shift for id in ids}
    if not tokens:
        raise ValueError("allowed_words is empty: name at least one word, or leave it out to allow all")
    return sorted(tokens)


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw as from `seed`, and leave torch's generators as they were; does nothing without a seed."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class TaskRun:
    r"""One batch of pictures and what a model says about it; every picture is encoded once.

    Args:
        model, processor, pictures, options, boxes, pixel_values: See [`run_tasks`].
    Raises:
        ValueError: If the model was not trained for a task, or a task lacks what it needs."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        pictures: Sequence[Any],
        options: TaskOptions | None = None,
        boxes: Sequence[Boxes | None] | None = None,
        pixel_values: torch.Tensor | None = None,
    ):
        self.model, self.processor, self.pictures = model, processor, list(pictures)
        self.options = TaskOptions() if options is None else options
        self.tasks = choose_tasks(model.config, processor, self.options.tasks)
        self.sizes = [tuple(map(int, upright_size(picture))) for picture in self.pictures]
        self.boxes: list[Boxes | None] = [None] * len(self.pictures) if boxes is None else list(boxes)
        if len(self.boxes) != len(self.pictures):
            raise ValueError(f"boxes of {len(self.boxes)} pictures were given for {len(self.pictures)} pictures")
        self.to_detect = [index for index, given in enumerate(self.boxes) if given is None]
        if self.tasks == (CAPTIONS,):
            self.to_detect = []
        if self.to_detect and DETECTION not in model.config.tasks:
            raise ValueError(
                f"{self.tasks[0]} is asked about boxes, and the model was not trained to find them (config.tasks: "
                f"{', '.join(model.config.tasks)}): give boxes and labels"
            )
        self.labels = None if self.options.classes is None else model._find_labels(self.options.classes)
        self.words = None
        if CAPTIONS in self.tasks and self.options.allowed_words is not None:
            self.words = word_tokens(self.options.allowed_words, processor)
        self.pixel_values = pixel_values
        self.malformed: list[dict[str, dict[str, int]]] = [{} for _ in self.pictures]
        self._encoded = None

    @property
    def encoded(self) -> torch.FloatTensor:
        """The encoded pictures `(batch, num_tokens, decoder_hidden_size)`."""
        if self._encoded is None:
            if self.pixel_values is None:
                self.pixel_values = self._preprocess(self.pictures)["pixel_values"]
            self._encoded = self._encode(self.pixel_values)
        return self._encoded

    def run(self) -> list[Pix2SeqResult]:
        """What was found in each picture, by all tasks."""
        found = self.detect()
        additions: list[list[dict[str, Any]]] = [[{} for _ in range(len(objects))] for objects in found]
        if SEGMENTATION in self.tasks:
            for index, objects in enumerate(found):
                additions[index] = [mask for group in self.segment(index, objects) for mask in group]
        if KEYPOINTS in self.tasks:
            for fields, keypoints in zip(additions, self.find_keypoints(found)):
                for entry, points in zip(fields, keypoints):
                    entry.update(points)
        captions = self.caption() if CAPTIONS in self.tasks else [[] for _ in found]
        return self.results(found, additions, captions)

    def _preprocess(self, pictures: Sequence[Any], **conditions) -> Mapping[str, Any]:
        """The network's input of pictures; with a task and what it is asked about, the prompts too."""
        make = self.processor if conditions else self.processor.image_processor
        return make(images=pictures, return_tensors="pt", **conditions)

    @torch.no_grad()
    def _encode(self, pixel_values: torch.Tensor) -> torch.FloatTensor:
        return self.model.get_encoder()(pixel_values.to(self.model.device)).last_hidden_state

    def detect(self, streamer: Any = None) -> list[Boxes]:
        r"""Find the objects of the pictures that come without.

        Args:
            streamer (*optional*): For `generate`, such as [`ObjectStreamer`].
        Returns:
            `list[Boxes]`: Per picture, given or found."""
        found = [Boxes.empty() if given is None else given for given in self.boxes]
        if not self.to_detect:
            return found
        encoded = self.encoded
        if len(self.to_detect) < len(self.pictures):
            encoded = encoded[self.to_detect]
        limits = {
            "classes": self.labels,
            "max_objects": self.options.max_objects,
            "stop_when_noise": self.options.stop_when_noise,
        }
        output = self._generate(DETECTION, encoded, streamer=streamer, **limits)
        results = self.processor.post_process_generation(
            output,
            task=DETECTION,
            target_sizes=[self.sizes[index] for index in self.to_detect],
            threshold=self.options.threshold,
        )
        for index, result in zip(self.to_detect, results):
            boxes = Boxes(result["boxes"].cpu().float(), result["labels"].cpu(), result["scores"].cpu())
            if self.options.cut_to_picture:
                boxes = boxes.clip(self.sizes[index])
                boxes = boxes[boxes.has_area]
            found[index] = boxes
            self._count(index, DETECTION, result["malformed"])
        return found

    def segment(self, index: int, boxes: Boxes) -> Iterator[list[dict[str, Any]]]:
        r"""Draw the objects of one picture.

        Args:
            index (`int`): The picture.
            boxes ([`Boxes`]): Its objects.
        Yields:
            `list[dict]`: Group by group, in their order, `rle` and `polygons_xy` of each object."""
        task, num_samples = TASKS[SEGMENTATION], self._num_samples()
        if task.crop_pad_scale(self.processor) is not None:
            yield from self._segment_cuts(index, boxes, num_samples)
            return
        encoded = self.encoded[index : index + 1]
        group = max(1, self.options.max_sequences // num_samples)
        for first in range(0, len(boxes), group):
            part = boxes[first : first + group]
            [frame] = object_frames(
                [part.boxes_xyxy], [part.labels], [part.scores], [self.sizes[index]], self._input_size(), None
            )
            prompts = task.prompt(self.processor.vocabulary, frame.boxes_yxyx, frame.labels)
            output = self._generate(
                SEGMENTATION,
                encoded,
                seed_offset=first,
                decoder_input_ids=prompts[None].to(encoded.device),  # (1, objects, 6)
                num_return_sequences=num_samples,
                max_points=self.options.max_points,
            )
            sequences = output["sequences"][:, prompts.shape[1] :]
            [result] = task.results(
                sequences, output, [frame], self.processor, ensemble_threshold=self.options.ensemble_threshold
            )
            self._count(index, SEGMENTATION, result["malformed"])
            yield [
                {"rle": rle, "polygons_xy": polygons} for rle, polygons in zip(result["rles"], result["polygons_xy"])
            ]

    def _segment_cuts(self, index: int, boxes: Boxes, num_samples: int) -> Iterator[list[dict[str, Any]]]:
        """As [`segment`], each object in a cut of the picture; nothing is said of those outside of it."""
        inside = boxes.clip(self.sizes[index])
        most = max(1, min(self.options.max_crops, self.options.max_sequences // num_samples))
        for first in range(0, len(inside), most):
            part = inside[first : first + most]
            group: list[dict[str, Any]] = [{} for _ in range(len(part))]
            asked = [(index, number) for number in part.has_area.nonzero()[:, 0].tolist()]
            answers = self._ask_about_cuts(
                SEGMENTATION,
                asked,
                {index: part},
                first,
                {"ensemble_threshold": self.options.ensemble_threshold},
                num_return_sequences=num_samples,
                max_points=self.options.max_points,
            )
            for _, numbers, result in answers:
                for number, rle, polygons in zip(numbers, result["rles"], result["polygons_xy"], strict=True):
                    group[number] = {"rle": rle, "polygons_xy": polygons}
            yield group

    def find_keypoints(self, boxes: Sequence[Boxes]) -> list[list[dict[str, Any]]]:
        r"""Find the keypoints of all objects that have some, in cuts of the pictures.

        Args:
            boxes (`Sequence[Boxes]`): Per picture the objects.
        Returns:
            `list[list[dict]]`: Per picture and object `keypoints` and `keypoints_score`, or nothing."""
        names, labels = self.model.config.keypoint_names, torch.tensor(self.model.config.keypoint_labels)
        found: list[list[dict[str, Any]]] = [[{} for _ in range(len(objects))] for objects in boxes]
        boxes = [objects.clip(size) for objects, size in zip(boxes, self.sizes)]
        asked = [
            (index, number)
            for index, objects in enumerate(boxes)
            for number in (torch.isin(objects.labels, labels) & objects.has_area).nonzero()[:, 0].tolist()
        ]
        for first in range(0, len(asked), self.options.max_crops):
            part = asked[first : first + self.options.max_crops]
            for index, numbers, result in self._ask_about_cuts(KEYPOINTS, part, boxes, first):
                for number, points in zip(numbers, _keypoints_of(result, names)):
                    found[index][number] = points
        return found

    def _ask_about_cuts(
        self,
        name: str,
        asked: Sequence[tuple[int, int]],
        boxes: Sequence[Boxes] | Mapping[int, Boxes],
        seed_offset: int,
        task_options: Mapping[str, Any] | None = None,
        **limits,
    ) -> Iterator[tuple[int, list[int], Mapping[str, Any]]]:
        r"""Ask a task about objects, each in a cut of its picture.

        Args:
            name (`str`): The task.
            asked (`Sequence[tuple[int, int]]`): Picture and number of every object.
            boxes: Of each picture the objects that the numbers count.
            seed_offset, **limits: See [`_generate`].
            task_options (`Mapping`, *optional*): Of the task's `results`.
        Yields:
            `tuple`: A picture, the numbers of its objects, and what the processor made of them."""
        pictures = sorted({index for index, _ in asked})
        if not pictures:
            return
        numbers = [[number for other, number in asked if other == index] for index in pictures]
        chosen = [boxes[index][rows] for index, rows in zip(pictures, numbers)]
        conditions = {"boxes": [each.boxes_xyxy for each in chosen], "labels": [each.labels for each in chosen]}
        inputs = self._preprocess([self.pictures[index] for index in pictures], task=name, **conditions)
        encoded = self._encode(inputs["pixel_values"])
        prompts = inputs["decoder_input_ids"].to(encoded.device)  # (objects, 6)
        output = self._generate(name, encoded, seed_offset, decoder_input_ids=prompts, **limits)
        results = self.processor.post_process_generation(
            output,
            task=name,
            target_sizes=[self.sizes[index] for index in pictures],
            scores=[each.scores for each in chosen],
            task_options=task_options,
            **conditions,
        )
        for index, rows, result in zip(pictures, numbers, results):
            self._count(index, name, result["malformed"])
            yield index, rows, result

    def caption(self) -> list[list[str]]:
        """Captions of every picture."""
        output = self._generate(
            CAPTIONS, self.encoded, num_return_sequences=self.options.num_captions, allowed_tokens=self.words
        )
        results = self.processor.post_process_generation(output, task=CAPTIONS, target_sizes=self.sizes)
        for index, result in enumerate(results):
            self._count(index, CAPTIONS, result["malformed"])
        return [result["captions"] for result in results]

    def results(
        self, boxes: Sequence[Boxes], additions: Sequence[Sequence[dict[str, Any]]], captions: Sequence[list[str]]
    ) -> list[Pix2SeqResult]:
        """Put together what was found: per picture its objects, the fields of each, and the captions."""
        config = self.model.config
        return [
            Pix2SeqResult(
                size=self.sizes[index],
                objects=make_objects(boxes[index], config.id2label, additions[index]),
                captions=captions[index],
                tasks=self.tasks,
                malformed=self.malformed[index],
                image=picture if isinstance(picture, Image.Image) else None,
                id2label=config.id2label,
                keypoint_names=config.keypoint_names,
                keypoint_skeleton=config.keypoint_skeleton,
            )
            for index, picture in enumerate(self.pictures)
        ]

    def _count(self, index: int, name: str, malformed: Mapping[str, int]):
        """Add to what was malformed in a picture."""
        self.malformed[index][name] = add_counts([self.malformed[index].get(name, {}), malformed])

    def _input_size(self) -> tuple[int, int]:
        size = self.processor.image_processor.size
        return size["height"], size["width"]

    def _chosen(self, name: str) -> dict[str, Any]:
        """Arguments of `generate` that the caller chose for a task."""
        general = {key: value for key, value in self.options.generate_kwargs.items() if key not in TASKS}
        return {**general, **self.options.generate_kwargs.get(name, {})}

    def _stored(self, name: str) -> dict[str, Any]:
        """The settings of a task that the model brings."""
        stored = getattr(self.model.generation_config, "task_settings", None) or {}
        return stored.get(str(TASKS[name].prompt_id), {})

    def _defaults(self, name: str) -> dict[str, Any]:
        """The task's own settings where the model brings none: it was built and not loaded."""
        if self._stored(name):
            return {}
        settings = TASKS[name].generation_settings(self.model.config)
        if self._chosen(name).get("do_sample") is False:
            settings = {key: value for key, value in settings.items() if key not in SAMPLING}
        return settings

    def _num_samples(self) -> int:
        if self.options.num_samples is not None:
            return self.options.num_samples
        settings = {**self._stored(SEGMENTATION), **self._defaults(SEGMENTATION), **self._chosen(SEGMENTATION)}
        # Without chance all would be the same.
        return settings.get("num_return_sequences", 1) if settings.get("do_sample") else 1

    def _generate(self, name: str, encoded: torch.FloatTensor, seed_offset: int = 0, **limits) -> Mapping[str, Any]:
        """Let the model write about encoded pictures; `limits` that are `None` are left out."""
        limits = {key: value for key, value in limits.items() if value is not None}
        settings = {**self._defaults(name), **self._chosen(name)}
        for limit in ("max_objects", "max_points"):
            if limit in limits and limit not in self._chosen(name):
                settings.pop("max_new_tokens", None)
        seed = None if self.options.seed is None else self.options.seed + seed_offset
        with seeded(seed, self.model.device):
            return self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                task=name,
                **{**settings, **limits, "return_dict_in_generate": True},
            )


def _keypoints_of(result: Mapping[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Fields of each object of one picture, from the processor's tensors."""
    columns = ("keypoints", "keypoint_scores", "keypoint_visible")
    rows = zip(*(result[column].tolist() for column in columns), result["scores"].tolist())
    for places, scores, visible, score in rows:
        points = zip(names, places, scores, visible)
        keypoints = [Keypoint(name, x, y, point_score, is_visible) for name, (x, y), point_score, is_visible in points]
        yield {"keypoints": keypoints, "keypoints_score": score}


def make_objects(
    boxes: Boxes, id2label: Mapping[int, str], additions: Sequence[Mapping[str, Any]] = ()
) -> list[Pix2SeqObject]:
    """Objects of one picture from their boxes and, where there are some, the other fields of each."""
    rows = zip(boxes.scores.tolist(), boxes.labels.tolist(), boxes.boxes_xyxy.tolist())
    return [
        Pix2SeqObject(
            score=score,
            label=id2label.get(label, f"class {label}"),
            label_id=label,
            box_xyxy=tuple(box),
            **(additions[number] if number < len(additions) else {}),
        )
        for number, (score, label, box) in enumerate(rows)
    ]


def run_tasks(
    model: Any,
    processor: Any,
    pictures: Sequence[Any],
    options: TaskOptions | None = None,
    boxes: Sequence[Boxes | None] | None = None,
    pixel_values: torch.Tensor | None = None,
) -> list[Pix2SeqResult]:
    r"""Run tasks on a batch of pictures, each of which is encoded once.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): On any device, in evaluation mode.
        processor ([`Pix2SeqProcessor`]): That of the model.
        pictures (`Sequence`): Upright RGB pictures of any sizes, or arrays that the processor takes.
        options ([`TaskOptions`], *optional*): What to look for; by default all that the model was trained for.
        boxes (`Sequence[Boxes | None]`, *optional*): Per picture the objects to ask about, as [`read_boxes`] returns
            them, whatever their score; `None` where they are to be detected.
        pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`, *optional*): The pictures as the
            processor makes them, where that was done before.
    Returns:
        `list[Pix2SeqResult]`, in the order of the pictures.
    Raises:
        ValueError: If the model was not trained for a task, or a task lacks what it needs."""
    if not len(pictures):
        return []
    return TaskRun(model, processor, pictures, options, boxes, pixel_values).run()


__all__ = ["TaskOptions", "TaskRun", "choose_tasks", "run_tasks"]
