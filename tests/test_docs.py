"""docs/: every block of code is run, every command is parsed, the site is built without warnings or a network."""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

import pix2seq_hf
from pix2seq_hf import TASKS, cli, default_model, demo
from pix2seq_hf.data.scene_things import SCENE_CLASSES
from pix2seq_hf.evaluation import command as evaluation
from pix2seq_hf.training.arguments import load_recipe
from tiny_multitask import save_multitask

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Which module declares the options of a script.
SCRIPTS = {"train": "train", "evaluate": "evaluate", "predict": "predict-dataset", "convert": "convert"}


class Block(NamedTuple):
    language: str
    line: int
    code: str


def blocks(page, *languages):
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [Block(match[1], text[: match.start()].count("\n") + 2, match[2]) for match in BLOCK.finditer(text)]
    assert text.count("\n```") + text.startswith("```") == 2 * len(found), f"{page} has a block without a language"
    return [block for block in found if block.language in languages]


@pytest.fixture(scope="session")
def some_model(tmp_path_factory):
    """The model in the box, or, where the package has none, an untrained one that knows the same classes."""
    if Path(default_model.DEFAULT_MODEL, "model.safetensors").is_file():
        return default_model.DEFAULT_MODEL
    folder = tmp_path_factory.mktemp("box") / "model"
    save_multitask(folder, max_instances_per_image=4, id2label=SCENE_CLASSES)
    return str(folder)


@pytest.fixture
def desk(tmp_path, monkeypatch, some_model):
    """An empty folder, as newcomers have it."""
    monkeypatch.chdir(tmp_path)
    for module in (pix2seq_hf, default_model, demo):
        monkeypatch.setattr(module, "DEFAULT_MODEL", some_model, raising=False)
    monkeypatch.setattr(evaluation, "DEFAULT_MODEL", some_model)
    return tmp_path


def write_recipes(page):
    """Write the YAML blocks of a page, whose first line is their name; return the names."""
    names = []
    for block in blocks(page, "yaml"):
        name = re.match(r"# ([\w-]+\.yaml)\n", block.code)
        assert name, f"{page}:{block.line}: the first line must be the name of the file"
        Path(name[1]).write_text(block.code, encoding="utf-8")
        names.append(name[1])
    return names


def centers_are_found(results, scenes):
    """Whether every object of the scenes is found within a bin, by its class and its place."""
    for found, scene in zip(results, scenes, strict=True):
        there = [(item["category_id"], item["bbox"]) for item in scene.objects]
        written = zip(found["labels"].tolist(), found["centers"].tolist(), strict=True)
        for (label, (x, y)), (category, (left, top, width, height)) in zip(written, there, strict=True):
            if label != category or abs(left + width / 2 - x) > 1 or abs(top + height / 2 - y) > 1:
                return False
    return True


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
CHECKS = {
    "index.md": lambda names: names["result"].tasks == tuple(TASKS),
    "tour.md": lambda names: names["mask"].shape == (320, 320) and len(names["asked"].objects[0].keypoints) == 17,
    "how-to/own-data.md": lambda names: names["split"].id2label == {1: "red cell"} and len(names["split"].dataset) == 3,
    "how-to/own-skeleton.md": lambda names: names["points"].shape == (1, 5, 3) and Path("bird.png").is_file(),
    "how-to/own-task.md": lambda names: centers_are_found(names["results"], names["scenes"]),
    "how-to/multi-task.md": lambda names: len(names["result"].captions) == 1,
    "how-to/export.md": lambda names: type(names["detector"]).__name__ == "Pix2SeqForObjectDetection",
}  # fmt: skip


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page, desk):
    write_recipes(page)
    tasks, names = dict(TASKS), {"__name__": "page"}
    torch.manual_seed(0)
    try:
        for block in blocks(page, "python"):
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(DOCS / page), "exec"), names)
        assert CHECKS.get(page, lambda names: True)(names)
    finally:
        for name in set(TASKS) - set(tasks):
            del TASKS[name]


