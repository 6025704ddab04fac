"""The report: what it says of pictures whose mistakes are known, that it is one file, and that nothing breaks it."""

import html.parser
import math
import re

import numpy as np
import pytest
from PIL import Image

from pix2seq_hf.evaluation import charts, page
from pix2seq_hf.evaluation.boxes import evaluate_boxes
from pix2seq_hf.evaluation.curves import calibrate
from pix2seq_hf.evaluation.report import Rated, choose_pictures, list_names, shared_words, show_score, write_report

CAT, DOG = 3, 8
NAMES = {CAT: "cat", DOG: "dog <&>"}
SIZE = (120, 90)
BOX, OTHER = [10, 10, 50, 40], [70, 20, 30, 60]


def load(image_id):
    return Image.new("RGB", SIZE, (40 * image_id, 80, 120))


def truth_of(*objects, num_images=3):
    return {
        "images": [{"id": image, "width": SIZE[0], "height": SIZE[1]} for image in range(1, num_images + 1)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": 2000, "iscrowd": 0}
            for number, (image, label, box) in enumerate(objects)
        ],
        "categories": [{"id": label, "name": name} for label, name in NAMES.items()],
    }


TRUTH = truth_of((1, CAT, BOX), (1, DOG, OTHER), (2, CAT, BOX), (3, DOG, OTHER))
FOUND = [
    {"image_id": image, "category_id": label, "bbox": box, "score": score}
    for image, label, box, score in [
        (1, CAT, BOX, 0.95),
        (1, DOG, OTHER, 0.9),
        (2, DOG, BOX, 0.8),  # wrong class
        (3, DOG, OTHER, 0.7),
        (3, DOG, OTHER, 0.6),  # duplicate
        (3, CAT, [0, 0, 8, 8], 0.02),  # background, below the threshold
    ]
]


