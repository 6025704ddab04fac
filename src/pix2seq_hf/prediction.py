"""Look at pictures and videos: objects with masks and keypoints, and captions, as the model was trained to find them.

examples:
  pix2seq predict street.jpg --model vit-b --output found
  pix2seq data scenes --output scenes --count 4 && pix2seq predict scenes/train --output found   (the model in the box)
  pix2seq predict holiday/ "archive/**/*.png" --model vit-b --output found --threshold 0.5 --batch-size 8
  pix2seq predict street.jpg --model all-tasks --output found --tasks object_detection,captioning --classes person,dog
  pix2seq predict street.jpg --model all-tasks --output masks --tasks instance_segmentation --boxes found/results.json
  pix2seq predict walk.mp4 --frame-step 10 --model vit-b --output walk
  find archive -name "*.jpg" | pix2seq predict - --model vit-b --output found --resume
  pix2seq predict val2017/ --model vit-b --output found --threshold 0     (everything, for measuring)

In the output folder:
  NAME.png        every picture with its boxes, masks, skeletons, class names and scores, and its captions below;
                  of a frame NAME-NUMBER.png
  results.jsonl   one line per picture, written as soon as it is known: file, size, objects, captions
  results.json    the objects in COCO's results format: image_id, category_id, bbox (x, y, width, height), score,
                  and segmentation (run lengths) where masks were asked for
  keypoints.json  the keypoints in COCO's results format, where asked for
  captions.json   the captions in COCO's results format, where asked for
  images.json     which file each image_id is, and which name each category_id has, as a COCO file without annotations,
                  so that pycocotools reads both: COCO("images.json").loadRes("results.json"); also the names of the
                  drawings, and what was malformed in what the model wrote
  run.json        the options, which --resume compares

An image_id is the number that a file is named after, as in COCO, if all are; else pictures are numbered from 1.
The COCO files are made of the lines at the end, also after Ctrl-C. After anything worse, --resume goes on with what is
missing and makes them then. A file that is no usable picture is left out and named at the end, and the exit code is
then 1.
"""

import argparse
import gc
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from .data.pictures import MAX_PIXELS, PictureError, expand_lists, find_pictures
from .data.video import Source, find_reader, is_video, list_sources
from .default_model import add_model_option, advise
from .outputs import add_json_option, make_folder

