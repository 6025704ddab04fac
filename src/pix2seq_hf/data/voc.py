r"""Where do records come from: a folder in the layout of Pascal VOC.

    DIR/Annotations/<stem>.xml
    DIR/JPEGImages/<stem>.jpg               any format that Pillow reads; also images/, or beside the XML
    DIR/ImageSets/Main/<split>.txt          one stem per line

Without `ImageSets` there is one split, "all": every XML file, by name. `DIR/<split>/<stem>.xml` with the pictures
beside them works as well, as some annotation tools export it.

Decisions, where the layout leaves room:

- Classes are those that occur in any XML file of the folder, sorted by name and numbered from 1, so that all splits
  agree and, for the original VOC, the numbers are the usual ones. Picture ids count the lines of the split from 1.
- `difficult` objects become crowd regions: they are not taught, and finding them counts neither for nor against.
- Corners are edges of boxes in pixels, as most annotation tools write them: a box from 10 to 30 is 20 wide. The files
  of the original challenge number pixels from 1 and count the last one in; they name "The VOC20.. Database" as their
  source, and their left and top edges are one less than what is written.
- `<folder>` and `<path>` speak of the annotator's machine and are ignored.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import datasets

from pix2seq_hf.data.annotations import boxes_from_xywh
from pix2seq_hf.data.coco import MAX_LABEL
from pix2seq_hf.data.mending import choose_images, mend_box
from pix2seq_hf.data.pictures import PICTURE_SUFFIXES
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import FEATURES, Split, coco_annotations, read_picture_size

WHOLE = "all"
ANNOTATION_FOLDERS = ("Annotations", "annotations")
PICTURE_FOLDERS = ("JPEGImages", "images", "Images")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    folder: str | Path,
    split: str,
    image_ids: Iterable[int] | None = None,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    problems: Problems | None = None,
) -> Split:
    r"""Open one split of a VOC folder.

    Args:
        folder (`str` or `Path`): The folder that has `Annotations/`.
        split (`str`): For instance `"train"`, or `"all"` for every XML file.
        image_ids (`Iterable[int]`, *optional*): Keep these pictures only, in this order.
        max_images (`int`, *optional*): Keep at most the first so many pictures.
        tasks (`Iterable[str]`): Only boxes are read: `"object_detection"`.
        num_keypoints (`int`): Not used: these files have no keypoints.
        problems ([`Problems`], *optional*): Collects what was mended, and errors.
    Returns:
        [`Split`]; objects in `annotations` also have `difficult` and `truncated`, pictures their `file_name`.
    Raises:
        OSError: If the folder or the split is missing.
        ValueError: If a task needs more than boxes, or an XML file or a picture cannot be used."""
    folder, problems = Path(folder), Problems() if problems is None else problems
    for task in tasks:
        if task != "object_detection":
            raise ValueError(f"{folder}: a VOC folder has boxes only, nothing for {task}")
    source, paths = _list_split(folder, split)
    id2label = read_classes(folder)
    label2id = {name: label for label, name in id2label.items()}
    kept = choose_images(range(1, len(paths) + 1), image_ids, max_images, source)

    pictures = {path: _list_pictures(path) for path in {path.parent for path in paths}}
    rows, file_names, flags = [], [], []
    for image_id in kept:
        path, root = paths[image_id - 1], None
        try:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, but {source} lists {path.stem!r}: remove that line")
            root = parse_xml(path)
            picture = _find_picture(path, root, pictures[path.parent])
            image_size = _read_size(root, path, picture, problems)
        except (ValueError, OSError) as error:
            image_size = None if root is None else _stated_size(root)
            if not problems.lose("unusable XML file or picture", str(error), is_known=image_size is not None):
                continue
            picture = pictures[path.parent].get(path.stem) or _expected_picture(path)
        objects = _read_objects(root, path, image_size, label2id, problems)
        boxes = [item["bbox"] for item in objects]
        rows.append(
            {
                "image_id": image_id,
                "image": {"path": str(picture), "bytes": None},
                "image_size": list(image_size),
                "boxes_yxyx": boxes_from_xywh(boxes, image_size).numpy(),
                "labels": [item["label"] for item in objects],
                "areas": [width * height for _, _, width, height in boxes],
                "is_crowd": [bool(item["difficult"]) for item in objects],
            }
        )
        file_names.append(picture.name)
        flags += [{name: item[name] for name in ("bbox", "difficult", "truncated")} for item in objects]
    if not flags:
        problems.repair("no annotations", f"{source}: lists no object: every picture counts as empty")

    annotations = coco_annotations(rows, id2label, file_names)
    annotations["annotations"] = [
        {**item, **extra} for item, extra in zip(annotations["annotations"], flags, strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return Split(datasets.Dataset.from_dict(columns, features=FEATURES), id2label, annotations)


def list_splits(folder: str | Path) -> list[str]:
    """Name the splits of a VOC folder; empty if it is none."""
    folder = Path(folder)
    if _find_annotation_folder(folder) is None:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and _has_xml(path))
    names = {path.stem for path in folder.glob("ImageSets/Main/*.txt")}
    # Beside train.txt the original has car_train.txt for every class, with a sign in a second column.
    names = {name for name in names if not any(name.endswith(f"_{other}") for other in names)}
    return [*sorted(names), WHOLE]


def read_classes(folder: str | Path) -> dict[int, str]:
    r"""Number the classes that occur in any XML file of the folder, sorted by name, from 1.

    Raises:
        ValueError: If there is no object at all, or there are more classes than class tokens."""
    folder, names, unusable = Path(folder), set(), None
    annotations = _find_annotation_folder(folder)
    for path in sorted(annotations.glob("*.xml") if annotations else folder.glob("*/*.xml")):
        try:
            root = parse_xml(path)
        except (ValueError, OSError) as error:
            unusable = unusable or error  # it is named when its split is read
            continue
        names |= {_text(item, "name") for item in root.iter("object")} - {""}
    if not names:
        raise unusable or ValueError(f"{folder}: no XML file lists an object with a <name>")
    if len(names) > MAX_LABEL:
        raise ValueError(f"{folder}: {len(names)} classes; there are class tokens for {MAX_LABEL}")
    return dict(enumerate(sorted(names), start=1))


class _PlainBuilder(ElementTree.TreeBuilder):
    """Builds a tree, and refuses document types: they can name other files, and grow without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("has a document type (<!DOCTYPE ...>), which can pull in other files: remove it")


