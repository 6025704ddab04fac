"""Where uploads and results of the web page are: one folder that only its owner can read, emptied as time goes by."""

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder that nobody else can look into; it is deleted at the end with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="pix2seq-app-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def delete_old(folder: Path, seconds: float, kept: frozenset[Path] = frozenset()) -> int:
    r"""Delete files that nobody has used for some time, and folders that are empty then.

    Args:
        folder (`Path`): Itself it is never deleted.
        seconds (`float`): Since a file was last written or used.
        kept (`frozenset[Path]`): Files that stay, however old.
    Returns:
        `int`: How many files were deleted."""
    count, before = 0, time.time() - seconds
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            try:
                if path not in kept and path.lstat().st_mtime < before:
                    path.unlink()
                    count += 1
            except OSError:  # somebody else was faster
                continue
        for name in folders:
            path = Path(parent, name)
            try:
                if not any(path.iterdir()) and path.lstat().st_mtime < before:
                    path.rmdir()
            except OSError:
                continue
    return count


@contextmanager
def swept(folder: Path, minutes: float) -> Iterator[None]:
    """Delete what nobody has used for `minutes` while the context lasts; what is there now stays."""
    kept = frozenset(path for path in folder.rglob("*") if path.is_file())
    is_over = threading.Event()

    def sweep():
        while not is_over.wait(max(0.1, min(60.0, 15 * minutes))):
            delete_old(folder, 60 * minutes, kept)

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class Visit:
    r"""What one visitor has: a folder for results, and a sign to stop.

    Args:
        folder (`Path`): Made now; its name cannot be guessed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stop = threading.Event()

    def new_folder(self) -> Path:
        """A folder for the results of one request."""
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir(parents=True)
        return folder


class Visits:
    r"""All visitors that are there.

    Args:
        folder (`Path`): Where results go."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.visits: dict[str, Visit] = {}
        self.lock = threading.Lock()

    def begin(self, key: str) -> Visit:
        """Begin a request of a visitor; what the same one asked for before is stopped."""
        with self.lock:
            visit = self.visits.get(key)
            if visit is None:
                visit = self.visits[key] = Visit(self.folder / secrets.token_hex(16))
            visit.stop.set()
            visit.stop = threading.Event()
            return visit

    def stop(self, key: str):
        """Stop what a visitor has asked for."""
        with self.lock:
            if key in self.visits:
                self.visits[key].stop.set()

    def leave(self, key: str):
        """A visitor has gone: stop, and delete the results."""
        with self.lock:
            visit = self.visits.pop(key, None)
        if visit is not None:
            visit.stop.set()
            shutil.rmtree(visit.folder, ignore_errors=True)
