"""The embedded CivitAI behaves as the service does, over real HTTP."""

import dataclasses
import hashlib
import http.client
import json
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from asking import KEY, Reply, ask

from civman.demo.demo_catalog import (
    Catalogue,
    Content,
    DemoFile,
    DemoGate,
    DemoImage,
    DemoModel,
    DemoVersion,
    utc,
)
from civman.demo.demo_models import Shelf, demo_catalogue
from civman.demo.server import CivitaiServer

Get = Callable[..., Reply]
HARBOUR, MERIDIAN, INK, BRASS = 51207, 60344, 139562, 80233
TINY, STRIPES, DIAMOND, EMBLEM, WARM, NO_BLUE = 91001, 91003, 91005, 91009, 91006, 91010
EDGES, FLOW = 91011, 91012
ERRORS = Path(__file__).parents[3] / "shared" / "fixtures" / "civitai" / "errors.derived.json"


def ids(reply: Reply) -> list[int]:
    return [item["id"] for item in reply.json["items"]]


def lora(number: int, **changes: object) -> DemoModel:
    """A small published model made for a test; its one version has id `number` + 500000."""
    file = DemoFile(number + 700000, f"extra{number}.safetensors", Content.of(b"extra %d" % number))
    version = DemoVersion(number + 500000, "v1", "SD 1.5", files=(file,), images=(DemoImage(number + 900000),))
    return dataclasses.replace(
        DemoModel(number, f"Extra {number}", "LORA", (version,), creator="many", tags=("bulk",)), **changes
    )


