r"""BLEU and CIDEr in plain Python, for machines without Java.

The scores are those of the COCO caption evaluation for the same words (tests compare them with pycocoevalcap's). The
words are not: papers split captions with the Stanford tokenizer, which is a Java program, and [`split_words`] differs
from it in "isn't", brackets, numbers and more, so that numbers from its words must not be compared with theirs."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

MAX_ORDER = 4
LENGTH_DEVIATION = 6.0  # words by which a caption may differ in length before CIDEr punishes it hard
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

Words = Sequence[str]


def split_words(caption: str) -> list[str]:
    """Lower-case words of a caption, without punctuation; a hyphen or an apostrophe inside stays part of the word."""
    return _WORD.findall(caption.lower())


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]], max_order: int = MAX_ORDER) -> list[float]:
    r"""Compute BLEU of a whole set of captions, without smoothing.

    Args:
        captions (`Sequence[Words]`): One per picture, as words.
        references (`Sequence[Sequence[Words]]`): Those of the annotations, per picture; at least one.
        max_order (`int`): Length of the longest runs of words.
    Returns:
        `list[float]`: BLEU-1 up to BLEU-`max_order`; the reference closest in length decides whether a caption is too
        short, the shorter one if two are.
    Source: Papineni and others, "BLEU: a method for automatic evaluation of machine translation", 2002."""
    hits, tries = [0] * max_order, [0] * max_order
    length = closest = 0
    for words, others in zip(captions, references, strict=True):
        length += len(words)
        closest += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for order in range(1, max_order + 1):
            counts, most = Counter(_runs(words, order)), Counter()
            for other in others:
                most |= Counter(_runs(other, order))
            hits[order - 1] += sum((counts & most).values())
            tries[order - 1] += sum(counts.values())
    if not length:
        return [0.0] * max_order
    brevity = min(0.0, 1 - closest / length)
    scores, total = [], 0.0
    for order, (hit, tried) in enumerate(zip(hits, tries, strict=True), start=1):
        total += math.log(hit / tried) if hit else -math.inf
        scores.append(math.exp(brevity + total / order))
    return scores


def cider(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    r"""Compute CIDEr-D, which the COCO evaluation calls CIDEr: likeness of runs of words, rare runs counting more.

    Args:
        captions (`Sequence[Words]`): One per picture, as words.
        references (`Sequence[Sequence[Words]]`): Those of the annotations, per picture; at least one. How rare a run
            is, is counted in them, so that the score of few pictures means little and that of one is 0.
    Returns:
        `float`: 10 times the mean over pictures; people reach about 0.9, good models on COCO about 1.2.
    Source: Vedantam and others, "CIDEr: consensus-based image description evaluation", 2015, section 5."""
    num_pictures = len(captions)
    if not num_pictures:
        return 0.0
    pictures = Counter(run for others in references for run in {run for other in others for run in _all_runs(other)})

    def weigh(words: Words) -> list[dict[tuple[str, ...], float]]:
        """Counts of runs, by order, times the logarithm of how rare they are."""
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_ORDER)]
        for run, count in Counter(_all_runs(words)).items():
            weights[len(run) - 1][run] = count * math.log(num_pictures / max(1, pictures[run]))
        return weights

    total = 0.0
    for words, others in zip(captions, references, strict=True):
        ours = weigh(words)
        for other in others:
            # Departure from the paper, as in the evaluation's code: lengths are counted in pairs of words.
            difference = max(len(words) - 1, 0) - max(len(other) - 1, 0)
            penalty = math.exp(-(difference**2) / (2 * LENGTH_DEVIATION**2))
            total += penalty * sum(map(_likeness, ours, weigh(other))) / (MAX_ORDER * len(others))
    return 10 * total / num_pictures


def _likeness(ours: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    """Cosine of two weightings, where a run counts no more often than the reference has it."""
    lengths = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    return sum(min(weight, theirs.get(run, 0.0)) * theirs.get(run, 0.0) for run, weight in ours.items()) / (
        lengths or 1
    )


def _runs(words: Words, order: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _all_runs(words: Words) -> Iterable[tuple[str, ...]]:
    return (run for order in range(1, MAX_ORDER + 1) for run in _runs(words, order))
