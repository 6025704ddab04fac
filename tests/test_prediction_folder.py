"""prediction_folder.py: lines that survive, names that are free, files that are whole."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pix2seq_hf.data.video import Source
from pix2seq_hf.prediction_folder import PredictionFolder, entry_of, read_line, repair_lines, result_of, write_json
from pix2seq_hf.results import Keypoint, Pix2SeqObject, Pix2SeqResult

NAMES = {1: "person", 18: "dog"}


def make_result(caption="a dog", score=0.123456789):
    found = Pix2SeqObject(
        score=score,
        label="person",
        label_id=1,
        box_xyxy=(1.23456, 2.0, 30.5, 20.25),
        rle={"size": [40, 60], "counts": [100, 60, 2240]},
        keypoints=[Keypoint("nose", 12.5, 7.25, 0.5, True)],
        keypoints_score=0.987654321,
    )
    picture = Image.new("RGB", (60, 40))
    dog = Pix2SeqObject(score=1e-7, label="dog", label_id=18, box_xyxy=(0.0, 0.0, 60.0, 40.0))
    return Pix2SeqResult(
        (40, 60), [found, dog], [caption], ("captioning",), {"object_detection": {"inverted": 2}}, picture, NAMES
    )


def source(name, frame=None):
    return Source(Path(name), frame, None if frame is None else frame / 10, None)


def test_lines_hold_what_can_be_measured():
    result = make_result()
    entry = json.loads(json.dumps(entry_of(result)))
    again = result_of(entry)
    assert entry_of(again) == entry
    assert again.objects[0].score == pytest.approx(0.123456789, rel=1e-6) and again.objects[1].score == 1e-7
    assert again.objects[0].box_xyxy == (1.2346, 2.0, 30.5, 20.25) and again.objects[0].rle == result.objects[0].rle
    assert again.objects[0].keypoints == result.objects[0].keypoints and again.objects[1].keypoints is None
    assert (again.size, again.captions, again.tasks) == (result.size, result.captions, result.tasks)
    assert again.malformed == {"object_detection": {"inverted": 2}}


def test_every_line_is_on_disk_at_once(tmp_path):
    folder = PredictionFolder(str(tmp_path / "deep" / "out"), [], NAMES)
    for number, caption in enumerate(("ein Hündchen", "zwei\nZeilen"), start=1):
        folder.write(source(f"p{number}.jpg"), number, make_result(caption))
        lines = (tmp_path / "deep/out/results.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == number and json.loads(lines[-1])["captions"] == [caption]
    assert "Hündchen" in lines[0]
    folder.finish()
    assert not list((tmp_path / "deep/out").glob("*.part"))


def test_frames_have_their_numbers(tmp_path):
    folder = PredictionFolder(str(tmp_path), [], NAMES)
    folder.write(source("walk.mp4", 30), 1, make_result())
    folder.finish()
    [line] = folder.lines()
    assert (line["file"], line["frame"], line["seconds"], line["drawing"]) == ("walk.mp4", 30, 3.0, "walk-000030.png")
    [image] = json.loads((tmp_path / "images.json").read_text())["images"]
    assert (image["file_name"], image["frame"]) == ("walk.mp4", 30)


def test_drawings_never_take_the_place_of_others(tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    folder = PredictionFolder(str(tmp_path), [tmp_path / "b.png"], NAMES)
    assert [folder.free_name(name).name for name in "aab"] == ["a-2.png", "a-3.png", "b-2.png"]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", b""),
        (b"half", b""),
        (b"one\ntwo\n", b"one\ntwo\n"),
        (b"one\ntwo\nhal", b"one\ntwo\n"),
        (b"one\n" + b"x" * 200_000, b"one\n"),
        (b"x" * 200_000, b""),
        (b"x" * 200_000 + b"\n\xc3", b"x" * 200_000 + b"\n"),
    ],
)
def test_half_a_line_is_cut_off(tmp_path, content, kept):
    (tmp_path / "lines").write_bytes(content)
    repair_lines(tmp_path / "lines")
    assert (tmp_path / "lines").read_bytes() == kept


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"file": "a"}'])
def test_foreign_lines(tmp_path, text):
    assert read_line(text) is None
    PredictionFolder(str(tmp_path), [], NAMES)
    (tmp_path / "results.jsonl").write_text(f"{text}\n")
    with pytest.raises(ValueError, match="line 1: was not written by this command"):
        PredictionFolder(str(tmp_path), [], NAMES, resume=True)


def test_lines_without_options_are_not_continued(tmp_path):
    PredictionFolder(str(tmp_path), [], NAMES)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="does not say how the run was begun"):
        PredictionFolder(str(tmp_path), [], NAMES, resume=True)


def test_json_is_whole_and_one_entry_a_line(tmp_path):
    for content in ([], [{"a": 1}, {"b": "ü\n"}], {"info": {}, "images": [{"id": 1}], "x": "y"}, {"images": []}):
        write_json(tmp_path / "file.json", content)
        text = (tmp_path / "file.json").read_text(encoding="utf-8")
        assert json.loads(text) == content and text.endswith("\n")
    write_json(tmp_path / "file.json", [1, 2])
    assert (tmp_path / "file.json").read_text() == "[\n1,\n2\n]\n" and len(list(tmp_path.iterdir())) == 1
