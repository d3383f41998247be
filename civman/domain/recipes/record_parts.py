"""What the records of rendered and upscaled images have in common: file names, the environment, and JSON parsers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from civman.domain.digests import Sha256, sha256_from
from civman.errors import Cause, UsageError

Environment = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class FileName:
    """The name of a file in a recipe. `autov3`: CivitAI's digest of a LoRA without its header, if known."""

    sha256: Sha256
    name: str
    model: str = ""
    version: str = ""
    autov3: str = ""


def names_value(names: Iterable[FileName]) -> list[dict[str, str]]:
    """Convert names to JSON objects."""
    return [
        {"sha256": n.sha256, "name": n.name, "model": n.model, "version": n.version, "autov3": n.autov3} for n in names
    ]


def read_sha256(value: dict[str, Any], name: str) -> Sha256:
    """Read the SHA-256 under this key. Raises: UsageError (`bad-recipe`)."""
    found = value.get(name)
    try:
        return sha256_from(found if isinstance(found, str) else "")
    except ValueError as error:
        raise UsageError(f"not a recipe: `{name}` is not a SHA-256", code=Cause.BAD_RECIPE) from error


def read_whole(value: dict[str, Any], name: str) -> int:
    """Read the integer under this key. Raises: UsageError (`bad-recipe`)."""
    found = value.get(name)
    if type(found) is not int:
        raise UsageError(f"not a recipe: `{name}` is not a whole number", code=Cause.BAD_RECIPE)
    return found


def read_list(value: dict[str, Any], name: str) -> list[Any]:
    """Read the list under this key; empty if the key is missing. Raises: UsageError (`bad-recipe`)."""
    found = value.get(name, [])
    if not isinstance(found, list):
        raise UsageError(f"not a recipe: `{name}` is not a list", code=Cause.BAD_RECIPE)
    return found


def read_environment(value: dict[str, Any]) -> Environment:
    """Read the environment of a record. Raises: UsageError (`bad-recipe`)."""
    found = value.get("environment")
    if not isinstance(found, dict) or not all(type(item) in (str, int) for item in found.values()):
        raise UsageError("not a recipe: `environment` is invalid", code=Cause.BAD_RECIPE)
    return found


def read_names(value: dict[str, Any]) -> tuple[FileName, ...]:
    """Read the names of the files of a record. Raises: UsageError (`bad-recipe`)."""
    names = []
    for item in read_list(value, "names"):
        if not isinstance(item, dict):
            raise UsageError("not a recipe: `names` has an invalid entry", code=Cause.BAD_RECIPE)
        rest = [str(item.get(key, "")) for key in ("name", "model", "version", "autov3")]
        names.append(FileName(read_sha256(item, "sha256"), *rest))
    return tuple(names)


def read_notes(value: dict[str, Any]) -> tuple[str, ...]:
    """Read the notes for the user that a record contains. Raises: UsageError (`bad-recipe`)."""
    return tuple(str(note) for note in read_list(value, "notes"))