class Reader(html.parser.HTMLParser):
    """Collects what a page shows and what it would load; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.texts, self.rows, self.tags = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag not in ("meta", "img", "rect", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "script" not in self.open and data.strip():
            self.texts.append(data.strip())
            if {"td", "th"} & set(self.open):
                self.rows[-1].append(data.strip())


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def test_the_page_tells_every_mistake_and_is_complete_in_itself(tmp_path):
    numbers = evaluate_boxes(TRUTH, FOUND)
    facts = {"model": "runs/<mine>"}
    path = write_report(tmp_path / "new" / "folder", "object_detection", TRUTH, FOUND, numbers, NAMES, load, facts)
    assert path.name == "object_detection.html"
    found = read(path)
    assert found.sources and all(source.startswith("data:image/jpeg;base64,") for source in found.sources)
    assert not re.search(r"https?://|@import|url\(", path.read_text())
    assert {"runs/<mine>", "3", "4", "6"} <= set(found.texts)
    rows = {row[0]: row[1:] for row in found.rows}
    counts = {name: rows[name][0] for name in ("wrong class", "duplicate", "background", "missed", "badly placed")}
    assert counts == {"wrong class": "1", "duplicate": "0", "background": "0", "missed": "0", "badly placed": "0"}
    assert ["cat", "dog <&>", "1"] in found.rows  # taken for another class
    assert rows["cat"][0] == "2" and rows["cat"][4:7] == ["100", "50", "wrong class (1)"]
    # cats: one of two found, none wrong; dogs: both found, one result of three was a cat
    assert rows["dog <&>"][0] == "2" and rows["dog <&>"][4:6] == ["67", "100"]
    assert rows["AP"][0] == f"{100 * numbers['AP']:.1f}" and rows["AP_small"][0] == page.DASH
    captions = [text for text in found.texts if text.startswith("F1 ")]
    assert captions == ["F1 0.00: 0 correct, 1 wrong class (dog <&>).", "F1 1.00: 2 correct."]
    files = {file.name.removeprefix("object_detection_") for file in path.parent.glob("*.png")}
    assert files == {
        "precision_recall.png", "overlaps.png", "errors.png", "gains.png", "calibration.png", "scores.png",
        "best.png", "worst.png",
    }  # fmt: skip
    for file in path.parent.glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 100 and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize("task", ["object_detection", "instance_segmentation"])
@pytest.mark.parametrize(("truth", "found"), [(TRUTH, []), (truth_of(), FOUND), (truth_of(), [])])
def test_nothing_found_and_nothing_annotated(tmp_path, task, truth, found):
    square = [[10, 10, 60, 10, 60, 50, 10, 50]]
    truth = {**truth, "annotations": [{**item, "segmentation": square} for item in truth["annotations"]]}
    if task == "instance_segmentation":
        run_lengths = {"size": [90, 120], "counts": [900, 1800, 8100]}
        from pycocotools import mask as coco_mask

        rle = coco_mask.frPyObjects(run_lengths, 90, 120)
        found = [{**{key: item[key] for key in item if key != "bbox"}, "segmentation": rle} for item in found]
    path = write_report(tmp_path, task, truth, found, {"AP": 0.0}, NAMES, load)
    assert read(path).tags.count("section") >= 3


def test_pictures_that_cannot_be_read_are_left_out_and_old_sheets_do_not_stay(tmp_path):
    def load_or_fail(image_id):
        if image_id == 2:
            raise OSError("broken")
        return load(image_id)

    for loader, num_images in ((load, 4), (load_or_fail, 2)):
        path = write_report(tmp_path, "object_detection", TRUTH, FOUND, {"AP": 0.5}, NAMES, loader)
        assert len(read(path).sources) == num_images
        assert (tmp_path / "object_detection_worst.png").exists() == (loader is load)


def test_errors_for_callers(tmp_path):
    with pytest.raises(ValueError, match="no report for 'depth'"):
        write_report(tmp_path, "depth", TRUTH, [], {}, NAMES, load)
    with pytest.raises(ValueError, match="picture 77"):
        write_report(tmp_path, "object_detection", TRUTH, [{**FOUND[0], "image_id": 77}], {}, NAMES, load)


def test_captions_are_ranked_by_shared_words(tmp_path):
    texts = {1: "A cat sits.", 2: "Two dogs play outside", 3: "red"}
    truth = {"images": TRUTH["images"], "annotations": [{"image_id": i, "caption": text} for i, text in texts.items()]}
    found = [{"image_id": i, "caption": text} for i, text in {1: "a cat sits", 2: "two dogs", 3: "blue"}.items()]
    path = write_report(tmp_path, "captioning", truth, found, {"reproduced": 0, "num_captions": 3}, {}, load)
    texts = read(path).texts
    assert [text.split(" %")[0] for text in texts if " % of the words" in text] == ["0", "100"]
    assert {"captions", "reproduced"} <= set(texts)
    assert shared_words("two dogs", "Two dogs, play outside.") == pytest.approx(2 / 3)
    assert shared_words("a a b", "a b b") == pytest.approx(2 / 3) and shared_words("", "") == 1


@pytest.mark.parametrize("number", [17, 5])
def test_keypoints_are_ranked_by_similarity(tmp_path, number):
    points = [value for place in range(number) for value in (20 + 3 * place, 30 + 2 * place, 2)]
    moved = [value + (25 if place % 3 < 2 else 0) for place, value in enumerate(points)]
    truth = truth_of((1, 1, BOX), (2, 1, BOX), (3, 1, BOX))
    for item in truth["annotations"]:
        item |= {"keypoints": points, "num_keypoints": number}
    truth["categories"] = [{"id": 1, "name": "person", "skeleton": [[1, 2], [2, 3]]}]
    found = [
        {"image_id": i, "category_id": 1, "keypoints": each, "score": 0.9} for i, each in ((1, points), (2, moved))
    ]
    path = write_report(tmp_path, "keypoint_detection", truth, found, {"AP": 0.3}, {1: "person"}, load)
    captions = [text for text in read(path).texts if " on average of " in text]
    assert captions[0].startswith("Similarity 0.00") and captions[1].startswith("Similarity 1.00")
    assert (tmp_path / "keypoint_detection_precision_recall.png").exists()


def test_choice_of_pictures():
    rated = [Rated(number, quality, 1, "") for number, quality in enumerate([1, 1, 0.5, 0.2, 0.2])]
    rated[4] = rated[4]._replace(weight=9)
    best, worst = choose_pictures(rated)
    assert [item.image_id for item in best] == [0, 1] and [item.image_id for item in worst] == [4, 3]
    assert choose_pictures(rated[2:3]) == ([], rated[2:3])
    assert choose_pictures(rated[:1]) == (rated[:1], [])
    assert choose_pictures([]) == ([], [])
    best, worst = choose_pictures([Rated(number, number / 100, 1, "") for number in range(100)])
    assert [item.image_id for item in worst] == [0, 1, 2, 3, 4, 5] and best[0].image_id == 99


@pytest.mark.parametrize(("score", "text"), [(0.372, "0.37"), (1, "1.00"), (0.99964, "0.9996"), (0.9949, "0.99")])
def test_scores_are_told_from_one(score, text):
    assert show_score(score) == text


def test_names_in_captions():
    assert list_names([CAT, DOG, CAT, 99], NAMES) == "2 cat, dog <&>, class 99"
    assert list_names(range(6), {}).endswith("class 3, …")


def test_ticks_are_round_and_reach_the_largest_value():
    assert charts.nice_ticks(40) == [0, 10, 20, 30, 40]
    assert charts.nice_ticks(0) == charts.nice_ticks(1) == [0, 1]
    for largest in (1, 3, 7, 11, 99, 101, 54321):
        ticks = charts.nice_ticks(largest)
        assert ticks[0] == 0 and ticks[-1] >= largest and 2 <= len(ticks) <= 8
        assert ticks[-2] < largest and all(tick == int(tick) for tick in ticks)


def test_charts_show_their_values_in_svg_and_png():
    chart = charts.bar_chart(
        "title <1>", "count", [("few", 2, "2", "blue"), ("many", 8, "8", "red"), ("none", 0, "0", "sky")]
    )
    bars = [shape for shape in chart.shapes if shape.kind == "rectangle"]
    lengths = [right - left for (left, _), (right, _) in (bar.points for bar in bars)]
    assert len(bars) == 2 and lengths[1] == pytest.approx(4 * lengths[0])
    assert 'aria-label="title &lt;1&gt;"' in charts.to_svg(chart)
    image = charts.to_image(chart)
    assert image.size == (charts.PNG_SCALE * charts.WIDTH, round(charts.PNG_SCALE * chart.size[1]))
    pixels = np.asarray(image).reshape(-1, 3)
    red, blue = ((pixels == np.array(color)).all(1).sum() for color in ((208, 52, 44), (37, 99, 235)))
    assert red == pytest.approx(4 * blue, rel=0.02) and blue > 1000


def test_every_shape_lies_inside_its_chart():
    rng = np.random.default_rng(0)
    for scores in (rng.random(100), np.zeros(0), np.ones(3)):
        is_correct = rng.random(len(scores)) < scores
        drawn = charts.calibration_chart("c", calibrate(scores, is_correct))
        histogram = charts.histogram_chart("h", *np.array([[0, 0.5, 1]]), np.array([3, 4]), np.array([0, 2]))
        for chart in (drawn, histogram):
            for shape in chart.shapes:
                assert all(0 <= x <= chart.size[0] and 0 <= y <= chart.size[1] for x, y in shape.points)


def test_cells_sort_by_value_and_unknown_numbers_come_last():
    text = page.table(("class", "AP"), [("b", page.percent(0.5)), ("a", page.percent(-1))], is_sortable=True)
    assert re.findall(r'data-value="([^"]*)"', text) == ["b", "0.5", "a", ""]
    assert "<button>AP</button>" in text and page.DASH in text
    assert page.count(1234567).text == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
    assert math.isnan(page.percent(math.nan).value)
