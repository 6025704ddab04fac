"""Training of several tasks at once: what each is trained on, how their gradients add up, and recipes of tasks."""

import json

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image

from pix2seq_hf.data.collation import StreamSampler, split_batch
from pix2seq_hf.processing_pix2seq import TASKS
from pix2seq_hf.training.arguments import Recipe, build_recipe, load_recipe, save_recipe
from pix2seq_hf.training.build import (
    build_caption_tokenizer,
    build_dataset,
    build_loader,
    build_model,
    build_optimizer,
    build_schedule,
    open_material,
)
from pix2seq_hf.training.loop import train, train_step

CONFIG = {
    "image_size": [32, 32], "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "drop_path_rate": 0.0, "drop_units_rate": 0.0,
    "vocab_size": 300, "coord_vocab_shift": 110, "quantization_bins": 100, "text_vocab_shift": 210,
    "max_instances_per_image": 3, "max_points_per_object": 6, "max_caption_length": 10, "max_position_embeddings": 20,
    "keypoint_names": ["head", "left", "right"],
}  # fmt: skip
TINY = {
    "model": {"config": CONFIG},
    "data": {"num_workers": 0},
    "optimization": {"learning_rate": 1e-2, "warmup_steps": 2},
    "training": {"batch_size": 2, "steps": 4, "log_steps": 1},
}
ALL_TASKS = {
    "object_detection": {},
    "instance_segmentation": {"max_instances_per_image": 2},
    "keypoint_detection": {},
    "captioning": {"tokenizer_vocab_size": 60, "captions_per_image": 2},
}


