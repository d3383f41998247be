"""`civman render` through its front door: from imported files to pictures, without a network."""

import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from running import SHARED, Civman, Run

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image
from rendering_stock import QUICK, picture

from civman.domain.events import Step
from civman.domain.recipes.recipe import Recipe, RenderRequest
from civman.domain.recipes.record import read_origin
from civman.errors import Interrupted, StoreError
from civman.library import Library

SHAPES = SHARED / "fixtures" / "models" / "tiny-shapes-v0.safetensors"


def pixels(run: Run) -> list[str]:
    assert run.code == 0, run.out + run.err
    return [each["pixel_sha256"] for each in run.json["render"]]


@pytest.mark.usefixtures("no_sockets", "stocked")
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_family_draws_from_the_command_line_with_sockets_disabled(civman: Civman, kind: str) -> None:
    done = civman("render", f"tiny-{kind}", "a red cat", "-n", "blurry", *QUICK, "--json")

    assert done.code == 0, done.out + done.err
    (made,) = done.json["render"]
    with Image.open(made["path"]) as image:
        image.load()
        assert image.size == (64, 64)
        assert read_origin(image.text["civman"]).recipe == Recipe.from_value(made["recipe"])
    assert made["environment"]["device"] == "cpu"


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.skipif(not SHAPES.is_file(), reason="shared fixtures are not here")
def test_the_tiny_model_draws_what_it_was_taught(civman: Civman) -> None:
    import numpy as np

    civman("import", "--offline", SHAPES)

    done = civman(
        "render", "tiny-shapes-v0", "a large red circle on a blue background", "--config",
        SHAPES.with_name("tiny-shapes-v0-config"), *QUICK, "--steps", "12", "--cfg", "4", "--quiet",
    )  # fmt: skip

    with Image.open(done.out.strip()) as image:
        array = np.asarray(image).astype(int)
    red, _, blue = array[28:36, 28:36].mean(axis=(0, 1))
    corner_red, _, corner_blue = array[:6, :6].mean(axis=(0, 1))
    assert red > blue + 100
    assert corner_blue > corner_red + 100


@pytest.mark.usefixtures("stocked")
def test_the_same_seed_gives_the_same_bytes_beside_each_other(civman: Civman, tmp_path: Path) -> None:
    target = tmp_path / "out" / "cat.png"

    paths = [
        Path(civman("render", "tiny-sd1", "a cat", *QUICK, "--output", target, "--quiet").out.strip()) for _ in range(2)
    ]

    assert [path.name for path in paths] == ["cat.png", "cat-2.png"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in target.parent.iterdir()) == ["cat-2.png", "cat.png"]


@pytest.mark.usefixtures("stocked")
def test_the_largest_seed_draws_is_listed_and_replays(civman: Civman) -> None:
    largest = 2**64 - 1
    words = [word for word in QUICK if word not in ("--seed", "7")]

    done = civman("render", "tiny-sd1", "a cat", *words, "--seed", largest, "--sampler", "DPM++ SDE", "--json")

    (made,) = done.json["render"]
    assert [each["seed"] for each in civman("renders", "--json").json["renders"]["pictures"]] == [largest]
    (again,) = civman("replay", made["path"], "--json").json["replay"]["pictures"]
    assert (again["verdict"], again["seed"]) == ("identical", largest)
    refused = civman("render", "tiny-sd1", "a cat", *words, "--seed", largest + 1)
    assert (refused.code, "seed must be 0 to 18446744073709551615" in refused.err) == (2, True)


@pytest.mark.usefixtures("stocked")
def test_names_say_seed_words_and_recipe(civman: Civman, root: Path) -> None:
    done = civman("render", "tiny-sd1", "a (red:1.2) cat/dog", *QUICK, "--json")

    (made,) = done.json["render"]
    recipe = Recipe.from_value(made["recipe"])
    assert Path(made["path"]) == root / "renders" / f"7-a-red-1-2-cat-dog-{recipe.sha256[:8]}.png"


