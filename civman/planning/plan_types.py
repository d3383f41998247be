"""The results of planning and rendering as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from civman.diffusion.memory_plan import Estimate, MemoryPlan
from civman.domain.digests import Sha256
from civman.domain.licence import Terms
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.record import Environment, FileName, Record, TypedPrompts

MODEL_FIELDS: Final = ("checkpoint", "vae", "parts", "precision", "prediction", "is_zero_snr", "config")
"""The recipe fields that determine which weights are loaded, and how.

Adapters are not among them, because they can be merged and removed without reloading the model.
"""


PICTURE_ROLES: Final = ("picture", "mask", "control image", "reference picture")
"""The roles of those files of a plan that are images."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a plan. `role` is "checkpoint", "lora", "controlnet" …, or one of `PICTURE_ROLES`.

    `model`, `version`: their names on CivitAI; `autov3`: the start of the file's SHA-256 without its header. An empty
    string means unknown.
    """

    role: str
    name: str
    sha256: Sha256
    path: Path
    model: str = ""
    version: str = ""
    autov3: str = ""
    weights: str = ""
    """How the weights are stored, such as "UNet fp8 with scales, rest fp16"."""
    copy: Path | None = None
    """The path for a pickle's safetensors copy, which might not exist yet; None for all other files."""
    data: bytes | None = field(default=None, repr=False, compare=False)
    """The contents of a control image that was made for this plan and is not stored yet; None for other files."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan: a recipe that can be rendered, and its files, all found and verified. `notices` are for the user."""

    recipe: Recipe
    files: tuple[PlannedFile, ...]
    memory: Estimate
    notices: tuple[str, ...] = ()
    allow_partial: bool = False
    """Whether to apply adapters even if some of their layers do not fit the model."""
    keeps_noise: bool = False
    """Whether to save an image that is nothing but noise, with a remark, instead of raising an error."""
    typed: TypedPrompts | None = None
    parent: Sha256 | None = None
    """The SHA-256 of the recipe of which this plan's recipe is a variation."""
    licence: Terms | None = None
    """The licence terms of the images; None if they were not determined."""

    @property
    def needed_bytes(self) -> int:
        """An estimate of the device memory in bytes that the plan needs if all weights are on the device."""
        return self.memory.needed(MemoryPlan.RESIDENT)

    def path(self, sha256: Sha256) -> Path:
        """The path of the file with this SHA-256. Raises: KeyError."""
        return next(file.path for file in self.files if file.sha256 == sha256)

    @property
    def names(self) -> tuple[FileName, ...]:
        """The names of the model files, sorted by SHA-256."""
        return tuple(
            FileName(file.sha256, file.name, file.model, file.version, file.autov3)
            for file in sorted(self.files, key=lambda file: file.sha256)
            if file.role not in PICTURE_ROLES
        )

    def name(self, sha256: Sha256) -> str:
        """The name of the file with this SHA-256."""
        return next(file.name for file in self.files if file.sha256 == sha256)


@dataclass(frozen=True, slots=True)
class Applied:
    """How one adapter was applied.

    `matched`: how many of the model's modules the adapter changed; `unmatched`: the adapter's modules that fit no
    module of the model.
    """

    name: str
    sha256: str
    scale: float
    text_scale: float
    kinds: tuple[str, ...]
    matched: int
    unmatched: tuple[str, ...]
    norms: Mapping[str, float]
    """For each component, the Frobenius norm of what the adapter added to the weights, at the scale farthest from 0."""
    blocks: Mapping[str, float] = field(default_factory=dict)
    """For each block, named as for block weights, the Frobenius norm of what the adapter added to the weights."""
    keyframes: str = ""
    """How the scale for the UNet changes over the steps, starting with `scale`; "" if it does not change."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """One picture that was rendered and saved.

    `record.recipe` reproduces the picture, either alone or as part of a batch, in which `record.seed` identifies the
    picture. `id` is the picture's number in the library, or None if it is not recorded there.
    """

    path: Path
    record: Record
    applied: tuple[Applied, ...] = ()
    id: int | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe that reproduces the picture."""
        return self.record.recipe

    @property
    def seed(self) -> int:
        """The seed of this picture."""
        return self.record.seed

    @property
    def pixel_sha256(self) -> Sha256:
        """The SHA-256 of the picture's pixels."""
        return self.record.pixel_sha256

    @property
    def environment(self) -> Environment:
        """The facts besides the recipe that determine the exact pixels: versions, device and number of threads."""
        return self.record.environment

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on how the picture was computed, such as a fallback to another precision."""
        return self.record.notes
