"""Where do keys and values stay: those of written tokens in room for many, those of pictures as they were laid out.

The library's layer joins all it has with what is new in new memory, so that writing a sequence moves its square."""

import torch
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens for which room is taken at a time


class GrowingLayer(DynamicLayer):
    """A cache layer whose `keys` and `values` are the filled part of larger tensors; else the library's."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.rooms: list[torch.Tensor | None] = [None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append(0, self.keys, key_states)
        self.values = self._append(1, self.values, value_states)
        return self.keys, self.values

    def _append(self, index: int, states: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """Return states `(batch, num_heads, length, head_dim)` with more behind them."""
        old_length = states.shape[-2] if states.numel() else 0
        length = old_length + added.shape[-2]
        room = self.rooms[index]
        # Somebody may have cut, chosen or reordered the states since.
        is_part = room is not None and room.data_ptr() == states.data_ptr() and len(room) == len(states)
        if not is_part or room.shape[-2] < length:
            batch, num_heads, _, head_dim = added.shape
            room = added.new_empty((batch, num_heads, -(-length // ROOM) * ROOM, head_dim))
            if old_length:
                room[:, :, :old_length] = states
            self.rooms[index] = room
        room[:, :, old_length:length] = added
        return room[:, :, :length]


class FixedLayer(DynamicLayer):
    r"""A cache layer of fixed tensors, in which states are written to a place that the device knows.

    Args:
        keys, values (`torch.Tensor` of shape `(batch, num_heads, capacity, head_dim)`): All there is room for.
        place (`torch.LongTensor` of shape `(1,)`): Where the next token goes; whoever owns it moves it on."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, place: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.place = keys, values, place

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> torch.Tensor:
        """Not a number: the host would have to wait for it."""
        return self.place


class KeptLayer(DynamicLayer):
    """A cache layer that is filled once, with the very tensors it is given."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert not self.keys.numel(), "the keys of a picture do not grow"
        self.keys, self.values = key_states, value_states
        return key_states, value_states
