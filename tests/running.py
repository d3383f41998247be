"""What a command did, and where the workshop's fixtures are."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parent.parent.parent / "shared"
"""Fixtures of the workshop; a public clone does not have them."""


@dataclass(frozen=True)
class Run:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Civman = Callable[..., Run]
"""Runs a command as a person would: `civman("list", "--json")`."""
