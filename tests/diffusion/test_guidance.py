# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Dynamic thresholding and skipped negative prompts: the rules written again, one value at a time."""

import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from civman.diffusion.denoiser import Conditioning, Denoiser, Guidance, Skips
from civman.diffusion.families.sd1 import SD1
from civman.diffusion.noise_levels import NoiseLevels
from civman.diffusion.threshold_guidance import guided, scale_at
from civman.domain.recipes.thresholding import MODES, Thresholding, text_of, thresholding_of
from civman.errors import UsageError

PLAIN = Thresholding(mimic_scale=5.0, percentile=90.0)


def quantile(values: list[float], share: float) -> float:
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def by_hand(uncond: Any, cond: Any, scale: float, found: Thresholding) -> list[list[float]]:
    """One image's channels, computed with plain numbers; both scales are constant."""
    channels = []
    for u, c in zip(uncond.flatten(1).tolist(), cond.flatten(1).tolist(), strict=True):
        strong = [a + scale * (b - a) for a, b in zip(u, c, strict=True)]
        weak = [a + found.mimic_scale * (b - a) for a, b in zip(u, c, strict=True)]
        channels.append((strong, weak))
    centred = [[v - sum(s) / len(s) for v in s] for s, _ in channels]
    like = [[v - sum(w) / len(w) for v in w] for _, w in channels]

    def range_of(rows: list[list[float]], number: int, *, is_weak: bool) -> float:
        values = rows[number] if found.per_channel else [value for row in rows for value in row]
        if found.by_deviation:
            return deviation(values)
        return max(map(abs, values)) if is_weak else quantile([abs(v) for v in values], found.percentile / 100)

    made = []
    for number, (strong, _) in enumerate(channels):
        mean = sum(strong) / len(strong)
        has, may = range_of(centred, number, is_weak=False), range_of(like, number, is_weak=True)
        if not found.starts_at_mean:
            row = [value * may / has for value in strong]
        elif found.by_deviation:
            row = [value / has * may + mean for value in centred[number]]
        else:
            most = max(has, may)
            row = [min(max(value, -most), most) / most * may + mean for value in centred[number]]
        made.append([found.phi * a + (1 - found.phi) * b for a, b in zip(row, strong, strict=True)])
    return made


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("by_deviation", [True, False])
@pytest.mark.parametrize("starts_at_mean", [True, False])
@pytest.mark.parametrize("phi", [1.0, 0.3])
def test_a_thresholded_prediction_follows_the_rule(
    per_channel: bool, by_deviation: bool, starts_at_mean: bool, phi: float
) -> None:
    found = replace(PLAIN, per_channel=per_channel, by_deviation=by_deviation, starts_at_mean=starts_at_mean, phi=phi)
    generator = torch.Generator().manual_seed(1)
    uncond, cond = (torch.randn(2, 4, 3, 5, generator=generator) for _ in range(2))
    if not per_channel:  # the extension compares all images of a batch; images are drawn alike alone and in a batch
        uncond, cond = uncond[:1], cond[:1]
    made = guided(uncond, cond - uncond, 12.0, found, 0.5)

    for number in range(len(uncond)):
        wanted = torch.tensor(by_hand(uncond[number], cond[number], 12.0, found)).view(4, 3, 5)
        assert torch.allclose(made[number], wanted, atol=2e-4)


HALF = {
    "Constant": 10.0, "Linear Down": 7.0, "Linear Up": 7.0, "Cosine Down": 4 + 6 * math.cos(0.78535),
    "Cosine Up": 4 + 6 * (1 - math.cos(0.78535)), "Half Cosine Down": 4 + 6 * math.cos(0.5),
    "Half Cosine Up": 4 + 6 * (1 - math.cos(0.5)), "Power Up": 4 + 6 * 0.125, "Power Down": 4 + 6 * 0.875,
    "Linear Repeating": 4.0, "Cosine Repeating": 4 + 6 * (math.cos(0.5 * 6.28318 * 3) / 2 + 0.5), "Sawtooth": 7.0,
}  # fmt: skip


