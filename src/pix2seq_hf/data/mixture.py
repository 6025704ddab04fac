"""How do several data sets become one: their classes are matched by name, their pictures are drawn by weight."""

import re
from collections.abc import Iterator, Mapping, Sequence

import datasets
import numpy as np
import torch

from pix2seq_hf.data.coco import MAX_LABEL
from pix2seq_hf.data.collation import SampleKey, StreamSampler
from pix2seq_hf.data.rows import Split

BLOCK = 4096  # positions whose sources are drawn together


def join_splits(splits: Sequence[Split]) -> Split:
    r"""Put the rows of several splits one after the other.

    Args:
        splits (`Sequence[Split]`): Read for the same tasks. The label map of the first stays as it is; classes of the
            others that have the name of one of its classes get that id, further ones the next free ids.
    Returns:
        [`Split`]: Its `annotations` are those of the first: pictures of different sources may have the same id.
    Raises:
        ValueError: If there are more than 899 classes in all."""
    first, *others = splits
    if not others:
        return first
    id2label, parts = dict(first.id2label), [first.dataset]
    for split in others:
        new_labels = match_labels(split.id2label, id2label)
        id2label |= {
            new: name for (label, name) in split.id2label.items() if (new := new_labels[label]) not in id2label
        }
        parts.append(_renumber_rows(split.dataset, new_labels))
    return Split(
        datasets.concatenate_datasets(parts),
        dict(sorted(id2label.items())),
        first.annotations,
        first.keypoint_annotations,
        first.caption_annotations,
    )


def renumber(split: Split, id2label: Mapping[int, str]) -> Split:
    r"""Give the classes of a split the ids that a model knows them by.

    Args:
        split ([`Split`]): Of a data set that may number its classes in its own way.
        id2label (`Mapping[int, str]`): The model's names.
    Returns:
        [`Split`]: The same pictures; classes that the model does not know have ids that it does not have. Where not one
        name is known to both, the ids are taken to mean the same, and the split is returned as it is."""
    new_labels = match_labels(split.id2label, id2label)
    if all(label == new for label, new in new_labels.items()):
        return split
    if not {same_name(name) for name in split.id2label.values()} & {same_name(name) for name in id2label.values()}:
        return split

    def change(content: dict | None) -> dict | None:
        if content is None or "categories" not in content:
            return content
        items = [
            {**item, "category_id": new_labels.get(item["category_id"], item["category_id"])}
            for item in content["annotations"]
        ]
        kinds = [{**kind, "id": new_labels.get(kind["id"], kind["id"])} for kind in content["categories"]]
        return {**content, "annotations": items, "categories": sorted(kinds, key=lambda kind: kind["id"])}

    return Split(
        _renumber_rows(split.dataset, new_labels),
        dict(sorted((new_labels[label], name) for label, name in split.id2label.items())),
        change(split.annotations),
        change(split.keypoint_annotations),
        split.caption_annotations,
    )


def match_labels(own: Mapping[int, str], known: Mapping[int, str]) -> dict[int, int]:
    r"""Say which id each class has where others are known: that of its name, or else the next free one.

    Args:
        own (`Mapping[int, str]`): Names by the ids of a data set.
        known (`Mapping[int, str]`): Names that have their ids already.
    Returns:
        `dict[int, int]`: The new id by the data set's own.
    Raises:
        ValueError: If there are more than 899 classes in all."""
    by_name, taken, new_labels = {same_name(name): label for label, name in known.items()}, set(known), {}
    for label, name in own.items():
        if same_name(name) not in by_name:
            free = next((free for free in range(1, MAX_LABEL + 1) if free not in taken), None)
            if free is None:
                raise ValueError(f"the data sets have more than {MAX_LABEL} classes in all: {name!r} has no place")
            by_name[same_name(name)] = free
            taken.add(free)
        new_labels[label] = by_name[same_name(name)]
    return new_labels


def _renumber_rows(rows: datasets.Dataset, new_labels: Mapping[int, int]) -> datasets.Dataset:
    if all(label == new for label, new in new_labels.items()):
        return rows
    return rows.map(
        lambda row, new_labels: {"labels": [new_labels[label] for label in row["labels"]]},
        fn_kwargs={"new_labels": dict(new_labels)},
        features=rows.features,
    )


def same_name(name: str) -> str:
    """A class name without what differs between data sets: case, blanks, hyphens, underscores."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


class MixtureSampler(torch.utils.data.Sampler):
    r"""Names the samples of a whole run from several sources that lie one after the other in one data set.

    Each source goes through its own permutations, epoch after epoch; which one comes next is drawn by weight. A sample
    depends on its position in the run alone.

    Args:
        sizes (`Sequence[int]`): Rows of every source.
        weights (`Sequence[float]`): How often each is drawn from; sources without rows are not.
        seed (`int`): Decides everything.
        stop (`int`): Number of samples in the run.
        start (`int`): Samples to leave out because an interrupted run has seen them.
    Raises:
        ValueError: If no source with rows has a positive weight."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, stop: int, start: int = 0):
        self.sizes, self.seed, self.start, self.stop = list(sizes), seed, start, stop
        weights = np.array([weight if size else 0 for size, weight in zip(sizes, weights, strict=True)], dtype=float)
        if not weights.sum() > 0:
            raise ValueError(f"no data set to draw from: sizes {list(sizes)}, weights {list(weights)}")
        self.shares = weights / weights.sum()

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[SampleKey]:
        offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        counts = np.zeros(len(self.sizes), dtype=np.int64)  # drawn from every source so far
        streams: list[Iterator[SampleKey] | None] = [None] * len(self.sizes)
        for first in range(0, self.stop, BLOCK):
            sources = np.random.default_rng([self.seed, first, 1]).choice(len(self.sizes), BLOCK, p=self.shares)
            if first + BLOCK <= self.start:
                counts += np.bincount(sources, minlength=len(self.sizes))
                continue
            for position, source in enumerate(sources[: self.stop - first].tolist(), first):
                if position < self.start:
                    counts[source] += 1
                    continue
                if streams[source] is None:
                    stream = StreamSampler(self.sizes[source], self.seed + source, self.stop, int(counts[source]))
                    streams[source] = iter(stream)
                key = next(streams[source])
                yield SampleKey(key.epoch, int(offsets[source]) + key.row)
