"""Answers in the shapes of four eras, written for these tests with invented models, mean what they say.

The recorded answers that other tests read do not travel with the repository; these do.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from running import OWN_ANSWERS
from scripted_server import NOW, Canned, ScriptedServer

from civman.civitai import wire_lookups, wire_models
from civman.civitai.client import CivitaiClient
from civman.civitai.transport import Transport
from civman.domain.catalog import FileId, Gate, ModelId, ModelType, Scan, VersionId
from civman.domain.digests import Sha256
from civman.domain.search_query import ModelPage, SearchQuery
from civman.errors import BadAnswer, CivmanError, NotFound


def own(name: str) -> Any:
    return json.loads((OWN_ANSWERS / f"{name}.json").read_text("utf-8"))


def page(name: str, now: datetime = NOW) -> ModelPage:
    return wire_models.page(own(name), now=now, on_notice=pytest.fail)


def test_model_of_2023_has_two_formats_a_config_and_a_dangerous_pickle() -> None:
    found = page("model-checkpoint-two-formats.2023")

    assert (found.model.id, found.model.type, found.model.creator) == (90110, ModelType.CHECKPOINT, "marsh_heron")
    assert found.model.licence.commercial_use == ("Image", "RentCivit", "Rent")
    assert (found.model.licence.credit_required, found.model.licence.derivatives_allowed) == (False, False)
    new, old = found.versions
    assert [(file.suffix, file.is_primary) for file in new.files] == [
        (".ckpt", False),
        (".safetensors", True),
        (".yaml", False),
    ]
    assert [file.size_bytes for file in new.files] == [2132625894, 2132623872, 1867]
    assert [(file.precision, file.size_class) for file in new.files] == [
        (None, "full"),
        ("fp16", "pruned"),
        (None, None),
    ]
    assert new.files[2].pickle_scan is Scan.ERROR
    assert (old.files[0].pickle_scan, old.files[0].virus_scan) == (Scan.DANGER, Scan.SUCCESS)
    assert (new.trained_words, old.trained_words) == (("saltdio",), ())
    assert [preview.nsfw_level for preview in new.previews] == [1, 4]


def test_archived_model_of_2023_has_no_file_and_its_early_access_has_run_out() -> None:
    found = page("model-embedding-archived.2023")

    assert (found.model.mode, found.model.name, found.model.type) == ("Archived", "gull-negative ", ModelType.EMBEDDING)
    assert (found.versions[0].files, found.versions[0].download_url, found.versions[0].gate) == ((), None, None)


def test_model_of_2024_has_training_data_first_and_a_long_autov3() -> None:
    version = page("model-lora-training-data.2024").versions[0]

    archive, weights = version.files
    assert (archive.type, archive.is_primary, archive.hashes.known()) == ("Training Data", False, {})
    assert (weights.is_primary, len(weights.hashes.autov3 or "")) == (True, 12)
    assert version.trained_words == ("copper kettle", "dented")
    assert version.base_model_type is None


def test_model_of_2025_is_gated_by_its_availability_and_has_two_precisions() -> None:
    found = page("model-checkpoint-early-access.2025")

    assert [version.gate for version in found.versions] == [Gate(), None]
    assert found.model.licence.commercial_use == ("Image", "RentCivit")
    full, half = found.versions[1].files
    assert (full.precision, half.precision, full.is_primary, half.is_primary) == ("fp32", "fp16", False, True)
    assert full.name == half.name


def test_model_of_2026_has_each_state_of_paid_access() -> None:
    ends = datetime(2026, 8, 20, 6, tzinfo=UTC)

    gates = [version.gate for version in page("model-dora-paid-access.2026").versions]
    later = [version.gate for version in page("model-dora-paid-access.2026", now=ends + timedelta(hours=1)).versions]

    assert gates == [Gate(ends_at=ends), Gate(), Gate(permanent=True), None]
    assert later == [None, Gate(), Gate(permanent=True), None]


def test_version_of_2025_reads_times_without_a_zone_and_knows_its_second_precision() -> None:
    version = wire_models.version(own("version-checkpoint-by-id.2025"), now=NOW, on_notice=pytest.fail)

    assert (version.id, version.model.id, version.model.is_complete) == (90242, 90140, False)
    assert version.air == "urn:air:sdxl:checkpoint:civitai:90140@90242"
    assert [(file.id, file.is_primary) for file in version.files] == [(90342, False), (90343, True)]
    assert version.previews[0].nsfw_level == 4


def test_version_of_2026_links_the_vae_of_another_and_cannot_be_downloaded() -> None:
    version = wire_models.version(own("version-linked-vae.2026"), now=NOW, on_notice=pytest.fail)

    assert [(file.type, file.is_primary, file.is_linked) for file in version.files] == [
        ("Text Encoder", False, False),
        ("Model", True, False),
        ("VAE", False, True),
    ]
    assert version.usage_control == "Generation"


def test_search_walks_over_a_cursor_and_an_empty_page(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(own("models-list-first-page.2026"), own("models-list-empty-page.2026"),
                 own("models-list-last-page.2026"))  # fmt: skip

    found = list(client.search(SearchQuery(nsfw=True)))

    assert [(item.model.id, item.model.type) for item in found] == [
        (90171, ModelType.LORA),
        (90172, ModelType.LOCON),
        (90173, ModelType.WORKFLOWS),
    ]
    cursors = [dict(asked.params).get("cursor") for asked in site.asked]
    assert cursors == [None, "0|7|90173", "200"]


def test_numbered_page_of_2025_is_the_last() -> None:
    found = wire_models.search_page(own("models-list-numbered-page.2025"), now=NOW, on_notice=pytest.fail)

    assert (found.received_count, found.next_cursor, found.next_page) == (1, None, None)


def test_hash_finds_the_file_and_a_hash_of_none_is_not_believed(site: ScriptedServer, client: CivitaiClient) -> None:
    answer = own("version-checkpoint-by-id.2025")
    site.answers(answer)

    for file in answer["files"]:
        for kind in ("AutoV1", "AutoV2", "AutoV3", "SHA256", "BLAKE3"):
            version, known = client.by_hash(file["hashes"][kind])
            assert (version.id, known.id) == (90242, file["id"]), kind
    with pytest.raises(BadAnswer):
        client.by_hash("0123456789")


def test_bulk_hashes_name_model_and_version(site: ScriptedServer, client: CivitaiClient) -> None:
    answer = own("hashes-to-versions.2026")
    site.answers(answer)
    digests = [Sha256(each["hash"].lower()) for each in answer]

    assert client.identify(digests) == {
        digests[0]: (ModelId(90140), VersionId(90242)),
        digests[1]: (ModelId(90110), VersionId(90211)),
    }


def test_mini_answer_gives_the_uploaded_name_and_the_exact_size(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(own("mini.2026"))

    glance = client.mini(VersionId(90242), FileId(90343))

    assert glance.file.name == "night-ferry-pony.safetensors"
    assert glance.file.size_bytes == 3469020224
    assert glance.file.hashes.autov2 == own("mini.2026")["hashes"]["AutoV2"].lower()


def test_tensor_metadata_lists_names_types_and_shapes(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(own("tensor-metadata.2026"))

    assert client.tensor_metadata(FileId(90332)) == [
        ("lora_unet_a.lora_down.weight", "F16", (8, 768)),
        ("lora_unet_a.lora_up.weight", "F16", (768, 8)),
        ("lora_unet_a.extra", "F32", (6, 6)),
    ]


def test_picture_keeps_its_settings_and_resources(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(own("images-with-meta.2026"))

    picture = client.image(90501)

    assert (picture.width, picture.height, picture.nsfw_level, picture.username) == (832, 1216, 2, "purser")
    assert picture.meta is not None
    assert picture.meta["civitaiResources"] == [
        {"type": "checkpoint", "modelVersionId": 90242},
        {"type": "lora", "weight": 0.6, "modelVersionId": 90231},
    ]
    with pytest.raises(NotFound):
        client.image(5)
    assert [each.meta for each in wire_lookups.pictures(own("images-with-meta.2026"), now=NOW, on_notice=pytest.fail)][
        1
    ] is None


def test_account_is_read(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(own("me.2026"))

    assert client.me().name == "tinsmith"


@pytest.mark.parametrize("case", own("errors")["cases"], ids=lambda case: case["name"])
def test_each_kind_of_error_has_its_code_its_exit_code_and_a_way_out(
    case: dict[str, Any], site: ScriptedServer, transport: Callable[..., Transport]
) -> None:
    body = case["body"] if "body" in case else case["text"].encode()
    kind = {} if "body" in case else {"Content-Type": "text/plain"}
    site.answers(Canned(case["status"], body, {**kind, **case.get("headers", {})}))
    client = CivitaiClient(transport(token=None))
    ask = client.download_address if case["ask"] == "download" else client.version

    with pytest.raises(CivmanError) as caught:
        ask(VersionId(12))

    assert (caught.value.code, int(caught.value.exit_code)) == (case["code"], case["exit"])
    assert len(caught.value.hint) > 10
    assert "\n" not in caught.value.message