@pytest.mark.usefixtures("stocked")
def test_scale_zero_equals_no_lora_and_a_scale_changes_the_picture(civman: Civman) -> None:
    bare = pixels(civman("render", "tiny-sd1", "a cat", *QUICK, "--json"))
    zero = pixels(civman("render", "tiny-sd1", "a cat", *QUICK, "--lora", "ink:0", "--json"))
    full = civman("render", "tiny-sd1", "a cat", *QUICK, "--lora", "ink:1", "--json")
    tagged = pixels(civman("render", "tiny-sd1", "a cat <lora:ink:1>", *QUICK, "--json"))

    assert zero == bare
    assert pixels(full) != bare
    assert tagged == pixels(full)
    (applied,) = full.json["render"][0]["applied"]
    assert (applied["matched"], applied["unmatched"]) == (2, [])


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(("kind", "loras"), [("sd1", ("ink:1",)), ("sdxl", ("xl-ink:0.5",)), ("sd2", ())])
def test_little_memory_gives_the_same_picture(civman: Civman, kind: str, loras: tuple[str, ...]) -> None:
    words = ["render", f"tiny-{kind}", "a (red:1.2) cat", *QUICK, "--json"]
    words += [word for lora in loras for word in ("--lora", lora)]

    assert pixels(civman(*words, "--low-vram")) == pixels(civman(*words))


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(("lora", "code"), [("empty", "adapter-no-change"), ("part", "partly-applies")])
def test_a_lora_that_does_nothing_or_only_half_is_an_error(civman: Civman, lora: str, code: str) -> None:
    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--lora", lora, "--json")

    assert done.code == 7
    assert done.json["error"]["code"] == code


@pytest.mark.usefixtures("stocked")
def test_half_a_lora_is_told_of_when_it_is_allowed(civman: Civman) -> None:
    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--lora", "part", "--allow-partial", "--json")

    assert done.code == 0, done.out
    (applied,) = done.json["render"][0]["applied"]
    assert applied["matched"] == 2
    assert len(applied["unmatched"]) == 1


@pytest.mark.usefixtures("stocked")
def test_picture_n_of_many_is_the_one_that_its_seed_gives_alone(civman: Civman) -> None:
    three = civman("render", "tiny-sd1", "a cat", *QUICK, "--sampler", "Euler a", "--count", "3", "--json")
    alone = civman("render", "tiny-sd1", "a cat", *QUICK, "--sampler", "Euler a", "--seed", "9", "--json")

    assert [each["seed"] for each in three.json["render"]] == [7, 8, 9]
    assert len(set(pixels(three))) == 3
    assert pixels(three)[2:] == pixels(alone)
    assert three.json["render"][2]["recipe"] == alone.json["render"][0]["recipe"]


@pytest.mark.usefixtures("stocked")
def test_prompts_from_a_file_equal_single_ones_also_when_their_loras_differ(civman: Civman, tmp_path: Path) -> None:
    lines = ["a cat <lora:ink:1>", "a dog", "", "a cat"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))

    together = civman("render", "tiny-sd1", "--prompts", tmp_path / "prompts.txt", *QUICK, "--json")

    alone = [pixels(civman("render", "tiny-sd1", line, *QUICK, "--json"))[0] for line in lines if line]
    assert pixels(together) == alone


@pytest.mark.usefixtures("stocked")
def test_an_embedding_is_found_by_its_name_in_either_prompt(civman: Civman, tmp_path: Path) -> None:
    plan = civman("render", "tiny-sd1", "a cat", "-n", "ugly, EasyDream", *QUICK, "--dry-run", "--json")
    other = civman("render", "tiny-sd1", "a cat", "-n", "ugly, dream", *QUICK, "--dry-run", "--json")
    unfit = civman("render", "tiny-sdxl", "a cat, easydream", *QUICK, "--dry-run", "--json")
    used = pixels(civman("render", "tiny-sd1", "a cat", "-n", "easydream", *QUICK, "--json"))

    assert [use["word"] for use in plan.json["plan"][0]["recipe"]["embeddings"]] == ["easydream"]
    assert other.json["plan"][0]["recipe"]["embeddings"] == []
    assert unfit.json["plan"][0]["recipe"]["embeddings"] == []
    assert used != pixels(civman("render", "tiny-sd1", "a cat", "-n", "zzz", *QUICK, "--json"))


@pytest.mark.usefixtures("stocked")
def test_a_file_of_prompts_may_have_comments_and_empty_lines(civman: Civman, tmp_path: Path) -> None:
    words = ("render", "tiny-sd1", *QUICK, "--dry-run", "--json", "--prompts")
    (tmp_path / "good.txt").write_bytes("\ufeffa cat\r\n\r\n# a comment\r\n  a red dog, \u2028 barking  \r\n".encode())
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))

    good = civman(*words, tmp_path / "good.txt").json["plan"]
    bad = [civman(*words, tmp_path / name).json["error"] for name in ("empty.txt", "latin.txt", "gone.txt")]

    assert [each["recipe"]["prompt"] for each in good] == ["a cat", "a red dog, \u2028 barking"]
    assert {error["code"] for error in bad} == {"unreadable-prompts"}
    assert "start with #" in bad[0]["hint"]
    assert "UTF-8" in bad[1]["hint"]


