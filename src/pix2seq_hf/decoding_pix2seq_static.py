"""How is a sequence written on a GPU: by steps that always use the same memory, captured once and then only replayed.

A step is some hundred small kernels, which a GPU computes in far less time than it takes to start them one by one from
Python. A step whose tensors all stay where they are can be recorded as a CUDA graph, and one call starts it whole. So
everything that changes from step to step lies on the device: the caches have room for the longest sequence and are
written at a place that a tensor holds, as are tokens, scores and the ends of rows. Shapes are fixed too: rows that end
stay, and write padding; numbers of pictures and sequences are rounded up. With `compile_config` torch's compiler makes
fewer and larger kernels of the decoder's layers first, which takes it a while. The library's way, a static cache and a
compiled forward, makes the logits of the whole vocabulary at every step and waits for the device after each."""

import threading
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerateEncoderDecoderOutput

from .cache_pix2seq import FixedLayer, KeptLayer
from .decoding_pix2seq import LARGEST_DRAW, LOOK_EVERY, TokenChooser, TokenPlan, draw_uniform
from .linear_pix2seq import Pix2SeqLinear

STATIC_DEVICES = {"cuda"}  # where starting a step takes longer than the step
MIN_STEPS = 8  # for fewer it is not worth it
ROOM = 64  # lengths are rounded up to multiples of it
MAX_KEPT = 8  # shapes and settings whose steps are kept for the next call
MAX_SHARE = 1 / 8  # of the device's memory that their tensors may take
# The compiler is not to make graphs of its own inside of ours.
MODES = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


def round_up(count: int) -> int:
    """The next of 1, 2, 4, 8, 16, 24, 32, 48, 64, 96 ...: from 16 on at most half as many more."""
    size = 1
    while size < count:
        size = size // 2 * 3 if size >= 16 and size & (size - 1) == 0 else 1 << size.bit_length()
    return size