@pytest.fixture
def crowd() -> Catalogue:
    """25 models of which neighbours tie in their counts."""
    return Catalogue([lora(number, thumbs_up=number // 4, downloads=number // 2) for number in range(1, 26)])


# Search ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["Highest Rated", "Most Downloaded", "Newest", "Oldest"])
def test_cursors_walk_every_model_once(crowd: Catalogue, sort: str) -> None:
    with CivitaiServer(crowd) as server:
        url: str | None = f"{server.url}/api/v1/models?limit=7&sort={sort.replace(' ', '%20')}"
        seen: list[int] = []
        pages = 0
        while url:
            page = ask(url)
            seen += ids(page)
            pages += 1
            url = page.json["metadata"].get("nextPage")

    assert sorted(seen) == list(range(1, 26))
    assert pages == 4


def test_next_page_carries_the_cursor_and_the_filters(crowd: Catalogue) -> None:
    with CivitaiServer(crowd) as server:
        metadata = ask(f"{server.url}/api/v1/models?limit=5&types=LORA&types=DoRA").json["metadata"]

    query = parse_qs(urlsplit(metadata["nextPage"]).query)
    assert query == {"limit": ["5"], "types": ["LORA", "DoRA"], "cursor": [metadata["nextCursor"]]}
    assert len(metadata["nextCursor"].split("|")) == 3


def test_page_number_is_echoed_and_ignored(get: Get) -> None:
    first, second = get("/api/v1/models?limit=3&page=1"), get("/api/v1/models?limit=3&page=2")

    assert ids(first) == ids(second)
    assert (second.json["metadata"]["currentPage"], second.json["metadata"]["pageSize"]) == (2, 3)


def test_text_search_pages_by_offset_and_filters_afterwards(crowd: Catalogue) -> None:
    crowd.change_model(1, tags=("rare",))
    crowd.change_model(25, tags=("rare",))
    with CivitaiServer(crowd) as server:
        first = ask(f"{server.url}/api/v1/models?query=extra&limit=10&tag=rare").json
        second = ask(first["metadata"]["nextPage"]).json
        third = ask(second["metadata"]["nextPage"]).json

    assert [[item["id"] for item in page["items"]] for page in (first, second, third)] == [[1], [], [25]]
    assert second["metadata"]["nextCursor"] == "20"
    assert third["metadata"] == {}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("query=ink%20wash", [INK]),
        ("query=mirabel", [71820, INK]),
        ("query=clockwork", [BRASS]),
        ("query=nothing%20like%20this", []),
        ("types=Checkpoint&sort=Oldest", [53990, HARBOUR, MERIDIAN, TINY, FLOW]),
        ("types=VAE&types=TextualInversion&sort=Oldest", [70115, 71820, DIAMOND, WARM, EMBLEM, NO_BLUE]),
        ("types=Controlnet", [EDGES]),
        ("baseModels=SDXL%201.0&types=Checkpoint", [MERIDIAN]),
        ("baseModels=SDXL%201.0,SD%201.5", []),
        ("baseModels=Nonsense", []),
        ("tag=STEAMPUNK", [BRASS]),
        ("username=Saltpan", [HARBOUR, 70115]),
        ("ids=60344,70115", [MERIDIAN, 70115]),
        ("ids=60344&ids=70115", [MERIDIAN, 70115]),
        ("ids=", []),
        ("modelVersionIds=88410", [HARBOUR]),
        ("earlyAccess=true", [84410, STRIPES]),
        ("earlyAccess=false", [84410, STRIPES]),
        ("checkpointType=Merge", [HARBOUR]),
        ("allowCommercialUse=Sell&types=VAE", [70115, WARM]),
        ("fileFormats=PickleTensor&fileFormats=GGUF", [53990, NO_BLUE]),
    ],
)
def test_filter_finds_exactly(get: Get, query: str, found: list[int]) -> None:
    assert ids(get(f"/api/v1/models?{query}")) == found


def test_hash_can_be_searched_as_text(get: Get) -> None:
    digest = get(f"/api/v1/models/{INK}").json["modelVersions"][0]["files"][0]["hashes"]["AutoV2"]

    assert ids(get(f"/api/v1/models?query={digest.lower()}")) == [INK]


def test_unknown_tag_drops_the_filter(get: Get) -> None:
    everything = ids(get("/api/v1/models"))

    assert ids(get("/api/v1/models?tag=nosuchtag")) == everything
    assert ids(get("/api/v1/models?tag=ink,style")) == everything


def test_base_model_filter_narrows_the_versions(server: CivitaiServer, catalogue: Catalogue, get: Get) -> None:
    catalogue.change_version(88410, base_model="SD 1.4")

    (item,) = get("/api/v1/models?baseModels=SD%201.4").json["items"]

    assert [version["id"] for version in item["modelVersions"]] == [88410]


def test_period_looks_at_the_last_version(catalogue: Catalogue) -> None:
    with CivitaiServer(catalogue, clock=lambda: utc("2025-08-25")) as server:
        assert ids(ask(f"{server.url}/api/v1/models?period=Week&sort=Oldest"))[0] == INK
        assert MERIDIAN not in ids(ask(f"{server.url}/api/v1/models?period=Week"))
        assert MERIDIAN in ids(ask(f"{server.url}/api/v1/models?period=Week&periodMode=stats"))


def test_mature_model_is_hidden_until_asked_for(get: Get) -> None:
    assert 87300 not in ids(get("/api/v1/models"))
    assert 87300 in ids(get("/api/v1/models?nsfw=true"))


def test_default_list_shows_only_pg_pictures(get: Get) -> None:
    def levels(query: str) -> set[int]:
        (item,) = get(f"/api/v1/models?ids={HARBOUR}{query}").json["items"]
        return {image["nsfwLevel"] for version in item["modelVersions"] for image in version["images"]}

    assert levels("") == {1}
    assert levels("&nsfw=1") == {1, 2}


def test_archived_model_is_listed_only_on_request_and_without_files(get: Get) -> None:
    (item,) = get("/api/v1/models?ids=85102&archived=no").json["items"]

    assert get("/api/v1/models?ids=85102").json["items"] == []
    assert item["mode"] == "Archived"
    assert item["modelVersions"][0]["files"] == []
    assert "downloadUrl" not in item["modelVersions"][0]


def test_limit_zero_gives_one_item_and_no_cursor(get: Get) -> None:
    for query in ("limit=0", "limit="):
        reply = get(f"/api/v1/models?{query}")
        assert (len(reply.json["items"]), reply.json["metadata"]) == (1, {})


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("limit=101", ["limit"]),
        ("limit=ten", ["limit"]),
        ("page=0", ["page"]),
        ("sort=newest", ["sort"]),
        ("period=Decade", ["period"]),
        ("types=LORA,DoRA", ["types", 0]),
        ("types=LORA&types=lora", ["types", 1]),
        ("checkpointType=Standard", ["checkpointType"]),
        ("nsfw=maybe", ["nsfw"]),
        ("query=a&query=b", ["query"]),
        ("tag=a&tag=b", ["tag"]),
        ("allowNoCredit=true", ["allowNoCredit"]),
        ("browsingLevel=1", ["browsingLevel"]),
        ("excludedTagIds=1", ["excludedTagIds"]),
        ("fileFormats=GGUF", ["fileFormats"]),
    ],
)
def test_wrong_parameter_is_told_as_the_schema_tells_it(get: Get, query: str, where: list[str | int]) -> None:
    reply = get(f"/api/v1/models?{query}")

    assert reply.status == 400
    assert reply.json["error"]["name"] == "ZodError"
    assert [issue["path"] for issue in json.loads(reply.json["error"]["message"])] == [where]


