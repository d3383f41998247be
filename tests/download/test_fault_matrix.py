"""What can go wrong on the way, case by case, through the front door against a real server on loopback.

Each case says what is broken and what must come of it. `Rig.run` adds what holds in every case: no file under a wrong
name, no row without its file, no key in any output, no thread left behind.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from faults import (
    DOWNLOAD,
    ChangedEtag,
    Cut,
    Drip,
    EndlessHeaders,
    Expire,
    Fault,
    FlipByte,
    Gzip,
    HugeHeader,
    IgnoreRange,
    NoLength,
    Redirect,
    RefuseRange,
    Reset,
    Silence,
    Stall,
    Status,
    Throttle,
    Together,
    Truncate,
    WrongContentRange,
    WrongLength,
    region_blocked,
    too_many_requests,
    web_page,
)
from rig import DATA, FILE, MODEL, OTHER_DATA, QUICK, VERSION, MakeRig, Rig, blobs, model_bytes, rig_catalogue

from civman.demo.demo_catalog import Catalogue, Content, DemoGate
from civman.demo.storage_server import storage_error

SIZE = len(DATA)
HALF = SIZE // 2
HALF_A_FILE = (Cut(after=HALF, times=1), Cut(after=0))
API_VERSION = r"^/api/v1/model-versions/"
XML = {"Content-Type": "application/xml"}
BUSY = bytes(storage_error(503, "SlowDown", "Please reduce your request rate.").body)
LOGIN = b"<!DOCTYPE html><html><title>Log in</title></html>"
Change = Callable[[Catalogue], Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`before` breaks a first run, so that the one under test has something to go on from."""

    id: str
    faults: tuple[Fault, ...] = ()
    before: tuple[Fault, ...] = ()
    change: Change | None = None
    argv: tuple[object, ...] = ()
    environ: tuple[tuple[str, str | None], ...] = ()
    code: int = 0
    error: str = ""
    says: tuple[str, ...] = ()
    sent_at_most: float = 1.01
    """Of the file's size: what the storage sent in the run under test."""
    keeps: bool = False
    """After a failure: whether what had arrived stays for the next try."""
    next_sends_at_most: float = 1.0
    """Of the file's size: what a healed storage sends in the next try."""
    data: bytes = DATA


def broken(*faults: Fault, **case: Any) -> Case:
    return Case(faults=faults, **case)


