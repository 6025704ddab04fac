r"""Where do records come from: a data set of the Hugging Face `datasets` library, in memory-mapped or streaming form.

What can be opened: a name on the Hub (`detection-datasets/coco`), a folder or file of parquet, a folder of pictures
with `metadata.jsonl` or `.csv` (`imagefolder`), a folder that `save_to_disk` wrote. `data/columns.py` says what the
columns mean. Pictures are never loaded here; their bytes stay in the memory-mapped files.
"""

import contextlib
import io
import logging
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
from PIL import ExifTags, Image

from pix2seq_hf.data.annotations import boxes_from_xywh
from pix2seq_hf.data.coco import MAX_LABEL
from pix2seq_hf.data.columns import (
    Columns,
    find_box_format,
    find_columns,
    find_names,
    flatten_features,
    leaf_of,
    to_xyxy,
    value_at,
)
from pix2seq_hf.data.mending import (
    Fault,
    choose_images,
    is_integer,
    is_number,
    mend_box,
    mend_caption,
    mend_keypoints,
    mend_outline,
)
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import FEATURES, TASK_FEATURES, Split, coco_annotations

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 1000
ROWS_TO_LOOK_AT, STREAMED_ROWS_TO_LOOK_AT = (
    2000,
    100,
)  # to find out the format of boxes; streamed ones bring their pictures


@dataclass(frozen=True)
class StreamSplit:
    r"""One split of a data set that is read from its beginning to its end, with nothing of it kept in memory.

    For a training loop: `stream.rows(seed, epoch)` are the rows of one epoch, and with `skip` those after the first so
    many, for a run that was interrupted. [`~data.rows.load_record`] turns a row into a record. Rows come in another
    order in every epoch, mixed by a buffer; each process takes its share with
    `datasets.distributed.split_dataset_by_node(rows, rank, world_size)`, and a `torch` data loader gives every worker
    its shards (`dataset.num_shards`). Evaluation needs annotations as a whole: it takes [`read_dataset`].

    Args:
        dataset (`datasets.IterableDataset`): Rows in their order; columns as in [`~data.rows.Split`].
        id2label (`dict[int, str]`): Name of every class.
        num_rows (`int`, *optional*): Number of rows where the source states it; bad ones, which are left out, count."""

    dataset: datasets.IterableDataset
    id2label: dict[int, str]
    num_rows: int | None

    def rows(self, seed: int, epoch: int, buffer_size: int = 1000, skip: int = 0) -> datasets.IterableDataset:
        r"""The rows of one epoch.

        Args:
            seed (`int`), epoch (`int`): Decide their order.
            buffer_size (`int`): Rows among which the next one is drawn; with their pictures, they are in memory.
            skip (`int`): Leave out the first so many."""
        shuffled = self.dataset.shuffle(seed=seed, buffer_size=buffer_size)
        shuffled.set_epoch(epoch)
        return shuffled.skip(skip) if skip else shuffled