def tiny(**sections):
    return build_recipe({name: {**TINY.get(name, {}), **(sections.get(name) or {})} for name in {*TINY, *sections}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures: the first has everything, the second a crowd, the third no person, the fourth captions only."""
    folder = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir()
    (folder / "train2017").mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 40} for i in range(1, 5)]
    for image in images:
        pixels = rng.integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "train2017" / image["file_name"])
    triangle, box = [[4, 4, 30, 6, 20, 28]], [4, 4, 26, 24]
    objects = [(1, 1, 0), (1, 1, 0), (1, 2, 0), (2, 1, 1), (2, 1, 0), (3, 2, 0)]  # picture, label, crowd
    annotations = [
        {
            "id": index, "image_id": image, "category_id": label, "bbox": box, "iscrowd": crowd,
            "segmentation": {"size": [32, 40], "counts": [0, 1280]} if crowd else triangle,
        }
        for index, (image, label, crowd) in enumerate(objects, start=1)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]
    keypoints = [
        {"id": 1, "image_id": 1, "keypoints": [10, 8, 2, 12, 12, 2, 0, 0, 0]},
        {"id": 2, "image_id": 1, "keypoints": [0] * 9},  # a person without keypoints
        {"id": 4, "image_id": 2, "keypoints": [0] * 9},
        {"id": 5, "image_id": 2, "keypoints": [10, 8, 2, 12, 12, 2, 20, 20, 1]},
    ]
    captions = [
        {"id": 1, "image_id": 1, "caption": "two people near a car"},
        {"id": 2, "image_id": 1, "caption": "people and a car"},
        {"id": 3, "image_id": 4, "caption": "a car"},
    ]
    for kind, entries in (("instances", annotations), ("person_keypoints", keypoints), ("captions", captions)):
        content = {"images": images, "annotations": entries, "categories": categories}
        (folder / f"annotations/{kind}_train2017.json").write_text(json.dumps(content))
    return folder


def parts_of(recipe, folder):
    material = open_material(recipe, folder)
    tokenizer = build_caption_tokenizer(recipe, material.split)
    model, processor = build_model(recipe.model, material.split.id2label, list(recipe.tasks), tokenizer)
    return material, model, processor


def first_batch(name, recipe, folder):
    material, model, processor = parts_of(recipe, folder)
    samples = build_dataset(name, recipe, material, model.config)
    loader = build_loader(recipe, name, samples, model.config, processor, 0, 1, Accelerator(cpu=True))
    return next(iter(loader))


# --- Recipes ----------------------------------------------------------------------------------------------------------


def test_sections_say_which_tasks_are_trained(tmp_path):
    assert list(Recipe().tasks) == list(tiny().tasks) == ["object_detection"]
    recipe = tiny(captioning={}, instance_segmentation={})
    assert list(recipe.tasks) == ["instance_segmentation", "captioning"]
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    (tmp_path / "bare.yaml").write_text("captioning:\nkeypoint_detection: {weight: 2}\n")
    recipe = load_recipe(tmp_path / "bare.yaml", ["captioning.captions_per_image=3"])
    assert list(recipe.tasks) == ["keypoint_detection", "captioning"]
    assert recipe.keypoint_detection.weight == 2 and recipe.captioning.captions_per_image == 3
    assert set(tiny(**ALL_TASKS).tasks) == set(TASKS)


def test_defaults_are_those_of_the_reference():
    recipe = tiny(**{name: {} for name in TASKS})
    detection, segmentation, keypoints, captions = recipe.tasks.values()
    assert all((task.weight, task.min_scale) == (1.0, 0.3) for task in recipe.tasks.values())
    assert [task.max_scale for task in recipe.tasks.values()] == [2.0, 1.0, 1.0, 2.0]
    assert [task.use_flip for task in recipe.tasks.values()] == [True, True, False, True]
    assert [task.eos_token_weight for task in recipe.tasks.values()] == [0.1, 1.0, 0.0, 0.1]
    assert (detection.class_label_corruption, detection.noise_bbox_weight) == ("rand_n_fake_cls", 1.0)
    assert (segmentation.max_instances_per_image, segmentation.object_order) == (10, "scores")
    assert (keypoints.invisible_token_weight, keypoints.box_jitter) == (0.1, 0.0)
    assert TASKS["keypoint_detection"].crop_pad_scale(None) == 0.5
    assert (segmentation.point_jitter, segmentation.box_jitter) == (0.0, 0.0)
    assert (captions.captions_per_image, captions.input_seq_drop_rate, captions.color_jitter_strength) == (5, 0.5, 0.5)


def test_batch_sizes_decide_the_length_of_the_run():
    recipe = build_recipe({"instance_segmentation": {"batch_size": 4}, "captioning": {}, "training": {"batch_size": 8}})
    assert recipe.batch_size("instance_segmentation") == 4 and recipe.batch_size("captioning") == 8
    assert recipe.total_steps(100) == 100 * 40 // 4 and recipe.warmup_steps(100) == 2 * 100 // 4


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"captioning": {"batch_size": 0}}, "captioning.batch_size is 0, it must be at least 1"),
        ({"captioning": {"weight": -1}}, "captioning.weight is -1.0, it must be at least 0"),
        (
            {"captioning": {"batch_size": 3}, "training": {"gradient_accumulation_steps": 2}},
            "captioning.batch_size 3 is not divisible by training.gradient_accumulation_steps 2",
        ),
        ({"captioning": {"box_jitter": 1}}, "unknown setting captioning.box_jitter; did you mean"),
        ({"captions": {}}, "unknown setting captions; did you mean captioning?"),
    ],
)
def test_wrong_settings_are_named(sections, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.").replace("?", r"\?")):
        build_recipe(sections)


# --- Data of the tasks ------------------------------------------------------------------------------------------------


def test_every_task_gets_what_it_can_learn_from(folder):
    recipe = tiny(**ALL_TASKS)
    material, model, _ = parts_of(recipe, folder)
    samples = {name: build_dataset(name, recipe, material, model.config).dataset for name in recipe.tasks}
    assert samples["object_detection"].rows["image_id"] == [1, 2, 3]
    assert samples["instance_segmentation"].rows["image_id"] == [1, 2, 3]
    assert samples["keypoint_detection"].objects.tolist() == [[0, 0], [1, 1]]
    assert samples["captioning"].rows["image_id"] == [1, 4]


@pytest.mark.parametrize(
    ("name", "shape", "prompt"),
    [
        ("object_detection", (2, 15), 10),
        ("instance_segmentation", (2, 2, 17), 11),
        ("keypoint_detection", (2, 1, 11), 12),
        ("captioning", (2, 2, 10), 13),
    ],
)
def test_batches(folder, name, shape, prompt):
    batch = first_batch(name, tiny(**ALL_TASKS, data={"image_ids": [1]}), folder)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["labels"].shape == batch["label_weights"].shape == batch["decoder_input_ids"].shape == shape
    first = batch["decoder_input_ids"][..., 0]
    assert set(first.flatten().tolist()) <= ({prompt, 30} if name == "captioning" else {prompt})


def test_nothing_to_learn_from(folder):
    recipe = tiny(keypoint_detection={}, data={"image_ids": [3]})
    with pytest.raises(ValueError, match=r"the data set has no object with keypoints of the labels \[1\]"):
        first_batch("keypoint_detection", recipe, folder)
    recipe = tiny(captioning={"tokenizer": "x"}, data={"image_ids": [2, 3]})
    material = open_material(recipe, folder)
    with pytest.raises(ValueError, match="the data set has no picture with a caption"):
        build_dataset("captioning", recipe, material, build_model(recipe.model, material.split.id2label)[0].config)


@pytest.mark.parametrize(
    ("task", "field", "value", "message"),
    [
        ("instance_segmentation", "max_points_per_object", 8, "max_points_per_object 8 needs 21 positions"),
        ("keypoint_detection", "keypoint_names", list("abcdefgh"), "num_keypoints 8 needs 21 positions"),
        ("captioning", "max_caption_length", 21, "max_caption_length 21 needs 21 positions"),
        (
            "captioning",
            "vocab_size",
            240,
            "the caption tokenizer has .* between text_vocab_shift 210 and vocab_size 240",
        ),
    ],
)
def test_sequences_must_fit(folder, task, field, value, message):
    recipe = tiny(**{task: ALL_TASKS[task]}, model={"config": {**CONFIG, field: value}})
    split = open_material(tiny(**{task: {}}), folder).split
    tokenizer = build_caption_tokenizer(recipe, split)
    with pytest.raises(ValueError, match=message):
        build_model(recipe.model, split.id2label, list(recipe.tasks), tokenizer)


# --- The loop ---------------------------------------------------------------------------------------------------------


def test_one_task_is_the_plain_loop(folder, tmp_path):
    """Bit for bit: the run of one task is forward, backward and a step of the optimiser, nothing else."""
    recipe = tiny()
    train(recipe, folder, tmp_path / "run", show_progress=False)
    torch.manual_seed(recipe.training.seed)
    material, model, processor = parts_of(recipe, folder)
    samples = build_dataset("object_detection", recipe, material, model.config)
    loader = build_loader(recipe, "object_detection", samples, model.config, processor, 0, 4, Accelerator(cpu=True))
    assert isinstance(loader.sampler, StreamSampler)
    optimizer, schedule = build_optimizer(recipe, model), build_schedule(recipe, len(samples))
    for step, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        model(**split_batch(batch)[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    from safetensors.torch import load_file

    trained, state = load_file(tmp_path / "run/final/model.safetensors"), model.state_dict()
    assert [name for name, value in trained.items() if not value.equal(state[name])] == []


class Point(torch.nn.Module):
    """A model whose loss is the distance of its weight from a target, squared."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, target, label_weights):
        return type("Output", (), {"loss": ((self.weight - target) ** 2).sum()})


def batch_of(x, y, weight=1.0):
    beside = {"sample_rows": torch.tensor([0]), "is_bad": torch.tensor([False])}
    return {"target": torch.tensor([x, y]), "label_weights": torch.tensor([weight]), **beside}


def step_of(batches, weights, num_steps=None, limit=None):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=num_steps or len(batches))
    model, optimizer = Point(), None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model, optimizer = accelerator.prepare(model, optimizer)
    streams = {name: iter(parts) for name, parts in batches.items()}
    steps = train_step(accelerator, model, optimizer, streams, weights, limit)
    return {name: step.loss.item() for name, step in steps.items()}, model.weight.tolist()


def test_gradients_are_summed_by_weight():
    batches = {"one": [batch_of(1.0, 0.0)], "two": [batch_of(0.0, 2.0)]}
    losses, moved = step_of(batches, {"one": 1.0, "two": 1.0})
    assert losses == {"one": 1.0, "two": 4.0} and moved == [1.0, 2.0]
    batches = {"one": [batch_of(1.0, 0.0)], "two": [batch_of(0.0, 2.0)]}
    losses, moved = step_of(batches, {"one": 0.5, "two": 3.0})
    assert losses == {"one": 1.0, "two": 4.0} and moved == [0.5, 6.0]  # losses are shown without the weights


def test_parts_of_every_task_are_weighted_by_their_tokens():
    batches = {
        "one": [batch_of(1.0, 0.0, 3.0), batch_of(2.0, 0.0, 1.0)],
        "two": [batch_of(0.0, 1.0), batch_of(0.0, 3.0)],
    }
    losses, moved = step_of(batches, {"one": 1.0, "two": 1.0}, num_steps=4)
    assert losses == {"one": pytest.approx(1.75), "two": pytest.approx(5)}
    assert moved == pytest.approx([1.25, 2.0])


def test_the_sum_is_clipped_not_its_parts():
    batches = {"one": [batch_of(30.0, 0.0)], "two": [batch_of(0.0, 40.0)]}
    _, moved = step_of(batches, {"one": 1.0, "two": 1.0}, limit=1.0)
    assert moved == pytest.approx([0.3, 0.4], rel=1e-4)


def test_all_tasks_at_once(folder, tmp_path):
    import pix2seq_hf

    recipe = tiny(**ALL_TASKS, training={"steps": 40, "batch_size": 2, "checkpoint_steps": 20})
    final = train(recipe, folder, tmp_path / "run", show_progress=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "run/tensorboard"))
    log.Reload()
    series = {name: [entry.value for entry in log.Scalars(f"loss/{name}")] for name in TASKS}
    total = [entry.value for entry in log.Scalars("loss")]
    assert total == pytest.approx(np.sum(list(series.values()), 0), rel=1e-5)
    for name, losses in series.items():
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), name

    model = pix2seq_hf.Pix2SeqForConditionalGeneration.from_pretrained(final)
    processor = pix2seq_hf.Pix2SeqProcessor.from_pretrained(final)
    assert model.config.tasks == list(TASKS) and len(processor.caption_tokenizer) <= 60
    image = Image.open(folder / "train2017/1.png")
    asked = {"boxes": [[[4, 4, 30, 28]]], "labels": [[1]]}
    for name, task in TASKS.items():
        conditions = asked if task.needs_boxes else {}
        inputs = processor(images=image, task=name, return_tensors="pt", **conditions)
        output = model.generate(**inputs)
        (found,) = processor.post_process_generation(output, task=name, target_sizes=[(32, 40)], **conditions)
        assert found

    train(tiny(**ALL_TASKS, training={"steps": 3}), folder, tmp_path / "short", show_progress=False)
    with pytest.raises(ValueError, match=r"cannot be continued, captioning\.weight was 1\.0 and is 2\.0 now"):
        changed = {**ALL_TASKS, "captioning": {**ALL_TASKS["captioning"], "weight": 2}}
        train(tiny(**changed, training={"steps": 3}), folder, tmp_path / "short", resume=True, show_progress=False)


