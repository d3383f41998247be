"""Samplers that only the web UIs name, their formulas written a second time, in σ.

`model(x, σ)` gives the clean picture. CFG++ samplers read `model.unguided`, which the model leaves there. `draw()` is
the next noise of the picture's stream.
"""

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import k_oracle
import numpy as np
import torch
from torch import Tensor


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


def er_sde(model: Any, x: Tensor, sigmas: list[float], draw: Any, *, s_noise: float = 1.0, **_: float) -> Tensor:
    """ComfyUI's er_sde for a diffusion model, whose signal is not scaled."""

    def scale(lam: Any) -> Any:
        return lam * (torch.exp(lam**0.3) + 10.0)

    lambdas = torch.tensor(sigmas, dtype=torch.float64)
    old = old_slope = None
    for i in range(len(sigmas) - 1):
        clean = model(x, sigmas[i])
        if sigmas[i + 1] == 0:
            return clean
        begin, end = lambdas[i], lambdas[i + 1]
        r = scale(end) / scale(begin)
        new = r * x + (1 - r) * clean
        if old is not None:
            step = (begin - end) / 200
            places = end + torch.arange(200, dtype=torch.float64) * step
            slope = (clean - old) / (begin - lambdas[i - 1])
            new = new + (end - begin + (1 / scale(places)).sum() * step * scale(end)) * slope
            if old_slope is not None:
                bend = (slope - old_slope) / ((begin - lambdas[i - 2]) / 2)
                weight = ((places - begin) / scale(places)).sum() * step * scale(end)
                new = new + ((end - begin) ** 2 / 2 + weight) * bend
            old_slope = slope
        old = clean
        x = (new + draw() * s_noise * (end**2 - begin**2 * r**2).clamp(min=0).sqrt()).to(x.dtype)
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


def deis_multistep(model: Any, x: Tensor, sigmas: list[float], draw: Any, **_: float) -> Tensor:
    """diffusers' own class, each step of it, over this table; its step to a level of exactly 0 is not a number."""
    from diffusers import DEISMultistepScheduler

    scheduler = DEISMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                                       solver_order=2, lower_order_final=False)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy of tensors, the logarithm of 0
        scheduler.set_timesteps(len(sigmas) - 1)
        scheduler.sigmas, scheduler.timesteps = torch.tensor(sigmas), torch.arange(len(sigmas) - 1)
        x = x / math.hypot(1, sigmas[0])
        for time, (here, after) in enumerate(pairwise(sigmas)):
            whole = x * math.hypot(1, here)
            clean = model(whole, here)
            if after == 0:
                return clean
            x = scheduler.step((whole - clean) / here, time, x).prev_sample
    return x * math.hypot(1, sigmas[-1])


AGAIN: dict[str, Callable[..., Tensor]] = {
    "Restart": restart, "LCM": lcm, "Heun++": heunpp, "iPNDM": ipndm, "iPNDM_v": ipndm_v, "DEIS": deis,
    "DEIS multistep": deis_multistep, "DDPM": ddpm, "Gradient Estimation": gradient_estimation, "RES multistep": res,
    "RES multistep a": res_ancestral, "Euler CFG++": euler_pp, "Euler a CFG++": euler_a_pp,
    "DPM++ 2M CFG++": dpmpp_2m_pp, "ER SDE": er_sde,
}  # fmt: skip
