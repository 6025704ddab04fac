"""How an evaluation is shown to people: a page and pictures that say what a model does well, and what goes wrong."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import pix2seq_hf
from pix2seq_hf.contact_sheet import arrange, draw_items, side_by_side
from pix2seq_hf.evaluation import charts, page
from pix2seq_hf.evaluation.caption_scores import split_words
from pix2seq_hf.evaluation.curves import (
    RECALLS,
    Threshold,
    best_threshold,
    calibrate,
    class_precision,
    outcomes,
    precision_recall,
    score_histogram,
)
from pix2seq_hf.evaluation.errors import (
    ERRORS,
    Judgement,
    count_confusions,
    count_kinds,
    count_objects,
    gains,
    judge,
    raise_threshold,
)
from pix2seq_hf.evaluation.matches import match_results, matched_pictures

TITLES = {
    "object_detection": "Object detection",
    "instance_segmentation": "Instance segmentation",
    "keypoint_detection": "Keypoint detection",
    "captioning": "Captioning",
}
IOU_TYPES = {"object_detection": "bbox", "instance_segmentation": "segm", "keypoint_detection": "keypoints"}

# Of each kind of error its name, what it means, and its colour.
KINDS = {
    "wrong_class": ("wrong class", "on an object, but of another class", "violet"),
    "badly_placed": ("badly placed", "right class, overlaps its object with 0.1 to 0.5 only", "orange"),
    "both": ("class and place", "wrong class, and overlaps with 0.1 to 0.5 only", "red"),
    "duplicate": ("duplicate", "on an object that a better result has found", "sky"),
    "background": ("background", "where nothing is annotated", "pale"),
    "missed": ("missed", "objects that nothing was found for", "blue"),
}
METRICS = {
    "AP": "average precision, mean over overlaps of 0.50 to 0.95",
    "AP_50": "average precision at an overlap of 0.50",
    "AP_75": "average precision at an overlap of 0.75",
    "AP_small": "of objects below 32² pixels",
    "AP_medium": "of objects of 32² to 96² pixels",
    "AP_large": "of objects above 96² pixels",
    "AR": "recall, mean over overlaps of 0.50 to 0.95",
    "AR_50": "recall at an overlap of 0.50",
    "AR_75": "recall at an overlap of 0.75",
    "AR_max_1": "recall with one result per picture and class",
    "AR_max_10": "recall with ten results",
    "AR_max_100": "recall with a hundred results",
    "AR_small": "recall of small objects",
    "AR_medium": "recall of medium objects",
    "AR_large": "recall of large objects",
    "VOC_AP50": "average precision at an overlap of 0.50, by VOC's rules since 2010",
    "VOC_AP50_11_points": "by VOC's rules of 2007",
    "BLEU_1": "words that are in an annotated caption",
    "BLEU_4": "runs of up to four words that are in an annotated caption",
    "CIDEr": "likeness to the annotated captions, rare words count more",
    "num_malformed": "parts of the written sequences that are no answer",
    "reproduced": "captions that are word for word an annotated one",
    "num_captions": "captions",
}
FIRST_METRICS = (
    "AP", "AP_50", "AP_75", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "BLEU_4_simple", "CIDEr_simple"
)  # fmt: skip
IN_PERCENT = ("AP", "AR", "VOC_AP")  # how names of numbers begin that are shown in per cent

NUM_PICTURES = 6  # most of the best, and of the worst
MIN_CALIBRATED = 0.05  # results of lower scores, of which there are many, would hide all others
MOST_CONFUSIONS = 10
SHEET_CELL = (860, 360)


class Rated(NamedTuple):
    r"""How well a model did on one picture.

    Args:
        image_id (`int`): The picture.
        quality (`float`): In `[0, 1]`.
        weight (`float`): Of equals, the one with more is shown.
        caption (`str`): Says it in words."""

    image_id: int
    quality: float
    weight: float
    caption: str


def write_report(
    folder: Path | str,
    task: str,
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, Any],
    names: Mapping[int, str],
    load_picture: Callable[[int], Image.Image],
    facts: Mapping[str, Any] | None = None,
) -> Path:
    r"""Write `TASK.html`, which holds all it shows, and its charts and pictures as `TASK_*.png` for other uses.

    Args:
        folder (`Path`): Made if it is missing; files of the same names are replaced.
        task (`str`): One of `TITLES`.
        truth (`Mapping`): What is annotated, in COCO form.
        results (`Sequence[Mapping]`): What was found, in COCO results format.
        numbers (`Mapping`): The task's metrics.
        names (`Mapping[int, str]`): Name of each label id.
        load_picture (`Callable[[int], PIL.Image.Image]`): Gives the picture of an image id; called for those that are
            shown, and one for which it raises an `OSError` or a `ValueError` is left out.
        facts (`Mapping`, *optional*): What stands under the title, for example the model and the data set.
    Returns:
        `Path`: The page.
    Raises:
        ValueError: For an unknown task, or a result for a picture outside the ground truth."""
    if task not in TITLES:
        raise ValueError(f"no report for {task!r}: known are {', '.join(TITLES)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, charts.Chart] = {}
    threshold = None
    if task == "captioning":
        parts, rated = [], rate_captions(truth, results)
    elif task == "keypoint_detection":
        evaluation = match_results(truth, results, "keypoints")
        parts, rated = _precision_section(evaluation, drawn, "similarity"), rate_keypoints(evaluation)
    else:
        evaluation = match_results(truth, results, IOU_TYPES[task])
        parts, rated, threshold = _describe_objects(evaluation, truth, names, drawn)

    best, worst = choose_pictures(rated)
    title = TITLES[task]
    sides = _Sides(task, truth, results, names, load_picture, 0.0 if threshold is None else threshold.score)
    for name, chosen, none in (
        ("worst", worst, "No picture has a mistake." if rated else "There is no picture to compare."),
        ("best", best, "There is no other picture with anything right."),
    ):
        shown = [(item, pair) for item in chosen if (pair := sides.draw(item.image_id)) is not None]
        figures = [
            page.picture_figure(f"{item.image_id}", item.caption, [("annotated", pair[0]), ("found", pair[1])])
            for item, pair in shown
        ]
        content = page.grid("pictures", figures) if figures else page.paragraph(none)
        parts.append(page.section(f"The {name} pictures", content))
        path = folder / f"{task}_{name}.png"
        path.unlink(missing_ok=True)
        if shown:
            cells = [
                (f"{item.image_id}: annotated, and found", _fit(side_by_side(pair)), item.caption)
                for item, pair in shown
            ]
            arrange(cells, 2, SHEET_CELL).save(path)
    for name, chart in drawn.items():
        charts.to_image(chart).save(folder / f"{task}_{name}.png")

    head = [
        *((name, str(value)) for name, value in (facts or {}).items() if value is not None),
        ("pictures", page.count(len(truth["images"])).text),
        ("captions" if task == "captioning" else "objects", page.count(len(truth["annotations"])).text),
        ("results", page.count(len(results)).text),
    ]
    page_parts = [page.tiles(_first_numbers(numbers, threshold)), *parts, _numbers_section(numbers)]
    foot = f"Written by pix2seq_hf {pix2seq_hf.__version__}."
    if task != "captioning":
        foot += " Matches and precision are those of pycocotools; kinds of errors follow TIDE (Bolya et al., 2020)."
    path = folder / f"{task}.html"
    path.write_text(page.build_page(title, head, page_parts, foot), encoding="utf-8")
    return path


def rate_objects(judgements: Sequence[Judgement], objects: Mapping[int, int], names: Mapping[int, str]) -> list[Rated]:
    r"""Rate pictures by F1: twice the correct results, of all results and objects; those with neither are left out.

    Args:
        judgements (`Sequence[Judgement]`): At the threshold that counts.
        objects (`Mapping[int, int]`): Number of objects by picture.
        names (`Mapping[int, str]`): Name of each label id."""
    by_image: dict[int, list[Judgement]] = {}
    for judgement in judgements:
        by_image.setdefault(judgement.image_id, []).append(judgement)
    rated = []
    for image_id, mine in by_image.items():
        counts = count_kinds(mine)
        num_results = len(mine) - counts["missed"]
        f1 = 2 * counts["correct"] / (num_results + objects.get(image_id, 0))
        said = [f"{counts['correct']} correct"]
        for kind in ERRORS:
            if counts[kind]:
                which = list_names([item.category_id for item in mine if item.kind == kind], names)
                said.append(f"{counts[kind]} {KINDS[kind][0]} ({which})")
        caption = f"F1 {f1:.2f}: {', '.join(said)}."
        rated.append(Rated(image_id, f1, len(mine), caption))
    return rated


def rate_keypoints(evaluation: Any) -> list[Rated]:
    """Rate pictures by how similar the nearest result of every annotated object is, on average (1 is the same)."""
    best: dict[int, list[float]] = {}
    for entry in matched_pictures(evaluation):
        key = entry["image_id"], entry["category_id"]
        similarities = evaluation.ious[key]
        for place, item in enumerate(evaluation._gts[key]):
            if not item["ignore"]:
                nearest = float(similarities[:, place].max()) if len(similarities) else 0.0
                best.setdefault(entry["image_id"], []).append(nearest)
    return [
        Rated(
            image_id,
            math.fsum(values) / len(values),
            len(values),
            f"Similarity {math.fsum(values) / len(values):.2f} on average of {len(values)} annotated.",
        )
        for image_id, values in best.items()
    ]


def rate_captions(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[Rated]:
    """Rate pictures by the words that their caption shares with the annotated one nearest to it: F1 of both."""
    references: dict[int, list[str]] = {}
    for item in truth["annotations"]:
        references.setdefault(item["image_id"], []).append(item["caption"])
    rated = []
    for item in results:
        shared = max(
            (shared_words(item["caption"], text) for text in references.get(item["image_id"], [])), default=0.0
        )
        rated.append(
            Rated(item["image_id"], shared, 1, f"{100 * shared:.0f} % of the words as in an annotated caption.")
        )
    return rated


def shared_words(caption: str, reference: str) -> float:
    """F1 of the words of two sentences, without regard to their order, to capitals and to points and commas."""
    written, wanted = Counter(split_words(caption)), Counter(split_words(reference))
    total = written.total() + wanted.total()
    return 2 * (written & wanted).total() / total if total else 1.0


def choose_pictures(rated: Sequence[Rated]) -> tuple[list[Rated], list[Rated]]:
    """The best pictures, and the worst of those that are not perfect; none is both, and each are half at most."""
    most = min(NUM_PICTURES, max(1, len(rated) // 2))
    worst = sorted((item for item in rated if item.quality < 1), key=lambda item: (item.quality, -item.weight))[:most]
    others = [item for item in rated if item.quality > 0 and item not in worst]
    return sorted(others, key=lambda item: (-item.quality, -item.weight))[:most], worst


def list_names(labels: Sequence[int], names: Mapping[int, str]) -> str:
    """Class names, the most frequent first, each with its number if there are several; at most four."""
    counts = Counter(names.get(label, f"class {label}") for label in labels).most_common()
    texts = [name if number == 1 else f"{number} {name}" for name, number in counts[:4]]
    return ", ".join([*texts, "\N{HORIZONTAL ELLIPSIS}"] if len(counts) > 4 else texts)


def show_score(score: float) -> str:
    """A score with two digits, or with as many more as tell it from 1: models that are sure differ in the last ones."""
    digits = next((digits for digits in range(2, 7) if score == 1 or round(score, digits) < 1), 7)
    return f"{score:.{digits}f}"


class _Sides:
    """What is annotated in a picture and what was found, drawn."""

    def __init__(self, task, truth, results, names, load_picture, min_score):
        self.task, self.names, self.load_picture = task, names, load_picture
        kept = [item for item in results if item.get("score", 1.0) >= min_score]
        self.items = [_by_picture(truth["annotations"]), _by_picture(kept)]
        bones = next((item["skeleton"] for item in truth.get("categories", ()) if item.get("skeleton")), ())
        self.skeleton = [(first - 1, second - 1) for first, second in bones]  # COCO counts from 1

    def draw(self, image_id: int) -> list[Image.Image] | None:
        try:
            picture = self.load_picture(image_id).convert("RGB")
        except (OSError, ValueError):
            return None
        return [
            draw_items(picture, items.get(image_id, []), self.task, self.names, self.skeleton) for items in self.items
        ]


def _by_picture(items: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for item in items:
        by_image.setdefault(item["image_id"], []).append(item)
    return by_image


def _describe_objects(
    evaluation: Any, truth: Mapping[str, Any], names: Mapping[int, str], drawn: dict[str, charts.Chart]
) -> tuple[list[str], list[Rated], Threshold]:
    """The sections on boxes or masks, their pictures' ratings, and the threshold at which errors are counted."""
    annotations, objects = truth["annotations"], count_objects(evaluation)
    judgements = judge(evaluation)
    scores, is_correct = outcomes(judgements)
    threshold = best_threshold(scores, is_correct, sum(objects.values()))
    kept = raise_threshold(judgements, annotations, threshold.score)
    by_image: Counter[int] = Counter()
    for entry in matched_pictures(evaluation):
        by_image[entry["image_id"]] += int((1 - entry["gtIgnore"]).sum())
    parts = [
        *_precision_section(evaluation, drawn, "overlap"),
        _errors_section(judgements, kept, annotations, objects, threshold, names, drawn),
        _scores_section(scores, is_correct, drawn),
        _classes_section(evaluation, kept, annotations, objects, names),
    ]
    return [part for part in parts if part], rate_objects(kept, by_image, names), threshold


