# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Prompts that change, prompts that are combined, and noise of its own: from the command line to the UNet and back."""

from dataclasses import replace
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image
from rendering_stock import QUICK

from civman.diffusion.text_conditioning import encode
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import HiresRequest, RenderRequest
from civman.domain.recipes.stages import Stage
from civman.errors import CannotRender, UsageError
from civman.library import Library
from civman.planning.plan import Conditions
from civman.prompts.emphasis import parse
from civman.rendering import draw
from civman.rendering.encode_prompts import TextEncoders
from civman.rendering.stage_models import StageModels
from civman.rendering.warm_engines import WarmEngines

ON_CPU = Conditions(device="cpu")
REQUEST = RenderRequest(
    checkpoint="tiny-sd1", prompt="", negative_prompt="bad", sampler="Euler", steps=4, guidance_scale=3.0, width=64,
    height=64, seed=7, hires=HiresRequest(scale=1.5, steps=3, strength=0.9),
)  # fmt: skip


class Watched:
    """A plan's images, with every context that the UNet was called with."""

    def __init__(self, library: Library, request: RenderRequest) -> None:
        self.planned = library.plan(request, ON_CPU)
        self.job = draw.prepare(StageModels(self.planned, Machine("cpu", threads=1), WarmEngines(0)))
        self.engine = self.job.models.engine
        self.contexts: list[Any] = []
        hook = self.engine.model.unet.register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            [drawn] = draw.run(self.job)
        finally:
            hook.remove()
        self.pixels = drawn.pixels

    def _note(self, _module: object, _arguments: object, named: dict[str, Any]) -> None:
        self.contexts += list(named["encoder_hidden_states"])

    def encoded(self, text: str, *, is_negative: bool = False) -> Any:
        texts = TextEncoders.of(self.engine.encoders)
        return encode(texts.encoders, texts.tokenizers, parse(text), is_negative=is_negative)[0][0]


CASES = (
    ("Euler", "a1111-1.6", "a [cat:dog:0.5] [x|y]", ["cx", "cx", "cy", "dx"], ["dx", "dx", "dy"]),
    ("Euler", "a1111-1.6", "a [cat:dog:1.4] x", ["cx"] * 4, ["cx", "cx", "dx"]),
    ("Euler", "a1111-1.0", "a [cat:dog:2] x", ["cx", "cx", "cx", "dx"], ["cx", "cx", "cx"]),
    # two evaluations in each step but the last: 7 and 5
    ("Heun", "a1111-1.3", "a [cat:dog:4] x", ["cx"] * 5 + ["dx"] * 2, ["cx"] * 5),
    ("Heun", "a1111-1.0", "a [cat:dog:2] x", ["cx"] * 3 + ["dx"] * 2 + ["cx"] * 2, ["cx"] * 3 + ["dx"] * 2),
)
"""Sampler, rules and prompt, and the first letters of the words that each evaluation of the two passes uses."""


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, marks=() if case in default else pytest.mark.long, id=f"{kind}-{case}")
        for kind, default in (("sd1", (0, 4)), ("sdxl", (3,)))
        for case in range(5)
    ],
)
def test_every_evaluation_of_both_passes_sees_its_text(library: Library, kind: str, case: int) -> None:
    sampler, rules, prompt, first, second = CASES[case]
    request = replace(REQUEST, checkpoint=f"tiny-{kind}", prompt=prompt, sampler=sampler, prompt_rules=rules)

    seen = Watched(library, request)

    words = {"c": "cat", "d": "dog"}
    texts = [f"a {words[animal]} {letter}" for animal, letter in first + second]
    assert len(seen.contexts) == 2 * len(texts), "the prompt and the negative one, in each evaluation"
    negative = seen.encoded("bad", is_negative=True)
    for call, text in enumerate(texts):
        assert torch.equal(seen.contexts[2 * call], seen.encoded(text)), f"evaluation {call} is not that of `{text}`"
        assert torch.equal(seen.contexts[2 * call + 1], negative)


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_combined_prompts_pull_with_their_weights(library: Library, kind: str) -> None:
    """One Euler step of a1111's sum, with the UNet called for each part alone."""
    long = "b " * 80  # a second chunk, so that the other part is extended by its last vector
    request = replace(REQUEST, checkpoint=f"tiny-{kind}", prompt=f"a cat :0.7 AND {long}:-0.4", steps=2, hires=None)
    seen = Watched(library, request)
    model = seen.engine.model
    texts = TextEncoders.of(seen.engine.encoders)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    sigma = float(((1 - torch.cumprod(1 - betas, 0)[-1]) / torch.cumprod(1 - betas, 0)[-1]).sqrt())

    def answer(text: str, *, is_negative: bool = False, tokens: int = 77) -> Any:
        context, pooled = encode(texts.encoders, texts.tokenizers, parse(text), is_negative=is_negative)
        context = torch.cat([context, *[context[:, -1:]] * (tokens - context.shape[1])], dim=1)
        more: dict[str, Any] = {}
        if pooled is not None:
            ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
        x = noise * sigma / (sigma**2 + 1) ** 0.5
        with torch.no_grad():
            return model.unet(x, torch.tensor(999.0), encoder_hidden_states=context, return_dict=False, **more)[0]

    calls: list[Any] = []
    hook = model.unet.register_forward_hook(lambda _m, _a, result: calls.append(result[0]))
    [*_] = draw.run(seen.job)
    hook.remove()
    assert [len(each) for each in calls] == [1] * 6, "each part and the negative prompt, in two steps"
    wanted = [answer("a cat", tokens=154), answer(f" {long}", tokens=154), answer("bad", is_negative=True)]
    for ours, theirs in zip(calls[:3], wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)

    from civman.diffusion.denoiser import Denoiser, Guidance
    from civman.diffusion.noise_levels import NoiseLevels

    denoiser = Denoiser(
        model, seen.job.models(Stage.FIRST).prompt, NoiseLevels.of_model(), guidance=Guidance(3.0),
        size=(64, 64),
    )  # fmt: skip
    with torch.no_grad():
        clean = denoiser(noise * sigma, sigma)
    one, two, none = wanted
    mixed = none + 0.7 * 3.0 * (one - none) - 0.4 * 3.0 * (two - none)
    assert torch.allclose(clean, noise * sigma - mixed * sigma, atol=2e-3), "x minus sigma times the sum"


