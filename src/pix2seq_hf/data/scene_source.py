r"""How are drawn scenes a data set without files: `--data scenes`, or `--data scenes:objects=1-5,points=24,seed=3`.

As a stream (`data.streaming: true`) there is no end of them: every sample of a run is another scene, and a process
draws those only that it needs. With `max_images` they are a split like any other, drawn when it is opened and kept in
memory.
"""

import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from pix2seq_hf.data.annotations import boxes_from_xywh
from pix2seq_hf.data.collation import Sample, SampleKey
from pix2seq_hf.data.hub import StreamSplit
from pix2seq_hf.data.mending import choose_images
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import FEATURES, TASK_FEATURES, Split, load_record
from pix2seq_hf.data.scene_captions import all_words
from pix2seq_hf.data.scene_folder import QUALITY, file_name, join_scenes, parse_options
from pix2seq_hf.data.scene_things import SCENE_CLASSES
from pix2seq_hf.data.scenes import Scene, SceneOptions, draw_scene
from pix2seq_hf.data.stream import StreamDataset

NAME = "scenes"
NUM_CAPTIONED = 100  # scenes whose captions a tokenizer is made from


def is_scenes(data: str | Path) -> bool:
    """Whether a name stands for drawn scenes; a file or folder of this name goes first."""
    return str(data).partition(":")[0] == NAME and not Path(data).exists()


def list_splits(data: str | Path) -> list[str]:
    """Names of splits; any other will do as well."""
    parse_name(data)
    return ["train", "val"]


