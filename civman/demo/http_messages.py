"""A request as it arrived and an answer before it goes out."""

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
    """Without the query, percent-encoded as sent."""
    query: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def params(self) -> dict[str, list[str]]:
        """The query, decoded; a key without a value has an empty one."""
        return parse_qs(self.query, keep_blank_values=True)

    @property
    def first(self) -> dict[str, str]:
        """The query, decoded, with the first value of each key."""
        return {key: values[0] for key, values in self.params.items()}

    @property
    def target(self) -> str:
        """Path and query, as in the request line."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. `Content-Length` is added when it is sent, unless `headers` has one."""

    status: int = 200
    body: bytes | memoryview = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: Any, status: int = 200, **headers: str) -> "Answer":
        """`value` as JSON; header names are written with underscores (`Retry_After="2"`)."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return cls(status, body, {"Content-Type": "application/json; charset=utf-8"}).with_headers(**headers)

    @classmethod
    def of_text(cls, text: str, status: int = 200, content_type: str = "text/plain; charset=utf-8") -> "Answer":
        """`text` as it is."""
        return cls(status, text.encode(), {"Content-Type": content_type})

    @classmethod
    def redirect(cls, location: str, status: int = 307) -> "Answer":
        """An empty answer that points at `location`."""
        return cls(status, b"", {"Location": location, "Cache-Control": "no-store, max-age=0"})

    def with_headers(self, **headers: str) -> "Answer":
        """The same with these headers set; names are written with underscores."""
        return replace(self, headers={**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}})
