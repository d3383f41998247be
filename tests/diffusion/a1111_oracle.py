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
    """The web UI's generator of one picture, in the place of `torch.randn_like`."""

    def __init__(self, seed: int, shape: Sequence[int]) -> None:
        self._generator, self._shape = torch.Generator("cpu").manual_seed(seed), tuple(shape)

    def next(self) -> Tensor:
        return torch.randn(self._shape, generator=self._generator)[None]

    def __getattr__(self, name: str) -> Any:
        return (lambda _: self.next()) if name == "randn_like" else getattr(torch, name)


class Stack:
    """The web UI around a UNet `unet(x, time, context)` that answers ε or v."""

    def __init__(
        self, unet: Callable[..., Tensor], *, v: bool = False, zero_snr: bool = False, xl: bool = False
    ) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0)
        if zero_snr:
            roots = alphas.sqrt()
            roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
            alphas = roots**2
            alphas[-1] = 4.8973451890853435e-08
        self.alphas_cumprod, self.unet, self.v, self.xl = alphas.float(), unet, v, xl
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


# ---------------------------------------------------------------------- formulas of the web UIs, in σ
def _slope(model: Any, x: Tensor, sigma: float) -> Tensor:
    return (x - model(x, sigma)) / sigma


def _up(here: float, after: float, eta: float = 1.0) -> tuple[float, float]:
    up = min(after, eta * (after**2 * (here**2 - after**2) / here**2) ** 0.5)
    return (after**2 - up**2) ** 0.5, up


