"""Single questions and download addresses, against a real server."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from scripted_server import Canned, ScriptedServer

from civman.civitai.client import CivitaiClient
from civman.domain.catalog import FileId, ModelFile, ModelId, VersionId
from civman.domain.digests import Hashes, Sha256, sha256_from
from civman.domain.refs import FileSelector
from civman.errors import (
    AmbiguousRef,
    BadAnswer,
    CivmanError,
    Gone,
    InvalidRef,
    NotAllowed,
    NotFound,
    UnsafeRedirect,
    UsageError,
)

SHA = "416daecfbef167dc59ffce19bc79987ba0e8b0de8e79f79ed215c196d893479d"
FILE = ModelFile(id=FileId(33), name="a.safetensors", type="Model", size_bytes=8)


def test_model_is_asked_by_number_and_must_be_the_one(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"id": 7, "name": "Seven"}, {"id": 8, "name": "Eight"})

    assert client.model(ModelId(7)).model.name == "Seven"
    assert site.asked[0].target == "/api/v1/models/7"
    with pytest.raises(BadAnswer, match="returned model 8"):
        client.model(ModelId(7))


def test_version_must_be_the_one_that_was_asked(
    site: ScriptedServer, client: CivitaiClient, saved: Callable[[str], Any]
) -> None:
    site.answers(saved("version-checkpoint-by-id.2025-05"))

    assert client.version(VersionId(1805971)).model.id == 1595884
    with pytest.raises(BadAnswer) as caught:
        client.version(VersionId(2))
    assert caught.value.code == "wrong-answer"


@pytest.mark.parametrize(
    "digest",
    ["C260DB9A", "416DAECFBE", "c4879d8bb77a", SHA, SHA.upper(), "blake3"],
)
def test_hash_finds_version_and_file(
    site: ScriptedServer, client: CivitaiClient, saved: Callable[[str], Any], digest: str
) -> None:
    answer = saved("version-checkpoint-by-id.2025-05")
    digest = answer["files"][0]["hashes"]["BLAKE3"] if digest == "blake3" else digest
    site.answers(answer)

    version, file = client.by_hash(digest)

    assert (version.id, file.id) == (1805971, 1706678)
    assert site.asked[0].path == f"/api/v1/model-versions/by-hash/{digest.upper()}"


def test_answer_without_the_hash_is_not_believed(
    site: ScriptedServer, client: CivitaiClient, saved: Callable[[str], Any]
) -> None:
    site.answers(saved("version-checkpoint-by-id.2025-05"))

    with pytest.raises(BadAnswer, match="none of its files has that hash"):
        client.by_hash("0123456789")


def test_short_hash_of_two_files_is_ambiguous(site: ScriptedServer, client: CivitaiClient) -> None:
    files = [{"id": number, "hashes": {"AutoV2": "ABCDEF0123", "SHA256": str(number) * 64}} for number in (1, 2)]
    site.answers({"id": 5, "modelId": 6, "files": files})

    with pytest.raises(AmbiguousRef) as caught:
        client.by_hash("abcdef0123")

    assert caught.value.facts["candidates"] == ["1" * 64, "2" * 64]


@pytest.mark.parametrize("digest", ["", "xyz", "abcdef012", "g" * 64, "a" * 63, "../../me"])
def test_what_is_no_digest_is_not_sent(site: ScriptedServer, client: CivitaiClient, digest: str) -> None:
    with pytest.raises(InvalidRef):
        client.by_hash(digest)

    assert site.asked == []


def test_digests_are_identified_in_bulk_and_the_oldest_version_wins(
    site: ScriptedServer, client: CivitaiClient
) -> None:
    digests = [Sha256(f"{number:064x}") for number in range(10_001)]
    site.answers(
        [
            {"modelVersionId": 9, "modelId": 1, "hash": digests[3]},
            {"modelVersionId": 5, "modelId": 2, "hash": digests[3].upper()},
            {"modelVersionId": 6, "modelId": 3, "hash": "f" * 64},
            None,
        ],
        [{"modelVersionId": 7, "modelId": 4, "hash": digests[10_000].upper()}],
    )

    found = client.identify([*digests, digests[0]])

    assert found == {digests[3]: (2, 5), digests[10_000]: (4, 7)}
    assert [one.method for one in site.asked] == ["POST", "POST"]
    assert [len(json.loads(one.body)) for one in site.asked] == [10_000, 1]
    assert site.asked[0].headers["Content-Type"] == "application/json"


def test_identify_is_asked_again_after_a_failure(
    site: ScriptedServer, client: CivitaiClient, naps: list[float]
) -> None:
    site.answers(Canned(503), [])

    assert client.identify([sha256_from(SHA)]) == {}
    assert naps == [1.0]


def test_glance_is_the_freshest_word_on_a_file(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({
        "air": "urn:air:sdxl:lora:civitai:1@2", "versionName": "v", "modelName": "M", "baseModel": "Pony",
        "size": 1.5, "fileType": "Model", "fileName": "a.safetensors", "hashes": {"SHA256": SHA.upper()},
        "downloadUrls": ["https://civitai.com/api/download/models/2"], "format": "SafeTensor",
    })  # fmt: skip

    found = client.mini(VersionId(2), FileId(33))

    assert site.asked[0].target == "/api/v1/model-versions/mini/2?modelFileId=33"
    assert (found.file.id, found.file.size_bytes, found.file.hashes.sha256) == (33, 1536, SHA)
    assert (found.base_model, found.gate) == ("Pony", None)


def test_tensors_are_listed_without_downloading(site: ScriptedServer, client: CivitaiClient) -> None:
    tensors = [{"name": "x.weight", "shape": [4, 320], "dtype": "F16", "sizeBytes": 2560}]
    site.answers({"format": "SafeTensor", "tensorCount": 1, "tensors": tensors})

    assert client.tensor_metadata(FileId(3)) == [("x.weight", "F16", (4, 320))]
    assert site.asked[0].target == "/api/v1/model-files/3/tensor-metadata"


@pytest.mark.parametrize("status", [400, 404, 422])
def test_no_tensor_list_is_none(site: ScriptedServer, client: CivitaiClient, status: int) -> None:
    site.answers({"error": "no"}, status=status)

    assert client.tensor_metadata(FileId(3)) is None


@pytest.mark.parametrize(("status", "kind"), [(401, NotAllowed), (403, NotAllowed), (410, Gone)])
def test_gated_tensor_list_is_an_error(
    site: ScriptedServer, client: CivitaiClient, status: int, kind: type[CivmanError]
) -> None:
    site.answers({"error": "no"}, status=status)

    with pytest.raises(kind):
        client.tensor_metadata(FileId(3))


def test_account_says_whose_key_it_is(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"id": 5, "username": "me", "tier": "gold", "isMember": True, "status": "active"})

    account = client.me()

    assert (account.name, account.tier, account.is_member, account.status) == ("me", "gold", True, "active")


@pytest.mark.parametrize(("token", "code"), [("0" * 32, "bad-key"), (None, "no-key")])
def test_refused_account_tells_a_bad_key_from_none(
    site: ScriptedServer, transport: Any, token: str | None, code: str
) -> None:
    site.answers({"error": "Unauthorized"}, status=401)

    with pytest.raises(NotAllowed) as caught:
        CivitaiClient(transport(token=token)).me()

    assert caught.value.code == code


def test_tables_of_legal_values(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"ModelType": ["LORA"], "BaseModel": ["Pony"]}, {"ModelType": 3})

    assert client.enums() == {"ModelType": ("LORA",), "BaseModel": ("Pony",)}
    with pytest.raises(BadAnswer):
        client.enums()


def test_picture_is_asked_with_flat_generation_data_and_must_be_the_one(
    site: ScriptedServer, client: CivitaiClient, saved: Callable[[str], Any]
) -> None:
    site.answers(saved("images-page-with-meta.2024"))

    picture = client.image(9173928)

    assert picture.username == "Ajuro"
    assert {("withMeta", "true"), ("flatMeta", "true"), ("imageId", "9173928")} <= set(site.asked[0].params)
    with pytest.raises(NotFound, match="image 5"):
        client.image(5)


@pytest.mark.parametrize("number", [0, -5, 2**31])
def test_impossible_numbers_are_never_sent(site: ScriptedServer, client: CivitaiClient, number: int) -> None:
    asks: list[Callable[[], object]] = [
        lambda: client.model(ModelId(number)),
        lambda: client.version(VersionId(number)),
        lambda: client.tensor_metadata(FileId(number)),
        lambda: client.mini(VersionId(1), FileId(number)),
        lambda: client.image(number),
        lambda: client.download_address(VersionId(number)),
    ]
    for ask in asks:
        with pytest.raises(UsageError):
            ask()

    assert site.asked == []


def test_download_address_is_the_signed_one_and_storage_never_sees_the_key(
    site: ScriptedServer, other_site: ScriptedServer, client: CivitaiClient
) -> None:
    signed = f"{other_site.address}/bucket/a.safetensors?X-Amz-Signature=5"
    site.answers(Canned(307, headers={"Location": signed}))
    other_site.answers(b"bytes")

    address = client.download_address(VersionId(12), FILE)

    assert (address.url, address.send_token) == (signed, False)
    assert site.asked[0].target == "/api/download/models/12?fileId=33"
    assert site.asked[0].headers["Accept-Encoding"] == "identity"
    assert site.asked[0].headers["Authorization"]
    assert other_site.asked == []


def test_site_that_serves_bytes_itself_is_its_own_address(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(Canned(200, b"x" * 50_000_000, {"Content-Type": "application/octet-stream"}))

    address = client.download_address(VersionId(12), FILE)

    assert address.url == f"{site.address}/api/download/models/12?fileId=33"
    assert address.send_token


def test_relative_redirects_are_resolved_and_download_paths_asked_on(
    site: ScriptedServer, client: CivitaiClient
) -> None:
    site.answers(
        Canned(308, headers={"Location": "/api/download/models/12?type=Training%20Data"}),
        Canned(307, headers={"Location": "/files/a.zip"}),
    )

    address = client.download_address(VersionId(12), FileSelector(type="Training Data"))

    assert (address.url, address.send_token) == (f"{site.address}/files/a.zip", False)
    assert [one.target for one in site.asked] == [
        "/api/download/models/12?type=Training+Data",
        "/api/download/models/12?type=Training%20Data",
    ]


@pytest.mark.parametrize(
    "location",
    [
        "/login?returnUrl=%2Fmodel-versions%2F12&reason=download-auth",
        "https://civitai.com/login?x",
        "//civitai.red/login",
    ],
)
def test_login_page_is_no_download(site: ScriptedServer, client: CivitaiClient, location: str) -> None:
    site.answers(Canned(307, headers={"Location": location}))

    with pytest.raises(BadAnswer) as caught:
        client.download_address(VersionId(12), FILE)

    assert caught.value.code == "login-page"


def test_page_that_sells_early_access_is_no_download(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(Canned(307, headers={"Location": "/model-versions/12"}))

    with pytest.raises(NotAllowed) as caught:
        client.download_address(VersionId(12), FILE)

    assert caught.value.code == "paid-access"


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "http://storage.test/x",
        "https://10.0.0.1/x",
        "data:,x",
        "https://user:word@storage.test/x",
        "https://@storage.test/x",
    ],
)
def test_unsafe_places_are_not_gone_to(site: ScriptedServer, client: CivitaiClient, location: str) -> None:
    site.answers(Canned(307, headers={"Location": location}))

    with pytest.raises(UnsafeRedirect):
        client.download_address(VersionId(12), FILE)


def test_target_that_httpx_cannot_parse_reaches_the_caller_whole(
    site: ScriptedServer, other_site: ScriptedServer, client: CivitaiClient
) -> None:
    signed = (
        f'{other_site.address}/a?response-content-disposition=attachment; filename="a b.safetensors"&s={"x" * 70000}'
    )
    site.answers(Canned(307, headers={"Location": signed[:60000]}))

    assert client.download_address(VersionId(12), FILE).url == signed[:60000]


def test_endless_redirects_end(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(Canned(307, headers={"Location": "/api/download/models/12"}))

    with pytest.raises(BadAnswer) as caught:
        client.download_address(VersionId(12))

    assert caught.value.code == "redirect-loop"


@pytest.mark.parametrize(
    ("kind", "body"), [("text/html", b"<html>hi</html>"), ("text/plain", b"hi"), ("application/json", b'{"a":1}')]
)
def test_text_with_status_200_is_no_file(site: ScriptedServer, client: CivitaiClient, kind: str, body: bytes) -> None:
    site.answers(Canned(200, body, {"Content-Type": kind}))

    with pytest.raises(BadAnswer):
        client.download_address(VersionId(12), FILE)


def test_redirect_without_a_target_is_a_bad_answer(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(Canned(307))

    with pytest.raises(BadAnswer, match="redirect that has no target"):
        client.download_address(VersionId(12), FILE)


def test_linked_file_is_asked_by_its_own_address_on_the_configured_site(
    site: ScriptedServer, client: CivitaiClient
) -> None:
    linked = ModelFile(
        id=FileId(9), name="vae.safetensors", type="VAE", size_bytes=1, is_linked=True,
        download_url="https://undefined/api/download/models/12?type=VAE&token=leak",
    )  # fmt: skip
    site.answers(Canned(307, headers={"Location": f"{site.address}/x"}))

    client.download_address(VersionId(12), linked)

    assert site.asked[0].target == "/api/download/models/12?type=VAE"


@pytest.mark.parametrize("url", [None, "https://elsewhere.test/steal", "https://[x", "/api/download/../v1/me"])
def test_linked_file_without_a_usable_address_is_not_found(
    site: ScriptedServer, client: CivitaiClient, url: str | None
) -> None:
    linked = ModelFile(id=None, name="vae.pt", type="VAE", size_bytes=1, is_linked=True, download_url=url)

    with pytest.raises(NotFound, match="no download URL"):
        client.download_address(VersionId(12), linked)

    assert site.asked == []


@pytest.mark.parametrize(("sha256", "asked"), [(sha256_from(SHA), 2), (None, 1)])
def test_own_address_is_tried_after_the_file_id_only_where_a_digest_will_prove_the_bytes(
    site: ScriptedServer, client: CivitaiClient, sha256: Sha256 | None, asked: int
) -> None:
    file = ModelFile(
        id=FileId(33), name="vae.pt", type="VAE", size_bytes=1, hashes=Hashes(sha256=sha256),
        download_url="https://civitai.com/api/download/models/12?type=VAE",
    )  # fmt: skip
    site.answers(Canned(404, {"error": "File not found"}))

    with pytest.raises(NotFound):
        client.download_address(VersionId(12), file)

    assert [one.target for one in site.asked] == [
        "/api/download/models/12?fileId=33",
        "/api/download/models/12?type=VAE",
    ][:asked]


def test_quota_is_told_at_once(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"error": "We've noticed an unusual amount of downloading from your account."}, status=429)

    with pytest.raises(CivmanError) as caught:
        client.download_address(VersionId(12), FILE)

    assert caught.value.code == "quota"
    assert len(site.asked) == 1


def test_client_closes_and_opens_again(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"id": 7})

    with client:
        client.model(ModelId(7))
    assert client.model(ModelId(7)).model.id == 7
