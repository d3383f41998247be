"""Several connections to one file: who takes over from whom, and what ends a transfer."""

import hashlib
import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from faults import Hold, NoLength, Reset, Silence, Stall, Status, Throttle, TrickledHeaders, faulty_server
from rig import DATA, QUICK, REF, MakeRig, assert_sound, model_bytes, names_in, rig_catalogue

from civman.civitai.storage_connection import Network, StorageConnection
from civman.domain.events import Event, Received
from civman.domain.timeouts import Patience
from civman.download.rate_limit import RateLimit
from civman.download.segments import Spans
from civman.download.transfer_options import TransferOptions
from civman.errors import Interrupted, NetworkError
from civman.library import Library
from civman.settings import load_settings
from civman.store.resume_journal import Journal

MB = 1_000_000
LARGE = model_bytes(24 * MB)
LONG_STALL = replace(QUICK, stall_s=300.0, crawl_s=300.0, idle_s=0.5)


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("fetch-", "digester", "syncer"))]


def test_a_large_file_comes_over_several_connections(rigged: MakeRig) -> None:
    rig = rigged(Throttle(bytes_per_s=8 * MB), catalogue=rig_catalogue(LARGE))

    assert rig.download().code == 0

    ranges = [request.headers["range"] for request in rig.server.requests_to("storage")]
    assert len(ranges) >= 4
    assert rig.server.sent_bytes <= 1.2 * len(LARGE)


def test_a_silent_connection_is_relieved_by_an_idle_one_long_before_it_times_out(rigged: MakeRig) -> None:
    rig = rigged(
        Throttle(bytes_per_s=20 * MB, times=1),
        Stall(after=100_000, seconds=60, times=1),
        catalogue=rig_catalogue(LARGE),
        patience=LONG_STALL,
    )
    began = time.monotonic()

    run = rig.download("--connections", "4")

    assert run.code == 0, run.err
    assert len(rig.server.struck) == 2
    assert time.monotonic() - began < 60


