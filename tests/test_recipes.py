"""The recipes that ship with the package, what builds on what, and `pix2seq recipes`."""

import subprocess
import sys

import pytest
import yaml

from pix2seq_hf import cli
from pix2seq_hf.configuration_pix2seq import PRESETS, Pix2SeqConfig
from pix2seq_hf.training.arguments import RECIPES, list_recipes, load_recipe, read_settings
from pix2seq_hf.training.recipes_command import FOLDER, list_files, summary_of

# Average precision of the released detectors at 640, 1024 and 1333 pixels, as published with them.
PUBLISHED = {
    "resnet": ("resnet", 39.1, 41.7, 42.6),
    "resnet_c": ("resnetc", 44.7, 46.9, 47.3),
    "vit_b": ("vit_b", 44.2, 46.5, 47.1),
    "vit_l": ("vit_l", 47.6, 49.2, 50.0),
}
ALL = ("object_detection", "instance_segmentation", "keypoint_detection", "captioning")


def text_of(name):
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def write(folder, name, text):
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def configuration(recipe, **pretrained):
    """The network of a recipe; for one that starts from a pretrained model, with that model's sizes."""
    sizes = PRESETS[recipe.model.preset] if recipe.model.preset else pretrained
    return Pix2SeqConfig(**{**sizes, **recipe.model.config, "tasks": list(recipe.tasks)})


# --- The files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_says_its_command_hardware_and_figure(name):
    head = [line for line in text_of(name).split("\n\n")[0].splitlines() if line.startswith("#")]
    assert head[1] == "#" and len(summary_of(RECIPES / f"{name}.yaml")) <= 95
    assert head[2].startswith("# command:  ")
    start = [line[:12] for line in head]
    assert start.index("# command:  ") < start.index("# hardware: ") < start.index("# expected: ")
    assert all(len(line) <= 124 for line in text_of(name).splitlines())
    recipe = load_recipe(name)
    config = configuration(recipe)
    assert (
        config.max_position_embeddings >= 5 * config.max_instances_per_image or "object_detection" not in recipe.tasks
    )


@pytest.mark.parametrize("size, column", [(640, 1), (1024, 2), (1333, 3)])
@pytest.mark.parametrize("network", PUBLISHED)
def test_fine_tuning_of_the_released_detectors(network, size, column):
    name = f"coco_{network}_{size}"
    recipe, text = load_recipe(name), text_of(name)
    assert f"AP {PUBLISHED[network][column]} on val2017" in text and "NOT RUN HERE" in text
    assert f"--checkpoint obj365_pretrain/{PUBLISHED[network][0]}_640x640_b256_s400k --output" in text
    assert f"--output {recipe.model.pretrained}\n" in text and f"--recipe {name} " in text
    assert recipe.model.config["image_size"] == [size, size]
    # The reference's config_det_finetune.py.
    optimization, training, detection = recipe.optimization, recipe.training, recipe.object_detection
    assert (optimization.learning_rate, optimization.end_lr_factor, optimization.warmup_epochs) == (3e-5, 0.01, 2)
    assert (optimization.weight_decay, optimization.beta1, optimization.beta2, optimization.eps) == (
        0.05,
        0.9,
        0.95,
        1e-8,
    )
    assert (training.batch_size, training.epochs, optimization.learning_rate_schedule) == (32, 40, "linear")
    assert (detection.min_scale, detection.max_scale, detection.object_order) == (0.3, 2.0, "random")
    assert (detection.noise_bbox_weight, detection.eos_token_weight) == (1.0, 0.1)
    assert detection.class_label_corruption == "rand_n_fake_cls"
    assert list(recipe.tasks) == ["object_detection"]


