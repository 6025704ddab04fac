"""Recipes and the training loop on drawn pictures: it learns, repeats itself, resumes, and refuses nonsense."""

import json

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors import safe_open

from pix2seq_hf import cli
from pix2seq_hf.data.shapes import SHAPE_CLASSES, write_shapes
from pix2seq_hf.training import command
from pix2seq_hf.training.arguments import Recipe, build_recipe, load_recipe, save_recipe
from pix2seq_hf.training.build import build_model
from pix2seq_hf.training.loop import train, train_step

TINY = {
    "model": {
        "config": {
            "image_size": [32, 32],
            "patch_size": 8,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
            "vocab_size": 240,
            "coord_vocab_shift": 110,
            "quantization_bins": 100,
            "max_instances_per_image": 4,
            "max_position_embeddings": 20,
        }
    },
    "data": {"num_workers": 0},
    "optimization": {"learning_rate": 1e-2, "warmup_steps": 2},
    "training": {"batch_size": 4, "steps": 6, "log_steps": 2},
}


def tiny(**sections):
    """The tiny recipe with some settings changed: `tiny(training={"steps": 3})`."""
    return build_recipe({name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder, "train2017", 6, seed=0, image_size=(32, 32), max_objects=2)
    return folder


def final_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "final/model.safetensors")


def assert_same_weights(first, second):
    first, second = final_weights(first), final_weights(second)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


# --- Recipes ----------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_reference():
    recipe = build_recipe({})
    assert recipe == Recipe()
    assert recipe.optimization.learning_rate == 3e-5 and recipe.optimization.weight_decay == 0.05
    assert (recipe.optimization.beta1, recipe.optimization.beta2, recipe.optimization.eps) == (0.9, 0.95, 1e-8)
    assert recipe.total_steps(118_287) == 147_858 and recipe.warmup_steps(118_287) == 7_392


def test_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(TINY))
    recipe = load_recipe(
        path,
        [
            "training.steps=9e0",
            "optimization.learning_rate=3e-4",
            "model.config.hidden_size=24",
            "data.image_ids=[3, 4]",
            "training.checkpoint_steps=null",
            "training.mixed_precision=no",
            "optimization.exclude_from_weight_decay=[bias, norm]",
            "object_detection.noise_bbox_weight=0",
        ],
    )
    assert recipe.training.steps == 9 and recipe.optimization.learning_rate == 3e-4
    assert recipe.model.config["hidden_size"] == 24 and recipe.model.config["patch_size"] == 8
    assert recipe.data.image_ids == [3, 4] and recipe.training.mixed_precision == "no"
    assert recipe.optimization.exclude_from_weight_decay == ["bias", "norm"]
    assert recipe.object_detection.noise_bbox_weight == 0.0


def test_a_saved_recipe_is_the_same_recipe(tmp_path):
    recipe = tiny(data={"image_ids": [1]}, optimization={"eps": 1e-10})
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    "override, message",
    [
        ("trainig.steps=3", "unknown setting trainig; did you mean training?"),
        ("training.batchsize=3", "unknown setting training.batchsize; did you mean training.batch_size?"),
        (
            "model.config.hiden_size=3",
            "unknown setting model.config.hiden_size; did you mean model.config.hidden_size?",
        ),
        ("training.steps=soon", "training.steps must be a whole number, not 'soon'"),
        ("training.steps=2.5", "training.steps must be a whole number, not 2.5"),
        ("training.steps=true", "training.steps must be a whole number, not True"),
        ("training.steps=0", "training.steps is 0, it must be at least 1"),
        ("optimization.learning_rate=fast", "optimization.learning_rate must be a number, not 'fast'"),
        ("object_detection.use_flip=1", "object_detection.use_flip must be true or false, not 1"),
        ("data.image_ids=[a]", "data.image_ids must be a whole number, not 'a'"),
        ("training=3", "training must be a section"),
        ("training.steps.more=3", "steps has no settings in it"),
        ("training.steps", "write key=value"),
        ("data.image_ids=[1", "not valid YAML"),
        ("training.mixed_precision=half", "use no, bf16 or fp16"),
        ("model.preset=vit-x", "choose one of vit-b, vit-l, resnet, resnet-c"),
        ("training.gradient_accumulation_steps=3", "batch_size 4 is not divisible by .* 3"),
        (
            "training.learning_rate=1",
            "unknown setting training.learning_rate; did you mean optimization.learning_rate?",
        ),
        ("data.hidden_size=8", "unknown setting data.hidden_size; did you mean model.config.hidden_size?"),
        ("optimization.batch_size=8", "did you mean training.batch_size?"),
        ("optimization.learning_rate=-1", "optimization.learning_rate is -1.0, it must be at least 0"),
        ("optimization.weight_decay=nan", "optimization.weight_decay is nan, it must be at least 0"),
        ("optimization.beta1=2", "optimization.beta1 is 2.0, it must be between 0 and 1"),
        ("training.steps=1.5e0", "training.steps must be a whole number, not '1.5e0'"),
        (
            "object_detection.object_order=scores",
            "object_detection.object_order 'scores': use one of random, area, none",
        ),
    ],
)
def test_wrong_settings_are_named(tmp_path, override, message):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**TINY, "training": {"batch_size": 4, "steps": 3}}))
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(tmp_path / "mine.yaml", [override])
    assert "\n" not in str(caught.value)


