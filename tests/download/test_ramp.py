"""How many connections a transfer uses: decisions as values, without a network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civman.download.ramp import Ramp, Reading

MB = 1_000_000
PLENTY = 1000


def measured(ramp: Ramp, *, connections: int, rate: float, spare: int = PLENTY) -> tuple[Ramp, int]:
    """One measurement of a second with `connections` that bring `rate` bytes per second in all."""
    ramp = ramp.begin(10.0, 5 * MB)
    return ramp.decide(Reading(11.0, 5 * MB + int(rate), connections, spare))


def transfer(*, most: int, each: float, whole: float, spare: int = PLENTY) -> list[int]:
    """The numbers of connections of a transfer where each brings `each`, and all together `whole` at most."""
    ramp, connections, numbers = Ramp(most).begin(0.0, 0), 1, [1]
    now, received = 0.0, 0
    for _ in range(20):
        now += 1.0
        received += int(min(connections * each, whole))
        ramp, more = ramp.decide(Reading(now, received, connections, spare))
        connections += more
        numbers.append(connections)
    return list(dict.fromkeys(numbers))


def test_nothing_is_decided_before_the_first_response() -> None:
    ramp = Ramp(24)

    assert not ramp.is_due(1e9, 0.0)
    assert ramp.decide(Reading(1e9, 1 << 40, 1, PLENTY)) == (ramp, 0)


@pytest.mark.parametrize(
    ("response_s", "elapsed_s", "is_due"),
    [(0.0, 0.04, False), (0.0, 0.06, True), (0.1, 0.06, False), (0.1, 0.39, False), (0.1, 0.41, True)],
)
def test_the_first_connection_is_measured_for_50_ms_and_for_four_responses(
    response_s: float, elapsed_s: float, is_due: bool
) -> None:
    assert Ramp(24).begin(100.0, 0).is_due(100.0 + elapsed_s, response_s) is is_due


def test_later_measurements_last_80_ms() -> None:
    ramp, _ = Ramp(24).begin(0.0, 0).decide(Reading(0.06, MB, 1, PLENTY))

    assert not ramp.is_due(0.13, 0.0)
    assert ramp.is_due(0.15, 0.0)


@pytest.mark.parametrize(
    ("most", "each", "whole", "numbers"),
    [
        (24, 50 * MB, 1e12, [1, 8, 24]),  # each is throttled: all of them pay
        (24, 50 * MB, 50 * MB, [1, 8]),  # one fills the line: the step to eight brings nothing, and is the last
        (24, 50 * MB, 170 * MB, [1, 8, 24]),  # 3.4 times as much with eight, a third of its share is 3.33 times
        (24, 50 * MB, 160 * MB, [1, 8]),
        (5, 50 * MB, 1e12, [1, 5]),
        (1, 50 * MB, 1e12, [1]),
    ],
)
def test_connections_are_added_while_they_pay(most: int, each: float, whole: float, numbers: list[int]) -> None:
    assert transfer(most=most, each=each, whole=whole) == numbers


def test_no_more_connections_than_pieces_of_the_file() -> None:
    assert transfer(most=24, each=50 * MB, whole=1e12, spare=0) == [1]
    assert measured(Ramp(24), connections=1, rate=MB, spare=3)[1] == 3


@pytest.mark.parametrize("wanted", [2, 8, 16, 30])
def test_a_number_that_the_user_chose_is_opened_in_one_step(wanted: int) -> None:
    _, more = measured(Ramp(wanted, is_fixed=True), connections=1, rate=MB)

    assert more == wanted - 1


def test_a_step_that_did_not_pay_is_measured_again_and_not_repeated() -> None:
    ramp, more = measured(Ramp(24), connections=1, rate=MB)
    assert more == 7
    ramp, more = measured(ramp, connections=8, rate=1.1 * MB)
    assert more == 0

    assert measured(ramp, connections=8, rate=1.1 * MB)[1] == 0
    assert measured(ramp, connections=8, rate=8 * MB)[1] == 16


def test_after_a_failure_the_next_step_need_not_justify_the_last() -> None:
    ramp, _ = measured(Ramp(24), connections=1, rate=MB)
    assert measured(ramp, connections=8, rate=0.5 * MB)[1] == 0

    assert measured(ramp.after_failure(), connections=4, rate=0.5 * MB)[1] == 8


def test_a_busy_server_gets_no_more_connections_than_it_served() -> None:
    assert measured(Ramp(24).limited_to(3), connections=3, rate=MB)[1] == 0
    assert measured(Ramp(24).limited_to(3), connections=2, rate=MB)[1] == 1
    assert Ramp(24).limited_to(0).most == 1


@given(
    st.integers(1, 64),
    st.booleans(),
    st.lists(
        st.tuples(st.floats(0.0, 2.0), st.integers(0, 1 << 32), st.integers(-8, 0), st.integers(0, 300)), max_size=30
    ),
)
def test_there_are_never_more_connections_than_allowed_nor_more_new_ones_than_work(
    most: int, is_fixed: bool, steps: list[tuple[float, int, int, int]]
) -> None:
    ramp, connections, now, received = Ramp(most, is_fixed=is_fixed).begin(0.0, 0), 1, 0.0, 0
    for elapsed, brought, ended, spare in steps:
        now, received, connections = now + elapsed, received + brought, max(0, connections + ended)
        ramp, more = ramp.decide(Reading(now, received, connections, spare))

        assert 0 <= more <= spare
        connections += more
        assert connections <= most
