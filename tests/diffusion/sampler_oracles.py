"""How far civman's samplers and schedules are from the stacks they are named after; writes docs/samplers.md.

`python tests/diffusion/sampler_oracles.py` needs k-diffusion, torchsde, scipy and diffusers. A test holds the page to
it. Both sides draw with one model, a few lines of arithmetic (`closed_form`); the other side is `a1111_oracle`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import a1111_oracle
import closed_form
import k_oracle
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from civman.diffusion.noise_levels import NoiseLevels, Schedule, table
from civman.diffusion.run_recipe import Inputs, render
from civman.diffusion.sampler_names import NOT_OFFERED
from civman.diffusion.samplers import SAMPLERS, Kind, Sampler, plan
from civman.diffusion.solvers import solve
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import SAMPLING, Hires, Recipe, StartImage

PAGE = Path(__file__).parents[2] / "docs" / "samplers.md"
LEVELS = NoiseLevels.of_model()
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SAME = 1e-5
NO_FILE = Sha256("0" * 64)
SEED = 5
KINDS: dict[str, dict[str, bool]] = {
    "SD 1": {}, "SDXL": {"xl": True}, "v-prediction": {"v": True}, "zero SNR": {"v": True, "zero_snr": True},
}  # fmt: skip
MODES = ("txt2img", "img2img 0.35", "img2img 0.75", "hires latent", "hires pixel")
STEPS = {"txt2img": 20, "img2img 0.35": 12, "img2img 0.75": 8, "hires latent": 5, "hires pixel": 5}
NAMED = tuple(schedule for schedule in Schedule if schedule is not Schedule.AUTOMATIC)
USUAL, ZERO_SNR = ("SD 1", "SDXL", "v-prediction"), ("zero SNR",)
"""The kinds of a cell in the first table and in the second."""
CANCELLING = (Schedule.BETA, Schedule.KL_OPTIMAL)
NOTHING = Inputs()
START = np.random.default_rng(3).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def has_counterpart(sampler: Sampler, schedule: Schedule) -> bool:
    """Whether anybody else has the pair: DDIM and its relatives have no schedule but their own elsewhere."""
    return not (sampler.own_table and schedule is not Schedule.AUTOMATIC)


@cache
def measured(name: str, schedule: Schedule, kind: str, mode: str) -> float | None:
    """Relative distance of the last latents, noise included; None where nobody else has the pair.

    A second pass by pixels begins with a picture of 8 bits. Where the last bit of the first pass decides which of 256
    values a pixel gets, the second pass is compared from one and the same first pass.
    """
    sampler = next(each for each in SAMPLERS if each.name == name)
    if not has_counterpart(sampler, schedule):
        return None
    mine = ours(name, schedule, kind, mode)
    found = distance(mine, theirs(name, schedule, kind, mode))
    if mode == "hires pixel" and found >= SAME:
        begun = drawn(replace(recipe(name, schedule, kind, mode), hires=None), **KINDS[kind])
        if distance(begun, first_pass(name, schedule.value, kind, STEPS[mode])) < SAME:
            return distance(mine, theirs(name, schedule, kind, mode, begun=begun))
    return found


def recipe(name: str, schedule: Schedule, kind: str, mode: str) -> Recipe:
    """What civman is to draw."""
    given = KINDS[kind]
    plain = Recipe(
        checkpoint=NO_FILE, prompt="", negative_prompt="", sampler=name, schedule=schedule.value, steps=STEPS[mode],
        guidance_scale=closed_form.CFG, width=64, height=64, seed=SEED, clip_skip=1,
        prediction="v_prediction" if given.get("v") else "epsilon", is_zero_snr=given.get("zero_snr", False),
        precision="float32",
    )  # fmt: skip
    if mode.startswith("img2img"):
        return replace(plain, start=StartImage(NO_FILE, float(mode.split()[1])))
    if mode.startswith("hires"):
        return replace(plain, hires=Hires(96, 64, 6, 0.6, "latent" if mode.endswith("latent") else "lanczos"))
    return plain


def drawn(asked: Recipe, inputs: Inputs = NOTHING, **kind: bool) -> Tensor:
    """The last latents of civman's own whole way."""
    model = closed_form.model(**kind)
    render(asked, model, closed_form.prompt(), inputs=inputs)
    result: Tensor = model.vae.decoded
    return result


