r"""What of a pretrained model is kept when classes, words or sizes are other ones now.

A token is a row of the embedding table and of the output layer. Rows of classes follow their names, those of
coordinates their place in the picture, those of words the text they stand for; what has no counterpart starts as the
weights of a new model do. Nothing is dropped silently: [`load_pretrained`] says what was kept in a few lines.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.modeling_pix2seq import Pix2SeqForConditionalGeneration
from pix2seq_hf.processing_pix2seq import Pix2SeqProcessor

INPUT_TABLE, OUTPUT_TABLE = "model.decoder.token_embeddings.weight", "lm_head.weight"
TOKEN_TABLES = (INPUT_TABLE, OUTPUT_TABLE, "lm_head.bias")
TEXT_POSITIONS = "model.decoder.position_embeddings"
IMAGE_POSITIONS = ("model.encoder.embeddings.position_embeddings", "model.encoder.projection.position_embeddings")
NUM_SHOWN = 8  # names in a line
# Sizes that a model's weights cannot follow.
FIXED_FIELDS = (
    "num_channels", "patch_size", "resnet_variant", "resnet_depth", "resnet_width_multiplier", "resnet_sk_ratio",
    "hidden_size", "num_attention_heads", "intermediate_size", "decoder_hidden_size", "decoder_num_attention_heads",
    "decoder_intermediate_size",
)  # fmt: skip


@dataclass(frozen=True)
class TokenRows:
    r"""Where each token of a new vocabulary comes from: a mixture of two rows of the earlier table.

    Args:
        lower, upper (`torch.LongTensor` of shape `(vocab_size,)`): Rows of the earlier table; -1 for a fresh row.
        share (`torch.FloatTensor` of shape `(vocab_size,)`): Share of `upper` in `[0, 1)`; 0 copies `lower`."""

    lower: torch.Tensor
    upper: torch.Tensor
    share: torch.Tensor

    def apply(self, earlier: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
        """Rows `(vocab_size, ...)` out of the earlier table and, where they are new, out of the fresh one."""
        share = self.share.reshape(-1, *[1] * (earlier.ndim - 1))
        rows = torch.lerp(earlier[self.lower.clamp(min=0)], earlier[self.upper.clamp(min=0)], share.to(earlier))
        is_fresh = (self.lower < 0).reshape(share.shape)
        return torch.where(is_fresh, fresh.to(rows), rows)


def load_pretrained(
    path: str | os.PathLike, config: Pix2SeqConfig, caption_tokenizer: Any = None
) -> tuple[Pix2SeqForConditionalGeneration, list[str]]:
    r"""Build the network of `config` with the weights of a pretrained model.

    Args:
        path (`str` or `os.PathLike`): Model folder or Hub name.
        config ([`Pix2SeqConfig`]): Of the new model: classes, words and sizes may be other ones.
        caption_tokenizer (`PreTrainedTokenizerBase`, *optional*): Of the new model; words are matched by their text.
    Returns:
        `tuple[Pix2SeqForConditionalGeneration, list[str]]`: The model in float32, and lines for the log.
    Raises:
        OSError: If there is no such model.
        ValueError: If it is another kind of model, or of sizes that its weights cannot follow."""
    earlier_config = read_pretrained_config(path)
    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        earlier, report = Pix2SeqForConditionalGeneration.from_pretrained(
            path, config=earlier_config, dtype=torch.float32, output_loading_info=True
        )
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: the weights are cut off or do not fit the configuration ({error})") from None
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    words = None if caption_tokenizer is None else caption_tokenizer.get_vocab()
    earlier_words = None
    if words is not None and Path(path).is_dir():
        earlier_tokenizer = Pix2SeqProcessor.from_pretrained(path).caption_tokenizer
        earlier_words = None if earlier_tokenizer is None else earlier_tokenizer.get_vocab()

    model = Pix2SeqForConditionalGeneration(config)
    fresh = model.state_dict()
    state, lines = adapt_state(earlier.state_dict(), fresh, earlier_config, config, earlier_words, words, str(path))
    damaged = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if damaged:
        lines.append(f"missing from the weights of {path}, started fresh: {shorten(damaged)}")
    if report["unexpected_keys"]:
        lines.append(f"not used of the weights of {path}: {shorten(sorted(report['unexpected_keys']))}")
    model.load_state_dict(state)
    return model, lines


def read_pretrained_config(path: str | os.PathLike) -> Pix2SeqConfig:
    r"""Read the configuration that a pretrained model was saved with.

    Args:
        path (`str` or `os.PathLike`): Model folder or Hub name.
    Returns:
        [`Pix2SeqConfig`].
    Raises:
        OSError: If there is no such model.
        ValueError: If it is another kind of model."""
    advice = "`pix2seq convert` and `pix2seq train` write a model folder"
    name = os.fspath(path)
    if not Path(path).exists() and (name.count("/") != 1 or name[0] in "./~" or Path(path).parent.is_dir()):
        raise FileNotFoundError(f"{path}: no such folder, and it cannot be a name on the Hub (OWNER/NAME); {advice}")
    if Path(path).exists() and not Path(path, "config.json").is_file():
        raise ValueError(f"{path}: is no model folder, there is no config.json in it; {advice}")
    fields, _ = Pix2SeqConfig.get_config_dict(path)
    if fields.get("model_type") != Pix2SeqConfig.model_type:
        raise ValueError(
            f"{path}: is a checkpoint of another model, {fields.get('model_type')!r} instead of "
            f"{Pix2SeqConfig.model_type!r}; {advice}"
        )
    return Pix2SeqConfig.from_pretrained(path)


def adapt_state(
    earlier: Mapping[str, torch.Tensor],
    fresh: Mapping[str, torch.Tensor],
    earlier_config: Pix2SeqConfig,
    config: Pix2SeqConfig,
    earlier_words: Mapping[str, int] | None = None,
    words: Mapping[str, int] | None = None,
    source: str = "the pretrained model",
) -> tuple[dict[str, torch.Tensor], list[str]]:
    r"""Fit the weights of a model to another configuration.

    Args:
        earlier, fresh (`Mapping[str, torch.Tensor]`): State dicts of the pretrained model and of a new one of `config`.
        earlier_config, config ([`Pix2SeqConfig`]): What they were built from.
        earlier_words, words (`Mapping[str, int]`, *optional*): Ids of the words of their caption tokenizers; without
            `words` text tokens keep their ids.
        source (`str`): Begins the error messages.
    Returns:
        `tuple[dict[str, torch.Tensor], list[str]]`: A state dict with the names and shapes of `fresh`, and lines that
        say what was kept.
    Raises:
        ValueError: If the sizes differ in a way that weights cannot follow; the message names the field."""
    different = [name for name in FIXED_FIELDS if is_different(name, earlier_config, config)]
    if different:
        said = ", ".join(f"{name} {getattr(earlier_config, name)}, not {getattr(config, name)}" for name in different)
        raise ValueError(f"{source}: its weights do not fit, it has {said}; leave it out of model.config")
    earlier = dict(earlier)
    if OUTPUT_TABLE not in earlier:
        earlier[OUTPUT_TABLE] = earlier[INPUT_TABLE]
    rows, lines = map_tokens(earlier_config, config, earlier_words, words)
    state, new_names = {}, []
    for name, weights in fresh.items():
        found = earlier.get(name)
        if found is None:
            state[name] = weights
            new_names.append(name)
        elif name in TOKEN_TABLES:
            state[name] = rows.apply(found, weights)
        elif name == TEXT_POSITIONS:
            state[name] = torch.cat([found[: len(weights)], weights[len(found) :]])
        elif name in IMAGE_POSITIONS:
            state[name] = resize_positions(found, earlier_config.grid_size, config.grid_size)
        else:
            state[name] = found
        assert state[name].shape == weights.shape, name
    if config.tie_word_embeddings:
        state[OUTPUT_TABLE] = state[INPUT_TABLE]
        if not earlier_config.tie_word_embeddings:
            lines.append(f"not used of the pretrained model: {OUTPUT_TABLE}, the table of embeddings takes its place")
    lines += describe_positions(earlier_config, config)
    if new_names:
        lines.append(f"missing from the pretrained model, started fresh: {shorten(new_names)}")
    if unused := [name for name in earlier if name not in fresh]:
        lines.append(f"not used of the pretrained model: {shorten(unused)}")
    return state, lines


def is_different(name: str, earlier_config: Pix2SeqConfig, config: Pix2SeqConfig) -> bool:
    """Whether a size of the network changed; numbers of a part that neither network has do not count."""
    is_vit = earlier_config.resnet_variant == config.resnet_variant == "c1"
    is_resnet = "c1" not in (earlier_config.resnet_variant, config.resnet_variant)
    if (name == "patch_size" and is_resnet) or (name.startswith("resnet_") and name != "resnet_variant" and is_vit):
        return False
    return getattr(earlier_config, name) != getattr(config, name)


def map_tokens(
    earlier_config: Pix2SeqConfig,
    config: Pix2SeqConfig,
    earlier_words: Mapping[str, int] | None = None,
    words: Mapping[str, int] | None = None,
) -> tuple[TokenRows, list[str]]:
    r"""Find the earlier row of every token.

    Args:
        earlier_config, config ([`Pix2SeqConfig`]): Their `id2label` and the layout of their vocabularies.
        earlier_words, words (`Mapping[str, int]`, *optional*): See [`adapt_state`].
    Returns:
        `tuple[TokenRows, list[str]]`: The rows, and lines that say what was kept."""
    matches = {token: token for token in range(min(earlier_config.base_vocab_shift, config.base_vocab_shift))}

    labels = match_classes(earlier_config.id2label, config.id2label)
    lines = [describe_classes(config.id2label, labels)]
    num_earlier = earlier_config.coord_vocab_shift - earlier_config.base_vocab_shift
    for label in range(config.coord_vocab_shift - config.base_vocab_shift):
        # The decoder reads classes without a name too, as corrupted ones: those of the same id stay.
        has_no_name = label not in config.id2label and label not in earlier_config.id2label
        earlier_label = label if has_no_name else labels.get(label, num_earlier)
        if earlier_label < num_earlier:
            matches[config.base_vocab_shift + label] = earlier_config.base_vocab_shift + earlier_label

    for token, earlier_token in zip(unused_tokens(config), unused_tokens(earlier_config), strict=False):
        matches[token] = earlier_token
    found = match_words(earlier_config, config, earlier_words, words)
    for word, earlier_word in found.items():
        matches[config.text_vocab_shift + word] = earlier_config.text_vocab_shift + earlier_word
    if words is not None:
        lines.append(f"words of captions kept: {len(found.keys() & set(words.values()))} of {len(words)}")

    lower = torch.full((config.vocab_size,), -1)
    lower[list(matches)] = torch.tensor(list(matches.values()))
    upper, share = lower.clone(), torch.zeros(config.vocab_size)

    # A bin stands for a place in the picture; where the bins are others, it lies between the two nearest ones.
    num_earlier, num_bins = earlier_config.quantization_bins, config.quantization_bins
    places = torch.arange(num_bins, dtype=torch.float64) * (num_earlier - 1) / (num_bins - 1)
    bins = slice(config.coord_vocab_shift, config.coord_vocab_shift + num_bins)
    lower[bins] = places.floor().long() + earlier_config.coord_vocab_shift
    upper[bins] = places.ceil().long() + earlier_config.coord_vocab_shift
    share[bins] = (places - places.floor()).float()
    if num_bins != num_earlier:
        lines.append(f"coordinates: {num_bins} bins interpolated from {num_earlier}")
    return TokenRows(lower, upper, share), lines


def unused_tokens(config: Pix2SeqConfig) -> range:
    """The tokens between the last coordinate and the first word, which mean nothing."""
    end_of_bins = config.coord_vocab_shift + config.quantization_bins
    return range(end_of_bins, min(config.text_vocab_shift, config.vocab_size))


def match_classes(earlier: Mapping[int, str], current: Mapping[int, str]) -> dict[int, int]:
    """Which earlier label each current one continues: that of the same name, whatever its case, blanks and hyphens."""
    by_name, by_plain_name = {}, {}
    for label, name in sorted(earlier.items()):
        by_name.setdefault(name, label)
        by_plain_name.setdefault(plain(name), label)
    matches = {label: by_name.get(name, by_plain_name.get(plain(name))) for label, name in current.items()}
    return {label: match for label, match in matches.items() if match is not None}


def plain(name: str) -> str:
    """A class name without what people write differently: `Traffic-Light` is `traffic_light` is `traffic light`."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def match_words(
    earlier_config: Pix2SeqConfig,
    config: Pix2SeqConfig,
    earlier_words: Mapping[str, int] | None,
    words: Mapping[str, int] | None,
) -> dict[int, int]:
    """Which earlier id each id of the caption tokenizer continues: that of the same text, or without one the same."""
    num_earlier = earlier_config.vocab_size - earlier_config.text_vocab_shift
    num_current = config.vocab_size - config.text_vocab_shift
    if words is None:
        matches = {id: id for id in range(num_current)}
    else:
        earlier_words = earlier_words or {}
        without_word = set(range(num_current)) - set(words.values()) - set(earlier_words.values())
        matches = {id: earlier_words.get(word, num_earlier) for word, id in words.items()}
        matches |= {id: id for id in without_word}
    return {id: match for id, match in matches.items() if id < num_current and match < num_earlier}


