"""Reads the body of one response from the socket directly into a caller's buffer."""

import contextlib
import http.client
import socket
import time

from civman.errors import BadAnswer, Cause, NetworkError
from civman.system import sockets

CUT_HINT = "try again; the bytes received so far are kept"
_FIRST_READ_BYTES = 1 << 16
_SMALL_BODY_S = 60.0


class Body:
    """The body of one response: the bytes `[start, start + length)` of a file of `total_bytes` (None if unknown)."""

    def __init__(
        self,
        response: http.client.HTTPResponse,
        sock: socket.socket,
        start: int,
        length: int | None,
        total_bytes: int | None,
        *,
        host: str,
        stall_s: float,
    ) -> None:
        self.start = start
        self.total_bytes = total_bytes
        self.host = host
        self.is_partial = response.status == http.HTTPStatus.PARTIAL_CONTENT
        self.etag = response.headers.get("ETag")
        self.left_bytes = length
        """Number of bytes still to come. If it is None, the body ends when the connection closes, so a broken
        connection cannot be detected.
        """
        self.is_over = False
        """Whether the end of the body has been reached."""
        self._response = response
        self._socket = sock
        self._stall_s = stall_s
        self._heard_at = time.monotonic()
        self._is_past_head = False
        """Whether http.client's own buffer is empty, so that the rest can be read directly from the socket."""
        self._can_fill = sockets.CAN_FILL and type(sock) is socket.socket and not response.chunked

    def fill(self, view: memoryview, within_s: float) -> int:
        """Read what arrives within `within_s` into `view`. Returns the number of bytes, possibly 0.

        Raises: NetworkError: the connection broke (`connection-cut`) or sent nothing for `stall_s` (`stalled`).
        """
        if self.left_bytes is not None:
            view = view[: self.left_bytes]
        deadline = time.monotonic() + within_s
        filled = 0
        while filled < len(view) and not self.is_over:
            try:
                if self._is_past_head and self._can_fill and within_s >= sockets.FILL_S:
                    filled += self._filled(view[filled:])
                    break
                if not self._is_ready(deadline - time.monotonic()):
                    break
                filled += self.read_into(view[filled:])
            except NetworkError:
                if not filled:
                    raise
                break  # return the bytes that arrived before the connection broke; the next call raises the error
        now = time.monotonic()
        if filled:
            self._heard_at = now
        elif len(view) and not self.is_over and now - self._heard_at >= self._stall_s:
            raise self._stalled()
        return filled

    def read_into(self, view: memoryview) -> int:
        """Read the available bytes into `view`, waiting for at least one byte. Returns 0 at the end of the body.

        Raises: NetworkError: the connection broke (`connection-cut`) or sent nothing for `stall_s` (`stalled`).
        """
        if self.left_bytes is not None:
            view = view[: self.left_bytes]
        if not len(view):
            return 0
        try:
            count = self._read(view)
        except TimeoutError as error:
            raise self._stalled() from error
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # ValueError and AttributeError mean that another thread closed the connection during this read
            raise connection_cut(self.host, error) from error
        return self._counted(count)

    def read_all(self, most_bytes: int) -> bytes:
        """Read a whole small body.

        Raises: NetworkError: the body takes longer than a minute. BadAnswer: it is longer than `most_bytes`.
        """
        data = bytearray()
        view = memoryview(bytearray(_FIRST_READ_BYTES))
        deadline = time.monotonic() + _SMALL_BODY_S
        while count := self.read_into(view):
            data += view[:count]
            if time.monotonic() > deadline:
                raise NetworkError(f"`{self.host}` is sending almost no data", code=Cause.STALLED, host=self.host)
            if len(data) > most_bytes:
                raise BadAnswer(
                    f"`{self.host}` is sending more than {most_bytes:,} bytes", code=Cause.TOO_LONG, host=self.host
                )
        return bytes(data)

    def _filled(self, view: memoryview) -> int:
        """Read into `view` with a single system call that waits for data to accumulate.

        With one call for each arrival of data, the threads of a fast transfer would constantly compete for the
        interpreter.
        """
        try:
            count = sockets.fill(self._socket, view)
        except (OSError, ValueError) as error:
            raise connection_cut(self.host, error) from error
        finally:
            self._settle()
        return 0 if count is None else self._counted(count)

    def _settle(self) -> None:
        # another thread may have closed the connection; the next read reports that
        with contextlib.suppress(OSError, ValueError):
            self._socket.settimeout(self._stall_s)

    def _counted(self, count: int) -> int:
        if count == 0:
            if self.left_bytes is not None:
                raise connection_cut(self.host, None)
            self.is_over = True
        elif self.left_bytes is not None:
            self.left_bytes -= count
            if self.left_bytes == 0:
                self.is_over = True
                self._response.close()  # close the response, so that its connection can be used for the next request
        return count

    def _read(self, view: memoryview) -> int:
        if self._response.chunked:
            return self._response.readinto(view[:_FIRST_READ_BYTES])
        if self._is_past_head:  # read directly from the socket into the caller's buffer, bypassing http.client's buffer
            return int(self._response.fp.raw.readinto(view) or 0)
        wanted = min(len(view), _FIRST_READ_BYTES)
        data = self._response.fp.read1(wanted)
        self._is_past_head = len(data) < wanted
        view[: len(data)] = data
        return len(data)

    def _is_ready(self, within_s: float) -> bool:
        """Whether `read_into` would return within `within_s` seconds; also True if this is unknown without reading."""
        pending = getattr(self._socket, "pending", None)
        if not self._is_past_head or (pending is not None and pending()):
            return True
        try:
            return sockets.is_readable(self._socket, max(0.0, within_s))
        except (OSError, ValueError):  # another thread closed the connection; the next read reports that
            return True

    def _stalled(self) -> NetworkError:
        return NetworkError(
            f"`{self.host}` has stopped sending data", code=Cause.STALLED, hint=CUT_HINT, host=self.host
        )


def connection_cut(host: str, error: Exception | None) -> NetworkError:
    """Build the error for a connection that broke during a response."""
    why = f": {error}" if isinstance(error, ConnectionError) and str(error) else ""
    return NetworkError(f"the connection to `{host}` broke{why}", code=Cause.CONNECTION_CUT, hint=CUT_HINT, host=host)
