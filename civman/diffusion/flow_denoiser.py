"""Wrap a flow-matching transformer for the samplers: from noisy latents to a guided, denoised prediction."""

from typing import Any

from torch import Tensor

from civman.diffusion.denoiser import Denoiser, Encoded, Moment, Prompts, _Plan
from civman.diffusion.families.flow_family import Instant
from civman.diffusion.loader import LoadedModel
from civman.diffusion.noise_levels import NoiseLevels


class FlowDenoiser(Denoiser):
    """As `Denoiser`, for a model that predicts velocities: clean = x − σ · v.

    `guidance_embedded` is the scale that the model embeds; classifier-free guidance is added if its scale is not 1.
    """

    def __init__(self, model: LoadedModel, prompt: Prompts, guidance_embedded: float, **options: Any) -> None:
        super().__init__(model, prompt, NoiseLevels.of_model(), **options)
        self._embedded = guidance_embedded

    def _answers(self, seen: Tensor, sigma: float, plan: Any) -> list[Tensor]:
        family: Any = self._model.family
        at = Instant(seen, sigma, self._embedded)
        return [family.velocity(self._model.components, at, encoded) for encoded in plan.calls]

    def _clean(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        return x - answer * sigma

    def _plan(self, moment: Moment) -> Any:
        def placed(text: Encoded) -> Encoded:
            pooled = None if text.pooled is None else text.pooled.to(self._model.device, self._dtype)
            return Encoded(text.context.to(self._model.device, self._dtype), pooled)

        calls: list[Any] = [placed(text) for text in moment.conds]
        if moment.uncond is not None and self._guidance.asks_negative(moment.weights):
            calls.append(placed(moment.uncond))
        return _Plan(calls, moment.weights)
