"""Turn a TensorFlow checkpoint of the reference into a folder that AutoModel, AutoProcessor and pipeline load.

examples:
  pix2seq convert --list
  pix2seq convert --checkpoint coco_det_finetune/vit_b_640x640 --output vit-b
  pix2seq convert --checkpoint multi_task/ckpt/vit_b_640x640 --output multi-task
  pix2seq convert --checkpoint runs/mine --output mine --labels labels.json
  pix2seq convert --checkpoint runs/captions/ckpt-100 --output captions --tokenizer c4_en_32k_spm.model

The checkpoint is a model directory of the reference, a prefix such as DIR/ckpt-100, or the name of a released
checkpoint, which is downloaded first. After writing, the folder is loaded again and its output compared.
"""

import argparse
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pix2seq_hf.conversion.checkpoint import (
    find_checkpoint,
    is_checkpoint_path,
    read_model_variables,
    read_reference_config,
)
from pix2seq_hf.conversion.config import config_from_reference, writes_text
from pix2seq_hf.conversion.download import default_cache_dir, download_checkpoint, download_tokenizer
from pix2seq_hf.conversion.released import BASE_URL, RELEASED, find_released, format_table, suggest_released
from pix2seq_hf.conversion.variables import convert_variables
from pix2seq_hf.outputs import add_json_option, make_folder

SELF_CHECK_SIDE = 256  # sine positions fit any size, and a small picture makes the check quick
SELF_CHECK_TOLERANCE = 1e-5  # the two networks are equal; only the order of sums may differ


def add_arguments(parser: argparse.ArgumentParser):
    """Declare the options of `pix2seq convert`."""
    parser.add_argument(
        "--checkpoint", metavar="PATH_OR_NAME", help="a model directory, a prefix, or the name of a released one"
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write; a converted folder is replaced")
    parser.add_argument("--tokenizer", metavar="FILE", help="SentencePiece model of a checkpoint that writes captions")
    parser.add_argument(
        "--labels", metavar="FILE", help='JSON file with the names of the labels: {"1": "person", ...} (default: COCO)'
    )
    parser.add_argument("--list", action="store_true", help="print the released checkpoints and exit")
    parser.add_argument(
        "--base-url", metavar="URL", default=BASE_URL, help="where the released ones are (default: %(default)s)"
    )
    parser.add_argument("--cache-dir", metavar="DIR", help=f"where downloads are kept (default: {default_cache_dir()})")
    add_json_option(parser, "the released checkpoints, or what was written")


def run(args: argparse.Namespace) -> int:
    """Run `pix2seq convert` and return its exit code."""
    if args.list:
        print(format_table())
        if args.json is not None:
            args.json.write([released._asdict() for released in RELEASED.values()])
        return 0
    if args.checkpoint is None or args.output is None:
        missing = " and ".join(name for name in ("checkpoint", "output") if getattr(args, name) is None)
        raise ValueError(f"give --{missing.replace(' and ', ' and --')}, or --list for the released checkpoints")
    output = Path(args.output)
    _refuse_output(output)
    if args.json is not None:
        args.json.check()
    make_folder(output.parent, "--output")
    id2label = None if args.labels is None else read_labels(args.labels)
    download_options = {
        "cache_dir": args.cache_dir,
        "base_url": args.base_url,
        "show_progress": not args.quiet,
    }
    prefix, tokenizer_file = locate(args.checkpoint, args.tokenizer, download_options)
    difference = convert(prefix, output, tokenizer_file, id2label)
    if not args.quiet:
        print(f"self-check: largest difference of a forward pass after loading again: {difference:.3g}")
        print(f"wrote {output}")
    if args.json is not None:
        args.json.write({"output": str(output), "largest_difference": difference})
    return 0


def locate(checkpoint: str, tokenizer: str | None, download_options: Mapping) -> tuple[Path, str | Path | None]:
    r"""Find a checkpoint and its tokenizer, on this disk or among the released ones, which are downloaded.

    Args:
        checkpoint (`str`): A path or a released name; what exists on this disk goes first.
        tokenizer (`str`, *optional*): Path of a SentencePiece model.
        download_options (`Mapping`): `cache_dir`, `base_url`, `show_progress` of [`download_checkpoint`].
    Returns:
        The checkpoint's prefix, and the path of its tokenizer or `None`.
    Raises:
        ValueError: If there is no such path and no such name; the nearest names are suggested."""
    if tokenizer is not None and not Path(tokenizer).is_file():
        raise ValueError(f"there is no tokenizer file {tokenizer}")
    if is_checkpoint_path(checkpoint):
        return find_checkpoint(checkpoint), tokenizer
    released = find_released(checkpoint)
    if released is None:
        near = suggest_released(checkpoint)
        advice = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"there is no checkpoint {checkpoint}, and none of the {len(RELEASED)} released ones has this name{advice} "
            "(pix2seq convert --list prints the names)"
        )
    if released.needs_tokenizer and tokenizer is None:
        tokenizer = download_tokenizer(**download_options)
    return download_checkpoint(released, **download_options), tokenizer