def read_dataset(
    data: str | Path,
    split: str,
    image_ids: Iterable[int] | None = None,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    columns: Mapping[str, Any] | None = None,
    problems: Problems | None = None,
) -> Split:
    r"""Open one split of a data set. Annotations are checked and kept in memory, pictures stay where they are.

    Args:
        data (`str` or `Path`): A name on the Hub, a `.parquet` file, or a folder: parquet, `imagefolder`,
            `save_to_disk`.
        split (`str`): For instance `"train"`.
        image_ids (`Iterable[int]`, *optional*): Keep these pictures only, in this order.
        max_images (`int`, *optional*): Keep at most the first so many pictures.
        tasks (`Iterable[str]`): Names in `TASK_FEATURES`: what is read beside boxes.
        num_keypoints (`int`): Keypoints of an object.
        columns (`Mapping`, *optional*): What the columns mean, see [`~data.columns.Columns`]; found without.
        problems ([`Problems`], *optional*): Collects what was mended or assumed, and errors.
    Returns:
        [`Split`].
    Raises:
        OSError: If there is no such data set, or the Hub cannot be reached.
        ValueError: If there is no such split, the columns cannot be understood, or an entry cannot be used."""
    problems = Problems() if problems is None else problems
    where = f"{data} ({split})"
    source = open_dataset(data, split)
    if not len(source):
        raise ValueError(f"{where}: lists no pictures")
    found = find_columns(source.features, columns, where)
    source = source.cast_column(found.image, datasets.Image(decode=False))
    if max_images is not None and image_ids is None:
        source = source.select(range(min(max_images, len(source))))
    used = [name for name in found.used() if name != found.image]
    plain = source.select_columns(used).with_format(None) if used else None

    leaf = leaf_of(flatten_features(source.features).get(found.labels))
    seen = None
    if isinstance(leaf, datasets.Value) and found.names is None:
        seen = {label for row in plain for label in _as_list(value_at(row, found.labels))}
    reader = _RowReader(
        found, source.features, seen, tasks, num_keypoints, picture_folders(data, found), where, problems
    )
    reader.learn_boxes(_raw_rows(source.select(range(min(ROWS_TO_LOOK_AT, len(source)))), plain, found, reader))

    rows, numbers = {}, {}
    for index, row in enumerate(_raw_rows(source, plain, found, reader)):
        read = reader.read(row, index)
        if read is not None and read["image_id"] in numbers:
            problems.error("picture id used twice", f"{where}: two pictures have the id {read['image_id']}")
        elif read is not None:
            rows[index], numbers[read["image_id"]] = read, index
    if reader.keypoints_seen["bad"] and not reader.keypoints_seen["good"]:  # all of them: rather the setting is wrong
        problems.error("keypoints of a wrong length", f"{where}: no object has {num_keypoints} usable keypoints")
    kept = [numbers[image_id] for image_id in choose_images(numbers, image_ids, max_images, where)]
    features = datasets.Features({**FEATURES, **reader.extra})
    table = {name: feature for name, feature in features.items() if name != "image"}
    left_out = {**{name: [] for name in table}, "image_id": 0, "image_size": [0, 0]}
    lines = [rows.get(index, left_out) for index in range(len(source))]
    values = {name: [line[name] for line in lines] for name in table}
    # Pictures side by side with their annotations, so that they stay where they are.
    pictures = source.select_columns([found.image])
    pictures = pictures if found.image == "image" else pictures.rename_column(found.image, "image")
    table = datasets.Dataset.from_dict(values, features=datasets.Features(table))
    dataset = datasets.concatenate_datasets([pictures, table], axis=1)
    dataset = dataset if kept == list(range(len(source))) else dataset.select(kept)
    split_rows = [rows[index] for index in kept]
    return Split(dataset.select_columns(list(features)), reader.id2label, *_annotations(split_rows, reader))


