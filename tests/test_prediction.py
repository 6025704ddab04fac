"""prediction.py: `pix2seq predict` on a small model with random weights, from picture files to PNG and JSON files."""

import gc
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf import cli, engine, prediction
from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.generation_pix2seq import build_generation_config
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.prediction_folder import number_pictures
from pix2seq_hf.processing_pix2seq import Pix2SeqProcessor
from tiny_multitask import multitask_model

NAMES = {1: "person", 3: "car", 18: "dog"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model of 64 x 64 pixels that writes ten random objects per picture."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Pix2SeqConfig(
        image_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        max_position_embeddings=64,
        max_instances_per_image=10,
        id2label=NAMES,
    )
    model = Pix2SeqForConditionalGeneration(config)
    model.lm_head.bias.data[1000:2000] += 5.0  # mostly coordinates, so that there are boxes
    model.generation_config = build_generation_config(config)
    model.save_pretrained(folder)
    Pix2SeqProcessor.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of noise in a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in [("a.jpg", (40, 60)), ("b.png", (60, 30)), ("c.jpg", (50, 50))]:
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def predict(model_folder, output, *sources, **options):
    arguments = ["predict", *map(str, sources), "--model", str(model_folder), "--output", str(output)]
    options = {"device": "cpu", "threshold": 0, **options}
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return cli.main(arguments)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_folder_of_pictures(model_folder, pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("pix2seq_hf.progress.SECONDS_BETWEEN_LINES", 0)  # a line for every step
    output = tmp_path / "out"
    assert predict(model_folder, output, pictures, batch_size=2) == 0
    captured = capfd.readouterr()
    assert captured.out.startswith("3 pictures, ") and captured.out.count("\n") == 1
    assert "3/3" in captured.err and "Warning" not in captured.err and "Loading" not in captured.err
    assert {path.name for path in output.iterdir()} == {
        *("a.png", "b.png", "c.png", "results.jsonl", "results.json", "images.json", "run.json")
    }
    index = read(output / "images.json")
    assert index["categories"] == [{"id": label, "name": name} for label, name in NAMES.items()]
    assert [entry["id"] for entry in index["images"]] == [1, 2, 3]
    for entry, name in zip(index["images"], ("a.jpg", "b.png", "c.jpg")):
        with Image.open(pictures / name) as original, Image.open(output / entry["drawing"]) as drawing:
            assert entry["file_name"] == (pictures / name).as_posix()
            assert (entry["width"], entry["height"]) == original.size == drawing.size
    results = read(output / "results.json")
    assert results and f"{len(results)} objects" in captured.out
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in index["images"]}
    for result in results:
        assert result.keys() == {"image_id", "category_id", "bbox", "score"}
        left, top, width, height = result["bbox"]
        assert left >= 0 and top >= 0 and width > 0 and height > 0
        assert left + width <= sizes[result["image_id"]][0] + 1e-3
        assert top + height <= sizes[result["image_id"]][1] + 1e-3
        assert 0 <= result["score"] <= 1


