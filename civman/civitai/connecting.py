"""Opens the TCP, proxy and TLS connections for storage downloads. Connects only to addresses that were checked."""

import base64
import contextlib
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable
from urllib.parse import SplitResult, unquote, urlsplit

from civman.civitai import allowed_urls, socks_proxy
from civman.errors import Cause, ConfigError, NetworkError

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})([^\r\n]*)")
_LONGEST_HEAD_BYTES = 1 << 16

Publish = Callable[[socket.socket], None]


def dial(
    parts: SplitResult,
    *,
    tls: Callable[[], ssl.SSLContext],
    connect_s: float,
    loopback_allowed: bool,
    is_own: bool = False,
    publish: Publish,
) -> socket.socket:
    """Connect a socket to the host of `parts`, through the environment's proxy if one is set, with TLS for https.

    `is_own`: the user has configured this server, so its address is not checked. `publish` receives the socket as soon
    as it exists, and again after TLS has wrapped it, so that another thread can shut it down while it connects.

    Raises: UnsafeRedirect, NetworkError. ConfigError: the proxy cannot be used. OSError: the connection failed.
    """
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    proxy = None if allowed_urls.is_loopback(parts.geturl()) else proxy_for(parts.scheme, host)
    if proxy is None:
        sock = _connected(host, port, connect_s, loopback_allowed=loopback_allowed, is_own=is_own)
    else:
        sock = _proxy_socket(proxy, connect_s)
    try:
        publish(sock)
        if proxy is not None:
            _tunnel(sock, proxy, host, port)
        if secure:
            sock = tls().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            publish(sock)
            sock.do_handshake()
    except BaseException:
        sock.close()
        raise
    return sock


def proxy_for(scheme: str, host: str) -> SplitResult | None:
    """Return the proxy that the environment sets for `host`, or None.

    Raises: ConfigError: civman does not support this kind of proxy.
    """
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    address = proxies.get(scheme) or proxies.get("all")
    if not address:
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme not in {"http", *socks_proxy.SCHEMES}:
        raise ConfigError(
            f"a {parts.scheme} proxy is not supported for downloads",
            hint="set HTTPS_PROXY to an http:// or socks5:// proxy, or NO_PROXY for CivitAI's hosts",
        )
    return parts


def _connected(host: str, port: int, timeout_s: float, *, loopback_allowed: bool, is_own: bool) -> socket.socket:
    """Open a TCP connection to `host`. Unless `is_own`, its IP address must be accepted by `allowed_urls.check_ip`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError means that the host name is not valid in DNS
        reason = getattr(error, "strerror", None) or "there is no host of that name"
        raise NetworkError(f"cannot find `{host}`: {reason}", hint=_ONLINE_HINT, host=host) from error
    last: OSError | None = None
    for family, kind, protocol, _, address in found:
        if not is_own:
            allowed_urls.check_ip(str(address[0]), host=host, loopback_allowed=loopback_allowed)
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout_s)
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            last = error
        else:
            return connection
    raise NetworkError(f"cannot reach `{host}`: {last}", code=Cause.UNREACHABLE, hint=_ONLINE_HINT, host=host)


def _proxy_socket(proxy: SplitResult, timeout_s: float) -> socket.socket:
    try:
        port = proxy.port or (socks_proxy.PORT if proxy.scheme in socks_proxy.SCHEMES else 8080)
        return socket.create_connection((proxy.hostname or "", port), timeout_s)
    except (OSError, UnicodeError) as error:
        raise _proxy_error(proxy, str(error)) from error


def _tunnel(sock: socket.socket, proxy: SplitResult, host: str, port: int) -> None:
    """Make the proxy connect `sock` to `host`. Source: RFC 9110, section 9.3.6."""
    if proxy.scheme in socks_proxy.SCHEMES:
        try:
            socks_proxy.connect_through(sock, proxy, host, port)
        except socks_proxy.SocksError as error:
            raise _proxy_error(proxy, str(error)) from error
        return
    name = f"[{host}]" if ":" in host else host.encode("idna").decode()
    lines = [f"CONNECT {name}:{port} HTTP/1.1", f"Host: {name}:{port}"]
    if proxy.username:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(login.encode()).decode())
    sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    head = bytearray()
    while b"\r\n\r\n" not in head and len(head) < _LONGEST_HEAD_BYTES:
        # before TLS starts, the server sends nothing through the tunnel, so these bytes are the proxy's response only
        part = sock.recv(4096)
        if not part:
            raise _proxy_error(proxy, "the proxy closed the connection")
        head += part
    status = _STATUS_LINE.match(head)
    if status is None:
        raise _proxy_error(proxy, "the response of the proxy is not HTTP")
    if not 200 <= int(status[1]) < 300:
        raise _proxy_error(proxy, (status[1] + status[2]).decode("latin-1").strip()[:80])


def _proxy_error(proxy: SplitResult, reason: str) -> NetworkError:
    return NetworkError(
        f"the proxy `{proxy.hostname}` refuses the connection: {reason}",
        code=Cause.PROXY,
        hint="check HTTPS_PROXY (its URL may contain a user name and password) and NO_PROXY",
        host=proxy.hostname,
    )


def shut(sock: socket.socket) -> None:
    """Shut down `sock` at system level, which interrupts a thread that is waiting for it.

    SSLSocket's own `shutdown` is not used: after it, the other thread would continue to read, but without decryption.
    """
    with contextlib.suppress(OSError):  # the socket may already be closed
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


_ONLINE_HINT = "check the network, or HTTPS_PROXY if you are behind a proxy; the bytes received so far are kept"
