"""How good is a model on a data set: asks it about every picture once, and computes the numbers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pix2seq_hf.evaluation.answers import AnswerFolder, write_results
from pix2seq_hf.evaluation.boxes import evaluate_boxes
from pix2seq_hf.evaluation.captions import evaluate_captions
from pix2seq_hf.evaluation.coco_numbers import ENGINES
from pix2seq_hf.evaluation.keypoints import evaluate_keypoints
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.evaluation.predictions import Answer, Question, Results, answer, boxes_by_picture
from pix2seq_hf.progress import open_bar
from pix2seq_hf.task_base import add_counts

Numbers = dict[str, dict[str, float]]


class Measurement(NamedTuple):
    r"""What a model reached.

    Args:
        numbers (`dict[str, dict[str, float]]`): Metrics by task.
        results (`dict[str, list[dict]]`): What was found by task, in COCO results format.
        malformed (`dict[str, dict[str, int]]`): What broke the grammar, by task and kind.
        failures (`dict[int, str]`): Why which pictures could not be used. In the numbers, nothing was found in them.
        num_asked (`int`): Pictures that were asked about now, the others were finished before.
        seconds (`float`): That this took."""

    numbers: Numbers
    results: dict[str, Results]
    malformed: dict[str, dict[str, int]]
    failures: dict[int, str]
    num_asked: int
    seconds: float


class Share(NamedTuple):
    r"""The part of the pictures that this process is responsible for.

    Args:
        index (`int`): Of this process.
        count (`int`): Of all processes.
        gather (`Callable`): Called by every process with its list; returns the lists of all, one after the other."""

    index: int = 0
    count: int = 1
    gather: Callable[[list], list] = list


def measure(
    model: Any,
    processor: Any,
    split: Any,
    question: Question,
    *,
    batch_size: int = 8,
    show_progress: bool = False,
    share: Share | None = None,
    folder: AnswerFolder | None = None,
    engine: str = ENGINES[0],
    caption_tokenizer: str | None = "simple",
    use_spice: bool = False,
) -> Measurement:
    r"""Ask a model about every picture of a split and compare with the annotations.

    Args:
        model (`Pix2SeqForConditionalGeneration`): In evaluation mode.
        processor (`Pix2SeqProcessor`): That of the model.
        split (`data.rows.Split`): Pictures and ground truth, with what the tasks need.
        question ([`Question`]): What is asked.
        batch_size (`int`): Pictures at once.
        show_progress (`bool`): Show a progress bar of this process' pictures.
        share ([`Share`], *optional*): For several processes, each of which computes the same numbers in the end.
        folder ([`AnswerFolder`], *optional*): Remembers every picture; its finished ones are not asked about. Has what
            was found in COCO results format before the numbers are computed.
        engine, caption_tokenizer, use_spice: See [`score`].
    Returns:
        [`Measurement`]."""
    share = share or Share()
    ids = [int(image_id) for image_id in split.dataset["image_id"]]
    before = {} if folder is None else folder.finished
    todo = [row for row, image_id in enumerate(ids) if image_id not in before]
    share.gather([])  # all have read the folder before one writes into it
    start = time.perf_counter()
    answers = []
    for found in ask_all(
        model, processor, split, todo[share.index :: share.count], question, batch_size, show_progress
    ):
        if folder is not None:
            folder.write(found)
        answers.append(found)
    if folder is not None:
        folder.close()
    answers = {found.image_id: found for found in share.gather(answers)}
    seconds = time.perf_counter() - start
    everything = [answers.get(image_id) or before[image_id] for image_id in ids]
    results = {task: [item for found in everything for item in found.results.get(task, ())] for task in question.tasks}
    malformed = {task: add_counts(found.malformed.get(task, {}) for found in everything) for task in question.tasks}
    if folder is not None and share.index == 0:
        write_results(folder.folder, results)
    numbers = score(split, results, engine, caption_tokenizer, use_spice)
    for task in question.tasks:
        numbers[task]["num_malformed"] = sum(malformed[task].values())
    failures = {found.image_id: found.failure for found in everything if found.failure is not None}
    return Measurement(numbers, results, malformed, failures, len(todo), seconds)


def ask_all(
    model: Any,
    processor: Any,
    split: Any,
    rows: Sequence[int],
    question: Question,
    batch_size: int,
    show_progress: bool = False,
) -> Iterator[Answer]:
    r"""Ask a model about pictures, batch after batch; while it writes, the next ones are read.

    Args:
        rows (`Sequence[int]`): Of the split's data set.
        others: See [`measure`].
    Yields:
        [`Answer`]: Of every row; a picture that cannot be used has a `failure`."""
    config = model.config
    asked = None if question.boxes is None else boxes_by_picture(question.boxes, question.min_score)

    def load(batch: Sequence[int]) -> tuple[list[dict[str, Any]], list[Answer]]:
        records, failures = [], []
        for row in batch:
            try:
                records.append(split.load(row, config.max_points_per_object, config.num_keypoints))
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                failures.append(Answer(int(split.dataset[row]["image_id"]), {}, {}, reason))
        return records, failures

    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    with (
        open_bar(len(rows), "picture", is_shown=show_progress) as bar,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(load, batches[0]) if batches else None
        for number, batch in enumerate(batches, start=1):
            records, failures = waiting.result()
            if number < len(batches):
                waiting = pool.submit(load, batches[number])
            yield from failures
            if records:
                yield from answer(model, processor, records, question, asked)
            bar.update(len(batch))


def score(
    split: Any,
    results: Mapping[str, Results],
    engine: str = ENGINES[0],
    caption_tokenizer: str | None = "simple",
    use_spice: bool = False,
) -> Numbers:
    r"""Compare what was found with the annotations.

    Args:
        split (`data.rows.Split`): The ground truth, with what the tasks need.
        results (`Mapping[str, list[dict]]`): In COCO results format, by task.
        engine (`str`): What computes COCO's numbers, see `coco_numbers.ENGINES`.
        caption_tokenizer (`str`, *optional*), use_spice (`bool`): See [`evaluate_captions`]; by default what needs no
            Java.
    Returns:
        `dict[str, dict[str, float]]`: Metrics by task.
    Raises:
        ValueError: If results do not fit the ground truth."""
    numbers: Numbers = {}
    for task, found in results.items():
        if task == "object_detection":
            numbers[task] = evaluate_boxes(split.annotations, found, engine=engine)
        elif task == "instance_segmentation":
            numbers[task] = evaluate_masks(split.annotations, found, engine=engine)
        elif task == "keypoint_detection":
            numbers[task] = evaluate_keypoints(split.keypoint_annotations, found, engine=engine)
        else:
            numbers[task] = score_captions(split.caption_annotations, found, caption_tokenizer, use_spice)
    return numbers


def score_captions(
    ground_truth: Mapping[str, Any], results: Results, tokenizer: str | None = "simple", use_spice: bool = False
) -> dict[str, float]:
    """Metrics of captions; pictures of the ground truth that people wrote none for do not count."""
    without = {image["id"] for image in ground_truth.get("images") or ()}
    without -= {item["image_id"] for item in ground_truth["annotations"]}
    counted = [item for item in results if item.get("image_id") not in without]
    return evaluate_captions(ground_truth, counted, tokenizer=tokenizer, use_spice=use_spice)
