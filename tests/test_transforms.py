"""Transforms of one record."""

import pickle

import numpy as np
import pytest
import torch

from pix2seq_hf.data.transforms import (
    DUPLICATE_JITTER,
    OBJECT_ORDERS,
    ColorJitter,
    CropToObject,
    InjectNoiseBoxes,
    OrderObjects,
    RandomView,
    captioning_training_transforms,
    crop,
    crop_region,
    crop_to_object,
    detection_training_transforms,
    draw_noise,
    draw_truncated_normal,
    duplicate_boxes,
    evaluation_transforms,
    filter_invalid_objects,
    flip_horizontally,
    image_to_float,
    inject_noise_boxes,
    keypoint_training_transforms,
    noise_boxes,
    order_objects,
    pad,
    resize,
    resize_and_crop,
    resize_objects,
    scaled_size,
    segmentation_training_transforms,
    select_objects,
)
from pix2seq_hf.image_processing_pix2seq import resized_size


def make_record(num_objects=3, size=(40, 60), seed=0):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((num_objects, 2, 2), np.float32), axis=1).reshape(num_objects, 4)
    return {
        "image_id": 1,
        "image": torch.from_numpy(rng.integers(0, 256, (3, *size), np.uint8)),
        "image_size": size,
        "boxes_yxyx": torch.from_numpy(corners),
        "labels": torch.arange(1, num_objects + 1),
        "areas": torch.arange(num_objects, dtype=torch.float32),
        "is_crowd": torch.zeros(num_objects, dtype=torch.bool),
        "polygons_yx": torch.from_numpy(rng.random((num_objects, 12), np.float32)),
        "keypoints_yx": torch.from_numpy(rng.random((num_objects, 34), np.float32)),
        "captions": ["a drawing"],
    }


def frozen(record):
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in record.items()}


