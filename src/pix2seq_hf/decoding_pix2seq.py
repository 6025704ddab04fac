"""How is a sequence written token by token: what is recorded, what is allowed, and the loop that does it fast."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import (
    EosTokenCriteria,
    GenerateEncoderDecoderOutput,
    LogitsProcessor,
    MaxLengthCriteria,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .grammar_pix2seq import TOKENS_PER_OBJECT, TokenGrammar
from .linear_pix2seq import Int8Weight, Pix2SeqLinear, linear
from .tokenization_pix2seq import FAKE_CLASS_TOKEN, INVISIBLE_TOKEN

NUM_LIKELIEST = 64  # tokens among which a nucleus mostly lies
LARGEST_DRAW = 1 - 2**-20  # times a sum, a number nearer to 1 could be rounded to the sum


def top_logits(logits: torch.Tensor, k: int = 0, p: float = 1.0, mask: float = -1e10) -> torch.Tensor:
    r"""Mask all but the likeliest tokens, the way the reference does.

    The nucleus is the largest set whose cumulative probability stays at or below `p`, and at least the best token. (The
    library's top-p keeps the smallest set that reaches `p`: one token more.) Ties with the last token kept are kept.

    Args:
        logits (`torch.FloatTensor` of shape `(..., vocab_size)`): Scores.
        k (`int`): Number of tokens to keep; 0 keeps all.
        p (`float`): Cumulative probability; 1 keeps all.
        mask (`float`): What replaces the others.
    Returns:
        `torch.FloatTensor` of the shape of `logits`.

    Source: `top_logits` of the reference implementation."""
    if k > 0:
        smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, mask)
    if p < 1:
        ordered, reached = _cumulative_probabilities(logits, p)
        is_outside = reached > p
        is_outside[..., 0] = False
        smallest = ordered.masked_fill(is_outside, float("inf")).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, mask)
    return logits


def _cumulative_probabilities(logits: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in falling order and what probability they reach together, at least as far as to one above `p`."""
    # Sorting takes long on a processor, and mostly the best few are enough. Elsewhere looking at `reached` would.
    if logits.device.type == "cpu" and logits.shape[-1] > 4 * NUM_LIKELIEST:
        ordered = logits.topk(NUM_LIKELIEST, dim=-1).values
        best = ordered[..., :1]
        reached = ((ordered - best).exp() / (logits - best).exp().sum(-1, keepdim=True)).cumsum(-1)
        if (reached[..., -1] > p).all():
            return ordered, reached
    ordered = logits.sort(dim=-1, descending=True).values
    return ordered, ordered.softmax(-1).cumsum(-1)


class Pix2SeqTopPLogitsWarper(TopPLogitsWarper):
    """The reference's nucleus rule in place of the library's; see [`top_logits`]."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return top_logits(scores, p=self.top_p, mask=self.filter_value)


def draw_tokens(logits: torch.FloatTensor, uniform: torch.FloatTensor | None = None) -> torch.LongTensor:
    r"""Draw one token per row with the probabilities of a softmax.

    Args:
        logits (`torch.FloatTensor` of shape `(rows, num_tokens)`): Scores.
        uniform (`torch.FloatTensor` of shape `(rows,)`, *optional*): Numbers of [`draw_uniform`] that decide; without
            them they are drawn from torch's own generator.
    Returns:
        `torch.LongTensor` of shape `(rows,)`."""
    if uniform is None:
        uniform = torch.rand(len(logits), device=logits.device).clamp(max=LARGEST_DRAW)
    reached = logits.softmax(-1).cumsum(-1)  # not `torch.multinomial`, which draws a number for every token
    # The first token at which more is reached: one of probability 0 reaches no more than the one before it.
    return torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True).squeeze(1)


def draw_uniform(seeds: Sequence[int], num_rows: int, num_steps: int) -> torch.FloatTensor:
    r"""Draw random numbers that belong to pictures: those of one do not depend on which others are in the batch.

    Args:
        seeds (`Sequence[int]`): One per picture.
        num_rows (`int`): Rows of the batch; every picture has as many, one after the other.
        num_steps (`int`): Tokens that are written at most.
    Returns:
        `torch.FloatTensor` of shape `(num_rows, num_steps, 2)`: in `[0, 1)`; for what is written, and for what is
        reported in its place.
    Raises:
        ValueError: If the rows cannot be shared out evenly."""
    if not seeds or num_rows % len(seeds):
        raise ValueError(f"{len(seeds)} seeds were given for a batch of {num_rows} sequences: give one per picture")
    shape = (num_rows // len(seeds), num_steps, 2)
    drawn = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(drawn).clamp(max=LARGEST_DRAW)


class ClassRecorder:
    r"""Keeps label and score of every object while boxes are written: two numbers, not a row of the vocabulary.

    Args:
        class_tokens (`torch.LongTensor` of shape `(num_classes,)`): Class tokens to choose from, ascending.
        base_vocab_shift (`int`): Token of label 0.
        stops_at_noise (`bool`): Whether rows end with their first fake class.
        on_objects (`Callable`, *optional*): Called with slot, rows, box tokens, labels and scores of new objects."""

    def __init__(
        self, class_tokens: torch.LongTensor, base_vocab_shift: int, stops_at_noise: bool = False, on_objects=None
    ):
        self.class_tokens = class_tokens
        self.base_vocab_shift = base_vocab_shift
        self.stops_at_noise = stops_at_noise
        self.on_objects = on_objects
        self.kept: list[tuple[torch.LongTensor, torch.FloatTensor]] = []  # of every step that was read

    def key(self) -> tuple:
        """What recorders have in common that keep the same of the same logits."""
        return ClassRecorder, tuple(self.class_tokens.tolist()), self.base_vocab_shift

    def reads(self, step: int) -> bool:
        """Whether the logits of this step are needed, all of them."""
        return step % TOKENS_PER_OBJECT == TOKENS_PER_OBJECT - 1

    def read(
        self, step: int, logits: torch.FloatTensor, uniform: torch.FloatTensor | None = None
    ) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Labels and scores of raw logits `(rows, vocab_size)`."""
        return self.classify(logits)

    def finish(self, found, tokens: torch.LongTensor) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """What is kept of what [`read`] found, once the tokens `(rows,)` of the step are chosen."""
        return found

    def record(
        self,
        step: int,
        written: torch.LongTensor,
        logits: torch.FloatTensor,
        rows: torch.LongTensor,
        total: int,
        uniform: torch.FloatTensor | None = None,
    ):
        r"""Read the class of the object whose box was just written.

        Args:
            step (`int`): Number of tokens written after the prompt.
            written (`torch.LongTensor` of shape `(live_rows, step)`): These tokens.
            logits (`torch.FloatTensor` of shape `(live_rows, vocab_size)`): Raw logits of the whole vocabulary.
            rows (`torch.LongTensor` of shape `(live_rows,)`): Which of all `total` rows these are.
            uniform (`torch.FloatTensor` of shape `(live_rows,)`, *optional*): Nothing is drawn here."""
        labels, scores = self.read(step, logits)
        if self.on_objects is not None:
            boxes = written[:, -(TOKENS_PER_OBJECT - 1) :]
            self.on_objects(step // TOKENS_PER_OBJECT, rows, boxes, labels, scores)
        self.kept.append(tuple(kept.new_zeros(total).index_copy_(0, rows, kept) for kept in (labels, scores)))

    def classify(self, logits: torch.FloatTensor) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Labels and scores of logits `(..., vocab_size)`, as `tokenization_pix2seq.class_labels_and_scores`."""
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        none = probabilities[..., 0]
        if not len(self.class_tokens):  # a vocabulary without class tokens
            return torch.zeros_like(none, dtype=torch.long), none
        if self.class_tokens.device != logits.device:  # once, not at every object
            self.class_tokens = self.class_tokens.to(logits.device)
        scores, best = probabilities[..., self.class_tokens].max(-1)
        labels = self.class_tokens[best] - self.base_vocab_shift
        is_none = scores == 0
        return labels.masked_fill(is_none, 0), torch.where(is_none, none, scores)

    def settle(self, tokens: torch.LongTensor):
        """The token chosen at the step that was recorded last; not needed here."""

    def results(self, sequences: torch.LongTensor, prompt_length: int) -> dict[str, torch.Tensor]:
        """Fields of the output of `generate`."""
        if not self.kept:
            empty = sequences.new_zeros(len(sequences), 0)
            return {"class_labels": empty, "class_scores": empty.float()}
        num_objects = (sequences.shape[1] - prompt_length) // TOKENS_PER_OBJECT
        labels, scores = (torch.stack(columns, 1)[:, :num_objects] for columns in zip(*self.kept, strict=True))
        if self.stops_at_noise:  # objects after the end of a row are none
            is_noise = sequences[:, prompt_length + TOKENS_PER_OBJECT - 1 :: TOKENS_PER_OBJECT] == FAKE_CLASS_TOKEN
            is_after = is_noise.long().cumsum(1) - is_noise.long() > 0
            labels, scores = labels.masked_fill(is_after, 0), scores.masked_fill(is_after, 0.0)
        return {"class_labels": labels, "class_scores": scores}


class VisibleTokenRecorder:
    r"""Keeps, beside every invisible token, the coordinate that would have been written, and the tokens' probabilities.

    The reference reports a place for every keypoint: the invisible token stays in the sequence that the model reads,
    and a second token, drawn from the logits without it, is reported. Probabilities are those of the whole vocabulary
    without the invisible token.

    Args:
        grammar ([`TokenGrammar`], *optional*): What the second token may be.
        temperature, top_k, top_p: Of the sampling; `do_sample=False` takes the best token.

    Source: `TaskKeypointDetection.infer` of the reference implementation, its filter applied per step."""

    def __init__(self, grammar: TokenGrammar | None, do_sample=True, temperature=1.0, top_k=0, top_p=1.0):
        self.grammar = grammar
        self.do_sample, self.temperature, self.top_k, self.top_p = do_sample, temperature, top_k, top_p
        self.kept: list[tuple[torch.LongTensor, torch.FloatTensor]] = []  # tokens and probabilities of every step
        self.pending = None
        self.visible_tokens: dict[int, tuple] = {}

    def key(self) -> tuple:
        grammar = None if self.grammar is None else self.grammar.key()
        return VisibleTokenRecorder, grammar, self.do_sample, self.temperature, self.top_k, self.top_p

    def reads(self, step: int) -> bool:
        return True

    def read(self, step, logits, uniform=None):
        """The probabilities `(rows, vocab_size)` without the invisible token, and a token drawn from them."""
        visible = logits.clone()
        visible[:, INVISIBLE_TOKEN] -= 1e9
        probabilities, tokens = visible.softmax(-1), None
        if self.grammar is not None:
            tokens = self._visible_tokens(self.grammar.token_set(step), logits.device)
            visible = visible[:, tokens]
        if self.do_sample:
            visible = top_logits(visible / self.temperature, self.top_k, self.top_p, float("-inf"))
            drawn = draw_tokens(visible, uniform)
        else:
            drawn = visible.argmax(-1)
        return probabilities, drawn if tokens is None else tokens[drawn]

    def finish(self, found, tokens):
        """Tokens without invisible ones, and their probabilities."""
        probabilities, drawn = found
        reported = torch.where(tokens == INVISIBLE_TOKEN, drawn, tokens)
        return reported, probabilities.gather(1, reported[:, None]).squeeze(1)

    def record(self, step, written, logits, rows, total, uniform=None):
        assert len(rows) == total, "rows with keypoints all have the same length"
        self.pending = self.read(step, logits, uniform)

    def settle(self, tokens):
        if self.pending is not None:
            self.kept.append(self.finish(self.pending, tokens))
            self.pending = None

    def _visible_tokens(self, token_set, device: torch.device) -> torch.LongTensor:
        """A set without the invisible token as a tensor, made once: a device would have to be waited for."""
        key = id(token_set)
        if key not in self.visible_tokens:
            tokens = torch.tensor([token for token in token_set if token != INVISIBLE_TOKEN], device=device)
            self.visible_tokens[key] = token_set, tokens  # the set itself is kept, or its id could be given again
        return self.visible_tokens[key][1]

    def results(self, sequences, prompt_length):
        self.settle(sequences[:, -1])
        if not self.kept:
            return {"token_scores": sequences.new_zeros(len(sequences), 0).float()}
        reported, probabilities = (torch.stack(columns, 1) for columns in zip(*self.kept, strict=True))
        return {
            "sequences": torch.cat([sequences[:, :prompt_length], reported], 1),
            "token_scores": probabilities,
            "is_invisible": sequences[:, prompt_length:] == INVISIBLE_TOKEN,  # before they were replaced
        }


class TokenPlan(LogitsProcessor):
    r"""What happens at every step besides choosing a token: a recorder reads raw logits, a grammar forbids tokens.

    Inside the library's loops it is the first logits processor; [`decode`] asks it directly.

    Args:
        prompt_length (`int`): Tokens before the first written one.
        grammar ([`TokenGrammar`], *optional*): Without it every token may be written.
        recorder ([`ClassRecorder`] or [`VisibleTokenRecorder`], *optional*): Without it nothing is kept.
        seeds (`Sequence[int]`, *optional*): One per picture, see [`draw_uniform`]; only [`decode`] heeds them."""

    def __init__(
        self,
        prompt_length: int,
        grammar: TokenGrammar | None = None,
        recorder=None,
        seeds: Sequence[int] | None = None,
    ):
        self.prompt_length, self.grammar, self.recorder, self.seeds = prompt_length, grammar, recorder, seeds

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written = input_ids[:, self.prompt_length :]
        step, rows = written.shape[1], torch.arange(len(written), device=written.device)
        if self.recorder is not None:
            if step:
                self.recorder.settle(written[:, -1])
            if self.recorder.reads(step):
                self.recorder.record(step, written, scores, rows, len(rows))
        return scores if self.grammar is None else self.grammar.restrict(step, written, scores)

    def results(self, sequences: torch.LongTensor) -> dict[str, torch.Tensor]:
        """Fields that the recorder adds to the output of `generate`."""
        return {} if self.recorder is None else self.recorder.results(sequences, self.prompt_length)


class GrammarEnd(StoppingCriteria):
    """Ends a row in the library's loops where its grammar does."""

    eos_token_id = None  # the library pads ended rows only if some criterion has this attribute

    def __init__(self, plan: TokenPlan):
        self.plan = plan

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        written = input_ids[:, self.plan.prompt_length :]
        finished = self.plan.grammar.is_finished(written.shape[1] - 1, written)
        return torch.zeros_like(input_ids[:, 0], dtype=torch.bool) if finished is None else finished


WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, Pix2SeqTopPLogitsWarper)
LOOK_EVERY = 10  # steps between looks whether rows have ended, at each of which the host waits for the device


def can_decode_fast(plan, processors, criteria, generation_config, cache, synced_gpus) -> bool:
    """Whether [`decode`] does all that was asked for; else the library's loop has to."""
    wants = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    return (
        plan is not None
        and not synced_gpus
        and isinstance(cache, EncoderDecoderCache)
        and type(cache.self_attention_cache) is DynamicCache
        and cache.get_seq_length() == 0
        and not any(getattr(generation_config, name, None) for name in wants)
        and generation_config.prefill_chunk_size is None
        and not generation_config.is_assistant
        and all(processor is plan or type(processor) in WARPERS for processor in processors)
        and all(type(criterion) in (MaxLengthCriteria, EosTokenCriteria, GrammarEnd) for criterion in criteria)
    )


class OutputRows:
    """The output layer, of which only some rows are computed."""

    def __init__(self, lm_head: nn.Module):
        self.lm_head = lm_head
        # A layer that is quantised, adapted or placed elsewhere is left to itself.
        self.is_plain = type(lm_head) is Pix2SeqLinear and not hasattr(lm_head, "_hf_hook")
        self.parts: dict[int, tuple] = {}

    def refresh(self):
        """Copy again what was copied from the layer's weights, to where it was."""
        for token_set, tokens, weight, bias in self.parts.values():
            if self.is_plain and not isinstance(token_set, range):
                weight.copy_(self.lm_head.weight[tokens])
                if bias is not None:
                    bias.copy_(self.lm_head.bias[tokens])

    def tokens(self, token_set: range | tuple[int, ...]) -> torch.LongTensor:
        """The tokens of a set as a tensor."""
        return self._part(token_set)[1]

    def __call__(self, hidden_states: torch.FloatTensor, token_set: range | tuple | None) -> torch.FloatTensor:
        """Logits `(rows, num_tokens)` of a set, or of the whole vocabulary, in float32."""
        if token_set is None:
            return self.lm_head(hidden_states).float()
        _, tokens, weight, bias = self._part(token_set)
        if not self.is_plain:
            return self.lm_head(hidden_states)[:, tokens].float()
        if isinstance(weight, Int8Weight):
            return weight(hidden_states).float()
        return linear(hidden_states, weight, bias).float()

    def _part(self, token_set):
        key = id(token_set)
        if key not in self.parts:
            weight, bias = self.lm_head.weight, self.lm_head.bias
            tokens = torch.as_tensor(token_set, device=weight.device)
            if isinstance(token_set, range):  # a view
                index = slice(token_set.start, token_set.stop)
            else:
                index = tokens
            part = None, None
            if self.is_plain:
                if self.lm_head.use_int8 and weight.device.type == "cpu":
                    part = self.lm_head.int8_weight(token_set), None
                else:
                    part = weight[index], None if bias is None else bias[index]
            self.parts[key] = (token_set, tokens, *part)  # the set itself is kept, or its id could be given again
        return self.parts[key]


class AllowedRows:
    r"""The output layer in the library's loop: what the grammar forbids is minus infinity, without being computed.

    Args:
        lm_head (`nn.Module`): The output layer.
        plan ([`TokenPlan`]): Whose grammar says what is allowed; where its recorder reads, all rows are computed."""

    def __init__(self, lm_head: nn.Module, plan: TokenPlan):
        self.plan, self.output_rows = plan, OutputRows(lm_head)

    def at(self, length: int) -> Callable[[torch.FloatTensor], torch.FloatTensor] | None:
        """What scores the token after `length` others, prompt included; `None` if that takes all rows."""
        plan, step = self.plan, length - self.plan.prompt_length
        reads = plan.recorder is not None and plan.recorder.reads(step)
        return None if plan.grammar is None or reads else partial(self._score, plan.grammar.token_set(step))

    def _score(self, token_set: range | tuple[int, ...], hidden_states: torch.FloatTensor) -> torch.FloatTensor:
        """Logits `(rows, 1, vocab_size)` of the last hidden state of `(rows, length, size)`."""
        allowed = self.output_rows(hidden_states[:, -1], token_set)
        logits = allowed.new_full((len(allowed), self.output_rows.lm_head.weight.shape[0]), float("-inf"))
        return logits.index_copy_(1, self.output_rows.tokens(token_set), allowed)[:, None]


def choose_rows(finished: torch.BoolTensor, num_pictures: int) -> tuple[torch.LongTensor, torch.LongTensor]:
    r"""Choose what stays in the batch: the pictures with rows that go on, and the same number of rows for each.

    Args:
        finished (`torch.BoolTensor` of shape `(num_pictures * sequences,)`): Rows that have ended.
        num_pictures (`int`): Pictures in the batch.
    Returns:
        `tuple`: indices of rows and of pictures, both ascending."""
    by_picture = finished.view(num_pictures, -1)
    going_on = (~by_picture).sum(1)
    pictures = going_on.nonzero().flatten()
    if not len(pictures):
        return pictures, pictures
    order = by_picture[pictures].int().argsort(dim=1, stable=True)[:, : int(going_on.max())].sort(dim=1).values
    return (pictures[:, None] * by_picture.shape[1] + order).flatten(), pictures


class TokenChooser:
    r"""How the next token of a row follows from its hidden state, and which token is its last, wherever rows are kept.

    Args:
        model, plan, processors, criteria, generation_config: See [`decode`]."""

    def __init__(self, model, plan: TokenPlan, processors, criteria, generation_config):
        self.grammar, self.recorder = plan.grammar, plan.recorder
        self.warpers = [processor for processor in processors if processor is not plan]
        ends = [criterion.eos_token_id for criterion in criteria if isinstance(criterion, EosTokenCriteria)]
        self.end_tokens = ends[0].to(model.lm_head.weight.device) if ends else None
        self.can_end = bool(ends) or any(isinstance(criterion, GrammarEnd) for criterion in criteria)
        self.do_sample = generation_config.do_sample
        self.output_rows = OutputRows(model.lm_head)

    def slot(self, step: int) -> tuple:
        """What steps share at which the same is done; see [`TokenGrammar.slot`]."""
        reads = self.recorder is not None and self.recorder.reads(step)
        return None if self.grammar is None else self.grammar.slot(step), reads

    def logits(self, hidden_states: torch.FloatTensor, step: int) -> tuple[torch.FloatTensor, torch.FloatTensor | None]:
        """Logits `(rows, num_tokens)` of the step's tokens, and those of the vocabulary if the recorder reads them."""
        token_set = None if self.grammar is None else self.grammar.token_set(step)
        if self.recorder is None or not self.recorder.reads(step):
            return self.output_rows(hidden_states, token_set), None
        whole = self.output_rows(hidden_states, None)
        return whole if token_set is None else whole[:, self.output_rows.tokens(token_set)], whole

    def choose(
        self,
        logits: torch.FloatTensor,
        step: int,
        written: torch.LongTensor,
        uniform: torch.FloatTensor | None = None,
        num_written: torch.Tensor | None = None,
    ) -> torch.LongTensor:
        r"""Choose tokens.

        Args:
            logits (`torch.FloatTensor` of shape `(rows, num_tokens)`): Of the step's tokens.
            step, written, num_written: See [`TokenGrammar.forbidden`].
            uniform (`torch.FloatTensor` of shape `(rows,)`, *optional*): See [`draw_tokens`].
        Returns:
            `torch.LongTensor` of shape `(rows,)`."""
        tokens = None
        if self.grammar is not None:
            tokens = self.output_rows.tokens(self.grammar.token_set(step))
            counted = {} if num_written is None else {"num_written": num_written}
            forbidden = self.grammar.forbidden(step, written, tokens, **counted)
            if forbidden is not None:
                logits = logits.masked_fill(forbidden, float("-inf"))
        for warper in self.warpers:
            logits = warper(written, logits)
        chosen = draw_tokens(logits, uniform) if self.do_sample else logits.argmax(-1)
        return chosen if tokens is None else tokens[chosen]

    def is_last(self, step: int, written: torch.LongTensor) -> torch.BoolTensor | None:
        """Which rows end with the last token of `written` `(rows, step + 1)`; `None` if no row can end at this step."""
        by_token = None if self.end_tokens is None else torch.isin(written[:, -1], self.end_tokens)
        by_grammar = None if self.grammar is None else self.grammar.is_finished(step, written)
        if by_token is None or by_grammar is None:
            return by_grammar if by_token is None else by_token
        return by_token | by_grammar


@torch.no_grad()
def decode(model, plan: TokenPlan, input_ids, processors, criteria, generation_config, streamer, model_kwargs):
    r"""Write sequences: the library's sampling loop, less what Pix2Seq does not need.

    Only the rows of the output layer that the grammar allows are computed, no row of the vocabulary is kept, the host
    waits for the device only to look for ended rows, and ended rows leave the batch.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): The model.
        plan ([`TokenPlan`]): What to record and to allow.
        input_ids (`torch.LongTensor` of shape `(rows, prompt_length)`): Prompts, all rows of the first picture first.
        processors, criteria, generation_config, streamer, model_kwargs: As `GenerationMixin._sample` gets them.
    Returns:
        As `GenerationMixin._sample`: sequences, or `GenerateEncoderDecoderOutput`."""
    chooser = TokenChooser(model, plan, processors, criteria, generation_config)
    recorder, can_end = plan.recorder, chooser.can_end
    padding = model.config.pad_token_id

    (total, prompt_length), max_length = input_ids.shape, generation_config.max_length
    encoded = model_kwargs["encoder_outputs"][0]
    cache = model_kwargs["cache"]
    attention_mask = model_kwargs.get("decoder_attention_mask")
    sequences = input_ids.new_full((total, max_length), padding)
    sequences[:, :prompt_length] = input_ids
    lengths = torch.full_like(sequences[:, 0], max_length)
    rows = torch.arange(total, device=input_ids.device)  # the rows of `sequences` that are still in the batch
    live, finished = sequences.clone(), torch.zeros_like(rows, dtype=torch.bool)
    next_tokens = input_ids
    uniform = None
    if plan.seeds is not None and generation_config.do_sample:
        uniform = draw_uniform(plan.seeds, total, max_length - prompt_length).to(input_ids.device)

    for length in range(prompt_length, max_length):
        step, written = length - prompt_length, live[:, prompt_length:length]
        hidden_states = model.model.decoder(
            input_ids=next_tokens,
            attention_mask=attention_mask,
            encoder_hidden_states=encoded,
            cache=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

        of_token, of_report = (None, None) if uniform is None else uniform[rows, step].unbind(-1)
        logits, whole = chooser.logits(hidden_states, step)
        if whole is not None:
            recorder.record(step, written, whole, rows, total, of_report)
        tokens = chooser.choose(logits, step, written, of_token)
        if can_end:
            tokens = tokens.masked_fill(finished, padding)
        live[:, length] = tokens
        next_tokens = tokens[:, None]
        if recorder is not None:
            recorder.settle(tokens)
        if streamer is not None:
            sequences[rows, length] = tokens
            streamer.put(sequences[:, length].cpu())
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (0, 1), value=1)
        if not can_end:
            continue

        has_ended = chooser.is_last(step, live[:, prompt_length : length + 1])
        if has_ended is not None:
            lengths[rows] = torch.where(has_ended & ~finished, length + 1, lengths[rows])
            finished = finished | has_ended
        if step % LOOK_EVERY == LOOK_EVERY - 1:
            kept, pictures = choose_rows(finished, encoded.shape[0])
            if len(kept) == len(rows):
                continue
            sequences[rows] = live
            if not len(kept):
                break
            cache.self_attention_cache.batch_select_indices(kept)
            if len(pictures) < encoded.shape[0]:
                cache.cross_attention_cache.batch_select_indices(pictures)
                encoded = encoded[pictures]
            rows, live, finished, next_tokens = rows[kept], live[kept], finished[kept], next_tokens[kept]
            attention_mask = None if attention_mask is None else attention_mask[kept]

    sequences[rows] = live
    if can_end:  # as the library: nothing is kept after the last row has ended
        sequences = sequences[:, : int(lengths.max())]
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateEncoderDecoderOutput(sequences=sequences, cache=cache if len(rows) == total else None)
