"""Renders one batch of a recipe's images, from noise to pixels.

One loop serves txt2img, img2img, inpainting and the second pass; the samplers' arithmetic is in `solvers`, the
evaluation of the model in `denoiser`. Latents are float32 between UNet calls, whatever dtype the UNet computes in.
Between UNet calls, the CPU never waits for the device: values that the CPU needs are read together with the pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from civman.diffusion import (
    comfyui_start,
    sampler_names,
    samplers,
    sampling_plan,
    second_pass,
    solvers,
    start_picture,
    vae_codec,
)
from civman.diffusion.control_additions import ActiveControl
from civman.diffusion.control_models import ControlModel, active_controls
from civman.diffusion.denoiser import Denoiser, Guidance, Known, Skips
from civman.diffusion.flow_denoiser import FlowDenoiser
from civman.diffusion.flow_levels import FlowLevels
from civman.diffusion.guard import Checks, check_latents, check_pixels, find_noise, refuse_noise
from civman.diffusion.latent_preview import preview_of
from civman.diffusion.latent_tiles import LatentTiles
from civman.diffusion.loader import LoadedModel
from civman.diffusion.noise import BrownianPath, PictureNoise
from civman.diffusion.noise_levels import NoiseLevels, Schedule
from civman.diffusion.pixels import Picture, Pixels, eight_bit, picture_of, put_back
from civman.diffusion.reference_pictures import ActiveReference
from civman.diffusion.samplers import Start
from civman.diffusion.stage_model import RefinedDenoiser, StageModel, Stages, Switch
from civman.diffusion.step_noise import Draw, step_noise
from civman.diffusion.unet_calls import Calls
from civman.diffusion.uploads import sent
from civman.domain.adapters.scale_keyframes import step_reported
from civman.domain.events import OnEvent, Step
from civman.domain.recipes.recipe import ControlUse, Hires, Recipe
from civman.domain.recipes.recipe_limits import COMFYUI_RESIZES, sizes_told
from civman.domain.recipes.stages import Stage, stages_of
from civman.errors import CannotRender, Cause, UsageError


@dataclass(frozen=True, slots=True)
class Inputs:
    """Images that a recipe refers to by digest: (H, W, 3) uint8, and a mask (H, W) uint8, white where to inpaint."""

    image: Pixels | None = None
    mask: Pixels | None = None
    controls: tuple[Pixels, ...] = ()
    """The control images of the recipe's ControlNets, in the ControlNets' order."""


NO_INPUTS: Final = Inputs()
Acting = TypeVar("Acting", ActiveControl, ActiveReference)
Restore = Callable[[Pixels], tuple[Pixels, str]]
"""A function that restores the faces in (H, W, 3) uint8 pixels and returns the new pixels and a note."""


def _with_faces(picture: Picture, restore: Restore) -> Picture:
    """Restore the faces in an image.

    As in A1111, this comes before the preserved part of a start image is composited over the result.
    """
    better, note = restore(picture.pixels)
    return put_back(picture, lambda _: better).noted(note)


@dataclass(frozen=True, slots=True)
class _Method:
    """The sampler, schedule, noise levels and guidance of one pass."""

    recipe: Recipe
    sampler: samplers.Sampler
    schedule: Schedule
    levels: NoiseLevels | FlowLevels
    guidance_scale: float

    @property
    def tuning(self) -> solvers.Tuning:
        """The recipe's settings that the sampler uses."""
        return self.sampler.tuning(self.recipe.sampling, self.recipe.rules)

    def with_levels(self, *, is_zero_snr: bool) -> "_Method":
        """Return the same sampling method with the noise levels of another model."""
        sampling = self.recipe.sampling
        levels = self.sampler.levels(
            is_zero_snr=is_zero_snr, rules=self.recipe.rules, is_half=sampling.half_levels, program=sampling.program
        )
        return replace(self, levels=levels)

    @property
    def solver(self) -> solvers.Solver:
        """The solver that computes the sampler's steps for these noise levels."""
        return sampling_plan.solver_of(self.sampler, self.levels)


