"""What is a run made of: data, model, optimiser and loaders, from the settings of a recipe."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration

from pix2seq_hf.configuration_pix2seq import COCO_KEYPOINT_NAMES, Pix2SeqConfig
from pix2seq_hf.data.collation import ObjectDataset, RecordDataset, StreamSampler, TrainingCollator
from pix2seq_hf.data.hub import StreamSplit
from pix2seq_hf.data.mixture import MixtureSampler, join_splits, renumber
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import Split
from pix2seq_hf.data.scene_source import SceneDataset, SceneStream
from pix2seq_hf.data.sources import TRAINING_SPLITS, choose_split, explain_split, open_split, open_stream
from pix2seq_hf.data.stream import StreamDataset
from pix2seq_hf.data.transforms import (
    Compose,
    CropToObject,
    captioning_training_transforms,
    detection_training_transforms,
    keypoint_training_transforms,
    segmentation_training_transforms,
)
from pix2seq_hf.generation_pix2seq import build_generation_config
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.processing_pix2seq import TASKS, Pix2SeqProcessor
from pix2seq_hf.task_object_detection import TOKENS_PER_OBJECT
from pix2seq_hf.training.arguments import ModelArguments, Recipe, TaskArguments
from pix2seq_hf.training.caption_tokenizer import load_caption_tokenizer, train_caption_tokenizer
from pix2seq_hf.training.devices import build_accelerator_options, choose_precision
from pix2seq_hf.training.interruption import ignore_stop_signals
from pix2seq_hf.training.optimization import AdamW, WarmUpAndDecay, group_parameters, scale_learning_rate
from pix2seq_hf.training.pretrained import load_pretrained, read_pretrained_config
from pix2seq_hf.training.run_info import data_fingerprint
from pix2seq_hf.training.smooth_start import start_smoothly
from pix2seq_hf.training.watch import most_bad

logger = logging.getLogger(__name__)

MOST_NAMED = 10  # lost pictures that are named one by one
TRACKER_PROJECT = "tensorboard"  # for TensorBoard the name of a folder in that of the run


@dataclass(frozen=True)
class Material:
    r"""What a run learns from.

    Args:
        split ([`Split`] or [`StreamSplit`]): The rows of all data sets, one after the other.
        sizes (`list[int]`): Rows of each data set; of a stream it may not be known.
        weights (`list[float]`): How often each is drawn from.
        tasks (`list[set[str]]`): What each is used for.
        num_left_out (`int`): Pictures that could not be used, and of which too little is known for a row."""

    split: Split | StreamSplit
    sizes: list[int | None]
    weights: list[float]
    tasks: list[set[str]]
    num_left_out: int = 0

    @property
    def is_stream(self) -> bool:
        """Whether the rows come one after the other, without an index."""
        return isinstance(self.split, StreamSplit)

    def fingerprint(self, data: str | Path) -> str:
        """What the material is recognised by when a run goes on: its annotations, or the name of a stream."""
        return f"stream of {data}" if self.is_stream else data_fingerprint(self.split.dataset)


@dataclass(frozen=True)
class TaskSamples:
    r"""What a task learns from.

    Args:
        dataset ([`RecordDataset`] or [`StreamDataset`]): Samples of all data sets, one after the other; never empty.
        sizes (`list[int]`): Samples of each data set; of a stream it may not be known.
        weights (`list[float]`): How often each is drawn from."""

    dataset: RecordDataset | StreamDataset
    sizes: list[int | None]
    weights: list[float]

    def __len__(self) -> int:
        if self.dataset.num_samples is None:
            raise ValueError("the length of the stream is not known: set training.steps and optimization.warmup_steps")
        return self.dataset.num_samples


def with_split(recipe: Recipe, data: str | Path) -> Recipe:
    """A recipe that names its split: that of the data set if it names none."""
    if recipe.data.split is not None:
        return recipe
    return recipe.with_split(choose_split(data, TRAINING_SPLITS, "--set data.split=NAME"))


def open_material(recipe: Recipe, data: str | Path) -> Material:
    r"""Open all data sets of a recipe, with what its tasks need; what was mended is logged.

    A picture that cannot be used does not end this: it is named, and where it can it keeps its row, so that the samples
    of a run that goes on have the numbers that they had; reading it will fail, and [`~training.watch.Watch`] counts it.

    Args:
        recipe ([`Recipe`]): All settings.
        data (`str` or `Path`): The main data set.
    Returns:
        [`Material`].
    Raises:
        OSError, ValueError: As [`~data.sources.open_split`], or if more than `data.max_bad` of the pictures of a data
            set cannot be used."""
    recipe = with_split(recipe, data)
    options = {"tasks": list(recipe.tasks), "num_keypoints": num_keypoints(recipe)}
    if recipe.data.streaming:
        settings, problems = recipe.data, Problems(lost="kept")
        if settings.others or settings.image_ids is not None:
            raise ValueError("data.streaming goes without data.others and data.image_ids: a stream has no index")
        columns = settings.columns or None
        with explain_split(data, settings.split, "--set data.split=NAME"):
            stream = open_stream(
                data, settings.split, max_images=settings.max_images, columns=columns, problems=problems, **options
            )
        tell_problems(problems, data, stream.num_rows or 0, recipe.data.max_bad)
        return Material(stream, [stream.num_rows], [1.0], [set(recipe.tasks)], len(problems.left_out))
    splits, weights, tasks, num_left_out = [], [], [], 0
    for path, settings in ((data, recipe.data), *((other.path, other) for other in recipe.data.others)):
        problems = Problems(lost="kept")
        logger.info("reading the annotations of %s, %s", path, settings.split)
        option = "--set data.split=NAME" if settings is recipe.data else "split in data.others"
        with explain_split(path, settings.split, option):
            split = open_split(
                path,
                settings.split,
                image_ids=settings.image_ids,
                max_images=settings.max_images,
                columns=settings.columns or None,
                problems=problems,
                **options,
            )
        splits.append(split)
        weights.append(settings.weight)
        tasks.append(set(getattr(settings, "tasks", None) or recipe.tasks))
        tell_problems(problems, path, len(splits[-1].dataset), recipe.data.max_bad)
        num_left_out += len(problems.left_out)
    return Material(join_splits(splits), [len(split.dataset) for split in splits], weights, tasks, num_left_out)


def tell_problems(problems: Problems, data: str | Path, num_rows: int, max_bad: float | None = None) -> None:
    r"""Log what was wrong with a data set: pictures that cannot be used by name, the rest by its kind.

    Args:
        problems ([`Problems`]): What its reader found.
        data (`str` or `Path`): The data set.
        num_rows (`int`): Rows that were made of it.
        max_bad (`float`, *optional*): Share of the pictures that may be unusable; without one, all may.
    Raises:
        ValueError: If more are."""
    lost, num_pictures = problems.lost, num_rows + len(problems.left_out)
    if max_bad is not None and len(lost) > most_bad(max_bad, num_pictures):
        raise ValueError(
            f"{data}: {len(lost)} of {num_pictures} pictures cannot be used, more than data.max_bad {max_bad:g}; the "
            f"first: {lost[0].message}; all: pix2seq data inspect {data}"
        )
    for problem in lost[:MOST_NAMED]:
        logger.warning("left out: %s", problem.message)
    if len(lost) > MOST_NAMED:
        logger.warning("%s: %d more are left out (see pix2seq data inspect)", data, len(lost) - MOST_NAMED)
    kinds = {problem.kind for problem in lost}
    for kind, count in problems.counts().items():
        if kind not in kinds:
            logger.warning("%s: %s: %d times (see pix2seq data inspect)", data, kind, count)


def open_evaluation_split(recipe: Recipe, data: str | Path, tasks: Sequence[str], config: Pix2SeqConfig) -> Split:
    """Open what a run is evaluated on; its classes are matched with those of the model by name."""
    settings, problems = recipe.evaluation, Problems(lost="kept")
    data = settings.data or data
    logger.info("reading the annotations of %s, %s, to evaluate on", data, settings.split)
    with explain_split(data, settings.split, "--set evaluation.split=NAME"):
        split = open_split(
            data,
            settings.split,
            image_ids=settings.image_ids,
            max_images=settings.max_images,
            tasks=list(tasks),
            num_keypoints=config.num_keypoints,
            columns=settings.columns or None,
            problems=problems,
        )
    tell_problems(problems, data, len(split.dataset))
    return renumber(split, config.id2label)


def num_keypoints(recipe: Recipe) -> int:
    """Keypoints of an object, by the recipe or its pretrained model."""
    if recipe.model.pretrained is not None and "keypoint_names" not in recipe.model.config:
        return read_pretrained_config(recipe.model.pretrained).num_keypoints
    return len(recipe.model.config.get("keypoint_names") or COCO_KEYPOINT_NAMES)


def build_dataset(name: str, recipe: Recipe, material: Material, config: Pix2SeqConfig) -> TaskSamples:
    r"""Choose what a task is trained on; pictures that it has nothing to learn from are left out, as in the reference.

    Args:
        name (`str`): The task.
        recipe ([`Recipe`]): All settings.
        material ([`Material`]): The pictures.
        config ([`Pix2SeqConfig`]): Of the model.
    Returns:
        [`TaskSamples`].
    Raises:
        ValueError: If no picture has what the task needs."""
    widths = {"max_points_per_object": config.max_points_per_object, "num_keypoints": config.num_keypoints}
    if material.is_stream:
        kind = SceneDataset if isinstance(material.split, SceneStream) else StreamDataset
        stream = kind(
            material.split,
            lambda row: samples_of_row(name, row, config),
            recipe.training.seed,
            recipe.batch_size(name) // recipe.training.gradient_accumulation_steps,
            buffer_size=recipe.data.shuffle_buffer,
            **widths,
        )
        return TaskSamples(stream, material.sizes, material.weights)
    rows = material.split.dataset
    ends = np.cumsum(material.sizes)
    source_of = np.searchsorted(ends, np.arange(len(rows)), side="right")  # (num_rows,)
    is_used = np.array([name in tasks for tasks in material.tasks])[source_of]  # (num_rows,)
    columns = rows.select_columns([*FIELDS_OF_SAMPLES[name]])
    samples = [
        (row, index)
        for row, values in enumerate(columns)
        if is_used[row]
        for index in samples_of_row(name, values, config)
    ]
    if not samples:
        what = {
            "object_detection": "picture with an object",
            "instance_segmentation": "object with a polygon",
            "keypoint_detection": f"object with keypoints of the labels {config.keypoint_labels}",
            "captioning": "picture with a caption",
        }[name]
        raise ValueError(f"{recipe.data.split or 'the data set'} has no {what}")
    kept = [row for row, _ in samples]
    sizes = np.bincount(source_of[kept], minlength=len(ends)).tolist()
    options = {"keep_records": recipe.data.keep_pictures, **widths}
    if TASKS[name].crop_pad_scale(config) is not None:
        dataset = ObjectDataset(rows, samples, **options)
    else:
        dataset = RecordDataset(rows.select(kept), **options)
    return TaskSamples(dataset, sizes, material.weights)


# What of a row decides whether a task can learn from it.
FIELDS_OF_SAMPLES = {
    "object_detection": ("labels",),
    "instance_segmentation": ("polygons_xy", "is_crowd"),
    "keypoint_detection": ("labels", "is_crowd", "num_keypoints"),
    "captioning": ("captions",),
}


def samples_of_row(name: str, row: Mapping[str, Any], config: Pix2SeqConfig) -> list[int | None]:
    """What a task learns from a row: the numbers of objects to be cut out, or the whole (`None`), or nothing."""
    fields = FIELDS_OF_SAMPLES[name]
    if TASKS[name].crop_pad_scale(config) is None:
        return [None] if any(row[fields[0]]) else []
    if name == "instance_segmentation":
        outlines = zip(*(row[field] for field in fields), strict=True)
        return [index for index, (parts, is_crowd) in enumerate(outlines) if parts and not is_crowd]
    objects = zip(*(row[field] for field in fields), strict=True)
    return [
        index
        for index, (label, is_crowd, count) in enumerate(objects)
        if label in config.keypoint_labels and count and not is_crowd
    ]


def continued(recipe: Recipe, folder: Path) -> Recipe:
    r"""The recipe of a run that goes on: its network is that of a checkpoint, whatever it was pretrained from.

    Args:
        recipe ([`Recipe`]): Of the run.
        folder (`Path`): A checkpoint, which has all weights, or the result.
    Returns:
        [`Recipe`]: Without `model.pretrained` and `model.preset`."""
    config = read_pretrained_config(str(folder)).to_dict()
    fields = [item.name for item in dataclasses.fields(Pix2SeqConfig) if item.name in config]
    model = ModelArguments(attention=recipe.model.attention, config={name: config[name] for name in fields})
    return dataclasses.replace(recipe, model=model)


def build_caption_tokenizer(recipe: Recipe, split: Split | StreamSplit, checkpoint: Path | None = None) -> Any:
    r"""Load or train the tokenizer of captions, if captions are trained.

    Args:
        recipe ([`Recipe`]): All settings.
        split ([`Split`]): The pictures, with their captions.
        checkpoint (`Path`, *optional*): What the run goes on from, which has its tokenizer.
    Returns:
        `PreTrainedTokenizerBase`, or `None` without captions or if the pretrained model has one."""
    settings = recipe.captioning
    if settings is None:
        return None
    if checkpoint is not None:
        return Pix2SeqProcessor.from_pretrained(checkpoint).caption_tokenizer
    if settings.tokenizer is not None:
        return load_caption_tokenizer(settings.tokenizer)
    if recipe.model.pretrained is not None:
        earlier = Pix2SeqProcessor.from_pretrained(recipe.model.pretrained).caption_tokenizer
        if earlier is not None:
            return earlier
    if isinstance(split, SceneStream):
        captions = split.some_captions()
    elif isinstance(split, StreamSplit):
        raise ValueError("a stream cannot be read beforehand to learn its words: set captioning.tokenizer")
    else:
        captions = [caption for captions in split.dataset["captions"] for caption in captions]
    logger.info("learning the words of %d captions", len(captions))
    return train_caption_tokenizer(captions, settings.tokenizer_vocab_size)


def build_model(
    arguments: ModelArguments,
    id2label: dict[int, str],
    tasks: Sequence[str] = ("object_detection",),
    caption_tokenizer: Any = None,
) -> tuple[Pix2SeqForConditionalGeneration, Pix2SeqProcessor]:
    r"""Build or load the network, and the processor that fits it.

    Args:
        arguments ([`ModelArguments`]): Which network.
        id2label (`dict[int, str]`): Label map of the data; stored in both configurations.
        tasks (`Sequence[str]`): What the model is trained for.
        caption_tokenizer (`PreTrainedTokenizerBase`, *optional*): Goes into the processor.
    Returns:
        `tuple`: Model and processor.
    Raises:
        ValueError: If the numbers of the configuration contradict each other."""
    label2id = {name: label for label, name in id2label.items()}
    fields = {**arguments.config, "tasks": list(tasks), "id2label": id2label, "label2id": label2id}
    if arguments.pretrained is not None:
        config = Pix2SeqConfig.from_dict({**read_pretrained_config(arguments.pretrained).to_dict(), **fields})
    elif arguments.preset is not None:
        config = Pix2SeqConfig.from_preset(arguments.preset, **fields)
    else:
        config = Pix2SeqConfig(**fields)
    check_lengths(config)
    if caption_tokenizer is not None and config.text_vocab_shift + len(caption_tokenizer) > config.vocab_size:
        raise ValueError(
            f"the caption tokenizer has {len(caption_tokenizer)} words, which do not fit between text_vocab_shift "
            f"{config.text_vocab_shift} and vocab_size {config.vocab_size}"
        )
    processor = Pix2SeqProcessor.from_config(config, caption_tokenizer=caption_tokenizer)
    if arguments.pretrained is not None:
        logger.info("loading %s", arguments.pretrained)
        model, lines = load_pretrained(arguments.pretrained, config, caption_tokenizer)
        for line in lines:
            logger.info(line)
    else:
        model = Pix2SeqForConditionalGeneration(config)
        if arguments.smooth_start:
            start_smoothly(model)
    model.set_attn_implementation(arguments.attention)
    model.generation_config = build_generation_config(config)
    return model, processor


def check_lengths(config: Pix2SeqConfig) -> None:
    """Raise a ValueError if the sequence of a task is longer than the decoder's positions."""
    lengths = {
        "object_detection": ("max_instances_per_image", TOKENS_PER_OBJECT * config.max_instances_per_image),
        "instance_segmentation": ("max_points_per_object", 5 + 2 * config.max_points_per_object),
        "keypoint_detection": ("num_keypoints", 5 + 2 * config.num_keypoints),
        "captioning": ("max_caption_length", config.max_caption_length),
    }
    for task in config.tasks:
        field, length = lengths[task]
        if length > config.max_position_embeddings:
            raise ValueError(
                f"{field} {getattr(config, field)} needs {length} positions, "
                f"max_position_embeddings is {config.max_position_embeddings}"
            )


