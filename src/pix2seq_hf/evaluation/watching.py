r"""When is a checkpoint of a run evaluated: once, as soon as it is complete, until the run has ended.

RUN/evaluations.jsonl   a line per checkpoint: its step and numbers; what has a line is not evaluated again
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LINES = "evaluations.jsonl"


def watch(
    run: Path,
    evaluate: Callable[[int, Path], dict[str, Any]],
    find_damage: Callable[[Path], str | None],
    seconds: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    r"""Evaluate every checkpoint of a run, and wait for more, until its last step was evaluated.

    A checkpoint that the run deletes while it is read is named and passed over.

    Args:
        run (`Path`): Folder of the run; it need not exist yet.
        evaluate (`Callable`): Called with a step and a model folder; returns what the line of the step holds.
        find_damage (`Callable`): Says what a checkpoint lacks, `None` if it is complete.
        seconds (`float`): Between two looks at the folder.
        sleep (`Callable`): Waits for so many seconds.
    Returns:
        `int`: How many checkpoints were evaluated now."""
    finished, gone, number = set(read_steps(run)), set(), 0
    while True:
        for step, path in list_checkpoints(run):
            is_final = path.name == "final"
            if step in finished or path in gone or (not is_final and find_damage(path) is not None):
                continue
            try:
                line = {"step": step, **evaluate(step, path)}
            except Exception as error:  # what a file is to its reader that vanishes under him differs widely
                if path.exists() and (is_final or find_damage(path) is None):
                    raise
                print(f"step {step}: {path} vanished while it was read ({type(error).__name__})", file=sys.stderr)
                gone.add(path)
                continue
            with open(run / LINES, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            finished.add(step)
            number += 1
        if finished and max(finished) >= last_step(run):
            return number
        sleep(seconds)


def list_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders of a run's checkpoints, in their order; `final`, the model after the last step, is one."""
    found = {}
    for path in (run / "checkpoints").glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit():
            found[int(number)] = path
    facts = _read_json(run / "final" / "training.json")
    if isinstance(facts.get("step"), int):
        found[facts["step"]] = run / "final"
    return sorted(found.items())


def last_step(run: Path) -> float:
    """The step at which a run ends: that of its final model if there is one, else what `run.json` announces."""
    for path, name in ((run / "final" / "training.json", "step"), (run / "run.json", "total_steps")):
        step = _read_json(path).get(name)
        if isinstance(step, int):
            return step
    return float("inf")


def read_steps(run: Path) -> Iterator[int]:
    """Steps that have a line; one that was cut off when its writer was killed is taken out of the file."""
    path = run / LINES
    if not path.is_file():
        return
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            yield int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number}: is no evaluation of a checkpoint; move the file away") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