def ours(name: str, schedule: Schedule, kind: str, mode: str) -> Tensor:
    """See `drawn`."""
    inputs = Inputs(START) if mode.startswith("img2img") else Inputs()
    return drawn(recipe(name, schedule, kind, mode), inputs, **KINDS[kind])


@cache
def stack(kind: str) -> a1111_oracle.Stack:
    """The other side's."""
    return a1111_oracle.Stack(closed_form.answer, **KINDS[kind])


@cache
def first_pass(name: str, schedule: str, kind: str, steps: int) -> Tensor:
    """The other side's latents from noise."""
    return stack(kind).txt2img(name, schedule, steps, (4, 8, 8), SEED, closed_form.CFG, closed_form.COND,
                               closed_form.UNCOND)  # fmt: skip


def theirs(name: str, schedule: Schedule, kind: str, mode: str, *, begun: Tensor | None = None) -> Tensor:
    """The last latents of the other side; `begun`: those of a first pass to go on from."""
    rest = (closed_form.CFG, closed_form.COND, closed_form.UNCOND)
    steps, vae = STEPS[mode], closed_form.Vae()
    if mode == "txt2img":
        return first_pass(name, schedule.value, kind, steps)
    if mode.startswith("img2img"):
        pixels = torch.from_numpy(START).permute(2, 0, 1)[None].float() / 255
        latents = vae.encode(2 * pixels - 1).latent_dist.mode()
        return stack(kind).img2img(name, schedule.value, steps, latents, SEED, float(mode.split()[1]), *rest)
    latents = first_pass(name, schedule.value, kind, steps) if begun is None else begun
    larger = enlarged_latents(latents) if mode.endswith("latent") else enlarged_pixels(latents, vae)
    return stack(kind).img2img(name, schedule.value, 6, larger, SEED, 0.6, *rest, second_pass=True)


def enlarged_latents(latents: Tensor) -> Tensor:
    """64x64 to 96x64: covered by 96x96, of which the middle is taken."""
    return torch.nn.functional.interpolate(latents, size=(12, 12), mode="bilinear")[:, :, 2:10]


def enlarged_pixels(latents: Tensor, vae: closed_form.Vae) -> Tensor:
    """The same by way of 8-bit pixels, rounded down, and Pillow."""
    seen = ((vae.decode(latents, return_dict=False)[0][0] + 1) / 2).clamp(0, 1)
    eight = (255.0 * seen.permute(1, 2, 0).numpy()).astype(np.uint8)
    large = np.asarray(Image.fromarray(eight).resize((96, 96), Image.Resampling.LANCZOS)).astype(np.float32) / 255
    encoded: Tensor = vae.encode(torch.from_numpy(large).permute(2, 0, 1)[None] * 2 - 1).latent_dist.mode()
    return encoded[:, :, 2:10]


def worst(sampler: Sampler, schedule: Schedule, kinds: tuple[str, ...]) -> float | None:
    """The largest distance of these kinds of models in all ways to draw."""
    found = [measured(sampler.name, schedule, kind, mode) for kind in kinds for mode in MODES]
    return max((each for each in found if each is not None), default=None)


ONLY_ROUNDED = [
    sampler for sampler in SAMPLERS
    if sampler.noise is not Kind.BROWNIAN and not sampler.own_table and not sampler.has_ends_only
    and not sampler.is_cfgpp and sampler.name not in ("LCM", "DEIS multistep")
]  # fmt: skip
"""Samplers whose other side can be run in double precision throughout."""


