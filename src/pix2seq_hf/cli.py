"""The command `pix2seq`: which commands there are, what all of them take, how their errors end (see [`EXIT_CODES`])."""

import argparse
import contextlib
import difflib
import importlib
import importlib.metadata
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import pix2seq_hf
from pix2seq_hf.outputs import JsonTarget, remove_empty_folders

logger = logging.getLogger(__name__)


class Command(NamedTuple):
    """One command: the module that has `add_arguments(parser)` and `run(args) -> int`, and its line in the help."""

    module: str
    summary: str


COMMANDS = {
    "predict": Command("pix2seq_hf.prediction", "find boxes, masks, keypoints and captions in pictures, and draw them"),
    "predict-dataset": Command("pix2seq_hf.prediction_dataset", "the same for whole data sets, on many processes"),
    "convert": Command("pix2seq_hf.conversion.convert", "turn a released TensorFlow checkpoint into a model folder"),
    "train": Command("pix2seq_hf.training.command", "train or fine-tune a model on one's own or a known data set"),
    "recipes": Command("pix2seq_hf.training.recipes_command", "list and show the recipes of training"),
    "evaluate": Command("pix2seq_hf.evaluation.command", "measure boxes, masks, keypoints, captions on any data set"),
    "benchmark": Command("pix2seq_hf.benchmark", "measure how fast a model is on this machine, as a table and a plot"),
    "card": Command("pix2seq_hf.card", "write the model card of a model folder, with the results of evaluations"),
    "data": Command("pix2seq_hf.data.command", "look into data sets, find what is wrong, convert them, draw new ones"),
    "app": Command("pix2seq_hf.app.command", "show what a model finds in a web page on this machine"),
    "demo": Command("pix2seq_hf.demo", "draw new scenes and show what the model in the box finds, offline, in seconds"),
    "completion": Command("pix2seq_hf.completion", "write the script that completes these commands with the tab key"),
}

EXAMPLES = """\
examples:
  pix2seq demo
  pix2seq convert --checkpoint coco_det_finetune/vit_b_640x640 --output vit-b
  pix2seq predict street.jpg holiday/ --model vit-b --output found
  pix2seq evaluate --model vit-b --data coco --split val2017
  pix2seq train --recipe coco_vit_b_640 --data my_pictures --output runs/mine
  pix2seq COMMAND --help
"""

EXIT_CODES = """\
exit codes:
  0    everything was done
  1    the command finished, but its result lacks what it names on standard error, for example a broken picture, or data
       inspect found an error; training may leave out as many pictures as --max-bad allows, names them, and returns 0
  2    nothing could be done: a wrong option, a missing file, a checkpoint of another model
  130  interrupted with Ctrl-C (143: with SIGTERM); training has saved its state
"""

# Set before torch, transformers or TensorFlow are imported, whose start-up messages say nothing to a command's user.
QUIET_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",  # no line for every attempt to reach the Hub
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}
VERBOSE_ENVIRONMENT = {"TRANSFORMERS_VERBOSITY": "info", "DATASETS_VERBOSITY": "info", "HF_HUB_VERBOSITY": "info"}
# The libraries' own bars, which are made for terminals.
NO_BARS_ENVIRONMENT = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that says where help is, without a page of usage before it."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def version_line() -> str:
    """The version of this package and of the libraries that results depend on, without importing them."""
    libraries = ("torch", "torchvision", "transformers")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    python = ".".join(str(number) for number in sys.version_info[:3])
    return f"pix2seq_hf {pix2seq_hf.__version__} ({found}, Python {python})"