@pytest.mark.parametrize(
    "name",
    [
        "model not found", "model id not a number", "version not found / unpublished / nsfwLevel 0",
        "version lookup crashed", "hash unknown", "list: bad enum", "list: limit too big", "list: page with query",
        "list: page too deep", "list: favorites/hidden key without login (even =false)", "list: unknown username",
        "list: malformed cursor", "me without/with bad token", "wrong method",
    ],
)  # fmt: skip
def test_error_is_the_recorded_one(server: CivitaiServer, name: str) -> None:
    if not ERRORS.exists():
        pytest.skip("the list of CivitAI's errors is not here")
    case = next(each for each in json.loads(ERRORS.read_text())["cases"] if each["name"] == name)
    method, target = case["request"].split(" ", 1)

    reply = ask(server.url + target, method)

    assert (reply.status, reply.json) == (case["status"], case["body"])


# Single lookups ----------------------------------------------------------------------------------------------------


def test_model_page_leaves_empty_keys_out_and_images_without_id(get: Get) -> None:
    version = get(f"/api/v1/models/{HARBOUR}").json["modelVersions"][1]

    assert not {"trainedWords", "description", "paidAccess", "vaeId", "supportsGeneration"} & set(version)
    assert version["status"] == "Published"
    assert version["covered"] is True
    assert "id" not in version["images"][0]


def test_list_keeps_what_the_model_page_leaves_out(get: Get) -> None:
    version = get(f"/api/v1/models?ids={HARBOUR}").json["items"][0]["modelVersions"][1]

    assert (version["trainedWords"], version["description"], version["paidAccess"]) == ([], None, None)
    assert "status" not in version
    assert version["images"][0]["id"] == 6100201


def test_two_variants_share_a_name_and_the_primary_is_not_first(get: Get) -> None:
    files = get(f"/api/v1/models/{HARBOUR}").json["modelVersions"][0]["files"]

    assert [file["name"] for file in files] == [
        "harbourLight_v20.yaml", "harbourLight_v20.safetensors", "harbourLight_v20.safetensors",
        "clearwater.vae.safetensors",
    ]  # fmt: skip
    assert ["primary" in file for file in files] == [False, False, True, False]
    assert [urlsplit(file["downloadUrl"]).query for file in files] == [
        "type=Config&format=Other", "type=Model&format=SafeTensor&size=full&fp=fp32", "", "type=VAE",
    ]  # fmt: skip


