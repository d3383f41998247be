"""Where civman is willing to go: https and public addresses, except on a person's own loopback.

A server's redirect is a stranger's word. It may point at a file, at plain http, or at a machine inside the user's
network; none of these is followed.
"""

import ipaddress
import socket
from urllib.parse import SplitResult, urljoin, urlsplit

from civman.errors import NetworkError, UnsafeRedirect

MAX_HOPS = 5


def check_address(url: str, *, loopback_allowed: bool) -> SplitResult:
    """`url` taken apart, if its scheme and literal address are acceptable.

    `loopback_allowed`: the configured CivitAI address is itself on loopback (a mirror, the demo, a test).
    Raises: UnsafeRedirect.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise UnsafeRedirect(
            f"the server points at `{parts.scheme or 'nothing'}:`, which is no web address",
            hint="nothing was fetched; if this repeats, something stands between you and CivitAI",
            host=host,
        )
    literal = _literal(host)
    on_loopback = host == "localhost" or (literal is not None and literal.is_loopback)
    if on_loopback and loopback_allowed:
        return parts
    if literal is not None or on_loopback:
        check_ip(host if literal is not None else "127.0.0.1", host=host, loopback_allowed=loopback_allowed)
    if parts.scheme != "https":
        raise UnsafeRedirect(f"the server points at plain http on `{host}`", hint="nothing was sent there", host=host)
    return parts


def check_ip(address: str, *, host: str, loopback_allowed: bool) -> None:
    """Pass if `address` is public, or loopback where that is allowed. Raises: UnsafeRedirect."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    if ip.is_loopback and loopback_allowed:
        return
    if not ip.is_global or ip.is_multicast:
        raise UnsafeRedirect(
            f"the server points into a private network: `{host}` is {ip}",
            hint="nothing was sent there; if this repeats, your DNS or a proxy is answering for CivitAI",
            host=host,
            address=str(ip),
        )


def connect(host: str, port: int, timeout_s: float, *, loopback_allowed: bool) -> socket.socket:
    """A TCP connection to an address of `host` that passed `check_ip`: what was checked is what is dialled.

    Raises: UnsafeRedirect. NetworkError: no address answers.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NetworkError(f"cannot find `{host}`: {error.strerror or error}", hint=_ONLINE_HINT, host=host) from error
    last: OSError | None = None
    for family, kind, protocol, _, address in found:
        check_ip(str(address[0]), host=host, loopback_allowed=loopback_allowed)
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
    raise NetworkError(f"cannot reach `{host}`: {last}", hint=_ONLINE_HINT, host=host)


def follow(base: str, location: str, *, loopback_allowed: bool) -> str:
    """The absolute address that `location` means at `base`, if acceptable. Raises: UnsafeRedirect."""
    target = urljoin(base, location)
    check_address(target, loopback_allowed=loopback_allowed)
    return target


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine's loopback."""
    host = urlsplit(url).hostname or ""
    literal = _literal(host)
    return host == "localhost" or (literal is not None and literal.is_loopback)


_ONLINE_HINT = "check the network, or HTTPS_PROXY where you are behind a proxy; what has arrived is kept"


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