def _precision_section(evaluation: Any, drawn: dict[str, charts.Chart], what: str) -> list[str]:
    curves = precision_recall(evaluation)
    if not curves:
        return []
    mean = sum(curves.values()) / len(curves)
    lines = [
        charts.Curve(f"{what} 0.50", RECALLS, curves[0.5], "blue"),
        charts.Curve("0.75", RECALLS, curves[0.75], "orange"),
        charts.Curve("mean of 0.50 to 0.95", RECALLS, mean, "ink", True),
    ]
    chart = charts.curve_chart("Precision and recall", lines, "recall", "precision")
    overlaps = list(curves)
    line = charts.Curve("average precision", overlaps, [curve.mean() for curve in curves.values()], "blue")
    drawn["precision_recall"] = chart
    drawn["overlaps"] = charts.curve_chart(
        f"Average precision by {what}", [line], f"least {what}", "average precision", overlaps[::2] + overlaps[-1:]
    )
    figures = [
        page.chart_figure(
            chart,
            "What share of the results is correct when so many of the objects shall be found: on average over the "
            "classes. The area below a curve is the average precision.",
        ),
        page.chart_figure(
            drawn["overlaps"],
            f"How exact results are: the more {what} with its object a correct one must have, the fewer are correct.",
        ),
    ]
    return [page.section("Precision and recall", page.grid("charts", figures))]


