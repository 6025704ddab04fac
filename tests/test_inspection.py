"""data/inspection.py and contact_sheet.py: what is counted, which tasks are found, and how pictures are laid out."""

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFont

from drawn_coco import ALL_TASKS, write_drawn_coco
from pix2seq_hf.contact_sheet import CELL, GROUND, arrange, draw_row, fit_text
from pix2seq_hf.data.inspection import (
    check_pictures,
    find_tasks,
    format_problems,
    format_summary,
    group_problems,
    summarize,
)
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import FEATURES, Split
from pix2seq_hf.data.sources import open_split


def split_of(*rows):
    """A split of pictures of 100 x 50 pixels, given as lists of (label, area, is_crowd)."""
    columns = {
        "image_id": list(range(len(rows))),
        "image": [{"path": f"{number}.png", "bytes": None} for number in range(len(rows))],
        "image_size": [[50, 100]] * len(rows),
        "boxes_yxyx": [[[0, 0, 1, 1]] * len(row) for row in rows],
        "labels": [[label for label, _, _ in row] for row in rows],
        "areas": [[area for _, area, _ in row] for row in rows],
        "is_crowd": [[is_crowd for _, _, is_crowd in row] for row in rows],
    }
    return Split(datasets.Dataset.from_dict(columns, features=FEATURES), {1: "cat", 4: "dog", 5: "bird"}, {})


def test_counts_are_those_of_the_rows():
    small, medium, large = (1, 1023.0, False), (4, 1024.0, False), (1, 9216.0, True)
    summary = summarize(split_of([small, medium, large], [], [small] * 103))
    assert summary["pictures"] == 3 and summary["pictures_without_objects"] == 1
    assert summary["objects"] == 106 and summary["crowd_regions"] == 1
    assert summary["box_sizes"] == {"small": 104, "medium": 1, "large": 1}
    assert summary["boxes_per_picture"]["largest"] == 103 and summary["boxes_per_picture"]["median"] == 3
    assert (summary["objects_beyond_slots"], summary["pictures_beyond_slots"]) == (3, 1)
    assert summary["classes"] == [
        {"id": 1, "name": "cat", "objects": 105, "pictures": 2},
        {"id": 4, "name": "dog", "objects": 1, "pictures": 1},
        {"id": 5, "name": "bird", "objects": 0, "pictures": 0},
    ]
    assert summary["picture_sizes"]["median"] == [100, 50]
    text = format_summary("title", {**summary, "tasks": ["object_detection"]})
    assert text.startswith("title\n") and "2 of 3 occur" in text and "masks" not in text
    assert text.splitlines()[-1].split() == ["105", "cat", "1", "dog", "0", "bird"]


def test_masks_keypoints_and_captions_are_counted(tmp_path):
    folder = write_drawn_coco(tmp_path / "coco", num_images=4)
    assert find_tasks(folder, "train") == ALL_TASKS
    split = open_split(folder, "train", tasks=ALL_TASKS, num_keypoints=2)
    summary = summarize(split)
    objects = split.annotations["annotations"]
    assert summary["with_masks"] == sum(not item["iscrowd"] for item in objects) > 0
    assert summary["with_keypoints"] == len(split.keypoint_annotations["annotations"]) > 0
    assert (summary["captions"], summary["pictures_with_captions"]) == (8, 4)
    for kind in ("person_keypoints", "captions"):
        (folder / f"annotations/{kind}_train.json").unlink()
    assert find_tasks(folder, "train") == ["object_detection", "instance_segmentation"]


def test_pictures_that_cannot_be_used_are_named(tmp_path):
    folder = write_drawn_coco(tmp_path / "coco", num_images=3)
    Image.new("RGB", (7, 7)).save(folder / "train/012.png")
    split, problems, seen = open_split(folder, "train"), Problems(keep_going=True), []
    assert check_pictures(split, problems, lambda: seen.append(1)) == [0, 2] and len(seen) == 3
    assert "012.png: the picture is 7 x 7 pixels, its annotation says" in problems.errors[0].message


def test_problems_are_grouped_errors_first():
    problems = Problems(keep_going=True)
    for number in range(5):
        problems.repair("box outside", f"box {number}")
    problems.error("missing", "a.png")
    groups = group_problems(problems)
    assert [(group["kind"], group["count"]) for group in groups] == [("missing", 1), ("box outside", 5)]
    assert groups[1]["messages"] == ["box 0", "box 1", "box 2"]
    assert format_problems(groups).splitlines() == [
        "  error: missing (1)",
        "    a.png",
        "  mended or noted: box outside (5)",
        "    box 0",
        "    box 1",
        "    box 2",
        "    ... and 2 more",
    ]
    assert format_problems([]) == "  no problems"


@pytest.mark.parametrize("size", [(2000, 500), (30, 40), (640, 480), (1, 900)])
def test_a_picture_fills_its_cell(size):
    row = {
        "boxes_yxyx": [[0.25, 0.25, 0.75, 0.75]],
        "labels": [1],
        "polygons_xy": [[[0, 0, size[0], 0, size[0], size[1]]]],
        "keypoints_xyv": [[size[0] / 2, size[1] / 2, 2, 0, 0, 0]],
    }
    drawn = draw_row(Image.new("RGB", size, "white"), row, {1: "cat"})
    assert drawn.width <= CELL[0] and drawn.height <= CELL[1]
    assert drawn.width >= CELL[0] - 1 or drawn.height >= CELL[1] - 1 or size == (30, 40)
    if min(size) > 100:  # the upper right half is the mask
        pixels = np.asarray(drawn, int)
        inside, outside = pixels[drawn.height // 8, -drawn.width // 8], pixels[-drawn.height // 8, drawn.width // 8]
        assert outside.tolist() == [255, 255, 255] and inside.min() < 220


def test_cells_are_of_one_size():
    cells = [("a", Image.new("RGB", (CELL[0], 100), "red"), "words " * 100), ("b" * 500, Image.new("RGB", (9, 9)), "")]
    sheet = arrange([*cells, *cells, cells[0]], num_columns=2)
    assert (sheet.width - arrange(cells, num_columns=1).width) > CELL[0]
    one_line, two_lines, three_lines = (arrange(cells * 3, num_columns=6 // lines).height for lines in (1, 2, 3))
    assert two_lines - one_line == three_lines - two_lines
    pixels = np.asarray(sheet)
    assert (pixels == GROUND).all(-1).sum() > 5 * CELL[0] * (CELL[1] - 110) - 5 * 81
    assert (pixels == (255, 0, 0)).all(-1).sum() == 3 * CELL[0] * 100  # no picture is covered by words


def test_what_is_too_long_ends_with_an_ellipsis():
    font = ImageFont.load_default(16)
    assert fit_text("short", font, 200, 2) == ["short"]
    lines = fit_text("many words " * 50, font, 200, 2)
    assert len(lines) == 2 and lines[1].endswith("…") and all(font.getlength(line) <= 200 for line in lines)
