"""prediction_dataset.py, prediction_shards.py, data/numbered.py: every picture once, whatever happens on the way."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from drawn_coco import write_drawn_coco
from pix2seq_hf import cli
from pix2seq_hf.data.numbered import open_pictures
from pix2seq_hf.prediction_dataset import ask, seed_of
from pix2seq_hf.prediction_shards import ShardFolder, make_row, read_result
from tiny_multitask import save_multitask

ROOT = Path(__file__).resolve().parents[1]
FAST = ("--device", "cpu", "--quiet", "--batch-size", "2", "--chunk-size", "2")
LOOK = ("--greedy", "--threshold", "0", "--max-objects", "12")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_multitask(folder, keypoint_labels=[1, 18])
    return folder


def draw_pictures(folder, names):
    """Pictures of noise of different sizes; the name decides what is on one."""
    for name in names:
        rng = np.random.default_rng(list(name.encode()))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        size = (*rng.integers(30, 70, 2), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven pictures in nested folders without any annotation, and one file that is no picture."""
    folder = draw_pictures(tmp_path_factory.mktemp("photos"), [f"{place}.png" for place in "abce"])
    draw_pictures(folder, ["later/a.jpg", "later/deep/b.png", "later/z.PNG"])
    (folder / "d.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    draw_pictures(folder, [".hidden/x.png"])
    return folder


def predict(model_folder, data, output, *options, look=LOOK):
    """Run the command in this process; return its exit code."""
    given = ("--data", data, "--model", model_folder, "--output", output, *FAST, *look, *options)
    return cli.main(["predict-dataset", *map(str, given)])


def read_rows(output):
    """All rows, as `datasets` reads them back."""
    files = {"found": str(output / "*.parquet")}
    return list(datasets.load_dataset("parquet", data_files=files, split="found", cache_dir=str(output / "cache")))


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start_processes(count, *options):
    """Start the script as `accelerate launch` does, but without its watchman, who ends all if one dies."""
    port, started = str(free_port()), []
    for rank in range(count):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *(path for path in sys.path if path)]),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        if not torch.cuda.is_available():  # then nobody has to say that it shall be the CPU
            options = [option for option in options if option not in ("--device", "cpu")]
        command = [sys.executable, str(ROOT / "scripts/predict.py"), *map(str, options)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return started


# --- Every picture once -----------------------------------------------------------------------------------------------


def test_pictures_without_annotations_become_rows(model_folder, pictures, tmp_path, capsys):
    assert predict(model_folder, pictures, tmp_path / "out") == 1  # as of `predict`: something has no result
    rows = read_rows(tmp_path / "out")
    names = ["a.png", "b.png", "c.png", "d.png", "e.png", "later/a.jpg", "later/deep/b.png", "later/z.PNG"]
    assert [row["file_name"] for row in rows] == names
    assert [row["index"] for row in rows] == list(range(8)) and [row["image_id"] for row in rows] == list(range(1, 9))
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 4
    broken = rows.pop(3)
    assert broken["error"].startswith("is not a picture") and broken["objects"] == [] and broken["width"] is None
    assert "d.png: is not a picture" in capsys.readouterr().err
    for row in rows:
        assert row["error"] is None and len(row["tasks"]) == 4 and len(row["captions"]) == 1
        with Image.open(pictures / row["file_name"]) as picture:
            assert picture.size == (row["width"], row["height"])
        result = read_result(row)
        restored = make_row(row["index"], row["image_id"], row["file_name"], result)
        known = [{name: value for name, value in found.items() if value is not None} for found in row["objects"]]
        assert restored["objects"] == known
        assert restored["malformed"] == row["malformed"] and result.masks.shape[1:] == (row["height"], row["width"])
    found = [found for row in rows for found in row["objects"]]
    assert found and all(len(entry["box_xyxy"]) == 4 and entry["label"] for entry in found)
    assert any(entry["keypoints"] for entry in found) and any(entry["rle"]["counts"] for entry in found)


@pytest.mark.slow
def test_a_killed_process_loses_nothing(model_folder, tmp_path):
    photos = draw_pictures(tmp_path / "photos", [f"{number:03}.png" for number in range(24)])
    assert predict(model_folder, photos, tmp_path / "whole") == 0
    options = ("--data", photos, "--model", model_folder, "--output", tmp_path / "out", *FAST, *LOOK)
    main, other = start_processes(2, *options)
    try:
        second = tmp_path / "out/part-000001.parquet"  # the first of the other process
        while not second.exists() and other.poll() is None:
            time.sleep(0.005)
        other.send_signal(signal.SIGKILL)
        other.wait()
        _, said = main.communicate(timeout=120)
    finally:
        for process in (main, other):
            process.kill()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.parquet")}
    assert {f"part-{chunk:06}.parquet" for chunk in range(0, 12, 2)} <= before.keys()  # the survivor's share is whole
    assert 7 <= len(before) < 12 and main.returncode == 1 and other.returncode == -signal.SIGKILL
    assert f"{12 - len(before)} of 12 parts are missing" in said and "scripts/predict.py --data" in said

    assert [process.wait(300) for process in start_processes(3, *options)] == [0, 0, 0]
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.parquet")}
    assert len(after) == 12 and before.items() <= after.items()  # what was there was not made again
    rows = read_rows(tmp_path / "out")
    assert [row["index"] for row in rows] == list(range(24)) and rows == read_rows(tmp_path / "whole")


def test_what_is_there_is_not_made_again(model_folder, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(model_folder, pictures, out) == 1
    rows, parts = read_rows(out), sorted(out.glob("part-*.parquet"))
    shutil.rmtree(out / "cache")
    parts[1].write_bytes(parts[1].read_bytes()[:200])  # cut off by a copy
    parts[3].unlink()
    (out / ".part-000003.parquet.part").write_bytes(b"half")  # what a kill leaves
    times = [parts[number].stat().st_mtime_ns for number in (0, 2)]
    assert predict(model_folder, pictures, out) == 1
    assert read_rows(out) == rows and [parts[number].stat().st_mtime_ns for number in (0, 2)] == times
    assert not list(out.glob(".part*"))
    times = [part.stat().st_mtime_ns for part in parts]
    capsys.readouterr()
    assert cli.main(["predict-dataset", *arguments(model_folder, pictures, out, "--coco")]) == 1
    assert "8 pictures (8 of them before), 1 without a result" in capsys.readouterr().out
    assert [part.stat().st_mtime_ns for part in parts] == times


def arguments(model_folder, data, output, *options):
    fast = [option for option in FAST if option != "--quiet"]
    return [*map(str, ("--data", data, "--model", model_folder, "--output", output, *fast, *LOOK, *options))]


def test_chance_does_not_depend_on_what_was_done_before(model_folder, pictures, tmp_path):
    look = ("--threshold", "0", "--max-objects", "12", "--seed", "5", "--tasks", "object_detection,captioning")
    assert predict(model_folder, pictures, tmp_path / "out", look=look) == 1
    rows = read_rows(tmp_path / "out")
    first = next(found for row in rows for found in read_result(row).objects)
    assert first.rle is None and first.keypoints is None
    shutil.rmtree(tmp_path / "out/cache")
    (tmp_path / "out/part-000002.parquet").unlink()
    assert predict(model_folder, pictures, tmp_path / "out", look=look) == 1
    assert read_rows(tmp_path / "out") == rows
    other = (*look[:5], "6", *look[6:])
    assert predict(model_folder, pictures, tmp_path / "other", look=other) == 1
    assert read_rows(tmp_path / "other") != rows
    assert len({seed_of(seed, index) for seed in range(10) for index in range(0, 100, 10)}) == 100


def test_one_bad_picture_costs_no_other(monkeypatch):
    def run_tasks(model, processor, images, options):
        if any(image.size == (3, 3) for image in images):
            raise RuntimeError("strange\npicture")
        if any(image.size == (4, 4) for image in images):
            raise RuntimeError("CUDA out of memory")
        return [image.size for image in images]

    monkeypatch.setattr("pix2seq_hf.engine.run_tasks", run_tasks)
    images = [Image.new("RGB", (side, side)) for side in (1, 3, 2)]
    assert ask(None, None, images, None) == [(1, 1), "RuntimeError: strange picture", (2, 2)]
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(None, None, [images[0], Image.new("RGB", (4, 4))], None)


# --- What may be continued --------------------------------------------------------------------------------------------


def test_other_options_and_other_pictures_are_refused(model_folder, tmp_path, capsys):
    photos = draw_pictures(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    look = ("--tasks", "captioning")
    assert predict(model_folder, photos, tmp_path / "out", look=look) == 0
    for options, words in [
        (("--seed", "7"), "was begun with --seed 0, now it is 7: take the same, or another --output"),
        (("--chunk-size", "4"), "was begun with --chunk-size 2, now it is 4"),
        (("--limit", "2"), "was begun with --limit None, now it is 2"),
    ]:
        assert predict(model_folder, photos, tmp_path / "out", *options, look=look) == 2
        assert words in capsys.readouterr().err
    draw_pictures(photos, ["d.png"])
    assert predict(model_folder, photos, tmp_path / "out", look=look) == 2
    assert "was begun with other pictures (3 pictures then, 4 now)" in capsys.readouterr().err
    (photos / "d.png").unlink()
    (photos / "c.png").rename(photos / "x.png")
    assert predict(model_folder, photos, tmp_path / "out", look=look) == 2
    assert "was begun with other pictures: take another" in capsys.readouterr().err
    (tmp_path / "out/manifest.json").write_text("[]")
    assert predict(model_folder, photos, tmp_path / "out", look=look) == 2
    assert "does not say what the parts beside it are" in capsys.readouterr().err
    for part in (tmp_path / "out").glob("part-*"):
        part.unlink()
    assert predict(model_folder, photos, tmp_path / "out", look=look) == 0  # nothing was there to be continued


def test_bad_options_are_one_line(model_folder, pictures, tmp_path, capsys):
    for options, words in [
        (("--chunk-size", "3"), "--chunk-size 3: must be a multiple of --batch-size 2"),
        (("--limit", "0"), "--limit 0: must be at least 1"),
        (("--tasks", "flying"), "unknown task 'flying'"),
        (("--column", "image=photo"), "a folder of pictures, which has no columns"),
    ]:
        assert predict(model_folder, pictures, tmp_path / "out", *options) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert predict(model_folder, tmp_path / "nothing", tmp_path / "out") == 2
    (tmp_path / "empty").mkdir()
    assert predict(model_folder, tmp_path / "empty", tmp_path / "out") == 2
    assert "not a data set of a known layout" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_share_a_folder(tmp_path):
    folder = ShardFolder(str(tmp_path), 2)
    code = f"from pix2seq_hf.prediction_shards import ShardFolder\nimport time\nwith ShardFolder({str(tmp_path)!r}, 2)"
    code += ".hold(1):\n    print('held', flush=True)\n    time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "held\n"
    assert folder.is_held(1) and not folder.is_held(0)
    with pytest.raises(ValueError, match="another run is writing there"), folder.hold(1):
        pass
    process.kill()
    process.wait()
    assert not folder.is_held(1)  # a killed process holds nothing
    with folder.hold(1):
        pass


# --- Where pictures come from -----------------------------------------------------------------------------------------


def numbered(data, split="train", size=2, **options):
    source = open_pictures(data, split, **options)
    found = [picture for batch in source.batches(size, lambda first: True) for picture in batch]
    assert [picture.index for picture in found] == list(range(source.num_pictures))
    return source, found


def test_every_layout_is_numbered(tmp_path):
    coco = write_drawn_coco(tmp_path / "coco", num_images=5)
    paths = sorted((coco / "train").iterdir())
    content = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    table = datasets.Dataset.from_dict({"photo": content}).cast_column("photo", datasets.Image())
    table = table.add_column("image_id", [f"{path.stem}" for path in paths])
    (tmp_path / "parquet").mkdir()
    for shard in range(2):  # batches go over the border
        table.shard(2, shard, contiguous=True).to_parquet(tmp_path / f"parquet/train-{shard:05}-of-00002.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    shutil.copytree(coco / "train", tmp_path / "listed")
    lines = [json.dumps({"file_name": path.name, "note": "x"}) for path in paths]
    (tmp_path / "listed/metadata.jsonl").write_text("\n".join(lines))
    sources = [(coco, {}), (coco / "train", {}), (tmp_path / "parquet", {}), (tmp_path / "saved", {})]
    for data, options in [*sources, (tmp_path / "parquet/train-00000-of-00002.parquet", {}), (tmp_path / "listed", {})]:
        source, found = numbered(data, **options)
        count = 3 if data.suffix else 5
        assert source.num_pictures == count
        ids = [1, 2, 3, 4, 5] if data.name == "listed" else [11, 12, 13, 14, 15]
        assert [picture.image_id for picture in found] == ids[:count]
        assert [Path(picture.name).name for picture in found] == [path.name for path in paths[:count]]
        for picture, path in zip(found, paths):
            with Image.open(path) as expected:
                assert np.array_equal(np.array(picture.load()), np.array(expected.convert("RGB")))
        again = open_pictures(data, "train")
        assert again.fingerprint == source.fingerprint and again.fingerprint is not None
        assert [picture.index for batch in again.batches(2, lambda first: first == 2) for picture in batch] == [2, 3][
            : count - 2
        ]
        assert again.num_pictures == count
        assert len(numbered(data, limit=3)[1]) == 3


def test_a_stream_goes_on_where_it_was(model_folder, tmp_path):
    photos = draw_pictures(tmp_path / "photos", [f"{place}.png" for place in "abcde"])
    content = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(photos.iterdir())]
    table = datasets.Dataset.from_dict({"image": content}).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "photos.parquet")
    assert predict(model_folder, photos, tmp_path / "files") == 0
    assert predict(model_folder, tmp_path / "photos.parquet", tmp_path / "out") == 0
    rows = read_rows(tmp_path / "out")
    assert rows == read_rows(tmp_path / "files")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["num_pictures"] == 5
    shutil.rmtree(tmp_path / "out/cache")
    (tmp_path / "out/part-000001.parquet").unlink()
    last = (tmp_path / "out/part-000002.parquet").stat().st_mtime_ns
    assert predict(model_folder, tmp_path / "photos.parquet", tmp_path / "out") == 0
    assert read_rows(tmp_path / "out") == rows and (tmp_path / "out/part-000002.parquet").stat().st_mtime_ns == last


def test_files_outside_of_the_folder_are_not_read(tmp_path):
    draw_pictures(tmp_path, ["secret.png", "data/inside.png"])
    table = {"image": [str(tmp_path / "data/inside.png"), str(tmp_path / "secret.png"), str(tmp_path / "data/no.png")]}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "data/train.parquet")
    _, (inside, outside, missing) = numbered(tmp_path / "data")
    assert inside.load().size and inside.name == "inside.png"
    for picture, words in [(outside, "lies outside"), (missing, "no such picture")]:
        with pytest.raises(ValueError, match=words):
            picture.load()


# --- COCO -------------------------------------------------------------------------------------------------------------


def test_coco_files_are_those_of_predict(model_folder, tmp_path):
    photos = draw_pictures(tmp_path / "photos", ["0007.png", "0003.png"])
    assert predict(model_folder, photos, tmp_path / "out", "--coco") == 0
    command = ["predict", photos, "--model", model_folder, "--output", tmp_path / "single", "--device", "cpu", *LOOK]
    assert cli.main([*map(str, command), "--batch-size", "2"]) == 0
    for name in ("results.json", "keypoints.json", "captions.json"):
        written, expected = (json.loads((tmp_path / place / name).read_text()) for place in ("out", "single"))
        assert written == expected and written
    truth = COCO(str(tmp_path / "out/images.json"))
    assert sorted(truth.imgs) == [3, 7]
    assert len(truth.loadRes(str(tmp_path / "out/results.json")).anns) > 0


def test_coco_files_of_a_part_of_the_tasks(model_folder, tmp_path):
    photos = draw_pictures(tmp_path / "photos", ["a.png"])
    (photos / "b.png").write_bytes(b"broken")
    assert predict(model_folder, photos, tmp_path / "out", "--coco", look=("--tasks", "captioning")) == 1
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {
        "manifest.json", "results.json", "images.json", "captions.json"
    }  # fmt: skip
    assert json.loads((tmp_path / "out/results.json").read_text()) == []
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert images[0]["file_name"] == "a.png" and images[1]["error"].startswith("is not a picture")
    assert pq.read_schema(tmp_path / "out/part-000000.parquet").names[0] == "index"
