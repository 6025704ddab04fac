"""Cache layers hold what the library's hold, in memory that does not move with every token."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from pix2seq_hf.cache_pix2seq import ROOM, FixedLayer, GrowingLayer, KeptLayer


def states(length, batch=3):
    return torch.randn(batch, 2, length, 4), torch.randn(batch, 2, length, 4)


def assert_same(layer, other):
    assert layer.get_seq_length() == other.get_seq_length()
    assert layer.keys.equal(other.keys) and layer.values.equal(other.values)


@pytest.mark.parametrize("lengths", [[1] * (ROOM + 5), [6, 1, 1], [ROOM, 1], [2 * ROOM + 3, 1, 5]])
def test_grows_as_the_librarys(lengths):
    torch.manual_seed(0)
    layer, other = GrowingLayer(), DynamicLayer()
    for length in lengths:
        added = states(length)
        keys, values = layer.update(*added)
        assert keys is layer.keys and values is layer.values
        other.update(*added)
        assert_same(layer, other)


def test_tokens_before_stay_where_they_are():
    layer = GrowingLayer()
    places = set()
    for _ in range(ROOM):
        layer.update(*states(1))
        places.add((layer.keys.data_ptr(), layer.values.data_ptr()))
    assert len(places) == 1


def test_what_others_do_to_the_states_holds():
    torch.manual_seed(0)
    layer, other = GrowingLayer(), DynamicLayer()
    changes = [
        lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
        lambda cache: cache.crop(-2),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.reorder_cache(torch.tensor([3, 1, 0, 0])),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
        lambda cache: cache.reset(),
    ]
    added = states(5)
    layer.update(*added), other.update(*added)
    for change in changes:
        change(layer), change(other)
        added = states(1, batch=len(other.keys) if other.is_initialized else 2)
        layer.update(*added), other.update(*added)
        assert_same(layer, other)


def test_kept_states_are_not_copied():
    layer, (keys, values) = KeptLayer(), states(7)
    found = layer.update(keys, values)
    assert found[0] is keys and layer.values is values and layer.get_seq_length() == 7
    with pytest.raises(AssertionError, match="do not grow"):
        layer.update(keys, values)


def test_fixed_states_are_written_where_the_place_says():
    room, place = states(7), torch.zeros(1, dtype=torch.long)
    before = [each.clone() for each in room]
    layer, added = FixedLayer(*room, place), states(1)
    place.fill_(4)
    found = layer.update(*added)
    assert found[0] is room[0] and found[1] is room[1] and layer.get_seq_length() is place
    for each, new, old in zip(found, added, before):
        assert each[:, :, 4:5].equal(new)
        assert each[:, :, [0, 1, 2, 3, 5, 6]].equal(old[:, :, [0, 1, 2, 3, 5, 6]])
