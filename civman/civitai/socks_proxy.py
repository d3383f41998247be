"""Connect through a SOCKS5 proxy. Source: RFC 1928 and, for user and password, RFC 1929."""

import socket
from urllib.parse import SplitResult, unquote

SCHEMES = frozenset({"socks5", "socks5h", "socks"})
PORT = 1080
_VERSION, _LOGIN_VERSION = 5, 1
_NO_LOGIN, _LOGIN = 0, 2
_CONNECT, _BY_NAME = 1, 3
_ADDRESS_BYTES = {1: 4, 4: 16}
_REFUSALS = {
    1: "general failure", 2: "the proxy's rules do not allow the connection", 3: "the network is unreachable",
    4: "the host is unreachable", 5: "the connection was refused", 6: "the connection took too long",
    7: "the proxy does not support the command", 8: "the proxy does not support the address type",
}  # fmt: skip


class SocksError(Exception):
    """The SOCKS proxy did not establish the connection; the message gives the reason."""


def connect_through(sock: socket.socket, proxy: SplitResult, host: str, port: int) -> None:
    """Make the proxy at the other end of `sock` connect to `host`. The proxy resolves the host name.

    Raises: SocksError: the proxy refuses, or is not a SOCKS5 proxy. OSError.
    """
    methods = bytes([_NO_LOGIN, _LOGIN] if proxy.username else [_NO_LOGIN])
    sock.sendall(bytes([_VERSION, len(methods)]) + methods)
    version, method = _received(sock, 2)
    if version != _VERSION:
        raise SocksError("this is not a SOCKS5 proxy")
    if method == _LOGIN and proxy.username:
        _log_in(sock, unquote(proxy.username), unquote(proxy.password or ""))
    elif method != _NO_LOGIN:
        raise SocksError("the proxy requires a user name and password")
    name = host.encode("idna")
    sock.sendall(bytes([_VERSION, _CONNECT, 0, _BY_NAME, len(name)]) + name + port.to_bytes(2))
    _, reply, _, kind = _received(sock, 4)
    if reply:
        raise SocksError(_REFUSALS.get(reply, f"reply {reply}"))
    length = _ADDRESS_BYTES.get(kind) or _received(sock, 1)[0]
    _received(sock, length + 2)


def _log_in(sock: socket.socket, user: str, password: str) -> None:
    name, secret = user.encode()[:255], password.encode()[:255]
    sock.sendall(bytes([_LOGIN_VERSION, len(name)]) + name + bytes([len(secret)]) + secret)
    if _received(sock, 2)[1]:
        raise SocksError("the proxy does not accept the user name and password")


def _received(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise SocksError("the proxy closed the connection")
        data += part
    return data
