"""Wraps a flow-matching transformer for the samplers: computes a guided, denoised prediction from noisy latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from civman.diffusion.denoiser import Denoiser, Encoded, Moment, Prompts, _Plan
from civman.diffusion.families.flow_family import FlowEncoded, Instant
from civman.diffusion.loader import LoadedModel
from civman.diffusion.noise_levels import NoiseLevels
from civman.diffusion.unet_calls import Calls


@dataclass(frozen=True, slots=True, eq=False)
class FlowCall:
    """One call of a transformer for a batch of B images and one prompt, whose context is (1 or B, tokens, width)."""

    model: LoadedModel
    at: Instant
    text: FlowEncoded
    prompts: int = 1

    @property
    def key(self) -> tuple[object, ...]:
        """Return a key that is equal for calls that can be joined into one."""
        return (self.at.x.shape, self.text.context.shape, *(each.shape for each in self.at.references))

    def joined(self, calls: Sequence["FlowCall"]) -> "FlowCall":
        """Join calls with equal keys into one call of the transformer."""
        at = Instant(
            torch.cat([call.at.x for call in calls]),
            tuple(call.at.sigmas[0] for call in calls),
            tuple(call.at.guidances[0] for call in calls),
            tuple(map(torch.cat, zip(*(call.at.references for call in calls), strict=True))),
        )
        pooled = None if self.text.pooled is None else torch.cat([call.text.pooled for call in calls])
        return FlowCall(self.model, at, FlowEncoded(torch.cat([call.text.context for call in calls]), pooled))

    def answer(self, unet: Any) -> Tensor:  # noqa: ARG002  # the family calls the transformer in its own way
        """Call the transformer and return the predicted velocity."""
        family: Any = self.model.family
        velocity: Tensor = family.velocity(self.model.components, self.at, self.text)
        return velocity


class FlowDenoiser(Denoiser):
    """Computes the denoised prediction with a model that predicts the velocity: clean = x − σ · v.

    `guidance_embedded`: the distilled guidance scale, which the model takes as an input. If the scale of
    classifier-free guidance is not 1, classifier-free guidance is applied in addition. `edit_images`: the latents of
    the reference images that the model reads.
    """

    def __init__(
        self, model: LoadedModel, prompt: Prompts, guidance_embedded: float, edit_images: Sequence[Tensor],
        **options: Any,
    ) -> None:  # fmt: skip
        # do not compute timesteps in advance, because each family converts noise levels by its own rule
        options["called_at"] = ()
        super().__init__(model, prompt, NoiseLevels.of_model(), **options)
        self._embedded, self._shown = guidance_embedded, tuple(edit_images)

    def _answers(self, seen: Tensor, sigma: float, plan: Any) -> Calls[list[Tensor]]:
        answers: list[Tensor] = []
        for encoded in plan.groups:
            at = Instant(seen, (sigma,), (self._embedded,), self._shown)
            answers.append((yield FlowCall(self._model, at, FlowEncoded(encoded.context, encoded.pooled))))
        return answers

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