def parse_name(data: str | Path) -> tuple[int, SceneOptions]:
    r"""Read the seed and the options of `scenes:OPTION=VALUE,...`.

    Raises:
        ValueError: If one is unknown or cannot be read."""
    settings = {}
    for pair in filter(None, str(data).partition(":")[2].split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{data}: write options as NAME=VALUE, for instance scenes:size=256,objects=1-5")
        settings[name] = value
    seed = settings.pop("seed", "0")
    if not seed.isdecimal():
        raise ValueError(f"{data}: seed {seed!r} is no whole number")
    try:
        return int(seed), parse_options(settings)
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from None


def read_scenes(
    data: str | Path,
    split: str,
    image_ids: Iterable[int] | None = None,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    problems: Problems | None = None,
) -> Split:
    r"""Draw the first scenes of a split.

    Args:
        data (`str` or `Path`): `scenes` with options or without.
        split (`str`): Its name.
        image_ids (`Iterable[int]`, *optional*): Draw these only; they count from 1.
        max_images (`int`, *optional*): How many.
        tasks (`Iterable[str]`): Names in `TASK_FEATURES`: what is given beside boxes.
        num_keypoints (`int`): 17.
        problems ([`Problems`], *optional*): There are none.
    Returns:
        [`Split`] with the pictures of the folder that `pix2seq data scenes` writes.
    Raises:
        ValueError: If neither `image_ids` nor `max_images` ends it."""
    seed, options = parse_name(data)
    if image_ids is None and max_images is None:
        raise ValueError(
            f"{data}: has no end: say how many with max_images (--max-images N, in training --set data.max_images=N), "
            "or train without end with --set data.streaming=true"
        )
    image_ids = list(range(1, max_images + 1) if image_ids is None else image_ids)
    if min(image_ids, default=1) < 1:
        raise ValueError(f"{data}: image_ids count from 1, got {min(image_ids)}")
    image_ids = choose_images(dict.fromkeys(image_ids), image_ids, max_images, Path(str(data)))
    columns = _columns(tasks, data, num_keypoints)
    rows: dict[str, list] = {name: [] for name in columns}
    drawn = []
    for image_id in image_ids:
        scene = draw_scene(seed, split, image_id - 1, options)
        drawn.append((image_id, scene.objects, scene.captions))
        for name, value in _to_row(scene, image_id, columns, "JPEG").items():
            rows[name].append(value)
    contents = join_scenes(drawn, options.image_size, f"drawn scenes, seed {seed}, split {split}")
    return Split(
        datasets.Dataset.from_dict(rows, features=columns),
        dict(SCENE_CLASSES),
        contents["instances"],
        contents["person_keypoints"] if "keypoints_xyv" in columns else None,
        contents["captions"] if "captions" in columns else None,
    )


@dataclasses.dataclass(frozen=True)
class SceneStream(StreamSplit):
    r"""Scenes without end; [`SceneDataset`] makes samples of them.

    Args:
        seed (`int`), split (`str`), options ([`SceneOptions`]): Of the scenes.
        columns (`datasets.Features`): Of a row."""

    seed: int = 0
    split: str = "train"
    options: SceneOptions = dataclasses.field(default_factory=SceneOptions)
    columns: datasets.Features = dataclasses.field(default_factory=datasets.Features)

    def row(self, index: int, needs_person: bool = False) -> dict[str, Any]:
        """Draw a scene as a row; the picture is not compressed."""
        options = dataclasses.replace(self.options, needs_person=needs_person)
        return _to_row(draw_scene(self.seed, self.split, index, options), index + 1, self.columns, "BMP")

    def some_captions(self) -> list[str]:
        """Captions of the first scenes, and all words there are."""
        scenes = (draw_scene(self.seed, self.split, index, self.options) for index in range(NUM_CAPTIONED))
        return [*all_words(), *(caption for scene in scenes for caption in scene.captions)]


def stream_scenes(
    data: str | Path,
    split: str,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
) -> SceneStream:
    """Open scenes without end, or the first `max_images` again and again; arguments as of [`read_scenes`]."""
    seed, options = parse_name(data)
    columns = _columns(tasks, data, num_keypoints)
    return SceneStream(None, dict(SCENE_CLASSES), max_images, seed, split, options, columns)


class SceneDataset(StreamDataset):
    r"""Samples of a run from a [`SceneStream`]; arguments as of [`StreamDataset`].

    Every sample is of another scene; where single objects are learnt, it is about one of them."""

    def __iter__(self) -> Iterator[Sample]:
        worker = torch.utils.data.get_worker_info()
        mine, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        part = self.batch_size // self.num_processes
        for position in itertools.count():
            batch, place = divmod(position, self.batch_size)
            if batch % num_workers == mine and place // part == self.process:
                yield self._sample(self.start + position)

    def _sample(self, number: int) -> Sample:
        epoch, index = divmod(number, self.stream.num_rows) if self.stream.num_rows else (0, number)
        row = self.stream.row(index)
        indices = self.samples_of(row)
        if not indices:  # only keypoints need more than any scene has
            row = self.stream.row(index, needs_person=True)
            indices = self.samples_of(row)
        if not indices:
            raise ValueError("scenes have nothing to learn from for one of the tasks")
        chosen = indices[np.random.default_rng([self.seed, number]).integers(len(indices))]
        record = load_record(row, **self.widths)
        return SampleKey(epoch, index), record if chosen is None else {**record, "object_index": chosen}


def _columns(tasks: Iterable[str], data: str | Path, num_keypoints: int) -> datasets.Features:
    columns = {name: feature for task in tasks for name, feature in TASK_FEATURES[task].items()}
    if "keypoints_xyv" in columns and num_keypoints != 17:
        raise ValueError(f"{data}: people have COCO's 17 keypoints, not {num_keypoints}")
    return datasets.Features({**FEATURES, **columns})


def _to_row(scene: Scene, image_id: int, columns: Mapping[str, Any], format: str) -> dict[str, Any]:
    """A scene as a row of [`Split`], its picture as the content of a file."""
    content = io.BytesIO()
    scene.picture.save(content, format, **({"quality": QUALITY} if format == "JPEG" else {}))
    image_size, objects = scene.picture.size[::-1], scene.objects
    crowds = [bool(item["iscrowd"]) for item in objects]
    row = {
        "image_id": image_id,
        "image": {"path": file_name(image_id), "bytes": content.getvalue()},
        "image_size": list(image_size),
        "boxes_yxyx": boxes_from_xywh([item["bbox"] for item in objects], image_size).numpy(),
        "labels": [item["category_id"] for item in objects],
        "areas": [float(item["area"]) for item in objects],
        "is_crowd": crowds,
    }
    if "polygons_xy" in columns:
        row["polygons_xy"] = [[] if item["iscrowd"] else item["segmentation"] for item in objects]
    if "keypoints_xyv" in columns:
        row["keypoints_xyv"] = [item.get("keypoints", []) for item in objects]
        row["num_keypoints"] = [item.get("num_keypoints", 0) for item in objects]
    if "captions" in columns:
        row["captions"] = scene.captions
    return row
