"""`pix2seq demo` from end to end: a tiny model, the model in the box, and training on a handful of pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from pix2seq_hf import TASKS, cli, demo, demo_training
from pix2seq_hf.data.scene_things import SCENE_CLASSES
from pix2seq_hf.data.scenes import Scene, SceneOptions, draw_scene
from pix2seq_hf.results import Pix2SeqObject, Pix2SeqResult
from tiny_multitask import save_multitask


def run_demo(*arguments):
    return cli.main(["demo", *map(str, arguments)])


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_multitask(folder, max_instances_per_image=4)
    return folder


def check_folder(folder, count):
    """What every demo leaves; returns the numbers."""
    numbers = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert len(numbers["scenes"]) == count
    assert {path.name for path in (folder / "scenes").iterdir()} == {
        f"{number}{end}.png" for number in range(1, count + 1) for end in ("", "-found")
    }
    for entry in numbers["scenes"]:
        assert entry["found"]["tasks"] == list(TASKS) and len(entry["found"]["captions"]) == 1
        assert {"label", "color", "box"} == {*entry["drawn"]["objects"][0]} and len(entry["drawn"]["captions"]) == 5
        assert all({"score", "box", "rle"} <= {*item} for item in entry["found"]["objects"])
    return numbers


def test_it_leaves_pictures_and_numbers_and_replaces_its_own(tiny_model, tmp_path, capsys):
    assert run_demo("--model", tiny_model, "--output", tmp_path, "--count", 2, "--seed", 3) == 0
    first = check_folder(tmp_path, 2)
    assert first["seed"] == 3 and first["model"] == str(tiny_model)
    assert run_demo("--model", tiny_model, "--output", tmp_path, "--count", 1, "--seed", 3) == 0
    second = check_folder(tmp_path, 1)
    assert second["scenes"][0]["drawn"] == first["scenes"][0]["drawn"]
    with Image.open(tmp_path / "found.png") as sheet, Image.open(tmp_path / "scenes/1.png") as scene:
        assert sheet.size[0] > 2 * scene.size[0]
        drawn = draw_scene(3, demo.SPLIT, 0, SceneOptions(**demo.SCENE)).picture
        assert np.array_equal(np.asarray(scene), np.asarray(drawn))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("scene  drawn  found  right") for line in lines)
    assert str(tmp_path / "found.png") in lines[-2] and str(tmp_path / "found.json") in lines[-1]


def test_json_stands_alone(tiny_model, tmp_path, capsys):
    assert run_demo("--model", tiny_model, "--output", tmp_path, "--count", 1, "--json", "-", "--quiet") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == check_folder(tmp_path, 1)
    assert not said.err


def test_it_touches_nothing_of_others(tiny_model, tmp_path, capsys):
    (tmp_path / "found.png").touch()
    assert run_demo("--model", tiny_model, "--output", tmp_path) == 2
    assert "found.png: is not of an earlier demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["found.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", 0], "--count 0: must be at least 1"),
        (["--seed", -1], "--seed -1: must not be negative"),
        (["--steps", 5], "--steps 5: is for --train"),
        (["--train", "--count", 5], "--count: is of no use with --train"),
        (["--train", "--model", "x"], "--model: is of no use with --train"),
        (["--train", "--json", "-"], "--json: is of no use with --train"),
        (["--model", "nowhere"], "nowhere: is no model folder"),
    ],
)
def test_wrong_options_are_one_line(options, message, tmp_path, capsys):
    assert run_demo("--output", tmp_path / "out", *options) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def see(scene, mistake=None):
    """A result with all things of a scene where they are; `mistake` changes a class name or a box."""
    objects = []
    for number, item in enumerate(scene.objects):
        left, top, width, height = item["bbox"]
        name, box = SCENE_CLASSES[item["category_id"]], (left, top, left + width, top + height)
        if number == 0 and mistake is not None:
            name, box = mistake(name, box)
        objects.append(Pix2SeqObject(0.9, name, item["category_id"], box))
    height, width = demo.SCENE["image_size"]
    return Pix2SeqResult((height, width), objects, [scene.captions[0]], image=scene.picture)


def test_what_is_right_is_counted_by_place_and_class():
    scene = draw_scene(0, demo.SPLIT, 0, SceneOptions(**demo.SCENE))
    num_things = len(scene.objects)
    assert demo.count_right(scene, see(scene)) == (num_things, num_things)
    for mistake in (lambda name, box: ("zebra", box), lambda name, box: (name, (0, 0, 2, 2))):
        assert demo.count_right(scene, see(scene, mistake)) == (num_things - 1, num_things)
    assert demo.count_right(scene, Pix2SeqResult((480, 480))) == (0, num_things)


def test_the_table_sums_up():
    scenes = [draw_scene(0, demo.SPLIT, index, SceneOptions(**demo.SCENE)) for index in range(2)]
    results = [see(scenes[0]), see(scenes[1], lambda name, box: ("zebra", box))]
    num_right = [demo.count_right(*pair) for pair in zip(scenes, results, strict=True)]
    num_things = sum(len(scene.objects) for scene in scenes)
    text = demo.table(scenes, results, num_right)
    assert (
        f"{num_things - 1} of {num_things} things found in their place and with their class, 1 found too many" in text
    )
    found, said = text.splitlines()[-1].split(" facts")[0].split(" of ")
    assert found == said and int(said) > 0  # the scenes' own captions are true
    assert "zebra" in text and repr(scenes[0].captions[0]) in text
    assert demo.count_names([]) == "nothing" and demo.count_names(["cat", "dog", "cat"]) == "2 cat, 1 dog"


def test_the_sheet_has_each_scene_beside_what_was_found():
    plain = Image.new("RGB", demo.SCENE["image_size"][::-1], "black")
    scene = Scene(plain, draw_scene(0, demo.SPLIT, 0).objects[:1], ["a thing"])
    found = Pix2SeqObject(0.9, "cup", 10, (96, 80, 288, 320))
    result = Pix2SeqResult(demo.SCENE["image_size"], [found], ["a cup"], image=plain)
    sheet = np.asarray(demo.draw_sheet([scene], [result], [(0, 1)]))
    left, right = sheet[:, : sheet.shape[1] // 2], sheet[:, sheet.shape[1] // 2 :]
    colorful = [(half.max(-1).astype(int) - half.min(-1) > 60).sum() for half in (left, right)]
    assert colorful[0] == 0 and colorful[1] > 1000


def test_the_model_in_the_box_answers(box_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_demo("--count", 1) == 0
    numbers = check_folder(tmp_path / "pix2seq-demo", 1)
    assert numbers["model"] == "the model in the box"


def test_training_leaves_a_picture_and_a_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo_training, "NUM_TRAINING", 40)
    monkeypatch.setattr(demo_training, "NUM_NEW", 4)
    for _ in range(2):  # the second run replaces the first
        assert run_demo("--train", "--output", tmp_path, "--steps", 2, "--seed", 5) == 0
    with Image.open(tmp_path / "shapes.png") as sheet:
        assert sheet.size == (3 * 384 + 2 * 8, 2 * 384 + 8)
    assert (tmp_path / "run/final/model.safetensors").is_file()
    output = capsys.readouterr().out
    assert "average precision at IoU 0.5 on the new pictures: " in output
    assert str(tmp_path / "shapes.png") in output.splitlines()[-1]


def test_training_touches_nothing_of_others(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious").touch()
    assert run_demo("--train", "--output", tmp_path) == 2
    assert "run: is not of an earlier demo" in capsys.readouterr().err
    assert (tmp_path / "run/precious").is_file()


def test_the_sheet_of_shapes_shows_the_boxes_of_its_pictures(tmp_path):
    for number in (1, 2):
        Image.new("RGB", (384, 384), "black").save(tmp_path / f"{number:06d}.png")
    box = {"image_id": 2, "bbox": [96, 80, 192, 240], "category_id": 1, "score": 0.9}
    faint = {"image_id": 1, "bbox": [96, 80, 192, 240], "category_id": 1, "score": 0.1}
    sheet = demo_training.draw_sheet(sorted(tmp_path.iterdir()), [box, faint], {1: "disc"})
    first, second = sheet.crop((0, 0, 384, 384)), sheet.crop((392, 0, 776, 384))
    assert first.getbbox() is None
    left, _, right, bottom = second.getbbox()
    assert abs(left - 96) < 8 and abs(right - 288) < 8 and abs(bottom - 320) < 8
