r"""Where do records come from: a folder in the layout of YOLO, as Ultralytics and most annotation tools write it.

    DIR/data.yaml                      names: of the classes; train:, val:, test: folders of pictures, or lists of them
    DIR/images/<split>/<stem>.jpg      any format that Pillow reads
    DIR/labels/<split>/<stem>.txt      one object per line, in shares of the picture's width and height: class, x and y
                                       of the centre, width, height; or an outline: class, x, y, x, y, ...

Without `data.yaml` there is `classes.txt`, one name per line, and the splits are the folders in `images/`, or "all".

Decisions, where the layout leaves room:

- Class n of the files, which count from 0, is category n + 1: 0 means padding. Picture ids count the pictures of a
  split from 1, sorted by name (or in the order of its list).
- A picture without a file of labels has no objects. Shares are of the upright picture. A file in `labels` without a
  picture is a picture that is gone, and named.
- Paths in `data.yaml` are often those of another machine: where one leads out of DIR, its last parts are looked for
  in DIR. Nothing outside of DIR is read.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import yaml

from pix2seq_hf.data.annotations import boxes_from_xywh
from pix2seq_hf.data.coco import MAX_LABEL
from pix2seq_hf.data.mending import LARGEST_NUMBER, choose_images, mend_box, shorten
from pix2seq_hf.data.pictures import PICTURE_SUFFIXES
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import FEATURES, TASK_FEATURES, Split, coco_annotations, read_picture_size

WHOLE = "all"
SPLIT_NAMES = ("train", "val", "test")
CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")


def read_yolo(
    folder: str | Path,
    split: str,
    image_ids: Iterable[int] | None = None,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    problems: Problems | None = None,
) -> Split:
    r"""Open one split of a YOLO folder.

    Args:
        folder (`str` or `Path`): The folder that has `data.yaml` or `classes.txt`, or the path of its `data.yaml`.
        split (`str`): `"train"`, `"val"` or `"test"`; `"all"` if nothing is split.
        image_ids (`Iterable[int]`, *optional*): Keep these pictures only, in this order.
        max_images (`int`, *optional*): Keep at most the first so many pictures.
        tasks (`Iterable[str]`): `"object_detection"`, `"instance_segmentation"`.
        num_keypoints (`int`): Not used: keypoints are not read.
        problems ([`Problems`], *optional*): Collects what was mended, and errors.
    Returns:
        [`Split`].
    Raises:
        OSError: If the folder, the split or its pictures are missing.
        ValueError: If a task needs what these files do not have, or a file cannot be used."""
    problems = Problems() if problems is None else problems
    tasks = list(tasks)
    for task in tasks:
        if task not in ("object_detection", "instance_segmentation"):
            raise ValueError(f"{folder}: a YOLO folder is read for boxes and outlines, it has nothing for {task}")
    folder, settings, source = _open_folder(folder)
    places = _find_splits(folder, settings)
    if split not in places:
        found = ", ".join(places) or "none"
        raise FileNotFoundError(f"{source}: has no split {split!r} (splits that are there: {found})")
    id2label = _read_names(folder, settings, source, problems)
    pictures = _list_pictures(places[split], folder, source)
    kept = choose_images(range(1, len(pictures) + 1), image_ids, max_images, source)
    for path in _find_orphans(places[split], pictures, folder) if len(kept) == len(pictures) else ():
        problems.lose("picture that is gone", f"{path}: has no picture in {_find_pictures(path, folder)}")

    with_polygons = "instance_segmentation" in tasks
    columns = {name: feature for task in tasks for name, feature in TASK_FEATURES[task].items()}
    features = datasets.Features({**FEATURES, **columns})
    rows, file_names = [], []
    for image_id in kept:
        picture = pictures[image_id - 1]
        try:
            image_size, is_turned = read_picture_size(picture)
            lines = _read_lines(_find_labels(picture, folder))
        except (ValueError, OSError) as error:
            problems.lose("unusable picture or labels", str(error))
            continue
        image_size = image_size[::-1] if is_turned else image_size
        has_keypoints = "kpt_shape" in settings
        objects = _read_objects(lines, _find_labels(picture, folder), image_size, id2label, has_keypoints, problems)
        boxes = [item["bbox"] for item in objects]
        row = {
            "image_id": image_id,
            "image": {"path": str(picture), "bytes": None},
            "image_size": list(image_size),
            "boxes_yxyx": boxes_from_xywh(boxes, image_size).numpy(),
            "labels": [item["label"] for item in objects],
            "areas": [width * height for _, _, width, height in boxes],
            "is_crowd": [False] * len(objects),
        }
        if with_polygons:
            row["polygons_xy"] = [item["parts"] for item in objects]
            for item in objects:
                if not item["parts"]:
                    words = f"{item['where']} is a box: not used for segmentation"
                    problems.repair("object without outline", words)
        rows.append(row)
        file_names.append(picture.relative_to(folder).as_posix())
    if not any(row["labels"] for row in rows):
        problems.repair("no annotations", f"{source}: no picture of {split!r} has an object: each counts as empty")
    table = {name: [row[name] for row in rows] for name in features}
    annotations = coco_annotations(rows, id2label, file_names)
    return Split(datasets.Dataset.from_dict(table, features=features), id2label, annotations)


def list_splits(folder: str | Path) -> list[str]:
    """Name the splits of a YOLO folder, or of one given by its `data.yaml`; empty if it is none."""
    try:
        folder, settings, _ = _open_folder(folder)
    except FileNotFoundError:
        return []
    return list(_find_splits(folder, settings))


def _open_folder(data: str | Path) -> tuple[Path, dict[str, Any], Path]:
    """The folder, what its `data.yaml` says (nothing if it has none), and what lists the pictures."""
    data = Path(data)
    if data.is_dir():
        for path in sorted((*data.glob("*.yaml"), *data.glob("*.yml")), key=lambda path: path.stem != "data"):
            try:
                settings = _read_yaml(path)
            except ValueError:
                if path.stem == "data":
                    raise
                continue  # not about the data
            if any(name in settings for name in SPLIT_NAMES) and ("names" in settings or "nc" in settings):
                return data, settings, path
        if (data / "images").is_dir() and (data / "labels").is_dir():
            return data, {}, data
    elif data.is_file():
        settings = _read_yaml(data)
        if not any(name in settings for name in SPLIT_NAMES):
            raise ValueError(f"{data}: not the data.yaml of a YOLO folder (it has no train:, val: or test:)")
        return data.parent, settings, data
    raise FileNotFoundError(f"{data}: not a YOLO folder (no data.yaml, and no images/ with labels/)")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    return content if isinstance(content, dict) else {}


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path stays in a folder, by its name: links that the user made are followed."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _find_splits(folder: Path, settings: dict[str, Any]) -> dict[str, list[Path]]:
    """Folders of pictures, and lists of them, per split."""
    if not settings:
        folders = sorted(path for path in (folder / "images").iterdir() if path.is_dir() and path.name[0] != ".")
        return {path.name: [path] for path in folders} or {WHOLE: [folder / "images"]}
    root, places = folder / str(settings.get("path") or "."), {}
    if not root.is_dir() or not _is_inside(root, folder):
        root = folder
    for name in SPLIT_NAMES:
        entries = settings.get(name)
        entries = entries if isinstance(entries, list) else [entries]
        if all(isinstance(entry, str) for entry in entries):
            places[name] = [_find_place(root, folder, entry) for entry in entries]
    return places


def _find_place(root: Path, folder: Path, entry: str) -> Path:
    """A folder or list that `data.yaml` names; exporters write "../train/images" for one in their own folder."""
    parts = [part for part in Path(entry).parts if part not in ("..", "/")]
    # "images" alone says nothing of a split: it would be the pictures of all of them.
    counts = [count for count in (len(parts), 2, 1) if parts[-count:] != ["images"] or len(parts) == 1]
    choices = [root / entry, *(base.joinpath(*parts[-count:]) for count in counts for base in (root, folder))]
    found = [path for path in choices if path.exists() and _is_inside(path, folder)]
    return found[0] if found else choices[0]


def _list_pictures(places: Iterable[Path], folder: Path, source: Path) -> list[Path]:
    pictures = []
    for place in places:
        if place.exists() and not _is_inside(place, folder):
            raise ValueError(f"{source}: {place} is outside of {folder}: move the pictures into the folder")
        if place.is_dir():
            found = [path for path in place.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES]
            pictures += sorted(path for path in found if path.name[0] != ".")
        elif place.is_file():
            for line in place.read_text(encoding="utf-8-sig").splitlines():
                if line.strip():
                    path = place.parent / line.strip()
                    if not _is_inside(path, folder):
                        raise ValueError(f"{place}: lists {line.strip()!r}, which is outside of {folder}")
                    pictures.append(path)
        else:
            raise FileNotFoundError(f"{place}: no such folder or list, but {source} names it")
    if not pictures:
        raise ValueError(f"{source}: there are no pictures in {', '.join(map(str, places))}")
    return list(dict.fromkeys(pictures))


def _read_names(folder: Path, settings: dict[str, Any], source: Path, problems: Problems) -> dict[int, str]:
    """Names of the classes by category id, which is one more than the number in the files."""
    names, count = settings.get("names"), settings.get("nc")
    if not settings:
        path = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{folder}: has no data.yaml and no classes.txt: list the names of the classes in one"
            )
        source, names = path, [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        while names and not names[-1]:
            names.pop()
    if names is None and type(count) is int and 0 < count <= MAX_LABEL:
        problems.repair("classes without names", f"{source}: has no names: for {count} classes: called class_0, ...")
        names = [f"class_{index}" for index in range(count)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{source}: names: must list the classes")
    for index, name in names.items():
        if type(index) is not int or not 0 <= index < MAX_LABEL or not isinstance(name, str | int):
            raise ValueError(
                f"{source}: class {shorten(index)}: {shorten(name)} needs a number from 0 to {MAX_LABEL - 1} and a name"
            )
    return {index + 1: str(name) for index, name in sorted(names.items())}


def _find_labels(picture: Path, folder: Path) -> Path:
    """Where a picture's objects are: `labels` in the place of the last `images` in its path, or beside it."""
    parts = list(picture.relative_to(folder).parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return folder.joinpath(*parts).with_suffix(".txt")


def _find_orphans(places: Iterable[Path], pictures: Iterable[Path], folder: Path) -> list[Path]:
    """Files of labels whose picture is gone: those in `labels`, where no list says which pictures there should be."""
    known = {_find_labels(picture, folder) for picture in pictures}
    inside = [place for place in places if place.is_dir() and "images" in place.relative_to(folder).parts]
    found = (path for place in inside for path in _find_labels(place / "x", folder).parent.rglob("*.txt"))
    return sorted(path for path in set(found) - known if path.name not in CLASS_FILES and path.name[0] != ".")


def _find_pictures(labels: Path, folder: Path) -> Path:
    """The folder of the picture that a file in `labels` belongs to: [`_find_labels`] the other way round."""
    parts = list(labels.parent.relative_to(folder).parts)
    place = max(index for index, part in enumerate(parts) if part == "labels")
    return folder.joinpath(*parts[:place], "images", *parts[place + 1 :])


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None


def _read_objects(
    lines: list[str],
    path: Path,
    image_size: tuple[int, int],
    id2label: dict[int, str],
    has_keypoints: bool,
    problems: Problems,
) -> list[dict[str, Any]]:
    """Objects with usable boxes, in pixels."""
    (height, width), objects, seen = image_size, [], set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        values = _parse(line)
        if values is None or len(values) < 5:
            words = f"{where} is not a class and four finite numbers or more ({shorten(line)}): left out"
            problems.repair("line that is no object", words)
            continue
        if values in seen:
            problems.repair("annotation listed twice", f"{where} stands there twice: once taken")
            continue
        seen.add(values)
        label = values[0] + 1
        if label not in id2label:
            words = f"{where} has class {values[0]:g}, which has no name: left out"
            problems.repair("object of an unknown category", words)
            continue
        parts, shares = [], values[1:]
        if has_keypoints or len(shares) in (4, 5):
            if len(shares) == 5 and not has_keypoints:
                problems.repair("box with a sixth number", f"{where} has a sixth number, as predictions have: ignored")
            centre_x, centre_y, box_width, box_height = shares[:4]
            box = [(centre_x - box_width / 2) * width, (centre_y - box_height / 2) * height]
            box += [box_width * width, box_height * height]
        else:
            if len(shares) % 2:
                problems.repair("unusable polygon", f"{where} is an outline of half a point too many: that is left out")
            xs = [share * width for share in shares[: len(shares) // 2 * 2 : 2]]
            ys = [share * height for share in shares[1::2]]
            parts = [[number for point in zip(xs, ys, strict=True) for number in point]]
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        mended, kind = mend_box(box, image_size)
        if kind is not None:
            corners = f"({box[0]:g}, {box[1]:g}), {box[2]:g} x {box[3]:g} pixels"
            problems.repair(kind, f"{where}, {corners}: {kind}: {'left out' if mended is None else 'clipped'}")
        if mended is not None:
            objects.append({"bbox": mended, "label": int(label), "parts": parts, "where": where})
    return objects


def _parse(line: str) -> tuple[float, ...] | None:
    try:
        values = tuple(float(word) for word in line.split())
    except ValueError:
        return None
    return values if all(abs(value) <= LARGEST_NUMBER for value in values) else None  # NaN compares as False
