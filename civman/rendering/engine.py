"""The loaded model that plans are drawn with.

Exactly two things outlast a plan, and both can be asked for: which model is loaded (`Engine.identity`) and which
adapters are merged into its weights (`Engine.merged`). Everything else belongs to one plan (see `draw`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from civman.diffusion import memory_plan, merge_adapters
from civman.diffusion.environment import choose_device, choose_dtype
from civman.diffusion.guard import memory_errors
from civman.diffusion.layer_streaming import SMALL, stream
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.memory_plan import MemoryPlan
from civman.domain.events import Notice, OnEvent
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraUse, Recipe
from civman.planning.plan_types import MODEL_FIELDS, Applied, Planned
from civman.prompts.tokenizer import ClipTokenizer, clip_tokenizer

ENCODERS = ("text_encoder", "text_encoder_2")
"""The text encoders that a model may have, in the order in which their outputs are joined."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Everything in a recipe that decides which weights are loaded and how they are read."""

    values: tuple[object, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The identity of the model that `recipe` needs."""
        return cls(tuple(getattr(recipe, name) for name in MODEL_FIELDS))


@dataclass(frozen=True, slots=True)
class MergedAdapters:
    """The adapters that are in the weights now, with what each of them changed."""

    loras: tuple[LoraUse, ...] = ()
    coverages: tuple[merge_adapters.Coverage, ...] = ()

    def are_those_of(self, planned: Planned) -> bool:
        """Whether the plan's adapters are merged, and no more of them is missing than the plan allows."""
        is_whole = not any(coverage.unmatched for coverage in self.coverages)
        return self.loras == planned.recipe.loras and (is_whole or planned.allow_partial)

    def applied(self) -> tuple[Applied, ...]:
        """What each adapter changed, as a report."""
        return tuple(_applied(*each) for each in zip(self.coverages, self.loras, strict=True))


class Engine:
    """A model on a device. Use it from one thread; `merge` is the only method that changes it."""

    def __init__(self, planned: Planned, machine: Machine, on_event: OnEvent) -> None:
        """Load the plan's model and merge the plan's adapters.

        Raises: CannotRender: not enough memory, or the file is no usable checkpoint. Incompatible: an adapter does not
            fit the model.
        """
        recipe = planned.recipe
        self.identity = ModelIdentity.of(recipe)
        self.device = choose_device(machine.device)
        self.memory_plan = _memory_plan(planned, self.device, machine, on_event)
        self.merged = MergedAdapters()
        by_layer = self.memory_plan is MemoryPlan.LAYER_BY_LAYER
        with memory_errors("loading the model"):
            self.model: LoadedModel = load(
                planned.path(recipe.checkpoint),
                device="cpu" if self.memory_plan is MemoryPlan.ONE_AT_A_TIME else self.device,
                dtype=choose_dtype(self.device, recipe.precision),
                vae=planned.path(recipe.vae) if recipe.vae else None,
                config=json.loads(recipe.config) if recipe.config else None,
                prediction=recipe.prediction,
                is_zero_snr=recipe.is_zero_snr,
                leaves=SMALL if by_layer else None,
            )
        self._later = stream(self.model) if by_layer else None
        self.tokenizers = _tokenizers(self.model)
        with memory_errors("merging the adapters"):
            self.merge(planned)
        if self.memory_plan is not MemoryPlan.RESIDENT:
            memory_plan.apply(self.memory_plan, self.model, self.device)

    @property
    def encoders(self) -> list[Any]:
        """The model's text encoders, in their order."""
        return [self.model.components[name] for name in ENCODERS if name in self.model.components]

    def serves(self, planned: Planned) -> bool:
        """Whether the plan can be drawn with this model, at most after `merge`.

        Weights that move between the CPU and the device cannot be merged again in place: then the adapters must be
        those that are merged already.
        """
        is_same = ModelIdentity.of(planned.recipe) == self.identity
        return is_same and (self.memory_plan is not MemoryPlan.ONE_AT_A_TIME or self.merged.are_those_of(planned))

    def merge(self, planned: Planned) -> None:
        """Make the plan's adapters the merged ones, starting from the bits of the file; no others stay merged.

        Raises: Incompatible: an adapter does not fit the model; then none is merged.
        """
        if self.merged.are_those_of(planned):
            return
        model, loras = self.model, planned.recipe.loras
        merge_adapters.restore(model.components, model.base_tensor, self.merged.coverages)
        self.merged = MergedAdapters()
        coverages = merge_adapters.apply(
            {name: model.components[name] for name in ("unet", *ENCODERS) if name in model.components},
            model.base_tensor,
            [
                merge_adapters.Adapter(
                    planned.path(use.sha256), use.sha256, use.scale, use.text_scale, planned.name(use.sha256)
                )
                for use in loras
            ],
            allow_partial=planned.allow_partial,
            unused=model.unused_layers,
            done_with=model.forget,
            later=self._later,
        )
        self.merged = MergedAdapters(loras, tuple(coverages))


def _memory_plan(planned: Planned, device: Any, machine: Machine, on_event: OnEvent) -> MemoryPlan:
    """The plan that the user chose. A CPU streams layers from the file if all weights need over half of free memory.

    The image is then the same to the byte; it starts sooner, and each step takes slightly longer.
    """
    free, needed = memory_plan.available_bytes(device), planned.memory.needed(MemoryPlan.RESIDENT)
    if free is None or device.type == "cpu":
        is_short = free is not None and free < 2 * needed
        return MemoryPlan.LAYER_BY_LAYER if machine.low_vram or is_short else MemoryPlan.RESIDENT
    if machine.low_vram:
        return planned.memory.plan(free)
    if 0 < free < needed:
        words = f"about {needed / 2**30:.1f} GiB are needed on {device}, {free / 2**30:.1f} are free"
        on_event(Notice("render", f"{words}: --low-vram needs less"))
    return MemoryPlan.RESIDENT


def _tokenizers(model: LoadedModel) -> Sequence[ClipTokenizer]:
    shared = clip_tokenizer()
    return [
        shared.padded_with(int(model.configs[name]["pad_token_id"])) for name in ENCODERS if name in model.components
    ]


def _applied(coverage: merge_adapters.Coverage, use: LoraUse) -> Applied:
    return Applied(
        coverage.name, coverage.sha256, use.scale, use.text_scale, coverage.kinds, len(coverage.matched),
        tuple(f"{each.module}: {each.reason}" for each in coverage.unmatched), coverage.norms,
    )  # fmt: skip
