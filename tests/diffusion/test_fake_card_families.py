# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Every family, every memory plan and merged adapters on a card that computes nothing, see `fake_card`."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flows

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import fake_card
from test_adapters import kohya, saved
from test_fake_card import HALF, Slip, conditioning
from test_flow_pictures import CFG, family_of, recipe_for
from tiny_adapters import low_rank, write_safetensors

from civman.diffusion import merge_adapters, open_model
from civman.diffusion.denoiser import Conditioning
from civman.diffusion.layer_streaming import stream
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.memory_plan import MemoryPlan, apply
from civman.diffusion.run_recipe import NO_INPUTS, Inputs, iterate
from civman.diffusion.stage_model import one_model
from civman.diffusion.textual_inversions import load_embedding
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Hires, Recipe, StartImage
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

ENCODERS = ("text_encoder", "text_encoder_2")
PICTURE = np.zeros((96, 64, 3), np.uint8)
START = StartImage(Sha256("1" * 64), 0.5)
READ = ("cuda to cpu", "guard.Checks.read_with")
"""The pixels, with the numbers of all checks: the only place where the host waits for the card."""
ALLOWED: dict[str, dict[tuple[str, str], int]] = {
    "chroma": {("cpu to cuda", "chroma.Chroma.velocity"): 4},  # diffusers encodes the guidance 0 in each of four calls
    "z-image": {("cpu to cuda", "z_image.ZImage.velocity"): 3},  # diffusers' tables of positions, in the first call
    # diffusers reads how many tokens go to each expert, in each of twelve layers with experts
    "hidream": {("cuda to cpu", "hidream.HiDream.velocity"): 12},
    "qwen-image": {("cpu to cuda", "qwen_image.QwenImage.velocity"): 2},  # as for Z-Image
}
"""Where the host hands something to the card and waits, in an image of two steps. It may only become shorter."""


def on_the_card(
    model: LoadedModel,
    recipe: Recipe,
    inputs: Inputs = NO_INPUTS,
    place: Callable[[fake_card.FakeCard], object] | None = None,
    change: Callable[[LoadedModel], None] = lambda _: None,
) -> dict[tuple[str, str], int]:
    """Encode the prompts and render on the fake card, where all parts are unless `place` puts them elsewhere.

    Returns the crossings that wait.
    """
    with fake_card.fake_card() as card:
        if place is None:
            put(model, card, MemoryPlan.RESIDENT)
        else:
            place(card)
        change(model)
        texts = FlowTextEncoders(model)
        (cond, pooled), (uncond, uncond_pooled) = (
            texts.encode(parse(words), recipe, (), is_negative=is_negative)
            for words, is_negative in (("a (red:1.3) cat", False), (recipe.negative_prompt, True))
        )
        stages = one_model(model, Conditioning(cond, uncond, pooled, uncond_pooled))
        ((made,),) = iterate(recipe, stages, inputs=inputs)
    assert made.pixels.shape == (recipe.height, recipe.width, 3)
    return waiting(card)


def waiting(card: fake_card.FakeCard) -> dict[tuple[str, str], int]:
    return {where: count for where, count in card.crossings.items() if not where[0].startswith("queued")}


def tiny(tmp_path: Path, name: str, **options: Any) -> LoadedModel:
    path = tiny_flows.write(tmp_path / "tiny.safetensors", name, family_of(name))
    return open_model.load(path, dtype=torch.bfloat16, **options)


def half(name: str, **changes: Any) -> Recipe:
    return recipe_for(name, cfg=CFG.get(name, 3.0), steps=2, precision="bfloat16", **changes)


def often(values: Iterable[str], one: str) -> list[Any]:
    """Test parameters of which only one is used in every run; the others only in the long tests."""
    return [each if each == one else pytest.param(each, marks=pytest.mark.long) for each in values]


@pytest.mark.parametrize("name", often(tiny_flows.TINY, "flux1"))
def test_nothing_of_a_flow_family_is_on_the_wrong_side(tmp_path: Path, name: str) -> None:
    seen = on_the_card(tiny(tmp_path, name), half(name))
    assert seen == ALLOWED.get(name, {}) | {READ: 1}


@pytest.mark.long
@pytest.mark.parametrize("name", tiny_flows.TINY)
def test_an_input_image_adds_no_wait_to_a_flow_family(tmp_path: Path, name: str) -> None:
    seen = on_the_card(tiny(tmp_path, name), half(name, start=START), Inputs(PICTURE))
    # the input image's latents are checked once, before the first step
    assert seen == ALLOWED.get(name, {}) | {READ: 1, ("_local_scalar_dense", "vae_codec._finite"): 1}


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        pytest.param(lambda x: x + torch.zeros(1, 1, x.shape[-1], dtype=x.dtype), "cpu", id="a tensor on the host"),
        pytest.param(lambda x: x + torch.zeros(1, 1, 1, device=x.device), "type", id="a float32 constant"),
    ],
)
def test_a_slip_of_a_transformer_is_caught(tmp_path: Path, mistake: Callable[[Any], Any], words: str) -> None:
    class Mistaken(Slip):
        def forward(self, *args: Any, **named: Any) -> Any:
            return self.unet(*args, **named | {"hidden_states": self.mistake(named["hidden_states"])})

    def plant(model: LoadedModel) -> None:
        model.components["transformer"] = Mistaken(model.components["transformer"], mistake)

    with pytest.raises((RuntimeError, UserWarning), match=words):
        on_the_card(tiny(tmp_path, "flux1"), half("flux1"), change=plant)


