r"""Make the folder of the model in the box out of a trained one: weights in bfloat16, a card with figures and curves.

examples:
  python benchmarks/pack_box_model.py --runs runs/box_model_near runs/box_model
  python benchmarks/pack_box_model.py --runs runs/box_model_near runs/box_model --json numbers.json --facts facts.json
  python benchmarks/pack_box_model.py --on --runs runs/box_model_cuts        (a lesson more for what is packed)
  python benchmarks/pack_box_model.py --json numbers.json --facts facts.json        (new figures for what is packed)

The last run's `final` is the model; the losses of all runs are drawn one behind the other. With --on the lessons of the
model that is packed stay in the table, before those of the runs. `benchmarks/box_model.py --output DIR` measures
(DIR/numbers.json, DIR/facts.json). Without --runs the model stays, and what its card says of its training.
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pix2seq_hf.card import build_card, read_evaluation, read_training
from pix2seq_hf.default_model import DEFAULT_MODEL
from pix2seq_hf.evaluation.charts import Curve, line_chart, to_image
from pix2seq_hf.task_captioning import Captioning

LOSS = "loss/"
TASKS = {  # of each its name on the chart, and its colour
    "object_detection": ("boxes", "blue"),
    "instance_segmentation": ("outlines", "orange"),
    "keypoint_detection": ("keypoints", "green"),
    "captioning": ("captions", "violet"),
}
HEAD = "| recipe | pictures | input | steps | batch, all tasks | hours |"  # of the table of lessons
NUM_POINTS = 48  # of a curve: means over as many stretches of the same length
TRAINING, MARKER = "## Training", "## Classes"  # of the card: facts go before the first, curves before the other
KEPT_WHOLE = ("running_mean", "running_var")  # in float32: a few kilobytes that every feature is divided by


def main(arguments: list[str] | None = None) -> int:
    """Write the folder; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", metavar="DIR", help="the lessons, the last one last")
    parser.add_argument("--on", action="store_true", help="the first run began with the model that is packed")
    parser.add_argument("--json", nargs="*", default=[], metavar="FILE", help="results of pix2seq evaluate")
    parser.add_argument("--facts", metavar="FILE", help="results of benchmarks/box_model.py")
    parser.add_argument("--output", default=DEFAULT_MODEL, metavar="DIR", help="default: %(default)s")
    args = parser.parse_args(arguments)
    output = Path(args.output)
    if args.on and not args.runs:
        parser.error("--on: give the lessons that come after with --runs")
    earlier = read_lessons(output) if args.on else []
    if args.runs:
        runs = [Path(run) for run in args.runs]
        pack_weights(runs[-1] / "final", output)
        training = read_training(runs[-1] / "final")
    elif not args.json:
        parser.error("give --runs to pack them, or --json for new figures of what is packed")
    else:
        runs, training = [], {}
        told = (output / "README.md").read_text(encoding="utf-8").partition(TRAINING)[2].partition(MARKER)[0]
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    evaluations = [read_evaluation(Path(name)) for name in args.json]
    card = build_card("box_model", config, evaluations, training, "apache-2.0")
    before, marker, after = card.partition(MARKER)
    if runs:
        curves = read_curves(runs)
        if curves:
            chart = line_chart("Losses of the tasks while it was trained", curves, "thousand steps", "loss")
            to_image(chart).convert("P").save(output / "curves.png", optimize=True)
        before += describe_lessons(runs, bool(curves), earlier) + "\n\n"
    else:
        before = before.partition(TRAINING)[0] + TRAINING + told
    head, training_marker, tail = before.partition(TRAINING)
    facts = json.loads(Path(args.facts).read_text(encoding="utf-8")) if args.facts else {}
    text = "".join([head, *(part + "\n\n" for part in describe_facts(facts)), training_marker, tail, marker, after])
    (output / "README.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")
    return 0


