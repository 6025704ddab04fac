r"""How fast is a model on this machine: milliseconds per picture, part by part, as a table, JSON and a plot.

examples:
  pix2seq benchmark                                                              (the model in the box)
  pix2seq benchmark --model vit-b
  pix2seq benchmark --model vit-b --objects 10 100 --batch-size 1 8 --dtype float32 bfloat16 --plot speed.png
  pix2seq benchmark --model all-tasks --tasks all --objects 5 --images street.jpg holiday/ --json speed.json
  pix2seq benchmark --model vit-b --objects 10 --repetitions 1 --device cpu      (a first look)

Each task is measured alone, as `pix2seq predict` does it, with the model's own settings: the pictures are prepared
(preprocessing), encoded, written about (decoding), and what was written is read (post-processing). Detection writes so
many objects, whatever is in the picture; masks and keypoints are asked for in so many boxes that are drawn by chance;
captions do not depend on objects. Everything runs once before it is timed. Times are medians over the repetitions,
divided by the pictures of a batch. Reading picture files and loading the model are not counted. Without --images the
picture is a drawn scene. The number of threads is torch's own choice: set OMP_NUM_THREADS to change it. Where other
programs run too, OMP_NUM_THREADS=1 and --processor-time give steady figures.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .data.pictures import find_pictures, load_picture
from .default_model import add_model_option
from .outputs import add_json_option, check_file
from .prediction import load_model, set_precision

DTYPES = ("float32", "int8", "bfloat16")  # in this order, since weights that were rounded to bfloat16 stay so
NUM_OBJECTS = (1, 10, 25, 50, 100)
SCENE_SIZE = (480, 640)  # height and width of the drawn picture; many pictures of COCO have it
BOX_SIZES = (0.1, 0.5)  # of boxes drawn by chance, in shares of the picture's sides
COLORS = ("blue", "orange", "green", "violet", "red", "sky")


@dataclass(frozen=True)
class Case:
    r"""What is measured.

    Args:
        task (`str`): Its name.
        dtype (`str`): Of the weights.
        batch_size (`int`): Pictures at once.
        num_objects (`int`, *optional*): Per picture; `None` for captions."""

    task: str
    dtype: str
    batch_size: int
    num_objects: int | None


@dataclass(frozen=True)
class Measurement:
    r"""What was measured.

    Args:
        case ([`Case`]): Of what.
        seconds (`Sequence[Mapping[str, float]]`): Per repetition the seconds of each part, all pictures together."""

    case: Case
    seconds: Sequence[Mapping[str, float]]

    def milliseconds(self, part: str | None = None) -> float:
        """Median per picture, of one part or of their sum."""
        values = [sum(parts.values()) if part is None else parts[part] for parts in self.seconds]
        return 1000 * statistics.median(values) / self.case.batch_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq benchmark`."""
    add_model_option(parser)
    parser.add_argument(
        "--images", nargs="+", metavar="PICTURE", help="pictures, folders, quoted patterns (default: a drawn scene)"
    )
    parser.add_argument(
        "--tasks", metavar="A,B", help="names of tasks, or all (default: object_detection, or all of a model without)"
    )
    parser.add_argument(
        "--objects",
        nargs="+",
        type=positive_number,
        metavar="N",
        help=f"numbers of objects per picture (default: {' '.join(map(str, NUM_OBJECTS))}, up to the model's most)",
    )
    parser.add_argument(
        "--batch-size", nargs="+", type=positive_number, default=[1], metavar="N", help="pictures at once (default: 1)"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=["float32"],
        help="precision of the computation (default: float32)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)"
    )
    parser.add_argument(
        "--repetitions", type=positive_number, default=3, metavar="N", help="runs that are timed (default: 3)"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="measure not the time that passes but that of the processor, of all threads together",
    )
    add_json_option(parser, "the figures of every repetition")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw milliseconds against the number of objects")


