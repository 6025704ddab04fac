"""Show what a model finds in a web page: upload pictures, choose tasks, and see objects while they are written.

examples:
  pix2seq app                                        (the model in the box; open http://127.0.0.1:7860)
  pix2seq app --model vit-b
  pix2seq app --model vit-b --port 8000 --max-seconds 30
  pix2seq app --model vit-b --host 0.0.0.0           (for everybody in the network)

The page needs gradio: pip install "pix2seq_hf[demo]". Nothing is fetched from a network and nothing is reported to
anybody. Uploads and results are in a temporary folder, deleted some time after their last use and when the server ends.
"""

import argparse
import signal
import threading

from ..default_model import add_model_option
from ..prediction import load_model
from .limits import Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq app`."""
    defaults = Limits()
    add_model_option(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is open to the network (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, metavar="N", help="port to listen on (default: the first free from 7860)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)"
    )
    for name, kind, text in (
        ("megabytes", float, "refuse larger files"),
        ("megapixels", float, "refuse pictures of more million pixels, before they are decoded"),
        ("files", int, "refuse batches of more pictures"),
        ("waiting", int, "refuse requests when so many wait; one runs"),
        ("seconds", float, "end what takes longer per picture, and show what was found until then"),
    ):
        value = getattr(defaults, f"max_{name}")
        parser.add_argument(f"--max-{name}", type=kind, default=value, metavar="N", help=f"{text} (default: {value})")
    parser.add_argument(
        "--keep-minutes",
        type=float,
        default=defaults.keep_minutes,
        metavar="N",
        help=f"delete uploads and results so long after their last use (default: {defaults.keep_minutes})",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit code 0."""
    from .server import check_gradio, model_title, serve

    limits = Limits(**{name: getattr(args, name) for name in Limits.__dataclass_fields__})
    if args.port is not None and not 0 < args.port < 65_536:
        raise ValueError(f"--port {args.port}: must lie between 1 and 65535")
    check_gradio()
    model, processor = load_model(args.model, args.device)
    is_over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_over.set())
    with serve(model, processor, limits, args.host, args.port, model_title(args.model)) as address:
        print(f"{address} shows {args.model}; Ctrl-C ends it", flush=True)
        while not is_over.wait(1):  # in short steps: not on every system do signals end a long one
            pass
    return 0