# What results depend on: a run is only continued with the same.
KEPT_OPTIONS = (
    *("model", "tasks", "threshold", "classes", "max_objects", "max_points", "num_samples", "num_captions"),
    *("allowed_words", "stop_when_noise", "greedy", "boxes", "frame_step", "seed", "int8"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq predict`."""
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="a picture, a video, a folder, a quoted pattern such as '*.jpg', or - for a list on standard input",
    )
    add_model_option(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="where the results go; made if it is missing")
    add_task_arguments(parser)
    parser.add_argument(
        "--boxes",
        metavar="FILE",
        help="objects to ask about in place of detected ones: COCO results, such as results.json of an earlier run",
    )
    parser.add_argument(
        "--frame-step", type=int, default=1, metavar="N", help="of videos, every N-th frame (default: 1)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what an earlier run with the same options left in --output, go on"
    )
    add_running_arguments(parser)


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say what is looked for and how, which [`task_options`] reads."""
    parser.add_argument(
        "--tasks",
        default="all",
        metavar="A,B",
        help="object_detection, instance_segmentation, keypoint_detection, captioning, or all that the model was "
        "trained for (default: all)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="leave out objects of a lower score (default: 0.3)",
    )
    parser.add_argument("--classes", metavar="A,B", help="names or ids of the classes to detect (default: all)")
    parser.add_argument(
        "--max-objects",
        type=int,
        metavar="N",
        help="objects to write per picture; fewer is faster (default: the model's)",
    )
    parser.add_argument("--max-points", type=int, metavar="N", help="points per outline (default: the model's)")
    parser.add_argument(
        "--num-samples",
        type=int,
        metavar="N",
        help="outlines per object, averaged into its mask (default: the model's)",
    )
    parser.add_argument("--num-captions", type=int, default=1, metavar="N", help="captions per picture (default: 1)")
    parser.add_argument("--allowed-words", metavar="A,B", help="words that captions may be made of (default: all)")
    parser.add_argument(
        "--stop-when-noise", action="store_true", help="end detection at what the model takes for noise; faster"
    )
    parser.add_argument(
        "--greedy", action="store_true", help="always write the likeliest token instead of drawing one by chance"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for the model's sampling of tokens (default: 0)"
    )
    parser.add_argument(
        "--int8", action="store_true", help="write with weights rounded to int8; faster on a processor, not elsewhere"
    )


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say where and in which portions it is done."""
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="pictures at once (default: 4)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="refuse larger pictures (default: 100 million)"
    )
    add_json_option(parser, "how much was done, what was left out")


def run(args: argparse.Namespace) -> int:
    """Do what the options say and return the exit code: 0, or 1 if a picture was left out."""
    check_options(args)
    if args.json is not None:
        args.json.check()
    paths, problems = find_pictures(expand_lists(args.pictures, getattr(sys.stdin, "buffer", sys.stdin)))
    for path in filter(is_video, paths):
        find_reader(str(path))
    given = None if args.boxes is None else GivenBoxes(args.boxes)
    model, processor = load_model(args.model, args.device)
    if args.int8:
        set_precision(model, "int8")
    options = task_options(args, model, processor, given is not None)

    from .prediction_folder import PredictionFolder

    kept = {name: getattr(args, name) for name in KEPT_OPTIONS}
    kept |= {name: os.path.realpath(kept[name]) for name in ("model", "boxes") if kept[name] is not None}
    start = time.monotonic()
    output = PredictionFolder(make_folder(args.output, "--output"), paths, model.config.id2label, kept, args.resume)
    try:
        predict(args, paths, model, processor, options, output, problems, given)
        if given is not None and paths and not given.was_used:
            problems.append(f"{args.boxes}: has no boxes for any of the pictures")
    finally:  # also when interrupted
        for problem in problems:
            print(f"pix2seq predict: left out: {problem}", file=sys.stderr)
        if args.json is not None:
            args.json.write({**output.numbers(time.monotonic() - start), "left_out": problems})
    return 1 if problems else 0


def predict(
    args: argparse.Namespace,
    paths: list[Path],
    model: Any,
    processor: Any,
    options: Any,
    output: Any,
    problems: list[str],
    given: "GivenBoxes | None" = None,
) -> None:
    """Go through the pictures in batches; what is wrong with a picture is appended to `problems` as one line."""
    from .engine import run_tasks  # here and below only when needed: --help and wrong options should not wait for it
    from .prediction_folder import key_of
    from .progress import open_bar

    start = time.monotonic()
    numbers = itertools.count(1)
    ids = number_all(paths)
    total = None if ids is None else len(paths)
    with open_bar(total, "picture", is_shown=not args.quiet) as bar:
        try:
            for chunk in batched(list_sources(paths, problems, args.max_pixels, args.frame_step), args.batch_size):
                image_ids = [next(numbers) if ids is None else ids[source.path] for source in chunk]
                batch = load_batch(chunk, image_ids, output.finished, problems, processor, given, args.threshold)
                bar.update(len(chunk) - len(batch))
                if not batch:
                    continue
                boxes = [objects for *_, objects in batch]
                results = run_tasks(model, processor, [image for _, _, image, _ in batch], options, boxes)
                for (source, image_id, _, _), result in zip(batch, results):
                    if key_of(source) not in output.finished:
                        output.write(source, image_id, result)
                    bar.set_postfix_str(f"{output.num_objects} objects", refresh=False)
                    bar.update()
        finally:
            bar.close()
            output.finish()
            if not args.quiet:
                print(output.summary(time.monotonic() - start))


def batched(sources: Iterator[Source], size: int) -> Iterator[list[Source]]:
    """Lists of `size` sources, the last one shorter."""
    while chunk := list(itertools.islice(sources, size)):
        yield chunk


def number_all(paths: Sequence[Path]) -> dict[Path, int] | None:
    """The id of each picture, or `None` where a video's frames are counted too."""
    from .prediction_folder import number_pictures

    return None if any(map(is_video, paths)) else number_pictures(paths)


def load_batch(
    chunk: Sequence[Source],
    image_ids: Sequence[int],
    finished: Mapping[Any, int],
    problems: list[str],
    processor: Any,
    given: "GivenBoxes | None",
    threshold: float,
) -> list[tuple[Source, int, Image.Image, Any]]:
    r"""Decode a batch and find the boxes to ask about.

    A batch that an earlier run has finished is empty. One that it has begun is whole, because what a model writes by
    chance depends on the batch: so a run that was interrupted ends with the results that it would have had.

    Returns:
        `list[tuple]`: Source, id, picture, and boxes or `None`, of those that can be used."""
    from .prediction_folder import key_of

    missing = [number for number, source in enumerate(chunk) if key_of(source) not in finished]
    loaded: dict[int, tuple[Image.Image, Any]] = {}
    for number in [*missing, *(number for number in range(len(chunk)) if number not in missing)]:
        if number not in missing and not loaded:
            break
        source, image_id = chunk[number], image_ids[number]
        try:
            image = source.load()
            boxes = None if given is None else given.of(source, image_id, image, processor, threshold)
            loaded[number] = image, boxes
        except PictureError as error:
            if number in missing:
                problems.append(str(error))
    return [(chunk[number], image_ids[number], *loaded[number]) for number in sorted(loaded)]


class GivenBoxes:
    r"""Objects of an earlier run, in COCO's results format.

    Pictures are found by the names in the `images.json` beside the file, if there is one, else by their ids.

    Args:
        path (`str`): A JSON list of `image_id`, `category_id`, `bbox` and, if known, `score`.
    Raises:
        ValueError: If it is not such a list.
        OSError: If it cannot be read."""

    def __init__(self, path: str):
        self.path = path
        self.was_used = False
        self.by_id: dict[int, list[dict]] = {}
        entries = self._read(Path(path))
        if not isinstance(entries, list):
            raise ValueError(f"{path}: is no list of COCO results")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not {"image_id", "bbox", "category_id"} <= entry.keys():
                raise ValueError(f"{path}: entry {number} lacks image_id, bbox or category_id")
            self.by_id.setdefault(entry["image_id"], []).append(entry)
        index = Path(path).with_name("images.json")
        self.ids: dict[tuple[str, int | None], int | None] | None = None
        if index.is_file():
            self.ids = {}
            for image in self._read(index)["images"]:
                name, frame = image["file_name"], image.get("frame")
                self.ids[os.path.abspath(name), frame] = image["id"]
                # Pictures may have been moved since: then the bare name tells them, if it is the only one.
                bare = os.path.basename(name), frame
                self.ids[bare] = None if bare in self.ids else image["id"]

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is not JSON ({error})") from None

    def of(self, source: Source, image_id: int, image: Image.Image, processor: Any, threshold: float) -> Any:
        r"""The objects of one picture of a score of at least `threshold`, those without a score included.

        Raises:
            PictureError: If a box cannot be used; boxes that reach outside are cut, which is said."""
        from .given_boxes import read_boxes

        if self.ids is not None:
            names = os.path.abspath(source.path), source.path.name
            image_id = next((self.ids[name, source.frame] for name in names if (name, source.frame) in self.ids), None)
        entries = self.by_id.get(image_id, [])
        self.was_used = self.was_used or bool(entries)
        where = str(source.path) if source.frame is None else f"{source.path}, frame {source.frame}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                entries = [entry for entry in entries if float(entry.get("score") or 1.0) >= threshold]
                boxes = read_boxes((image.height, image.width), processor.vocabulary, objects=entries)
            except (ValueError, TypeError) as error:
                raise PictureError(f"{where}: {self.path}: {error}") from None
        for warning in caught:
            print(f"pix2seq predict: {where}: {warning.message}", file=sys.stderr)
        return boxes


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for options that make no sense, naming them."""
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold}: a score lies between 0 and 1")
    counts = ("batch_size", "max_objects", "max_points", "num_samples", "num_captions", "frame_step", "max_pixels")
    counts += ("chunk_size", "limit")
    for option in counts:
        value, least = getattr(args, option, None), 3 if option == "max_points" else 1
        if value is not None and value < least:
            raise ValueError(f"--{option.replace('_', '-')} {value}: must be at least {least}")
    for option in ("num_samples", "num_captions"):
        if args.greedy and (getattr(args, option) or 1) > 1:
            value = getattr(args, option)
            raise ValueError(f"--{option.replace('_', '-')} {value}: with --greedy all of them would be the same")
    if getattr(args, "boxes", None) is not None:
        for option in ("classes", "max_objects"):
            if getattr(args, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')} is for detection, and --boxes takes its place")


def task_options(args: argparse.Namespace, model: Any, processor: Any, has_boxes: bool) -> Any:
    """The [`TaskOptions`] of the command's options; raises ValueError for what the model cannot do."""
    from .engine import TaskOptions, TaskRun
    from .given_boxes import Boxes

    def names(text: str | None) -> list[str] | None:
        return None if text is None else [name for name in (part.strip() for part in text.split(",")) if name]

    classes = names(args.classes)
    options = TaskOptions(
        tasks=args.tasks,
        threshold=args.threshold,
        classes=classes and [int(name) if name.isdecimal() else name for name in classes],
        max_objects=args.max_objects,
        max_points=args.max_points,
        num_samples=args.num_samples,
        num_captions=args.num_captions,
        allowed_words=names(args.allowed_words),
        generate_kwargs={"do_sample": False} if args.greedy else {},
        seed=args.seed,
        stop_when_noise=args.stop_when_noise,
    )
    # Checks all of it now: nothing is written, and nothing of an earlier run lost, before a wrong option is named.
    TaskRun(model, processor, [Image.new("RGB", (1, 1))], options, [Boxes.empty()] if has_boxes else None)
    return options


def choose_device(name: str):
    """The device of that name; "auto" is CUDA, else Apple's, else the CPU. Raises ValueError if it is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def find_processes(device: str):
    r"""Say which process of how many this is; of several, each gets a device of its own, or all compute on the CPU.

    Args:
        device (`str`): See [`choose_device`]. Accelerate itself looks for processes on a CPU only if it is told to.
    Returns:
        `accelerate.PartialState`.
    Raises:
        ValueError: If processes were started together and do not find each other: each would do all of the work."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    is_on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    state = PartialState(cpu=is_on_cpu or parse_flag_from_env("ACCELERATE_USE_CPU"))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise ValueError(f"--device {device}: {started} processes were started and cannot share it; try --device cpu")
    return state


@contextmanager
def all_kept() -> Iterator[None]:
    """Look for no garbage: importing libraries makes objects that stay, and looking through them takes a second."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@all_kept()
def load_model(folder: str, device: str = "auto"):
    r"""Load a model folder with its processor, complete and of the right kind.

    Args:
        folder (`str`): As `save_pretrained` of model and processor wrote it.
        device (`str`): See [`choose_device`].
    Returns:
        `tuple[Pix2SeqForConditionalGeneration, Pix2SeqProcessor]`: The model in evaluation mode on the device; on a CPU
            in float32, whatever it was saved in, elsewhere as its configuration says.
    Raises:
        ValueError: If the folder holds another model, or its weights are missing, cut off, or do not fit."""
    config = Path(folder, "config.json")
    if not config.is_file():
        raise ValueError(f"{folder}: is no model folder, there is no config.json in it; {advise(folder)}")

    from safetensors import SafetensorError
    from transformers.utils import logging

    from .configuration_pix2seq import Pix2SeqConfig
    from .modeling_pix2seq import Pix2SeqForConditionalGeneration
    from .processing_pix2seq import Pix2SeqProcessor

    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config}: is not a model's configuration ({error})") from None
    if model_type != Pix2SeqConfig.model_type:
        raise ValueError(
            f"{folder}: is a checkpoint of another model, {model_type!r} instead of {Pix2SeqConfig.model_type!r}"
        )
    device = choose_device(device)
    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = Pix2SeqForConditionalGeneration.from_pretrained(
            folder, dtype="float32" if device.type == "cpu" else "auto", output_loading_info=True
        )
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{folder}: the weights are cut off or do not fit the configuration ({error})") from None
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} weights are missing or do not fit, the first is {missing[0]}")
    return model.to(device).eval(), Pix2SeqProcessor.from_pretrained(folder)


def set_precision(model: Any, precision: str) -> Any:
    r"""Let a loaded model compute in another precision.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): In float32 for `"int8"`, since rounded weights stay rounded.
        precision (`str`): `"float32"`, `"bfloat16"`, `"float16"`, or `"int8"`: see
            [`~Pix2SeqForConditionalGeneration.use_int8`].
    Returns:
        The model.
    Raises:
        ValueError: If int8 is asked for elsewhere than on a processor that can."""
    import torch

    if precision != "int8":
        return model.use_int8(False).to(getattr(torch, precision))
    if model.device.type != "cpu":
        raise ValueError(f"int8 is for processors, and the model is on {model.device}: add --device cpu")
    return model.float().use_int8()
