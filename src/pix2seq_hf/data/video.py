"""Frames of video files as pictures, by TorchCodec or PyAV, whichever is installed."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .pictures import MAX_PIXELS, PictureError, check_file, load_picture

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"),
    *(".3gp", ".mjpeg", ".y4m"),
)


class Frame(NamedTuple):
    """One frame: its number, counted from 0, the time in seconds at which it is shown, and the upright RGB picture."""

    number: int
    seconds: float
    image: Image.Image


class Source(NamedTuple):
    """Where a picture comes from: a file, or a frame of one with its number and time; `load` decodes it."""

    path: Path
    frame: int | None
    seconds: float | None
    load: Callable[[], Image.Image]


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file is named like a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def list_sources(
    paths: Iterable[Path], problems: list[str], max_pixels: int = MAX_PIXELS, step: int = 1
) -> Iterator[Source]:
    r"""Go through pictures and videos, in order; pictures are decoded by `load`, frames on the way.

    Args:
        paths (`Iterable[Path]`): Picture and video files.
        problems (`list[str]`): Gets one line for each video that is broken; frames before the damage are handed over.
        max_pixels (`int`): Larger pictures and frames are refused.
        step (`int`): Of videos, every `step`-th frame.
    Yields:
        [`Source`]."""
    for path in paths:
        if not is_video(path):
            yield Source(path, None, None, lambda path=path: load_picture(path, max_pixels))
            continue
        try:
            for frame in read_frames(path, step, max_pixels):
                yield Source(path, frame.number, frame.seconds, lambda image=frame.image: image)
        except PictureError as error:
            problems.append(str(error))


def find_reader(name: str = "a video") -> Callable[[str, int, int], Iterator[Frame]]:
    r"""Choose a library that reads videos.

    Args:
        name (`str`): What is to be read, for the error.
    Returns:
        `Callable`: Takes the file's name, the step and the largest number of pixels, and yields frames.
    Raises:
        ValueError: If there is none; the message names those that would do."""
    for is_usable, reader in ((_has_torchcodec, _read_with_torchcodec), (_has_av, _read_with_av)):
        if is_usable():
            return reader
    raise ValueError(
        f"{name}: to read videos, install TorchCodec (pip install torchcodec, and FFmpeg) or PyAV (pip install av)"
    )


def read_frames(path: str | os.PathLike, step: int = 1, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
    r"""Decode a video frame by frame; no more than one frame is in memory.

    Args:
        path (`str | os.PathLike`): A video of any format that the installed library reads.
        step (`int`): Every `step`-th frame is handed over, the first one first.
        max_pixels (`int`): Largest number of pixels of a frame.
    Yields:
        [`Frame`].
    Raises:
        ValueError: If no library that reads videos is installed.
        PictureError: If the file is missing, empty, no video, damaged, or its frames are too large."""
    name = os.fspath(path)
    reader = find_reader(name)
    check_file(name)
    is_empty = True
    for frame in reader(name, step, max_pixels):
        is_empty = False
        yield frame
    if is_empty:
        raise PictureError(f"{name}: is a video without frames")


def _has_torchcodec() -> bool:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        return False
    try:
        VideoDecoder(b"no video")  # FFmpeg's libraries are loaded only now
    except (RuntimeError, ValueError, OSError) as error:
        return "libtorchcodec" not in str(error)  # what it says where FFmpeg is missing
    return True


def _has_av() -> bool:
    try:
        import av  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def _read_with_torchcodec(name: str, step: int, max_pixels: int) -> Iterator[Frame]:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(name, dimension_order="NHWC")
        size = decoder.metadata.width, decoder.metadata.height
        numbers = range(0, len(decoder), step)
    except (RuntimeError, ValueError, TypeError) as error:
        raise PictureError(f"{name}: is not a video, or of a format that is not read ({_reason(error)})") from None
    _check_size(name, size, max_pixels)
    for number in numbers:
        try:
            frame = decoder.get_frame_at(number)  # turned upright
        except (RuntimeError, ValueError, IndexError) as error:
            raise PictureError(f"{name}: is damaged at frame {number} ({_reason(error)})") from None
        yield Frame(number, float(frame.pts_seconds), Image.fromarray(frame.data.cpu().numpy()))


def _read_with_av(name: str, step: int, max_pixels: int) -> Iterator[Frame]:
    import av

    damages = (av.error.FFmpegError, OSError, ValueError, RuntimeError)
    try:
        container = av.open(name, metadata_errors="ignore")  # titles are not asked for
    except damages as error:
        raise PictureError(f"{name}: is not a video, or of a format that is not read ({_reason(error)})") from None
    with container:
        if not container.streams.video:
            raise PictureError(f"{name}: has no video, only sound or text")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        number = 0
        frames = container.decode(stream)
        while True:
            try:
                frame = next(frames, None)
            except damages as error:
                raise PictureError(f"{name}: is damaged at frame {number} ({_reason(error)})") from None
            if frame is None:
                return
            if number % step == 0:
                _check_size(name, (frame.width, frame.height), max_pixels)
                image = frame.to_image()
                angle = getattr(frame, "rotation", 0)  # counterclockwise, as phones note it
                image = image.rotate(angle, expand=True) if angle else image
                yield Frame(number, float(frame.time or 0.0), image)
            number += 1


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        pixels = f"{size[0] * size[1]:,} pixels ({size[0]} x {size[1]})"
        raise PictureError(f"{name}: its frames have {pixels}, the limit is {max_pixels:,}")


def _reason(error: Exception) -> str:
    """An exception of a decoder's as part of a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
