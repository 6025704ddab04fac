r"""How a data set of any layout becomes a folder of parquet that `datasets.load_dataset` and `pix2seq train` read.

    OUT/README.md                                what is in it, with the features and the class names
    OUT/data/<split>-00000-of-00002.parquet      columns as `detection-datasets/coco` has them, and more for the tasks

Nothing is lost that training sees: the rows that are read back are the same to the last bit. Boxes are corners in
pixels; the place of a class in the list of names is its id less one, ids without a class are named `unused <id>`.

Everything is written into `OUT.part` and renamed when it is whole. What an interrupted conversion has finished there is
kept by the next one if it is of the same data and options.
"""

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pix2seq_hf.data.columns import UNUSED
from pix2seq_hf.data.rows import Split
from pix2seq_hf.masks_pix2seq import coco_mask

ROWS_PER_GROUP = 100  # of a parquet file: what a reader has to load at once
PLAN = "conversion.json"
WRITTEN_BY = "Written by `pix2seq data convert`"


def class_names(id2label: Mapping[int, str]) -> list[str]:
    r"""List the names of classes so that the place of each, from 1, is its id.

    Raises:
        ValueError: If two classes have one name: they could not be told apart."""
    names = [id2label.get(number, f"{UNUSED}{number}") for number in range(1, max(id2label, default=0) + 1)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two classes are named {min(twice)!r}: parquet tells classes apart by their names")
    return names


def row_features(split: Split) -> datasets.Features:
    """Columns of the parquet files of a split."""
    names, present = class_names(split.id2label), split.dataset.column_names
    real = datasets.Value("float32")
    objects = {
        "bbox_xyxy": datasets.List(datasets.List(real, length=4)),
        "category": datasets.List(datasets.ClassLabel(names=names)),
        "area": datasets.List(real),
        "is_crowd": datasets.List(datasets.Value("bool")),
    }
    if "polygons_xy" in present:
        objects["segmentation"] = datasets.List(datasets.List(datasets.List(real)))
        objects["segmentation_rle"] = datasets.List(datasets.Value("string"))
    if "keypoints_xyv" in present:
        objects["keypoints"] = datasets.List(datasets.List(real))
    features = {
        "image_id": datasets.Value("int64"),
        "image": datasets.Image(),
        "width": datasets.Value("int32"),
        "height": datasets.Value("int32"),
        "objects": objects,
    }
    if "captions" in present:
        features["captions"] = datasets.List(datasets.Value("string"))
    return datasets.Features(features)


def convert_rows(split: Split, start: int, stop: int, embed: bool) -> Iterator[dict[str, Any]]:
    r"""Rows as they stand in parquet.

    Args:
        split ([`Split`]): Where they come from.
        start (`int`), stop (`int`): Which of its rows.
        embed (`bool`): With the contents of the pictures' files, else with their absolute names.
    Raises:
        OSError: If a picture cannot be read."""
    crowds: dict[int, list[dict]] = {}
    for item in split.annotations["annotations"]:
        if item.get("iscrowd"):
            crowds.setdefault(item["image_id"], []).append(item)
    for index in range(start, stop):
        row = split.dataset[index]
        height, width = row["image_size"]
        path, content = row["image"]["path"], row["image"].get("bytes")
        if content is None and embed:
            content = Path(path).read_bytes()
        objects = {
            "bbox_xyxy": [corners_of(box, (height, width)) for box in row["boxes_yxyx"]],
            "category": [label - 1 for label in row["labels"]],
            "area": row["areas"],
            "is_crowd": row["is_crowd"],
        }
        if "polygons_xy" in row:
            objects["segmentation"] = row["polygons_xy"]
            objects["segmentation_rle"] = [""] * len(row["labels"])
            places = [place for place, is_crowd in enumerate(row["is_crowd"]) if is_crowd]
            found = crowds.get(row["image_id"], [])
            if len(found) == len(places):
                for place, item in zip(places, found):
                    objects["segmentation_rle"][place] = _run_lengths(item.get("segmentation"))
        if "keypoints_xyv" in row:
            objects["keypoints"] = row["keypoints_xyv"]
        name = path if content is None else os.path.basename(path or f"{row['image_id']}")
        converted = {
            "image_id": row["image_id"],
            "image": {"bytes": content, "path": os.path.abspath(name) if content is None else name},
            "width": width,
            "height": height,
            "objects": objects,
        }
        yield {**converted, "captions": row["captions"]} if "captions" in row else converted


def corners_of(box_yxyx: list[float], image_size: tuple[int, int]) -> list[float]:
    r"""Left, top, right and bottom in pixels that [`boxes_from_xywh`] turns into the same box again, to the last bit.

    Args:
        box_yxyx (`list[float]`): A normalised box; float32 numbers.
        image_size (`tuple[int, int]`): (height, width) in pixels."""
    corners = []
    for place, side in ((1, 1), (0, 0), (3, 1), (2, 0)):
        size, share = image_size[side], np.float32(box_yxyx[place])
        guess = np.float32(share * np.float64(size))
        rounded = np.float32(round(float(guess), 2))  # what people write; it reads better and compresses well
        near = [rounded, guess]
        for direction in (-np.inf, np.inf):
            near += [step := np.nextafter(guess, np.float32(direction)), np.nextafter(step, np.float32(direction))]
        scale = np.float32(1) / np.float32(size)
        corners.append(float(next((value for value in near if value * scale == share), guess)))
    return corners


def plan_shards(split: Split, shard_bytes: int, embed: bool) -> tuple[list[tuple[int, int]], int]:
    r"""Cut a split into pieces of about one size.

    Args:
        split ([`Split`]): The split.
        shard_bytes (`int`): Size of a file.
        embed (`bool`): Whether pictures are written.
    Returns:
        `tuple`: First row and end of each file, and the number of bytes of all pictures."""
    total = 0
    if embed:
        for image in split.dataset.select_columns(["image"]):
            content = image["image"].get("bytes")
            total += len(content) if content is not None else os.stat(image["image"]["path"]).st_size
    num_rows = len(split.dataset)
    num_shards = min(num_rows, max(1, math.ceil(total / shard_bytes)))
    edges = np.linspace(0, num_rows, num_shards + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges)), total