def positive_number(text: str) -> int:
    """A number of at least 1."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Measure as the options say; print the table, write JSON and plot."""
    if args.plot is not None and Path(args.plot).suffix.lower() != ".png":
        raise ValueError(f"--plot {args.plot}: is drawn as PNG, so the name must end in .png")
    if args.json is not None:
        args.json.check()
    if args.plot is not None:
        check_file(args.plot, "--plot")
    pictures = load_pictures(args.images)
    model, processor = load_model(args.model, args.device)
    cases = list_cases(args, model.config, processor)
    if args.plot is not None and all(case.num_objects is None for case in cases):
        raise ValueError(f"--plot {args.plot}: captions do not depend on objects, against whose number it shows times")

    from .progress import open_bar

    if args.processor_time and model.device.type != "cpu":
        raise ValueError(f"--processor-time: the model is on {model.device.type}; add --device cpu")
    machine, results = describe_machine(model.device), []
    with open_bar(len(cases) * (args.repetitions + 1), "run", is_shown=not args.quiet) as bar:
        for case in cases:
            bar.set_description(f"{describe_case(case)}{'' if case.num_objects is None else f', {case.num_objects}'}")
            model = set_precision(model, case.dtype)
            seconds = measure(
                model, processor, case, pictures, args.repetitions, bar.update, has_processor_time=args.processor_time
            )
            results.append(Measurement(case, seconds))
    sizes = " x ".join(map(str, model.config.image_size))
    clock = "processor time" if args.processor_time else "time that passed"
    print(f"{args.model}: {model.num_parameters():,} parameters, input of {sizes}; {args.repetitions} runs, {clock}")
    print(f"{describe(machine)}\n\n{make_table(results)}")
    if args.json is not None:
        measurements = list(map(as_dict, results))
        args.json.write({"model": args.model, "clock": clock, "machine": machine, "measurements": measurements})
    if args.plot is not None:
        draw_plot(results).save(args.plot, optimize=True)
    return 0


def load_pictures(sources: Sequence[str] | None) -> list[Image.Image]:
    """The pictures that are named, or a drawn scene; raises ValueError for one that cannot be used."""
    if sources is None:
        from .data.scenes import SceneOptions, draw_scene

        return [draw_scene(0, "benchmark", 0, SceneOptions(image_size=SCENE_SIZE)).picture]
    paths, problems = find_pictures(sources)
    if problems:
        raise ValueError(problems[0])
    return [load_picture(path) for path in paths]


def list_cases(args: argparse.Namespace, config: Any, processor: Any) -> list[Case]:
    r"""List what is measured, in the order of precisions, tasks, sizes of batches and numbers of objects.

    Args:
        args (`argparse.Namespace`): The options.
        config ([`Pix2SeqConfig`]): Of the model.
        processor ([`Pix2SeqProcessor`]): Of the model.
    Returns:
        `list[Case]`, each once.
    Raises:
        ValueError: If the model was not trained for a task, or cannot write so many objects."""
    from .engine import CAPTIONS, DETECTION, KEYPOINTS, choose_tasks
    from .grammar_pix2seq import TOKENS_PER_OBJECT

    tasks = choose_tasks(config, processor, args.tasks or (DETECTION if DETECTION in config.tasks else "all"))
    most = (config.max_position_embeddings - 1) // TOKENS_PER_OBJECT
    usual = min(config.max_instances_per_image, most)
    numbers = args.objects or sorted({min(number, usual) for number in NUM_OBJECTS})
    if DETECTION in tasks and max(numbers) > most:
        raise ValueError(f"--objects {max(numbers)}: this model writes at most {most} (max_position_embeddings)")
    if KEYPOINTS in tasks and not set(config.keypoint_labels) & set(config.id2label):
        raise ValueError(f"--tasks {KEYPOINTS}: the model has no class with keypoints (config.keypoint_labels)")
    cases = [
        Case(task, dtype, batch_size, num_objects)
        for dtype in DTYPES
        if dtype in args.dtype
        for task in tasks
        for batch_size in args.batch_size
        for num_objects in ([None] if task == CAPTIONS else numbers)
    ]
    return list(dict.fromkeys(cases))


def measure(
    model: Any,
    processor: Any,
    case: Case,
    pictures: Sequence[Image.Image],
    num_repetitions: int,
    on_run: Callable[[], Any] = lambda: None,
    has_processor_time: bool = False,
) -> list[dict[str, float]]:
    r"""Run a case once to warm up, then time it.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]), processor ([`Pix2SeqProcessor`]): What is measured.
        case ([`Case`]): What it does.
        pictures (`Sequence[PIL.Image.Image]`): Batches go round through them.
        num_repetitions (`int`): Runs that are timed.
        on_run (`Callable`): Called after every run.
        has_processor_time (`bool`): Whether the seconds are those of the processor.
    Returns:
        `list[dict[str, float]]`: Per timed run the seconds of each of `PARTS`."""
    from .engine import DETECTION, TaskOptions
    from .timed_run import TimedRun

    detects = case.task == DETECTION
    # A threshold of 0: also what a model takes for noise becomes an object, so that their number is the one asked for.
    options = TaskOptions(case.task, threshold=0.0, max_objects=case.num_objects if detects else None, seed=0)
    seconds = []
    for number in range(num_repetitions + 1):
        places = range(number * case.batch_size, (number + 1) * case.batch_size)
        batch = [pictures[place % len(pictures)] for place in places]
        boxes = None
        if not detects and case.num_objects is not None:
            boxes = [draw_boxes(picture.size, case, model.config) for picture in batch]
        timed = TimedRun(model, processor, batch, options, boxes)
        if has_processor_time:
            timed.clock = time.process_time
        timed.run()
        if number:
            seconds.append(timed.seconds)
        on_run()
    return seconds


