r"""Which reader opens a data set: looks at what a name stands for, and asks the reader of that layout."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pix2seq_hf.data import coco, hub, scene_source, voc, yolo
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import Split

# Every layout that is known, and what it is known by; in the order in which they are looked for.
LAYOUTS = {
    "saved": "a folder written by save_to_disk (state.json or dataset_dict.json)",
    "coco": "a COCO folder (annotations/instances_<split>.json or <split>/_annotations.coco.json)",
    "voc": "a Pascal VOC folder (Annotations/*.xml and JPEGImages/)",
    "yolo": "a YOLO folder (data.yaml or classes.txt, images/ and labels/)",
    "imagefolder": "a folder of pictures with metadata (metadata.jsonl, .csv or .parquet)",
    "parquet": "a parquet file or a folder of them",
    "scenes": "scenes, or scenes:OPTION=VALUE,...: drawn as they are needed",
    "hub": "the name of a data set on the Hub (owner/name)",
}
FILE_SUFFIXES = (".parquet", ".yaml", ".yml", ".json", ".jsonl", ".csv", ".txt", ".zip", ".tar", ".gz", ".arrow")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MAX_SHARDS = 64  # of a stream: as many workers can share one
READERS = {
    "coco": coco.read_coco,
    "voc": voc.read_voc,
    "yolo": yolo.read_yolo,
    "scenes": scene_source.read_scenes,
}
# What is taken if nobody says which split, the first that is there.
TRAINING_SPLITS = ("train2017", "train", "trainval")
EVALUATION_SPLITS = ("val2017", "val", "validation", "valid", "test")
SPLITS = {
    "coco": coco.list_splits,
    "voc": voc.list_splits,
    "yolo": yolo.list_splits,
    "scenes": scene_source.list_splits,
}


def find_layout(data: str | Path) -> str:
    r"""Say what a data set is.

    Args:
        data (`str` or `Path`): A folder, a file, or a name on the Hub.
    Returns:
        `str`: A name in `LAYOUTS`.
    Raises:
        OSError: If there is no such file or folder, and it cannot be a name on the Hub.
        ValueError: If it is none of the known layouts; lists them."""
    path = Path(data)
    if scene_source.is_scenes(data):
        return "scenes"
    if path.is_file() and path.suffix == ".parquet":
        return "parquet"
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return "yolo"
    if path.is_dir():
        for layout, is_it in _SIGNS.items():
            if is_it(path):
                return layout
        inside = [child for child in sorted(path.iterdir()) if child.is_dir()]
        advice = next(
            (f"; did you mean {child}?" for child in inside if any(is_it(child) for is_it in _SIGNS.values())), ""
        )
        known = "; ".join(text for layout, text in LAYOUTS.items() if layout not in ("scenes", "hub"))
        raise ValueError(f"{data}: not a data set of a known layout{advice} (known are: {known})")
    if path.exists():
        raise ValueError(f"{data}: a single file that is no .parquet and no data.yaml; give the folder of the data set")
    if path.suffix.lower() in FILE_SUFFIXES:
        raise FileNotFoundError(f"{data}: no such file")
    if not HUB_NAME.fullmatch(str(data)) or ("/" in str(data) and path.parent.is_dir()):
        raise FileNotFoundError(f"{data}: no such folder")
    return "hub"


def list_splits(data: str | Path) -> list[str]:
    r"""Name the splits of a data set.

    Raises:
        OSError, ValueError: As [`find_layout`] does."""
    return SPLITS.get(find_layout(data), hub.list_splits)(data)


def list_parts(data: str | Path) -> list[str]:
    """Name the splits of a data set without those that repeat others: `all`, and `trainval` beside `train`, `val`."""
    there = list_splits(data)
    again = {"all"} if len(there) > 1 else set()
    again |= {"trainval"} if {"train", "val"} <= set(there) else set()
    return [name for name in there if name not in again]


def choose_split(data: str | Path, names: Sequence[str], option: str) -> str:
    r"""Choose a split of a data set that nobody has named.

    Args:
        data (`str` or `Path`): As of [`open_split`].
        names (`Sequence[str]`): What it may be called, `TRAINING_SPLITS` or `EVALUATION_SPLITS`.
        option (`str`): How a user names one.
    Returns:
        `str`: The first of the names that is there; or the only one that begins like the first (`train2014`); or the
        only split.
    Raises:
        OSError, ValueError: As [`find_layout`], or if it is not clear; lists the splits."""
    there = list_splits(data)
    similar = [name for name in there if name.startswith(names[0].rstrip("0123456789"))]
    for found in ([name for name in names if name in there][:1], similar, there):
        if len(found) == 1:
            return found[0]
    raise ValueError(f"{data}: has the splits {', '.join(there)}: choose one with {option}")


@contextlib.contextmanager
def explain_split(data: str | Path, split: str, option: str) -> Iterator[None]:
    """While a split is opened: if it is not there, the error lists those that are, and how a user names one."""
    try:
        yield
    except (OSError, ValueError) as error:
        try:  # what could not be reached is not asked again: that takes half a minute
            is_reached = not isinstance(error, OSError) or find_layout(data) != "hub"
            there = list_splits(data) if is_reached else []
        except (OSError, ValueError):
            raise error from None
        if not there or split in there:
            raise
        splits = ", ".join(there)
        raise FileNotFoundError(f"{data}: has no split {split!r}, but {splits}: choose one with {option}") from None


def open_split(
    data: str | Path,
    split: str,
    *,
    image_ids: Iterable[int] | None = None,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    columns: Mapping[str, Any] | None = None,
    problems: Problems | None = None,
) -> Split:
    r"""Open one split of a data set of any known layout.

    Args:
        data (`str` or `Path`): A folder, a parquet file, or a name on the Hub.
        split (`str`): For instance `"train"`.
        image_ids (`Iterable[int]`, *optional*): Keep these pictures only, in this order.
        max_images (`int`, *optional*): Keep at most the first so many pictures.
        tasks (`Iterable[str]`): Names in `TASK_FEATURES`: what is read beside boxes.
        num_keypoints (`int`): Keypoints of an object.
        columns (`Mapping`, *optional*): Of tables (parquet, Hub, metadata): what their columns mean, see
            [`~data.columns.Columns`].
        problems ([`Problems`], *optional*): Collects what was mended, and errors; by default the first error is raised.
    Returns:
        [`Split`].
    Raises:
        OSError: If something is missing; an unknown split is answered with those that are there.
        ValueError: If the layout is unknown, or something cannot be used."""
    layout = find_layout(data)
    options = {"tasks": list(tasks), "num_keypoints": num_keypoints, "problems": problems}
    if layout in READERS:
        if columns:
            raise ValueError(f"{data}: is {LAYOUTS[layout]}, which has no columns to be mapped: leave out `columns`")
        return READERS[layout](data, split, image_ids, max_images, **options)
    return hub.read_dataset(data, split, image_ids, max_images, columns=columns, **options)


def open_stream(
    data: str | Path,
    split: str,
    *,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    columns: Mapping[str, Any] | None = None,
    problems: Problems | None = None,
) -> hub.StreamSplit:
    r"""Open one split of a data set of any known layout in streaming form; arguments and errors as of [`open_split`].

    Tables are read, and the Hub is asked, only as far as rows are taken. Of folders of files the annotations are read
    first, as in [`open_split`]; only the pictures are left for later. Drawn scenes end at `max_images` only."""
    options = {"max_images": max_images, "tasks": list(tasks), "num_keypoints": num_keypoints, "problems": problems}
    layout = find_layout(data)
    if layout == "scenes":
        return scene_source.stream_scenes(data, split, max_images, tasks, num_keypoints)
    if layout not in READERS:
        return hub.stream_dataset(data, split, columns=columns, **options)
    opened = open_split(data, split, columns=columns, **options)
    num_rows = len(opened.dataset)
    stream = opened.dataset.to_iterable_dataset(num_shards=min(MAX_SHARDS, num_rows))
    return hub.StreamSplit(stream, opened.id2label, num_rows)


def _is_table(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))


def _is_imagefolder(folder: Path) -> bool:
    names = (f"{place}metadata.{kind}" for place in ("", "*/") for kind in ("jsonl", "csv", "parquet"))
    return any(next(folder.glob(name), None) for name in names)


_SIGNS = {
    "saved": hub.is_saved,
    "coco": lambda folder: bool(coco.list_splits(folder)),
    "voc": lambda folder: bool(voc.list_splits(folder)),
    "yolo": lambda folder: bool(yolo.list_splits(folder)),
    "imagefolder": _is_imagefolder,
    "parquet": _is_table,
}