def same(one, other):
    assert set(one) == set(other)
    return all(
        value.equal(other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


class TestImages:
    def test_integer_pixels_become_unit_floats(self):
        pixels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
        assert image_to_float(pixels).tolist() == [[[0.0, float(np.float32(1 / 255)), 1.0]]]
        floats = torch.rand(3, 2, 2)
        assert image_to_float(floats) is floats

    @pytest.mark.parametrize(
        ("size", "target", "scale", "expected"),
        [
            ((480, 640), (640, 640), 1.0, (480, 640)),
            ((480, 640), (640, 640), 0.5, (240, 320)),
            ((100, 300), (64, 64), 1.0, (21, 64)),  # 21.33 is cut, not rounded
            ((300, 100), (64, 128), 1.0, (64, 21)),
            ((1, 5000), (640, 640), 0.3, (1, 192)),  # a side never vanishes
            ((5000, 1), (64, 64), 2.0, (128, 1)),
        ],
    )
    def test_scaled_size(self, size, target, scale, expected):
        assert scaled_size(size, target, scale) == expected

    def test_resize_is_bilinear_with_half_pixel_centres(self):
        image = torch.tensor([[[0.0, 1.0]]]).expand(3, 1, 2)
        resized = resize({"image": image}, (1, 4))["image"]
        assert resized[0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]
        halved = resize({"image": torch.tensor([[[0.0, 0.2, 0.6, 1.0]]])}, (1, 2))["image"]
        assert torch.allclose(halved, torch.tensor([[[0.1, 0.8]]]))  # two neighbours only: no antialiasing
        quartered = resize({"image": torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])}, (1, 1))["image"]
        assert quartered.item() == 0.0

    def test_pad(self):
        record = {"image": torch.ones(3, 4, 6), "boxes_yxyx": torch.tensor([[0.0, 0.5, 1.0, 1.0]])}
        padded = pad(record, (8, 8))
        assert padded["image"].shape == (3, 8, 8)
        assert padded["image"][:, :4, :6].allclose(torch.ones(3, 4, 6))
        assert (padded["image"][:, 4:] == torch.tensor(0.3)).all() and (padded["image"][:, :, 6:] == 0.3).all()
        assert padded["boxes_yxyx"].tolist() == [[0.0, 0.375, 0.5, 0.75]]
        assert padded["unpadded_image_size"] == (4, 6)
        with pytest.raises(ValueError, match="4 x 6 pixels cannot be padded to 8 x 5"):
            pad(record, (8, 5))

    @pytest.mark.parametrize("size", [(30, 40), (17, 90), (200, 160), (1, 1), (301, 3)])
    def test_parts_of_a_resized_picture(self, size):
        """Every part is the same part of the whole, whose pixels are those of `resize`."""
        record = make_record(size=(60, 80))
        whole = resize(record, size)["image"]
        for region in [(0, 0, *size), (size[0] // 2, size[1] // 3, size[0] - size[0] // 2, size[1] - size[1] // 3)]:
            top, left, height, width = region
            expected = whole[:, top : top + height, left : left + width]
            part = resize_and_crop(record, size, region)["image"]
            assert torch.allclose(part, expected, rtol=0, atol=5e-7)
            assert resize_and_crop(record, size, region, is_flipped=True)["image"].equal(part.flip(-1))
            interleaved = record["image"].permute(1, 2, 0).contiguous().permute(2, 0, 1)
            assert resize_and_crop({**record, "image": interleaved}, size, region)["image"].equal(part)
        assert resize_and_crop(record, (60, 80), (0, 0, 60, 80))["image"].equal(image_to_float(record["image"]))


class TestGeometry:
    @pytest.mark.parametrize(
        ("size", "position", "region"),
        [((10, 20), 0.0, (0, 0, 8, 8)), ((10, 20), 0.99, (1, 11, 8, 8)), ((5, 20), 0.5, (0, 6, 5, 8))],
    )
    def test_crop_region(self, size, position, region):
        assert crop_region(size, (8, 8), position) == region

    def test_crop_moves_every_kind_of_point(self):
        record = {
            "image": torch.arange(300.0).reshape(3, 10, 10),
            "boxes_yxyx": torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.0, 0.0, 0.1, 0.1]]),
            "polygons_yx": torch.tensor([[0.5, 0.9, 0.2, 0.2]] * 2),
            "keypoints_yx": torch.tensor([[0.5, 0.5, 0.2, 0.3]] * 2),
        }
        cropped = crop(record, (2, 2, 5, 5))
        assert cropped["image"].equal(record["image"][:, 2:7, 2:7])
        assert torch.allclose(cropped["boxes_yxyx"], torch.tensor([[0, 0, 0.8, 0.8], [0, 0, 0, 0.0]]), atol=1e-6)
        assert torch.allclose(cropped["polygons_yx"][0], torch.tensor([0.6, 1.0, 0.0, 0.0]), atol=1e-6)
        # The second keypoint lies on the border of the crop: invisible.
        assert torch.allclose(cropped["keypoints_yx"][0], torch.tensor([0.6, 0.6, -3.0, -3.0]), atol=1e-6)
        assert crop(cropped, (1, 3, 2, 2))["crop_offset"] == (3, 5)

    def test_flip(self):
        record = make_record()
        flipped = flip_horizontally(record)
        assert flipped["image"].equal(record["image"].flip(-1))
        ymin, xmin, ymax, xmax = record["boxes_yxyx"].unbind(-1)
        assert flipped["boxes_yxyx"].equal(torch.stack([ymin, 1 - xmax, ymax, 1 - xmin], -1))
        before, after = (each["keypoints_yx"].unflatten(-1, (17, 2)) for each in (record, flipped))
        assert after[:, 0, 1].equal(1 - before[:, 0, 1])  # the nose stays the nose
        assert after[:, 2, 1].equal(1 - before[:, 1, 1]) and after[:, 15, 0].equal(before[:, 16, 0])

    def test_invisible_keypoints_travel_when_mirrored(self):
        points = torch.tensor([[0.5, 0.5, -3.0, -3.0, 0.2, 0.3]])  # nose, left eye, right eye
        flipped = flip_horizontally({"image": torch.zeros(3, 4, 4), "keypoints_yx": points})["keypoints_yx"]
        assert torch.allclose(flipped, torch.tensor([[0.5, 0.5, 0.2, 0.7, -3.0, -3.0]]))

    def test_pairs_of_another_skeleton(self):
        points = torch.tensor([[0.1, 0.1, 0.2, 0.2, 0.3, 0.3]])
        record = {"image": torch.zeros(3, 4, 4), "keypoints_yx": points}
        assert torch.allclose(
            flip_horizontally(record, [(0, 2)])["keypoints_yx"], torch.tensor([[0.3, 0.7, 0.2, 0.8, 0.1, 0.9]])
        )
        assert torch.allclose(
            flip_horizontally(record, [])["keypoints_yx"], torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7]])
        )

    def test_reserved_numbers_never_move(self):
        record = make_record()
        record["polygons_yx"][0, 4:6] = -2
        record["polygons_yx"][0, 8:] = -1
        record["keypoints_yx"][1, 6:8] = -3
        for change in (
            lambda given: crop(given, (10, 20, 20, 30)),
            flip_horizontally,
            lambda given: pad(given, (64, 64)),
            lambda given: pad(flip_horizontally(crop(given, (0, 0, 30, 60))), (64, 64)),
        ):
            changed = change(record)["polygons_yx"]
            assert changed[0, 4:6].tolist() == [-2, -2] and changed[0, 8:].tolist() == [-1] * 4
            assert ((changed >= 0) & (changed <= 1)).sum() == changed.numel() - 6
            assert (change(record)["keypoints_yx"] == -3).sum() >= 2

    def test_keypoints_outside_stay_invisible(self):
        record = {"image": torch.zeros(3, 10, 10), "keypoints_yx": torch.tensor([[0.5, 0.5, 0.9, 0.9]])}
        cropped = pad(crop(record, (0, 0, 8, 8)), (16, 16))
        assert torch.allclose(cropped["keypoints_yx"], torch.tensor([[0.3125, 0.3125, -3, -3]]))

    def test_crop_to_object(self):
        record = make_record()
        record["boxes_yxyx"][1] = torch.tensor([0.2, 0.3, 0.4, 0.6])
        found = crop_to_object(record, 1, 0.5)
        top, left = found["crop_offset"]
        height, width = found["image_size"]
        assert found["image"].equal(record["image"][:, top : top + height, left : left + width])
        assert found["labels"].tolist() == [2] and len(found["polygons_yx"]) == 1
        box = found["boxes_yxyx"][0] * torch.tensor([height, width] * 2) + torch.tensor([top, left] * 2)
        assert torch.allclose(box, record["boxes_yxyx"][1] * torch.tensor([40, 60] * 2), atol=1e-4)

    def test_jittered_boxes_are_what_is_asked_about(self):
        record = {**make_record(), "object_index": 1}
        record["boxes_yxyx"][1] = torch.tensor([0.3, 0.3, 0.6, 0.7])
        exact = CropToObject(0.5)(record, np.random.default_rng(0))
        assert exact["boxes_yxyx"].equal(crop_to_object(record, 1, 0.5)["boxes_yxyx"])
        corners, places = [], []
        for seed in range(50):
            found = CropToObject(0.5, 0.05)(record, np.random.default_rng(seed))
            scale, offset = torch.tensor(found["image_size"] * 2), torch.tensor(found["crop_offset"] * 2)
            corners.append((found["boxes_yxyx"][0] * scale + offset) / torch.tensor([40, 60] * 2))
            points = found["keypoints_yx"][0].unflatten(-1, (-1, 2))
            places.append((points * scale[:2] + offset[:2])[points[:, 0] > 0])
            moved = (record["keypoints_yx"][1].unflatten(-1, (-1, 2)) * torch.tensor([40, 60]))[points[:, 0] > 0]
            assert torch.allclose(places[-1], moved, atol=1e-3)  # keypoints stay where they are in the picture
        spread = torch.stack(corners).std(0) / torch.tensor([0.3, 0.4, 0.3, 0.4])
        assert ((spread > 0.03) & (spread < 0.06)).all()
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            CropToObject(0.5, -1)

    def test_crop_to_a_box_outside(self):
        record = {**make_record(), "boxes_yxyx": torch.tensor([[1.5, 0.1, 1.7, 0.2]])}
        with pytest.raises(ValueError, match=r"object 0 of image 1 .*no pixel in the image"):
            crop_to_object(record, 0, 0.0)

    def test_flip_twice_changes_nothing(self):
        record = make_record()
        twice = flip_horizontally(flip_horizontally(record))
        for field in ("boxes_yxyx", "polygons_yx", "keypoints_yx"):
            assert torch.allclose(twice[field], record[field], atol=1e-6)
        assert twice["image"].equal(record["image"])

    def test_scaling_to_a_padded_target_and_back(self):
        """A point of the picture stays on the same pixel content through resize, crop and pad."""
        image = torch.zeros(3, 30, 40)
        image[:, 12, 20] = 1.0
        record = {"image": image, "boxes_yxyx": torch.tensor([[12 / 30, 20 / 40, 13 / 30, 21 / 40]])}
        record = pad(crop(resize(record, (60, 80)), (10, 20, 50, 48)), (64, 64))
        ymin, xmin, ymax, xmax = (record["boxes_yxyx"][0] * 64).round().int().tolist()
        assert (ymin, xmin, ymax, xmax) == (14, 20, 16, 22)
        assert record["image"][0, ymin:ymax, xmin:xmax].min() > 0.5


