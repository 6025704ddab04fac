r"""Which pictures does a data set hold, annotated or not: numbered, in an order that is the same in every process."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from PIL import Image

from pix2seq_hf.data import hub
from pix2seq_hf.data.columns import Columns, find_columns
from pix2seq_hf.data.mending import is_integer
from pix2seq_hf.data.pictures import MAX_PIXELS, PICTURE_SUFFIXES, PictureError, load_picture
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.sources import LAYOUTS, READERS, SPLITS, find_layout


class NumberedPicture(NamedTuple):
    r"""One picture of a data set, not read yet.

    Args:
        index (`int`): Its place in the data set, from 0.
        image_id (`int`): Its id.
        name (`str`): Of its file, or what the data set calls it.
        source (`Path | bytes | None`): Its file, or what that holds.
        problem (`str`, *optional*): Why it may not be read."""

    index: int
    image_id: int
    name: str
    source: Path | bytes | None
    problem: str | None = None

    def load(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Decode it, upright, as RGB; raises `PictureError` if it cannot be used."""
        if self.problem is not None:
            raise PictureError(f"{self.name}: {self.problem}")
        return load_picture(self.source, max_pixels, self.name)


class NumberedPictures:
    r"""The pictures of a data set; those that are passed over cost little, and none stays in memory.

    Args:
        read (`Callable[[int], Iterator]`): Takes a size, yields batches of that size in their order as functions
            without arguments that return the batch's length, or with `True` its pictures.
        num_pictures (`int`, *optional*): How many there are, where that is known before they are gone through.
        fingerprint (`str`, *optional*): Differs if other pictures are listed, where that can be known."""

    def __init__(self, read: Callable[[int], Iterator], num_pictures: int | None, fingerprint: str | None):
        self._read, self.num_pictures, self.fingerprint = read, num_pictures, fingerprint

    def batches(self, size: int, is_wanted: Callable[[int], bool]) -> Iterator[list[NumberedPicture]]:
        r"""Go through the pictures; afterwards `num_pictures` is known.

        Args:
            size (`int`): Pictures of a batch; the last one may be shorter.
            is_wanted (`Callable[[int], bool]`): Takes the index of a batch's first picture.
        Yields:
            `list[NumberedPicture]`: The batches that are wanted."""
        first = 0
        for length, pictures in self._read(size):
            if is_wanted(first):
                yield pictures(first)
            first += length
        self.num_pictures = first


def open_pictures(
    data: str | Path, split: str, limit: int | None = None, columns: Mapping[str, Any] | None = None
) -> NumberedPictures:
    r"""Number the pictures of a data set.

    Annotations are not needed: a folder of pictures will do, the folders in it included. Tables (parquet, pictures with
    metadata, the Hub) are read as a stream; of COCO, VOC and YOLO folders the annotations say which pictures there are.

    Args:
        data (`str` or `Path`): As of [`~data.sources.open_split`], or a folder of pictures.
        split (`str`): Its split; a folder of pictures has none.
        limit (`int`, *optional*): At most the first so many.
        columns (`Mapping`, *optional*): Of tables, see [`~data.columns.Columns`]; `image` and `image_id` are read.
    Returns:
        [`NumberedPictures`]. Ids are those of the data set. In a folder of pictures they are the numbers that the files
        are named after, if all are, as in COCO; else pictures are numbered from 1.
    Raises:
        OSError: If there is no such data set.
        ValueError: If there are no pictures, or no such split."""
    files = None
    try:
        layout = find_layout(data)
    except ValueError:
        files = list_files(Path(data)) if Path(data).is_dir() else []
        if not files:
            raise
        layout = "pictures"
    if columns and (layout in READERS or files):
        kind = LAYOUTS.get(layout, "a folder of pictures")
        raise ValueError(f"{data}: is {kind}, which has no columns to be mapped: leave out --column")
    if files:
        return _number_listed(_number_files(Path(data), files), limit)
    if layout in READERS:
        if split not in SPLITS[layout](data):
            raise ValueError(f"{data}: has no split {split!r}: there are {', '.join(SPLITS[layout](data))}")
        rows = READERS[layout](data, split, problems=Problems(keep_going=True)).dataset
        paths = [image["path"] for image in rows["image"]]
        listed = [(id, Path(path).name, Path(path)) for id, path in zip(rows["image_id"], paths, strict=True)]
        return _number_listed(listed, limit)
    return _number_table(data, split, limit, columns)


