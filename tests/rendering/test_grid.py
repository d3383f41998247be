"""`--grid`: every cell the picture that its recipe gives alone, and a sheet that says which cell is which."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from running import Civman, Run

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np
from rendering_stock import QUICK

from civman.domain.events import Event, Step
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import RenderRequest
from civman.errors import Interrupted, UsageError
from civman.library import Library
from civman.pictures import contact_sheet, image_text
from civman.planning.grid_axes import MOST_CELLS, axes_of
from civman.planning.plan import Conditions
from civman.rendering.grid import Grid, drawing_order

CAT = ("render", "tiny-sd1", "a red cat", *QUICK)
ON_CPU = Conditions(device="cpu")


def grid_of(run: Run) -> Any:
    assert run.code == 0, run.out + run.err
    return run.json["grid"]


def cell(grid: Any, **values: str) -> Any:
    (found,) = [each for each in grid["cells"] if each["values"] == values]
    return found


@pytest.fixture(scope="module")
def filled(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that holds all of the stock where it lies, made once: taking it in costs more than most tests."""
    root = tmp_path_factory.mktemp("filled") / "library"
    with Library.open(root) as library:
        library.files.import_files([stock])
    return root


@pytest.fixture
def stocked(filled: Path, root: Path, stock: Path) -> Path:
    shutil.copytree(filled, root)
    return stock


@pytest.fixture
def held(stocked: Path, library: Library) -> Library:
    return library


def planned(held: Library, *axes: str, checkpoint: str = "tiny-sd1", **options: Any) -> Grid:
    asked = {"width": 64, "height": 64, "steps": 2, "seed": 7, "sampler": "Euler"} | options
    return held.grids.plan(RenderRequest(checkpoint, "a red cat", **asked), axes_of(axes), conditions=ON_CPU)


# -- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=1..4", ["1", "2", "3", "4"]),
        ("seed=4..1", ["4", "3", "2", "1"]),
        ("seed=1..7/3,20", ["1", "4", "7", "20"]),
        ("cfg=0..1/0.25", ["0", "0.25", "0.5", "0.75", "1"]),
        ("lora:678=-1..1/1", ["-1", "0", "1"]),
        ("lora:678=0.5:1, 1:0.5", ["0.5:1", "1:0.5"]),
        ("lora:https://civitai.com/models/1?modelVersionId=5=0,1", ["0", "1"]),
        ("prompt=a cat, sitting|a dog = no cat", ["a cat, sitting", "a dog = no cat"]),
        ("prompt=1..3,4", ["1..3", "4"]),
        (r"prompt=[a\|b]|c", ["[a|b]", "c"]),
        (r"s/r=red\, blue,green", ["red, blue", "green"]),
        ("vae=,other", ["", "other"]),
    ],
)
def test_values_are_lists_ranges_and_text(text: str, values: list[str]) -> None:
    (axis,) = axes_of([text])

    assert list(axis.values) == values
    assert axis.name == text[: -len(text.split(axis.name)[1])]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["seed"], "FIELD=VALUE"),
        (["=1,2"], "FIELD=VALUE"),
        (["seed=1"], "at least two values"),
        (["seed=1,2,1"], "the value `1` occurs twice"),
        (["seed=1..401"], "401 values"),
        (["seed=1..999999999999999999999"], "values"),
        (["seed=1..21", "steps=1..20"], "420 cells"),
        (["cfg=1.5..3"], "needs a step"),
        (["cfg=1..3/0"], "the step is 0"),
        (["count=1,2"], "one picture"),
        (["batch-size=1,2"], "one picture"),
        (["seed=1,2", "seed=3,4"], "change the same field"),
        (["cfg=1,2", "guidance-scale=3,4"], "change the same field"),
        (["size=64x64,72x64", "width=64,72"], "change the same field"),
        (["s/r=red,blue", "s/r=red,green"], "change the same field"),
        (["s/r=,blue"], "text to search for"),
        (["seed=1,2", "steps=1,2", "cfg=1,2"], "one axis or two"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_in_words(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        axes_of(texts)

    assert caught.value.code == "bad-grid"


def test_as_many_cells_as_are_allowed_are_allowed() -> None:
    assert len(axes_of([f"seed=1..{MOST_CELLS}"])[0].values) == MOST_CELLS


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--grid", "sampler=Euler,Oiler"), "unknown-sampler"),
        (("--grid", "steps=2,many"), "bad-value"),
        (("--grid", "colour=red,blue"), "unknown-field"),
        (("--grid", "size=64x64,65x64"), "bad-recipe"),
        (("--grid", "lora:ink=0,much"), "bad-value"),
        (("--grid", "lora:nobody=0,1"), "not-found"),
        (("--grid", "lora:ink=0,1", "--grid", "lora:ink.safetensors=0,1"), "bad-grid"),
        (("--grid", "checkpoint=tiny-sd1,nobody"), "not-found"),
        (("--grid", "s/r=green,blue"), "bad-grid"),
        (("--grid", "seed=1,2", "--count", "2"), "bad-grid"),
        (("--grid", "seed=1,2", "--output", "contact_sheet.jpg"), "usage"),
    ],
)
def test_a_bad_value_is_refused_before_a_weight_is_loaded(
    civman: Civman, root: Path, options: tuple[str, ...], code: str
) -> None:
    done = civman(*CAT, *options, "--json")

    assert done.json["error"]["code"] == code
    assert not (root / "renders").exists()