class RecipeJob:
    """The state that all batches of one recipe share."""

    def __init__(
        self, recipe: Recipe, stages: Stages, inputs: Inputs, on_event: OnEvent, *, keeps_noise: bool = False
    ) -> None:
        if recipe.start is not None and inputs.image is None:
            raise UsageError(
                "the recipe starts from an input image, but no image was passed", code=Cause.NO_START_IMAGE
            )
        self._recipe, self._on_event, self._keeps_noise = recipe, on_event, keeps_noise
        self.stages = stages
        """Prepares the model of each stage of the recipe."""
        self._stages = stages_of(recipe)
        self._stage: Stage | None = None
        self._now: StageModel | None = None
        self._method = _Method(recipe, *sampler_names.of_recipe(recipe), recipe.guidance_scale)
        self._sampler = self._method.sampler
        self.upscale: second_pass.Upscale | None = None
        self.restore: Restore | None = None
        self.controls: Sequence[tuple[ControlModel, ControlUse, Pixels]] = ()
        self.references: Sequence[ActiveReference] = ()
        self.edit_images: Sequence[Tensor] = ()
        self._tiles: LatentTiles | None = None
        self._start: start_picture.StartPicture | None = None
        if recipe.start is not None and inputs.image is not None:
            prepare = start_picture.prepare if recipe.rules > 1 else start_picture.prepare_1
            prepare = comfyui_start.prepare if recipe.start.resize_mode in COMFYUI_RESIZES else prepare
            self._start = prepare(recipe.start, (recipe.width, recipe.height), inputs.image, inputs.mask)

    @property
    def goes_one_by_one(self) -> bool:
        """Whether to render images one by one, because the steps of an adaptive sampler depend on the whole batch."""
        return self._sampler.is_adaptive

    @property
    def _model(self) -> LoadedModel:
        """The model of the current stage."""
        assert self._now is not None
        return self._now.model

    def _enter(self, stage: Stage) -> None:
        """Release the current stage's model and prepare that of `stage`. Does nothing if `stage` is the current one."""
        if stage is not self._stage:
            self._now = None
            self._now, self._stage = self.stages(stage), stage

    def batch(self, first: int, seeds: list[int]) -> Calls[list[Picture]]:
        """Render images with these seeds, the first of which is the recipe's image number `first`.

        Yields the calls of the UNet. Raises: CannotRender: an output is not a valid image, or the model cannot do what
        the recipe needs.
        """
        recipe, self._stage = self._recipe, None
        self._enter(Stage.FIRST)
        self._tiles = _tiles_of(recipe, self._model.device)
        if self._model.family.needs_picture and recipe.start is None:
            raise CannotRender(
                "a refiner model needs an input image", hint="pass an input image", code=Cause.NEEDS_PICTURE
            )
        self._notes: list[str] = []
        self._checks = Checks(waits=self._model.device.type == "cuda")
        noises = [self._noise(seed) for seed in seeds]
        plan, latents, known = self._first_x(noises, seeds)
        extra = self._inpaint_input((recipe.width, recipe.height))
        latents = yield from self._sample(
            latents, plan, noises, (recipe.width, recipe.height), known, extra, first=first
        )
        if known is not None and known.noise is None:
            latents = latents * known.mask + known.latents * (1 - known.mask)
        check_latents(self._checks, latents, seeds=seeds)
        if recipe.start is None and not self._keeps_noise:
            refuse_noise(self._checks, latents, seeds=seeds, steps=recipe.steps)
        elif recipe.start is None:
            find_noise(self._checks, latents, steps=recipe.steps, tell=lambda _, words: self._notes.append(words))
        if recipe.hires is not None:
            latents = yield from self._second_pass(latents, recipe.hires, seeds, first)
        made = self._finish(latents, seeds)
        self._now = None
        return made

    def _first_x(
        self, noises: Sequence[PictureNoise], seeds: Sequence[int]
    ) -> tuple[samplers.Plan, Tensor, Known | None]:
        recipe = self._recipe
        noise = self._start_noise(noises, recipe.width, recipe.height)
        if recipe.start is None or self._start is None:
            plan = self._plan(self._method, recipe.steps, sigmas=recipe.sampling.sigmas)
            return plan, noise * plan.start_scale, None
        plan = self._plan(self._method, recipe.steps, Start(recipe.start.strength))
        kept = self._encoded(self._start.image)
        if recipe.start.resize_mode == "just resize (latent upscale)":
            kept = torch.nn.functional.interpolate(kept, size=noise.shape[-2:], mode="bilinear")
        known = None
        if self._start.mask is not None:
            mask = sent(self._start.mask, kept.device)
            if recipe.start.masked_content == "latent noise":
                # leave out the variation seed, which in A1111 does not affect this noise
                is_folded = vae_codec.folds_noise(self._model.vae)
                plain = [PictureNoise(seed, rng=recipe.rng, is_folded=is_folded) for seed in seeds]
                fresh = self._start_noise(plain, recipe.width, recipe.height)
                kept = kept * (1 - mask) + fresh * mask
            elif recipe.start.masked_content == "latent nothing":
                kept = kept * (1 - mask)
            is_shown = recipe.rules > 1 and self._sampler.is_variance_preserving
            follows_comfyui = recipe.start.resize_mode in COMFYUI_RESIZES
            known = Known(kept, mask, is_shown, noise if follows_comfyui else None)
        noise = noise * recipe.start.noise_multiplier
        return plan, kept * plan.picture_scale + noise * plan.start_scale, known

    def _encoded(self, pixels: Tensor) -> Tensor:
        encoded = vae_codec.encode(self._model, sent(pixels, self._model.device))
        self._notes += encoded.notes
        return encoded.latents

    def _decoded(self, latents: Tensor) -> vae_codec.Decoded:
        # run the checks now: the CPU is about to wait for these pixels anyway
        self._checks.settle(latents.device)
        decoded = vae_codec.decode(self._model, latents)
        self._notes += decoded.notes
        return decoded

    def _second_pass(self, latents: Tensor, hires: Hires, seeds: list[int], first: int) -> Calls[Tensor]:
        size = (hires.width, hires.height)

        def encode(pixels: Tensor) -> Tensor:
            # as in A1111, load the second pass's checkpoint first, so that its VAE encodes the image
            self._enter(Stage.SECOND)
            return self._encoded(pixels)

        latents = second_pass.enlarged(
            latents, hires, (self._recipe.width, self._recipe.height), rules=self._recipe.rules,
            encode=encode, decode=lambda given: self._decoded(given).pixels,
            upscale=self.upscale,
        )  # fmt: skip
        self._enter(Stage.SECOND)
        scale = self._recipe.guidance_scale if hires.guidance_scale is None else hires.guidance_scale
        method = _Method(self._recipe, *sampler_names.of_second_pass(self._recipe), scale)
        plan = self._plan(method, hires.steps, Start(hires.strength, keeps_steps=True))
        noises = [self._noise(seed if hires.seed is None else hires.seed) for seed in seeds]
        x = latents * plan.picture_scale + self._start_noise(noises, *size) * plan.start_scale
        # as in A1111, SDXL's size conditioning contains the size before the crop
        covers = self._recipe.rules > 2 and not hires.stretches
        told = second_pass.covering((self._recipe.width, self._recipe.height), size) if covers else size
        x = yield from self._sample(
            x, plan, noises, told, None, self._inpaint_input(size), first=first, method=method
        )  # fmt: skip
        check_latents(self._checks, x, seeds=seeds)
        return x

    def _sample(
        self, x: Tensor, plan: samplers.Plan, noises: Sequence[PictureNoise],
        size: tuple[int, int], known: Known | None, extra: Tensor | None, *, first: int,
        method: "_Method | None" = None,
    ) -> Calls[Tensor]:  # fmt: skip
        recipe, sampler, method = self._recipe, plan.sampler, method or self._method
        assert self._stage is not None
        begun = self._stage
        told = 0

        def tell(step: int, clean: Tensor) -> None:
            nonlocal told
            if step > told:
                told = step
                self._on_event(Step(
                    key="render", step=step, steps=plan.steps, first=first + 1, pictures=len(noises),
                    count=recipe.count, stage="hires" if begun.is_second else "first",
                    preview=preview_of(self._model, clean),
                ))  # fmt: skip

        found = recipe.thresholding
        # A1111 before 1.6 counted the steps of the first pass in both passes
        steps = plan.steps * sampler.calls_per_step if found is None or found.counts_calls else recipe.steps
        guidance = Guidance(
            method.guidance_scale * sampler.guidance_factor, recipe.guidance_rescale, sampler.is_cfgpp,
            recipe.rules > 1, found, sampler.is_variance_preserving,
            Skips(recipe.skip_negative_below, recipe.skip_negative_always, recipe.skip_early_guidance),
            recipe.fit_negative, steps, recipe.rescales_velocity,
        )  # fmt: skip
        wanted = None if sampler.is_adaptive else solvers.requests_of(
            method.solver, plan.sigmas, method.tuning, in_pairs=sampler.is_cfgpp
        )  # fmt: skip
        options: dict[str, Any] = {
            "guidance": guidance, "size": size, "known": known, "extra": extra,
            "called_at": () if wanted is None else wanted.evaluations,
            "token_merging": recipe.hires.token_merging if begun.is_second and recipe.hires else recipe.token_merging,
            "on_call": self._counter(plan, wanted, tell),
            "controls": self._acting(plan, wanted, self._active_controls(x)),
            "references": self._acting(plan, wanted, self.references),
            "before_call": self._scaling(plan, wanted, is_hires=begun.is_second),
        }  # fmt: skip
        evaluate = self._evaluation(method, begun, **options)
        draw = self._draw_noise(plan, noises, x)
        with step_noise(draw, None if wanted is None else wanted.noises, x.device) as noise:
            x = yield from solvers.solved(method.solver, x, plan.sigmas, noise, evaluate, method.tuning)
        return x * plan.end_scale

    def _active_controls(self, x: Tensor) -> list[ActiveControl]:
        size = (8 * x.shape[-1], 8 * x.shape[-2])
        return active_controls(self.controls, size, x.device)

    @staticmethod
    def _acting(
        plan: samplers.Plan, wanted: solvers.Requests | None, active: Sequence[Acting]
    ) -> Callable[[int], Sequence[Acting]]:
        """Return a function that maps an evaluation's index to those of `active` that act in this evaluation."""
        if wanted is None or not active:
            return lambda _: active
        calls = len(wanted.evaluations)
        return lambda call: [
            acting for each in active if (acting := each.at(call * plan.steps // calls, plan.steps)) is not None
        ]

    def _scaling(
        self, plan: samplers.Plan, wanted: solvers.Requests | None, *, is_hires: bool
    ) -> Callable[[int], None]:
        """Return a function that takes an evaluation's index and merges the LoRAs at the scales for this evaluation."""
        if not self._recipe.changes_scales or wanted is None:
            return lambda _: None
        calls, steps = len(wanted.evaluations), plan.steps

        def scale(call: int) -> None:
            step, now = step_reported(call, calls, steps), self._now
            if now is not None and now.set_scales is not None:
                now.set_scales([use.scale_at(step, steps, is_hires=is_hires) for use in now.loras])

        return scale

    @staticmethod
    def _counter(
        plan: samplers.Plan, wanted: solvers.Requests | None, tell: Callable[[int, Tensor], None]
    ) -> Callable[[float, Tensor], None]:
        """Return a function that reports each UNet call as a step.

        The step's number is counted or, with adaptive samplers, computed from the noise level.
        """
        if wanted is None:
            high, low = math.log(plan.sigmas[0]), math.log(plan.span[0])
            return lambda sigma, clean: tell(
                min(plan.steps, math.ceil(plan.steps * (high - math.log(sigma)) / (high - low))), clean
            )
        calls, done = len(wanted.evaluations), 0

        def count(_: float, clean: Tensor) -> None:
            nonlocal done
            done += 1
            tell(math.ceil(done * plan.steps / calls), clean)

        return count

    def _finish(self, latents: Tensor, seeds: list[int]) -> list[Picture]:
        recipe = self._recipe
        laid_over = self._start.put_back if self._start is not None and recipe.hires is None else None
        over_pixels = laid_over if recipe.rules == 1 else None
        decoded, arrays = self._read(latents, seeds, over_pixels)
        self._notes += decoded.notes
        notes = tuple(dict.fromkeys(self._notes))
        pictures = [
            picture_of(array, seed=seed, decoded_in=decoded.dtype, notes=notes)
            for seed, array in zip(seeds, arrays, strict=True)
        ]
        if self.restore is not None:
            pictures = [_with_faces(picture, self.restore) for picture in pictures]
        if laid_over is None or recipe.rules == 1:
            return pictures
        return [put_back(picture, laid_over) for picture in pictures]

    def _read(
        self, latents: Tensor, seeds: list[int], laid_over: Callable[[Tensor], Tensor] | None
    ) -> tuple[vae_codec.Decoded, list[Pixels]]:
        """Decode latents and read the images (H, W, 3) and the values of all checks in one copy from the device."""
        for decoded, is_finite in vae_codec.decodings(self._model, latents):
            try:
                if is_finite is not None:
                    self._checks.add(is_finite, _require_finite)
                check_pixels(self._checks, decoded.pixels, seeds=seeds)
                shown = decoded.pixels if laid_over is None else torch.stack([*map(laid_over, decoded.pixels)])
                return decoded, list(self._checks.read_with(eight_bit(shown, self._recipe.rounding)))
            except _OverflowedError:
                continue
        raise AssertionError("unreachable: the last decoding is not checked for an overflow")

    def _inpaint_input(self, size: tuple[int, int]) -> Tensor | None:
        """Build the extra input of a nine-channel inpainting UNet: the mask, and the image without its masked part.

        Without a start image, or at a size other than the recipe's (second pass), the whole image is masked.
        """
        channels = int(self._model.unet.config.in_channels)
        if channels == 4 or self._recipe.flow is not None:
            return None
        if channels != 9:
            raise CannotRender(f"civman does not support a UNet with {channels} input channels", code=Cause.ODD_INPUT,
                               channels=channels)  # fmt: skip
        recipe, (width, height), device = self._recipe, size, self._model.device
        begun = self._start if size == (recipe.width, recipe.height) else None
        # the masked part is mid-grey: 0 in the range -1 … 1, but 0.5 in version 1 of the recipe rules
        shown, hidden = torch.full((1, 3, height, width), 0.0 if recipe.rules > 1 else 0.5), None
        mask = torch.ones(1, 1, height // 8, width // 8)
        if recipe.rules == 1 and begun is not None and begun.hidden is not None and begun.mask is not None:
            shown, mask = begun.image * (1 - begun.hidden), begun.mask
        elif recipe.rules > 1 and begun is not None and recipe.start is not None:
            hidden = torch.ones(1, 1, height, width) if begun.hidden is None else begun.hidden
            if begun.image.shape[-2:] == hidden.shape[-2:]:
                weight = recipe.start.conditioning_weight
                shown = begun.image * (1 - hidden * weight)
            mask = torch.nn.functional.interpolate(hidden, size=mask.shape[-2:])
        return torch.cat([sent(mask, device), self._encoded(shown)], dim=1)

    def _plan(
        self, method: "_Method", steps: int, start: Start | None = None, sigmas: Sequence[float] = ()
    ) -> samplers.Plan:
        return sampling_plan.plan(
            method.sampler, method.schedule, steps, method.levels, is_xl=self._model.family.is_xl, start=start,
            rules=self._recipe.rules, sigmas=sigmas,
        )  # fmt: skip

    def _evaluation(self, method: "_Method", begun: Stage, **options: Any) -> Callable[[Tensor, float], Calls[Any]]:
        """Return a function that evaluates a stage's model, or the refiner once it has taken over."""
        denoiser, refiner = self._denoiser(method, **options), self._recipe.refiner
        if refiner is None or begun.refined not in self._stages:
            return denoiser.evaluate
        switch = Switch(refiner, method.sampler, method.levels, self._counted_steps() * method.sampler.calls_per_step)

        def refined(calls: int) -> Denoiser:
            self._enter(begun.refined)
            zero = refiner.checkpoint.is_zero_snr
            return self._denoiser(method.with_levels(is_zero_snr=zero), calls_before=calls, **options)

        return RefinedDenoiser(denoiser, switch, refined).evaluate

    def _counted_steps(self) -> int:
        """The number of steps that A1111 counts for the current pass."""
        recipe = self._recipe
        if self._stage is not None and self._stage.is_second and recipe.hires is not None:
            return recipe.hires.steps
        return recipe.steps if recipe.start is None else int(min(recipe.start.strength, 0.999) * recipe.steps) + 1

    def _denoiser(self, method: "_Method", size: tuple[int, int], **options: Any) -> Denoiser:
        """Wrap the current stage's model for the samplers."""
        assert self._now is not None
        model, prompt = self._now.model, self._now.prompt
        if self._recipe.flow is not None:
            return FlowDenoiser(model, prompt, self._recipe.flow.guidance, self.edit_images, size=size, **options)
        assert isinstance(method.levels, NoiseLevels)
        told = sizes_told(self._recipe.told_sizes)
        # as in the Tiled Diffusion extension, a second pass is tiled only if it has the size of the first one
        is_tiled = size == (self._recipe.width, self._recipe.height)
        tiles = self._tiles if is_tiled else None
        return Denoiser(model, prompt, method.levels, told=told, size=size, tiles=tiles, **options)

    def _noise(self, seed: int) -> PictureNoise:
        return PictureNoise.of_recipe(self._recipe, seed, is_folded=vae_codec.folds_noise(self._model.vae))

    def _start_noise(self, noises: Sequence[PictureNoise], width: int, height: int) -> Tensor:
        shape = vae_codec.latent_shape(self._model.vae, width, height)
        return sent(torch.stack([noise.start(shape) for noise in noises]), self._model.device)

    def _draw_noise(self, plan: samplers.Plan, noises: Sequence[PictureNoise], x: Tensor) -> Draw:
        shape = tuple(x.shape[1:])
        if plan.sampler.noise is not samplers.Kind.BROWNIAN:
            return lambda here, after: torch.stack([noise.next(shape) for noise in noises])  # noqa: ARG005
        paths: list[BrownianPath] = []

        def draw(here: float, after: float) -> Tensor:
            if not paths:  # create the Brownian paths on first use, because creating them draws random numbers
                upwards = self._recipe.rules == 1
                paths.extend(noise.brownian(shape, *plan.span, falls_upwards=upwards) for noise in noises)
            return torch.stack([path.noise(here, after) for path in paths])

        return draw


def _tiles_of(recipe: Recipe, device: torch.device) -> LatentTiles | None:
    """Return the tiles for the first pass's latents; None if a single tile covers them or the recipe uses no tiles."""
    made, size = recipe.tiled_diffusion, (recipe.width // 8, recipe.height // 8)
    return None if made is None or made.is_single(*size) else LatentTiles(made, size, device)


class _OverflowedError(Exception):
    """The VAE's output in its own dtype is not finite, so the latents must be decoded again in single precision."""


def _require_finite(found: list[float]) -> None:
    if not found[0]:
        raise _OverflowedError