def test_pycocotools_reads_the_results(model_folder, pictures, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    output = tmp_path / "out"
    predict(model_folder, output, pictures)
    ground = coco.COCO(output / "images.json")
    found = ground.loadRes(str(output / "results.json"))
    assert len(found.anns) == len(read(output / "results.json"))


def test_objects_are_those_of_generate(model_folder, pictures, tmp_path):
    """Once by hand, once through the command, with the same seed."""
    model = Pix2SeqForConditionalGeneration.from_pretrained(model_folder).eval()
    processor = Pix2SeqProcessor.from_pretrained(model_folder)
    with Image.open(pictures / "b.png") as image:
        torch.manual_seed(7)
        inputs = processor(images=[image], task="object_detection", return_tensors="pt")
        [expected] = processor.post_process_generation(
            model.generate(**inputs), task="object_detection", target_sizes=[(image.height, image.width)]
        )
    width, height = image.size
    expected["boxes"] = expected["boxes"].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    has_area = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(-1)
    expected = {name: expected[name][has_area] for name in ("scores", "labels", "boxes")}
    predict(model_folder, tmp_path / "out", pictures / "b.png", seed=7)
    results = read(tmp_path / "out" / "results.json")
    assert len(results) == len(expected["labels"]) > 0
    for result, score, label, box in zip(results, expected["scores"], expected["labels"], expected["boxes"]):
        left, top, width, height = result["bbox"]
        assert result["category_id"] == label and result["score"] == pytest.approx(float(score), rel=1e-4)
        assert (left, top, left + width, top + height) == pytest.approx(box.tolist(), abs=1e-3)


def test_threshold_and_number_of_objects(model_folder, pictures, tmp_path):
    predict(model_folder, tmp_path / "all", pictures)
    scores = sorted(result["score"] for result in read(tmp_path / "all" / "results.json"))
    threshold = scores[len(scores) // 2]
    predict(model_folder, tmp_path / "half", pictures, threshold=threshold)
    kept = read(tmp_path / "half" / "results.json")
    assert 0 < len(kept) < len(scores) and min(result["score"] for result in kept) >= threshold
    predict(model_folder, tmp_path / "one", pictures, max_objects=1)
    images = [result["image_id"] for result in read(tmp_path / "one" / "results.json")]
    assert len(images) == len(set(images)) < len(scores)


def test_bad_pictures_are_named_and_the_others_kept(model_folder, pictures, tmp_path, capfd):
    content = (pictures / "a.jpg").read_bytes()
    (pictures / "cut.jpg").write_bytes(content[: len(content) // 2])
    (pictures / "empty.jpg").touch()
    (pictures / "text.png").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    Image.new("RGB", (100, 100)).save(pictures / "huge.png")
    sources = pictures, tmp_path / "folder.jpg", tmp_path / "missing.jpg"
    assert predict(model_folder, tmp_path / "out", *sources, max_pixels=9_999, quiet=True) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 6 and all(line.startswith("pix2seq predict: left out: ") for line in lines)
    for name in ("cut.jpg", "empty.jpg", "text.png", "folder.jpg", "missing.jpg", "huge.png"):
        assert sum(f"{name}: " in line for line in lines) == 1, name
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "b.png", "c.png"}
    assert len(read(tmp_path / "out" / "images.json")["images"]) == 3


def test_only_bad_pictures(model_folder, tmp_path, capfd):
    (tmp_path / "empty.jpg").touch()
    assert predict(model_folder, tmp_path / "out", tmp_path / "empty.jpg") == 1
    assert "empty.jpg: is empty" in capfd.readouterr().err
    assert read(tmp_path / "out" / "results.json") == []
    assert read(tmp_path / "out" / "images.json")["images"] == []


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(model_folder, tmp_path, size):
    Image.new("RGB", size, (200, 10, 10)).save(tmp_path / "thin.png")
    assert predict(model_folder, tmp_path / "out", tmp_path / "thin.png") == 0
    assert Image.open(tmp_path / "out" / "thin.png").size == size


def interrupt_after(monkeypatch, num_batches):
    """Let Ctrl-C be pressed when as many batches are done."""
    run_tasks = engine.run_tasks
    calls = []

    def run_some(*args):
        if len(calls) == num_batches:
            raise KeyboardInterrupt
        calls.append(args)
        return run_tasks(*args)

    monkeypatch.setattr(engine, "run_tasks", run_some)


def test_interruption_keeps_what_is_done(model_folder, pictures, tmp_path, monkeypatch, capfd):
    interrupt_after(monkeypatch, 1)
    (pictures / "a0.jpg").touch()
    assert predict(model_folder, tmp_path / "out", pictures, batch_size=2) == 130
    captured = capfd.readouterr()
    assert (
        captured.out.startswith("1 picture, ") and "interrupted" in captured.err and "a0.jpg: is empty" in captured.err
    )
    assert [entry["id"] for entry in read(tmp_path / "out" / "images.json")["images"]] == [1]
    assert {result["image_id"] for result in read(tmp_path / "out" / "results.json")} == {1}


def test_names_are_unique_and_nothing_of_others_is_overwritten(model_folder, pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(pictures / "a.jpg", other / "a.jpg")
    assert predict(model_folder, tmp_path / "out", pictures / "a.jpg", other / "a.jpg") == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "a-2.png"}
    # again: our own files are replaced, not multiplied
    assert predict(model_folder, tmp_path / "out", pictures / "a.jpg", other / "a.jpg") == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "a-2.png"}
    # into the folder of the pictures themselves
    before = (pictures / "b.png").read_bytes()
    Image.new("RGB", (5, 5)).save(pictures / "c.png")
    foreign = (pictures / "c.png").read_bytes()
    assert predict(model_folder, pictures, pictures / "b.png", pictures / "c.jpg") == 0
    assert (pictures / "b.png").read_bytes() == before and (pictures / "c.png").read_bytes() == foreign
    assert (pictures / "b-2.png").exists() and (pictures / "c-2.png").exists()


def damage(folder, name):
    if name == "no folder":
        shutil.rmtree(folder)
    elif name == "no weights":
        (folder / "model.safetensors").unlink()
    elif name == "half of the weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "broken configuration":
        (folder / "config.json").write_text("{")
    elif name == "another model":
        (folder / "config.json").write_text('{"model_type": "detr"}')
    elif name == "too few weights":
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        del weights["model.decoder.norm.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif name == "another size":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32, "intermediate_size": 32}))
    elif name == "no processor":
        (folder / "processor_config.json").unlink()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("no folder", "config.json"),
        ("no weights", "model.safetensors"),
        ("half of the weights", "cut off"),
        ("broken configuration", "config.json"),
        ("another model", "'detr'"),
        ("too few weights", "model.decoder.norm.weight"),
        ("another size", "fit"),
        ("no processor", "processor"),
    ],
)
def test_unusable_models_are_one_line(model_folder, pictures, tmp_path, capfd, name, word):
    folder = tmp_path / "copy"
    shutil.copytree(model_folder, folder)
    damage(folder, name)
    assert predict(folder, tmp_path / "out", pictures) == 2
    error = capfd.readouterr().err
    assert error.startswith("pix2seq predict: error: ") and error.count("\n") == 1, error
    assert str(folder) in error and word in error
    assert not (tmp_path / "out").exists()  # results of an earlier run would be kept


@pytest.mark.parametrize(
    "options",
    [
        *({"threshold": 1.5}, {"batch_size": 0}, {"max_objects": 0}, {"max_points": 2}, {"num_samples": 0}),
        *({"num_captions": 0}, {"frame_step": 0}, {"device": "cuda:99"}, {"device": "abacus"}),
    ],
)
def test_impossible_options_are_one_line(model_folder, pictures, tmp_path, capfd, options):
    assert predict(model_folder, tmp_path / "out", pictures, **options) == 2
    error = capfd.readouterr().err
    [(name, value)] = options.items()
    assert error.startswith(f"pix2seq predict: error: --{name.replace('_', '-')} {value}: ") and error.count("\n") == 1


def test_output_that_is_a_file(model_folder, pictures, tmp_path, capfd):
    (tmp_path / "out").touch()
    assert predict(model_folder, tmp_path / "out", pictures) == 2
    reason = "the folder cannot be made (a file is in its place); choose another --output"
    assert capfd.readouterr().err == f"pix2seq predict: error: {tmp_path / 'out'}: {reason}\n"


def test_ids_come_from_names_as_in_coco(tmp_path):
    def ids(*names):
        return list(number_pictures([tmp_path / name for name in names]).values())

    assert ids("000000000139.jpg", "000000000285.jpg") == [139, 285]
    assert ids("139.jpg", "street.jpg") == [1, 2]
    assert ids("139.jpg", "0139.jpg") == [1, 2]
    assert ids("²³.jpg", "5.jpg") == [1, 2]


def test_weights_of_nobody_are_never_downloaded(tmp_path, pictures, capfd):
    """A model is a folder: a name that looks like one of a hub is not asked for anywhere."""
    assert predict("google/pix2seq", tmp_path / "out", pictures) == 2
    assert "google/pix2seq: is no model folder" in capfd.readouterr().err


def test_no_garbage_is_looked_for_while_libraries_and_weights_are_loaded(model_folder, tmp_path):
    collected = []
    gc.callbacks.append(lambda phase, info: collected.append(phase))
    try:
        was_frequent = gc.get_threshold()
        gc.set_threshold(10)
        prediction.load_model(str(model_folder), "cpu")
        collected_meanwhile = len(collected)
        [[number] for number in range(10_000)]
    finally:
        gc.set_threshold(*was_frequent)
        del gc.callbacks[-1]
    assert len(collected) > collected_meanwhile <= 4  # a few before and after
    with pytest.raises(ValueError):
        prediction.load_model(str(tmp_path), "cpu")
    assert gc.isenabled()


def test_precisions_can_be_changed_and_int8_is_for_processors():
    model = multitask_model(0)
    if "fbgemm" in torch.backends.quantized.supported_engines:
        assert prediction.set_precision(model, "int8").lm_head.use_int8 and model.dtype is torch.float32
    assert prediction.set_precision(model, "bfloat16").dtype is torch.bfloat16 and not model.lm_head.use_int8
    with pytest.raises(ValueError, match="int8 is for processors, and the model is on meta: add --device cpu"):
        prediction.set_precision(model.to("meta"), "int8")
