"""A common form for the metadata that programs write into images, and tools to read JSON from untrusted sources."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

_MOST_WHOLE: Final = 2**64
_MOST_JSON: Final = 32 * 1024 * 1024


class Generator(StrEnum):
    """The program that wrote the metadata."""

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
    """The settings of an image as its program wrote them; missing settings are None.

    Width and height are those of the first pass, in pixels.
    """

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
    """A model that the metadata names.

    `kind`: checkpoint, lora, embedding, vae, hypernetwork, controlnet, text-encoder, refiner, hires-checkpoint, module
    or model. `hash` is lower-case hex of the length that was written (AutoV2, AutoV3, SHA-256); `version_id` is
    CivitAI's id of the model version.
    """

    kind: str
    name: str = ""
    hash: str | None = None
    version_id: int | None = None
    air: str | None = None
    weight: float | None = None
    text_weight: float | None = None
    """The weight of a LoRA for the text encoders, if it differs from `weight`."""


@dataclass(frozen=True, slots=True)
class PictureMetadata:
    """Prompt, settings and models of an image. `notes` report what civman did not understand, ignored or translated."""

    generator: Generator
    prompt: str = ""
    negative: str = ""
    settings: Settings = Settings()
    resources: tuple[Resource, ...] = ()
    notes: tuple[str, ...] = ()


class Loose:
    """A JSON object from an untrusted source. A value that is missing or of the wrong type is read as None or empty."""

    def __init__(self, value: object) -> None:
        """Wrap a parsed JSON value; a value that is not an object counts as an empty object."""
        self.value: Mapping[str, Any] = value if isinstance(value, dict) else {}

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def text(self, *keys: str) -> str:
        """The value of the first of `keys` that is a non-empty string; "" if there is none."""
        return next((item for key in keys if isinstance(item := self.value.get(key), str) and item), "")

    def whole(self, *keys: str) -> int | None:
        """The value of the first of `keys` that is an integer or a string with an integer; None if there is none."""
        return next((found for key in keys if (found := whole(self.value.get(key))) is not None), None)

    def number(self, *keys: str) -> float | None:
        """The value of the first of `keys` that is a number or a string with a number; None if there is none."""
        return next((found for key in keys if (found := number(self.value.get(key))) is not None), None)

    def inner(self, key: str) -> "Loose":
        """The object that is the value of `key`; an empty one if there is none."""
        return Loose(self.value.get(key))

    def items(self, key: str) -> list[Any]:
        """The list that is the value of `key`; an empty one if there is none."""
        value = self.value.get(key)
        return value if isinstance(value, list) else []


def loads(text: str) -> Any:
    """Parse a JSON text; None if it is invalid, extremely long or extremely nested."""
    if len(text) > _MOST_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def whole(value: object) -> int | None:
    """Convert a number or a string to an integer; None if it is not an integer."""
    found = number(value) if not isinstance(value, int) else value
    if found is None or isinstance(value, bool) or found != int(found) or abs(found) > _MOST_WHOLE:
        return None
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        return int(value)  # parse an integer directly, because a float would lose the last digits of a seed
    return int(found)


def number(value: object) -> float | None:
    """Convert a number or a string to a float; None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > 40:
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
