"""The table of times against clocks that are formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfcompress.models.profiling import TimeTable, tabulate_times

HEADS, NEURONS = (1, 2, 4, 8), (8, 64, 256)


def clock(shapes):
    """Embeddings take 3, a head 2 and a neuron 0.5 in each layer, and all of a layer's pairs 0.01."""
    return 3 + sum(2 * h + 0.5 * n + 0.01 * h * n for h, n in shapes)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(8, 256)), max_size=12))
def test_a_bilinear_clock_is_predicted_exactly(shapes):
    table = tabulate_times(clock, 6, HEADS, NEURONS, fewer=1)
    assert table.rest == pytest.approx(3)
    assert table.model(shapes) == pytest.approx(clock(shapes))


@pytest.mark.parametrize("fewer", [None, 6])
def test_without_fewer_layers_the_rest_is_in_the_layers(fewer):
    table = tabulate_times(clock, 6, HEADS, NEURONS, fewer=fewer)
    assert table.rest == 0
    assert table.model([(4, 64)] * 6) == pytest.approx(clock([(4, 64)] * 6))


def test_every_shape_is_timed_among_its_kind():
    timed = []
    tabulate_times(lambda shapes: timed.append(tuple(shapes)) or 1.0, 3, (1, 2), (8,), fewer=2)
    assert timed == [((1, 8),) * 3, ((2, 8),) * 3, ((1, 8),) * 2]


def test_beyond_the_table_its_edge_counts():
    table = TimeTable((2, 4), (8, 16), ((1.0, 2.0), (3.0, 4.0)), 0.0)
    assert table.layer(1, 4) == 1
    assert table.layer(9, 99) == 4


@given(st.floats(0, 10), st.floats(0, 300))
def test_a_time_lies_between_its_neighbours(heads, neurons):
    table = tabulate_times(clock, 1, HEADS, NEURONS)
    assert clock([(1, 8)]) - 1e-9 <= table.layer(heads, neurons) <= clock([(8, 256)]) + 1e-9


def test_a_table_of_one_shape_is_that_shape():
    assert tabulate_times(clock, 2, (4,), (64,)).layer(1, 1) == pytest.approx(clock([(4, 64)] * 2) / 2)