class DelayedLook:
    """Looks at a flag on the device without waiting for what was started last: it sees the flag of the look before.

    So the host is never more than two looks ahead, and the device always has something to do."""

    def __init__(self):
        self.pending: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def was_true(self, flag: torch.Tensor) -> bool:
        before = self.pending
        if flag.device.type == "cuda":
            copy = torch.empty(flag.shape, dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self.pending = copy, event
        else:
            self.pending = flag, None
        if before is None:
            return False
        copy, event = before
        if event is not None:
            event.synchronize()
        return bool(copy)


class StaticDecoder:
    r"""The tensors that steps of one shape work on, and the graphs of these steps.

    Every slot (see [`TokenGrammar.slot`]) has a step of its own: computed as usual the first time, on a stream beside
    the current one, captured the second time, and replayed from then on.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): The model; only its parts are kept.
        chooser ([`TokenChooser`]): How tokens are chosen.
        num_pictures, num_sequences (`int`): Pictures, and sequences of each.
        num_image_tokens (`int`): Tokens of an encoded picture.
        capacity (`int`): Tokens of a sequence, prompt included.
        compile_options (`dict[str, Any]`, *optional*): For `torch.compile`; without them nothing is compiled."""

    def __init__(
        self, model, chooser, num_pictures, num_sequences, num_image_tokens, capacity, *, compile_options=None
    ):
        self.decoder, self.chooser, self.padding = model.model.decoder, chooser, model.config.pad_token_id
        self.read = self.decoder if compile_options is None else torch.compile(self.decoder.__call__, **compile_options)
        self.shape = num_pictures, num_sequences
        weight, layers, rows = model.lm_head.weight, self.decoder.layers, num_pictures * num_sequences
        attention = layers[0].self_attention
        self.device, size = weight.device, model.config.decoder_hidden_size

        def make(*shape, dtype=torch.long):
            return torch.zeros(shape, dtype=dtype, device=self.device)

        counters = make(2)
        self.counters, self.num_written, self.place = counters, counters[:1], counters[1:]
        self.next_tokens, self.written = make(rows, 1), make(rows, capacity)
        self.finished, self.lengths = make(rows, dtype=torch.bool), make(rows)
        self.uniform = make(rows, capacity, 2, dtype=torch.float32) if chooser.do_sample else None
        self.kept = (make(rows, capacity), make(rows, capacity, dtype=torch.float32)) if chooser.recorder else ()
        # Row by row what a token at that place sees: added to the logits of attention.
        future = torch.ones(capacity, capacity, dtype=torch.bool, device=self.device).triu(1)
        self.masks = make(capacity, capacity, dtype=weight.dtype).masked_fill_(future, float("-inf"))

        def states(batch, length):
            return make(batch, attention.num_heads, length, attention.head_dim, dtype=weight.dtype)

        own, cross = DynamicCache(), DynamicCache()
        own.layers = [FixedLayer(states(rows, capacity), states(rows, capacity), self.place) for _ in layers]
        cross.layers = [KeptLayer() for _ in layers]
        for layer in cross.layers:
            layer.update(states(num_pictures, num_image_tokens), states(num_pictures, num_image_tokens))
        self.cache = EncoderDecoderCache(own, cross)
        self.cache.is_updated = dict.fromkeys(range(len(layers)), True)
        self.pictures = make(num_pictures, 0, size, dtype=weight.dtype)  # only their number is read
        self.packed = [layer.self_attention.packed_weights() for layer in layers]
        self.graphs: dict[tuple, torch.cuda.CUDAGraph] = {}
        self.computed: set[tuple] = set()  # slots whose step was computed once
        self.can_capture = self.device.type == "cuda"
        if self.can_capture:
            self.stream, self.pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()

    @property
    def num_bytes(self) -> int:
        """Memory of the caches, which take most of it."""
        caches = (self.cache.self_attention_cache, self.cache.cross_attention_cache)
        return sum(layer.keys.nbytes + layer.values.nbytes for cache in caches for layer in cache.layers)

    def real(self, tensor: torch.Tensor, num_pictures: int, num_sequences: int) -> torch.Tensor:
        """The part `(num_pictures, num_sequences, ...)` of rows that are not there to fill up."""
        return tensor.unflatten(0, self.shape)[:num_pictures, :num_sequences]

    def start(self, cache: EncoderDecoderCache, shape, prompt_length: int, num_steps: int, uniform):
        r"""Take over what is known after the prompt was read, and weights of which there are copies.

        Args:
            cache (`EncoderDecoderCache`): Keys and values of prompts and pictures.
            shape (`tuple[int, int]`): Pictures, and sequences of each.
            prompt_length, num_steps (`int`): Tokens that were read, and tokens to write at most.
            uniform (`torch.FloatTensor` of shape `(rows, num_steps, 2)`, *optional*): See [`draw_uniform`]."""
        for layer, mine in zip(cache.self_attention_cache.layers, self.cache.self_attention_cache.layers, strict=True):
            for name in ("keys", "values"):
                states = getattr(layer, name).unflatten(0, shape)
                self.real(getattr(mine, name), *shape)[:, :, :, : states.shape[3]].copy_(states)
        pairs = zip(cache.cross_attention_cache.layers, self.cache.cross_attention_cache.layers, strict=True)
        for layer, mine in pairs:
            mine.keys[: shape[0]].copy_(layer.keys)
            mine.values[: shape[0]].copy_(layer.values)
        for layer, mine in zip(self.decoder.layers, self.packed, strict=True):
            for copy, weights in zip(mine, layer.self_attention.packed_weights(), strict=True):
                copy.copy_(weights)
            layer.self_attention.packed = mine  # until `pack` ends
        self.chooser.output_rows.refresh()
        self.num_written.fill_(0)
        self.place.fill_(prompt_length - 1)
        self.written.fill_(self.padding)
        self.lengths.zero_()
        self.real(self.lengths, *shape).fill_(num_steps)
        self.finished.fill_(True)
        self.real(self.finished, *shape).fill_(False)
        if uniform is not None:
            self.real(self.uniform, *shape)[:, :, :num_steps].copy_(uniform.unflatten(0, shape))

    def accept(self, hidden_states: torch.FloatTensor, step: int):
        """Choose and write the token of every row that follows from its hidden state `(rows, size)`."""
        chooser, of_token, of_report = self.chooser, None, None
        if self.uniform is not None:
            of_token, of_report = self.uniform.index_select(1, self.num_written)[:, 0].unbind(-1)
        logits, whole = chooser.logits(hidden_states, step)
        found = None if whole is None else chooser.recorder.read(step, whole, of_report)
        tokens = chooser.choose(logits, step, self.written, of_token, self.num_written)
        if chooser.can_end:
            tokens = tokens.masked_fill(self.finished, self.padding)
        if found is not None:
            for column, values in zip(self.kept, chooser.recorder.finish(found, tokens), strict=True):
                column.index_copy_(1, self.num_written, values[:, None])
        self.written.index_copy_(1, self.num_written, tokens[:, None])
        self.next_tokens.copy_(tokens[:, None])
        self.counters.add_(1)
        has_ended = chooser.is_last(step, tokens[:, None]) if chooser.can_end else None
        if has_ended is not None:
            self.lengths.copy_(torch.where(has_ended & ~self.finished, self.num_written, self.lengths))
            self.finished.logical_or_(has_ended)

    def compute(self, step: int):
        """Read the token that every row wrote last, and write the next: on any device, and what is captured."""
        hidden_states = self.read(
            input_ids=self.next_tokens,
            attention_mask=self.masks.index_select(0, self.place)[None, None],
            position_ids=self.place[None],
            encoder_hidden_states=self.pictures,
            cache=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self.accept(hidden_states, step)

    def advance(self, step: int):
        """Do step `step`, at least 1, by a graph where there is one."""
        chooser = self.chooser
        slot = chooser.slot(step)
        if slot not in self.graphs and slot in self.computed and self.can_capture:
            self._capture(slot, step)
        if slot in self.graphs:
            self.graphs[slot].replay()
        elif slot in self.computed or not self.can_capture:
            self.compute(step)
        else:  # what kernels make at their first call must not be made while a graph is captured
            current = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                self.compute(step)
            current.wait_stream(self.stream)
        self.computed.add(slot)

    def _capture(self, slot: tuple, step: int):
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as those that load pictures, may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                self.compute(step)
        except RuntimeError as error:
            self.can_capture = False
            self.graphs.clear()
            reason = str(error).strip().split("\n")[0]
            warnings.warn(f"decoding without CUDA graphs, which is slower: capturing failed ({reason})", stacklevel=2)
            return
        parts = [layer.self_attention.packed for layer in self.decoder.layers]
        if all(part is mine for part, mine in zip(parts, self.packed, strict=True)):
            self.graphs[slot] = graph  # else another thread's call has put its own weights there


class KeptDecoders:
    """The decoders of a model that are ready to be used again, the one used last at the end."""

    def __init__(self):
        self.lock = threading.Lock()
        self.decoders: OrderedDict[tuple, StaticDecoder] = OrderedDict()
        self.weights: tuple = ()
        self.can_capture = True

    def find(self, model, key: tuple, make) -> StaticDecoder:
        """The decoder of a key, as `make` makes it where there is none."""
        weights = where_weights_are(model)
        if weights != self.weights:  # graphs read them where they were
            self.decoders.clear()
            self.weights = weights
        decoder = self.decoders.pop(key, None)
        if decoder is None:
            while len(self.decoders) >= MAX_KEPT:
                self.decoders.popitem(last=False)
            decoder = make()
        self.decoders[key] = decoder
        return decoder

    def trim(self):
        """Let go what takes too much memory, what was used longest ago first."""
        decoders = list(self.decoders.values())
        device = decoders[-1].device if decoders else None
        if device is None or device.type != "cuda":
            return
        limit = MAX_SHARE * torch.cuda.get_device_properties(device).total_memory
        while self.decoders and sum(decoder.num_bytes for decoder in self.decoders.values()) > limit:
            self.decoders.popitem(last=False)


# Not an attribute of the model, which may be copied or saved. An entry leaves with its model, which no decoder holds.
KEPT: WeakKeyDictionary[nn.Module, KeptDecoders] = WeakKeyDictionary()


def where_weights_are(model) -> tuple:
    """What changes when weights are replaced; weights that change in their places are read as they are."""
    parts = (model.model.decoder, model.lm_head)
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return model.config._attn_implementation, *((tensor.data_ptr(), tensor.dtype) for tensor in tensors)


def is_as_built(model) -> bool:
    """Whether the decoder is nothing but its own layers: not adapted, quantised, spread, watched or in training."""
    parts = [*model.model.decoder.modules(), model.lm_head]
    weights = [*model.model.decoder.parameters(), *model.lm_head.parameters()]
    device = weights[0].device
    return (
        not model.training
        and model.config._attn_implementation in ("sdpa", "eager")
        and all(type(part) is Pix2SeqLinear for part in parts if isinstance(part, nn.Linear))
        and not any(part._forward_hooks or part._forward_pre_hooks or hasattr(part, "_hf_hook") for part in parts)
        and all(type(weight) is nn.Parameter and weight.device == device for weight in weights)
        and not torch.is_autocast_enabled(device.type)
    )


def settings_key(chooser: TokenChooser) -> tuple | None:
    """What choosers that choose alike have in common; `None` if steps cannot be repeated."""
    grammar, recorder = chooser.grammar, chooser.recorder
    if grammar is not None and grammar.slot(1) is None:
        return None
    key = (
        None if grammar is None else grammar.key(),
        None if recorder is None else recorder.key(),
        *((type(warper), *sorted(vars(warper).items())) for warper in chooser.warpers),
        chooser.do_sample,
        chooser.can_end,
        None if chooser.end_tokens is None else tuple(chooser.end_tokens.tolist()),
    )
    try:
        hash(key)
    except TypeError:  # a grammar of the user's own
        return None
    return key


def decode_static(
    model, plan: TokenPlan, input_ids, processors, criteria, generation_config, streamer, model_kwargs
) -> torch.LongTensor | GenerateEncoderDecoderOutput | None:
    r"""Write sequences as [`decode`] does, by steps that are captured.

    Args:
        model, plan, input_ids, processors, criteria, generation_config, streamer, model_kwargs: See [`decode`].
    Returns:
        As [`decode`], or `None` where that has to do it: on a processor, for few tokens or more than the model has
        positions for, streamers, hidden tokens, a decoder that is not as it was built, a grammar without slots, with
        `generation_config.disable_compile`, or while another thread decodes with the same model."""
    num_steps = generation_config.max_length - input_ids.shape[1]
    is_asked_for = (
        input_ids.device.type in STATIC_DEVICES
        and streamer is None
        and num_steps >= MIN_STEPS
        and generation_config.max_length - 1 <= model.config.max_position_embeddings  # the last token is not read
        and model_kwargs.get("decoder_attention_mask") is None
        and getattr(plan.recorder, "on_objects", None) is None
        and not generation_config.disable_compile
    )
    if not is_asked_for or not is_as_built(model):
        return None
    # Tensors that are kept must be ordinary ones, whatever mode this call is made in.
    with torch.inference_mode(False), torch.no_grad():
        chooser = TokenChooser(model, plan, processors, criteria, generation_config)
        settings = settings_key(chooser)
        kept = KEPT.setdefault(model, KeptDecoders())
        if settings is None or not kept.can_capture or not kept.lock.acquire(blocking=False):
            return None
        device = input_ids.device
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return _decode(model, plan, chooser, kept, settings, input_ids, generation_config, model_kwargs)
        finally:
            kept.trim()
            kept.lock.release()


def _decode(model, plan, chooser, kept: KeptDecoders, settings, input_ids, generation_config, model_kwargs):
    encoded, cache = model_kwargs["encoder_outputs"][0], model_kwargs["cache"]
    (total, prompt_length), max_length = input_ids.shape, generation_config.max_length
    num_steps, num_pictures = max_length - prompt_length, encoded.shape[0]
    shape = num_pictures, total // num_pictures
    sizes = *map(round_up, shape), encoded.shape[1], -(-max_length // ROOM) * ROOM
    options = None
    if generation_config.compile_config is not None:
        options = generation_config.compile_config.to_dict()
        options["mode"] = MODES.get(options["mode"], options["mode"])

    def make() -> StaticDecoder:
        return StaticDecoder(model, chooser, *sizes, compile_options=options)

    try:
        decoder = kept.find(model, (*sizes, *settings, str(options)), make)
    except torch.cuda.OutOfMemoryError:
        kept.decoders.clear()
        warnings.warn("decoding without CUDA graphs, which is slower: they need more memory", stacklevel=2)
        return None
    uniform = None
    if chooser.do_sample and plan.seeds is not None:
        uniform = draw_uniform(plan.seeds, total, num_steps).to(input_ids.device)
    elif chooser.do_sample:
        uniform = torch.rand(total, num_steps, 2, device=input_ids.device).clamp_(max=LARGEST_DRAW)

    hidden_states = model.model.decoder(
        input_ids=input_ids, encoder_hidden_states=encoded, cache=cache, use_cache=True
    ).last_hidden_state[:, -1]
    decoder.start(cache, shape, prompt_length, num_steps, uniform)
    filled = hidden_states.new_zeros(*decoder.shape, hidden_states.shape[-1])
    filled[: shape[0], : shape[1]] = hidden_states.unflatten(0, shape)
    decoder.accept(filled.flatten(0, 1), 0)
    look, num_done = DelayedLook(), 1
    for step in range(1, num_steps):
        decoder.advance(step)
        num_done += 1
        is_time = chooser.can_end and step % LOOK_EVERY == LOOK_EVERY - 1
        if is_time and look.was_true(decoder.finished.all()):
            break
    kept.can_capture = decoder.can_capture or input_ids.device.type != "cuda"

    def read(tensor: torch.Tensor, length: int) -> torch.Tensor:
        return decoder.real(tensor, *shape)[:, :, :length].clone().flatten(0, 1)

    sequences = torch.cat([input_ids, read(decoder.written, num_steps)], 1)
    if plan.recorder is not None:
        columns = zip(*(read(column, num_done).unbind(1) for column in decoder.kept), strict=True)
        plan.recorder.kept = [pair for step, pair in enumerate(columns) if plan.recorder.reads(step)]
    if chooser.can_end:  # as the library: nothing is kept after the last row has ended
        sequences = sequences[:, : prompt_length + int(decoder.real(decoder.lengths, *shape).max())]
    if not generation_config.return_dict_in_generate:
        return sequences
    if decoder.real(decoder.finished, *shape).any():
        return GenerateEncoderDecoderOutput(sequences=sequences)
    for layer, mine in zip(cache.self_attention_cache.layers, decoder.cache.self_attention_cache.layers, strict=True):
        for name in ("keys", "values"):
            states = decoder.real(getattr(mine, name), *shape)[:, :, :, : max_length - 1]
            setattr(layer, name, states.clone().flatten(0, 1))
    return GenerateEncoderDecoderOutput(sequences=sequences, cache=cache)


__all__ = ["decode_static"]
