import pytest
import torch

from pix2seq_hf.grammar_pix2seq import BoxGrammar, KeypointGrammar, PolygonGrammar, TextGrammar

COORDINATES = range(1000, 1100)


def write_randomly(grammar, num_steps, rows=64, seed=0, vocab_size=1300):
    """Rows drawn evenly from what the grammar allows, with padding after the end of a row."""
    generator = torch.Generator().manual_seed(seed)
    written = torch.zeros(rows, 0, dtype=torch.long)
    finished = torch.zeros(rows, dtype=torch.bool)
    for step in range(num_steps):
        logits = grammar.restrict(step, written, torch.zeros(rows, vocab_size))
        tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        tokens = tokens.masked_fill(finished[:, None], 0)
        written = torch.cat([written, tokens], 1)
        ended = grammar.is_finished(step, written)
        finished = finished if ended is None else finished | ended
    return written, finished


def test_boxes_are_four_coordinates_and_a_class():
    written, finished = write_randomly(BoxGrammar(COORDINATES, [101, 117]), 20)
    slots = written.unflatten(1, (-1, 5))
    assert ((slots[..., :4] >= 1000) & (slots[..., :4] < 1100)).all()
    assert set(slots[..., 4].unique().tolist()) == {30, 101, 117}
    assert not finished.any()


def test_boxes_may_end_at_the_first_noise():
    written, finished = write_randomly(BoxGrammar(COORDINATES, [101], stop_when_noise=True), 40)
    classes = written[:, 4::5]
    for row, has_ended in zip(classes.tolist(), finished.tolist()):
        assert has_ended == (30 in row)
        if has_ended:
            assert set(row[row.index(30) + 1 :]) <= {0}


def split_parts(row):
    """The parts of a polygon row, as lists of points, and whether padding ended it."""
    points = list(zip(row[::2], row[1::2]))
    parts = [[]]
    for point in points:
        if point == (0, 0):
            return parts, True
        if point == (40, 40):
            parts.append([])
        else:
            assert 1000 <= min(point) and max(point) < 1100, "half a separator"
            parts[-1].append(point)
    return parts, False


@pytest.mark.parametrize("max_points", [3, 4, 7, 16])
def test_polygons_have_parts_of_at_least_three_points(max_points):
    grammar = PolygonGrammar(range(1000, 1003), max_points)  # few coordinates, so that other tokens come up often
    written, finished = write_randomly(grammar, 2 * max_points, rows=400)
    endings = set()
    for row, has_ended in zip(written.tolist(), finished.tolist()):
        parts, is_padded = split_parts(row)
        assert is_padded == has_ended
        assert all(len(part) >= 3 for part in parts)
        endings.add((len(parts), is_padded))
    if max_points >= 7:
        assert {number for number, _ in endings} >= {1, 2}


def test_keypoints_are_whole_or_invisible():
    written, _ = write_randomly(KeypointGrammar(range(1000, 1002)), 34)
    pairs = written.unflatten(1, (-1, 2))
    invisible = pairs == 41
    assert (invisible[..., 0] == invisible[..., 1]).all()
    assert invisible.any() and (~invisible).any()
    assert ((pairs >= 1000) & (pairs < 1002) | invisible).all()


def test_text_ends_once_and_not_at_once():
    written, finished = write_randomly(TextGrammar([1101, 1102], end=1100), 12)
    assert (written[:, 0] != 1100).all() and finished.any()
    for row in written.tolist():
        if 1100 in row:
            assert set(row[row.index(1100) + 1 :]) <= {0}
        assert set(row) <= {0, 1100, 1101, 1102}


def test_restrict_keeps_the_logits_of_what_is_allowed():
    logits = torch.randn(2, 1300)
    restricted = BoxGrammar(COORDINATES, [101]).restrict(0, torch.zeros(2, 0, dtype=torch.long), logits)
    torch.testing.assert_close(restricted[:, 1000:1100], logits[:, 1000:1100], rtol=0, atol=0)
    assert restricted.isfinite().sum() == 200


GRAMMARS = [
    BoxGrammar(COORDINATES, [101, 117], stop_when_noise=True),
    PolygonGrammar(range(1000, 1003), 9),
    KeypointGrammar(range(1000, 1003)),
    TextGrammar(range(1200, 1203), end=1),
]


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda grammar: type(grammar).__name__)
def test_steps_of_a_slot_are_alike(grammar):
    written, _ = write_randomly(grammar, 18)
    padded = torch.nn.functional.pad(written, (0, 6))
    examples = {grammar.slot(step): step for step in range(17, 0, -1)}
    for step in range(1, 18):
        example, num_written = examples[grammar.slot(step)], torch.tensor([step])
        assert grammar.token_set(example) is grammar.token_set(step)
        tokens = torch.tensor(grammar.token_set(step))
        until = padded.masked_fill(torch.arange(24) >= step, 0)
        counted = grammar.forbidden(example, until, tokens, num_written)
        expected = grammar.forbidden(step, written[:, :step], tokens)
        assert (counted is None and expected is None) or counted.expand(expected.shape).equal(expected)
        ended = grammar.is_finished(example, written[:, [step]])
        expected = grammar.is_finished(step, written[:, : step + 1])
        assert (ended is None and expected is None) or ended.equal(expected)


def test_equal_grammars_have_equal_keys():
    keys = {grammar.key() for grammar in GRAMMARS}
    assert len(keys) == len(GRAMMARS) and TextGrammar(range(1200, 1203), end=1).key() in keys
    assert TextGrammar(range(1200, 1204), end=1).key() not in keys