class TestObjects:
    def test_select_takes_every_field_of_the_objects(self):
        record = make_record()
        picked = select_objects(record, torch.tensor([2, 0]))
        assert picked["labels"].tolist() == [3, 1] and picked["areas"].tolist() == [2.0, 0.0]
        assert picked["keypoints_yx"].equal(record["keypoints_yx"][[2, 0]])
        assert picked["captions"] == ["a drawing"] and picked["image"] is record["image"]

    def test_filter(self):
        record = {
            "boxes_yxyx": torch.tensor([[0, 0, 1, 1], [0.5, 0, 0.5, 1], [0, 0.6, 1, 0.5], [0, 0, 1, 1.0]]),
            "labels": torch.tensor([1, 2, 3, 4]),
            "is_crowd": torch.tensor([False, False, False, True]),
        }
        assert filter_invalid_objects(record)["labels"].tolist() == [1]
        assert filter_invalid_objects(record, drop_crowd=False)["labels"].tolist() == [1, 4]
        del record["is_crowd"]
        assert filter_invalid_objects(record)["labels"].tolist() == [1, 4]

    def test_orders(self):
        record = {**make_record(), "scores": torch.tensor([0.5, 0.9, 0.5])}
        record["boxes_yxyx"][2] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        permutation = np.array([1, 2, 0])
        orders = {order: order_objects(record, order, permutation)["labels"].tolist() for order in OBJECT_ORDERS}
        assert orders == {"none": [1, 2, 3], "random": [2, 3, 1], "scores": [2, 1, 3], "area": [3, 1, 2]}
        for refuse in (lambda: OrderObjects("size"), lambda: order_objects(record, "size")):
            with pytest.raises(ValueError, match="unknown object order 'size': choose one of none, random"):
                refuse()

    def test_resize_objects(self):
        longer = resize_objects(make_record(), 5)
        assert longer["labels"].tolist() == [1, 2, 3, 0, 0] and longer["keypoints_yx"].shape == (5, 34)
        assert longer["is_crowd"].dtype == torch.bool and not longer["boxes_yxyx"][3:].any()
        assert resize_objects(make_record(), 2)["labels"].tolist() == [1, 2]


