"""Which URLs civman may open: only https and public addresses, except if the configured site is on loopback.

A redirect comes from a server that is not trusted. It could point to a local file, to plain http, or to a machine
inside the user's network; such redirects are refused.
"""

import ipaddress
from urllib.parse import SplitResult, urljoin, urlsplit

from civman.errors import UnsafeRedirect

MAX_HOPS = 5


def check_address(url: str, *, loopback_allowed: bool) -> SplitResult:
    """Split `url` into its parts after checking its scheme and, if the host is an IP address, the address.

    `loopback_allowed`: the configured CivitAI URL is itself on loopback (a mirror, the demo server or a test).

    Raises: UnsafeRedirect.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise UnsafeRedirect(
            "the server redirects to an invalid URL", hint="nothing was fetched; try again later"
        ) from None
    if parts.scheme not in ("http", "https") or not host:
        raise UnsafeRedirect(
            f"the server redirects to `{parts.scheme or 'nothing'}:`, which civman does not open",
            hint="nothing was fetched; if this happens again, a proxy or another program may be altering the traffic",
            host=host,
        )
    if "@" in parts.netloc:
        raise UnsafeRedirect(
            f"the server redirects to a URL on `{host}` that contains a user name or password",
            hint="nothing was sent to that host; if this happens again, a proxy may be altering the traffic",
            host=host,
        )
    literal = _literal(host)
    on_loopback = host == "localhost" or (literal is not None and literal.is_loopback)
    if on_loopback and loopback_allowed:
        return parts
    if literal is not None or on_loopback:
        check_ip(host if literal is not None else "127.0.0.1", host=host, loopback_allowed=loopback_allowed)
    if parts.scheme != "https":
        raise UnsafeRedirect(
            f"the server redirects to plain http on `{host}`",
            hint="the request was not sent; if this happens again, a proxy may be altering the traffic",
            host=host,
        )
    return parts


def check_ip(address: str, *, host: str, loopback_allowed: bool) -> None:
    """Check that an IP address is public, or loopback if `loopback_allowed`. Raises: UnsafeRedirect."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    if ip.is_loopback and loopback_allowed:
        return
    if not ip.is_global or ip.is_multicast:
        raise UnsafeRedirect(
            f"the server redirects into a private network: `{host}` is {ip}",
            hint="nothing was sent to that host; if this happens again, your DNS server or a proxy may be "
            "answering in place of CivitAI",
            host=host,
            address=str(ip),
        )


def follow(base: str, location: str, *, loopback_allowed: bool) -> str:
    """Resolve a `Location` header relative to `base`. Raises: UnsafeRedirect: the resulting URL is not allowed."""
    try:
        target = urljoin(base, location)
    except ValueError:
        target = ""
    check_address(target, loopback_allowed=loopback_allowed)
    return target


def is_loopback(url: str) -> bool:
    """Whether the host of `url` is a loopback address."""
    host = urlsplit(url).hostname or ""
    literal = _literal(host)
    return host == "localhost" or (literal is not None and literal.is_loopback)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