def parse_xml(path: Path) -> ElementTree.Element:
    r"""Read an XML file that needs nothing but itself.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no VOC annotation, or has a document type, as external entities need it."""
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_PlainBuilder())).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not valid XML ({error}); is the file complete?") from None
    except (ValueError, LookupError) as error:  # ours, or an encoding that nobody knows
        raise ValueError(f"{path}: {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"{path}: not a VOC annotation (it begins with <{root.tag}>, not with <annotation>)")
    return root


def _text(item: ElementTree.Element | None, name: str) -> str:
    return (item.findtext(name) or "").strip() if item is not None else ""


def _number(item: ElementTree.Element | None, name: str) -> float | None:
    try:
        return float(_text(item, name))
    except ValueError:
        return None


def _has_xml(folder: Path) -> bool:
    return next(folder.glob("*.xml"), None) is not None


def _find_annotation_folder(folder: Path) -> Path | None:
    return next((folder / name for name in ANNOTATION_FOLDERS if _has_xml(folder / name)), None)


def _list_split(folder: Path, split: str) -> tuple[Path, list[Path]]:
    """What lists the pictures of a split, and its XML files."""
    splits = list_splits(folder) if folder.is_dir() else []
    if not splits:
        raise FileNotFoundError(f"{folder}: not a VOC folder (no Annotations/*.xml)")
    annotations = _find_annotation_folder(folder)
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if split not in splits and not (annotations and listing.is_file()):
        raise FileNotFoundError(f"{folder}: has no split {split!r} (splits that are there: {', '.join(splits)})")
    if annotations is None:
        return folder / split, sorted((folder / split).glob("*.xml"))
    if listing.is_file():
        try:
            lines = listing.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{listing}: not UTF-8 text (byte {error.start})") from None
        stems = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
        for stem in stems:
            if stem != Path(stem).name:
                raise ValueError(f"{listing}: {stem!r} is no name of a file in {annotations.name}")
        return listing, [annotations / f"{stem}.xml" for stem in stems]
    return annotations, sorted(annotations.glob("*.xml"))


def _list_pictures(annotations: Path) -> dict[str, Path]:
    """Pictures that belong to a folder of XML files, by name and by stem."""
    found = {}
    for folder in (*(annotations.parent / name for name in PICTURE_FOLDERS), annotations):
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in PICTURE_SUFFIXES:
                    found.setdefault(path.name, path)
                    found.setdefault(path.stem, path)
    return found


def _find_picture(path: Path, root: ElementTree.Element, pictures: dict[str, Path]) -> Path:
    """The picture of the same stem: <filename> is often left behind when files are renamed."""
    name = _text(root, "filename")
    by_name = pictures.get(name)
    if by_name is not None and by_name.stem == path.stem:
        return by_name
    picture = pictures.get(path.stem) or by_name
    if picture is None:
        raise FileNotFoundError(
            f"{path}: there is no picture {path.stem}.jpg or {name!r} in {', '.join(PICTURE_FOLDERS)}"
        )
    return picture


def _expected_picture(path: Path) -> Path:
    """Where the picture of an XML file would be if it was not lost."""
    folder = next((path.parent.parent / name for name in PICTURE_FOLDERS if (path.parent.parent / name).is_dir()), None)
    return (folder or path.parent) / f"{path.stem}.jpg"


def _stated_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Height and width that an XML file states, if it does."""
    sides = [_number(root.find("size"), name) for name in ("height", "width")]
    if not all(side is not None and 1 <= side < 2**31 for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _read_size(root: ElementTree.Element, path: Path, picture: Path, problems: Problems) -> tuple[int, int]:
    """Height and width that the boxes are given for, checked against the picture."""
    try:
        actual, is_turned = read_picture_size(picture)
    except ValueError as error:
        raise ValueError(f"{error}; {path} describes it") from None
    size = _stated_size(root)
    if size is None:
        problems.repair("picture size missing", f"{path}: has no usable <size>: taken from {picture.name}")
        return actual[::-1] if is_turned else actual  # tools that show a picture upright are the rule today
    if size == actual or (is_turned and size == actual[::-1]):
        return size
    said, found = (f"{each[1]:g} x {each[0]:g}" for each in (size, actual))
    if size == actual[::-1]:
        problems.repair("picture size swapped", f"{path}: <size> is {said}, {picture.name} is {found}: that is taken")
        return actual
    raise ValueError(
        f"{path}: <size> is {said}, but {picture} is {found} pixels: annotate it again, or remove the file"
    )


def _read_objects(
    root: ElementTree.Element, path: Path, image_size: tuple[int, int], label2id: dict[str, int], problems: Problems
) -> list[dict[str, Any]]:
    """Objects with usable boxes."""
    first_pixel = 1 if re.match(r"The VOC20\d\d Database", _text(root.find("source"), "database")) else 0
    objects = []
    for number, item in enumerate(root.iter("object"), start=1):
        name = _text(item, "name")
        where = f"{path}: object {number} ({name or 'without name'})"
        if not name:
            problems.repair("object without class", f"{where} has no <name>: left out")
            continue
        corners = [_number(item.find("bndbox"), corner) for corner in CORNERS]
        if any(corner is None for corner in corners):
            problems.repair("box that is not four finite numbers", f"{where} has no <bndbox> of four numbers: left out")
            continue
        xmin, ymin, xmax, ymax = corners
        if xmax < xmin or ymax < ymin:
            xmin, xmax = sorted((xmin, xmax))
            ymin, ymax = sorted((ymin, ymax))
            problems.repair(
                "corners swapped", f"{where} has its corners {_format(corners)} in the wrong order: swapped"
            )
        xmin, ymin = xmin - first_pixel, ymin - first_pixel
        box, kind = mend_box([xmin, ymin, xmax - xmin, ymax - ymin], image_size)
        if kind is not None:
            fate = "left out" if box is None else "clipped"
            problems.repair(kind, f"{where}, {_format(corners)}: {kind}: {fate}")
        if box is not None:
            signs = {flag: int(_text(item, flag) in ("1", "true", "True")) for flag in ("difficult", "truncated")}
            objects.append({"bbox": box, "label": label2id[name], **signs})
    return objects


def _format(corners: Sequence[float]) -> str:
    xmin, ymin, xmax, ymax = corners
    return f"({xmin:g}, {ymin:g}) to ({xmax:g}, {ymax:g})"