@pytest.mark.usefixtures("stocked")
def test_a_tag_in_the_prompt_and_an_axis_about_the_same_lora_are_refused(civman: Civman) -> None:
    done = civman("render", "tiny-sd1", "a cat <lora:ink:1>", *QUICK, "--grid", "lora:ink=0,1")

    assert (done.code, "remove the tag from the prompt" in done.err) == (2, True)


# -- cells are pictures of their own -----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.usefixtures("stocked", "no_sockets")
def test_each_cell_equals_its_single_render_byte_for_byte(civman: Civman, tmp_path: Path) -> None:
    grid = grid_of(civman(*CAT, "--grid", "lora:ink=0,0.5,1", "--grid", "seed=7..8", "--json"))

    assert [(each["column"], each["row"]) for each in grid["cells"]] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    for each in grid["cells"]:
        scale, seed = each["values"]["lora:ink"], each["values"]["seed"]
        lora = ["--lora", f"ink:{scale}"] if scale != "0" else []
        alone = civman(*CAT, "--seed", seed, *lora, "--output", tmp_path / "alone", "--json").json["render"][0]
        assert Path(alone["path"]).read_bytes() == Path(each["path"]).read_bytes()
        assert alone["recipe_sha256"] == each["recipe_sha256"]
    assert len({each["pixel_sha256"] for each in grid["cells"]}) == 6


@pytest.mark.usefixtures("stocked")
def test_each_cell_can_be_made_again_by_its_number(civman: Civman) -> None:
    grid = grid_of(civman(*CAT, "--grid", "sampler=Euler a,DPM++ 2M SDE", "--grid", "lora:ink=1,0", "--json"))

    for each in grid["cells"]:
        again = civman("replay", each["id"], "--json")
        assert (again.code, again.json["replay"]["pictures"][0]["verdict"]) == (0, "identical")


@pytest.mark.long
@pytest.mark.usefixtures("stocked")
def test_a_cell_after_a_lora_has_the_bits_of_one_before(civman: Civman) -> None:
    bare = civman(*CAT, "--json").json["render"][0]

    up = grid_of(civman(*CAT, "--grid", "lora:ink=0,1", "--json"))
    down = grid_of(civman(*CAT, "--grid", "lora:ink=1,0", "--json"))

    assert cell(up, **{"lora:ink": "0"})["pixel_sha256"] == bare["pixel_sha256"]
    assert cell(down, **{"lora:ink": "0"})["pixel_sha256"] == bare["pixel_sha256"]
    one = [cell(grid, **{"lora:ink": "1"})["pixel_sha256"] for grid in (up, down)]
    assert one[0] == one[1] != bare["pixel_sha256"]


