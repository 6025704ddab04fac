"""How a run looks at itself: numbers on a validation split, pictures in the log, the best model, an early end."""

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pix2seq_hf.data.rows import Split
from pix2seq_hf.evaluation.measure import Share, measure, score
from pix2seq_hf.evaluation.predictions import Question, annotated_boxes
from pix2seq_hf.training.arguments import EvaluationArguments
from pix2seq_hf.training.samples import draw_samples

logger = logging.getLogger(__name__)

DEFAULT_METRICS = {
    "object_detection": "AP",
    "instance_segmentation": "AP",
    "keypoint_detection": "AP",
    "captioning": "reproduced",
}


class Evaluation:
    r"""Evaluates a model in the middle of its training, and remembers the best.

    Args:
        settings ([`EvaluationArguments`]): When and what.
        tasks (`list[str]`): What is measured.
        split ([`Split`]): On which pictures.
        folder (`Path`): Of the run; `best/` in it holds the best model.
        accelerator (`Accelerator`): Shares out the pictures, and logs.
    Raises:
        ValueError: If `settings.metric` is none of the numbers that there are."""

    def __init__(
        self,
        settings: EvaluationArguments,
        tasks: list[str],
        split: Split,
        folder: Path,
        accelerator: Accelerator,
    ):
        self.settings, self.tasks, self.split, self.folder = settings, tasks, split, folder
        self.accelerator = accelerator
        self.question = Question(
            tasks,
            boxes=annotated_boxes(split.annotations) if settings.boxes == "annotated" else None,
            generation={"captioning": {"do_sample": False}},
        )
        self.metric = settings.metric or f"{tasks[0]}/{DEFAULT_METRICS[tasks[0]]}"
        if settings.metric is not None:
            check_metric(settings.metric, tasks, split)
        self.state: dict[str, Any] = {"best": None, "best_step": None, "num_worse": 0, "last_step": None}

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether there is an evaluation after `step` steps."""
        return step % self.settings.steps == 0 or step == total_steps

    def is_missed(self, step: int, total_steps: int) -> bool:
        """Whether a run that goes on after `step` steps was ended before their evaluation."""
        return self.is_due(step, total_steps) and self.state["last_step"] != step

    @property
    def is_hopeless(self) -> bool:
        """Whether patience is at its end."""
        return self.settings.patience is not None and self.state["num_worse"] >= self.settings.patience

    def run(self, step: int, model: torch.nn.Module, processor: Any) -> dict[str, float]:
        r"""Evaluate; every process calls it. The random states of the training are left as they were.

        Args:
            step (`int`): Steps that were done.
            model (`Pix2SeqForConditionalGeneration`): Not wrapped.
            processor (`Pix2SeqProcessor`): That of the model.
        Returns:
            `dict[str, float]`: Metrics as `TASK/NAME`, and the pictures per second."""
        accelerator, was_training = self.accelerator, model.training
        share = Share(accelerator.process_index, accelerator.num_processes, gather_object)
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        start = time.perf_counter()
        model.eval()
        with torch.random.fork_rng(devices), torch.no_grad():
            measured = measure(
                model, processor, self.split, self.question, batch_size=self.settings.batch_size, share=share
            )
        numbers, results = measured.numbers, measured.results
        for image_id, reason in measured.failures.items():
            logger.warning("evaluation: picture %s could not be used: %s", image_id, reason)
        model.train(was_training)
        values = {f"{task}/{name}": value for task, found in numbers.items() for name, value in found.items()}
        seconds = time.perf_counter() - start
        values["evaluation/pictures_per_second"] = len(self.split.dataset) / seconds
        self._compare(step, values[self.metric], model, processor)
        accelerator.log(values, step=step)
        if accelerator.is_main_process and self.settings.num_pictures:
            pictures = draw_samples(self.split, results, self.settings.num_pictures, model.config)
            for tracker in accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    log_pictures(tracker, pictures, step)
        return values

    def _compare(self, step: int, value: float, model: torch.nn.Module, processor: Any) -> None:
        best = self.state["best"]
        if best is not None and value <= best:
            self.state |= {"num_worse": self.state["num_worse"] + 1, "last_step": step}
            return
        self.state = {"best": float(value), "best_step": step, "num_worse": 0, "last_step": step}
        if self.accelerator.is_main_process:
            save_beside(model, processor, self.folder / "best", {"step": step, self.metric: float(value)})


def check_metric(metric: str, tasks: Sequence[str], split: Split) -> None:
    """Raise a ValueError, with all that there are, if `metric` is no number that evaluation gives for these tasks."""
    values = score(split, {task: [] for task in tasks})
    known = [f"{task}/{name}" for task in tasks for name in (*values[task], "num_malformed")]
    if metric not in known:
        raise ValueError(f"evaluation.metric {metric!r}: there are {', '.join(known)}")


def log_pictures(tracker: Any, pictures: Mapping[str, Any], step: int) -> None:
    """Hand pictures (PIL) to a tracker of Accelerate, which have different ideas of pictures."""
    import numpy as np

    if tracker.name == "tensorboard":
        tracker.log_images({name: np.asarray(picture) for name, picture in pictures.items()}, step, dataformats="HWC")
    else:
        tracker.log_images({name: [picture] for name, picture in pictures.items()}, step=step)


def save_beside(model: torch.nn.Module, processor: Any, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Save what `from_pretrained` needs; the folder of the same name is replaced when it is complete."""
    unfinished, replaced = (folder.with_name(f"{folder.name}.{word}") for word in ("unfinished", "replaced"))
    for path in (unfinished, replaced):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    if facts is not None:
        (unfinished / "training.json").write_text(json.dumps(dict(facts), indent=2) + "\n")
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(unfinished, folder)
    shutil.rmtree(replaced, ignore_errors=True)