@pytest.mark.usefixtures("stocked")
def test_a_weight_alone_multiplies_the_guidance(library: Library) -> None:
    plain = replace(REQUEST, hires=None)
    weighted = Watched(library, replace(plain, prompt="a cat : 2"))
    stronger = Watched(library, replace(plain, prompt="a cat", guidance_scale=6.0))

    assert abs(weighted.pixels.astype(int) - stronger.pixels.astype(int)).max() <= 1
    assert any("guidance is multiplied by 2" in notice for notice in weighted.planned.notices)


OPTIONS = (
    "--rng", "RTX 3060", "--variation-seed", "99", "--variation-strength", "0.25", "--seed-resize", "96x48",
    "--ensd", "31337", "--sampler", "Euler a", "--eta", "0.9", "--prompt-rules", "a1111-1.3",
)  # fmt: skip


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_all_of_it_is_in_the_recipe_in_a1111_s_text_and_comes_back_identically(civman: Civman) -> None:
    done = civman(
        "render",
        "tiny-sd1",
        "a [cat:dog:1] AND [b|c] :0.5",
        *QUICK,
        *OPTIONS,
        "--hires",
        "1.5",
        "--count",
        "2",
        "--json",
    )

    assert done.code == 0, done.out + done.err
    one, two = done.json["render"]
    recipe = one["recipe"]
    assert (recipe["schema"], recipe["prompt_rules"], recipe["rng"]) == (4, "a1111-1.3", "nv:43008")
    assert (recipe["variation_seed"], recipe["variation_strength"]) == (99, 0.25)
    assert (recipe["seed_resize_width"], recipe["seed_resize_height"]) == (96, 48)
    assert (two["recipe"]["seed"], two["recipe"]["variation_seed"]) == (7, 100)
    with Image.open(one["path"]) as image:
        text = image.text["parameters"]
    for entry in (
        "Variation seed: 99, Variation seed strength: 0.25, Seed resize from: 96x48",
        "Old prompt editing timelines: True", "ENSD: 31337", "Eta: 0.9",
    ):  # fmt: skip
        assert entry in text
    assert "RNG" not in text, "A1111 has no entry for the card's own generator"
    assert civman("replay", one["path"], "--json").json["replay"]["pictures"][0]["verdict"] == "identical"
    assert len({each["pixel_sha256"] for each in (one, two)}) == 2
    other = civman("replay", one["path"], "--set", "rng=cpu", "--json").json["render"][0]
    assert other["pixel_sha256"] != one["pixel_sha256"]
    shown = civman("show", one["path"]).out
    assert "variation seed 99" in shown


@pytest.mark.usefixtures("stocked")
def test_embeddings_of_every_stage_are_found(civman: Civman) -> None:
    done = civman("render", "tiny-sd1", "a [cat:easy:0.5][:dream:0.5]", *QUICK, "--dry-run", "--json")

    assert [use["word"] for use in done.json["plan"][0]["recipe"]["embeddings"]] == ["easydream"]


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a AND b", "prompt_rules": "a1111-1.3", "sampler": "DDIM"},
        {"prompt": "a AND b", "guidance_rescale": 0.5},
        {"prompt": "[a:b:1]", "prompt_rules": "a1111-9"},
        {"variation_strength": 1.5},
        {"seed_resize": "large"},
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused_with_a_word(library: Library, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        library.plan(replace(REQUEST, **change), ON_CPU)


@pytest.mark.usefixtures("stocked")
def test_a_diffusers_pipeline_is_not_said_to_do_it(library: Library) -> None:
    planned = library.plan(replace(REQUEST, prompt="[a:b:1]", hires=None), ON_CPU)
    for asked in (library.pipeline, library.embeddings):
        with pytest.raises(CannotRender, match="change during the steps"):
            asked(planned)


@pytest.mark.usefixtures("stocked")
def test_a_recipe_without_rules_keeps_its_text_and_never_changes_in_silence(library: Library) -> None:
    planned = library.plan(replace(REQUEST, prompt="a cat : 2", hires=None), ON_CPU)
    assert planned.recipe.prompt_rules == "a1111-1.6"
    old = replace(planned.recipe, prompt_rules="")

    assert 'schema":3' in old.to_json()
    assert library.plan(old).recipe == old
    with pytest.raises(UsageError, match="does not specify the rules for reading it"):
        library.plan(replace(old, prompt="[a:b:1]"))
