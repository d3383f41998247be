"""From a recipe, a loaded model and encoded prompts to pictures.

One loop for text to picture, picture to picture, inpainting and the second pass at a larger size; the arithmetic of
samplers is in `solvers`, the model's side in `denoiser`. Latents are float32 between calls, whatever the UNet
computes in. Picture n depends on seed + n only, not on its neighbours (up to the last bit, see `Recipe.batch_size`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from civman.diffusion import samplers, solvers, vae_codec
from civman.diffusion.denoiser import Conditioning, Denoiser, Known
from civman.diffusion.environment import deterministic
from civman.diffusion.families import Family
from civman.diffusion.guard import check_latents, check_pixels, memory_errors
from civman.diffusion.loader import LoadedModel
from civman.diffusion.noise import PictureNoise, Rng
from civman.diffusion.pixels import Picture, Pixels, composite, finished, latent_mask, resized, to_tensor
from civman.domain.events import OnEvent, Step, ignore
from civman.domain.recipes.recipe import Hires, Recipe
from civman.errors import CannotRender, Cause, UsageError


@dataclass(frozen=True, slots=True)
class Inputs:
    """Pixels that a recipe names by digest: (H, W, 3) uint8, and the mask (H, W) uint8, white to be painted anew."""

    image: Pixels | None = None
    mask: Pixels | None = None


@torch.no_grad()
def render(
    recipe: Recipe,
    model: LoadedModel,
    prompt: Conditioning,
    *,
    inputs: Inputs = Inputs(),
    hires_prompt: Conditioning | None = None,
    on_event: OnEvent = ignore,
) -> list[Picture]:
    """The recipe's pictures, in order of their seeds.

    Args:
        recipe: what to make; its file digests are the caller's affair.
        model: the recipe's checkpoint, adapters already merged.
        prompt: the recipe's prompts, encoded by this model's text encoders.
        inputs: the pixels of `recipe.start`.
        hires_prompt: other conditioning for the second pass; None: the same.
        on_event: hears a `Step` after each of the samplers' steps.

    Raises:
        CannotRender: a picture is no picture, memory ran out, or the model cannot do what the recipe asks.
        UsageError: unknown sampler, or the recipe's start image was not handed in.
    """
    return [picture for batch in iterate(recipe, model, prompt, inputs=inputs, hires_prompt=hires_prompt,
                                         on_event=on_event) for picture in batch]  # fmt: skip


def iterate(
    recipe: Recipe,
    model: LoadedModel,
    prompt: Conditioning,
    *,
    inputs: Inputs = Inputs(),
    hires_prompt: Conditioning | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[list[Picture]]:
    """As `render`, a batch at a time, so that many pictures can be kept as they come."""
    job = _Job(recipe, model, prompt, hires_prompt or prompt, inputs, on_event)
    for first in range(0, recipe.count, recipe.batch_size):
        seeds = [recipe.seed + first + i for i in range(min(recipe.batch_size, recipe.count - first))]
        with torch.no_grad(), deterministic():
            made = job.batch(first, seeds)
        yield made  # outside: what the caller does meanwhile is not under our switches


class _Job:
    """Everything that is the same for all batches of one recipe."""

    def __init__(
        self, recipe: Recipe, model: LoadedModel, prompt: Conditioning, hires_prompt: Conditioning, inputs: Inputs,
        on_event: OnEvent,
    ) -> None:  # fmt: skip
        if recipe.start is not None and inputs.image is None:
            raise UsageError("the recipe starts from a picture, which was not handed in", code=Cause.NO_START_IMAGE)
        if model.family is Family.REFINER and recipe.start is None:
            raise CannotRender(
                "a refiner only works on a picture", hint="give it one to start from", code=Cause.NEEDS_PICTURE
            )
        self._recipe, self._model, self._prompt, self._hires_prompt = recipe, model, prompt, hires_prompt
        self._on_event = on_event
        self._sampler, self._schedule = samplers.parse(recipe.sampler, recipe.schedule)
        self._levels = self._sampler.levels(is_zero_snr=recipe.is_zero_snr)
        self._image, self._mask, self._kept = self._read_start(inputs)

    def batch(self, first: int, seeds: list[int]) -> list[Picture]:
        with memory_errors("computing the picture"):
            return self._batch(first, seeds)

    def _batch(self, first: int, seeds: list[int]) -> list[Picture]:
        recipe = self._recipe
        self._notes: list[str] = []
        noises = [self._noise(seed) for seed in seeds]
        plan, latents = self._first_x(noises)
        known = Known(self._kept, self._mask) if self._kept is not None and self._mask is not None else None
        extra = self._inpaint_input((recipe.width, recipe.height))
        latents = self._sample(latents, plan, noises, self._prompt, (recipe.width, recipe.height), known, extra,
                               first=first, stage="first")  # fmt: skip
        if known is not None:
            latents = latents * known.mask + known.latents * (1 - known.mask)
        check_latents(latents, seeds=seeds)
        if recipe.hires is not None:
            latents = self._second_pass(latents, recipe.hires, seeds, first)
        return self._finish(latents, seeds)

    def _first_x(self, noises: Sequence[PictureNoise]) -> tuple[samplers.Plan, Tensor]:
        recipe = self._recipe
        plan = self._plan(recipe.steps)
        noise = self._start_noise(noises, recipe.width, recipe.height)
        if recipe.start is None or self._image is None:
            return plan, noise * plan.start_scale
        # A1111's count: strength shortens the table, and one step more than its share is taken
        taken = int(min(recipe.start.strength, 0.999) * recipe.steps)
        plan = plan.tail(min(taken + 1, plan.steps))
        kept = self._encoded(self._image)
        if self._mask is not None:
            self._kept = kept
        return plan, kept + noise * plan.sigmas[0]

    def _encoded(self, pixels: Tensor) -> Tensor:
        encoded = vae_codec.encode(self._model, pixels.to(self._model.device))
        self._notes += encoded.notes
        return encoded.latents

    def _decoded(self, latents: Tensor) -> vae_codec.Decoded:
        decoded = vae_codec.decode(self._model, latents)
        self._notes += decoded.notes
        return decoded

    def _second_pass(self, latents: Tensor, hires: Hires, seeds: list[int], first: int) -> Tensor:
        size = (hires.width, hires.height)
        latents = self._enlarged(latents, hires)
        # as many steps as asked for, out of a table long enough that they begin at the wanted strength
        plan = self._plan(int(hires.steps / min(hires.strength, 0.999)))
        plan = plan.tail(min(hires.steps, plan.steps))
        noises = [self._noise(seed) for seed in seeds]
        x = latents + self._start_noise(noises, *size) * plan.sigmas[0]
        x = self._sample(x, plan, noises, self._hires_prompt, size, None, self._inpaint_input(size),
                         first=first, stage="hires")  # fmt: skip
        check_latents(x, seeds=seeds)
        return x

    def _enlarged(self, latents: Tensor, hires: Hires) -> Tensor:
        if hires.upscaler.startswith("latent"):
            mode = hires.upscaler.removeprefix("latent").removeprefix("-") or "bilinear"
            size = (hires.height // 8, hires.width // 8)
            return torch.nn.functional.interpolate(latents, size=size, mode=mode)
        larger = [self._enlarged_pixels(pixels, hires) for pixels in self._decoded(latents).pixels]
        return self._encoded(torch.cat(larger))

    def _enlarged_pixels(self, pixels: Tensor, hires: Hires) -> Tensor:
        if hires.upscaler == "nearest":
            return torch.nn.functional.interpolate(pixels[None] * 2 - 1, size=(hires.height, hires.width))
        eight = finished(pixels, seed=0, rounding="nearest", decoded_in="", notes=())
        return to_tensor(resized(eight.pixels, hires.width, hires.height))

    def _sample(
        self, x: Tensor, plan: samplers.Plan, noises: Sequence[PictureNoise], prompt: Conditioning,
        size: tuple[int, int], known: Known | None, extra: Tensor | None, *, first: int, stage: str,
    ) -> Tensor:  # fmt: skip
        recipe = self._recipe
        calls = len(solvers.evaluations(plan.sampler.solver, plan.sigmas))
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            step, before = (math.ceil(n * plan.steps / calls) for n in (done, done - 1))
            if step != before:
                self._on_event(Step(
                    key="render", step=step, steps=plan.steps, first=first + 1, pictures=len(noises),
                    count=recipe.count, stage=stage,
                ))  # fmt: skip

        denoiser = Denoiser(
            self._model, prompt, self._levels, guidance=recipe.guidance_scale, rescale=recipe.guidance_rescale,
            size=size, known=known, extra=extra, on_call=count,
        )  # fmt: skip
        x = solvers.solve(plan.sampler.solver, x, plan.sigmas, self._step_noise(plan, noises, x), denoiser)
        return x * plan.end_scale

    def _finish(self, latents: Tensor, seeds: list[int]) -> list[Picture]:
        recipe = self._recipe
        decoded = self._decoded(latents)
        pictures = []
        for seed, pixels in zip(seeds, decoded.pixels, strict=True):
            check_pixels(pixels, seed=seed)
            if self._image is not None and self._mask_pixels is not None and recipe.start and recipe.hires is None:
                original = self._image[0].to(pixels.device) / 2 + 0.5
                pixels = composite(pixels, original, self._mask_pixels, recipe.start.mask_blur)
            pictures.append(finished(pixels, seed=seed, rounding=recipe.rounding, decoded_in=decoded.dtype,
                                     notes=tuple(dict.fromkeys(self._notes))))  # fmt: skip
        return pictures

    def _read_start(self, inputs: Inputs) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        recipe = self._recipe
        self._mask_pixels: Pixels | None = None
        if recipe.start is None or inputs.image is None:
            return None, None, None
        width, height = recipe.width, recipe.height
        image = to_tensor(resized(inputs.image, width, height))
        if inputs.mask is None:
            return image, None, None
        self._mask_pixels = resized(inputs.mask, width, height)
        return image, latent_mask(self._mask_pixels, width // 8, height // 8).to(self._model.device), None

    def _inpaint_input(self, size: tuple[int, int]) -> Tensor | None:
        """What a nine-channel checkpoint wants beside the latents: the mask, then the picture without what it hides.

        Without a picture, or at another size than it has, everything is hidden.
        """
        channels = int(self._model.unet.config.in_channels)
        if channels == 4:
            return None
        if channels != 9:
            raise CannotRender(f"a UNet with {channels} input channels is none civman can feed", code=Cause.ODD_INPUT,
                               channels=channels)  # fmt: skip
        width, height = size
        device = self._model.device
        if self._image is None or self._mask is None or size != (self._recipe.width, self._recipe.height):
            # the middle grey that such checkpoints get elsewhere when nothing is to be kept
            hidden, mask = torch.full((1, 3, height, width), 0.5), torch.ones(1, 1, height // 8, width // 8)
        else:
            assert self._mask_pixels is not None
            keep = 1 - (torch.from_numpy(self._mask_pixels.copy()).float() / 255).round()
            hidden, mask = self._image * keep, self._mask
        return torch.cat([mask.to(device), self._encoded(hidden)], dim=1)

    def _plan(self, steps: int) -> samplers.Plan:
        return samplers.plan(self._sampler, self._schedule, steps, self._levels, is_xl=self._model.family.is_xl)

    def _noise(self, seed: int) -> PictureNoise:
        return PictureNoise(seed, rng=Rng(self._recipe.rng), eta_seed_delta=self._recipe.eta_seed_delta)

    def _start_noise(self, noises: Sequence[PictureNoise], width: int, height: int) -> Tensor:
        shape = (int(self._model.vae.config.latent_channels), height // 8, width // 8)
        return torch.stack([noise.start(shape) for noise in noises]).to(self._model.device)

    def _step_noise(
        self, plan: samplers.Plan, noises: Sequence[PictureNoise], x: Tensor
    ) -> Callable[[float, float], Tensor]:
        shape = tuple(x.shape[1:])
        if plan.sampler.noise is samplers.Kind.BROWNIAN:
            low, high = min(s for s in plan.sigmas if s > 0), plan.sigmas[0]
            paths = [noise.brownian(shape, low, high) for noise in noises]
            return lambda here, after: torch.stack([path.noise(here, after) for path in paths]).to(x.device)
        return lambda here, after: torch.stack([noise.next(shape) for noise in noises]).to(x.device)  # noqa: ARG005
