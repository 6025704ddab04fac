r"""Write the model card of a model folder, README.md, with the results of evaluations where the Hub finds them.

examples:
  pix2seq evaluate --model runs/mine/final --data coco --json numbers.json
  pix2seq card --model runs/mine/final --json numbers.json --name me/street-detector
  hf upload me/street-detector runs/mine/final            (the whole folder, the card with it)

The card says what the model does and how it is used, its results (also as `model-index`), how it was trained, as far as
training.json and run.json in the folder or above it tell, its classes, and its limits. Read it, and add what only you
know. `push_to_hub` of a model takes the card of the folder that it was loaded from along, over one that its repository
has already: after further training, write a new card first.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .default_model import add_model_option

# Of each task its name for people, and the Hub's.
TASKS = {
    "object_detection": ("Object detection", "object-detection"),
    "instance_segmentation": ("Instance segmentation", "image-segmentation"),
    "keypoint_detection": ("Keypoint detection", "keypoint-detection"),
    "captioning": ("Captioning", "image-to-text"),
}
LONGEST_TABLE = 20  # classes; longer tables are folded
MOST_CLASSES = 2000  # that are listed at all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq card`."""
    add_model_option(parser)
    parser.add_argument(
        "--json", nargs="+", default=[], metavar="FILE", help="results, as pix2seq evaluate --json writes them"
    )
    parser.add_argument(
        "--name", metavar="OWNER/NAME", help="what the model will be called on the Hub (default: the folder's name)"
    )
    parser.add_argument(
        "--license", default="apache-2.0", metavar="ID", help="of the model, as the Hub names it (default: apache-2.0)"
    )
    parser.add_argument("--force", action="store_true", help="replace a README.md that is there")


def run(args: argparse.Namespace) -> int:
    """Write the card as the options say."""
    folder = Path(args.model)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "pix2seq":
        raise ValueError(f"{folder}: a model of the type {config.get('model_type')!r}, not of this package")
    path = folder / "README.md"
    if path.exists() and not args.force:
        raise ValueError(f"{path}: is there already; --force replaces it")
    evaluations = [read_evaluation(Path(name)) for name in args.json]
    card = build_card(args.name or name_of(folder), config, evaluations, read_training(folder), args.license)
    path.write_text(card, encoding="utf-8")
    num_results = sum(len(metrics(numbers)) for each in evaluations for numbers in each["tasks"].values())
    if not args.quiet:
        print(f"{path}: {num_results} results; upload the whole folder: hf upload OWNER/NAME {folder}")
    return 0


def build_card(
    name: str,
    config: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    training: Mapping[str, Any],
    license_id: str,
) -> str:
    r"""Put a model card together.

    Args:
        name (`str`): Of the model, with or without its owner.
        config (`Mapping`): Content of `config.json`.
        evaluations (`Sequence[Mapping]`): As [`read_evaluation`] returns them.
        training (`Mapping`): As [`read_training`] returns it.
        license_id (`str`): As the Hub names it.
    Returns:
        `str`: Metadata as YAML between two lines of dashes, then Markdown."""
    from huggingface_hub import ModelCard, ModelCardData

    tasks = [task for task in TASKS if task in config.get("tasks", ["object_detection"])]
    data = ModelCardData(
        license=license_id,
        library_name="transformers",
        pipeline_tag=TASKS[tasks[0]][1],
        tags=["pix2seq", "vision", *dict.fromkeys(TASKS[task][1] for task in tasks)],
        model_name=name.rpartition("/")[2],
        eval_results=[result for each in evaluations for result in list_results(each)] or None,
    )
    sections = [
        f"# {name.rpartition('/')[2]}",
        describe_model(config, tasks),
        f"## How to use it\n\n{describe_use(name, tasks)}",
        f"## Results\n\n{describe_results(evaluations, training)}",
        f"## Training\n\n{describe_training(training, config)}",
        f"## Classes\n\n{describe_classes(config)}",
        f"## Limits\n\n{describe_limits(tasks, evaluations)}",
        f"## Source\n\n{SOURCE}",
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    assert len(ModelCard(text).data.eval_results or []) == len(data.eval_results or [])  # the Hub's reader agrees
    return text


def list_results(evaluation: Mapping[str, Any]) -> list[Any]:
    r"""List the numbers of an evaluation as the Hub wants them.

    Args:
        evaluation (`Mapping`): As [`read_evaluation`] returns it.
    Returns:
        `list[huggingface_hub.EvalResult]`: One per number, without counts, and without those that are not known."""
    from huggingface_hub import EvalResult

    data = name_of(Path(str(evaluation.get("data", "unknown"))))
    kind = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in data.lower())
    return [
        EvalResult(
            task_type=TASKS[task][1],
            task_name=TASKS[task][0],
            dataset_type=kind or "unknown",
            dataset_name=describe_data(evaluation),
            dataset_split=evaluation.get("split"),
            metric_type=metric.lower(),
            metric_name=f"{metric.replace('_', ' ')}{describe_condition(task, evaluation)}",
            metric_value=round(value, 6),
        )
        for task, numbers in evaluation["tasks"].items()
        for metric, value in metrics(numbers).items()
    ]


