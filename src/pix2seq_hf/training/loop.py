r"""The training loop: plain Accelerate, one optimiser step after the other until the recipe's last.

RUN/recipe.yaml             every setting of the run
RUN/run.json                versions, data, git commit, and every start and end
RUN/checkpoints/step-N/     the whole state after N steps, from which the run goes on; `from_pretrained` takes it, too
RUN/tensorboard/            losses, learning rate, speed, memory, metrics, pictures
RUN/best/                   the model that was best in evaluation, for `from_pretrained`
RUN/final/                  the model after the last step, for `from_pretrained`
RUN/bad_samples.txt         samples that could not be used
RUN/failed/                 the batch of a step that went wrong
"""

import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.utils.logging import disable_progress_bar

from pix2seq_hf.data.collation import split_batch
from pix2seq_hf.training import build
from pix2seq_hf.training.arguments import Recipe, load_recipe, save_recipe
from pix2seq_hf.training.checkpoints import (
    FAILURES,
    check_space,
    checkpoint_bytes,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from pix2seq_hf.training.devices import update_average, whole_model
from pix2seq_hf.training.evaluation import Evaluation, save_beside
from pix2seq_hf.training.interruption import NAMES, StopSignals, TrainingInterrupted
from pix2seq_hf.training.run_info import RunInfo
from pix2seq_hf.training.watch import Meter, TaskStep, Watch, progress_text

logger = logging.getLogger(__name__)

# What a resumed run may change: it decides what is shown and kept, not what the weights become.
FREE_SETTINGS = (
    "data.keep_pictures", "data.max_bad", "data.num_workers", "evaluation.",
    "training.checkpoint_steps", "training.keep_checkpoints", "training.log_steps", "training.log_with",
)  # fmt: skip


def train(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    resume: bool | None = None,
    show_progress: bool = True,
) -> Path:
    r"""Train a model for the recipe's tasks.

    Args:
        recipe ([`Recipe`]): All settings.
        data (`str` or `Path`): The data set, see [`~data.sources.open_split`].
        output (`str` or `Path`): Folder of the run, see the head of this file.
        resume (`bool`, *optional*): Continue the run of the folder from its last checkpoint. By default if there is
            one; `True` is the same; `False` refuses a folder that has a run.
        show_progress (`bool`): Show a progress bar on the main process.
    Returns:
        `Path`: The folder `final` of the run.
    Raises:
        OSError: If data or a pretrained model are missing, or the disk is full.
        ValueError: If data, settings and run folder do not fit together, or the loss is not finite.
        TrainingInterrupted: At Ctrl-C or SIGTERM, after a checkpoint was saved."""
    output = Path(output)
    start, checkpoint = find_start(recipe, output, resume)
    if checkpoint is not None and (output / "final/config.json").is_file():
        logger.warning("%s: the run is finished, there is nothing left to do", output)
        return output / "final"
    material = build.open_material(recipe, data)
    tokenizer = build.build_caption_tokenizer(recipe, material.split)

    set_seed(recipe.training.seed)
    model, processor = build.build_model(recipe.model, material.split.id2label, list(recipe.tasks), tokenizer)
    samples = {name: build.build_dataset(name, recipe, material, model.config) for name in recipe.tasks}
    first = next(iter(samples.values()))
    # A stream whose length is not known will do if the recipe counts in steps.
    counts_steps = recipe.training.steps is not None and recipe.optimization.warmup_steps is not None
    num_samples = 0 if counts_steps else len(first)
    total_steps = recipe.total_steps(num_samples)
    schedule = build.build_schedule(recipe, num_samples)
    check_space(output, checkpoint_bytes(model, int(recipe.optimization.ema_decay is not None)))
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = build.build_optimizer(recipe, model)

    make_folder(output)
    accelerator = build.build_accelerator(recipe, output)
    set_seed(recipe.training.seed, device_specific=True)  # weights are equal everywhere, dropout need not be
    evaluation = build_evaluation(recipe, data, output, model.config, accelerator)
    loaders = {
        name: build.build_loader(recipe, name, samples[name], model.config, processor, start, total_steps, accelerator)
        for name in recipe.tasks
    }
    average = build.build_average(recipe, model, accelerator.device)
    config, generation_config = model.config, model.generation_config
    model, optimizer = accelerator.prepare(model, optimizer)
    # A stream takes its part of every batch itself: Accelerate would let the first process read for all.
    prepared = {name: loader if material.is_stream else accelerator.prepare(loader) for name, loader in loaders.items()}
    info = RunInfo(output / "run.json", accelerator.is_main_process)
    fingerprint = material.fingerprint(data)
    if checkpoint is not None:
        state = load_checkpoint(accelerator, checkpoint, None if average is None else average.module)
        if state["data_fingerprint"] != fingerprint:
            raise ValueError(f"{data}: is not the data that {output} was trained on so far; choose another --output")
        if evaluation is not None and state["evaluation"] is not None:
            evaluation.state = state["evaluation"]
    build.start_trackers(recipe, accelerator, start)
    if accelerator.is_main_process:
        save_recipe(recipe, output / "recipe.yaml")
        disable_progress_bar()  # a second bar, whenever a model is saved
    info.note(
        data={"path": str(data), "fingerprint": fingerprint, "num_pictures": material.sizes},
        samples={name: each.dataset.num_samples for name, each in samples.items()},
        total_steps=total_steps,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        recipe=dataclasses.asdict(recipe),
    )
    info.note_start(start, accelerator.num_processes, str(accelerator.device))
    if accelerator.is_main_process:
        what = ", ".join(f"{each.dataset.num_samples} samples of {name}" for name, each in samples.items())
        where = f"{accelerator.num_processes} x {accelerator.device.type}"
        logger.info("%s; steps %d to %d; %s", what, start + 1, total_steps, where)

    def save(step: int) -> Path | None:
        return save_checkpoint(
            accelerator,
            output / "checkpoints",
            step,
            {"data_fingerprint": fingerprint, "evaluation": evaluation.state if evaluation else None},
            recipe.training.keep_checkpoints,
            None if average is None else average.module,
            (config, generation_config, processor),
        )

    def evaluate(step: int) -> None:
        began = time.perf_counter()
        evaluated = whole_model(accelerator, model) if average is None else average.module
        numbers = evaluation.run(step, evaluated, processor)
        meter.pause(time.perf_counter() - began)
        if accelerator.is_main_process:
            logger.info("step %d: %s %.4f", step, evaluation.metric, numbers[evaluation.metric])

    batches = {name: iter(loader) for name, loader in prepared.items()}
    task_weights = {name: settings.weight for name, settings in recipe.tasks.items()}
    meter = Meter(sum(recipe.batch_size(name) for name in recipe.tasks), task_weights)
    watch = Watch(
        output,
        {name: each.dataset for name, each in samples.items()},
        {name: loader.collate_fn.prepare for name, loader in loaders.items()},
        guessing_loss=math.log(config.vocab_size),
        max_loss_factor=recipe.training.max_loss_factor,
        max_bad=recipe.data.max_bad,
        process=accelerator.process_index,
    )
    bar = tqdm(
        total=total_steps,
        initial=start,
        unit="step",
        disable=not (show_progress and accelerator.is_main_process),
        dynamic_ncols=True,
    )
    settings, end = recipe.training, "finished"
    done = saved = start
    model.train()
    with bar, logging_redirect_tqdm(), StopSignals() as signals:
        try:
            if evaluation is not None and checkpoint is not None and evaluation.is_missed(start, total_steps):
                evaluate(start)
            for done in range(start + 1, total_steps + 1):
                learning_rate = schedule(done - 1)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                steps = train_step(
                    accelerator, model, optimizer, batches, task_weights, recipe.optimization.max_grad_norm
                )
                if average is not None and not accelerator.optimizer_step_was_skipped:
                    update_average(accelerator, average, model, done)
                watch.look(done, steps)
                meter.add({name: step.loss for name, step in steps.items()})
                bar.update()
                is_logged = done % settings.log_steps == 0 or done == total_steps
                if is_logged:
                    values = {
                        **meter.read(accelerator), "learning_rate": learning_rate, "bad_samples": watch.num_bad
                    }  # fmt: skip
                    accelerator.log(values, step=done)
                    bar.set_postfix_str(progress_text(values))
                is_stopped = stop_is_wanted(accelerator, signals, is_logged)
                is_due = settings.checkpoint_steps and (done % settings.checkpoint_steps == 0 or done == total_steps)
                if is_stopped or is_due:
                    watch.finish()
                    if save(done):
                        saved = done
                if is_stopped:
                    name = NAMES.get(signals.received, "another process")
                    end = f"stopped by {name}"
                    kept = f"saved in {output / 'checkpoints'}" if saved == done else f"saved was step {saved}"
                    raise TrainingInterrupted(
                        f"{name} at step {done} of {total_steps}, {kept}; the same command goes on from there",
                        signals.received or 15,
                    )
                if evaluation is not None and evaluation.is_due(done, total_steps):
                    watch.finish()  # do not call a model the best whose loss was not finite
                    evaluate(done)
                    if evaluation.is_hopeless:
                        best = evaluation.state
                        end = f"stopped early, the best was step {best['best_step']}"
                        logger.warning("step %d: %s: %s %.4f", done, end, evaluation.metric, best["best"])
                        break
            watch.finish()
        except BaseException as error:
            end = end if end != "finished" else f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise
        finally:
            info.note_end(done, end)
            for tracker in accelerator.trackers:
                tracker.finish()
    final = whole_model(accelerator, model) if average is None else average.module
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        try:
            save_beside(final, processor, output / "final", {"step": done, "end": end})
        except FAILURES as error:
            reason = str(error).splitlines()[0]
            raise OSError(
                f"{output / 'final'}: could not be written ({reason}); the checkpoint of step {saved} stands: "
                "make room and give the same command again"
            ) from None
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output / "final"


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Mapping[str, Iterator[dict[str, torch.Tensor]]],
    task_weights: Mapping[str, float],
    max_grad_norm: float | None,
) -> dict[str, TaskStep]:
    r"""Take one optimiser step: the gradients of all tasks are summed.

    Args:
        accelerator (`Accelerator`): Knows the processes and the number of batches in a step, over all tasks.
        model, optimizer: As `accelerator.prepare` returned them.
        batches (`Mapping[str, Iterator[dict]]`): This process's batches of every task; an equal number of each task is
            taken, as many together as are accumulated.
        task_weights (`Mapping[str, float]`): Weight of every task's loss.
        max_grad_norm (`float`, *optional*): Clip the gradients to this global norm.
    Returns:
        `dict[str, TaskStep]`: What happened, by task. The loss is this process's share of the step's loss before the
        task's weight; the shares of all processes average to it."""
    num_parts = accelerator.gradient_accumulation_steps
    steps = {}
    for name, stream in batches.items():
        batches_of_step = (send_to_device(next(stream), accelerator.device) for _ in range(num_parts // len(batches)))
        parts, rows, is_bad = zip(*map(split_batch, batches_of_step), strict=True)
        # Departure: the reference averages the losses of its replicas, each divided by its own sum of weights. Here the
        # sum runs over the whole batch, so that the result does not depend on how the batch was cut into parts.
        weights = [part["label_weights"].sum() for part in parts]
        whole_weight = accelerator.reduce(torch.stack(weights).sum(), reduction="sum")
        loss = torch.zeros((), device=accelerator.device)
        for part, weight in zip(parts, weights, strict=True):
            with accelerator.accumulate(model):
                # Means over processes (by the gradient reduction) and parts (by `backward`) follow: undone here.
                share = weight / whole_weight.clamp(min=1e-9) * accelerator.num_processes
                part_loss = model(**part).loss * share
                accelerator.backward(part_loss * (task_weights[name] * num_parts))
                if accelerator.sync_gradients and max_grad_norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            loss += part_loss.detach()
        steps[name] = TaskStep(loss, parts, torch.cat(rows), torch.cat(is_bad))
    return steps


def stop_is_wanted(accelerator: Accelerator, signals: StopSignals, is_asked: bool) -> bool:
    r"""Whether a signal came; several processes ask each other, so they do it only now and then.

    Args:
        accelerator (`Accelerator`): Knows the processes.
        signals ([`StopSignals`]): Of this process.
        is_asked (`bool`): Whether this is a step at which processes ask each other; the same in all of them."""
    if accelerator.num_processes == 1:
        return signals.received is not None
    if not is_asked:
        return False
    flag = torch.tensor(float(signals.received is not None), device=accelerator.device)
    return accelerator.reduce(flag, reduction="sum").item() > 0


def make_folder(output: Path) -> None:
    """Make the folder of a run; an OSError if nothing can be written there."""
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise PermissionError(f"{output}: cannot be written; choose another --output")


def build_evaluation(
    recipe: Recipe, data: str | Path, output: Path, config: Any, accelerator: Accelerator
) -> Evaluation | None:
    """Open what the run is evaluated on, if the recipe names it."""
    settings = recipe.evaluation
    if settings.split is None:
        return None
    tasks = settings.tasks or list(recipe.tasks)
    if settings.metric is not None and settings.metric.partition("/")[0] not in tasks:
        raise ValueError(f"evaluation.metric {settings.metric!r}: write TASK/NAME with one of {', '.join(tasks)}")
    split = build.open_evaluation_split(recipe, data, tasks, config)
    return Evaluation(settings, tasks, split, output, accelerator)


def find_start(recipe: Recipe, output: Path, resume: bool | None) -> tuple[int, Path | None]:
    r"""Decide where a run starts.

    Args:
        recipe ([`Recipe`]): Of this run.
        output (`Path`): Folder of the run.
        resume (`bool`, *optional*): Whether to continue what is there; `False` refuses it.
    Returns:
        `tuple[int, Path | None]`: Steps already done, and the checkpoint to load.
    Raises:
        ValueError: If there is a run and `resume` is `False`, or the run had other settings."""
    recipe_file = output / "recipe.yaml"
    if not recipe_file.is_file():
        return 0, None
    if resume is False:
        raise ValueError(f"{output}: has a run already; continue it with --resume or choose another --output")
    earlier, current = (_flatten(dataclasses.asdict(item)) for item in (load_recipe(recipe_file), recipe))
    for name, value in current.items():
        if earlier.get(name) != value and not name.startswith(FREE_SETTINGS):
            raise ValueError(
                f"{output}: has a run that cannot be continued, {name} was {earlier.get(name)!r} and is {value!r} now; "
                "choose another --output"
            )
    return find_checkpoint(output / "checkpoints")


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"section.name": value}`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
