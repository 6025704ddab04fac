"""Drawn scenes as a data set without files: a split of some, or a stream without end that processes share."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.inspection import find_tasks
from pix2seq_hf.data.rows import TASK_FEATURES
from pix2seq_hf.data.scene_folder import write_scenes
from pix2seq_hf.data.scene_source import SceneDataset, parse_name
from pix2seq_hf.data.scenes import SceneOptions
from pix2seq_hf.data.sources import find_layout, list_splits, open_split, open_stream
from pix2seq_hf.training.arguments import load_recipe
from pix2seq_hf.training.caption_tokenizer import train_caption_tokenizer
from pix2seq_hf.training.loop import train

PROJECT_ROOT = Path(__file__).resolve().parents[1]
DATA = "scenes:size=64x80,objects=1-4,seed=2"
ALL = list(TASK_FEATURES)


def whole(row):
    return [None]


def people(row):
    return [index for index, count in enumerate(row["num_keypoints"]) if count]


def samples(dataset, num, num_workers=0):
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=num_workers)
    return [sample for sample, _ in zip(loader, range(num), strict=False)]


def dataset_of(samples_of=whole, batch_size=4, **options):
    return SceneDataset(open_stream(DATA, "train", tasks=ALL), samples_of, 0, batch_size, **options)


def test_names(tmp_path, monkeypatch):
    assert parse_name("scenes") == (0, SceneOptions())
    assert parse_name(DATA) == (2, SceneOptions(image_size=(64, 80), num_objects=(1, 4)))
    assert find_layout("scenes") == find_layout(DATA) == "scenes"
    assert list_splits(DATA) == ["train", "val"] and find_tasks(DATA, "val") == ALL
    monkeypatch.chdir(tmp_path)
    write_scenes("scenes", "train", 1, options=SceneOptions(image_size=(64, 64)), num_workers=1)
    assert find_layout("scenes") == "coco"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("scenes:size", "write options as NAME=VALUE"),
        ("scenes:seed=x", "seed 'x' is no whole number"),
        ("scenes:kind=3", "scenes:kind=3: scenes have no option 'kind'"),
        ("scenes:objects=0", "num_objects 0 to 0"),
        ("scenes", "has no end: say how many with max_images"),
    ],
)
def test_names_that_cannot_be(data, message):
    with pytest.raises(ValueError, match=message):
        open_split(data, "train")


def test_a_split_is_what_the_folder_holds(tmp_path):
    write_scenes(tmp_path, "val", 6, 2, parse_name(DATA)[1], num_workers=1)
    written, drawn = read_coco(tmp_path, "val", tasks=ALL), open_split(DATA, "val", max_images=6, tasks=ALL)
    assert drawn.id2label == written.id2label
    for number in range(6):
        first, second = written.dataset[number], drawn.dataset[number]
        assert {**first, "image": None} == {**second, "image": None}
        assert torch.equal(written.load(number)["image"], drawn.load(number)["image"])
    for each in ("annotations", "keypoint_annotations", "caption_annotations"):
        assert getattr(written, each)["annotations"] == getattr(drawn, each)["annotations"]
    some = open_split(DATA, "val", image_ids=[5, 2])
    assert some.dataset["image_id"] == [5, 2] and "captions" not in some.dataset.column_names


def test_every_sample_is_another_scene_in_the_same_order_for_any_workers():
    alone = samples(dataset_of(), 12)
    assert [key.row for key, _ in alone] == list(range(12))
    assert len({record["image"].numpy().tobytes() for _, record in alone}) == 12
    shared = [samples(dataset_of(process=process, num_processes=2), 6) for process in (0, 1)]
    batches = [shared[process][start : start + 2] for start in (0, 2, 4) for process in (0, 1)]
    for (key, record), (other_key, other) in zip(alone, [one for batch in batches for one in batch], strict=True):
        assert key == other_key and torch.equal(record["image"], other["image"])
    (key, record), *_ = samples(dataset_of(start=8), 1)
    assert key == alone[8][0] and torch.equal(record["image"], alone[8][1]["image"])


def test_workers_draw_their_own_batches_only():
    loader = torch.utils.data.DataLoader(
        dataset_of(), batch_size=4, num_workers=2, collate_fn=lambda batch: [key.row for key, _ in batch]
    )
    assert [rows for rows, _ in zip(loader, range(4), strict=False)] == np.arange(16).reshape(4, 4).tolist()


def test_there_is_someone_where_keypoints_are_learnt():
    for _, record in samples(dataset_of(people), 10):
        index = record["object_index"]
        assert record["num_keypoints"][index] > 0 and record["labels"][index] == 1


def test_the_first_scenes_again_and_again():
    stream = open_stream(DATA, "train", tasks=ALL, max_images=3)
    keys = [key for key, _ in samples(SceneDataset(stream, whole, 0, 2), 5)]
    assert [tuple(key) for key in keys] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_a_tokenizer_of_a_stream_knows_all_words():
    few = open_stream("scenes:size=64,objects=1,diameters=30-50", "train", tasks=ALL)
    tokenizer = train_caption_tokenizer(few.some_captions(), 256)
    for caption in (
        "Many purple umbrellas and six people.",
        "A picture of a crowd of fish above a gray boat.",
    ):
        assert tokenizer.decode(tokenizer.encode(caption)) == caption
        assert len(tokenizer.encode(caption)) < 28


def test_other_skeletons_are_refused():
    with pytest.raises(ValueError, match="people have COCO's 17 keypoints, not 5"):
        open_stream("scenes", "train", tasks=["keypoint_detection"], num_keypoints=5)


RECIPE = """
model:
  config: {image_size: [64, 64], patch_size: 16, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
    intermediate_size: 16, decoder_hidden_size: 16, decoder_num_hidden_layers: 1, decoder_num_attention_heads: 2,
    decoder_intermediate_size: 16, vocab_size: 620, coord_vocab_shift: 120, quantization_bins: 60,
    text_vocab_shift: 200, max_instances_per_image: 4, max_points_per_object: 16, max_caption_length: 16,
    max_position_embeddings: 48}