def test_version_page_has_its_own_shape(get: Get) -> None:
    page = get("/api/v1/model-versions/114620").json

    assert page["air"] == f"urn:air:sd1:checkpoint:civitai:{HARBOUR}@114620"
    assert set(page["model"]) == {"name", "type", "nsfw", "poi"}
    assert [file["primary"] for file in page["files"]] == [False, False, True, False]
    assert "overrideName" not in page["files"][0]
    assert page["files"][0]["scannedAt"] == "2025-04-18T09:20:11.000"
    assert page["trainedWords"] == []
    assert {image["nsfwLevel"] for image in page["images"]} == {1, 2}


def test_number_may_be_a_model_and_a_version_of_another_model(get: Get) -> None:
    assert get(f"/api/v1/models/{INK}").json["name"] == "Ink Wash Sketch"
    assert get(f"/api/v1/model-versions/{INK}").json["model"]["name"] == "Clearwater VAE"


def test_declared_hashes_are_those_of_the_bytes(catalogue: Catalogue, get: Get) -> None:
    file = get("/api/v1/model-versions/114620").json["files"][2]
    data = catalogue.file(98103).content.data
    sha256 = hashlib.sha256(data).hexdigest().upper()
    body = data[8 + int.from_bytes(data[:8], "little") :]

    assert file["sizeKB"] * 1024 == len(data)
    assert file["hashes"] == {
        "SHA256": sha256,
        "AutoV2": sha256[:10],
        "AutoV1": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8].upper(),
        "AutoV3": hashlib.sha256(body).hexdigest()[:12].upper(),
        "CRC32": f"{zlib.crc32(data):08X}",
    }


@pytest.mark.parametrize("kind", ["SHA256", "AutoV1", "AutoV2", "AutoV3", "CRC32"])
def test_any_hash_in_any_case_finds_the_version(get: Get, kind: str) -> None:
    digest = get("/api/v1/model-versions/139700").json["files"][0]["hashes"][kind]

    page = get(f"/api/v1/model-versions/by-hash/{digest.lower()}").json

    assert page["id"] == 139700
    assert page["files"][0]["overrideName"] is None
    assert page["files"][0]["scannedAt"].endswith("Z")


def test_hash_shared_by_two_versions_gives_the_one_published_first(catalogue: Catalogue, get: Get) -> None:
    copy = catalogue.file(127444)
    version = DemoVersion(7, "reupload", "SD 1.5", (dataclasses.replace(copy, id=8),), published_at=utc("2026-05-01"))
    catalogue.add(DemoModel(9, "Reupload", "LORA", (version,)))

    assert get(f"/api/v1/model-versions/by-hash/{copy.hashes['SHA256']}").json["id"] == 151090


def test_bulk_lookup_gives_versions_with_broken_addresses(server: CivitaiServer, catalogue: Catalogue) -> None:
    known, unknown = catalogue.file(133701).hashes["SHA256"], "0" * 64
    body, kind = json.dumps([unknown, known]).encode(), "application/json"

    full = ask(f"{server.url}/api/v1/model-versions/by-hash", "POST", body, Content_Type=kind)
    short = ask(f"{server.url}/api/v1/model-versions/by-hash/ids", "POST", body, Content_Type=kind)

    assert [page["id"] for page in full.json] == [160211]
    assert full.json[0]["downloadUrl"].startswith("https://undefined/")
    assert short.json == [{"modelVersionId": 160211, "modelId": INK, "hash": known}]


@pytest.mark.parametrize("digests", [["abc"], ["0" * 64] * 101, "text"])
def test_bulk_lookup_refuses_wrong_lists(server: CivitaiServer, digests: object) -> None:
    url = f"{server.url}/api/v1/model-versions/by-hash"

    reply = ask(url, "POST", json.dumps(digests).encode(), Content_Type="application/json")

    assert reply.status == 400
    assert reply.json["error"].startswith("Request must include an array of SHA256 Hashes.")


