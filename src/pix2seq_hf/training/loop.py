r"""The training loop: plain Accelerate, one optimiser step after the other until the recipe's last.

RUN/recipe.yaml             every setting of the run
RUN/checkpoints/step-N/     the whole state after N steps, for `resume`
RUN/tensorboard/            loss, learning rate, pictures per second
RUN/final/                  model, processor and generation settings, for `from_pretrained`
"""

import dataclasses
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, ProjectConfiguration, set_seed
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from pix2seq_hf.configuration_pix2seq import COCO_KEYPOINT_NAMES, Pix2SeqConfig
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.collation import ObjectDataset, RecordDataset, StreamSampler, TrainingCollator
from pix2seq_hf.data.rows import Split
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
from pix2seq_hf.training.arguments import ModelArguments, Recipe, TaskArguments, load_recipe, save_recipe
from pix2seq_hf.training.caption_tokenizer import load_caption_tokenizer, train_caption_tokenizer
from pix2seq_hf.training.optimization import AdamW, WarmUpAndDecay, group_parameters, scale_learning_rate


def train(
    recipe: Recipe, data: str | Path, output: str | Path, resume: bool = False, show_progress: bool = True
) -> Path:
    r"""Train a model for the recipe's tasks on a COCO folder.

    Args:
        recipe ([`Recipe`]): All settings.
        data (`str` or `Path`): COCO folder.
        output (`str` or `Path`): Folder of the run, see the head of this file.
        resume (`bool`): Continue a run from its last checkpoint.
        show_progress (`bool`): Show a progress bar on the main process.
    Returns:
        `Path`: The folder `final` of the run.
    Raises:
        OSError: If data or a pretrained model are missing.
        ValueError: If data, settings and run folder do not fit together, or the loss is not finite."""
    output = Path(output)
    start, checkpoint = find_start(recipe, output, resume)
    split = read_split(recipe, data)
    tokenizer = build_caption_tokenizer(recipe, split)

    set_seed(recipe.training.seed)
    model, processor = build_model(recipe.model, split.id2label, list(recipe.tasks), tokenizer)
    samples = {name: build_dataset(name, recipe, split, model.config) for name in recipe.tasks}
    num_samples = len(next(iter(samples.values())))
    total_steps = recipe.total_steps(num_samples)
    schedule = build_schedule(recipe, num_samples)
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = build_optimizer(recipe, model)

    accelerator = build_accelerator(recipe, output)
    set_seed(recipe.training.seed, device_specific=True)  # weights are equal everywhere, dropout need not be
    loaders = {
        name: build_loader(recipe, name, samples[name], model.config, processor, start, total_steps, accelerator)
        for name in recipe.tasks
    }
    model, optimizer, *prepared = accelerator.prepare(model, optimizer, *loaders.values())
    accelerator.init_trackers("tensorboard")
    if accelerator.is_main_process:
        save_recipe(recipe, output / "recipe.yaml")
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))

    bar = tqdm(
        total=total_steps,
        initial=start,
        unit="step",
        disable=not (show_progress and accelerator.is_main_process),
        dynamic_ncols=True,
    )
    batches = {name: iter(loader) for name, loader in zip(loaders, prepared, strict=True)}
    task_weights = {name: settings.weight for name, settings in recipe.tasks.items()}
    meter = Meter(sum(recipe.batch_size(name) for name in recipe.tasks), task_weights)
    model.train()
    with bar:
        for step in range(start, total_steps):
            learning_rate = schedule(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            losses = train_step(accelerator, model, optimizer, batches, task_weights, recipe.optimization.max_grad_norm)
            meter.add(losses)
            bar.update()
            done = step + 1
            if done % recipe.training.log_steps == 0 or done == total_steps:
                values = {**meter.read(accelerator, done), "learning_rate": learning_rate}
                accelerator.log(values, step=done)
                bar.set_postfix_str(
                    f"loss {values['loss']:.3f}, lr {learning_rate:.1e}, {values['pictures_per_second']:.1f} pictures/s"
                )
            if recipe.training.checkpoint_steps and done % recipe.training.checkpoint_steps == 0:
                save_checkpoint(accelerator, output, done)
    save_final(accelerator, model, processor, output / "final")
    accelerator.end_training()
    return output / "final"


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Mapping[str, Iterator[dict[str, torch.Tensor]]],
    task_weights: Mapping[str, float],
    max_grad_norm: float | None,
) -> dict[str, torch.Tensor]:
    r"""Take one optimiser step: the gradients of all tasks are summed.

    Args:
        accelerator (`Accelerator`): Knows the processes and the number of batches in a step, over all tasks.
        model, optimizer: As `accelerator.prepare` returned them.
        batches (`Mapping[str, Iterator[dict]]`): This process's batches of every task; an equal number of each task is
            taken, as many together as are accumulated.
        task_weights (`Mapping[str, float]`): Weight of every task's loss.
        max_grad_norm (`float`, *optional*): Clip the gradients to this global norm.
    Returns:
        `dict[str, torch.Tensor]`: This process's share of the step's loss of every task, before its weight; the shares
        of all processes average to it."""
    num_parts = accelerator.gradient_accumulation_steps
    losses = {}
    for name, stream in batches.items():
        parts = [next(stream) for _ in range(num_parts // len(batches))]
        # Departure: the reference averages the losses of its replicas, each divided by its own sum of weights. Here the
        # sum runs over the whole batch, so that the result does not depend on how the batch was cut into parts.
        weights = [part["label_weights"].sum() for part in parts]
        whole_weight = accelerator.reduce(torch.stack(weights).sum(), reduction="sum")
        losses[name] = torch.zeros((), device=accelerator.device)
        for part, weight in zip(parts, weights, strict=True):
            with accelerator.accumulate(model):
                # Means over processes (by the gradient reduction) and parts (by `backward`) follow: undone here.
                share = weight / whole_weight * accelerator.num_processes
                part_loss = model(**part).loss * share
                accelerator.backward(part_loss * (task_weights[name] * num_parts))
                if accelerator.sync_gradients and max_grad_norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses[name] += part_loss.detach()
    return losses


class Meter:
    r"""Collects losses and time between two log entries.

    Args:
        batch_size (`int`): Samples per step, over all tasks and processes.
        task_weights (`Mapping[str, float]`): Weight of every task's loss."""

    def __init__(self, batch_size: int, task_weights: Mapping[str, float]):
        self.batch_size, self.task_weights = batch_size, task_weights
        self._losses: list[torch.Tensor] = []
        self._since = time.perf_counter()

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Take in the losses of a step, without waiting for the device."""
        self._losses.append(torch.stack([losses[name] for name in self.task_weights]))

    def read(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """Return the means since the last reading, and start again; a loss that is not finite ends the run."""
        means = accelerator.reduce(torch.stack(self._losses).mean(0), reduction="mean").tolist()
        losses = dict(zip(self.task_weights, means, strict=True))
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss of {name} is {loss} within the {len(self._losses)} steps before step {step}: "
                    "lower optimization.learning_rate or set optimization.max_grad_norm"
                )
        now = time.perf_counter()
        pictures_per_second = len(self._losses) * self.batch_size / (now - self._since)
        self._losses, self._since = [], now
        values = {"loss": sum(self.task_weights[name] * loss for name, loss in losses.items())}
        if len(losses) > 1:
            values |= {f"loss/{name}": loss for name, loss in losses.items()}
        return {**values, "pictures_per_second": pictures_per_second}


# --- The parts of a run -----------------------------------------------------------------------------------------------


def read_split(recipe: Recipe, data: str | Path) -> Split:
    """Open the recipe's split of a COCO folder, with what its tasks need."""
    num_keypoints = len(recipe.model.config.get("keypoint_names") or COCO_KEYPOINT_NAMES)
    if recipe.model.pretrained is not None and "keypoint_names" not in recipe.model.config:
        num_keypoints = Pix2SeqConfig.from_pretrained(recipe.model.pretrained).num_keypoints
    return read_coco(
        data, recipe.data.split, recipe.data.image_ids, recipe.data.max_images, list(recipe.tasks), num_keypoints
    )


def build_dataset(name: str, recipe: Recipe, split: Split, config: Pix2SeqConfig) -> RecordDataset:
    r"""Choose what a task is trained on; pictures that it has nothing to learn from are left out, as in the reference.

    Args:
        name (`str`): The task.
        recipe ([`Recipe`]): All settings.
        split ([`Split`]): The pictures.
        config ([`Pix2SeqConfig`]): Of the model.
    Returns:
        [`RecordDataset`], never empty.
    Raises:
        ValueError: If no picture has what the task needs."""
    rows = split.dataset
    options = {
        "keep_records": recipe.data.keep_pictures,
        "max_points_per_object": config.max_points_per_object,
        "num_keypoints": config.num_keypoints,
    }
    if name == "keypoint_detection":
        objects = [
            (row, index)
            for row, (labels, crowds, counts) in enumerate(
                zip(rows["labels"], rows["is_crowd"], rows["num_keypoints"], strict=True)
            )
            for index, (label, is_crowd, count) in enumerate(zip(labels, crowds, counts, strict=True))
            if label in config.keypoint_labels and count and not is_crowd
        ]
        _require(objects, f"{recipe.data.split} has no object with keypoints of the labels {config.keypoint_labels}")
        return ObjectDataset(rows, objects, **options)
    field, what = {
        "object_detection": ("labels", "an object"),
        "instance_segmentation": ("polygons_xy", "an object with a polygon"),
        "captioning": ("captions", "a caption"),
    }[name]
    kept = [row for row, values in enumerate(rows[field]) if any(values)]
    _require(kept, f"no picture of {recipe.data.split} has {what}")
    return RecordDataset(rows.select(kept), **options)


def _require(found: list, message: str) -> None:
    if not found:
        raise ValueError(message)


def build_caption_tokenizer(recipe: Recipe, split: Split) -> Any:
    r"""Load or train the tokenizer of captions, if captions are trained.

    Args:
        recipe ([`Recipe`]): All settings.
        split ([`Split`]): The pictures, with their captions.
    Returns:
        `PreTrainedTokenizerBase`, or `None` without captions or if the pretrained model has one."""
    settings = recipe.captioning
    if settings is None:
        return None
    if settings.tokenizer is not None:
        return load_caption_tokenizer(settings.tokenizer)
    if recipe.model.pretrained is not None:
        return Pix2SeqProcessor.from_pretrained(recipe.model.pretrained).caption_tokenizer
    captions = [caption for captions in split.dataset["captions"] for caption in captions]
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
        config = Pix2SeqConfig.from_pretrained(arguments.pretrained, **fields)
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
        model = Pix2SeqForConditionalGeneration.from_pretrained(arguments.pretrained, config=config, dtype="float32")
    else:
        model = Pix2SeqForConditionalGeneration(config)
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
    peak = scale_learning_rate(settings.learning_rate, settings.learning_rate_scaling, recipe.training.batch_size)
    return WarmUpAndDecay(
        peak,
        recipe.total_steps(num_images),
        recipe.warmup_steps(num_images),
        settings.learning_rate_schedule,
        settings.tail_steps,
        settings.end_lr_factor,
    )


def build_optimizer(recipe: Recipe, model: torch.nn.Module) -> AdamW:
    """The reference's AdamW over the trainable weights; the loop sets the learning rate of every step."""
    settings = recipe.optimization
    groups = group_parameters(model.named_parameters(), settings.weight_decay, settings.exclude_from_weight_decay)
    return AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.eps)


def build_accelerator(recipe: Recipe, output: Path) -> Accelerator:
    """The device, the processes, the precision and the log of a run."""
    return Accelerator(
        mixed_precision=recipe.training.mixed_precision,
        # The last batches are fetched together: seeing the end of the data must not end an accumulation early.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=recipe.training.gradient_accumulation_steps * len(recipe.tasks), sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output)),
    )


def build_loader(
    recipe: Recipe,
    name: str,
    samples: RecordDataset,
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
        recipe.training.seed,
        settings.batch_duplicates,
        **build_target_options(name, settings, config, processor.caption_tokenizer),
    )
    return torch.utils.data.DataLoader(
        samples,
        batch_size=part,
        sampler=StreamSampler(len(samples), recipe.training.seed, total_steps * batch_size, start * batch_size),
        collate_fn=collator,
        num_workers=recipe.data.num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise starting an iteration draws from the generator of dropout
    )


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
        return segmentation_training_transforms(size, settings.max_instances_per_image, **options)
    if name == "keypoint_detection":
        chain = keypoint_training_transforms(size, keypoint_pairs=config.keypoint_pairs, **options)
        return Compose([CropToObject(TASKS[name].crop_pad_scale, settings.box_jitter), *chain.transforms])
    return captioning_training_transforms(size, color_jitter_strength=settings.color_jitter_strength, **options)


def build_target_options(
    name: str, settings: TaskArguments, config: Pix2SeqConfig, caption_tokenizer: Any
) -> dict[str, Any]:
    """Options of the task's `targets`: what the model's numbers say, and what the recipe says."""
    wanted = {
        "object_detection": ("class_label_corruption", "noise_bbox_weight", "eos_token_weight"),
        "instance_segmentation": ("max_instances_per_image", "eos_token_weight"),
        "keypoint_detection": ("invisible_token_weight", "eos_token_weight"),
        "captioning": ("captions_per_image", "input_seq_drop_rate", "eos_token_weight"),
    }[name]
    options = {**TASKS[name].target_options(config), **{option: getattr(settings, option) for option in wanted}}
    if name == "object_detection":
        options["max_instances_per_image"] = config.max_instances_per_image
    if name == "captioning":
        options["tokenizer"] = caption_tokenizer
    return options


# --- The run folder ---------------------------------------------------------------------------------------------------


def find_start(recipe: Recipe, output: Path, resume: bool) -> tuple[int, Path | None]:
    r"""Decide where a run starts.

    Args:
        recipe ([`Recipe`]): Of this run.
        output (`Path`): Folder of the run.
        resume (`bool`): Whether to continue what is there.
    Returns:
        `tuple[int, Path | None]`: Steps already done, and the checkpoint to load.
    Raises:
        ValueError: If there is a run and `resume` is not set, or the run had other settings."""
    recipe_file = output / "recipe.yaml"
    if not recipe_file.is_file():
        return 0, None
    if not resume:
        raise ValueError(f"{output}: has a run already; continue it with --resume or choose another folder")
    earlier, current = (_flatten(dataclasses.asdict(item)) for item in (load_recipe(recipe_file), recipe))
    for name, value in current.items():
        if earlier.get(name) != value:
            raise ValueError(f"{output}: cannot resume, {name} was {earlier.get(name)!r} and is {value!r} now")
    checkpoints = {int(path.name.removeprefix("step-")): path for path in (output / "checkpoints").glob("step-*")}
    return max(checkpoints.items(), default=(0, None))


def save_checkpoint(accelerator: Accelerator, output: Path, step: int) -> None:
    """Save the state after `step` steps under its final name only when it is complete."""
    unfinished, finished = output / "checkpoints" / f"unfinished-{step}", output / "checkpoints" / f"step-{step}"
    if accelerator.is_main_process:
        for path in (unfinished, finished):
            shutil.rmtree(path, ignore_errors=True)
    accelerator.wait_for_everyone()
    # Says at every checkpoint that tied weights are stored once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.rename(unfinished, finished)


def save_final(accelerator: Accelerator, model: torch.nn.Module, processor: Pix2SeqProcessor, folder: Path) -> None:
    """Save what `from_pretrained` needs."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        disable_progress_bar()  # a second bar, for the writing of a file
        accelerator.unwrap_model(model).save_pretrained(folder)
        processor.save_pretrained(folder)


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"section.name": value}`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