def _errors_section(
    judgements: Sequence[Judgement],
    kept: Sequence[Judgement],
    annotations: Sequence[Mapping[str, Any]],
    objects: Mapping[int, int],
    threshold: Threshold,
    names: Mapping[int, str],
    drawn: dict[str, charts.Chart],
) -> str:
    counts, gained = count_kinds(kept), gains(judgements, annotations, objects)
    bars = [(KINDS[kind][0], counts[kind], page.count(counts[kind]).text, KINDS[kind][2]) for kind in ERRORS]
    drawn["errors"] = charts.bar_chart("Errors by kind", f"errors, scores from {show_score(threshold.score)}", bars)
    bars = [(KINDS[kind][0], gained[kind], f"{100 * gained[kind]:+.1f}", KINDS[kind][2]) for kind in ERRORS]
    drawn["gains"] = charts.bar_chart("What mending a kind would gain", "gain of AP at 0.50, in points", bars)
    rows = [(KINDS[kind][0], page.count(counts[kind]), page.percent(gained[kind]), KINDS[kind][1]) for kind in ERRORS]
    parts = [
        page.paragraph(
            f"Counted are results of a score of at least {show_score(threshold.score)}, the threshold at which "
            f"precision ({100 * threshold.precision:.0f} %) and recall ({100 * threshold.recall:.0f} %) are best "
            f"balanced, F1 {threshold.f1:.2f}: {counts['correct']} of them are correct. Gains are over all scores."
        ),
        page.grid(
            "charts",
            [
                page.chart_figure(drawn["errors"], "How often each kind of error occurs."),
                page.chart_figure(
                    drawn["gains"],
                    "What average precision would gain if this kind alone were mended; gains do not add up.",
                ),
            ],
        ),
        page.table(("kind", "number", "gain of AP 50", "what it is"), rows),
    ]
    confusions = count_confusions(kept, annotations).most_common(MOST_CONFUSIONS)
    if confusions:
        rows = [(_name(names, truth), _name(names, found), page.count(number)) for (truth, found), number in confusions]
        parts += [page.paragraph("Classes that were taken for others:"), page.table(("is", "found as", "number"), rows)]
    return page.section("What goes wrong", *parts)