def test_mini_page_speaks_of_one_file(get: Get) -> None:
    page = get("/api/v1/model-versions/mini/114620?modelFileId=98102").json

    assert page["fileName"] == "harbour_light_v2_full.safetensors"
    assert (page["requireAuth"], page["baseModel"]) == (True, "SD 1.5")
    missing = get("/api/v1/model-versions/mini/114620?modelFileId=1")
    assert (missing.status, missing.json["error"]) == (404, "Model file 1 not found in version 114620")


def test_tensor_metadata_shows_the_header(get: Get) -> None:
    full = get("/api/v1/model-files/120433/tensor-metadata", **KEY).json
    summary = get("/api/v1/model-files/120433/tensor-metadata?summaryOnly=true", **KEY).json

    shapes = {tensor["name"]: tensor["shape"] for tensor in full["tensors"]}
    assert shapes["model.diffusion_model.label_emb.0.0.weight"][1] == 2816
    assert summary["tensorCount"] == len(shapes)
    assert "tensors" not in summary


@pytest.mark.parametrize(("file_id", "status"), [(77801, 400), (101555, 410), (150010, 403), (151200, 403), (1, 404)])
def test_tensor_metadata_has_the_gates_of_the_download(get: Get, file_id: int, status: int) -> None:
    assert get(f"/api/v1/model-files/{file_id}/tensor-metadata", **KEY).status == status


def test_key_is_known_in_header_and_query_and_the_header_wins(server: CivitaiServer, get: Get) -> None:
    assert get("/api/v1/me", **KEY).json["username"] == "demo"
    assert get(f"/api/v1/me?token={server.token}").status == 200
    assert get(f"/api/v1/me?token={server.token}", Authorization="Bearer wrong").status == 401


def test_answers_to_a_key_are_not_for_shared_caches(get: Get) -> None:
    assert get("/api/v1/models?limit=1").headers["cache-control"].startswith("public, s-maxage=300")
    assert "private" in get("/api/v1/models?limit=1", **KEY).headers["cache-control"]


def test_new_upload_has_no_hashes_and_pending_scans(get: Get) -> None:
    (file,) = get("/api/v1/models/88450").json["modelVersions"][0]["files"]

    assert (file["hashes"], file["pickleScanResult"], file["scannedAt"]) == ({}, "Pending", None)


def test_taken_down_model_keeps_files_and_loses_pictures(get: Get) -> None:
    page = get("/api/v1/models/85666").json

    assert page["mode"] == "TakenDown"
    assert page["modelVersions"][0]["files"]
    assert "images" not in page["modelVersions"][0]


def test_early_access_is_told_by_deadline_and_paid_access(get: Get) -> None:
    version = get("/api/v1/models/84410").json["modelVersions"][0]

    assert version["earlyAccessDeadline"] == "2099-12-31T00:00:00.000Z"
    assert version["paidAccess"] == {"permanent": False, "endsAt": "2099-12-31T00:00:00.000Z"}


def test_expired_gate_is_given_as_none(catalogue: Catalogue, get: Get) -> None:
    catalogue.change_version(181020, gate=DemoGate(ends_at=utc("2020-01-01")))

    assert get("/api/v1/model-versions/181020").json["paidAccess"] is None
    assert "earlyAccessDeadline" not in get("/api/v1/models/84410").json["modelVersions"][0]


def test_generation_only_shows_on_the_version_page_alone(get: Get) -> None:
    assert get("/api/v1/model-versions/182344").json["usageControl"] == "Generation"
    assert "usageControl" not in get("/api/v1/models/86018").json["modelVersions"][0]


def test_licence_flag_comes_in_three_forms(get: Get) -> None:
    forms = {type(item["allowCommercialUse"]) for item in get("/api/v1/models").json["items"]}
    texts = {item["allowCommercialUse"] for item in get("/api/v1/models").json["items"]
             if isinstance(item["allowCommercialUse"], str)}  # fmt: skip

    assert forms == {list, str}
    assert {"Sell", "{Image}"} <= texts