def test_the_multi_task_mix():
    recipe = load_recipe("multi_task_640")
    assert list(recipe.tasks) == list(ALL)
    weights = {name: settings.weight for name, settings in recipe.tasks.items()}
    assert weights == dict(zip(ALL, (0.1782, 0.7128, 0.01, 0.099), strict=True)) and sum(weights.values()) == 1.0
    assert (recipe.optimization.learning_rate, recipe.optimization.warmup_epochs) == (1e-4, 10)
    assert (recipe.training.batch_size, recipe.training.epochs) == (128, 100)
    larger = load_recipe("multi_task_1024")
    assert larger.model.config == {**recipe.model.config, "image_size": [1024, 1024]}
    assert larger.tasks == recipe.tasks


def test_there_is_a_recipe_for_every_kind_of_run():
    names = set(list_recipes())
    assert {"multi_task_640", "coco_scratch", "objects365", "voc", "captions", "laptop", "bccd", "demo"} <= names
    assert list(load_recipe("captions").tasks) == ["captioning"]
    assert configuration(load_recipe("coco_scratch")).quantization_bins == 2000
    assert load_recipe("objects365").total_steps(1_700_000) == 400_000
    assert load_recipe("voc").model.pretrained == "vit-b"


# --- Recipes that build on others -------------------------------------------------------------------------------------


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path):
    write(tmp_path, "first", "model: {config: {hidden_size: 24, patch_size: 8}}\ntraining: {steps: 5, seed: 3}\n")
    path = write(
        tmp_path, "second", "base: first.yaml\nmodel: {config: {patch_size: 4}}\ntraining: {steps: 9}\ndata:\n"
    )
    recipe = load_recipe(path, ["training.seed=4"])
    assert recipe.model.config == {"hidden_size": 24, "patch_size": 4}
    assert (recipe.training.steps, recipe.training.seed) == (9, 4)


def test_an_empty_section_does_not_empty_that_of_the_base(tmp_path):
    write(tmp_path, "first", "training: {steps: 5}\ndata: {image_ids: [1, 2, 3]}\n")
    recipe = load_recipe(write(tmp_path, "second", "base: first.yaml\ntraining:\ndata: {image_ids: [4]}\n"))
    assert recipe.training.steps == 5 and recipe.data.image_ids == [4]
    recipe = load_recipe(write(tmp_path, "third", "base: first.yaml\ntraining: {steps: null}\n"))
    assert recipe.training.steps is None


def test_null_takes_a_task_away(tmp_path):
    write(tmp_path, "first", "captioning: {batch_size: 2}\nobject_detection: {weight: 3}\nkeypoint_detection:\n")
    path = write(tmp_path, "second", "base: first.yaml\ncaptioning: null\nobject_detection:\n")
    recipe = load_recipe(path)
    assert list(recipe.tasks) == ["object_detection", "keypoint_detection"] and recipe.object_detection.weight == 3
    assert list(load_recipe(path, ["keypoint_detection=null"]).tasks) == ["object_detection"]
    assert list(load_recipe(write(tmp_path, "third", "base: second.yaml\ncaptioning: {}\n")).tasks)[-1] == "captioning"
    with pytest.raises(ValueError, match=r"third.yaml: evaluation.tasks: 'captioning' is not trained"):
        load_recipe(write(tmp_path, "third", "base: second.yaml\nevaluation: {tasks: [captioning]}\n"))


def test_who_is_to_blame_for_a_wrong_setting(tmp_path):
    path = write(tmp_path, "mine", "training: {batch_size: 4}\n")
    wrong = "training.gradient_accumulation_steps=3"
    with pytest.raises(ValueError, match=f"^--set {wrong}: training.batch_size 4 is not divisible"):
        load_recipe(path, ["training.seed=1", wrong])
    with pytest.raises(ValueError, match=r"^--set training.steps=x: training.steps must be a whole number, not 'x'$"):
        load_recipe(path, ["training.seed=1", "training.steps=x"])
    path = write(tmp_path, "wrong", "training: {batch_size: four}\n")
    with pytest.raises(ValueError, match=r"^\S+wrong.yaml: training.batch_size must be a whole number, not 'four'$"):
        load_recipe(path, ["training.seed=1"])
    assert load_recipe(path, ["training.batch_size=4"]).training.batch_size == 4