def _scores_section(scores: Any, is_correct: Any, drawn: dict[str, charts.Chart]) -> str:
    is_counted = scores >= MIN_CALIBRATED
    scores, is_correct = scores[is_counted], is_correct[is_counted]
    if not len(scores):
        return ""
    calibration = calibrate(scores, is_correct)
    drawn["calibration"] = charts.calibration_chart("Calibration of scores", calibration)
    drawn["scores"] = charts.histogram_chart("Scores of results", *score_histogram(scores, is_correct))
    below = (
        f"Results of scores below {MIN_CALIBRATED} are left out, {page.count(int((~is_counted).sum())).text} of them."
    )
    captions = [
        f"How many of the results with a score are correct. On the diagonal a score of 0.7 is right seven times out of "
        f"ten; the mean distance from it, the expected calibration error, is {calibration.expected_error:.3f}. {below}",
        "How the scores of correct and of wrong results are spread.",
    ]
    figures = [
        page.chart_figure(drawn[name], text) for name, text in zip(("calibration", "scores"), captions, strict=True)
    ]
    return page.section("Can the scores be trusted", page.grid("charts", figures))


def _classes_section(
    evaluation: Any,
    kept: Sequence[Judgement],
    annotations: Sequence[Mapping[str, Any]],
    objects: Mapping[int, int],
    names: Mapping[int, str],
) -> str:
    """A table with a row for every class that has objects."""
    precision = class_precision(evaluation)
    if not precision:
        return ""
    found, correct, errors = Counter(), Counter(), {}
    for item in kept:
        label = item.category_id
        if item.kind == "wrong_class":  # an error with the object, so it is listed there
            label = annotations[item.annotation]["category_id"]
        if item.result is not None:
            found[item.category_id] += 1
        if item.kind == "correct":
            correct[label] += 1
        else:
            errors.setdefault(label, Counter())[item.kind] += 1
    rows = []
    for label, values in sorted(precision.items(), key=lambda pair: -pair[1]["AP"]):
        worst = errors.get(label, Counter()).most_common(1)
        rows.append(
            (
                _name(names, label),
                page.count(objects[label]),
                page.percent(values["AP"]),
                page.percent(values["AP_50"]),
                page.percent(values["AP_75"]),
                page.percent(correct[label] / found[label] if found[label] else math.nan, 0),
                page.percent(correct[label] / objects[label], 0),
                f"{KINDS[worst[0][0]][0]} ({worst[0][1]})" if worst else "",
            )
        )
    heads = ("class", "objects", "AP", "AP 50", "AP 75", "precision", "recall", "most frequent error")
    text = "In per cent; precision and recall at the threshold above. A click on a name sorts the table."
    return page.section("Classes", page.paragraph(text), page.table(heads, rows, is_sortable=True))