class TestNoiseBoxes:
    @pytest.mark.parametrize(("num_boxes", "num_noise"), [(0, 7), (1, 9), (3, 4), (5, 1), (4, 96)])
    def test_counts_and_range(self, num_boxes, num_noise):
        record = make_record(num_boxes)
        for seed in range(20):
            draws = draw_noise(np.random.default_rng(seed), num_boxes, num_noise)
            boxes = noise_boxes(record["boxes_yxyx"].numpy(), draws)
            assert boxes.shape == (num_noise, 4) and boxes.dtype == np.float32
            assert ((boxes >= 0) & (boxes <= 1)).all()
            assert (boxes[:, 2:] >= boxes[:, :2] - 0.3).all()

    def test_duplicates_stay_near_their_object(self):
        boxes = np.array([[0.2, 0.2, 0.4, 0.6]], np.float32)
        near = 0
        for seed in range(20):
            draws = draw_noise(np.random.default_rng(seed), 1, 30)
            found = duplicate_boxes(boxes, draws)
            near += len(found)
            limit = 2 * DUPLICATE_JITTER * np.array([0.2, 0.4, 0.2, 0.4]) + 1e-6
            assert (np.abs(found - boxes) <= limit).all()
        assert near > 100

    def test_injected_boxes_follow_the_real_ones(self):
        record = make_record()
        found = InjectNoiseBoxes(8)(record, np.random.default_rng(0))
        assert found["labels"].tolist() == [1, 2, 3] + [-70] * 5
        assert found["boxes_yxyx"][:3].equal(record["boxes_yxyx"])
        assert found["areas"].tolist() == [0.0, 1.0, 2.0] + [0.0] * 5 and found["polygons_yx"].shape == (8, 12)
        assert InjectNoiseBoxes(2)(record, np.random.default_rng(0))["labels"].tolist() == [1, 2, 3]
        assert InjectNoiseBoxes(3)(record, np.random.default_rng(0))["labels"].tolist() == [1, 2, 3]

    def test_truncated_normal(self):
        numbers = draw_truncated_normal(np.random.default_rng(0), (50_000,), 0.5)
        assert numbers.dtype == np.float32
        assert 0.99 < np.abs(numbers).max() <= 1.0
        assert numbers.std() == pytest.approx(0.5 * 0.8796, abs=0.005)  # of the normal cut at two deviations


