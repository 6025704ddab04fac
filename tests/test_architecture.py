"""The house rules that a machine can check: what travels with a checkpoint, who imports whom, sizes of files."""

import ast
import re
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pix2seq_hf"

# The ordinary files beside the flat ones. Whatever else stands in the package folder travels with a checkpoint.
ORDINARY = {
    "__init__", "benchmark", "card", "cli", "completion", "contact_sheet", "default_model", "demo", "demo_training",
    "engine", "export", "given_boxes", "outputs", "pipelines", "prediction", "prediction_dataset", "prediction_folder",
    "prediction_shards", "progress", "registration", "results", "streaming", "timed_run", "visualization",
}  # fmt: skip
FLAT_FILES = sorted(path for path in PACKAGE.glob("*.py") if path.stem not in ORDINARY)
FLAT_LIBRARIES = {"torch", "torchvision", "transformers", "huggingface_hub", "numpy", "PIL", "pycocotools"}
OPTIONAL_LIBRARIES = {"torchvision", "pycocotools"}

SOURCES = [path for folder in (ROOT / "src", ROOT / "conversion", ROOT / "scripts", ROOT / "benchmarks") for path in
           sorted(folder.rglob("*.py"))]  # fmt: skip
ALL_FILES = SOURCES + sorted((ROOT / "tests").rglob("*.py"))

# Which parts of the package a part may import; `cli`, `demo`, the scripts and `*/command.py` may import everything.
MAY_IMPORT = {
    "flat": {"flat"},
    "data": {"data", "flat"},
    "evaluation": {"evaluation", "visualization", "contact_sheet", "progress", "flat"},
    "training": {"training", "data", "evaluation", "contact_sheet", "outputs", "progress", "flat"},
    "outputs": set(),
    "progress": set(),
    "default_model": set(),
    "benchmark": {"data", "default_model", "engine", "evaluation", "given_boxes", "outputs", "prediction", "progress"}
    | {"timed_run", "flat"},
    "card": {"default_model", "flat"},
    "completion": {"cli", "conversion", "training", "flat"},
    "conversion": {"conversion", "flat", "export", "outputs", "progress"},
    "visualization": {"flat"},
    "contact_sheet": {"visualization", "flat"},
    "results": {"visualization", "flat"},
    "given_boxes": {"flat"},
    "engine": {"given_boxes", "results", "flat"},
    "timed_run": {"engine", "results"},
    "streaming": {"engine", "given_boxes", "results", "flat"},
    "pipelines": {"engine", "given_boxes", "results", "streaming", "flat"},
    "prediction": {"data", "default_model", "engine", "given_boxes", "outputs", "prediction_folder"}
    | {"progress", "flat"},
    "prediction_dataset": {"data", "command", "default_model", "engine", "prediction", "prediction_shards"}
    | {"progress", "flat"},
    "prediction_folder": {"data", "results", "flat"},
    "prediction_shards": {"prediction_folder", "results", "flat"},
    "app": {"app", "data", "default_model", "engine", "given_boxes", "prediction_folder", "results", "streaming"}
    | {"visualization", "flat"},
    "export": {"flat"},
    "registration": {"flat"},
}
# Roots of the flat layer: they know nothing of ours.
ROOTS = ["configuration_pix2seq", "tokenization_pix2seq", "image_processing_pix2seq", "task_base"]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path):
    """The dotted name that a source file is imported by."""
    if path.is_relative_to(ROOT / "conversion"):
        parts = ("pix2seq_hf", "conversion", *path.relative_to(ROOT / "conversion").with_suffix("").parts)
    else:
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def part_of(module):
    """Which part of the package a dotted name, given as a tuple, belongs to."""
    if len(module) == 1:
        return "__init__"
    if (PACKAGE / f"{module[1]}.py") in FLAT_FILES:
        return "flat"
    return "command" if module[-1] == "command" else module[1]


def imports_of(path):
    """Every module that a file imports anywhere in it, as `(absolute dotted name as a tuple, imported names, node)`."""
    module = module_of(path) if path.is_relative_to(ROOT / "src") or path.is_relative_to(ROOT / "conversion") else ()
    package = module if path.name == "__init__.py" else module[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split(".")), [], node
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield (*base, *(node.module.split(".") if node.module else ())), [alias.name for alias in node.names], node