def in_double(sampler: Sampler, schedule: Schedule) -> float:
    """The distance with zero terminal SNR where both sides keep x in double precision; text to image, 20 steps."""
    levels = sampler.levels(is_zero_snr=True)
    made = plan(sampler, schedule, 20, levels)

    def clean(x: Tensor, sigma: float, **_: object) -> Tensor:
        sigma = float(sigma)
        root, time = math.hypot(1, sigma), torch.tensor([levels.time(sigma)], dtype=torch.float32)
        cond, uncond = (x / root**2 - closed_form.answer((x / root).float(), time, prompt).double() * sigma / root
                        for prompt in (closed_form.COND, closed_form.UNCOND))  # fmt: skip
        return uncond + (cond - uncond) * closed_form.CFG

    ways: list[Tensor] = []
    for is_mine in (True, False):
        stream = a1111_oracle.Stream(SEED, (4, 8, 8), torch.float64)
        x = stream.next() * made.start_scale
        if is_mine:
            ways.append(solve(sampler.solver, x, made.sigmas, lambda *_, s=stream: s.next(), clean,
                              sampler.tuning(SAMPLING)))  # fmt: skip
        elif sampler.name in a1111_oracle.AGAIN:
            ways.append(a1111_oracle.AGAIN[sampler.name](clean, x, list(made.sigmas), stream.next))
        else:
            oracle = k_oracle.sampling()
            method = getattr(oracle, a1111_oracle.K_SAMPLERS[sampler.name])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(oracle, "torch", stream)
                ways.append(method(clean, x, torch.tensor(made.sigmas, dtype=torch.float64), disable=True))
    return distance(*ways)


def lcm_against_diffusers() -> float:
    """The largest relative difference of a level between civman's LCM and diffusers', 8 steps."""
    diffusers = pytest.importorskip("diffusers")
    sampler = next(s for s in SAMPLERS if s.name == "LCM")
    mine = plan(sampler, Schedule.AUTOMATIC, 8, sampler.levels())
    scheduler = diffusers.LCMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(8)
    levels = [LEVELS.sigmas[int(time)] for time in scheduler.timesteps]
    return max(abs(a - b) / b for a, b in zip(mine.sigmas, levels, strict=False))


