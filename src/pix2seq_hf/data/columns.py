r"""Which column of a Hugging Face data set means what: found by names and types, or said by the user's column map.

Known layouts: one struct of lists per picture (`objects.bbox`, `objects.category`, as `detection-datasets/coco` and
`cppe-5` have it), a list of structs (as JSON lines often have it), or plain columns (`bboxes`, `labels`).
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import datasets
import numpy as np

from pix2seq_hf.data.problems import Problems

BOX_FORMATS = ("xyxy", "xywh", "yxyx", "cxcywh")
BOX_UNITS = ("pixels", "normalized")
LABEL_IDS = ("index", "raw")
UNUSED = "unused "  # a class of this name and its own id holds a place between ids that have gaps

CONTAINERS = ("objects", "annotations", "instances", "labels", "")
NAMES = {
    "boxes": ("bbox", "bboxes", "boxes", "box", *(f"bbox_{name}" for name in BOX_FORMATS)),
    "labels": (
        "category",
        "categories",
        "category_id",
        "label",
        "labels",
        "class",
        "classes",
        "class_id",
        "class_name",
    ),
    "areas": ("area", "areas"),
    "is_crowd": ("is_crowd", "iscrowd", "crowd"),
    "polygons": ("segmentation", "polygons", "polygon", "segments"),
    "run_lengths": ("segmentation_rle",),
    "keypoints": ("keypoints",),
}
PICTURE_NAMES = {
    "image": ("image", "img", "picture"),
    "image_id": ("image_id", "img_id", "id"),
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
    "captions": ("captions", "caption", "sentences", "sentences_raw", "text"),
}
MOST_IMPOSSIBLE = 0.02  # of all boxes: so many may be mistakes before a format is out of the question


@dataclass(frozen=True)
class Columns:
    r"""What the columns of a data set mean; the keys of a column map.

    Args:
        image (`str`): Pictures: an `Image` feature, contents of files, or names of files.
        image_id (`str`, *optional*): Their numbers; the place in the data set (from 1) without.
        width, height (`str`, *optional*): Their sizes; read from the pictures without.
        boxes, labels, areas, is_crowd, polygons, run_lengths, keypoints, captions (`str`, *optional*): Annotations;
            a dot leads into a struct: `"objects.bbox"`. Polygons are as in COCO files; run lengths are strings.
        box_format (`str`, *optional*): One of `BOX_FORMATS`; found from the boxes themselves without.
        box_units (`str`, *optional*): One of `BOX_UNITS`; found from the boxes themselves without.
        label_ids (`str`): `"index"`: label 0 is the first class, which becomes id 1, for 0 means padding; `"raw"`:
            labels are ids from 1 on, as they stand.
        names (`list` or `dict`, *optional*): Names of the classes in their order, or by label, where the features have
            none.
        folder (`str`, *optional*): Pictures that are given by name may lie in this folder too, beside the data set's
            own."""

    image: str
    image_id: str | None = None
    width: str | None = None
    height: str | None = None
    boxes: str | None = None
    labels: str | None = None
    areas: str | None = None
    is_crowd: str | None = None
    polygons: str | None = None
    run_lengths: str | None = None
    keypoints: str | None = None
    captions: str | None = None
    box_format: str | None = None
    box_units: str | None = None
    label_ids: str = "index"
    names: Sequence[str] | Mapping[Any, str] | None = None
    folder: str | None = None

    def used(self) -> list[str]:
        """Names of the top-level columns beside the picture that are read."""
        paths = [getattr(self, name) for name in (*NAMES, *PICTURE_NAMES) if name != "image"]
        return list(dict.fromkeys(path.split(".")[0] for path in paths if path))


def find_columns(features: datasets.Features, columns: Mapping[str, Any] | None, where: str) -> Columns:
    r"""Say what the columns of a data set mean.

    Args:
        features (`datasets.Features`): Those of the data set.
        columns (`Mapping`, *optional*): What the user says; keys are the fields of [`Columns`]. It wins over what is
            found; a column that is None is not read.
        where (`str`): The data set, for messages.
    Returns:
        [`Columns`].
    Raises:
        ValueError: If the map has an unknown key, names a column that is not there, or no pictures are found."""
    columns = dict(columns or {})
    known = [field.name for field in fields(Columns)]
    for key, value in columns.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"columns: unknown key {key!r}: {f'did you mean {nearest[0]!r}?' if nearest else known}")
        choices = {"box_format": BOX_FORMATS, "box_units": BOX_UNITS, "label_ids": LABEL_IDS}.get(key)
        if choices and value is not None and value not in choices:
            raise ValueError(f"columns: {key} {value!r} must be one of {', '.join(choices)}")
    leaves = flatten_features(features)
    for key in (*NAMES, *PICTURE_NAMES):
        path = columns.get(key)
        if path is not None and path not in leaves:
            raise ValueError(f"{where}: has no column {path!r} (columns.{key}): there are {', '.join(leaves)}")

    found: dict[str, Any] = {}
    for key, names in PICTURE_NAMES.items():
        found[key] = next((name for name in names if name in leaves), None)
    if not isinstance(leaves.get(found["image"]), datasets.Image):
        pictures = [path for path, feature in leaves.items() if isinstance(feature, datasets.Image)]
        found["image"] = pictures[0] if len(pictures) == 1 else found["image"]
    # Everything about objects stands in the same struct as their boxes.
    boxes = columns["boxes"] if "boxes" in columns else _first_path(leaves, CONTAINERS, NAMES["boxes"])
    containers = CONTAINERS if boxes is None else (boxes.rpartition(".")[0],)
    for key, names in NAMES.items():
        found[key] = _first_path(leaves, containers, names)
    paths = [_join(container, name) for container in containers for name in NAMES["labels"]]
    named = [path for path in paths if isinstance(leaf_of(leaves.get(path)), datasets.ClassLabel)]
    found["labels"] = named[0] if named else found["labels"]
    found = {**found, **columns}
    if not found["image"]:
        raise ValueError(f"{where}: no column of pictures: say which with columns.image; there are {', '.join(leaves)}")
    if found["boxes"] and not columns.get("box_format"):
        ending = found["boxes"].rpartition("_")[2]
        found["box_format"] = ending if ending in BOX_FORMATS else None
        if found["box_format"] and not columns.get("box_units"):
            found["box_units"] = "pixels"
    return Columns(**found)


def flatten_features(features: Any, prefix: str = "") -> dict[str, Any]:
    """Features by path, `objects.bbox` for one within a struct or a list of structs."""
    leaves = {}
    for name, feature in features.items():
        path = f"{prefix}{name}"
        inner = feature
        while isinstance(getattr(inner, "feature", None), dict) or isinstance(inner, list):
            inner = inner[0] if isinstance(inner, list) else inner.feature
        if isinstance(inner, dict) and not _is_picture(inner):
            leaves |= flatten_features(inner, f"{path}.")
        else:
            leaves[path] = feature
    return leaves


def leaf_of(feature: Any) -> Any:
    """What a feature's lists hold in the end."""
    while getattr(feature, "feature", None) is not None and not isinstance(feature.feature, dict):
        feature = feature.feature
    return feature


