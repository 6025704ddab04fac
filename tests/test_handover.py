"""Tensors from worker processes: their memory comes back when nobody uses them any more, and not before."""

import gc
import pickle
from pathlib import Path

import pytest
import torch

from pix2seq_hf.data.handover import MAX_BUFFERS, Buffers, Piped


def receive(lent):
    """As another process would, but for the way of the buffer."""
    function, (buffer, shape) = lent.__reduce__()
    return function(buffer, shape)


def test_memory_is_used_again_when_all_parts_are_gone():
    buffers = Buffers()
    first = buffers.lend((2, 3))
    first.tensor.copy_(torch.arange(6.0).view(2, 3))
    place, received = first.tensor.data_ptr(), receive(first)
    del first
    assert received.tolist() == [[0, 1, 2], [3, 4, 5]] and received.data_ptr() == place
    assert buffers.lend((2, 3)).tensor.data_ptr() != place
    part = received[1, 1:]
    del received
    gc.collect()
    assert buffers.lend((2, 3)).tensor.data_ptr() != place  # a part of it is still there
    assert part.tolist() == [4, 5]
    del part
    gc.collect()
    assert buffers.lend((1, 4)).tensor.data_ptr() == place


def test_larger_tensors_get_memory_of_their_own():
    buffers = Buffers()
    received = receive(buffers.lend((2,)))
    del received
    large = buffers.lend((300,)).tensor
    large.fill_(1.0)
    assert large.shape == (300,)


def test_memory_that_is_used_in_the_same_process_comes_back_too():
    buffers = Buffers()
    kept = buffers.lend((2, 3)).keep()
    place = kept.data_ptr()
    assert buffers.lend((2, 3)).tensor.data_ptr() != place
    del kept
    gc.collect()
    assert buffers.lend((2, 3)).tensor.data_ptr() == place


@pytest.mark.parametrize("tensor", [torch.tensor([True, False]), torch.arange(6).view(2, 3), torch.zeros(0, 4)])
def test_small_tensors_go_by_their_content(tensor):
    received = pickle.loads(pickle.dumps(Piped(tensor)))
    assert torch.equal(received, tensor) and received.dtype == tensor.dtype
    before = tensor.clone()
    received.zero_()
    assert torch.equal(tensor, before)


def test_lost_tensors_do_not_pile_up():
    buffers = Buffers()
    for _ in range(3 * MAX_BUFFERS):
        buffers.lend((5,))
    assert len(buffers._buffers) == MAX_BUFFERS
    assert not pickle.loads(pickle.dumps(buffers))._buffers


class Numbers(torch.utils.data.Dataset):
    """The number of the sample, in tensors that are lent."""

    def __init__(self):
        self.buffers, self.places = Buffers(), set()

    def __getitem__(self, index):
        lent = self.buffers.lend((1000,))
        lent.tensor.fill_(index)
        self.places.add(lent.tensor.data_ptr())
        return {"numbers": lent, "num_places": len(self.places)}

    def __len__(self):
        return 40


def the_only(items):
    return items[0]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_reader_that_keeps_some_of_them(start_method, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])  # a new process finds `Numbers` by its module
    loader = torch.utils.data.DataLoader(
        Numbers(), 1, num_workers=1, collate_fn=the_only, multiprocessing_context=start_method
    )
    kept = []
    for index, batch in enumerate(loader):
        assert (batch["numbers"] == index).all()
        if index % 10 == 0:
            kept.append(batch["numbers"][:10])
        num_places = batch["num_places"]
    assert [numbers.unique().tolist() for numbers in kept] == [[0], [10], [20], [30]]
    assert num_places <= 4 + 4  # what is kept, and what is under way