def test_cells_are_drawn_so_that_models_are_loaded_once_and_loras_change_least(held: Library) -> None:
    precise = planned(held, "precision=float32,bfloat16", "lora:ink=0,1")
    seeds = planned(held, "lora:ink=0,1", "seed=1..2")

    assert [each.name for each in drawing_order(precise.cells)] == [
        "precision=float32, lora:ink=0", "precision=float32, lora:ink=1",
        "precision=bfloat16, lora:ink=0", "precision=bfloat16, lora:ink=1",
    ]  # fmt: skip
    assert [each.name for each in drawing_order(seeds.cells)] == [
        "lora:ink=0, seed=1", "lora:ink=0, seed=2", "lora:ink=1, seed=1", "lora:ink=1, seed=2",
    ]  # fmt: skip


@pytest.mark.long
def test_the_order_of_drawing_changes_no_pixel(held: Library) -> None:
    grid = planned(held, "lora:ink=0,1", "clip_skip=1,2")

    drawn = held.grids.draw(grid, machine=Machine("cpu"))
    backwards = held.render([each.planned for each in reversed(grid.cells)], machine=Machine("cpu"))

    assert [each.pixel_sha256 for each in drawn.pictures] == [each.pixel_sha256 for each in reversed(backwards)]
    assert len({each.pixel_sha256 for each in drawn.pictures}) == 4


def test_a_cell_is_what_the_request_with_its_values_gives(held: Library) -> None:
    grid = planned(held, "seed=1..2", "sampler=DPM++ SDE|DDIM", schedule="karras")

    for each in grid.cells:
        values = dict(each.values)
        asked = RenderRequest("tiny-sd1", "a red cat", width=64, height=64, steps=2, schedule="karras",
                              sampler=values["sampler"], seed=int(values["seed"]))  # fmt: skip
        assert held.plan(asked, ON_CPU) == each.planned


def test_all_cells_share_the_seed_that_nobody_gave(held: Library) -> None:
    first, second = (planned(held, "steps=1..3", seed=None) for _ in range(2))

    seeds = [{each.planned.recipe.seed for each in grid.cells} for grid in (first, second)]
    assert [len(each) for each in seeds] == [1, 1]
    assert seeds[0] != seeds[1]


def test_another_checkpoint_brings_its_own_size_and_prediction(held: Library) -> None:
    grid = planned(held, "checkpoint=tiny-sd1|tiny-sdxl", width=None, height=None)

    assert [each.planned.recipe.width for each in grid.cells] == [512, 1024]


def test_prompts_and_parts_of_prompts_are_axes(held: Library) -> None:
    grid = planned(held, "prompt=a red cat, sitting|a red dog", "s/r=red,blue, <lora:ink:1>")

    recipes = [each.planned.recipe for each in grid.cells]
    assert [recipe.prompt for recipe in recipes] == [
        "a red cat, sitting", "a red dog", "a blue cat, sitting", "a blue dog", "a  cat, sitting", "a  dog",
    ]  # fmt: skip
    assert [len(recipe.loras) for recipe in recipes] == [0, 0, 0, 0, 1, 1]


def test_two_parts_of_the_prompt_are_two_axes(held: Library) -> None:
    grid = planned(held, "s/r=red,blue", "s/r=cat,dog")

    assert [each.planned.recipe.prompt for each in grid.cells] == ["a red cat", "a blue cat", "a red dog", "a blue dog"]
    assert grid.cells[3].values == (("s/r red", "blue"), ("s/r cat", "dog"))


