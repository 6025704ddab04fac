"""How much of a mask survives the token format: polygon -> tokens -> mask against the annotation's own mask.

    python benchmarks/masks.py COCO_FOLDER [--split train2017 --split val2017] [--bins 1000] [--points 128]

Prints mean and worst IoU per size class of COCO (by the annotated area): for polygons as this package shortens them
(`masks_pix2seq.fit_parts`), for polygons as the reference cuts them, and for outlines traced from the mask, which is
what annotations in run lengths get. Crowd regions are left out."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pix2seq_hf.image_processing_pix2seq import padding_scale, resized_size
from pix2seq_hf.masks_pix2seq import fit_parts, join_parts, mask_to_parts, rasterize, segmentation_parts, split_parts
from pix2seq_hf.tokenization_pix2seq import Pix2SeqVocabulary, scale_points

SIZE_CLASSES = {"small": 32**2, "medium": 96**2, "large": float("inf")}  # largest area in pixels


WAYS = ("shortened", "cut", "traced")


@dataclass
class SizeClass:
    """What was measured for the objects of one size class: an IoU per object for each of `WAYS`."""

    num_too_long: int = 0
    ious: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})


def main(arguments: Sequence[str] | None = None):
    """Read the options, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a COCO folder, with annotations/instances_SPLIT.json")
    parser.add_argument("--split", action="append", help="may be repeated (default: train2017 and val2017)")
    parser.add_argument("--bins", type=int, default=1000, help="coordinate bins per axis (default: 1000)")
    parser.add_argument("--points", type=int, default=128, help="points per object (default: 128)")
    parser.add_argument("--image-size", type=int, default=640, help="side of the padded input (default: 640)")
    options = parser.parse_args(arguments)
    entries = []
    for split in options.split or ["train2017", "val2017"]:
        entries += read_entries(options.folder / "annotations" / f"instances_{split}.json")
    classes = measure(entries, options.bins, options.points, options.image_size)
    print(f"{len(entries)} objects, {options.bins} bins, {options.points} points, input of {options.image_size} pixels")
    print(f"{'size':<8}{'objects':>9}{'too long':>10}" + "".join(f"{way + ': mean':>18}{'worst':>7}" for way in WAYS))
    for name, found in {**classes, "all": join(classes.values())}.items():
        if number := len(found.ious["cut"]):
            columns = [f"{np.mean(ious):>18.4f}{min(ious):>7.3f}" for ious in found.ious.values()]
            print(f"{name:<8}{number:>9}{found.num_too_long:>10}" + "".join(columns))


def read_entries(path: Path) -> list[dict]:
    """Annotations of a COCO file that are no crowds, each with the `size` (height, width) of its picture."""
    content = json.loads(path.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    return [{**entry, "size": sizes[entry["image_id"]]} for entry in content["annotations"] if not entry["iscrowd"]]


def measure(entries: Iterable[dict], bins: int, max_points: int, image_size: int) -> dict[str, SizeClass]:
    """Compare every annotation's mask with what comes back from tokens, in all `WAYS`."""
    vocabulary = Pix2SeqVocabulary(
        vocab_size=1000 + bins, quantization_bins=bins, text_vocab_shift=max(3000, 1000 + bins)
    )  # fmt: skip
    classes = {name: SizeClass() for name in SIZE_CLASSES}
    for entry in entries:
        size = entry["size"]
        parts = segmentation_parts(entry["segmentation"], size)
        own = rasterize([parts], size).full()
        found = classes[next(name for name, area in SIZE_CLASSES.items() if entry["area"] < area)]
        found.num_too_long += sum(map(len, parts)) // 2 + len(parts) - 1 > max_points
        traced = fit_parts(mask_to_parts(own), max_points)
        for way, given in zip(WAYS, (fit_parts(parts, max_points), parts, traced)):
            back = rasterize([through_tokens(given, size, max_points, vocabulary, image_size)], size).full()
            union = np.count_nonzero(own | back)
            found.ious[way].append(np.count_nonzero(own & back) / union if union else 1.0)
    return classes


def through_tokens(parts, size, max_points: int, vocabulary: Pix2SeqVocabulary, image_size: int) -> list[np.ndarray]:
    """Parts in pixels, written as tokens of the padded input and read again."""
    target = (image_size, image_size)
    share = torch.tensor(resized_size(size, target), dtype=torch.float32) / image_size
    points = torch.from_numpy(join_parts(parts, max_points)).float()
    points = scale_points(scale_points(points, 1 / torch.tensor(size, dtype=torch.float32)), share)
    read = vocabulary.decode_points(vocabulary.encode_points(points))
    return split_parts(scale_points(read, torch.from_numpy(padding_scale(size, target))).numpy())


def join(classes: Iterable[SizeClass]) -> SizeClass:
    """All size classes as one."""
    total = SizeClass()
    for found in classes:
        total.num_too_long += found.num_too_long
        for way in WAYS:
            total.ious[way] += found.ious[way]
    return total


if __name__ == "__main__":
    main()