def test_python_of_the_readme_runs(desk):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    use = text[text.index("\n## Use it\n") : text.index("\n## What `predict` writes\n")]
    found, names = [match[2] for match in BLOCK.finditer(use) if match[1] == "python"], {"__name__": "page"}
    assert len(found) == 5
    for code in found:
        exec(compile(code, "README.md", "exec"), names)
    assert Path("found.png").is_file() and Path("seen.png").is_file()
    assert names["config"].id2label == {1: "cat", 2: "dog"} and names["result"].tasks == tuple(TASKS)


def test_the_checks_are_those_of_pages():
    assert set(CHECKS) <= set(WITH_PYTHON)


def commands_of(page):
    """Every command in the shell blocks of a page that is ours: its line, its name and its arguments."""
    for block in blocks(page, "sh"):
        text = block.code.replace("\\\n", "  ")
        for number, line in enumerate(text.splitlines()):
            for part in re.split(r"&&|\|(?!\|)|;", line):
                part = re.sub(r"\$\(pix2seq ([^)]*)\)", "FILE", part)
                words = shlex.split(part.partition(" > ")[0], comments=True)
                scripts = [word for word in words if re.fullmatch(r"scripts/\w+\.py", word)]
                if words[:1] == ["pix2seq"]:
                    yield f"{page}:{block.line + number}", words[1], words[2:]
                elif scripts:
                    name = SCRIPTS[Path(scripts[0]).stem]
                    yield f"{page}:{block.line + number}", name, words[words.index(scripts[0]) + 1 :]
            for inner in re.findall(r"\$\(pix2seq ([^)]*)\)", line):
                yield f"{page}:{block.line + number}", *((words := shlex.split(inner))[:1]), words[1:]


COMMANDS = [command for page in PAGES for command in commands_of(page)]


@pytest.mark.parametrize(("where", "name", "arguments"), COMMANDS, ids=[f"{c[0]}-{c[1]}" for c in COMMANDS])
def test_commands_have_options_that_exist(where, name, arguments, capsys):
    if name == "--help":
        return
    module = importlib.import_module(cli.COMMANDS[name].module)
    try:
        args = cli.build_parser(name, module).parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0, f"{where}: {capsys.readouterr().err}"
        return
    if name == "train" and not args.recipe.endswith(".yaml"):
        load_recipe(args.recipe, args.overrides)
    for option in ("tasks", "task"):
        value = getattr(args, option, None)
        assert value is None or {*value.split(",")} <= {"all", *TASKS}, where


def test_commands_of_the_tour_run(desk, capsys):
    """All but those that train, need a released checkpoint, or wait for visitors; on fewer pictures."""
    ran = []
    for where, name, arguments in COMMANDS:
        if (
            where.startswith("tour.md:")
            and name in ("demo", "predict", "data", "evaluate")
            and "vit-b" not in arguments
        ):
            arguments = ["2" if argument in ("200", "8") else argument for argument in arguments]
            options = {"demo": ["--count", "1"], "data": [] if "inspect" in arguments else ["--quiet"]}
            assert cli.main([name, *arguments, *options.get(name, ["--quiet"])]) == 0, where
            ran.append(name)
    assert ran == ["demo", "data", "predict", "data", "data", "evaluate"]
    assert Path("pix2seq-demo/found.png").is_file() and Path("sheet.png").is_file()
    assert {path.name for path in Path("found").iterdir()} >= {"000001.png", "000002.png", "results.json"}
    assert Path("measured/object_detection.json").is_file() and Path("report/object_detection.html").is_file()


def test_the_commands_are_found():
    assert {name for _, name, _ in COMMANDS} >= {*cli.COMMANDS} - {"card", "demo"}
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_recipes_load(page, desk):
    for name in write_recipes(page):
        recipe = load_recipe(name)
        assert recipe.tasks and recipe.training.batch_size