@pytest.mark.usefixtures("stocked")
def test_an_axis_of_prompts_needs_no_prompt_beside_it(civman: Civman) -> None:
    done = civman("render", "tiny-sd1", *QUICK, "--grid", "prompt=a cat|a dog", "--dry-run", "--json")

    assert [each["recipe"]["prompt"] for each in done.json["grid_plan"]["cells"]] == ["a cat", "a dog"]


@pytest.mark.usefixtures("stocked")
def test_a_picture_is_varied_along_axes_and_remembered_as_parent(civman: Civman) -> None:
    first = civman(*CAT, "--lora", "ink:1", "--json").json["render"][0]

    grid = grid_of(civman("replay", first["path"], "--set", "steps=3", "--grid", "lora:ink=0,1", "--grid",
                          "s/r=red,blue", "--device", "cpu", "--json"))  # fmt: skip

    assert {each["parent"] for each in grid["cells"]} == {first["recipe_sha256"]}
    assert {each["recipe"]["steps"] for each in grid["cells"]} == {3}
    assert [each["recipe"]["prompt"] for each in grid["cells"]] == ["a red cat"] * 2 + ["a blue cat"] * 2
    alone = civman(*CAT, "--steps", "3", "--json").json["render"][0]
    assert cell(grid, **{"lora:ink": "0", "s/r red": "red"})["pixel_sha256"] == alone["pixel_sha256"]


@pytest.mark.usefixtures("stocked")
def test_a_picture_of_a_batch_is_varied_with_its_own_seed(civman: Civman) -> None:
    batch = civman(*CAT, "--count", "2", "--batch-size", "2", "--json").json["render"]

    grid = grid_of(civman("replay", batch[1]["path"], "--grid", "steps=2,3", "--device", "cpu", "--json"))

    assert [(each["seed"], each["recipe"]["count"]) for each in grid["cells"]] == [(8, 1), (8, 1)]


# -- when it does not end well -----------------------------------------------------------------------------------------


def test_an_interrupted_grid_keeps_its_finished_cells_and_makes_no_sheet(held: Library, root: Path) -> None:
    seen = 0

    def stop_in_the_third(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Step) and event.step == 1
        if seen == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"2 of 4 cells are saved in .*no contact sheet was made"):
        held.grids.draw(planned(held, "seed=1..4"), machine=Machine("cpu"), on_event=stop_in_the_third)

    assert len(list((root / "renders").iterdir())) == 2
    assert [each.record.seed for each in held.pictures.list()] == [2, 1]


@pytest.mark.usefixtures("stocked")
def test_a_cell_that_cannot_be_drawn_is_named_and_those_before_it_are_kept(civman: Civman, root: Path) -> None:
    done = civman(*CAT, "--grid", "lora:empty=0,1", "--json")

    error = done.json["error"]
    assert (done.code, error["code"]) == (7, "adapter-no-change")
    assert error["message"].startswith("cell lora:empty=1: ")
    assert "1 of 2 cells are saved" in error["message"]
    assert len(list((root / "renders").iterdir())) == len(error["facts"]["paths"]) == 1


# -- the sheet ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stocked")
def test_the_sheet_shows_each_cell_at_its_place_twice_as_large(civman: Civman, tmp_path: Path) -> None:
    grid = grid_of(civman(*CAT, "--grid", "lora:ink=0,0.5,1", "--grid", "seed=7..8", "-o", tmp_path, "--json"))

    path = Path(grid["sheet"])
    pixels = image_text.pixels(path)
    assert path.parent == tmp_path
    assert path.name.startswith("grid-lora-ink-x-seed-")
    found = {}
    for each in grid["cells"]:
        wanted = image_text.pixels(Path(each["path"])).repeat(2, axis=0).repeat(2, axis=1)
        (found[each["column"], each["row"]],) = places(pixels, wanted)
    assert [found[column, 0][0] for column in range(3)] == [found[column, 1][0] for column in range(3)]
    lefts = [found[column, 0][0] for column in range(3)]
    tops = [found[0, row][1] for row in range(2)]
    assert (lefts, tops) == (sorted(lefts), sorted(tops))


