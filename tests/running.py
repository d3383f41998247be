"""What a command did, and where the fixtures are."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parent.parent.parent / "shared"
"""Recorded fixtures that are not part of the repository; a clone by itself does not have them."""
OWN_ANSWERS = Path(__file__).parent / "fixtures" / "civitai"
"""Answers of CivitAI's API in its shapes, written for these tests."""


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