def reference_table(schedule: Schedule, steps: int, *, is_xl: bool = False) -> list[float]:
    """The table by its definition (reference stacks' names), from k-diffusion and scipy where they have it."""
    oracle = k_oracle.sampling()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    kept = torch.cumprod(1 - betas, 0).double().numpy()
    sigmas = np.sqrt((1 - kept) / kept)
    low, high = float(sigmas[0]), float(sigmas[-1])

    def at(times: np.ndarray) -> np.ndarray:
        return np.exp(np.interp(times, np.arange(1000), np.log(sigmas)))

    def ays() -> np.ndarray:
        known = ([14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029] if is_xl else
                 [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029])  # fmt: skip
        return np.exp(np.interp(np.linspace(0, 10, steps), np.arange(11), np.log(known)))

    def beta() -> np.ndarray:
        return low + pytest.importorskip("scipy.stats").beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6) * (high - low)

    made: dict[Schedule, Callable[[], np.ndarray]] = {
        Schedule.NORMAL: lambda: at(np.linspace(999, 0, steps)),
        Schedule.KARRAS: oracle.get_sigmas_karras(steps, low, high)[:-1].numpy,
        Schedule.EXPONENTIAL: oracle.get_sigmas_exponential(steps, low, high)[:-1].numpy,
        Schedule.POLYEXPONENTIAL: oracle.get_sigmas_polyexponential(steps, low, high)[:-1].numpy,
        Schedule.SGM_UNIFORM: lambda: at(np.linspace(999, 0, steps + 1)[:-1]),
        Schedule.SIMPLE: lambda: np.array([sigmas[-(1 + int(i * (1000 / steps)))] for i in range(steps)]),
        Schedule.BETA: beta,
        Schedule.KL_OPTIMAL: lambda: np.tan(
            np.arctan(high) + (np.arctan(low) - np.arctan(high)) * np.arange(steps + 1) / steps
        ),
        Schedule.ALIGN_YOUR_STEPS: ays,
        Schedule.DDIM: lambda: sigmas[1 :: max(1000 // steps, 1)][::-1],
        Schedule.TURBO: lambda: sigmas[np.round(np.arange(steps, 0, -1) * (1000 / steps) - 1).clip(0, 999).astype(int)],
    }
    levels = [float(sigma) for sigma in made[schedule]()]
    return levels if schedule is Schedule.KL_OPTIMAL else [*levels, 0.0]


def table_distance(schedule: Schedule) -> float:
    """The largest relative difference of a level, over 5, 11, 20 and 50 steps of SD and SDXL."""
    worst = 0.0
    for steps in (5, 11, 20, 50):
        for is_xl in (False, True):
            mine = table(schedule, steps, LEVELS, is_xl=is_xl)
            theirs = reference_table(schedule, steps, is_xl=is_xl)
            worst = max(worst, *(abs(a - b) / max(b, 1e-9) for a, b in zip(mine, theirs, strict=True)))
    return worst


def word(found: float | None) -> str:
    if found is None:
        return "own"
    return "same" if found < SAME else f"near ({_bound(found)})"


def _bound(found: float) -> str:
    """The next power of ten."""
    return f"{10.0 ** math.ceil(math.log10(found)):.0e}"


def row(sampler: Sampler, kinds: tuple[str, ...]) -> str:
    """The sampler's line in the table of these kinds of models."""
    automatic = "its own" if sampler.own_table else sampler.automatic.value
    cells = [word(worst(sampler, schedule, kinds)) for schedule in (Schedule.AUTOMATIC, *NAMED)]
    begin = [sampler.name, sampler.against] if kinds == USUAL else [sampler.name]
    return "| " + " | ".join([*begin, f"{automatic}: {cells[0]}", *cells[1:]]) + " |"


def page(row: Callable[[Sampler, tuple[str, ...]], str] = row) -> str:
    """The whole page, every word of it that is about sameness measured."""
    columns = " | ".join(("Automatic", *NAMED))
    parts = [
        "# Samplers and schedules",
        "",
        "Written by `python tests/diffusion/sampler_oracles.py` from measurements; do not edit. Samplers and schedules",
        'are named as A1111, Forge, ComfyUI, diffusers, InvokeAI and CivitAI name them ("DPM++ 2M Karras",',
        '`--sampler "DPM++ 2M" --schedule Karras`, `dpmpp_2m_sde_gpu`, `euler sgm_uniform`,',
        "`EulerAncestralDiscreteScheduler`). Every sampler can be used with every schedule.",
        "",
        "Each cell gives the largest relative difference between the final latents of civman and those of the code in",
        "the second column, including its noise. Both run with the same small model: text to image (20",
        "steps), image to",
        "image at strengths 0.35 and 0.75, and a second pass with another aspect ratio, once on latents and once on",
        "pixels, each with the prediction type and noise levels of SD 1, of SDXL and of v-prediction. *same*: all",
        "differences are below 1e-5. *near*: all are below the stated value. *own*: civman supports this pair, but no",
        "other program does, so there is nothing to compare with.",
        "",
        f"| sampler | measured against | {columns} |",
        "|---|---|" + "---|" * (len(NAMED) + 1),
        *(row(sampler, USUAL) for sampler in SAMPLERS),
        "",
        "SDE samplers are only near with some schedules because a Brownian path is queried at noise levels rounded to",
        "six digits: a difference of one unit in the last place of a level, which torch's square",
        "roots and exponentials",
        "on a CPU may have, already changes the noise. If the last bit of the first pass decides the value of a pixel,",
        "the second pass on pixels is compared from the same first pass.",
        "",
        "## Zero terminal SNR",
        "",
        "The same comparison with v-prediction and the noise levels of zero terminal SNR. The first levels",
        "are above 1000,",
        "where single precision loses digits by cancellation, so that more pairs are only near. If both",
        "sides compute in",
        f"double precision, the {len(ONLY_ROUNDED)} samplers without a Brownian path, noise levels of their",
        "own or CFG++",
        f"agree within {_bound(max(in_double(each, way) for each in ONLY_ROUNDED for way in CANCELLING))} with Beta "
        "and KL Optimal, where cancellation is strongest.",
        "",
        f"| sampler | {columns} |",
        "|---|" + "---|" * (len(NAMED) + 1),
        *(row(sampler, ZERO_SNR) for sampler in SAMPLERS),
        "",
        "## What the tables do not show",
    ]
    parts += [
        "",
        "In A1111's web UI, DDIM, DDIM CFG++, PLMS and UniPC always use their own schedule. LCM is implemented",
        "as in A1111,",
        "with the noise levels and timesteps of the fifty timesteps that LCM models were trained",
        "on. diffusers' LCMScheduler",
        f"uses other levels (up to {lcm_against_diffusers():.0%} apart at 8 steps), so it gives a",
        "different image. CFG++",
        "samplers use the CFG scale unchanged, so it should be about 1; only A1111's DDIM CFG++ divides it by 12.5.",
        "",
        "## Noise",
        "",
        "Ancestral samplers take their noise from the image's own generator, as in A1111; SDE samplers use",
        "k-diffusion's Brownian path over all levels of the schedule. `--rng nv` gives the noise of a CUDA GPU, and",
        "`--ensd` is A1111's ENSD.",
        "",
        "| option | A1111's key | samplers that take it |",
        "|---|---|---|",
        f"| `--eta` | Eta | {_takers(lambda each: each.takes_eta)} |",
        f"| `--eta-ddim` | Eta DDIM | {_takers(lambda each: each.takes_eta_ddim)} |",
        f"| `--s-noise` | Sigma noise | {_takers(lambda each: each.takes_s_noise)} |",
        f"| `--s-churn`, `--s-tmin`, `--s-tmax` | Sigma churn, tmin, tmax | {_takers(lambda each: each.takes_churn)} |",
        "",
        "## Schedules",
        "",
        "The noise levels were compared with k-diffusion's functions (Karras, Exponential, Polyexponential), with",
        "scipy's beta distribution (Beta) or with an independent implementation of the definition (all others), for 5,",
        "11, 20 and 50 steps.",
        "Other names are accepted: Uniform for Normal, SGMUniform for SGM Uniform, AYS for Align Your Steps,",
        "ddim_uniform for DDIM.",
        "",
        "| schedule | levels |",
        "|---|---|",
        *(f"| {schedule} | {word(table_distance(schedule))} |" for schedule in NAMED),
        "",
        "## Differences from A1111",
        "",
        "These differences were found by reading the code of both programs; they were not measured:",
        "",
        "* DDIM and PLMS with a single step give an image here; A1111 returns the noise.",
        "* UniPC converts v to noise with the noise level of the evaluation, as in Forge; A1111 uses the level of the",
        "  next lower whole timestep. LCM with a v-prediction model works as in Forge; A1111 treats v as noise.",
        "* With `DPM adaptive`, the images of a batch are rendered one by one; in A1111 they share their steps.",
        "* Samplers of Forge and ComfyUI use A1111's noise here; ComfyUI restarts its noise stream from the seed, and",
        "  evaluates the model at whole timesteps only.",
        "* Recipes that civman made with earlier rules keep them (`rules` 1): SDE samplers use noise of the opposite",
        "  sign, and DDIM and UniPC count steps differently in image to image.",
        "",
        "## Not available",
        "",
        "These samplers are refused, with an error that names the closest available one:",
        "",
        "| sampler | what it is | nearest |",
        "|---|---|---|",
        *(f"| {name} | {what} | {instead} |" for name, (what, instead) in NOT_OFFERED.items()),
    ]
    return "\n".join(parts) + "\n"


def _takers(takes: Callable[[Sampler], bool]) -> str:
    return ", ".join(sampler.name for sampler in SAMPLERS if takes(sampler))


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(), encoding="utf-8")
