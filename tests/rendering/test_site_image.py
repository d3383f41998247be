"""Images on CivitAI are replayed: settings and original requested, files downloaded, the result compared."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from running import Civman

from civman.demo.server import CivitaiServer
from civman.library import Library
from civman.pictures import image_text
from civman.planning.plan import Conditions
from civman.planning.site_image import SiteImage

URL = "https://civitai.com/images/12100201"


@pytest.mark.usefixtures("online")
def test_an_image_on_civitai_is_replayed_on_an_empty_machine(civman: Civman, root: Path) -> None:
    refused = civman("replay", URL, "--device", "cpu")
    assert refused.code != 0
    assert "missing: checkpoint `tiny-shapes.safetensors` (10.9 MB, sha256 4f20cf4bb088…)" in refused.err
    assert "--fetch searches CivitAI for the files by id or SHA-256" in refused.err

    ran = civman("replay", URL, "--fetch", "--device", "cpu", "--json")

    assert ran.code == 0, ran.err
    (picture,) = ran.json["replay"]["pictures"]
    assert picture["verdict"] == "identical"
    assert [each.name for each in (root / "originals").iterdir()] == ["12100201.image"]


def test_an_image_whose_file_tells_nothing_is_drawn_from_the_apis_answer(online: CivitaiServer, root: Path) -> None:
    with Library.open(root) as library:
        served = library.pictures.fetch_image(URL)
        assert served is not None
        assert served.has_recipe
        answer = library.context.client.image(served.id)
        bare = SiteImage(served.id, served.path, answer.meta, "SD 1.5", has_recipe=False, text=None)
        prepared = library.named_files.prepare(bare, asks_site=True)
        offers = library.named_files.offers(prepared)
        found = [(each.offer.wanted.file.role, each.offer.job.version.id) for each in offers if each.offer.job]
        assert found == [("checkpoint", 191010), ("lora", 191021)]
        library.named_files.fetch(offers)
        assert all(each.is_certain for each in library.named_files.prepare(bare).files)

        planned = library.pictures.plan_settings(bare, Conditions("cpu"))

    recipe = planned.recipe
    (use,) = recipe.loras
    assert (use.scale, recipe.seed, recipe.steps, recipe.guidance_scale) == (1.0, 1, 20, 4.0)
    assert (recipe.width, recipe.height, recipe.sampler) == (64, 64, "DPM++ 2M")
    made_with = served.path.read_bytes()
    record = image_text.read(made_with).record
    assert record is not None
    assert str(recipe.checkpoint) in record
    assert str(use.sha256) in record


DELETED, GATED, TWICE, WORD = (
    f"https://civitai.com/images/{number}" for number in (12100204, 12100304, 12100402, 12100902)
)
"""The demo's images by another program: with a deleted model, one in early access, a file in two versions, a word."""


def test_an_image_of_another_program_is_replayed_on_an_empty_machine(civman: Civman, online: CivitaiServer) -> None:
    refused = civman("replay", TWICE, "--device", "cpu")
    assert refused.code == 3
    assert "missing-files" in refused.err
    downloads = online.requests_to("storage")
    assert downloads == []

    ran = civman("replay", TWICE, "--fetch", "--device", "cpu", "--json")

    assert ran.code == 0, ran.err
    (picture,) = ran.json["render"]
    assert picture["compared"]["verdict"] == "the same picture"
    said = ran.err
    assert "checkpoint `tiny-shapes` (4f20cf4bb0): Tiny Shapes v1.0 (91001@191010), found by its hash, 10.9 MB" in said
    assert "licence: may sell images" in said
    assert "with the checkpoint: fits (192 of 192 modules fit)" in said
    assert "2 versions on CivitAI (91004@191041, 91004@191040); civman uses 91004@191041" in said
    assert "--slots" not in said
    by_id = civman("replay", TWICE.rpartition("/")[2], "--device", "cpu", "--json")
    assert by_id.json["render"][0]["compared"]["verdict"] == "the same picture"
    own = civman("replay", "9999")
    assert (own.code, "this library has no picture with number 9999" in own.err) == (3, True)


def test_a_deleted_model_is_named_with_what_could_stand_in(civman: Civman, online: CivitaiServer) -> None:
    ran = civman("replay", DELETED, "--fetch", "--device", "cpu", "--json")

    assert ran.code == 3
    assert ran.json["error"]["code"] == "deleted-upstream"
    assert "`Tiny Outline v1.5`" in ran.json["error"]["message"]
    assert "Tiny Outline v1.5" not in ran.err, "the error alone names it, not also a note"
    assert "91002@191021 (Tiny Outline v2.0, SD 1.5); 91002@191020" in ran.json["error"]["hint"]
    assert not [each for each in online.requests_to("storage") if "safetensors" in each.path]
    assert civman("download", "91002@191021").code == 0
    held = civman("replay", DELETED, "--fetch", "--device", "cpu", "--json").json["error"]["hint"]
    assert "91002@191021 (Tiny Outline v2.0, SD 1.5, in the library); 91002@191020" in held
    assert held.count("91002@191021") == 1


