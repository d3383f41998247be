"""The closed lists that CivitAI's validation and its `/enums` answer are made of.

Source: enums.json beside this module, taken from CivitAI's public source and API documentation (August 2026).
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """CivitAI's lists; each word exactly as the API spells it."""

    enums: dict[str, list[str]]
    """The answer of `GET /api/v1/enums`."""
    sets: dict[str, tuple[str, ...]]
    """Values a query parameter may take: "model_sort", "period", "file_format" …"""
    air_types: dict[str, str]
    air_ecosystems: dict[str, str]

    @classmethod
    def load(cls) -> "Vocabulary":
        """The lists that come with the package."""
        raw: dict[str, Any] = json.loads(files("civman.demo").joinpath("enums.json").read_text(encoding="utf-8"))
        return cls(
            enums={name: values for name, values in raw.items() if name[0].isupper()},
            sets={name: tuple(values) for name, values in raw.items() if isinstance(values, list)},
            air_types=raw["air_type"],
            air_ecosystems=raw["air_ecosystem"],
        )
