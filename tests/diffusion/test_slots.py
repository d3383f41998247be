# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Images side by side: bits depend on how many slots there are, not on what is in the other ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from test_controlnet import network
from test_run import PLAIN, prompt

from civman.diffusion.control_additions import Additions
from civman.diffusion.environment import threads
from civman.diffusion.families.flow_family import FlowEncoded, Instant
from civman.diffusion.flow_denoiser import FlowCall
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.run_recipe import job_of, render, run_in_slots
from civman.diffusion.stage_model import one_model
from civman.diffusion.unet_calls import Calls, Slots, UnetCall
from civman.diffusion.unet_calls import run_in_slots as side_by_side
from civman.domain.events import Step
from civman.domain.recipes.recipe import Hires, Recipe

SD = ("sd1", "sd2", "sdxl")
FLOWS = (
    "flux1",
    "flux2-dev",
    "flux2",
    "chroma",
    "z-image",
    "anima",
    "qwen-image",
    "sd3",
    "lumina2",
    "krea2",
    "ernie-image",
    "auraflow",
    "hidream",
)
Models = Callable[[str], LoadedModel]


@pytest.fixture(scope="module")
def models(tiny_files: dict[str, Path]) -> Models:
    kept: dict[str, LoadedModel] = {}
    return lambda kind: kept.get(kind) or kept.setdefault(kind, load(tiny_files[kind], dtype=torch.float32))


def unet_call(model: LoadedModel, seed: int, prompts: int, *, residuals: bool = False, merging: float = 0.0) -> Any:
    """A call for one image with random inputs."""
    made = torch.Generator().manual_seed(seed)
    width = model.configs["unet"]["cross_attention_dim"]
    added = {}
    if model.family.is_xl:
        sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).repeat(prompts, 1) * seed
        added = {"text_embeds": torch.randn(prompts, 32, generator=made), "time_ids": sizes}
    given = Additions()
    inputs, contexts = torch.randn(1, 4, 8, 8, generator=made), torch.randn(prompts, 77, width, generator=made)
    time = torch.tensor(100.0 * seed)
    if residuals:
        net = network("sd1")
        with torch.no_grad():
            skips, middle = net(
                inputs.repeat(prompts, 1, 1, 1), time, contexts, torch.rand(1, 3, 64, 64, generator=made),
                return_dict=False,
            )  # fmt: skip
        given = Additions((*skips, middle))
    return UnetCall(inputs, time, contexts, added, prompts, merging, given)


def flow_call(model: Any, name: str, seed: int) -> Any:
    made = torch.Generator().manual_seed(seed)
    config = tiny_flows.TINY[name]["transformer"][1]
    width = config.get("joint_attention_dim") or config.get("cap_feat_dim") or config.get("text_in_dim") or 1024
    if name == "anima":
        width = model.components["transformer"].config.text_embed_dim
    if name == "krea2":
        width = 12 * config["text_hidden_dim"]
    if name == "hidream":
        width = sum(count * each for count, each in zip((1, 32), config["caption_channels"], strict=True))
    pooled = torch.randn(1, config.get("pooled_projection_dim") or config.get("text_emb_dim", 8), generator=made)
    channels = {"flux2-dev": 32, "flux2": 32, "ernie-image": 32, "auraflow": 4}.get(name, 16)
    at = Instant(torch.randn(1, channels, 8, 8, generator=made), (1 / (seed + 1),), (seed + 0.5,))
    return FlowCall(model, at, FlowEncoded(torch.randn(1, 32, width, generator=made), pooled))


