"""Look at a whole data set, on any number of processes: objects with masks and keypoints, and captions, as parquet.

examples:
  pix2seq predict-dataset --data photos/ --output found
  pix2seq predict-dataset --data coco --split val2017 --model vit-b --output found --threshold 0 --coco
  accelerate launch scripts/predict.py --data photos/ --model all-tasks --output found          (on all GPUs)
  accelerate launch --num_processes 8 scripts/predict.py --data owner/name --split test --model vit-b --output found
  ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/predict.py --data photos/ --model vit-b --output found
  python -c "import datasets; print(datasets.load_dataset('parquet', data_files='found/*.parquet'))"

The data are a folder of pictures (those in the folders in it included), a parquet file or a folder of them, pictures
with metadata, a folder of save_to_disk, a name on the Hub, or a COCO, VOC or YOLO folder. Annotations are not needed.

The pictures are dealt out in parts of --chunk-size: of N processes each writes every N-th part. After a stop the same
command goes on, also with another number of processes: parts that are there are not made again. Other options or other
pictures are refused. What the model draws by chance depends on --seed, --batch-size and --chunk-size alone. Only the
main process waits for the others, at the end. It says which parts are missing; the exit code is then 1, as it is if a
picture has no result.

In the output folder:
  part-NUMBER.parquet   a row per picture: index, image_id, file_name, width, height, tasks, objects (label_id, label,
                        score, box_xyxy in pixels, rle, keypoints), captions, malformed, and error instead where the
                        picture could not be used
  manifest.json         the options, and how many pictures there are
  results.json, keypoints.json, captions.json, images.json   with --coco: as pix2seq predict writes them
"""

import argparse
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from .data.pictures import PictureError
from .default_model import add_model_option
from .prediction import (
    add_running_arguments,
    add_task_arguments,
    check_options,
    find_processes,
    load_model,
    set_precision,
    task_options,
)