data: {streaming: true, num_workers: 0}
object_detection:
instance_segmentation: {max_instances_per_image: 2}
keypoint_detection:
captioning: {tokenizer_vocab_size: 300}
optimization: {warmup_steps: 1}
training: {batch_size: 2, steps: 4, checkpoint_steps: 2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: its recipe and its model."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "mine.yaml")
    return recipe, train(recipe, DATA, folder / "straight", show_progress=False)


def test_training_on_scenes_goes_on_where_it_was(run, tmp_path, monkeypatch):
    recipe, straight = run
    steps, read = [], SceneDataset._sample

    def interrupt(self, number):
        steps.append(number)
        if len(steps) == 4 * 2 * 3 + 1:  # four tasks with two samples, after three steps
            raise KeyboardInterrupt
        return read(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SceneDataset, "_sample", interrupt)
        train(recipe, DATA, tmp_path / "broken", show_progress=False)
    broken = train(recipe, DATA, tmp_path / "broken", resume=True, show_progress=False)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (straight, broken)]
    assert weights[0] == weights[1]


def test_the_benchmark_counts_facts_of_what_the_model_says(run, capsys):
    spec = importlib.util.spec_from_file_location("box_model", PROJECT_ROOT / "benchmarks/box_model.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.main(["--speed", "--count", "3", "--data", DATA]) == 0
    assert "scenes a second" in capsys.readouterr().out
    assert benchmark.main(["--model", str(run[1]), "--count", "2", "--data", DATA]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("average precision") for line in lines)
    assert lines[-1].startswith("facts, all") and " right" in lines[-1]


def test_a_trained_model_is_packed_with_its_lessons_figures_and_curves(run, tmp_path):
    run_folder = Path(run[1]).parent
    spec = importlib.util.spec_from_file_location("pack_box_model", PROJECT_ROOT / "benchmarks/pack_box_model.py")
    packing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packing)
    facts, packed = tmp_path / "facts.json", tmp_path / "packed"
    facts.write_text(json.dumps({"class": [3, 4], "count": [0, 0], "all": [3, 4]}))
    arguments = ["--runs", str(run_folder), "--facts", str(facts), "--output", str(packed)]
    assert packing.main(arguments) == 0 and packing.main(arguments) == 0  # over what was there
    card = (packed / "README.md").read_text()
    assert f"`{run_folder.name}`" in card and "| all | 3 of 4 | 75.0% |" in card and "| count |" not in card
    assert card.index("**Lessons**") < card.index("## Classes") and str(tmp_path) not in card
    assert packing.main([*arguments, "--on"]) == 0  # a lesson more: the earlier ones stay
    assert (packed / "README.md").read_text().count(f"| `{run_folder.name}` |") == 2
    with pytest.raises(SystemExit):
        packing.main(["--on", "--json", str(facts), "--output", str(packed)])
    with Image.open(packed / "curves.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    weights, whole = load_file(packed / "model.safetensors"), load_file(Path(run[1]) / "model.safetensors")
    assert weights.keys() == whole.keys() and weights["model.decoder.norm.weight"].dtype is torch.bfloat16
    assert json.loads((packed / "config.json").read_text())["dtype"] == "float32"
    model = AutoModelForImageTextToText.from_pretrained(packed)
    assert model.model.decoder.norm.weight.equal(whole["model.decoder.norm.weight"].bfloat16().float())
