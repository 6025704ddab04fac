"""Drawn scenes as a COCO folder: the same by any number of processes, readable, never over something else."""

import json

import pytest

from pix2seq_hf import cli
from pix2seq_hf.configuration_pix2seq import COCO_KEYPOINT_NAMES
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import TASK_FEATURES
from pix2seq_hf.data.scene_folder import parse_options, write_scenes
from pix2seq_hf.data.scene_things import SCENE_CLASSES
from pix2seq_hf.data.scenes import SceneOptions, draw_scene

SMALL = SceneOptions(image_size=(96, 128), num_objects=(1, 6))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_number_of_processes_changes_nothing(tmp_path):
    told = []
    write_scenes(tmp_path / "one", "train", 20, 3, SMALL, num_workers=1)
    write_scenes(tmp_path / "two", "train", 20, 3, SMALL, num_workers=2, on_progress=told.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(told) == 20 and len(contents(tmp_path / "one")) == 23


def test_it_is_a_coco_folder(tmp_path):
    path = write_scenes(tmp_path, "val", 12, 1, SMALL, num_workers=1)
    problems = Problems()
    split = read_coco(tmp_path, "val", tasks=list(TASK_FEATURES), problems=problems)
    assert not problems.found and split.id2label == SCENE_CLASSES and len(split.dataset) == 12
    scene = draw_scene(1, "val", 4, SMALL)
    row, record = split.dataset[4], split.load(4)
    assert row["captions"] == scene.captions and row["labels"] == [item["category_id"] for item in scene.objects]
    assert record["image"].shape == (3, 96, 128)
    outlines = [[] if item["iscrowd"] else item["segmentation"] for item in scene.objects]
    assert row["polygons_xy"] == outlines
    assert row["num_keypoints"] == [item.get("num_keypoints", 0) for item in scene.objects]
    annotations = json.loads(path.read_text())["annotations"]
    assert [item["id"] for item in annotations] == list(range(1, len(annotations) + 1))
    assert all("color" in item for item in split.annotations["annotations"])
    person = json.loads((tmp_path / "annotations/person_keypoints_val.json").read_text())["categories"][0]
    assert person["name"] == "person" and person["keypoints"] == COCO_KEYPOINT_NAMES and [16, 14] in person["skeleton"]


def test_what_is_there_stays(tmp_path):
    write_scenes(tmp_path, "train", 2, 0, SMALL, num_workers=1)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="is there already: choose another folder or split"):
        write_scenes(tmp_path, "train", 2, 1, SMALL, num_workers=1)
    write_scenes(tmp_path, "val", 1, 0, SMALL, num_workers=1)
    assert before.items() < contents(tmp_path).items()
    with pytest.raises(ValueError, match=r"split '\.\./up'"):
        write_scenes(tmp_path, "../up", 1)


def test_options_as_people_write_them():
    options = parse_options({"size": "240x320", "objects": "2-5", "diameters": "12.5-80"})
    assert (options.image_size, options.num_objects, options.diameters) == ((240, 320), (2, 5), (12.5, 80))
    assert parse_options({"size": "256", "objects": "3"}) == SceneOptions(image_size=(256, 256), num_objects=(3, 3))
    assert parse_options({"points": "20"}) == SceneOptions(max_points=20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "big"}, "size 'big' of scenes cannot be read: write it like 320 or 240x320"),
        ({"objects": "1..3"}, "objects '1..3' of scenes cannot be read: write it like 1-25"),
        ({"objects": "5-2"}, "num_objects 5 to 2"),
        ({"points": "some"}, "points 'some' of scenes cannot be read: write it like 20"),
        ({"sizes": "3"}, "scenes have no option 'sizes'"),
    ],
)
def test_options_that_cannot_be_read(settings, message):
    with pytest.raises(ValueError, match=message):
        parse_options(settings)


def test_command(tmp_path, capsys):
    arguments = ["data", "scenes", "--output", str(tmp_path / "scenes"), "--count", "3", "--size", "64"]
    assert cli.main([*arguments, "--objects", "1-2"]) == 0
    assert "3 pictures in train/" in capsys.readouterr().out
    assert cli.main(["data", "inspect", str(tmp_path / "scenes"), "--quiet"]) == 0
    assert "no problems" in capsys.readouterr().out
    assert cli.main(arguments) == 2 and "is there already" in capsys.readouterr().err
    assert cli.main([*arguments[:-2], "--size", "9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