def build_schedule(recipe: Recipe, num_images: int) -> WarmUpAndDecay:
    """The learning rate of every step of a run on `num_images` pictures."""
    settings = recipe.optimization
    total, warmup = recipe.total_steps(num_images), recipe.warmup_steps(num_images)
    if settings.learning_rate_schedule != "none" and total - warmup - settings.tail_steps < 1:
        raise ValueError(
            f"no steps left to decay in: training.steps {total}, optimization.warmup_steps {warmup}, "
            f"optimization.tail_steps {settings.tail_steps}; set them so that some are left"
        )
    peak = scale_learning_rate(settings.learning_rate, settings.learning_rate_scaling, recipe.training.batch_size)
    return WarmUpAndDecay(
        peak,
        total,
        warmup,
        settings.learning_rate_schedule,
        settings.tail_steps,
        settings.end_lr_factor,
    )


def build_optimizer(recipe: Recipe, model: torch.nn.Module) -> AdamW:
    """The reference's AdamW over the trainable weights; the loop sets the learning rate of every step."""
    settings = recipe.optimization
    groups = group_parameters(model.named_parameters(), settings.weight_decay, settings.exclude_from_weight_decay)
    return AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.eps)


def build_average(recipe: Recipe, model: torch.nn.Module, device: torch.device) -> Any:
    """The moving average of the weights (timm's `ModelEmaV3`), or `None` if the recipe wants none."""
    if recipe.optimization.ema_decay is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model.to(device), decay=recipe.optimization.ema_decay, use_warmup=True)


