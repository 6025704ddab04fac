r"""Where do records come from: a folder in COCO layout, read through `datasets`.

    DIR/annotations/instances_<split>.json         or DIR/<split>/_annotations.coco.json, as Roboflow exports it,
                                                   or DIR/annotations/zhiyuan_objv2_<split>.json of Objects365
    DIR/annotations/person_keypoints_<split>.json  for keypoints; joined by annotation id. The instances file serves as
                                                   well, if its objects have keypoints
    DIR/annotations/captions_<split>.json          for captions; joined by picture id
    DIR/<split>/<file_name of each picture>        or DIR/images/<split>/, DIR/images/, DIR/

Everything is checked when the folder is opened, so that a training run does not die of a bad annotation after hours.
What is wrong with one object is mended or the object left out, and counted; what is wrong with the files is an error of
one line with the file and the id. Annotations that are good are not changed by one bit.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from pix2seq_hf.data.annotations import boxes_from_xywh
from pix2seq_hf.data.mending import (
    Fault,
    choose_images,
    is_integer,
    mend_caption,
    mend_keypoints,
    mend_object,
    mend_outline,
    shorten,
)
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import FEATURES, TASK_FEATURES, Split

MAX_LABEL = 899  # class tokens are 101 to 999 in the default vocabulary
# Where a split's instances may be, in the order in which they are looked for.
INSTANCE_FILES = (
    "annotations/instances_{split}.json",
    "{split}/_annotations.coco.json",
    "annotations/zhiyuan_objv2_{split}.json",
)
NO_KEYPOINTS = {"keypoints": []}
OBJECTS365_NAME = re.compile(r"images/v\d/(patch\d+/[^/]+)")


def read_coco(
    folder: str | Path,
    split: str,
    image_ids: Iterable[int] | None = None,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    problems: Problems | None = None,
) -> Split:
    r"""Open one split of a COCO folder.

    Args:
        folder (`str` or `Path`): The folder that has `annotations/`.
        split (`str`): For instance `"train2017"`.
        image_ids (`Iterable[int]`, *optional*): Keep these pictures only, in this order.
        max_images (`int`, *optional*): Keep at most the first so many pictures.
        tasks (`Iterable[str]`): Names in `TASK_FEATURES`: what is read beside boxes.
        num_keypoints (`int`): Keypoints of an object in the keypoints file.
        problems ([`Problems`], *optional*): Collects what was mended, and errors; by default the first error is raised.
    Returns:
        [`Split`]. Pictures without objects are kept.
    Raises:
        OSError: If the folder or an annotation file is missing.
        ValueError: If a file is not COCO JSON, a picture is missing, or an entry cannot be used; names file and id."""
    folder, problems = Path(folder), Problems() if problems is None else problems
    path = find_annotations(folder, split)
    content = read_instances(path)
    categories, shift = read_categories(content, path, problems)
    id2label = dict(sorted((category["id"], category["name"]) for category in categories))
    columns = {name: feature for task in tasks for name, feature in TASK_FEATURES[task].items()}

    images = _index_images(content["images"], path, problems)
    kept = choose_images(images, image_ids, max_images, path)
    if shift:
        for item in content["annotations"]:
            if is_integer(item.get("category_id")):
                item["category_id"] += shift
    objects = _mend_objects(content["annotations"], images, id2label, path, problems)
    if not objects:
        problems.repair("no annotations", f"{path}: lists no usable object: every picture counts as empty")
    parts: dict[int, list] = {}
    if "polygons_xy" in columns:
        objects, parts = _mend_outlines(objects, images, path, problems)

    keypoints = captions = None
    if "keypoints_xyv" in columns:
        dropped = {item["id"] for item in content["annotations"] if is_integer(item.get("id"))}
        dropped -= {item["id"] for item in objects}
        keypoints = _attempt(lambda: _read_keypoints(folder, split, num_keypoints, dropped, problems), problems)
    if "captions" in columns:
        captions = _attempt(lambda: _read_captions(folder, split, problems), problems)

    pictures = _find_pictures(folder, split, {image_id: images[image_id]["file_name"] for image_id in kept})
    missing = [image_id for image_id in kept if image_id not in pictures]
    for number, image_id in enumerate(missing):
        others = f" ({len(missing)} pictures are missing)" if number == 0 and len(missing) > 1 else ""
        picture = folder / split / images[image_id]["file_name"]
        words = f"no such picture, but {path} lists it with id {image_id}{others}"
        if problems.lose("missing picture", f"{picture}: {words}", is_known=True):
            pictures[image_id] = picture
    kept = [image_id for image_id in kept if image_id in pictures]

    grouped = _group(objects)
    triples = {item["id"]: item for item in reversed(keypoints["annotations"])} if keypoints else {}
    texts = _group(captions["annotations"]) if captions else {}
    features = datasets.Features({**FEATURES, **columns})
    rows: dict[str, list] = {name: [] for name in features}
    for image_id in kept:
        items = grouped.get(image_id, [])
        row = _to_row(images[image_id], items)
        row["image"] = {"path": str(pictures[image_id]), "bytes": None}
        if "polygons_xy" in columns:
            row["polygons_xy"] = [parts[item["id"]] for item in items]
        if "keypoints_xyv" in columns:
            found = [triples.get(item["id"], NO_KEYPOINTS) for item in items]
            row["keypoints_xyv"] = [item["keypoints"] for item in found]
            row["num_keypoints"] = [sum(visibility > 0 for visibility in item["keypoints"][2::3]) for item in found]
        if "captions" in columns:
            row["captions"] = [" ".join(item["caption"].split()) for item in texts.get(image_id, [])]
        for name, value in row.items():
            rows[name].append(value)

    kept, content = set(kept), {"images": list(images.values()), "annotations": objects, "categories": categories}
    return Split(
        datasets.Dataset.from_dict(rows, features=features),
        id2label,
        *(None if each is None else _cut(each, kept) for each in (content, keypoints, captions)),
    )


def _attempt(read: Callable[[], dict], problems: Problems) -> dict | None:
    """What a file holds, or `None` if it cannot be used and all errors are wanted."""
    try:
        return read()
    except (OSError, ValueError) as error:
        if not problems.keep_going:
            raise
        problems.error("unusable annotation file", str(error))
        return None


def _cut(content: Mapping[str, Any], kept: set[int]) -> dict[str, Any]:
    """The part of an annotation file that is about some pictures."""
    cut = {
        "images": [image for image in content["images"] if image.get("id") in kept],
        "annotations": [item for item in content["annotations"] if item.get("image_id") in kept],
    }
    return {**cut, "categories": content["categories"]} if "categories" in content else cut


def list_splits(folder: str | Path) -> list[str]:
    """Name the splits of a COCO folder; empty if it is none."""
    return _list_files(Path(folder), INSTANCE_FILES)


def _list_files(folder: Path, patterns: Iterable[str]) -> list[str]:
    """What stands for the split in the names of files that are there."""
    found = set()
    for pattern in patterns:
        expression = re.compile(re.escape(pattern).replace(re.escape("{split}"), "([^/]+)"))
        for file in folder.glob(pattern.format(split="*")):
            found.add(expression.fullmatch(file.relative_to(folder).as_posix())[1])
    return sorted(found)


def find_annotations(folder: str | Path, split: str, kind: str = "instances") -> Path:
    """Return the path of a split's annotation file; an OSError says what is missing and which splits there are."""
    folder, files = Path(folder), INSTANCE_FILES if kind == "instances" else (f"annotations/{kind}_{{split}}.json",)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (a COCO folder with annotations/{kind}_{split}.json)")
    paths = [folder / file.format(split=split) for file in files]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        found = _list_files(folder, files)
        advice = f"splits that are there: {', '.join(found)}" if found else "this is not a COCO folder"
        if not found and list_splits(folder):
            advice = f"a COCO folder without {kind.replace('_', ' ')}"
        raise FileNotFoundError(f"{paths[0]}: no such file ({advice})")
    return path


