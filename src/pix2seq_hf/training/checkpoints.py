r"""How does a run survive: checkpoints that are complete or not there, and what a run folder has been.

A checkpoint is written to `unfinished-N`, given a list of its files with their sizes, forced to the disk and only then
renamed to `step-N`. One whose files do not have those sizes is passed over, with a word, for the one before.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

logger = logging.getLogger(__name__)

LIST_OF_FILES = "complete.json"
STATE_FILE = "run_state.json"
AVERAGE_FILE = "average.safetensors"
FAILURES = (OSError, RuntimeError, SafetensorError)  # what a full disk is to Python, to torch and to safetensors


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    keep: int,
    average: torch.nn.Module | None = None,
    companions: Iterable[Any] = (),
) -> Path | None:
    r"""Save the whole state of a run; every process calls it.

    Args:
        accelerator (`Accelerator`): Saves model, optimiser, random states and what was registered with it.
        folder (`Path`): Folder of the checkpoints.
        step (`int`): Optimiser steps that were done.
        state (`Mapping`): Whatever JSON can hold; [`load_checkpoint`] returns it.
        keep (`int`): How many checkpoints are left afterwards: the last.
        average (`torch.nn.Module`, *optional*): Averaged weights, to be saved too.
        companions (`Iterable`): What is saved by its `save_pretrained`, so that `from_pretrained` takes a checkpoint.
    Returns:
        `Path`: The checkpoint, or `None` if it could not be written (a full disk): that is logged, and the earlier
        checkpoints stand."""
    unfinished, finished = folder / f"unfinished-{step}", folder / f"step-{step}"
    if accelerator.is_main_process:
        for path in (unfinished, finished):
            shutil.rmtree(path, ignore_errors=True)
    accelerator.wait_for_everyone()
    # Says at every checkpoint that tied weights are stored once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    failure = None
    try:
        accelerator.save_state(str(unfinished))
    except FAILURES as error:
        failure = error
    if _any_process(accelerator, failure is not None):
        _give_up(accelerator, unfinished, step, failure)
        return None
    if accelerator.is_main_process:
        try:
            (unfinished / STATE_FILE).write_text(json.dumps(dict(state), indent=2) + "\n")
            for companion in companions:
                companion.save_pretrained(unfinished)
            if average is not None:
                save_model(average, str(unfinished / AVERAGE_FILE))
            _finish(unfinished, finished)
        except FAILURES as error:
            failure = error
    if _any_process(accelerator, failure is not None):
        _give_up(accelerator, unfinished, step, failure)
        return None
    if accelerator.is_main_process:
        later = [(old, path) for old, path in _numbered(folder) if old > step]  # damaged: the run began before them
        for _, path in (*later, *sorted(set(_numbered(folder)) - set(later))[:-keep]):
            shutil.rmtree(path, ignore_errors=True)
    return finished


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, average: torch.nn.Module | None = None
) -> dict[str, Any]:
    """Put everything back that [`save_checkpoint`] saved, and return its `state`."""
    accelerator.load_state(str(checkpoint))
    if average is not None:
        load_model(average, checkpoint / AVERAGE_FILE)
    return json.loads((checkpoint / STATE_FILE).read_text())


def find_checkpoint(folder: Path) -> tuple[int, Path | None]:
    r"""Find the last complete checkpoint.

    Args:
        folder (`Path`): Folder of the checkpoints; it need not exist.
    Returns:
        `tuple[int, Path | None]`: Steps that were done, and the checkpoint; 0 and `None` if there is none. What is
        passed over is logged."""
    for step, path in sorted(_numbered(folder), reverse=True):
        reason = find_damage(path)
        if reason is None:
            return step, path
        logger.warning("%s: passed over, %s", path, reason)
    return 0, None


def find_damage(checkpoint: Path) -> str | None:
    """Say what a checkpoint lacks, or return `None` if it is complete."""
    try:
        sizes = json.loads((checkpoint / LIST_OF_FILES).read_text())
    except (OSError, ValueError):
        return f"it is unfinished (no readable {LIST_OF_FILES})"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
    return None


def checkpoint_bytes(model: torch.nn.Module, num_averages: int = 0) -> int:
    """About how large a checkpoint is: weights, two moments of each, and averages of all of them."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) * (3 + num_averages)


def check_space(folder: Path, needed: int) -> None:
    r"""Refuse to start where not even one checkpoint can be saved beside the one it replaces.

    Args:
        folder (`Path`): Of the run; it need not exist.
        needed (`int`): Bytes of a checkpoint.
    Raises:
        OSError: If less than two checkpoints fit."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < 2 * needed:
        raise OSError(
            f"{folder}: {free / 1e9:.1f} GB are free on its disk, two checkpoints need {2 * needed / 1e9:.1f} GB: "
            "make room or choose another --output"
        )


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of what is named like a checkpoint."""
    numbers = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    return [(int(number), path) for number, path in numbers if number.isdigit()]


def _finish(unfinished: Path, finished: Path) -> None:
    """List the files, force them to the disk, give the folder its name."""
    files = [path for path in sorted(unfinished.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(unfinished)): path.stat().st_size for path in files}
    (unfinished / LIST_OF_FILES).write_text(json.dumps(sizes, indent=2) + "\n")
    for path in (*files, unfinished / LIST_OF_FILES, unfinished):
        _sync(path)
    os.rename(unfinished, finished)
    _sync(finished.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process; all of them call it."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum").item())


def _give_up(accelerator: Accelerator, unfinished: Path, step: int, failure: Exception | None) -> None:
    if failure is not None or accelerator.is_main_process:
        reason = str(failure or "by another process").splitlines()[0]
        logger.warning(
            "step %d: the checkpoint could not be saved (%s); the earlier ones stand, the run goes on", step, reason
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
