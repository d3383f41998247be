"""Bodies that a storage compresses although the request did not allow it."""

import gzip
import http.client
import io
import zlib

import pytest

from civman.civitai.decoded_body import DecodedBody
from civman.errors import BadAnswer

DATA = bytes(range(256)) * 3000


class Received:
    """The socket that http.client reads a response from."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


def body(sent: bytes, coding: str, *, length: int | None = None) -> DecodedBody:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length or len(sent)}\r\n\r\n".encode()
    response = http.client.HTTPResponse(Received(head + sent))  # type: ignore[arg-type]  # as much as it uses
    response.begin()
    return DecodedBody(response, object(), coding, host="storage.test", stall_s=1)  # type: ignore[arg-type]


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)]
)
def test_a_compressed_body_is_decoded(coding: str, pack: "type[bytes]") -> None:
    assert body(pack(DATA), coding).read_all(len(DATA)) == DATA


def test_no_more_is_decoded_than_is_asked_for() -> None:
    bomb = body(gzip.compress(bytes(50_000_000)), "gzip")
    view = memoryview(bytearray(1000))

    assert bomb.read_into(view) == 1000
    with pytest.raises(BadAnswer, match="more than 5,000 bytes"):
        bomb.read_all(5000)


@pytest.mark.parametrize("sent", [b"not compressed at all", gzip.compress(DATA)[:-8] + bytes(8)])
def test_damaged_compression_is_an_error(sent: bytes) -> None:
    with pytest.raises(BadAnswer, match="cannot be decompressed"):
        body(sent, "gzip").read_all(len(DATA))


def test_a_body_that_is_cut_ends_early() -> None:
    packed = gzip.compress(DATA)

    assert len(body(packed[:-200], "gzip").read_all(len(DATA))) < len(DATA)
