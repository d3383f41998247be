# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""`civman render --slots`: images of different prompts side by side, each of which can be rendered again alone."""

from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from rendering_stock import QUICK
from test_control_command import write_net

from civman.domain.events import Event, Step
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.render_request import ControlRequest, HiresRequest, LoraRequest, RenderRequest
from civman.library import Library
from civman.planning.plan_types import Planned
from civman.planning.slot_groups import beside, slot_groups
from civman.rendering.warm_engines import WARM, WarmEngines

ONE = Machine("cpu", threads=1)
SLOTS = ("--slots", "4", "--threads", "1", "--json")


def thirty(library: Library, guide: Path) -> list[Planned]:
    """Thirty images of plans that differ in everything that a request can say."""
    quick: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 3.0, "sampler": "Euler"}
    changes: list[dict[str, Any]] = [
        {}, {"sampler": "Euler a"}, {"sampler": "DPM++ 2M SDE", "schedule": "Karras"}, {"steps": 3},
        {"guidance_scale": 1.0}, {"prompt": "a cat, " * 60}, {"prompt": "a [cat:dog:0.5] AND a cow"},
        {"width": 96}, {"hires": HiresRequest(scale=1.5, steps=2, strength=0.6)}, {"loras": (LoraRequest("ink"),)},
        {"loras": (LoraRequest("ink"),), "sampler": "UniPC"}, {"clip_skip": 2}, {"freeu": "v2"},
        {"token_merging": 0.5}, {"variation_strength": 0.3, "variation_seed": 4}, {"checkpoint": "tiny-sdxl"},
        {"checkpoint": "tiny-sdxl", "sampler": "DPM++ SDE"}, {"rng": "nv"}, {"guidance_rescale": 0.5},
        {"controls": (ControlRequest(str(guide), "sd1-lines"),)}, {"init_image": str(guide), "strength": 0.7},
    ]  # fmt: skip
    requests = [
        RenderRequest(**{"checkpoint": "tiny-sd1", "prompt": f"image {number}", "seed": number} | quick | change,
                      slots=4, count=2 if number < 9 else 1)
        for number, change in enumerate(changes)
    ]  # fmt: skip
    return [library.plan(each) for each in requests]


def test_thirty_mixed_images_are_the_same_alone(
    stocked: Path, library: Library, civman: Civman, tmp_path: Path
) -> None:
    from rendering_stock import picture

    assert civman("import", "--offline", write_net(tmp_path / "sd1-lines.safetensors", "sd1")).code == 0
    plans = thirty(library, picture(tmp_path / "guide.png", (64, 64)))
    events: list[Event] = []

    made = library.render(plans, output=tmp_path / "out", machine=ONE, on_event=events.append)

    assert len(made) == 30
    wanted = [(each.recipe.prompt, each.recipe.seed + image) for each in plans for image in range(each.recipe.count)]
    assert [(each.recipe.prompt, each.seed) for each in made] == wanted, "in the order of the plans"
    assert {(each.recipe.slots, each.recipe.count) for each in made} == {(4, 1)}
    token = WARM.set(WarmEngines(2**40))  # so that replays load each model once
    try:
        for each in made:
            (again,) = library.replay(library.pictures.find_recipe(str(each.path)), machine=ONE)
            assert again.verdict == "identical", each.recipe
    finally:
        WARM.reset(token)
    steps = [(each.first, each.step) for each in events if isinstance(each, Step)]
    assert steps == sorted(steps)
    assert {each.count for each in events if isinstance(each, Step)} == {30}
    assert stocked


def test_groups_are_decided_before_anything_is_loaded(stocked: Path, library: Library) -> None:
    quick: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "sampler": "Euler", "seed": 1, "slots": 4}
    changes: list[dict[str, Any]] = [
        {"width": 96}, {"prompt": "b"}, {"loras": (LoraRequest("ink"),)}, {"width": 96, "seed": 2}, {"slots": 2},
        {"slots": None}, {"slots": 1}, {"guidance_scale": 2.0, "count": 3}, {"checkpoint": "tiny-sdxl"},
    ]  # fmt: skip
    plans = [
        library.plan(RenderRequest(**{"checkpoint": "tiny-sd1", "prompt": "a"} | quick | each)) for each in changes
    ]

    assert slot_groups(plans) == [(0, 3, 1, 7), (2,), (4,), (5,), (6,), (8,)]
    assert beside(plans) == [5, 5, 0, 5, 0, 0, 0, 3, 0]
    assert plans[5].recipe == plans[6].recipe, "one slot is one image at a time"
    assert plans[0].memory.unet_work > 3 * plans[5].memory.unet_work
    assert stocked