def test_every_mode_changes_its_scale_as_the_extension_does() -> None:
    assert set(HALF) == set(MODES)
    for mode, wanted in HALF.items():
        assert scale_at(10.0, mode, 4.0, 0.5, 3.0) == pytest.approx(wanted), mode


def test_settings_survive_their_text() -> None:
    for found in (PLAIN, replace(PLAIN, cfg_mode="Half Cosine Up", cfg_minimum=3.0, per_channel=False, phi=0.5),
                  Thresholding(counts_calls=False, power=2.5)):  # fmt: skip
        assert thresholding_of(text_of(found)) == found
    assert thresholding_of("off") is None
    for wrong in ("x", "7,what=1", "7,phi=x", "7,per_channel=perhaps"):
        with pytest.raises(UsageError):
            thresholding_of(wrong)


class Echo:
    """Stands for a UNet: its answer is the mean of the context plus the input, and it counts what it was asked."""

    config: Any = None

    def __init__(self) -> None:
        self.asked: list[int] = []

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def __call__(self, x: Any, _time: Any, encoder_hidden_states: Any, **_: Any) -> tuple[Any]:
        self.asked.append(len(x))
        return (
            x * 0.1
            + encoder_hidden_states.mean(dim=(1, 2))[:, None, None, None]
            * torch.linspace(0, 1, 4)[None, :, None, None],
        )


def run(guidance: Guidance, sigmas: list[float]) -> tuple[list[Any], Echo]:
    class Model:
        unet = Echo()
        prediction, device = "epsilon", torch.device("cpu")
        family: Any = SD1

    model: Any = Model()
    prompt = Conditioning(torch.ones(1, 77, 4), torch.full((1, 77, 4), -1.0))
    denoiser = Denoiser(model, prompt, NoiseLevels.of_model(), guidance=guidance, size=(64, 64))
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(5))
    return [denoiser(x, sigma) for sigma in sigmas], model.unet


def test_thresholding_acts_on_the_denoised_prediction_and_for_ddim_on_the_noise() -> None:
    found = replace(PLAIN, mimic_scale=3.0, percentile=80.0)
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(5))
    sigma = 2.0
    noises = [x / math.sqrt(5) * 0.1 + sign * torch.linspace(0, 1, 4)[None, :, None, None] for sign in (1, -1)]
    for on_noise in (False, True):
        [[clean], _] = run(Guidance(9.0, thresholding=found, thresholds_noise=on_noise, steps=4), [sigma])
        parts = noises if on_noise else [x - noise * sigma for noise in noises]
        rows = by_hand(parts[1][0], parts[0][0], 9.0, found)
        wanted = torch.tensor(rows).view(1, 4, 6, 6)
        assert torch.allclose(clean, x - wanted * sigma if on_noise else wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("skips", "asked"),
    [
        (Skips(), [2, 2, 2, 2, 2, 2]),
        (Skips(below=1.0), [2, 2, 2, 1, 2, 1]),  # only evaluations with an odd number are skipped
        (Skips(below=1.0, always=True), [2, 2, 1, 1, 1, 1]),
        (Skips(early=0.2), [1, 1, 2, 2, 2, 2]),  # 0/6 and 1/6
        (Skips(early=0.2, below=0.4), [1, 1, 2, 2, 2, 1]),
    ],
)
def test_the_negative_prompt_is_skipped_as_in_a1111(skips: Skips, asked: list[int]) -> None:
    sigmas = [9.0, 3.0, 0.9, 0.7, 0.5, 0.3]
    cleans, unet = run(Guidance(7.0, skips=skips, steps=6), sigmas)
    alone, _ = run(Guidance(1.0), sigmas)
    whole, _ = run(Guidance(7.0), sigmas)

    assert unet.asked == asked
    for count, mine, one, both in zip(asked, cleans, alone, whole, strict=True):
        assert torch.equal(mine, one if count == 1 else both)
