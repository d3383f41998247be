"""A1111's own way from noise or a picture to latents, around any UNet and VAE: k-diffusion as it is on PyPI, with its
noise samplers, and the formulas of the web UI (and of Forge and ComfyUI for the samplers that only they name) written
a second time. Nothing here is civman's.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import k_oracle
import numpy as np
import torch
from a1111_formulas import AGAIN
from torch import Tensor

K_SAMPLERS = {
    "Euler": "sample_euler", "Euler a": "sample_euler_ancestral", "Heun": "sample_heun", "DPM2": "sample_dpm_2",
    "DPM2 a": "sample_dpm_2_ancestral", "LMS": "sample_lms", "DPM++ 2M": "sample_dpmpp_2m",
    "DPM++ 2M SDE": "sample_dpmpp_2m_sde", "DPM++ 2M SDE Heun": "sample_dpmpp_2m_sde",
    "DPM++ 3M SDE": "sample_dpmpp_3m_sde", "DPM++ SDE": "sample_dpmpp_sde",
    "DPM++ 2S a": "sample_dpmpp_2s_ancestral", "DPM fast": "sample_dpm_fast", "DPM adaptive": "sample_dpm_adaptive",
}  # fmt: skip
TIMED = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
AUTOMATIC = {
    "DPM++ 2M": "Karras", "DPM++ SDE": "Karras", "DPM++ 2M SDE": "Exponential", "DPM++ 2M SDE Heun": "Exponential",
    "DPM++ 2S a": "Karras", "DPM++ 3M SDE": "Exponential", "DPM2": "Karras", "DPM2 a": "Karras", "Restart": "Karras",
    "DPM++ 2M CFG++": "Karras",
}  # fmt: skip
DISCARDS = ("DPM2", "DPM2 a", "DPM++ 3M SDE")
AYS = {
    False: (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    True: (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


class Stream:
    """The web UI's generator of one picture, in the place of `torch.randn_like`; what it drew is turned to `dtype`."""

    def __init__(self, seed: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self._generator, self._shape = torch.Generator("cpu").manual_seed(seed), tuple(shape)
        self._dtype = dtype

    def next(self) -> Tensor:
        return torch.randn(self._shape, generator=self._generator)[None].to(self._dtype)

    def __getattr__(self, name: str) -> Any:
        return (lambda _: self.next()) if name == "randn_like" else getattr(torch, name)


class Stack:
    """The web UI around a UNet `unet(x, time, context)` that answers ε or v."""

    def __init__(
        self, unet: Callable[..., Tensor], *, v: bool = False, zero_snr: bool = False, xl: bool = False
    ) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0).float()
        if zero_snr:  # in single precision, which the cancellation shows
            roots = alphas.sqrt()
            first, last = float(roots[0]), roots[-1].clone()
            roots -= last
            roots *= first / (first - last)
            alphas = roots**2
            alphas[-1] = 4.8973451890853435e-08
        self.alphas_cumprod, self.unet, self.v, self.xl = alphas, unet, v, xl
        self.sampling = k_oracle.sampling()
        external = k_oracle.external()
        self.wrap = (external.CompVisVDenoiser if v else external.CompVisDenoiser)(self, quantize=False)

    def apply_model(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        return self.unet(x, time, cond)

    # ------------------------------------------------------------------ tables
    def table(self, name: str, schedule: str, steps: int) -> Tensor:
        extra = name in DISCARDS
        sigmas = self._sigmas(name, AUTOMATIC.get(name, "Normal") if schedule == "Automatic" else schedule,
                              steps + extra)  # fmt: skip
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if extra else sigmas

    def _sigmas(self, name: str, schedule: str, n: int) -> Tensor:
        known = self.lcm_sigmas() if name == "LCM" else self.wrap.sigmas
        low, high = float(known[0]), float(known[-1])
        logs = known.double().log()
        last = 999 if name != "LCM" else 49

        def at(times: Any) -> Any:
            return np.exp(np.interp(times, np.arange(last + 1), logs.numpy()))

        karras, exponential = self.sampling.get_sigmas_karras, self.sampling.get_sigmas_exponential
        if schedule == "Normal" and name != "LCM":
            return self.wrap.get_sigmas(n)
        if schedule in ("Karras", "Exponential", "Polyexponential"):
            kind = {"Karras": karras, "Exponential": exponential}
            return kind.get(schedule, self.sampling.get_sigmas_polyexponential)(n, low, high)
        if schedule == "KL Optimal":
            share = np.arange(n + 1) / n
            return torch.tensor(np.tan(share * math.atan(low) + (1 - share) * math.atan(high)))
        if schedule == "SGM Uniform" and name != "LCM":
            return torch.cat([self.wrap.t_to_sigma(torch.linspace(999, 0, n + 1)[:-1]), torch.zeros(1)])
        made = {
            "Normal": lambda: at(np.linspace(last, 0, n)),
            "SGM Uniform": lambda: at(np.linspace(last, 0, n + 1)[:-1]),
            "Simple": lambda: [float(known[-(1 + int(i * (len(known) / n)))]) for i in range(n)],
            "DDIM": lambda: [float(s) for s in known][1 :: max(len(known) // n, 1)][::-1],
            "Turbo": lambda: [float(self.wrap.sigmas[min(max(round(i * (1000.0 / n) - 1), 0), 999)])
                              for i in range(n, 0, -1)],
            "Align Your Steps": lambda: np.exp(np.interp(np.linspace(0, 10, n), np.arange(11),
                                                         np.log(AYS[self.xl]))),
            "Beta": lambda: [low + float(_beta(1 - i / max(n - 1, 1))) * (high - low) for i in range(n)],
        }[schedule]()  # fmt: skip
        return torch.tensor([*map(float, made), 0.0])

    def lcm_sigmas(self) -> Tensor:
        """Of the fifty times that such models know: 19, 39, … 999."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()[19::20]

    # ------------------------------------------------------------------ the model with guidance
    def guided(self, cond: Tensor, uncond: Tensor, cfg: float, *, name: str = "", kept: Any = None) -> Any:
        """`model(x, sigma)`; of a CFG++ sampler it leaves the unguided picture in `.unguided`."""

        def lcm(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
            known = self.lcm_sigmas()
            place = (known.log() - sigma.log()).abs().argmin()
            time = (place * 20 + 19).float()
            eps = self.unet(x / (sigma**2 + 1).sqrt(), time.reshape(1), cond)
            if self.v:  # as Forge does; A1111 would take v for noise
                eps = (eps + x * sigma / (sigma**2 + 1).sqrt()) / (sigma**2 + 1).sqrt()
            scaled = float(time) * 10
            clean = x - sigma * eps
            return clean * (scaled / math.hypot(scaled, 0.5)) + x * (0.25 / (scaled**2 + 0.25))

        ask = lcm if name == "LCM" else self.wrap

        def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            sigma = torch.as_tensor(sigma, dtype=torch.float32).reshape(1)
            c, u = ask(x, sigma, cond=cond), ask(x, sigma, cond=uncond)
            clean = u + (c - u) * cfg
            model.unguided = u  # type: ignore[attr-defined]
            if kept is not None:
                clean = clean * kept[1] + kept[0] * (1 - kept[1])
            return clean

        return model

    def guided_eps(self, cond: Tensor, uncond: Tensor, cfg: float, kept: Any = None) -> Any:
        """`model(x, time)` for the samplers that count in times: the noise in x of the model's own scale."""

        def eps(x: Tensor, time: Tensor, context: Tensor) -> Tensor:
            answer = self.unet(x, time.reshape(1).float(), context)
            if not self.v:
                return answer
            logs = self.alphas_cumprod.double().log().numpy()  # as Forge does; A1111 takes the whole time below
            share = torch.tensor(np.exp(np.interp(float(time), np.arange(1000), logs)), dtype=torch.float32)
            return share.sqrt() * answer + (1 - share).sqrt() * x

        def model(x: Tensor, time: Tensor) -> Tensor:
            if kept is not None:
                x = x * kept[1] + kept[0] * (1 - kept[1])
            c, u = eps(x, time, cond), eps(x, time, uncond)
            model.unguided = u  # type: ignore[attr-defined]
            return u + (c - u) * cfg

        return model

    # ------------------------------------------------------------------ runs
    def txt2img(self, name: str, schedule: str, steps: int, shape: Sequence[int], seed: int, cfg: float,
                cond: Tensor, uncond: Tensor, **tuning: float) -> Tensor:  # fmt: skip
        stream = Stream(seed, shape)
        noise = stream.next()
        if name in TIMED and schedule == "Automatic":
            return self._timed(name, noise, self._times(steps), stream, cfg, cond, uncond, **tuning)
        sigmas = self.table(name, schedule, steps)
        ends = (float(self.wrap.sigmas[0]), float(self.wrap.sigmas[-1]))
        return self._k(name, noise * sigmas[0], sigmas, sigmas, ends, steps, stream, seed, cfg, cond, uncond, **tuning)

    def img2img(self, name: str, schedule: str, steps: int, latents: Tensor, seed: int, strength: float, cfg: float,
                cond: Tensor, uncond: Tensor, *, second_pass: bool = False, mask: Tensor | None = None,
                noise_multiplier: float = 1.0, **tuning: float) -> Tensor:  # fmt: skip
        share = min(strength, 0.999)
        whole, used = (int(steps / share), steps - 1) if second_pass else (steps, int(share * steps))
        stream = Stream(seed, latents.shape[1:])
        noise = stream.next() * noise_multiplier
        kept = None if mask is None else (latents, mask)
        if name in TIMED and schedule == "Automatic":
            times = self._times(whole)
            signal = self.alphas_cumprod[times[used]]
            x = latents * signal.sqrt() + noise * (1 - signal).sqrt()
            x = self._timed(name, x, times[:used], stream, cfg, cond, uncond, from_picture=True, kept=kept, **tuning)
        else:
            sigmas = self.table(name, schedule, whole)
            rest = sigmas[whole - used - 1 :]
            ends = (float(rest[-2]), float(rest[0]))
            x = self._k(name, latents + noise * rest[0], rest, sigmas, ends, len(rest) - 1, stream, seed, cfg, cond,
                        uncond, kept=kept, **tuning)  # fmt: skip
        return x if mask is None else x * mask + latents * (1 - mask)

    @staticmethod
    def _times(steps: int) -> list[int]:
        return [min(max(time + 1, 0), 999) for time in range(0, 1000, 1000 // steps)]

    def _k(self, name: str, x: Tensor, sigmas: Tensor, whole: Tensor, ends: tuple[float, float], count: int,
           stream: Stream, seed: int, cfg: float, cond: Tensor, uncond: Tensor, *, kept: Any = None,
           **tuning: float) -> Tensor:  # fmt: skip
        model = self.guided(cond, uncond, cfg, name=name, kept=kept)
        sigmas = sigmas.float()
        if name not in K_SAMPLERS:
            options = {key: value for key, value in tuning.items() if key in ("eta", "s_noise")}
            result: Tensor = AGAIN[name](model, x, [float(s) for s in sigmas.double()], stream.next, **options)
            return result
        options = dict(tuning)
        if "SDE" in name:
            above = whole[whole > 0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchsde's own ends, rounded
                options["noise_sampler"] = self.sampling.BrownianTreeNoiseSampler(
                    x, above.min().float(), whole.max().float(), seed=[seed]
                )  # type: ignore[assignment]
        if name.endswith("Heun") and name != "Heun":
            options["solver_type"] = "heun"  # type: ignore[assignment]
        places: dict[str, Any] = {"sigmas": sigmas}
        if name in ("DPM fast", "DPM adaptive"):
            places = {"sigma_min": ends[0], "sigma_max": ends[1]} | ({"n": count} if name == "DPM fast" else {})
            options.setdefault("eta", 1.0)
        before, self.sampling.torch = self.sampling.torch, stream
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = getattr(self.sampling, K_SAMPLERS[name])(model, x, disable=True, **places, **options)
        finally:
            self.sampling.torch = before
        return result

    def _timed(self, name: str, x: Tensor, times: list[int], stream: Stream, cfg: float, cond: Tensor,
               uncond: Tensor, *, from_picture: bool = False, kept: Any = None,
               eta: float = 0.0) -> Tensor:  # fmt: skip
        pp = name == "DDIM CFG++"
        model = self.guided_eps(cond, uncond, cfg / 12.5 if pp else cfg, kept)
        if name == "UniPC":
            return _unipc(model, self.alphas_cumprod, x, times, from_picture=from_picture)
        old: list[Tensor] = []
        for here, after in pairwise(reversed(times)):
            a, b = self.alphas_cumprod[here].double(), self.alphas_cumprod[after].double()
            eps = model(x, torch.tensor(float(here)))

            def moved(eps: Tensor, way: Tensor, x: Tensor = x, a: Tensor = a, b: Tensor = b) -> Tensor:
                fresh = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
                clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
                result = b.sqrt() * clean + (1 - b - fresh**2).sqrt() * way
                return (result + fresh * stream.next()).float() if eta else result.float()

            if name == "PLMS":
                old = [eps, *old[:3]]
                weights = ((1,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
                mixed = sum(part * weight for part, weight in zip(old, weights[len(old) - 1], strict=True))
                if len(old) == 1:
                    mixed = (eps + model(moved(eps, eps), torch.tensor(float(after)))) / 2
                x = moved(mixed, mixed)  # type: ignore[arg-type]
            else:
                x = moved(eps, model.unguided if pp else eps)
        return x


def _beta(probability: float) -> float:
    from scipy import stats

    return float(stats.beta.ppf(probability, 0.6, 0.6))


def _unipc(model: Any, alphas: Tensor, x: Tensor, times: list[int], *, from_picture: bool) -> Tensor:
    """UniPC of order 3 with B(h) = h, predicting the clean picture, from even times; log α is linear between two."""
    logs = 0.5 * np.log(alphas.double().numpy())
    count = len(times)
    places = np.linspace(times[-1] if from_picture else 999, 0, count + 1)
    log = np.interp(places, np.arange(1000), logs)
    alpha, sigma = np.exp(log), np.sqrt(1 - np.exp(2 * log))
    lam = log - np.log(sigma)

    def clean(x: Tensor, i: int) -> Tensor:
        return (x - sigma[i] * model(x, torch.tensor(places[i]))) / alpha[i]

    outputs = [clean(x, 0)]
    for i in range(1, count + 1):
        order = i if i < 3 else min(3, count + 1 - i)
        h = lam[i] - lam[i - 1]
        ratios = [(lam[i - 1 - k] - lam[i - 1]) / h for k in range(1, order)]
        slopes = [(outputs[i - 1 - k] - outputs[i - 1]) / r for k, r in zip(range(1, order), ratios, strict=True)]
        phi, factorial, right = math.expm1(-h) / -h - 1, 1, []
        for k in range(1, order + 1):
            right.append(phi * factorial / -h)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        matrix = np.array([[r**k for r in [*ratios, 1.0]] for k in range(order)])
        base = sigma[i] / sigma[i - 1] * x - alpha[i] * math.expm1(-h) * outputs[i - 1]
        guess = base
        if order == 2:
            guess = base + alpha[i] * h * 0.5 * slopes[0]
        elif order == 3:
            for weight, slope in zip(np.linalg.solve(matrix[:-1, :-1], right[:-1]), slopes, strict=True):
                guess = guess + alpha[i] * h * float(weight) * slope
        guess = guess.float()
        if i == count:
            return guess
        found = clean(guess, i)
        weights = [0.5] if order == 1 else [float(w) for w in np.linalg.solve(matrix, right)]
        x = base
        for weight, slope in zip(weights, [*slopes, found - outputs[i - 1]], strict=True):
            x = x + alpha[i] * h * weight * slope
        x = x.float()
        outputs.append(found)
    return x
