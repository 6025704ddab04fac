"""Drawn scenes: everything follows from the seed, and annotations say what can be seen and nothing else."""

import math

import numpy as np
import pytest

from pix2seq_hf.data.scene_outlines import outline
from pix2seq_hf.data.scene_people import POSES, draw_person
from pix2seq_hf.data.scene_things import COLORS, PLURALS, SCENE_CLASSES, THINGS
from pix2seq_hf.data.scenes import SceneOptions, draw_scene
from pix2seq_hf.masks_pix2seq import rasterize, rle_to_mask

PERSON = 1


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(5, "train", index) for index in range(60)]


def mask_of(item, size=(320, 320)):
    return rasterize([[np.array(part) for part in item["segmentation"]]], size).full().astype(bool)


def single(scene):
    return [item for item in scene.objects if not item["iscrowd"]]


def test_the_seed_decides(scenes):
    again = draw_scene(5, "train", 7)
    assert np.array_equal(again.picture, scenes[7].picture)
    assert again.objects == scenes[7].objects and again.captions == scenes[7].captions
    for other in (scenes[8], draw_scene(6, "train", 7), draw_scene(5, "val", 7)):
        assert not np.array_equal(again.picture, other.picture)


def test_variety(scenes):
    objects = [item for scene in scenes for item in single(scene)]
    assert {item["category_id"] for item in objects} == set(SCENE_CLASSES) and len(SCENE_CLASSES) == 12
    assert {item["color"] for item in objects} == set(COLORS)
    counts = [len(single(scene)) for scene in scenes]
    assert min(counts) == 1 and max(counts) > 15
    sides = [max(item["bbox"][2:]) for item in objects]
    assert min(sides) < 20 and max(sides) > 150
    assert any(len(item["segmentation"]) > 1 for item in objects), "something in front cuts something in two"
    assert any(item["iscrowd"] for scene in scenes for item in scene.objects)
    assert all(len(scene.captions) == 5 for scene in scenes)


def test_annotations_are_of_what_is_seen(scenes):
    hidden = 0
    for scene in scenes[:25]:
        masks = [mask_of(item) for item in single(scene)]
        for item, mask in zip(single(scene), masks, strict=True):
            x, y, width, height = item["bbox"]
            assert 0 <= x and 0 <= y and x + width <= 320 and y + height <= 320
            assert item["area"] >= 24 and abs(mask.sum() - item["area"]) <= max(0.15 * item["area"], 12)
            box = np.zeros_like(mask)
            box[y : y + height, x : x + width] = True
            assert (mask & ~box).sum() <= 0.02 * mask.sum() + 2
            assert sum(map(len, item["segmentation"])) // 2 + len(item["segmentation"]) - 1 <= 56
        claimed = np.sum(masks, axis=0)
        assert (claimed > 1).sum() <= 0.04 * (claimed > 0).sum(), "a pixel is of one thing"
        hidden += sum(item["area"] < 0.9 * mask_of_box(item) for item in single(scene))
    assert hidden


def mask_of_box(item):
    return item["bbox"][2] * item["bbox"][3]


