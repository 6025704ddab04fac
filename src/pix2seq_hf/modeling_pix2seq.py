"""How does a picture and a token prefix become the logits of the next token: encoder, decoder and heads."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    ModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.utils import can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_pix2seq import Pix2SeqConfig
from .generation_pix2seq import Pix2SeqGenerationMixin
from .grammar_pix2seq import TOKENS_PER_OBJECT
from .linear_pix2seq import Pix2SeqLinear, check_int8
from .loss_pix2seq import projected_loss, sequence_loss, shift_right
from .modeling_pix2seq_attention import Pix2SeqAttention
from .modeling_pix2seq_embeddings import (
    Pix2SeqImagePositions,
    Pix2SeqResNetEmbeddings,
    Pix2SeqViTEmbeddings,
    sine_positions_1d,
    sine_positions_2d,
)
from .modeling_pix2seq_resnet import Pix2SeqBatchNorm
from .tokenization_pix2seq import Pix2SeqVocabulary


def drop_path(hidden_states: torch.Tensor, drop_rate: float, training: bool) -> torch.Tensor:
    """Stochastic depth: zero a residual branch of a whole sample, scale the others up."""
    if drop_rate == 0 or not training:
        return hidden_states
    keep_rate = 1 - drop_rate
    shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
    keep = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device) < keep_rate
    return hidden_states * keep / keep_rate


class Pix2SeqMLP(nn.Module):
    """Two linear layers around an exact (erf) GELU, with dropout between."""

    def __init__(self, config: Pix2SeqConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = Pix2SeqLinear(hidden_size, intermediate_size)
        self.fc2 = Pix2SeqLinear(intermediate_size, hidden_size)
        self.drop_units_rate = config.drop_units_rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if type(self.fc1) is Pix2SeqLinear:
            hidden_states = self.fc1(hidden_states, use_gelu=True)
        else:  # adapted or quantised
            hidden_states = nn.functional.gelu(self.fc1(hidden_states))
        hidden_states = nn.functional.dropout(hidden_states, p=self.drop_units_rate, training=self.training)
        return self.fc2(hidden_states)


class Pix2SeqEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: Pix2SeqConfig):
        super().__init__()
        self.drop_path_rate = config.drop_path_rate
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = Pix2SeqAttention(config, config.hidden_size, config.num_attention_heads)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Pix2SeqMLP(config, config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        update, _ = self.self_attention(self.self_attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + drop_path(update, self.drop_path_rate, self.training)
        update = self.mlp(self.mlp_norm(hidden_states))
        return hidden_states + drop_path(update, self.drop_path_rate, self.training)


class Pix2SeqDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: Pix2SeqConfig, layer_idx: int):
        super().__init__()
        size, heads = config.decoder_hidden_size, config.decoder_num_attention_heads
        self.drop_path_rate = config.drop_path_rate
        self.self_attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.self_attention = Pix2SeqAttention(config, size, heads, is_causal=True, layer_idx=layer_idx)
        self.cross_attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.cross_attention = Pix2SeqAttention(config, size, heads, layer_idx=layer_idx)
        self.mlp_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.mlp = Pix2SeqMLP(config, size, config.decoder_intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        update, _ = self.self_attention(
            self.self_attention_norm(hidden_states),
            attention_mask=attention_mask,
            cache=cache,
            **kwargs,
        )
        hidden_states = hidden_states + drop_path(update, self.drop_path_rate, self.training)
        if encoder_hidden_states is not None:
            update, _ = self.cross_attention(
                self.cross_attention_norm(hidden_states),
                key_value_states=encoder_hidden_states,
                cache=cache,
                **kwargs,
            )
            hidden_states = hidden_states + drop_path(update, self.drop_path_rate, self.training)
        update = self.mlp(self.mlp_norm(hidden_states))
        return hidden_states + drop_path(update, self.drop_path_rate, self.training)


class Pix2SeqProjection(Pix2SeqImagePositions):
    """From the encoder's width to the decoder's; modes `linear_p` and `mlp` add positions once more."""

    def __init__(self, config: Pix2SeqConfig):
        super().__init__()
        self.config = config
        size = config.decoder_hidden_size
        self.drop_path_rate = config.drop_path_rate
        self.linear = Pix2SeqLinear(config.hidden_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        if config.projection_mode != "linear":
            self.make_position_embeddings(config, size)
        if config.projection_mode == "mlp":
            self.mlp_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
            # The reference gives this MLP the encoder's ratio of widths, rounded down.
            self.mlp = Pix2SeqMLP(config, size, size * (config.intermediate_size // config.hidden_size))

    def forward(self, hidden_states: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        hidden_states = self.norm(self.linear(hidden_states))
        if self.config.projection_mode == "linear":
            return hidden_states
        positions = self.positions(grid_size).to(hidden_states.dtype)
        if self.config.use_class_token:
            positions = nn.functional.pad(positions, (0, 0, 1, 0))  # nothing is added to the class token
        hidden_states = hidden_states + positions
        if self.config.projection_mode == "mlp":
            update = self.mlp(self.mlp_norm(hidden_states))
            hidden_states = hidden_states + drop_path(update, self.drop_path_rate, self.training)
        return hidden_states


class Pix2SeqPreTrainedModel(PreTrainedModel):
    config: Pix2SeqConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Pix2SeqEncoderLayer", "Pix2SeqDecoderLayer", "Pix2SeqResNetBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _own_card: str | None = None

    def save_pretrained(self, save_directory, *args, **kwargs):
        # Read before the library writes a card of its own, which it does before it uploads; see below.
        path, self._own_card = os.path.join(self.name_or_path, "README.md"), None
        if os.path.isdir(self.name_or_path) and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                self._own_card = file.read()
        super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        # Departure from the library: the card that lies in the folder of a loaded model goes along, with all the tags.
        if self._own_card is not None:
            path = os.path.join(working_dir, "README.md")
            card, tags = ModelCard(self._own_card), ModelCard.load(path).data.tags
            card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), *(tags or ())]))
            card.save(path)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        """Initial weights as Keras draws them for the reference."""
        # The library initialises a module only through its own parameters, so a module whose weights differ from the
        # rule of its class carry their own: `initial_bound` (uniform), `initial_std` (normal) or `initial_weight`.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if hasattr(module, "initial_std"):
                for table in (module.weight, module.bias):
                    if table is not None:
                        self._init_table(table, module.initial_std)
                return
            if hasattr(module, "initial_bound"):
                init.uniform_(module.weight, -module.initial_bound, module.initial_bound)
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            if module.bias is not None:  # the patch embedding
                init.xavier_uniform_(module.weight)
                init.zeros_(module.bias)
            else:
                init.lecun_normal_(module.weight)
        elif isinstance(module, nn.Embedding):
            self._init_table(module.weight, std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Pix2SeqBatchNorm):
            init.constant_(module.weight, module.initial_weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        elif isinstance(module, (Pix2SeqImagePositions, Pix2SeqDecoder)):
            self._init_positions(module, std)
            if getattr(module, "class_token", None) is not None:
                self._init_table(module.class_token, std)

    def _init_table(self, table, std):
        init.trunc_normal_(table, std=std, a=-2 * std, b=2 * std)

    def _init_positions(self, module, std):
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Parameter):
            self._init_table(table, std)
        elif table is not None:  # a sine table: models are built on the meta device, which leaves it empty
            if isinstance(module, Pix2SeqDecoder):
                init.copy_(table, sine_positions_1d(*table.shape))
            else:
                init.copy_(table, sine_positions_2d(*self.config.grid_size, table.shape[-1]))


class Pix2SeqEncoder(Pix2SeqPreTrainedModel):
    r"""Picture to tokens of the decoder's width: ViT or ResNet, transformer layers, projection."""

    _can_record_outputs = {"hidden_states": Pix2SeqEncoderLayer, "attentions": Pix2SeqAttention}
    input_modalities = ("image",)

    def __init__(self, config: Pix2SeqConfig):
        super().__init__(config)
        make_embeddings = Pix2SeqViTEmbeddings if config.resnet_variant == "c1" else Pix2SeqResNetEmbeddings
        self.embeddings = make_embeddings(config)
        self.layers = nn.ModuleList([Pix2SeqEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = Pix2SeqProjection(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        embeddings = self.embeddings
        return embeddings.patch_embeddings if self.config.resnet_variant == "c1" else embeddings.projection

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutput:
        r"""Encode pictures.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): From the processor.
        Returns:
            `BaseModelOutput`: `last_hidden_state` `(batch, num_tokens, decoder_hidden_size)`; `hidden_states` are those
            of the transformer layers, of `hidden_size`."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be (batch, {self.config.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}"
            )
        hidden_states, grid_size = self.embeddings(pixel_values.to(self.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.projection(self.norm(hidden_states), grid_size))


class Pix2SeqDecoder(Pix2SeqPreTrainedModel):
    r"""Tokens so far and the encoded picture to hidden states of the next tokens."""

    _can_record_outputs = {
        "hidden_states": Pix2SeqDecoderLayer,
        "attentions": OutputRecorder(Pix2SeqAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(Pix2SeqAttention, index=1, layer_name="cross_attention"),
    }
    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, config: Pix2SeqConfig):
        super().__init__(config)
        size, length = config.decoder_hidden_size, config.max_position_embeddings
        self.token_embeddings = nn.Embedding(config.vocab_size, size)
        if config.text_position_encoding == "learned":
            self.position_embeddings = nn.Parameter(torch.zeros(length, size))
        else:
            self.register_buffer("position_embeddings", sine_positions_1d(length, size), persistent=False)
        self.layers = nn.ModuleList(
            [Pix2SeqDecoderLayer(config, layer_idx) for layer_idx in range(config.decoder_num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.token_embeddings

    def set_input_embeddings(self, value):
        self.token_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        r"""Decode with teacher forcing, or one step with a cache.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch * sequences, length)`): Tokens, all sequences of the first
                picture first.
            attention_mask (`torch.Tensor` of shape `(batch * sequences, length)`, *optional*): 0 hides a token. The
                reference hides none, padding neither.
            encoder_hidden_states (`torch.FloatTensor` of shape `(batch, num_tokens, decoder_hidden_size)`): Pictures.
            cache (`EncoderDecoderCache`, *optional*): Keys and values so far.
            inputs_embeds (`torch.FloatTensor` of shape `(batch * sequences, length, decoder_hidden_size)`, *optional*):
                In place of `input_ids`, without positions.
            position_ids (`torch.LongTensor` of shape `(batch * sequences, length)`, *optional*): Positions.
            use_cache (`bool`, *optional*): Whether to return `cache`.
        Returns:
            `BaseModelOutputWithPastAndCrossAttentions`: `last_hidden_state` of shape `(batch * sequences, length,
            decoder_hidden_size)`.
        Raises:
            ValueError: If sequences do not divide among the pictures or are longer than the positions."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either decoder_input_ids or decoder_inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.token_embeddings(input_ids)
        rows, length = inputs_embeds.shape[:2]
        if encoder_hidden_states is not None and rows % encoder_hidden_states.shape[0]:
            raise ValueError(
                f"{rows} sequences do not divide among {encoder_hidden_states.shape[0]} pictures: "
                "every picture needs the same number"
            )
        if use_cache and cache is None:
            cache_config = self.config.get_text_config(decoder=True)
            cache = EncoderDecoderCache(DynamicCache(config=cache_config), DynamicCache(config=cache_config))
        past_length = cache.get_seq_length() if cache is not None else 0
        if isinstance(past_length, int) and past_length + length > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {past_length + length} tokens is longer than the model's "
                f"{self.config.max_position_embeddings} positions (max_position_embeddings)"
            )
        if position_ids is None:
            position_ids = (torch.arange(length, device=inputs_embeds.device) + past_length).unsqueeze(0)
        hidden_states = inputs_embeds + self.position_embeddings[position_ids].to(inputs_embeds)

        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            cache=cache,
            position_ids=position_ids,
        )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                attention_mask,
                cache=cache if use_cache else None,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states), cache=cache if use_cache else None
        )


class Pix2SeqModel(Pix2SeqPreTrainedModel):
    r"""Encoder and decoder without the output layer.

    Args:
        config ([`Pix2SeqConfig`]): The sizes.

    Source: `models/ar_model.py` of the reference implementation."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # a checkpoint with a head is what one loads this from

    def __init__(self, config: Pix2SeqConfig):
        super().__init__(config)
        self.encoder = Pix2SeqEncoder(config)
        self.decoder = Pix2SeqDecoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.decoder.token_embeddings

    def set_input_embeddings(self, value):
        self.decoder.token_embeddings = value

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: Cache | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput | tuple:
        r"""Encode pictures and decode sequences with teacher forcing.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): From the processor.
            decoder_input_ids (`torch.LongTensor` of shape `(batch, length)` or `(batch, sequences, length)`):
                Tokens seen by the decoder, prompt first. Without them the detection prompt is used.
            decoder_attention_mask (`torch.Tensor` of the shape of `decoder_input_ids`, *optional*): 0 hides a token.
            encoder_outputs (`BaseModelOutput`, *optional*): Pictures encoded before, in place of `pixel_values`.
            cache (`EncoderDecoderCache`, *optional*): Keys and values so far.
            decoder_inputs_embeds (`torch.FloatTensor`, *optional*): In place of `decoder_input_ids`.
            decoder_position_ids (`torch.LongTensor`, *optional*): Positions of the tokens.
            use_cache (`bool`, *optional*): Whether to return `cache`.
        Returns:
            `Seq2SeqModelOutput`: `last_hidden_state` `(batch * sequences, length, decoder_hidden_size)`, and
            `encoder_last_hidden_state` `(batch, num_tokens, decoder_hidden_size)`."""
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("give pixel_values or encoder_outputs")
            encoder_outputs = self.encoder(pixel_values, **kwargs)
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        encoder_hidden_states = encoder_outputs.last_hidden_state
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            start = torch.full((), self.config.decoder_start_token_id, device=encoder_hidden_states.device)
            decoder_input_ids = start.expand(encoder_hidden_states.shape[0], 1)
        if decoder_input_ids is not None and decoder_input_ids.ndim == 3:
            decoder_input_ids = decoder_input_ids.flatten(0, 1)  # (batch * sequences, length)
            if decoder_attention_mask is not None:
                decoder_attention_mask = decoder_attention_mask.flatten(0, 1)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            position_ids=decoder_position_ids,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            cache=decoder_outputs.cache,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_hidden_states,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class Pix2SeqForConditionalGeneration(Pix2SeqPreTrainedModel, Pix2SeqGenerationMixin):
    r"""[`Pix2SeqModel`] with the output layer: logits, the weighted loss, and `generate` for every task.

    Args:
        config ([`Pix2SeqConfig`]): The sizes."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.token_embeddings.weight"}

    def __init__(self, config: Pix2SeqConfig):
        super().__init__(config)
        self.model = Pix2SeqModel(config)
        self.lm_head = Pix2SeqLinear(config.decoder_hidden_size, config.vocab_size, bias=config.use_output_bias)
        self.lm_head.initial_std = config.initializer_range
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def use_int8(self, is_used: bool = True) -> "Pix2SeqForConditionalGeneration":
        r"""Write sequences on a processor with weights rounded to int8, which takes less time (README).

        Rounded are the products of every step: those of the decoder's layers and the output layer, class scores
        included. Encoding, training and what is saved stay as they are; elsewhere than on a processor nothing changes.

        Args:
            is_used (`bool`): `False` ends it.
        Returns:
            The model.
        Raises:
            ValueError: If this build of torch has no kernels for it."""
        if is_used:
            check_int8()
        attentions = [layer.cross_attention for layer in self.model.decoder.layers]
        once_per_picture = {part for attention in attentions for part in (attention.k_proj, attention.v_proj)}
        for part in (*self.model.decoder.layers.modules(), self.lm_head):
            if isinstance(part, Pix2SeqLinear) and part not in once_per_picture:
                part.use_int8 = is_used
        return self

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: Cache | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        label_weights: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        output_layer: Callable[[torch.Tensor], torch.Tensor] | None = None,
        task: str | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput | tuple:
        r"""Score the next token at every position, and the loss if there are labels.

        Args:
            pixel_values, decoder_input_ids, decoder_attention_mask, encoder_outputs, cache,
                decoder_inputs_embeds, decoder_position_ids, use_cache: See [`Pix2SeqModel.forward`].
            labels (`torch.LongTensor` of the shape of `decoder_input_ids`, *optional*):
                The next token at every position, so already one ahead of `decoder_input_ids`; -100 is ignored.
                Without `decoder_input_ids` the labels shifted by one are the input.
            label_weights (`torch.FloatTensor` of the shape of `labels`, *optional*): Weights of the token losses.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*): Positions to score: the last so many, or indices.
            skip_logits (`bool`, *optional*): Compute the loss without making the logits, which saves their memory. By
                default in training mode with labels; `False` gives both, `True` does it in evaluation mode too.
            output_layer (`Callable`, *optional*): Makes logits of hidden states in place of `lm_head`; `generate`
                leaves out what cannot be written, see [`~decoding_pix2seq.AllowedRows`].
            task (`str`, *optional*): Not read; what the processor makes for `generate` names its task.
        Returns:
            `Seq2SeqLMOutput`: `logits` `(batch * sequences, length, vocab_size)`, or `None` where they are skipped, and
            `loss`, one number.
        Raises:
            ValueError: If inputs are missing, too long or of a wrong shape, or logits are skipped without labels."""
        if skip_logits and labels is None:
            raise ValueError("skip_logits=True leaves nothing to return without labels")
        if labels is not None:
            use_cache = False if use_cache is None else use_cache
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                start, padding = self.config.decoder_start_token_id, self.config.pad_token_id
                decoder_input_ids = shift_right(labels, start, padding)
        outputs = self.model(
            pixel_values,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            cache=cache,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_position_ids=decoder_position_ids,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None:
            labels = labels.flatten(0, -2).to(hidden_states.device)  # (batch * sequences, length)
            if label_weights is not None:
                label_weights = label_weights.flatten(0, -2).to(hidden_states.device)
        if labels is not None and (self.training if skip_logits is None else skip_logits):
            logits = None
            loss = projected_loss(hidden_states, self.lm_head, labels, label_weights, self.config.loss_type)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = (self.lm_head if output_layer is None else output_layer)(hidden_states[:, kept])
            loss = None
            if labels is not None:
                loss = sequence_loss(logits, labels, label_weights, self.config.loss_type)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


@dataclass
class Pix2SeqObjectDetectionOutput(ModelOutput):
    r"""Objects found in a batch of pictures, best first as they were written.

    Args:
        scores (`torch.FloatTensor` of shape `(batch, num_objects)`): Class probabilities; 0 for labels without a name.
        labels (`torch.LongTensor` of shape `(batch, num_objects)`): Raw label ids, keys of `config.id2label`.
        pred_boxes (`torch.FloatTensor` of shape `(batch, num_objects, 4)`): `ymin, xmin, ymax, xmax` in [0, 1] of the
            padded input."""

    scores: torch.FloatTensor | None = None
    labels: torch.LongTensor | None = None
    pred_boxes: torch.FloatTensor | None = None


class Pix2SeqForObjectDetection(Pix2SeqForConditionalGeneration, Pix2SeqGenerationMixin):
    r"""The same network for `pipeline("object-detection")`: without labels or tokens, `forward` decodes objects.

    Args:
        config ([`Pix2SeqConfig`]): The sizes."""

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: Cache | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        label_weights: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> Pix2SeqObjectDetectionOutput | Seq2SeqLMOutput | tuple:
        r"""Detect objects in `pixel_values`; with tokens or labels, do what the parent class does.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): From the processor.
        Returns:
            [`Pix2SeqObjectDetectionOutput`]: The objects, or what the parent returns."""
        if decoder_input_ids is None and decoder_inputs_embeds is None and labels is None and cache is None:
            return self._detect(pixel_values, encoder_outputs)
        return super().forward(
            pixel_values,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            cache=cache,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_position_ids=decoder_position_ids,
            labels=labels,
            label_weights=label_weights,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @torch.no_grad()
    def _detect(self, pixel_values, encoder_outputs) -> Pix2SeqObjectDetectionOutput:
        inputs = {} if encoder_outputs is None else {"encoder_outputs": encoder_outputs}
        if not self._task_settings(self.config.decoder_start_token_id, {}):  # a model that was built, not loaded
            inputs["max_new_tokens"] = TOKENS_PER_OBJECT * self.config.max_instances_per_image
        output = self.generate(
            pixel_values=pixel_values, task="object_detection", return_dict_in_generate=True, **inputs
        )
        labels, scores = output["class_labels"], output["class_scores"]
        tokens = output.sequences[:, 1 : 1 + TOKENS_PER_OBJECT * labels.shape[1]]
        tokens = tokens.unflatten(1, (-1, TOKENS_PER_OBJECT))  # (batch, num_objects, 5)
        boxes = Pix2SeqVocabulary.from_config(self.config).decode_boxes(tokens[..., :4])
        # A class without a name could only be reported by number: its score becomes 0, which no threshold lets pass.
        names = torch.tensor(sorted(self.config.id2label), device=labels.device)
        has_name = torch.isin(labels, names)
        return Pix2SeqObjectDetectionOutput(
            scores=scores * has_name, labels=labels.where(has_name, names[0]), pred_boxes=boxes
        )


# The pipeline looks for the class's name in this table, which registering the class does not extend; where the package
# is installed it is there already, where this file came with a checkpoint it is not.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault(Pix2SeqConfig.model_type, Pix2SeqForObjectDetection.__name__)


__all__ = [
    "Pix2SeqForConditionalGeneration",
    "Pix2SeqForObjectDetection",
    "Pix2SeqModel",
    "Pix2SeqPreTrainedModel",
]