def check_rows(make: Callable[[int], Any], unet: Any, width: int) -> None:
    """The answer to one call is the same beside any neighbours in any slot, and close to that of the call alone."""
    mine, others = make(1), [make(seed) for seed in range(2, width + 1)]
    with torch.no_grad():
        (copies,) = Slots(unet, width).answer([mine])
        alone = mine.answer(unet)
        slots = Slots(unet, width)
        for slot in {0, 1, width - 1}:
            beside = [*others[:slot], mine, *others[slot:]]
            found = slots.answer(beside)
            assert torch.equal(found[slot], copies), f"slot {slot}"
            assert torch.equal(slots.answer(beside[: slot + 1])[slot], copies), f"slot {slot}, filled up"
            neighbour = (slot + 1) % width
            assert not torch.equal(found[neighbour], copies)
            assert torch.allclose(found[neighbour], beside[neighbour].answer(unet), rtol=1e-4, atol=1e-4)
    assert torch.allclose(copies, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "width", "prompts", "cores"),
    [
        ("sd1", 2, 1, 1),
        ("sd1", 4, 2, 1),
        ("sd1", 8, 2, 1),
        ("sdxl", 4, 2, 1),
        pytest.param("sd2", 2, 2, 2, marks=pytest.mark.long),
    ],
)
def test_a_row_of_the_unet_depends_on_the_width_alone(
    models: Models, kind: str, width: int, prompts: int, cores: int
) -> None:
    model = models(kind)
    with threads(cores):
        check_rows(lambda seed: unet_call(model, seed, prompts), model.unet, width)


def test_where_the_slot_matters_images_are_computed_beside_copies_of_themselves(models: Models) -> None:
    model = models("sd1")

    class Uneven(torch.nn.Module):
        calls = 0

        def forward(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            (found,) = model.unet(inputs, *args, **kwargs)
            return (found + torch.arange(len(found)).view(-1, 1, 1, 1) * 1e-6,)

    uneven = Uneven()
    check_rows(lambda seed: unet_call(model, seed, 1), uneven, 3)

    uneven.calls, slots = 0, Slots(uneven, 3)
    with torch.no_grad():
        for _ in range(2):
            slots.answer([unet_call(model, seed, 1) for seed in range(3)])
    assert uneven.calls == 7, "one to find out, then three for three images"


@pytest.mark.parametrize("change", [{"merging": 0.5}, {"residuals": True}], ids=str)
def test_so_does_a_row_with_merged_tokens_or_a_controlnet(models: Models, change: dict[str, Any]) -> None:
    model = models("sd1")
    check_rows(lambda seed: unet_call(model, seed, 2, **change), model.unet, 4)


@pytest.mark.parametrize("name", FLOWS)
def test_a_row_of_a_transformer_depends_on_the_width_alone(name: str) -> None:
    from civman.diffusion.families.registry import FLOW_FAMILIES

    family = next(each for each in FLOW_FAMILIES if each.name == name)
    model = SimpleNamespace(family=family, components=tiny_flows.modules(name))
    for width in (2, 4):
        check_rows(lambda seed: flow_call(model, name, seed), None, width)


def drawn(model: LoadedModel, recipes: list[Recipe]) -> dict[int, str]:
    """Render recipes in slots; each has its own prompt. Returns seed → SHA-256 of the pixels."""

    def calls(recipe: Recipe) -> Calls[tuple[int, str]]:
        given = prompt(model, seed=recipe.seed, chunks=1 + recipe.seed % 2)
        (made,) = yield from job_of(recipe, one_model(model, given)).batch(0, [recipe.seed])
        return recipe.seed, made.sha256

    return dict(run_in_slots(recipes[0], model, map(calls, recipes)))


KINDS = {
    "no noise": {"sampler": "DPM++ 2M"},
    "ancestral": {"sampler": "Euler a"},
    "SDE": {"sampler": "DPM++ 2M SDE", "schedule": "Karras"},
    "two evaluations": {"sampler": "DPM++ SDE"},
    "own scale": {"sampler": "UniPC"},
    "CFG++": {"sampler": "Euler a CFG++"},
    "second pass": {"hires": Hires(96, 96, 2, 0.6, "latent")},
}


QUICK = ("no noise", "SDE")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if name == "sd1" and kind in QUICK else pytest.mark.long)
        for name in ("sd1", "sdxl")
        for kind in KINDS
    ],
)
def test_an_image_beside_others_is_the_one_beside_copies_of_itself(models: Models, name: str, kind: str) -> None:
    """Neighbours with other prompts, lengths, sizes, guidance and numbers of steps."""
    model = models(name)
    first = replace(PLAIN, slots=3, **KINDS[kind])  # type: ignore[arg-type]
    others: list[dict[str, Any]] = [{}, {"guidance_scale": 1.0}, {"steps": 2}, {"width": 96}, {"guidance_rescale": 0.5}]
    recipes = [replace(first, seed=seed, **others[seed % len(others)]) for seed in range(7)]

    together = drawn(model, recipes)
    backwards = drawn(model, recipes[::-1])

    assert together == backwards
    for recipe in recipes[:5:2]:
        assert drawn(model, [recipe])[recipe.seed] == together[recipe.seed]
    assert len(set(together.values())) == len(recipes)