@pytest.mark.usefixtures("stocked")
def test_trigger_words_come_into_the_prompt_unless_told_not_to(civman: Civman) -> None:
    assert civman("edit", "ink", "--trigger", "inkstyle").code == 0
    words = ("render", "tiny-sd1", "a cat", *QUICK, "--lora", "ink", "--dry-run", "--json")

    auto, off = civman(*words), civman(*words, "--trigger", "off")
    there = civman(*words[:2], "an Inkstyle cat", *words[3:])

    assert auto.json["plan"][0]["recipe"]["prompt"] == "a cat, inkstyle"
    assert "inkstyle" in auto.err
    assert off.json["plan"][0]["recipe"]["prompt"] == "a cat"
    assert there.json["plan"][0]["recipe"]["prompt"] == "an Inkstyle cat"


@pytest.mark.usefixtures("stocked")
def test_of_several_trigger_words_the_first_entry_is_added_and_the_others_are_told(civman: Civman) -> None:
    assert civman("edit", "ink", "--trigger", "inkstyle, brush", "--trigger", "inkwash", "--trigger", "sumi").code == 0
    words = ("render", "tiny-sd1", *QUICK, "--lora", "ink", "--dry-run", "--json")

    prompts = {
        typed: civman(*words[:2], typed, *words[2:]) for typed in ("a cat", "a Sumi cat", "inkstyle cat", "a brush")
    }

    assert {typed: done.json["plan"][0]["recipe"]["prompt"] for typed, done in prompts.items()} == {
        "a cat": "a cat, inkstyle, brush",
        "a Sumi cat": "a Sumi cat",
        "inkstyle cat": "inkstyle cat",
        "a brush": "a brush, inkstyle, brush",
    }
    assert "inkstyle, brush (not added: inkwash, sumi)" in prompts["a cat"].err


@pytest.mark.usefixtures("stocked")
def test_a_picture_to_start_from_a_mask_and_a_second_pass(civman: Civman, tmp_path: Path) -> None:
    start, mask = picture(tmp_path / "start.png", (72, 64)), picture(tmp_path / "mask.png", (72, 64), half=True)
    bare = [word for word in QUICK if word not in ("--size", "64x64")]

    img2img = civman("render", "tiny-sd1", "a cat", *bare, "--init", start, "--strength", "0.9", "--json")
    masked = civman("render", "tiny-sd1", "a cat", *bare, "--init", start, "--mask", mask, "--mask-blur", "0", "--json")
    larger = civman("render", "tiny-sd1", "a cat", *QUICK, "--hires", "1.5", "--hires-steps", "1", "--json")

    assert len({*pixels(img2img), *pixels(masked)}) == 2
    with Image.open(masked.json["render"][0]["path"]) as kept, Image.open(start) as first:
        assert kept.size == (72, 64)
        assert kept.crop((0, 0, 30, 64)).tobytes() == first.crop((0, 0, 30, 64)).tobytes()
    assert pixels(larger)
    with Image.open(larger.json["render"][0]["path"]) as large:
        assert large.size == (96, 96)


def test_each_missing_input_of_a_replay_is_named_by_its_role(
    stocked: Path, civman: Civman, root: Path, tmp_path: Path
) -> None:
    start, mask, other = (tmp_path / f"{name}.png" for name in ("start", "mask", "other"))
    Image.new("RGB", (64, 64), "red").save(start)
    Image.new("L", (64, 64), 255).save(mask)
    Image.new("RGB", (64, 64), "blue").save(other)
    bare = ("--steps", 1, "--size", "64x64", "--device", "cpu", "--init", start, "--mask", mask, "--json")
    made = civman("render", "tiny-sd1", "a cat", *bare).json["render"][0]["path"]
    shutil.rmtree(root / "renders" / "inputs")

    both = civman("replay", made)
    wrong = civman("replay", made, "--picture", start, "--picture", other)
    right = civman("replay", made, "--picture", mask, "--picture", start)

    assert (both.code, wrong.code, right.code) == (2, 2, 0)
    assert "the input image (sha256 " in both.err
    assert " and the mask (sha256 " in both.err
    assert "the input image" not in wrong.err
    assert f"the mask (sha256 {sha256(mask.read_bytes()).hexdigest()[:12]}…)" in wrong.err
    assert f"the recipe does not use `{other}`" in wrong.err