def test_recipes_of_how_tos_train_what_they_say(desk):
    write_recipes("how-to/own-skeleton.md")
    assert set(load_recipe("birds.yaml").tasks) == {"object_detection", "keypoint_detection"}
    write_recipes("how-to/multi-task.md")
    assert set(load_recipe("all.yaml").tasks) == set(TASKS)
    assert load_recipe("mixed.yaml").data.others[0].path == "cells"


def test_every_command_and_exit_code_is_explained():
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    for name in cli.COMMANDS:
        assert f"| `pix2seq {name}` |" in text
    codes = re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)
    assert codes == ["0", "1", "2", "130", "143"]
    assert set(codes) - {"143"} == set(re.findall(r"^  (\d+) ", cli.EXIT_CODES, flags=re.MULTILINE))
    assert "(143: " in cli.EXIT_CODES


def test_the_changelog_knows_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert pix2seq_hf.__version__ in headings
    assert len(headings) == len(set(headings))


def test_pictures_are_drawn_and_described(tmp_path):
    done = subprocess.run(
        [sys.executable, DOCS / "draw_pictures.py", tmp_path], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in (DOCS / "pictures").iterdir()}
    for name in drawn:
        with Image.open(tmp_path / name) as new, Image.open(DOCS / "pictures" / name) as old:
            assert new.size == old.size, f"{name} looks different now: python docs/draw_pictures.py"
    shown = set()
    for page in PAGES:
        for description, target in re.findall(r"!\[(.*?)\]\((.*?)\)", (DOCS / page).read_text(encoding="utf-8")):
            assert len(description) > 20
            shown.add(Path(target).name)
    assert shown == drawn


def test_api_pages_name_what_is_public():
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES if page.startswith("api/"))
    internal = {
        "Pix2SeqPreTrainedModel",
        "Pix2SeqImageProcessor",
        "Pix2SeqImageProcessorPil",
        "TASKS",
        "load_rgb_image",
    }
    for name in set(pix2seq_hf.PUBLIC_NAMES) - internal:
        assert f".{name}\n" in text, f"no page of docs/api has {name}"


def test_docstrings_of_the_house_are_read():
    griffe = pytest.importorskip("griffe", reason='the documentation\'s tools are not installed: pip install ".[docs]"')
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    text = docstrings.rewrite(
        "Read [`~data.hub.read`].\n\nArgs:\n"
        "    first (`torch.Tensor` of shape `(2,)`): One.\n"
        "    second, third\n        (`int`, *optional*, defaults to 3): Two.\n"
        "    config ([`Pix2SeqConfig`]): Three.\nReturns:\n    `int`.\nRaises:\n    ValueError: If not."
    )
    summary, arguments, returned, raised = griffe.Docstring(text).parse("google", warnings=False)
    assert summary.value == "Read `data.hub.read`."
    assert [(item.name, str(item.annotation)) for item in arguments.value] == [
        ("first", "torch.Tensor of shape (2,)"), ("second, third", "int, optional, default 3"),
        ("config", "Pix2SeqConfig"),
    ]  # fmt: skip
    assert returned.kind.value == "returns" and raised.value[0].annotation == "ValueError"


class Loaded(HTMLParser):
    """What a page makes a browser load."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(attributes.get("src") or "")
        elif tag == "link" and attributes.get("rel") in ("stylesheet", "preconnect", "preload", "icon"):
            self.addresses.append(attributes.get("href") or "")


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings", "griffe")),
    reason='the documentation\'s tools are not installed: pip install ".[docs]"',
)
def test_the_site_builds_without_warnings_and_without_a_network(tmp_path):
    # A proxy that is not there: whatever asks the network fails.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        found = Loaded()
        found.feed(page.read_text(encoding="utf-8"))
        outside = [address for address in found.addresses if re.match(r"(https?:)?//", address)]
        assert not outside, f"{page.relative_to(tmp_path)} loads {outside}"
        assert "--8<--" not in page.read_text(encoding="utf-8")
    assert not list((tmp_path / "site").rglob("*.py"))


def test_no_other_page_is_left_out():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert f"- {page}\n" in text, f"mkdocs.yml does not list {page}"
