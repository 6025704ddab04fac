"""The folder that `pix2seq predict` writes: lines as results come, drawings, and COCO files made of the lines."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from .data.video import Source
from .results import Keypoint, Pix2SeqObject, Pix2SeqResult

SIGNATURE = "pix2seq_hf"  # in the "Software" entry of our PNG files: only those are ever written over
LINES, OPTIONS, RESULTS, IMAGES = "results.jsonl", "run.json", "results.json", "images.json"
# Files beside results.json, which task each belongs to: its metric takes other scores or other fields.
TASK_FILES = {"keypoint_detection": "keypoints.json", "captioning": "captions.json"}

Key = tuple[str, int | None]  # of a picture: its file, and the number of the frame if that is a video


def key_of(source: Source) -> Key:
    """What a picture is recognised by when a run is continued."""
    return source.path.as_posix(), source.frame


class PredictionFolder:
    r"""What is known of every picture, one line each, on disk as soon as it is known.

    Args:
        folder (`str`): Made if it is missing.
        paths (`Sequence[Path]`): All files that may come; they are never written over.
        names (`Mapping[int, str]`): Name of each label id.
        options (`Mapping[str, Any]`): What the results depend on, kept for `resume`.
        resume (`bool`): Whether to go on with what an earlier run left, which must have had the same options.
    Raises:
        OSError: If the folder cannot be made.
        ValueError: If what is to be continued was made with other options, or is no result of this command."""

    def __init__(
        self,
        folder: str,
        paths: Sequence[Path],
        names: Mapping[int, str],
        options: Mapping[str, Any] | None = None,
        resume: bool = False,
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = names
        self.taken = {os.path.realpath(path) for path in paths}
        self.finished: dict[Key, int] = {}  # ids
        self.num_pictures = self.num_objects = 0  # of this run
        options = json.loads(json.dumps(options or {}))
        if resume and (self.folder / LINES).exists():
            self._check_options(options)
            repair_lines(self.folder / LINES)
            for line in self.lines():
                self.finished[line["file"], line.get("frame")] = line["image_id"]
                self.taken.add(os.path.realpath(self.folder / line["drawing"]))
        else:
            if (self.folder / OPTIONS).exists():  # of an earlier run, whose keypoints are not those of this one
                for name in TASK_FILES.values():
                    (self.folder / name).unlink(missing_ok=True)
            (self.folder / LINES).write_bytes(b"")
        self.num_before = len(self.finished)
        write_json(self.folder / OPTIONS, options)
        self._ids = set(self.finished.values())
        self._file = open(self.folder / LINES, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, source: Source, image_id: int, result: Pix2SeqResult) -> None:
        """Save one picture: the drawing, then its line, which makes it finished."""
        if image_id in self._ids:  # the list of pictures has changed since the run began
            image_id = max(self._ids) + 1
        stem = source.path.stem if source.frame is None else f"{source.path.stem}-{source.frame:06d}"
        target = self.free_name(stem)
        metadata = PngImagePlugin.PngInfo()
        metadata.add_text("Software", SIGNATURE)
        part = self.folder / f".{target.name}.part"  # a killed run leaves no half of a drawing
        # This level takes half the time of the default and gives about the same size.
        result.draw().save(part, "PNG", pnginfo=metadata, compress_level=4)
        os.replace(part, target)
        place = {} if source.frame is None else {"frame": source.frame, "seconds": round(source.seconds, 4)}
        line = {"file": source.path.as_posix(), **place, "image_id": image_id, "drawing": target.name}
        self._file.write(json.dumps({**line, **entry_of(result)}, ensure_ascii=False) + "\n")
        self._file.flush()
        self.finished[key_of(source)] = image_id
        self._ids.add(image_id)
        self.num_pictures += 1
        self.num_objects += len(result.objects)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What is known of the finished pictures, one after the other.

        Raises:
            ValueError: If a line is not one of ours."""
        with open(self.folder / LINES, encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                line = read_line(text)
                if line is None:
                    raise ValueError(f"{self.folder / LINES}, line {number}: was not written by this command")
                yield line

    def finish(self) -> None:
        """Make the COCO files of the lines."""
        self._file.close()
        results, images = [], []
        others: dict[str, list[dict]] = {}
        for line in self.lines():
            image_id, result = line["image_id"], result_of(line)
            for entry in result.to_coco(image_id):
                entry.pop("keypoints", None)  # with the box's score they would be measured wrongly
                results.append(entry)
            for task, name in TASK_FILES.items():
                if task in result.tasks:
                    others.setdefault(name, []).extend(result.to_coco(image_id, task))
            frame = {key: line[key] for key in ("frame", "seconds") if key in line}
            image = {"id": image_id, "file_name": line["file"], **frame, "width": line["width"]}
            images.append(
                {**image, "height": line["height"], "drawing": line["drawing"], "malformed": line["malformed"]}
            )
        categories = [{"id": int(label), "name": name} for label, name in sorted(self.names.items())]
        write_json(self.folder / RESULTS, results)
        write_json(self.folder / IMAGES, {"info": {}, "categories": categories, "images": images})
        for name, entries in others.items():
            write_json(self.folder / name, entries)

    def free_name(self, stem: str) -> Path:
        """A PNG file for a picture of that name: not used in this run, and not somebody else's file."""
        number = 1
        while True:
            target = self.folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
            key = os.path.realpath(target)
            if key not in self.taken and (not target.exists() or is_ours(target)):
                self.taken.add(key)
                return target
            number += 1

    def numbers(self, seconds: float) -> dict[str, Any]:
        """What was done, for machines."""
        counts = {"num_pictures": self.num_pictures, "num_before": self.num_before, "num_objects": self.num_objects}
        return {"output": str(self.folder), **counts, "seconds": seconds}

    def summary(self, seconds: float) -> str:
        """What was done, in one line."""
        done = f"{self.num_pictures} picture{'s' * (self.num_pictures != 1)}"
        before = f" (and {self.num_before} before)" if self.num_before else ""
        found = f"{self.num_objects} object{'s' * (self.num_objects != 1)}"
        pace = f", {seconds / self.num_pictures:.2f} s per picture" if self.num_pictures else ""
        return f"{done}{before}, {found}{pace}: {self.folder} (PNG, {LINES}, {RESULTS}, {IMAGES})"

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError if the run to be continued had other options."""
        path = self.folder / OPTIONS
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            names = [*before, *(name for name in options if name not in before)]
        except (OSError, ValueError, TypeError):
            raise ValueError(f"--resume: {path} does not say how the run was begun: begin anew without it") from None
        for name in names:
            if before.get(name) != options.get(name):
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"--resume: {self.folder} was begun with {option} {_text(before.get(name))}, now it is "
                    f"{_text(options.get(name))}: take the same, or another --output"
                )


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def read_line(text: str) -> dict[str, Any] | None:
    """A line of `results.jsonl`, or `None` if it is not one."""
    needed = {"file", "image_id", "drawing", "width", "height", "tasks", "objects", "captions", "malformed"}
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and needed <= line.keys() else None


def repair_lines(path: Path) -> None:
    """Cut off the last line of a file if the run that wrote it was killed in the middle of it."""
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail:
            start = max(0, end - 65_536)
            file.seek(start)
            tail = file.read(end - start)
            end = start
        file.truncate(end + tail.rfind(b"\n") + 1)


def entry_of(result: Pix2SeqResult) -> dict[str, Any]:
    """A result as a dict, precise enough to be measured."""
    entry = result.to_dict()
    for fields, found in zip(entry["objects"], result.objects):
        fields["score"] = float(f"{found.score:.7g}")
        fields["box"] = {side: round(number, 4) for side, number in found.box.items()}
        if found.keypoints is not None:
            fields["keypoints_score"] = float(f"{found.keypoints_score:.7g}")
    return entry


def result_of(line: Mapping[str, Any]) -> Pix2SeqResult:
    """The result that [`entry_of`] made a line of, without its picture."""
    objects = []
    for fields in line["objects"]:
        points = fields.get("keypoints")
        objects.append(
            Pix2SeqObject(
                score=fields["score"],
                label=fields["label"],
                label_id=fields["label_id"],
                box_xyxy=tuple(fields["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")),
                rle=fields.get("rle"),
                keypoints=None if points is None else [Keypoint(**point) for point in points],
                keypoints_score=fields.get("keypoints_score"),
            )
        )
    return Pix2SeqResult(
        size=(line["height"], line["width"]),
        objects=objects,
        captions=line["captions"],
        tasks=tuple(line["tasks"]),
        malformed=line["malformed"],
    )


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all; an entry of the lists in it is one line."""

    def listed(entries: Sequence[Any]) -> str:
        return "[" + ",".join("\n" + json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]"

    if isinstance(content, list):
        text = listed(content)
    else:
        parts = (
            f"{json.dumps(name)}: {listed(value) if isinstance(value, list) else json.dumps(value)}"
            for name, value in content.items()
        )
        text = "{" + ",\n".join(parts) + "}"
    part = path.with_name(f".{path.name}.part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)


def number_pictures(paths: Sequence[Path]) -> dict[Path, int]:
    """An id for each picture: the number it is named after if that is so for all and no two share one, else 1, 2, 3."""
    stems = [path.stem for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return {path: int(path.stem) for path in paths}
    return {path: number for number, path in enumerate(paths, start=1)}


def is_ours(path: Path) -> bool:
    """Whether a file is a PNG that this command wrote."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SIGNATURE
    except (OSError, ValueError, SyntaxError):
        return False
