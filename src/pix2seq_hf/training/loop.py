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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, ProjectConfiguration, set_seed
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.collation import RecordDataset, StreamSampler, TrainingCollator
from pix2seq_hf.data.transforms import detection_training_transforms
from pix2seq_hf.generation_pix2seq import build_generation_config
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.processing_pix2seq import TASKS, Pix2SeqProcessor
from pix2seq_hf.task_object_detection import TOKENS_PER_OBJECT
from pix2seq_hf.training.arguments import ModelArguments, Recipe, load_recipe, save_recipe
from pix2seq_hf.training.optimization import AdamW, WarmUpAndDecay, group_parameters, scale_learning_rate


def train(
    recipe: Recipe, data: str | Path, output: str | Path, resume: bool = False, show_progress: bool = True
) -> Path:
    r"""Train a detector on a COCO folder.

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
    rows, id2label = read_training_rows(recipe, data)
    total_steps = recipe.total_steps(len(rows))
    schedule = build_schedule(recipe, len(rows))
    start, checkpoint = find_start(recipe, output, resume)

    set_seed(recipe.training.seed)
    model, processor = build_model(recipe.model, id2label)
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = build_optimizer(recipe, model)

    accelerator = build_accelerator(recipe, output)
    set_seed(recipe.training.seed, device_specific=True)  # weights are equal everywhere, dropout need not be
    loader = build_loader(recipe, rows, processor, start, total_steps, accelerator.num_processes)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
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
    meter = Meter(recipe.training.batch_size)
    batches = iter(loader)
    model.train()
    with bar:
        for step in range(start, total_steps):
            learning_rate = schedule(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            loss = train_step(accelerator, model, optimizer, batches, recipe.optimization.max_grad_norm)
            meter.add(loss)
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
    batches: Iterator[dict[str, torch.Tensor]],
    max_grad_norm: float | None,
) -> torch.Tensor:
    r"""Take one optimiser step.

    Args:
        accelerator (`Accelerator`): Knows the processes and the number of accumulated batches.
        model, optimizer: As `accelerator.prepare` returned them.
        batches (`Iterator[dict]`): This process's batches; as many are taken as are accumulated.
        max_grad_norm (`float`, *optional*): Clip the gradients to this global norm.
    Returns:
        `torch.Tensor`: This process's share of the step's loss; the shares of all processes average to it."""
    parts = [next(batches) for _ in range(accelerator.gradient_accumulation_steps)]
    # Departure: the reference averages the losses of its replicas, each divided by its own sum of weights. Here the sum
    # runs over the whole batch, so that the result does not depend on how the batch was cut into parts.
    weights = [part["label_weights"].sum() for part in parts]
    whole_weight = accelerator.reduce(torch.stack(weights).sum(), reduction="sum")
    loss = torch.zeros((), device=accelerator.device)
    for part, weight in zip(parts, weights, strict=True):
        with accelerator.accumulate(model):
            # Means over processes (by the gradient reduction) and parts (by `backward`) follow: they are undone here.
            share = weight / whole_weight * accelerator.num_processes
            part_loss = model(**part).loss * share
            accelerator.backward(part_loss * len(parts))
            if accelerator.sync_gradients and max_grad_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        loss += part_loss.detach()
    return loss


class Meter:
    r"""Collects losses and time between two log entries.

    Args:
        batch_size (`int`): Pictures per step, over all processes."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._losses: list[torch.Tensor] = []
        self._since = time.perf_counter()

    def add(self, loss: torch.Tensor) -> None:
        """Take in the loss of a step, without waiting for the device."""
        self._losses.append(loss)

    def read(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """Return the means since the last reading, and start again; a loss that is not finite ends the run."""
        loss = accelerator.reduce(torch.stack(self._losses).mean(), reduction="mean").item()
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} within the {len(self._losses)} steps before step {step}: "
                "lower optimization.learning_rate or set optimization.max_grad_norm"
            )
        now = time.perf_counter()
        pictures_per_second = len(self._losses) * self.batch_size / (now - self._since)
        self._losses, self._since = [], now
        return {"loss": loss, "pictures_per_second": pictures_per_second}


