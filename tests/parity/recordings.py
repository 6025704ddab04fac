"""Reading the reference's recordings of transforms: arrays under our names, draws, differences."""

import json

import numpy as np
import torch

NAMES = {
    "bbox": "boxes_yxyx", "label": "labels", "area": "areas", "is_crowd": "is_crowd", "polygon": "polygons_yx",
    "keypoints": "keypoints_yx", "image": "image", "crop_offset": "crop_offset", "scores": "scores",
    "num_keypoints": "num_keypoints", "unpadded_image_size": "unpadded_image_size", "orig_image_size": "image_size",
}  # fmt: skip
IMAGE_TOLERANCE = 5e-6
POINT_TOLERANCE = 2e-6


def load(path, prefixes):
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files if key.startswith(prefixes)}


def part_of(arrays, prefix):
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def draws_of(arrays):
    kinds = json.loads(arrays["draws_json"].item())
    return [arrays[f"draw_{index:02d}_{draw['kind']}"] for index, draw in enumerate(kinds)]


def to_record(arrays):
    """Recorded fields under our names, images as (3, height, width)."""
    record = {NAMES[key]: torch.from_numpy(np.array(value)) for key, value in arrays.items() if key in NAMES}
    if "image" in record:
        record["image"] = record["image"].permute(2, 0, 1)
    return record


def difference(ours, theirs):
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
