"""`civman replay`: the same bytes again, from wherever the recipe comes; else its verdict and exit code.

The demo's own small model is downloaded from the loopback CivitAI and really draws.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import Civman

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np
from PIL import Image

from civman.cli.app import main
from civman.demo.demo_models import Shelf, demo_catalogue
from civman.demo.server import CivitaiServer
from civman.domain.recipes.record import read_origin
from civman.pictures import image_text

CHECKPOINT, OUTLINE = 91001, 91002
QUICK = ("--cfg", "4", "--steps", "4", "--device", "cpu", "--threads", "1")
PROMPT = "a large red circle on a blue background"


@dataclass(frozen=True)
class Made:
    """A library with the demo's model and one LoRA, and pictures that it drew."""

    library: Path
    pictures: dict[str, Path]
    values: dict[str, Any]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, shelf: Shelf) -> Made:
    """Drawn once; nobody writes there."""
    folder = tmp_path_factory.mktemp("made")
    library = folder / "library"
    with CivitaiServer(demo_catalogue(shelf)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIVMAN_LIBRARY", str(library))
        patch.setenv("CIVMAN_CONFIG_DIR", str(folder / "config"))
        patch.setenv("CIVMAN_CIVITAI_URL", server.url)
        patch.setenv("CIVITAI_API_TOKEN", server.token)
        assert main(["download", str(CHECKPOINT), f"civitai:{OUTLINE}", "--quiet"]) == 0
        drawn = {}
        pictures = folder / "pictures"
        for name, options in (
            ("circle.png", ("--lora", f"{OUTLINE}:0.8", "--seed", "1")),
            ("plain.jpg", ("--seed", "2")),
            ("plain.webp", ("--seed", "3")),
            ("secret.png", ("--seed", "4", "--strip-prompt")),
            ("silent.png", ("--seed", "5", "--no-metadata")),
        ):
            assert main(["render", str(CHECKPOINT), PROMPT, *QUICK, *options, "-o", str(pictures / name)]) == 0
            drawn[name] = pictures / name
    record = read_origin(image_text.read(drawn["circle.png"]).record or "").record
    assert record is not None
    (folder / "recipe.json").write_text(record.recipe.to_json(), encoding="utf-8")
    (folder / "record.json").write_text(record.to_json(), encoding="utf-8")
    drawn |= {name: folder / name for name in ("recipe.json", "record.json")}
    return Made(library, drawn, json.loads(record.to_json()))


@pytest.fixture
def at_home(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """In the library that made them, without a network."""
    monkeypatch.setenv("CIVMAN_LIBRARY", str(made.library))
    monkeypatch.setenv("CIVMAN_OFFLINE", "1")
    return made


def verdict(civman: Civman, *argv: object) -> tuple[int, dict[str, Any]]:
    run = civman("replay", *argv, "--json")
    value = run.json.get("replay")
    assert value is not None, run.out + run.err
    return run.code, value["pictures"][0]


def doctored(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the picture whose record says something else."""
    value = json.loads(image_text.read(path).record or "")
    change(value)
    target.write_bytes(
        image_text.write(image_text.pixels(path), record=json.dumps(value), parameters=None, format="png")
    )
    return target


@pytest.mark.parametrize("name", ["circle.png", "plain.jpg", "plain.webp", "secret.png", "silent.png", "record.json"])
def test_every_kind_of_source_gives_the_same_pixels(at_home: Made, civman: Civman, name: str) -> None:
    code, said = verdict(civman, at_home.pictures[name])

    assert (code, said["verdict"]) == (0, "identical")
    assert said["pixel_sha256"] == said["was"]


def test_the_index_knows_them_by_number_and_by_digest(at_home: Made, civman: Civman) -> None:
    first = civman("renders", "tiny-outline", "--json").json["renders"]["pictures"][0]

    assert verdict(civman, first["id"])[1]["verdict"] == "identical"
    assert verdict(civman, first["recipe_sha256"][:10])[1]["pixel_sha256"] == first["pixel_sha256"]


def test_a_bare_recipe_is_drawn_and_claims_nothing(at_home: Made, civman: Civman, tmp_path: Path) -> None:
    run = civman("replay", at_home.pictures["recipe.json"], "-o", tmp_path / "again.png", "--threads", "1")

    assert run.code == 0
    assert "no pixels to compare with" in run.out
    assert np.array_equal(image_text.pixels(tmp_path / "again.png"), image_text.pixels(at_home.pictures["circle.png"]))


def test_two_processes_and_two_runs_give_the_same_file(at_home: Made, tmp_path: Path) -> None:
    import subprocess
    import sys

    argv = ["render", str(CHECKPOINT), PROMPT, *QUICK, "--lora", f"{OUTLINE}:0.8", "--seed", "1"]
    assert main([*argv, "-o", str(tmp_path / "here.png")]) == 0
    code = (
        f"import sys; from civman.cli.app import main; sys.exit(main({[*argv, '-o', str(tmp_path / 'there.png')]!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

    assert (tmp_path / "here.png").read_bytes() == at_home.pictures["circle.png"].read_bytes()
    assert (tmp_path / "there.png").read_bytes() == at_home.pictures["circle.png"].read_bytes()


def test_four_at_once_equal_four_single_ones(at_home: Made, civman: Civman, tmp_path: Path) -> None:
    together = civman(
        "render", CHECKPOINT, PROMPT, *QUICK, "--sampler", "DPM++ SDE", "--seed", "20", "--count", "4", "--exact",
        "-o", tmp_path / "together.png", "--json",
    ).json["render"]  # fmt: skip
    for number in range(4):
        alone = tmp_path / f"alone-{number}.png"
        civman("render", CHECKPOINT, PROMPT, *QUICK, "--sampler", "DPM++ SDE", "--seed", 20 + number, "-o", alone)
        assert alone.read_bytes() == Path(together[number]["path"]).read_bytes()


def test_a_picture_of_a_batch_comes_out_of_its_batch(at_home: Made, civman: Civman, tmp_path: Path) -> None:
    civman("render", CHECKPOINT, PROMPT, *QUICK, "--seed", "30", "--count", "3", "--batch-size", "3", "-o", tmp_path)
    second = next(tmp_path.glob("31-*.png"))

    code, said = verdict(civman, second)

    assert (code, said["verdict"], said["seed"]) == (0, "identical", 31)


# -- on a machine that has nothing


@pytest.fixture
def elsewhere(online: CivitaiServer) -> CivitaiServer:
    """An empty library and a CivitAI."""
    return online


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", ["circle.png", "plain.jpg", "record.json"])
def test_an_empty_library_fetches_by_id_and_comes_out_identical(made: Made, civman: Civman, name: str) -> None:
    refused = civman("replay", made.pictures[name])
    assert refused.code == 3
    assert "tinyShapes" in refused.err
    assert "--fetch" in refused.err
    assert civman("list", "--json").json["list"]["total"] == 0

    code, said = verdict(civman, made.pictures[name], "--fetch")

    assert (code, said["verdict"]) == (0, "identical")
    assert civman("verify", "--full").code == 0


def test_other_bytes_under_the_same_id_are_never_taken(made: Made, civman: Civman, elsewhere: CivitaiServer) -> None:
    file = made.values["recipe"]["files"]
    model = next(each for each in file if each["air"].endswith("91001@191010"))
    elsewhere.catalogue.replace_bytes(model["file_id"], (made.pictures["circle.png"]).read_bytes())

    run = civman("replay", made.pictures["circle.png"], "--fetch", "--json")

    assert run.code == 6
    assert run.json["error"]["code"] == "replaced-upstream"
    assert "a different file under urn:air:sd1:checkpoint:civitai:91001@191010" in run.json["error"]["message"]
    assert model["sha256"] not in {each["blob"]["sha256"] for each in civman("list", "--json").json["list"]["assets"]}


def test_a_deleted_model_is_told_apart_from_one_that_moved(
    made: Made, civman: Civman, elsewhere: CivitaiServer
) -> None:
    from dataclasses import replace

    model = elsewhere.catalogue.model(OUTLINE)
    assert model is not None
    elsewhere.catalogue.remove(OUTLINE)
    run = civman("replay", made.pictures["circle.png"], "--fetch", "--json")
    assert (run.code, run.json["error"]["code"]) == (3, "deleted-upstream")
    assert "civman import FILE" in run.json["error"]["hint"]

    moved = tuple(
        replace(version, id=version.id + 700_000,
                files=tuple(replace(file, id=file.id + 700_000) for file in version.files))
        for version in model.versions
    )  # fmt: skip
    elsewhere.catalogue.add(replace(model, id=99_555, versions=moved))
    run = civman("replay", made.pictures["circle.png"], "--fetch")
    assert run.code == 0
    assert "identical" in run.out
    assert "found under another id" in run.err


def test_a_copy_of_the_file_under_another_name_will_do(
    made: Made, civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVMAN_OFFLINE", "1")
    for number, blob in enumerate(sorted((made.library / "blobs").rglob("*.safetensors"))):
        (tmp_path / f"mine-{number}.safetensors").write_bytes(blob.read_bytes())
    assert civman("import", tmp_path).code == 0

    code, said = verdict(civman, made.pictures["circle.png"])

    assert (code, said["verdict"]) == (0, "identical")
    assert any("is called `mine-" in notice for notice in said["notices"])


# -- verdicts that are not "identical"


def test_another_number_of_threads_is_close_and_says_so(at_home: Made, civman: Civman) -> None:
    code, said = verdict(civman, at_home.pictures["circle.png"], "--threads", "3")

    assert said["verdict"] in ("close", "identical")  # the last bit may survive the rounding to 8 bits
    assert code == {"close": 9, "identical": 0}[said["verdict"]]
    assert {"what": "threads", "then": 1, "now": 3} in said["environment"]


def test_one_bit_away_is_close_and_names_what_differs(at_home: Made, civman: Civman, tmp_path: Path) -> None:
    pixels = np.array(image_text.pixels(at_home.pictures["circle.png"]))
    pixels[0, 0, 0] ^= 1
    record = json.loads(image_text.read(at_home.pictures["circle.png"]).record or "")
    import hashlib

    record["pixel_sha256"] = hashlib.sha256(pixels.tobytes()).hexdigest()
    record["environment"]["torch"] = "2.9.1+cu128"
    path = tmp_path / "older.png"
    path.write_bytes(image_text.write(pixels, record=json.dumps(record), parameters=None, format="png"))

    run = civman("replay", path, "-o", tmp_path)

    assert run.code == 9
    assert run.out.startswith("close: PSNR ")
    assert "torch: 2.9.1+cu128 for the original" in run.out
    assert "[close]" in run.err


def test_another_torch_that_gives_the_same_pixels_is_identical_and_told(
    at_home: Made, civman: Civman, tmp_path: Path
) -> None:
    older = doctored(at_home.pictures["circle.png"], tmp_path / "older.png",
                     lambda value: value["environment"].update(torch="2.9.1"))  # fmt: skip

    run = civman("replay", older)

    assert run.code == 0
    assert "identical" in run.out
    assert "torch: 2.9.1 for the original" in run.out


def test_another_picture_is_different(at_home: Made, civman: Civman, tmp_path: Path) -> None:
    other = image_text.pixels(at_home.pictures["silent.png"])
    record = json.loads(image_text.read(at_home.pictures["circle.png"]).record or "")
    import hashlib

    record["pixel_sha256"] = hashlib.sha256(other.tobytes()).hexdigest()
    path = tmp_path / "other.png"
    path.write_bytes(image_text.write(other, record=json.dumps(record), parameters=None, format="png"))

    run = civman("replay", path, "-o", tmp_path)

    assert run.code == 10
    assert run.out.startswith("different: PSNR ")
    assert "the environment is the same as the recorded one" in run.err


@pytest.mark.parametrize(
    ("kind", "words"),
    [("retouched", "was retouched within"), ("resized", "was resized from 64x64 to 32x32"), ("cropped", "was cropped")],
)
def test_a_changed_file_is_named_and_the_original_is_saved_again(
    at_home: Made, civman: Civman, tmp_path: Path, kind: str, words: str
) -> None:
    path = at_home.pictures["circle.png"]
    pixels = np.array(image_text.pixels(path))
    if kind == "retouched":
        pixels[10:30, 10:30] = 255
    elif kind == "resized":
        pixels = np.asarray(Image.fromarray(pixels).resize((32, 32)))
    else:
        pixels = np.ascontiguousarray(pixels[3:40, 5:60])
    changed = tmp_path / "changed.png"
    changed.write_bytes(image_text.write(pixels, record=image_text.read(path).record, parameters=None, format="png"))

    run = civman("replay", changed, "-o", tmp_path / "again.png")
    told = civman("replay", changed, "--json").json["replay"]

    assert run.code == 0
    assert run.out.startswith("identical: ")
    assert words in run.out
    assert np.array_equal(image_text.pixels(tmp_path / "again.png"), image_text.pixels(path))
    assert told["pictures"][0]["file_change"]["kind"] == kind
    assert len(told["kept"]) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("prompt", "a small green square"), ("seed", 2), ("steps", 5), ("checkpoint", "0" * 64)]
)
def test_an_edited_recipe_is_refused(at_home: Made, civman: Civman, tmp_path: Path, field: str, value: object) -> None:
    edited = doctored(at_home.pictures["circle.png"], tmp_path / "edited.png",
                      lambda record: record["recipe"].update({field: value}))  # fmt: skip

    run = civman("replay", edited)

    assert run.code in (2, 6)
    assert "[edited-recipe]" in run.err or "[bad-recipe]" in run.err


def test_cut_off_texts_and_pictures_are_refused_in_words(at_home: Made, civman: Civman, tmp_path: Path) -> None:
    text = at_home.pictures["record.json"].read_text("utf-8")
    (tmp_path / "cut.json").write_text(text[:-40], "utf-8")
    (tmp_path / "cut.png").write_bytes(at_home.pictures["circle.png"].read_bytes()[:-400])
    (tmp_path / "none.json").write_text("{}", "utf-8")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "foreign.png")

    codes = {name: civman("replay", tmp_path / name) for name in ("cut.json", "cut.png", "none.json", "foreign.png")}

    assert {name: run.code for name, run in codes.items()} == {
        "cut.json": 2, "cut.png": 2, "none.json": 2, "foreign.png": 3,
    }  # fmt: skip
    assert all(run.err.startswith("Error [") for run in codes.values())
    assert civman("replay", "nothing-of-this-name").code == 3


# -- variations


def test_a_variation_has_its_own_recipe_and_remembers_its_parent(at_home: Made, civman: Civman, tmp_path: Path) -> None:
    target = tmp_path / "varied.png"
    done = civman(
        "replay", at_home.pictures["circle.png"], "--set", "seed=8", "--set", f"lora:{OUTLINE}=0.3", "--threads", "1",
        "-o", target, "--json",
    ).json["render"][0]  # fmt: skip

    assert done["seed"] == 8
    assert done["recipe"]["loras"][0]["scale"] == 0.3
    assert done["parent"] == at_home.values["recipe_sha256"] != done["recipe_sha256"]
    assert verdict(civman, target)[1]["verdict"] == "identical"


def test_a_scale_of_zero_takes_the_adapter_out(at_home: Made, civman: Civman, tmp_path: Path) -> None:
    without = civman(
        "replay", at_home.pictures["circle.png"], "--set", f"lora:{OUTLINE}=0", "--threads", "1", "-o", tmp_path,
        "--json",
    ).json["render"][0]  # fmt: skip

    assert without["recipe"]["loras"] == []


@pytest.mark.parametrize(
    ("change", "code"),
    [("sed=8", "unknown-field"), ("seed=eight", "bad-value"), ("size=big", "bad-value"), ("seed", "usage"),
     ("steps=0", "bad-recipe"), ("lora:nobody=1", "not-found"), ("hires_steps=3", "bad-value")],
)  # fmt: skip
def test_a_change_that_makes_no_sense_is_refused(at_home: Made, civman: Civman, change: str, code: str) -> None:
    run = civman("replay", at_home.pictures["circle.png"], "--set", change, "--json")

    assert run.json["error"]["code"] == code


# -- what pictures tell


def test_show_tells_a_picture_and_prints_its_recipe(at_home: Made, civman: Civman) -> None:
    shown = civman("show", at_home.pictures["circle.png"])
    assert PROMPT in shown.out
    assert "by its hash" in shown.out

    printed = civman("show", at_home.pictures["circle.png"], "--recipe")
    assert printed.out.strip() == image_text.read(at_home.pictures["circle.png"]).record


def test_a_stripped_picture_holds_no_word_of_the_prompt(at_home: Made) -> None:
    for name in ("secret.png", "silent.png"):
        data = at_home.pictures[name].read_bytes()
        assert b"circle" not in data
        assert "circle".encode("utf-16-be") not in data
    assert image_text.read(at_home.pictures["silent.png"]).entries == {}


def test_pictures_are_taken_in_again_after_a_loss(
    made: Made, civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVMAN_OFFLINE", "1")
    run = civman("renders", "--scan", made.pictures["circle.png"].parent, "--json")

    found = run.json["renders"]["pictures"]
    assert {Path(each["path"]).name for each in found} == {"circle.png", "plain.jpg", "plain.webp"}
    again = civman("renders", "--scan", made.pictures["circle.png"].parent)
    assert "0 pictures imported, 3 already in the library" in again.err


def test_removing_a_model_tells_of_the_pictures_made_with_it(at_home: Made, civman: Civman) -> None:
    planned = civman("remove", f"civitai:{OUTLINE}", "--dry-run", "--json").json["remove"]

    assert planned["pictures"] >= 1
    assert "made with these files" in civman("remove", f"civitai:{OUTLINE}", "--dry-run").out


@pytest.mark.parametrize("options", [("--compile",), ("--compile", "--low-vram")])
def test_a_replay_that_cannot_compile_says_so(
    at_home: Made, civman: Civman, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    run = civman("replay", at_home.pictures["circle.png"], *options, "--json")

    assert run.json["error"]["code"] == ("not-compilable" if "--low-vram" in options else "no-compiler")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
def test_an_image_of_compiled_blocks_is_replayed_by_compiled_blocks(
    at_home: Made, civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    image = tmp_path / "compiled.png"
    few = ("--steps", "2", "--size", "64x64", "--seed", "1", "--device", "cpu", "--threads", "1")

    run = civman("render", CHECKPOINT, PROMPT, *few, "--compile", "-o", image, "--json")
    assert run.code == 0, run.out + run.err
    drawn = run.json["render"]
    again = civman("replay", image, "--json").json["replay"]
    eager = civman("replay", image, "--no-compile", "-o", tmp_path / "eager.png", "--json").json["replay"]

    engine = drawn[0]["environment"]["engine"]
    assert engine.startswith("inductor/")
    assert again["pictures"][0]["verdict"] == "identical"
    assert eager["pictures"][0]["verdict"] in ("identical", "close")
    assert {"what": "engine", "then": engine, "now": "eager"} in eager["pictures"][0]["environment"]
