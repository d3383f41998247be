"""Saved answers of four eras mean what they say."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from scripted_server import NOW

from civman.civitai import wire_lookups, wire_models, wire_values
from civman.domain.catalog import Gate, ModelType, Scan
from civman.domain.search_query import ModelPage
from civman.errors import BadAnswer

Saved = Callable[[str], Any]


@pytest.fixture
def page(saved: Saved) -> Callable[[str], ModelPage]:
    return lambda name: wire_models.page(saved(name), now=NOW, on_notice=pytest.fail)


def read_page(answer: object, told: list[str]) -> ModelPage:
    return wire_models.page(answer, now=NOW, on_notice=told.append)


def test_config_side_file_keeps_its_scan_error_and_is_not_primary(page: Callable[[str], ModelPage]) -> None:
    version = page("model-checkpoint-config-scan-error.2023-07").versions[0]

    weights, config = version.files
    assert (weights.id, weights.size_bytes, weights.is_primary) == (4562, 2580250968, True)
    assert (config.id, config.type, config.suffix, config.is_primary) == (5264, "Config", ".yaml", False)
    assert (config.pickle_scan, config.virus_scan) == (Scan.ERROR, Scan.SUCCESS)
    assert config.hashes.autov1 is None
    assert config.download_url == "https://civitai.com/api/download/models/4610?type=Config&format=Other"
    assert version.trained_words == ("nousr robot",)


def test_availability_alone_marks_early_access_in_2025(page: Callable[[str], ModelPage]) -> None:
    found = page("model-checkpoint-earlyaccess-availability.2025-07")

    assert [(version.id, version.gate) for version in found.versions] == [
        (2010753, Gate()),
        (1697082, None),
        (1617798, None),
    ]
    assert found.model.licence.credit_required is True
    assert found.model.licence.commercial_use == ("Image", "RentCivit", "Rent")
    assert found.model.licence.different_licence_allowed is False
    assert found.versions[1].files[0].hashes.autov3 == "24ed8cec7a16"
    assert found.versions[0].previews[0].nsfw_level == 1


@pytest.mark.parametrize(("days", "gated"), [(4.9, True), (5.1, False)])
def test_time_frame_gates_for_so_many_days_after_publication(saved: Saved, days: float, gated: bool) -> None:
    answer = saved("model-checkpoint-earlyaccess-timeframe.2023-07")
    published = datetime(2023, 4, 12, 9, tzinfo=UTC)
    answer["modelVersions"][0]["publishedAt"] = "2023-04-12T09:00:00"

    version = wire_models.page(answer, now=published + timedelta(days=days), on_notice=pytest.fail).versions[0]

    assert version.gate == (Gate(ends_at=published + timedelta(days=5)) if gated else None)
    assert version.files[0].precision == "fp32"
    assert version.files[0].size_bytes == 9613843039


def test_primary_file_need_not_be_the_first(page: Callable[[str], ModelPage]) -> None:
    found = page("model-checkpoint-multiversion-multifile.2023-07")

    assert [version.id for version in found.versions] == [27756, 48210]
    files = found.versions[0].files
    assert [(file.id, file.is_primary) for file in files] == [(22933, False), (34132, True), (73608, False)]
    assert [file.size_bytes for file in files] == [2607644103, 2607359919, 1816]
    assert files[1].hashes.sha256 == "8d0cc3bfbd0cd76f58a9da80e1e3535cf9ee2c5a3e67136b961d3ee46b4508e5"
    assert files[1].format == "SafeTensor"
    assert files[2].precision is None
    assert found.model.licence.commercial_use == ()
    assert found.versions[0].base_model == "SD 2.1 768"


def test_dangerous_pickle_is_told_and_the_old_licence_word_implies_the_lower_ones(
    page: Callable[[str], ModelPage],
) -> None:
    found = page("model-checkpoint-pickle-danger.2023-07")

    file = found.versions[0].files[0]
    assert (file.pickle_scan, file.virus_scan, file.suffix) == (Scan.DANGER, Scan.SUCCESS, ".ckpt")
    assert "Dangerous import" in (file.scan_message or "")
    assert found.model.licence.commercial_use == ("Image", "RentCivit", "Rent", "Sell")
    assert found.model.licence.credit_required is False


def test_own_vae_file_is_not_taken_for_a_linked_one(page: Callable[[str], ModelPage]) -> None:
    files = page("model-checkpoint-with-vae-file.2023-07").versions[0].files

    assert [(file.id, file.type, file.is_primary, file.is_linked) for file in files] == [
        (446, "Model", True, False),
        (3725, "VAE", False, False),
    ]
    assert files[1].size_bytes == 822802803


def test_archived_model_has_versions_without_files(page: Callable[[str], ModelPage]) -> None:
    found = page("model-embedding-archived.2023-07")

    assert (found.model.id, found.model.type, found.model.mode) == (99832, ModelType.EMBEDDING, "Archived")
    assert found.versions[0].files == ()
    assert found.versions[0].download_url is None
    assert len(found.versions[0].previews) == 2


def test_negative_embedding_is_a_primary_file_of_its_own_type(page: Callable[[str], ModelPage]) -> None:
    found = page("model-embedding-negative-file.2023-07")

    file = found.versions[0].files[0]
    assert (file.name, file.type, file.is_primary, file.size_bytes) == ("negative_hand-neg.pt", "Negative", True, 25533)
    assert found.model.name == "negative_hand Negative Embedding "
    assert found.model.licence.commercial_use == ("Image", "RentCivit", "Rent")


def test_training_data_may_come_before_the_weights_and_long_autov3_is_cut(page: Callable[[str], ModelPage]) -> None:
    found = page("model-lora-by-id.2024-01")

    archive, weights = found.versions[1].files
    assert (archive.type, archive.suffix, archive.is_primary) == ("Training Data", ".zip", False)
    assert (weights.id, weights.is_primary, weights.size_bytes) == (188487, True, 393837232)
    assert weights.hashes.autov3 == "d60e731380e2"
    assert [version.base_model for version in found.versions] == ["SDXL Turbo", "SDXL 1.0", "SD 1.5"]
    assert found.model.licence.commercial_use == ("RentCivit",)
    assert found.model.creator == "test_author"
    assert all(version.gate is None for version in found.versions)


def test_lora_with_three_files_names_its_safetensors_primary(page: Callable[[str], ModelPage]) -> None:
    version = page("model-lora-pt-safetensors-textencoder.2023-07").versions[0]

    assert [(file.type, file.suffix, file.is_primary) for file in version.files] == [
        ("Model", ".pt", False),
        ("Model", ".safetensors", True),
        ("Text Encoder", ".pt", False),
    ]
    assert version.trained_words == ("vhs footage of", "vhs")


def test_taken_down_model_keeps_its_files_and_loses_its_pictures(page: Callable[[str], ModelPage]) -> None:
    found = page("model-lora-takendown.2023-07")

    assert found.model.mode == "TakenDown"
    assert [version.id for version in found.versions] == [14216, 14217]
    assert found.versions[0].previews == ()
    assert found.versions[1].files[0].size_bytes == 9553658


def test_list_item_of_2026_is_read_whole(saved: Saved) -> None:
    found = wire_models.search_page(saved("models-list-item-current-shape.2026-08"), now=NOW, on_notice=pytest.fail)

    assert (found.received_count, found.next_cursor, found.next_page) == (1, None, None)
    model, version = found.items[0].model, found.items[0].versions[0]
    assert (model.id, model.type, model.nsfw_level, model.creator) == (2851602, ModelType.LORA, 7, "Konan")
    assert model.is_complete
    assert version.trained_words == ("pocahontas", "a native american woman")
    assert version.published_at == datetime(2026, 8, 11, 21, 25, 4, 626000, tzinfo=UTC)
    assert version.files[0].size_bytes == 228588904
    assert version.files[0].precision == "bf16"
    assert version.previews[0].nsfw_level == 2
    assert version.gate is None


def test_list_page_of_2025_is_the_last_one(saved: Saved) -> None:
    found = wire_models.search_page(saved("models-list-page.2025-05"), now=NOW, on_notice=pytest.fail)

    assert found.next_cursor is None
    assert [version.id for version in found.items[0].versions] == [127062, 13966]
    assert found.items[0].versions[1].files[0].size_class == "full"
    assert found.items[0].versions[0].nsfw_level == 13
    assert '"modelVersions"' not in found.items[0].model.raw
    assert '"name":"VSK-94 | Girls\' Frontline"' in found.items[0].model.raw


def test_version_of_2025_names_its_model_and_reads_times_without_zone(saved: Saved) -> None:
    version = wire_models.version(saved("version-checkpoint-by-id.2025-05"), now=NOW, on_notice=pytest.fail)

    assert (version.id, version.model.id, version.model.is_complete) == (1805971, 1595884, False)
    assert (version.model.name, version.model.type) == ("Hyphoria [Illu & NAI]", ModelType.CHECKPOINT)
    assert version.air == "urn:air:sdxl:checkpoint:civitai:1595884@1805971"
    assert (version.base_model, version.usage_control, version.status) == ("Illustrious", "Download", "Published")
    assert version.files[0].size_bytes == 6938040286
    assert version.files[0].hashes.known()["autov3"] == "c4879d8bb77a"
    assert version.download_count == 17096
    assert version.raw.startswith('{"id":1805971,"modelId":1595884,')
    assert wire_values.timestamp("2025-05-19T02:43:46.31") == datetime(2025, 5, 19, 2, 43, 46, 310000, tzinfo=UTC)


def test_version_of_2024_has_nulls_everywhere(saved: Saved) -> None:
    version = wire_models.version(saved("version-lora-by-id.2024-01"), now=NOW, on_notice=pytest.fail)

    assert (version.id, version.model.id, version.base_model_type) == (242807, 215485, None)
    assert (version.files[0].size_class, version.files[0].precision) == (None, None)
    assert version.files[0].hashes.autov3 == "813ea5fb1c67"
    assert [preview.nsfw_level for preview in version.previews] == [1, 1, 1]


def test_version_of_september_2026_names_file_ids_in_addresses_and_links_a_vae(saved: Saved) -> None:
    version = wire_models.version(saved("version-multifile-fileid-urls.2026-09"), now=NOW, on_notice=pytest.fail)

    assert [(file.id, file.type, file.is_primary, file.is_linked) for file in version.files] == [
        (2863150, "Text Encoder", False, False),
        (2863158, "Model", True, False),
        (None, "VAE", False, True),
    ]
    assert version.files[1].hashes.known() == {}
    assert version.files[2].size_bytes == 253806246


def test_paid_access_of_2026_has_three_states(saved: Saved) -> None:
    answer = {**saved("versions-paid-access-states.2026-08"), "id": 1}

    versions = wire_models.page(answer, now=NOW, on_notice=pytest.fail).versions

    ends = datetime(2026, 8, 23, 20, 55, 59, 248000, tzinfo=UTC)
    assert [version.gate for version in versions] == [Gate(ends_at=ends), Gate(), Gate(permanent=True)]
    assert versions[0].download_count is None
    late = wire_models.page(answer, now=ends, on_notice=pytest.fail).versions
    assert late[0].gate is None


def test_picture_keeps_its_resources(saved: Saved) -> None:
    picture = wire_lookups.pictures(saved("images-page-with-meta.2024"), now=NOW, on_notice=pytest.fail)[0]

    assert (picture.id, picture.width, picture.height, picture.nsfw_level) == (9173928, 832, 1216, 1)
    assert picture.meta is not None
    assert picture.meta["seed"] == 1938345220
    resources = picture.meta["civitaiResources"]
    assert isinstance(resources, list)
    assert len(resources) == 8


def test_wrapped_generation_data_is_unwrapped() -> None:
    answer = {"items": [{"id": 3, "url": "https://x/3.jpeg", "meta": {"id": 3, "meta": {"steps": "28"}}}]}

    assert wire_lookups.pictures(answer, now=NOW, on_notice=pytest.fail)[0].meta == {"steps": "28"}


@pytest.mark.parametrize(
    ("raw", "meant"),
    [
        (None, None),
        ([], ()),
        ("{}", ()),
        ("None", ()),
        (["None"], ()),
        ("{Image,RentCivit}", ("Image", "RentCivit")),
        ('{"Rent",Image}', ("Image", "Rent")),
        (["Sell"], ("Sell",)),
        ("Sell", ("Image", "RentCivit", "Rent", "Sell")),
        ("RentCivit", ("Image", "RentCivit")),
        (["Image", "Lend"], ("Image", "Lend")),
    ],
)
def test_commercial_use_is_read_in_all_its_spellings(raw: object, meant: tuple[str, ...] | None) -> None:
    told: list[str] = []

    assert read_page({"id": 1, "allowCommercialUse": raw}, told).model.licence.commercial_use == meant
    assert told == []


def test_broken_entries_are_left_out_and_told_and_the_others_stay() -> None:
    told: list[str] = []
    files = [
        7,
        {"id": 4, "name": "a.safetensors", "sizeKB": "many", "hashes": {"SHA256": "XYZ", "AutoV2": "ABCDEF0123"}},
    ]
    answer = {
        "id": 1,
        "stats": "none",
        "modelVersions": [{"name": "no id"}, {"id": 2, "files": files}, {"id": 3, "publishedAt": "soon", "files": []}],
    }

    found = read_page(answer, told)

    assert [version.id for version in found.versions] == [2, 3]
    assert [file.id for file in found.versions[0].files] == [4]
    assert found.versions[0].files[0].size_bytes is None
    assert found.versions[0].files[0].hashes.known() == {"autov2": "abcdef0123"}
    assert len(told) == 6
    for place in ("`stats` of model 1", "entry 1 of `model_versions`", "entry 1 of `files` of version 2", "size_kb",
                  "SHA256", "`published_at` of version 3"):  # fmt: skip
        assert sum(place in notice for notice in told) == 1, place


def test_empty_body_digest_says_nothing() -> None:
    told: list[str] = []

    assert wire_values.hashes({"AutoV3": "E3B0C44298FC", "crc32": ""}, told.append).known() == {}
    assert told == []


@pytest.mark.parametrize("field", ["stats", "creator", "tags", "modelVersions", "allowCommercialUse", "mode"])
@pytest.mark.parametrize("nothing", [None, [], {}])
def test_every_form_of_nothing_is_quietly_nothing(field: str, nothing: object) -> None:
    told: list[str] = []

    found = read_page({"id": 1, field: nothing}, told)

    assert found.versions == ()
    assert found.model.creator is None
    assert told == []


def test_unknown_words_are_kept_raw() -> None:
    found = read_page({"id": 1, "type": "Hologram", "modelVersions": [{"id": 2, "files": [
        {"id": 3, "type": "Hologram", "pickleScanResult": "Perhaps"}]}]}, [])  # fmt: skip

    assert (found.model.type, found.model.type_raw) == (ModelType.OTHER, "Hologram")
    file = found.versions[0].files[0]
    assert (file.type, file.pickle_scan, file.is_primary) == ("Hologram", Scan.UNKNOWN, False)


def test_file_of_a_vae_id_is_linked_in_older_answers() -> None:
    files = [
        {"id": 1, "type": "Model", "primary": True, "downloadUrl": "https://civitai.com/api/download/models/2"},
        {"id": 9, "type": "VAE", "downloadUrl": "https://civitai.com/api/download/models/2?type=VAE"},
    ]

    version = read_page({"id": 1, "modelVersions": [{"id": 2, "vaeId": 77, "files": files}]}, []).versions[0]

    assert [file.is_linked for file in version.files] == [False, True]


@pytest.mark.parametrize("answer", [None, [], "", 7, {}, {"id": "12"}, {"id": 0}, {"id": 2**31}, {"id": True}])
def test_what_is_no_model_is_refused(answer: object) -> None:
    with pytest.raises(BadAnswer, match="not a model"):
        read_page(answer, [])


@pytest.mark.parametrize("answer", [None, [], {}, {"items": None}, {"items": {}}, {"items": "x"}])
def test_what_is_no_page_is_refused(answer: object) -> None:
    with pytest.raises(BadAnswer, match="not a page"):
        wire_models.search_page(answer, now=NOW, on_notice=lambda _: None)


def test_version_without_a_model_is_refused() -> None:
    with pytest.raises(BadAnswer, match="does not contain its model's id"):
        wire_models.version({"id": 5}, now=NOW, on_notice=pytest.fail)


def test_tensor_list_with_a_hole_is_refused() -> None:
    whole = {"tensors": [{"name": "a", "dtype": "F16", "shape": [2, 3], "sizeBytes": 12}]}
    holed = {"tensors": [*whole["tensors"], {"name": "b"}]}

    assert wire_lookups.tensors(whole, now=NOW, on_notice=pytest.fail) == [("a", "F16", (2, 3))]
    with pytest.raises(BadAnswer, match="tensors"):
        wire_lookups.tensors(holed, now=NOW, on_notice=pytest.fail)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("%E7%8C%AB-000008.safetensors", "猫-000008.safetensors"), ("a%20b.pt", "a b.pt"), ("50%.pt", "50%.pt"),
        ("50%25.pt", "50%.pt"), ("100%zz.pt", "100%zz.pt"), ("x%FF.pt", "x%FF.pt"), ("plain.pt", "plain.pt"),
        ("猫%E7%8C%AB.pt", "猫猫.pt"), ("%4", "%4"), ("", ""),
        ("%2F.safetensors", "%2F.safetensors"), ("a%5Cb.pt", "a%5Cb.pt"), ("a%00.pt", "a%00.pt"),
    ],
)  # fmt: skip
def test_percent_encoded_file_names_are_decoded(raw: str, name: str) -> None:
    assert wire_values.file_name(raw) == name
