"""benchmark.py, timed_run.py: `pix2seq benchmark` on small models. Nothing depends on how fast the machine is."""

import json
import time

import pytest
import torch
from PIL import Image

from pix2seq_hf import TaskOptions, cli, run_tasks
from pix2seq_hf.benchmark import Case, Measurement, draw_boxes, draw_plot, load_pictures, make_table, measure
from pix2seq_hf.timed_run import PARTS, TimedRun
from tiny_model import noise_picture, save_tiny_detector
from tiny_multitask import multitask_config, multitask_model, multitask_processor, save_multitask


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A folder with a detector of four objects."""
    folder = tmp_path_factory.mktemp("detector")
    save_tiny_detector(folder)
    return folder


@pytest.fixture(scope="module")
def all_tasks(tmp_path_factory):
    """A folder with a model of all four tasks, 24 objects."""
    folder = tmp_path_factory.mktemp("all_tasks")
    save_multitask(folder)
    return folder


def benchmark(model, *arguments):
    return cli.main(["benchmark", "--model", str(model), "--device", "cpu", "--repetitions", "2", *map(str, arguments)])


def table_of(text):
    """Cells of the table's lines, the header first."""
    return [[cell.strip() for cell in line[2:-2].split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def test_table_json_and_plot(detector, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("pix2seq_hf.progress.SECONDS_BETWEEN_LINES", 0)  # a line for every step
    json_file, plot = tmp_path / "new" / "speed.json", tmp_path / "speed.png"
    arguments = ["--objects", 1, 4, "--batch-size", 1, 2, "--dtype", "bfloat16", "float32"]
    assert benchmark(detector, *arguments, "--json", json_file, "--plot", plot) == 0
    captured = capfd.readouterr()
    assert "24/24" in captured.err  # 8 cases, one run to warm up and two that count
    first, second, *_ = captured.out.splitlines()
    assert first.startswith(f"{detector}: ") and first.endswith("input of 32 x 48; 2 runs, time that passed")
    assert f"{torch.get_num_threads()} threads" in second and f"torch {torch.__version__}" in second
    header, _, *rows = table_of(captured.out)
    assert header == ["task", "weights", "batch", "objects", *PARTS, "ms per picture", "pictures/s"]
    expected = [[dtype, size, count] for dtype in ("float32", "bfloat16") for size in "12" for count in "14"]
    assert [row[1:4] for row in rows] == expected and {row[0] for row in rows} == {"object_detection"}
    content = json.loads(json_file.read_text())
    assert content["model"] == str(detector) and content["machine"]["threads"] == torch.get_num_threads()
    assert [[str(entry[name]) for name in ("dtype", "batch_size", "num_objects")] for entry in
            content["measurements"]] == expected  # fmt: skip
    for entry, row in zip(content["measurements"], rows, strict=True):
        assert len(entry["seconds"]) == 2 and all(set(parts) == set(PARTS) for parts in entry["seconds"])
        assert all(seconds > 0 for parts in entry["seconds"] for seconds in parts.values())
        per_picture = sum(sum(parts.values()) for parts in entry["seconds"]) / 2 / entry["batch_size"]
        assert entry["milliseconds_per_picture"] == pytest.approx(1000 * per_picture, abs=1e-3)
        assert float(row[-2].replace(",", "")) == pytest.approx(entry["milliseconds_per_picture"], abs=0.06)
    with Image.open(plot) as image:
        assert image.format == "PNG" and image.width > 1000


def test_all_tasks_of_given_pictures(all_tasks, tmp_path, capsys):
    for number in range(3):
        noise_picture(seed=number).save(tmp_path / f"{number}.png")
    assert benchmark(all_tasks, "--tasks", "all", "--objects", 2, "--images", tmp_path, "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = table_of(captured.out)[2:]
    assert [row[0] for row in rows] == ["object_detection", "instance_segmentation", "keypoint_detection", "captioning"]
    assert [row[3] for row in rows] == ["2", "2", "2", "-"]


def test_numbers_of_objects_follow_the_model(detector, all_tasks, capsys):
    for folder, expected in ((detector, ["1", "4"]), (all_tasks, ["1", "10", "24"])):
        assert benchmark(folder, "--repetitions", 1) == 0
        assert [row[3] for row in table_of(capsys.readouterr().out)[2:]] == expected


def test_what_is_run_is_what_was_asked_for(monkeypatch):
    """The objects that are written or asked about, with the pictures going round."""
    model, seen = multitask_model(), []
    processor = multitask_processor(model.config)
    run = TimedRun.run

    def spy(self):
        [given, *_] = self.boxes
        seen.append((self.options.max_objects if given is None else len(given), self.pictures))
        return run(self)

    monkeypatch.setattr(TimedRun, "run", spy)
    pictures = [noise_picture(seed=number) for number in range(3)]
    for task, boxes in (("object_detection", 7), ("instance_segmentation", 3), ("captioning", None)):
        seen.clear()
        seconds = measure(model, processor, Case(task, "float32", 2, boxes), pictures, 2)
        assert len(seconds) == 2 and len(seen) == 3
        assert [number for number, _ in seen] == [boxes] * 3
        assert [picture for _, batch in seen for picture in batch] == [*pictures, *pictures]


def test_a_timed_run_finds_what_a_run_finds():
    model = multitask_model()
    processor = multitask_processor(model.config)
    pictures, options = [noise_picture(), noise_picture(seed=1)], TaskOptions("all", threshold=0.0, seed=3)
    timed = TimedRun(model, processor, pictures, options)
    found = timed.run()
    expected = run_tasks(model, processor, pictures, options)
    assert [result.to_json() for result in found] == [result.to_json() for result in expected]
    assert list(timed.seconds) == list(PARTS) and min(timed.seconds.values()) > 0


def test_boxes_lie_in_the_picture_and_are_of_a_class_with_keypoints():
    config = multitask_config(keypoint_labels=[18])
    boxes = draw_boxes((200, 100), Case("keypoint_detection", "float32", 1, 50), config)
    assert len(boxes) == 50 and boxes.has_area.all() and set(boxes.labels.tolist()) == {18}
    assert boxes.boxes_xyxy.min() >= 0 and (boxes.boxes_xyxy.amax(0)[[0, 2]] <= 200).all()
    assert (boxes.boxes_xyxy[:, [1, 3]] <= 100).all()
    assert set(draw_boxes((9, 9), Case("instance_segmentation", "float32", 1, 2), config).labels.tolist()) == {1}


def test_medians_are_of_runs_and_per_picture():
    case = Case("object_detection", "float32", 4, 10)
    runs = [dict(zip(PARTS, (seconds, 0.2, seconds, 0.0))) for seconds in (0.1, 8.0, 0.3)]
    result = Measurement(case, runs)
    assert result.milliseconds("encoder") == pytest.approx(50) and result.milliseconds("decoding") == pytest.approx(75)
    assert result.milliseconds() == pytest.approx(200)
    assert table_of(make_table([result]))[2][-2:] == ["200.0", "5.00"]


def test_the_plot_shows_more_time_for_more_objects():
    def result(batch_size, num_objects, seconds):
        parts = dict.fromkeys(PARTS, seconds * batch_size / len(PARTS))
        return Measurement(Case("object_detection", "float32", batch_size, num_objects), [parts])

    results = [result(1, 100, 10.0), result(1, 1, 1.0), result(8, 50, 2.0)]
    image = draw_plot(results)
    blue, orange = (37, 99, 235), (234, 115, 23)
    pixels = image.load()
    places = {color: [(x, y) for x in range(image.width) for y in range(200, image.height) if pixels[x, y] == color]
              for color in (blue, orange)}  # fmt: skip
    assert max(places[blue])[1] < min(places[blue])[1]  # rises to the right, whatever the order of the measurements
    assert max(places[orange])[0] < max(places[blue])[0]  # one point, at half of the objects


def test_processor_time_does_not_pass_while_nothing_is_done(detector, monkeypatch, tmp_path):
    detect = TimedRun._generate

    def wait(self, *args, **options):
        time.sleep(0.4)
        return detect(self, *args, **options)

    monkeypatch.setattr(TimedRun, "_generate", wait)  # before its clock starts, so the time counts as what comes after
    seconds = {}
    for name, option in (("passed", []), ("processor", ["--processor-time"])):
        file = tmp_path / f"{name}.json"
        assert benchmark(detector, "--objects", 1, "--json", file, *option) == 0
        seconds[name] = [run["post-processing"] for run in json.loads(file.read_text())["measurements"][0]["seconds"]]
    assert min(seconds["passed"]) > 0.4 > max(seconds["processor"])


def test_a_drawn_scene_needs_no_files():
    [picture] = load_pictures(None)
    assert picture.size == (640, 480) and len(picture.getcolors(1 << 20)) > 100
    assert load_pictures(None) == [picture]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objects", "0"], "argument --objects: '0': must be a whole number of at least 1"),
        (["--batch-size", "x"], "argument --batch-size: 'x': must be a whole number of at least 1"),
        (["--objects", "103"], "--objects 103: this model writes at most 102 (max_position_embeddings)"),
        (["--tasks", "captioning"], "the model was not trained for 'captioning': its tasks are object_detection"),
        (["--images", "nowhere.png"], "nowhere.png: No such file or directory"),
        (["--plot", "speed.svg"], "--plot speed.svg: is drawn as PNG, so the name must end in .png"),
        (["--json", "."], ".: is a folder; give --json the name of a file"),
        (["--device", "nonsense"], "--device nonsense: "),
    ],
)
def test_errors_are_one_line(detector, arguments, message, capsys):
    assert benchmark(detector, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"pix2seq benchmark: error: {message}")


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    assert benchmark(tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"pix2seq benchmark: error: {tmp_path}: is no model folder")


def test_captions_alone_have_no_plot(all_tasks, tmp_path, capsys):
    assert benchmark(all_tasks, "--tasks", "captioning", "--plot", tmp_path / "a.png") == 2
    assert "captions do not depend on objects" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
