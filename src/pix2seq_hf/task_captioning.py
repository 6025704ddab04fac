"""Captioning: the model writes one line about the picture, as tokens of a text tokenizer and an end token.

Text tokens are the tokenizer's ids, moved by `text_vocab_shift`. Any tokenizer of the library works that has an end
token; the released checkpoints have a SentencePiece model whose end is id 1."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .grammar_pix2seq import TextGrammar
from .task_base import Frame, Targets, Task, add_counts, counts_by_row

RELEASED_END_ID = 1  # of the released tokenizer, for models whose configuration names no other end


@dataclass
class Captions:
    r"""What a batch of caption streams says.

    Args:
        texts (`list[str]`): Text up to the end token.
        original_pred (`torch.LongTensor` of shape `(rows, length)`): Tokenizer ids of all tokens, 0 for padding; out
            of the tokenizer's range where a token is no text.
        clipped_pred (`torch.LongTensor` of shape `(rows, length)`): The same, moved into the tokenizer's range.
        malformed (`list[dict[str, int]]`): Per row, see [`malformed`]."""

    texts: list[str]
    original_pred: torch.Tensor
    clipped_pred: torch.Tensor
    malformed: list[dict[str, int]]


class Captioning(Task):
    """The task `captioning`, prompt token 13."""

    name = "captioning"
    prompt_id = 13
    required_fields = ("captions",)
    metric = "captions"
    generation_defaults = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    needs_tokenizer = True

    def grammar(self, config: Any, allowed_tokens: Iterable[int] | None = None, **options) -> TextGrammar:
        words = range(config.text_vocab_shift, config.vocab_size) if allowed_tokens is None else allowed_tokens
        return TextGrammar(words, end_token(config))

    def max_response_length(self, config: Any) -> int:
        return config.max_caption_length

    def target_options(self, config: Any) -> dict[str, Any]:
        return {"max_seq_len": config.max_caption_length}

    def generation_settings(self, config: Any) -> dict[str, Any]:
        """The defaults, where to stop, and the end token."""
        return {**super().generation_settings(config), "eos_token_id": end_token(config)}

    def targets(
        self,
        record: Mapping[str, Any],
        vocabulary: Any,
        rng: np.random.Generator | None = None,
        *,
        tokenizer: Any = None,
        max_seq_len: int = 128,
        captions_per_image: int = 5,
        eos_token_weight: float = 0.1,
        input_seq_drop_rate: float = 0.5,
    ) -> Targets:
        r"""Write the training sequences of one record, one per caption.

        Args:
            record (`Mapping[str, Any]`): With `captions`; of more than `captions_per_image` the first are taken.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
            rng (`numpy.random.Generator`, *optional*): Needed for a drop rate above 0.
            tokenizer (`PreTrainedTokenizerBase`): Turns text into ids; has an end token.
            max_seq_len (`int`): Tokens of a caption, its end included; longer ones are cut.
            captions_per_image (`int`): Sequences per record.
            eos_token_weight (`float`): Loss weight of the end token. Padding has weight 1, as in the reference.
            input_seq_drop_rate (`float`): Share of tokens that the decoder reads as the fake token.
        Returns:
            [`Targets`] with tensors of shape `(captions_per_image, max_seq_len)`.
        Raises:
            ValueError: If there is no caption or no tokenizer, or the tokenizer does not fit the vocabulary."""
        self.require_fields(record)
        captions = [record["captions"]] if isinstance(record["captions"], str) else list(record["captions"])
        if not captions:
            raise ValueError(f"record of image {record.get('image_id', 'without id')} has no caption")
        # Departure: where there are fewer captions they come again; the reference fails.
        captions = [captions[index % len(captions)] for index in range(captions_per_image)]
        tokens = torch.stack([caption_tokens(caption, tokenizer, vocabulary, max_seq_len) for caption in captions])
        draws = None
        if input_seq_drop_rate > 0:
            if rng is None:
                raise ValueError("input_seq_drop_rate draws random numbers: pass rng, or input_seq_drop_rate=0")
            draws = torch.from_numpy(rng.random(tuple(tokens.shape), np.float32))
        end = vocabulary.text_vocab_shift + end_id(tokenizer)
        return build_targets(tokens, vocabulary, end, draws, eos_token_weight, input_seq_drop_rate)

    def prompt(self, vocabulary: Any = None) -> torch.Tensor:
        """The prompt token alone: `torch.LongTensor` of shape `(1,)`."""
        return torch.tensor([self.prompt_id])

    def parse(self, sequences: torch.Tensor, scores: None, vocabulary: Any, *, tokenizer: Any) -> Captions:
        r"""Read text.

        Args:
            sequences (`torch.LongTensor` of shape `(rows, length)`): Responses, without the prompt.
            scores: Not used.
            vocabulary (`Pix2SeqVocabulary`): The token layout.
            tokenizer (`PreTrainedTokenizerBase`): Turns ids into text.
        Returns:
            [`Captions`].
        Source: `TaskCaptioning.postprocess_cpu` of the reference implementation."""
        sequences = sequences.long()
        end = end_id(tokenizer)
        original_pred = (sequences - vocabulary.text_vocab_shift).masked_fill(sequences == vocabulary.padding_token, 0)
        clipped_pred = original_pred.clamp(0, len(tokenizer) - 1)
        # Departure: the reference also reads what stands after the end token.
        texts = [decode_text(before_end(row, end), tokenizer) for row in clipped_pred.tolist()]
        return Captions(texts, original_pred, clipped_pred, malformed(sequences, vocabulary, end, len(tokenizer)))

    def results(
        self,
        sequences: torch.Tensor,
        output: Mapping[str, Any],
        frames: Sequence[Frame],
        processor: Any,
        threshold: float = 0.0,
    ) -> list[dict[str, Any]]:
        r"""Read the captions of every picture.

        Args:
            sequences, output, frames, processor: See [`Task.results`].
            threshold (`float`): Not used, captions have no score.
        Returns:
            `list[dict]`, per picture: `captions` (`list[str]`, one per sample) and `malformed`."""
        found = self.parse(sequences, None, processor.vocabulary, tokenizer=processor.caption_tokenizer)
        num_samples = len(sequences) // max(len(frames), 1)
        return [
            {
                "captions": found.texts[first : first + num_samples],
                "malformed": add_counts(found.malformed[first : first + num_samples]),
            }
            for first in range(0, num_samples * len(frames), max(num_samples, 1))
        ]


def build_targets(
    tokens: torch.Tensor,
    vocabulary: Any,
    end: int,
    draws: torch.Tensor | None,
    eos_token_weight: float,
    input_seq_drop_rate: float,
) -> Targets:
    r"""Serialise captions; any leading batch shape.

    Args:
        tokens (`torch.LongTensor` of shape `(..., max_seq_len)`): Captions with their end, then padding.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
        end (`int`): The end token in the vocabulary.
        draws (`torch.FloatTensor` of the shape of `tokens`, *optional*): In [0, 1); nothing is dropped without.
        others: See [`Captioning.targets`].
    Returns:
        [`Targets`] with tensors of the shape of `tokens`."""
    prompt = torch.full_like(tokens[..., :1], Captioning.prompt_id)
    inputs = torch.cat([prompt, tokens[..., :-1]], -1)
    if draws is not None:  # as in the reference, the prompt and padding are dropped like any other token
        inputs = inputs.masked_fill(draws <= input_seq_drop_rate, vocabulary.fake_class_token)
    # As in the reference, padding has the weight of a word: a model learns to write nothing after the end.
    weights = torch.ones(tokens.shape, device=tokens.device).masked_fill(tokens == end, eos_token_weight)
    return Targets(decoder_input_ids=inputs, labels=tokens, label_weights=weights)


def end_token(config: Any) -> int:
    """The end in the vocabulary: the configuration's `eos_token_id`, else that of the released tokenizer."""
    ends = config.eos_token_id
    if ends is None:
        return config.text_vocab_shift + RELEASED_END_ID
    return ends[0] if isinstance(ends, (list, tuple)) else ends


