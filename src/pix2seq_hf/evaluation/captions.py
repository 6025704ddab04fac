"""How good are the captions: the scores that papers give, where Java is, and how many are word for word people's."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pix2seq_hf.evaluation.caption_scores import MAX_ORDER, bleu, cider, split_words
from pix2seq_hf.evaluation.coco_captions import missing_tools, score_like_papers, split_like_papers
from pix2seq_hf.evaluation.coco_checks import check_pictures, require_lists

logger = logging.getLogger(__name__)

CAPTION_METRICS = (*(f"BLEU_{order}" for order in range(1, MAX_ORDER + 1)), "METEOR", "ROUGE_L", "CIDEr")
# Other words give other numbers: their names say so wherever they are copied to.
SIMPLE_CAPTION_METRICS = (*(f"BLEU_{order}_simple" for order in range(1, MAX_ORDER + 1)), "CIDEr_simple")
TOKENIZERS = ("ptb", "simple")


def evaluate_captions(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int] | None = None,
    tokenizer: str | None = None,
    use_spice: bool = False,
) -> dict[str, float]:
    r"""Compute the scores of captions.

    Args:
        ground_truth (`Mapping`): Content of a COCO captions file; `annotations` alone is enough.
        results (`Sequence[Mapping]`): In COCO results format: `image_id`, `caption`; one per picture.
        image_ids (`Iterable[int]`, *optional*): Pictures that count; all with a reference by default. A picture that
            counts and has no result counts as an empty caption.
        tokenizer (`str`, *optional*): `"ptb"`, the Stanford tokenizer, for the numbers of papers: needs pycocoevalcap
            and Java, and METEOR takes a while to start. `"simple"`: BLEU and CIDEr of our own words, under names that
            end in `_simple`: **not comparable** with those of papers. By default `"ptb"` where it can run; a warning
            says why not.
        use_spice (`bool`): SPICE too, see [`score_like_papers`].
    Returns:
        `dict[str, float]`: The names of `CAPTION_METRICS` (and `SPICE`), or of `SIMPLE_CAPTION_METRICS`; `reproduced`,
        `num_captions` as of [`count_reproduced`], and `num_missing` pictures without a result. Scores are 0 if there is
        no result, and -1 if there is no reference.
    Raises:
        OSError: If a Java program fails.
        ValueError: If results or ground truth are of another task or of other pictures, a picture has two results, or
            what was asked for is not installed."""
    tokenizer = _choose_tokenizer(tokenizer, use_spice)
    references = _read_references(ground_truth)
    captions = _read_captions(results, {item["id"] for item in ground_truth.get("images") or ()} | references.keys())
    counted = references.keys() if image_ids is None else references.keys() & set(image_ids)
    if image_ids is not None:
        captions = {image_id: caption for image_id, caption in captions.items() if image_id in set(image_ids)}
    counts = count_reproduced(captions, references) | {"num_missing": len(counted) - len(captions)}
    names = SIMPLE_CAPTION_METRICS if tokenizer == "simple" else CAPTION_METRICS + ("SPICE",) * use_spice
    if not counted or not captions:
        return dict.fromkeys(names, 0.0 if counted else -1.0) | counts
    order = sorted(counted)
    texts = [captions.get(image_id, "") for image_id in order]
    others = [references[image_id] for image_id in order]
    if tokenizer == "simple":
        words, wanted = [split_words(text) for text in texts], [[split_words(text) for text in each] for each in others]
        scores = dict(zip(names, (*bleu(words, wanted), cider(words, wanted)), strict=True))
    else:
        split = iter(split_like_papers([text for each in ([*texts], *others) for text in each]))
        ours = {image_id: next(split) for image_id in order}
        theirs = {image_id: [next(split) for _ in references[image_id]] for image_id in order}
        scores = score_like_papers(ours, theirs, use_spice)
    return scores | counts


def normalize_caption(caption: str) -> str:
    """A caption without differences that nobody sees: runs of blanks are one blank, none at the ends."""
    return " ".join(caption.split())


def count_reproduced(captions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> dict[str, int]:
    r"""Count the captions that are word for word, letter for letter, one of their picture's.

    Args:
        captions (`Mapping[int, str]`): One per picture id.
        references (`Mapping[int, Sequence[str]]`): Those of the annotations, by picture id.
    Returns:
        `dict[str, int]`: `reproduced`, and `num_captions` in all.
    Raises:
        ValueError: If a picture has no reference."""
    reproduced = 0
    for image_id, caption in captions.items():
        if not references.get(image_id):
            raise ValueError(f"picture {image_id} has no caption to compare with")
        reproduced += normalize_caption(caption) in map(normalize_caption, references[image_id])
    return {"reproduced": reproduced, "num_captions": len(captions)}


def _choose_tokenizer(tokenizer: str | None, use_spice: bool) -> str:
    if tokenizer not in (None, *TOKENIZERS):
        raise ValueError(f"unknown tokenizer {tokenizer!r} of captions: known are {', '.join(TOKENIZERS)}")
    missing = None if tokenizer == "simple" else missing_tools()
    if use_spice and (missing or tokenizer == "simple"):
        raise ValueError(f"SPICE needs the tokenizer 'ptb'{f'; {missing}' if missing else ''}")
    if tokenizer == "ptb" and missing:
        raise ValueError(missing)
    if missing:
        logger.warning("captions are scored with other words than in papers, names end in _simple: %s", missing)
    return "simple" if missing else tokenizer or "ptb"


def _read_references(ground_truth: Mapping[str, Any]) -> dict[int, list[str]]:
    require_lists(ground_truth, ("annotations",))
    references: dict[int, list[str]] = {}
    for item in ground_truth["annotations"]:
        where = f"annotation {item.get('id', '')} of picture {item.get('image_id')}".replace("  ", " ")
        if item.get("image_id") is None or not isinstance(item.get("caption"), str):
            raise ValueError(
                f"{where} has no 'caption' (it has {', '.join(item)}): an annotation file of another task?"
            )
        if text := normalize_caption(item["caption"]):
            references.setdefault(item["image_id"], []).append(text)
    return references


def _read_captions(results: Sequence[Mapping[str, Any]], listed: Iterable[int]) -> dict[int, str]:
    captions: dict[int, str] = {}
    for index, item in enumerate(results):
        if item.get("image_id") is None or not isinstance(item.get("caption"), str):
            raise ValueError(f"result {index} has no 'caption' (it has {', '.join(item)}): is it of another task?")
        if item["image_id"] in captions:
            raise ValueError(f"picture {item['image_id']} has two captions: one per picture is compared")
        captions[item["image_id"]] = normalize_caption(item["caption"])
    check_pictures(list(captions), listed, "caption")
    return captions
