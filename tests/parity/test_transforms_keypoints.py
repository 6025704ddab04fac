"""Keypoints against the reference recordings: extraction, training transforms, crops to objects."""

import json

import numpy as np
import pytest
import torch
from recordings import IMAGE_TOLERANCE, POINT_TOLERANCE, difference, draws_of, load, part_of, to_record

from pix2seq_hf.data.annotations import boxes_from_xywh, keypoints_from_triples
from pix2seq_hf.data.transforms import (
    crop,
    crop_to_object,
    evaluation_transforms,
    keypoint_training_transforms,
)
from pix2seq_hf.image_processing_pix2seq import crop_region

CASES = ["down", "unit", "more_slots_than_objects", "crop_a", "crop_b"]
CROPS = [f"keypoints_{image_id}_pad_{scale}" for image_id in (100667, 227000, 442450) for scale in (0.0, 0.5)]


@pytest.fixture(scope="module")
def recordings(golden_dir):
    return load(golden_dir / "tasks" / "transforms_train.npz", ("keypoint_detection/", "images/"))


@pytest.fixture(scope="module")
def crops(golden_dir):
    return load(golden_dir / "tasks" / "crop_to_bbox.npz", ("keypoints_", "region_rule/"))


class Replayed:
    """A generator that returns recorded draws."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def permutation(self, count):
        permutation = next(self.draws)
        assert len(permutation) == count
        return permutation

    def uniform(self, low, high):
        return next(self.draws)

    def random(self):
        return next(self.draws)


def test_every_case_is_replayed(recordings, crops):
    assert {key.split("/")[1] for key in recordings if key.startswith("keypoint_detection/")} == set(CASES)
    assert {key.split("/")[0] for key in crops} == {*CROPS, "region_rule"}


@pytest.mark.parametrize("name", CASES)
def test_training_transforms(recordings, name, parity_report):
    case = part_of(recordings, f"keypoint_detection/{name}")
    config, draws = json.loads(case["config_json"].item()), draws_of(case)
    pixels = torch.from_numpy(recordings[f"images/{case['image_id']}/pixels_uint8"]).permute(2, 0, 1)
    record = {"image": pixels, **to_record(part_of(case, "in"))}
    record["image_size"] = tuple(pixels.shape[-2:])
    transforms = keypoint_training_transforms(config["target_size"], config["max_instances"], max_scale=2.0)
    replayed = Replayed(draws)
    for transform in transforms.transforms:
        record = transform(record, replayed)
    assert next(replayed.draws, None) is None

    out = to_record(part_of(case, "out"))
    parity_report(f"keypoint image, {name}", difference(record["image"], out.pop("image")), IMAGE_TOLERANCE)
    parity_report(f"keypoint boxes, {name}", difference(record["boxes_yxyx"], out.pop("boxes_yxyx")), POINT_TOLERANCE)
    ours, theirs = record["keypoints_yx"], out.pop("keypoints_yx")
    # The reference's fault: what a crop made invisible (here also the zeros of padding) was scaled by the padding.
    scaled = (ours == -3) & (theirs < 0) & (theirs > -3)
    assert scaled.any() == (name in ("crop_b", "more_slots_than_objects"))
    ours, theirs = ours.masked_fill(scaled, 0), theirs.masked_fill(scaled, 0)
    parity_report(f"keypoints, {name}", difference(ours, theirs), POINT_TOLERANCE)
    for field, value in out.items():
        assert difference(record[field], value) == 0, field


@pytest.mark.parametrize("split", ["train", "eval"])
def test_extraction(golden_dir, split, parity_report):
    raw = json.loads((golden_dir / "tasks" / "keypoint_extraction_raw.json").read_text())
    recorded = part_of(load(golden_dir / "tasks" / "keypoint_extraction.npz", f"{split}/"), split)
    kept = [item for item in raw if item["annotation_id"] in recorded["annotation_ids"]]
    assert len(kept) == len(recorded["annotation_ids"]) > 10
    sizes = [(item["height"], item["width"]) for item in kept]
    keypoints, boxes = [], []
    for item, size in zip(kept, sizes, strict=True):
        keypoints.append(keypoints_from_triples([item["keypoints"]], size, 17))
        boxes.append(boxes_from_xywh([item["bbox"]], size))
    keypoints, boxes = np.concatenate(keypoints), np.concatenate(boxes)
    parity_report(f"extracted keypoints, {split}", difference(keypoints, recorded["keypoints"]))
    parity_report(f"boxes of keypoints, {split}", difference(boxes, recorded["bbox"]))


@pytest.mark.parametrize("name", CROPS)
def test_crop_to_object(crops, name, parity_report):
    case = part_of(crops, name)
    given, out, evaluated = (to_record(part_of(case, part)) for part in ("in", "out", "eval"))
    given["image"] = torch.zeros(3, *case["in/image_size"])
    order = given["scores"].argsort(descending=True, stable=True).tolist()
    found = [crop_to_object(given, index, float(name.rsplit("_", 1)[1])) for index in order]
    regions = [[*each["crop_offset"], *each["image"].shape[-2:]] for each in found]
    assert regions == case["out/region_yxhw"].tolist()
    for field in ("boxes_yxyx", "keypoints_yx", "labels", "num_keypoints"):
        ours = torch.stack([each[field] for each in found])
        parity_report(f"{name}, {field}", difference(ours, out[field]), POINT_TOLERANCE)

    transforms = evaluation_transforms(case["eval/target_size"])
    found = [transforms(each, None) for each in found]
    for field in ("boxes_yxyx", "keypoints_yx"):
        ours = torch.stack([each[field] for each in found])
        parity_report(f"{name}, evaluation {field}", difference(ours, evaluated[field]), POINT_TOLERANCE)
    for field in ("unpadded_image_size", "image_size"):
        assert [list(each[field]) for each in found] == evaluated[field].tolist()


def test_evaluation_image_of_a_crop(crops, parity_report):
    case = part_of(crops, "keypoints_227000_pad_0.5")
    image = torch.from_numpy(case["in/image_0_crop_uint8"]).permute(2, 0, 1)
    found = evaluation_transforms(case["eval/target_size"])({"image": image}, None)["image"]
    expected = torch.from_numpy(case["eval/image_0"]).permute(2, 0, 1)
    parity_report("evaluation image of a crop", difference(found, expected), 1e-5)


def test_region_rule(crops, parity_report):
    case, wrong, worst = part_of(crops, "region_rule"), 0, 0.0
    for box, size, pad_scale, region, box_out in zip(
        *(case[name] for name in ("bbox", "image_hw", "pad_scale", "region_yxhw", "bbox_out")), strict=True
    ):
        ours = crop_region(torch.from_numpy(box), tuple(size), float(pad_scale))
        wrong += list(ours) != region.tolist()
        cropped = crop({"image": torch.zeros(3, *size), "boxes_yxyx": torch.from_numpy(box)[None]}, ours)
        worst = max(worst, difference(cropped["boxes_yxyx"][0], torch.from_numpy(box_out)))
    parity_report("regions around boxes, wrong ones", wrong)
    parity_report("boxes in their regions", worst, POINT_TOLERANCE)
