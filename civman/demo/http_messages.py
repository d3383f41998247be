"""An HTTP request as received, and a response before it is sent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `server` is "api" or "storage"; header names are lower case."""

    server: str
    method: str
    path: str
    """The path without the query, percent-encoded as sent."""
    query: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def params(self) -> dict[str, list[str]]:
        """The decoded query parameters; a key without a value maps to an empty string."""
        return parse_qs(self.query, keep_blank_values=True)

    @property
    def first(self) -> dict[str, str]:
        """The decoded query parameters, with only the first value of each key."""
        return {key: values[0] for key, values in self.params.items()}

    @property
    def target(self) -> str:
        """The path and query as in the request line."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response. `Content-Length` is added when it is sent, unless `headers` contains it."""

    status: int = 200
    body: bytes | memoryview = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: Any, status: int = 200, **headers: str) -> "Answer":
        """Create a JSON response; header names are written with underscores (`Retry_After="2"`)."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return cls(status, body, {"Content-Type": "application/json; charset=utf-8"}).with_headers(**headers)

    @classmethod
    def of_text(cls, text: str, status: int = 200, content_type: str = "text/plain; charset=utf-8") -> "Answer":
        """Create a response with `text` as its body."""
        return cls(status, text.encode(), {"Content-Type": content_type})

    @classmethod
    def redirect(cls, location: str, status: int = 307) -> "Answer":
        """Create an empty response that redirects to `location`."""
        return cls(status, b"", {"Location": location, "Cache-Control": "no-store, max-age=0"})

    def with_headers(self, **headers: str) -> "Answer":
        """Return a copy of the response in which these headers are set; their names are written with underscores."""
        return replace(self, headers={**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}})
