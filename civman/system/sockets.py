"""Waiting for what arrives on a socket, with the best call each system has."""

import select
import socket
import struct
import sys
from typing import Final

FILL_S: Final = 0.1
"""How long `fill` waits for the rest of a buffer."""
_FILL_TIME: Final = struct.pack("@ll", 0, int(FILL_S * 1e6))
CAN_FILL: Final = sys.platform in ("linux", "darwin") and hasattr(socket, "MSG_WAITALL")
"""Whether `fill` works here: SO_RCVTIMEO takes a pair of longs."""


def fill(sock: socket.socket, view: memoryview) -> int | None:
    """Put what arrives within `FILL_S` into `view`, in one system call; None where nothing came, 0 at the end.

    The socket is left without a timeout of its own. Raises: OSError.
    """
    try:
        sock.settimeout(None)  # for a socket with a timeout the system does not wait for the rest
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _FILL_TIME)
        return sock.recv_into(view, 0, socket.MSG_WAITALL)
    except BlockingIOError:
        return None


def is_readable(sock: socket.socket, within_s: float) -> bool:
    """Whether a read would not wait, now or `within_s`. Raises: OSError, ValueError: the socket was closed."""
    if sys.platform != "win32" and hasattr(select, "poll"):
        waiting = select.poll()
        waiting.register(sock, select.POLLIN)
        return bool(waiting.poll(within_s * 1000))
    return bool(select.select([sock], [], [], within_s)[0])  # Windows, whose select takes sockets of any number
