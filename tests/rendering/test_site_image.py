"""Images on CivitAI are replayed: settings and original requested, files downloaded, the result compared."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from running import Civman

from civman.demo.server import CivitaiServer
from civman.domain.refs import VersionRef
from civman.library import Library
from civman.pictures import image_text
from civman.planning.plan import Conditions
from civman.planning.site_image import SiteImage

URL = "https://civitai.com/images/12100201"


@pytest.mark.usefixtures("online")
def test_an_image_on_civitai_is_replayed_on_an_empty_machine(civman: Civman, root: Path) -> None:
    refused = civman("replay", URL, "--device", "cpu")
    assert refused.code != 0
    assert "missing" in refused.err

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
        missing = library.pictures.missing_versions(bare)
        assert [(each.role, each.id) for each in missing] == [("checkpoint", 191010), ("lora", 191021)]
        for each in missing:
            library.downloads.fetch(str(VersionRef(each.id)))
        assert library.pictures.missing_versions(bare) == []

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


@pytest.mark.usefixtures("online")
def test_what_is_no_image_is_an_error(civman: Civman) -> None:
    hidden = civman("replay", "https://civitai.com/images/1", "--fetch")
    assert hidden.code != 0
    assert "does not show picture 1" in hidden.err
    model = civman("replay", "https://civitai.com/models/91001")
    assert model.code != 0
    assert "Traceback" not in model.err
