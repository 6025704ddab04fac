"""A folder exported with its code loads in a new process where the package is not installed."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from pix2seq_hf import export_with_code
from pix2seq_hf.export import add_code, flat_files
from tiny_model import noise_picture, save_tiny_detector

WITHOUT_PACKAGE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pix2seq_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
try:
    import pix2seq_hf
except ImportError:
    pass
else:
    raise SystemExit("the package can still be imported")
folder = sys.argv[1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model, processor = save_tiny_detector(tmp_path_factory.mktemp("plain"), favourite_label=18)
    export_with_code(model, processor, folder)
    noise_picture(400, 500).save(folder / "street.png")
    return folder


def run_without_package(script, folder, tmp_path, **options):
    """Run a script in a new process that cannot import the package; return what it printed, or the failed process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    command = [sys.executable, "-c", WITHOUT_PACKAGE + textwrap.dedent(script), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, **options)


def test_auto_classes_and_pipeline(folder, tmp_path):
    script = """
    import torch
    from PIL import Image
    from transformers import (
        AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoModelForObjectDetection,
        AutoProcessor, pipeline,
    )
    options = {"trust_remote_code": True}
    names = {auto: type(auto.from_pretrained(folder, **options)).__name__ for auto in (
        AutoConfig, AutoModel, AutoModelForObjectDetection, AutoModelForImageTextToText, AutoProcessor,
        AutoImageProcessor,
    )}
    assert list(names.values()) == [
        "Pix2SeqConfig", "Pix2SeqModel", "Pix2SeqForObjectDetection", "Pix2SeqForConditionalGeneration",
        "Pix2SeqProcessor", "Pix2SeqImageProcessor",
    ], names
    pil = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
    assert type(pil).__name__ == "Pix2SeqImageProcessorPil"

    model = AutoModelForImageTextToText.from_pretrained(folder, **options)
    processor = AutoProcessor.from_pretrained(folder, **options)
    image = Image.open(folder + "/street.png")
    output = model.generate(**processor(images=image, task="object_detection", return_tensors="pt"))
    (found,) = processor.post_process_generation(output, target_sizes=[(400, 500)], threshold=0.5)
    assert found["labels"].tolist() == [18] * 4

    batch = processor(images=image, annotations={"image_id": 1, "annotations": []}, return_tensors="pt")
    assert torch.isfinite(model(**batch).loss)

    detector = pipeline("object-detection", model=folder, **options)
    assert {entry["label"] for entry in detector(folder + "/street.png", threshold=0.5)} == {"dog"}

    model.save_pretrained("again")  # what was loaded from a folder can be saved and loaded once more
    processor.save_pretrained("again")
    assert type(AutoModelForImageTextToText.from_pretrained("again", **options)).__name__ == type(model).__name__
    assert type(AutoProcessor.from_pretrained("again", **options)).__name__ == "Pix2SeqProcessor"
    print("done")
    """
    result = run_without_package(script, folder, tmp_path)
    assert result.returncode == 0 and result.stdout.strip() == "done", result.stderr
    complaints = [line for line in result.stderr.splitlines() if "[transformers]" in line or "Warning" in line]
    assert complaints == []


def test_code_is_not_run_unasked(folder, tmp_path):
    script = "from transformers import AutoConfig; AutoConfig.from_pretrained(folder, trust_remote_code=False)"
    result = run_without_package(script, folder, tmp_path, stdin=subprocess.DEVNULL)
    assert result.returncode != 0 and "trust_remote_code=True" in result.stderr


def test_where_the_package_is_installed_its_classes_win(folder):
    script = """
    import sys, pix2seq_hf
    from transformers import AutoModelForObjectDetection, AutoProcessor, pipeline
    for options in ({}, {"trust_remote_code": True}):
        detector = pipeline("object-detection", model=sys.argv[1], **options)
        assert type(detector.model) is pix2seq_hf.Pix2SeqForObjectDetection
        assert type(detector.image_processor) is pix2seq_hf.Pix2SeqImageProcessor
        processor = AutoProcessor.from_pretrained(sys.argv[1], **options)
        assert type(processor) is pix2seq_hf.Pix2SeqProcessor
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr  # stdin is closed: a question would have failed


def test_code_is_only_written_when_asked_for(tmp_path, folder):
    save_tiny_detector(tmp_path)  # after the export of the fixture
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in (tmp_path / "config.json").read_text()
    names = sorted(path.name for path in folder.glob("*.py"))
    assert names == [path.name for path in flat_files()]
    assert {"modeling_pix2seq.py", "task_base.py", "tokenization_pix2seq.py"} <= set(names)
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    for reference in auto_map.values():
        file, name = reference.split(".")
        assert f"class {name}(" in (folder / f"{file}.py").read_text()


def test_code_needs_a_saved_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        add_code(tmp_path)
    assert not list(tmp_path.iterdir())
