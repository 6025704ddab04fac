r"""The training loop: plain Accelerate, one optimiser step after the other until the recipe's last.

RUN/recipe.yaml             every setting of the run
RUN/run.json                versions, data, git commit, and every start and end
RUN/checkpoints/step-N/     the whole state after N steps, from which the run goes on; `from_pretrained` takes it, too
RUN/tensorboard/            losses, learning rate, speed, memory, metrics, pictures
RUN/best/                   the model that was best in evaluation, for `from_pretrained`
RUN/final/                  the model after the last step, for `from_pretrained`
RUN/bad_samples.txt         samples that could not be used: task, number, reason
RUN/pictures.txt            what its pictures are recognised by
RUN/failed/                 the batch of a step that went wrong
RUN/run.lock, run.holder    held while somebody trains there
"""

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.utils.logging import disable_progress_bar

from pix2seq_hf.data.collation import split_batch
from pix2seq_hf.outputs import make_folder
from pix2seq_hf.progress import open_bar
from pix2seq_hf.training import build
from pix2seq_hf.training.arguments import Recipe, save_recipe
from pix2seq_hf.training.checkpoints import (
    FAILURES,
    check_space,
    checkpoint_bytes,
    load_checkpoint,
    save_checkpoint,
)
from pix2seq_hf.training.devices import update_average, whole_model
from pix2seq_hf.training.evaluation import Evaluation, save_beside
from pix2seq_hf.training.interruption import NAMES, StopSignals, TrainingInterrupted
from pix2seq_hf.training.run_folder import Start, find_start, hold
from pix2seq_hf.training.run_info import RunInfo, picture_digests
from pix2seq_hf.training.watch import BAD_SAMPLES, Meter, TaskStep, Watch, most_bad, progress_text

logger = logging.getLogger(__name__)

