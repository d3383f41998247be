# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Prompts, adapters and checkpoints of the second pass, and refiners, against A1111's passes written out by hand."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np
from PIL import Image

from civman.diffusion.loader import load
from civman.diffusion.text_conditioning import encode
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import HiresRequest, LoraRequest, Recipe, RenderRequest
from civman.errors import CannotRender, Cause, Incompatible, UsageError
from civman.library import Library
from civman.planning.plan import Conditions
from civman.prompts.emphasis import parse
from civman.rendering.draw import draw
from civman.rendering.encode_prompts import TextEncoders

ON_CPU = Conditions(device="cpu", triggers=False)
HIRES = HiresRequest(width=96, height=96, steps=3, strength=0.6)
REQUEST = RenderRequest(
    checkpoint="tiny-sd1", prompt="a cat", negative_prompt="bad", sampler="Euler", schedule="Normal", steps=4,
    guidance_scale=3.0, width=64, height=64, seed=7, hires=HIRES,
)  # fmt: skip
_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
_ALPHAS = torch.cumprod(1 - _BETAS, 0)
SIGMAS = ((1 - _ALPHAS) / _ALPHAS).sqrt().numpy()
SCALES = {"sd1": 0.18215, "sdxl": 0.13025}


def drawn(library: Library, request: RenderRequest) -> Any:
    [found] = draw([library.plan(request, ON_CPU)], Machine("cpu", threads=1))
    return found


def normal(steps: int) -> list[float]:
    """A1111's normal schedule: times from 999 to 0, and σ interpolated in its logarithm."""
    times = np.linspace(999, 0, steps)
    return [*(float(math.exp(np.interp(time, np.arange(1000), np.log(SIGMAS)))) for time in times), 0.0]


def second_table(steps: int, strength: float) -> list[float]:
    """A1111's img2img with all its steps: the end of a longer schedule."""
    whole = int(steps / min(strength, 0.999))
    return normal(whole)[whole - steps :]


