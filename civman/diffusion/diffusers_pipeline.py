"""diffusers' own pipelines around loaded components, and our samplers behind diffusers' scheduler interface.

`run` needs neither; they are for callers who want to go on with diffusers.
"""

import math
from collections.abc import Generator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from civman.diffusion import sampler_names, samplers, solvers
from civman.diffusion.families import Family
from civman.diffusion.loader import LoadedModel
from civman.diffusion.noise import PictureNoise
from civman.diffusion.noise_levels import TRAIN_STEPS
from civman.domain.recipes.recipe import RULES, SAMPLING, Sampling
from civman.errors import Cause, UsageError

_KINDS = {
    ("txt2img", False): "StableDiffusionPipeline", ("txt2img", True): "StableDiffusionXLPipeline",
    ("img2img", False): "StableDiffusionImg2ImgPipeline", ("img2img", True): "StableDiffusionXLImg2ImgPipeline",
    ("inpaint", False): "StableDiffusionInpaintPipeline", ("inpaint", True): "StableDiffusionXLInpaintPipeline",
}  # fmt: skip


def pipeline_of(model: LoadedModel, kind: str = "txt2img", *, tokenizers: Mapping[str, Any] | None = None) -> Any:
    """Diffusers' own pipeline around the model's components; `kind` is "txt2img", "img2img" or "inpaint".

    Several kinds share the components. Without `tokenizers` ("tokenizer", "tokenizer_2") the pipeline takes prompt
    embeddings only. Costs the import of diffusers' pipelines (about 2 s), which `render` does without.

    Raises: UsageError: no such kind.
    """
    if kind not in model.pipelines or tokenizers:
        model.pipelines[kind] = _build(model, kind, tokenizers or {})
    return model.pipelines[kind]


def _build(model: LoadedModel, kind: str, tokenizers: Mapping[str, Any]) -> Any:
    import diffusers  # 2 s for the pipelines, which only callers of this function pay

    if (kind, model.family.is_xl) not in _KINDS:
        raise UsageError(f"no such kind of pipeline: `{kind}`", hint="txt2img, img2img or inpaint", code=Cause.BAD_KIND)
    if kind == "txt2img" and model.family is Family.REFINER:
        raise UsageError("a refiner only works on a picture", hint="img2img", code=Cause.BAD_KIND)
    parts: dict[str, Any] = {
        "unet": model.unet, "vae": model.vae, "scheduler": _scheduler(model),
        "text_encoder": model.components.get("text_encoder"), "tokenizer": tokenizers.get("tokenizer"),
    }  # fmt: skip
    if model.family.is_xl:
        parts |= {
            "text_encoder_2": model.components["text_encoder_2"], "tokenizer_2": tokenizers.get("tokenizer_2"),
            "force_zeros_for_empty_prompt": model.family is Family.SDXL, "add_watermarker": False,
        }  # fmt: skip
        if kind != "txt2img":
            parts["requires_aesthetics_score"] = model.family is Family.REFINER
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, _KINDS[kind, model.family.is_xl])(**parts)


def _scheduler(model: LoadedModel) -> Any:
    import diffusers

    kind: Any = diffusers.EulerDiscreteScheduler
    return kind(
        num_train_timesteps=TRAIN_STEPS, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        timestep_spacing="linspace", steps_offset=1, prediction_type=model.prediction,
        rescale_betas_zero_snr=model.is_zero_snr,
    )  # fmt: skip


