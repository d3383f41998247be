"""A diffusers scheduler that runs civman's samplers and schedules, with a config that diffusers' schedulers understand.

Importing this module imports diffusers' schedulers (0.1 s if a model has been loaded, otherwise 2 s). `SchedulerMixin`
must stay importable from here: diffusers looks for it in this module when it loads a saved pipeline.
"""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor

from civman.diffusion import sampler_names, samplers, solvers
from civman.diffusion.denoiser import clean_picture
from civman.diffusion.noise import PictureNoise, Rng
from civman.diffusion.noise_levels import TRAIN_STEPS
from civman.diffusion.pipeline_call import evaluations_per_step, require_pipeline_sampler
from civman.domain.recipes.recipe import RULES, SAMPLING, Recipe
from civman.errors import CannotRender, Cause

__all__ = ["PipelineScheduler", "SchedulerMixin", "model_config"]


def model_config(prediction: str, *, is_zero_snr: bool) -> dict[str, Any]:
    """Describe the noise schedule that a Stable Diffusion model was trained with, in the config keys of diffusers."""
    return {
        "num_train_timesteps": TRAIN_STEPS, "beta_start": SAMPLING.beta_start, "beta_end": SAMPLING.beta_end,
        "beta_schedule": "scaled_linear", "trained_betas": None, "prediction_type": prediction,
        "rescale_betas_zero_snr": is_zero_snr, "timestep_spacing": "linspace", "steps_offset": 1,
        "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that determines a scheduler's results: two schedulers with equal settings give the same images."""

    sampler: str
    schedule: str
    prediction: str
    is_zero_snr: bool
    is_xl: bool
    rng: str
    eta_seed_delta: int
    tuning: solvers.Tuning


class PipelineScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' classes are untyped
    """Runs a civman sampler and schedule in a diffusers pipeline: `pipe.scheduler = PipelineScheduler(…)`.

    There is one timestep for each evaluation of the model, and timesteps are not rounded. The noise that ancestral and
    SDE samplers add to an image is the same as in `library.render` with the seed of the image's generator. However, if
    the pipeline has drawn more than the initial noise from the generator, ancestral noise is drawn from the generator
    in its current state. If something changes the latents between two steps (a callback, diffusers' inpainting), the
    sampler restarts from the changed latents, so a multistep sampler has no earlier steps to use.
    """

    _compatibles = [each.name for each in KarrasDiffusionSchedulers]  # noqa: RUF012  # as in diffusers' own schedulers

    def __init__(
        self, sampler: str = "Euler", schedule: str | None = None, *, prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False, is_xl: bool = False, rng: str = "cpu", eta_seed_delta: int = 0,
        eta: float = SAMPLING.eta, noise_scale: float = SAMPLING.noise_scale, eta_ddim: float = SAMPLING.eta_ddim,
    ) -> None:  # fmt: skip
        """Find the sampler and the schedule by name, and store the settings.

        Raises: CannotRender: diffusers' pipelines do not support the sampler. UsageError: the sampler is unknown.
        """
        self._sampler, self._schedule = sampler_names.parse(sampler, schedule)
        require_pipeline_sampler(self._sampler)
        numbers = replace(SAMPLING, eta=eta, noise_scale=noise_scale, eta_ddim=eta_ddim)
        self.settings = Settings(
            self._sampler.name, self._schedule.value, prediction_type, rescale_betas_zero_snr, is_xl, rng,
            eta_seed_delta, self._sampler.tuning(numbers, RULES),
        )  # fmt: skip
        self._levels = self._sampler.levels(is_zero_snr=rescale_betas_zero_snr)
        self._running: Any = None  # the running solver's generator, or None between runs
        self._x = self._given = torch.empty(0)
        self._asked: list[float] = []
        self._begin = self._done = 0
        self.order = 1
        self.timesteps = torch.empty(0)
        self.init_noise_sigma: float = 1.0
        # pass every value explicitly, because diffusers' `from_config` replaces missing ones with its own defaults
        self.register_to_config(  # type: ignore[no-untyped-call]
            sampler=self._sampler.name, schedule=self._schedule.value, is_xl=is_xl, rng=rng,
            eta_seed_delta=eta_seed_delta, eta=eta, noise_scale=noise_scale, eta_ddim=eta_ddim,
            **model_config(prediction_type, is_zero_snr=rescale_betas_zero_snr),
        )  # fmt: skip

    @classmethod
    def of_recipe(cls, recipe: Recipe, *, is_xl: bool) -> "PipelineScheduler":
        """Create the scheduler for a recipe's sampler, schedule and sampling settings.

        Raises: CannotRender: diffusers' pipelines do not support the sampler.
        """
        return cls(
            recipe.sampler, recipe.schedule, prediction_type=recipe.prediction,
            rescale_betas_zero_snr=recipe.is_zero_snr, is_xl=is_xl, rng=recipe.rng,
            eta_seed_delta=recipe.eta_seed_delta, eta=recipe.sampling.eta, noise_scale=recipe.sampling.noise_scale,
            eta_ddim=recipe.sampling.eta_ddim,
        )  # fmt: skip

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Prepare a run of `num_inference_steps` steps.

        Raises: UsageError: fewer than one step, or more than the model has levels.
        """
        self._plan = samplers.plan(
            self._sampler, self._schedule, num_inference_steps, self._levels, is_xl=self.settings.is_xl
        )
        self._asked = solvers.evaluations(self._sampler.solver, self._plan.sigmas, self.settings.tuning)
        self.timesteps = torch.tensor([self._levels.time(s) for s in self._asked], device=device)
        self.init_noise_sigma = self._plan.start_scale
        order = evaluations_per_step(self._plan, self._asked)
        self.order, self._is_regular = order or 1, order is not None
        self._running = None
        self._begin = self._done = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at the evaluation with this index instead of the first one (img2img).

        Raises: CannotRender: the sampler can only start at its first step.
        """
        if begin_index and not self._is_regular:
            raise CannotRender(
                f"`{self._sampler.name}` cannot start in the middle of its steps in diffusers' pipelines",
                hint="use strength=1, another sampler, or `library.render`", code=Cause.NO_PIPELINE,
            )  # fmt: skip
        self._begin = self._done = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:  # noqa: ARG002
        """Compute the UNet's input: `sample` (B, 4, h, w) divided by √(σ² + 1), at the next evaluation's level σ."""
        return sample / math.sqrt(self._asked[self._done] ** 2 + 1)

    def add_noise(self, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Add noise to `original` (B, 4, h, w) at the noise level of the first of `timesteps`."""
        time = float(timesteps.flatten()[0])
        nearest = min(range(len(self._asked)), key=lambda place: abs(float(self.timesteps[place]) - time))
        return original + noise * self._asked[nearest]

    def step(self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, *, generator: Any = None,
             return_dict: bool = True, **_: Any) -> Any:  # fmt: skip
        """Process the UNet's output for `sample`; the result's `prev_sample` is the UNet's next input before scaling.

        Raises: CannotRender: something changed the latents at a point where the sampler cannot restart from them.
        """
        del timestep
        sigma = self._asked[self._done]
        running = self._solver(sample, generator)
        clean = clean_picture(
            self._x.float(), sigma, model_output.float(), predicts_v=self.settings.prediction == "v_prediction",
        )  # fmt: skip
        result: Any
        try:
            result, _level = running.send(clean)
        except StopIteration as stop:
            result = stop.value * self._plan.end_scale
        self._done += 1
        self._x, self._given = result, result.to(sample.dtype)
        return SimpleNamespace(prev_sample=self._given, pred_original_sample=clean) if return_dict else (self._given,)

    def __len__(self) -> int:
        """The number of timesteps that the model was trained on."""
        return TRAIN_STEPS

    def _solver(self, sample: Tensor, generator: Any) -> Any:
        """Return the running solver, whose x is `sample`.

        A new solver is started if none is running or something changed the latents.
        """
        if self._running is not None and torch.equal(self._given, sample):
            return self._running
        if self._running is None:
            self._step_noise = self._noise(sample, generator)
        elif not self._is_regular or (self._done - self._begin) % self.order:
            raise CannotRender(
                f"the latents were changed within a step of `{self._sampler.name}`, which cannot continue from there",
                hint="change the latents only between whole steps, or use a sampler that evaluates the "
                "model once per step, such as Euler",
                code=Cause.NO_PIPELINE,
            )
        self._x = sample.float()
        sigmas = self._plan.sigmas[self._done // self.order :]
        self._running = self._sampler.solver(self._x, sigmas, self._step_noise, self.settings.tuning)
        next(self._running)
        return self._running

    def _noise(self, x: Tensor, generator: Any) -> solvers.Noise:
        """Return the function that draws the steps' noise (B, 4, h, w), with a separate stream for each image."""
        shape, count = tuple(x.shape[1:]), len(x)
        if generator is None:
            seeds = [int(torch.randint(2**63 - 1, ())) for _ in range(count)]
        elif isinstance(generator, list):
            seeds = [each.initial_seed() for each in generator]
        else:
            seeds = [generator.initial_seed() + n for n in range(count)]
        rng, delta = self.settings.rng, self.settings.eta_seed_delta
        noises = [PictureNoise(seed, rng=rng, eta_seed_delta=delta) for seed in seeds]
        if self._sampler.noise is samplers.Kind.BROWNIAN:
            paths = [noise.brownian(shape, *self._plan.span) for noise in noises]
            return lambda here, after: torch.stack([path.noise(here, after) for path in paths]).to(x.device)
        own = generator if isinstance(generator, list) else [generator] * count
        is_as_rendered = rng != Rng.CPU or delta or generator is None
        if is_as_rendered or _has_drawn_at_most_the_start(own, shape, x.dtype):
            for noise in noises:
                noise.start(shape)
            return lambda _here, _after: torch.stack([noise.next(shape) for noise in noises]).to(x.device)

        def draw(_here: float, _after: float) -> Tensor:
            return torch.stack([torch.randn(shape, generator=each, device=each.device).to(x.device) for each in own])

        return draw


def _has_drawn_at_most_the_start(generators: list[Any], shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the first generator has drawn nothing since it was seeded, or only the initial noise of one image."""
    first = generators[0]
    fresh = torch.Generator(first.device).manual_seed(first.initial_seed())
    if torch.equal(fresh.get_state(), first.get_state()):
        return True
    torch.randn(shape, generator=fresh, dtype=dtype, device=first.device)
    return torch.equal(fresh.get_state(), first.get_state())
