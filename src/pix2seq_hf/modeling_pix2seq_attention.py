"""How does a token look at others: attention within a sequence, and of the sequences of a picture to the picture."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_pix2seq import Pix2SeqConfig
from .linear_pix2seq import Int8Weight, Pix2SeqLinear, has_wide_vectors, is_plainly_computed, linear, suits_int8


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; query, key and value are `(batch, num_heads, length, head_dim)`."""
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1)  # sums in float32 whatever the type
    if dropout:
        weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


# From so many on [`product_attention_forward`] is half as fast again as sdpa's kernel, with wide vectors.
MANY_QUERIES = 256
QUERIES_AT_ONCE = 800  # of one head: what is computed in between stays in the cache


def product_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of many queries to everything on a processor, head by head with the kernel of linear layers."""
    batch, num_heads, length, head_dim = query.shape
    output = query.new_empty(batch, length, num_heads, head_dim)
    query, key, value_t = (query * scaling).contiguous(), key.contiguous(), value.mT.contiguous()
    for index in range(batch):
        for head in range(num_heads):
            for start in range(0, length, QUERIES_AT_ONCE):
                rows = slice(start, start + QUERIES_AT_ONCE)
                weights = linear(query[index, head, rows], key[index, head]).softmax(-1)  # (rows, key_length)
                output[index, rows, head] = linear(weights, value_t[index, head])
    return output, None


class Pix2SeqAttention(nn.Module):
    r"""Multi-head attention: self-attention, or cross-attention when `key_value_states` are given.

    In cross-attention a picture may carry several sequences. They are folded into the query length, so keys and values
    are computed, cached and read once per picture, whatever the number of sequences."""

    def __init__(self, config: Pix2SeqConfig, hidden_size: int, num_heads: int, is_causal=False, layer_idx=None):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.drop_attention_rate
        self.is_causal = is_causal
        self.layer_idx = layer_idx
        self.packed: tuple[torch.Tensor, torch.Tensor] | Int8Weight | None = None  # weight and bias, see [`pack`]
        inner_size = num_heads * self.head_dim
        self.q_proj = Pix2SeqLinear(hidden_size, inner_size)
        self.k_proj = Pix2SeqLinear(hidden_size, inner_size)
        self.v_proj = Pix2SeqLinear(hidden_size, inner_size)
        self.out_proj = Pix2SeqLinear(inner_size, hidden_size)
        # Keras takes the fans of the three-dimensional kernels (size, heads, head_dim) and (heads, head_dim, size).
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.initial_bound = math.sqrt(6 / (hidden_size * (num_heads + self.head_dim)))
        self.out_proj.initial_bound = math.sqrt(6 / (num_heads * (self.head_dim + hidden_size)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""Attend.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch * sequences, length, hidden_size)`): The queries.
            key_value_states (`torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`, *optional*): The encoded
                picture, for cross-attention.
            attention_mask (`torch.Tensor`, *optional*): As `create_causal_mask` makes it; none for cross-attention.
            cache (`EncoderDecoderCache` or `Cache`, *optional*): Keys and values so far.
        Returns:
            `tuple`: the result, of the shape of `hidden_states`, and the attention probabilities `(batch * sequences,
            num_heads, length, key_length)` where the implementation gives them."""
        rows, length = hidden_states.shape[:2]
        is_cross_attention = key_value_states is not None
        batch = key_value_states.shape[0] if is_cross_attention else rows
        packed, own = None if is_cross_attention else self.packed, None
        if isinstance(packed, Int8Weight) and suits_int8(hidden_states):
            query, *own = packed(hidden_states).chunk(3, dim=-1)
        elif isinstance(packed, tuple):
            query, *own = linear(hidden_states, *packed).chunk(3, dim=-1)
        else:
            query = self.q_proj(hidden_states)
        # Sequences are folded into the length.
        query = query.reshape(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)

        sees_all = is_cross_attention or (attention_mask is None and (length == 1 or not self.is_causal))
        suits_processor = sees_all and self._is_free_on_processor(query)
        is_step = suits_processor and cache is not None
        is_updated = False
        if isinstance(cache, EncoderDecoderCache):
            if is_cross_attention:
                is_updated = cache.is_updated.get(self.layer_idx)
                cache.is_updated[self.layer_idx] = True
                cache = cache.cross_attention_cache
            else:
                cache = cache.self_attention_cache
        if is_cross_attention and cache is not None and is_updated:
            key = cache.layers[self.layer_idx].keys
            value = cache.layers[self.layer_idx].values
        else:
            source = key_value_states if is_cross_attention else hidden_states
            shape = (batch, -1, self.num_heads, self.head_dim)
            key, value = own or (self.k_proj(source), self.v_proj(source))
            key = key.view(shape).transpose(1, 2)  # (batch, num_heads, key_length, head_dim)
            value = value.view(shape).transpose(1, 2)
            if is_cross_attention:  # read at every step, so laid out once as the kernels read them
                key = key.mT.contiguous().mT if is_step else key.contiguous()
                value = value.contiguous()
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)

        has_many = query.shape[2] >= MANY_QUERIES and query.dtype is torch.float32
        if suits_processor and has_many and has_wide_vectors:
            attend: Callable = product_attention_forward
        elif is_step:  # a matter of reading keys and values: two products are faster, in bfloat16 five times
            attend = eager_attention_forward
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            None if is_cross_attention else attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = self.out_proj(output.reshape(rows, length, -1))  # (batch * sequences, length, hidden_size)
        weights = None if is_step else weights  # as sdpa
        if weights is not None and batch != rows:
            weights = weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)  # (rows, heads, length, keys)
        return output, weights

    def packed_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the product that gives queries, keys and values, as they are now."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weights, biases = zip(*((projection.weight, projection.bias) for projection in projections), strict=True)
        return torch.cat(weights).detach(), torch.cat(biases).detach()

    @contextmanager
    def pack(self) -> Iterator[None]:
        """Compute queries, keys and values of self-attention by one product, as long as weights stay as they are."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if all(type(projection) is Pix2SeqLinear for projection in projections):  # not adapted or quantised
            if self.q_proj.use_int8 and self.q_proj.weight.device.type == "cpu":
                parts = [table for projection in projections for table in (projection.weight, projection.bias)]
                kept = self.q_proj.int8_weights
                self.packed = kept.find("packed", parts, lambda: Int8Weight(*self.packed_weights()))
            else:
                self.packed = self.packed_weights()
        try:
            yield
        finally:
            self.packed = None

    def _is_free_on_processor(self, query: torch.Tensor) -> bool:
        """Whether attention may be computed as suits a processor: nobody chose a way, and nothing is recorded."""
        is_free = self.config._attn_implementation == "sdpa" and not (self.training or torch.is_grad_enabled())
        return query.device.type == "cpu" and is_free and is_plainly_computed()