def build_accelerator(recipe: Recipe, output: Path) -> Accelerator:
    """The device, the processes, the precision and the log of a run."""
    settings = recipe.training
    there = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in settings.log_with:
        if name not in there:
            raise ValueError(f"training.log_with: {name} is unknown or not installed; there are {', '.join(there)}")
    return Accelerator(
        **build_accelerator_options(
            choose_precision(settings.mixed_precision),
            settings.gradient_accumulation_steps * len(recipe.tasks),
            settings.compile,
        ),
        log_with=settings.log_with,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output)),
    )


def start_trackers(recipe: Recipe, accelerator: Accelerator, start: int) -> None:
    r"""Open the logs of a run.

    Args:
        recipe ([`Recipe`]): All settings; trackers that compare runs get them.
        accelerator (`Accelerator`): Has the trackers.
        start (`int`): Steps that were done; what a run that was killed logged after them is taken back."""
    is_compared = recipe.training.log_with != ["tensorboard"]
    accelerator.init_trackers(
        TRACKER_PROJECT,
        config=dataclasses.asdict(recipe) if is_compared else None,
        init_kwargs={"tensorboard": {"purge_step": start + 1}},
    )


def build_loader(
    recipe: Recipe,
    name: str,
    samples: TaskSamples,
    config: Pix2SeqConfig,
    processor: Pix2SeqProcessor,
    start: int,
    total_steps: int,
    accelerator: Accelerator,
) -> torch.utils.data.DataLoader:
    """A task's batches of the steps from `start` on; Accelerate hands each process its share of every batch."""
    settings, batch_size = recipe.tasks[name], recipe.batch_size(name)
    part = batch_size // recipe.training.gradient_accumulation_steps
    if part % accelerator.num_processes:
        setting = f"{name}.batch_size" if settings.batch_size else "training.batch_size"
        raise ValueError(
            f"{setting} {batch_size} in {recipe.training.gradient_accumulation_steps} parts is not divisible "
            f"by the {accelerator.num_processes} processes"
        )
    collator = TrainingCollator(
        TASKS[name],
        processor.vocabulary,
        build_transforms(name, settings, config),
        config.image_size,
        recipe.training.seed,
        settings.batch_duplicates,
        **build_target_options(name, settings, config, processor.caption_tokenizer),
    )
    position = recipe.training.seed, total_steps * batch_size, start * batch_size
    if isinstance(samples.dataset, StreamDataset):
        stream, sampler = samples.dataset, None
        stream.start = start * batch_size
        stream.process, stream.num_processes = accelerator.process_index, accelerator.num_processes
        part //= accelerator.num_processes
    elif len(samples.sizes) == 1:
        sampler = StreamSampler(len(samples), *position)
    else:
        sampler = MixtureSampler(samples.sizes, samples.weights, *position)
    return torch.utils.data.DataLoader(
        samples.dataset,
        batch_size=part,
        sampler=sampler,
        collate_fn=collator,
        num_workers=recipe.data.num_workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise starting an iteration draws from the generator of dropout
    )


