"""The files that an image's settings name are found on CivitAI by what they are: hash, AIR, version id, name last."""

import json
from pathlib import Path

import pytest

from civman.demo.demo_catalog import Content
from civman.demo.server import CivitaiServer
from civman.errors import Cause
from civman.library import Library
from civman.library.named_files_part import JudgedOffer
from civman.planning.wanted_files import By

SHAPES, NIGHT, EMBLEM = 159010, 159040, 159090
"""The demo's files: a checkpoint, a LoRA that two versions contain, an embedding."""


def hashes_of(server: CivitaiServer, file_id: int) -> dict[str, str]:
    file = server.catalogue.file(file_id)
    assert file is not None
    return {name: value.lower() for name, value in file.hashes.items()}


def text(prompt: str = "a red circle", **more: str) -> str:
    details = {
        "Steps": "20", "Sampler": "DPM++ 2M", "CFG scale": "4", "Seed": "1", "Size": "64x64", "Version": "v1.10.1",
    }  # fmt: skip
    names = {key.replace("_", " "): value for key, value in more.items()}
    return f"{prompt}\n" + ", ".join(f"{key}: {value}" for key, value in (details | names).items())


def offers(library: Library, settings: str) -> dict[str, JudgedOffer]:
    prepared = library.named_files.prepare(settings, asks_site=True)
    return {each.offer.wanted.file.role: each for each in library.named_files.offers(prepared)}


@pytest.mark.parametrize("kind", ["AutoV1", "AutoV2", "SHA256", "cut"])
def test_a_checkpoint_is_found_by_every_kind_of_hash(online: CivitaiServer, library: Library, kind: str) -> None:
    known = hashes_of(online, SHAPES)
    digest = known["SHA256"][:15] if kind == "cut" else known[kind]

    found = offers(library, text(Model="another-name", Model_hash=digest.upper()))["checkpoint"].offer

    assert found.by is By.HASH
    assert found.job is not None
    assert (found.job.version.id, found.job.file.id, found.notices) == (191010, SHAPES, ())


@pytest.mark.parametrize(
    "listed",
    [
        {"type": "checkpoint", "modelVersionId": 191010},
        {"air": "urn:air:sd1:checkpoint:civitai:91001@191010"},
    ],
)
def test_a_checkpoint_is_found_by_its_version(online: CivitaiServer, library: Library, listed: object) -> None:
    found = offers(library, text(Civitai_resources=json.dumps([listed])))["checkpoint"].offer

    assert found.job is not None
    assert found.job.file.id == SHAPES
    assert len(online.requests_to("api", "/api/v1/models?")) <= 1


def test_a_version_stands_for_a_hash_that_civitai_does_not_know(online: CivitaiServer, library: Library) -> None:
    listed = json.dumps([{"type": "checkpoint", "modelVersionId": 191010}])

    found = offers(library, text(Model="pruned", Model_hash="0123456789", Civitai_resources=listed))["checkpoint"].offer

    assert found.by is By.VERSION
    assert "does not know the hash" in found.notices[0]
    assert online.requests_to("api", "/api/v1/model-versions/by-hash/0123456789")


def test_a_name_is_the_last_resort_and_is_said(online: CivitaiServer, library: Library) -> None:
    found = offers(library, text(Model="tinyShapes_v10"))["checkpoint"].offer

    assert found.by is By.NAME
    assert found.job is not None
    assert found.job.file.id == SHAPES
    assert "by its name only" in found.notices[0]
    assert online.requests_to("api", "/api/v1/models")


def test_an_unknown_hash_is_not_called_deleted_and_never_replaced_by_a_name(
    online: CivitaiServer, library: Library
) -> None:
    found = offers(library, text(Model="tinyShapes_v10", Model_hash="0123456789"))["checkpoint"].offer

    assert found.job is None
    assert found.problem is not None
    assert found.problem.code is Cause.NOT_ON_CIVITAI
    assert "deleted" not in found.problem.message
    assert any("91001@191010" in each and "only the name of its file matches" in each for each in found.stand_ins)
    assert online.requests_to("storage") == []


def test_a_short_hash_of_another_kind_of_file_is_refused(online: CivitaiServer, library: Library) -> None:
    found = offers(library, text(Model="x", Model_hash=hashes_of(online, EMBLEM)["AutoV2"]))["checkpoint"].offer

    assert found.job is None
    assert found.problem is not None
    assert "another kind of file" in found.problem.message


@pytest.mark.parametrize("kind", ["AutoV2", "AutoV3", "SHA256"])
def test_of_two_versions_with_one_file_the_oldest_is_used_and_it_is_said(
    online: CivitaiServer, library: Library, kind: str
) -> None:
    digest = hashes_of(online, NIGHT)[kind]
    shapes = hashes_of(online, SHAPES)["AutoV2"]
    settings = text("circles <lora:my-night:0.5>", Model="s", Model_hash=shapes, Lora_hashes=f'"my-night: {digest}"')

    judged = offers(library, settings)["lora"]

    assert judged.offer.job is not None
    assert judged.offer.job.version.id == 191040
    assert "belongs to 2 versions" in judged.offer.notices[0]
    assert "civman uses 91004@191040, because it is the oldest version" in judged.offer.notices[0]
    assert judged.fit is not None
    assert judged.fit.verdict.value == "fits"


def test_of_two_versions_with_one_file_the_one_without_a_gate_is_used(online: CivitaiServer, library: Library) -> None:
    online.catalogue.change_version(191040, usage_control="InternalGeneration")
    digest = hashes_of(online, NIGHT)["SHA256"]

    found = offers(library, text("circles <lora:n:1>", Model="x", Lora_hashes=f'"n: {digest}"'))["lora"].offer

    assert found.job is not None
    assert found.job.version.id == 191041
    assert "the versions before it cannot be downloaded" in found.notices[0]