def overview() -> str:
    """The text of `pix2seq --help`: what it is, examples, then the commands."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: pix2seq COMMAND ...\n\n"
        "Pix2Seq: boxes, masks, keypoints and captions by a model that writes them as one sequence of tokens.\n\n"
        f"{EXAMPLES}\ncommands:\n{commands}\n\n"
        "options:\n  -h, --help  show this page; after a command, its own\n"
        "  --version   show the versions of this package and its libraries\n"
        "  --quiet     after a command: only results, warnings and errors\n"
        "  --verbose   after a command: also what the libraries say, and where an error arose\n\n"
        f"{EXIT_CODES}"
    )


def describe_error(error: BaseException) -> str:
    """An exception as one line: without line breaks, and for operating system errors the file before the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def build_parser(name: str, module) -> argparse.ArgumentParser:
    """The parser of one command; the module's docstring, with its examples, stands above the list of options."""
    parser = OneLineParser(
        prog=f"pix2seq {name}",
        description=(module.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    for command in list_parsers(parser):
        command.usage = short_usage(command)
        group = command.add_argument_group("what every command takes").add_mutually_exclusive_group()
        words = "only results, warnings and errors: no progress, no remarks"
        group.add_argument("--quiet", action="store_true", help=words)
        words = "also what the libraries say, and where an error arose"
        group.add_argument("--verbose", "--traceback", action="store_true", help=words)
    return parser


def short_usage(parser: argparse.ArgumentParser) -> str:
    """What a command must be given; what it can be given stands below in its help."""
    words = []
    for action in parser._actions:
        name = action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}"
        many = f"{name} ..." if action.nargs == "+" else f"[{name}]" if action.nargs == "?" else name
        if not action.option_strings:
            words.append(many)
        elif action.required:
            words.append(f"{action.option_strings[0]} {name}")
    return " ".join(["%(prog)s", *words, "[options]"])


def list_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser, or of a command that consists of commands (`data`) the parsers of those."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield parser
    for action in inner:
        for command in action.choices.values():
            yield from list_parsers(command)


@contextlib.contextmanager
def told_to_say(args: argparse.Namespace) -> Iterator[None]:
    """While a command runs: its log is shown as far as the options say, and nothing is printed beside `--json -`."""
    logging.basicConfig(format="%(message)s")
    log = logging.getLogger("pix2seq_hf")
    before = log.level
    is_first = not int(os.environ.get("RANK", "0"))  # of the processes that a launcher started
    level = logging.DEBUG if args.verbose else logging.WARNING if args.quiet else logging.INFO
    log.setLevel(level if is_first else logging.ERROR)
    try:
        with contextlib.ExitStack() as stack:
            target = getattr(args, "json", None)
            if isinstance(target, JsonTarget) and target.stream is not None:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield
    finally:
        log.setLevel(before)


def run_command(name: str, arguments: list[str]) -> int:
    """Run one command of [`COMMANDS`]; errors that the user can mend become one line and exit code 2."""
    # Known before the parser is, for what is imported reads the environment, and may fail.
    is_verbose, is_quiet = bool({"--verbose", "--traceback"} & set(arguments)), "--quiet" in arguments
    environment = {**QUIET_ENVIRONMENT, **(VERBOSE_ENVIRONMENT if is_verbose else {})}
    environment |= NO_BARS_ENVIRONMENT if is_quiet or not sys.stderr.isatty() else {}
    for variable, value in environment.items():
        os.environ.setdefault(variable, value)
    start = time.monotonic()
    try:
        module = importlib.import_module(COMMANDS[name].module)
        args = build_parser(name, module).parse_args(arguments)
        with told_to_say(args):
            logger.debug("%s", version_line())
            exit_code = module.run(args) or 0
            logger.debug("pix2seq %s: exit code %d after %.1f s", name, exit_code, time.monotonic() - start)
        return exit_code
    except KeyboardInterrupt as error:
        what = f": {describe_error(error)}" if error.args else ""
        print(f"pix2seq {name}: interrupted{what}", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except BrokenPipeError:
        # The reader of our output, `head` for example, has had enough. Nothing may be flushed into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError) as error:
        message, trace = describe_error(error), traceback.format_exc()
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        message, trace = "out of memory: choose a smaller batch size, or --device cpu", traceback.format_exc()
    remove_empty_folders()
    if is_verbose:
        print(trace, end="", file=sys.stderr)
    print(f"pix2seq {name}: error: {message}", file=sys.stderr)
    return 2


def main(arguments: list[str] | None = None) -> int:
    """Run `pix2seq` with the given arguments (those of the process by default) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments:
        print(overview(), end="", file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0
    if name == "--version":
        print(version_line())
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        advice = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(COMMANDS)}"
        print(f"pix2seq: error: unknown command {name!r}: {advice}", file=sys.stderr)
        return 2
    try:
        return run_command(name, rest)
    except SystemExit as exit_request:  # argparse has printed its message or help
        return exit_request.code if isinstance(exit_request.code, int) else 2


if __name__ == "__main__":
    sys.exit(main())
