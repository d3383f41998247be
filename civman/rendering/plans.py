"""What planning settles and what rendering gives: plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from civman.domain.digests import Sha256
from civman.domain.recipe import Recipe
from civman.render.memory import Estimate, MemoryPlan


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a plan. `role` is "checkpoint", "lora", "embedding", "vae", "picture" or "mask"."""

    role: str
    name: str
    sha256: Sha256
    path: Path


@dataclass(frozen=True, slots=True)
class Planned:
    """A recipe that can be rendered: every file found and proven, every question asked. `notices` are for people."""

    recipe: Recipe
    files: tuple[PlannedFile, ...]
    memory: Estimate
    notices: tuple[str, ...] = ()
    allow_partial: bool = False
    """Be content where only a part of an adapter applies."""

    @property
    def needed_bytes(self) -> int:
        """About what it takes where it computes, with everything in place there."""
        return self.memory.needed(MemoryPlan.RESIDENT)

    def path(self, sha256: Sha256) -> Path:
        """Where the file with this digest is. Raises: KeyError."""
        return next(file.path for file in self.files if file.sha256 == sha256)

    def name(self, sha256: Sha256) -> str:
        """What people call it."""
        return next(file.name for file in self.files if file.sha256 == sha256)


@dataclass(frozen=True, slots=True)
class Applied:
    """What one adapter did: how many of the model's modules it changed, and which of its own found nothing."""

    name: str
    sha256: str
    scale: float
    text_scale: float
    kinds: tuple[str, ...]
    matched: int
    unmatched: tuple[str, ...]
    norms: Mapping[str, float]
    """Component → Frobenius norm of what was added to its weights."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """One picture that was made and kept.

    `recipe` makes this picture again: of one picture, or of the batch it was computed in (`seed` tells which).
    `environment` is what else decides the bits: versions, device, threads.
    """

    path: Path
    seed: int
    pixel_sha256: str
    recipe: Recipe
    environment: Mapping[str, str | int]
    notes: tuple[str, ...] = ()
    applied: tuple[Applied, ...] = ()
