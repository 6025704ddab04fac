"""Training transforms of detection against the reference recordings, given the same random draws."""

import json

import numpy as np
import pytest
import torch
from recordings import IMAGE_TOLERANCE, NAMES, POINT_TOLERANCE, difference, draws_of, load, part_of, to_record

from pix2seq_hf.data.transforms import (
    NoiseDraws,
    bad_boxes,
    boxes_around,
    crop,
    crop_region,
    duplicate_boxes,
    filter_invalid_objects,
    flip_horizontally,
    image_to_float,
    inject_noise_boxes,
    jitter_boxes,
    noise_boxes,
    order_objects,
    pad,
    resize,
    resize_and_crop,
    resize_objects,
    scaled_size,
    shift_boxes,
)
from pix2seq_hf.tokenization_pix2seq import preserve_reserved

CASES = [
    "down_no_flip", "unit_flip", "up_crop", "up_crop_flip", "crowd", "more_than_max", "exactly_one_free", "order_none",
    "order_area", "none_left", "edge_boxes", "dup_zero", "dup_all",
]  # fmt: skip


@pytest.fixture(scope="module")
def recordings(golden_dir):
    prefixes = ("object_detection/", "images/", "sizes/", "flip/", "crop/", "out_of_frame/", "filter/", "noise/")
    return load(golden_dir / "tasks" / "transforms_train.npz", prefixes)


def keep_reserved(given, expected):
    """What the reference makes of -1, -2 and -3 in between, undone: nothing moves them here."""
    return preserve_reserved(expected, given)


def noise_draws(drawn, num_boxes, noise_order):
    """The first eleven draws of the reference's noise boxes, and the last permutation."""
    return NoiseDraws(
        num_duplicates=int(drawn[0]) if num_boxes else 0,  # drawn and thrown away without boxes
        tiled_order=drawn[1],
        shifted_yx=np.stack([drawn[2][:, 0], drawn[3][:, 0]]),
        random_yx=np.stack([drawn[4][:, 0], drawn[5][:, 0]]),
        random_hw=np.stack([drawn[6][:, 0], drawn[7][:, 0]]),
        bad_order=drawn[8],
        duplicate_order=drawn[9],
        duplicate_rate=drawn[10],
        noise_order=noise_order,
    )


def replay(step, record, drawn, config):
    target_size, max_instances = tuple(config["target_size"]), config["max_instances"]
    size = tuple(record["image"].shape[-2:])
    if step == "record_original_image_size":
        return {**record, "image_size": size}
    if step == "scale_jitter":
        return resize(record, scaled_size(size, target_size, drawn[0]))
    if step == "fixed_size_crop":
        return crop(record, crop_region(size, target_size, drawn[0]))
    if step == "random_horizontal_flip":
        return flip_horizontally(record) if drawn[0] > 0.5 else record
    if step == "filter_invalid_objects":
        return filter_invalid_objects(record)
    if step == "reorder_object_instances":
        return order_objects(record, config["object_order"], drawn[0] if drawn else None)
    if step == "inject_noise_bbox":
        return inject_noise_boxes(record, noise_draws(drawn, len(record["labels"]), drawn[-1])) if drawn else record
    if step == "pad_image_to_max_size":
        return pad(record, target_size)
    assert step == "truncate_or_pad_to_max_instances"
    return resize_objects(record, max_instances)


def view_of(record, draws, target_size):
    """The first three steps as one, which is how the chains of the package do it."""
    scale, position, coin = draws
    size = scaled_size(record["image"].shape[-2:], target_size, scale)
    return resize_and_crop(record, size, crop_region(size, target_size, position), is_flipped=coin > 0.5)