def cuts(count: int, seed: int) -> tuple[Fault, ...]:
    chance = random.Random(seed)
    return tuple(Cut(after=chance.randrange(1, SIZE // count), times=1) for _ in range(count))


def changed_file(**fields: Any) -> Change:
    return lambda catalogue: catalogue.change_file(FILE, **fields)


def changed_version(**fields: Any) -> Change:
    return lambda catalogue: catalogue.change_version(VERSION, **fields)


def changed_model(**fields: Any) -> Change:
    return lambda catalogue: catalogue.change_model(MODEL, **fields)


CONNECTIONS = [
    broken(*cuts(1, seed=1), id="cut once at a random place"),
    broken(*cuts(4, seed=2), id="cut four times at random places"),
    broken(Cut(after=70_000), id="cut on every connection, each brings a little"),
    broken(Cut(after=0), id="cut on every connection, none brings a byte", code=5, error="connection-cut"),
    broken(Cut(after=1, times=3), id="cut after one byte, three times"),
    broken(
        Cut(after=HALF, times=1),
        Cut(after=0),
        id="cut half way and dead from then on",
        code=5,
        error="connection-cut",
        says=("kept",),
        keeps=True,
        next_sends_at_most=0.52,
    ),
    broken(Reset(after=HALF, times=2), id="reset half way, twice", sent_at_most=2),
    broken(Reset(), id="reset on every connection", code=5, error="connection-cut"),
    broken(Stall(after=HALF, seconds=60, times=1), id="stall half way, once"),
    broken(Stall(after=0, seconds=60), id="stall on every connection", code=5, error="stalled"),
    broken(Silence(seconds=60, times=1), id="silence before the headers, once"),
    broken(Silence(seconds=60), id="silence before the headers for ever", code=5, error="stalled"),
    broken(Drip(bytes_per_s=200), id="byte by byte on every connection", keeps=True, code=5, error="stalled"),
    broken(Drip(bytes_per_s=200, times=1), id="byte by byte on the first connection"),
    broken(Silence(seconds=60, on="api", path=DOWNLOAD, times=1), id="the API is silent once"),
]
ANSWERS = [
    broken(IgnoreRange(times=1), id="200 to the first range"),
    broken(IgnoreRange(), id="200 to every range"),
    broken(
        IgnoreRange(times=1),
        id="200 to the first range of a resumed file",
        sent_at_most=1.55,
        before=HALF_A_FILE,
    ),
    broken(
        IgnoreRange(),
        id="200 to every range of a resumed file",
        sent_at_most=2.05,
        before=HALF_A_FILE,
    ),
    broken(RefuseRange(times=1), id="416 to the first range"),
    broken(RefuseRange(), id="416 to every range"),
    broken(
        RefuseRange(),
        id="416 to every range of a resumed file",
        before=HALF_A_FILE,
    ),
    broken(WrongLength(off_by=100), id="Content-Length too long", sent_at_most=6.1, code=5, error="bad-range"),
    broken(WrongLength(off_by=-100, times=2), id="Content-Length too short, twice", sent_at_most=3.1),
    broken(NoLength(), id="no Content-Length"),
    broken(NoLength(after=100_000), id="no Content-Length and cut each time"),
    broken(NoLength(after=0), id="no Content-Length and no byte", code=5, error="connection-cut"),
    broken(WrongContentRange(times=1), id="wrong Content-Range, once", sent_at_most=2.1),
    broken(WrongContentRange(), id="wrong Content-Range for ever", sent_at_most=6.1, code=5, error="bad-range"),
    broken(
        WrongContentRange(value="chunks 1-2/3"),
        id="nonsense in Content-Range",
        sent_at_most=6.1,
        code=5,
        error="bad-range",
    ),
    broken(Gzip(times=1), id="compressed once", sent_at_most=2.1),
    broken(Gzip(), id="compressed for ever", sent_at_most=3.1),
    broken(ChangedEtag(), id="another ETag than in the first try", sent_at_most=2.1, before=HALF_A_FILE),
    broken(Cut(after=HALF, times=1), ChangedEtag(), id="another ETag in mid-flight", sent_at_most=2.6),
    broken(
        *(
            Together(faults=(ChangedEtag(etag=f'"replica {number}"'), Cut(after=HALF // 4)), times=1)
            for number in range(4)
        ),
        id="replicas that each have their own ETag",
        sent_at_most=3,
    ),
    broken(
        Truncate(keep=HALF),
        id="half the file, and every header agrees",
        code=6,
        error="size-mismatch",
        says=(f"{SIZE:,}", f"{HALF:,}"),
    ),
    broken(
        Truncate(keep=HALF),
        id="half the file where three quarters are here",
        before=(Cut(after=HALF + HALF // 2, times=1), Cut(after=0)),
        code=6,
        error="size-mismatch",
        keeps=True,
        next_sends_at_most=0.3,
    ),
    broken(
        HugeHeader(on="storage"), id="a header of a megabyte from storage", sent_at_most=6.1, code=5, error="bad-answer"
    ),
    broken(
        EndlessHeaders(on="storage"),
        id="headers without end from storage",
        code=5,
        error="bad-answer",
    ),
]
ADDRESSES = [
    broken(Expire(times=1), id="the address has expired at once"),
    broken(Expire(after=HALF, times=1), id="the address expires at 50 %"),
    broken(Expire(after=SIZE * 98 // 100, times=1), id="the address expires at 98 %"),
    broken(Expire(), id="every address has expired", code=5, error="link-expired"),
    broken(Status(status=403, body="error code: 1010", on="storage", times=2), id="storage 403 twice"),
    broken(
        Status(status=404, body="<Error><Code>NoSuchKey</Code></Error>", headers=XML, on="storage"),
        id="storage 404",
        code=3,
        error="storage-not-found",
    ),
    broken(Status(status=410, on="storage"), id="storage 410", code=3, error="storage-not-found"),
    broken(too_many_requests(on="storage", times=2), id="storage 429 twice"),
    broken(
        Status(status=429, headers={"Retry-After": "1"}, on="storage", times=1),
        id="storage 429 with Retry-After",
    ),
    broken(
        Status(status=429, headers={"Retry-After": "86400"}, on="storage"),
        id="storage 429 until tomorrow",
        code=5,
        error="storage-busy",
        says=("86400",),
    ),
    broken(
        Status(status=503, body=BUSY, headers=XML, on="storage", times=3),
        id="storage 503 three times",
    ),
    broken(Status(status=500, on="storage"), id="storage 500 for ever", code=5, error="storage-busy"),
    broken(
        Cut(after=HALF, times=1),
        Status(status=500, on="storage"),
        id="half the file and storage 500 for ever",
        code=5,
        error="storage-busy",
        keeps=True,
        next_sends_at_most=0.52,
    ),
    broken(
        web_page(on="storage"),
        id="a login page where the file should be",
        code=5,
        error="login-page",
        says=("web page",),
    ),
    broken(
        Cut(after=HALF, times=1),
        web_page(on="storage"),
        id="a login page after half the file",
        code=5,
        error="login-page",
        keeps=True,
        next_sends_at_most=0.52,
    ),
    broken(
        Status(status=200, body=LOGIN, headers={"Content-Type": "application/octet-stream"}, on="storage"),
        id="a login page that calls itself a file",
        code=6,
        error="size-mismatch",
    ),
    broken(
        Status(status=200, body=LOGIN.ljust(SIZE), headers={"Content-Type": "application/octet-stream"}, on="storage"),
        id="a login page of the file's very length",
        code=6,
        error="hash-mismatch",
    ),
    broken(Redirect(), id="a redirect to itself", code=5, error="redirect-loop"),
    broken(
        Redirect(on="storage", path=""),
        id="storage redirects to itself",
        code=5,
        error="redirect-loop",
    ),
    broken(
        Redirect(to="file:///etc/passwd"),
        id="a redirect to a local file",
        code=5,
        error="unsafe-redirect",
        sent_at_most=0,
    ),
    broken(
        Redirect(to="http://10.0.0.1/rig"),
        id="a redirect into a private network",
        code=5,
        error="unsafe-redirect",
        sent_at_most=0,
    ),
    broken(
        Redirect(to="https://169.254.169.254/latest"),
        id="a redirect to a cloud's metadata",
        code=5,
        error="unsafe-redirect",
        sent_at_most=0,
    ),
    broken(
        Redirect(to="//storage.example/rig"),
        id="a redirect without a scheme",
        code=5,
        error="unsafe-redirect",
        sent_at_most=0,
    ),
    broken(
        Redirect(to="http://storage.example/rig"),
        id="a redirect to plain http",
        code=5,
        error="unsafe-redirect",
        sent_at_most=0,
    ),
    broken(
        Redirect(to="http://[::1/rig"),
        id="a redirect to a broken address",
        code=5,
        error="unsafe-redirect",
        sent_at_most=0,
    ),
    broken(
        Redirect(to="https://a..b/rig"), id="a redirect to an impossible name", code=5, error="network", sent_at_most=0
    ),
    broken(
        Redirect(to="https://127.0.0.1:99999/rig"),
        id="a redirect to an impossible port",
        code=5,
        error="unsafe-redirect",
        sent_at_most=0,
    ),
    broken(
        Redirect(to="/a b/\u00fc", on="storage", path="", times=1),
        id="a redirect to an unquoted path",
    ),
    broken(
        Redirect(to="file:///etc/passwd", on="storage", path=""),
        id="storage redirects to a local file",
        code=5,
        error="unsafe-redirect",
    ),
]
BYTES = [
    broken(FlipByte(at=HALF), id="one wrong byte", code=6, error="hash-mismatch", says=("sha256",)),
    broken(
        id="one wrong byte in what an earlier try left",
        sent_at_most=1.55,
        before=(Together(faults=(FlipByte(at=1000), Cut(after=HALF)), times=1), Cut(after=0)),
    ),
    broken(
        FlipByte(at=SIZE - 1000, times=1),
        id="one wrong byte in the second half of a resumed file",
        sent_at_most=1.55,
        before=HALF_A_FILE,
    ),
    broken(
        Together(faults=(IgnoreRange(), FlipByte(at=1000))),
        id="whole bodies over a sound partial, not byte for byte the same",
        sent_at_most=2.05,
        before=HALF_A_FILE,
    ),
    broken(
        id="the bytes behind the version were replaced without a word",
        change=lambda catalogue: catalogue.replace_bytes(FILE, OTHER_DATA, declare=False),
        code=6,
        error="hash-mismatch",
    ),
    broken(
        id="CivitAI declares a wrong size",
        change=changed_file(declared=Content.of(DATA + b"more")),
        code=6,
        error="size-mismatch",
    ),
    broken(
        id="a broken safetensors header under the right hash", data=b"\xff" * 4000, code=6, error="invalid-model-file"
    ),
    broken(id="a web page under the right hash", data=LOGIN, code=6, error="invalid-model-file"),
    broken(id="an empty file under the right hash", data=b"", code=6, error="invalid-model-file"),
]
SITE = [
    broken(too_many_requests(path=DOWNLOAD, times=2), id="the API says 429 twice"),
    broken(too_many_requests(path=DOWNLOAD, retry_after="1", times=1), id="the API says 429 with Retry-After"),
    broken(Status(status=502, path=DOWNLOAD, times=3), id="the API says 502 three times"),
    broken(
        Status(status=503, path=DOWNLOAD), id="the API says 503 for ever", code=5, error="server-error", sent_at_most=0
    ),
    broken(
        Status(
            status=429,
            body='{"error":"You have downloaded an unusual amount of files in the last 24 hours"}',
            headers={"Content-Type": "application/json"},
            path=DOWNLOAD,
        ),
        id="the quota is used up",
        code=5,
        error="quota",
        says=("tomorrow",),
        sent_at_most=0,
    ),
    broken(region_blocked(path=DOWNLOAD), id="the region is blocked", code=4, error="region-blocked", sent_at_most=0),
    broken(
        Redirect(to="/login?returnUrl=x"),
        id="the API redirects to its login page",
        code=5,
        error="login-page",
        sent_at_most=0,
    ),
    broken(
        web_page(path=DOWNLOAD, text="Sign in"),
        id="the API answers with its login page",
        code=5,
        error="login-page",
        sent_at_most=0,
    ),
    broken(
        Status(status=200, body=b"\x00\xff garbage", path=API_VERSION),
        id="garbage for a version",
        code=5,
        error="bad-answer",
        sent_at_most=0,
    ),
    broken(
        Status(status=200, body='{"id": "nine", "files": 7}', path=API_VERSION),
        id="JSON that is no version",
        code=5,
        sent_at_most=0,
    ),
    broken(HugeHeader(path=API_VERSION), id="a header of a megabyte from the API", code=5, sent_at_most=0),
    broken(
        EndlessHeaders(path=API_VERSION, most_bytes=2_000_000),
        id="headers without end from the API",
        code=5,
        sent_at_most=0,
    ),
]
GATES = [
    broken(
        id="no key",
        environ=(("CIVITAI_API_TOKEN", None),),
        code=4,
        error="no-key",
        says=("civman login",),
        sent_at_most=0,
    ),
    broken(
        id="a wrong key",
        environ=(("CIVITAI_API_TOKEN", "wrong-key-0123456789"),),
        code=4,
        error="bad-key",
        sent_at_most=0,
    ),
    broken(
        id="downloads disabled",
        change=changed_version(usage_control="Generation"),
        code=4,
        error="downloads-disabled",
        says=("no API key changes that",),
        sent_at_most=0,
    ),
    broken(
        id="early access, with the date",
        code=4,
        error="early-access",
        says=("2099-12-31",),
        sent_at_most=0,
        change=changed_version(gate=DemoGate(ends_at=datetime(2099, 12, 31, tzinfo=UTC))),
    ),
    broken(
        id="paid access",
        change=changed_version(gate=DemoGate(permanent=True)),
        code=4,
        error="paid-access",
        sent_at_most=0,
    ),
    broken(id="archived", change=changed_model(mode="Archived"), code=3, error="archived", sent_at_most=0),
    broken(id="taken down", change=changed_model(mode="TakenDown"), says=("taken this model down",)),
    broken(id="private", change=changed_version(availability="Private"), code=4, error="private", sent_at_most=0),
    broken(
        id="safetensors with a pickle's name",
        change=changed_file(name="rig.ckpt", format="PickleTensor"),
    ),
    broken(
        id="a scan that found a danger",
        change=changed_file(virus_scan="Danger"),
        code=4,
        error="scan-danger",
        sent_at_most=0,
    ),
    broken(id="a scan that failed", change=changed_file(virus_scan="Error"), says=("virus scan of",)),
    broken(
        id="a pickle whose scan failed",
        argv=("--allow-pickle",),
        code=4,
        error="scan-error",
        sent_at_most=0,
        change=changed_file(name="rig.pt", format="PickleTensor", pickle_scan="Error"),
    ),
    broken(id="a scan that is pending", change=changed_file(virus_scan="Pending"), says=("has not finished",)),
    broken(
        id="no hash",
        change=changed_file(has_hashes=False),
        code=4,
        error="no-hash",
        says=("--allow-unverified",),
        sent_at_most=0,
    ),
    broken(id="no hash, allowed", change=changed_file(has_hashes=False), argv=("--allow-unverified",)),
    broken(
        id="a page instead of a file without a hash",
        change=changed_file(has_hashes=False, declared=Content.of(LOGIN), content=Content.of(LOGIN)),
        argv=("--allow-unverified",),
        code=6,
        error="invalid-model-file",
    ),
    broken(
        ChangedEtag(),
        id="no hash, and another ETag than in the first try",
        sent_at_most=2.1,
        argv=("--allow-unverified",),
        change=changed_file(has_hashes=False),
        before=HALF_A_FILE,
    ),
    broken(id="offline", argv=("--offline",), code=3, sent_at_most=0),
]
NAMES = [
    broken(id=f"a file called {name[:24]!r}", change=changed_file(name=name))
    for name in (
        "../../../outside.safetensors",
        "/etc/outside.safetensors",
        "..\\..\\outside.safetensors",
        "C:\\outside.safetensors",
        "con.safetensors",
        "x" * 300 + ".safetensors",
        "a\x00b\x1b[31m\n\u202egnp.safetensors",
        "...",
    )
]
CASES = [*CONNECTIONS, *ANSWERS, *ADDRESSES, *BYTES, *SITE, *GATES, *NAMES]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_broken_download_ends_as_it_should(case: Case, rigged: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigged(*case.before, catalogue=rig_catalogue(case.data))
    if case.change is not None:
        case.change(rig.server.catalogue)
    for name, value in case.environ:
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
    if case.before:
        assert rig.download(*case.argv).code == 5
        assert len(rig.partials) == 2
    mark = rig.start(*case.faults)

    run = rig.download(*case.argv)

    assert (run.code, f"[{case.error}]" in run.err) == (case.code, bool(case.error)), run.err
    assert [words for words in case.says if words not in run.err] == []
    assert rig.server.sent_bytes - mark <= case.sent_at_most * SIZE
    assert [fault for fault in case.faults if fault not in rig.server.struck] == []
    assert len(blobs(rig.root)) == (case.code == 0)
    assert bool(rig.partials) is case.keeps
    assert "\x1b" not in run.out + run.err
    assert_nothing_outside(rig)
    if case.keeps:
        assert_the_next_try_goes_on(case, rig)


def assert_the_next_try_goes_on(case: Case, rig: Rig) -> None:
    mark = rig.start()
    run = rig.download(*case.argv)
    assert run.code == 0, run.err
    assert rig.server.sent_bytes - mark <= case.next_sends_at_most * SIZE
    assert rig.partials == []


def assert_nothing_outside(rig: Rig) -> None:
    assert {entry.name for entry in rig.root.iterdir()} <= {
        "library.db",
        "library.db-wal",
        "library.db-shm",
        "blobs",
        "locks",
        "partial",
    }
    assert {entry.name for entry in rig.root.parent.iterdir()} <= {"library", "config"}


def test_the_key_never_reaches_another_port(rigged: MakeRig) -> None:
    rig = rigged(Cut(after=HALF, times=1), Expire(times=1))

    assert rig.download().code == 0

    with_key = {request.server for request in rig.server.requests if "authorization" in request.headers}
    assert with_key == {"api"}
    assert len(rig.server.requests_to("storage")) >= 3


def test_a_refused_file_costs_no_request_for_its_bytes(rigged: MakeRig) -> None:
    rig = rigged()
    rig.server.catalogue.change_file(FILE, name="rig.ckpt", format="PickleTensor", pickle_scan="Danger")

    assert rig.download().code == 4

    assert rig.server.requests_to("api", "/api/download") == []
    assert rig.partials == []


def test_the_quota_is_asked_about_once(rigged: MakeRig) -> None:
    body = '{"error":"You have downloaded an unusual amount of files in the last 24 hours"}'
    rig = rigged(Status(status=429, body=body, headers={"Content-Type": "application/json"}, path=DOWNLOAD))

    assert rig.download().code == 5

    assert len(rig.server.requests_to("api", "/api/download")) == 1


def test_an_address_that_expires_under_many_connections_is_renewed_once(rigged: MakeRig) -> None:
    data = model_bytes(50_000_000)
    rig = rigged(
        Throttle(bytes_per_s=8_000_000, times=8),
        Expire(times=1, after=100_000),  # strikes what the eight ask for next
        catalogue=rig_catalogue(data),
        patience=replace(QUICK, stall_s=10.0, crawl_s=10.0),
    )

    run = rig.download("--connections", "8")

    assert run.code == 0, run.err
    assert 2 <= len(rig.server.requests_to("api", "/api/download")) <= 4


@pytest.mark.parametrize("argv", [("--json",), ("--quiet",)])
def test_a_failure_is_told_in_every_mode(rigged: MakeRig, argv: tuple[str, ...]) -> None:
    rig = rigged(FlipByte(at=HALF))

    run = rig.download(*argv)

    assert run.code == 6
    assert "hash-mismatch" in run.out + run.err
