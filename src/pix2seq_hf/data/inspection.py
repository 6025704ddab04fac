"""What is in a data set: classes, counts, sizes, and every problem of one pass over it."""

import collections
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pix2seq_hf.data import coco, hub, yolo
from pix2seq_hf.data.columns import find_columns
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import TASK_FEATURES, Split, load_pixels
from pix2seq_hf.data.sources import find_layout

SLOTS = 100  # objects of a picture that a sequence of the default length has room for
SMALL_AREA, MEDIUM_AREA = 32**2, 96**2  # pixels; COCO's limits
MESSAGES_PER_KIND = 3
PICTURES_TO_LOOK_AT = 50


def find_tasks(data: str | Path, split: str, columns: Mapping[str, Any] | None = None) -> list[str]:
    r"""Say which tasks a split has annotations for, without reading it.

    Args:
        data (`str` or `Path`): As of [`~data.sources.open_split`].
        split (`str`): Its split.
        columns (`Mapping`, *optional*): The column map.
    Returns:
        `list[str]`: Names in `TASK_FEATURES`."""
    layout = find_layout(data)
    if layout == "scenes":
        return list(TASK_FEATURES)
    if layout == "voc":
        has = {"object_detection"}
    elif layout == "coco":
        has, path = {"object_detection"}, coco.find_annotations(data, split)
        has |= {"instance_segmentation"} if _mentions(path, b'"segmentation"') else set()
        has_points = _has_file(data, split, "person_keypoints") or _mentions(path, b'"num_keypoints"')
        has |= {"keypoint_detection"} if has_points else set()
        has |= {"captioning"} if _has_file(data, split, "captions") else set()
    elif layout == "yolo":
        some = yolo.read_yolo(
            data, split, None, PICTURES_TO_LOOK_AT, ["instance_segmentation"], problems=Problems(keep_going=True)
        )
        has = {"object_detection"}
        has |= {"instance_segmentation"} if any(any(parts) for parts in some.dataset["polygons_xy"]) else set()
    else:
        features = hub.open_dataset(data, split, streaming=True).features or hub.open_dataset(data, split).features
        found = find_columns(features, columns, f"{data} ({split})")
        given = {
            "object_detection": found.boxes,
            "instance_segmentation": found.boxes and found.polygons,
            "keypoint_detection": found.boxes and found.keypoints,
            "captioning": found.captions,
        }
        has = {task for task, column in given.items() if column}
    return [task for task in TASK_FEATURES if task in has]


