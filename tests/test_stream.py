"""Training from a stream: every sample once an epoch, the same batches whatever the workers, and after a stop."""

import itertools
import shutil

import datasets
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.convert import convert_splits
from pix2seq_hf.data.shapes import write_shapes
from pix2seq_hf.data.sources import open_stream
from pix2seq_hf.data.stream import StreamDataset
from pix2seq_hf.training.arguments import build_recipe
from pix2seq_hf.training.build import build_dataset, build_loader, build_model, open_material
from pix2seq_hf.training.loop import train

RECIPE = {
    "model": {
        "config": {
            "image_size": [32, 32], "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32, "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32,
            "vocab_size": 240, "coord_vocab_shift": 110, "quantization_bins": 100, "max_instances_per_image": 3,
            "max_position_embeddings": 15,
        }
    },
    "data": {"split": "train", "streaming": True, "shuffle_buffer": 4, "num_workers": 0},
    "optimization": {"learning_rate": 1e-2, "warmup_steps": 2},
    "training": {"batch_size": 2, "steps": 8, "log_steps": 2, "checkpoint_steps": 3},
}  # fmt: skip


def recipe_with(**sections):
    return build_recipe({name: {**RECIPE[name], **sections.get(name, {})} for name in RECIPE})


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    """At every end of a stream `datasets` waits five seconds for its threads."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Seven drawn pictures, with their pixels, in two parquet files."""
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder / "coco", "train", 7, seed=0, image_size=(32, 32), max_objects=2)
    split = read_coco(folder / "coco", "train")
    convert_splits(folder / "coco", {"train": split}, folder / "parquet", shard_bytes=2000)
    return folder / "parquet"


def test_every_sample_once_an_epoch(parquet):
    stream = open_stream(parquet, "train")
    samples = StreamDataset(stream, lambda row: [None], seed=0, batch_size=2, buffer_size=3)
    keys = list(itertools.islice(samples, 21))
    epochs = [[record["image_id"] for _, record in keys[first : first + 7]] for first in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(1, 8)) for epoch in epochs) and len(set(map(tuple, epochs))) == 3
    assert [key for key, _ in keys[7:9]] == [(1, 0), (1, 1)]
    samples.start = 10
    again = list(itertools.islice(samples, 4))
    assert [record["image_id"] for _, record in again] == [record["image_id"] for _, record in keys[10:14]]
    objects = StreamDataset(stream, lambda row: list(range(len(row["labels"]))), seed=0, batch_size=2, buffer_size=3)
    key, record = next(iter(objects))
    assert key == (0, 0) and record["object_index"] == 0
    with pytest.raises(ValueError, match="has nothing to learn from"):
        next(iter(StreamDataset(stream, lambda row: [], seed=0, batch_size=2)))


def test_workers_change_nothing(parquet):
    batches = {}
    for num_workers in (0, 2):
        recipe = recipe_with(data={"num_workers": num_workers})
        material = open_material(recipe, parquet)
        model, processor = build_model(recipe.model, material.split.id2label)
        samples = build_dataset("object_detection", recipe, material, model.config)
        loader = build_loader(recipe, "object_detection", samples, model.config, processor, 1, 8, Accelerator(cpu=True))
        batches[num_workers] = list(itertools.islice(loader, 4))
    for one, other in zip(batches[0], batches[2], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_from_a_stream_goes_on(parquet, tmp_path):
    train(recipe_with(), parquet, tmp_path / "straight", show_progress=False)
    train(recipe_with(), parquet, tmp_path / "broken", show_progress=False)
    shutil.rmtree(tmp_path / "broken/final")
    shutil.rmtree(tmp_path / "broken/checkpoints/step-6")
    train(recipe_with(), parquet, tmp_path / "broken", show_progress=False)
    one, other = (load_file(tmp_path / name / "final/model.safetensors") for name in ("straight", "broken"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_what_a_stream_cannot_do(parquet, tmp_path):
    with pytest.raises(ValueError, match=r"data\.streaming goes without data\.others and data.image_ids"):
        train(recipe_with(data={"image_ids": [1]}), parquet, tmp_path / "run")
