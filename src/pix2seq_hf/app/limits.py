"""What visitors of the web page may ask for: how large, how many, how long; and what they read when it is too much."""

import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from pix2seq_hf.data.pictures import PictureError, load_picture

LONGEST_NAME = 80  # letters of a file's name


@dataclass(frozen=True)
class Limits:
    r"""What a visitor may ask for.

    Args:
        max_megabytes (`float`): Of one file.
        max_megapixels (`float`): Of one picture, said by its header, before anything is decoded.
        max_files (`int`): Pictures in one batch.
        max_waiting (`int`): Requests that wait; one runs.
        max_seconds (`float`): That one picture may take.
        keep_minutes (`float`): After which uploads and results that nobody uses are deleted.
    Raises:
        ValueError: If a number is not above 0."""

    max_megabytes: float = 20
    max_megapixels: float = 25
    max_files: int = 32
    max_waiting: int = 8
    max_seconds: float = 120
    keep_minutes: float = 30

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} {value}: must be above 0")

    @property
    def max_bytes(self) -> int:
        """Of one file."""
        return int(self.max_megabytes * 2**20)  # as gradio counts when it says what is too large

    @property
    def max_pixels(self) -> int:
        """Of one picture."""
        return int(self.max_megapixels * 1_000_000)

    def __str__(self) -> str:
        return f"at most {self.max_megabytes:g} MB and {self.max_megapixels:g} million pixels each"


class StoppedError(RuntimeError):
    """Raised inside of `generate` when a run must not go on; the message is for the visitor."""


class Watch:
    r"""Decides whether a run goes on. As a streamer of `generate` it does so at every token.

    Args:
        max_seconds (`float`): From now on.
        stop (`threading.Event`, *optional*): Set when the visitor has had enough."""

    def __init__(self, max_seconds: float, stop: threading.Event | None = None):
        self.max_seconds, self.stop = max_seconds, threading.Event() if stop is None else stop
        self.end_time = time.monotonic() + max_seconds

    def check(self):
        """Raise StoppedError if the run must end."""
        if self.stop.is_set():
            raise StoppedError("Stopped.")
        if time.monotonic() > self.end_time:
            raise StoppedError(
                f"The limit of {self.max_seconds:g} s per picture is over. Choose fewer tasks or classes, or fewer "
                "outlines per object."
            )

    def put(self, value):
        """Take the next tokens; `generate` calls this."""
        self.check()

    def end(self):
        """`generate` calls this at its end."""


def readable_name(name: str | None) -> str:
    """The name of a visitor's file, without folders and signs that a file or a page could take for something else."""
    name = PurePath((name or "").replace("\\", "/")).name
    name = re.sub(r"[^\w.() -]+", "_", name).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    return (f"{stem[: LONGEST_NAME - 8]}{dot}{suffix[:7]}" if dot else name[:LONGEST_NAME]) or "picture"


def read_upload(path: str, name: str, limits: Limits) -> Image.Image:
    r"""Decode an uploaded picture.

    Args:
        path (`str`): Where it is.
        name (`str`): What the visitor calls it.
        limits ([`Limits`]): How large it may be.
    Returns:
        `PIL.Image.Image`: Upright, RGB.
    Raises:
        PictureError: One line that begins with its name: it is too large, broken, or not there any more."""
    try:
        size = os.stat(path).st_size
        os.utime(path)  # it is used: its time begins anew
    except OSError:
        raise PictureError(f"{name}: was deleted after {limits.keep_minutes:g} minutes; upload it again") from None
    if size > limits.max_bytes:
        raise PictureError(f"{name}: has {size / 2**20:.1f} MB, the limit is {limits.max_megabytes:g} MB")
    return load_picture(Path(path).read_bytes(), limits.max_pixels, name)  # messages know no path then


def check_number_of_files(files: Sequence, limits: Limits):
    """Raise ValueError for a batch of no or too many files."""
    if not files:
        raise ValueError("Choose some pictures first.")
    if len(files) > limits.max_files:
        raise ValueError(f"{len(files)} files were chosen, the limit is {limits.max_files} at once.")