class TestRandomTransforms:
    def test_flip_is_a_fair_coin(self):
        record, view = make_record(1, (2, 2)), RandomView((2, 2), 1.0, 1.0)
        rng = np.random.default_rng(0)
        flipped = sum(view(record, rng)["boxes_yxyx"].equal(record["boxes_yxyx"]) for _ in range(400))
        assert 160 < flipped < 240

    def test_scales_cover_their_range(self):
        record, view = {"image": torch.zeros(3, 50, 50)}, RandomView((100, 100), 0.3, 0.9)
        rng = np.random.default_rng(0)
        heights = [view(record, rng)["image"].shape[1] for _ in range(300)]
        assert min(heights) in range(30, 34) and max(heights) in range(86, 90)
        for scales in ((0.0, 1.0), (1.0, 0.5)):
            with pytest.raises(ValueError, match="0 < min <= max"):
                RandomView((100, 100), *scales)

    def test_crops_go_everywhere(self):
        record, view = {"image": torch.zeros(3, 12, 20)}, RandomView((8, 8), 2.5, 2.5)
        rng = np.random.default_rng(0)
        found = [view(record, rng) for _ in range(300)]
        assert {each["crop_offset"] for each in found} >= {(0, 0), (3, 11)}
        assert {tuple(each["image"].shape) for each in found} == {(3, 8, 8)}

    @pytest.mark.parametrize("use_evaluation_resize", [False, True])
    @pytest.mark.parametrize("as_floats", [False, True])
    def test_a_view_is_resize_crop_and_flip(self, use_evaluation_resize, as_floats):
        record = make_record(size=(45, 61))
        if as_floats:
            record["image"] = image_to_float(record["image"])
        before, target = frozen(record), (40, 48)
        for seed in range(40):
            found = RandomView(target, 0.3, 2.5, use_evaluation_resize)(record, np.random.default_rng(seed))
            rng = np.random.default_rng(seed)
            scale, position, coin = rng.uniform(0.3, 2.5), rng.random(), rng.random()
            if use_evaluation_resize:
                expected = resize(record, resized_size((45, 61), (scale * 40, scale * 48)), antialias=True)
            else:
                expected = resize(record, scaled_size((45, 61), target, scale))
            expected = crop(expected, crop_region(expected["image"].shape[-2:], target, position))
            expected = flip_horizontally(expected) if coin > 0.5 else expected
            image = expected.pop("image")
            assert torch.allclose(found.pop("image"), image, rtol=0, atol=1e-6)
            assert same(found, expected)
        assert same(record, before)

    def test_a_canvas_changes_nothing_but_the_place(self):
        for transforms in (
            detection_training_transforms((64, 48), 10),
            captioning_training_transforms((64, 48)),
            detection_training_transforms((64, 48), 10, use_evaluation_resize=True),
        ):
            for seed in range(6):
                canvas = torch.full((3, 64, 48), torch.nan)
                expected = transforms(make_record(), np.random.default_rng(seed))
                found = transforms({**make_record(), "canvas": canvas}, np.random.default_rng(seed))
                assert found["image"].data_ptr() == canvas.data_ptr()
                assert canvas.equal(expected["image"])

    @pytest.mark.parametrize("num_objects", [0, 1, 3, 30])
    def test_training_transforms(self, num_objects):
        record = make_record(num_objects)
        before = frozen(record)
        transforms = detection_training_transforms((64, 48), 10)
        for seed in range(15):
            found = transforms(record, np.random.default_rng(seed))
            assert found["image"].shape == (3, 64, 48) and found["image"].dtype == torch.float32
            assert -1e-6 <= found["image"].min() and found["image"].max() <= 1 + 1e-6
            assert found["labels"].shape == (10,) and found["keypoints_yx"].shape == (10, 34)
            assert ((found["boxes_yxyx"] >= 0) & (found["boxes_yxyx"] <= 1)).all()
            real = found["labels"] > 0
            assert (found["boxes_yxyx"][real, 2:] > found["boxes_yxyx"][real, :2]).all()
            assert not (found["labels"] == 0).any()  # noise fills every slot
            assert found["image_size"] == (40, 60)
        assert same(record, before)  # what came in is untouched

    def test_the_seed_decides(self):
        transforms = detection_training_transforms((32, 32), 6)
        first, again, other = (transforms(make_record(), np.random.default_rng(seed)) for seed in (4, 4, 5))
        assert same(first, again) and not same(first, other)

    def test_without_noise_boxes_there_is_padding(self):
        transforms = detection_training_transforms((32, 32), 6, use_noise_boxes=False, min_scale=1.0, max_scale=1.0)
        found = transforms(make_record(), np.random.default_rng(0))
        assert sorted(found["labels"].tolist()) == [0, 0, 0, 1, 2, 3]

    def test_without_flip_scale_and_order_only_the_padding_moves_boxes(self):
        transforms = detection_training_transforms(
            (40, 80), 3, use_flip=False, min_scale=1.0, max_scale=1.0, object_order="none"
        )
        record = make_record()  # 40 x 60 pixels: fits as it is
        for seed in range(8):
            found = transforms(record, np.random.default_rng(seed))
            assert torch.allclose(found["boxes_yxyx"], record["boxes_yxyx"] * torch.tensor([1, 0.75, 1, 0.75]))

    @pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
    def test_extreme_pictures(self, size):
        transforms = detection_training_transforms((32, 32), 6)
        for seed in range(5):
            assert transforms(make_record(2, size), np.random.default_rng(seed))["image"].shape == (3, 32, 32)

    def test_transforms_reach_worker_processes(self):
        transforms = pickle.loads(pickle.dumps(detection_training_transforms((32, 32), 6)))
        assert transforms(make_record(), np.random.default_rng(0))["image"].shape == (3, 32, 32)

    def test_inject_keeps_its_input(self):
        record = make_record()
        before = frozen(record)
        inject_noise_boxes(record, draw_noise(np.random.default_rng(0), 3, 4))
        assert same(record, before)


