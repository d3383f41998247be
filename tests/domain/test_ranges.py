"""Ranges against a set of integers, which is what they stand for."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civman.domain.byte_ranges import Ranges

PAIRS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair))), max_size=25
)


def numbers(pairs: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in pairs for number in range(start, end)}


@given(PAIRS)
def test_ranges_hold_what_was_added(pairs: list[tuple[int, int]]) -> None:
    ranges, model = Ranges(pairs), numbers(pairs)

    assert numbers(list(ranges)) == model
    assert ranges.total_bytes == len(model)


@given(PAIRS)
def test_ranges_are_sorted_and_never_touch(pairs: list[tuple[int, int]]) -> None:
    held = list(Ranges(pairs))

    assert all(start < end for start, end in held)
    assert all(before[1] < after[0] for before, after in pairwise(held))


@given(PAIRS, st.integers(0, 70), st.integers(0, 70))
def test_missing_is_the_rest_of_any_stretch(pairs: list[tuple[int, int]], start: int, stop: int) -> None:
    gaps = Ranges(pairs).missing(stop, start=start)

    assert numbers(gaps) == set(range(start, stop)) - numbers(pairs)
    assert gaps == sorted(gaps)
    assert all(low < high for low, high in gaps)


@given(PAIRS)
def test_the_frontier_is_the_first_number_that_is_missing(pairs: list[tuple[int, int]]) -> None:
    model = numbers(pairs)

    assert Ranges(pairs).frontier == next(number for number in range(100) if number not in model)


@given(PAIRS, PAIRS)
def test_a_copy_is_independent_and_the_order_of_adding_does_not_matter(
    pairs: list[tuple[int, int]], more: list[tuple[int, int]]
) -> None:
    ranges = Ranges(pairs)
    twin = ranges.copy()
    for start, end in more:
        twin.add(start, end)

    assert ranges == Ranges(reversed(pairs))
    assert twin == Ranges([*more, *pairs])


@pytest.mark.parametrize("pair", [(-1, 5), (5, 4)])
def test_what_is_no_range_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a byte range"):
        Ranges([pair])
