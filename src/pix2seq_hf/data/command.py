"""Look into data sets, convert them, draw new ones: COCO, VOC, YOLO, parquet, imagefolder, data sets of the Hub.

examples:
  pix2seq data inspect coco_mini
  pix2seq data inspect coco_mini --split train2017 --sheet sheet.png --json counts.json
  pix2seq data convert coco_mini --output coco_parquet
  pix2seq data scenes --output scenes --count 1000
  pix2seq data inspect --help

inspect prints classes, counts, sizes and every problem, and draws pictures with their annotations on a contact sheet.
convert writes parquet, which `datasets.load_dataset` and `pix2seq train --data` read.
scenes draws pictures with boxes, masks, keypoints and captions, as a COCO folder.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pix2seq_hf.outputs import add_json_option

INSPECT = """\
Print what is in a data set, and every problem that one pass over it finds; write a contact sheet.

examples:
  pix2seq data inspect coco_mini
  pix2seq data inspect bccd --split train --sheet bccd.png
  pix2seq data inspect photos.parquet --column boxes=faces.box --column box_format=xywh
  pix2seq data inspect detection-datasets/coco --split val --no-pictures

The exit code is 1 if something must be mended by hand before training (a picture that cannot be used, or neither an
object nor a caption in all of it), else 0.
"""
CONVERT = """\
Write a data set of any layout as parquet: OUT/data/SPLIT-00000-of-00001.parquet and a README.md with the classes.

examples:
  pix2seq data convert coco_mini --output coco_parquet
  pix2seq data convert bccd --output bccd_parquet --split train,val
  pix2seq data convert coco --output coco_light --pictures path
  python -c "import datasets; print(datasets.load_dataset('coco_parquet'))"

Pictures are decoded first: those that cannot be used are left out and named, and the exit code is then 1. An
interrupted conversion goes on where it was if the same command is given again.
"""
SCENES = """\
Draw scenes of people and things as a COCO folder: boxes, outlines, the 17 keypoints of people, five captions each.

examples:
  pix2seq data scenes --output scenes --count 1000
  pix2seq data scenes --output scenes --count 200 --split val
  pix2seq data scenes --output few --count 500 --size 128x160 --objects 1-3 --diameters 40-120
  pix2seq data inspect scenes --sheet sheet.png

A scene follows from --seed, --split and its number: the same command draws the same pictures, whatever --workers is.
Captions are true; their words for colours and places can be checked, see `pix2seq_hf.data.scene_captions`.
For scenes without end, without files: pix2seq train --data scenes --set data.streaming=true.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the commands of `pix2seq data` and their options."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    inspect = commands.add_parser("inspect", help="what is in a data set, what is wrong", description=INSPECT, **raw)
    convert = commands.add_parser("convert", help="write a data set as parquet", description=CONVERT, **raw)
    scenes = commands.add_parser("scenes", help="draw pictures with annotations", description=SCENES, **raw)
    scenes.add_argument("--output", required=True, metavar="DIR", help="the folder, new or with other splits")
    scenes.add_argument("--count", type=int, required=True, metavar="N", help="how many pictures")
    scenes.add_argument("--split", default="train", metavar="SPLIT", help="name of the split (default: train)")
    scenes.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed draws other pictures (default: 0)"
    )
    scenes.add_argument("--size", metavar="HEIGHTxWIDTH", help="pixels of a picture (default: 320x320)")
    scenes.add_argument("--objects", metavar="FEWEST-MOST", help="objects in a picture (default: 1-25)")
    scenes.add_argument("--diameters", metavar="FROM-TO", help="pixels of an object (default: 10-400)")
    scenes.add_argument("--points", metavar="N", help="points of an outline, at most (default: 56)")
    scenes.add_argument(
        "--workers", type=int, metavar="N", help="processes that draw (default: one for each processor)"
    )
    add_json_option(scenes, "what was written")
    for command in (inspect, convert):
        command.add_argument("data", metavar="DATA", help="a folder, a .parquet file, or a name on the Hub")
        command.add_argument(
            "--split", metavar="SPLIT,...", help="which splits (default: all, but none that only repeats others)"
        )
        command.add_argument(
            "--tasks", metavar="TASK,...", help="which annotations are read (default: all that are there)"
        )
        command.add_argument(
            "--num-keypoints", type=int, default=17, metavar="N", help="keypoints of an object (default: 17)"
        )
        command.add_argument(
            "--column",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="of parquet and the like, which column is what, for instance boxes=faces.box, box_format=xywh, "
            "names=cat,dog; may be given several times",
        )
        command.add_argument("--max-images", type=int, metavar="N", help="only the first N pictures of each split")
    inspect.add_argument(
        "--sheet", metavar="FILE.png", help="write pictures with their annotations (of several splits, FILE_SPLIT.png)"
    )
    inspect.add_argument("--sheet-size", type=int, default=16, metavar="N", help="pictures on the sheet (default: 16)")
    add_json_option(inspect, "the numbers and problems")
    inspect.add_argument("--no-pictures", action="store_true", help="do not open the pictures, which takes longest")
    convert.add_argument("--output", required=True, metavar="OUT", help="the folder to write")
    convert.add_argument(
        "--pictures",
        choices=("embed", "path"),
        default="embed",
        help="write the pictures into the files, or only where they are (default: embed)",
    )
    convert.add_argument(
        "--no-check", action="store_true", help="do not decode the pictures first; broken ones are written as they are"
    )
    convert.add_argument("--shard-size", type=int, default=500, metavar="MB", help="size of each file (default: 500)")
    convert.add_argument("--overwrite", action="store_true", help="replace OUT, if this command has written it")
    add_json_option(convert, "what was written, mended and left out")


