"""Each fault does on the wire what its name says: tests of other parts rely on it."""

import contextlib
import gzip
import http.client
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from asking import KEY, Reply, ask
from faults import (
    DOWNLOAD,
    ChangedEtag,
    Cut,
    Drip,
    EndlessHeaders,
    Expire,
    Fault,
    FaultyServer,
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
    Truncate,
    WrongContentRange,
    WrongLength,
    faulty_server,
    region_blocked,
    too_many_requests,
    web_page,
)

from civman.demo.demo_catalog import Catalogue
from civman.demo.server import CivitaiServer

FILE, VERSION = 127444, 151090
Serve = Callable[..., FaultyServer]


@pytest.fixture
def serve(catalogue: Catalogue) -> Callable[..., FaultyServer]:
    """A running server with faults; stopped when the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda *faults: stack.enter_context(faulty_server(catalogue, *faults))


@pytest.fixture
def data(catalogue: Catalogue) -> bytes:
    return catalogue.file(FILE).content.data


def signed(server: CivitaiServer) -> str:
    return ask(f"{server.url}{DOWNLOAD[1:]}{VERSION}", **KEY).headers["location"]


def fetch(server: CivitaiServer, **headers: str) -> Reply:
    return ask(signed(server), **headers)


def received(url: str, *, timeout_s: float = 5) -> tuple[bytes, str]:
    """The bytes of the raw answer that come within the time, and how it ended: "closed", "reset" or "timeout"."""
    parts = urlsplit(url)
    deadline = time.monotonic() + timeout_s
    with socket.create_connection((parts.hostname, parts.port), timeout=timeout_s) as connection:
        connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: demo\r\n\r\n".encode())
        got = bytearray()
        try:
            while piece := connection.recv(65536):
                got += piece
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
        except ConnectionResetError:
            return bytes(got), "reset"
        except TimeoutError:
            return bytes(got), "timeout"
        return bytes(got), "closed"


def body_of(raw: bytes) -> bytes:
    return raw.partition(b"\r\n\r\n")[2]


def test_cut_sends_so_many_bytes_and_strikes_only_so_often(serve: Serve, data: bytes) -> None:
    fault = Cut(after=100_000, times=1)
    server = serve(fault)

    raw, end = received(signed(server))

    assert (body_of(raw), end) == (data[:100_000], "closed")
    assert f"Content-Length: {len(data)}".encode() in raw
    assert fetch(server).body == data
    assert server.struck == [fault]


def test_skip_lets_requests_pass_first(serve: Serve, data: bytes) -> None:
    server = serve(Cut(after=0, skip=1))

    assert fetch(server).body == data
    with pytest.raises(http.client.IncompleteRead):
        fetch(server)


def test_reset_is_a_tcp_reset(serve: Serve, data: bytes) -> None:
    raw, end = received(signed(serve(Reset(after=1000))))

    assert (body_of(raw), end) == (data[:1000], "reset")


def test_silence_says_nothing(serve: Serve) -> None:
    assert received(signed(serve(Silence(seconds=60))), timeout_s=0.2) == (b"", "timeout")


def test_stall_stops_in_the_middle(serve: Serve, data: bytes) -> None:
    raw, end = received(signed(serve(Stall(after=5000, seconds=60))), timeout_s=0.2)

    assert (body_of(raw), end) == (data[:5000], "timeout")


def test_stall_goes_on_after_its_time(serve: Serve, data: bytes) -> None:
    assert fetch(serve(Stall(after=5000, seconds=0.05))).body == data


def test_throttle_keeps_the_rate(serve: Serve, data: bytes) -> None:
    server = serve(Throttle(bytes_per_s=len(data) / 0.3))

    started = time.monotonic()
    reply = fetch(server)

    assert reply.body == data
    assert time.monotonic() - started > 0.25


def test_drip_comes_byte_by_byte(serve: Serve) -> None:
    raw, end = received(signed(serve(Drip(bytes_per_s=100))), timeout_s=0.2)

    assert 1 <= len(body_of(raw)) < 50
    assert end == "timeout"


def test_range_is_ignored(serve: Serve, data: bytes) -> None:
    reply = fetch(serve(IgnoreRange()), Range="bytes=1000-")

    assert (reply.status, reply.body) == (200, data)


def test_range_is_refused_but_the_whole_is_not(serve: Serve, data: bytes) -> None:
    server = serve(RefuseRange())
    refusal = fetch(server, Range="bytes=1000-")

    assert (refusal.status, refusal.headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert fetch(server).body == data


@pytest.mark.parametrize("off_by", [-100, 100])
def test_length_is_wrong(serve: Serve, data: bytes, off_by: int) -> None:
    raw, end = received(signed(serve(WrongLength(off_by=off_by))))

    assert f"Content-Length: {len(data) + off_by}\r\n".encode() in raw
    assert (body_of(raw), end) == (data, "closed")


def test_length_is_missing(serve: Serve, data: bytes) -> None:
    whole = fetch(serve(NoLength()))
    part = fetch(serve(NoLength(after=500)))

    assert "content-length" not in whole.headers
    assert (whole.body, part.body) == (data, data[:500])


@pytest.mark.parametrize(("fault", "said"), [(WrongContentRange(), "bytes 11-"), (WrongContentRange(value="x"), "x")])
def test_content_range_is_wrong(serve: Serve, data: bytes, fault: Fault, said: str) -> None:
    reply = fetch(serve(fault), Range="bytes=10-")

    assert (reply.status, reply.body) == (206, data[10:])
    assert reply.headers["content-range"].startswith(said)


def test_body_is_compressed(serve: Serve, data: bytes) -> None:
    reply = fetch(serve(Gzip()), Accept_Encoding="identity")

    assert reply.headers["content-encoding"] == "gzip"
    assert gzip.decompress(reply.body) == data


def test_changed_etag_makes_if_range_restart(serve: Serve, data: bytes) -> None:
    server = serve(ChangedEtag(skip=1))
    tag = fetch(server, Range="bytes=0-9").headers["etag"]

    reply = fetch(server, Range="bytes=10-", If_Range=tag)

    assert (reply.status, reply.body) == (200, data)
    assert reply.headers["etag"] != tag


def test_address_expires_at_once(serve: Serve, data: bytes) -> None:
    server = serve(Expire(times=1))
    url = signed(server)

    assert [ask(url).status, ask(url).status, fetch(server).status] == [403, 403, 200]


def test_address_expires_in_the_middle(serve: Serve, data: bytes) -> None:
    server = serve(Expire(after=3000, times=1))
    url = signed(server)
    raw, _ = received(url)
    again = ask(url, Range="bytes=3000-")

    assert body_of(raw) == data[:3000]
    assert (again.status, b"Request has expired" in again.body) == (403, True)
    assert fetch(server, Range="bytes=3000-").body == data[3000:]


@pytest.mark.parametrize("asked", [None, "bytes=1000-"])
def test_one_byte_is_wrong_at_its_place_in_the_file(serve: Serve, data: bytes, asked: str | None) -> None:
    reply = fetch(serve(FlipByte(at=2000)), **({"Range": asked} if asked else {}))

    true = data[1000:] if asked else data
    differing = [place for place in range(len(true)) if reply.body[place] != true[place]]
    assert differing == [1000 if asked else 2000]


def test_truncated_file_agrees_with_itself(serve: Serve, data: bytes) -> None:
    server = serve(Truncate(keep=5000))
    whole, part, beyond = (fetch(server, Range=f"bytes={start}-") for start in (0, 4000, 5000))

    assert fetch(server).headers["content-length"] == "5000"
    assert (whole.body, whole.headers["content-range"]) == (data[:5000], "bytes 0-4999/5000")
    assert (part.body, part.headers["content-range"]) == (data[4000:5000], "bytes 4000-4999/5000")
    assert beyond.status == 416


@pytest.mark.parametrize(
    ("fault", "status", "header", "value"),
    [
        (too_many_requests("7"), 429, "retry-after", "7"),
        (too_many_requests(), 429, "retry-after", None),
        (region_blocked(), 451, "content-type", "application/json"),
        (web_page(), 200, "content-type", "text/html; charset=utf-8"),
        (web_page(522, "Connection timed out"), 522, "content-type", "text/html; charset=utf-8"),
        (Status(status=500, headers={"X-Any": "thing"}), 500, "x-any", "thing"),
    ],
)
def test_any_status_with_any_header(serve: Serve, fault: Fault, status: int, header: str, value: str | None) -> None:
    reply = ask(f"{serve(fault).url}/api/v1/models")

    assert (reply.status, reply.headers.get(header)) == (status, value)


def test_fault_strikes_only_where_it_belongs(serve: Serve) -> None:
    server = serve(Status(status=503, path=r"^/api/v1/models/\d+"))

    assert ask(f"{server.url}/api/v1/models/51207").status == 503
    assert ask(f"{server.url}/api/v1/models?limit=1").status == 200


@pytest.mark.parametrize("to", ["file:///etc/passwd", "http://10.0.0.1/", "//elsewhere/x", "http://127.0.0.1:9/"])
def test_redirect_points_anywhere(serve: Serve, to: str) -> None:
    reply = ask(f"{serve(Redirect(to=to)).url}{DOWNLOAD[1:]}{VERSION}", **KEY)

    assert (reply.status, reply.headers["location"]) == (307, to)


def test_redirect_can_loop(serve: Serve) -> None:
    server = serve(Redirect(status=302))
    url = f"{server.url}{DOWNLOAD[1:]}{VERSION}"

    assert ask(url, **KEY).headers["location"] == url


def test_one_header_is_huge(serve: Serve) -> None:
    raw, _ = received(f"{serve(HugeHeader(size_bytes=300_000)).url}/api/v1/enums", timeout_s=0.2)

    assert raw.partition(b"\r\n\r\n")[0].count(b"x") >= 300_000


def test_headers_do_not_end(serve: Serve) -> None:
    raw, end = received(f"{serve(EndlessHeaders(most_bytes=2_000_000)).url}/api/v1/enums")

    assert len(raw) > 1_900_000
    assert (b"\r\n\r\n" in raw, end) == (False, "closed")


def test_faults_can_be_added_and_healed_while_serving(serve: Serve) -> None:
    server = serve()
    url = f"{server.url}/api/v1/enums"

    before = ask(url).status
    server.inject(Status(status=500))
    during = ask(url).status
    server.heal()

    assert (before, during, ask(url).status) == (200, 500, 200)


def test_stopping_does_not_wait_for_a_stalled_answer(catalogue: Catalogue) -> None:
    with faulty_server(catalogue, Stall(after=10, seconds=60)) as server:
        parts = urlsplit(signed(server))
        connection = socket.create_connection((parts.hostname, parts.port), timeout=5)
        connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: demo\r\n\r\n".encode())
        assert connection.recv(100)
        started = time.monotonic()

    assert time.monotonic() - started < 2
    connection.close()
