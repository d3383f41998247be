"""Parse query parameters as CivitAI's schema does, with the same error messages.

Source: the site's public schema, run on sample queries (August 2026).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Issue = dict[str, Any]
Params = Mapping[str, Sequence[str]]

_NOT_OVER_HTTP = {
    "allowNoCredit": "boolean", "allowDerivatives": "boolean", "allowDifferentLicense": "boolean",
    "isFeatured": "boolean", "pending": "boolean", "disablePoi": "boolean", "disableMinor": "boolean",
    "browsingLevel": "number", "collectionId": "number",
}  # fmt: skip
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class Reader:
    """Parses query parameters and collects the errors that CivitAI's schema would report."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self.issues: list[Issue] = []

    def text(self, name: str) -> str | None:
        """Return the parameter's only value; None if it is missing or empty. More than one value is an error."""
        values = self._params.get(name, [])
        if len(values) > 1:
            self._wrong_type(name, "string", "array")
        return values[0] or None if values else None

    def one_of(self, name: str, allowed: Sequence[str], default: str | None = None) -> str | None:
        """Return the parameter's value, which must be one of `allowed`; `default` if it is missing."""
        values = self._params.get(name, [])
        if not values:
            return default
        if len(values) > 1 or values[0] not in allowed:
            self._not_allowed([name], allowed)
        return values[0]

    def some_of(self, name: str, allowed: Sequence[str]) -> list[str]:
        """Return all values of the parameter, each of which must be in `allowed`. A comma does not separate values."""
        values = list(self._params.get(name, []))
        for place, value in enumerate(values):
            if value not in allowed:
                self._not_allowed([name, place], allowed)
        return values

    def number(self, name: str, default: int, minimum: int, maximum: int | None = None) -> int:
        """Parse a whole number between `minimum` and `maximum`; an empty value counts as 0."""
        if name not in self._params:
            return default
        text = self._params[name][0].strip() or "0"
        if len(self._params[name]) > 1 or not re.fullmatch(r"[+-]?\d+", text):
            self._wrong_type(name, "number", "NaN")
            return default
        value = int(text)
        if value < minimum:
            self._add(origin="number", code="too_small", minimum=minimum, inclusive=True, path=[name],
                      message=f"Too small: expected number to be >={minimum}")  # fmt: skip
        elif maximum is not None and value > maximum:
            self._add(origin="number", code="too_big", maximum=maximum, inclusive=True, path=[name],
                      message=f"Too big: expected number to be <={maximum}")  # fmt: skip
        return value

    def boolean(self, name: str) -> bool:
        """Parse a boolean parameter. A value that means neither true nor false is reported as an error."""
        text = (self._params.get(name, ["false"])[0] or "false").lower()
        if text not in _TRUE + _FALSE:
            self._not_allowed([name], _TRUE + _FALSE)
        return text in _TRUE

    def presence(self, name: str) -> bool:
        """Return whether the parameter has a non-empty value; even "false" counts."""
        return bool(self._params.get(name, [""])[0])

    def integers(self, name: str) -> frozenset[int] | None:
        """Parse integers that are separated by commas or repeated; an empty value counts as 0.

        None if the parameter is missing.
        """
        if name not in self._params:
            return None
        parts = [part.strip() or "0" for value in self._params[name] for part in value.split(",")]
        if not all(part.isdecimal() for part in parts):
            self._wrong_type(name, "number", "NaN")
            return frozenset()
        return frozenset(int(part) for part in parts)

    def unreachable(self) -> None:
        """Report an error for each parameter that cannot be valid, since a query string cannot express its type."""
        for name in self._params:
            kind = "array" if re.fullmatch(r"excluded\w+Ids", name) else _NOT_OVER_HTTP.get(name)
            if kind:
                self._wrong_type(name, kind, "string")

    def _wrong_type(self, name: str, expected: str, received: str) -> None:
        self._add(expected=expected, code="invalid_type", **({"received": received} if received == "NaN" else {}),
                  path=[name], message=f"Invalid input: expected {expected}, received {received}")  # fmt: skip

    def _not_allowed(self, path: list[str | int], allowed: Sequence[str]) -> None:
        options = "|".join(f'"{value}"' for value in allowed)
        message = f"Invalid option: expected one of {options}"
        self._add(code="invalid_value", values=list(allowed), path=path, message=message)

    def _add(self, **issue: Any) -> None:
        self.issues.append(issue)