def resize_positions(table: torch.Tensor, earlier_grid: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    r"""Interpolate learned positions of a picture's tokens.

    Args:
        table (`torch.FloatTensor` of shape `(rows * columns, dim)`): Of the earlier grid, row by row.
        earlier_grid, grid (`tuple[int, int]`): Rows and columns.
    Returns:
        `torch.FloatTensor` of shape `(rows * columns, dim)` of the new grid."""
    if earlier_grid == grid:
        return table
    picture = table.T.unflatten(1, earlier_grid)[None]  # (1, dim, rows, columns)
    resized = torch.nn.functional.interpolate(picture, size=grid, mode="bilinear", align_corners=False)
    return resized[0].flatten(1).T.contiguous()  # (rows * columns, dim)


def describe_classes(names: Mapping[int, str], matches: Mapping[int, int]) -> str:
    """One line: how many classes are kept, and which ones are new."""
    kept = [name for label, name in names.items() if label in matches]
    new = [name for label, name in names.items() if label not in matches]
    line = f"classes kept: {len(kept)} of {len(names)}"
    line += f" ({shorten(kept)})" if kept else ""
    return line + (f"; new: {shorten(new)}" if new else "")


def describe_positions(earlier_config: Pix2SeqConfig, config: Pix2SeqConfig) -> list[str]:
    """Lines on positions that are not what they were."""
    lines = []
    length, earlier_length = config.max_position_embeddings, earlier_config.max_position_embeddings
    kinds = {config.text_position_encoding, earlier_config.text_position_encoding}
    if length != earlier_length and kinds == {"sin_cos"}:
        lines.append(f"positions of tokens: sine codes of {earlier_length} positions are spread over {length} now")
    elif length > earlier_length and kinds == {"learned"}:
        lines.append(f"positions of tokens: {earlier_length} kept, {length - earlier_length} new")
    kinds = {config.position_encoding, earlier_config.position_encoding}
    if kinds == {"learned"} and config.grid_size != earlier_config.grid_size:
        before, now = (" x ".join(map(str, item.grid_size)) for item in (earlier_config, config))
        lines.append(f"positions in the picture: a grid of {now} interpolated from {before}")
    return lines


def shorten(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - NUM_SHOWN
    return ", ".join(names[:NUM_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
