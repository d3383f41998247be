"""The configured site: its URL, its API key, and an HTTP client that sends the key to that site only."""

import logging
import ssl
from collections.abc import Generator
from urllib.parse import urlsplit

import httpx

from civman import __version__
from civman.civitai.allowed_urls import is_loopback
from civman.civitai.responses import safe_url
from civman.errors import Cause, ConfigError


def user_agent() -> str:
    """Build the User-Agent header. It must not contain a browser's name: CivitAI would then not send errors as JSON."""
    return f"civman/{__version__}"


def open_client(address: str, token: str | None, *, timeout_s: float) -> httpx.Client:
    """Create an HTTP client that sends `token` only to the origin of `address` and follows no redirects.

    Proxies and certificates come from the environment, except that loopback never goes through a proxy.

    Raises: ConfigError: a proxy or certificate setting in the environment cannot be used.
    """
    # httpx's debug log contains complete redirect URLs, including the storage server's signature
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    host = httpx.URL(address).host
    direct: dict[str, httpx.BaseTransport | None] = {f"all://[{host}]" if ":" in host else f"all://{host}": None}
    # loading the trust store takes 50 ms, so plain http on loopback gets a TLS context that trusts no certificate
    needs_tls = not (is_loopback(address) and address.startswith("http:"))
    try:
        return httpx.Client(
            auth=_Key(address, token),
            verify=True if needs_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            headers={"User-Agent": user_agent()},
            timeout=httpx.Timeout(timeout_s, pool=None),
            limits=httpx.Limits(max_connections=2, max_keepalive_connections=2),
            follow_redirects=False,
            event_hooks={"response": [_set_target_aside]},
            mounts=direct if is_loopback(address) else None,
        )
    except ImportError as error:
        raise ConfigError(
            "a SOCKS proxy needs the package `socksio`, which is not installed", code=Cause.BAD_PROXY,
            hint="install it with `pip install socksio`, or set HTTPS_PROXY to an http:// proxy",
        ) from error  # fmt: skip
    except (ValueError, TypeError) as error:  # httpx raises these exceptions for a proxy URL that it cannot use
        raise ConfigError(
            "the proxy in the environment variables cannot be used", code=Cause.BAD_PROXY,
            hint="check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY: http://, https:// and socks5:// proxies work",
        ) from error  # fmt: skip
    except OSError as error:
        raise ConfigError(
            "the certificates in SSL_CERT_FILE or SSL_CERT_DIR cannot be read: "
            f"{error.strerror or 'no certificate found'}",
            code=Cause.BAD_CERTIFICATES,
            hint="check SSL_CERT_FILE and SSL_CERT_DIR",
        ) from error


def checked_address(address: str, *, has_token: bool) -> str:
    """Check that a CivitAI URL is valid, and return it without a trailing slash. Raises: ConfigError."""
    shown = safe_url(address)
    try:
        parts = urlsplit(address.strip())
        port = parts.port
    except ValueError:
        raise ConfigError(f"not a valid site URL: {shown}", hint="use a URL like `https://civitai.com`") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"not a valid site URL: {shown}", hint="use a URL like `https://civitai.com`")
    if parts.username or parts.password:
        raise ConfigError(
            f"the site URL must not contain a user name or password: {shown}",
            hint="use `civman login` or CIVITAI_API_TOKEN for the API key",
        )
    if parts.scheme == "http" and has_token and not is_loopback(address):
        raise ConfigError(
            f"the API key would be sent unencrypted to {shown}", code=Cause.INSECURE_ADDRESS,
            hint="use https, or remove the API key for this site",
        )  # fmt: skip
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "") + parts.path.rstrip("/")


def checked_token(token: str) -> str:
    """Check that an API key can be sent in a header, and return it without surrounding spaces. Raises: ConfigError."""
    text = token.strip()
    if not text.isascii() or not text.isprintable() or " " in text or not text:
        raise ConfigError(
            "the API key contains invalid characters", code=Cause.MALFORMED_KEY, hint="copy the whole key again"
        )
    return text


_ASIDE = "x-civman-location"


def _set_target_aside(response: httpx.Response) -> None:
    """Rename the `Location` header, because httpx would parse it and fail if it is malformed."""
    if "location" in response.headers:
        response.headers[_ASIDE] = response.headers.pop("location")


def headers_of(response: httpx.Response) -> httpx.Headers:
    """Return the headers of a response as the server sent them, with `Location` under its original name."""
    headers = httpx.Headers(response.headers)
    if _ASIDE in headers:
        headers["location"] = headers.pop(_ASIDE)
    return headers


class _Key(httpx.Auth):
    """Adds the API key to requests to the configured origin, and removes any other credentials.

    If an auth object is passed explicitly, httpx adds no credentials of its own (from netrc or the URL).
    """

    def __init__(self, address: str, token: str | None) -> None:
        self._origin = _origin(httpx.URL(address))
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Set or remove the Authorization header."""
        request.headers.pop("Authorization", None)
        if self._token and _origin(request.url) == self._origin:
            request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)
