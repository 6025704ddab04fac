"""What a run says about itself while it lasts, and when it must stop: losses, speed, memory, bad pictures."""

import fcntl
import json
import logging
import math
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

logger = logging.getLogger(__name__)

BAD_SAMPLES = "bad_samples.txt"
LIST_HEADER = "task\tsample\treason\n"


class TaskStep(NamedTuple):
    r"""What one step did for one task, in this process.

    Args:
        loss (`torch.Tensor`): Its share of the loss, before the task's weight.
        batches (`Sequence[dict[str, torch.Tensor]]`): What went into the model, part after part.
        rows (`torch.LongTensor` of shape `(batch,)`): Rows of the data set.
        is_bad (`torch.BoolTensor` of shape `(batch,)`): Samples that could not be used."""

    loss: torch.Tensor
    batches: Sequence[Mapping[str, torch.Tensor]]
    rows: torch.Tensor
    is_bad: torch.Tensor


def most_bad(max_bad: float, num_samples: int) -> int:
    r"""How many samples may be unusable before a run stops.

    Args:
        max_bad (`float`): Share of the samples; it is rounded down.
        num_samples (`int`): Of a task or a data set.
    Returns:
        `int`: At least 1, so that one bad picture stops no run, unless `max_bad` is 0."""
    return max(math.floor(max_bad * num_samples + 1e-9), 1) if max_bad else 0


class Watch:
    r"""Looks at every step and stops a run that has gone wrong.

    It looks at a step when the next one has been started, so that the device never waits for it.

    Args:
        folder (`Path`): Folder of the run: `failed/` gets the batch of a step that went wrong, `bad_samples.txt` a line
            for every sample that was left out: task, number among the task's samples, what is wrong with which file.
        datasets (`Mapping[str, RecordDataset]`): Of every task, to name samples.
        prepare (`Mapping[str, Callable]`): [`~data.collation.TrainingCollator.prepare`] of every task, to say what is
            wrong with a sample.
        guessing_loss (`float`): The loss of a model that knows nothing.
        max_loss_factor (`float`): How many times that, or the loss of the first step, is too much.
        max_bad (`float`): Share of a task's samples that may be bad, see [`most_bad`].
        process (`int`): Number of this process, for file names; the first one says what others found.
        num_left_out (`int`): Pictures that were left out before, which count as bad ones of every task."""

    def __init__(
        self,
        folder: Path,
        datasets: Mapping[str, Any],
        prepare: Mapping[str, Callable[..., Any]],
        guessing_loss: float,
        max_loss_factor: float,
        max_bad: float,
        process: int = 0,
        num_left_out: int = 0,
    ):
        self.folder, self.datasets, self.prepare, self.process = folder, datasets, prepare, process
        self.guessing_loss, self.max_loss_factor, self.max_bad = guessing_loss, max_loss_factor, max_bad
        self.num_left_out = num_left_out
        self.bad: dict[str, dict[int, str]] = {name: {} for name in datasets}
        self.limits: dict[str, float] = {}
        self._list, self._list_size = folder / BAD_SAMPLES, 0
        self.read_list()  # of the same run, before it was interrupted
        self._waiting: tuple[int, Mapping[str, TaskStep]] | None = None

    @property
    def num_bad(self) -> int:
        """Samples that were left out so far, each counted once, those that other processes found too."""
        return sum(map(len, self.bad.values()))

    def read_list(self) -> dict[tuple[str, int], str]:
        """Take over what stands in `bad_samples.txt`, and return what was new."""
        try:
            if self._list.stat().st_size == self._list_size:
                return {}
            text = self._list.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        self._list_size, new = len(text.encode()), {}
        for line in text.splitlines()[1:]:
            name, _, rest = line.partition("\t")
            row, _, reason = rest.partition("\t")
            if name in self.bad and row.isdecimal() and int(row) not in self.bad[name]:  # a kill cuts the last line
                self.bad[name][int(row)] = new[name, int(row)] = reason
        return new

    def tell_others(self) -> None:
        """Let the first process say what the others have left out since the last time."""
        for (name, _), reason in self.read_list().items():
            if self.process == 0:
                logger.warning("%s: left out: %s", name, reason)

    def look(self, step: int, tasks: Mapping[str, TaskStep]) -> None:
        """Take in a step, and judge the one before."""
        waiting, self._waiting = self._waiting, (step, tasks)
        self._judge(waiting)

    def finish(self) -> None:
        """Judge the last step."""
        waiting, self._waiting = self._waiting, None
        self._judge(waiting)

    def _judge(self, waiting: tuple[int, Mapping[str, TaskStep]] | None) -> None:
        if waiting is None:
            return
        step, tasks = waiting
        for name, task in tasks.items():
            if task.is_bad.any():
                self._note_bad(name, task.rows[task.is_bad].tolist())
            loss = task.loss.item()
            limit = self.limits.setdefault(name, self.max_loss_factor * max(self.guessing_loss, loss))
            if not math.isfinite(loss) or loss > limit:
                self._stop(step, name, task, loss)

    def _note_bad(self, name: str, rows: Sequence[int]) -> None:
        with open(self._list, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the file is what the processes share: each sample has one line in it
            self.tell_others()
            if not self._list_size:
                file.write(LIST_HEADER)
            for row in rows:
                if row in self.bad[name]:
                    continue
                reason = " ".join(self.datasets[name].describe(row, self.prepare[name]).split())
                self.bad[name][row] = reason
                file.write(f"{name}\t{row}\t{reason}\n")
                if self.process == 0:
                    logger.warning("%s: left out: %s", name, reason)
            file.flush()
            self._list_size = os.fstat(file.fileno()).st_size
        num_rows, num_bad = self.datasets[name].num_samples, len(self.bad[name]) + self.num_left_out
        if num_rows is not None and num_bad > most_bad(self.max_bad, num_rows + self.num_left_out):
            raise ValueError(
                f"{num_bad} of the {num_rows + self.num_left_out} samples of {name} cannot be used, more than "
                f"data.max_bad {self.max_bad:g}; the last: {[*self.bad[name].values()][-1]}; all are in {self._list}"
            )

    def _stop(self, step: int, name: str, task: TaskStep, loss: float) -> None:
        dataset, rows = self.datasets[name], task.rows.tolist()
        ids = [dataset.image_id(row) for row in rows]
        path = self.folder / "failed" / f"step-{step}-{name}-{self.process}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{part}/{key}": value.detach().cpu().contiguous()
            for part, batch in enumerate(task.batches)
            for key, value in batch.items()
        }
        facts = {"step": step, "task": name, "loss": loss, "rows": rows, "image_ids": ids}
        save_file(tensors, path, metadata={key: json.dumps(value) for key, value in facts.items()})
        shown = ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        what = "is not finite" if not math.isfinite(loss) else f"is above {self.limits[name]:.4g}"
        raise ValueError(
            f"step {step}: the loss of {name} is {loss:.4g}, which {what}; pictures {shown}; the batch is in {path}; "
            "start anew with a lower optimization.learning_rate, a longer warm-up, or optimization.max_grad_norm"
        )


