"""What is in the folder of a run: who trains there now, whether a run goes on, and what may differ then."""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from pix2seq_hf.outputs import make_folder
from pix2seq_hf.training.arguments import Recipe, load_recipe
from pix2seq_hf.training.checkpoints import find_checkpoint

logger = logging.getLogger(__name__)

# What a resumed run may change: it decides what is shown and kept, not what the weights become.
FREE_SETTINGS = (
    "data.keep_pictures", "data.max_bad", "data.num_workers", "evaluation.",
    "training.checkpoint_steps", "training.keep_checkpoints", "training.log_steps", "training.log_with",
)  # fmt: skip
LENGTHS = ("training.steps", "training.epochs")  # which may grow
LOCK, HOLDER = "run.lock", "run.holder"
SECONDS_FOR_WORKERS = 30  # of a killed process, which hold the lock until they notice


class Start(NamedTuple):
    r"""Where a run starts.

    Args:
        step (`int`): Steps already done.
        checkpoint (`Path`, *optional*): What it goes on from.
        earlier ([`Recipe`], *optional*): The settings so far, if it goes on.
        is_finished (`bool`): Whether nothing is left to do."""

    step: int = 0
    checkpoint: Path | None = None
    earlier: Recipe | None = None
    is_finished: bool = False


@contextlib.contextmanager
def hold(output: Path) -> Iterator[None]:
    r"""Be the only run of a folder, which is made; of several processes the first one holds it for all.

    The hold ends with the process, however that ends. A folder into which nothing was written is removed again.

    Args:
        output (`Path`): Folder of the run.
    Raises:
        OSError: If nothing can be written there.
        ValueError: If another run is going on there; says whose."""
    if int(os.environ.get("RANK", "0")):
        yield
        return
    make_folder(output, "--output")
    lock, holder = FileLock(output / LOCK), output / HOLDER
    try:
        lock.acquire(timeout=SECONDS_FOR_WORKERS if _is_dead(holder) else 0)
    except Timeout:
        raise ValueError(
            f"{output}: {_describe(holder)} is training there: wait for its end or choose another --output"
        ) from None
    try:
        me = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        holder.write_text(json.dumps(me) + "\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
        if [path.name for path in output.iterdir()] in ([], [LOCK]):
            (output / LOCK).unlink(missing_ok=True)
            output.rmdir()


def find_start(recipe: Recipe, output: Path, resume: bool | None) -> Start:
    r"""Decide where a run starts.

    Args:
        recipe ([`Recipe`]): Of this run.
        output (`Path`): Folder of the run.
        resume (`bool`, *optional*): Whether to continue what is there; `False` refuses it.
    Returns:
        [`Start`]. A run that has no checkpoint yet is started anew, with a word.
    Raises:
        ValueError: If there is no run and `resume` is `True`, there is one and `resume` is `False`, it had other
            settings, or it is finished and other evaluations are asked for."""
    recipe_file, checkpoints = output / "recipe.yaml", output / "checkpoints"
    is_finished = (output / "final/config.json").is_file()
    has_checkpoints = any(checkpoints.glob("step-*"))
    if not recipe_file.is_file() or not (is_finished or has_checkpoints):
        if resume and not recipe_file.is_file():
            raise ValueError(f"{output}: has no run that --resume could go on with; leave out --resume to begin one")
        if recipe_file.is_file():
            logger.warning("%s: has no checkpoint to go on from: starts at step 0", output)
        return Start()
    if resume is False:
        raise ValueError(f"{output}: has a run already; continue it with --resume or choose another --output")
    earlier = load_recipe(recipe_file)
    changed = find_changes(earlier, recipe.with_split(earlier.data.split))
    barred = [name for name in changed if not name.startswith((*FREE_SETTINGS, *LENGTHS))]
    if barred:
        raise ValueError(
            f"{output}: has a run that cannot be continued, {_list_changes(changed, barred)}; choose another --output"
        )
    if is_finished and not set(LENGTHS) & set(changed):
        asked = [name for name in changed if name.startswith("evaluation.")]
        if asked:
            raise ValueError(
                f"{output}: the run is finished and nothing was done, but {_list_changes(changed, asked)}; measure "
                f"{output / 'final'} with pix2seq evaluate, or choose another --output"
            )
        return Start(earlier=earlier, is_finished=True)
    step, checkpoint = find_checkpoint(checkpoints)
    if checkpoint is None and is_finished:
        raise ValueError(
            f"{output}: the run is finished and has no checkpoint from which it could be prolonged; choose another "
            f"--output, with model.pretrained={output / 'final'} to begin with its weights"
        )
    if checkpoint is None:
        logger.warning("%s: none of the checkpoints can be used: starts at step 0", output)
        return Start()
    return Start(step, checkpoint, earlier)


def find_changes(earlier: Recipe, current: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two recipes, by name: what they were and what they are."""
    before, now = (_flatten(dataclasses.asdict(recipe)) for recipe in (earlier, current))
    return {
        name: (before.get(name), now.get(name))
        for name in (*now, *(name for name in before if name not in now))
        if before.get(name) != now.get(name)
    }


def _list_changes(changed: Mapping[str, tuple[Any, Any]], names: list[str]) -> str:
    return ", ".join(f"{name} was {changed[name][0]!r} and is {changed[name][1]!r} now" for name in names)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"section.name": value}`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _read_holder(holder: Path) -> dict[str, Any]:
    try:
        return json.loads(holder.read_text())
    except (OSError, ValueError):
        return {}


def _describe(holder: Path) -> str:
    """Who holds a folder, as far as it is known."""
    found = _read_holder(holder)
    if not found:
        return "another process"
    return "process {process} on {host}, since {since},".format(**found)


def _is_dead(holder: Path) -> bool:
    """Whether the process that says it holds a folder was one of this machine, and is no more."""
    found = _read_holder(holder)
    if not found or found["host"] != socket.gethostname():
        return False
    try:
        os.kill(found["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
