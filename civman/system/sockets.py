"""Waits for data on sockets with the most efficient call that each system offers."""

import select
import socket
import struct
import sys
from typing import Final

FILL_S: Final = 0.1
"""How long `fill` waits for more data, in seconds."""
_FILL_TIME: Final = struct.pack("@ll", 0, int(FILL_S * 1e6))
CAN_FILL: Final = sys.platform in ("linux", "darwin") and hasattr(socket, "MSG_WAITALL")
"""Whether `fill` works on this system, where SO_RCVTIMEO is a struct of two C longs."""


def fill(sock: socket.socket, view: memoryview) -> int | None:
    """Receive data into `view` for up to `FILL_S`, with one system call; return the number of bytes.

    Returns None if no data arrived, 0 if the connection ended. Side effect: the socket's timeout in Python is turned
    off. Raises: OSError.
    """
    try:
        # turn off Python's timeout: with it, the call would return the first bytes instead of waiting for more
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _FILL_TIME)
        return sock.recv_into(view, 0, socket.MSG_WAITALL)
    except BlockingIOError:
        return None


def is_readable(sock: socket.socket, within_s: float) -> bool:
    """Wait up to `within_s` seconds until data can be read. Returns whether it can.

    Raises: OSError, ValueError: the socket was closed.
    """
    if sys.platform != "win32" and hasattr(select, "poll"):
        waiting = select.poll()
        waiting.register(sock, select.POLLIN)
        return bool(waiting.poll(within_s * 1000))
    # on Windows, select supports every socket; elsewhere, it fails for file descriptors of 1024 and above
    return bool(select.select([sock], [], [], within_s)[0])
