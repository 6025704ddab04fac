"""What does a command write: can it be written, found out before the work, and the form of what machines read."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

_made: list[Path] = []  # folders that were not there before


def make_folder(path: str | os.PathLike, option: str) -> Path:
    r"""Make a folder that will be written into.

    Args:
        path (`str | os.PathLike`): The folder; it may be there.
        option (`str`): Which option names it, for the message.
    Returns:
        `Path`: The folder.
    Raises:
        OSError: If it cannot be made, or nothing can be written into it."""
    path = Path(path)
    _made.extend(each for each in (path, *path.parents) if not os.path.lexists(each))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_empty_folders()
        reason = "a file is in its place" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise OSError(f"{path}: the folder cannot be made ({reason}); choose another {option}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: cannot be written; choose another {option}")
    return path


def remove_empty_folders() -> None:
    """Remove the folders that [`make_folder`] has made, if nothing is in them: for a command that was refused."""
    for path in sorted(_made, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    _made.clear()


def check_file(path: str | os.PathLike, option: str) -> Path:
    r"""Make the folder of a file that will be written.

    Args:
        path (`str | os.PathLike`): The file; if it is there it will be replaced.
        option (`str`): Which option names it, for the message.
    Returns:
        `Path`: The file.
    Raises:
        OSError: If its folder cannot be made, or it cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give {option} the name of a file")
    make_folder(path.parent, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path}: cannot be written; choose another {option}")
    return path


class JsonTarget:
    r"""Where a command writes what it found for machines.

    Args:
        path (`str`): A file; `-` is standard output, which then holds nothing else (see `cli.run_command`)."""

    def __init__(self, path: str):
        self.path = path
        self.stream = sys.stdout if path == "-" else None

    def check(self) -> None:
        """Raise an OSError if it cannot be written, before the work."""
        if self.stream is None:
            check_file(self.path, "--json")

    def write(self, content: Any) -> None:
        """Write what JSON can hold."""
        if self.stream is None:
            text = json.dumps(content, indent=2, ensure_ascii=False)
            Path(self.path).write_text(text + "\n", encoding="utf-8")
        else:  # in ASCII, whatever a terminal or a pipe is set to
            print(json.dumps(content, indent=2), file=self.stream, flush=True)


def add_json_option(parser: Any, what: str) -> None:
    r"""Declare `--json`, the same for every command that has results.

    Args:
        parser (`argparse.ArgumentParser`): Or a group of one.
        what (`str`): What is written, for the help."""
    parser.add_argument(
        "--json", type=JsonTarget, metavar="FILE", help=f"{what}, for machines; - is standard output, with nothing else"
    )
