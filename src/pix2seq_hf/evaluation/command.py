"""Measure a model on a data set: a COCO, VOC or YOLO folder, parquet, a folder of `datasets`, a name on the Hub.

examples:
  pix2seq evaluate --data scenes:seed=1 --split test --max-images 20 --tasks all         (the model in the box)
  pix2seq evaluate --model vit-b --data coco --split val2017
  pix2seq evaluate --model runs/mine/final --data coco_mini --max-images 8 --output found --json numbers.json
  pix2seq evaluate --model runs/tasks/final --data coco_mini --tasks all --boxes annotated
  pix2seq evaluate --model all-tasks --data coco --tasks instance_segmentation --boxes found/object_detection.json
  pix2seq evaluate --results found/object_detection.json --data coco_mini        (again, without a model)
  pix2seq evaluate --oracle --data coco_mini --tasks all --oracle-bins 100,1000  (what the token format costs)
  pix2seq evaluate --watch runs/mine --data coco_mini                            (every new checkpoint of a run)
  accelerate launch scripts/evaluate.py --model vit-b --data coco --output found (on all GPUs)

Objects are decoded as in the reference: every slot of every picture counts with its class score, there is no threshold.
Masks and keypoints are asked for the boxes that the model itself detects with a score of at least --min-score, for the
annotated ones, or for those of a file of results.

With --output everything that is known of a picture is on disk as soon as it is known: the same command goes on where an
interrupted one was, with any number of processes. In DIR there is at the end one TASK.json per task in COCO's results
format, which --results and --boxes read. What is drawn for a picture depends on --seed and its id, neither on the batch
nor on the number of processes; only rounding does.

A picture that is missing or broken counts as one in which nothing was found, and is named; the exit code is then 1, or
2 if no picture can be used.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pix2seq_hf.default_model import DEFAULT_MODEL
from pix2seq_hf.outputs import add_json_option

MODES = ("model", "results", "oracle", "watch")
ALL_TASKS = ("object_detection", "instance_segmentation", "keypoint_detection", "captioning")
# What the answers to a picture depend on: --output is only continued with the same.
KEPT_OPTIONS = (
    *("model", "data", "split", "tasks", "boxes", "min_score", "num_samples", "top_p", "temperature", "max_objects"),
    *("greedy", "seed", "dtype", "column"),
)
NAMES = {
    "object_detection": "boxes",
    "instance_segmentation": "masks",
    "keypoint_detection": "keypoints",
    "captioning": "captions",
}
MOST_NAMED = 10  # pictures that could not be used; all are in the file of numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq evaluate`."""
    modes = parser.add_argument_group("what is measured, one of").add_mutually_exclusive_group()
    modes.add_argument(
        "--model",
        metavar="DIR",
        help="a model folder, as convert and train write it (default: the model in the box, for drawn scenes)",
    )
    modes.add_argument("--results", metavar="FILE", help="results in COCO's format, or the DIR of an earlier --output")
    modes.add_argument("--oracle", action="store_true", help="the annotations themselves, through the token format")
    modes.add_argument("--watch", metavar="RUN", help="every checkpoint of a training run, until its last step")
    parser.add_argument(
        "--data", "--coco", required=True, metavar="DATA", help="the data set: a folder, a file, or a name on the Hub"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="which annotations and pictures (default: val2017, val, validation, valid or test, the first there is)",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of parquet and the like, which column is what; see pix2seq data inspect --help",
    )
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument(
        "--image-ids", type=_parse_ids, metavar="ID,ID,...", help="only the pictures with these ids of the annotations"
    )
    parser.add_argument(
        "--tasks",
        "--task",
        metavar="TASK,TASK,...",
        help="what is measured, or 'all' that the model was trained for (default: object_detection; of --results, what "
        "is there)",
    )

    asking = parser.add_argument_group("how a model is asked")
    asking.add_argument(
        "--boxes",
        metavar="WHICH",
        help="which boxes masks and keypoints are asked for: detected, annotated, or a file in COCO's results format "
        "(default: detected)",
    )
    asking.add_argument(
        "--min-score",
        type=float,
        default=0.05,
        metavar="S",
        help="lowest score of detected boxes that are asked for (default: 0.05)",
    )
    asking.add_argument("--max-objects", type=int, metavar="N", help="objects to detect (default: the model's)")
    asking.add_argument(
        "--num-samples", type=int, metavar="N", help="outlines per object, averaged into its mask (default: 8)"
    )
    asking.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens that together have this probability (default: the task's)",
    )
    asking.add_argument(
        "--temperature", type=float, metavar="T", help="below 1, likely tokens are drawn more often (default: 1)"
    )
    asking.add_argument("--greedy", action="store_true", help="always write the likeliest token, draw nothing")
    asking.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws other tokens (default: 0)")
    asking.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures at once (default: 8)")
    asking.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)"
    )
    asking.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        default="float32",
        help="precision of weights and computation; int8 rounds what a processor reads at every token (default: "
        "float32)",
    )
    asking.add_argument(
        "--interval", type=float, default=10.0, metavar="S", help="seconds between two looks of --watch (default: 10)"
    )

    oracle = parser.add_argument_group("the token format of --oracle")
    oracle.add_argument(
        "--oracle-bins",
        type=_parse_ids,
        default=[1000],
        metavar="N,N,...",
        help="numbers of coordinate bins (default: 1000)",
    )
    oracle.add_argument(
        "--image-size", type=int, default=640, metavar="N", help="side of the input in pixels (default: 640)"
    )
    oracle.add_argument("--max-points", type=int, default=128, metavar="N", help="points of an outline (default: 128)")

    output = parser.add_argument_group("what is written")
    output.add_argument(
        "--output", metavar="DIR", help="what was found, one TASK.json each; the same command goes on where it was"
    )
    add_json_option(output, "the numbers")
    output.add_argument("--report", metavar="DIR", help="a page with curves, kinds of errors and pictures per task")
    output.add_argument("--per-class", action="store_true", help="a table of classes for every task about objects")
    output.add_argument(
        "--spice",
        action="store_true",
        help="SPICE of captions, too: needs pycocoevalcap, Java, 8 GiB of memory, and loads 380 MB at its first use",
    )
    output.add_argument(
        "--engine",
        choices=("pycocotools", "faster-coco-eval"),
        default="pycocotools",
        help="what computes COCO's numbers; both give the same (default: pycocotools)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate as the options say, print tables and return the exit code: 1 if a picture could not be used, else 0."""
    if not any(getattr(args, mode) for mode in MODES):
        args.model = DEFAULT_MODEL
    check_options(args)
    check_outputs(args)
    from pix2seq_hf.evaluation.coco_numbers import load_engine

    load_engine(args.engine)  # says now what is not installed
    if args.spice:
        from pix2seq_hf.evaluation.coco_captions import load_spice_models, missing_tools

        if missing := missing_tools():
            raise ValueError(f"--spice: {missing}")
        load_spice_models()
    if args.split is None:
        from pix2seq_hf.data.sources import EVALUATION_SPLITS, choose_split

        args.split = choose_split(args.data, EVALUATION_SPLITS, "--split NAME")
    if args.oracle:
        return run_oracle(args)
    if args.watch is not None:
        return run_watch(args)
    return run_results(args) if args.results is not None else run_model(args)


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for options that make no sense, naming them."""
    for option in ("batch_size", "max_images", "max_objects", "num_samples", "image_size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} {value}: must be at least 1")
    if args.max_points < 3:
        raise ValueError(f"--max-points {args.max_points}: must be at least 3")
    for bins in args.oracle_bins:
        if bins < 2:
            raise ValueError(f"--oracle-bins {bins}: must be at least 2")
    if not 0 <= args.min_score <= 1:
        raise ValueError(f"--min-score {args.min_score}: a score lies between 0 and 1")
    if not args.interval > 0:
        raise ValueError(f"--interval {args.interval}: must be above 0")
    for option, is_wrong in (("top_p", lambda p: not 0 < p <= 1), ("temperature", lambda t: not 0 < t < float("inf"))):
        value = getattr(args, option)
        if value is not None and is_wrong(value):
            raise ValueError(
                f"--{option.replace('_', '-')} {value}: must be above 0" + " and at most 1" * (option == "top_p")
            )
    if args.greedy:
        for option in ("num_samples", "top_p", "temperature"):
            if getattr(args, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')}: is for drawing, and --greedy draws nothing")
    if args.model is None:
        for option in ("output", *(() if args.watch else ("boxes", "max_objects", "num_samples"))):
            if getattr(args, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')}: is for --model")
    if args.json is not None and args.watch:
        raise ValueError(f"--json: --watch writes {Path(args.watch, 'evaluations.jsonl')}, a line per checkpoint")
    for option in ("report", "per_class", "spice"):
        if getattr(args, option) and (args.oracle or args.watch):
            raise ValueError(f"--{option.replace('_', '-')}: is for --model and --results")
    if args.spice and args.model is not None and args.tasks != "all" and "captioning" not in split_tasks(args.tasks):
        raise ValueError("--spice: is for captions: --tasks captioning, or all")
    for task in () if args.tasks == "all" else split_tasks(args.tasks):
        if task not in ALL_TASKS:
            raise ValueError(f"--tasks: unknown task {task!r}: known are {', '.join(ALL_TASKS)}, and all")


def split_tasks(text: str | None, default: Sequence[str] = ("object_detection",)) -> list[str]:
    """The tasks that are named, each once."""
    return list(default) if text is None else list(dict.fromkeys(name.strip() for name in text.split(",")))


def check_outputs(args: argparse.Namespace) -> None:
    """Make the folders of what will be written; an OSError names what cannot be."""
    from pix2seq_hf.outputs import make_folder

    if args.json is not None:
        args.json.check()
    for option in ("report", "output"):
        if getattr(args, option) is not None:
            make_folder(getattr(args, option), f"--{option}")


# --- A model ----------------------------------------------------------------------------------------------------------


def run_model(args: argparse.Namespace) -> int:
    """Ask a model about every picture."""
    from pix2seq_hf.data.problems import Problems
    from pix2seq_hf.evaluation import answers
    from pix2seq_hf.evaluation.measure import measure

    share, device = find_share(args.device)
    is_main = share.index == 0
    model, processor = load(args.model, device, args.dtype)
    tasks = choose_tasks(args, model.config, args.model)
    problems = Problems(lost="kept")
    split = open_data(args, problems, tasks, model.config.num_keypoints, model.config.id2label)
    question = build_question(args, tasks, split, model.config)
    with contextlib.ExitStack() as stack:
        folder = None
        if args.output is not None:
            if is_main:
                stack.enter_context(answers.hold(args.output))
                answers.prepare(args.output, kept_options(args, tasks, question))
            share.gather([])  # the others wait until it is prepared
            folder = answers.AnswerFolder(args.output, share.index)
        measured = measure(
            model,
            processor,
            split,
            question,
            batch_size=args.batch_size,
            show_progress=is_main and not args.quiet,
            share=share,
            folder=folder,
            engine=args.engine,
            caption_tokenizer=None if is_main else "simple",
            use_spice=args.spice and is_main,
        )
    failures, num_pictures = measured.failures, len(split.dataset)
    exit_code = int(bool(failures or problems.left_out))
    if not is_main:
        return exit_code
    if len(failures) == num_pictures:
        reason = next(iter(failures.values()), None) or next((problem.message for problem in problems.left_out), "none")
        raise ValueError(f"{args.data}: none of the {num_pictures} pictures could be used; the first: {reason}")
    add_voc(args, split, measured.numbers, measured.results)
    pace = measured.num_asked / measured.seconds if measured.num_asked else None
    facts = {
        "num_processes": share.count,
        "num_asked": measured.num_asked,
        "seconds": measured.seconds,
        "pictures_per_second": pace,
        "num_failed": len(failures),
        "failed": [{"image_id": image_id, "reason": reason} for image_id, reason in failures.items()],
        "left_out": [problem.message for problem in problems.left_out],
        "malformed": measured.malformed,
    }
    tables = write_outputs(args, split, measured.numbers, measured.results, facts)
    print_numbers(measured.numbers, measured.results, args.boxes or "detected")
    print(describe_pace(num_pictures, measured.num_asked, pace))
    print_tables(tables)
    name_problems(failures, problems)
    return exit_code


def find_share(device: str) -> tuple[Any, str]:
    """The part of this process, and its device: of all under `accelerate launch` or `torchrun`, else of one."""
    from pix2seq_hf.evaluation.measure import Share

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share(), device
    from accelerate.utils import gather_object

    from pix2seq_hf.prediction import find_processes

    state = find_processes(device)
    return Share(state.process_index, state.num_processes, gather_object), str(state.device)


def load(folder: str, device: str, dtype: str) -> tuple[Any, Any]:
    """A model in evaluation mode with its processor."""
    from pix2seq_hf.prediction import load_model, set_precision

    model, processor = load_model(folder, device)
    return set_precision(model, dtype), processor


def choose_tasks(args: argparse.Namespace, config: Any, name: str) -> list[str]:
    """The tasks to be measured; raises ValueError for one that the model was not trained for."""
    if args.tasks == "all":
        return [task for task in ALL_TASKS if task in config.tasks]
    tasks = split_tasks(args.tasks)
    for task in tasks:
        if task not in config.tasks:
            raise ValueError(f"--tasks: {name} was not trained for {task}: its tasks are {', '.join(config.tasks)}")
    return tasks


def open_data(
    args: argparse.Namespace,
    problems: Any,
    tasks: Sequence[str],
    num_keypoints: int = 17,
    id2label: Mapping[int, str] | None = None,
) -> Any:
    """Open the data set with what the tasks need; its classes get the ids that a model knows their names by."""
    from pix2seq_hf.data.command import parse_columns
    from pix2seq_hf.data.mixture import renumber
    from pix2seq_hf.data.sources import explain_split, open_split

    with explain_split(args.data, args.split, "--split NAME"):
        split = open_split(
            args.data,
            args.split,
            image_ids=args.image_ids,
            max_images=args.max_images,
            tasks=tasks,
            num_keypoints=num_keypoints,
            columns=parse_columns(args.column),
            problems=problems,
        )
    return split if id2label is None else renumber(split, id2label)


def build_question(args: argparse.Namespace, tasks: Sequence[str], split: Any, config: Any) -> Any:
    """What the options ask of a model."""
    from pix2seq_hf.evaluation.predictions import TASKS_ABOUT_BOXES, Question, annotated_boxes
    from pix2seq_hf.evaluation.results_files import read_boxes

    if args.boxes is not None and not set(tasks) & set(TASKS_ABOUT_BOXES):
        raise ValueError(f"--boxes {args.boxes}: is for {' and '.join(TASKS_ABOUT_BOXES)}; add them to --tasks")
    boxes = None
    if args.boxes == "annotated":
        boxes = annotated_boxes(split.annotations)
    elif args.boxes not in (None, "detected"):
        if not os.path.isfile(args.boxes):
            raise FileNotFoundError(
                f"{args.boxes}: no such file; --boxes takes detected, annotated, or a file of results"
            )
        boxes = read_boxes(args.boxes, config.id2label)
        known = set(split.dataset["image_id"])
        if boxes and not any(item["image_id"] in known for item in boxes):
            raise ValueError(f"{args.boxes}: has no box for any of the pictures of {args.data}, {args.split}")
    given = {"top_p": args.top_p, "temperature": args.temperature}
    general = {name: value for name, value in given.items() if value is not None}
    if args.greedy:
        general["do_sample"] = False
    generation = {task: dict(general) for task in ALL_TASKS}
    if args.num_samples is not None:
        generation["instance_segmentation"]["num_return_sequences"] = args.num_samples
    if args.max_objects is not None:
        generation["object_detection"]["max_objects"] = args.max_objects
    return Question(tasks, boxes, args.min_score, args.seed, generation)


def kept_options(args: argparse.Namespace, tasks: Sequence[str], question: Any) -> dict[str, Any]:
    """What the answers depend on, in words and numbers that can be compared with those of an earlier run."""
    kept = {name: getattr(args, name) for name in KEPT_OPTIONS} | {"tasks": tasks, "weights": stamp(args.model)}
    kept |= {name: os.path.realpath(kept[name]) for name in ("model", "data") if os.path.exists(kept[name])}
    if question.boxes is not None and args.boxes != "annotated":
        kept |= {"boxes": os.path.realpath(args.boxes), "content of boxes": stamp(args.boxes)}
    return kept


def stamp(path: str) -> str:
    """Something that changes when a file, or the weights in a folder, are written anew."""
    files = sorted(Path(path).glob("*.safetensors")) if os.path.isdir(path) else [Path(path)]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


# --- Results without a model ------------------------------------------------------------------------------------------


def run_results(args: argparse.Namespace) -> int:
    """Score files of results."""
    from pix2seq_hf.data.problems import Problems
    from pix2seq_hf.evaluation.measure import score
    from pix2seq_hf.evaluation.results_files import read_results

    found = {}
    path = Path(args.results)
    files = [path / f"{task}.json" for task in ALL_TASKS if (path / f"{task}.json").is_file()]
    if path.is_dir() and not files:
        raise ValueError(f"{path}: has none of the files {', '.join(f'{task}.json' for task in ALL_TASKS)}")
    wanted = None if args.tasks in (None, "all") else split_tasks(args.tasks)
    for file in files if path.is_dir() else [path]:
        task, results = read_results(file)
        task = task or (file.stem if file.stem in ALL_TASKS else (wanted or ["object_detection"])[0])
        found[task] = results
    for task in wanted or ():
        if task not in found:
            raise ValueError(f"--tasks: {args.results} has no results of {task}, only of {', '.join(found)}")
    found = {task: items for task, items in found.items() if wanted is None or task in wanted}
    problems = Problems(lost="kept")  # the pictures themselves are not needed
    split = open_data(args, problems, list(found), _count_keypoints(args, found.get("keypoint_detection")))
    if args.max_images is not None or args.image_ids is not None:
        known = set(split.dataset["image_id"])
        found = {task: [item for item in items if item["image_id"] in known] for task, items in found.items()}
    try:
        use_spice = args.spice and "captioning" in found
        numbers = score(split, found, args.engine, caption_tokenizer=None, use_spice=use_spice)
    except ValueError as error:  # of a file that others wrote: say which
        raise ValueError(f"{args.results}, on {args.data}, {args.split}: {error}") from None
    add_voc(args, split, numbers, found)
    left_out = [problem.message for problem in problems.left_out]
    facts = {"seconds": None, "pictures_per_second": None, "left_out": left_out}
    tables = write_outputs(args, split, numbers, found, facts)
    print_numbers(numbers, found)
    print_tables(tables)
    name_problems({}, problems)
    return int(bool(left_out))


def _count_keypoints(args: argparse.Namespace, results: Sequence[Mapping[str, Any]] | None) -> int:
    """How many keypoints an object has: those of a result, without one those that are annotated, else COCO's."""
    from pix2seq_hf.data.coco import find_annotations, read_instances
    from pix2seq_hf.data.sources import find_layout
    from pix2seq_hf.evaluation.coco_numbers import NUM_KEYPOINTS

    items = results or ()
    if results is not None and not results and find_layout(args.data) == "coco":
        items = read_instances(find_annotations(args.data, args.split, "person_keypoints"))["annotations"]
    return next((len(item["keypoints"]) // 3 for item in items if item.get("keypoints")), NUM_KEYPOINTS)


# --- No model at all --------------------------------------------------------------------------------------------------


def run_oracle(args: argparse.Namespace) -> int:
    """Say what the token format costs, for several numbers of bins."""
    from pix2seq_hf.data.problems import Problems
    from pix2seq_hf.evaluation.measure import score
    from pix2seq_hf.evaluation.oracle import ORACLE_TASKS, answer_by_tokens, build_oracle

    tasks = ORACLE_TASKS if args.tasks == "all" else split_tasks(args.tasks)
    if "captioning" in tasks:
        raise ValueError("--tasks captioning: words are tokens as they are; --oracle has nothing to measure")
    problems = Problems(lost="kept")
    split = open_data(args, problems, tasks)
    points = (split.keypoint_annotations or {"annotations": []})["annotations"]
    labels = sorted({item["category_id"] for item in points if any(item.get("keypoints", ()))}) or [1]
    table = {}
    for bins in args.oracle_bins:
        processor = build_oracle(
            bins, split.id2label, image_size=args.image_size, max_points=args.max_points, keypoint_labels=labels
        )
        found = {}
        for task in tasks:
            truth = split.keypoint_annotations if task == "keypoint_detection" else split.annotations
            found[task] = answer_by_tokens(task, truth, processor)
        table[bins] = score(split, found, args.engine)
    if args.json is not None:
        options = {name: getattr(args, name) for name in ("oracle_bins", "image_size", "max_points", "max_images")}
        content = {**describe(args, split), "options": options, "oracle": {str(bins): table[bins] for bins in table}}
        args.json.write(content)
    columns = ("AP", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large")
    print(f"{len(split.dataset)} pictures, input of {args.image_size} pixels, outlines of {args.max_points} points")
    print(f"{'':<10}{'bins':>6}" + "".join(f"{name.replace('AP_', ''):>8}" for name in columns))
    for task in tasks:
        for bins, numbers in table.items():
            cells = (f"{_percent(numbers[task].get(name, -1)):>8}" for name in columns)
            print(f"{NAMES[task]:<10}{bins:>6}" + "".join(cells))
    name_problems({}, problems)
    return int(bool(problems.left_out))


# --- A run that is still going on -------------------------------------------------------------------------------------


def run_watch(args: argparse.Namespace) -> int:
    """Evaluate the checkpoints of a run as they come."""
    from safetensors.torch import load_model as load_weights
    from torch.utils.tensorboard import SummaryWriter

    from pix2seq_hf.data.problems import Problems
    from pix2seq_hf.evaluation.measure import measure
    from pix2seq_hf.evaluation.watching import watch
    from pix2seq_hf.training.checkpoints import AVERAGE_FILE, find_damage

    folder = Path(args.watch)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (the --output of pix2seq train)")
    if find_share(args.device)[0].count > 1:
        raise ValueError("--watch: takes one process")
    split, has_failed, problems = None, None, Problems(lost="kept")
    with SummaryWriter(str(folder / "tensorboard" / "evaluation")) as writer:

        def evaluate(step: int, path: Path) -> dict[str, Any]:
            nonlocal split, has_failed
            model, processor = load(str(path), args.device, args.dtype)
            if (path / AVERAGE_FILE).is_file():
                load_weights(model, path / AVERAGE_FILE)
            tasks = choose_tasks(args, model.config, str(path))
            split = split or open_data(args, problems, tasks, model.config.num_keypoints, model.config.id2label)
            question = build_question(args, tasks, split, model.config)
            show = not args.quiet
            measured = measure(
                model, processor, split, question, batch_size=args.batch_size, show_progress=show, engine=args.engine
            )
            print(f"step {step}: " + "  ".join(headline(task, each) for task, each in measured.numbers.items()))
            sys.stdout.flush()
            for task, numbers in measured.numbers.items():
                for name, value in numbers.items():
                    if isinstance(value, (int, float)):
                        writer.add_scalar(f"{task}/{name}", value, step)
            pace = measured.num_asked / measured.seconds
            writer.add_scalar("evaluation/pictures_per_second", pace, step)
            writer.flush()
            if has_failed is None:  # they are the same for every checkpoint
                name_problems(measured.failures, problems)
                has_failed = bool(measured.failures or problems.left_out)
            facts = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "pictures_per_second": pace}
            return {**facts, "num_failed": len(measured.failures), "tasks": measured.numbers}

        number = watch(folder, evaluate, find_damage, args.interval)
    print(f"{number} checkpoint{'s' * (number != 1)} of {folder} evaluated; the run has ended")
    return int(bool(has_failed))


# --- What is said and written -----------------------------------------------------------------------------------------


def print_numbers(
    numbers: Mapping[str, Mapping[str, float]], results: Mapping[str, Sequence[Any]], boxes: str | None = None
) -> None:
    """Print the numbers of every task."""
    from pix2seq_hf.evaluation.boxes import format_box_metrics

    for task, metrics in numbers.items():
        malformed = f", {metrics['num_malformed']} malformed" if "num_malformed" in metrics else ""
        if task == "object_detection":
            print(format_box_metrics(metrics))
            if "VOC_AP50" in metrics:
                print(f"by VOC's rules: AP 50 {_percent(metrics['VOC_AP50'])}")
            print(f"{len(results[task])} boxes{malformed}")
        elif task == "captioning":
            print(f"{headline(task, metrics)}{malformed}")
        else:
            asked = "" if boxes is None else f" for {boxes} boxes"
            print(f"{task}{asked}: {headline(task, metrics)}{malformed}")


def headline(task: str, metrics: Mapping[str, float]) -> str:
    """The most important numbers of a task."""
    if task == "captioning":
        scores = (name for name in ("BLEU_4", "CIDEr", "BLEU_4_simple", "CIDEr_simple") if name in metrics)
        shown = "".join(f"  {name} {_percent(metrics[name])}" for name in scores)
        return "captioning: {reproduced} of {num_captions} captions word for word".format(**metrics) + shown
    shown = "  ".join(f"{name} {_percent(metrics[name])}" for name in ("AP", "AP_50", "AP_75"))
    return f"{NAMES[task]} {shown}"


def name_problems(failures: Mapping[int, str], problems: Any) -> None:
    """Name what was mended in the annotations, and the first pictures that could not be used or left out."""
    mended = [problem for problem in problems.found if not problem.is_error]
    for kind, count in Counter(problem.kind for problem in mended).items():
        message = next(problem.message for problem in mended if problem.kind == kind)
        more = f" ({count} of this kind, see pix2seq data inspect)" if count > 1 else ""
        print(f"pix2seq evaluate: {message}{more}", file=sys.stderr)
    lines = [f"picture {image_id} could not be used: {reason}" for image_id, reason in failures.items()]
    lines += [f"left out, with what is annotated: {problem.message}" for problem in problems.left_out]
    if len(lines) > MOST_NAMED:
        lines[MOST_NAMED:] = [f"and {len(lines) - MOST_NAMED} pictures more (--json FILE has all)"]
    for line in lines:
        print(f"pix2seq evaluate: {line}", file=sys.stderr)


def describe_pace(num_pictures: int, num_asked: int, pace: float | None) -> str:
    """How many pictures, how fast."""
    before = f" ({num_pictures - num_asked} were finished before)" if num_asked < num_pictures else ""
    return f"{num_pictures} pictures{before}" + ("" if pace is None else f", {pace:.2f} pictures per second")


def describe(args: argparse.Namespace, split: Any) -> dict[str, Any]:
    """What was measured with what, for the file of numbers."""
    from pix2seq_hf.training.run_info import versions

    return {
        "model": args.model,
        "data": args.data,
        "split": args.split,
        "num_images": len(split.dataset),
        "versions": versions(),
    }


def write_outputs(
    args: argparse.Namespace,
    split: Any,
    numbers: Mapping[str, Mapping[str, float]],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the file of numbers and the report, where they are asked for; return the tables of classes if they are."""
    tables = class_tables(args, split, results) if args.per_class else {}
    facts = {**facts, **({"per_class": tables} if tables else {})}
    if args.json is not None:
        names = (*KEPT_OPTIONS[4:], "max_images", "image_ids", "batch_size", "results")
        options = {name: getattr(args, name) for name in names}
        args.json.write({**describe(args, split), **facts, "options": options, "tasks": dict(numbers)})
    if args.report is not None:
        facts = {name: getattr(args, name) for name in ("model", "data", "split")}
        report(args.report, split, numbers, results, facts)
    return tables


def add_voc(args: argparse.Namespace, split: Any, numbers: dict, results: Mapping[str, Any]) -> None:
    """On a data set in VOC's layout, give the numbers of boxes by its rules, too."""
    from pix2seq_hf.data.sources import find_layout
    from pix2seq_hf.evaluation.voc import evaluate_voc

    if "object_detection" in results and find_layout(args.data) == "voc":
        found = evaluate_voc(split.annotations, results["object_detection"])
        numbers["object_detection"] |= {f"VOC_{name}": found[name] for name in ("AP50", "AP50_11_points")}


def class_tables(args: argparse.Namespace, split: Any, results: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of every class, by task."""
    from pix2seq_hf.evaluation.coco_numbers import per_class

    tables = {}
    for task in (task for task in ALL_TASKS[:3] if task in results):
        truth = split.keypoint_annotations if task == "keypoint_detection" else split.annotations
        tables[task] = per_class(truth, results[task], NAMES[task], engine=args.engine)
    return tables


def print_tables(tables: Mapping[str, Any]) -> None:
    """Print what [`class_tables`] returns."""
    from pix2seq_hf.evaluation.tables import format_class_table

    for task, table in tables.items():
        print(f"\n{NAMES[task]}\n{format_class_table(table)}")


def report(
    folder: str,
    split: Any,
    numbers: Mapping[str, Any],
    results: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write the report of every task."""
    from PIL import Image

    from pix2seq_hf.evaluation.report import write_report

    rows = {int(image_id): row for row, image_id in enumerate(split.dataset["image_id"])}

    def load_picture(image_id: int) -> Image.Image:
        return Image.fromarray(split.load(rows[image_id])["image"].permute(1, 2, 0).numpy())

    truths = {"keypoint_detection": split.keypoint_annotations, "captioning": split.caption_annotations}
    for task, found in results.items():
        truth = truths.get(task, split.annotations)
        write_report(Path(folder), task, truth, found, numbers[task], split.id2label, load_picture, facts)


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 139,285") from None
