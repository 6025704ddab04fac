r"""What is said about a drawn scene, and how much of what a caption says is true.

A caption is made of phrases (`two red cars`, `a person in blue`, `a crowd of people`) and relations between two of them
(`to the left of`). [`facts`] reads any sentence for them, so that generated captions can be scored word for meaning.
Objects are annotations in COCO's form with a `color`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pix2seq_hf.data.scene_things import COLORS, PLURALS, SCENE_CLASSES

NUMBERS = ("two", "three", "four", "five", "six")  # from 2 on; more are many
MANY = len(NUMBERS) + 2
# Where the middle of the first object lies, seen from the second, in units of the larger of the two distances.
RELATIONS = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
KINDS = ("class", "count", "color", "relation", "crowd")


class Phrase(NamedTuple):
    r"""A part of a sentence that stands for objects.

    Args:
        name (`str`): Of the class.
        number (`int`, *optional*): How many there are: 2 to 6, `MANY` for more; `None` for at least one.
        color (`str`, *optional*): Of each of them.
        is_crowd (`bool`): Whether they are a crowd, in which nobody counts."""

    name: str
    number: int | None = None
    color: str | None = None
    is_crowd: bool = False


class Fact(NamedTuple):
    r"""Something that a caption says.

    Args:
        kind (`str`): One of `KINDS`.
        phrase ([`Phrase`]): Of what.
        relation (`str`, *optional*): A key of `RELATIONS`.
        other ([`Phrase`], *optional*): What the relation is to."""

    kind: str
    phrase: Phrase
    relation: str | None = None
    other: Phrase | None = None


def facts(caption: str) -> list[Fact]:
    r"""List what a sentence says; words that say nothing are passed over.

    Args:
        caption (`str`): Any text.
    Returns:
        `list[Fact]`: In the order of the sentence. A phrase says that its class is there (`class`), and if it is so
        precise, that one of its class has the colour (`color`) and how many there are (`count`)."""
    found: list[Fact] = []
    before, end = None, 0
    text = " ".join(re.findall(r"[a-z]+|[.,;]", caption.lower().replace("grey", "gray")))
    for match in _PHRASE.finditer(text):
        number, color, noun, shirt = match.groups()
        name = _NAMES[noun]
        is_crowd = number is not None and number.endswith("crowd of")
        count = NUMBERS.index(number) + 2 if number in NUMBERS else MANY if number == "many" else None
        phrase = Phrase(name, count, color or shirt, is_crowd)
        if is_crowd:
            found.append(Fact("crowd", phrase))
        else:
            found.append(Fact("class", phrase))
            if phrase.color:
                found.append(Fact("color", phrase))
            if count:
                found.append(Fact("count", phrase))
        relation = text[end : match.start()].strip()
        if before is not None and relation in RELATIONS:
            found.append(Fact("relation", before, relation, phrase))
        before, end = phrase, match.end()
    return found


def is_true(fact: Fact, objects: Sequence[Mapping[str, Any]]) -> bool:
    r"""Check a fact.

    Args:
        fact ([`Fact`]): As of [`facts`].
        objects (`Sequence[Mapping]`): Annotations of a picture: `category_id`, `bbox`, `iscrowd` and `color`."""
    matching = _matching(fact.phrase, objects, needs_color=fact.kind != "class")
    if fact.kind == "count":
        return min(len(matching), MANY) == fact.phrase.number
    if fact.kind == "relation":
        others = _matching(fact.other, objects, needs_color=True)
        return any(_holds(fact.relation, first, second) for first in matching for second in others)
    return bool(matching)


def count_facts(captions: Iterable[str], scenes: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, tuple[int, int]]:
    r"""Count how much of what captions say is true.

    Args:
        captions (`Iterable[str]`): One of each picture.
        scenes (`Iterable[Sequence[Mapping]]`): Annotations of each picture, as for [`is_true`].
    Returns:
        `dict[str, tuple[int, int]]`: For each of `KINDS` and for `"all"`, how many are right, of how many; a caption
        that says nothing counts as one wrong fact in `"all"`."""
    counts = {kind: np.zeros(2, int) for kind in (*KINDS, "all")}
    for caption, objects in zip(captions, scenes, strict=True):
        said = facts(caption)
        for fact in said:
            result = (int(is_true(fact, objects)), 1)
            counts[fact.kind] += result
            counts["all"] += result
        if not said:
            counts["all"] += (0, 1)
    return {kind: (int(right), int(total)) for kind, (right, total) in counts.items()}


def write_captions(rng: np.random.Generator, objects: Sequence[Mapping[str, Any]]) -> list[str]:
    r"""Describe a scene in five sentences, all of them true; the largest objects are named first.

    Args:
        rng (`numpy.random.Generator`): Chooses between words that mean the same.
        objects (`Sequence[Mapping]`): As for [`is_true`]; at least one that is no crowd.
    Returns:
        `list[str]`: What is there and how many; colours; a relation; how many of each colour; the relation reversed."""
    single = sorted((item for item in objects if not item["iscrowd"]), key=lambda item: -item["area"])
    crowds = [Phrase(_name(item), is_crowd=True) for item in objects if item["iscrowd"]][:1]
    kinds = [Phrase(name) for name in dict.fromkeys(_name(item) for item in single)]
    paints = list(dict.fromkeys(_describe(item) for item in single))
    kinds, paints = (
        [phrase._replace(number=_number(len(_matching(phrase, objects, True)))) for phrase in each]
        for each in (kinds, paints)
    )
    pair = _choose_pair(single[:4])  # of the largest
    there, back = _relations(pair)
    pair = [_describe(item) for item in pair]
    said = [(kinds[:3] + crowds, None), ([_describe(item) for item in single[:2]], None)]
    said += [(pair, there), (paints[:2], None), (pair[::-1], back)]
    texts = []
    for phrases, relation in said:
        words = [_say(phrase) for phrase in phrases]
        if relation is not None:
            text = f"{words[0]} {relation} {words[1]}"
        elif len(words) > 1:
            text = f"{', '.join(words[:-1])} and {words[-1]}"
        else:
            text = words[0]
        is_plural = phrases[0].number is not None and relation is None
        start = ("", "", "a picture of ", "there are " if is_plural else "there is ")[rng.integers(4)]
        text = start + text
        texts.append(f"{text[0].upper()}{text[1:]}.")
    return texts


def all_words() -> list[str]:
    """Sentences with every word that captions are made of, for tokenizers: rare ones are in few scenes."""
    sentences = []
    for name in SCENE_CLASSES.values():
        phrases = [Phrase(name, is_crowd=True), *(Phrase(name, number) for number in range(2, MANY + 1))]
        phrases += [Phrase(name, number, color) for color in COLORS for number in (None, 2)]
        sentences += [f"{start}{_say(phrase)}." for phrase in phrases for start in ("There are ", "A picture of ")]
        said = _say(phrases[-2])
        sentences += [f"{said[0].upper()}{said[1:]} {relation} {said}." for relation in RELATIONS]
        sentences += [f"{word.capitalize()} {PLURALS[name]} and {said}." for word in (*NUMBERS, "many")]
    return sentences


def _choose_pair(objects: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first two objects that look different and of which one lies clearly on one side of the other."""
    for place, second in enumerate(objects):
        for first in objects[:place]:
            short, long = sorted(np.abs(_middle(first) - _middle(second)))
            if _describe(first) != _describe(second) and long > max(1.3 * short, 8):
                return [first, second]
    return list(objects[:1])


