"""How does a checkpoint folder carry its code, so that it loads with `trust_remote_code=True` without this package?

An explicit step, not part of `save_pretrained`: with code in it, a folder makes transformers ask whether to run it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

SOURCE_FOLDER = Path(__file__).parent
# Which class the Auto classes find in the copied files, per JSON file of the folder.
CONFIG_AUTO_MAP = {
    "AutoConfig": "configuration_pix2seq.Pix2SeqConfig",
    "AutoModel": "modeling_pix2seq.Pix2SeqModel",
    "AutoModelForObjectDetection": "modeling_pix2seq.Pix2SeqForObjectDetection",
    "AutoModelForImageTextToText": "modeling_pix2seq.Pix2SeqForConditionalGeneration",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_pix2seq.Pix2SeqProcessor"}
IMAGE_PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_pix2seq.Pix2SeqImageProcessor",
        "pil": "image_processing_pix2seq.Pix2SeqImageProcessorPil",
    }
}
ENTRY_FILES = ("configuration_pix2seq", "modeling_pix2seq", "processing_pix2seq", "image_processing_pix2seq")


def flat_files() -> list[Path]:
    """The source files that a checkpoint needs: the entry files and everything they import from beside them."""
    files = set()
    for name in ENTRY_FILES:
        entry = SOURCE_FOLDER / f"{name}.py"
        files.update([entry, *map(Path, get_relative_import_files(str(entry)))])
    return sorted(files)


def export_with_code(model: Any, processor: Any, folder: str | os.PathLike, **save_options) -> list[Path]:
    r"""Save a model and its processor together with the code that they need.

    ```python
    export_with_code(model, processor, "street-detector")
    # elsewhere, without this package:
    AutoModelForObjectDetection.from_pretrained("street-detector", trust_remote_code=True)
    ```

    Args:
        model ([`Pix2SeqPreTrainedModel`]): Any of the heads.
        processor ([`Pix2SeqProcessor`]): The model's processor.
        folder (`str` or `os.PathLike`): Made if it is missing.
        **save_options: Passed to the model's `save_pretrained`.
    Returns:
        `list[Path]`: The copied source files."""
    folder = Path(folder)
    model.save_pretrained(folder, **save_options)
    processor.save_pretrained(folder)
    return add_code(folder)


def add_code(folder: str | os.PathLike) -> list[Path]:
    r"""Copy the code into a saved checkpoint folder, and name its classes in the folder's JSON files.

    Args:
        folder (`str` or `os.PathLike`): With `config.json` and `processor_config.json`.
    Returns:
        `list[Path]`: The copied source files.
    Raises:
        FileNotFoundError: If the folder is not that of a saved model and processor."""
    folder = Path(folder)
    config, processor = (_read_json(folder / name) for name in ("config.json", "processor_config.json"))
    config["auto_map"] = CONFIG_AUTO_MAP
    processor["auto_map"] = PROCESSOR_AUTO_MAP
    processor["image_processor"]["auto_map"] = IMAGE_PROCESSOR_AUTO_MAP
    copied = [Path(shutil.copy(file, folder)) for file in flat_files()]
    _write_json(folder / "config.json", config)
    _write_json(folder / "processor_config.json", processor)
    return copied


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, save the model and its processor into the folder first")
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict[str, Any]):
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["add_code", "export_with_code"]