def test_preview_is_a_png_of_the_declared_size(get: Get) -> None:
    image = get("/api/v1/model-versions/139700").json["images"][1]

    picture = get(urlsplit(image["url"]).path)

    assert picture.headers["content-type"] == "image/png"
    assert picture.body[:8] == b"\x89PNG\r\n\x1a\n"
    size = (int.from_bytes(picture.body[16:20], "big"), int.from_bytes(picture.body[20:24], "big"))
    assert size == (image["width"], image["height"]) == (832, 1216)


def test_images_give_generation_data_flat_or_wrapped(get: Get) -> None:
    flat = get("/api/v1/images?imageId=7400101&withMeta=true&flatMeta=true").json["items"][0]
    wrapped = get("/api/v1/images?imageId=7400101&withMeta=true").json["items"][0]

    assert flat["meta"]["seed"] == 1207431
    assert wrapped["meta"] == {"id": 7400101, "meta": flat["meta"]}
    assert (flat["nsfwLevel"], flat["browsingLevel"], flat["modelVersionIds"]) == ("None", 1, [114620])


def test_images_are_paged_by_cursor(get: Get) -> None:
    first = get("/api/v1/images?limit=2&modelId=51207").json
    second = get("/api/v1/images?limit=2&modelId=51207&cursor=" + first["metadata"]["nextCursor"].replace("|", "%7C"))

    assert [image["id"] for image in first["items"] + second.json["items"]] == [7400101, 7400102, 6100201]
    assert second.json["metadata"] == {}


def test_side_lists_answer(get: Get) -> None:
    assert "LORA" in get("/api/v1/enums").json["ModelType"]
    assert get("/api/v1/tags?limit=1").json["items"][0]["name"] == "style"
    assert {item["username"] for item in get("/api/v1/creators").json["items"]} >= {"saltpan", "mirabel"}


def test_python_urllib_is_turned_away(get: Get) -> None:
    reply = get("/api/v1/models", User_Agent="Python-urllib/3.11")

    assert (reply.status, reply.body) == (403, b"error code: 1010")


# Downloads ---------------------------------------------------------------------------------------------------------


def location(reply: Reply) -> str:
    assert reply.status == 307
    return reply.headers["location"]


def test_download_redirects_to_the_storage_and_gives_the_declared_bytes(server: CivitaiServer, get: Get) -> None:
    declared = get("/api/v1/model-versions/151090").json["files"][0]

    redirect = get("/api/download/models/151090", **KEY)
    file = ask(location(redirect))

    assert redirect.headers["cache-control"].startswith("no-store")
    assert location(redirect).startswith(server.storage_url + "/")
    assert hashlib.sha256(file.body).hexdigest().upper() == declared["hashes"]["SHA256"]
    message = Message()
    message["Content-Disposition"] = file.headers["content-disposition"]
    assert message.get_filename() == declared["name"]


@pytest.mark.parametrize(
    ("query", "file_id"),
    [
        ("", 98103),
        ("?fileId=98101", 98101),
        ("?fileId=98102", 98102),
        ("?type=Config&format=Other", 98101),
        ("?type=Model&format=SafeTensor&size=full&fp=fp32", 98102),
        ("?fp=fp32&size=full", 98102),
        ("?type=VAE", 120301),
    ],
)
def test_query_chooses_the_file(get: Get, query: str, file_id: int) -> None:
    assert f"/{file_id}/" in location(get(f"/api/download/models/114620{query}", **KEY))


@pytest.mark.parametrize("query", ["?fileId=76210", "?fp=int8", "?type=Training%20Data", "?fileId=120301", "?fp=fp32"])
def test_wish_that_the_chosen_file_does_not_meet_is_404(get: Get, query: str) -> None:
    reply = get(f"/api/download/models/114620{query}", **KEY)

    assert (reply.status, reply.json) == (404, {"error": "File not found"})


@pytest.mark.parametrize("query", ["?type=model", "?format=safetensors", "?size=huge", "?fileId=x"])
def test_wrong_download_parameter_is_400(get: Get, query: str) -> None:
    reply = get(f"/api/download/models/114620{query}", **KEY)

    assert reply.status == 400
    assert f"→ at {query[1:].split('=')[0]}" in reply.json["error"]