def _relations(pair: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """What the first is to the second, and the second to the first."""
    if len(pair) < 2:
        return None, None
    return tuple(next(name for name in RELATIONS if _holds(name, *order)) for order in (pair, pair[::-1]))


def _holds(relation: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    dx, dy = _middle(first) - _middle(second)
    x, y = RELATIONS[relation]
    along, across = (dx * x, dy) if x else (dy * y, dx)
    return bool(along > 0 and along >= abs(across))


def _middle(item: Mapping[str, Any]) -> np.ndarray:
    x, y, width, height = item["bbox"]
    return np.array([x + width / 2, y + height / 2])


def _matching(phrase: Phrase, objects: Iterable[Mapping[str, Any]], needs_color: bool) -> list[Mapping[str, Any]]:
    return [
        item
        for item in objects
        if _name(item) == phrase.name
        and bool(item["iscrowd"]) == phrase.is_crowd
        and (not needs_color or phrase.color in (None, item.get("color")))
    ]


def _name(item: Mapping[str, Any]) -> str:
    return SCENE_CLASSES.get(item["category_id"], "")


def _describe(item: Mapping[str, Any]) -> Phrase:
    return Phrase(_name(item), color=item["color"])


def _number(count: int) -> int | None:
    return None if count == 1 else min(count, MANY)


def _say(phrase: Phrase) -> str:
    if phrase.is_crowd:
        return f"a crowd of {PLURALS[phrase.name]}"
    noun = phrase.name if phrase.number is None else PLURALS[phrase.name]
    shirt = ""
    if phrase.color is not None:
        if phrase.name == "person":
            shirt = f" in {phrase.color}"
        else:
            noun = f"{phrase.color} {noun}"
    if phrase.number is None:
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}{shirt}"
    return f"{'many' if phrase.number == MANY else NUMBERS[phrase.number - 2]} {noun}{shirt}"


_NAMES = {name: name for name in SCENE_CLASSES.values()} | {plural: name for name, plural in PLURALS.items()}
_NOUNS, _COLORS = ("|".join(sorted(words, key=len, reverse=True)) for words in (_NAMES, COLORS))
_PHRASE = re.compile(
    rf"\b(?:(an?|one|the|many|an? crowd of|{'|'.join(NUMBERS)}) )?(?:({_COLORS}) )?({_NOUNS})\b(?: in ({_COLORS})\b)?"
)