@pytest.mark.usefixtures("stocked")
def test_prompts_of_one_command_share_slots_and_a_job_is_resumed(civman: Civman, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\na cow\n")
    words = ("render", "tiny-sd1", "--prompts", file, "--count", "2", *QUICK, *SLOTS)

    here = civman(*words, "--output", tmp_path / "here")
    (tmp_path / "there").mkdir()
    first = civman(*words[:3], _lines(tmp_path / "one.txt", "a dog"), *words[4:], "--output", tmp_path / "there")
    rest = civman(*words, "--output", tmp_path / "there", "--resume")
    on_two = civman(*words, "--output", tmp_path / "two", "--on", "2")

    assert here.code == 0, here.err
    found = {(each["recipe"]["prompt"], each["seed"]): each["pixel_sha256"] for each in here.json["render"]}
    assert len(found) == 6
    for other, count in ((first, 2), (rest, 4), (on_two, 6)):
        assert other.code == 0, other.err
        assert len(other.json["render"]) == count
        for each in other.json["render"]:
            assert each["pixel_sha256"] == found[each["recipe"]["prompt"], each["seed"]]
    assert [each["seed"] for each in on_two.json["render"]] == [each["seed"] for each in here.json["render"]]
    assert {each["recipe"]["schema"] for each in here.json["render"]} == {13}


def _lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


@pytest.mark.usefixtures("stocked")
def test_a_grid_is_filled_in_slots(civman: Civman, tmp_path: Path) -> None:
    words = ("render", "tiny-sd1", "a cat", *QUICK, "--grid", "cfg=2,3,4", "--grid", "seed=1,2", *SLOTS)

    made = civman(*words, "--output", tmp_path / "grid")

    assert made.code == 0, made.err
    cells = made.json["grid"]["cells"]
    assert [(each["column"], each["row"]) for each in cells] == [(x, y) for y in range(2) for x in range(3)]
    assert {each["recipe"]["slots"] for each in cells} == {4}
    for each in cells[1::3]:
        values = {"cfg": each["recipe"]["guidance_scale"], "seed": each["seed"]}
        assert {name: float(text) for name, text in each["values"].items()} == values
        assert civman("replay", each["path"]).code == 0


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    ("more", "says", "hint"),
    [
        (("--batch-size", "2"), "--batch-size and --slots cannot be combined", "different prompts"),
        (("--exact",), "--exact renders one image at a time", ""),
        (("--slots", "300"), "slots must be 2 to 256", ""),
    ],
)
def test_what_cannot_be_combined_is_refused(civman: Civman, more: tuple[str, ...], says: str, hint: str) -> None:
    found = civman("render", "tiny-sd1", "a cat", *QUICK, *SLOTS, *more, "--dry-run")

    assert found.code == 2
    assert says in found.json["error"]["message"]
    assert hint in (found.json["error"]["hint"] or "")


@pytest.mark.usefixtures("stocked")
def test_an_image_whose_lora_changes_over_the_steps_is_computed_alone(civman: Civman) -> None:
    words = ("render", "tiny-sd1", *QUICK, "--slots", "4", "--dry-run", "--json")

    alone = civman(*words, "a cat <lora:ink:0@0,1@0.5>")
    beside = civman(*words, "a cat <lora:ink:0.5>")

    (plan,) = alone.json["plan"]
    assert plan["recipe"].get("slots", 0) == 0
    assert any("the scale of a LoRA changes" in each for each in plan["notices"])
    assert beside.json["plan"][0]["recipe"]["slots"] == 4


@pytest.mark.usefixtures("stocked")
def test_the_plan_says_how_many_images_share_slots(civman: Civman, tmp_path: Path) -> None:
    file = _lines(tmp_path / "prompts.txt", "a cat", "a dog")
    words = ("render", "tiny-sd1", "--prompts", file, *QUICK, "--slots", "4", "--dry-run")

    assert civman(*words).out.count("4 at a time in slots that can be shared with 1 other image") == 2
    assert [each["recipe"]["slots"] for each in civman(*words, "--json").json["plan"]] == [4, 4]