class TestOtherTasks:
    CHAINS = [
        segmentation_training_transforms((32, 48), 4, object_order="random"),
        keypoint_training_transforms((32, 48), 4, max_scale=2.0, use_flip=True),
        captioning_training_transforms((32, 48)),
    ]

    @pytest.mark.parametrize("transforms", CHAINS)
    def test_shapes_and_determinism(self, transforms):
        record = make_record(6)
        before = frozen(record)
        for seed in range(10):
            found, again = (transforms(record, np.random.default_rng(seed)) for _ in range(2))
            assert found["image"].shape == (3, 32, 48) and found["image"].min() >= 0 and found["image"].max() <= 1
            assert same(found, again)
        assert same(record, before)

    def test_objects_and_captions(self):
        record = make_record(6)
        segmentation, keypoints, captioning = (chain(record, np.random.default_rng(0)) for chain in self.CHAINS)
        assert len(segmentation["labels"]) == len(keypoints["labels"]) == 4
        assert captioning["captions"] == ["a drawing"]

    def test_objects_without_polygon_are_not_segmented(self):
        record = make_record(3)
        record["polygons_yx"][1] = -1
        found = segmentation_training_transforms((32, 48), 4)(record, np.random.default_rng(0))
        assert found["labels"].tolist() == [1, 3, 0, 0]

    def test_missing_scores_keep_the_order(self):
        transforms = segmentation_training_transforms((32, 48), 2)
        assert transforms(make_record(6), np.random.default_rng(0))["labels"].tolist() == [1, 2]

    def test_evaluation_is_the_image_processor(self):
        from pix2seq_hf.image_processing_pix2seq import Pix2SeqImageProcessor

        image = make_record(1, (50, 37))["image"]
        processor = Pix2SeqImageProcessor(size={"height": 32, "width": 48})
        expected = processor(image, return_tensors="pt", input_data_format="channels_first")["pixel_values"][0]
        found = evaluation_transforms((32, 48))({"image": image}, None)
        assert torch.allclose(found["image"], expected, atol=1e-6)

    def test_the_resize_of_evaluation(self):
        image = make_record(1, (50, 37))["image"]
        options = {"min_scale": 1.0, "max_scale": 1.0, "use_flip": False, "color_jitter_strength": 0}
        for size in ((32, 48), (48, 32), (64, 21)):
            expected = evaluation_transforms(size)({"image": image}, None)
            transforms = captioning_training_transforms(size, **options, use_evaluation_resize=True)
            found = transforms({"image": image}, np.random.default_rng(0))
            assert found["image"].equal(expected["image"])
            assert found["unpadded_image_size"] == expected["unpadded_image_size"]

    def test_antialiasing_is_off_unless_asked_for(self):
        record = make_record(1, (64, 96))
        options = {"min_scale": 0.5, "max_scale": 0.5, "use_flip": False, "color_jitter_strength": 0}
        plain = captioning_training_transforms((32, 48), **options)(record, np.random.default_rng(0))["image"]
        smooth = captioning_training_transforms((32, 48), **options, use_evaluation_resize=True)
        assert smooth(record, np.random.default_rng(0))["image"].std() < 0.9 * plain.std()

    def test_colour_jitter_needs_a_strength(self):
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            ColorJitter(-1)
