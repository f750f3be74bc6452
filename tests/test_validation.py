"""The checks of single arguments: which values each accepts and refuses, and the wording of its message."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfcompress import CompressionError
from hfcompress.validation import check_choice, check_count, check_fraction, check_number, is_integer, is_number

INTEGERS = [0, 1, -1, 10**30, np.int64(3), np.uint8(0)]
FLOATS = [0.0, 0.5, -2.5, 1e300, np.float32(0.25), np.float64(1.0), Fraction(1, 3)]
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")]
NOT_NUMBERS = [True, False, np.True_, np.False_, "1", "0.5", "", None, [1], (), 1 + 0j, Decimal("0.5"), np.array([0.5])]


def refused(message):
    return pytest.raises(CompressionError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("value", [*INTEGERS, *FLOATS, *NOT_FINITE], ids=repr)
def test_integers_and_floats_are_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_bools_strings_and_containers_are_not_numbers(value):
    assert not is_number(value)


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_integers_are_integers(value):
    assert is_integer(value)


@pytest.mark.parametrize("value", [*FLOATS, *NOT_FINITE, *NOT_NUMBERS], ids=repr)
def test_floats_are_not_integers_even_if_they_are_whole(value):
    assert not is_integer(value)


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_every_fraction_between_the_bounds_is_accepted(value):
    for zero in (False, True):
        for one in (False, True):
            check_fraction("heads", value, "a share", zero=zero, one=one)


@given(st.one_of(st.floats(max_value=0, exclude_max=True), st.floats(min_value=1, exclude_min=True), st.just(math.nan)))
def test_every_number_beyond_the_bounds_is_refused(value):
    with refused(f"heads={value!r} must be in [0, 1]: a share."):
        check_fraction("heads", value, "a share", zero=True, one=True)


@pytest.mark.parametrize("value", [0, 0.0, -0.0, np.float32(0), np.int64(0)], ids=repr)
def test_a_fraction_of_zero_is_accepted_where_allowed(value):
    check_fraction("heads", value, "a share")
    with refused(f"heads={value!r} must be in (0, 1): a share."):
        check_fraction("heads", value, "a share", zero=False)


@pytest.mark.parametrize("value", [1, 1.0, np.float64(1), np.int64(1)], ids=repr)
def test_a_fraction_of_one_is_accepted_where_allowed(value):
    check_fraction("heads", value, "a share", one=True)
    with refused(f"heads={value!r} must be in [0, 1): a share."):
        check_fraction("heads", value, "a share")


@pytest.mark.parametrize(
    ("zero", "one", "interval"),
    [(True, False, "[0, 1)"), (True, True, "[0, 1]"), (False, False, "(0, 1)"), (False, True, "(0, 1]")],
)
def test_the_refusal_of_a_fraction_shows_the_interval(zero, one, interval):
    with refused(f"heads=1.5 must be in {interval}: a share."):
        check_fraction("heads", 1.5, "a share", zero=zero, one=one)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, *NOT_FINITE], ids=repr)
def test_what_is_not_a_number_is_not_a_fraction(value):
    with refused(f"heads={value!r} must be in [0, 1]: a share."):
        check_fraction("heads", value, "a share", zero=True, one=True)


@given(st.one_of(st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.integers(1, 10**300)))
def test_every_positive_finite_number_is_accepted(value):
    check_number("temperature", value)
    check_number("temperature", value, zero=False)


@given(st.one_of(st.floats(max_value=0, exclude_max=True), st.integers(max_value=-1)))
def test_every_negative_number_is_refused(value):
    with refused(f"temperature={value!r} must be a finite number, 0 or more."):
        check_number("temperature", value)


@pytest.mark.parametrize("value", [0, 0.0, -0.0, np.float32(0)], ids=repr)
def test_a_number_of_zero_is_accepted_where_allowed(value):
    check_number("temperature", value)
    with refused(f"temperature={value!r} must be a finite number, above 0."):
        check_number("temperature", value, zero=False)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, *NOT_FINITE], ids=repr)
def test_what_is_not_finite_is_refused_as_a_number(value):
    with refused(f"temperature={value!r} must be a finite number, 0 or more."):
        check_number("temperature", value)


@given(st.integers(), st.integers())
def test_a_count_is_accepted_from_the_least_on(value, least):
    if value >= least:
        check_count("layers", value, least=least)
    else:
        with refused(f"layers={value} must be a whole number of at least {least}."):
            check_count("layers", value, least=least)


@pytest.mark.parametrize(("value", "accepted"), [(1, True), (np.int64(1), True), (0, False), (-1, False)])
def test_by_default_a_count_is_at_least_one(value, accepted):
    if accepted:
        check_count("layers", value)
    else:
        with refused(f"layers={value} must be a whole number of at least 1."):
            check_count("layers", value)


@pytest.mark.parametrize("value", [*FLOATS, *NOT_FINITE, *NOT_NUMBERS], ids=repr)
def test_what_is_not_an_integer_is_not_a_count(value):
    with refused(f"layers={value!r} must be a whole number of at least 0."):
        check_count("layers", value, least=0)


@given(st.lists(st.text(), min_size=1), st.data())
def test_every_choice_is_accepted(choices, data):
    check_choice("scope", data.draw(st.sampled_from(choices)), choices)


@given(st.text(), st.lists(st.text()))
def test_anything_else_is_refused_with_the_choices(value, choices):
    if value not in choices:
        with refused(f"scope={value!r} is unknown; choose one of {', '.join(choices)}."):
            check_choice("scope", value, choices)


@pytest.mark.parametrize("value", [None, 1, "GLOBAL", ["global"], {}, math.nan], ids=repr)
def test_a_value_of_another_type_is_not_a_choice(value):
    with refused(f"scope={value!r} is unknown; choose one of global, layer."):
        check_choice("scope", value, ("global", "layer"))


def test_choices_may_be_an_iterator_and_need_no_hash():
    check_choice("scope", ["b"], iter([["a"], ["b"]]))
    with refused("scope=['c'] is unknown; choose one of ['a'], ['b']."):
        check_choice("scope", ["c"], iter([["a"], ["b"]]))


def test_none_may_be_a_choice():
    check_choice("scope", None, (None, "layer"))