def _first_numbers(numbers: Mapping[str, Any], threshold: Threshold | None) -> list[tuple[str, str]]:
    """The numbers that stand large at the top."""
    chosen = [name for name in FIRST_METRICS if name in numbers] or list(_plain(numbers))[:5]
    values = [(name.replace("_", " "), _show(name, numbers[name]).text) for name in chosen]
    if threshold is not None:
        values += [
            ("precision at best F1", f"{100 * threshold.precision:.0f} %"),
            ("recall at best F1", f"{100 * threshold.recall:.0f} %"),
        ]
    return values


def _numbers_section(numbers: Mapping[str, Any]) -> str:
    rows = [(name, _show(name, value), METRICS.get(name, "")) for name, value in _plain(numbers).items()]
    text = "AP and AR are in per cent; a dash where no such object is annotated."
    is_coco = any(name.startswith("AP") for name in numbers)
    return page.section(
        "All numbers", page.paragraph(text) if is_coco else "", page.table(("name", "value", "what it is"), rows)
    )


def _plain(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers, not tables."""
    return {
        name: value
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _show(name: str, value: float) -> page.Number:
    if isinstance(value, int):
        return page.count(value)
    return page.percent(value) if name.startswith(IN_PERCENT) else page.Number(value, f"{value:.3f}")


def _name(names: Mapping[int, str], label: int) -> str:
    return str(names.get(label, f"class {label}"))


def _fit(picture: Image.Image) -> Image.Image:
    """A picture that fits into a cell of the sheet."""
    picture.thumbnail(SHEET_CELL, Image.Resampling.LANCZOS)
    return picture