def metrics(numbers: Mapping[str, Any]) -> dict[str, float]:
    """What can be quoted: no counts, no tables, and nothing that is unknown (-1, as pycocotools writes)."""
    return {
        name: float(value)
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        if math.isfinite(value) and value >= 0 and not name.startswith("num_") and name != "reproduced"
    }


def describe_data(evaluation: Mapping[str, Any]) -> str:
    """The data set in words; never the path that it has on somebody's machine."""
    words = f"{name_of(Path(str(evaluation.get('data', 'unknown'))))} {evaluation.get('split') or ''}".strip()
    options = evaluation.get("options") or {}
    if (options.get("max_images") or options.get("image_ids")) and "num_images" in evaluation:
        words += f" ({evaluation['num_images']} of its pictures)"
    return words


def describe_condition(task: str, evaluation: Mapping[str, Any]) -> str:
    """What has to be said beside a number: that a model was given more than the picture."""
    boxes = (evaluation.get("options") or {}).get("boxes")
    if task in ("instance_segmentation", "keypoint_detection") and boxes not in (None, "detected"):
        return " (annotated boxes given)" if boxes == "annotated" else " (boxes given)"
    return ""


def describe_model(config: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """What it is, in one paragraph."""
    can = {
        "object_detection": "boxes with class names and scores",
        "instance_segmentation": "outlines of objects in given or detected boxes",
        "keypoint_detection": "keypoints of objects in given or detected boxes",
        "captioning": "captions",
    }
    height, width = config["image_size"]
    return (
        "A [Pix2Seq](https://arxiv.org/abs/2109.10852) model: it reads a picture and writes what it sees as a sequence "
        f"of tokens, from which come {join_words([can[task] for task in tasks])}. Pictures are scaled to fit into "
        f"{height} x {width} pixels (height x width); coordinates have {config.get('quantization_bins', 1000)} steps."
    )


def describe_use(name: str, tasks: Sequence[str]) -> str:
    """Code that can be copied."""
    asked = ", ".join(f'"{task}"' for task in tasks)
    parts = []
    if "object_detection" in tasks:
        parts.append(
            "```python\nfrom transformers import pipeline\n\nimport pix2seq_hf  # registers the model\n\n"
            f'detect = pipeline("object-detection", model="{name}")\n'
            'detect("street.jpg", threshold=0.3)\n'
            '# [{"score": 0.93, "label": "...", "box": {"xmin": 12, "ymin": 40, "xmax": 96, "ymax": 230}}, ...]\n```'
        )
    if tasks != ["object_detection"]:
        parts.append(
            "```python\nfrom transformers import pipeline\n\nimport pix2seq_hf  # registers the model\n\n"
            f'look = pipeline("pix2seq", model="{name}")\nlook("street.jpg", tasks=[{asked}])\n'
            '# {"objects": [{"score", "label", "box", "mask", "keypoints"}, ...], "captions": ["..."]}\n```'
        )
    parts.append(
        "Or without writing code:\n\n```sh\n"
        f"pix2seq predict street.jpg --model {name} --tasks {','.join(tasks)} --output found\n```"
    )
    return "\n\n".join(parts)


def was_trained_on(evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> bool:
    """Whether the run names the very data set and split that the model was evaluated on."""
    run = training.get("run", {})
    path, split = (run.get("data") or {}).get("path"), ((run.get("recipe") or {}).get("data") or {}).get("split")
    if not path or not evaluation.get("data"):
        return False
    return (name_of(Path(path)), split) == (name_of(Path(str(evaluation["data"]))), evaluation.get("split"))


def describe_results(evaluations: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> str:
    """A table per evaluation and task; shares are in per cent."""
    parts = []
    for evaluation in evaluations:
        for task, numbers in evaluation["tasks"].items():
            values = metrics(numbers)
            title = f"{TASKS[task][0]}{describe_condition(task, evaluation)} on {describe_data(evaluation)}"
            rows = [
                f"| {metric.replace('_', ' ')} | "
                f"{f'{100 * value:.1f} %' if metric.startswith(('AP', 'AR', 'VOC_AP')) else f'{value:.4g}'} |"
                for metric, value in values.items()
            ]
            parts.append("\n".join([f"**{title}**", "", "| metric | value |", "| --- | ---: |", *rows]))
        num_unused = (evaluation.get("num_failed") or 0) + len(evaluation.get("left_out") or ())
        if num_unused:
            verb = "picture was" if num_unused == 1 else "pictures were"
            parts.append(f"**{num_unused} {verb} missing or broken: the numbers are not quite the model's.**")
        if was_trained_on(evaluation, training):
            parts.append("**These pictures were used in training: the numbers say nothing about other pictures.**")
    if not parts:
        return "This model was not evaluated, or its results were not handed to `pix2seq card --json`."
    versions = {}
    for evaluation in evaluations:
        versions |= evaluation.get("versions") or {}
    used = ", ".join(f"{name} {versions[name]}" for name in ("pix2seq_hf", "torch", "transformers") if name in versions)
    last = f"Measured by `pix2seq evaluate`{f' ({used})' if used else ''}: AP and AR are those of the COCO evaluation."
    return "\n\n".join([*parts, last])


def describe_training(training: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What is known of how the model was trained."""
    run, state = training.get("run", {}), training.get("state", {})
    recipe, data = run.get("recipe") or {}, run.get("data") or {}
    starts = run.get("starts") or [{}]
    model, settings = recipe.get("model") or {}, recipe.get("training") or {}
    versions = starts[-1].get("versions") or {}
    libraries = ("pix2seq_hf", "torch", "transformers", "accelerate", "datasets")
    trained_on = name_of(Path(str(data["path"]))) if data.get("path") else None
    counts = [count for count in data.get("num_pictures") or () if count is not None]  # of every data set
    if trained_on and counts:
        trained_on += f", {sum(counts):,} pictures"
    started_from = model.get("pretrained")
    facts = {
        "data": trained_on,
        "samples": ", ".join(
            f"{task} without end" if number is None else f"{number:,} of {task}"
            for task, number in (run.get("samples") or {}).items()
        ),
        "parameters": f"{run['num_parameters']:,}" if "num_parameters" in run else None,
        "started from": name_of(Path(str(started_from))) if started_from else "random weights" if model else None,
        "steps": state.get("step"),
        "pictures per step": settings.get("batch_size"),
        "learning rate": (recipe.get("optimization") or {}).get("learning_rate"),
        "precision": settings.get("mixed_precision"),
        "device": " x ".join(
            str(part) for part in (starts[-1].get("num_processes"), starts[-1].get("device")) if part is not None
        ),
        "seed": settings.get("seed"),
        "ended": state.get("end"),
        "versions": ", ".join(f"{name} {versions[name]}" for name in libraries if name in versions),
        "commit": starts[-1].get("git_commit"),
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value not in (None, "")]
    if not rows:
        return "Nothing is known of its training beyond the configuration in `config.json`."
    return "\n".join(["| what | value |", "| --- | --- |", *rows])


def describe_classes(config: Mapping[str, Any]) -> str:
    """The label map, folded if it is long."""
    names = {int(label): str(name) for label, name in (config.get("id2label") or {}).items()}
    if not names:
        return "The configuration names no classes."
    shown = sorted(names.items())[:MOST_CLASSES]
    rows = "\n".join(f"| {label} | {escape_cell(name)} |" for label, name in shown)
    table = f"| id | name |\n| ---: | --- |\n{rows}"
    more = f"\n\nAnd {len(names) - len(shown)} more in `config.json`." if len(names) > len(shown) else ""
    if len(names) <= LONGEST_TABLE:
        return table + more
    return f"<details><summary>{len(names)} classes</summary>\n\n{table}\n\n</details>{more}"


def describe_limits(tasks: Sequence[str], evaluations: Sequence[Mapping[str, Any]]) -> str:
    """What users should know before they trust it."""
    limits = [
        "It knows only the classes above and sees the world as its training pictures show it; measure it on your own "
        "pictures before you rely on it.",
        "It is not made for decisions about people.",
    ]
    if "object_detection" in tasks:
        limits.append(
            "A score is the probability of a class at its place in the sequence: choose a threshold on pictures of "
            "your own (`pix2seq evaluate --report DIR` shows how far scores can be trusted)."
        )
    if {"instance_segmentation", "keypoint_detection"} & set(tasks):
        limits.append("Outlines and keypoints are written for boxes: a wrong box gives a wrong outline.")
    if "captioning" in tasks:
        limits.append("Captions are fluent even where they are wrong.")
    if not evaluations:
        limits.append("It was not evaluated.")
    return "\n".join(f"- {limit}" for limit in limits)


SOURCE = """\
Written by `pix2seq card`. The method:

```bibtex
@inproceedings{chen2022pix2seq,
  title={Pix2seq: A Language Modeling Framework for Object Detection},
  author={Chen, Ting and Saxena, Saurabh and Li, Lala and Fleet, David J. and Hinton, Geoffrey},
  booktitle={International Conference on Learning Representations},
  year={2022}
}
@inproceedings{chen2022unified,
  title={A Unified Sequence Interface for Vision Tasks},
  author={Chen, Ting and Saxena, Saurabh and Li, Lala and Lin, Tsung-Yi and Fleet, David J. and Hinton, Geoffrey},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}
```"""


def read_evaluation(path: Path) -> dict[str, Any]:
    r"""Read what `pix2seq evaluate --json` has written.

    Raises:
        ValueError: If the file holds something else, or a task that is not known."""
    content = read_json(path)
    tasks = content.get("tasks")
    if not isinstance(tasks, dict) or not all(isinstance(numbers, dict) for numbers in tasks.values()):
        raise ValueError(f"{path}: has no numbers by task: write it with pix2seq evaluate --json")
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"{path}: unknown task {task!r}: known are {', '.join(TASKS)}")
    return content


def read_training(folder: Path) -> dict[str, Any]:
    """What a run left: `training.json` beside the weights as "state", `run.json` there or of the run as "run"."""
    found = {}
    for key, places in {"state": [folder], "run": [folder, *folder.resolve().parents[:2]]}.items():
        name = "training.json" if key == "state" else "run.json"
        path = next((place / name for place in places if (place / name).is_file()), None)
        if path is not None:
            found[key] = read_json(path)
    return found


def read_json(path: Path) -> dict[str, Any]:
    r"""Read a JSON object.

    Raises:
        ValueError: If the file holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path}: not a JSON file") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return content


def name_of(path: Path) -> str:
    """The name of a model's or a data set's folder; that of the run for its `final` or a checkpoint."""
    parts = [part for part in path.parts if part not in ("/", ".", "..")]
    while len(parts) > 1 and (parts[-1] in ("final", "best", "checkpoints") or parts[-1].startswith("step-")):
        parts.pop()
    return parts[-1] if parts else path.resolve().name


def join_words(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def escape_cell(text: str) -> str:
    """A text that cannot break a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