def test_an_interrupted_run_of_all_tasks_continues(folder, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    recipe = tiny(**ALL_TASKS, training={"steps": 4, "batch_size": 2, "checkpoint_steps": 2})
    train(recipe, folder, tmp_path / "straight", show_progress=False)
    steps = []

    def interrupt(*arguments):
        steps.append(None)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return train_step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pix2seq_hf.training.loop.train_step", interrupt)
        train(recipe, folder, tmp_path / "broken", show_progress=False)
    train(recipe, folder, tmp_path / "broken", resume=True, show_progress=False)
    one, other = (load_file(tmp_path / name / "final/model.safetensors") for name in ("straight", "broken"))
    assert [name for name in one if not one[name].equal(other[name])] == []


def test_fine_tuning_keeps_tokenizer_and_skeleton(folder, tmp_path):
    recipe = tiny(captioning=ALL_TASKS["captioning"], training={"steps": 3})
    final = train(recipe, folder, tmp_path / "first", show_progress=False)
    recipe = build_recipe({**TINY, "model": {"pretrained": str(final)}, "captioning": {}, "keypoint_detection": {}})
    assert parts_of(recipe, folder)[1].config.num_keypoints == 3
    tokenizer = build_caption_tokenizer(recipe, open_material(recipe, folder).split)
    assert (
        tokenizer.get_vocab()
        == parts_of(tiny(captioning=ALL_TASKS["captioning"]), folder)[2].caption_tokenizer.get_vocab()
    )


def test_a_recipe_of_the_package_trains_all_tasks():
    recipe = load_recipe("overfit_tasks")
    assert set(recipe.tasks) == set(TASKS)
    assert yaml.safe_load(yaml.safe_dump(recipe.model.config))["max_points_per_object"] == 50
