"""Polygons against the reference recordings: flattening, training transforms, crops to objects."""

import json

import numpy as np
import pytest
import torch
from recordings import IMAGE_TOLERANCE, POINT_TOLERANCE, difference, draws_of, load, part_of, to_record

from pix2seq_hf.data.annotations import boxes_from_xywh, polygons_from_parts
from pix2seq_hf.data.transforms import (
    crop,
    crop_region,
    crop_to_object,
    filter_invalid_objects,
    flip_horizontally,
    image_to_float,
    order_objects,
    pad,
    resize,
    resize_objects,
    scaled_size,
    segmentation_training_transforms,
)
from pix2seq_hf.masks_pix2seq import join_parts
from pix2seq_hf.tokenization_pix2seq import preserve_reserved

CASES = ["down", "unit_flip", "more_slots_than_objects_flip", "crop", "crop_flip"]


@pytest.fixture(scope="module")
def recordings(golden_dir):
    return load(golden_dir / "tasks" / "transforms_train.npz", ("instance_segmentation/", "images/"))


def replay(step, record, drawn, config):
    target_size, max_instances = tuple(config["target_size"]), config["max_instances"]
    size = tuple(record["image"].shape[-2:])
    if step == "record_original_image_size":
        return {**record, "image_size": size}
    if step == "convert_image_dtype_float32":
        return {**record, "image": image_to_float(record["image"])}
    if step == "filter_invalid_objects":
        return filter_invalid_objects(record)
    if step == "reorder_object_instances":
        return order_objects(record, "scores")
    if step == "truncate_or_pad_to_max_instances":
        return resize_objects(record, max_instances)
    if step == "scale_jitter":
        return resize(record, scaled_size(size, target_size, drawn[0]))
    if step == "fixed_size_crop":
        return crop(record, crop_region(size, target_size, drawn[0]))
    if step == "random_horizontal_flip":
        return flip_horizontally(record) if drawn[0] > 0.5 else record
    if step == "pad_image_to_max_size":
        return pad(record, target_size)
    assert step in ("copy_fields", "preserve_reserved_tokens")  # reserved numbers never move here
    return record