@pytest.mark.usefixtures("stocked")
def test_an_output_that_cannot_be_written_is_found_before_sampling(root: Path, tmp_path: Path, civman: Civman) -> None:
    (tmp_path / "file").touch()
    events: list[object] = []

    with Library.open(root, offline=True) as library:
        planned = library.plan(RenderRequest("tiny-sd1", "a cat", steps=2, width=64, height=64))
        with pytest.raises(StoreError) as refused:
            library.render(planned, output=tmp_path / "file" / "x.png", on_event=events.append)

    assert events == []
    assert "--output" in refused.value.hint
    assert civman("replay", picture(tmp_path / "own.png", (64, 64)), "-o", tmp_path / "file" / "x.png").code == 1


@pytest.mark.usefixtures("stocked")
def test_an_interrupted_run_keeps_what_was_done_and_says_so(root: Path) -> None:
    def stop_in_the_second_picture(event: object) -> None:
        if isinstance(event, Step) and event.first == 2:
            raise KeyboardInterrupt

    with Library.open(root, offline=True) as library:
        planned = library.plan(RenderRequest("tiny-sd1", "a cat", steps=2, width=64, height=64, count=3))
        with pytest.raises(Interrupted, match="stopped; saved 1 finished picture in ") as caught:
            library.render(planned, on_event=stop_in_the_second_picture)

    kept = list((root / "renders").iterdir())
    assert [str(path) for path in kept] == caught.value.facts["paths"]
    with Image.open(kept[0]) as image:
        image.load()


@pytest.mark.usefixtures("stocked")
def test_a_seed_is_drawn_and_recorded_where_none_is_given(root: Path) -> None:
    with Library.open(root, offline=True) as library:
        plans = [library.plan(RenderRequest("tiny-sd1", "a cat")) for _ in range(2)]

    assert plans[0].recipe.seed != plans[1].recipe.seed
    assert plans[0].recipe == replace(plans[1].recipe, seed=plans[0].recipe.seed)
    assert (plans[0].recipe.sampler, plans[0].recipe.schedule) == ("DPM++ 2M", "Karras")


def test_a_recipe_alone_draws_the_same_picture_again(stocked: Path, civman: Civman, root: Path) -> None:
    made = civman("render", "tiny-sdxl", "a cat", *QUICK, "--lora", "xl-ink:0.7", "--json").json["render"][0]
    with Image.open(made["path"]) as image:
        recipe = read_origin(image.text["civman"]).recipe

    with Library.open(root, offline=True) as library:
        (again,) = library.render(recipe)
        used = [asset.name for asset in library.list() if asset.last_used_at is not None]

    assert again.pixel_sha256 == made["pixel_sha256"]
    assert again.path != Path(made["path"])
    assert again.path.read_bytes() == Path(made["path"]).read_bytes()
    assert sorted(used) == ["tiny-sdxl.safetensors", "xl-ink.safetensors"]


def test_a_file_on_this_disk_needs_no_import(stock: Path, civman: Civman) -> None:
    done = civman("render", stock / "tiny-sd1.safetensors", "a cat", *QUICK, "--dry-run", "--json")

    assert done.code == 0, done.out
    (file,) = done.json["plan"][0]["files"]
    assert file["path"] == str(stock / "tiny-sd1.safetensors")
    assert file["sha256"] == done.json["plan"][0]["recipe"]["checkpoint"]


def test_a_file_that_was_changed_since_it_was_proven_is_not_rendered(
    civman: Civman, stock: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes((stock / "tiny-sd1.safetensors").read_bytes())
    civman("import", "--offline", copy)
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)

    done = civman("render", "mine", "a cat", *QUICK, "--json")

    assert (done.code, done.json["error"]["code"]) == (6, "hash-mismatch")
    assert f"civman import {copy}" in done.json["error"]["hint"]


@pytest.mark.usefixtures("stocked")
def test_only_the_masked_part_is_drawn_and_put_back(civman: Civman, tmp_path: Path) -> None:
    image = picture(tmp_path / "start.png", (160, 120))
    mask = Image.new("L", (160, 120), 0)
    mask.paste(255, (60, 40, 90, 80))
    mask.save(tmp_path / "mask.png")

    done = civman(
        "render", "tiny-sd1", "a red cat", *QUICK, "--init", image, "--mask", tmp_path / "mask.png", "--only-masked",
        "--padding", "8", "--mask-content", "latent noise", "--mask-blur", "2", "--json",
    )  # fmt: skip

    (made,) = done.json["render"]
    with Image.open(made["path"]) as drawn, Image.open(image) as start:
        assert drawn.size == (160, 120)
        assert drawn.crop((0, 0, 50, 120)).tobytes() == start.convert("RGB").crop((0, 0, 50, 120)).tobytes()
        assert drawn.crop((70, 50, 80, 70)).tobytes() != start.convert("RGB").crop((70, 50, 80, 70)).tobytes()
        assert (
            "Masked content: latent noise, Inpaint area: Only masked, Masked area padding: 8"
            in (
                drawn.info["parameters"]  # type: ignore[index]
            )
        )
    assert made["recipe"]["start"]["only_masked"] is True
    assert civman("replay", made["path"], "--json").json["replay"]["pictures"][0]["verdict"] == "identical"


