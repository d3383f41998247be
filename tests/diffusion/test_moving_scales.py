# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""LoRA scales that change over the steps: in each evaluation, the weights of a LoRA merged at that scale alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from test_run import PLAIN, prompt
from tiny_adapters import low_rank, write_safetensors

from civman.diffusion import merge_adapters
from civman.diffusion.layer_streaming import stream
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.moving_scales import MovingScales
from civman.diffusion.run_recipe import iterate
from civman.diffusion.stage_model import one_model
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Hires, LoraUse, Recipe

FRAMES = ("0@0,1.5@0.5,0.25@1", "1@0,0@0.5", "")
"""The keyframes of three LoRAs, of which the last one does not change."""
FIRST = (0.0, 1.0, 0.7)


def adapters(model: LoadedModel, folder: Path) -> list[merge_adapters.Adapter]:
    """Three LoRAs that share some weights; one is a DoRA, whose change is not linear in its factors."""
    unet = model.unet
    layers = {f"unet.{n}": m for n, m in unet.named_modules() if n.endswith((".to_q", ".to_k", ".conv1"))}
    linear = {name: module for name, module in layers.items() if module.weight.ndim == 2}
    generator = torch.Generator().manual_seed(3)
    dora = low_rank(linear, 3, size=0.5) | {
        f"{name}.dora_scale": torch.rand(len(module.weight), 1, generator=generator) + 0.5
        for name, module in linear.items()
    }
    only_keys = {name: module for name, module in linear.items() if name.endswith("to_k")}
    made = []
    for name, tensors in (("a", low_rank(layers, 2, size=0.5)), ("b", dora), ("c", low_rank(only_keys, 4, size=0.5))):
        digest = write_safetensors(folder / f"{name}.safetensors", tensors)
        made.append(merge_adapters.Adapter(folder / f"{name}.safetensors", digest, 1.0, 1.0, name))
    return made


def merged_at(model: LoadedModel, made: list[merge_adapters.Adapter], scales: list[float]) -> dict[str, Any]:
    """The weights of a model, whose weights are those of its file, with the LoRAs merged at these scales."""
    at = [replace(each, unet_scale=scale) for each, scale in zip(made, scales, strict=True)]
    reports = merge_adapters.apply({"unet": model.unet}, model.base_tensor, at)
    merged = {name: value.detach().clone() for name, value in model.unet.named_parameters()}
    merge_adapters.restore({"unet": model.unet}, model.base_tensor, reports)
    return merged


def recipe(made: list[merge_adapters.Adapter], sampler: str, *, hires: bool) -> Recipe:
    uses = tuple(
        LoraUse(Sha256(each.sha256), first, 1.0, "", frames, "0.5@0" if hires and not frames else "")
        for each, first, frames in zip(made, FIRST, FRAMES, strict=True)
    )
    second = Hires(96, 96, 3, 0.7, "latent") if hires else None
    return replace(PLAIN, sampler=sampler, steps=5, loras=uses, hires=second)


def steps_in_a1111(evaluations: int, steps: int) -> list[int]:
    """The step that A1111 reports in each evaluation of Euler or Heun: that of the last call back."""
    reported, seen, per_step = 0, [], 1 if evaluations == steps else 2
    for step in range(steps):
        for call in range(per_step if step < steps - 1 else 1):
            seen.append(reported)
            reported = step if call == 0 else reported
    assert len(seen) == evaluations
    return seen


def weight(frames: str, first: float, step: int, steps: int) -> float:
    if not frames:
        return first
    scales, places = zip(*(map(float, frame.split("@")) for frame in frames.split(",")), strict=True)
    return float(np.interp(step / (steps - 2) if steps > 2 else 0.0, places, scales))


@pytest.mark.parametrize(
    ("kind", "sampler", "hires", "is_streamed"),
    [("sd1", "Euler", True, False), ("sd1", "Heun", False, True), ("sdxl", "Euler", False, False)],
)
def test_each_evaluation_has_the_weights_of_its_own_scales(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, sampler: str, hires: bool, is_streamed: bool
) -> None:
    model = load(tiny_files[kind], leaves=100 if is_streamed else None)
    later = stream(model) if is_streamed else None
    components = {"unet": model.unet}
    other = load(tiny_files[kind])
    made = adapters(other, tmp_path)
    wanted = recipe(made, sampler, hires=hires)
    at_peak = [replace(each, unet_scale=use.peak) for each, use in zip(made, wanted.loras, strict=True)]
    merge_adapters.apply(components, model.base_tensor, at_peak, later=later)
    moving = MovingScales(components, model.base_tensor, at_peak, later=later)
    seen: list[dict[str, Any]] = []
    layers = {n: m for n, m in model.unet.named_modules() if n.endswith((".to_q", ".to_k", ".conv1"))}

    def keep(name: str, module: Any) -> None:
        seen[-1].setdefault(f"{name}.weight", module.weight.detach().clone())

    order = {name: layer.register_forward_pre_hook(lambda module, _, name=name: keep(name, module))
             for name, layer in layers.items()}  # fmt: skip
    order[""] = model.unet.register_forward_pre_hook(lambda *_: seen.append({}))
    stages = one_model(model, prompt(model), loras=wanted.loras, set_scales=moving.set)
    [[first]] = iterate(wanted, stages)
    calls = len(seen)
    [[again]] = iterate(wanted, stages)
    for hook in order.values():
        hook.remove()

    assert again.sha256 == first.sha256, "the second image starts from the weights of its own first step"
    passes = [(calls - 3 if hires else calls, 5, False), *([(3, 3, True)] if hires else [])]
    at = 0
    for evaluations, steps, is_second in passes:
        for step in steps_in_a1111(evaluations, steps):
            scales = [weight(frames, first if not (is_second and not frames) else 0.5, step, steps)
                      for frames, first in zip(FRAMES, FIRST, strict=True)]  # fmt: skip
            whole = merged_at(other, made, scales)
            for name, found in seen[at].items():
                assert torch.equal(found.cpu(), whole[name]), (at, name, scales)
            at += 1
    assert at == calls
    assert len({tuple(each["down_blocks.0.resnets.0.conv1.weight"].flatten()[:9].tolist()) for each in seen}) > 3
    moving.set([0.0, 0.0, 0.0])
    if not is_streamed:
        assert all(torch.equal(value, model.base_tensor("unet", name)) for name, value in model.unet.named_parameters())
    moving.close()


def test_only_the_weights_of_the_lora_that_changes_are_written(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model = load(tiny_files["sd1"])
    made = adapters(model, tmp_path)
    merge_adapters.apply({"unet": model.unet}, model.base_tensor, made)
    read: list[str] = []

    def base(component: str, name: str) -> Any:
        read.append(name)
        return model.base_tensor(component, name)

    moving = MovingScales({"unet": model.unet}, base, made)
    moving.set([1.0, 1.0, 0.5])  # the third one changes keys only
    assert read
    assert all(".to_k." in name for name in read)
    read.clear()
    moving.set([1.0, 1.0, 0.5])
    assert not read
    moving.close()