class Meter:
    r"""Collects losses and time between two log entries.

    Args:
        batch_size (`int`): Samples per step, over all tasks and processes.
        task_weights (`Mapping[str, float]`): Weight of every task's loss."""

    def __init__(self, batch_size: int, task_weights: Mapping[str, float]):
        self.batch_size, self.task_weights = batch_size, task_weights
        self._losses: list[torch.Tensor] = []
        self._since = time.perf_counter()
        self._paused = 0.0

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Take in the losses of a step, without waiting for the device."""
        self._losses.append(torch.stack([losses[name] for name in self.task_weights]))

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self._paused += seconds

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means since the last reading, and start again; every process calls it."""
        means = accelerator.reduce(torch.stack(self._losses).mean(0), reduction="mean").tolist()
        losses = dict(zip(self.task_weights, means, strict=True))
        now = time.perf_counter()
        pictures_per_second = len(self._losses) * self.batch_size / max(now - self._since - self._paused, 1e-9)
        self._losses, self._since, self._paused = [], now, 0.0
        values = {"loss": sum(self.task_weights[name] * loss for name, loss in losses.items())}
        if len(losses) > 1:
            values |= {f"loss/{name}": loss for name, loss in losses.items()}
        return {**values, "pictures_per_second": pictures_per_second, "memory_gb": used_memory() / 1e9}


def used_memory() -> int:
    """The most bytes in use so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


SHORT_NAMES = {
    "object_detection": "boxes",
    "instance_segmentation": "masks",
    "keypoint_detection": "keypoints",
    "captioning": "captions",
}


def progress_text(values: Mapping[str, float]) -> str:
    """What stands behind the progress bar."""
    parts = [f"loss {values['loss']:.3f}"]
    tasks = [f"{SHORT_NAMES[key[5:]]} {value:.2f}" for key, value in values.items() if key.startswith("loss/")]
    if tasks:
        parts[0] += f" ({', '.join(tasks)})"
    parts += [f"lr {values['learning_rate']:.1e}", f"{values['pictures_per_second']:.1f} pictures/s"]
    parts += [f"{values['memory_gb']:.1f} GB"]
    if values.get("bad_samples"):
        parts.append(f"{values['bad_samples']:.0f} bad")
    return ", ".join(parts)
