"""Converts civman's errors to plain values and back, because pickle fails on exceptions with their own constructors."""

from typing import Any

from civman.errors import CivmanError

Packed = tuple[type[CivmanError], tuple[Any, ...], dict[str, Any]]


def packed(error: CivmanError) -> Packed:
    """Return the class, the arguments and the attributes of an error as plain values."""
    return type(error), error.args, dict(error.__dict__)


def unpacked(value: Packed | str) -> Exception:
    """Rebuild the error that was packed; for the traceback of another exception, return a RuntimeError."""
    if isinstance(value, str):
        return RuntimeError(f"a worker failed:\n{value}")
    kind, arguments, attributes = value
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(attributes)
    return error