def stream_dataset(
    data: str | Path,
    split: str,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    columns: Mapping[str, Any] | None = None,
    problems: Problems | None = None,
) -> StreamSplit:
    r"""Open one split of a data set in streaming form; arguments as of [`read_dataset`].

    The format of boxes is found from the first rows. Bad entries are mended or left out as the rows come, and counted
    in `problems` of the process that reads them; an error raises there, unless `problems` keeps going.

    Raises:
        OSError: If there is no such data set, or the Hub cannot be reached.
        ValueError: If there is no such split, or the columns or the names of the classes are not clear."""
    problems = Problems() if problems is None else problems
    where = f"{data} ({split})"
    source = open_dataset(data, split, streaming=True)
    info = (source.info.splits or {}).get(split)
    num_rows = getattr(info, "num_examples", None) or None
    if source.features is None:
        source = source._resolve_features()
    found = find_columns(source.features, columns, where)
    source = source.cast_column(found.image, datasets.Image(decode=False))
    if max_images is not None:
        source = source.take(max_images)
        num_rows = None if num_rows is None else min(num_rows, max_images)
    reader = _RowReader(
        found, source.features, None, tasks, num_keypoints, picture_folders(data, found), where, problems
    )
    reader.learn_boxes(source.take(min(STREAMED_ROWS_TO_LOOK_AT, max_images or STREAMED_ROWS_TO_LOOK_AT)))
    features = datasets.Features({**FEATURES, **reader.extra})

    def read_batch(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = []
        for position, index in enumerate(indices):
            raw = {name: values[position] for name, values in batch.items()}
            row = reader.read(raw, index)
            if row is not None:
                rows.append({**row, "image": raw[found.image]})
            elif problems.lost:  # nobody looks at them when a worker process reads the stream
                logger.warning("left out: %s", problems.lost[-1].message)
        return {name: [row[name] for row in rows] for name in features}

    dropped = [name for name in source.features if name not in features]
    stream = source.map(
        read_batch, with_indices=True, batched=True, batch_size=16, remove_columns=dropped, features=features
    )
    return StreamSplit(stream, reader.id2label, num_rows)


def open_dataset(data: str | Path, split: str, streaming: bool = False) -> Any:
    r"""Open a data set with the `datasets` library; errors are one line.

    Args:
        data (`str` or `Path`): As of [`read_dataset`].
        split (`str`): Its split.
        streaming (`bool`): Read it while it is used.
    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` if streaming."""
    path = Path(data)
    try:
        if is_saved(path):
            saved = datasets.load_from_disk(str(path))
            if isinstance(saved, datasets.DatasetDict):
                if split not in saved:
                    raise ValueError(f"{data}: has no split {split!r}: there are {', '.join(saved)}")
                saved = saved[split]
            return saved.to_iterable_dataset() if streaming else saved
        if path.is_file():
            return datasets.load_dataset("parquet", data_files={split: str(path)}, split=split, streaming=streaming)
        with _asking(path):
            return datasets.load_dataset(_place(data), split=split, streaming=streaming)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(f"{data}: no such folder, and no such data set on the Hub") from error
    except ConnectionError as error:
        reason = "no such folder, and the Hub, which may know a data set of this name, cannot be reached"
        raise FileNotFoundError(f"{data}: {reason}") from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{data}: cannot be read: {_one_line(error.__cause__ or error)}") from error
    except ValueError as error:
        text = _one_line(error)
        raise ValueError(text if text.startswith(f"{data}: ") else f"{data}: {text}") from error


def list_splits(data: str | Path) -> list[str]:
    """Name the splits of a data set; a single file has one, `train`."""
    path = Path(data)
    if is_saved(path):
        listed = path / "dataset_dict.json"
        return list(datasets.load_from_disk(str(path))) if listed.is_file() else ["train"]
    if path.is_file():
        return ["train"]
    try:
        with _asking(path):
            return datasets.get_dataset_split_names(_place(data))
    except ConnectionError as error:
        reason = "no such folder, and the Hub, which may know a data set of this name, cannot be reached"
        raise FileNotFoundError(f"{data}: {reason}") from error
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{data}: {_one_line(error)}") from error


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _place(data: str | Path) -> str:
    """What `datasets` takes for a folder even where its name is that of a format: `parquet`, `json`, `text`."""
    return os.path.join(os.curdir, data) if Path(data).is_dir() else str(data)


@contextlib.contextmanager
def _asking(path: Path) -> Iterator[None]:
    """While the Hub may be asked: say so, and where its name is not known here, ask nothing but the library's cache.

    The library tries for half a minute, and somebody who has mistyped the name of a folder has to wait for it."""
    places = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    if not path.exists() and not any(before):
        logger.info("%s: no such folder: asking the Hub for a data set of this name", path)
        if not _is_hub_known():
            for place in places:
                place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _is_hub_known() -> bool:
    """Whether the Hub's name has an address; behind a proxy, only that one has to know."""
    if urllib.request.getproxies():
        return True
    try:
        return bool(socket.getaddrinfo(urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT).hostname, None))
    except OSError:
        return False