def test_full_hashes_are_asked_for_in_one_request(online: CivitaiServer, library: Library) -> None:
    named = {"a": 159020, "b": 159030, "c": NIGHT}
    listed = ", ".join(f"{name}: {hashes_of(online, file)['SHA256']}" for name, file in named.items())
    settings = text("x <lora:a:1> <lora:b:1> <lora:c:1>", Model="tinyShapes_v10", Lora_hashes=f'"{listed}"')
    prepared = library.named_files.prepare(settings, asks_site=True)

    found = library.named_files.offers(prepared)

    assert [each.offer.job.file.id for each in found if each.offer.job][-3:] == list(named.values())
    posted = [each.path for each in online.requests if each.method == "POST"]
    assert posted == ["/api/v1/model-versions/by-hash", "/api/v1/model-versions/by-hash/ids"]
    assert not [each for each in online.requests if re_short(each.path)]


def re_short(path: str) -> bool:
    return path.startswith("/api/v1/model-versions/by-hash/") and not path.endswith("/ids")


def test_a_deleted_version_is_named_with_what_could_stand_in(online: CivitaiServer, library: Library) -> None:
    listed = json.dumps([{"air": "urn:air:sd1:lora:civitai:91002@191022", "type": "lora", "modelName": "Tiny Outline"}])

    found = offers(library, text(Model="tinyShapes_v10", Civitai_resources=listed))["lora"].offer

    assert found.problem is not None
    assert found.problem.code is Cause.DELETED_UPSTREAM
    assert "`Tiny Outline`" in found.problem.message
    assert [each.split(" ")[0] for each in found.stand_ins] == ["91002@191021", "91002@191020"]
    assert online.requests_to("storage") == []


def test_the_same_tensors_in_the_library_could_stand_in_for_a_deleted_version(
    online: CivitaiServer, library: Library, tmp_path: Path
) -> None:
    file = online.catalogue.file(NIGHT)
    assert file is not None
    data = file.content.data
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {"note": "saved again"}
    again = json.dumps(header).encode()
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(len(again).to_bytes(8, "little") + again + data[8 + size :])
    library.show("91004")  # what CivitAI said of both versions is saved
    online.catalogue.remove(91004)
    library.files.import_files([mine])
    listed = json.dumps([{"type": "lora", "modelVersionId": 191040}])

    found = offers(library, text(Model="tinyShapes_v10", Civitai_resources=listed))["lora"].offer

    assert found.problem is not None
    assert found.problem.code is Cause.DELETED_UPSTREAM
    assert any("`mine.safetensors`" in each and "same tensors" in each for each in found.stand_ins)


def test_a_lora_in_the_prompt_and_in_the_list_of_versions_is_one_lora(online: CivitaiServer, library: Library) -> None:
    digest = hashes_of(online, NIGHT)["AutoV3"]
    listed = json.dumps([{"type": "lora", "modelVersionId": 191041, "weight": 0.5}])
    by_hash = text("x <lora:n:0.5>", Model="s", Lora_hashes=f'"n: {digest}"', Civitai_resources=listed)
    by_name = text("x <lora:tiny-night-again:0.5>", Model="s", Civitai_resources=listed)
    only_listed = text("x", Model="s", Civitai_resources=listed)

    for settings in (by_hash, by_name, only_listed):
        prepared = library.named_files.prepare(settings, asks_site=True)

        assert prepared.found.made is not None
        assert [use.scale for use in prepared.found.made.loras] == [0.5]
        assert [each.file.role for each in prepared.files] == ["checkpoint", "lora"]
        assert prepared.files[1].version is not None
    assert online.requests_to("storage") == []


def test_a_file_of_the_same_name_and_another_hash_is_not_taken_for_it(
    online: CivitaiServer, library: Library, tmp_path: Path
) -> None:
    file = online.catalogue.file(159020)
    assert file is not None
    mine = tmp_path / "tiny-night.safetensors"
    mine.write_bytes(file.content.data)
    library.files.import_files([mine])
    digest = hashes_of(online, NIGHT)["AutoV3"]
    settings = text("x <lora:tiny-night:1>", Model="s", Lora_hashes=f'"tiny-night: {digest}"')

    prepared = library.named_files.prepare(settings)
    found = offers(library, settings)["lora"].offer
    library.named_files.fetch([JudgedOffer(found)])
    after = library.named_files.prepare(settings)

    assert (prepared.files[1].by, prepared.files[1].is_certain) == (By.NAME, False)
    assert "its hash is not" in prepared.files[1].notice
    assert (after.files[1].by, after.files[1].is_certain, after.files[1].notice) == (By.HASH, True, "")


def test_nothing_is_asked_without_leave(online: CivitaiServer, library: Library) -> None:
    prepared = library.named_files.prepare(text(Model="x", Model_hash="0123456789"))

    assert [each.held for each in prepared.files] == [None]
    assert online.requests == []


def test_a_file_that_only_the_wrong_header_has_is_refused_before_the_download(
    online: CivitaiServer, library: Library
) -> None:
    online.catalogue.change_file(NIGHT, content=Content.of(b"\0" * 4096))
    digest = hashes_of(online, NIGHT)["SHA256"]

    judged = offers(library, text("x <lora:n:1>", Model="tinyShapes_v10", Lora_hashes=f'"n: {digest}"'))["lora"]

    assert judged.fit is None
    assert judged.why
