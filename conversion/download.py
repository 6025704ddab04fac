"""How a released checkpoint gets onto this disk whole: resumed after a break, checked, never half there."""

import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pix2seq_hf.conversion.checkpoint import parse_checkpoint_file
from pix2seq_hf.conversion.checksums import find_mismatch, read_stated_checksums
from pix2seq_hf.conversion.released import BASE_URL, TOKENIZER_OBJECT, ReleasedCheckpoint
from pix2seq_hf.progress import open_bar

BLOCK_BYTES = 1 << 20
RETRIES = 5  # failures in a row, without a single new byte, before giving up
TIMEOUT_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 60.0
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)


def default_cache_dir() -> Path:
    """Return the folder of downloads: `PIX2SEQ_HF_CACHE`, else `pix2seq_hf` in `HF_HOME` or the user's cache folder."""
    if os.environ.get("PIX2SEQ_HF_CACHE"):
        return Path(os.environ["PIX2SEQ_HF_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(home)).expanduser() / "pix2seq_hf"


def download_checkpoint(
    checkpoint: ReleasedCheckpoint,
    cache_dir: str | os.PathLike | None = None,
    base_url: str = BASE_URL,
    show_progress: bool = True,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    r"""Download a released checkpoint, or find it in the cache.

    Args:
        checkpoint ([`ReleasedCheckpoint`]): A value of `RELEASED`.
        cache_dir (`str` or `os.PathLike`, *optional*): By default [`default_cache_dir`].
        base_url (`str`, *optional*): Of the bucket or a mirror of it: the object's path follows after a slash.
        show_progress (`bool`, *optional*, defaults to `True`): Whether to draw a bar per file on standard error.
        wait (`Callable`, *optional*): Called with the seconds to wait before another attempt.
    Returns:
        `Path`: The checkpoint's prefix, `.../ckpt-N`, with `config.json` beside it.
    Raises:
        ValueError: If the server does not have the files, or they do not fit their checksums.
        OSError: If the connection keeps failing, or the disk is full."""
    folder = _bucket_folder(cache_dir, base_url) / checkpoint.name
    options = {"show_progress": show_progress, "wait": wait}
    url = f"{base_url.rstrip('/')}/{checkpoint.name}"
    state = download_file(f"{url}/checkpoint", folder / "checkpoint", **options)
    try:
        name = parse_checkpoint_file(state.read_text(encoding="utf-8"))
    except ValueError as error:
        state.unlink()
        raise ValueError(f"{url}/checkpoint is not the state of a checkpoint: {error}") from error
    for file in ("config.json", f"{name}.index", f"{name}.data-00000-of-00001"):
        download_file(f"{url}/{file}", folder / file, **options)
    return folder / name


def download_tokenizer(
    cache_dir: str | os.PathLike | None = None,
    base_url: str = BASE_URL,
    show_progress: bool = True,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    r"""Download the SentencePiece model of the multi-task checkpoints, or find it in the cache.

    Args: as [`download_checkpoint`].
    Returns:
        `Path`: The `.model` file.
    Raises: as [`download_checkpoint`]."""
    destination = _bucket_folder(cache_dir, base_url) / TOKENIZER_OBJECT
    url = f"{base_url.rstrip('/')}/{TOKENIZER_OBJECT}"
    return download_file(url, destination, show_progress=show_progress, wait=wait)


def download_file(
    url: str,
    destination: str | os.PathLike,
    show_progress: bool = True,
    timeout: float = TIMEOUT_SECONDS,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    r"""Download one file; a file that is already there is taken as it is, because only checked files get their name.

    Until it is complete and checked, the data is in `<destination>.part` with what the server said about it in
    `<destination>.part.json`; a later call goes on from there if the server still has the same file (`If-Range`).
    Two processes may ask for the same file: the second waits for the first.

    Args:
        url (`str`): `https://` or `http://`.
        destination (`str` or `os.PathLike`): Where the file goes; folders are made.
        show_progress (`bool`, *optional*, defaults to `True`): Whether to draw a bar on standard error.
        timeout (`float`, *optional*): Seconds without a byte after which an attempt counts as failed.
        wait (`Callable`, *optional*): Called with the seconds to wait before another attempt.
    Returns:
        `Path`: `destination`.
    Raises:
        ValueError: If the server does not have the file, contradicts itself, or the checksum differs twice.
        OSError: If the connection keeps failing, or the disk is full."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"cannot download {url}: the address must begin with https:// or http://")
    destination = Path(destination)
    if destination.is_file():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{destination}.lock"):
        if not destination.is_file():  # another process may have been faster
            _Download(url, destination, show_progress, timeout, wait).run()
    return destination


class _Retry(Exception):
    """An attempt that failed in a way that another may not.

    Args:
        reason (`str`): For the message when no attempt is left.
        seconds (`float`, *optional*): The wait that the server asks for.
    """

    def __init__(self, reason: str, seconds: float | None = None):
        super().__init__(reason)
        self.seconds = seconds


class _Download:
    """The download of one file over as many attempts as it takes."""

    def __init__(self, url, destination, show_progress, timeout, wait):
        self.url, self.destination, self.timeout, self.wait = url, destination, timeout, wait
        self.show_progress = show_progress
        self.part = destination.with_name(destination.name + ".part")
        self.notes = destination.with_name(destination.name + ".part.json")

    def run(self):
        failures, mismatches = 0, 0
        sizes = {"unit_scale": True, "unit_divisor": 1024}
        with open_bar(None, "B", self.destination.name, is_shown=self.show_progress, **sizes) as bar:
            while True:
                size_before = self._size()
                try:
                    notes = self._attempt(bar)
                except _Retry as error:
                    failures = 0 if self._size() > size_before else failures + 1
                    if failures >= RETRIES:
                        raise OSError(
                            f"cannot download {self.url}: {error} ({failures} attempts in a row brought nothing); "
                            f"run the command again to go on after {self._size()} bytes"
                        ) from error
                    seconds = 2.0 ** max(failures - 1, 0) if error.seconds is None else error.seconds
                    bar.set_postfix_str(f"{error}; trying again")
                    self.wait(min(seconds, LONGEST_WAIT_SECONDS))
                    continue
                bar.set_postfix_str("")
                problem = find_mismatch(self.part, notes["checksums"])
                if problem is None:
                    break
                self._discard()
                mismatches += 1
                if mismatches == 2:
                    raise ValueError(f"{self.url} came damaged twice: {problem}; nothing was kept")
        os.replace(self.part, self.destination)
        self.notes.unlink(missing_ok=True)

    def _attempt(self, bar) -> dict:
        """Fetch what is missing of the file; return what the server said about all of it."""
        notes, start = self._resumable()
        if start and start == notes["total"]:  # an earlier call ended between the last byte and the check
            return notes
        request = urllib.request.Request(self.url, headers={"Accept-Encoding": "identity"})
        if start:
            request.add_header("Range", f"bytes={start}-")
            request.add_header("If-Range", notes["validator"])
        try:
            response = urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            self._refuse_status(error, start)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise OSError(f"cannot download {self.url}: {reason}") from error
            raise _Retry(f"no connection ({reason})") from error
        with response:
            if response.status == 206:
                total = _total_of_range(response.headers.get("Content-Range"), start)
                if total is None or total != notes["total"]:
                    self._discard()
                    raise _Retry("the server answered with another part than it was asked for")
            else:  # 200: all of it, because nothing was there yet, the file changed, or the server knows no ranges
                start = 0
                notes = self._note(response.headers)
                total = notes["total"]
            bar.total = total
            bar.update(start - bar.n)
            self._receive(response, start, bar)
        size = self._size()
        if total is not None and size != total:
            raise _Retry(f"the connection ended after {size} of {total} bytes")
        return notes

    def _receive(self, response, start: int, bar):
        with open(self.part, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            while True:
                try:
                    block = response.read(BLOCK_BYTES)
                except http.client.IncompleteRead as error:  # keep what came
                    file.write(error.partial)
                    raise _Retry("the connection ended in the middle") from error
                except (http.client.HTTPException, OSError) as error:
                    raise _Retry(f"the connection broke ({error})") from error
                if not block:
                    return
                file.write(block)
                bar.update(len(block))

    def _note(self, headers) -> dict:
        """Write down what the server says about the whole file, and check that it does not contradict itself."""
        length, stored = _number(headers.get("Content-Length")), _number(headers.get("x-goog-stored-content-length"))
        if headers.get("Content-Encoding", "identity") != "identity":
            length = stored = None  # these count compressed bytes
        if None not in (length, stored) and length != stored:
            raise ValueError(
                f"{self.url}: the server contradicts itself: it sends {length} bytes of a file of {stored} bytes"
            )
        notes = {
            "url": self.url,
            "total": stored if length is None else length,
            "validator": _strong_validator(headers),
            "checksums": read_stated_checksums(headers),
        }
        self.notes.write_text(json.dumps(notes), encoding="utf-8")
        return notes

    def _resumable(self) -> tuple[dict, int]:
        """The notes and the number of bytes of an unfinished download that can go on, else nothing and 0."""
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
            usable = notes["url"] == self.url and notes["validator"] and notes["total"] >= self._size()
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        if usable:
            return notes, self._size()
        self._discard()
        return {}, 0

    def _refuse_status(self, error: urllib.error.HTTPError, start: int):
        with error:
            if error.code == 416 and start:
                self._discard()
                raise _Retry("the server has no such part of the file") from error
            if error.code in RETRIED_STATUS:
                seconds = _number(error.headers.get("Retry-After"))
                raise _Retry(f"the server answers {error.code} {error.reason}", seconds) from error
            advice = "; check the name and the base URL" if error.code in (401, 403, 404, 410) else ""
            raise ValueError(f"cannot download {self.url}: the server answers {error.code} {error.reason}{advice}")

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _discard(self):
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def _bucket_folder(cache_dir: str | os.PathLike | None, base_url: str) -> Path:
    """The cache of one server: its files are never taken for those of another."""
    address = urllib.parse.urlsplit(base_url)
    folder = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{address.netloc}{address.path}".rstrip("/"))
    return (default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()) / folder


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdecimal() else None


def _total_of_range(content_range: str | None, start: int) -> int | None:
    """The length of the whole file from a `Content-Range` that begins at `start`, else `None`."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range or "")
    return int(match.group(2)) if match and int(match.group(1)) == start else None


def _strong_validator(headers) -> str | None:
    """What `If-Range` may hold: an entity tag that is not weak, or a date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