def test_a_hole_is_no_part_of_the_mask():
    options = SceneOptions(image_size=(200, 200), num_objects=(1, 1), diameters=(120, 160), crowd_rate=0)
    donut = next(label for label, name in SCENE_CLASSES.items() if name == "donut")
    found = [item for index in range(60) for item in draw_scene(0, "x", index, options).objects]
    found = [item for item in found if item["category_id"] == donut and item["bbox"][2] > 110 and item["bbox"][3] > 110]
    assert found
    for item in found:
        x, y, width, height = item["bbox"]
        if 0 < x and 0 < y and x + width < 200 and y + height < 200:
            mask = mask_of(item, (200, 200))
            assert not mask[y + height // 2, x + width // 2] and mask[y + height // 2, x + width // 8]


def test_crowds_are_run_lengths(scenes):
    crowds = [item for scene in scenes for item in scene.objects if item["iscrowd"]]
    for item in crowds:
        mask = rle_to_mask(item["segmentation"])
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        left, top = columns[0], rows[0]
        assert item["bbox"] == [left, top, columns[-1] + 1 - left, rows[-1] + 1 - top] and item["area"] == mask.sum()
        assert not item.get("num_keypoints")


def test_keypoints(scenes):
    people = [item for scene in scenes for item in single(scene) if item["category_id"] == PERSON]
    seen = {0: 0, 1: 0, 2: 0}
    for item in people:
        points = np.reshape(item["keypoints"], (17, 3))
        assert item["num_keypoints"] == (points[:, 2] > 0).sum()
        if not item["num_keypoints"]:
            continue
        assert not points[points[:, 2] == 0].any() and ((points >= 0) & (points <= 320)).all()
        x, y, width, height = item["bbox"]
        visible = points[points[:, 2] == 2]
        near = 0.06 * max(width, height) + 2
        assert (
            (visible[:, :2] > (x - near, y - near)) & (visible[:, :2] < (x + width + near, y + height + near))
        ).all()
        for value in points[:, 2]:
            seen[int(value)] += 1
    assert min(seen.values()) > 0 and seen[2] > 2 * seen[1]
    others = [item for scene in scenes for item in scene.objects if item["category_id"] != PERSON]
    assert not any("keypoints" in item for item in others)


def test_keypoints_behind_something_are_marked_hidden():
    """The pixel of a visible keypoint belongs to its person, or to nobody: a rim."""
    hidden = 0
    for index in range(40):
        scene = draw_scene(1, "x", index, SceneOptions(num_objects=(8, 20), diameters=(60, 200), needs_person=True))
        masks = [(item, mask_of(item)) for item in single(scene)]
        for item, _ in masks:
            for x, y, seen in np.reshape(item.get("keypoints", []), (-1, 3)):
                inside = [other for other, mask in masks if mask[min(int(y), 319), min(int(x), 319)]]
                if seen == 1 and inside and item not in inside:
                    hidden += 1
                deep = [other for other in inside if other is not item and is_deep(masks, other, x, y)]
                assert not (seen == 2 and deep and item not in inside)
    assert hidden > 20


def is_deep(masks, other, x, y):
    mask = next(mask for item, mask in masks if item is other)
    top, left = max(int(y) - 4, 0), max(int(x) - 4, 0)
    return mask[top : int(y) + 5, left : int(x) + 5].all()


@pytest.mark.parametrize("pose", POSES)
def test_left_is_right_in_the_picture_of_who_faces_us(pose):
    for seed in range(5):
        front = draw_person(np.random.default_rng(seed), (200, 30, 30), pose, facing=0.0)
        behind = draw_person(np.random.default_rng(seed), (200, 30, 30), pose, facing=math.pi)
        for left, right in ((5, 6), (11, 12)):
            assert front.keypoints_xy[left, 0] > front.keypoints_xy[right, 0]
            assert behind.keypoints_xy[left, 0] < behind.keypoints_xy[right, 0]
        assert not behind.is_seen[:3].any()
        assert front.keypoints_xy[0, 1] < front.keypoints_xy[11, 1] < front.keypoints_xy[15, 1]  # y points down
        side = draw_person(np.random.default_rng(seed), (200, 30, 30), pose, facing=math.pi / 2)
        assert side.is_seen[6] and not side.is_seen[5]  # looking to the right, the left shoulder is the far one


def test_every_thing_has_an_outline_of_its_own():
    for name, kind in THINGS.items():
        assert set(kind.colors.split()) <= set(COLORS) and name in PLURALS
        pieces = kind.draw(np.random.default_rng(0), (200, 30, 30))
        points = np.concatenate([piece.points_xy for piece in pieces if piece.is_body])
        assert 0.85 < np.abs(points).max() <= 1.15, name


@pytest.mark.parametrize("image_size", [(48, 64), (200, 800), (640, 480)])
def test_any_size(image_size):
    for index in range(4):
        scene = draw_scene(0, "x", index, SceneOptions(image_size=image_size))
        assert scene.picture.size == image_size[::-1] and single(scene)


def test_few_and_large():
    options = SceneOptions(num_objects=(1, 3), diameters=(100, 200), crowd_rate=0, needs_person=True)
    for index in range(10):
        objects = draw_scene(0, "x", index, options).objects
        assert 1 <= len(objects) <= 3 and any(item.get("num_keypoints") for item in objects)
        assert max(max(item["bbox"][2:]) for item in objects) > 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (16, 320)}, "scenes of 16 x 320 pixels"),
        ({"num_objects": (3, 2)}, "num_objects 3 to 2"),
        ({"num_objects": (0, 2)}, "num_objects 0 to 2"),
        ({"num_objects": (1, 300)}, "at most 200"),
        ({"diameters": (2, 20)}, "diameters 2 to 20"),
        ({"diameters": (300, 400)}, "do not fit"),
        ({"crowd_rate": 2.0}, "crowd_rate 2.0"),
        ({"max_points": 3}, "max_points 3: an outline must have at least 4"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        SceneOptions(**options)


def test_people_that_are_too_small_for_keypoints_are_not_looked_for_without_end():
    with pytest.raises(ValueError, match="diameters 8-12 hardly ever show anyone of 32 pixels"):
        draw_scene(0, "x", 0, SceneOptions(image_size=(64, 64), diameters=(8, 12), needs_person=True))


def test_outlines_keep_holes_and_parts():
    rows, columns = np.mgrid[:90, :120]
    distance = np.hypot(rows - 45, columns - 45)
    mask = (distance < 40) & (distance > 15) | (np.abs(columns - 105) < 8) & (np.abs(rows - 40) < 30)
    parts = outline(mask, 5, 10)
    drawn = rasterize([[np.array(part) for part in parts]], (100, 140)).full()[5:95, 10:130].astype(bool)
    assert len(parts) == 2 and sum(map(len, parts)) // 2 < 56
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.93
    assert not drawn[45, 45]
    assert outline(np.ones((1, 1), bool), 3, 4) == [[4, 3, 5, 3, 5, 4, 4, 4]]
    coarse = outline(mask, 5, 10, max_points=24)
    drawn = rasterize([[np.array(part) for part in coarse]], (100, 140)).full()[5:95, 10:130].astype(bool)
    assert sum(map(len, coarse)) // 2 <= 24 and (drawn & mask).sum() / (drawn | mask).sum() > 0.7
    # Two triangles and what divides them are seven points: for fewer there is the box of the larger part.
    mask = np.ones((60, 90), bool)
    mask[:, 50:60] = False
    assert outline(mask, 5, 10, max_points=6) == [[10, 5, 60, 5, 60, 65, 10, 65]]