def test_early_access_is_a_gate_that_is_told_before_anything_is_downloaded(
    civman: Civman, online: CivitaiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token, code in ((online.token, "early-access"), ("", "no-key")):  # an account that has not bought it, and none
        monkeypatch.setenv("CIVITAI_API_TOKEN", token)
        ran = civman("replay", GATED, "--fetch", "--device", "cpu", "--json")

        assert (ran.code, ran.json["error"]["code"]) == (4, code)
        assert "in early access until 2099-12-31" in ran.err + ran.json["error"]["message"]
    assert not [each for each in online.requests_to("storage") if "safetensors" in each.path]


def test_an_embedding_that_a_prompt_calls_is_fetched(civman: Civman, online: CivitaiServer) -> None:
    online.catalogue.change_file(159090, name="another-name.safetensors")
    online.catalogue.change_version(191090, trained_words=())

    ran = civman("replay", WORD, "--fetch", "--device", "cpu", "--json")

    assert ran.code == 0, ran.err
    (picture,) = ran.json["render"]
    assert picture["compared"]["verdict"] == "the same picture"
    assert "embedding `tiny-emblem` (e4d99e96b1): Tiny Emblem v1.0 (91009@191090), found by its hash, 384 B" in ran.err


@pytest.mark.usefixtures("online")
def test_another_picture_has_its_own_exit_code_and_a_likely_cause(
    civman: Civman, tmp_path: Path, library: Library
) -> None:
    library.download("91001@191010")
    library.close()
    sheet = tmp_path / "sheet.png"

    ran = civman("replay", WORD, "--device", "cpu", "--json", "--side-by-side", sheet)

    assert (ran.code, ran.json["error"]["code"]) == (12, "another-picture")
    assert (
        "probably because the embedding `tiny-emblem` (e4d99e96b1) is not in the library"
        in ran.json["error"]["message"]
    )
    compared = ran.json["render"][0]["compared"]
    assert compared["verdict"] == "another picture"
    assert len(compared["causes"]) == 1
    assert image_text.pixels(sheet).shape[1] > 3 * 64


@pytest.mark.usefixtures("online")
def test_a_new_image_is_compared_with_a_file_of_choice_and_can_be_varied(
    civman: Civman, tmp_path: Path, root: Path
) -> None:
    text = tmp_path / "settings.txt"
    first = civman("replay", TWICE, "--fetch", "--device", "cpu", "--json")
    original = root / "originals" / "12100402.image"
    text.write_text(image_text.read(original).parameters or "", encoding="utf-8")

    same = civman("replay", text, "--compare", original, "--device", "cpu", "--json")
    varied = civman("replay", text, "--compare", original, "--set", "seed=8", "--device", "cpu", "--json")
    wrong = civman("replay", text, "--compare", text, "--device", "cpu", "--json")
    own = civman("replay", first.json["render"][0]["path"], "--compare", original, "--json")

    assert same.json["render"][0]["compared"]["verdict"] == "the same picture"
    assert same.code == 0
    assert varied.json["render"][0]["seed"] == 8
    assert varied.json["render"][0]["compared"]["verdict"] != "the same picture"
    assert (wrong.code, wrong.json["error"]["code"]) == (2, "bad-picture")
    assert (own.code, "civman's recipe" in own.err + own.out) == (2, True)


@pytest.mark.usefixtures("online")
def test_several_images_are_drawn_in_one_run_each_with_its_verdict(civman: Civman, tmp_path: Path) -> None:
    listed = tmp_path / "images.txt"
    listed.write_text("12100402\n12100204\nhttps://civitai.com/images/12100201\n", encoding="utf-8")

    ran = civman("replay", "--images", listed, "--fetch", "--device", "cpu")
    again = civman("replay", "--images", listed, "--device", "cpu", "--json", "-o", tmp_path)

    verdicts = ["12100402  the same picture", "12100204  not drawn", "12100201  identical"]
    assert [line[: len(each)] for line, each in zip(ran.out.splitlines(), verdicts, strict=True)] == verdicts
    assert not any(each in ran.err for each in verdicts), "each verdict is printed once"
    assert (ran.out + ran.err).count("`Tiny Outline v1.5` is no longer on CivitAI") == 1
    assert "could be used instead" in ran.err
    assert ran.code == again.code == 3
    drawn, deleted, replayed = again.json["replays"]
    assert (drawn["verdict"], drawn["compared"]["verdict"]) == ("the same picture",) * 2
    assert (deleted["error"]["code"], deleted["path"]) == ("deleted-upstream", None)
    assert (replayed["verdict"], replayed["error"]) == ("identical", None)
    assert [image_text.pixels(Path(each["path"])).shape for each in (drawn, replayed)] == [(64, 64, 3)] * 2
    assert drawn["path"] != replayed["path"]
    assert all(Path(each["path"]).parent == tmp_path for each in (drawn, replayed))


@pytest.mark.usefixtures("online")
def test_a_dry_run_prints_why_images_cannot_be_drawn_exactly(civman: Civman, tmp_path: Path) -> None:
    listed = tmp_path / "images.txt"
    listed.write_text("12100402\n12100204\nword\n", encoding="utf-8")

    ran = civman("replay", "--images", listed, "--dry-run", "--json")

    exact, differs, no_image = ran.json["replays"]
    assert (exact["verdict"], exact["reasons"]) == ("exact", [])
    assert differs["verdict"] == "differs"
    assert f"12100204  differs: {differs['reasons'][0]}" in ran.err
    assert "neither the URL nor the id" in no_image["error"]["message"]


@pytest.mark.usefixtures("online")
def test_what_is_no_image_is_an_error(civman: Civman) -> None:
    hidden = civman("replay", "https://civitai.com/images/1", "--fetch")
    assert hidden.code != 0
    assert "does not return image 1" in hidden.err
    model = civman("replay", "https://civitai.com/models/91001")
    assert model.code != 0
    assert "Traceback" not in model.err