# What rows depend on: a run is only continued with the same.
KEPT_OPTIONS = (
    *("data", "split", "limit", "column", "chunk_size", "batch_size", "model", "tasks", "threshold", "classes"),
    *("max_objects", "max_points", "num_samples", "num_captions", "allowed_words", "stop_when_noise", "greedy", "seed"),
    *("int8", "max_pixels"),
)
THREADS = 4  # that read pictures while the model is busy with those before
MOST_NAMED = 10  # missing parts and pictures with errors that are named one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq predict-dataset`."""
    parser.add_argument("--data", required=True, metavar="DATA", help="a folder, a parquet file, or a name on the Hub")
    add_model_option(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="where the parts go; made if it is missing")
    parser.add_argument(
        "--split", default="train", help="which part of the data (default: train); a folder of pictures has none"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="of parquet and the like, which column has the pictures or their ids: image=photo, image_id=number",
    )
    parser.add_argument(
        "--chunk-size",
        type=int,
        default=128,
        metavar="N",
        help="pictures in a part, a multiple of --batch-size; what is killed loses no more per process (default: 128)",
    )
    parser.add_argument("--coco", action="store_true", help="write the results in COCO's formats too, at the end")
    add_task_arguments(parser)
    add_running_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do this process's share and return the exit code: of the main process 1 if parts or results are missing."""
    check_options(args)
    if args.chunk_size % args.batch_size:
        raise ValueError(f"--chunk-size {args.chunk_size}: must be a multiple of --batch-size {args.batch_size}")
    if args.json is not None:
        args.json.check()

    from .data.command import parse_columns  # here and below only when needed: --help should not wait for it
    from .data.numbered import open_pictures
    from .prediction_shards import ShardFolder

    state = find_processes(args.device)
    worker, num_workers, is_main = state.process_index, state.num_processes, state.is_main_process
    one_each = num_workers > 1 and args.device == "auto"
    model, processor = load_model(args.model, str(state.device) if one_each else args.device)
    if args.int8:
        set_precision(model, "int8")
    options = task_options(args, model, processor, has_boxes=False)
    pictures = open_pictures(args.data, args.split, args.limit, parse_columns(args.column))
    folder = ShardFolder(args.output, args.chunk_size)
    manifest = describe(args, pictures)
    start = time.monotonic()
    with folder.hold(worker):
        if is_main:
            folder.write_manifest(manifest)
        meet(state)
        num_pictures = folder.check_manifest(manifest)
        finished = folder.finished(num_pictures)
        if num_pictures is None or len(finished) < -(-num_pictures // args.chunk_size):
            write_share(args, pictures, model, processor, options, folder, worker, num_workers, finished, is_main)
            num_pictures = pictures.num_pictures
        if not is_main:
            return 0
        wait_for_others(folder, num_workers, args.quiet)
        missing = folder.missing(num_pictures)
        if missing:
            say_missing(folder, missing, num_pictures)
            if args.json is not None:
                args.json.write({"output": str(folder.path), "num_pictures": num_pictures, "missing_parts": missing})
            return 1
        folder.write_manifest({**manifest, "num_pictures": num_pictures})
    written = ["parquet", *(folder.write_coco(model.config.id2label) if args.coco else [])]
    errors = [f"{row['file_name']}: {row['error']}" for row in folder.rows(["file_name", "error"]) if row["error"]]
    say_some((f"has no result: {error}" for error in errors[:MOST_NAMED]), len(errors), "pictures")
    before, seconds = min(num_pictures, len(finished) * args.chunk_size), time.monotonic() - start
    if not args.quiet:
        done = f"{num_pictures} pictures ({before} of them before), {len(errors)} without a result"
        print(f"{done}, {seconds:.1f} s: {folder.path} ({', '.join(written)})")
    if args.json is not None:
        counts = {"num_pictures": num_pictures, "num_before": before, "seconds": seconds, "missing_parts": []}
        args.json.write({"output": str(folder.path), **counts, "without_result": errors})
    return int(bool(errors))


def describe(args: argparse.Namespace, pictures: Any) -> dict[str, Any]:
    """What is written in the manifest: the options, and which pictures there are."""
    kept = {name: getattr(args, name) for name in KEPT_OPTIONS}
    kept |= {name: os.path.realpath(kept[name]) for name in ("data", "model") if os.path.exists(kept[name])}
    return {**kept, "num_pictures": pictures.num_pictures, "fingerprint": pictures.fingerprint}


def meet(state: Any) -> None:
    """Wait until every process holds its place and the manifest is written; after this they never communicate."""
    try:
        state.wait_for_everyone()
    except RuntimeError as error:
        raise ValueError(f"another process ended before the run began: {str(error).splitlines()[0]}") from None
    state.destroy_process_group()


def write_share(
    args: argparse.Namespace,
    pictures: Any,
    model: Any,
    processor: Any,
    options: Any,
    folder: Any,
    worker: int,
    num_workers: int,
    finished: set[int],
    show_progress: bool,
) -> None:
    """Write every `num_workers`-th part that is not there, beginning with number `worker`."""
    from .prediction_shards import make_row
    from .progress import open_bar

    def is_mine(first: int) -> bool:
        chunk = first // args.chunk_size
        return chunk % num_workers == worker and chunk not in finished

    total = pictures.num_pictures
    if total is not None:
        total = sum(min(args.batch_size, total - k) for k in range(0, total, args.batch_size) if is_mine(k))
    rows: list[dict[str, Any]] = []
    title = f"process {worker + 1} of {num_workers}"
    with open_bar(total, "picture", title, is_shown=show_progress and not args.quiet) as bar:
        for batch, images in read_ahead(pictures.batches(args.batch_size, is_mine), args.max_pixels):
            if rows and rows[0]["index"] // args.chunk_size != batch[0].index // args.chunk_size:
                folder.write(rows[0]["index"] // args.chunk_size, rows)
                rows = []
            usable = [image for image in images if isinstance(image, Image.Image)]
            seeded = dataclasses.replace(options, seed=seed_of(args.seed, batch[0].index))
            results = iter(ask(model, processor, usable, seeded))
            for picture, image in zip(batch, images, strict=True):
                answer = next(results) if isinstance(image, Image.Image) else image
                result, error = (None, answer) if isinstance(answer, str) else (answer, None)
                rows.append(make_row(picture.index, picture.image_id, picture.name, result, error))
            bar.update(len(batch))
        if rows:
            folder.write(rows[0]["index"] // args.chunk_size, rows)


def read_ahead(batches: Iterable[list[Any]], max_pixels: int) -> Iterator[tuple[list[Any], list[Image.Image | str]]]:
    """Batches with their decoded pictures, or what is wrong with one; the next batch is read meanwhile."""

    def load(picture: Any) -> Image.Image | str:
        try:
            return picture.load(max_pixels)
        except (PictureError, OSError) as error:
            return str(error).removeprefix(f"{picture.name}: ")

    with ThreadPoolExecutor(THREADS) as pool:
        before = None
        for batch in batches:
            now = batch, [pool.submit(load, picture) for picture in batch]
            if before is not None:
                yield before[0], [task.result() for task in before[1]]
            before = now
        if before is not None:
            yield before[0], [task.result() for task in before[1]]


def seed_of(seed: int, index: int) -> int:
    """The seed of the batch that begins with a picture: it depends on neither processes nor what was done before."""
    import numpy as np

    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def ask(model: Any, processor: Any, images: list[Image.Image], options: Any) -> list[Any]:
    r"""Run the tasks on pictures; if that fails, on each alone, so that one bad picture costs no other.

    Returns:
        `list[Pix2SeqResult | str]`: Per picture what was found, or why there is nothing.
    Raises:
        RuntimeError: If memory ran out, or the accelerator is broken: that is no picture's fault."""
    import torch

    from .engine import run_tasks

    try:
        return run_tasks(model, processor, images, options)
    except Exception as error:  # whatever a strange picture leads to
        is_machine = isinstance(error, (MemoryError, torch.AcceleratorError)) or "memory" in str(error)
        if is_machine:
            raise
        if len(images) == 1:
            return [f"{type(error).__name__}: {' '.join(str(error).split())}"]
    return [answer for image in images for answer in ask(model, processor, [image], options)]


def wait_for_others(folder: Any, num_workers: int, is_quiet: bool) -> None:
    """Wait until no other process is alive that could write a part."""
    has_said = is_quiet
    while any(folder.is_held(other) for other in range(1, num_workers)):
        if not has_said:
            print("waiting for the other processes", file=sys.stderr)
            has_said = True
        time.sleep(1)


def say_missing(folder: Any, missing: list[int], num_pictures: int) -> None:
    """Name the parts that are missing, and the command that completes them."""
    say_some((f"missing: {folder.part(chunk)}" for chunk in missing[:MOST_NAMED]), len(missing), "parts")
    parts = -(-num_pictures // folder.chunk_size)
    program = [sys.executable] if sys.argv[0].endswith(".py") else []
    command = shlex.join([*program, *sys.argv])
    print(
        f"{len(missing)} of {parts} parts are missing, for a process has ended early; this completes them, on any "
        f"number of processes: {command}",
        file=sys.stderr,
    )


def say_some(lines: Iterable[str], count: int, what: str) -> None:
    """Print the first lines of a list, and how many more there are."""
    for line in lines:
        print(f"pix2seq predict-dataset: {line}", file=sys.stderr)
    if count > MOST_NAMED:
        print(f"pix2seq predict-dataset: and {count - MOST_NAMED} more {what}", file=sys.stderr)