# --- The loop ---------------------------------------------------------------------------------------------------------


def test_it_learns_and_saves_what_from_pretrained_needs(scenes, tmp_path):
    import pix2seq_hf

    recipe = tiny(
        model={"config": {**TINY["model"]["config"], "drop_path_rate": 0.0, "drop_units_rate": 0.0}},
        data={"max_images": 2},
        object_detection={"min_scale": 1.0, "max_scale": 1.0, "use_flip": False},
        training={"steps": 80, "log_steps": 1},
    )
    final = train(recipe, scenes, tmp_path / "run", show_progress=False)
    losses = read_scalars(tmp_path / "run", "loss")
    assert len(losses) == 80 and sum(losses[-5:]) < 0.5 * sum(losses[:5])
    rates = read_scalars(tmp_path / "run", "learning_rate")
    assert rates[0] == 0 and max(rates) == pytest.approx(1e-2) and rates[-1] < 1e-3

    model = pix2seq_hf.Pix2SeqForConditionalGeneration.from_pretrained(final)
    processor = pix2seq_hf.Pix2SeqProcessor.from_pretrained(final)
    assert model.config.id2label == SHAPE_CLASSES == processor.vocabulary.id2label
    assert model.config.label2id["star"] == 4
    output = model.generate(pixel_values=torch.zeros(1, 3, 32, 32))
    assert output.sequences.shape == (1, 1 + 4 * 5) and output.class_labels.shape == (1, 4)
    assert load_recipe(tmp_path / "run/recipe.yaml") == recipe.with_split("train2017")


def read_scalars(run, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    return [entry.value for entry in log.Scalars(name)]


def test_the_seed_decides(scenes, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny(training={"steps": 3, "seed": seed}), scenes, tmp_path / name, show_progress=False)
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")


class Interrupted(Exception):
    pass


def test_an_interrupted_run_continues_to_the_same_weights(scenes, tmp_path, monkeypatch):
    """With dropout, and in mid-epoch: 3 steps of 4 pictures are two epochs of 6."""
    recipe = tiny(training={"checkpoint_steps": 3})
    assert recipe.model.config.get("drop_units_rate", 0.1) > 0
    train(recipe, scenes, tmp_path / "straight", show_progress=False)

    steps = []

    def interrupt(*arguments):
        steps.append(None)
        if len(steps) == 5:
            raise Interrupted
        return train_step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("pix2seq_hf.training.loop.train_step", interrupt)
        train(recipe, scenes, tmp_path / "broken", show_progress=False)
    assert [path.name for path in (tmp_path / "broken/checkpoints").iterdir()] == ["step-3"]
    with pytest.raises(ValueError, match="has a run already; continue it with --resume"):
        train(recipe, scenes, tmp_path / "broken", resume=False, show_progress=False)
    with pytest.raises(ValueError, match=r"cannot be continued, training\.batch_size was 4 and is 2 now"):
        train(tiny(training={"checkpoint_steps": 3, "batch_size": 2}), scenes, tmp_path / "broken", resume=True)
    with pytest.raises(ValueError, match=r"has 6 steps and 5 are asked for: a run can be prolonged, not shortened"):
        train(tiny(training={"checkpoint_steps": 3, "steps": 5}), scenes, tmp_path / "broken", resume=True)
    train(recipe, scenes, tmp_path / "broken", resume=True, show_progress=False)
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")


def test_cutting_a_batch_into_parts_changes_nothing(scenes, tmp_path):
    no_dropout = {"config": {**TINY["model"]["config"], "drop_path_rate": 0.0, "drop_units_rate": 0.0}}
    for parts in (1, 2, 4):
        recipe = tiny(model=no_dropout, training={"steps": 4, "gradient_accumulation_steps": parts, "log_steps": 1})
        train(recipe, scenes, tmp_path / str(parts), show_progress=False)
    whole = read_scalars(tmp_path / "1", "loss")
    for parts in ("2", "4"):
        assert read_scalars(tmp_path / parts, "loss") == pytest.approx(whole, rel=1e-4)


def test_clipping(scenes):
    class Square(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))

        def forward(self, label_weights):
            return type("Output", (), {"loss": (self.weight**2).sum()})

    moves = {}
    for limit in (None, 1.0):
        model = Square()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        batch = {"label_weights": torch.ones(1), "sample_rows": torch.zeros(1), "is_bad": torch.tensor([False])}
        batches = {"object_detection": iter([batch])}
        steps = train_step(Accelerator(cpu=True), model, optimizer, batches, {"object_detection": 1.0}, limit)
        assert steps["object_detection"].loss.item() == 25
        moves[limit] = (torch.tensor([3.0, 4.0]) - model.weight).norm().item()
    assert moves[None] == pytest.approx(10) and moves[1.0] == pytest.approx(1, abs=1e-4)


