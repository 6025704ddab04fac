"""Can what a command is told to write be written: found out before the work, not after it."""

import os
from pathlib import Path


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
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise OSError(f"{path}: the folder cannot be made ({reason}); choose another {option}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: cannot be written; choose another {option}")
    return path


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
