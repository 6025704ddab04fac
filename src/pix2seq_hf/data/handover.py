r"""How does a worker process hand large tensors to the main process without new memory for each: it takes them back.

New shared memory is filled with zeros by the system, page by page, which can cost more than decoding the pictures that
are written into it. Here the last byte of a buffer says whether the main process still uses it; a worker writes into
the first of its buffers that nobody uses."""

import math
import weakref

import numpy as np
import torch

MAX_BUFFERS = 16  # per worker; more are made if needed, but not taken back
TAIL = 64  # bytes after the numbers; the very last is the flag


class Buffers:
    """The buffers of one worker process."""

    def __init__(self):
        self._buffers: list[torch.Tensor] = []

    def __reduce__(self):
        return Buffers, ()  # a worker process begins without

    def lend(self, shape: tuple[int, ...]) -> "Lent":
        """Return a tensor `torch.FloatTensor` of a shape, with any content."""
        num_bytes = 4 * math.prod(shape)
        for buffer in self._buffers:
            if not buffer[-1] and len(buffer) >= num_bytes + TAIL:
                break
        else:
            # As in torch's own `default_collate`.
            buffer = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(num_bytes + TAIL))
            self._buffers = [kept for kept in self._buffers if kept[-1]][: MAX_BUFFERS - 1] + [buffer]
        buffer[-1] = 1
        return Lent(buffer, shape)


class Lent:
    r"""A tensor in a buffer. Sent to another process it arrives as a plain tensor; when that is gone, its memory goes
    back to the worker.

    Args:
        buffer (`torch.ByteTensor`): In shared memory.
        shape (`tuple[int, ...]`): Of the tensor at its beginning."""

    def __init__(self, buffer: torch.Tensor, shape: tuple[int, ...]):
        self.buffer, self.shape = buffer, shape
        self.tensor = torch.from_numpy(_numbers(buffer, shape))

    def keep(self) -> torch.Tensor:
        """The tensor for use in this process; afterwards the memory goes back as well."""
        return _receive(self.buffer, self.shape)

    def __reduce__(self):
        return _receive, (self.buffer, self.shape)


class Piped:
    r"""A small tensor that is sent by its content: torch would make a file of shared memory for each.

    Args:
        tensor (`torch.Tensor`): Of any shape."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self):
        return torch.from_numpy, (self.tensor.numpy(),)


def _numbers(buffer: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return buffer.numpy()[: 4 * math.prod(shape)].view(np.float32).reshape(shape)


def _receive(buffer: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    numbers = _numbers(buffer, shape)  # every tensor made of it, and every part of such a tensor, keeps it alive
    weakref.finalize(numbers, buffer[-1:].zero_).atexit = False
    return torch.from_numpy(numbers)