def run(args: argparse.Namespace) -> int:
    """Run a command of `pix2seq data` and return its exit code."""
    for option in ("max_images", "sheet_size", "shard_size", "num_keypoints", "count", "workers"):
        value = getattr(args, option, None)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} {value}: must be at least 1")
    if args.command == "scenes":
        return run_scenes(args)
    import datasets

    from pix2seq_hf.data.rows import TASK_FEATURES

    for task in args.tasks.split(",") if args.tasks else ():
        if task not in TASK_FEATURES:
            raise ValueError(f"--tasks: unknown task {task!r}: known are {', '.join(TASK_FEATURES)}")
    datasets.disable_progress_bars()  # there is our own, and one for each of their steps says little
    columns = parse_columns(args.column)
    return run_inspect(args, columns) if args.command == "inspect" else run_convert(args, columns)


def parse_columns(pairs: Iterable[str]) -> dict[str, Any] | None:
    """The column map of `--column KEY=VALUE` options, or None without any."""
    columns: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--column {pair}: write KEY=VALUE, for instance boxes=faces.box")
        columns[key] = value.split(",") if key == "names" else value
    return columns or None


def open_named(
    args: argparse.Namespace, name: str, tasks: Sequence[str], columns: Mapping[str, Any] | None, problems: Any
) -> Any:
    """Open a split as the options say."""
    from pix2seq_hf.data.sources import open_split

    return open_split(
        args.data,
        name,
        max_images=args.max_images,
        tasks=tasks,
        num_keypoints=args.num_keypoints,
        columns=columns,
        problems=problems,
    )


def run_inspect(args: argparse.Namespace, columns: dict[str, Any] | None) -> int:
    """Inspect every split; print, draw and write what is asked for."""
    from pix2seq_hf.data import inspection
    from pix2seq_hf.data.problems import Problems
    from pix2seq_hf.data.sources import explain_split, list_parts
    from pix2seq_hf.outputs import check_file
    from pix2seq_hf.progress import open_bar

    if args.json is not None:
        args.json.check()
    if args.sheet is not None:
        check_picture_name(args.sheet)
        check_file(args.sheet, "--sheet")
    names = args.split.split(",") if args.split else list_parts(args.data)
    summaries, has_errors, num_read = {}, False, 0
    for name in names:
        problems, summary, sheet = Problems(keep_going=True), {}, None
        title = f"{args.data}, {name}"
        try:
            with explain_split(args.data, name, "--split NAME"):
                tasks = args.tasks.split(",") if args.tasks else inspection.find_tasks(args.data, name, columns)
                split = open_named(args, name, tasks, columns, problems)
            num_read += 1
            summary = {"tasks": tasks, **inspection.summarize(split)}
            if not args.no_pictures:
                shown = {"is_shown": not args.quiet, "is_kept": False}
                with open_bar(summary["pictures"], "picture", name, **shown) as bar:
                    summary["pictures_checked"] = len(inspection.check_pictures(split, problems, bar.update))
            if args.sheet:
                sheet = Path(args.sheet)
                sheet = sheet if len(names) == 1 else sheet.with_name(f"{sheet.stem}_{name}{sheet.suffix}")
                draw_sheet(split, args.sheet_size).save(sheet)
        except (ValueError, OSError) as error:
            if len(names) == 1 and not problems.found:
                raise
            problems.error("split that cannot be read", " ".join(str(error).split()))
        groups = inspection.group_problems(problems)
        print(inspection.format_summary(title, summary) if summary else title)
        print(inspection.format_problems(groups))
        if sheet is not None:
            print(f"  drawn: {sheet}")
        summaries[name] = {**summary, "problems": groups}
        has_errors |= bool(problems.errors)
    if num_read and not any(summary.get("objects") or summary.get("captions") for summary in summaries.values()):
        print(f"  error: nothing to learn from: no picture of {args.data} has an object or a caption")
        has_errors = True
    if args.json is not None:
        args.json.write({"data": str(args.data), "splits": summaries})
    return 2 if not num_read else int(has_errors)


def check_picture_name(path: str) -> None:
    """Raise a ValueError if the end of a file's name does not say in which format a picture is written."""
    from PIL import Image

    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--sheet {path}: its name must end like that of a picture: .png or .jpg")