def summarize(split: Split) -> dict[str, Any]:
    r"""Count what is in a split; nothing of the pictures is read.

    Args:
        split ([`Split`]): As read.
    Returns:
        `dict`: What `pix2seq data inspect --json` writes."""
    counts = collections.Counter()
    objects_of, pictures_of = collections.Counter(), collections.Counter()
    sizes, per_picture = collections.Counter(), []
    for row in split.dataset.remove_columns(["image"]):
        labels, crowds = row["labels"], row["is_crowd"]
        per_picture.append(len(labels))
        sizes[tuple(reversed(row["image_size"]))] += 1
        objects_of.update(labels)
        pictures_of.update(set(labels))
        counts["crowd"] += sum(crowds)
        counts["masks"] += sum(map(bool, row.get("polygons_xy", ())))
        counts["keypoints"] += sum(number > 0 for number in row.get("num_keypoints", ()))
        counts["captions"] += len(row.get("captions", ()))
        counts["pictures_with_captions"] += bool(row.get("captions"))
        counts["beyond"] += max(0, len(labels) - SLOTS)
        counts["pictures_beyond"] += len(labels) > SLOTS
        for area in row["areas"]:
            counts["small" if area < SMALL_AREA else "medium" if area < MEDIUM_AREA else "large"] += 1
    by_pixels = sorted(sizes.elements(), key=lambda size: size[0] * size[1])
    return {
        "pictures": len(per_picture),
        "pictures_without_objects": per_picture.count(0),
        "objects": sum(per_picture),
        "crowd_regions": counts["crowd"],
        "with_masks": counts["masks"],
        "with_keypoints": counts["keypoints"],
        "captions": counts["captions"],
        "pictures_with_captions": counts["pictures_with_captions"],
        "classes": [
            {"id": label, "name": name, "objects": objects_of[label], "pictures": pictures_of[label]}
            for label, name in split.id2label.items()
        ],
        "picture_sizes": {
            "smallest": list(by_pixels[0]),
            "median": list(by_pixels[len(by_pixels) // 2]),
            "largest": list(by_pixels[-1]),
            "different": len(sizes),
        },
        "boxes_per_picture": {
            "mean": statistics.fmean(per_picture),
            "median": statistics.median(per_picture),
            "largest": max(per_picture),
        },
        "box_sizes": {name: counts[name] for name in ("small", "medium", "large")},
        "slots": SLOTS,
        "objects_beyond_slots": counts["beyond"],
        "pictures_beyond_slots": counts["pictures_beyond"],
    }


def check_pictures(split: Split, problems: Problems, on_progress: Callable[[], None] = lambda: None) -> list[int]:
    r"""Decode every picture of a split.

    Args:
        split ([`Split`]): As read.
        problems ([`Problems`]): Is told of those that cannot be used.
        on_progress (`Callable`): Called after each.
    Returns:
        `list[int]`: The rows that can be used."""
    usable = []
    for number, row in enumerate(split.dataset.select_columns(["image_id", "image", "image_size"])):
        name = row["image"]["path"] or f"picture {row['image_id']}"
        try:
            load_pixels(name, tuple(row["image_size"]), row["image"].get("bytes"))
            usable.append(number)
        except (ValueError, OSError) as error:
            problems.lose("picture that cannot be used", " ".join(str(error).split()))
        on_progress()
    return usable


def group_problems(problems: Problems) -> list[dict[str, Any]]:
    """Problems by kind, errors first, then the most frequent: kind, is_error, count, the first messages."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for problem in problems.found:
        groups.setdefault((problem.kind, problem.is_error), []).append(problem.message)
    ordered = sorted(groups.items(), key=lambda item: (not item[0][1], -len(item[1])))
    return [
        {"kind": kind, "is_error": is_error, "count": len(messages), "messages": messages[:MESSAGES_PER_KIND]}
        for (kind, is_error), messages in ordered
    ]


def format_summary(title: str, summary: Mapping[str, Any], width: int = 100) -> str:
    r"""Write a summary for people.

    Args:
        title (`str`): Its first line.
        summary (`Mapping`): As [`summarize`] returns it, with what `pix2seq data inspect` adds.
        width (`int`): Letters in a line of the table of classes."""
    sizes, per_picture = summary["picture_sizes"], summary["boxes_per_picture"]
    present = [entry for entry in summary["classes"] if entry["objects"]]
    width_by_height = {name: "{} x {}".format(*sizes[name]) for name in ("smallest", "median", "largest")}
    facts = [
        ("tasks", ", ".join(summary["tasks"])),
        ("pictures", f"{summary['pictures']:,}, {summary['pictures_without_objects']:,} of them without objects"),
        ("sizes", ", ".join(f"{name} {size}" for name, size in width_by_height.items())),
        ("objects", f"{summary['objects']:,}, {summary['crowd_regions']:,} of them crowd regions"),
        (
            "boxes per picture",
            f"mean {per_picture['mean']:.1f}, median {per_picture['median']:g}, at most {per_picture['largest']}",
        ),
        ("areas of objects", ", ".join(f"{name} {count:,}" for name, count in summary["box_sizes"].items())),
    ]
    tasks = summary["tasks"]
    if "instance_segmentation" in tasks:
        facts.append(("masks", f"{summary['with_masks']:,} objects"))
    if "keypoint_detection" in tasks:
        facts.append(("keypoints", f"{summary['with_keypoints']:,} objects"))
    if "captioning" in tasks:
        facts.append(("captions", f"{summary['captions']:,} of {summary['pictures_with_captions']:,} pictures"))
    slots = f"{summary['objects_beyond_slots']:,} objects in {summary['pictures_beyond_slots']:,} pictures"
    facts.append((f"beyond {summary['slots']} a picture", slots))
    if summary.get("pictures_checked") is not None:
        facts.append(("can be opened", f"{summary['pictures_checked']:,} of {summary['pictures']:,} pictures"))
    margin = max(len(name) for name, _ in facts) + 2
    lines = [title, *(f"  {name:{margin}}{text}" for name, text in facts)]
    lines += [f"  {'classes':{margin}}{len(present)} of {len(summary['classes'])} occur; objects of each:"]
    lines += [f"    {line}" for line in _in_columns(summary["classes"], width - 4)]
    return "\n".join(lines)


def format_problems(groups: Iterable[Mapping[str, Any]]) -> str:
    """Write problems as [`group_problems`] returns them for people."""
    lines = []
    for group in groups:
        what = "error" if group["is_error"] else "mended or noted"
        lines.append(f"  {what}: {group['kind']} ({group['count']:,})")
        lines += [f"    {message}" for message in group["messages"]]
        if group["count"] > len(group["messages"]):
            lines.append(f"    ... and {group['count'] - len(group['messages']):,} more")
    return "\n".join(lines) or "  no problems"


def _in_columns(classes: Iterable[Mapping[str, Any]], width: int) -> list[str]:
    """Names with their counts, the most frequent first, in columns that are read downwards."""
    ordered = sorted(classes, key=lambda entry: -entry["objects"])
    digits = max(len(f"{entry['objects']:,}") for entry in ordered)
    cells = [f"{entry['objects']:>{digits},}  {entry['name']}" for entry in ordered]
    widest = max(map(len, cells)) + 3
    num_columns = max(1, min(len(cells), (width + 3) // widest))
    num_lines = -(-len(cells) // num_columns)
    return ["".join(f"{cell:{widest}}" for cell in cells[line::num_lines]).rstrip() for line in range(num_lines)]


def _has_file(folder: str | Path, split: str, kind: str) -> bool:
    try:
        return coco.find_annotations(folder, split, kind).is_file()
    except FileNotFoundError:
        return False


def _mentions(path: Path, word: bytes, most: int = 50_000_000) -> bool:
    """Whether a word stands in the first `most` bytes of a file."""
    end, read = b"", 0
    with open(path, "rb") as file:
        while read < most and (block := file.read(1 << 20)):
            if word in end + block:
                return True
            end, read = block[-len(word) :], read + len(block)
    return False
