"""Converts values and errors of civman to JSON, in the forms that `--json` and the server share."""

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from civman.errors import CivmanError


def plain(value: object) -> Any:  # the result has the type Any, because there is no type for all JSON values
    """Convert `value` to JSON types: dataclasses become objects without their `raw` field, times become ISO 8601."""
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return plain(value.value)
        case str():
            return str(value)
        case datetime():
            return value.isoformat()
        case Path():
            return str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = (field.name for field in dataclasses.fields(value))
            return {name: plain(getattr(value, name)) for name in fields if name != "raw"}
        case Iterable():
            return [plain(item) for item in value]
    return str(value)


def error_value(error: CivmanError) -> dict[str, Any]:
    """Convert an error to a JSON object."""
    return {
        "code": error.code,
        "exit_code": int(error.exit_code),
        "message": error.message,
        "hint": error.hint or None,
        "facts": plain(error.facts),
    }