@pytest.mark.long
def test_images_of_an_adaptive_sampler_can_be_neighbours(models: Models) -> None:
    model = models("sd1")
    recipes = [replace(PLAIN, slots=2, sampler="DPM adaptive", seed=seed) for seed in range(3)]

    together = drawn(model, recipes)

    assert all(drawn(model, [recipe])[recipe.seed] == together[recipe.seed] for recipe in recipes)


def test_slots_are_filled_as_soon_as_they_are_free(models: Models) -> None:
    """Ten images of one to four evaluations, in four slots: no more calls than these evaluations need."""
    widths: list[int] = []
    unet = models("sd1").unet

    class Counted(torch.nn.Module):
        def forward(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            widths.append(len(inputs))
            return unet(inputs, *args, **kwargs)

    lengths = [1, 4, 2, 2, 3, 1, 4, 1, 3, 3]

    def calls(number: int) -> Calls[int]:
        for _ in range(lengths[number]):
            yield unet_call(models("sd1"), number + 1, 1)
        return number

    @contextmanager
    def within() -> Iterator[None]:
        with torch.no_grad():
            yield

    order = list(side_by_side(map(calls, range(10)), Counted(), 4, within))

    assert sorted(order) == list(range(10))
    assert order[0] == 0
    assert set(widths) == {4}
    assert len(widths) <= -(-sum(lengths) // 4) + 3


def test_an_error_closes_the_generators_of_the_neighbours(models: Models) -> None:
    closed: list[int] = []

    def calls(number: int) -> Calls[int]:
        try:
            for _ in range(3):
                yield unet_call(models("sd1"), number + 1, 1)
                if number == 1:
                    raise MemoryError("no room")
        finally:
            closed.append(number)
        return number

    with pytest.raises(MemoryError, match="no room"), torch.no_grad():
        list(side_by_side(map(calls, range(4)), models("sd1").unet, 4, torch.no_grad))

    assert sorted(closed) == [0, 1, 2, 3]


def test_a_recipe_with_slots_differs_from_one_without_by_rounding_only(models: Models) -> None:
    model, steps = models("sd1"), []
    recipe = replace(PLAIN, slots=4)

    def calls() -> Calls[Any]:
        (made,) = yield from job_of(recipe, one_model(model, prompt(model)), on_event=steps.append).batch(
            0, [recipe.seed]
        )
        return made

    (beside_copies,) = run_in_slots(recipe, model, iter([calls()]))
    (alone,) = render(PLAIN, model, prompt(model))

    apart = abs(beside_copies.pixels.astype(int) - alone.pixels.astype(int))
    assert apart.max() <= 1
    assert [each.step for each in steps if isinstance(each, Step)] == [1, 2, 3]
    with pytest.raises(ValueError, match="run_in_slots"):
        render(recipe, model, prompt(model))