@pytest.mark.parametrize(
    ("version", "headers", "status", "text"),
    [
        (151090, {}, 401, "requires you to be logged in"),
        (151090, {"Authorization": "Bearer wrong"}, 401, "requires you to be logged in"),
        (182344, {}, 401, "disabled downloads"),
        (182344, KEY, 401, "disabled downloads"),
        (181020, KEY, 403, "2099-12-31T00:00:00.000Z"),
        (120777, KEY, 410, "Model archived, not available for download"),
        (1, KEY, 404, "File not found"),
    ],
)
def test_gate_answers(get: Get, version: int, headers: dict[str, str], status: int, text: str) -> None:
    reply = get(f"/api/download/models/{version}", **headers)

    assert reply.status == status
    assert text in json.dumps(reply.json)


def test_bought_early_access_opens(catalogue: Catalogue) -> None:
    with CivitaiServer(catalogue, granted=[181020]) as server:
        assert ask(f"{server.url}/api/download/models/181020", **KEY).status == 307


def test_browser_is_led_to_a_login_page_that_says_200(server: CivitaiServer, get: Get) -> None:
    login = location(get("/api/download/models/151090", User_Agent="a tool operating like Mozilla/5.0"))
    page = get(login)

    assert login == "/login?returnUrl=%2Fmodel-versions%2F151090&reason=download-auth"
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert location(get("/api/download/models/181020", User_Agent="Chrome", **KEY)) == "/model-versions/181020"
    assert get("/api/download/models/1", User_Agent="Chrome", **KEY).body == b"File not found"


def test_head_cannot_probe_a_download(server: CivitaiServer) -> None:
    assert ask(f"{server.url}/api/download/models/151090", "HEAD", **KEY).status == 401


def test_training_data_moved_for_good(get: Get) -> None:
    reply = get("/api/download/training-data/151090")

    assert (reply.status, reply.headers["location"]) == (308, "/api/download/models/151090?type=Training%20Data")


# Storage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(get: Get) -> str:
    return location(get("/api/download/models/151090", **KEY))


@pytest.fixture
def data(catalogue: Catalogue) -> bytes:
    return catalogue.file(127444).content.data


def test_storage_refuses_the_key_and_logs_it(server: CivitaiServer, stored: str) -> None:
    reply = ask(stored, **KEY)

    assert (reply.status, reply.headers["content-type"]) == (400, "application/xml")
    assert b"InvalidRequest" in reply.body
    assert server.requests_to("storage")[-1].headers["authorization"] == KEY["Authorization"]


@pytest.mark.parametrize(
    ("asked", "start", "end"), [("bytes=0-0", 0, 1), ("bytes=1000-", 1000, None), ("bytes=-10", -10, None)]
)
def test_range_is_honoured(stored: str, data: bytes, asked: str, start: int, end: int | None) -> None:
    reply = ask(stored, Range=asked)

    wanted = data[start:end]
    first = start if start >= 0 else len(data) + start
    assert (reply.status, reply.body) == (206, wanted)
    assert reply.headers["content-range"] == f"bytes {first}-{first + len(wanted) - 1}/{len(data)}"


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=0-1,5-6", "lines=1-2", "bytes=-"])
def test_range_without_sense_gives_the_whole(stored: str, data: bytes, asked: str) -> None:
    assert (ask(stored, Range=asked).status, len(ask(stored, Range=asked).body)) == (200, len(data))


def test_range_behind_the_end_is_416(stored: str, data: bytes) -> None:
    reply = ask(stored, Range=f"bytes={len(data)}-")

    assert (reply.status, reply.headers["content-range"]) == (416, f"bytes */{len(data)}")