def places(sheet_pixels: Any, wanted: Any) -> list[tuple[int, int]]:
    """(x, y) of everywhere that a picture stands in another."""
    height, width = wanted.shape[:2]
    starts = np.argwhere((sheet_pixels[: -height + 1, : -width + 1] == wanted[0, 0]).all(axis=2))
    return [(x, y) for y, x in starts if (sheet_pixels[y : y + height, x : x + width] == wanted).all()]


@pytest.mark.usefixtures("stocked")
def test_a_sheet_tells_its_cells_and_is_no_picture_to_replay(civman: Civman) -> None:
    grid = grid_of(civman(*CAT, "--grid", "lora:ink=0,1", "--grid", "seed=7..8", "--json"))

    carried = image_text.read(Path(grid["sheet"]))
    told = contact_sheet.contents(carried.entries)
    done = civman("replay", grid["sheet"])
    shown = civman("show", grid["sheet"])

    digests = [each["recipe_sha256"] for each in grid["cells"]]
    assert (carried.record, carried.parameters) == (None, None)
    assert told == contact_sheet.Contents(
        (("lora:ink", ("0", "1")), ("seed", ("7", "8"))), (tuple(digests[:2]), tuple(digests[2:]))
    )
    assert done.code == 2
    assert "contact sheet of 4 cells" in done.err
    for each in grid["cells"]:
        assert f"lora:ink={each['values']['lora:ink']}, seed={each['seed']}: picture:{each['id']}" in done.err
    assert "contact sheet" in shown.out + shown.err


