"""The closed lists of values that CivitAI's validation and its `/enums` endpoint use.

Source: enums.json next to this module, taken from CivitAI's public source and API documentation (August 2026).
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """CivitAI's lists of allowed values, each value spelled exactly as in the API."""

    enums: dict[str, list[str]]
    """The response of `GET /api/v1/enums`."""
    sets: dict[str, tuple[str, ...]]
    """Maps the name of a list ("model_sort", "period" …) to the values that a query parameter may take."""
    air_types: dict[str, str]
    air_ecosystems: dict[str, str]

    @classmethod
    def load(cls) -> "Vocabulary":
        """Load the lists of allowed values (`enums.json`) that are shipped with civman."""
        raw: dict[str, Any] = json.loads(files("civman.demo").joinpath("enums.json").read_text(encoding="utf-8"))
        return cls(
            enums={name: values for name, values in raw.items() if name[0].isupper()},
            sets={name: tuple(values) for name, values in raw.items() if isinstance(values, list)},
            air_types=raw["air_type"],
            air_ecosystems=raw["air_ecosystem"],
        )