def value_at(row: Mapping[str, Any], path: str | None) -> Any:
    """The value of a row at a path as in [`flatten_features`]: lists of structs are read like structs of lists."""
    if path is None:
        return None
    first, *rest = path.split(".")
    value = row[first]
    for name in rest:
        if isinstance(value, list):
            value = [None if item is None else item[name] for item in value]
        else:
            value = None if value is None else value[name]
    return value


def find_names(feature: Any, columns: Columns, seen: Iterable[Any] | None, where: str) -> dict[Any, tuple[int, str]]:
    r"""Number and name the classes.

    Args:
        feature: That of the labels, or None without labels: then there is one class.
        columns ([`Columns`]): For `names` and `label_ids`.
        seen (`Iterable`, *optional*): All labels that occur, where they are known; needed if nothing names them.
        where (`str`): The data set, for messages.
    Returns:
        `dict`: By label as it stands in the data set, its id (1 and up) and its name.
    Raises:
        ValueError: If the names cannot be known, or one comes twice."""
    if columns.labels is None:
        return {None: (1, "object")}
    leaf, first = leaf_of(feature), 0 if columns.label_ids == "raw" else 1
    is_text = isinstance(leaf, datasets.Value) and leaf.dtype in ("string", "large_string")
    if columns.names is not None:
        if isinstance(columns.names, Mapping):
            names = {(str(key) if is_text else int(key)): str(name) for key, name in columns.names.items()}
        else:
            names = dict(enumerate(map(str, columns.names), start=1 - first))
    elif isinstance(leaf, datasets.ClassLabel):
        names = dict(enumerate(leaf.names))
    elif seen is None:
        raise ValueError(f"{where}: the names of the classes are not known before all is read: say columns.names")
    else:
        names = {label: str(label) for label in sorted(set(seen) - {None})}
    if is_text:  # labels are names already: numbered in their order
        in_order = names.values() if columns.names is not None else names
        return {name: (number, name) for number, name in enumerate(in_order, start=1)}
    table = {label: (label + first, name) for label, name in names.items()}
    table = {label: (number, name) for label, (number, name) in table.items() if name != f"{UNUSED}{number}"}
    if isinstance(leaf, datasets.ClassLabel) and columns.label_ids == "raw":
        table = {label: entry for label, entry in table.items() if label > 0}  # a first name for the background
    twice = [name for name in names.values() if sum(name == other for _, other in table.values()) > 1]
    if twice:
        raise ValueError(f"{where}: two classes are named {twice[0]!r}")
    return table