# --- The parts of a run -----------------------------------------------------------------------------------------------


def read_training_rows(recipe: Recipe, data: str | Path) -> tuple[Any, dict[int, str]]:
    """Open the recipe's split of a COCO folder; pictures without objects are left out, as in the reference."""
    split = read_coco(data, recipe.data.split, recipe.data.image_ids, recipe.data.max_images)
    with_objects = [row for row, labels in enumerate(split.dataset["labels"]) if labels]
    if not with_objects:
        raise ValueError(f"{data}: no picture of {recipe.data.split} has an object")
    return split.dataset.select(with_objects), split.id2label


def build_model(
    arguments: ModelArguments, id2label: dict[int, str]
) -> tuple[Pix2SeqForConditionalGeneration, Pix2SeqProcessor]:
    r"""Build or load the network, and the processor that fits it.

    Args:
        arguments ([`ModelArguments`]): Which network.
        id2label (`dict[int, str]`): Label map of the data; stored in both configurations.
    Returns:
        `tuple`: Model and processor.
    Raises:
        ValueError: If the numbers of the configuration contradict each other."""
    fields = {**arguments.config, "id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
    if arguments.pretrained is not None:
        config = Pix2SeqConfig.from_pretrained(arguments.pretrained, **fields)
    elif arguments.preset is not None:
        config = Pix2SeqConfig.from_preset(arguments.preset, **fields)
    else:
        config = Pix2SeqConfig(**fields)
    length = TOKENS_PER_OBJECT * config.max_instances_per_image
    if length > config.max_position_embeddings:
        raise ValueError(
            f"max_instances_per_image {config.max_instances_per_image} needs {length} positions, "
            f"max_position_embeddings is {config.max_position_embeddings}"
        )
    processor = Pix2SeqProcessor.from_config(config)
    if arguments.pretrained is not None:
        model = Pix2SeqForConditionalGeneration.from_pretrained(arguments.pretrained, config=config, dtype="float32")
    else:
        model = Pix2SeqForConditionalGeneration(config)
    model.generation_config = build_generation_config(config)
    return model, processor


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
            num_steps=recipe.training.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output)),
    )


def build_loader(
    recipe: Recipe, rows: Any, processor: Pix2SeqProcessor, start: int, total_steps: int, num_processes: int
) -> torch.utils.data.DataLoader:
    """The batches of the steps from `start` on; Accelerate hands each process its share of every batch."""
    batch_size = recipe.training.batch_size
    part = batch_size // recipe.training.gradient_accumulation_steps
    if part % num_processes:
        raise ValueError(
            f"training.batch_size {batch_size} in {recipe.training.gradient_accumulation_steps} parts is not divisible "
            f"by the {num_processes} processes"
        )
    size, max_instances = processor.image_processor.size, processor.max_instances_per_image
    transforms = detection_training_transforms(
        (size["height"], size["width"]),
        max_instances,
        min_scale=recipe.data.min_scale,
        max_scale=recipe.data.max_scale,
        use_flip=recipe.data.use_flip,
        object_order=recipe.data.object_order,
        use_noise_boxes=recipe.data.use_noise_boxes,
    )
    collator = TrainingCollator(
        TASKS["object_detection"],
        processor.vocabulary,
        transforms,
        recipe.training.seed,
        recipe.data.batch_duplicates,
        max_instances_per_image=max_instances,
        **dataclasses.asdict(recipe.task),
    )
    return torch.utils.data.DataLoader(
        RecordDataset(rows),
        batch_size=part,
        sampler=StreamSampler(len(rows), recipe.training.seed, total_steps * batch_size, start * batch_size),
        collate_fn=collator,
        num_workers=recipe.data.num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise starting an iteration draws from the generator of dropout
    )


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
