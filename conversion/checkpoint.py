"""What is in a TensorFlow checkpoint of the reference: the only file that imports TensorFlow."""

import glob
import json
import os
import re
from pathlib import Path

import numpy as np

from pix2seq_hf.conversion.names import KEY_SUFFIX

INSTALL_HINT = 'pip install "pix2seq_hf[conversion]"'
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_FILE_ENDING = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")


def find_checkpoint(path: str | os.PathLike) -> Path:
    r"""Find the checkpoint that a path means, and check that all of its files are there.

    Args:
        path (`str` or `os.PathLike`):
            A reference model directory (the checkpoint that its `checkpoint` file names is taken, else the only one
            there), a checkpoint prefix such as `.../ckpt-100`, or one of its files.
    Returns:
        `Path`: The prefix; the files are `<prefix>.index` and `<prefix>.data-00000-of-00001`, ...
    Raises:
        ValueError: If there is no checkpoint, or a file of it is missing."""
    path = Path(path)
    if path.is_dir():
        prefix = _find_in_directory(path)
    else:
        prefix = path.with_name(_FILE_ENDING.sub("", path.name))
    index = prefix.with_name(prefix.name + ".index")
    shards = _list_shards(prefix)
    if not index.is_file():
        what = "has data but no index" if shards else "is neither a model directory nor a checkpoint"
        raise ValueError(f"{prefix} {what}: there is no file {index}")
    if not shards:
        raise ValueError(f"the checkpoint {prefix} is incomplete: there is no file {prefix}.data-00000-of-00001")
    count = int(shards[0].name[-5:])
    if len(shards) != count:
        raise ValueError(f"the checkpoint {prefix} is incomplete: {len(shards)} of its {count} data files are there")
    if index.stat().st_size == 0:
        raise ValueError(f"the checkpoint {prefix} is damaged: {index} is empty; fetch it again")
    return prefix


def is_checkpoint_path(path: str | os.PathLike) -> bool:
    """Whether something of a checkpoint is at a path, be it complete or not."""
    path = Path(path)
    return path.exists() or path.with_name(path.name + ".index").exists() or bool(_list_shards(path))


def parse_checkpoint_file(text: str) -> str:
    r"""Return the name of the latest checkpoint from the text of a `checkpoint` file, without its folders.

    Raises:
        ValueError: If the text names none."""
    match = re.search(r'^\s*model_checkpoint_path:\s*"([^"]+)"', text, re.MULTILINE)
    name = re.split(r"[/\\]", match.group(1))[-1] if match else ""
    if not name or name in (".", ".."):
        raise ValueError("it has no line 'model_checkpoint_path: \"...\"'")
    return name


def read_reference_config(prefix: Path) -> dict:
    r"""Read the `config.json` beside a checkpoint.

    Raises:
        ValueError: If it is missing or is not JSON."""
    path = prefix.parent / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: put the config.json of the checkpoint beside it") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise ValueError(f"{path} is not a JSON file ({error})") from error


def read_model_variables(prefix: str | os.PathLike) -> dict[str, np.ndarray]:
    r"""Read the weights of the network from a checkpoint; the optimizer's state and the counters are left out.

    Args:
        prefix (`str` or `os.PathLike`): As returned by [`find_checkpoint`].
    Returns:
        `dict[str, np.ndarray]`: By key without `/.ATTRIBUTES/VARIABLE_VALUE`; all keys start with `model/`.
    Raises:
        ImportError: If TensorFlow is not installed.
        ValueError: If the files are damaged or shorter than the index says, or hold another model."""
    tensorflow = _import_tensorflow()
    prefix = Path(prefix)
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        _check_length(prefix, reader, shapes, dtypes)
        names = [key for key in shapes if _is_model_variable(key)]
        if not names:
            found = ", ".join(map(repr, sorted({key.split("/")[0] for key in shapes})[:5]))
            raise ValueError(
                f"{prefix} is a checkpoint of another model: it has no variable 'model/...'; "
                f"the names in it begin with {found}"
            )
        return {name.removesuffix(KEY_SUFFIX): reader.get_tensor(name) for name in sorted(names)}
    except (tensorflow.errors.OutOfRangeError, IndexError) as error:  # TensorFlow raises either
        raise ValueError(
            f"the checkpoint {prefix} is incomplete: its data is shorter than its index says; fetch it again"
        ) from error
    except (tensorflow.errors.OpError, RuntimeError, SystemError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the checkpoint {prefix} is damaged ({message}); fetch it again") from error


def _find_in_directory(folder: Path) -> Path:
    state = folder / "checkpoint"
    if state.is_file():
        try:
            name = parse_checkpoint_file(state.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{state} is damaged: {error}") from error
        if not (folder / f"{name}.index").exists():
            raise ValueError(
                f"the checkpoint {folder / name} is incomplete: {state} names it, but there is no {name}.index"
            )
        return folder / name
    names = sorted(file.name.removesuffix(".index") for file in folder.glob("*.index"))
    if not names:
        raise ValueError(f"{folder} holds no checkpoint: there is no file {state}")
    if len(names) > 1:
        raise ValueError(
            f"{folder} holds several checkpoints ({', '.join(names)}): give one, such as {folder / names[-1]}"
        )
    return folder / names[0]


def _is_model_variable(key: str) -> bool:
    # Slots are the optimizer's state of one weight in checkpoints of older optimizers.
    return key.startswith("model/") and key.endswith(KEY_SUFFIX) and ".OPTIMIZER_SLOT" not in key


def _check_length(prefix: Path, reader, shapes: dict, dtypes: dict):
    """Refuse data files shorter than their tensors, also where the missing end is not part of the network."""
    found = sum(shard.stat().st_size for shard in _list_shards(prefix))
    expected = sum(
        int(np.prod(shape, dtype=np.int64)) * dtypes[name].size
        for name, shape in shapes.items()
        if dtypes[name].name != "string"
    )
    if found >= expected and _OBJECT_GRAPH in shapes:
        length = len(reader.get_tensor(_OBJECT_GRAPH))
        expected += (length.bit_length() + 6) // 7 + 4 + length  # a string is stored after its length and a checksum
    if found < expected:
        raise ValueError(
            f"the checkpoint {prefix} is incomplete: its data has {found} bytes, its index speaks of at least "
            f"{expected}; fetch it again"
        )


def _list_shards(prefix: Path) -> list[Path]:
    return sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-?????-of-?????"))


def _import_tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(f"reading a TensorFlow checkpoint needs TensorFlow: {INSTALL_HINT} ({error})") from error
    return tensorflow
