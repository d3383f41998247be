"""The demo's CivitAI tells the truth about the tiny models, but for the one label that lies."""

import hashlib
import io
import json
import struct
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from asking import KEY, ask
from PIL import Image
from running import Civman
from tiny_studio import MODELS

from civman.demo.demo_catalog import Catalogue, DemoImage
from civman.demo.server import CivitaiServer
from civman.domain.recipes.record import read_origin
from civman.errors import ExitCode

TINY = (*range(91001, 91010), 91011, 91012, 91013)


def drawn(catalogue: Catalogue) -> Iterator[DemoImage]:
    for number in TINY:
        model = catalogue.model(number)
        assert model
        yield from (image for version in model.versions for image in version.images if image.drawn)


def test_every_packaged_file_is_offered_and_its_hashes_are_those_of_its_bytes(server: CivitaiServer) -> None:
    packaged = {hashlib.sha256(path.read_bytes()).hexdigest().upper() for path in MODELS.iterdir()}

    declared = set()
    for number in TINY:
        for version in ask(f"{server.url}/api/v1/models/{number}").json["modelVersions"]:
            for file in version["files"]:
                assert set(file["hashes"]) >= {"SHA256", "AutoV2", "AutoV3", "CRC32"}
                assert file["hashes"]["AutoV2"] == file["hashes"]["SHA256"][:10]
                declared.add(file["hashes"]["SHA256"])

    assert packaged < declared


def test_a_preview_is_what_its_page_says_and_carries_the_recipe_of_files_offered_here(
    server: CivitaiServer, catalogue: Catalogue
) -> None:
    offered = {file.hashes["SHA256"].lower() for _, _, file in catalogue.files() if file.has_hashes}
    images = list(drawn(catalogue))
    assert len(images) >= 13

    for image in images:
        items = ask(f"{server.url}/api/v1/images?imageId={image.id}&withMeta=true").json["items"]
        (item,) = items
        data = ask(item["url"]).body
        with Image.open(io.BytesIO(data)) as picture:
            assert (item["width"], item["height"]) == picture.size
            if image.drawn.startswith("foreign-"):  # as A1111 writes it: its text, and nothing of civman's
                assert list(picture.text) == ["parameters"]
                continue
            recipe = read_origin(picture.text["civman"]).recipe
        meta = item["meta"]["meta"]
        assert len(data) <= 40_000
        assert (meta["prompt"], meta["seed"], meta["steps"]) == (recipe.prompt, recipe.seed, recipe.steps)
        used = [
            recipe.checkpoint,
            *(lora.sha256 for lora in recipe.loras),
            *(each.sha256 for each in recipe.embeddings),
            *(use.sha256 for use in recipe.controls),
        ]
        assert {*used, *([recipe.vae] if recipe.vae else [])} <= offered
        versions = {resource["modelVersionId"] for resource in meta["civitaiResources"]}
        assert all(catalogue.version(version) for version in versions)


def test_the_bold_stripes_are_the_same_weights_with_larger_alphas(catalogue: Catalogue) -> None:
    plain, bold = (catalogue.file(number) for number in (159030, 159031))
    assert plain
    assert bold
    first, second = plain.content.data, bold.content.data
    body = 8 + int.from_bytes(first[:8], "little")
    header = json.loads(first[8:body])

    different = {at for at in range(len(first)) if first[at] != second[at]}

    alphas = {key: body + value["data_offsets"][0] for key, value in header.items() if key.endswith(".alpha")}
    assert different <= {at + byte for at in alphas.values() for byte in (0, 1)}
    for at in alphas.values():
        (before,), (after,) = struct.unpack("<e", first[at : at + 2]), struct.unpack("<e", second[at : at + 2])
        assert after == before * 1.5


@pytest.mark.usefixtures("online")
def test_the_label_that_lies_is_seen_before_and_after_download(civman: Civman) -> None:
    civman("download", "91001", "civitai:91008", "--quiet")

    checked = civman("check", "91001", "--lora", "91008")

    assert checked.code == ExitCode.INCOMPATIBLE
    assert "CivitAI's support for this pair of base models: full" in checked.out
    assert "0 of 986 modules fit" in checked.err
    assert "CivitAI says SD 1.5, but the tensors show sdxl" in civman("inspect", "91008").out


@pytest.mark.usefixtures("online")
def test_an_older_outline_is_outdated(civman: Civman) -> None:
    civman("download", "civitai:91002@191020", "--quiet")

    out = civman("outdated").out.split()

    assert "91002@191021" in out


def test_the_bold_stripes_need_early_access(server: CivitaiServer) -> None:
    refused = ask(f"{server.url}/api/download/models/191031", **KEY)

    assert refused.status == 403