@pytest.mark.usefixtures("stocked")
def test_settings_of_noise_are_used_or_named_as_without_effect(civman: Civman) -> None:
    usual = pixels(civman("render", "tiny-sd1", "a cat", *QUICK, "--sampler", "Euler a", "--json"))
    less = civman("render", "tiny-sd1", "a cat", *QUICK, "--sampler", "Euler a", "--eta", "0.3", "--json")
    none = civman("render", "tiny-sd1", "a cat", *QUICK, "--sampler", "LMS", "--eta", "0.3", "--dry-run", "--json")

    assert pixels(less) != usual
    assert less.json["render"][0]["recipe"]["sampling"]["eta"] == 0.3
    assert "--eta has no effect with LMS" in none.out
    assert none.json["plan"][0]["recipe"]["sampling"]["eta"] == 1.0


@pytest.mark.usefixtures("stocked")
def test_a_wildcard_is_in_the_record_as_drawn_and_as_typed_and_replays_without_its_folder(
    civman: Civman, tmp_path: Path
) -> None:
    pytest.importorskip("dynamicprompts", reason="the extra `wildcards` is not installed")
    folder = tmp_path / "wildcards"
    folder.mkdir()
    (folder / "colour.txt").write_text("red\ngreen\nblue\n")
    words = ("render", "tiny-sd1", "a __colour__ {cat|dog}", *QUICK, "--seed", 3, "--count", 2)

    made = civman(*words, "--dynamic", "random", "--wildcards", folder, "--json", "--output", tmp_path / "out")
    plain = civman("render", "tiny-sd1", made.json["render"][1]["recipe"]["prompt"], *QUICK, "--seed", 4, "--json")
    (folder / "colour.txt").unlink()
    shown = civman("show", made.json["render"][1]["path"])
    again = civman("replay", made.json["render"][1]["path"])

    assert [each["seed"] for each in made.json["render"]] == [3, 4]
    assert "__" not in made.json["render"][0]["recipe"]["prompt"]
    assert pixels(plain) == pixels(made)[1:]
    assert "prompt as typed: a __colour__ {cat|dog}" in shown.out
    assert again.code == 0


@pytest.mark.usefixtures("stocked")
def test_a_file_of_prompts_may_set_options_and_styles_for_each_line(civman: Civman, tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nink,ink of {prompt},photo\n")
    (tmp_path / "prompts.txt").write_text("a cat\n--prompt a dog --steps 3 --seed 9 --styles ink\n")

    plan = civman(
        "render", "tiny-sd1", "--prompts", tmp_path / "prompts.txt", "--styles", tmp_path / "styles.csv", *QUICK,
        "--dry-run", "--json",
    )  # fmt: skip

    recipes = [each["recipe"] for each in plan.json["plan"]]
    assert [(each["prompt"], each["negative_prompt"], each["steps"]) for each in recipes] == [
        ("a cat", "", recipes[0]["steps"]), ("ink of a dog", "photo", 3),
    ]  # fmt: skip
    assert recipes[1]["seed"] == 9


@pytest.mark.usefixtures("stocked")
def test_the_licence_is_in_the_plan_and_the_image_and_can_be_required(civman: Civman, tmp_path: Path) -> None:
    words = ("render", "tiny-sd1", "a cat", *QUICK)

    plan = civman(*words, "--dry-run", "--json").json["plan"][0]
    refused = civman(*words, "--require", "commercial", "--json", "--output", tmp_path / "out")
    made = civman(*words, "--json")
    shown = civman("show", made.json["render"][0]["path"])

    assert plan["licence"]["sell_pictures"] == "unknown"  # the file is not from CivitAI
    assert (refused.code, refused.json["error"]["code"]) == (4, "licence")
    assert not (tmp_path / "out").exists()
    assert "licence when the image was made: it is not known whether images may be sold" in shown.out
    assert civman(*words, "--require", "resale", "--json").json["error"]["code"] == "usage"