def test_a_base_of_the_package_and_a_task_more(tmp_path):
    path = write(tmp_path, "mine", "base: coco_vit_b_640\nmodel: {pretrained: here}\ncaptioning:\n")
    recipe = load_recipe(path)
    assert recipe.model.pretrained == "here" and recipe.training.batch_size == 32
    assert list(recipe.tasks) == ["object_detection", "captioning"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nothing\n", r"mine\.yaml: base nothing: no such recipe"),
        ("base: ovrfit\n", r"did you mean overfit\?"),
        ("base: [overfit]\n", r"base must be the name of a recipe or a \.yaml file, not \['overfit'\]"),
        ("base: mine.yaml\n", "recipes build on each other: mine -> mine"),
        ("base: other.yaml\n", "recipes build on each other: mine -> other -> mine"),
        ("base: overfit\ntrainin: {}\n", "unknown setting trainin; did you mean training"),
        ("- base\n", "a recipe has sections"),
    ],
)
def test_bases_that_cannot_be(tmp_path, text, message):
    write(tmp_path, "other", "base: mine.yaml\n")
    with pytest.raises((ValueError, OSError), match=message):
        load_recipe(write(tmp_path, "mine", text))


def test_the_base_is_no_setting(tmp_path):
    with pytest.raises(ValueError, match="unknown setting base"):
        load_recipe("overfit", ["base=laptop"])
    assert "base" not in read_settings(RECIPES / "coco_vit_l_1333.yaml")


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_list_has_a_line_for_every_file(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_files()) and FOLDER == RECIPES
    assert set(list_recipes()) <= set(list_files())
    for line in lines:
        assert len(line.split()) > 3 and len(line) <= 130, line
    assert any(line.startswith("bccd ") and "blood cells" in line for line in lines)


def test_a_recipe_is_printed_as_it_is(capsys):
    assert cli.main(["recipes", "coco_vit_l_1024"]) == 0
    assert capsys.readouterr().out == text_of("coco_vit_l_1024")


def test_a_recipe_is_printed_with_every_setting(capsys, tmp_path):
    assert cli.main(["recipes", "coco_vit_l_1024", "--resolved", "--set", "training.steps=7"]) == 0
    path = write(tmp_path, "resolved", capsys.readouterr().out)
    assert load_recipe(path) == load_recipe("coco_vit_l_1024", ["training.steps=7"])
    settings = yaml.safe_load(path.read_text())
    assert settings["training"]["seed"] == 0 and settings["model"]["pretrained"] == "obj365-vit-l"


def test_the_path_of_a_recipe(capsys, tmp_path):
    assert cli.main(["recipes", "laptop", "--path"]) == 0
    assert capsys.readouterr().out == f"{RECIPES / 'laptop.yaml'}\n"
    mine = write(tmp_path, "mine", "# Mine.\ntraining: {steps: 3}\n")
    assert cli.main(["recipes", str(mine)]) == 0
    assert capsys.readouterr().out == mine.read_text() and summary_of(mine) == "Mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lapttop"], "lapttop: no such recipe; did you mean laptop?"),
        (["--resolved"], "--resolved needs the name of a recipe"),
        (["laptop", "--set", "training.steps=3"], "--set goes with --resolved"),
        (["laptop", "--resolved", "--set", "training.step=3"], "unknown setting training.step; did you mean"),
        (["accelerate/ddp", "--resolved"], "accelerate/ddp.yaml: is no recipe, but how processes are started: for acc"),
    ],
)
def test_wrong_questions_are_one_line(arguments, message, capsys):
    assert cli.main(["recipes", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_the_list_needs_neither_torch_nor_transformers():
    code = "import sys; from pix2seq_hf import cli; cli.main(['recipes']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
