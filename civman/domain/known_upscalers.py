"""Upscaler models that are known by name: the name that A1111 writes into an image, and the model's published files.

An image's metadata names its upscaler but contains no hash, so the name is looked up here first
(`data/upscalers.json`).
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from civman.domain.digests import Sha256


@dataclass(frozen=True, slots=True)
class KnownUpscaler:
    """A published upscaler model: its names in image metadata, its file names without extension, and its licence."""

    names: tuple[str, ...]
    files: tuple[str, ...]
    sha256: tuple[Sha256, ...]
    """The SHA-256 of the model's published files; empty if none is known."""
    licence: str

    @property
    def is_commercial(self) -> bool:
        """Whether the model's licence allows commercial use."""
        return "NC" not in self.licence


def known_upscaler(name: str) -> KnownUpscaler | None:
    """Look up an upscaler by A1111's name for it or by its file name without extension; case does not matter."""
    return _by_name().get(name.strip().casefold())


def upscaler_with(sha256: Sha256) -> KnownUpscaler | None:
    """Look up a published upscaler by the SHA-256 of its file."""
    return next((each for each in _all() if sha256 in each.sha256), None)


@cache
def _all() -> tuple[KnownUpscaler, ...]:
    data = json.loads(files("civman.domain").joinpath("data/upscalers.json").read_text(encoding="utf-8"))
    return tuple(
        KnownUpscaler(
            tuple(entry["names"]), tuple(entry["files"]), tuple(map(Sha256, entry["sha256"])), entry["licence"]
        )
        for entry in data["upscalers"]
    )


@cache
def _by_name() -> dict[str, KnownUpscaler]:
    return {name.casefold(): each for each in _all() for name in (*each.files, *each.names)}
