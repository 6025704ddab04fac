"""Polygons, masks and run lengths become one another."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pix2seq_hf import masks_pix2seq
from pix2seq_hf.masks_pix2seq import (
    MaskWindow,
    fit_parts,
    join_parts,
    mask_to_parts,
    mask_to_rle,
    rasterize,
    rle_to_mask,
    segmentation_parts,
    split_parts,
)

SQUARE = np.array([2.0, 1, 8, 1, 8, 5, 2, 5])  # x, y: six pixels wide, four high


def random_mask(seed, height, width, share):
    return (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)


masks = st.builds(
    random_mask, st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 24), st.floats(0, 1)
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(masks)
def test_a_mask_comes_back_from_its_outline_and_its_run_lengths(mask):
    """Any number of parts, with holes, holes in islands in holes, and pixels that touch at corners only."""
    parts = mask_to_parts(mask)
    assert (rasterize([parts], mask.shape).full() == mask).all()
    rle = mask_to_rle(mask)
    assert rle["counts"] == coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert json.loads(json.dumps(rle)) == rle
    assert (rle_to_mask(rle) == mask).all()
    assert (rle_to_mask({**rle, "counts": rle["counts"].encode()}) == mask).all()
    areas = [rasterize([[part]], mask.shape).full().sum() for part in parts]
    assert areas and sum(areas) == mask.sum() if mask.any() else not parts


def test_outlines_have_no_needless_points():
    mask = np.zeros((9, 12), np.uint8)
    mask[1:5, 2:8] = 1
    (part,) = mask_to_parts(mask, top=10, left=20)
    points = {tuple(point) for point in part.reshape(-1, 2).tolist()}
    assert points == {(22.0, 11.0), (28.0, 11.0), (28.0, 15.0), (22.0, 15.0)}
    mask[2:4, 4:6] = 0
    (ring,) = mask_to_parts(mask)
    assert len(ring) // 2 == 4 + 4 + 2  # and both ends of the bridge at the outline; it leaves the hole straight on


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8), min_size=1, max_size=4))
def test_parts_come_back_from_a_flat_list(parts):
    parts = [np.repeat(np.array(part), 2) for part in parts]
    flat = join_parts(parts, 40)
    assert flat.shape == (80,)
    assert [part.tolist() for part in split_parts(flat)] == [part.tolist() for part in parts]


def test_flat_lists():
    assert join_parts([[1, 2, 3, 4], [5, 6]], 5).tolist() == [2, 1, 4, 3, -2, -2, 6, 5, -1, -1]
    assert join_parts([[1, 2, 3, 4], [5, 6]], 3).tolist() == [2, 1, 4, 3, -2, -2]  # plainly cut
    assert join_parts([], 2).tolist() == [-1] * 4
    assert [part.tolist() for part in split_parts(np.array([1, 2, -3, -3, 4, -2, 5, 6, 7, -1, 8, 9.0]))] == [
        [2, 1, -3, -3], [6, 5]
    ]  # fmt: skip
    assert split_parts(np.array([-2.0, -2, -2, -2])) == split_parts(np.zeros(0)) == []


def test_short_polygons_stay_as_they_are():
    parts = [SQUARE, SQUARE + 20]
    assert [part.tolist() for part in fit_parts(parts, 9)] == [part.tolist() for part in parts]


def test_long_polygons_lose_what_matters_least():
    corners = np.array([[0, 0], [100, 0], [100, 100], [0, 100]], float)
    along = [corner + (following - corner) * t for corner, following in zip(corners, np.roll(corners, -1, 0))
             for t in np.linspace(0, 1, 50, endpoint=False)]  # fmt: skip
    outline, crumb = np.array(along).reshape(-1), np.array([200.0, 0, 203, 0, 203, 3, 200, 3])
    (fitted,) = fit_parts([outline, crumb], 7)
    assert {tuple(point) for point in fitted.reshape(-1, 2).tolist()} >= {tuple(corner) for corner in corners.tolist()}
    both = fit_parts([outline, crumb], 9)
    assert [len(part) for part in both] == [8, 8]
    assert sum(len(part) // 2 for part in both) + 1 == 9
    assert fit_parts([outline, crumb], 2) == []


@settings(deadline=None)
@given(masks, st.integers(0, 40))
def test_fitted_parts_fit(mask, max_points):
    parts = fit_parts(mask_to_parts(mask), max_points)
    assert all(len(part) >= 6 for part in parts)
    assert sum(len(part) // 2 for part in parts) + max(len(parts) - 1, 0) <= max_points


def test_a_ring_keeps_its_hole_with_few_points():
    y, x = np.mgrid[:200, :200]
    ring = ((y - 100) ** 2 + (x - 90) ** 2 < 80**2) & ((y - 90) ** 2 + (x - 80) ** 2 > 30**2)
    (part,) = fit_parts(mask_to_parts(ring), 48)
    back = rasterize([[part]], ring.shape).full() > 0
    assert not back[90, 80] and len(part) <= 96
    assert (back & ring).sum() / (back | ring).sum() > 0.97


def test_windows_give_the_pixels_of_whole_pictures():
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = tuple(rng.integers(5, 60, 2).tolist())
        parts = [rng.uniform(-0.5, 1.5, 2 * rng.integers(3, 9)) * max(size) for _ in range(rng.integers(1, 4))]
        whole = coco_mask.decode(coco_mask.merge(coco_mask._mask.frPoly([list(part) for part in parts], *size)))
        window = rasterize([parts], size)
        assert (window.full() == whole).all()
        assert window.rle()["counts"] == coco_mask.encode(np.asfortranarray(whole))["counts"].decode()


def test_samples_are_averaged_and_reaching_the_threshold_is_enough():
    other = SQUARE + np.tile([3, 0], 4)  # overlaps in columns 5 to 7
    samples, size = [[SQUARE], [other], [], []], (9, 12)
    half = rasterize(samples, size, 0.5).full()
    assert half.sum() == 4 * 3 and half[1:5, 5:8].all()
    assert rasterize(samples, size, 0.25).full().sum() == 4 * 9
    assert not rasterize(samples, size, 0.6).full().any()
    assert rasterize([[SQUARE]] * 200 + [[other]] * 200, size, 0.5).full().sum() == 4 * 9  # more than uint8 counts
    for threshold in (0, -1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="ensemble_threshold"):
            rasterize(samples, size, threshold)


@pytest.mark.parametrize(
    "parts",
    [[], [np.array([1.0, 1])], [np.array([1.0, 1, 5, 5])], [np.array([50.0, 50, 60, 50, 60, 60])],
     [np.array([-9.0, -9, -1, -9, -1, -1])], [np.array([3.0, 3, 3, 3, 3, 3])]],
)  # fmt: skip
def test_what_encloses_nothing_is_an_empty_mask(parts):
    window = rasterize([parts], (9, 12))
    assert not window.full().any() and window.full().shape == (9, 12)
    assert rle_to_mask(window.rle()).shape == (9, 12)


def test_coordinates_far_away_cost_no_memory():
    """Malformed streams may hold any token; the rasteriser needs memory for each pixel of an outline."""
    far = np.array([0.0, 0, 1e18, 0, 1e18, 1e18, -1e18, 1e18])
    assert rasterize([[far]], (9, 12)).full().all()


def test_run_lengths_that_lie_are_refused():
    assert rle_to_mask({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [[0, 1, 0], [1, 0, 0]]
    good = mask_to_rle(np.ones((4, 5), np.uint8))
    for counts in ([1, 2], [3, -3, 6], [1.5, 4.5], [[6]], good["counts"] + "1", "", "~~~", "\x00"):
        with pytest.raises(ValueError, match="do not add up"):
            rle_to_mask({"size": [2, 3], "counts": counts})


def test_annotations_become_parts():
    polygons = segmentation_parts([[2, 1, 8, 1, 8, 5, 2, 5], [1, 2, 3, 4, 5, 6]], (9, 12))
    assert [part.tolist() for part in polygons] == [SQUARE.tolist(), [1, 2, 3, 4, 5, 6]]
    mask = rasterize([[SQUARE]], (9, 12)).full()
    uncompressed = {"size": [9, 12], "counts": [19, 4, 5, 4, 5, 4, 5, 4, 5, 4, 5, 4, 40]}
    for rle in (mask_to_rle(mask), uncompressed):
        assert (rasterize([segmentation_parts(rle, (9, 12))], (9, 12)).full() == mask).all()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3]], "flat list x, y"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, "six"]], "finite numbers"),
        ([[[1, 2], [3, 4], [5, 6]]], "flat list"),
        ([[1, 2, 3, 4]], "at least 3 points"),
        ([[]], "at least 3 points"),
        ("polygon", "got str"),
        ({"size": [9, 12]}, "`counts`"),
        ({"size": [12, 9], "counts": [108]}, r"\(12, 9\) pixels, the picture has \(9, 12\)"),
        ({"size": [9, 12], "counts": [107]}, "do not add up"),
    ],
)
def test_annotations_that_are_no_polygons(segmentation, message):
    with pytest.raises(ValueError, match=message):
        segmentation_parts(segmentation, (9, 12))


def test_without_pycocotools_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(masks_pix2seq, "coco_mask", None)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        rasterize([[SQUARE]], (9, 12))
    with pytest.raises(ImportError, match="pip install pycocotools"):
        MaskWindow(np.ones((1, 1), np.uint8), 0, 0, (9, 12)).rle()


def test_the_benchmark_measures(tmp_path, capsys):
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "masks.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_masks", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    entry = {"image_id": 1, "iscrowd": 0, "segmentation": [[2, 1, 8, 1, 8, 5, 5, 5.2, 2, 5]], "area": 24}
    content = {"images": [{"id": 1, "height": 9, "width": 12}], "annotations": [entry, {**entry, "iscrowd": 1}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_x.json").write_text(json.dumps(content))
    benchmark.main([str(tmp_path), "--split", "x", "--points", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 objects, 1000 bins, 4 points")
    shortened, cut, traced = "1.0000 1.000", "0.7500 0.750", "1.0000 1.000"
    assert lines[2].split() == ["small", "1", "1", *shortened.split(), *cut.split(), *traced.split()]
    assert [line.split()[0] for line in lines[2:]] == ["small", "all"]