def draw_sheet(split: Any, num_pictures: int) -> Any:
    r"""Draw pictures of a split with their annotations, evenly spread over it.

    Args:
        split ([`~data.rows.Split`]): As read.
        num_pictures (`int`): Most pictures; those that cannot be used are left out.
    Returns:
        `PIL.Image.Image`."""
    from PIL import Image

    from pix2seq_hf.configuration_pix2seq import COCO_SKELETON
    from pix2seq_hf.contact_sheet import arrange, draw_row
    from pix2seq_hf.data.rows import load_pixels

    num_rows, cells = len(split.dataset), []
    for number in range(min(num_rows, num_pictures)):
        row = split.dataset[number * num_rows // min(num_rows, num_pictures)]
        name = row["image"]["path"] or f"picture {row['image_id']}"
        with contextlib.suppress(ValueError, OSError):  # they are among the problems already
            pixels = load_pixels(name, tuple(row["image_size"]), row["image"].get("bytes"))
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            skeleton = COCO_SKELETON if all(len(each) in (0, 51) for each in row.get("keypoints_xyv", ())) else ()
            height, width = row["image_size"]
            count = f"{len(row['labels'])} object{'' if len(row['labels']) == 1 else 's'}"
            cells.append(
                (
                    f"{Path(name).name} · {width} x {height} · {count}",
                    draw_row(picture, row, split.id2label, skeleton),
                    next(iter(row.get("captions", ())), ""),
                )
            )
    if not cells:
        raise ValueError("none of the pictures can be drawn")
    return arrange(cells)


def run_convert(args: argparse.Namespace, columns: dict[str, Any] | None) -> int:
    """Read every split, write it, say what was mended and left out on the way; return 1 if a picture was left out."""
    from pix2seq_hf.data import inspection
    from pix2seq_hf.data.convert import check_output, convert_splits, select_rows
    from pix2seq_hf.data.problems import Problems
    from pix2seq_hf.data.sources import explain_split, list_parts
    from pix2seq_hf.outputs import make_folder
    from pix2seq_hf.progress import open_bar

    shown = {"is_shown": not args.quiet, "is_kept": False}
    make_folder(check_output(args.output, args.overwrite).parent, "--output")
    if args.json is not None:
        args.json.check()
    names = args.split.split(",") if args.split else list_parts(args.data)
    problems, splits, tasks = Problems(lost="left out"), {}, args.tasks.split(",") if args.tasks else None
    for name in names:
        with explain_split(args.data, name, "--split NAME"):
            tasks = tasks or inspection.find_tasks(args.data, name, columns)
            split = open_named(args, name, tasks, columns, problems)
        if not args.no_check:
            with open_bar(len(split.dataset), "picture", f"{name}: decoding", **shown) as bar:
                split = select_rows(split, inspection.check_pictures(split, problems, bar.update))
        if not len(split.dataset):
            raise ValueError(f"{args.data}, {name}: no picture can be used; the first: {problems.lost[0].message}")
        splits[name] = split
    total = sum(len(split.dataset) for split in splits.values())
    with open_bar(total, "picture", **shown) as bar:
        files = convert_splits(
            args.data,
            splits,
            args.output,
            args.pictures == "embed",
            args.shard_size * 1_000_000,
            args.overwrite,
            bar.update,
        )
    for problem in problems.lost:
        print(f"pix2seq data convert: left out: {problem.message}", file=sys.stderr)
    lost, problems.found = problems.lost, [problem for problem in problems.found if not problem.is_error]
    mended, size = inspection.group_problems(problems), sum(path.stat().st_size for path in files)
    if not args.quiet:
        if problems.found:
            print(inspection.format_problems(mended))
        left_out = f", {len(lost):,} left out," if lost else ""
        space = f"{len(files)} parquet files of {size / 1e6:,.1f} MB together"
        print(f"{args.output}: {total:,} pictures{left_out} in {space}")
        if args.pictures == "path":
            print("pictures stay where they are: readers need --column folder=DIR (in a recipe: columns.folder)")
    if args.json is not None:
        written = {"num_pictures": total, "files": list(map(str, files)), "num_bytes": size}
        left_out = [problem.message for problem in lost]
        args.json.write({"output": args.output, **written, "mended": mended, "left_out": left_out})
    return int(bool(lost))


def run_scenes(args: argparse.Namespace) -> int:
    """Draw and write; say what there is."""
    from pix2seq_hf.data.scene_folder import parse_options, write_scenes
    from pix2seq_hf.progress import open_bar

    settings = {name: getattr(args, name) for name in ("size", "objects", "diameters", "points")}
    options = parse_options({name: text for name, text in settings.items() if text is not None})
    if args.json is not None:
        args.json.check()
    with open_bar(args.count, "picture", is_shown=not args.quiet, is_kept=False) as bar:
        path = write_scenes(
            args.output, args.split, args.count, args.seed, options, args.workers or os.cpu_count(), bar.update
        )
    annotations = sorted(map(str, path.parent.glob(f"*_{args.split}.json")))
    if not args.quiet:
        names = f"{path.parent}/*_{args.split}.json"
        print(f"{args.output}: {args.count:,} pictures in {args.split}/, annotations in {names}")
        print(f"look at them: pix2seq data inspect {args.output} --split {args.split} --sheet sheet.png")
    if args.json is not None:
        written = {"split": args.split, "num_pictures": args.count, "annotations": annotations}
        args.json.write({"output": args.output, **written})
    return 0