def find_box_format(
    boxes: np.ndarray, sizes: np.ndarray, areas: np.ndarray | None, columns: Columns, where: str, problems: Problems
) -> tuple[str, str]:
    r"""Find out what the four numbers of a box mean, and say so.

    xyxy data read as xywh reaches out of the pictures, xywh data read as xyxy has right edges left of left ones: among
    many boxes one of the two is impossible. Where both are possible, xywh is assumed, as in COCO files; where neither
    is, the user has to say it.

    Args:
        boxes (`np.ndarray` of shape `(num_boxes, 4)`): As they stand.
        sizes (`np.ndarray` of shape `(num_boxes, 2)`): (height, width) of each box's picture.
        areas (`np.ndarray` of shape `(num_boxes,)`, *optional*): Areas of the objects; none is larger than its box.
        columns ([`Columns`]): What the user said.
        where (`str`): The data set, for messages.
        problems ([`Problems`]): Is told what was assumed.
    Returns:
        `tuple[str, str]`: One of `BOX_FORMATS` and one of `BOX_UNITS`.
    Raises:
        ValueError: If no format fits."""
    units, box_format = columns.box_units, columns.box_format
    finite = np.isfinite(boxes).all(1)
    boxes, sizes = boxes[finite], sizes[finite]
    areas = None if areas is None else areas[finite]
    if not len(boxes) or (units and box_format):
        return box_format or "xywh", units or "pixels"
    if units is None:
        units = "normalized" if np.mean(boxes.max(1) <= 1.001) >= 1 - MOST_IMPOSSIBLE else "pixels"
    scales = np.ones_like(sizes) if units == "normalized" else sizes
    areas = None if areas is None or units == "normalized" else areas / sizes.prod(1)
    shares = {
        name: float(np.mean(_is_impossible(to_xyxy(boxes, name) / scales[:, [1, 0, 1, 0]], sizes, areas)))
        for name in BOX_FORMATS
    }
    if box_format is None:
        fitting = [name for name in ("xywh", "xyxy") if shares[name] <= MOST_IMPOSSIBLE]
        if not fitting:
            others = [name for name in ("cxcywh", "yxyx") if shares[name] <= MOST_IMPOSSIBLE]
            advice = f"; {' and '.join(others)} would fit" if others else ""
            tried = ", ".join(f"{100 * shares[name]:.0f} % are impossible as {name}" for name in ("xywh", "xyxy"))
            raise ValueError(f"{where}: the format of its boxes is not clear ({tried}{advice}): say columns.box_format")
        box_format = fitting[0]
        other = "xyxy" if box_format == "xywh" else "xywh"
        reason = (
            "xyxy is possible too: look at the contact sheet, or say columns.box_format"
            if len(fitting) > 1
            else f"{100 * shares[other]:.0f} % would be impossible as {other}"
        )
        # A kind of its own for each: a loop that prints kinds says what was assumed.
        taken = f"boxes are taken for {box_format} in {units}"
        problems.repair(taken, f"{where}: {taken} ({reason})")
    elif shares[box_format] > 0.5:
        share = f"{100 * shares[box_format]:.0f} % of the boxes"
        raise ValueError(f"{where}: {share} are impossible as {box_format} in {units}: correct columns.box_format")
    return box_format, units


def to_xyxy(boxes: np.ndarray, box_format: str) -> np.ndarray:
    """Boxes of any of `BOX_FORMATS`, `(num_boxes, 4)`, as left, top, right, bottom."""
    if box_format == "xyxy":
        return boxes
    if box_format == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    first, size = boxes[:, :2], boxes[:, 2:]
    if box_format == "cxcywh":
        return np.concatenate([first - size / 2, first + size / 2], 1)
    return np.concatenate([first, first + size], 1)


def _is_impossible(corners: np.ndarray, sizes: np.ndarray, areas: np.ndarray | None) -> np.ndarray:
    """Which normalised boxes are turned round, outside of their picture, or smaller than their object."""
    left, top, right, bottom = corners.T
    slack = 0.005 + 1 / sizes[:, ::-1]  # a pixel
    is_bad = (right < left) | (bottom < top) | (left < -slack[:, 0]) | (top < -slack[:, 1])
    is_bad |= (right > 1 + slack[:, 0]) | (bottom > 1 + slack[:, 1])
    if areas is not None:
        is_bad |= areas > 1.1 * (right - left) * (bottom - top) + slack.prod(1)
    return is_bad


def _first_path(leaves: Mapping[str, Any], containers: Iterable[str], names: Iterable[str]) -> str | None:
    paths = (_join(container, name) for container in containers for name in names)
    return next((path for path in paths if path in leaves), None)


def _join(container: str, name: str) -> str:
    return f"{container}.{name}" if container else name


def _is_picture(feature: Mapping[str, Any]) -> bool:
    """Whether a struct is a picture that lost its type: bytes and path."""
    return set(feature) == {"bytes", "path"}
