"""What a run was: `run.json`, with what somebody needs who wants to repeat it a year later."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch

import pix2seq_hf

LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "numpy", "pillow")


class RunInfo:
    r"""The file `run.json` of a run; rewritten as a whole whenever something is noted.

    Args:
        path (`Path`): The file; what it holds already is kept.
        is_written (`bool`): Whether this process writes it: the main process does."""

    def __init__(self, path: Path, is_written: bool = True):
        self.path, self.is_written = path, is_written
        try:
            self.content: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            self.content = {}

    def note(self, **entries: Any) -> None:
        """Set entries."""
        self.content.update(entries)
        self._write()

    def note_start(self, step: int, num_processes: int, device: str) -> None:
        """Add one start of the run, from `step` on."""
        self.content.setdefault("starts", []).append(
            {
                "step": step,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": sys.argv,
                "num_processes": num_processes,
                "device": device,
                "versions": versions(),
                "git_commit": git_commit(),
            }
        )
        self._write()

    def note_end(self, step: int, reason: str) -> None:
        """Say of the last start where and why it ended."""
        self.content["starts"][-1] |= {
            "end_step": step, "end": reason, "end_time": time.strftime("%Y-%m-%dT%H:%M:%S%z")
        }  # fmt: skip
        self._write()

    def _write(self) -> None:
        if not self.is_written:
            return
        unfinished = self.path.with_suffix(".unfinished")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(self.content, indent=2, default=str) + "\n")
        os.replace(unfinished, self.path)


def versions() -> dict[str, str]:
    """Versions of this package, the libraries that results depend on, Python and the system."""
    found = {"pix2seq_hf": pix2seq_hf.__version__, "python": platform.python_version(), "system": platform.platform()}
    for name in LIBRARIES:
        found[name] = importlib.metadata.version(name)
    if torch.cuda.is_available():
        found |= {"cuda": torch.version.cuda, "device": torch.cuda.get_device_name()}
    return found


def git_commit() -> str | None:
    """The commit that the package's source is at, with "+changes" if files differ from it; `None` outside of git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit or git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # installed inside somebody else's repository
    return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no", ".") else commit


def data_fingerprint(rows: Any) -> str:
    r"""A number for the annotations of a data set: equal annotations in equal order have the same, wherever they lie.

    Args:
        rows (`datasets.Dataset`): As in [`~data.rows.Split`]; pictures count by their id, not by their pixels.
    Returns:
        `str`: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for batch in rows.remove_columns("image").with_format("arrow").iter(batch_size=1000):
        for name in sorted(batch.column_names):
            digest.update(json.dumps([name, batch.column(name).to_pylist()]).encode())
    return digest.hexdigest()[:16]


def picture_digests(rows: Any) -> list[str]:
    r"""A short number for what is annotated of every picture, by which it is found again when others are gone.

    Args:
        rows (`datasets.Dataset`): As in [`~data.rows.Split`]; ids do not count, since they may follow from the order.
    Returns:
        `list[str]`: 8 hexadecimal digits for every row."""
    names = [name for name in ("image_size", "boxes_yxyx", "labels", "captions") if name in rows.column_names]
    found = []
    for batch in rows.select_columns(names).with_format("arrow").iter(batch_size=1000):
        found += [f"{zlib.crc32(json.dumps(row).encode()):08x}" for row in batch.to_pylist()]
    return found