def restart(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    steps, plan = len(sigmas) - 1, {}
    if steps >= 20:
        width, times = (steps // 4, 2) if steps >= 36 else (9, 1)
        made = k_oracle.sampling().get_sigmas_karras(steps - width * times, sigmas[-2], sigmas[0])
        sigmas = [float(s) for s in made]
        plan = {int(np.argmin(np.abs(np.array(sigmas) - 0.1))): (width + 1, times)}
    pairs = []
    for i in range(len(sigmas) - 1):
        pairs.append((sigmas[i], sigmas[i + 1]))
        if i + 1 in plan:
            top = int(np.argmin(np.abs(np.array(sigmas) - 2.0)))
            if top < i + 1:
                back = k_oracle.sampling().get_sigmas_karras(plan[i + 1][0], sigmas[i + 1], sigmas[top])[:-1]
                pairs += list(pairwise(float(s) for s in back)) * plan[i + 1][1]
    last = None
    for here, after in pairs:
        if last is not None and last < here:
            x = x + draw() * (here**2 - last**2) ** 0.5
        d = _slope(model, x, here)
        if after:
            d = (d + _slope(model, x + d * (after - here), after)) / 2
        x, last = x + d * (after - here), after
    return x


def lcm(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    for here, after in pairwise(sigmas):
        x = model(x, here)
        x = x + after * draw() if after > 0 else x
    return x


def heunpp(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    end = sigmas[-1]
    for i, (here, after) in enumerate(pairwise(sigmas)):
        d = _slope(model, x, here)
        if after == end:
            mixed = d
        elif sigmas[i + 2] == end:
            two = _slope(model, x + d * (after - here), after)
            share = after / (2 * sigmas[0])
            mixed = d * (1 - share) + two * share
        else:
            ahead = x + d * (after - here)
            two = _slope(model, ahead, after)
            three = _slope(model, ahead + two * (sigmas[i + 2] - after), sigmas[i + 2])
            second, third = after / (3 * sigmas[0]), sigmas[i + 2] / (3 * sigmas[0])
            mixed = d * (1 - second - third) + two * second + three * third
        x = x + mixed * (after - here)
    return x


def ipndm(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    past: list[Tensor] = []
    for here, after in pairwise(sigmas):
        d = _slope(model, x, here)
        mixed = [d, (3 * d - past[-1]) / 2 if past else d][min(len(past), 1)]
        if len(past) == 2:
            mixed = (23 * d - 16 * past[-1] + 5 * past[-2]) / 12
        elif len(past) >= 3:
            mixed = (55 * d - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        x = x + (after - here) * mixed
        past.append(d)
    return x


def ipndm_v(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    past: list[Tensor] = []
    for i, (here, after) in enumerate(pairwise(sigmas)):
        d = _slope(model, x, here)
        a = after - here
        b, c, e = (sigmas[i - k] - sigmas[i - k - 1] if i > k else 1.0 for k in range(3))
        w = [1.0, 0.0, 0.0, 0.0]
        if i >= 1:
            w[0], w[1] = (2 + a / b) / 2, -(a / b) / 2
        if i >= 2:
            p = (1 - a / (3 * (a + b)) * (a * (a + b)) / (b * (b + c))) / 2
            w = [w[0] + p, w[1] - (1 + b / c) * p, p * b / c, 0.0]
        if i >= 3:
            q = (1 - a / (3 * (a + b))) / 2 + (1 - a / (2 * (a + b))) * a / (6 * (a + b + c))
            q *= (a * (a + b) * (a + b + c)) / (b * (b + c) * (b + c + e))
            r = b * (b + c) / (c * (c + e))
            w = [w[0] + q, w[1] - (1 + b / c + r) * q, w[2] + (b / c + r * (1 + c / e)) * q, -q * r * b / c]
        x = x + a * sum(weight * part for weight, part in zip(w, [d, *past[::-1]], strict=False))
        past.append(d)
    return x


def deis(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    high, low = math.log(80.0**2 + 1), math.log(0.002**2 + 1)
    slope = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    floor = high - 0.5 * slope
    times = [(math.sqrt(floor**2 + 2 * slope * math.log(s**2 + 1)) - floor) / slope for s in sigmas]
    past: list[Tensor] = []
    for i, (here, after) in enumerate(pairwise(sigmas)):
        past.insert(0, _slope(model, x, here))
        order = 1 if after <= 0 else min(3, i + 1)
        if order == 1:
            x = x + (after - here) * past[0]
            continue
        taus = np.linspace(times[i], times[i + 1], 10000)
        alpha = np.exp(-0.5 * taus**2 * slope - taus * floor)
        integrand = 0.5 * (taus * slope + floor) / np.sqrt(alpha * (1 - alpha))
        for j in range(order):
            poly = np.ones_like(taus)
            for k in range(order):
                if k != j:
                    poly *= (taus - times[i - k]) / (times[i - j] - times[i - k])
            x = x + float((integrand * poly).sum() * (times[i + 1] - times[i]) / 10000) * past[j]
    return x


def ddpm(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    for here, after in pairwise(sigmas):
        eps = _slope(model, x, here)
        a, b = 1 / (here**2 + 1), 1 / (after**2 + 1)
        x = (a / b) ** -0.5 * (x / math.sqrt(1 + here**2) - (1 - a / b) * eps / math.sqrt(1 - a))
        if after > 0:
            x = x + math.sqrt((1 - a / b) * (1 - b) / (1 - a)) * draw()
            x = x * math.sqrt(1 + after**2)
    return x


def gradient_estimation(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    old = None
    for here, after in pairwise(sigmas):
        clean = model(x, here)
        d = (x - clean) / here
        if after == 0:
            return clean
        x = x + d * (after - here)
        if old is not None:
            x = x + (d - old) * (after - here)
        old = d
    return x


def res(model: Any, x: Tensor, sigmas: list[float], draw: Any, *, eta: float = 1.0, s_noise: float = 1.0,
        is_ancestral: bool = False) -> Tensor:  # fmt: skip
    old, old_down = None, 0.0
    for i, (here, after) in enumerate(pairwise(sigmas)):
        clean = model(x, here)
        down, up = _up(here, after, eta) if is_ancestral else (after, 0.0)
        if down == 0 or old is None:
            x = x + (x - clean) / here * (down - here)
        else:
            t, t_old, t_next, t_prev = (-math.log(s) for s in (here, old_down, down, sigmas[i - 1]))
            h, c2 = t_next - t, (t_prev - t_old) / (t_next - t)
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * clean + phi2 / c2 * old)
        if after > 0 and is_ancestral:
            x = x + draw() * s_noise * up
        old, old_down = clean, down
    return x


def res_ancestral(model: Any, x: Tensor, sigmas: list[float], draw: Any, **tuning: float) -> Tensor:
    return res(model, x, sigmas, draw, is_ancestral=True, **tuning)


def euler_pp(model: Any, x: Tensor, sigmas: list[float], draw: Any, *, eta: float = 0.0,
             s_noise: float = 1.0) -> Tensor:  # fmt: skip
    for here, after in pairwise(sigmas):
        clean = model(x, here)
        d = (x - model.unguided) / here
        down, up = _up(here, after, eta) if eta else (after, 0.0)
        x = clean + d * down
        if up:
            x = x + draw() * s_noise * up
    return x


def euler_a_pp(model: Any, x: Tensor, sigmas: list[float], draw: Any, *, eta: float = 1.0,
               s_noise: float = 1.0) -> Tensor:  # fmt: skip
    return euler_pp(model, x, sigmas, draw, eta=eta, s_noise=s_noise)


def dpmpp_2m_pp(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    old = None
    for i, (here, after) in enumerate(pairwise(sigmas)):
        clean, bare = model(x, here), model.unguided
        shrink = after / here
        if old is None or after == 0:
            mixed = -shrink * bare
        else:
            r = math.log(sigmas[i - 1] / here) / math.log(here / after)
            mixed = -shrink * bare - (shrink - 1) / (2 * r) * (clean - old)
        x, old = clean + mixed + shrink * x, bare
    return x


AGAIN: dict[str, Callable[..., Tensor]] = {
    "Restart": restart, "LCM": lcm, "Heun++": heunpp, "iPNDM": ipndm, "iPNDM_v": ipndm_v, "DEIS": deis, "DDPM": ddpm,
    "Gradient Estimation": gradient_estimation, "RES multistep": res, "RES multistep a": res_ancestral,
    "Euler CFG++": euler_pp, "Euler a CFG++": euler_a_pp, "DPM++ 2M CFG++": dpmpp_2m_pp,
}  # fmt: skip