def test_what_has_arrived_is_on_disk_though_the_connection_is_silent_now(rigged: MakeRig) -> None:
    released = threading.Event()
    rig = rigged(Hold(after=len(DATA) // 2, released=released), patience=LONG_STALL)
    journal = Journal(rig.root / "partial", hashlib.sha256(DATA).hexdigest())
    seen = []

    def watch() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not seen:
            memory = journal.recall()
            if memory is not None and memory.ranges.total_bytes >= 0.49 * len(DATA):
                seen.append(memory.ranges.total_bytes)
            time.sleep(0.01)
        released.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    run = rig.download()
    watcher.join()

    assert run.code == 0, run.err
    assert seen


def test_headers_that_trickle_do_not_hold_a_file_for_ever(rigged: MakeRig) -> None:
    rig = rigged(TrickledHeaders(times=1), patience=replace(LONG_STALL, crawl_s=0.2))
    began = time.monotonic()

    run = rig.download()

    assert run.code == 0, run.err
    assert time.monotonic() - began < 60


def test_a_storage_that_allows_two_connections_gets_two(rigged: MakeRig) -> None:
    rig = rigged(
        Throttle(bytes_per_s=10 * MB, times=2),
        Status(status=429, on="storage", times=6),
        catalogue=rig_catalogue(LARGE),
        patience=replace(QUICK, stall_s=10.0, crawl_s=10.0),
    )

    run = rig.download("--connections", "6")

    assert run.code == 0, run.err


def test_connections_that_are_all_reset_at_once_count_as_one_failure(rigged: MakeRig) -> None:
    rig = rigged(
        Throttle(bytes_per_s=20 * MB, times=1),
        Reset(times=9),
        catalogue=rig_catalogue(LARGE),
        patience=replace(QUICK, stall_s=10.0, crawl_s=10.0),
    )

    run = rig.download("--connections", "8")

    assert run.code == 0, run.err


def test_a_slow_api_does_not_hold_up_connections_that_work(rigged: MakeRig) -> None:
    expired = Status(status=403, body="<Error><Code>AccessDenied</Code></Error>", on="storage", skip=0, times=1)
    rig = rigged(
        Throttle(bytes_per_s=6 * MB, times=1),
        expired,
        Silence(seconds=1.0, on="api", path="^/api/download", skip=1, times=1),
        catalogue=rig_catalogue(LARGE),
        patience=replace(QUICK, site_timeout_s=5.0),
    )

    run = rig.download("--connections", "3")

    assert run.code == 0, run.err


@pytest.fixture
def opened(rigged: MakeRig) -> Library:
    rig = rigged(Throttle(bytes_per_s=20 * MB), catalogue=rig_catalogue(LARGE))
    library = Library(load_settings(library=rig.root), patience=QUICK)
    yield library
    library.close()


def test_an_error_of_the_listener_reaches_the_caller_and_leaves_no_thread(opened: Library) -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, Received):
            raise RuntimeError("the listener broke")

    with pytest.raises(RuntimeError, match="the listener broke"):
        opened.download(REF, on_event=on_event)

    assert ours() == []
    assert_sound(opened.context.root)


def test_an_interrupt_keeps_what_has_arrived_and_leaves_no_thread(opened: Library) -> None:
    seen = []

    def on_event(event: Event) -> None:
        if isinstance(event, Received):
            seen.append(event.count_bytes)
            if sum(seen) > 4 * MB:
                raise Interrupted("enough")

    with pytest.raises(Interrupted):
        opened.download(REF, on_event=on_event)

    assert ours() == []
    assert len(names_in(opened.context.root / "partial")) >= 2
    assert opened.download(REF).blob.size_bytes == len(LARGE)


def test_an_answer_that_closes_its_connection_can_be_aborted(tmp_path: Path) -> None:
    catalogue = rig_catalogue()
    held = threading.Event()
    errors: list[NetworkError] = []
    with faulty_server(catalogue, NoLength(after=1000), Stall(after=0, seconds=60)) as server:
        url = server.storage_url + server.storage.signed_target(catalogue.file(902), "x")
        connection = StorageConnection(Network("test", stall_s=30, loopback_allowed=True), _no_tls)
        server.heal()
        server.inject(Stall(after=0, seconds=60))

        def read() -> None:
            try:
                connection.open(url, start=0, end=1000).read_into(memoryview(bytearray(10)))
            except NetworkError as error:
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        held.wait(0.3)
        began = time.monotonic()
        connection.abort()
        reader.join(5)
        connection.close()

    assert time.monotonic() - began < 2
    assert [error.code for error in errors] == ["connection-cut"]


def _no_tls() -> None:
    raise AssertionError("loopback speaks plain http")


# Spans, limits: plain values ---------------------------------------------------------------------------------------


def quiet_connection() -> StorageConnection:
    return StorageConnection(Network("test"), _no_tls)


def test_spans_never_overlap_and_cover_all_that_is_missing() -> None:
    spans = Spans(Patience(), 4)
    gaps = [(0, 10 * MB), (12 * MB, 40 * MB)]

    taken = []
    while spans.unclaimed_bytes(gaps):
        taken.append(spans.next(gaps, 40 * MB, quiet_connection()))

    covered = sorted((span.at, span.end) for span in taken)
    assert sum(end - start for start, end in covered) == 38 * MB
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(covered))
    assert spans.next(gaps, 40 * MB, quiet_connection()) is None


def test_the_slowest_span_gives_up_half_and_a_silent_one_all() -> None:
    spans = Spans(Patience(idle_s=2.0), 4)
    slow = spans.next([(0, 4 << 20)], 4 << 20, quiet_connection())
    now = time.monotonic()
    slow.since, slow.count = now - 10, 1000

    half = spans.next([(0, 4 << 20)], 4 << 20, quiet_connection())
    slow.last = now - 5
    rest = spans.next([(0, 4 << 20)], 4 << 20, quiet_connection())

    assert (half.at, half.end) == (2 << 20, 4 << 20)
    assert (rest.at, rest.end) == (0, 2 << 20)
    assert slow.left_bytes == 0
    assert slow.connection.is_aborted
    assert not half.connection.is_aborted


def test_a_speed_limit_needs_few_connections() -> None:
    assert TransferOptions(limit=RateLimit(500_000)).connections == 1
    assert TransferOptions(limit=RateLimit(5e6)).connections == 5
    assert TransferOptions(limit=RateLimit(1e9)).connections == 24
    assert TransferOptions(limit=RateLimit(500_000), max_connections=3).connections == 3


def test_a_limit_tells_how_long_to_wait() -> None:
    limit = RateLimit(1000)

    assert limit.spend(50) == 0
    assert 0.8 < limit.spend(950) < 1.0
    assert 1.8 < limit.spend(1000) < 2.0
