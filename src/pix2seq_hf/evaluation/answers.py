r"""How a long evaluation survives: what is known of every picture, one line each, on disk as soon as it is known.

DIR/options.json        what the answers depend on; a run with others is refused
DIR/answers-00000.jsonl a line per picture, a file per process: `image_id`, `results`, `malformed`, `failure`
DIR/TASK.json           at the end: what was found, in COCO results format

A picture with a line is not asked about again, however many processes the next run has. One that could not be used is
tried again. Lines that a killed run left half-written are cut off.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pix2seq_hf.evaluation.predictions import Answer, Results

OPTIONS, LINES, LOCK = "options.json", "answers-*.jsonl", ".lock"


class AnswerFolder:
    r"""The answers of this run and of those that it continues.

    Every process opens the folder; it is [`prepare`]d once, by one of them, before.

    Args:
        folder (`str` or `Path`): As [`prepare`] left it.
        process (`int`): Number of this process.
    Raises:
        OSError: If it cannot be read or written.
        ValueError: If a line is not one of ours."""

    def __init__(self, folder: str | Path, process: int = 0):
        self.folder, self.process = Path(folder), process
        self.finished: dict[int, Answer] = {}
        for path in sorted(self.folder.glob(LINES)):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                known = _read_line(line, f"{path}, line {number}")
                if known.failure is None:
                    self.finished[known.image_id] = known
        self._file = None

    def write(self, found: Answer) -> None:
        """Add a line, and see to it that a killed run leaves it behind."""
        if self._file is None:
            path = self.folder / f"answers-{self.process:05}.jsonl"
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._file.write(json.dumps(found._asdict(), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing more is written."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    r"""Be the only run that writes into a folder, which is made if it is missing; the hold ends with the process.

    Raises:
        ValueError: If another run is writing there: each would undo what the other does."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"{folder}: another run is writing there; let it end, or choose another --output") from None
    try:
        yield
    finally:
        lock.release()


def prepare(folder: str | Path, options: Mapping[str, Any]) -> None:
    r"""Make a folder of answers, or get one ready to be continued.

    Args:
        folder (`str` or `Path`): Made if it is missing.
        options (`Mapping[str, Any]`): What the answers depend on.
    Raises:
        ValueError: If the folder has answers to another question; names the first option that differs."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    options = json.loads(json.dumps(dict(options)))
    path, files = folder / OPTIONS, sorted(folder.glob(LINES))
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            names = [*before, *(name for name in options if name not in before)]
        except (ValueError, TypeError):
            raise ValueError(f"{path}: does not say how the evaluation was begun; choose another --output") from None
        for name in names:
            if before.get(name) != options.get(name):
                raise ValueError(
                    f"{folder}: was begun with {name.replace('_', ' ')} {before.get(name)}, now it is "
                    f"{options.get(name)}: take the same, or another --output"
                )
    elif files:
        raise ValueError(f"{folder}: has answers, but no {OPTIONS} that says to what; choose another --output")
    for file in files:
        content = file.read_bytes()
        os.truncate(file, content.rfind(b"\n") + 1)
    write_whole(path, json.dumps(options, indent=2))


def write_results(folder: str | Path, results: Mapping[str, Results]) -> None:
    """Write what was found, one file in COCO results format per task."""
    for task, found in results.items():
        write_whole(Path(folder) / f"{task}.json", "[" + ",\n".join(map(json.dumps, found)) + "]")


def write_whole(path: str | Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = Path(path).with_name(f".{Path(path).name}.part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)


def _read_line(line: str, name: str) -> Answer:
    try:
        return Answer(**json.loads(line))
    except (ValueError, TypeError):
        raise ValueError(f"{name}: was not written by this command; choose another --output") from None