def test_a_loss_that_is_not_finite_ends_the_run(scenes, tmp_path):
    """With the step, the task, the pictures, and the batch, from which the loss can be computed again."""
    recipe = tiny(optimization={"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(ValueError, match=r"^step 2: the loss of object_detection is nan, .* pictures \d") as caught:
        train(recipe, scenes, tmp_path / "run", show_progress=False)
    assert "\n" not in str(caught.value)
    path = tmp_path / "run/failed/step-2-object_detection-0.safetensors"
    assert str(path) in str(caught.value)
    with safe_open(path, "pt") as file:
        facts = {name: json.loads(value) for name, value in file.metadata().items()}
        assert facts["step"] == 2 and len(facts["image_ids"]) == 4
        batch = {name.removeprefix("0/"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    model, _ = build_model(recipe.model, SHAPE_CLASSES)
    assert model(**batch).loss.isfinite()  # it was the weights that went wrong, not the batch
    ends = json.loads((tmp_path / "run/run.json").read_text())["starts"]
    assert ends[0]["end"].startswith("ValueError: step 2") and ends[0]["end_step"] >= 2


def test_settings_that_do_not_fit_together(scenes, tmp_path):
    config = {**TINY["model"]["config"], "max_instances_per_image": 5}
    with pytest.raises(ValueError, match="max_instances_per_image 5 needs 25 positions, max_position_embeddings is 20"):
        train(tiny(model={"config": config}), scenes, tmp_path / "run")
    config = {**TINY["model"]["config"], "hidden_size": 17, "intermediate_size": 34}
    with pytest.raises(ValueError, match=r"^hidden_size must be even, got 17$"):
        train(tiny(model={"config": config}), scenes, tmp_path / "run")
    config = {**TINY["model"]["config"], "coord_vocab_shift": 105}
    with pytest.raises(ValueError, match="105"):  # six classes need tokens up to 106
        train(tiny(model={"config": config}), scenes, tmp_path / "run")
    with pytest.raises(ValueError, match=r"no steps left to decay in: training\.steps 6, optimization\.warmup_steps 6"):
        train(tiny(optimization={"warmup_steps": 6}), scenes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_log_that_is_not_there_is_said_before_the_start(scenes, tmp_path):
    with pytest.raises(ValueError, match=r"training\.log_with: nothing is unknown or not installed; there are "):
        train(tiny(training={"log_with": ["nothing"]}), scenes, tmp_path / "run")


def test_fine_tuning_starts_from_a_trained_model(scenes, tmp_path):
    train(tiny(training={"steps": 3}), scenes, tmp_path / "first", show_progress=False)
    recipe = build_recipe({"model": {"pretrained": str(tmp_path / "first/final"), "config": {"drop_path_rate": 0.0}}})
    model, processor = build_model(recipe.model, SHAPE_CLASSES)
    weights = final_weights(tmp_path / "first")
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert model.config.id2label == SHAPE_CLASSES == processor.vocabulary.id2label
    assert model.config.drop_path_rate == 0.0 and model.config.hidden_size == 16


def test_command(scenes, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TINY))
    parser = cli.build_parser("train", command)
    arguments = ["--recipe", str(tmp_path / "mine.yaml"), "--data", str(scenes), "--output", str(tmp_path / "run")]
    assert command.run(parser.parse_args([*arguments, "--set", "training.steps=3"])) == 0
    assert capsys.readouterr().out == f"trained: {tmp_path / 'run/final'}\n"
    assert {path.name for path in (tmp_path / "run/final").iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "processor_config.json",
    }  # fmt: skip
