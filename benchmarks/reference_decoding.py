"""How does the reference decode? Its way with the weights of one of our models, to compare speed with, nothing else.

The reference keeps the layer-normed inputs of self-attention, not keys and values. So every step projects all tokens
before it and the whole picture to keys and values again, in every layer; a picture is repeated for each of its
sequences; and the logits of every step are kept, because class scores are read from them at the end."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from pix2seq_hf.linear_pix2seq import Pix2SeqLinear


def in_plain_torch(module: nn.Module) -> nn.Module:
    """A copy of a module with torch's own linear layers; the weights are shared."""
    memo = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    module = copy.deepcopy(module, memo)
    for part in module.modules():
        if type(part) is Pix2SeqLinear:
            part.__class__ = nn.Linear
    return module


class ReferenceDecoder:
    r"""Decodes step by step the way the reference does, by calling the layers of a model without their caches,
    computed as plain PyTorch does.

    Args:
        model ([`Pix2SeqForConditionalGeneration`]): Lends its decoder and its output layer.
        encoded (`torch.FloatTensor` of shape `(batch, num_tokens, decoder_hidden_size)`): Pictures.
        num_rows (`int`): Sequences, all of the first picture first; the same number for every picture.
        max_length (`int`): Tokens of a sequence, prompt included.

    Source: `AutoregressiveDecoder.infer` and `TransformerDecoderLayer` of the reference implementation."""

    def __init__(self, model: nn.Module, encoded: torch.Tensor, num_rows: int, max_length: int):
        assert num_rows % encoded.shape[0] == 0
        self.decoder, self.output_layer = in_plain_torch(model.model.decoder), in_plain_torch(model.lm_head)
        self.encoded = encoded.repeat_interleave(num_rows // encoded.shape[0], dim=0)
        size, vocab_size = self.output_layer.in_features, self.output_layer.out_features
        self.caches = encoded.new_zeros(max_length - 1, len(self.decoder.layers), num_rows, size)
        self.tokens = torch.zeros(max_length, num_rows, dtype=torch.long, device=encoded.device)
        self.logits = encoded.new_zeros(max_length, num_rows, vocab_size)

    def start(self, prompt: torch.Tensor, choose: Callable[[torch.Tensor], torch.Tensor]):
        r"""Read a prompt and write the token after it.

        Args:
            prompt (`torch.LongTensor` of shape `(num_rows, length)`): At least one token each.
            choose (`Callable`): From logits `(num_rows, vocab_size)` to tokens `(num_rows,)`."""
        length = prompt.shape[1]
        self.tokens[:length] = prompt.T
        self._advance(0, length, choose)

    def step(self, position: int, choose: Callable[[torch.Tensor], torch.Tensor]):
        """Read the token at `position`, the ones before it were read already, and write the one after it."""
        self._advance(position, position + 1, choose)

    @torch.no_grad()
    def _advance(self, begin: int, end: int, choose):
        length = end - begin
        tokens = self.tokens[begin:end].T  # (num_rows, length)
        hidden_states = self.decoder.token_embeddings(tokens) + self.decoder.position_embeddings[begin:end]
        past = self.caches[:begin].permute(1, 2, 0, 3)  # (num_layers, num_rows, begin, size)
        mask = None
        if length > 1:
            mask = torch.full((1, 1, length, end), float("-inf"), device=tokens.device).triu(begin + 1)
        inputs = []
        for layer, past_inputs in zip(self.decoder.layers, past, strict=True):
            normed = layer.self_attention_norm(hidden_states)
            inputs.append(normed)
            update = self._attend_to_past(layer.self_attention, normed, past_inputs, mask)
            hidden_states = hidden_states + update
            update, _ = layer.cross_attention(
                layer.cross_attention_norm(hidden_states), key_value_states=self.encoded
            )  # projects the picture to keys and values
            hidden_states = hidden_states + update
            hidden_states = hidden_states + layer.mlp(layer.mlp_norm(hidden_states))
        next_logits = self.output_layer(self.decoder.norm(hidden_states[:, -1]))  # (num_rows, vocab_size)
        self.caches[begin:end] = torch.stack(inputs).permute(2, 0, 1, 3)  # (length, num_layers, num_rows, size)
        self.tokens[end] = choose(next_logits)
        self.logits[end] = next_logits

    def _attend_to_past(self, attention: nn.Module, normed, past_inputs, mask) -> torch.Tensor:
        if mask is not None:  # the prompt: nothing is before it
            return attention(normed, attention_mask=mask)[0]
        # One query sees everything before it. Given as the source of cross-attention, all of it is projected again.
        return attention(normed, key_value_states=torch.cat([past_inputs, normed], dim=1))[0]
