"""List the recipes of training, or show one.

examples:
  pix2seq recipes                                   (all of them, one line each)
  pix2seq recipes coco_vit_b_640                    (the file, with its comments)
  pix2seq recipes coco_vit_b_1024 --resolved        (every setting, after those of the recipe that it builds on)
  pix2seq recipes bccd --resolved --set training.steps=500
  pix2seq recipes laptop --path                     (where the file is)
  accelerate launch --config_file "$(pix2seq recipes accelerate/ddp --path)" scripts/train.py --recipe ...

A recipe of one's own is such a file. It may begin with `base: NAME`, a recipe of the package or a .yaml file beside it,
and say only what differs; `captioning: null` takes a task of the base away. `pix2seq train --recipe FILE` takes it, and
`--set key=value` changes any setting.
"""

import argparse
import dataclasses
import difflib
from pathlib import Path

import pix2seq_hf
from pix2seq_hf.outputs import add_json_option

# As `RECIPES` of arguments.py, whose import takes seconds.
FOLDER = Path(pix2seq_hf.__file__).parent / "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq recipes`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe of the package, or the path of a .yaml file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--resolved", action="store_true", help="every setting, also those that the file leaves out")
    what.add_argument("--path", action="store_true", help="only where the file is")
    add_json_option(parser, "the list, or the settings of the recipe")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="with --resolved, change a setting first; may be given several times",
    )


def run(args: argparse.Namespace) -> int:
    """Show what is asked for and return the exit code 0."""
    if args.overrides and not args.resolved:
        raise ValueError("--set goes with --resolved")
    if args.name is None:
        if args.resolved or args.path:
            raise ValueError(f"{'--resolved' if args.resolved else '--path'} needs the name of a recipe")
        print(overview(), end="")
        if args.json is not None:
            args.json.write([describe(name, path) for name, path in list_files().items()])
        return 0
    path = find_file(args.name)
    import yaml

    text = path.read_text(encoding="utf-8")
    if args.resolved:
        from pix2seq_hf.training.arguments import load_recipe

        recipe = dataclasses.asdict(load_recipe(path, args.overrides))
        recipe = {name: section for name, section in recipe.items() if section is not None}
        text = yaml.safe_dump(recipe, sort_keys=False)
    print(f"{path}\n" if args.path else text, end="")
    if args.json is not None:
        args.json.write({**describe(args.name, path), "settings": yaml.safe_load(text)})
    return 0


def describe(name: str, path: Path) -> dict[str, str]:
    """A file, for machines."""
    return {"name": name, "summary": summary_of(path), "path": str(path)}


def overview() -> str:
    """The names of all files with their summaries: recipes first, then the settings of `accelerate launch`."""
    summaries = {name: summary_of(path) for name, path in list_files().items()}
    width = max(map(len, summaries))
    return "".join(f"{name:{width}}  {summary}\n" for name, summary in summaries.items())


def list_files() -> dict[str, Path]:
    """Every YAML file of the folder of recipes by its name, those in folders (`accelerate/ddp`) last."""
    paths = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (len(path.relative_to(FOLDER).parts), path))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in paths}


def summary_of(path: Path) -> str:
    """The first comment line of a file, up to its colon if it has one."""
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    return first_line.removeprefix("#").partition(":")[0].strip().rstrip(".") if first_line.startswith("#") else ""


def find_file(name: str) -> Path:
    """Return the file of a name of [`list_files`], or of a path; a ValueError names the nearest one."""
    files = list_files()
    if name in files:
        return files[name]
    if Path(name).is_file():
        return Path(name)
    nearest = difflib.get_close_matches(name, files, n=1, cutoff=0.0)[0]
    raise ValueError(f"{name}: no such recipe; did you mean {nearest}? (`pix2seq recipes` lists them)")
