"""Which tokens may stand where: one grammar for boxes, polygons, keypoints and text each.

A grammar looks only at the tokens of a row, so rows can be dropped, repeated or reordered while they are decoded."""

from collections.abc import Iterable

import torch

from .tokenization_pix2seq import FAKE_CLASS_TOKEN, INVISIBLE_TOKEN, PADDING_TOKEN, SEPARATOR_TOKEN

TOKENS_PER_OBJECT = 5
MIN_POINTS_PER_PART = 3  # fewer enclose nothing


class TokenGrammar:
    r"""Base of the grammars.

    A grammar names, for every step, one set of tokens that holds all that any row may write, so that only these rows of
    the output layer need computing, and then takes away what a row may not write."""

    def token_set(self, step: int) -> tuple[int, ...] | range:
        r"""Tokens that some row may write at `step`.

        Args:
            step (`int`): Number of tokens written after the prompt.
        Returns:
            `range` or `tuple[int, ...]` in ascending order; the same object for equal sets."""
        raise NotImplementedError

    def key(self) -> tuple:
        """What grammars that allow the same have in common."""
        return type(self), *sorted(vars(self).items())

    def slot(self, step: int) -> int | None:
        r"""Which steps after the first are alike, so that what is done at one can be repeated at the others.

        Alike are steps with the same token set where `forbidden` differs only by what its arguments `written` and
        `num_written` hold, and `is_finished` looks at the last token alone.

        Args:
            step (`int`): Number of tokens written after the prompt, at least 1.
        Returns:
            `int` that alike steps share, or `None`, the default, if nothing is promised."""
        return None

    def forbidden(
        self, step: int, written: torch.LongTensor, tokens: torch.LongTensor, num_written: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        r"""What single rows may not write.

        Args:
            step (`int`): Number of tokens written after the prompt.
            written (`torch.LongTensor` of shape `(rows, step)`): These tokens.
            tokens (`torch.LongTensor` of shape `(num_tokens,)`): The set of this step.
            num_written (`torch.LongTensor` of shape `(1,)`, *optional*): The number of tokens again where `written` has
                padding behind them; only for grammars with slots, and `step` is any of the slot then.
        Returns:
            `torch.BoolTensor` of shape `(rows, num_tokens)`, or `None` if every row may write the whole set."""
        return None

    def is_finished(self, step: int, written: torch.LongTensor) -> torch.Tensor | None:
        r"""Rows whose last token was their end; padding fills the rest.

        Args:
            step (`int`): Index of the last token.
            written (`torch.LongTensor` of shape `(rows, step + 1)`): Tokens up to it.
        Returns:
            `torch.BoolTensor` of shape `(rows,)`, or `None` if no row can end here."""
        return None

    def restrict(self, step: int, written: torch.LongTensor, logits: torch.FloatTensor) -> torch.FloatTensor:
        """Logits `(rows, vocab_size)` of the whole vocabulary with all that is not allowed at minus infinity."""
        tokens = torch.as_tensor(self.token_set(step), device=logits.device)
        allowed = logits[:, tokens]
        forbidden = self.forbidden(step, written, tokens)
        if forbidden is not None:
            allowed = allowed.masked_fill(forbidden, float("-inf"))
        return torch.full_like(logits, float("-inf")).index_copy_(1, tokens, allowed)


def last_token(written: torch.LongTensor, num_written: torch.Tensor | None = None) -> torch.LongTensor:
    """The last token `(rows, 1)` of every row; see [`TokenGrammar.forbidden`]."""
    return written[:, -1:] if num_written is None else written.index_select(1, num_written - 1)


class BoxGrammar(TokenGrammar):
    r"""Four coordinates and a class, again and again.

    Args:
        coordinates (`range`): Coordinate tokens.
        classes (`Iterable[int]`): Class tokens that may be written; the fake class is always among them.
        stop_when_noise (`bool`): Whether the first fake class ends a row: the reference writes real objects first."""

    def __init__(self, coordinates: range, classes: Iterable[int], stop_when_noise: bool = False):
        self.coordinates = coordinates
        self.classes = tuple(sorted({FAKE_CLASS_TOKEN, *classes}))
        self.stop_when_noise = stop_when_noise

    def token_set(self, step):
        return self.classes if step % TOKENS_PER_OBJECT == TOKENS_PER_OBJECT - 1 else self.coordinates

    def slot(self, step):
        return int(step % TOKENS_PER_OBJECT == TOKENS_PER_OBJECT - 1)

    def is_finished(self, step, written):
        if not self.stop_when_noise or step % TOKENS_PER_OBJECT != TOKENS_PER_OBJECT - 1:
            return None
        return written[:, -1] == FAKE_CLASS_TOKEN


class PolygonGrammar(TokenGrammar):
    r"""Points `y x`; a separator takes the place of a whole point, padding ends the row.

    Every part gets at least three points: a separator or the end must wait for them, and a separator must leave room
    for three more.

    Args:
        coordinates (`range`): Coordinate tokens.
        max_points (`int`): Points of a row, separators included."""

    def __init__(self, coordinates: range, max_points: int):
        self.coordinates = coordinates
        self.tokens = (PADDING_TOKEN, SEPARATOR_TOKEN, *coordinates)
        self.max_points = max_points

    def token_set(self, step):
        return self.tokens

    def slot(self, step):
        return step % 2

    def forbidden(self, step, written, tokens, num_written=None):
        is_padding, is_separator = tokens == PADDING_TOKEN, tokens == SEPARATOR_TOKEN
        if step % 2:  # the second half of a point is of the kind of the first
            first = last_token(written, num_written)
            is_coordinate = ~(is_padding | is_separator)
            kept = torch.where(first == SEPARATOR_TOKEN, is_separator, is_coordinate)
            return ~torch.where(first == PADDING_TOKEN, is_padding, kept)
        points = written[:, ::2]
        num_points = points.shape[1] if num_written is None else num_written // 2
        after_separator = torch.arange(1, points.shape[1] + 1, device=points.device) * (points == SEPARATOR_TOKEN)
        start = after_separator.amax(1, keepdim=True) if points.shape[1] else points.new_zeros(len(points), 1)
        is_short = num_points - start < MIN_POINTS_PER_PART
        has_no_room = self.max_points - num_points - 1 < MIN_POINTS_PER_PART
        return (is_short & (is_padding | is_separator)) | (is_separator & has_no_room)

    def is_finished(self, step, written):
        return None if step % 2 else written[:, -1] == PADDING_TOKEN


class KeypointGrammar(TokenGrammar):
    r"""Points `y x`, or the invisible token in place of both.

    Args:
        coordinates (`range`): Coordinate tokens."""

    def __init__(self, coordinates: range):
        self.tokens = (INVISIBLE_TOKEN, *coordinates)

    def token_set(self, step):
        return self.tokens

    def slot(self, step):
        return step % 2

    def forbidden(self, step, written, tokens, num_written=None):
        if step % 2 == 0:
            return None
        return (tokens == INVISIBLE_TOKEN) != (last_token(written, num_written) == INVISIBLE_TOKEN)


class TextGrammar(TokenGrammar):
    r"""Text tokens up to the end token.

    Args:
        words (`range` or `Iterable[int]`): Text tokens that may be written.
        end (`int`): The end token; may stand anywhere but at the start."""

    def __init__(self, words: Iterable[int], end: int):
        self.words = tuple(sorted({end, *words}))
        self.end = end

    def token_set(self, step):
        return self.words

    def slot(self, step):
        return 0

    def forbidden(self, step, written, tokens, num_written=None):
        return (tokens == self.end).expand(len(written), -1) if step == 0 else None

    def is_finished(self, step, written):
        return written[:, -1] == self.end


__all__ = ["BoxGrammar", "KeypointGrammar", "PolygonGrammar", "TextGrammar", "TokenGrammar"]