PLANS = [plan for plan in MemoryPlan if plan is not MemoryPlan.RESIDENT]
MOVES = {
    MemoryPlan.TILED: set(),
    MemoryPlan.ONE_AT_A_TIME: {
        (f"{way}", "memory_plan.take_turns.<locals>.Turn.pre_forward") for way in ("cpu to cuda", "cuda to cpu")
    },
    MemoryPlan.LAYER_BY_LAYER: {
        ("cpu to cuda", "layer_streaming._values"),
        ("cpu to cuda", "merge_adapters._Buffer.holding"),
    },
}
"""The plans that need less memory move weights, and the host waits for it. Nothing else may wait because of a plan."""


def put(model: LoadedModel, card: fake_card.FakeCard, plan: MemoryPlan) -> merge_adapters.Later | None:
    """Place a model's parts as the plan does, with tensors that have no values."""
    for part in model.components.values():
        card.put(part, torch.device("cpu") if plan is MemoryPlan.ONE_AT_A_TIME else fake_card.CARD)
    model.device = fake_card.CARD
    later = stream(model) if plan is MemoryPlan.LAYER_BY_LAYER else None
    apply(plan, model, fake_card.CARD)
    return later


def least(plan: MemoryPlan) -> int | None:
    """How many values a parameter of a tiny model may have to be loaded before it is used."""
    return 256 if plan is MemoryPlan.LAYER_BY_LAYER else None


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", often(tiny_flows.TINY, "flux1"))
def test_a_memory_plan_moves_weights_of_a_flow_family_only(tmp_path: Path, name: str, plan: MemoryPlan) -> None:
    model = tiny(tmp_path, name, leaves=least(plan))

    seen = on_the_card(model, half(name), place=lambda card: put(model, card, plan))

    assert seen.keys() <= ALLOWED.get(name, {}).keys() | {READ} | MOVES[plan]


CASES: dict[str, tuple[Recipe, Inputs]] = {
    "txt2img": (replace(HALF, clip_skip=2), Inputs()),
    "inpainting": (
        replace(HALF, start=replace(START, mask_sha256=Sha256("2" * 64))),
        Inputs(PICTURE[:64], np.full((64, 64), 255, np.uint8)),
    ),
    "second pass": (replace(HALF, hires=Hires(128, 128, 2, 0.5, "latent")), Inputs()),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", often(CASES, "txt2img"))
@pytest.mark.parametrize("name", often(("sd1", "sdxl"), "sd1"))
def test_a_memory_plan_moves_weights_of_stable_diffusion_only(
    tiny_files: dict[str, Path], tmp_path: Path, name: str, case: str, plan: MemoryPlan
) -> None:
    """With a LoRA, an embedding and emphasis."""
    model = load(tiny_files[name], dtype=torch.float16, leaves=least(plan))
    lora = saved(tmp_path, low_rank(kohya({"unet": model.unet}), 2))
    widths = [model.components[each].config.hidden_size for each in ENCODERS if each in model.components]
    keys = ["emb_params"] if len(widths) == 1 else ["clip_l", "clip_g"]
    path = tmp_path / "tiny.safetensors"
    write_safetensors(path, {key: torch.ones(3, width) for key, width in zip(keys, widths, strict=True)})
    embedding = load_embedding(path, widths)
    recipe, inputs = CASES[case]

    def merge(later: merge_adapters.Later | None = None) -> None:
        components = {each: part for each, part in model.components.items() if each != "vae"}
        merge_adapters.apply(components, model.base_tensor, [lora], later=later, holds_base=True)

    if plan is MemoryPlan.ONE_AT_A_TIME:  # it merges on the host
        merge()
    with fake_card.fake_card() as card:
        later = put(model, card, plan)
        if plan is not MemoryPlan.ONE_AT_A_TIME:
            merge(later)
        sending = waiting(card)
        stages = one_model(model, conditioning(model, "a (red:1.3) tiny fox", [embedding]))
        ((made,),) = iterate(recipe, stages, inputs=inputs)

    assert made.pixels.shape[2] == 3
    assert (waiting(card).keys() - sending.keys()) <= {READ, ("_local_scalar_dense", "vae_codec._finite")} | MOVES[plan]