PICTURES = "pictures.txt"


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
            one; `True` refuses a folder without a run, `False` one that has a run. A run goes on with more steps, too.
        show_progress (`bool`): Show a progress bar on the main process.
    Returns:
        `Path`: The folder `final` of the run.
    Raises:
        OSError: If data or a pretrained model are missing, or the disk is full.
        ValueError: If data, settings and run folder do not fit together, or the loss is not finite.
        TrainingInterrupted: At Ctrl-C or SIGTERM, after a checkpoint was saved."""
    output = Path(output)
    with hold(output):
        start = find_start(recipe, output, resume)
        recipe = build.with_split(
            recipe if start.earlier is None else recipe.with_split(start.earlier.data.split), data
        )
        if start.is_finished:
            check_finished(recipe, data, output)
            logger.warning("%s: the run is finished, there is nothing left to do; more steps prolong it", output)
            return output / "final"
        return go_on(recipe, data, output, start, show_progress)


def check_finished(recipe: Recipe, data: str | Path, output: Path) -> None:
    """Raise a ValueError if a finished run is asked to learn from other data than it did."""
    known = RunInfo(output / "run.json", is_written=False).content.get("data", {})
    if known.get("path") in (None, str(data)):
        return
    material = build.open_material(build.continued(recipe, output / "final"), data)
    if material.fingerprint(data) != known["fingerprint"]:
        raise ValueError(
            f"{data}: is not the data that {output} was trained on ({known['path']}); its run is finished and nothing "
            "was done; choose another --output"
        )


def go_on(recipe: Recipe, data: str | Path, output: Path, begin: Start, show_progress: bool) -> Path:
    """Train from `begin` on; arguments, result and errors as of [`train`]."""
    start, checkpoint = begin.step, begin.checkpoint
    source = recipe if checkpoint is None else build.continued(recipe, checkpoint)
    material = build.open_material(source, data)
    tokenizer = build.build_caption_tokenizer(source, material.split, checkpoint)

    set_seed(recipe.training.seed)
    model, processor = build.build_model(source.model, material.split.id2label, list(recipe.tasks), tokenizer)
    samples = {name: build.build_dataset(name, recipe, material, model.config) for name in recipe.tasks}
    first = next(iter(samples.values()))
    # A stream whose length is not known will do if the recipe counts in steps.
    counts_steps = recipe.training.steps is not None and recipe.optimization.warmup_steps is not None
    num_samples = 0 if counts_steps else len(first)
    total_steps = recipe.total_steps(num_samples)
    schedule = build.build_schedule(recipe, num_samples)
    if begin.earlier is not None:
        check_length(begin, output, total_steps, schedule, lambda: len(first))
    check_space(output, checkpoint_bytes(model, int(recipe.optimization.ema_decay is not None)))
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = build.build_optimizer(recipe, model)

    make_folder(output, "--output")
    accelerator = build.build_accelerator(recipe, output)
    if checkpoint is None:
        if accelerator.is_main_process:
            (output / BAD_SAMPLES).unlink(missing_ok=True)  # of a run that came to nothing
        accelerator.wait_for_everyone()
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
            accept_losses(material, data, output, recipe.data.max_bad)
            if accelerator.is_main_process:
                (output / BAD_SAMPLES).unlink(missing_ok=True)  # its numbers are no longer those of the samples
            accelerator.wait_for_everyone()
        if evaluation is not None and state["evaluation"] is not None:
            evaluation.state = state["evaluation"]
    elif accelerator.is_main_process and not material.is_stream:
        (output / PICTURES).write_text("\n".join(picture_digests(material.split.dataset)) + "\n")
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
        num_left_out=material.num_left_out,
    )
    is_shown = show_progress and accelerator.is_main_process
    bar = open_bar(total_steps, "step", is_shown=is_shown, initial=start)
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
                    watch.tell_others()
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


def accept_losses(material: build.Material, data: str | Path, output: Path, max_bad: float) -> None:
    r"""Let a run go on with data that lack some of the pictures it began with, and are the same in all else.

    That is how pictures are lost whose rows cannot be kept, see [`build.open_material`].

    Args:
        material ([`~build.Material`]): What it would go on with.
        data (`str` or `Path`): Where that comes from.
        output (`Path`): Its folder.
        max_bad (`float`): Share of the pictures that may be gone.
    Raises:
        ValueError: If they are more, or the data are not the same."""
    try:
        known = Counter((output / PICTURES).read_text().split())
    except FileNotFoundError:
        known = Counter()
    now = Counter() if material.is_stream else Counter(picture_digests(material.split.dataset))
    lost = (known - now).total()
    if now - known or not 0 < lost <= most_bad(max_bad, known.total()):
        gone, remedy = "", ""
        if lost and not now - known:
            gone = f" ({lost} of its {known.total()} pictures are gone)"
            remedy = f", or go on without them with a --max-bad of {math.ceil(1000 * lost / known.total()) / 1000}"
        elif known and now - known:
            gone = f" (pictures or annotations have changed or come: {(now - known).total()} of {now.total()})"
        raise ValueError(
            f"{data}: is not the data that {output} was trained on so far{gone}; choose another --output{remedy}"
        )
    logger.warning(
        "%s: %d of the %d pictures that %s began with are gone; it goes on without them, with its samples in another "
        "order", data, lost, known.total(), output,
    )  # fmt: skip


def check_length(
    begin: Start, output: Path, total_steps: int, schedule: Callable[[int], float], count: Callable[[], int]
) -> None:
    r"""Say that a run is prolonged, and what that means for the learning rate.

    Args:
        begin ([`Start`]): Of a run that goes on.
        output (`Path`): Its folder.
        total_steps (`int`): Its steps now.
        schedule (`Callable`): Its learning rates now.
        count (`Callable`): Returns the number of samples of the first task.
    Raises:
        ValueError: If it is to be shorter than it was."""
    counts_steps = begin.earlier.training.steps is not None and begin.earlier.optimization.warmup_steps is not None
    num_samples = 0 if counts_steps else count()
    steps = begin.earlier.total_steps(num_samples)
    if total_steps < steps:
        raise ValueError(
            f"{output}: its run has {steps} steps and {total_steps} are asked for: a run can be prolonged, not "
            "shortened; choose another --output"
        )
    if total_steps > steps:
        before = build.build_schedule(begin.earlier, num_samples)(min(begin.step, steps - 1))
        logger.warning(
            "%s: prolonged from %d to %d steps, goes on after step %d; from there the learning rate is that of a run "
            "of %d steps: %.2g, not %.2g",
            output, steps, total_steps, begin.step, total_steps, schedule(begin.step), before,
        )  # fmt: skip


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


def build_evaluation(
    recipe: Recipe, data: str | Path, output: Path, config: Any, accelerator: Accelerator
) -> Evaluation | None:
    """Open what the run is evaluated on, if the recipe names it."""
    settings = recipe.evaluation
    if settings.split is None:
        return None
    tasks = settings.tasks or list(recipe.tasks)
    split = build.open_evaluation_split(recipe, data, tasks, config)
    return Evaluation(settings, tasks, split, output, accelerator)
