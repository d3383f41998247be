"""ComfyUI's own way from noise to latents, around any UNet: k-diffusion as it is on PyPI, and ComfyUI's rules for
noise, noise levels, timesteps and guidance, written a second time. Nothing here is civman's.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import k_oracle
import numpy as np
import torch
from torch import Tensor

K_NAMES = {
    "Euler": "euler", "Euler a": "euler_ancestral", "Heun": "heun", "DPM2": "dpm_2", "DPM2 a": "dpm_2_ancestral",
    "LMS": "lms", "DPM++ 2M": "dpmpp_2m", "DPM++ 2M SDE": "dpmpp_2m_sde", "DPM++ 3M SDE": "dpmpp_3m_sde",
    "DPM++ SDE": "dpmpp_sde", "DPM++ 2S a": "dpmpp_2s_ancestral",
}  # fmt: skip
SCHEDULES = {
    "Normal": "normal", "Karras": "karras", "Exponential": "exponential", "SGM Uniform": "sgm_uniform",
    "Simple": "simple", "DDIM": "ddim_uniform", "Beta": "beta", "KL Optimal": "kl_optimal",
}  # fmt: skip


class Discrete:
    """The noise levels of a discrete model, in ComfyUI's precision."""

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - betas, dim=0)
        exact = ((1 - kept) / kept) ** 0.5
        self.sigmas, self.logs = exact.float(), exact.log().float()

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - self.logs).abs().argmin()

    def sigma(self, time: Tensor) -> float:
        low, high = int(time.floor()), int(time.ceil())
        share = time - low
        return float(((1 - share) * self.logs[low] + share * self.logs[high]).exp())

    def table(self, scheduler: str, n: int) -> Tensor:
        from scipy.stats import beta

        k, low, high = k_oracle.sampling(), float(self.sigmas[0]), float(self.sigmas[-1])
        if scheduler == "karras":
            return k.get_sigmas_karras(n, low, high)
        if scheduler == "exponential":
            return k.get_sigmas_exponential(n, low, high)
        if scheduler in ("normal", "sgm_uniform"):
            times = torch.linspace(999, 0, n) if scheduler == "normal" else torch.linspace(999, 0, n + 1)[:-1]
            found = [self.sigma(time) for time in times]
        elif scheduler == "simple":
            found = [float(self.sigmas[-1 - int(i * (1000 / n))]) for i in range(n)]
        elif scheduler == "ddim_uniform":
            found = [float(sigma) for sigma in self.sigmas[1 :: max(1000 // n, 1)]][::-1]
        elif scheduler == "beta":
            places = np.rint(beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6) * 999).astype(int)
            found = [float(self.sigmas[place]) for i, place in enumerate(places) if i == 0 or place != places[i - 1]]
        else:
            shares = torch.arange(n, dtype=torch.float) / (n - 1)
            found = (shares * math.atan(low) + (1 - shares) * math.atan(high)).tan().tolist()
        return torch.tensor([*found, 0.0])

    def sampled(self, sampler: str, scheduler: str, steps: int, denoise: float = 1.0) -> Tensor:
        """As `KSampler` computes them."""
        whole = steps if denoise > 0.9999 else int(steps / denoise)
        is_shortened = sampler in ("dpm_2", "dpm_2_ancestral")
        sigmas = self.table(scheduler, whole + is_shortened)
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]]) if is_shortened else sigmas
        return sigmas if denoise > 0.9999 else sigmas[-(steps + 1) :]


def rescaled(x: Tensor, sigma: Tensor, cond: Tensor, uncond: Tensor, cfg: float, phi: float) -> Tensor:
    """RescaleCFG: from the denoised predictions of both prompts to the denoised result."""
    scaled, root = x / (sigma**2 + 1), (sigma**2 + 1) ** 0.5
    v_cond, v_uncond = ((scaled - each) * root / sigma for each in (cond, uncond))
    guided = v_uncond + cfg * (v_cond - v_uncond)
    fitted = guided * (v_cond.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True))
    return scaled - (phi * fitted + (1 - phi) * guided) * sigma / root


def sample(
    unet: Callable[..., Tensor], name: str, sigmas: Tensor, seed: int, *, cfg: float, conds: list[Tensor],
    uncond: Tensor, shape: tuple[int, ...], latents: Tensor | None = None, phi: float = 0.0,
    generator: torch.Generator | None = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Draw a batch of this shape (B, 4, h, w). `generator`: the one from which ancestral samplers draw.

    `mask` (1, 1, h, w): where it is 0, the noisy latents go into the UNet, and the latents come out.
    """
    levels, k = Discrete(), k_oracle.sampling()
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
    highest = float(levels.sigmas[-1])
    is_whole = math.isclose(highest, float(sigmas[0]), rel_tol=1e-5) or float(sigmas[0]) > highest
    x = noise * ((1 + sigmas[0] ** 2) ** 0.5 if is_whole else sigmas[0])
    x = x if latents is None else x + latents

    def masked(x: Tensor, sigma: Tensor, **more: Any) -> Tensor:
        if mask is None:
            return model(x, sigma, **more)
        assert latents is not None
        level = sigma.reshape(-1)[0]
        seen = x * mask + (latents + noise * level) * (1 - mask)
        return model(seen, sigma, **more) * mask + latents * (1 - mask)

    def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        level = sigma.reshape(-1)[0]
        time = levels.time(level).float()

        def clean(context: Tensor) -> Tensor:
            eps = unet(x / (level**2 + 1) ** 0.5, time, context.expand(len(x), -1, -1))
            return x - eps * level

        answers = [clean(cond) for cond in conds]
        mean = sum(answers[1:], answers[0]) / len(answers)
        if cfg == 1:
            return mean
        if phi:
            return rescaled(x, level, mean, clean(uncond), cfg, phi)
        unguided = clean(uncond)
        return unguided + (mean - unguided) * cfg

    more: dict[str, Any] = {}
    if "sde" in name:
        positive = sigmas[sigmas > 0]
        more["noise_sampler"] = k.BrownianTreeNoiseSampler(x, positive.min(), sigmas.max(), seed=seed)
    elif "ancestral" in name:
        more["noise_sampler"] = lambda *_: torch.randn(x.shape, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchsde's, about times outside its interval by one bit
        places: tuple[Any, ...] = (sigmas,)
        if name in ("dpm_fast", "dpm_adaptive"):
            places = (float(sigmas[-2]), float(sigmas[0]), *([len(sigmas) - 1] if name == "dpm_fast" else []))
        result: Tensor = getattr(k, f"sample_{name}")(masked, x, *places, disable=True, **more)
    return result
