"""Pictures from disk: which files are meant, and a decoded picture or one line that says what is wrong."""

import glob
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".avif", ".jp2", ".pbm", ".pgm", ".pnm", ".ppm", ".tga"),
)
MAX_PIXELS = 100_000_000  # 300 MB as RGB; cameras make 50 million, decompression bombs start at some hundred million

_pixel_limit_lock = threading.Lock()


class PictureError(ValueError):
    """A file that is no usable picture; the message is one line that begins with the file's name."""


def find_pictures(sources: Iterable[str | os.PathLike]) -> tuple[list[Path], list[str]]:
    """List the picture files that files, folders and glob patterns stand for, each once, in order.

    A folder stands for the files directly in it that have a picture's suffix (sorted by name, hidden ones left out); a
    pattern may hold `*`, `?`, `[...]` and `**`; any other name stands for itself.

    Args:
        sources (`Iterable[str | os.PathLike]`): Names as a user gave them.
    Returns:
        `tuple[list[Path], list[str]]`: The files, and one line for each source that stands for nothing."""
    found: dict[str, Path] = {}  # absolute name to the name as given
    problems = []
    for source in map(os.fspath, sources):
        path = Path(source)
        if path.is_dir():
            files = sorted(
                (file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.name[0] != "."),
                key=lambda file: file.name,
            )
            missing = "is a folder without pictures"
        elif not os.path.lexists(path) and glob.has_magic(source):
            files = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if not os.path.isdir(name)]
            missing = "matches no file"
        else:
            files = [path]
            missing = ""
        if not files:
            problems.append(f"{source}: {missing}")
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values()), problems


def expand_lists(sources: Sequence[str | os.PathLike], stream: BinaryIO) -> list[str]:
    r"""Put the names that a stream lists, one per line, in the place of `-`.

    Args:
        sources (`Sequence[str | os.PathLike]`): Names as a user gave them.
        stream (`BinaryIO`): Standard input, read to its end if there is a `-`.
    Returns:
        `list[str]`: Names, empty lines left out.
    Raises:
        ValueError: If there is more than one `-`."""
    if sum(os.fspath(source) == "-" for source in sources) > 1:
        raise ValueError("'-' stands for the list on standard input: there is only one")
    names = []
    for source in map(os.fspath, sources):
        if source == "-":
            lines = (os.fsdecode(line).rstrip("\r\n") for line in stream)
            names += [line for line in lines if line.strip()]
        else:
            names.append(source)
    return names


def load_picture(
    source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS, name: str | os.PathLike | None = None
) -> Image.Image:
    """Decode a picture file completely, turned upright, as 8-bit RGB.

    Args:
        source (`str | os.PathLike | bytes`): A file of any format and mode that Pillow reads, by its name or as its
            content; of an animation the first frame.
        max_pixels (`int`): Largest number of pixels, checked against the file's header before anything is decoded.
        name (`str | os.PathLike`, *optional*): What messages call it; needed for a content.
    Returns:
        `PIL.Image.Image`: Mode "RGB".
    Raises:
        PictureError: If the file is missing, a folder, empty, not a picture, broken, or larger than `max_pixels`."""
    from pix2seq_hf.image_processing_pix2seq import load_rgb_image  # only now: it brings torch and transformers

    name = _name_of(source, name)
    with open_picture(source, max_pixels, name) as image:
        try:
            image.load()
        except Exception as error:  # damaged data make Pillow's readers raise nearly anything
            raise PictureError(f"{name}: is truncated or damaged ({_reason(error)})") from None
        try:
            return load_rgb_image(image)
        except ValueError as error:
            raise PictureError(f"{name}: {_reason(error)}") from None


def open_picture(
    source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS, name: str | os.PathLike | None = None
) -> Image.Image:
    """Read the header of a picture file, nothing of its pixels; arguments and errors are those of [`load_picture`]."""
    name = _name_of(source, name)
    if not isinstance(source, bytes):
        check_file(os.fspath(source))
    elif not source:
        raise PictureError(f"{name}: is empty")
    try:
        with _header_limit(max_pixels):
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except UnidentifiedImageError:
        raise PictureError(f"{name}: is not a picture, or of a format that Pillow does not read") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{name}: has more than {max_pixels:,} pixels, the limit") from None
    except Exception as error:  # damaged headers too
        raise PictureError(f"{name}: is a damaged picture ({_reason(error)})") from None
    pixels, size = image.width * image.height, f"{image.width} x {image.height}"
    if 0 < pixels <= max_pixels:
        return image
    image.close()
    raise PictureError(
        f"{name}: has {pixels:,} pixels ({size}), the limit is {max_pixels:,}"
        if pixels
        else f"{name}: has no pixels ({size})"
    )


def read_jpeg_header(content: bytes) -> tuple[int, int, int] | None:
    r"""Find the size of a plain JPEG file in a fraction of the time that [`open_picture`] takes.

    Args:
        content (`bytes`): Of a file.
    Returns:
        `tuple[int, int, int]`, *optional*: Height, width, colours; `None` if the file is another or damaged."""
    if content[:2] != b"\xff\xd8":
        return None
    position = 2
    while content[position : position + 1] == b"\xff" and position + 9 < len(content):
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame; others are tables
            height, width = (
                int.from_bytes(content[start : start + 2], "big") for start in (position + 5, position + 7)
            )
            return height, width, content[position + 9]
        position += 2 + length
    return None


def _name_of(source: str | os.PathLike | bytes, name: str | os.PathLike | None) -> str:
    return os.fspath(name or ("picture without a name" if isinstance(source, bytes) else source))


def check_file(name: str) -> None:
    """Raise `PictureError` unless `name` is a file with something in it; a pipe or device is never opened."""
    try:
        status = os.stat(name)
    except OSError as error:
        raise PictureError(f"{name}: {error.strerror or error}") from None
    except ValueError as error:  # a null byte in the name
        raise PictureError(f"{name!r}: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise PictureError(f"{name}: is a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):
        raise PictureError(f"{name}: is not a regular file")
    if status.st_size == 0:
        raise PictureError(f"{name}: is empty")
    if not os.access(name, os.R_OK):
        raise PictureError(f"{name}: Permission denied")


def _reason(error: Exception) -> str:
    """An exception of Pillow's as part of a line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _header_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow read headers of pictures up to `max_pixels` without a warning; its own limits are put back after."""
    with _pixel_limit_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        previous = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels  # a warning above it, an error above twice as many
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = previous