def read_instances(path: str | Path, lists: Iterable[str] = ("images", "annotations", "categories")) -> dict:
    r"""Load a COCO annotation file and check its outline.

    Args:
        path (`str` or `Path`): The file.
        lists (`Iterable[str]`): What it must hold; captions have no categories.
    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON, or lacks one of the lists."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"{path}: not valid JSON ({reason}); is the file complete?") from error
    except RecursionError:
        raise ValueError(f"{path}: not a COCO instances file (nested too deeply)") from None
    for name in lists:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(f"{path}: not a COCO instances file (it has no list {name!r})")
        if not all(isinstance(item, dict) for item in content[name]):
            raise ValueError(f"{path}: not a COCO instances file (an entry of {name!r} is not an object)")
    return content


def read_categories(content: Mapping[str, Any], path: str | Path, problems: Problems) -> tuple[list[dict], int]:
    r"""Check the categories of a COCO file.

    Args:
        content (`Mapping`): As [`read_instances`] returns it.
        path (`str` or `Path`): For messages.
        problems ([`Problems`]): Collects what was mended, and errors.
    Returns:
        `tuple`: The categories, ids from 1 to 899 with gaps; and what was added to every id: 1 if the file counts
        from 0, as many exporters do, for 0 means padding.
    Raises:
        ValueError: If there is no category, or an id is negative, above 899, or has two names."""
    categories, names = [], {}
    shift = int(any(is_integer(category.get("id")) and category["id"] == 0 for category in content["categories"]))
    if shift:
        words = "numbers categories from 0, which means padding: all category ids are read as one more"
        problems.repair("category 0", f"{path}: {words}")
    for category in content["categories"]:
        label, name = category.get("id"), category.get("name")
        if not is_integer(label) or not isinstance(name, str):
            problems.error(
                "unusable category", f"{path}: category {shorten(category)} needs an integer 'id' and a 'name'"
            )
        elif not 1 <= label + shift <= MAX_LABEL:
            words = (
                f"category {name!r} has id {label}: ids must be between {1 - shift} and {MAX_LABEL - shift}: renumber"
            )
            problems.error("category out of range", f"{path}: {words} the categories")
        elif names.get(label, name) != name:
            words = f"category id {label} is used for {names[label]!r} and for {name!r}"
            problems.error("category id used twice", f"{path}: {words}: renumber the categories")
        elif label in names:
            problems.repair(
                "category listed twice", f"{path}: category {name!r}, id {label}, is listed twice: once taken"
            )
        else:
            names[label] = name
            categories.append({**category, "id": label + shift} if shift else category)
    if not content["categories"]:
        raise ValueError(f"{path}: lists no categories")
    return categories, shift


def _index_images(images: Iterable[dict], path: Path, problems: Problems) -> dict[int, dict]:
    indexed = {}
    for image in images:
        image_id, file_name = image.get("id"), image.get("file_name")
        if not is_integer(image_id) or not isinstance(file_name, str):
            problems.error(
                "unusable picture entry", f"{path}: picture {shorten(image_id)} needs an integer 'id' and a 'file_name'"
            )
        elif not all(is_integer(image.get(name)) and image[name] > 0 for name in ("height", "width")):
            words = f"picture {image_id} needs a positive integer 'height' and 'width'"
            problems.error("picture without size", f"{path}: {words}")
        elif PurePosixPath(file_name).is_absolute() or ".." in PurePosixPath(file_name).parts:
            words = f"picture {image_id} has file_name {file_name!r}, which leads out of the folder: put it inside"
            problems.error("picture outside of the folder", f"{path}: {words}")
        elif image_id not in indexed:
            indexed[image_id] = image
        elif image == indexed[image_id]:
            problems.repair("picture listed twice", f"{path}: picture {image_id} is listed twice: once taken")
        else:
            words = f"two pictures have the id {image_id} ({indexed[image_id]['file_name']} and {file_name}): renumber"
            problems.error("picture id used twice", f"{path}: {words} them and their annotations")
    return indexed


def _mend_objects(
    annotations: list[dict], images: Mapping[int, dict], id2label: Mapping[int, str], path: Path, problems: Problems
) -> list[dict]:
    """The usable objects of a file, each with an id of its own."""
    mended, known = [], {}
    next_id = 1 + max((item["id"] for item in annotations if is_integer(item.get("id"))), default=0)
    for item in annotations:
        name = item.get("id")
        if not is_integer(name):
            item = {**item, "id": next_id}
        elif name in known:
            if item == known[name]:
                problems.repair("annotation listed twice", f"{path}: annotation {name} is listed twice: once taken")
                continue
            words = "shares its id with another one: numbered anew, without keypoints of a keypoints file"
            problems.repair("annotation id used twice", f"{path}: annotation {name} {words}")
            item = {**item, "id": next_id}
        known[item["id"]] = item
        next_id += item["id"] == next_id
        item, faults = mend_object(item, images, id2label)
        _report(faults, name, path, problems)
        if item is not None:
            mended.append(item)
    return mended


def _mend_outlines(
    objects: Iterable[dict], images: Mapping[int, dict], path: Path, problems: Problems
) -> tuple[list[dict], dict[int, list]]:
    """Objects whose outlines evaluation can take, and per object what training takes."""
    mended, parts = [], {}
    for item in objects:
        image = images[item["image_id"]]
        item, parts[item["id"]], faults = mend_outline(item, (image["height"], image["width"]))
        _report(faults, item["id"], path, problems)
        mended.append(item)
    return mended, parts


def _report(faults: Iterable[Fault], name: Any, path: Path, problems: Problems) -> None:
    for kind, words in faults:
        shown = "without id" if name is None else shorten(name)
        problems.repair(kind, f"{path}: annotation {shown} {words}")


def _read_keypoints(folder: Path, split: str, num_keypoints: int, dropped: set[int], problems: Problems) -> dict:
    """Content of the keypoints file without what cannot be used and without objects that were left out."""
    try:
        path = find_annotations(folder, split, "person_keypoints")
        content = read_instances(path)
    except FileNotFoundError:
        path = find_annotations(folder, split)
        content = read_instances(path)
        content["annotations"] = [item for item in content["annotations"] if "keypoints" in item]
        if not content["annotations"]:
            raise
    mended, seen = [], set()
    wrong = 0
    for item in content["annotations"]:
        name = item.get("id")
        triples, faults = mend_keypoints(item.get("keypoints"), num_keypoints)
        wrong += triples is None
        if triples is None and wrong == len(content["annotations"]):  # all of them: rather the setting is wrong
            problems.error(faults[0].kind, f"{path}: annotation {name} {faults[0].words}; no annotation has that many")
        _report(faults, name, path, problems)
        if triples is None or (is_integer(name) and name in dropped):
            continue
        if not is_integer(name):
            words = "is of no object: keypoints need the id of an object in the instances file: left out"
            problems.repair("keypoints of no object", f"{path}: annotation {shorten(name)} {words}")
            continue
        if name in seen:
            problems.repair("keypoints listed twice", f"{path}: annotation {name} is listed twice: the first is taken")
            continue
        seen.add(name)
        if "num_keypoints" not in item:  # pycocotools needs it
            item = {**item, "num_keypoints": sum(visibility > 0 for visibility in triples[2::3])}
        mended.append(item)
    return {**content, "annotations": mended}


def _read_captions(folder: Path, split: str, problems: Problems) -> dict:
    """Content of the captions file without captions that cannot be used."""
    path = find_annotations(folder, split, "captions")
    content, mended = read_instances(path, lists=("images", "annotations")), []
    for item in content["annotations"]:
        caption, faults = mend_caption(item.get("caption"))
        _report(faults, item.get("id"), path, problems)
        if caption is not None:
            mended.append({**item, "caption": caption} if faults else item)
    if content["annotations"] and not any("caption" in item for item in content["annotations"]):
        words = "none of its annotations has a 'caption': is it a file of another task?"
        problems.error("annotations of another task", f"{path}: {words}")
    return {**content, "annotations": mended}


def _group(annotations: Iterable[dict]) -> dict[int, list[dict]]:
    """Annotations by picture id."""
    grouped: dict[int, list[dict]] = {}
    for item in annotations:
        if is_integer(item.get("image_id")):
            grouped.setdefault(item["image_id"], []).append(item)
    return grouped


def _find_pictures(folder: Path, split: str, file_names: Mapping[int, str]) -> dict[int, Path]:
    """Paths of the pictures that are there, by picture id; each folder is listed once."""
    listings: dict[Path, set[str]] = {}

    def exists(path: Path) -> bool:
        if path.parent not in listings:
            listings[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        return path.name in listings[path.parent]

    bases = (folder / split, folder / "images" / split, folder / "images", folder)
    found = {}
    for image_id, file_name in file_names.items():
        objects365 = OBJECTS365_NAME.fullmatch(file_name)
        names = [file_name] if objects365 is None else [file_name, objects365[1]]
        candidates = (base / name for name in names for base in bases)
        path = next((path for path in candidates if exists(path)), None)
        if path is not None:
            found[image_id] = path
    return found


def _to_row(image: Mapping[str, Any], objects: list[dict]) -> dict[str, Any]:
    """One picture as a row."""
    image_size = [image["height"], image["width"]]
    return {
        "image_id": image["id"],
        "image_size": image_size,
        "boxes_yxyx": boxes_from_xywh([item["bbox"] for item in objects], image_size).numpy(),
        "labels": [item["category_id"] for item in objects],
        "areas": [float(item.get("area", item["bbox"][2] * item["bbox"][3])) for item in objects],
        "is_crowd": [bool(item.get("iscrowd", 0)) for item in objects],
    }