def test_every_case_is_replayed(recordings):
    assert {key.split("/")[1] for key in recordings if key.startswith("instance_segmentation/")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_training_transforms(recordings, name, parity_report):
    case = part_of(recordings, f"instance_segmentation/{name}")
    config, draws = json.loads(case["config_json"].item()), draws_of(case)
    pixels = torch.from_numpy(recordings[f"images/{case['image_id']}/pixels_uint8"]).permute(2, 0, 1)
    record = {"image": pixels, **to_record(part_of(case, "in"))}
    used = 0
    for step in json.loads(case["steps_json"].item()):
        record = replay(step["name"], record, [draws[index] for index in step["draws"]], config)
        used += len(step["draws"])
        recorded = part_of(case, f"step_{step['step']}_{step['name']}")
        assert tuple(record["image"].shape[-2:]) == tuple(recorded["image_size"])
        for field, value in to_record(recorded).items():
            if field == "polygons_yx":  # in between, the reference moves reserved numbers like coordinates
                value = preserve_reserved(value, record[field])
            tolerance = {"image": IMAGE_TOLERANCE, "boxes_yxyx": POINT_TOLERANCE, "polygons_yx": POINT_TOLERANCE}
            assert difference(record[field], value) <= tolerance.get(field, 0), f"{field} after {step['name']}"
    assert used == len(draws)
    out = to_record(part_of(case, "out"))
    assert {"image", "boxes_yxyx", "labels", "polygons_yx", "crop_offset", "scores"} <= set(out)
    parity_report(f"segmentation image, {name}", difference(record["image"], out.pop("image")), IMAGE_TOLERANCE)
    for field in ("boxes_yxyx", "polygons_yx"):
        parity_report(f"segmentation {field}, {name}", difference(record[field], out[field]), POINT_TOLERANCE)
    assert ((record["polygons_yx"] < 0) == (out["polygons_yx"] < 0)).all() and (out["polygons_yx"] < 0).any()
    for field in set(out) - {"boxes_yxyx", "polygons_yx"}:
        assert difference(record[field], out[field]) == 0, field


@pytest.mark.parametrize("name", CASES)
def test_the_chain_is_that_order(recordings, name):
    """The chain of the package, fed with the recorded draws, ends where the steps end."""
    case = part_of(recordings, f"instance_segmentation/{name}")
    config, draws = json.loads(case["config_json"].item()), draws_of(case)
    pixels = torch.from_numpy(recordings[f"images/{case['image_id']}/pixels_uint8"]).permute(2, 0, 1)
    record = {"image": pixels, **to_record(part_of(case, "in"))}

    class Replayed:
        def __init__(self):
            self.draws = iter(draws)

        def uniform(self, low, high):
            return next(self.draws)

        def random(self):
            return next(self.draws)

    transforms = segmentation_training_transforms(
        config["target_size"], config["max_instances"], min_scale=0.3, max_scale=config["jitter_scale"][1]
    )
    found, out = transforms(record, Replayed()), to_record(part_of(case, "out"))
    assert difference(found["image"], out["image"]) <= IMAGE_TOLERANCE
    assert difference(found["polygons_yx"], out["polygons_yx"]) <= POINT_TOLERANCE
    assert found["labels"].equal(out["labels"])


def test_flattening(golden_dir, parity_report):
    raw = json.loads((golden_dir / "tasks" / "polygon_flattening_raw.json").read_text())
    with np.load(golden_dir / "tasks" / "polygon_flattening.npz", allow_pickle=False) as recorded:
        splits, values = recorded["flat_xy_row_splits"], recorded["flat_xy_values"]
        assert [item["annotation_id"] for item in raw] == recorded["annotation_ids"].tolist()
        for row, item in enumerate(raw):
            flat_xy = values[splits[row] : splits[row + 1]].reshape(-1, 2)
            joined = join_parts(item["segmentation"], len(flat_xy)).reshape(-1, 2)
            assert joined[:, ::-1].tolist() == flat_xy.tolist()
        for max_points in (128, 24):
            ours = np.concatenate(
                [
                    polygons_from_parts([item["segmentation"]], (item["height"], item["width"]), max_points)
                    for item in raw
                ]
            )
            parity_report(
                f"flattened polygons, {max_points} points",
                difference(ours, recorded[f"polygon_normalised_yx_{max_points}"]),
            )
        boxes = np.concatenate([boxes_from_xywh([item["bbox"]], (item["height"], item["width"])) for item in raw])
        parity_report("boxes of polygons", difference(boxes, recorded["bbox_normalised_yxyx"]))


@pytest.mark.parametrize("name", ["polygons_466137_pad_0.0", "polygons_466137_pad_0.25"])
def test_crop_to_object(golden_dir, name, parity_report):
    case = load(golden_dir / "tasks" / "crop_to_bbox.npz", f"{name}/")
    given, out = (to_record(part_of(case, f"{name}/{part}")) for part in ("in", "out"))
    image_size = tuple(case[f"{name}/in/image_size"])
    given["image"] = torch.zeros(3, *image_size)
    order = given["scores"].argsort(descending=True, stable=True).tolist()
    crops = [crop_to_object(given, index, float(name.rsplit("_", 1)[1])) for index in order]
    regions = [[*found["crop_offset"], *found["image"].shape[-2:]] for found in crops]
    assert regions == case[f"{name}/out/region_yxhw"].tolist()
    for field in ("boxes_yxyx", "polygons_yx", "labels", "scores"):
        ours = torch.stack([found[field] for found in crops])
        parity_report(f"{name}, {field}", difference(ours, out[field]), POINT_TOLERANCE)
