"""Wrap a flow-matching transformer for the samplers: from noisy latents to a guided, denoised prediction."""

from typing import Any

from torch import Tensor

from civman.diffusion.denoiser import Denoiser, Encoded, Moment, Prompts, _Plan
from civman.diffusion.families.flow_family import Instant
from civman.diffusion.loader import LoadedModel
from civman.diffusion.noise_levels import NoiseLevels
from civman.diffusion.unet_calls import Calls


class FlowDenoiser(Denoiser):
    """As `Denoiser`, for a model that predicts velocities: clean = x − σ · v.

    `guidance_embedded` is the scale that the model embeds; classifier-free guidance is added if its scale is not 1.
    """

    def __init__(self, model: LoadedModel, prompt: Prompts, guidance_embedded: float, **options: Any) -> None:
        options["called_at"] = ()  # each family turns noise levels into times by its own rule
        super().__init__(model, prompt, NoiseLevels.of_model(), **options)
        self._embedded = guidance_embedded

    def _answers(self, seen: Tensor, sigma: float, plan: Any) -> Calls[list[Tensor]]:
        yield from ()  # the model is called here, so images of other recipes are not computed in the same call
        family: Any = self._model.family
        at = Instant(seen, sigma, self._embedded)
        return [family.velocity(self._model.components, at, encoded) for encoded in plan.groups]

    def _clean(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        return x - answer * sigma

    def _plan(self, moment: Moment, batch: int) -> Any:  # noqa: ARG002  # texts are the same for all images
        def placed(text: Encoded) -> Encoded:
            pooled = None if text.pooled is None else text.pooled.to(self._model.device, self._dtype)
            return Encoded(text.context.to(self._model.device, self._dtype), pooled)

        groups: list[Any] = [placed(text) for text in moment.conds]
        if moment.uncond is not None and self._guidance.asks_negative(moment.weights):
            groups.append(placed(moment.uncond))
        return _Plan(tuple(groups), moment.weights)