def test_every_case_is_replayed(recordings):
    assert {key.split("/")[1] for key in recordings if key.startswith("object_detection/")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_training_transforms(recordings, name, parity_report):
    case = part_of(recordings, f"object_detection/{name}")
    config, draws = json.loads(case["config_json"].item()), draws_of(case)
    pixels = torch.from_numpy(recordings[f"images/{case['image_id']}/pixels_uint8"]).permute(2, 0, 1)
    given = record = {"image": pixels, **to_record(part_of(case, "in"))}
    worst = {"image": 0.0, "boxes_yxyx": 0.0}
    used, first_draws = 0, []
    for step in json.loads(case["steps_json"].item()):
        record = replay(step["name"], record, [draws[index] for index in step["draws"]], config)
        used += len(step["draws"])
        recorded = part_of(case, f"step_{step['step']}_{step['name']}")
        assert tuple(record["image"].shape[-2:]) == tuple(recorded["image_size"])
        for field, value in to_record(recorded).items():
            found = difference(record[field], value)
            if field in worst:
                worst[field] = max(worst[field], found)
            else:
                assert found == 0, f"{field} after {step['name']}"
        if step["name"] in ("scale_jitter", "fixed_size_crop", "random_horizontal_flip"):
            first_draws += [draws[index] for index in step["draws"]]
        if step["name"] == "random_horizontal_flip":
            given["image_size"] = tuple(pixels.shape[-2:])
            view = view_of(given, first_draws, tuple(config["target_size"]))
            assert all(difference(view[field], record[field]) == 0 for field in set(to_record(recorded)) - {"image"})
    assert used == len(draws)
    out = to_record(part_of(case, "out"))
    for field, value in out.items():
        found = difference(record[field], value)
        if field in worst:
            worst[field] = max(worst[field], found)
        else:
            assert found == 0, f"{field} at the end"
    assert {"image", "boxes_yxyx", "labels", "areas", "is_crowd", "crop_offset", "unpadded_image_size"} <= set(out)
    parity_report(f"training image, {name}", worst["image"], IMAGE_TOLERANCE)
    at_once = difference(pad(view, tuple(config["target_size"]))["image"], out["image"])
    parity_report(f"training image at once, {name}", at_once, IMAGE_TOLERANCE)
    parity_report(f"training boxes, {name}", worst["boxes_yxyx"], POINT_TOLERANCE)


def test_sizes(recordings, parity_report):
    case = part_of(recordings, "sizes")
    wrong = 0
    for row in range(len(case["scale"])):
        size, target = tuple(case["input_hw"][row].tolist()), tuple(case["target_hw"][row].tolist())
        scaled = scaled_size(size, target, case["scale"][row])
        region = crop_region(scaled, target, case["crop_uniform"][row])
        wrong += scaled != tuple(case["scaled_hw"][row])
        wrong += region != (*case["crop_offset"][row], *case["cropped_hw"][row])
    assert len(case["scale"]) > 100
    parity_report("training sizes and crops, wrong ones", wrong)


def test_flip(recordings, parity_report):
    case = part_of(recordings, "flip")
    given = {key.removesuffix("_in"): value for key, value in case.items() if key.endswith("_in")}
    flipped = flip_horizontally(to_record(given))
    expected = {key.removesuffix("_out"): value for key, value in case.items() if key.endswith("_out")}
    assert set(expected) == {"bbox", "keypoints", "polygon"}
    expected["image"] = given["image"][:, ::-1].copy()
    for field, value in to_record(expected).items():
        value = torch.where(value > 1, 1 - value, value)  # of a reserved number, which is kept here
        parity_report(f"flipped {field}", difference(flipped[field], value))
    assert (flipped["keypoints_yx"] == -3).sum() == (to_record(given)["keypoints_yx"] == -3).sum() > 0
    # A coin of exactly one half does not flip.
    assert difference(to_record(part_of(case, "coin_0.5"))["boxes_yxyx"], to_record(given)["boxes_yxyx"]) == 0
    assert difference(to_record(part_of(case, "coin_0.50001"))["boxes_yxyx"], flipped["boxes_yxyx"]) == 0


@pytest.mark.parametrize("region", ["inside", "full", "corner", "one_pixel"])
def test_crop(recordings, region, parity_report):
    given = {name: recordings[f"flip/{name}_in"] for name in ("bbox", "keypoints", "polygon")}
    height, width = recordings["crop/image_hw"].tolist()
    record = {**to_record(given), "image": torch.rand(3, height, width)}
    case = part_of(recordings, f"crop/{region}")
    top, left, height, width = case["region_yxhw"].tolist()
    cropped = crop(record, (top, left, height, width))
    assert cropped["image"].equal(record["image"][:, top : top + height, left : left + width])
    for field, value in to_record(case).items():
        value = keep_reserved(record[field], value) if field == "polygons_yx" else value
        parity_report(f"crop {region}, {field}", difference(cropped[field], value), POINT_TOLERANCE)
    again = crop(cropped, (0, 0, 1, 1))
    assert again["crop_offset"] == tuple(case["crop_offset_after_second_crop_at_0_0"])


def test_out_of_frame(recordings, parity_report):
    points = torch.from_numpy(recordings["out_of_frame/in"]).flatten(-2)  # (1, 18)
    full = {"image": torch.zeros(3, 8, 8), "keypoints_yx": points, "polygons_yx": points, "boxes_yxyx": points}
    cropped = crop(full, (0, 0, 8, 8))
    for name in ("bbox", "keypoints", "polygon"):
        expected = torch.from_numpy(recordings[f"out_of_frame/{name}"]).flatten(-2)
        expected = expected if name == "bbox" else keep_reserved(points, expected)
        parity_report(f"out of frame, {name}", difference(cropped[NAMES[name]], expected))


def test_filter(recordings):
    case = part_of(recordings, "filter")
    record = to_record({name: case[name] for name in ("bbox", "label", "is_crowd")})
    assert filter_invalid_objects(record)["labels"].tolist() == case["with_crowd_filter/label"].tolist()
    kept = filter_invalid_objects(record, drop_crowd=False)
    assert kept["labels"].tolist() == case["without_crowd_filter/label"].tolist()


def test_single_noise_functions(recordings, parity_report):
    boxes = recordings["noise/bbox_in"]

    def case_of(name):
        case = part_of(recordings, f"noise/{name}")
        return [np.array(draw) for draw in draws_of(case)], case["out"]

    (cy, cx), expected = case_of("shift_bbox")
    shifted = shift_boxes(boxes, np.concatenate([cy, cx], 1).T)
    parity_report("shifted boxes", difference(shifted, expected), POINT_TOLERANCE)
    (cy, cx, height, width), expected = case_of("random_bbox")
    random = boxes_around(np.concatenate([cy, cx], 1).T, np.concatenate([height, width], 1).T)
    parity_report("random boxes", difference(random, expected), POINT_TOLERANCE)
    (rates,), expected = case_of("jitter_bbox_0_0.1")
    parity_report("jittered boxes", difference(jitter_boxes(boxes, rates), expected), POINT_TOLERANCE)
    (up, down, coin), expected = case_of("jitter_bbox_0.1_0.4")
    rates = np.where(coin < 0.5, up, down)  # the reference has this second kind of rate, and does not use it
    parity_report("strongly jittered boxes", difference(jitter_boxes(boxes, rates), expected), POINT_TOLERANCE)


@pytest.mark.parametrize("mix_rate", [0, 1])
def test_noise_with_jittered_real_boxes(recordings, mix_rate, parity_report):
    """The reference's unused options, put together from the same parts."""
    case = part_of(recordings, f"noise/augment_mix_{mix_rate}")
    boxes, drawn = recordings["noise/bbox_in"], draws_of(case)
    draws = noise_draws(drawn, len(boxes), noise_order=drawn[13])
    real = jitter_boxes(boxes, drawn[11])
    if mix_rate:  # bad boxes among the real ones, duplicates at the end
        mixed = np.concatenate([real, bad_boxes(boxes, draws)])[drawn[13]]
        found = np.concatenate([mixed, duplicate_boxes(boxes, draws)])
        labels = np.concatenate([np.r_[1:7, [-70] * (len(mixed) - 6)][drawn[13]], [-70] * draws.num_duplicates])
    else:
        found = np.concatenate([real, noise_boxes(boxes, draws)])
        labels = np.r_[1:7, [-70] * 9]
    assert labels.tolist() == case["label"].tolist()
    parity_report(f"noise boxes, mix rate {mix_rate}", difference(found, case["bbox"]), POINT_TOLERANCE)


def test_pixels_are_multiplied_by_the_reciprocal(golden_dir, parity_report):
    with np.load(golden_dir / "tasks" / "preprocess_eval.npz", allow_pickle=False) as archive:
        pixels, expected = (torch.from_numpy(archive[f"convert_dtype/{dtype}"]) for dtype in ("uint8", "float32"))
    assert len(pixels) == 256
    parity_report("uint8 to float", difference(image_to_float(pixels), expected))
