"""Reads a response whose body is compressed although the request did not accept compression."""

import http.client
import socket
import zlib

from civman.civitai.response_body import Body
from civman.errors import BadAnswer, Cause

ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})
"""The compression formats (HTTP content codings) that the standard library can decode."""
_READ_BYTES = 1 << 16


class DecodedBody(Body):
    """The decoded body of a complete response.

    Its length is unknown until it ends, so callers read no more than the expected size of the file. Data is decoded
    only as far as it is read, because a few compressed bytes can expand to gigabytes.
    """

    def __init__(
        self, response: http.client.HTTPResponse, sock: socket.socket, coding: str, *, host: str, stall_s: float
    ) -> None:
        super().__init__(response, sock, 0, None, None, host=host, stall_s=stall_s)
        self._can_fill = False
        self._coding = coding
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS if coding == "deflate" else zlib.MAX_WBITS | 16)
        self._has_decoded = False
        self._waiting = b""
        """Received bytes that have not been decoded yet."""

    def _read(self, view: memoryview) -> int:
        while not self._decoder.eof:
            data = self._decoded(self._waiting, len(view))
            self._waiting = self._decoder.unconsumed_tail
            if data:
                self._has_decoded = True
                view[: len(data)] = data
                return len(data)
            self._waiting += self._response.read1(_READ_BYTES)
            if not self._waiting:
                return 0
        return 0

    def _decoded(self, data: bytes, most: int) -> bytes:
        try:
            return self._decoder.decompress(data, most)
        except zlib.error as error:
            if self._coding == "deflate" and not self._has_decoded:
                # some servers send a raw DEFLATE stream, without the zlib header, as "deflate"
                self._decoder, self._has_decoded = zlib.decompressobj(-zlib.MAX_WBITS), True
                return self._decoded(data, most)
            raise BadAnswer(
                f"`{self.host}` sent the file compressed ({self._coding}), but the data cannot be "
                        "decompressed",
                code=Cause.COMPRESSED_BODY, host=self.host, hint="try again; the damaged bytes were not kept",
            ) from error  # fmt: skip