def end_id(tokenizer: Any) -> int:
    r"""Id of the end token.

    Raises:
        ValueError: If there is no tokenizer, or it has no end token."""
    if tokenizer is None:
        raise ValueError("captioning needs a caption tokenizer: give Pix2SeqProcessor a caption_tokenizer")
    if tokenizer.eos_token_id is None:
        raise ValueError("the caption tokenizer has no end token: set its eos_token")
    return tokenizer.eos_token_id


def caption_tokens(caption: str, tokenizer: Any, vocabulary: Any, max_seq_len: int) -> torch.Tensor:
    r"""Tokens of one caption: its words, the end, padding.

    Args:
        caption (`str`): Any text.
        tokenizer (`PreTrainedTokenizerBase`): Without begin token.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
        max_seq_len (`int`): Tokens; a longer caption keeps its beginning and gets its end at the last place.
    Returns:
        `torch.LongTensor` of shape `(max_seq_len,)`.
    Raises:
        ValueError: If there is no tokenizer, it has no end token, or an id has no token in the vocabulary."""
    end = end_id(tokenizer)
    # Departure: the reference fails on captions that are too long.
    ids = [*tokenizer.encode(caption, add_special_tokens=False)[: max_seq_len - 1], end]
    room = vocabulary.vocab_size - vocabulary.text_vocab_shift
    if max(ids) >= room:
        raise ValueError(
            f"id {max(ids)} of the caption tokenizer has no token: text_vocab_shift {vocabulary.text_vocab_shift} "
            f"leaves room for {max(room, 0)} below vocab_size {vocabulary.vocab_size}"
        )
    tokens = torch.full((max_seq_len,), vocabulary.padding_token)
    tokens[: len(ids)] = torch.tensor(ids) + vocabulary.text_vocab_shift
    return tokens


