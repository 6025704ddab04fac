"""The Auto classes know Pix2Seq after `import pix2seq_hf`, which itself imports next to nothing."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForObjectDetection,
    AutoProcessor,
)

import pix2seq_hf
from tiny_model import save_tiny_detector

CLASSES = [
    (AutoConfig, "Pix2SeqConfig"),
    (AutoModel, "Pix2SeqModel"),
    (AutoModelForObjectDetection, "Pix2SeqForObjectDetection"),
    (AutoModelForImageTextToText, "Pix2SeqForConditionalGeneration"),
    (AutoProcessor, "Pix2SeqProcessor"),
    (AutoImageProcessor, "Pix2SeqImageProcessor"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    save_tiny_detector(folder)
    return folder


def run_python(script, *arguments):
    """Run a script in a new process and return what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("auto, name", CLASSES, ids=[name for _, name in CLASSES])
def test_folders_load(folder, auto, name):
    assert type(auto.from_pretrained(folder)) is getattr(pix2seq_hf, name)


def test_image_processor_backends(folder):
    loaded = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert type(loaded) is pix2seq_hf.Pix2SeqImageProcessorPil


def test_a_saved_folder_is_whole(folder, tmp_path):
    model, processor = save_tiny_detector(tmp_path)
    again = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert again.generation_config.task_settings == model.generation_config.task_settings != {}
    assert again.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    assert AutoProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("order", ["before", "after"])
def test_import_order_does_not_matter(folder, order):
    library = "from transformers import AutoConfig, AutoModelForObjectDetection, AutoProcessor, pipeline"
    package = "import pix2seq_hf"
    first, second = (package, library) if order == "before" else (library, package)
    script = f"""
    import sys
    {first}
    {second}
    assert type(AutoConfig.from_pretrained(sys.argv[1])) is pix2seq_hf.Pix2SeqConfig
    assert type(AutoProcessor.from_pretrained(sys.argv[1])) is pix2seq_hf.Pix2SeqProcessor
    detector = pipeline("object-detection", model=sys.argv[1])
    assert type(detector.model) is pix2seq_hf.Pix2SeqForObjectDetection
    """
    run_python(script, folder)


def test_the_library_still_finds_its_own(folder):
    assert AutoConfig.for_model("detr").model_type == "detr"
    with pytest.raises(ValueError, match="pix2seq"):  # listed among the known ones
        AutoConfig.for_model("no such model")


def test_import_is_lazy():
    script = """
    import sys
    import pix2seq_hf
    heavy = {"torch", "torchvision", "transformers", "numpy", "PIL", "datasets", "tensorflow", "gradio", "matplotlib"}
    print(sorted(heavy & set(sys.modules)))
    assert set(pix2seq_hf.__all__) <= set(dir(pix2seq_hf))
    assert not any(name in vars(pix2seq_hf) for name in pix2seq_hf.PUBLIC_NAMES)
    """
    assert run_python(script).strip() == "[]"


def test_nothing_heavy_comes_with_the_classes():
    script = """
    import sys
    import pix2seq_hf
    for name in pix2seq_hf.PUBLIC_NAMES:
        getattr(pix2seq_hf, name)
    print(sorted({"datasets", "tensorflow", "gradio", "matplotlib"} & set(sys.modules)))
    """
    assert run_python(script).strip() == "[]"


def test_public_names_exist():
    for name in pix2seq_hf.PUBLIC_NAMES:
        assert getattr(pix2seq_hf, name).__class__ is not None
    with pytest.raises(AttributeError, match="no attribute 'Pix2SeqNothing'"):
        pix2seq_hf.Pix2SeqNothing  # noqa: B018
