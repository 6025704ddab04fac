"""setup.cfg and what it installs: a light import, declared dependencies, every package, the console script."""

import ast
import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"pix2seq_hf": ROOT / "src" / "pix2seq_hf", "pix2seq_hf.conversion": ROOT / "conversion"}

# Names under which a distribution is imported, where it is not its own name.
IMPORT_NAMES = {
    "faster-coco-eval": "faster_coco_eval",
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "protobuf": "google",
    "tensorflow-cpu": "tensorflow",
}
# Programs and plug-ins, which nothing imports: tensorboard serves accelerate, torchvision transformers' image backend.
NOT_IMPORTED = {"ruff", "pytest-timeout", "setuptools", "tensorboard", "torchvision"}


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirement_names(text):
    return {re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0] for line in text.strip().splitlines()}


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_brings_nothing_heavy():
    heavy = (
        "tensorflow",
        "datasets",
        "gradio",
        "matplotlib",
        "torch",
        "torchvision",
        "accelerate",
        "pycocotools",
        "timm",
    )
    loaded = run_python("import sys, pix2seq_hf; print(*sorted({name.split('.')[0] for name in sys.modules}))")
    assert "pix2seq_hf" in loaded
    assert not set(heavy) & set(loaded)


def test_public_names_load():
    assert run_python("import pix2seq_hf; print(all(getattr(pix2seq_hf, name) for name in pix2seq_hf.__all__))") == [
        "True"
    ]


def test_console_script_is_the_command_line():
    from pix2seq_hf import cli

    [script] = importlib.metadata.entry_points(group="console_scripts", name="pix2seq")
    assert script.load() is cli.main


def test_every_package_is_listed(settings):
    listed = set(settings["options"]["packages"].split())
    for name, folder in FOLDERS.items():
        for file in folder.rglob("*.py"):
            package = ".".join((name, *file.parent.relative_to(folder).parts))
            assert package in listed, (
                f"{package} holds {file.name} but is not installed: add it to packages in setup.cfg"
            )


def third_party_imports(folders):
    """Top-level names of other distributions that the Python files in `folders` import."""
    names = set()
    for folder in folders:
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"pix2seq_hf"}


def test_dependencies_are_what_is_imported(settings):
    needed = requirement_names(settings["options"]["install_requires"])
    extras = {name: requirement_names(text) for name, text in settings["options.extras_require"].items()}
    importable = {IMPORT_NAMES.get(name, name) for name in needed.union(*extras.values())}
    missing = third_party_imports(FOLDERS.values()) - importable - {"deepspeed"}  # there if its launcher runs
    assert not missing, f"imported, but not in setup.cfg: {sorted(missing)}"
    imported = third_party_imports([*FOLDERS.values(), ROOT / "tests", ROOT / "benchmarks"])
    unused = {name for name in needed | extras["test"] if IMPORT_NAMES.get(name, name) not in imported} - NOT_IMPORTED
    assert not unused, f"in setup.cfg, but never imported: {sorted(unused)}"


def test_every_requirement_has_a_lower_bound(settings):
    for text in (settings["options"]["install_requires"], *settings["options.extras_require"].values()):
        for line in text.strip().splitlines():
            assert re.fullmatch(r"[\w-]+>=\d+(\.\d+)*", line), line


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "conversion"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    code = "import setuptools.build_meta as backend; print(backend.build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    names = set(zipfile.ZipFile(tmp_path / built.stdout.split()[-1]).namelist())
    about = {name for name in names if re.match(r"pix2seq_hf-[^/]+\.dist-info/", name)}
    assert names - about == {
        f"{package.replace('.', '/')}/{file.relative_to(folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert any(name.endswith("/LICENSE") for name in about)
    for name in ("py.typed", "recipes/accelerate/ddp.yaml", "app/page.py", "conversion/convert.py"):
        assert f"pix2seq_hf/{name}" in names


def test_readme_names_every_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in (*FOLDERS.values(), ROOT / "benchmarks"):
        for file in folder.rglob("*.py"):
            name = file.relative_to(folder).as_posix()
            if file.name != "__init__.py":
                assert f"| `{name}` |" in text, f"README.md has no line for {name}"


def test_readme_and_ci_use_the_same_commands():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^run \w+ '(.+)'$", script, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert f"\n```sh\n{command}\n```\n" in (ROOT / "README.md").read_text(encoding="utf-8")
