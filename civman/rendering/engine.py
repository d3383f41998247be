"""The loaded model with which plans are rendered.

From one plan to the next, an engine keeps only its model (`Engine.identity`), the adapters merged into the model's
weights (`Engine.merged`), and caches of encoded texts and pictures. Everything else belongs to one plan (see `draw`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from civman.diffusion import memory_plan, merge_adapters
from civman.diffusion.compiled_regions import CompiledRegions, compiler_of
from civman.diffusion.environment import choose_device, choose_dtype
from civman.diffusion.graphed_calls import CudaRecorder, GraphedCalls
from civman.diffusion.guard import memory_errors
from civman.diffusion.kept_texts import KeptTexts
from civman.diffusion.layer_streaming import SMALL, stream
from civman.diffusion.loader import LoadedModel
from civman.diffusion.memory_plan import MemoryPlan
from civman.diffusion.moving_scales import MovingScales
from civman.diffusion.open_model import load
from civman.domain.events import Notice, OnEvent
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraUse, Recipe
from civman.errors import CannotRender, Cause
from civman.planning.plan_types import MODEL_FIELDS, Applied, Planned

_NO_GAIN = "on a CPU, compiling makes the steps no faster (measured: 1.0 times the speed), but the first image slower"
ENCODERS = ("text_encoder", "text_encoder_2")
"""The text encoders that a model can have, in the order in which their outputs are concatenated."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The values of all recipe fields that determine which weights are loaded, and how they are loaded."""

    values: tuple[object, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The identity of the model that `recipe` needs."""
        return cls(tuple(getattr(recipe, name) for name in MODEL_FIELDS))


@dataclass(frozen=True, slots=True)
class MergedAdapters:
    """The adapters that are currently merged into the weights, and which modules each adapter changed."""

    loras: tuple[LoraUse, ...] = ()
    coverages: tuple[merge_adapters.Coverage, ...] = ()

    def are_those_of(self, planned: Planned) -> bool:
        """Whether exactly the plan's adapters are merged.

        An adapter that was merged only in part counts only if the plan allows partial adapters.
        """
        is_whole = not any(coverage.unmatched for coverage in self.coverages)
        return self.loras == planned.recipe.loras and (is_whole or planned.allow_partial)

    def applied(self) -> tuple[Applied, ...]:
        """Report what each merged adapter changed."""
        return tuple(_applied(*each) for each in zip(self.coverages, self.loras, strict=True))


class Engine:
    """A model on a device. Use it from one thread only. `merge` is the only method that changes it."""

    def __init__(self, planned: Planned, machine: Machine, on_event: OnEvent, *, for_diffusers: bool = False) -> None:
        """Load the plan's model and merge the plan's adapters.

        `for_diffusers`: the model is to be used in pipelines of diffusers.

        Raises: CannotRender: not enough memory, or the file is not a usable checkpoint. Incompatible: an adapter does
            not fit the model.
        """
        recipe = planned.recipe
        self.identity = ModelIdentity.of(recipe)
        self.device = choose_device(machine.device)
        if machine.compiled:
            compiler_of(self.device)
        self.memory_plan = _memory_plan(planned, self.device, machine, on_event)
        self.merged = MergedAdapters()
        self.texts = KeptTexts()
        self.pictures = KeptTexts()
        """A cache of encoded reference pictures: image tokens for positive and for negative prompts, or latents."""
        self._moving: MovingScales | None = None
        by_layer = self.memory_plan is MemoryPlan.LAYER_BY_LAYER
        with memory_errors("loading the model"):
            self.model: LoadedModel = load(
                planned.path(recipe.checkpoint),
                device="cpu" if self.memory_plan is MemoryPlan.ONE_AT_A_TIME else self.device,
                dtype=choose_dtype(self.device, recipe.precision),
                vae=planned.path(recipe.vae) if recipe.vae else None,
                parts={use.role: planned.path(use.sha256) for use in recipe.parts},
                config=json.loads(recipe.config) if recipe.config else None,
                prediction=recipe.prediction,
                is_zero_snr=recipe.is_zero_snr,
                leaves=SMALL if by_layer else None,
                for_diffusers=for_diffusers,
            )
        self._later = stream(self.model) if by_layer else None
        with memory_errors("merging the adapters"):
            self.merge(planned)
        if self.memory_plan is not MemoryPlan.RESIDENT:
            memory_plan.apply(self.memory_plan, self.model, self.device)
        self.compiled = CompiledRegions(self.model.unet, self.device) if machine.compiled else None
        if self.compiled is not None:
            _start_at_once(self.model, self.device, on_event)

    @property
    def encoders(self) -> list[Any]:
        """The model's text encoders, in the order of the constant `ENCODERS`."""
        return [self.model.components[name] for name in ENCODERS if name in self.model.components]

    def serves(self, planned: Planned) -> bool:
        """Whether this engine can render the plan, possibly after `merge` has been called.

        If whole components move between the CPU and the device, adapters cannot be merged again, so exactly the plan's
        adapters must be merged already.
        """
        is_same = ModelIdentity.of(planned.recipe) == self.identity
        return is_same and (self.memory_plan is not MemoryPlan.ONE_AT_A_TIME or self.merged.are_those_of(planned))

    def merge(self, planned: Planned) -> None:
        """Merge exactly the plan's adapters, after restoring the original weights bit for bit.

        Raises: Incompatible: an adapter does not fit the model; in this case no adapter is merged.
        """
        if self.merged.are_those_of(planned):
            return
        model, loras = self.model, planned.recipe.loras
        self._release_moving()
        merge_adapters.restore(model.components, model.base_tensor, self.merged.coverages)
        self.merged = MergedAdapters()
        components = {name: component for name, component in model.components.items() if name != "vae"}
        adapters = [
            merge_adapters.Adapter(
                planned.path(use.sha256), use.sha256, use.peak, use.text_scale, planned.name(use.sha256), use.blocks
            )
            for use in loras
        ]  # fmt: skip
        coverages = merge_adapters.apply(
            components, model.base_tensor, adapters, allow_partial=planned.allow_partial, unused=model.unused_layers,
            sources=model.sources, done_with=model.forget, later=self._later, holds_base=True,
        )  # fmt: skip
        self.merged = MergedAdapters(loras, tuple(coverages))
        if planned.recipe.changes_scales:
            self._moving = MovingScales(
                components, model.base_tensor, adapters, unused=model.unused_layers, sources=model.sources,
                later=self._later,
            )  # fmt: skip

    @property
    def set_scales(self) -> Callable[[Sequence[float]], None] | None:
        """A function that merges the LoRAs again at other UNet scales; None if no scale changes during the steps."""
        return None if self._moving is None else self._moving.set

    def _release_moving(self) -> None:
        if self._moving is not None:
            self._moving.close()
            self._moving = None


def _start_at_once(model: LoadedModel, device: Any, on_event: OnEvent) -> None:
    """Record the calls of a compiled model as CUDA graphs; on a CPU, notify the user that compiling gains little."""
    if device.type == "cuda":
        GraphedCalls(
            model.unet, CudaRecorder(device),
            lambda why: on_event(Notice("render", f"CUDA graphs are not used: {why}")),
        )  # fmt: skip
    else:
        on_event(Notice("render", _NO_GAIN))


def _memory_plan(planned: Planned, device: Any, machine: Machine, on_event: OnEvent) -> MemoryPlan:
    """Choose where the weights are kept.

    On a CPU, layers are streamed from the file if all weights together need more than half of the free memory.
    Streaming changes no pixel; rendering starts sooner, and each step takes slightly longer.
    """
    free, needed = memory_plan.available_bytes(device), planned.memory.needed(MemoryPlan.RESIDENT)
    if machine.compiled:
        if free is not None and 0 < free < needed:
            raise CannotRender(
                f"--compile needs the whole model in memory, about {needed / 2**30:.1f} GiB, but only "
                f"{free / 2**30:.1f} GiB is free", hint="render without --compile", code=Cause.OUT_OF_MEMORY,
                needed=needed, available=free,
            )  # fmt: skip
        return MemoryPlan.RESIDENT
    if free is None or device.type == "cpu":
        is_short = free is not None and free < 2 * needed
        return MemoryPlan.LAYER_BY_LAYER if machine.low_vram or is_short else MemoryPlan.RESIDENT
    if machine.low_vram:
        return planned.memory.plan(free)
    if 0 < free < needed:
        words = (
            f"rendering needs about {needed / 2**30:.1f} GiB on {device}, but only {free / 2**30:.1f} GiB is free; "
            "--low-vram needs less memory"
        )
        on_event(Notice("render", words))
    return MemoryPlan.RESIDENT


def _applied(coverage: merge_adapters.Coverage, use: LoraUse) -> Applied:
    return Applied(
        coverage.name, coverage.sha256, use.scale, use.text_scale, coverage.kinds, len(coverage.matched),
        tuple(f"{each.module}: {each.reason}" for each in coverage.unmatched), coverage.norms,
        coverage.blocks, use.keyframes,
    )  # fmt: skip
