"""prediction.py with all tasks on a small untrained model: masks, keypoints, captions, given boxes, lists, resuming."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf import TASKS, cli, engine
from pix2seq_hf.engine import TaskOptions, run_tasks
from pix2seq_hf.masks_pix2seq import rle_to_mask
from tiny_multitask import save_multitask

pytest.importorskip("pycocotools")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_multitask(folder, keypoint_labels=[1, 18])  # untrained, it finds more dogs than persons
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures of coloured noise."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    for name in "abcde":
        grid = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((80, 60)).save(folder / f"{name}.png")
    return folder


def predict(model_folder, output, *sources, **options):
    arguments = ["predict", *map(str, sources), "--model", str(model_folder), "--output", str(output)]
    options = {"device": "cpu", "threshold": 0, "max_objects": 12, "num_samples": 2, **options}
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return cli.main(arguments)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def lines_of(output):
    return [json.loads(line) for line in (output / "results.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def all_output(model_folder, pictures, tmp_path_factory):
    output = tmp_path_factory.mktemp("all") / "out"
    assert predict(model_folder, output, pictures, batch_size=2) == 0
    return output


def test_all_tasks_in_every_file(all_output, pictures):
    lines = lines_of(all_output)
    assert [line["file"] for line in lines] == [(pictures / f"{name}.png").as_posix() for name in "abcde"]
    objects = [(line, found) for line in lines for found in line["objects"]]
    assert len(objects) > 5 and all(line["tasks"] == list(TASKS) for line in lines)
    assert any(rle_to_mask(found["rle"]).any() for _, found in objects)
    posed = [found for _, found in objects if "keypoints" in found]
    assert {found["label"] for found in posed} <= {"person", "dog"}
    assert posed and all(len(found["keypoints"]) == 17 for found in posed)
    results = read(all_output / "results.json")
    assert [result["segmentation"] for result in results] == [found["rle"] for _, found in objects]
    assert all(set(result) == {"image_id", "category_id", "bbox", "score", "segmentation"} for result in results)
    points = read(all_output / "keypoints.json")
    assert [entry["score"] for entry in points] == [found["keypoints_score"] for found in posed]
    assert all(len(entry["keypoints"]) == 51 and "bbox" not in entry for entry in points)
    captions = read(all_output / "captions.json")
    assert captions == [{"image_id": line["image_id"], "caption": line["captions"][0]} for line in lines]


def test_drawings_have_their_captions(all_output):
    for line in lines_of(all_output):
        with Image.open(all_output / line["drawing"]) as drawing:
            assert drawing.width == line["width"]
            assert (drawing.height > line["height"]) == bool(line["captions"][0])


def test_pycocotools_reads_masks_and_keypoints(all_output):
    coco = pytest.importorskip("pycocotools.coco")
    ground = coco.COCO(all_output / "images.json")
    assert len(ground.loadRes(str(all_output / "results.json")).anns) == len(read(all_output / "results.json"))
    assert len(ground.loadRes(str(all_output / "keypoints.json")).anns) == len(read(all_output / "keypoints.json"))
    assert len(ground.loadRes(str(all_output / "captions.json")).anns) == 5


def test_results_are_those_of_the_engine(all_output, model_folder, pictures):
    from pix2seq_hf.prediction import load_model

    model, processor = load_model(str(model_folder), "cpu")
    images = [Image.open(pictures / f"{name}.png").convert("RGB") for name in "ab"]
    options = TaskOptions(threshold=0, max_objects=12, num_samples=2, seed=0)
    for result, line in zip(run_tasks(model, processor, images, options), lines_of(all_output)):
        assert result.captions == line["captions"]
        assert [found.rle for found in result.objects] == [found["rle"] for found in line["objects"]]
        boxes = np.array([list(found["box"].values()) for found in line["objects"]]).reshape(-1, 4)
        assert np.abs(result.boxes_xyxy - boxes).max(initial=0) < 1e-3


def test_chosen_tasks_only(model_folder, pictures, tmp_path):
    assert predict(model_folder, tmp_path / "out", pictures / "a.png", tasks="captioning", num_captions=2) == 0
    [line] = lines_of(tmp_path / "out")
    assert line["objects"] == [] and len(line["captions"]) == 2
    assert not (tmp_path / "out/keypoints.json").exists()
    assert predict(model_folder, tmp_path / "out", pictures / "a.png", tasks="object_detection") == 0
    [line] = lines_of(tmp_path / "out")
    assert line["objects"] and not any("rle" in found or "keypoints" in found for found in line["objects"])
    assert not (tmp_path / "out/captions.json").exists()  # that of the run before would not be this run's


def test_options_reach_the_model(model_folder, pictures, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "run_tasks", lambda *args, run=run_tasks: seen.append(args[3]) or run(*args))
    limits = {"max_objects": 2, "max_points": 5, "num_samples": 3, "num_captions": 2, "threshold": 0.01, "seed": 3}
    others = {"classes": "person,18", "allowed_words": "dog, red", "stop_when_noise": True}
    assert predict(model_folder, tmp_path / "out", pictures / "a.png", **limits, **others) == 0
    [options] = seen
    assert {name: getattr(options, name) for name in limits} == limits
    assert options.classes == ["person", 18] and options.allowed_words == ["dog", "red"] and options.stop_when_noise
    [line] = lines_of(tmp_path / "out")
    assert len(line["objects"]) <= 2 and set(" ".join(line["captions"]).split()) <= {"dog", "red"}


def test_greedy_does_not_depend_on_the_seed(model_folder, pictures, tmp_path):
    for seed in (1, 2):
        assert (
            predict(model_folder, tmp_path / f"greedy{seed}", pictures, greedy=True, num_samples=None, seed=seed) == 0
        )
        assert predict(model_folder, tmp_path / f"sampled{seed}", pictures, seed=seed) == 0
    assert lines_of(tmp_path / "greedy1") == lines_of(tmp_path / "greedy2")
    assert lines_of(tmp_path / "sampled1") != lines_of(tmp_path / "sampled2")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tasks": "segmentation"}, "unknown task 'segmentation'"),
        ({"classes": "person,cat"}, "unknown class 'cat'"),
        ({"allowed_words": "zebra"}, "'zebra'"),
        ({"boxes": "no/such.json", "max_objects": None}, "no/such.json"),
        ({"greedy": True, "num_samples": 2}, "--num-samples 2"),
    ],
)
def test_wrong_options_leave_earlier_results_alone(model_folder, pictures, tmp_path, capfd, options, word):
    output = tmp_path / "out"
    output.mkdir()
    (output / "results.jsonl").write_text("precious\n")
    assert predict(model_folder, output, pictures, **options) == 2
    error = capfd.readouterr().err
    assert error.startswith("pix2seq predict: error: ") and error.count("\n") == 1 and word in error
    assert (output / "results.jsonl").read_text() == "precious\n" and len(list(output.iterdir())) == 1


def test_tasks_that_need_boxes_on_a_model_that_finds_none(pictures, tmp_path, capfd):
    save_multitask(tmp_path / "model", tasks=["instance_segmentation"])
    assert predict(tmp_path / "model", tmp_path / "out", pictures) == 2
    assert "was not trained to find them" in capfd.readouterr().err and not (tmp_path / "out").exists()


# ------------------------------------------------------------------ given boxes


def test_masks_for_the_boxes_of_an_earlier_run(all_output, model_folder, pictures, tmp_path):
    """By the names in images.json: in another order, the ids are others."""
    sources = [pictures / "d.png", pictures / "b.png"]
    options = {"tasks": "instance_segmentation", "boxes": all_output / "results.json", "max_objects": None}
    assert predict(model_folder, tmp_path / "out", *sources, **options) == 0
    before = {line["file"]: line for line in lines_of(all_output)}
    for line in lines_of(tmp_path / "out"):
        earlier = before[line["file"]]
        assert [found["label"] for found in line["objects"]] == [found["label"] for found in earlier["objects"]]
        for found, other in zip(line["objects"], earlier["objects"]):
            assert list(found["box"].values()) == pytest.approx(list(other["box"].values()), abs=1e-3)
            assert found["score"] == pytest.approx(other["score"]) and "rle" in found
    assert [line["image_id"] for line in lines_of(tmp_path / "out")] == [1, 2]


def test_boxes_by_id_and_threshold(model_folder, pictures, tmp_path):
    for name, number in (("a", 7), ("b", 8)):
        Image.open(pictures / f"{name}.png").save(tmp_path / f"{number:012d}.png")
    entries = [
        {"image_id": 7, "category_id": 1, "bbox": [5, 5, 30, 40], "score": 0.9},
        {"image_id": 7, "category_id": 18, "bbox": [5, 5, 30, 40], "score": 0.2},
        {"image_id": 7, "category_id": 90, "bbox": [10, 5, 30, 40]},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    options = {"tasks": "keypoint_detection", "boxes": tmp_path / "boxes.json", "threshold": 0.5, "max_objects": None}
    assert predict(model_folder, tmp_path / "out", tmp_path, **options) == 0
    seven, eight = lines_of(tmp_path / "out")
    assert [found["label"] for found in seven["objects"]] == ["person", "toothbrush"] and eight["objects"] == []
    assert seven["objects"][0]["box"] == {"xmin": 5, "ymin": 5, "xmax": 35, "ymax": 45}
    assert "keypoints" in seven["objects"][0] and "keypoints" not in seven["objects"][1]


@pytest.mark.parametrize(
    ("box", "label", "code", "word"),
    [
        ([5, 5, 300, 10], 1, 0, "clipped"),
        ([5, 5, 0, 10], 1, 1, "a.png: "),
        ([5, 5, float("nan"), 10], 1, 1, "a.png: "),
        ([5, 5, 10, 10], 77, 1, "77"),
        ([5, 5, 10], 1, 1, "four numbers"),
    ],
)
def test_unusable_boxes_are_named(model_folder, pictures, tmp_path, capfd, box, label, code, word):
    (tmp_path / "boxes.json").write_text(json.dumps([{"image_id": 1, "category_id": label, "bbox": box}]))
    options = {"tasks": "instance_segmentation", "boxes": tmp_path / "boxes.json", "max_objects": None, "quiet": True}
    sources = pictures / "a.png", pictures / "b.png"
    assert predict(model_folder, tmp_path / "out", *sources, **options) == code
    error = capfd.readouterr().err
    assert word in error and error.count("\n") == 1 and "Warning" not in error
    assert len(lines_of(tmp_path / "out")) == 2 - code  # the other picture is done


@pytest.mark.parametrize(("content", "word"), [("{", "is not JSON"), ("{}", "no list"), ('[{"bbox": []}]', "entry 0")])
def test_files_that_are_no_boxes(model_folder, pictures, tmp_path, capfd, content, word):
    (tmp_path / "boxes.json").write_text(content)
    assert predict(model_folder, tmp_path / "out", pictures, boxes=tmp_path / "boxes.json", max_objects=None) == 2
    assert f"{tmp_path / 'boxes.json'}: " in (error := capfd.readouterr().err) and word in error


def test_boxes_of_other_pictures_are_said(model_folder, pictures, tmp_path, capfd):
    (tmp_path / "boxes.json").write_text(json.dumps([{"image_id": 99, "category_id": 1, "bbox": [1, 1, 5, 5]}]))
    options = {"boxes": tmp_path / "boxes.json", "max_objects": None, "tasks": "instance_segmentation"}
    assert predict(model_folder, tmp_path / "out", pictures / "a.png", **options) == 1
    assert "no boxes for any of the pictures" in capfd.readouterr().err


def test_boxes_take_the_place_of_detection(model_folder, pictures, tmp_path, capfd):
    assert predict(model_folder, tmp_path / "out", pictures, boxes="x.json", max_objects=3) == 2
    assert "--max-objects is for detection" in capfd.readouterr().err


# ------------------------------------------------------------------ lists on standard input


def test_list_on_standard_input(model_folder, pictures, tmp_path, monkeypatch, capfd):
    names = f"{pictures / 'b.png'}\n\n{pictures / 'a.png'}\r\n{tmp_path / 'gone.png'}"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    assert predict(model_folder, tmp_path / "out", "-", tasks="object_detection") == 1
    assert [line["file"][-5:] for line in lines_of(tmp_path / "out")] == ["b.png", "a.png"]
    assert "gone.png: No such file" in capfd.readouterr().err


# ------------------------------------------------------------------ resuming


def by_file(lines):
    assert len({line["file"] for line in lines}) == len(lines)
    return {line["file"]: line for line in lines}


def test_a_killed_run_is_continued(model_folder, pictures, tmp_path):
    """Killed without warning in the middle; then every picture is there once, as if nothing had happened."""
    folder, output = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for number in range(40):
        rows = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(rows).save(folder / f"p{number}.png")
    options = {"tasks": "all", "batch_size": 3, "max_objects": 2, "num_samples": 1, "device": "cpu", "threshold": 0}
    arguments = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in {**options, "model": model_folder, "output": output}.items()
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "pix2seq_hf.cli", "predict", str(folder), "--quiet", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        path, deadline = output / "results.jsonl", time.monotonic() + 300
        while not (path.exists() and path.read_bytes().count(b"\n") >= 4):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    content = path.read_bytes()
    assert 4 <= content.count(b"\n") < 40 and not (output / "results.json").exists()
    kept = content[: content.rfind(b"\n") + 1]
    path.write_bytes(kept + b'{"file": "half of a li')
    assert predict(model_folder, output, folder, **options, resume=True) == 0
    assert path.read_bytes().startswith(kept)
    assert predict(model_folder, tmp_path / "whole", folder, **options) == 0
    assert by_file(lines_of(output)) == by_file(lines_of(tmp_path / "whole"))
    for name in ("results.json", "keypoints.json", "captions.json"):
        assert sorted(map(str, read(output / name))) == sorted(map(str, read(tmp_path / "whole" / name)))
    assert len(list(output.glob("*.png"))) == 40


def test_finished_pictures_are_not_looked_at_again(model_folder, pictures, tmp_path, monkeypatch, capfd):
    output = tmp_path / "out"
    assert predict(model_folder, output, pictures / "a.png", pictures / "b.png") == 0
    before = (output / "a.png").stat().st_mtime_ns
    assert predict(model_folder, output, pictures / "a.png", pictures / "b.png", resume=True) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith("0 pictures (and 2 before), 0 objects")
    seen = []
    monkeypatch.setattr(engine, "run_tasks", lambda *args, run=run_tasks: seen.append(len(args[2])) or run(*args))
    assert predict(model_folder, output, pictures, resume=True, batch_size=1) == 0
    assert seen == [1, 1, 1] and (output / "a.png").stat().st_mtime_ns == before
    assert [line["image_id"] for line in lines_of(output)] == [1, 2, 3, 4, 5]
    assert len(read(output / "images.json")["images"]) == 5


def test_ids_stay_unique_when_pictures_were_added_in_front(model_folder, pictures, tmp_path):
    output = tmp_path / "out"
    options = {"tasks": "captioning", "batch_size": 1}
    assert predict(model_folder, output, pictures / "d.png", **options) == 0
    assert predict(model_folder, output, pictures, **options, resume=True) == 0
    ids = [line["image_id"] for line in lines_of(output)]
    assert len(set(ids)) == 5 and ids[0] == 1


@pytest.mark.parametrize(("name", "value"), [("threshold", 0.5), ("tasks", "captioning"), ("seed", 5)])
def test_other_options_are_not_mixed_in(model_folder, pictures, tmp_path, capfd, name, value):
    output = tmp_path / "out"
    assert predict(model_folder, output, pictures / "a.png") == 0
    content = (output / "results.jsonl").read_bytes()
    assert predict(model_folder, output, pictures, resume=True, **{name: value}) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert f"begun with --{name}" in error and f"now it is {value}" in error
    assert (output / "results.jsonl").read_bytes() == content


def test_resuming_nothing_begins_anew(model_folder, pictures, tmp_path):
    assert predict(model_folder, tmp_path / "out", pictures / "a.png", resume=True, tasks="captioning") == 0
    assert len(lines_of(tmp_path / "out")) == 1


def test_without_resume_a_run_begins_anew(model_folder, pictures, tmp_path):
    for name in "ab":
        assert predict(model_folder, tmp_path / "out", pictures / f"{name}.png", tasks="captioning") == 0
    assert [line["file"][-5:] for line in lines_of(tmp_path / "out")] == ["b.png"]


def test_randomness_of_others_is_left_alone(model_folder, pictures, tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    predict(model_folder, tmp_path / "out", pictures / "a.png", tasks="captioning")
    assert torch.rand(1) == expected


# ------------------------------------------------------------------ videos


def test_videos_are_pictures_with_frame_numbers(model_folder, pictures, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "walk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.open(pictures / "a.png").resize((64, 48)))))
        container.mux(stream.encode())
    sources = [pictures / "a.png", tmp_path / "walk.mp4"]
    options = {"tasks": "captioning", "frame_step": 2, "batch_size": 3}
    assert predict(model_folder, tmp_path / "out", *sources, **options) == 0
    lines = lines_of(tmp_path / "out")
    assert [(line["image_id"], line.get("frame"), line["drawing"]) for line in lines] == [
        *((1, None, "a.png"), (2, 0, "walk-000000.png"), (3, 2, "walk-000002.png"), (4, 4, "walk-000004.png"))
    ]
    assert predict(model_folder, tmp_path / "out", *sources, **options, resume=True) == 0
    assert lines_of(tmp_path / "out") == lines


def test_videos_without_a_library_stop_before_anything_is_written(model_folder, tmp_path, monkeypatch, capfd):
    for name in ("torchcodec", "torchcodec.decoders", "av"):
        monkeypatch.setitem(sys.modules, name, None)
    assert predict(model_folder, tmp_path / "out", tmp_path / "walk.mp4") == 2
    error = capfd.readouterr().err
    assert "torchcodec" in error and "pip install av" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
