"""What does `generate` do by default for each task, and where does it differ from the library's."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from transformers import GenerationConfig
from transformers.cache_utils import EncoderDecoderCache
from transformers.generation import (
    GenerateEncoderDecoderOutput,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
    TopPLogitsWarper,
)

from .cache_pix2seq import GrowingLayer, KeptLayer
from .decoding_pix2seq import (
    AllowedRows,
    ClassRecorder,
    GrammarEnd,
    Pix2SeqTopPLogitsWarper,
    TokenPlan,
    VisibleTokenRecorder,
    can_decode_fast,
    decode,
    top_logits,
)
from .decoding_pix2seq_static import decode_static
from .grammar_pix2seq import TOKENS_PER_OBJECT, TokenGrammar


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
    r"""`generate` with task defaults and grammars, many sequences per picture, the reference's nucleus and scores."""

    @torch.no_grad()
    def generate(
        self,
        inputs=None,
        generation_config=None,
        logits_processor=None,
        stopping_criteria=None,
        task: str | None = None,
        grammar: str | TokenGrammar | None = "auto",
        classes: Iterable[int | str] | None = None,
        max_objects: int | None = None,
        max_points: int | None = None,
        allowed_tokens: Iterable[int] | None = None,
        stop_when_noise: bool = False,
        seeds: Sequence[int] | None = None,
        **kwargs,
    ):
        r"""Write sequences; everything that [`~transformers.GenerationMixin.generate`] takes works.

        Args:
            inputs or pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): Pictures.
            decoder_input_ids (`torch.LongTensor` of shape `(batch, length)` or `(batch, sequences, length)`):
                Optional prompts, the task's token first. By default every picture gets the task's token, that of
                detection if no task is named.
            generation_config (`GenerationConfig`, *optional*): In place of the model's own and its task settings.
            logits_processor, stopping_criteria (*optional*): Further ones.
            encoder_outputs (`BaseModelOutput`, *optional*): Pictures encoded before; nothing is encoded again.
            task (`str`, *optional*): A task of the model; its grammar holds. What the processor returns names it.
            grammar (`str` or [`TokenGrammar`] or `None`, *optional*, defaults to `"auto"`):
                `"auto"` is the grammar of `task`, and none without a task; `None` is the reference's free sampling.
            classes (`Iterable[int | str]`, *optional*): Labels or names that detection may find.
            max_objects (`int`, *optional*): Objects that detection writes per picture.
            max_points (`int`, *optional*): Points that segmentation writes per object.
            allowed_tokens (`Iterable[int]`, *optional*): Tokens that a caption may hold besides its end.
            stop_when_noise (`bool`, *optional*, defaults to `False`): Detection stops a picture where the model takes
                an object for noise; what it would still have written is mostly noise too, but not always.
            seeds (`Sequence[int]`, *optional*): One per picture: what is drawn for a picture depends on its seed, and
                neither on torch's generator nor on the rest of the batch.
        Returns:
            `torch.LongTensor` of shape `(batch * sequences * num_return_sequences, length)`, prompt included, or with
            `return_dict_in_generate` the library's output with more fields. Detection: `class_labels`
            (`torch.LongTensor` of shape `(rows, num_objects)`, raw label ids, 0 for none) and `class_scores`
            (`torch.FloatTensor` of the same shape), read from the raw logits whatever token was sampled. Keypoints, if
            the task is named: `sequences` without invisible tokens, their `token_scores` `(rows, new_tokens)`, and
            `is_invisible` of that shape, where an invisible token stood.
        Raises:
            ValueError: If the model was not trained for the task, a class is unknown, or something else was asked for
                that draws tokens in a loop of the library, which knows no seeds."""
        prompts = kwargs.get("decoder_input_ids")
        if prompts is not None and prompts.ndim == 3:
            kwargs["decoder_input_ids"] = prompts = prompts.flatten(0, 1)  # (batch * sequences, length)
        task = self._find_task(task)
        if prompts is not None and not len(prompts):  # pictures without objects to ask about
            returns_dict = kwargs.get("return_dict_in_generate", self.generation_config.return_dict_in_generate)
            return GenerateEncoderDecoderOutput(sequences=prompts) if returns_dict else prompts
        if prompts is not None and task is not None:
            prompt_token = task.prompt_id  # the first prompt may be padding, where the first picture has no boxes
        elif prompts is not None:
            prompt_token = int(prompts[0, 0]) if prompts.numel() else None
        else:
            prompt_token = self.config.decoder_start_token_id if task is None else task.prompt_id
            if task is not None:
                kwargs["decoder_start_token_id"] = prompt_token
        if task is None:
            task = self._task_of_prompt(prompt_token)
            grammar = None if grammar == "auto" else grammar
        limits = {"max_objects": max_objects, "max_points": max_points}
        for name, per_item in (("max_objects", TOKENS_PER_OBJECT), ("max_points", 2)):
            if limits[name] is not None and kwargs.get("max_new_tokens") is None:
                kwargs["max_new_tokens"] = per_item * limits[name]
        if generation_config is None:
            kwargs = {**self._task_settings(prompt_token, kwargs), **kwargs}
        if seeds is not None and (task is None or not self._sees_every_row_once(generation_config, kwargs)):
            raise ValueError("seeds are for sampling for a task: name it, and leave out beams and assistants")
        if task is None:
            return super().generate(
                inputs,
                generation_config=generation_config,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                **kwargs,
            )

        prompt_length = 1 if prompts is None else prompts.shape[1]
        labels = self._find_labels(classes)
        if grammar == "auto":
            grammar = task.grammar(
                self.config,
                labels=labels,
                stop_when_noise=stop_when_noise,
                max_points=max_points,
                allowed_tokens=allowed_tokens,
            )
        recorder = self._make_recorder(task, grammar, labels, stop_when_noise, generation_config, kwargs)
        plan = TokenPlan(prompt_length, grammar, recorder, seeds)
        if self._sees_every_row_once(generation_config, kwargs):
            criteria = StoppingCriteriaList(stopping_criteria or [])
            if grammar is not None:
                criteria.append(GrammarEnd(plan))
            output = super().generate(
                inputs,
                generation_config=generation_config,
                logits_processor=LogitsProcessorList([*(logits_processor or []), plan]),
                stopping_criteria=criteria,
                **kwargs,
            )
            added = plan.results(output if isinstance(output, torch.Tensor) else output.sequences)
        else:  # beams change places and assistants propose tokens: score the finished sequences in one pass
            if kwargs.get("encoder_outputs") is None:
                pixel_values = kwargs["pixel_values"] if inputs is None else inputs
                kwargs["encoder_outputs"] = self.get_encoder()(
                    pixel_values,
                    output_attentions=kwargs.get("output_attentions"),
                    output_hidden_states=kwargs.get("output_hidden_states"),
                )
            only_grammar = [] if grammar is None else [TokenPlan(prompt_length, grammar)]
            output = super().generate(
                inputs,
                generation_config=generation_config,
                logits_processor=LogitsProcessorList([*(logits_processor or []), *only_grammar]),
                stopping_criteria=stopping_criteria,
                **kwargs,
            )
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            added = self._read_finished(plan, sequences, kwargs["encoder_outputs"])
        if isinstance(output, torch.Tensor):
            return added.get("sequences", output)
        for name, value in added.items():
            output[name] = value
        return output

    def _find_task(self, name: str | None):
        """The task of a name, `None` for `None`."""
        if name is None:
            return None
        # Imported here: the table of tasks needs processors, which a model alone does not.
        from .processing_pix2seq import find_task

        task = find_task(name)
        if name not in self.config.tasks:
            raise ValueError(
                f"the model was not trained for {name!r}: its tasks are {', '.join(self.config.tasks)} (config.tasks)"
            )
        return task

    def _task_of_prompt(self, prompt_token: int | None):
        """The task that a prompt's first token asks for, `None` if there is none."""
        from .processing_pix2seq import TASKS

        return next((task for task in TASKS.values() if task.prompt_id == prompt_token), None)

    def _find_labels(self, classes: Iterable[int | str] | None) -> list[int] | None:
        """Raw label ids of names or ids."""
        if classes is None:
            return None
        names = {name: label for label, name in self.config.id2label.items()}
        labels = []
        for entry in [classes] if isinstance(classes, (str, int)) else classes:
            label = names.get(entry) if isinstance(entry, str) else int(entry)
            if label not in self.config.id2label:
                raise ValueError(f"unknown class {entry!r}: the model knows {', '.join(map(str, sorted(names)))}")
            labels.append(label)
        if not labels:
            raise ValueError("classes is empty: name at least one, or leave it out to allow all")
        return labels

    def _make_recorder(self, task, grammar, labels, stop_when_noise, generation_config, kwargs):
        """What the task keeps of the raw logits."""
        config, defaults = self.config, generation_config or self.generation_config
        if task.records == "classes":
            on_objects = getattr(kwargs.get("streamer"), "put_objects", None)
            returns_dict = kwargs.get("return_dict_in_generate", defaults.return_dict_in_generate)
            if not returns_dict and on_objects is None:
                return None  # nobody would see it
            if labels is None:
                classes = torch.arange(min(config.coord_vocab_shift, config.vocab_size))[config.base_vocab_shift :]
            else:
                classes = torch.tensor(sorted(labels)) + config.base_vocab_shift
            stops = stop_when_noise and grammar is not None
            return ClassRecorder(classes, config.base_vocab_shift, stops, on_objects)
        if task.records == "visible_tokens" and grammar is not None:
            choices = {
                name: kwargs[name] if kwargs.get(name) is not None else getattr(defaults, name, None)
                for name in ("do_sample", "temperature", "top_k", "top_p")
            }
            neutral = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            chosen = {name: neutral[name] if value is None else value for name, value in choices.items()}
            return VisibleTokenRecorder(grammar, **chosen)
        return None

    def _task_settings(self, prompt_token: int, chosen: dict) -> dict:
        """Defaults of the task that the prompt asks for, without those that the caller's choices make meaningless."""
        settings = dict((getattr(self.generation_config, "task_settings", None) or {}).get(str(prompt_token), {}))
        if chosen.get("max_length") is not None:
            settings.pop("max_new_tokens", None)
        if (chosen.get("num_beams") or 1) > 1:
            settings["do_sample"] = False
        elif (chosen.get("num_return_sequences") or 1) > 1:
            settings["do_sample"] = True  # else all of them would be the same, which the library refuses
        if not chosen.get("do_sample", settings.get("do_sample", False)):
            for name in ("top_p", "top_k", "temperature", "num_return_sequences"):  # samples would all be equal
                settings.pop(name, None)
        return settings

    def _sees_every_row_once(self, generation_config, kwargs) -> bool:
        """Whether every token of every row is chosen from the logits that the processors see at that step."""
        config = generation_config or self.generation_config
        choices = {
            name: kwargs.get(name, getattr(config, name, None))
            for name in ("num_beams", "prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha")
        }
        has_helper = kwargs.get("assistant_model") is not None or kwargs.get("custom_generate") is not None
        return (choices.pop("num_beams") or 1) == 1 and not any(choices.values()) and not has_helper

    def _read_finished(self, plan: TokenPlan, sequences: torch.LongTensor, encoder_outputs) -> dict[str, torch.Tensor]:
        """What the recorder would have kept, from one teacher-forced pass over finished sequences."""
        if plan.recorder is None:
            return {}
        written = sequences[:, plan.prompt_length :]
        steps = [step for step in range(written.shape[1]) if plan.recorder.reads(step)]
        if steps:
            logits = self(
                encoder_outputs=(encoder_outputs[0],),
                decoder_input_ids=sequences[:, :-1],
                logits_to_keep=torch.tensor(steps, device=sequences.device) + plan.prompt_length - 1,
                use_cache=False,
            ).logits
            rows = torch.arange(len(sequences), device=sequences.device)
            for position, step in enumerate(steps):
                plan.recorder.record(step, written[:, :step], logits[:, position].float(), rows, len(rows))
                plan.recorder.settle(written[:, step])
        return plan.results(sequences)

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=False, **kwargs):
        plan = next((processor for processor in logits_processor if isinstance(processor, TokenPlan)), None)
        cache = kwargs.get("cache")
        is_fast = can_decode_fast(plan, logits_processor, stopping_criteria, generation_config, cache, synced_gpus)
        if not is_fast and plan is not None and plan.seeds is not None and generation_config.do_sample:
            raise ValueError("seeds are heeded with the default cache and without outputs beside the sequences")
        with ExitStack() as stack:
            for layer in self.model.decoder.layers:
                stack.enter_context(layer.self_attention.pack())
            if is_fast:
                streamer = kwargs.pop("streamer", None)
                asked = (plan, input_ids, logits_processor, stopping_criteria, generation_config, streamer, kwargs)
                output = decode_static(self, *asked)
                return decode(self, *asked) if output is None else output
            wants_all = generation_config.output_logits or input_ids.device.type != "cpu"  # elsewhere rows cost nothing
            is_compiled = cache is not None and cache.is_compileable
            if plan is not None and not wants_all and not is_compiled:
                kwargs["allowed_rows"] = AllowedRows(self.lm_head, plan)
            return super()._sample(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=synced_gpus,
                **kwargs,
            )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        is_given = model_kwargs.get("cache") is not None
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        is_usual = generation_config.cache_implementation in (None, "dynamic") and not generation_config.is_assistant
        cache = model_kwargs.get("cache")
        if cache is not None and is_usual and not is_given:
            num_layers = self.config.decoder_num_hidden_layers
            cache.self_attention_cache.layers = [GrowingLayer() for _ in range(num_layers)]
            cache.cross_attention_cache.layers = [KeptLayer() for _ in range(num_layers)]

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        ordered = LogitsProcessorList()
        for processor in processors:
            if type(processor) is TopPLogitsWarper:
                processor = Pix2SeqTopPLogitsWarper(processor.top_p, processor.filter_value)
            if isinstance(processor, TokenPlan):
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

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, cache=None, **kwargs):
        # Continuing from a cache: tokens that reach beyond it are the whole sequence; the cache holds its start.
        if next_sequence_length is None and kwargs.get("is_first_iteration") and cache is not None:
            past_length = int(cache.get_seq_length())
            if 0 < past_length < input_ids.shape[1]:
                next_sequence_length = input_ids.shape[1] - past_length
        allowed_rows = kwargs.pop("allowed_rows", None)
        inputs = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, cache=cache, **kwargs
        )
        if allowed_rows is not None:
            inputs["output_layer"] = allowed_rows.at(input_ids.shape[1])
        return inputs

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

    def _reorder_cache(self, cache: EncoderDecoderCache, beam_idx: torch.LongTensor) -> EncoderDecoderCache:
        # Beams change places within their picture only, so the picture's keys and values stay where they are.
        cache.self_attention_cache.reorder_cache(beam_idx)
        return cache

    def _beam_search(self, *args, **kwargs):
        output = super()._beam_search(*args, **kwargs)
        cache = None if isinstance(output, torch.Tensor) else output.cache
        if cache is not None:  # handed to the caller in the library's format: a row of keys per beam
            for own, cross in zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True):
                cross.batch_repeat_interleave(own.keys.shape[0] // cross.keys.shape[0])
        return output


__all__ = ["Pix2SeqGenerationMixin", "build_generation_config", "top_logits"]
