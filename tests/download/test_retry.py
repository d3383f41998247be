"""Retries of a download: which failures are final, how long to wait, when a fresh URL is needed."""

import time

import pytest

from civman.domain.timeouts import Patience
from civman.download.retry import Retries
from civman.errors import BadAnswer, Cause, CivmanError, NetworkError, NotAllowed, NotFound, UnsafeRedirect

FINAL = """
    offline login-page redirect-loop tls proxy quota page-cap blocked-client region-blocked no-length too-long
    unsafe-redirect early-access no-key bad-key not-found archived hash-mismatch size-mismatch disk-full store
    interrupted bad-request usage
"""
AT_ONCE_WITH_A_FRESH_URL = "link-expired"
AT_ONCE_WITH_THE_SAME_URL = "range-ignored range-not-satisfiable compressed-range"
LATER_WITH_THE_SAME_URL = "connection-cut stalled storage-busy"
LATER_WITH_A_FRESH_URL = """
    network bad-answer unreachable timeout rate-limited server-error storage-refused storage-error storage-not-found
    bad-range compressed-body redirected wrong-answer
"""


def failure(code: str) -> CivmanError:
    return CivmanError("it failed", code=Cause(code))


@pytest.mark.parametrize("code", FINAL.split())
def test_a_final_cause_is_raised_without_a_retry(code: str) -> None:
    with pytest.raises(CivmanError, match="it failed"):
        Retries(Patience()).delay_s(failure(code), time.monotonic())


@pytest.mark.parametrize("code", f"{AT_ONCE_WITH_A_FRESH_URL} {AT_ONCE_WITH_THE_SAME_URL}".split())
def test_a_request_that_was_merely_outdated_is_repeated_at_once_and_then_with_a_delay(code: str) -> None:
    retries = Retries(Patience(tries=5))

    assert retries.delay_s(failure(code), time.monotonic()) == 0
    assert retries.delay_s(failure(code), time.monotonic()) > 0


@pytest.mark.parametrize("code", f"{LATER_WITH_THE_SAME_URL} {LATER_WITH_A_FRESH_URL}".split())
def test_a_server_in_trouble_is_given_time_before_the_first_retry(code: str) -> None:
    assert Retries(Patience()).delay_s(failure(code), time.monotonic()) > 0


@pytest.mark.parametrize("code", f"{AT_ONCE_WITH_A_FRESH_URL} {LATER_WITH_A_FRESH_URL}".split())
def test_a_doubtful_url_is_replaced_before_the_first_retry(code: str) -> None:
    retries = Retries(Patience())
    retries.delay_s(failure(code), time.monotonic())

    assert retries.needs_fresh_url(failure(code))


@pytest.mark.parametrize("code", f"{AT_ONCE_WITH_THE_SAME_URL} {LATER_WITH_THE_SAME_URL}".split())
def test_a_good_url_is_replaced_after_two_retries(code: str) -> None:
    retries = Retries(Patience(tries=9))
    needs = []
    for _ in range(3):
        retries.delay_s(failure(code), time.monotonic())
        needs.append(retries.needs_fresh_url(failure(code)))

    assert needs == [False, False, True]


def test_only_failures_of_one_connection_let_a_download_go_on_with_fewer() -> None:
    named = {cause.value for cause in Cause if cause.is_of_one_connection}

    assert named == {"connection-cut", "stalled", "storage-busy", "unreachable", "bad-range", "compressed-body"}


def test_every_cause_that_may_pass_is_in_one_of_the_lists_above() -> None:
    listed = (
        f"{AT_ONCE_WITH_A_FRESH_URL} {AT_ONCE_WITH_THE_SAME_URL} {LATER_WITH_THE_SAME_URL} {LATER_WITH_A_FRESH_URL}"
    )

    assert {cause.value for cause in Cause if cause.recovery.is_possible} == set(listed.split())


def test_failures_are_counted_until_one_too_many_and_forgotten_with_progress() -> None:
    retries = Retries(Patience(tries=3))
    cut = NetworkError("cut", code=Cause.CONNECTION_CUT)

    waits = [retries.delay_s(cut, time.monotonic()), retries.delay_s(cut, time.monotonic())]
    with pytest.raises(NetworkError):
        retries.delay_s(cut, time.monotonic())
    retries.reset()

    assert 0.3 < waits[0] < waits[1] < 1.3
    assert retries.delay_s(cut, time.monotonic()) < 0.7


def test_requests_that_were_under_way_together_fail_once() -> None:
    retries = Retries(Patience(tries=3))
    began = time.monotonic()

    waits = [retries.delay_s(NetworkError("cut", code=Cause.CONNECTION_CUT), began) for _ in range(20)]

    assert max(waits) < 0.7


@pytest.mark.parametrize(
    "error",
    [
        NotAllowed("no", code=Cause.EARLY_ACCESS),
        NotFound("gone"),
        UnsafeRedirect("no"),
        BadAnswer("page", code=Cause.LOGIN_PAGE),
        NetworkError("quota", code=Cause.QUOTA),
        NetworkError("busy", code=Cause.STORAGE_BUSY, retry_after="121"),
        NetworkError("busy", code=Cause.STORAGE_BUSY, retry_after="Fri, 31 Dec 2100 23:59:59 GMT"),
    ],
)
def test_what_no_try_cures_is_final_at_once(error: CivmanError) -> None:
    with pytest.raises(type(error)):
        Retries(Patience()).delay_s(error, time.monotonic())


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("0", 0.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)])
def test_a_server_that_asks_for_a_wait_gets_it(header: str, seconds: float) -> None:
    busy = NetworkError("busy", code=Cause.STORAGE_BUSY, retry_after=header)

    assert Retries(Patience()).delay_s(busy, time.monotonic()) == seconds


@pytest.mark.parametrize("header", ["soon", "", "-5", "1e9", "٣"])
def test_a_wait_that_is_no_number_is_ours_to_choose(header: str) -> None:
    busy = NetworkError("busy", code=Cause.STORAGE_BUSY, retry_after=header)

    assert 0 < Retries(Patience()).delay_s(busy, time.monotonic()) < 1