class PipelineScheduler:
    """A sampler and schedule of ours where diffusers wants a scheduler: `pipe.scheduler = PipelineScheduler(…)`.

    One timestep per evaluation of the model, not rounded. Fresh noise comes from the `generator` that the pipeline
    hands to `step` (one per picture), or from a Brownian path with that generator's seed.
    """

    order = 1

    def __init__(self, name: str, schedule: str | None = None, *, prediction: str = "epsilon",
                 is_zero_snr: bool = False, is_xl: bool = False, sampling: Sampling = SAMPLING,
                 rules: int = RULES) -> None:  # fmt: skip
        named, self._schedule = sampler_names.parse(name, schedule)
        self._sampler, self._rules = samplers.of_recipe(named.name, rules), rules
        self._tuning = self._sampler.tuning(sampling, rules)
        if self._sampler.is_cfgpp or self._sampler.is_adaptive:
            why = "needs the picture without guidance" if self._sampler.is_cfgpp else "asks as often as its answers say"
            raise UsageError(
                f"`{self._sampler.name}` {why}, which diffusers' pipelines have no way to give",
                hint="`library.render` draws with it", code=Cause.NO_PIPELINE_SAMPLER,
            )  # fmt: skip
        self._levels = self._sampler.levels(is_zero_snr=is_zero_snr, rules=rules)
        self._is_xl = is_xl
        self._running: Generator[tuple[Any, float], Any, Any] | None = None
        self._asked: list[float] = []
        self._begin = 0
        self.config = SimpleNamespace(
            num_train_timesteps=TRAIN_STEPS, steps_offset=1, prediction_type=prediction, clip_sample=False,
            skip_prk_steps=True, _class_name=type(self).__name__,
        )  # fmt: skip
        self.timesteps = torch.empty(0)
        self.init_noise_sigma: float = 1.0

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Prepares a run of so many steps."""
        self._plan = samplers.plan(
            self._sampler, self._schedule, num_inference_steps, self._levels, is_xl=self._is_xl, rules=self._rules
        )
        self._asked = solvers.evaluations(self._sampler.solver, self._plan.sigmas, self._tuning)
        self.timesteps = torch.tensor([self._levels.time(s) for s in self._asked], device=device)
        self.init_noise_sigma = self._plan.start_scale
        self._running, self._begin, self._done = None, 0, 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Starts at this evaluation, or the next that begins a step (picture to picture)."""
        self._begin = self._done = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:  # noqa: ARG002
        """What the UNet is to see of `sample`."""
        return sample / math.sqrt(self._asked[self._done] ** 2 + 1)

    def add_noise(self, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`original` with noise of the level of the first of `timesteps`."""
        return original + noise * self._levels.sigma(float(timesteps.flatten()[0]))

    def step(self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, *, generator: Any = None,
             return_dict: bool = True, **_: Any) -> Any:  # fmt: skip
        """One evaluation's answer in, the next x out (as `prev_sample`)."""
        del timestep
        sigma = self._asked[self._done]
        clean = self._clean(sample.float(), sigma, model_output.float())
        if self._running is None:
            self._running = self._start(sample.float(), sigma, generator)
        result: Any
        try:
            result, _level = self._running.send(clean)
        except StopIteration as stop:
            result = stop.value * self._plan.end_scale
        self._done += 1
        result = result.to(sample.dtype)
        return SimpleNamespace(prev_sample=result, pred_original_sample=clean) if return_dict else (result,)

    def _start(self, x: Tensor, sigma: float, generator: Any) -> Generator[tuple[Any, float], Any, Any]:
        levels = [s for s in self._plan.sigmas if s <= sigma]
        running = self._sampler.solver(x, levels, self._noise(x, generator), self._tuning)
        next(running)
        return running

    def _clean(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        if self.config.prediction_type == "v_prediction":
            return x / (sigma**2 + 1) - answer * (sigma / math.sqrt(sigma**2 + 1))
        return x - answer * sigma

    def _noise(self, x: Tensor, generator: Any) -> solvers.Noise:
        generators = generator if isinstance(generator, list) else [generator] * len(x)
        shape = tuple(x.shape[1:])
        if self._sampler.noise is samplers.Kind.BROWNIAN:
            seeds = [g.initial_seed() + n * (not isinstance(generator, list)) if g else torch.seed()
                     for n, g in enumerate(generators)]  # fmt: skip
            paths = [
                PictureNoise(seed).brownian(shape, *self._plan.span, falls_upwards=self._rules == 1) for seed in seeds
            ]
            return lambda here, after: torch.stack([path.noise(here, after) for path in paths]).to(x)

        def draw(_here: float, _after: float) -> Tensor:
            rows = [torch.randn(shape, generator=g, device=g.device if g else "cpu") for g in generators]
            return torch.stack(rows).to(x)

        return draw
