"""What planning settles and what rendering gives: plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from civman.diffusion.memory_plan import Estimate, MemoryPlan
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.record import Environment, FileName, Record, TypedPrompts

MODEL_FIELDS: Final = ("checkpoint", "vae", "precision", "prediction", "is_zero_snr", "config")
"""The recipe's fields that decide which weights are loaded, and as what; adapters come and go in place."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a plan. `role` is "checkpoint", "lora", "embedding", "vae", "picture" or "mask".

    `model`, `version`: what CivitAI calls them; `autov3`: its digest without the header. Empty: not known.
    """

    role: str
    name: str
    sha256: Sha256
    path: Path
    model: str = ""
    version: str = ""
    autov3: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """A recipe that can be rendered: every file found and proven, every question asked. `notices` are for people."""

    recipe: Recipe
    files: tuple[PlannedFile, ...]
    memory: Estimate
    notices: tuple[str, ...] = ()
    allow_partial: bool = False
    """Be content where only a part of an adapter applies."""
    keeps_noise: bool = False
    """Keep a picture that is nothing but noise, with a note, instead of refusing it."""
    typed: TypedPrompts | None = None
    parent: Sha256 | None = None
    """SHA-256 of the recipe that this one was varied from."""

    @property
    def needed_bytes(self) -> int:
        """About what it takes where it computes, with everything in place there."""
        return self.memory.needed(MemoryPlan.RESIDENT)

    def path(self, sha256: Sha256) -> Path:
        """Where the file with this digest is. Raises: KeyError."""
        return next(file.path for file in self.files if file.sha256 == sha256)

    @property
    def names(self) -> tuple[FileName, ...]:
        """What people call the model files, by digest."""
        return tuple(
            FileName(file.sha256, file.name, file.model, file.version, file.autov3)
            for file in sorted(self.files, key=lambda file: file.sha256)
            if file.role not in ("picture", "mask")
        )

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

    `record.recipe` makes this picture again: of one picture, or of the batch it was computed in (`record.seed` tells
    which). `id` is the library's number for it, None where nobody keeps it in mind.
    """

    path: Path
    record: Record
    applied: tuple[Applied, ...] = ()
    id: int | None = None

    @property
    def recipe(self) -> Recipe:
        """What makes it again."""
        return self.record.recipe

    @property
    def seed(self) -> int:
        """Its own."""
        return self.record.seed

    @property
    def pixel_sha256(self) -> Sha256:
        """SHA-256 of its pixels."""
        return self.record.pixel_sha256

    @property
    def environment(self) -> Environment:
        """What else decides the bits: versions, device, threads."""
        return self.record.environment

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be done to get it."""
        return self.record.notes
