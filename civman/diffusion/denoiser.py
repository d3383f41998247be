"""Wraps the UNet for the samplers: computes a guided, denoised prediction from noisy latents and their noise level."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from civman.diffusion import threshold_guidance, unet_calls
from civman.diffusion.control_additions import ActiveControl, total
from civman.diffusion.latent_tiles import LatentTiles
from civman.diffusion.loader import LoadedModel
from civman.diffusion.noise_levels import NoiseLevels
from civman.diffusion.reference_pictures import ActiveReference
from civman.diffusion.unet_calls import Calls, UnetCall
from civman.diffusion.uploads import sent
from civman.domain.recipes.thresholding import Thresholding


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One encoded text: its context (1, tokens, width) and, for SDXL, its pooled vector (1, width)."""

    context: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """The conditioning of one model evaluation: the positive texts with their weights, and the negative prompt."""

    conds: tuple[Encoded, ...]
    weights: tuple[float, ...]
    uncond: Encoded | None


class Prompts(Protocol):
    """The interface of one pass's conditioning; `call` is the number of a model evaluation, counted from 0."""

    def key_at(self, call: int) -> tuple[int, ...]:
        """Return a key that is equal for evaluations with the same conditioning."""
        ...

    def at(self, call: int) -> Moment:
        """Return the conditioning of evaluation `call`."""
        ...


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The encoded prompt and negative prompt of one image: contexts (1, tokens, width), pooled (1, width) for SDXL.

    If the two contexts differ in length, they are not padded; the UNet is called separately for each. If `uncond` is
    None, the negative prompt is never evaluated, whatever the guidance scale.
    """

    cond: Tensor
    uncond: Tensor | None = None
    pooled: Tensor | None = None
    uncond_pooled: Tensor | None = None

    def key_at(self, call: int) -> tuple[int, ...]:  # noqa: ARG002  # the same in all evaluations
        """Return a key that is equal for all evaluations, since the conditioning never changes."""
        return ()

    def at(self, call: int) -> Moment:  # noqa: ARG002
        """Return the same conditioning for every evaluation."""
        uncond = None if self.uncond is None else Encoded(self.uncond, self.uncond_pooled)
        return Moment((Encoded(self.cond, self.pooled),), (1.0,), uncond)


@dataclass(frozen=True, slots=True)
class Known:
    """The latents to preserve when inpainting, and how.

    By default, the denoised prediction is replaced with `latents` (1 or B, 4, h, w) where `mask` (1, 1, h, w) is 0.
    With `is_shown`, only the UNet's input is replaced there, with `latents` without noise: A1111 inpaints this way with
    DDIM, PLMS and UniPC. With `noise` (B, 4, h, w), both are replaced there: the input with `latents` plus this noise,
    and the prediction with `latents`. ComfyUI inpaints this way.
    """

    latents: Tensor
    mask: Tensor
    is_shown: bool = False
    noise: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Skips:
    """When the negative prompt is skipped: in every second evaluation whose noise level is below `below`.

    `always`: skip it in every evaluation below that level. `early`: also skip it in the first evaluations, up to this
    fraction (0 to 1) of all evaluations.
    """

    below: float = 0.0
    always: bool = False
    early: float = 0.0

    def at(self, call: int, steps: int, sigma: float) -> bool:
        """Whether evaluation `call` (of `steps`), at this noise level, skips the negative prompt."""
        if self.early and call / max(steps, 1) <= self.early:
            return True
        return (call % 2 == 1 or self.always) and sigma < self.below


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance: unguided + (guided − unguided) · `scale`.

    With a scale of 1, the negative prompt is not needed.

    `rescale`: to what extent (0 to 1) the standard deviation of the guided prediction is reset to that of the positive
    prompt's prediction. `in_pairs`: return the unguided prediction together with the guided one. `follows_below_1`:
    whether a scale below 1 is used as given; if false, as in version 1 of the recipe rules, it counts as 1.
    """

    scale: float
    rescale: float = 0.0
    in_pairs: bool = False
    follows_below_1: bool = True
    thresholding: Thresholding | None = None
    thresholds_noise: bool = False
    """Whether dynamic thresholding is applied to the predicted noise (for DDIM, PLMS and UniPC) instead of the denoised
    prediction.
    """
    skips: Skips = Skips()
    fits_negative: bool = False
    """Whether the negative context is cut or extended to the length of the first positive context."""
    steps: int = 0
    """The total number of steps or evaluations of the pass; dynamic thresholding and `skips` depend on the progress."""
    rescales_velocity: bool = False
    """Whether guidance and its rescaling are applied to the velocity (v) even if the model predicts the noise."""

    def asks_negative(self, weights: tuple[float, ...]) -> bool:
        """Whether the UNet must be evaluated for the negative prompt; `weights` are those of the combined prompts."""
        return self.in_pairs or weights != (1.0,) or (self.scale != 1 if self.follows_below_1 else self.scale > 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """k prompts that share one UNet call for B images: contexts (k·B, tokens, width) and SDXL inputs (k·B, width)."""

    contexts: Tensor
    added: Mapping[str, Tensor]
    prompts: int
    positive: tuple[bool, ...]
    """For each prompt, whether it is a positive one (True) or a negative one (False)."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The UNet calls of one evaluation and the weights of the prompts."""

    groups: tuple[_Group, ...]
    weights: tuple[float, ...]


class Denoiser:
    """Calls the UNet and converts its output (ε or v) to the denoised prediction.

    Source: Karras et al. 2022, table 1 (VP).

    `extra` contains the additional input channels of inpainting checkpoints: (1 or B, 5, h, w). `called_at` lists the
    noise levels of the evaluations, if known in advance; their timesteps are sent to the device in one copy. `on_call`
    is called after each evaluation with the noise level and the prediction (B, 4, h, w). `before_call` is called with
    the evaluation's index before each evaluation. `controls` and `references` take the evaluation's index and return
    the control models and reference pictures that act in it.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompt: Prompts,
        levels: NoiseLevels,
        *,
        guidance: Guidance,
        size: tuple[int, int],
        known: Known | None = None,
        extra: Tensor | None = None,
        called_at: Sequence[float] = (),
        token_merging: float = 0.0,
        on_call: Callable[[float, Tensor], None] = lambda *_: None,
        tiles: LatentTiles | None = None,
        told: Sequence[float] = (),
        controls: Callable[[int], Sequence[ActiveControl]] = lambda _: (),
        before_call: Callable[[int], None] = lambda _: None,
        references: Callable[[int], Sequence[ActiveReference]] = lambda _: (),
        calls_before: int = 0,
    ) -> None:
        """Store the settings of one pass.

        `told`: the values of SDXL's size conditioning, in the family's order; if empty, they are derived from `size`.
        `calls_before`: the number of evaluations of this pass that another model has already made.
        """
        self._told = list(told)
        self._unet = model.unet
        self._tiles = tiles
        self._levels = levels
        self._predicts_v = model.prediction == "v_prediction"
        self._guidance = guidance
        self._known = known
        self._extra = extra
        self._token_merging = token_merging
        self._on_call, self._controls, self._before_call = on_call, controls, before_call
        self._references = references
        self._dtype: torch.dtype = next(self._unet.parameters()).dtype
        self._model, self._prompt = model, prompt
        self._calls = calls_before
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._times = self._sent_times(tuple(dict.fromkeys(called_at)))
        self._size = size
        # the size conditioning; sent to the device when the first prompt with a pooled vector is evaluated
        self._sizes: Tensor | None = None

    def __call__(self, x: Tensor, sigma: float) -> Any:
        """Predict the denoised image for x (B, 4, h, w) float32; with `in_pairs`, return (guided, unguided)."""
        return unet_calls.run(self.evaluate(x, sigma), lambda: self._unet)

    def evaluate(self, x: Tensor, sigma: float) -> Calls[Any]:
        """Predict the denoised image for x (B, 4, h, w) float32; with `in_pairs`, return (guided, unguided).

        Yields the calls of the UNet.
        """
        self._before_call(self._calls)
        known, seen = self._known, x
        if known is not None and known.is_shown:
            seen = x * known.mask + known.latents * (1 - known.mask) * math.sqrt(sigma**2 + 1)
        elif known is not None and known.noise is not None:
            seen = x * known.mask + (known.latents + known.noise * sigma) * (1 - known.mask)
        plan = self._plan_of_call(sigma, len(x))
        answers = yield from self._answers(seen, sigma, plan)
        thresholding, is_guided = self._guidance.thresholding, len(answers) > len(plan.weights)
        if thresholding is not None and is_guided and not self._guidance.thresholds_noise:
            answers = [self._clean(seen, sigma, answer) for answer in answers]
            wanted = [self._thresholded(answers, plan.weights)]
        else:
            predicts_v = self._predicts_v
            if self._guidance.rescales_velocity and not predicts_v:
                answers, predicts_v = [velocity(seen, sigma, answer) for answer in answers], True
            guided = self._guided(answers, plan.weights)
            wanted = [guided, answers[-1]] if self._guidance.in_pairs else [guided]
            wanted = [
                clean_picture(seen, sigma, answer, predicts_v=True) if predicts_v else self._clean(seen, sigma, answer)
                for answer in wanted
            ]
        cleans = []
        for clean in wanted:
            if known is not None and known.is_shown:
                # apply the predicted noise to x, not to the preserved latents that the model was shown
                clean = clean + (x - seen)
            elif known is not None:
                clean = clean * known.mask + known.latents * (1 - known.mask)
            cleans.append(clean)
        self._on_call(sigma, cleans[0])
        return tuple(cleans) if self._guidance.in_pairs else cleans[0]

    def _answers(self, seen: Tensor, sigma: float, plan: _Plan) -> Calls[list[Tensor]]:
        """Evaluate the model for each prompt of the plan."""
        scaled = seen / math.sqrt(sigma**2 + 1)
        inputs = (
            scaled if self._extra is None else torch.cat([scaled, self._extra.expand(len(seen), -1, -1, -1)], dim=1)
        )
        answers: list[Tensor] = []
        acting, shown = self._controls(self._calls - 1), self._references(self._calls - 1)
        for group in plan.groups:
            latents = scaled.to(self._dtype).repeat(group.prompts, 1, 1, 1) if acting else scaled
            controlled = [
                each.additions(latents, self._time(sigma), group.contexts, group.added, group.positive)
                for each in acting
            ]
            call = UnetCall(
                inputs.to(self._dtype), self._time(sigma), group.contexts, group.added, group.prompts,
                self._token_merging, total(controlled, self._dtype),
                tuple(each.asked(group.positive, len(inputs)) for each in shown),
            )  # fmt: skip
            answer = (yield call) if self._tiles is None else (yield from self._tiles.answer(call))
            answers += answer.chunk(group.prompts)
        return answers

    def _clean(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        """Convert an output of the model to the denoised prediction."""
        return clean_picture(x, sigma, answer, predicts_v=self._predicts_v)

    def _time(self, sigma: float) -> Tensor:
        """Return the UNet's timestep for this noise level, as a float32 scalar tensor.

        Timesteps that were not sent to the device in advance, such as those of adaptive samplers, are sent now.
        """
        if (found := self._times.get(sigma)) is None:
            found = sent(torch.tensor(self._levels.time(sigma), dtype=torch.float32), self._model.device)
        return found

    def _sent_times(self, called_at: Sequence[float]) -> dict[float, Tensor]:
        if not called_at:
            return {}
        times = torch.tensor([self._levels.time(sigma) for sigma in called_at], dtype=torch.float32)
        return dict(zip(called_at, sent(times, self._model.device).unbind(), strict=True))

    def _size_conditioning(self, *, positive: bool) -> Tensor | None:
        """Return SDXL's size conditioning for the positive or the negative prompt: (1, 5 or 6) float32."""
        if self._sizes is None:
            both = [self._model.family.size_conditioning(self._size, positive=each) for each in (True, False)]
            if None in both:
                return None
            both = [self._told if self._told and each and len(each) == len(self._told) else each for each in both]
            self._sizes = sent(torch.tensor(both, dtype=torch.float32), self._model.device)
        return self._sizes[:1] if positive else self._sizes[1:]

    def _plan_of_call(self, sigma: float, batch: int) -> "_Plan":
        """Return the UNet calls of the current evaluation. Evaluations with the same conditioning share one plan."""
        is_skipped = self._guidance.skips.at(self._calls, self._guidance.steps, sigma)
        key = (*self._prompt.key_at(self._calls), int(is_skipped), batch)
        if key not in self._plans:
            moment = self._prompt.at(self._calls)
            self._plans[key] = self._plan(_unguided(moment) if is_skipped else moment, batch)
        self._calls += 1
        return self._plans[key]

    def _plan(self, moment: Moment, batch: int) -> "_Plan":
        """Plan the UNet calls of one evaluation: one for all contexts if they are equally long, else one for each."""
        entries = [self._entry(encoded, positive=True) for encoded in moment.conds]
        if moment.uncond is not None and self._guidance.fits_negative:
            moment = Moment(moment.conds, moment.weights, _fitted(moment.uncond, moment.conds[0]))
        if moment.uncond is not None and self._guidance.asks_negative(moment.weights):
            entries.append(self._entry(moment.uncond, positive=False))
        signs = [number < len(moment.conds) for number in range(len(entries))]
        if len({context.shape for context, _ in entries}) == 1:
            return _Plan((_grouped(entries, batch, signs),), moment.weights)
        separate = zip(entries, signs, strict=True)
        return _Plan(tuple(_grouped([entry], batch, [sign]) for entry, sign in separate), moment.weights)

    def _entry(self, encoded: Encoded, *, positive: bool) -> tuple[Tensor, dict[str, Tensor]]:
        added = {}
        ids = None if encoded.pooled is None else self._size_conditioning(positive=positive)
        if encoded.pooled is not None and ids is not None:
            added = {"text_embeds": encoded.pooled.to(self._model.device, self._dtype), "time_ids": ids}
        return encoded.context.to(self._model.device, self._dtype), added

    def _guided(self, answers: list[Tensor], weights: tuple[float, ...]) -> Tensor:
        if len(answers) == 1:
            return answers[0]
        if self._guidance.thresholding is not None and len(answers) > len(weights):
            return self._thresholded(answers, weights)
        # as in A1111, use the prediction for the first prompt in place of that for a skipped negative prompt
        if len(weights) == len(answers):
            answers = [*answers, answers[0]]
        if weights != (1.0,):
            *conds, uncond = answers
            mixed = uncond.clone()
            for cond, weight in zip(conds, weights, strict=True):
                mixed += (cond - uncond) * (weight * self._guidance.scale)
            return mixed
        cond, uncond = answers
        mixed = uncond + (cond - uncond) * self._guidance.scale
        if self._guidance.rescale:
            # rescale, because strong guidance overexposes models trained to zero terminal SNR (Lin et al. 2023, section
            # 3.4)
            dims = tuple(range(1, cond.ndim))
            fitted = mixed * (cond.std(dim=dims, keepdim=True) / mixed.std(dim=dims, keepdim=True))
            mixed = fitted * self._guidance.rescale + mixed * (1 - self._guidance.rescale)
        return mixed

    def _thresholded(self, answers: list[Tensor], weights: tuple[float, ...]) -> Tensor:
        """Compute the guided prediction with dynamic thresholding."""
        found, (*conds, uncond) = self._guidance.thresholding, answers
        assert found is not None
        direction = sum((cond - uncond) * weight for cond, weight in zip(conds, weights, strict=True))
        share = (self._calls - 1) / max(self._guidance.steps - 1, 1)
        return threshold_guidance.guided(uncond, torch.as_tensor(direction), self._guidance.scale, found, share)


def _grouped(entries: Sequence[tuple[Tensor, dict[str, Tensor]]], batch: int, positive: Sequence[bool]) -> _Group:
    """Join prompts for one call of the UNet: first one prompt's inputs for all images, then the next prompt's."""
    contexts = torch.cat([context.expand(batch, -1, -1) for context, _ in entries])
    names = entries[0][1]
    added = {name: torch.cat([each[name].expand(batch, -1) for _, each in entries]) for name in names}
    return _Group(contexts, added, len(entries), tuple(positive))


def _fitted(uncond: Encoded, cond: Encoded) -> Encoded:
    """Cut a negative context to the positive context's length, or repeat its last vector up to that length."""
    missing = cond.context.shape[1] - uncond.context.shape[1]
    if missing <= 0:
        return Encoded(uncond.context[:, : cond.context.shape[1]], uncond.pooled)
    last = uncond.context[:, -1:].expand(-1, missing, -1)
    return Encoded(torch.cat([uncond.context, last], dim=1), uncond.pooled)


def _unguided(moment: Moment) -> Moment:
    """Return the conditioning of an evaluation without the negative prompt."""
    return Moment(moment.conds, moment.weights, None)


def clean_picture(x: Tensor, sigma: float, answer: Tensor, *, predicts_v: bool) -> Tensor:
    """Convert the model's output (ε, or v with `predicts_v`) to the clean prediction, where x = clean + σ · noise."""
    if not predicts_v:
        return x - answer * sigma
    return x / (sigma**2 + 1) - answer * (sigma / math.sqrt(sigma**2 + 1))


def velocity(x: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """Convert predicted noise to the velocity that a v-prediction model would predict for the same x and σ."""
    return noise * math.sqrt(sigma**2 + 1) - x * (sigma / math.sqrt(sigma**2 + 1))