def ours(path):
    """The modules of this package that a file imports, `from package import module` resolved to the module."""
    for module, names, _ in imports_of(path):
        if module and module[0] == "pix2seq_hf":
            for name in names or [None]:
                is_module = name and any(
                    (folder.joinpath(*module[len(prefix) :], name)).with_suffix(".py").exists()
                    for prefix, folder in (
                        (("pix2seq_hf", "conversion"), ROOT / "conversion"),
                        (("pix2seq_hf",), PACKAGE),
                    )
                    if module[: len(prefix)] == prefix
                )
                yield (*module, name) if is_module else module


def defined_names(path):
    """Names that exist at the top of a file after it was imported."""
    names = set()
    for node in tree_of(path).body:
        for inner in ast.walk(node) if isinstance(node, (ast.If, ast.Try)) else [node]:
            if isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
                names.add(inner.name)
            elif isinstance(inner, (ast.Import, ast.ImportFrom)):
                names.update(alias.asname or alias.name.split(".")[0] for alias in inner.names)
            elif isinstance(inner, (ast.Assign, ast.AnnAssign)):
                targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
                names.update(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
    return names


def test_the_files_are_found():
    assert {"configuration_pix2seq", "modeling_pix2seq", "task_base"} <= {path.stem for path in FLAT_FILES}
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", FLAT_FILES, ids=lambda path: path.stem)
def test_flat_files_can_travel_with_a_checkpoint(path):
    siblings = {}
    for module, names, node in imports_of(path):
        where = f"{name_of(path)}:{node.lineno}"
        if getattr(node, "level", 0):
            assert node.level == 1 and node.module and "." not in node.module, (
                f"{where}: write `from .sibling import X`"
            )
            assert PACKAGE / f"{node.module}.py" in FLAT_FILES, (
                f"{where}: {node.module} does not travel with a checkpoint"
            )
            missing = set(names) - defined_names(PACKAGE / f"{node.module}.py")
            assert not missing, f"{where}: {node.module} has no {missing}"
            siblings[node.module] = where
        else:
            assert module[0] in FLAT_LIBRARIES | set(sys.stdlib_module_names), f"{where}: {module[0]} is not allowed"
    # What transformers' regular expressions find in the text is what is really imported: no docstring misleads them.
    assert set(get_relative_imports(str(path))) == set(siblings)
    assert set(get_imports(str(path))) <= FLAT_LIBRARIES - OPTIONAL_LIBRARIES | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FLAT_FILES, ids=lambda path: path.stem)
def test_no_line_of_a_flat_file_begins_like_another_import(path):
    tree = tree_of(path)
    imported = {
        line
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for line in range(node.lineno, node.end_lineno + 1)
    }
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if number not in imported:
            assert not re.match(r"\s*(from\s+\S+\s+import|import\s+\S+\s*$)", line), f"{name_of(path)}:{number}: {line}"


@pytest.mark.parametrize("name", ROOTS)
def test_roots_of_the_flat_layer_import_nothing_of_ours(name):
    assert list(ours(PACKAGE / f"{name}.py")) == []


def test_flat_files_do_not_import_in_circles():
    graph = {path.stem: {module[1] for module in ours(path)} for path in FLAT_FILES}
    while free := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"these import each other: {sorted(graph)}"


@pytest.mark.parametrize("path", [path for path in SOURCES if not path.is_relative_to(ROOT / "scripts")], ids=name_of)
def test_imports_point_in_the_allowed_directions(path):
    if path.is_relative_to(ROOT / "benchmarks"):
        pytest.skip("a benchmark may import everything")
    allowed = MAY_IMPORT.get(part_of(module_of(path)))
    for module in ours(path):
        part = part_of(module)
        assert allowed is None or part in allowed or part == "__init__", f"{name_of(path)} imports {'.'.join(module)}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_tensorflow_stays_in_the_conversion(path):
    if not path.is_relative_to(ROOT / "conversion"):
        assert "tensorflow" not in {module[0] for module, _, _ in imports_of(path) if module}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_gradio_stays_in_the_web_page(path):
    if path != PACKAGE / "app" / "page.py":
        assert "gradio" not in {module[0] for module, _, _ in imports_of(path) if module}


@pytest.mark.parametrize("path", ALL_FILES, ids=name_of)
def test_files_answer_one_question(path):
    text = path.read_text(encoding="utf-8")
    assert path.stem.removeprefix("test_") not in {"utils", "misc", "helpers", "common"}
    assert len(text.splitlines()) <= 800, f"{name_of(path)} is answering two questions"
    if path in SOURCES:
        assert ast.get_docstring(tree_of(path)), f"{name_of(path)} does not say which question it answers"


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
