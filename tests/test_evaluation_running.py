"""Long evaluations: killed and resumed, by two processes, with bad pictures, scored again, in a run; the oracle."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from drawn_coco import ALL_TASKS, write_drawn_coco
from pix2seq_hf import cli
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.shapes import write_shapes
from pix2seq_hf.evaluation import command, watching
from pix2seq_hf.evaluation.answers import AnswerFolder, hold, prepare
from pix2seq_hf.evaluation.measure import measure, score
from pix2seq_hf.evaluation.oracle import answer_by_tokens, build_oracle
from pix2seq_hf.evaluation.predictions import Answer, Question, picture_seed
from tiny_multitask import multitask_model, multitask_processor, save_multitask

ROOT = Path(__file__).resolve().parents[1]
LABELS = {2: "disc", 3: "star", 7: "cross"}
TINY = {
    "image_size": (64, 64), "max_instances_per_image": 4, "keypoint_names": ["tip", "end"], "keypoint_skeleton": [],
    "keypoint_pairs": [], "keypoint_labels": [2], "id2label": LABELS,
}  # fmt: skip


def read_json(path):
    return json.loads(Path(path).read_text())


def evaluate(*options):
    parser = cli.build_parser("evaluate", command)
    return command.run(parser.parse_args(["--quiet", *map(str, options)]))


def find_boxes(model):
    """Let a model name the classes of the drawn pictures."""
    with torch.no_grad():
        for label in (1, 18, *LABELS):
            model.lm_head.bias[model.config.base_vocab_shift + label] = 6.0 * (label in LABELS)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_drawn_coco(tmp_path_factory.mktemp("drawn"), "val", num_images=7)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, _ = save_multitask(folder, **TINY)
    find_boxes(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(data, model_folder):
    return ["--model", model_folder, "--data", data, "--split", "val", "--tasks", ",".join(ALL_TASKS[:2]),
            "--min-score", 0, "--num-samples", 2, "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """What one process finds in one go."""
    folder = tmp_path_factory.mktemp("whole")
    assert evaluate(*options, "--output", folder / "found", "--json", folder / "numbers.json", "--batch-size", 3) == 0
    return folder


def same_results(folder, whole):
    """Whether all is equal but for the rounding of scores, which depends on the batch."""
    for task in ALL_TASKS[:2]:
        found, expected = (read_json(place / f"{task}.json") for place in (folder, whole / "found"))
        scores, others = ([item.pop("score") for item in items] for items in (found, expected))
        if found != expected or scores != pytest.approx(others, abs=1e-5):
            return False
    return True


class TestAnswers:
    def test_a_half_written_line_is_cut_off(self, tmp_path):
        prepare(tmp_path, {"seed": 1})
        folder = AnswerFolder(tmp_path)
        folder.write(Answer(3, {"captioning": []}, {}))
        folder.write(Answer(4, {}, {}, "broken"))
        folder.close()
        path = tmp_path / "answers-00000.jsonl"
        path.write_bytes(path.read_bytes() + b'{"image_id": 5, "resu')
        prepare(tmp_path, {"seed": 1})
        assert path.read_text().count("\n") == 2 and path.read_text().endswith("}\n")
        assert set(AnswerFolder(tmp_path, 1).finished) == {3}  # what failed is tried again

    def test_what_cannot_be_continued(self, tmp_path):
        prepare(tmp_path, {"seed": 1, "min_score": 0.05})
        with pytest.raises(ValueError, match=r"was begun with min score 0\.05, now it is 0\.1: take the same, or ano"):
            prepare(tmp_path, {"seed": 1, "min_score": 0.1})
        (tmp_path / "answers-00000.jsonl").write_text('{"image_id": 5}\n')
        with pytest.raises(ValueError, match=r"answers-00000\.jsonl, line 1: was not written by this command"):
            AnswerFolder(tmp_path)
        (tmp_path / "options.json").unlink()
        with pytest.raises(ValueError, match=r"has answers, but no options\.json"):
            prepare(tmp_path, {"seed": 1})

    def test_seeds_differ(self):
        seeds = {picture_seed(seed, image, task) for seed in (0, 1) for image in (1, 2) for task in ALL_TASKS}
        assert len(seeds) == 16 and all(0 <= seed < 2**63 for seed in seeds)


def test_draws_belong_to_the_picture(options, whole, tmp_path):
    """Other batches, other neighbours and another order, and a picture still gets what it got."""
    evaluate(*options, "--output", tmp_path / "found", "--batch-size", 2, "--image-ids", "17,12,15")
    for task in ALL_TASKS[:2]:
        before, now = (read_json(folder / f"found/{task}.json") for folder in (whole, tmp_path))
        assert now and [item for item in before if item["image_id"] == 12] == [
            item for item in now if item["image_id"] == 12
        ]
    evaluate(*options, "--output", tmp_path / "other", "--seed", 1)
    assert not same_results(tmp_path / "other", whole)


def test_killed_and_resumed(options, whole, tmp_path, monkeypatch, capsys):
    class Killed(BaseException):
        pass

    written = []

    def write(self, found, write=AnswerFolder.write):
        if len(written) == 3:
            raise Killed
        written.append(found.image_id)
        write(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerFolder, "write", write)
        with pytest.raises(Killed):
            evaluate(*options, "--output", tmp_path, "--batch-size", 2)
    path = tmp_path / "answers-00000.jsonl"
    path.write_bytes(path.read_bytes() + b'{"image_id": 1')
    asked = []
    monkeypatch.setattr(AnswerFolder, "write", lambda self, found: asked.append(found.image_id))
    evaluate(*options, "--output", tmp_path, "--json", tmp_path / "numbers.json", "--batch-size", 3)
    assert len(written) == 3 and sorted(written + asked) == list(range(11, 18))
    assert same_results(tmp_path, whole)
    numbers = read_json(tmp_path / "numbers.json")
    assert numbers["tasks"] == read_json(whole / "numbers.json")["tasks"] and numbers["num_asked"] == 4
    assert "7 pictures (3 were finished before)" in capsys.readouterr().out


def test_two_runs_do_not_share_a_folder(options, tmp_path):
    with hold(tmp_path), pytest.raises(ValueError, match="another run is writing there; let it end, or choose another"):
        evaluate(*options, "--output", tmp_path)
    assert not list(tmp_path.glob("*.json*"))
    evaluate(*options, "--output", tmp_path, "--max-images", 1)


def launch(num_processes, options):
    """The script in processes that talk by gloo, as `accelerate launch` starts them on GPUs."""
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
    arguments = [sys.executable, *start, ROOT / "scripts/evaluate.py", *options]
    found = subprocess.run(list(map(str, arguments)), env=environment, timeout=540, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stdout


def test_two_processes_go_on_with_what_one_began(options, whole, tmp_path):
    """Five of seven pictures on two processes: nothing is lost, nothing is done twice, the numbers are those of one."""
    arguments = [*options, "--output", tmp_path / "found", "--json", tmp_path / "numbers.json", "--batch-size", 1]
    evaluate(*options, "--output", tmp_path / "found", "--image-ids", "12,15")
    if not torch.cuda.is_available():  # as README has it: nothing says that it shall be the CPU
        place = arguments.index("--device")
        del arguments[place : place + 2]
    output = launch(2, [*arguments, "--quiet"])
    files = sorted((tmp_path / "found").glob("answers-*.jsonl"))
    lines = [[json.loads(line)["image_id"] for line in file.read_text().splitlines()] for file in files]
    assert len(files) == 2 and min(map(len, lines)) == 2
    assert sorted(image_id for each in lines for image_id in each) == list(range(11, 18))
    numbers = read_json(tmp_path / "numbers.json")
    assert numbers["num_processes"] == 2 and numbers["num_asked"] == 5
    assert numbers["tasks"] == read_json(whole / "numbers.json")["tasks"] and same_results(tmp_path / "found", whole)
    assert output.count("average precision") == 1


def test_bad_pictures_are_named_and_counted(data, options, whole, tmp_path, capsys):
    """One is broken, one is missing: nothing was found in them, what is annotated there counts, the others are done."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "val/012.png").write_bytes(b"no picture")
    (copy / "val/015.png").unlink()
    given = [str(copy) if option == data else option for option in options]
    assert evaluate(*given, "--output", tmp_path / "found", "--json", tmp_path / "numbers.json") == 1
    errors = capsys.readouterr().err
    assert "picture 12 could not be used: " in errors and "picture 15 could not be used: " in errors
    numbers = read_json(tmp_path / "numbers.json")
    assert numbers["num_failed"] == 2 and [item["image_id"] for item in numbers["failed"]] == [12, 15]
    assert numbers["num_images"] == 7 and numbers["num_asked"] == 7 and numbers["left_out"] == []
    split = read_coco(data, "val", tasks=ALL_TASKS[:2])
    found = {task: read_json(whole / f"found/{task}.json") for task in ALL_TASKS[:2]}
    found = {task: [item for item in items if item["image_id"] not in (12, 15)] for task, items in found.items()}
    for task, expected in score(split, found).items():
        assert {name: numbers["tasks"][task][name] for name in expected} == pytest.approx(expected)
    # Not one picture is read to score results, and missing ones are left out of the drawings.
    again = ["--data", copy, "--split", "val", "--report", tmp_path / "report"]
    assert evaluate("--results", whole / "found", *again, "--json", tmp_path / "again.json") == 0
    first = read_json(whole / "numbers.json")["tasks"]
    for task, expected in read_json(tmp_path / "again.json")["tasks"].items():
        assert expected == {name: first[task][name] for name in expected}
    for name in ("012.png", "015.png"):  # mended: only these are asked about again
        shutil.copy(data / "val" / name, copy / "val" / name)
    assert evaluate(*given, "--output", tmp_path / "found", "--json", tmp_path / "numbers.json") == 0
    numbers = read_json(tmp_path / "numbers.json")
    assert numbers["num_asked"] == 2 and numbers["tasks"] == first