def select_rows(split: Split, rows: Sequence[int]) -> Split:
    """Some rows of a split, with what is annotated of their pictures."""
    if len(rows) == len(split.dataset):
        return split
    dataset = split.dataset.select(rows)
    kept = set(dataset["image_id"])

    def cut(content: dict | None) -> dict | None:
        if content is None:
            return None
        images = [image for image in content["images"] if image["id"] in kept]
        return {**content, "images": images, "annotations": [
            item for item in content["annotations"] if item["image_id"] in kept
        ]}  # fmt: skip

    contents = map(cut, (split.annotations, split.keypoint_annotations, split.caption_annotations))
    return Split(dataset, split.id2label, *contents)


def check_output(output: str | Path, overwrite: bool) -> Path:
    r"""Find out whether a folder may be written, before anything is read.

    Args:
        output (`str` or `Path`): The folder.
        overwrite (`bool`): Replace it if it is there.
    Raises:
        OSError: If it may not."""
    output = Path(output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output}: is there already: choose another folder, or --overwrite it")
    if output.exists() and WRITTEN_BY not in _read_text(output / "README.md"):
        raise FileExistsError(f"{output}: is not a folder that this command wrote: it will not be overwritten")
    return output


def convert_splits(
    data: str | Path,
    splits: Mapping[str, Split],
    output: str | Path,
    embed: bool = True,
    shard_bytes: int = 500_000_000,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> list[Path]:
    r"""Write splits as a folder of parquet.

    Args:
        data (`str` or `Path`): Where they come from, for the card.
        splits (`Mapping[str, Split]`): By name.
        output (`str` or `Path`): The folder.
        embed (`bool`): Write pictures into the files, else their absolute names.
        shard_bytes (`int`): Size of a file.
        overwrite (`bool`): Replace the folder if it is there.
        on_progress (`Callable`): Told how many rows more are written.
    Returns:
        `list[Path]`: The parquet files.
    Raises:
        OSError: If the folder is there already, the disk is too small, or a picture cannot be read.
        ValueError: If a file that was written does not hold what it should."""
    output = check_output(output, overwrite)
    part = output.with_name(f"{output.name}.part")
    shards = {name: plan_shards(split, shard_bytes, embed) for name, split in splits.items()}
    plan = {
        "data": str(Path(data).absolute()) if Path(data).exists() else str(data),
        "embed": embed,
        "splits": {
            name: {"files": shards[name][0], "bytes": shards[name][1], "fingerprint": fingerprint(split)}
            for name, split in splits.items()
        },
    }
    plan = json.loads(json.dumps(plan))
    if part.exists() and _read_plan(part) != plan:
        shutil.rmtree(part)
    (part / "data").mkdir(parents=True, exist_ok=True)
    (part / PLAN).write_text(json.dumps(plan))
    done = sum(path.stat().st_size for path in (part / "data").glob("*.parquet"))
    needed, free = sum(size for _, size in shards.values()) - done, shutil.disk_usage(part).free
    if needed > free:
        raise OSError(f"{output}: the pictures need {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left")

    for name, split in splits.items():
        features = row_features(split)
        for number, (start, stop) in enumerate(shards[name][0]):
            path = part / "data" / f"{name}-{number:05}-of-{len(shards[name][0]):05}.parquet"
            if not path.is_file():  # written in one piece: a file of this name is whole
                _write_shard(path, split, start, stop, embed, features, on_progress)
            else:
                on_progress(stop - start)
            if pq.read_metadata(path).num_rows != stop - start:
                raise ValueError(f"{path}: holds {pq.read_metadata(path).num_rows} rows instead of {stop - start}")
    files = {name: sorted((part / "data").glob(f"{name}-*-of-*.parquet")) for name in splits}
    (part / "README.md").write_text(dataset_card(data, splits, files, embed), encoding="utf-8")
    (part / PLAN).unlink()
    if output.exists():
        old = output.with_name(f"{output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
        part.rename(output)
        shutil.rmtree(old)
    else:
        part.rename(output)
    return sorted((output / "data").glob("*.parquet"))


def fingerprint(split: Split) -> str:
    """What tells one state of a split from another: a hash of the rows' annotations, names and sizes of pictures."""
    hasher = datasets.fingerprint.Hasher()
    for batch in split.dataset.remove_columns(["image"]).with_format("arrow").iter(batch_size=1000):
        hasher.update(batch.to_pydict())
    hasher.update(sorted(split.id2label.items()))
    return hasher.hexdigest()


def dataset_card(data: str | Path, splits: Mapping[str, Split], files: Mapping[str, list[Path]], embed: bool) -> str:
    """The text of README.md: YAML that `datasets` and the Hub read, then words for people."""
    first = next(iter(splits.values()))
    features = row_features(first)
    sizes = {name: sum(path.stat().st_size for path in files[name]) for name in splits}
    configs = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits],
            }
        ],
        "dataset_info": {
            "features": features._to_yaml_list(),
            "splits": [
                {"name": name, "num_bytes": sizes[name], "num_examples": len(split.dataset)}
                for name, split in splits.items()
            ],
            "download_size": sum(sizes.values()),
            "dataset_size": sum(sizes.values()),
        },
        "task_categories": ["object-detection"],
    }
    rows = [
        f"| {name} | {len(split.dataset)} | {len(split.annotations['annotations'])} | {len(files[name])} |"
        for name, split in splits.items()
    ]
    kept = (
        "The files of the pictures are inside, byte for byte."
        if embed
        else (
            "Pictures are named by their places on the disk of the machine that wrote this; tell a reader their folder "
            "(`columns.folder`)."
        )
    )
    columns = {
        "image_id": "number of the picture",
        "image": "the picture",
        "width, height": "its size in pixels, as the annotations see it",
        "objects.bbox_xyxy": "left, top, right, bottom in pixels",
        "objects.category": "class; its id is its place in the list of names, from 1",
        "objects.area": "pixels of the object",
        "objects.is_crowd": "whether it is a group that is not taught and does not count",
        "objects.segmentation": "outline: parts, each x, y, x, y, ... in pixels",
        "objects.segmentation_rle": "COCO's compressed run lengths of a crowd region, else empty",
        "objects.keypoints": "x, y, visibility of each keypoint; empty for an object without",
        "captions": "sentences about the picture",
    }
    present = {*features, *(f"objects.{name}" for name in features["objects"]), "width, height"}
    names = ", ".join(f"{number} {name}" for number, name in sorted(first.id2label.items()))
    return "\n".join(
        [
            "---",
            yaml.safe_dump(configs, sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {Path(data).name}",
            "",
            f"{WRITTEN_BY} from `{Path(data).name}`. {kept}",
            "",
            "| split | pictures | objects | files |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "| column | what |",
            "| --- | --- |",
            *(f"| `{name}` | {text} |" for name, text in columns.items() if name in present),
            "",
            f"Classes: {names}.",
            "",
        ]
    )


def _write_shard(
    path: Path, split: Split, start: int, stop: int, embed: bool, features: datasets.Features, on_progress: Callable
) -> None:
    """Write one file beside its place, then give it its name."""
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, features.arrow_schema) as writer:
        for first in range(start, stop, ROWS_PER_GROUP):
            last = min(first + ROWS_PER_GROUP, stop)
            rows = list(convert_rows(split, first, last, embed))
            writer.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema))
            on_progress(last - first)
    temporary.rename(path)


def _run_lengths(segmentation: Any) -> str:
    """COCO's compressed run lengths; empty where there are none."""
    if not isinstance(segmentation, dict) or coco_mask is None:
        return ""
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    counts = segmentation["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


def _read_plan(folder: Path) -> Any:
    try:
        return json.loads(_read_text(folder / PLAN))
    except ValueError:
        return None


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