@pytest.mark.usefixtures("stocked")
def test_a_sheet_from_elsewhere_names_recipes(civman: Civman, tmp_path: Path) -> None:
    told = contact_sheet.Contents((("seed", ("1", "2")),), (("ab" * 32, "cd" * 32),))
    (tmp_path / "contact_sheet.png").write_bytes(contact_sheet.as_png(np.zeros((8, 8, 3), np.uint8), told))

    done = civman("replay", tmp_path / "contact_sheet.png", "--json")

    assert "seed=2: recipe cdcdcdcdcdcd" in done.json["error"]["message"]
    assert done.json["error"]["facts"]["cells"] == ["ab" * 32, "cd" * 32]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"civman_grid": 2}', '{"civman_grid": 1, "axes": [], "recipes": 3}',
        '{"civman_grid": 1, "axes": [{"name": "seed", "values": []}], "recipes": [["a"]]}',
    ],
)  # fmt: skip
def test_a_damaged_list_of_cells_is_told(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        contact_sheet.contents({contact_sheet.KEYWORD: text})

    assert caught.value.code == "bad-grid"


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("option", ["--no-metadata", "--strip-prompt"])
def test_a_sheet_tells_no_more_than_its_cells(civman: Civman, option: str) -> None:
    grid = grid_of(civman(*CAT, "--grid", "prompt=a secret|another secret", "--grid", "seed=7..8", option, "--json"))

    data = Path(grid["sheet"]).read_bytes()
    replaced = grid_of(civman("render", "tiny-sd1", "a secret", *QUICK, "--grid", "s/r=secret,wish", option, "--json"))
    assert b"secret" not in data + Path(replaced["sheet"]).read_bytes()
    assert (contact_sheet.KEYWORD.encode() in data) == (option == "--strip-prompt")


@pytest.mark.usefixtures("stocked")
def test_the_file_that_is_named_is_the_sheet(civman: Civman, tmp_path: Path) -> None:
    target = tmp_path / "out" / "mine.png"
    runs = [civman(*CAT, "--grid", "steps=1..2", "-o", target, "--format", "jpeg", "--quiet") for _ in range(2)]

    sheets = [Path(run.out.splitlines()[-1]) for run in runs]
    assert [path.name for path in sheets] == ["mine.png", "mine-2.png"]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    assert len(list(target.parent.glob("*.jpg"))) == 4


def block(width: int, height: int, shade: int = 90) -> Any:
    return np.full((height, width, 3), shade, np.uint8)


@pytest.mark.parametrize(
    "value",
    ["0.5", "", "a very long prompt with many words that no column is wide enough for, " * 9, "x" * 500, "café, naïve",
     "猫と犬", "😀" * 40, "\x1b[31m\n\ttabs", "half \ud800 a pair", "עברית", "…"],
)  # fmt: skip
@pytest.mark.parametrize("size", [(64, 64), (8, 200), (320, 64)])
def test_whatever_a_label_says_it_stays_in_its_place(value: str, size: tuple[int, int]) -> None:
    labels = contact_sheet.Labels(value, ("1", value))

    pixels = contact_sheet.drawn([[block(*size)] * 2] * 2, labels, labels)

    ink = (pixels < 60).all(axis=2)
    assert ink.any()
    assert not ink[0].any()
    assert not ink[-1].any()
    assert not ink[:, 0].any()
    assert not ink[:, -1].any()
    assert max(pixels.shape[:2]) < 3000
    scale = 1 if max(size) >= 128 else 2
    assert ((pixels == 90).all(axis=2)).sum() >= size[0] * size[1] * scale**2 * 4


def test_labels_in_letters_that_the_font_lacks_can_still_be_told_apart() -> None:
    one = contact_sheet.drawn([[block(128, 128)] * 2], contact_sheet.Labels("prompt", ("猫", "犬")))
    two = contact_sheet.drawn([[block(128, 128)] * 2], contact_sheet.Labels("prompt", ("犬", "犬")))

    halves = np.array_split(one[:60, 8:-8], 2, axis=1)
    assert not np.array_equal(*halves)
    assert np.array_equal(one, two)


def test_a_long_axis_is_broken_into_lines() -> None:
    pixels = contact_sheet.drawn([[block(128, 128)] * 20], contact_sheet.Labels("seed", tuple(map(str, range(20)))))

    assert 7 * 128 < pixels.shape[1] < 8 * 128
    assert pixels.shape[0] > 3 * 128


def test_a_sheet_of_many_large_cells_stays_readable() -> None:
    pixels = contact_sheet.drawn(
        [[block(2048, 2048)] * 4] * 3, contact_sheet.Labels("a", ("1",) * 4), contact_sheet.Labels("b", ("1",) * 3)
    )

    assert 20_000_000 < pixels.shape[0] * pixels.shape[1] < 30_000_000


def test_cells_of_several_sizes_keep_their_proportions() -> None:
    pixels = contact_sheet.drawn(
        [[block(256, 256), block(128, 64, 91)]], contact_sheet.Labels("size", ("256x256", "128x64"))
    )

    assert (pixels == 90).all(axis=2).sum() >= 256 * 256
    assert (pixels == 91).all(axis=2).sum() == 128 * 64


@pytest.mark.usefixtures("stocked")
def test_a_dry_run_shows_every_cell_and_draws_none(civman: Civman, root: Path) -> None:
    shown = civman(*CAT, "--grid", "lora:ink=0,1", "--grid", "seed=7..8", "--dry-run")
    told = civman(*CAT, "--grid", "lora:ink=0,1", "--grid", "seed=7..8", "--dry-run", "--json").json["grid_plan"]

    assert "2 × 2 cells (lora:ink across, seed down)" in shown.out
    for each in told["cells"]:
        line = f"lora:ink={each['values']['lora:ink']}, seed={each['values']['seed']}: recipe"
        assert f"{line} {each['recipe_sha256'][:12]}" in shown.out
    assert not (root / "renders").exists()
