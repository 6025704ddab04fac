"""`pix2seq demo` from end to end, with a handful of pictures and steps; what it finds is left to the real run."""

import argparse

import pytest
from PIL import Image

from pix2seq_hf import demo


def run_demo(monkeypatch, *arguments):
    monkeypatch.setattr(demo, "NUM_TRAINING", 40)
    monkeypatch.setattr(demo, "NUM_NEW", 4)
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args([str(argument) for argument in arguments]))


def test_it_leaves_a_picture_and_a_model(monkeypatch, tmp_path, capsys):
    for _ in range(2):  # the second run replaces the first
        assert run_demo(monkeypatch, "--output", tmp_path, "--steps", 2, "--seed", 5) == 0
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.size == (3 * 384 + 2 * 8, 2 * 384 + 8)
    assert (tmp_path / "run/final/model.safetensors").is_file()
    output = capsys.readouterr().out
    assert "average precision at IoU 0.5 on the new pictures: " in output
    assert str(tmp_path / "found.png") in output.splitlines()[-1]


def test_it_touches_nothing_of_others(monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious").touch()
    with pytest.raises(ValueError, match="run: is not of an earlier demo"):
        run_demo(monkeypatch, "--output", tmp_path)
    assert (tmp_path / "run/precious").is_file()


def test_sheet_shows_the_boxes_of_its_pictures(tmp_path):
    for number in (1, 2):
        Image.new("RGB", (384, 384), "black").save(tmp_path / f"{number:06d}.png")
    box = {"image_id": 2, "bbox": [96, 80, 192, 240], "category_id": 1, "score": 0.9}
    faint = {"image_id": 1, "bbox": [96, 80, 192, 240], "category_id": 1, "score": 0.1}
    sheet = demo.draw_sheet(sorted(tmp_path.iterdir()), [box, faint], {1: "disc"})
    first, second = sheet.crop((0, 0, 384, 384)), sheet.crop((392, 0, 776, 384))
    assert first.getbbox() is None
    left, _, right, bottom = second.getbbox()
    assert abs(left - 96) < 8 and abs(right - 288) < 8 and abs(bottom - 320) < 8