def test_if_range_decides_by_the_entity_tag(stored: str) -> None:
    tag = ask(stored, Range="bytes=0-0").headers["etag"]

    assert ask(stored, Range="bytes=5-", If_Range=tag).status == 206
    assert ask(stored, Range="bytes=5-", If_Range='"other"').status == 200


def test_signed_address_is_for_get_and_for_this_file(stored: str) -> None:
    assert ask(stored, "HEAD").status == 403
    assert ask(stored.replace("/127444/", "/133701/")).status == 403
    assert ask(stored.split("?")[0]).status == 403


def test_signed_address_expires(catalogue: Catalogue) -> None:
    moments = [datetime(2026, 1, 1, tzinfo=UTC)]
    with CivitaiServer(catalogue, clock=lambda: moments[-1], url_lifetime_s=60) as server:
        url = location(ask(f"{server.url}/api/download/models/151090", **KEY))
        before = ask(url).status
        moments.append(moments[0] + timedelta(seconds=61))
        after = ask(url)

    assert before == 200
    assert (after.status, b"Request has expired" in after.body) == (403, True)


def test_each_redirect_is_signed_anew(get: Get) -> None:
    assert len({location(get("/api/download/models/151090", **KEY)) for _ in range(3)}) == 3


# A catalogue that changes ------------------------------------------------------------------------------------------


def test_replaced_bytes_are_declared_and_served(catalogue: Catalogue, get: Get) -> None:
    catalogue.replace_bytes(127444, b"other bytes")

    declared = get("/api/v1/model-versions/151090").json["files"][0]["hashes"]["SHA256"]

    assert declared == hashlib.sha256(b"other bytes").hexdigest().upper()
    assert ask(location(get("/api/download/models/151090", **KEY))).body == b"other bytes"


def test_replaced_bytes_may_be_kept_secret(catalogue: Catalogue, get: Get) -> None:
    before = get("/api/v1/model-versions/151090").json["files"]
    catalogue.replace_bytes(127444, b"poison", declare=False)

    assert get("/api/v1/model-versions/151090").json["files"] == before
    assert ask(location(get("/api/download/models/151090", **KEY))).body == b"poison"


def test_published_version_becomes_the_default_and_deleted_models_vanish(catalogue: Catalogue, get: Get) -> None:
    catalogue.publish(INK, DemoVersion(5, "v2", "SD 1.5", lora(1).versions[0].files, (DemoImage(1),)))
    catalogue.archive(MERIDIAN)
    catalogue.remove(HARBOUR)

    assert [version["id"] for version in get(f"/api/v1/models/{INK}").json["modelVersions"]] == [5, 160211, 151090]
    assert get(f"/api/v1/models/{MERIDIAN}").json["mode"] == "Archived"
    assert get(f"/api/v1/models/{HARBOUR}").status == get("/api/v1/model-versions/114620").status == 404


def test_bytes_kept_in_a_folder_are_not_made_again(tmp_path: Path) -> None:
    first = demo_catalogue(Shelf(tmp_path)).file(127444).content.data
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"from the folder")

    assert hashlib.sha256(first).hexdigest()
    assert demo_catalogue(Shelf(tmp_path)).file(127444).content.data == b"from the folder"


def test_ids_are_unique_within_their_kind(catalogue: Catalogue) -> None:
    versions = [version.id for model in catalogue for version in model.versions]
    numbers = [file.id for _, _, file in catalogue.files()]
    pictures = [image.id for model in catalogue for version in model.versions for image in version.images]

    for each in (versions, numbers, pictures):
        assert len(each) == len(set(each))


def test_connection_is_kept_and_ports_are_given_back(catalogue: Catalogue) -> None:
    with CivitaiServer(catalogue) as server:
        port = int(server.url.rsplit(":", 1)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/api/v1/enums")
        connection.getresponse().read()
        own_socket = connection.sock
        connection.request("GET", "/api/v1/enums")
        connection.getresponse().read()
        assert connection.sock is own_socket

    with CivitaiServer(catalogue, port=port) as again:
        assert again.url.endswith(f":{port}")
    connection.close()
