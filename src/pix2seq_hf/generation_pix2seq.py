"""How are tokens chosen and class scores kept while a sequence is written: the reference's rules inside `generate`."""

import torch
from transformers import GenerationConfig
from transformers.cache_utils import EncoderDecoderCache
from transformers.generation import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    TopPLogitsWarper,
)

from .tokenization_pix2seq import class_labels_and_scores

DETECTION_PROMPT = 10
TOKENS_PER_OBJECT = 5


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
        ordered = logits.sort(dim=-1, descending=True).values
        is_outside = ordered.softmax(-1).cumsum(-1) > p
        is_outside[..., 0] = False
        smallest = ordered.masked_fill(is_outside, float("inf")).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, mask)
    return logits


class Pix2SeqTopPLogitsWarper(TopPLogitsWarper):
    """The reference's nucleus rule in place of the library's; see [`top_logits`]."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return top_logits(scores, p=self.top_p, mask=self.filter_value)


class ClassScoreRecorder(LogitsProcessor):
    r"""Keeps label and score of every object while it is decoded; changes nothing.

    Two numbers per object stay, instead of a row of the vocabulary per token.

    Args:
        prompt_length (`int`): Tokens before the first generated one.
        base_vocab_shift, coord_vocab_shift (`int`): Borders of the class tokens."""

    def __init__(self, prompt_length: int, base_vocab_shift: int, coord_vocab_shift: int):
        self.prompt_length = prompt_length
        self.shifts = base_vocab_shift, coord_vocab_shift
        self.labels: list[torch.LongTensor] = []
        self.scores: list[torch.FloatTensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        position = input_ids.shape[1] - self.prompt_length
        if position % TOKENS_PER_OBJECT == TOKENS_PER_OBJECT - 1:
            labels, class_scores = class_labels_and_scores(scores, *self.shifts)
            self.labels.append(labels)
            self.scores.append(class_scores)
        return scores


def build_generation_config(config) -> GenerationConfig:
    r"""Return what `generate` does by default for each task of a trained model.

    Args:
        config ([`Pix2SeqConfig`]): Read are `tasks`, `max_instances_per_image` and the special tokens.
    Returns:
        `GenerationConfig`: `task_settings` maps the id of a task's prompt token, as text, to keyword arguments of
        `generate`; they apply where the caller says nothing else."""
    # Imported here: the table of tasks needs processors, which a model alone does not.
    from .processing_pix2seq import TASKS

    settings = {}
    for name in config.tasks:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r} in config.tasks: known are {', '.join(TASKS)}")
        settings[str(TASKS[name].prompt_id)] = TASKS[name].generation_settings(config)
    generation_config = GenerationConfig.from_model_config(config)
    generation_config._from_model_config = False  # a saved file with this mark loses its own fields when it is read
    generation_config.return_dict_in_generate = True
    generation_config.task_settings = settings
    return generation_config


class Pix2SeqGenerationMixin(GenerationMixin):
    r"""`generate` with task defaults, many sequences per picture, the reference's nucleus and class scores."""

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, logits_processor=None, **kwargs):
        r"""Write sequences; everything that [`~transformers.GenerationMixin.generate`] takes works.

        Args:
            inputs or pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): Pictures.
            decoder_input_ids (`torch.LongTensor` of shape `(batch, length)` or `(batch, sequences, length)`):
                Optional prompts, the task's token first. By default every picture gets the detection prompt.
            generation_config (`GenerationConfig`, *optional*): In place of the model's own and its task settings.
            logits_processor (`LogitsProcessorList`, *optional*): Further processors.
            encoder_outputs (`BaseModelOutput`, *optional*): Pictures encoded before; nothing is encoded again.
        Returns:
            `torch.LongTensor` of shape `(batch * sequences * num_return_sequences, length)`, prompt included, or with
            `return_dict_in_generate` the library's output, which has for detection also `class_labels`
            (`torch.LongTensor` of shape `(rows, num_objects)`, raw label ids, 0 for none) and `class_scores`
            (`torch.FloatTensor` of the same shape), read from the raw logits whatever token was sampled."""
        prompts = kwargs.get("decoder_input_ids")
        if prompts is not None and prompts.ndim == 3:
            kwargs["decoder_input_ids"] = prompts = prompts.flatten(0, 1)  # (batch * sequences, length)
        prompt_token = self.config.decoder_start_token_id if prompts is None else int(prompts[0, 0])
        if generation_config is None:
            kwargs = {**self._task_settings(prompt_token, kwargs), **kwargs}
        if prompt_token != DETECTION_PROMPT or not self._returns_dict(generation_config, kwargs):
            return super().generate(
                inputs, generation_config=generation_config, logits_processor=logits_processor, **kwargs
            )

        prompt_length = 1 if prompts is None else prompts.shape[1]
        recorder = ClassScoreRecorder(prompt_length, self.config.base_vocab_shift, self.config.coord_vocab_shift)
        if self._sees_every_row_once(generation_config, kwargs):
            processors = LogitsProcessorList([*(logits_processor or []), recorder])
            output = super().generate(
                inputs, generation_config=generation_config, logits_processor=processors, **kwargs
            )
        else:  # beams change places and assistants propose tokens: score the finished sequences in one pass
            if kwargs.get("encoder_outputs") is None:
                pixel_values = kwargs["pixel_values"] if inputs is None else inputs
                kwargs["encoder_outputs"] = self.get_encoder()(
                    pixel_values,
                    output_attentions=kwargs.get("output_attentions"),
                    output_hidden_states=kwargs.get("output_hidden_states"),
                )
            output = super().generate(
                inputs, generation_config=generation_config, logits_processor=logits_processor, **kwargs
            )
            self._record_finished(recorder, output.sequences, kwargs["encoder_outputs"])
        rows = output.sequences.shape[0]
        empty = output.sequences.new_zeros(rows, 0)
        output["class_labels"] = torch.stack(recorder.labels, 1) if recorder.labels else empty
        output["class_scores"] = torch.stack(recorder.scores, 1) if recorder.scores else empty.float()
        return output

    def _task_settings(self, prompt_token: int, chosen: dict) -> dict:
        """Defaults of the task that the prompt asks for, without those that the caller's choices make meaningless."""
        settings = dict((getattr(self.generation_config, "task_settings", None) or {}).get(str(prompt_token), {}))
        if chosen.get("max_length") is not None:
            settings.pop("max_new_tokens", None)
        if (chosen.get("num_beams") or 1) > 1:
            settings["do_sample"] = False
        if not chosen.get("do_sample", settings.get("do_sample", False)):
            for name in ("top_p", "top_k", "temperature"):
                settings.pop(name, None)
        return settings

    def _returns_dict(self, generation_config, kwargs) -> bool:
        chosen = kwargs.get("return_dict_in_generate")
        default = (generation_config or self.generation_config).return_dict_in_generate
        return bool(default if chosen is None else chosen)

    def _sees_every_row_once(self, generation_config, kwargs) -> bool:
        """Whether every token of every row is chosen from the logits that the processors see at that step."""
        config = generation_config or self.generation_config
        choices = {
            name: kwargs.get(name, getattr(config, name, None))
            for name in ("num_beams", "prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha")
        }
        has_helper = kwargs.get("assistant_model") is not None or kwargs.get("custom_generate") is not None
        return (choices.pop("num_beams") or 1) == 1 and not any(choices.values()) and not has_helper

    def _record_finished(self, recorder: ClassScoreRecorder, sequences: torch.LongTensor, encoder_outputs):
        """Fill the recorder from one teacher-forced pass over finished sequences."""
        first = recorder.prompt_length + TOKENS_PER_OBJECT - 2
        if first >= sequences.shape[1] - 1:
            return
        last = torch.arange(first, sequences.shape[1] - 1, TOKENS_PER_OBJECT, device=sequences.device)
        logits = self(
            encoder_outputs=(encoder_outputs[0],),
            decoder_input_ids=sequences[:, :-1],
            logits_to_keep=last,
            use_cache=False,
        ).logits
        for position in range(len(last)):
            labels, scores = class_labels_and_scores(logits[:, position], *recorder.shifts)
            recorder.labels.append(labels)
            recorder.scores.append(scores)

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        ordered = LogitsProcessorList()
        for processor in processors:
            if type(processor) is TopPLogitsWarper:
                processor = Pix2SeqTopPLogitsWarper(processor.top_p, processor.filter_value)
            if isinstance(processor, ClassScoreRecorder):
                ordered.insert(0, processor)  # it reads the raw logits
            else:
                ordered.append(processor)
        return ordered

    def _prepare_decoder_input_ids_for_generation(
        self, batch_size, model_input_name, model_kwargs, decoder_start_token_id, device=None
    ):
        # A prompt begins with its task's token. The library would put the default start token in front of it, and would
        # refuse more prompts than pictures.
        if model_kwargs.get("decoder_input_ids") is not None:
            return model_kwargs.pop("decoder_input_ids"), model_kwargs
        return super()._prepare_decoder_input_ids_for_generation(
            batch_size, model_input_name, model_kwargs, decoder_start_token_id, device
        )

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, past_key_values=None, **kwargs):
        # Continuing from a cache: tokens that reach beyond it are the whole sequence; the cache holds its start.
        if next_sequence_length is None and kwargs.get("is_first_iteration") and past_key_values is not None:
            past_length = int(past_key_values.get_seq_length())
            if 0 < past_length < input_ids.shape[1]:
                next_sequence_length = input_ids.shape[1] - past_length
        return super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, past_key_values=past_key_values, **kwargs
        )

    @staticmethod
    def _expand_inputs_for_generation(expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        # Samples and beams of a picture share its encoding and its cross-attention keys and values: not repeated.
        encoder_outputs = model_kwargs.pop("encoder_outputs", None)
        input_ids, model_kwargs = GenerationMixin._expand_inputs_for_generation(
            None, expand_size=expand_size, is_encoder_decoder=False, input_ids=input_ids, **model_kwargs
        )
        if encoder_outputs is not None:
            model_kwargs["encoder_outputs"] = encoder_outputs
        return input_ids, model_kwargs

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: torch.LongTensor) -> EncoderDecoderCache:
        # Beams change places within their picture only, so the picture's keys and values stay where they are.
        past_key_values.self_attention_cache.reorder_cache(beam_idx)
        return past_key_values

    def _beam_search(self, *args, **kwargs):
        output = super()._beam_search(*args, **kwargs)
        cache = None if isinstance(output, torch.Tensor) else output.past_key_values
        if cache is not None:  # handed to the caller in the library's format: a row of keys per beam
            for own, cross in zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True):
                cross.batch_repeat_interleave(own.keys.shape[0] // cross.keys.shape[0])
        return output


__all__ = ["Pix2SeqGenerationMixin", "build_generation_config", "top_logits"]
