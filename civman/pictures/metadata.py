"""What a picture tells of its making, in one form for all tools; and JSON whose types nobody vouches for."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

_MOST_WHOLE: Final = 2**64
_MOST_JSON: Final = 32 * 1024 * 1024


class Generator(StrEnum):
    """Who wrote the picture's data."""

    CIVMAN = "civman"
    A1111 = "A1111"
    FORGE = "Forge"
    SDNEXT = "SD.Next"
    CIVITAI = "CivitAI"
    COMFYUI = "ComfyUI"
    INVOKEAI = "InvokeAI"
    SWARMUI = "SwarmUI"
    FOOOCUS = "Fooocus"
    RUINED_FOOOCUS = "RuinedFooocus"
    NOVELAI = "NovelAI"


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers and names as the tool wrote them; None where it says nothing. Sizes in pixels, of the first pass."""

    steps: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    cfg: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    clip_skip: int | None = None
    denoising: float | None = None


@dataclass(frozen=True, slots=True)
class Resource:
    """A model that the data names.

    `kind`: checkpoint, lora, embedding, vae, hypernetwork, controlnet, text-encoder, refiner, module or model.
    `hash` is lower-case hex of whatever length was written (AutoV2, AutoV3, SHA-256); `version_id` CivitAI's.
    """

    kind: str
    name: str = ""
    hash: str | None = None
    version_id: int | None = None
    air: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """Prompt, settings and resources of a picture. `notes` say what was not understood, or is told in other words."""

    generator: Generator
    prompt: str = ""
    negative: str = ""
    settings: Settings = Settings()
    resources: tuple[Resource, ...] = ()
    notes: tuple[str, ...] = ()


class Loose:
    """A JSON object read without trust: what is missing or of another type is None or empty."""

    def __init__(self, value: object) -> None:
        """Anything but an object counts as an empty one."""
        self.value: Mapping[str, Any] = value if isinstance(value, dict) else {}

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def text(self, *keys: str) -> str:
        """The first of `keys` that is text with something in it, else ""."""
        return next((item for key in keys if isinstance(item := self.value.get(key), str) and item), "")

    def whole(self, *keys: str) -> int | None:
        """The first of `keys` that is a whole number, also one written as text."""
        return next((found for key in keys if (found := whole(self.value.get(key))) is not None), None)

    def number(self, *keys: str) -> float | None:
        """The first of `keys` that is a number, also one written as text."""
        return next((found for key in keys if (found := number(self.value.get(key))) is not None), None)

    def inner(self, key: str) -> "Loose":
        """An object within."""
        return Loose(self.value.get(key))

    def items(self, key: str) -> list[Any]:
        """A list within."""
        value = self.value.get(key)
        return value if isinstance(value, list) else []


def loads(text: str) -> Any:
    """The JSON a text holds, None where it is none (or absurdly long or deep)."""
    if len(text) > _MOST_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def whole(value: object) -> int | None:
    """A whole number from a number or a text, None where it is none."""
    found = number(value) if not isinstance(value, int) else value
    if found is None or isinstance(value, bool) or found != int(found) or abs(found) > _MOST_WHOLE:
        return None
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        return int(value)  # a float would lose a seed's last digits
    return int(found)


def number(value: object) -> float | None:
    """A number from a number or a text, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > 40:
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
