"""Which model answers where none is named: the one in the box, a small one of all four tasks for drawn scenes."""

import argparse
import os

DEFAULT_MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "box_model")
"""Folder of the model in the box, as `from_pretrained` takes it."""


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--model`."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="DIR",
        help="a model folder, as convert and train write it (default: the model in the box, for drawn scenes)",
    )


def advise(folder: str) -> str:
    r"""Say what helps where a folder holds no model.

    Args:
        folder (`str`): That was named, or [`DEFAULT_MODEL`].
    Returns:
        `str`: The rest of an error's line."""
    if os.path.abspath(folder) == DEFAULT_MODEL:
        return "the model in the box is missing from this installation; install the package again, or name another one"
    return "`pix2seq convert` and `pix2seq train` write a folder with one"