def list_files(folder: Path) -> list[str]:
    """The picture files in a folder and the folders in it, hidden ones left out, sorted; names relative to it."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        names = (name for name in files if name[0] != "." and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES)
        found += [os.path.relpath(os.path.join(place, name), folder) for name in names]
    return sorted(Path(name).as_posix() for name in found)


def _number_files(folder: Path, names: list[str]) -> list[tuple[int, str, Path]]:
    stems = [name.rpartition("/")[2].partition(".")[0] for name in names]
    ids: Iterable[int] = range(1, len(names) + 1)
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        ids = map(int, stems)
    return [(id, name, folder / name) for id, name in zip(ids, names)]


def _number_listed(listed: list[tuple[int, str, Path]], limit: int | None) -> NumberedPictures:
    """Pictures whose ids, names and files are all known."""
    listed = listed[:limit]

    def read(size: int) -> Iterator[tuple[int, Callable[[int], list[NumberedPicture]]]]:
        for start in range(0, len(listed), size):
            rows = listed[start : start + size]
            yield (
                len(rows),
                lambda first, rows=rows: [NumberedPicture(first + place, *row) for place, row in enumerate(rows)],
            )

    return NumberedPictures(read, len(listed), _digest(f"{id} {name}" for id, name, _ in listed))


def _number_table(
    data: str | Path, split: str, limit: int | None, columns: Mapping[str, Any] | None
) -> NumberedPictures:
    """Pictures of a data set of the `datasets` library, as a stream of its columns of pictures and ids."""
    where = f"{data} ({split})"
    source = hub.open_dataset(data, split, streaming=True)
    info = (source.info.splits or {}).get(split)
    num_pictures = getattr(info, "num_examples", None) or None
    if source.features is None:
        source = source._resolve_features()
    found = find_columns(source.features, columns, where)
    source = source.cast_column(found.image, datasets.Image(decode=False))
    source = source.select_columns([found.image, *([found.image_id] if found.image_id else [])])
    if limit is not None:
        source = source.take(limit)
        num_pictures = None if num_pictures is None else min(num_pictures, limit)
    folders, table = hub.picture_folders(data, found), source.with_format("arrow")

    def read(size: int) -> Iterator[tuple[int, Callable[[int], list[NumberedPicture]]]]:
        for batch in table.iter(batch_size=size):  # bytes are copied only where the batch is wanted
            yield (
                len(batch),
                lambda first, batch=batch: [
                    _picture_of(row, first + place, found, folders) for place, row in enumerate(batch.to_pylist())
                ],
            )

    return NumberedPictures(read, num_pictures, _fingerprint_files(Path(data)))


def _picture_of(row: Mapping[str, Any], index: int, columns: Columns, folders: list[Path]) -> NumberedPicture:
    """A row of a table; a file outside of the data set's folder is refused."""
    image_id = row[columns.image_id] if columns.image_id else index + 1
    if isinstance(image_id, str) and image_id.isascii() and image_id.isdigit():
        image_id = int(image_id)
    image_id = image_id if is_integer(image_id) else index + 1
    image = row[columns.image] or {"bytes": None, "path": None}
    name = f"row {index}" if not image["path"] else str(image["path"])
    if image["bytes"]:
        return NumberedPicture(index, image_id, name.replace("\\", "/").rpartition("/")[2], image["bytes"])
    problem = hub.refuse_path(image["path"], folders)[1]
    if problem:
        return NumberedPicture(index, image_id, name, None, problem)
    path = Path(image["path"]).resolve()
    inside = next(folder for folder in folders if path.is_relative_to(folder))
    return NumberedPicture(index, image_id, path.relative_to(inside).as_posix(), path)


def _fingerprint_files(path: Path) -> str | None:
    """A digest of the names and sizes of the tables of a data set; None where it is not on this disk."""
    if not path.exists():
        return None
    tables = (".parquet", ".arrow", ".jsonl", ".csv", ".json")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in tables)
    return _digest(f"{file.relative_to(path).as_posix()} {file.stat().st_size}" for file in files)


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:16]