def start_worker(worker: int) -> None:
    """Called in every worker process: it is the parent that ends it."""
    ignore_stop_signals()


def build_transforms(name: str, settings: TaskArguments, config: Pix2SeqConfig) -> Compose:
    """What varies the records of a task, as its settings say."""
    size = config.image_size
    options = {
        "min_scale": settings.min_scale,
        "max_scale": settings.max_scale,
        "use_evaluation_resize": settings.use_evaluation_resize,
        "use_flip": settings.use_flip,
    }
    if name == "object_detection":
        options |= {"object_order": settings.object_order, "use_noise_boxes": settings.use_noise_boxes}
        return detection_training_transforms(size, config.max_instances_per_image, **options)
    if name == "instance_segmentation":
        options |= {"object_order": settings.object_order}
        pad_scale = TASKS[name].crop_pad_scale(config)
        if pad_scale is None:
            return segmentation_training_transforms(size, settings.max_instances_per_image, **options)
        chain = segmentation_training_transforms(size, 1, **options)
        return Compose([CropToObject(pad_scale, settings.box_jitter), *chain.transforms])
    if name == "keypoint_detection":
        chain = keypoint_training_transforms(size, keypoint_pairs=config.keypoint_pairs, **options)
        return Compose([CropToObject(TASKS[name].crop_pad_scale(config), settings.box_jitter), *chain.transforms])
    return captioning_training_transforms(size, color_jitter_strength=settings.color_jitter_strength, **options)


def build_target_options(
    name: str, settings: TaskArguments, config: Pix2SeqConfig, caption_tokenizer: Any
) -> dict[str, Any]:
    """Options of the task's `targets`: what the model's numbers say, and what the recipe says."""
    wanted = {
        "object_detection": ("class_label_corruption", "noise_bbox_weight", "eos_token_weight"),
        "instance_segmentation": ("max_instances_per_image", "eos_token_weight", "point_jitter"),
        "keypoint_detection": ("invisible_token_weight", "eos_token_weight"),
        "captioning": ("captions_per_image", "input_seq_drop_rate", "eos_token_weight"),
    }[name]
    options = {**TASKS[name].target_options(config), **{option: getattr(settings, option) for option in wanted}}
    if name == "object_detection":
        options["max_instances_per_image"] = config.max_instances_per_image
    if name == "instance_segmentation" and TASKS[name].crop_pad_scale(config) is not None:
        options["max_instances_per_image"] = 1
    if name == "captioning":
        options["tokenizer"] = caption_tokenizer
    return options