def test_many_bad_pictures(data, model_folder, tmp_path, capsys, monkeypatch):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    options = ["--model", model_folder, "--data", copy, "--split", "val", "--device", "cpu"]
    monkeypatch.setattr(command, "MOST_NAMED", 2)
    for name in ("11", "12", "13", "14", "16"):
        (copy / f"val/0{name}.png").unlink()
    assert evaluate(*options) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and errors[2] == "pix2seq evaluate: and 3 pictures more (--json FILE has all)"
    for name in ("15", "17"):
        (copy / f"val/0{name}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data: none of the 7 pictures could be used; the first: .*011\.png"):
        evaluate(*options)


def test_a_picture_without_annotations_is_left_out_and_named(model_folder, tmp_path, capsys):
    """Of a broken XML file nothing is known: it can count neither way."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    for name, xml in (
        ("a", f"<annotation><object><name>disc</name>{box}</object></annotation>"),
        ("b", "<annotation><object>"),
    ):
        (tmp_path / f"voc/Annotations/{name}.xml").write_text(xml)
        Image.new("RGB", (40, 50)).save(tmp_path / f"voc/JPEGImages/{name}.jpg")
    (tmp_path / "voc/ImageSets/Main/val.txt").write_text("a\nb\n")
    options = ["--data", tmp_path / "voc", "--json", tmp_path / "numbers.json"]
    for mode in (["--model", model_folder, "--device", "cpu"], ["--oracle"]):
        assert evaluate(*mode, *options) == 1
        assert "left out, with what is annotated: " in capsys.readouterr().err
        numbers = read_json(tmp_path / "numbers.json")
        assert numbers["num_images"] == 1
    evaluate("--model", model_folder, "--device", "cpu", *options)
    (left_out,) = read_json(tmp_path / "numbers.json")["left_out"]
    assert "b.xml" in left_out


def test_results_are_on_disk_before_numbers_and_numbers_before_they_are_printed(options, tmp_path, monkeypatch):
    arguments = [*options, "--output", tmp_path / "found", "--json", tmp_path / "numbers.json"]

    def fail(*_, **__):
        raise ValueError("Java has gone away")

    with monkeypatch.context() as patch:
        patch.setattr("pix2seq_hf.evaluation.measure.evaluate_masks", fail)
        with pytest.raises(ValueError, match="gone away"):
            evaluate(*arguments)
    assert all((tmp_path / f"found/{task}.json").is_file() for task in ALL_TASKS[:2])
    monkeypatch.setattr(command, "print_numbers", fail)  # as when the reader of a pipe has had enough
    with pytest.raises(ValueError, match="gone away"):
        evaluate(*arguments, "--report", tmp_path / "report")
    assert read_json(tmp_path / "numbers.json")["num_asked"] == 0
    assert (tmp_path / "report/instance_segmentation.html").is_file()


class TestResults:
    def test_scored_again(self, data, whole, tmp_path):
        options = ["--data", data, "--split", "val", "--json", tmp_path / "numbers.json"]
        assert evaluate("--results", whole / "found", *options) == 0
        first, again = (read_json(folder / "numbers.json")["tasks"] for folder in (whole, tmp_path))
        assert set(again) == set(ALL_TASKS[:2])
        assert all(again[task][name] == first[task][name] for task in again for name in again[task])
        evaluate("--results", whole / "found/instance_segmentation.json", *options)
        assert read_json(tmp_path / "numbers.json")["tasks"].keys() == {"instance_segmentation"}
        evaluate("--results", whole / "found/object_detection.json", *options, "--image-ids", "12,13")
        assert read_json(tmp_path / "numbers.json")["num_images"] == 2

    def test_tables_and_report(self, data, whole, tmp_path, capsys):
        options = ["--data", data, "--split", "val", "--json", tmp_path / "numbers.json", "--per-class"]
        evaluate("--results", whole / "found", *options, "--report", tmp_path / "report")
        tables = read_json(tmp_path / "numbers.json")["per_class"]
        assert set(tables) == set(ALL_TASKS[:2]) and set(tables["object_detection"]) == {"disc", "star", "cross"}
        assert (tmp_path / "report/object_detection.html").is_file()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[{", "is not JSON"),
            ('{"annotations": []}', "is an annotation file, not a list of results"),
            ('[{"image_id": 12}]', "entry 0 needs an image_id, a whole number, and one of caption"),
            (
                '[{"image_id": 12, "caption": "a"}, {"image_id": 12, "bbox": []}]',
                "entry 1 is a result of object_",
            ),
        ],
    )
    def test_bad_files(self, data, tmp_path, content, message):
        (tmp_path / "found.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            evaluate("--results", tmp_path / "found.json", "--data", data, "--split", "val")

    def test_other_choices(self, data, whole, tmp_path):
        with pytest.raises(ValueError, match=r"no results of captioning, only of object_detection, instance_segm"):
            evaluate("--results", whole / "found", "--data", data, "--split", "val", "--tasks", "captioning")
        with pytest.raises(ValueError, match=r"has none of the files object_detection\.json"):
            evaluate("--results", tmp_path, "--data", data, "--split", "val")
        (tmp_path / "none.json").write_text("[]")
        assert evaluate("--results", tmp_path / "none.json", "--data", data, "--split", "val") == 0

    def test_boxes_of_a_file(self, options, whole, tmp_path):
        tasks = ["--tasks", "instance_segmentation", "--boxes", whole / "found/object_detection.json"]
        evaluate(*options, *tasks, "--output", tmp_path / "found")
        assert (tmp_path / "found/instance_segmentation.json").read_text() == (
            whole / "found/instance_segmentation.json"
        ).read_text()
        for entry, message in (
            (
                {"image_id": 12, "category_id": 2, "bbox": [0, 0, 1, float("nan")]},
                "needs a bbox of four finite",
            ),
            (
                {"image_id": 12, "category_id": 4, "bbox": [0, 0, 5, 5]},
                "no box has a category_id .*; entry 0 has 4",
            ),
            ({"image_id": 99, "category_id": 2, "bbox": [0, 0, 5, 5]}, "has no box for any of the pictures of"),
        ):
            (tmp_path / "boxes.json").write_text(json.dumps([entry]))
            with pytest.raises(ValueError, match=message):
                evaluate(*options, "--tasks", "instance_segmentation", "--boxes", tmp_path / "boxes.json")


def test_boxes_that_are_no_choice(data, model_folder):
    base = ["--model", model_folder, "--data", data, "--split", "val", "--device", "cpu"]
    with pytest.raises(OSError, match="detectd: no such file; --boxes takes detected, annotated, or a file of results"):
        evaluate(*base, "--boxes", "detectd", "--tasks", "instance_segmentation")
    with pytest.raises(ValueError, match="--boxes annotated: is for instance_segmentation and keypoint_detection; add"):
        evaluate(*base, "--boxes", "annotated")


def test_options_reach_the_model(data, model_folder, tmp_path):
    base = ["--model", model_folder, "--data", data, "--split", "val", "--device", "cpu", "--max-images", 2]
    evaluate(*base, "--max-objects", 1, "--output", tmp_path / "one", "--top-p", 0.9, "--temperature", 0.5)
    assert len(read_json(tmp_path / "one/object_detection.json")) <= 2
    evaluate(*base, "--greedy", "--output", tmp_path / "greedy", "--dtype", "bfloat16")
    evaluate(*base, "--greedy", "--output", tmp_path / "seeded", "--dtype", "bfloat16", "--seed", 7)
    found = [(tmp_path / name / "object_detection.json").read_text() for name in ("greedy", "seeded")]
    assert found[0] == found[1]


class TestOracle:
    def test_what_bins_cost(self, tmp_path, capsys):
        write_shapes(tmp_path, "val", 12, seed=3, image_size=(200, 320))
        json_file = tmp_path / "numbers.json"
        evaluate("--oracle", "--data", tmp_path, "--split", "val", "--oracle-bins", "20,2000", "--json", json_file)
        table = read_json(json_file)["oracle"]
        coarse, fine = (table[bins]["object_detection"]["AP"] for bins in ("20", "2000"))
        assert coarse < 0.9 and fine > 0.999
        assert "boxes       2000" in capsys.readouterr().out

    def test_masks_and_keypoints(self, data):
        split = read_coco(data, "val", tasks=ALL_TASKS[:2])
        processor = build_oracle(1000, split.id2label)
        found = {task: answer_by_tokens(task, split.annotations, processor) for task in ALL_TASKS[:2]}
        numbers = score(split, found)
        assert numbers["object_detection"]["AP"] > 0.98 and numbers["instance_segmentation"]["AP"] > 0.6
        processor = build_oracle(2000, {1: "person"})
        person = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 80], "area": 4000}
        triples = [number for index in range(17) for number in (12.3 + 2 * index, 15.7 + 3 * index, 2 * (index != 4))]
        truth = {
            "images": [{"id": 1, "height": 120, "width": 100}],
            "annotations": [{**person, "keypoints": triples, "num_keypoints": 16}],
        }
        (item,) = answer_by_tokens("keypoint_detection", truth, processor)
        read = [value for index in range(17) if index != 4 for value in item["keypoints"][3 * index : 3 * index + 2]]
        given = [value for index in range(17) if index != 4 for value in triples[3 * index : 3 * index + 2]]
        assert max(abs(a - b) for a, b in zip(read, given, strict=True)) < 0.1 and item["keypoints"][14] == 0

    def test_coco_boxes(self, golden_dir):
        folder = golden_dir.parent / "data" / "coco_mini"
        if not folder.is_dir():
            pytest.skip(f"no data set in {folder}")
        split = read_coco(folder, "val2017")
        results = answer_by_tokens("object_detection", split.annotations, build_oracle(1000, split.id2label))
        assert score(split, {"object_detection": results})["object_detection"]["AP"] >= 0.99

    def test_captions_have_none(self, data):
        with pytest.raises(ValueError, match="words are tokens as they are"):
            evaluate("--oracle", "--data", data, "--split", "val", "--tasks", "captioning")


class TestWatch:
    def save_checkpoint(self, run, step, seed=0):
        """As the training loop does: complete under another name, then renamed."""
        unfinished = run / "checkpoints" / f"unfinished-{step}"
        model = find_boxes(multitask_model(seed, **TINY))
        model.save_pretrained(unfinished)
        multitask_processor(model.config).save_pretrained(unfinished)
        sizes = {path.name: path.stat().st_size for path in unfinished.iterdir() if path.is_file()}
        (unfinished / "complete.json").write_text(json.dumps(sizes))
        unfinished.rename(run / "checkpoints" / f"step-{step}")

    def test_command(self, data, tmp_path, capsys):
        """Checkpoints that are there, one that is incomplete, one that comes later, and the end."""
        self.save_checkpoint(tmp_path, 10)
        self.save_checkpoint(tmp_path, 20, seed=1)
        (tmp_path / "checkpoints/step-20/model.safetensors").write_bytes(b"half")
        (tmp_path / "run.json").write_text('{"total_steps": 30}')

        def go_on():
            while not (tmp_path / "evaluations.jsonl").exists():
                time.sleep(0.05)
            self.save_checkpoint(tmp_path, 30, seed=2)

        thread = threading.Thread(target=go_on)
        thread.start()
        options = ["--watch", tmp_path, "--data", data, "--split", "val", "--device", "cpu", "--interval", 0.05]
        assert evaluate(*options) == 0
        thread.join()
        output = capsys.readouterr().out
        assert "step 10: boxes AP" in output and "step 30: boxes AP" in output and "2 checkpoints of" in output
        lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [10, 30] and "AP" in lines[0]["tasks"]["object_detection"]
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard/evaluation")).Reload()
        assert [event.step for event in events.Scalars("object_detection/AP")] == [10, 30]
        assert evaluate(*options) == 0  # each once
        assert "0 checkpoints of" in capsys.readouterr().out

    def test_a_checkpoint_vanishes_while_it_is_read(self, tmp_path, capsys):
        for step in (1, 2, 3):
            self.save_checkpoint(tmp_path, step)
        (tmp_path / "run.json").write_text('{"total_steps": 3}')

        def read(step, path):
            if step == 2:
                (path / "config.json").unlink()  # as when the run makes room, file after file
            return {"size": len((path / "config.json").read_text())}

        from pix2seq_hf.training.checkpoints import find_damage

        assert watching.watch(tmp_path, read, find_damage) == 2
        assert "step 2: " in capsys.readouterr().err
        assert list(watching.read_steps(tmp_path)) == [1, 3]

    def test_an_error_that_is_not_the_folders(self, tmp_path):
        self.save_checkpoint(tmp_path, 1)

        def fail(step, path):
            raise ValueError("out of ideas")

        with pytest.raises(ValueError, match="out of ideas"):
            watching.watch(tmp_path, fail, lambda path: None)

    def test_the_final_model_is_the_last(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "final").mkdir()
        (tmp_path / "run.json").write_text('{"total_steps": 50}')
        (tmp_path / "final/training.json").write_text('{"step": 33, "end": "stopped early"}')
        seen = []
        assert watching.watch(tmp_path, lambda step, path: seen.append((step, path.name)) or {}, None) == 1
        assert seen == [(33, "final")]

    def test_no_run(self, data, tmp_path):
        with pytest.raises(OSError, match=r"no such folder \(the --output of pix2seq train\)"):
            evaluate("--watch", tmp_path / "nothing", "--data", data)


def test_measure_without_a_folder(data):
    split = read_coco(data, "val", tasks=ALL_TASKS, num_keypoints=2)
    model = find_boxes(multitask_model(**TINY))
    question = Question(["captioning"], generation={"captioning": {"do_sample": False}})
    measured = measure(model, multitask_processor(model.config), split, question, batch_size=4)
    assert measured.numbers["captioning"]["num_captions"] == 7 and measured.num_asked == 7 and not measured.failures