class _RowReader:
    """Turns a row of any data set into a row of [`Split`], without its picture; reports what is wrong with it."""

    def __init__(
        self,
        columns: Columns,
        features: datasets.Features,
        seen: Iterable[Any] | None,
        tasks: Iterable[str],
        num_keypoints: int,
        folders: list[Path],
        where: str,
        problems: Problems,
    ):
        self.columns, self.num_keypoints, self.folders = columns, num_keypoints, folders
        self.where, self.problems = where, problems
        self.extra = {name: feature for task in tasks for name, feature in TASK_FEATURES[task].items()}
        for name, column in (("polygons_xy", "polygons"), ("keypoints_xyv", "keypoints"), ("captions", "captions")):
            if name in self.extra and getattr(columns, column) is None:
                raise ValueError(f"{where}: has no column of {column}: say which with columns.{column}")
        if columns.boxes is None and set(tasks) != {"captioning"}:
            raise ValueError(f"{where}: has no column of boxes: say which with columns.boxes")
        leaves = flatten_features(features)
        self.table = find_names(leaves.get(columns.labels), columns, seen, where) if columns.boxes else {}
        if any(not 1 <= number <= MAX_LABEL for number, _ in self.table.values()):
            number, name = next(entry for entry in self.table.values() if not 1 <= entry[0] <= MAX_LABEL)
            raise ValueError(f"{where}: class {name!r} has id {number}: ids must be between 1 and {MAX_LABEL}")
        self.id2label = dict(sorted(self.table.values()))
        self.box_format, self.box_units = columns.box_format or "xywh", columns.box_units or "pixels"
        self.keypoints_seen = {"good": 0, "bad": 0}

    def learn_boxes(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Find out the format of the boxes from some rows."""
        if self.columns.boxes is None or (self.columns.box_format and self.columns.box_units):
            return
        boxes, sizes, areas = [], [], []
        for row in rows:
            size = self._find_size(row, None)
            found = _as_list(value_at(row, self.columns.boxes))
            given = _as_list(value_at(row, self.columns.areas)) or [None] * len(found)
            for box, area in zip(found, given):
                if size and isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
                    boxes.append(box), sizes.append(size), areas.append(np.nan if area is None else area)
        boxes, sizes = np.array(boxes, float).reshape(-1, 4), np.array(sizes, float).reshape(-1, 2)
        areas = np.array(areas, float) if areas and np.isfinite(areas).all() else None
        self.box_format, self.box_units = find_box_format(boxes, sizes, areas, self.columns, self.where, self.problems)

    def read(self, row: Mapping[str, Any], index: int) -> dict[str, Any] | None:
        """One row, or None if its picture has to be left out."""
        image_id = index + 1
        if self.columns.image_id is not None:
            image_id = row[self.columns.image_id]
            if isinstance(image_id, str) and image_id.isdecimal():
                image_id = int(image_id)
            if not is_integer(image_id):
                self.problems.repair(
                    "picture id that is no integer", f"{self.where}: row {index}: id {image_id!r}: {index + 1} instead"
                )
                image_id = index + 1
        name = f"{self.where}: picture {image_id}"
        image_size = self._find_size(row, name)
        if image_size is None:
            return None
        read: dict[str, Any] = {"image_id": image_id, "image_size": image_size}
        objects = self._read_objects(row, name, image_size) if self.columns.boxes else []
        read["boxes_yxyx"] = boxes_from_xywh([item["box"] for item in objects], image_size).numpy()
        for column, key in (("labels", "label"), ("areas", "area"), ("is_crowd", "is_crowd")):
            read[column] = [item[key] for item in objects]
        if "polygons_xy" in self.extra:
            read["polygons_xy"] = [item["polygons"] for item in objects]
            read["run_lengths"] = [item["run_lengths"] for item in objects]
        if "keypoints_xyv" in self.extra:
            read["keypoints_xyv"] = [item["keypoints"] for item in objects]
            read["num_keypoints"] = [sum(shown > 0 for shown in item["keypoints"][2::3]) for item in objects]
        if "captions" in self.extra:
            read["captions"] = []
            for text in _as_list(value_at(row, self.columns.captions)):
                caption, faults = mend_caption(text)
                self._report(faults, name)
                read["captions"] += [] if caption is None else [caption]
        image = row[self.columns.image]
        read["file_name"] = Path(image["path"]).name if image["path"] else f"{image_id}"
        return read

    def _find_size(self, row: Mapping[str, Any], name: str | None) -> list[int] | None:
        """Height and width of a picture, or None if it cannot be used, which is reported under its name."""
        image = row[self.columns.image] or {"bytes": None, "path": None}
        kind, reason = refuse_path(image["path"], self.folders) if image["bytes"] is None else (None, None)
        height, width = (value_at(row, path) for path in (self.columns.height, self.columns.width))
        is_known = is_integer(height) and is_integer(width) and min(height, width) > 0
        if reason is None:
            if is_known:
                return [height, width]
            try:
                content = image["bytes"] if isinstance(image["bytes"], bytes) else None
                with Image.open(image["path"] if content is None else io.BytesIO(content)) as header:
                    width, height = header.size
                    # Upright, as `datasets` shows pictures to those who annotate them.
                    is_turned = header.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return [width, height] if is_turned else [height, width]
            except Exception as error:  # damaged headers make Pillow's readers raise nearly anything
                kind, reason = "picture that cannot be used", _one_line(error)
        if name is not None and kind == "picture outside of the folder":
            self.problems.error(kind, f"{name}: {reason}")
        elif name is not None and self.problems.lose(kind, f"{name}: {reason}", is_known and bool(image["path"])):
            return [height, width]
        return None

    def _read_objects(self, row: Mapping[str, Any], name: str, image_size: list[int]) -> list[dict[str, Any]]:
        columns = self.columns
        boxes = _as_list(value_at(row, columns.boxes))
        lists = {
            key: _as_list(value_at(row, getattr(columns, key)))
            for key in ("labels", "areas", "is_crowd", "polygons", "run_lengths", "keypoints")
            if getattr(columns, key) is not None
        }
        for key, values in lists.items():
            if len(values) != len(boxes):
                counts = f"{len(boxes)} boxes and {len(values)} {key.replace('_', ' ')}"
                self.problems.error("annotations of different numbers", f"{name}: has {counts}")
                return []
        objects = []
        for index, box in enumerate(boxes):
            given = {key: values[index] for key, values in lists.items()}
            where = f"{name}, object {index + 1}"
            entry = self.table.get(given.get("labels"))
            if entry is None:
                self.problems.error(
                    "unknown class", f"{where}: label {given['labels']!r} is none of the {len(self.table)} classes"
                )
                continue
            mended, reason = mend_box(self._to_xywh(box, image_size), image_size)
            if reason is not None:
                done = "left out" if mended is None else "cut to it"
                self.problems.repair(reason, f"{where}: box {box}: {done}")
            if mended is None:
                continue
            area = given.get("areas")
            item = {
                "box": mended,
                "label": entry[0],
                "area": float(area) if is_number(area) else mended[2] * mended[3],
                "is_crowd": bool(given.get("is_crowd")),
            }
            if "polygons_xy" in self.extra:
                item["polygons"], item["run_lengths"] = self._read_outline(given, mended, where, image_size)
            if "keypoints_xyv" in self.extra:
                item["keypoints"] = self._read_keypoints(given.get("keypoints"), where)
            objects.append(item)
        return objects

    def _to_xywh(self, box: Any, image_size: list[int]) -> Any:
        """A box as x, y, width, height in pixels; what is no box is left as it is."""
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return box
        if self.box_format == "xywh" and self.box_units == "pixels":
            return box
        left, top, right, bottom = to_xyxy(np.array([box], float), self.box_format)[0].tolist()
        if self.box_units == "normalized":
            height, width = image_size
            left, top, right, bottom = left * width, top * height, right * width, bottom * height
        return [left, top, right - left, bottom - top]

    def _read_outline(
        self, given: Mapping[str, Any], box: list[float], where: str, image_size: list[int]
    ) -> tuple[list[list[float]], str | None]:
        """Parts for training, and compressed run lengths of a crowd region for evaluation."""
        segmentation, run_lengths, is_crowd = given.get("polygons"), given.get("run_lengths"), given.get("is_crowd")
        if isinstance(segmentation, list) and segmentation and all(map(is_number, segmentation)):
            segmentation = [segmentation]  # a single part
        if is_crowd:  # without run lengths its box is the region
            if not run_lengths:
                return [], None
            segmentation = {"size": image_size, "counts": run_lengths}
        item = {"bbox": box, "segmentation": segmentation, "iscrowd": int(bool(is_crowd))}
        _, parts, faults = mend_outline(item, tuple(image_size))
        self._report(faults, where)
        return parts, run_lengths if is_crowd and not faults else None

    def _read_keypoints(self, value: Any, where: str) -> list[float]:
        if not value:
            return []
        triples, faults = mend_keypoints([number for point in value for number in _as_list(point)], self.num_keypoints)
        self._report(faults, where)
        self.keypoints_seen["good" if triples else "bad"] += 1
        return [float(number) for number in triples or ()]

    def _report(self, faults: Iterable[Fault], where: str) -> None:
        for kind, words in faults:
            self.problems.repair(kind, f"{where} {words}")


def _raw_rows(source: Any, plain: Any, columns: Columns, reader: _RowReader) -> Iterator[dict[str, Any]]:
    """Rows with their annotations, and of the pictures' bytes only whether there are any, unless they are needed."""
    needs_bytes = not (columns.height and columns.width)
    pictures = source.select_columns([columns.image]).with_format("arrow")
    start = 0
    for batch in pictures.iter(batch_size=ROWS_AT_ONCE if not needs_bytes else 32):
        column = batch[columns.image].combine_chunks()
        paths = column.field("path").to_pylist()
        contents = column.field("bytes")
        contents = contents.to_pylist() if needs_bytes else contents.is_valid().to_pylist()
        rows = plain[start : start + len(paths)] if plain is not None else {}
        for position, path in enumerate(paths):
            row = {name: values[position] for name, values in rows.items()}
            yield {**row, columns.image: {"bytes": contents[position] or None, "path": path}}
        start += len(paths)


def _annotations(rows: list[dict[str, Any]], reader: _RowReader) -> tuple[dict, dict | None, dict | None]:
    """The ground truth in the form of COCO's files."""
    instances = coco_annotations(rows, reader.id2label, [row["file_name"] for row in rows])
    keypoints = captions = None
    places = [(row, index) for row in rows for index in range(len(row["labels"]))]
    if "polygons_xy" in reader.extra:
        for item, (row, index) in zip(instances["annotations"], places, strict=True):
            if row["run_lengths"][index]:
                item["segmentation"] = {"size": list(row["image_size"]), "counts": row["run_lengths"][index]}
    if "keypoints_xyv" in reader.extra:
        found = [
            {**item, "keypoints": row["keypoints_xyv"][index], "num_keypoints": row["num_keypoints"][index]}
            for item, (row, index) in zip(instances["annotations"], places, strict=True)
            if row["keypoints_xyv"][index]
        ]
        keypoints = {**instances, "annotations": found}
    if "captions" in reader.extra:
        texts = [(row["image_id"], text) for row in rows for text in row["captions"]]
        captions = {
            "images": instances["images"],
            "annotations": [
                {"id": number, "image_id": image_id, "caption": text}
                for number, (image_id, text) in enumerate(texts, start=1)
            ],
        }
    return instances, keypoints, captions


def refuse_path(path: str | None, folders: Iterable[Path]) -> tuple[str | None, str | None]:
    """Why a picture may not be read from a file of this name: kind of problem and words, None if it may."""
    if not path:
        return "missing picture", "has neither pixels nor a file name"
    resolved = Path(path).resolve()
    if not any(resolved.is_relative_to(folder) for folder in folders):
        words = f"{path} lies outside of the data set's folder; if that is right, name its folder: columns.folder"
        return "picture outside of the folder", words
    return (None, None) if resolved.is_file() else ("missing picture", f"{path}: no such picture")


def picture_folders(data: str | Path, columns: Columns) -> list[Path]:
    """Folders that pictures may lie in."""
    path = Path(data).resolve()
    own = [path if path.is_dir() else path.parent] if path.exists() else [Path(datasets.config.HF_CACHE_HOME).resolve()]
    return own + ([Path(columns.folder).resolve()] if columns.folder else [])


def _as_list(value: Any) -> list:
    """A value as a list: none is an empty one, a single text or number one of one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