def pack_weights(final: Path, output: Path) -> None:
    """Copy a trained model, with weights in bfloat16 and captions that are not drawn by chance."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(final, output)
    weights = load_file(output / "model.safetensors")
    save_file(
        {name: halve(name, table) for name, table in weights.items()}, output / "model.safetensors", {"format": "pt"}
    )
    (output / "model.safetensors").chmod(0o644)
    (output / "training.json").unlink(missing_ok=True)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"  # what it is computed in unless somebody says otherwise
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = json.loads((output / "generation_config.json").read_text(encoding="utf-8"))
    # A caption of scenes is right or wrong: the likeliest one says more that is true than a drawn one.
    if settings := generation["task_settings"].get(str(Captioning.prompt_id)):
        settings["do_sample"] = False
    (output / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def halve(name: str, table: torch.Tensor) -> torch.Tensor:
    """A table of weights as it is stored."""
    is_kept = not table.is_floating_point() or name.endswith(KEPT_WHOLE)
    return table if is_kept else table.to(torch.bfloat16)


def read_curves(runs: Sequence[Path]) -> list[Curve]:
    """The loss of every task over the steps of all runs, one behind the other; none if nothing was logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, list[tuple[float, float]]] = {}
    start = 0
    for run in runs:
        log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
        log.Reload()
        steps = [0]
        for tag in log.Tags()["scalars"]:
            if tag.startswith(LOSS):
                for event in log.Scalars(tag):
                    points.setdefault(tag.removeprefix(LOSS), []).append(((start + event.step) / 1000, event.value))
                    steps.append(event.step)
        start += max(steps)
    curves = []
    for task, (name, color) in TASKS.items():
        stretches: dict[int, list[tuple[float, float]]] = {}
        for point in points.get(task, ()):
            stretches.setdefault(int(point[0] * 1000 * NUM_POINTS / (start + 1)), []).append(point)
        if stretches:
            x, y = np.array([np.mean(stretch, axis=0) for stretch in stretches.values()]).T
            curves.append(Curve(name, x, y, color))
    return curves


def read_lessons(folder: Path) -> list[str]:
    """Rows of the table that [`describe_lessons`] wrote into a card."""
    lines = (folder / "README.md").read_text(encoding="utf-8").partition(HEAD)[2].strip().splitlines()[1:]
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines))


def describe_lessons(runs: Sequence[Path], has_curves: bool, earlier: Sequence[str] = ()) -> str:
    """What was trained one after the other, as a table; `earlier` are rows of lessons before."""
    lines = ["**Lessons**", "", HEAD, "| --- | --- | ---: | ---: | ---: | ---: |", *earlier]
    for run in runs:
        info = json.loads((run / "run.json").read_text(encoding="utf-8"))
        recipe = info["recipe"]
        height, width = recipe["model"]["config"]["image_size"]
        tasks = [task for task in info["samples"] if recipe.get(task)]
        batch = sum(recipe[task]["batch_size"] or recipe["training"]["batch_size"] for task in tasks)
        counts = info["data"]["num_pictures"]
        pictures = "drawn scenes without end" if None in counts else f"{sum(counts):,} drawn scenes"
        hours = hours_of(info)
        lines.append(
            f"| `{run.name}` | {pictures} | {height} x {width} | {info['total_steps']:,} | {batch} | {hours} |"
        )
    which = " of the lessons that came last" if earlier else ""
    picture = f"\n\n![losses of the four tasks fall over the steps{which}](curves.png)" if has_curves else ""
    return "\n".join(lines) + picture


def hours_of(info: Mapping[str, Any]) -> str:
    """How long a run took, as its `run.json` tells."""
    starts = [start for start in info["starts"] if "end_time" in start]
    if len(starts) < len(info["starts"]):
        return "-"
    pairs = [(datetime.fromisoformat(start["time"]), datetime.fromisoformat(start["end_time"])) for start in starts]
    return f"{sum((end - begin).total_seconds() for begin, end in pairs) / 3600:.1f}"


def describe_facts(facts: Mapping[str, Sequence[int]]) -> list[str]:
    """How much of what its captions say is true, as a table; nothing if it was not measured."""
    if not facts:
        return []
    rows = [
        f"| {kind} | {right:,} of {total:,} | {right / total:.1%} |" for kind, (right, total) in facts.items() if total
    ]
    return ["**What captions say**", "\n".join(["| facts | right | share |", "| --- | ---: | ---: |", *rows])]


if __name__ == "__main__":
    sys.exit(main())