def draw_boxes(size: tuple[int, int], case: Case, config: Any) -> Any:
    """Boxes by chance in a picture of (width, height), of the first class that the task is about."""
    import torch

    from .engine import KEYPOINTS
    from .given_boxes import Boxes

    labels = [label for label in sorted(config.id2label) if case.task != KEYPOINTS or label in config.keypoint_labels]
    generator = torch.Generator().manual_seed(0)
    low, high = BOX_SIZES
    sides = low + (high - low) * torch.rand(case.num_objects, 2, generator=generator)
    corners = (1 - sides) * torch.rand(case.num_objects, 2, generator=generator)
    boxes_xyxy = torch.cat([corners, corners + sides], 1) * torch.tensor([*size, *size])
    return Boxes(boxes_xyxy, torch.full((case.num_objects,), labels[0]), torch.ones(case.num_objects))


def describe_machine(device: Any) -> dict[str, Any]:
    """What times depend on besides model and options."""
    import torch
    import transformers

    import pix2seq_hf

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pix2seq_hf": pix2seq_hf.__version__,
    }


def processor_name() -> str:
    """The model name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(machine: Mapping[str, Any]) -> str:
    """The machine in a line."""
    device = "" if machine["device"] == "cpu" else f"{machine['device']}; "
    load = "" if machine["load"] is None else f", load {machine['load']:g} before"
    return (
        f"{device}{machine['processor']}, {machine['threads']} threads on {machine['cores']} cores{load}; "
        f"torch {machine['torch']}, pix2seq_hf {machine['pix2seq_hf']}"
    )


def describe_case(case: Case) -> str:
    """A case in a few words, without the number of objects."""
    return f"{case.task.replace('_', ' ')}, {case.dtype}, batch {case.batch_size}"


def make_table(results: Sequence[Measurement]) -> str:
    """Milliseconds per picture as a Markdown table that reads well as plain text too."""
    parts = list(results[0].seconds[0])
    rows = [["task", "weights", "batch", "objects", *parts, "ms per picture", "pictures/s"]]
    for result in results:
        case, whole = result.case, result.milliseconds()
        rows.append(
            [
                *(case.task, case.dtype, str(case.batch_size)),
                "-" if case.num_objects is None else str(case.num_objects),
                *(f"{result.milliseconds(part):,.1f}" for part in parts),
                f"{whole:,.1f}",
                f"{1000 / whole:,.2f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in columns)
        + " |"
        for columns in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
    ]
    rule = " | ".join("-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths))
    return "\n".join([lines[0], f"| {rule} |", *lines[1:]])


def as_dict(result: Measurement) -> dict[str, Any]:
    """A measurement for JSON: the case, medians per picture in milliseconds, and the seconds of every repetition."""
    parts = {part: round(result.milliseconds(part), 3) for part in result.seconds[0]}
    medians = {"milliseconds_per_picture": round(result.milliseconds(), 3), "parts_milliseconds": parts}
    return {**asdict(result.case), **medians, "seconds": list(result.seconds)}


def draw_plot(results: Sequence[Measurement]) -> Image.Image:
    """Milliseconds per picture against the number of objects, a line for every task, precision and size of batch."""
    from .evaluation.charts import Curve, line_chart, to_image

    tasks = {result.case.task for result in results if result.case.num_objects is not None}
    lines: dict[tuple, list[tuple[int, float]]] = {}
    for result in results:
        case = result.case
        if case.num_objects is not None:
            points = lines.setdefault((case.task, case.batch_size, case.dtype), [])
            points.append((case.num_objects, result.milliseconds()))
    pairs = list(dict.fromkeys((task, batch_size) for task, batch_size, _ in lines))
    has_dtypes = len({dtype for *_, dtype in lines}) > 1
    curves = []
    for (task, batch_size, dtype), points in lines.items():
        words = [task.replace("_", " ")] * (len(tasks) > 1) + [f"batch {batch_size}"] + [dtype] * has_dtypes
        color = COLORS[pairs.index((task, batch_size)) % len(COLORS)]
        x, y = zip(*sorted(points), strict=True)
        curves.append(Curve(", ".join(words), x, y, color, dtype != DTYPES[0]))
    return to_image(line_chart("Milliseconds per picture", curves, "objects", "milliseconds per picture"))
