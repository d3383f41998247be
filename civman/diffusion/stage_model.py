"""The models of a render's stages, and the switch to the refiner during a pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from civman.diffusion.denoiser import Denoiser, Prompts
from civman.diffusion.flow_levels import FlowLevels
from civman.diffusion.hypernetworks import Hypernetwork
from civman.diffusion.loader import LoadedModel
from civman.diffusion.noise_levels import TRAIN_STEPS, NoiseLevels
from civman.diffusion.samplers import Sampler
from civman.diffusion.unet_calls import Calls
from civman.domain.recipes.recipe import LoraUse
from civman.domain.recipes.refiner import Refiner
from civman.domain.recipes.stages import Stage

SetScales = Callable[[Sequence[float]], None]


@dataclass(frozen=True, slots=True, eq=False)
class StageModel:
    """The model that computes a stage of a render, with the stage's encoded prompts and hypernetworks."""

    model: LoadedModel
    prompt: Prompts
    hypernetworks: Sequence[tuple[Hypernetwork, float]] = ()
    loras: Sequence[LoraUse] = ()
    set_scales: SetScales | None = None
    """Merges `loras` again at new UNet scales, which are passed in the order of `loras`; None if no scale changes over
    the steps.
    """


Stages = Callable[[Stage], StageModel]
"""A function that returns the model of a stage, loading it if necessary.

It may release the previous stage's model, so callers must keep no reference to that model.
"""


def one_model(model: LoadedModel, prompt: Prompts, second: Prompts | None = None, **more: Any) -> Stages:
    """Return stages that all use one model; `second`: the second pass's prompts, if not `prompt`."""
    return lambda stage: StageModel(model, second if stage.is_second and second is not None else prompt, **more)


@dataclass(frozen=True, slots=True)
class Switch:
    """When the refiner takes over from the model that began a pass.

    `total`: the number of evaluations that A1111 counts for the pass.

    Source: A1111 1.6 (switches by step count) and 1.8 (by the timestep of the noise level).
    """

    refiner: Refiner
    sampler: Sampler
    levels: NoiseLevels | FlowLevels
    total: int

    def is_due(self, call: int, sigma: float) -> bool:
        """Whether the refiner computes evaluation number `call` (from 0), which is at noise level `sigma`."""
        if self.refiner.by_steps:
            return call / self.total >= self.refiner.switch_at
        assert isinstance(self.levels, NoiseLevels)
        if self.sampler.own_table:
            # DDIM, PLMS and UniPC count in timesteps; add a small number before truncating, because converting a
            # timestep to a noise level and back is not exact
            time = int(self.levels.time(sigma) + 1e-3)
        else:
            known = self.levels.known  # as in A1111, a level's index counts as its timestep; LCM has only 50 levels
            time = min(range(len(known)), key=lambda place: abs(known[place] - sigma))
        return (TRAIN_STEPS - 1 - time) / TRAIN_STEPS >= self.refiner.switch_at


class RefinedDenoiser:
    """Evaluates the model that begins a pass and, after the switch, the refiner."""

    def __init__(self, first: Denoiser, switch: Switch, refined: Callable[[int], Denoiser]) -> None:
        """Start with the denoiser `first`.

        `refined` builds the refiner's denoiser; its argument is the number of evaluations so far.
        """
        self._denoiser: Denoiser | None = first
        self._switch, self._refined, self._calls = switch, refined, 0
        self._is_refined = False

    def evaluate(self, x: Tensor, sigma: float) -> Calls[Any]:
        """Predict the denoised image as `Denoiser.evaluate` does, yielding the calls of the UNet."""
        if not self._is_refined and self._switch.is_due(self._calls, sigma):
            self._denoiser = None  # release the first model before the refiner is loaded
            self._denoiser, self._is_refined = self._refined(self._calls), True
        assert self._denoiser is not None
        self._calls += 1
        return (yield from self._denoiser.evaluate(x, sigma))