def before_end(ids: list[int], end: int) -> list[int]:
    """Ids up to the first end token, without it."""
    return ids[: ids.index(end)] if end in ids else ids


def decode_text(ids: list[int], tokenizer: Any) -> str:
    """Text of tokenizer ids; tokens that only steer (padding, end) give none, an unknown word gives its sign."""
    control = {id for id in tokenizer.all_special_ids if id != tokenizer.unk_token_id}
    return tokenizer.decode([id for id in ids if id not in control], clean_up_tokenization_spaces=False)


def malformed(sequences: torch.Tensor, vocabulary: Any, end: int, num_words: int) -> list[dict[str, int]]:
    r"""Count what is no caption.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): Responses, without the prompt.
        vocabulary (`Pix2SeqVocabulary`): The token layout.
        end (`int`): The tokenizer's id of the end token.
        num_words (`int`): Ids of the tokenizer.
    Returns:
        `list[dict[str, int]]`: Per row the kinds that occur: tokens before the end that are `out_of_vocabulary`, or of
        the vocabulary but not `text`; `unfinished` (1 if there is no end); `after_end` (tokens after it that are not
        padding)."""
    is_end = sequences == vocabulary.text_vocab_shift + end
    is_over = is_end.cumsum(-1) > 0  # from the end on
    is_known = vocabulary.is_known(sequences)
    is_text = (sequences >= vocabulary.text_vocab_shift) & (sequences < vocabulary.text_vocab_shift + num_words)
    kinds = {
        "out_of_vocabulary": (~is_known & ~is_over).sum(-1),
        "text": (is_known & ~is_text & ~is_over).sum(-1),
        "unfinished": (~is_end.any(-1)).long(),
        "after_end": (is_over & (is_over.cumsum(-1) > 1) & (sequences != vocabulary.padding_token)).sum(-1),
    }
    return counts_by_row(kinds)


__all__ = ["Captioning", "Captions"]
