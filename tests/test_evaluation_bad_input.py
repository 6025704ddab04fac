"""What people give `pix2seq evaluate` by mistake: one line that names the file, or numbers that say so; no crash."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from drawn_coco import write_drawn_coco
from pix2seq_hf import cli
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.masks_pix2seq import mask_to_rle, num_pixels, rle_to_mask

PICTURE = 11


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_drawn_coco(tmp_path_factory.mktemp("drawn"), "val", num_images=3)


@pytest.fixture(scope="module")
def size(data):
    image = json.loads((data / "annotations/instances_val.json").read_text())["images"][0]
    return [image["height"], image["width"]]


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data, tmp_path / "copy")


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def box(**changes):
    return {"image_id": PICTURE, "category_id": 2, "bbox": [5, 5, 30, 30], "score": 0.9, **changes}


def mask(counts, size, **changes):
    segmentation = {"size": size, "counts": counts}
    return {"image_id": PICTURE, "category_id": 2, "segmentation": segmentation, "score": 0.9, **changes}


def score(data, results, tmp_path, *options):
    """Exit code and numbers of results that are in a file; those of its only task."""
    (tmp_path / "found.json").write_text(json.dumps(results))
    files = ["--results", tmp_path / "found.json", "--json", tmp_path / "numbers.json"]
    code = cli.main(["evaluate", *map(str, files), "--data", str(data), "--split", "val", *map(str, options)])
    if code == 2:
        return code, None
    (numbers,) = json.loads((tmp_path / "numbers.json").read_text())["tasks"].values()
    return code, numbers


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (box(image_id=99), "picture 99, which the ground truth does not list (1 of 2 results): is it another split?"),
        (box(score=float("nan")), "picture 11 has a number that is not finite: score nan"),
        (box(bbox=[0, 0, float("nan"), 1]), "has a number that is not finite: bbox [0, 0, nan, 1]"),
        (box(bbox=[1, 2, 3]), "a box must be x, y, width, height, got [1, 2, 3]"),
        (box(bbox="abcd"), "picture 11 has a number that is not finite: bbox abcd"),
        (box(category_id="disc"), "result 1 has the category_id 'disc': it must be a whole number"),
        (box(image_id="11"), "entry 1 needs an image_id, a whole number, and one of caption, keypoints, seg"),
        ({"image_id": PICTURE, "category_id": 2, "bbox": [5, 5, 9, 9]}, "result 1 has no 'score'"),
    ],
)
def test_boxes_that_cannot_be_used(data, tmp_path, capsys, entry, words):
    assert score(data, [box(), entry], tmp_path)[0] == 2
    error = capsys.readouterr().err
    assert words in error and "found.json" in error and error.count("\n") == 1


def test_run_lengths_that_do_not_fill_their_picture(data, size, tmp_path, capsys):
    """pycocotools reads beyond the end of such, or never ends."""
    height, width = size
    square = mask_to_rle(rle_to_mask({"size": size, "counts": [0, 40, height * width - 40]}))["counts"]
    right = score(data, [mask(square, size)], tmp_path)
    assert right[0] == 0 and score(data, [mask([0, 40, height * width - 40], size)], tmp_path) == right
    larger = mask_to_rle(rle_to_mask({"size": [500, 500], "counts": [3, 40, 250_000 - 43]}))["counts"]
    for counts in ("xx", "", larger, [5, 7], [-5, height * width + 5], [height * width / 1], None, 5):
        assert score(data, [mask(counts, size)], tmp_path)[0] == 2
        error = capsys.readouterr().err
        assert f"its run lengths do not fill {height} x {width} pixels" in error and error.count("\n") == 1
    assert num_pixels(b"") == 0 and num_pixels(b"P") == -1 and num_pixels(b"o" * 30 + b"0") == -1
    truth = {
        "images": [{"id": 1, "height": 9, "width": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "area": 4, "bbox": [0, 0, 2, 2]}],
        "categories": [{"id": 2}],
    }
    truth["annotations"][0]["segmentation"] = {"size": [9, 9], "counts": [80]}
    with pytest.raises(ValueError, match="object 1 of picture 1: its run lengths do not fill 9 x 9 pixels"):
        evaluate_masks(truth, [])


def test_nothing_found_is_no_crash(data, tmp_path):
    """For boxes; a file without entries may be of any task."""
    options = ["--per-class", "--report", tmp_path / "report"]
    code, numbers = score(data, [], tmp_path, *options)
    assert code == 0 and {numbers[name] for name in ("AP", "AP_50", "AR_max_100")} == {0.0}
    assert (tmp_path / "report/object_detection.html").is_file()
    table = json.loads((tmp_path / "numbers.json").read_text())["per_class"]["object_detection"]
    assert table["disc"]["AP"] == 0 and table["disc"]["num_results"] == 0
    for task in ("instance_segmentation", "keypoint_detection"):  # two keypoints, not COCO's 17
        assert score(data, [], tmp_path, "--tasks", task)[1]["AP"] == 0
    assert score(data, [], tmp_path, "--tasks", "captioning")[1]["num_missing"] == 3


def test_nothing_annotated_is_no_crash(copy, tmp_path, capsys):
    for kind in ("instances", "person_keypoints", "captions"):
        rewrite(copy / f"annotations/{kind}_val.json", annotations=[])
    for results in ([box()], []):
        code, numbers = score(copy, results, tmp_path, "--per-class", "--report", tmp_path / "report")
        assert code == 0 and numbers["AP"] == -1
        assert "instances_val.json: lists no usable object: every picture counts as empty" in capsys.readouterr().err
    assert score(copy, [{"image_id": PICTURE, "caption": "a"}], tmp_path)[1]["num_captions"] == 0
    oracle = ["evaluate", "--oracle", "--tasks", "all", "--data", str(copy), "--split", "val"]
    assert cli.main(oracle) == 0


def test_wrong_category_ids_score_0_with_a_word(data, tmp_path, caplog):
    """Once, although the table of classes and the report compare them too."""
    options = ["--per-class", "--report", tmp_path / "report"]
    code, numbers = score(data, [box(category_id=55)], tmp_path, *options)
    assert code == 0 and numbers["AP"] == 0
    (message,) = caplog.messages
    assert "none of the 1 results has a category of the ground truth: 55 against 2, 3, 7: are they numb" in message


def test_captions_without_info_or_of_another_task(copy, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # without Java, which takes its time
    path = copy / "annotations/captions_val.json"
    assert set(json.loads(path.read_text())) == {"images", "annotations"}  # no info, no licenses, no type
    found = [{"image_id": PICTURE, "caption": f"Picture {PICTURE}."}]
    assert score(copy, found, tmp_path)[1]["reproduced"] == 1
    shutil.copy(copy / "annotations/instances_val.json", path)
    capsys.readouterr()
    assert score(copy, found, tmp_path)[0] == 2
    error = capsys.readouterr().err
    assert "captions_val.json: none of its annotations has a 'caption': is it a file of another task?" in error


@pytest.mark.parametrize(
    ("kind", "results", "words"),
    [
        ("instances", [box()], r"instances_val.json: not a COCO instances file (it has no list 'categories')"),
        (
            "person_keypoints",
            [{"image_id": PICTURE, "category_id": 2, "score": 0.5, "keypoints": [1, 2, 2, 0, 0, 0]}],
            "has no keypoints; 2 keypoints are 6: x, y and visibility of each; no annotation has that many",
        ),
    ],
)
def test_annotations_of_another_task(copy, tmp_path, capsys, kind, results, words):
    other = "captions" if kind == "instances" else "instances"
    shutil.copy(copy / f"annotations/{other}_val.json", copy / f"annotations/{kind}_val.json")
    assert score(copy, results, tmp_path)[0] == 2
    error = capsys.readouterr().err
    assert words in error and f"{kind}_val.json" in error and error.count("\n") == 1


def test_without_java(data, tmp_path):
    """Numbers under other names, and one line that says why; a request for SPICE is refused before anything is read."""
    (tmp_path / "found.json").write_text(json.dumps([{"image_id": PICTURE, "caption": "Picture 11."}]))
    options = ["--results", tmp_path / "found.json", "--data", data, "--split", "val", "--json", tmp_path / "n.json"]
    command = [sys.executable, "-m", "pix2seq_hf.cli", "evaluate", *map(str, options)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CIDEr_simple" in done.stdout
    assert done.stderr.count("\n") == 1 and "is not installed" in done.stderr and "names end in _simple" in done.stderr
    numbers = json.loads((tmp_path / "n.json").read_text())["tasks"]["captioning"]
    assert "BLEU_4_simple" in numbers and "BLEU_4" not in numbers and "METEOR" not in numbers
    done = subprocess.run([*command, "--spice"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--spice: " in done.stderr