def convert(
    prefix: str | os.PathLike,
    output: str | os.PathLike,
    tokenizer_file: str | os.PathLike | None = None,
    id2label: Mapping[int, str] | None = None,
) -> float:
    r"""Convert a checkpoint of the reference to a folder, and check the folder.

    Args:
        prefix (`str` or `os.PathLike`): As returned by [`find_checkpoint`]; `config.json` stands beside it.
        output (`str` or `os.PathLike`): The folder. It gets its files only after all of them are written and checked.
        tokenizer_file (`str` or `os.PathLike`, *optional*): SentencePiece model, for checkpoints that write captions.
        id2label (`Mapping[int, str]`, *optional*): Names of the raw label ids (see [`config_from_reference`]).
    Returns:
        `float`: Largest absolute difference between the logits of the network in memory and the one loaded again.
    Raises:
        ValueError: If the checkpoint is damaged, is of another model, or lacks its tokenizer."""
    from transformers import AutoProcessor
    from transformers.utils import logging

    from pix2seq_hf.generation_pix2seq import build_generation_config
    from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
    from pix2seq_hf.processing_pix2seq import TASKS, Pix2SeqProcessor

    prefix, output = Path(prefix), Path(output)
    _refuse_output(output)
    reference_config = read_reference_config(prefix)
    config = _name_file(prefix.parent / "config.json", config_from_reference, reference_config, id2label)
    tokenizer = _load_tokenizer(tokenizer_file, config, prefix)
    state_dict = _name_file(prefix, convert_variables, read_model_variables(prefix), config)

    model = Pix2SeqForConditionalGeneration(config)
    model.load_state_dict(state_dict, strict=True)
    del state_dict  # of the largest network it is 1.4 GB
    model.eval()
    known = copy.deepcopy(config)
    known.tasks = [task for task in config.tasks if task in TASKS]  # the others have no settings yet
    model.generation_config = build_generation_config(known)

    output.parent.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        model.save_pretrained(folder)
        Pix2SeqProcessor.from_config(config, caption_tokenizer=tokenizer).save_pretrained(folder)
        reloaded = Pix2SeqForConditionalGeneration.from_pretrained(folder).eval()
        AutoProcessor.from_pretrained(folder)
        difference = _largest_difference(model, reloaded)
        if not difference <= SELF_CHECK_TOLERANCE:
            raise ValueError(f"{prefix}: the network differs from itself by {difference:g} after saving and loading")
        _move_contents(Path(folder), output)
    return difference


def read_labels(path: str | os.PathLike) -> dict[int, str]:
    r"""Read the names of the labels from a JSON file: an object from id to name, or a list that begins with id 1.

    Raises:
        ValueError: If the file is missing or is not such a JSON file."""
    try:
        labels = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(labels, list):
            labels = dict(enumerate(labels, start=1))
        labels = {int(label): name for label, name in labels.items()}
        if not labels or not all(isinstance(name, str) for name in labels.values()):
            raise TypeError("the names must be text")
    except OSError as error:
        raise ValueError(f"cannot read the labels {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is not a JSON file such as {{"1": "person", "2": "bicycle"}} ({error})') from error
    return labels


def _refuse_output(output: Path):
    if output.exists() and not output.is_dir():
        raise ValueError(f"the output {output} is a file: choose another folder")
    if output.is_dir() and any(output.iterdir()):
        try:
            is_ours = json.loads((output / "config.json").read_text(encoding="utf-8")).get("model_type") == "pix2seq"
        except (OSError, ValueError, AttributeError):
            is_ours = False
        if not is_ours:
            raise ValueError(f"the output folder {output} holds other files: choose another one, or an empty one")


def _load_tokenizer(tokenizer_file, config, prefix: Path):
    if not writes_text(config):
        if tokenizer_file is not None:
            raise ValueError(
                f"the checkpoint {prefix} writes no text (vocab_size {config.vocab_size}, text from "
                f"{config.text_vocab_shift}): leave out the tokenizer {tokenizer_file}"
            )
        return None
    if tokenizer_file is None:
        raise ValueError(
            f"the checkpoint {prefix} writes captions and needs its SentencePiece model: give it with --tokenizer FILE "
            "(the released multi-task checkpoints use c4_en_32k_spm.model)"
        )
    from pix2seq_hf.conversion.tokenizer import convert_tokenizer

    tokenizer = convert_tokenizer(tokenizer_file)
    room = config.vocab_size - config.text_vocab_shift
    if tokenizer.vocab_size > room:
        raise ValueError(
            f"the tokenizer {tokenizer_file} has {tokenizer.vocab_size} pieces, but the checkpoint has room for {room} "
            f"(vocab_size {config.vocab_size}, text from {config.text_vocab_shift}): it belongs to another checkpoint"
        )
    return tokenizer


def _name_file(path: Path, function, *arguments):
    """Call a function; a ValueError gets the file in front."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _largest_difference(model, reloaded) -> float:
    """Compare the logits of two networks on one random picture and a few tokens."""
    import torch

    config = model.config
    sides = config.image_size
    if config.position_encoding == "sin_cos":
        sides = [min(side, SELF_CHECK_SIDE) for side in sides]
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.rand(1, config.num_channels, *sides, generator=generator)
    tokens = torch.randint(0, config.vocab_size, (1, 6), generator=generator)
    tokens[:, 0] = config.decoder_start_token_id
    with torch.no_grad():
        first, second = (each(pixel_values=pixel_values, decoder_input_ids=tokens).logits for each in (model, reloaded))
    return (first - second).abs().max().item()


def _move_contents(source: Path, target: Path):
    """Move what is in one folder to another on the same disk, in place of what has the same name."""
    target.mkdir(exist_ok=True)
    for stale in target.glob("model*.safetensors*"):
        stale.unlink()
    for item in sorted(source.iterdir()):
        if (target / item.name).is_dir():
            shutil.rmtree(target / item.name)
        os.replace(item, target / item.name)


__all__ = ["add_arguments", "convert", "read_labels", "run"]
