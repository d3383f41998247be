"""Recipes as JSON: a canonical text that is equal for equal recipes, and a strict parser that reports what is wrong."""

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from civman.domain.digests import Sha256, sha256_from
from civman.errors import Cause, UsageError


def canonical(value: object) -> str:
    """Serialise to JSON with sorted keys and no spaces. NaN and infinity are rejected; non-ASCII text is kept."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_json(text: str) -> object:
    """Parse JSON. Raises: UsageError (`bad-recipe`): it is invalid, cut short, or has a name twice in one object."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        is_cut = error.msg.startswith("Unterminated") or not text[error.pos :].strip()
        why = f"cut short after {len(text)} characters" if is_cut else f"not valid JSON at character {error.pos + 1}"
        raise UsageError(
            f"not a recipe: the text is {why}",
            hint="use the whole text exactly as civman wrote it",
            code=Cause.BAD_RECIPE,
        ) from error
    except (ValueError, RecursionError) as error:
        why = "the JSON is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(
            f"not a recipe: {why}", hint="use the whole text exactly as civman wrote it", code=Cause.BAD_RECIPE
        ) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object contains the same name twice")
    return value


def read_value(kind: Any, value: object, where: str) -> Any:
    """Convert a JSON value to the type `kind`. `where`: the value's place in the document, for error messages.

    Raises: UsageError.
    """
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else read_value(get_args(kind)[0], value, where)
    if is_dataclass(kind):
        return read_object(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, "a list")
        return tuple(read_value(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is Sha256:
        try:
            return sha256_from(value if isinstance(value, str) else "")
        except ValueError as error:
            raise _wrong(where, "a SHA-256") from error
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise _wrong(where, {str: "text", int: "a whole number", bool: "true or false"}.get(kind, "a number"))
    return value


def read_object(kind: Any, value: object, where: str) -> Any:
    """Convert a JSON object to the dataclass `kind`, with all entries required and no others allowed.

    Raises: UsageError (`bad-recipe`).
    """
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object")
    hints, known = get_type_hints(kind), {field.name for field in fields(kind)}
    if unknown := sorted(map(str, value.keys() - known)):
        raise UsageError(f"not a recipe: unknown entry `{where}.{unknown[0]}`", code=Cause.BAD_RECIPE)
    # a recipe must be complete: defaults are not applied when it is read
    if missing := sorted(known - value.keys()):
        raise UsageError(f"not a recipe: `{where}.{missing[0]}` is missing", code=Cause.BAD_RECIPE)
    return kind(**{name: read_value(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _wrong(where: str, wanted: str) -> UsageError:
    return UsageError(f"not a recipe: `{where}` is not {wanted}", code=Cause.BAD_RECIPE)
