"""The folder that `predict-dataset` writes: parts that are whole or not there, read back or made into COCO files."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from .prediction_folder import IMAGES, RESULTS, TASK_FILES, entry_of, result_of, write_json
from .results import Pix2SeqResult

MANIFEST = "manifest.json"
SIDES = ("xmin", "ymin", "xmax", "ymax")
FEATURES = datasets.Features(
    {
        "index": datasets.Value("int64"),
        "image_id": datasets.Value("int64"),
        "file_name": datasets.Value("string"),
        "width": datasets.Value("int32"),  # none if the picture could not be read
        "height": datasets.Value("int32"),
        "tasks": datasets.List(datasets.Value("string")),
        "objects": datasets.List(
            {
                "label_id": datasets.Value("int64"),
                "label": datasets.Value("string"),
                "score": datasets.Value("float64"),
                "box_xyxy": datasets.List(datasets.Value("float64")),  # pixels
                "rle": {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")},
                "keypoints": datasets.List(
                    {
                        "name": datasets.Value("string"),
                        "x": datasets.Value("float64"),
                        "y": datasets.Value("float64"),
                        "score": datasets.Value("float64"),
                        "visible": datasets.Value("bool"),
                    }
                ),
                "keypoints_score": datasets.Value("float64"),
            }
        ),
        "captions": datasets.List(datasets.Value("string")),
        "malformed": datasets.List(
            {
                "task": datasets.Value("string"),
                "kind": datasets.Value("string"),
                "count": datasets.Value("int64"),
            }
        ),
        "error": datasets.Value("string"),  # why there is no result
    }
)


def make_row(
    index: int, image_id: int, file_name: str, result: Pix2SeqResult | None, error: str | None = None
) -> dict[str, Any]:
    """A row of `FEATURES`: what was found in a picture, or why nothing could be looked for."""
    row = {"index": index, "image_id": image_id, "file_name": file_name, "error": error}
    if result is None:
        return {**row, "width": None, "height": None, "tasks": [], "objects": [], "captions": [], "malformed": []}
    entry = entry_of(result)
    for found in entry["objects"]:
        box = found.pop("box")
        found["box_xyxy"] = [box[side] for side in SIDES]
    entry["malformed"] = [
        {"task": task, "kind": kind, "count": count}
        for task, counts in entry["malformed"].items()
        for kind, count in counts.items()
    ]
    return {**row, **entry}


def read_result(row: Mapping[str, Any]) -> Pix2SeqResult:
    """The result that [`make_row`] made a row of, without its picture."""
    malformed: dict[str, dict[str, int]] = {}
    for entry in row["malformed"]:
        malformed.setdefault(entry["task"], {})[entry["kind"]] = entry["count"]
    objects = [{**found, "box": dict(zip(SIDES, found["box_xyxy"]))} for found in row["objects"]]
    return result_of({**row, "objects": objects, "malformed": malformed})


class ShardFolder:
    r"""Parts of a fixed number of pictures, `part-000007.parquet` the eighth, each written by one process.

    Nothing is said between processes but by these files. A part appears under its name when it is whole.

    Args:
        path (`str`): The folder.
        chunk_size (`int`): Pictures of a part; only the last one has fewer."""

    def __init__(self, path: str, chunk_size: int):
        self.path, self.chunk_size = Path(path), chunk_size

    @contextlib.contextmanager
    def hold(self, worker: int) -> Iterator[None]:
        """Be the only worker of this number; the hold ends with the process, however that ends.

        Raises:
            ValueError: If another process is that."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self._lock(worker)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(
                f"{self.path}: another run is writing there (process {worker} of it): let it end"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def is_held(self, worker: int) -> bool:
        """Whether some process is the worker of this number."""
        lock = self._lock(worker)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        lock.release()
        return False

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Say what is written here; where there are parts it must be what was said before, see [`check_manifest`]."""
        if any(self.path.glob("part-*.parquet")):
            manifest = {**manifest, "num_pictures": self.check_manifest(manifest)}
        write_json(self.path / MANIFEST, manifest)

    def check_manifest(self, manifest: Mapping[str, Any]) -> int | None:
        r"""Compare with what was said when the folder was begun.

        Args:
            manifest (`Mapping[str, Any]`): Options by name; `num_pictures` and `fingerprint` of the data, or None.
        Returns:
            `int`, *optional*: The number of pictures, if it is known by now.
        Raises:
            ValueError: If something differs."""
        path = self.path / MANIFEST
        manifest = json.loads(json.dumps(manifest))
        try:
            before = {**json.loads(path.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError):
            raise ValueError(f"{path}: does not say what the parts beside it are: take another --output") from None
        num_before, num_now = before.get("num_pictures"), manifest["num_pictures"]
        for name in dict.fromkeys((*before, *manifest)):
            now, then = manifest.get(name), before.get(name)
            if name == "num_pictures" and None in (now, then):
                continue
            if now != then and name in ("num_pictures", "fingerprint"):
                counts = f" ({num_before} pictures then, {num_now} now)" if num_before != num_now else ""
                raise ValueError(f"{self.path} was begun with other pictures{counts}: take another --output")
            if now != then:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{self.path} was begun with {option} {then}, now it is {now}: take the same, or another --output"
                )
        return num_now if num_now is not None else num_before

    def part(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.path / f"part-{chunk:06d}.parquet"

    def write(self, chunk: int, rows: list[dict[str, Any]]) -> None:
        """Write a part, whole or not at all."""
        table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
        hidden = self.path / f".{self.part(chunk).name}.part"
        with open(hidden, "wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, self.part(chunk))

    def finished(self, num_pictures: int | None) -> set[int]:
        r"""Chunks whose part is there with all its rows.

        Args:
            num_pictures (`int`, *optional*): Of the data set. Without, only full parts count: any other may have been
                the last one of a data set that has grown since."""
        chunks = set()
        for path in self.path.glob("part-*.parquet"):
            number = path.stem.removeprefix("part-")
            if not number.isdigit():
                continue
            length = self.chunk_size
            if num_pictures is not None:
                length = min(length, num_pictures - int(number) * self.chunk_size)
            with contextlib.suppress(OSError, pa.ArrowInvalid):  # no parquet: it will be written anew
                if pq.read_metadata(path).num_rows == length:
                    chunks.add(int(number))
        return chunks

    def missing(self, num_pictures: int) -> list[int]:
        """Chunks that are still to be written."""
        return sorted(set(range(-(-num_pictures // self.chunk_size))) - self.finished(num_pictures))

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of all parts in the order of the pictures; one part is in memory."""
        for path in sorted(self.path.glob("part-*.parquet")):
            yield from pq.read_table(path, columns=columns).to_pylist()

    def write_coco(self, id2label: Mapping[int, str]) -> list[str]:
        r"""Make COCO files of the parts: the same as `pix2seq predict` writes.

        Args:
            id2label (`Mapping[int, str]`): Name of every class.
        Returns:
            `list[str]`: Names of the files."""
        categories = [{"id": int(label), "name": name} for label, name in sorted(id2label.items())]
        names = [RESULTS, IMAGES]
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(_JsonList(self.path / name)) for name in (RESULTS, *TASK_FILES.values())}
            head = f'{{"info": {{}},\n"categories": {json.dumps(categories)},\n"images": '
            images = stack.enter_context(_JsonList(self.path / IMAGES, head, "}"))
            for row in self.rows():
                image = {"id": row["image_id"], "file_name": row["file_name"], "width": row["width"]}
                image["height"] = row["height"]
                if row["error"] is not None:
                    images.add({**image, "error": row["error"]})
                    continue
                result = read_result(row)
                images.add({**image, "malformed": result.malformed})
                for entry in result.to_coco(row["image_id"]):
                    entry.pop("keypoints", None)  # with the box's score they would be measured wrongly
                    files[RESULTS].add(entry)
                for task, name in TASK_FILES.items():
                    if task in result.tasks:
                        names += [name] if name not in names else []
                        for entry in result.to_coco(row["image_id"], task):
                            files[name].add(entry)
        for name in set(TASK_FILES.values()) - set(names):
            (self.path / name).unlink()
        return names

    def _lock(self, worker: int) -> FileLock:
        return FileLock(self.path / f".worker-{worker}.lock")


class _JsonList:
    """A file with a JSON list, one line per entry, written entry by entry; whole or not there."""

    def __init__(self, path: Path, head: str = "", tail: str = ""):
        self.path, self.part, self.head, self.tail = path, path.with_name(f".{path.name}.part"), head, tail

    def __enter__(self) -> "_JsonList":
        self.file = open(self.part, "w", encoding="utf-8")
        self.file.write(f"{self.head}[")
        self.is_empty = True
        return self

    def add(self, entry: Mapping[str, Any]) -> None:
        self.file.write(("\n" if self.is_empty else ",\n") + json.dumps(entry, ensure_ascii=False))
        self.is_empty = False

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self.file.write(f"\n]{self.tail}\n")
        self.file.close()
        if kind is None:
            os.replace(self.part, self.path)
        else:
            self.part.unlink()


__all__ = ["FEATURES", "ShardFolder", "make_row", "read_result"]