@dataclass
class Model:
    """A checkpoint with adapters added to its weights, and texts encoded by it."""

    path: Path
    kind: str
    loras: Sequence[tuple[Path, float]] = ()

    def __post_init__(self) -> None:
        from safetensors.torch import load_file

        self.parts = load(self.path, dtype=torch.float32)
        modules = dict(self.parts.unet.named_modules())
        for path, scale in self.loras:
            tensors = load_file(path)
            for key in (key for key in tensors if key.endswith("lora_down.weight")):
                name = key.removesuffix(".lora_down.weight")
                [module] = [m for n, m in modules.items() if f"lora_unet_{n.replace('.', '_')}" == name]
                up, down = tensors[f"{name}.lora_up.weight"].float(), tensors[key].float()
                rate = float(tensors[f"{name}.alpha"]) / len(down) if f"{name}.alpha" in tensors else 1.0
                with torch.no_grad():
                    module.weight = torch.nn.Parameter(module.weight + scale * rate * (up @ down))

    def text(self, words: str, *, is_negative: bool = False) -> Any:
        names = ("text_encoder", "text_encoder_2")
        texts = TextEncoders.of([self.parts.components[name] for name in names if name in self.parts.components])
        return encode(texts.encoders, texts.tokenizers, parse(words), is_negative=is_negative)

    def clean(self, x: Any, sigma: float, texts: tuple[str, str], cfg: float = 3.0) -> Any:
        """The denoised prediction: c_in, the time between two steps, ε, and guidance."""
        time = float(np.interp(math.log(sigma), np.log(SIGMAS), np.arange(1000)))
        size = [8.0 * x.shape[-2], 8.0 * x.shape[-1]]
        answers = []
        for is_negative, words in enumerate(texts):
            context, pooled = self.text(words, is_negative=bool(is_negative))
            more: dict[str, Any] = {}
            if pooled is not None:
                last = [[6.0, 2.5][is_negative]] if self.kind == "refiner" else size
                ids = torch.tensor([[*size, 0.0, 0.0, *last]])
                more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
            seen = x / math.sqrt(sigma**2 + 1)
            answers.append(self.parts.unet(seen, torch.tensor(time), encoder_hidden_states=context, **more).sample)
        wanted, unwanted = answers
        return x - (unwanted + (wanted - unwanted) * cfg) * sigma

    def decode(self, latents: Any, scale: float) -> Any:
        return (self.parts.vae.decode(latents / scale).sample[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()

    def encode(self, pixels: Any, scale: float) -> Any:
        given = torch.from_numpy(np.asarray(pixels, np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
        return self.parts.vae.encode(given).latent_dist.mean * scale


Evaluate = Callable[[Any, float], Any]


def euler(x: Any, table: Sequence[float], evaluate: Evaluate) -> Any:
    for here, after in itertools.pairwise(table):
        x = x + (x - evaluate(x, here)) * ((after - here) / here)
    return x


def noise(side: int, seed: int = 7) -> Any:
    return torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_hand(kind: str, first: Evaluate, second: Evaluate, larger: Callable[[Any], Any], last: Model) -> Any:
    """Both passes of `REQUEST`. `larger` turns the first pass's latents into the second pass's."""
    table = normal(4)
    latents = euler(noise(64) * table[0], table, first)
    table = second_table(3, 0.6)
    latents = larger(latents) + noise(96) * table[0]
    return np.rint(last.decode(euler(latents, table, second), SCALES[kind]) * 255).astype(int)


def stretched(latents: Any) -> Any:
    return torch.nn.functional.interpolate(latents, size=(12, 12), mode="bilinear")


def apart(ours: Any, theirs: Any) -> int:
    return int(np.abs(ours.pixels.astype(int) - theirs).max())


@pytest.mark.parametrize(("kind", "lora"), [("sd1", "ink"), ("sdxl", "xl-ink")])
def test_the_second_pass_has_prompts_and_adapters_of_its_own(
    library: Library, filled: dict[str, Path], kind: str, lora: str
) -> None:
    hires = replace(HIRES, prompt=f"a dog <lora:{lora}2:0.7>", negative_prompt="ugly")
    request = replace(REQUEST, checkpoint=f"tiny-{kind}", prompt=f"a cat <lora:{lora}:0.9>", hires=hires)

    ours = drawn(library, request)

    one = Model(filled[f"tiny-{kind}"], kind, [(filled[lora], 0.9)])
    two = Model(filled[f"tiny-{kind}"], kind, [(filled[f"{lora}2"], 0.7)])
    theirs = by_hand(
        kind, lambda x, s: one.clean(x, s, ("a cat", "bad")), lambda x, s: two.clean(x, s, ("a dog", "ugly")),
        stretched, two,
    )  # fmt: skip
    assert apart(ours, theirs) <= 1
    assert apart(drawn(library, replace(request, hires=HIRES)), theirs) > 3, "otherwise nothing is shown"


@pytest.mark.parametrize("kind", ["sd1", pytest.param("sdxl", marks=pytest.mark.long)])
def test_the_second_pass_has_a_checkpoint_of_its_own(library: Library, filled: dict[str, Path], kind: str) -> None:
    """The first checkpoint's VAE decodes the first image, and the second one's encodes it again, as in A1111."""
    hires = replace(HIRES, checkpoint=f"other-{kind}", upscaler="lanczos")
    request = replace(REQUEST, checkpoint=f"tiny-{kind}", hires=hires)
    ours = drawn(library, request)

    one, two = Model(filled[f"tiny-{kind}"], kind), Model(filled[f"other-{kind}"], kind)

    def larger(latents: Any) -> Any:
        image = Image.fromarray((one.decode(latents, SCALES[kind]) * 255).astype(np.uint8))
        return two.encode(image.resize((96, 96), Image.Resampling.LANCZOS), SCALES[kind])

    texts = ("a cat", "bad")
    theirs = by_hand(kind, lambda x, s: one.clean(x, s, texts), lambda x, s: two.clean(x, s, texts), larger, two)
    assert apart(ours, theirs) <= 1
    assert apart(drawn(library, replace(request, hires=replace(HIRES, upscaler="lanczos"))), theirs) > 3
    vae = replace(request, vae="other-vae") if kind == "sd1" else None
    if vae is not None:  # a VAE that the user chooses serves both checkpoints
        assert apart(drawn(library, vae), theirs) > 3


def is_refined(sigma: float, at: float) -> bool:
    """A1111 1.8: the share of the 1000 timesteps that lie behind the nearest one."""
    return bool((999 - int(np.abs(SIGMAS - sigma).argmin())) / 1000 >= at)


@pytest.mark.parametrize(
    ("kind", "finisher", "passes"),
    [
        ("sd1", "other-sd1", "both"),
        ("sdxl", "finisher", "second"),
        pytest.param("sdxl", "finisher", "first", marks=pytest.mark.long),
        pytest.param("sdxl", "other-sdxl", "second", marks=pytest.mark.long),
    ],
)
def test_a_refiner_continues_a_pass(
    library: Library, filled: dict[str, Path], kind: str, finisher: str, passes: str
) -> None:
    request = replace(REQUEST, checkpoint=f"tiny-{kind}", refiner=finisher, refiner_at=0.55, refiner_passes=passes)
    ours = drawn(library, request)

    one = Model(filled[f"tiny-{kind}"], kind)
    two = Model(filled[finisher], "refiner" if finisher == "finisher" else kind)
    texts = ("a cat", "bad")

    def refined(x: Any, sigma: float) -> Any:
        return (two if is_refined(sigma, 0.55) else one).clean(x, sigma, texts)

    def plain(x: Any, sigma: float) -> Any:
        return one.clean(x, sigma, texts)

    counted = [is_refined(sigma, 0.55) for sigma in (*normal(4)[:-1], *second_table(3, 0.6)[:-1])]
    assert counted == [False, False, True, True, False, True, True], "the switch lies within both passes"
    first, second = (plain if passes == "second" else refined), (plain if passes == "first" else refined)
    theirs = by_hand(kind, first, second, stretched, one if passes == "first" else two)
    assert apart(ours, theirs) <= 1
    assert apart(drawn(library, replace(request, refiner=None, refiner_at=None, refiner_passes=None)), theirs) > 3


@pytest.mark.parametrize(
    ("at", "switched"),
    [
        (0.5, 2),
        (0.51, 3),
        pytest.param(0.0, 0, marks=pytest.mark.long),
        pytest.param(1.0, 4, marks=pytest.mark.long),
    ],
)
def test_a_refiner_may_be_counted_in_steps(library: Library, filled: dict[str, Path], at: float, switched: int) -> None:
    request = replace(REQUEST, hires=None, refiner="other-sd1", refiner_at=at, refiner_by_steps=True)
    one, two = Model(filled["tiny-sd1"], "sd1"), Model(filled["other-sd1"], "sd1")
    table = normal(4)
    with torch.no_grad():
        latents = euler(
            noise(64) * table[0], table,
            lambda x, s: (one if table.index(s) < switched else two).clean(x, s, ("a cat", "bad")),
        )  # fmt: skip
        theirs = np.rint((one if switched == 4 else two).decode(latents, SCALES["sd1"]) * 255).astype(int)
    assert apart(drawn(library, request), theirs) <= 1


@pytest.mark.usefixtures("filled")
def test_batches_and_later_renders_are_the_same_as_single_ones(library: Library) -> None:
    """Models and adapters change several times, and come back each time."""
    hires = replace(HIRES, prompt="a dog <lora:ink2:0.7>", checkpoint="other-sd1")
    request = replace(REQUEST, prompt="a cat <lora:ink>", hires=hires, refiner="tiny-sd1", refiner_at=0.8)
    plans = [library.plan(replace(request, count=2), ON_CPU), *(
        library.plan(replace(request, seed=seed), ON_CPU) for seed in (7, 8)
    )]  # fmt: skip

    made = [each.record.pixel_sha256 for each in draw(plans, Machine("cpu", threads=1))]

    assert made[:2] == made[2:]
    assert len(set(made)) == 2
    recipe = plans[1].recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert json_schema(recipe) == 18
    again = library.plan(recipe)
    assert [each.record.pixel_sha256 for each in draw([again], Machine("cpu", threads=1))] == made[:1]


def json_schema(recipe: Recipe) -> int:
    import json

    return int(json.loads(recipe.to_json())["schema"])


@pytest.mark.usefixtures("filled")
def test_only_values_that_differ_are_recorded(library: Library) -> None:
    same = library.plan(replace(REQUEST, hires=replace(HIRES, prompt="a cat", negative_prompt="bad")), ON_CPU).recipe
    assert json_schema(same) < 18
    assert same == library.plan(REQUEST, ON_CPU).recipe

    request = replace(REQUEST, prompt="a cat", loras=(LoraRequest("ink", 0.5),))
    both = library.plan(replace(request, hires=replace(HIRES, prompt="a dog")), ON_CPU).recipe
    assert both.hires is not None
    assert (both.hires.prompt, both.hires.negative_prompt, both.hires.loras) == ("a dog", None, None)
    none = library.plan(replace(request, hires=replace(HIRES, loras=())), ON_CPU).recipe
    assert none.hires is not None
    assert (none.hires.prompt, none.hires.loras) == (None, ())


@pytest.mark.usefixtures("filled")
def test_numbers_in_the_second_prompt_count_its_own_sampler(library: Library) -> None:
    """A1111 counts 4 evaluations of Euler, then 2 for each of the second pass's steps."""
    from civman.planning.prompt_stages import passes_of

    hires = replace(HIRES, sampler="Heun", prompt="a [dog:fox:1.5]", negative_prompt="[bad:ugly:6]")
    recipe = library.plan(replace(REQUEST, hires=hires), ON_CPU).recipe
    _, second = passes_of(recipe)
    assert second is not None
    assert [(stage.last, stage.text) for stage in second.parts[0][1]] == [(3, "a dog"), (6, "a fox")]
    assert [(stage.last, stage.text) for stage in second.negative] == [(2, "bad"), (6, "ugly")]

    shared = library.plan(replace(REQUEST, prompt="a [cat:fox:1.5]", hires=replace(HIRES, sampler="Heun")), ON_CPU)
    assert shared.recipe.hires is not None
    assert shared.recipe.hires.prompt == "a [cat:fox:1.5]", "stated, so that the second pass counts its own sampler"
    _, second = passes_of(shared.recipe)
    assert second is not None
    assert second.parts[0][1][0].last == 3


@pytest.mark.usefixtures("filled")
def test_embeddings_are_found_in_the_second_prompt(library: Library) -> None:
    recipe = library.plan(replace(REQUEST, hires=replace(HIRES, prompt="a dog, easydream")), ON_CPU).recipe
    assert [use.word for use in recipe.embeddings] == ["easydream"]


REFUSED = (
    ({"hires": replace(HIRES, checkpoint="tiny-sdxl")}, Incompatible, Cause.CANNOT_WORK, "same model family"),
    ({"refiner": "tiny-sdxl"}, Incompatible, Cause.CANNOT_WORK, "refiner"),
    ({"refiner": "finisher"}, Incompatible, Cause.CANNOT_WORK, "refiner"),
    ({"refiner": "masked-sd1"}, Incompatible, Cause.CANNOT_WORK, "inpainting"),
    ({"refiner_at": 0.5}, UsageError, Cause.BAD_VALUE, "--refiner"),
    ({"refiner": "other-sd1", "refiner_passes": "both", "hires": None}, UsageError, Cause.BAD_VALUE, "--hires 2"),
    ({"refiner": "other-sd1", "refiner_at": 1.5}, UsageError, Cause.BAD_RECIPE, "0 to 1"),
    ({"refiner": "other-sd1", "refiner_passes": "third"}, UsageError, Cause.BAD_RECIPE, "first, second, both"),
    ({"hires": replace(HIRES, negative_prompt="<lora:ink:1>")}, UsageError, Cause.PROMPT_SYNTAX, "negative"),
    ({"hires": replace(HIRES, prompt="<lora:xl-ink:1>")}, Incompatible, Cause.CANNOT_WORK, ""),
    ({"hires": replace(HIRES, loras=(LoraRequest("part"),))}, Incompatible, Cause.PARTLY_APPLIES, ""),
    (
        {"prompt_parts": ("concat:b",), "hires": replace(HIRES, prompt="b")},
        UsageError,
        Cause.BAD_RECIPE,
        "additional texts",
    ),
    ({"checkpoint": "finisher"}, CannotRender, Cause.NEEDS_PICTURE, "input image"),
)


@pytest.mark.usefixtures("filled")
def test_what_cannot_work_is_refused_before_weights_are_loaded(library: Library) -> None:
    for changes, kind, cause, words in REFUSED:
        with pytest.raises(kind) as refused:
            library.plan(replace(REQUEST, **changes), ON_CPU)
        assert refused.value.code is cause, changes
        assert words in f"{refused.value.message} {refused.value.hint}"
