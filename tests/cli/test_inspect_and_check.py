"""What a file is and what it fits, through the front door."""

from pathlib import Path

import pytest
from running import Civman

from civman.demo.server import CivitaiServer

SD1, SDXL, SD1_LORA, SDXL_LORA, MISLABELLED, EMBEDDING = "51207", "60344", "civitai:139562", "80233", "81977", "71820"


@pytest.fixture
def stocked(online: CivitaiServer, civman: Civman) -> CivitaiServer:
    assert civman("download", SD1, SDXL, SD1_LORA).code == 0
    return online


def test_inspect_keeps_three_witnesses_apart(online: CivitaiServer, civman: Civman) -> None:
    civman("download", MISLABELLED)

    seen = civman("inspect", MISLABELLED, "--json").json["inspect"]

    assert seen["civitai_says"] == "SDXL 1.0"
    assert seen["tensors_show"]["architecture"] == "sd1"
    assert seen["tensors_show"]["kind"] == "adapter"
    assert seen["file_claims"]["base"]
    assert seen["conflicts"]


def test_inspect_of_a_file_on_civitai_fetches_its_header_only(
    online: CivitaiServer, civman: Civman, root: Path
) -> None:
    seen = civman("inspect", SDXL, "--json")

    assert seen.code == 0
    assert seen.json["inspect"]["path"] is None
    assert seen.json["inspect"]["tensors_show"]["architecture"] == "sdxl"
    assert not (root / "blobs").exists()


def test_inspect_of_a_path_needs_no_library(civman: Civman, tmp_path: Path, shelf: object) -> None:
    page = tmp_path / "model.safetensors"
    page.write_text("<!doctype html><title>Log in</title>")

    refused = civman("inspect", page, "--json")

    assert refused.code == 6
    assert "html" in refused.json["error"]["message"].lower()


def test_a_lora_that_fits_is_told_module_by_module(stocked: CivitaiServer, civman: Civman) -> None:
    result = civman("check", SD1, "--lora", f"{SD1_LORA}:0.8", "--json")

    assert result.code == 0
    part = result.json["check"]["parts"][0]
    assert part["verdict"] == "fits"
    assert part["modules"]["fitting"] == part["modules"]["total"] == 264


def test_a_lora_of_another_base_ends_with_7(stocked: CivitaiServer, civman: Civman) -> None:
    result = civman("check", SDXL, "--lora", SD1_LORA, "--json")

    assert result.code == 7
    assert result.json["error"]["code"] == "cannot-work"
    assert result.json["check"]["parts"][0]["modules"]["fitting"] == 0


def test_tensors_overrule_the_label(stocked: CivitaiServer, civman: Civman) -> None:
    civman("download", MISLABELLED)

    assert civman("check", SD1, "--lora", MISLABELLED, "--json").json["check"]["parts"][0]["verdict"] != "cannot work"
    assert civman("check", SDXL, "--lora", MISLABELLED).code == 7


def test_a_download_for_a_checkpoint_refuses_the_wrong_base_before_its_bytes(
    stocked: CivitaiServer, civman: Civman, root: Path
) -> None:
    before = len(list((root / "blobs").rglob("*.safetensors")))
    asked = len(stocked.requests)

    refused = civman("download", SDXL_LORA, "--for", SD1, "--json")

    assert refused.code == 7
    assert len(list((root / "blobs").rglob("*.safetensors"))) == before
    new = stocked.requests[asked:]
    assert all(request.server == "api" for request in new), "the site's tensor list was enough"
    assert civman("download", SDXL_LORA, "--for", SDXL).code == 0


def test_without_the_sites_tensor_list_a_ranged_read_of_the_header_decides(
    stocked: CivitaiServer, civman: Civman
) -> None:
    from faults import Status, faulty_server

    no_list = Status(status=404, body=b'{"error":"no"}', on="api", path="/tensor-metadata")
    with faulty_server(stocked.catalogue, no_list) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIVMAN_CIVITAI_URL", server.url)
        patch.setenv("CIVITAI_API_TOKEN", server.token)

        refused = civman("download", SDXL_LORA, "--for", SD1, "--json")

        assert refused.code == 7
        ranges = [request.headers["range"] for request in server.requests_to("storage")]
        assert ranges
        asked = [[int(number) for number in text.removeprefix("bytes=").split("-")] for text in ranges]
        assert sum(end - start + 1 for start, end in asked) < 1_000_000


def test_force_fetches_what_does_not_fit_and_says_so(stocked: CivitaiServer, civman: Civman) -> None:
    result = civman("download", SDXL_LORA, "--for", SD1, "--force")

    assert result.code == 0
    assert "cannot work" in result.err


@pytest.mark.parametrize(
    ("text", "ref", "scales"),
    [
        ("4384@128713:0.7", "4384@128713", (0.7, 0.7)),
        ("4384@128713:0.7:0.5", "4384@128713", (0.7, 0.5)),
        ("civitai:123", "civitai:123", (None, None)),
        ("civitai:123:-0.5", "civitai:123", (-0.5, -0.5)),
        ("urn:air:sdxl:lora:civitai:1@2:1.2", "urn:air:sdxl:lora:civitai:1@2", (1.2, 1.2)),
        ("my lora:0.3", "my lora", (0.3, 0.3)),
        ("12345", "12345", (None, None)),
    ],
)
def test_scales_are_taken_off_refs(text: str, ref: str, scales: tuple[float | None, float | None]) -> None:
    from civman.domain.scales import parse_scaled

    found = parse_scaled(text)

    assert (found.ref, (found.unet, found.text_encoder)) == (ref, scales)


def test_a_search_for_what_fits_leaves_out_other_bases(stocked: CivitaiServer, civman: Civman) -> None:
    for_sd1 = {
        page["model"]["id"] for page in civman("search", "--fits", SD1, "--type", "LORA", "--json").json["search"]
    }
    for_sdxl = {
        page["model"]["id"] for page in civman("search", "--fits", SDXL, "--type", "LORA", "--json").json["search"]
    }

    assert 139562 in for_sd1 - for_sdxl
    assert 80233 in for_sdxl - for_sd1


def test_what_a_held_file_shows_stands_in_show(stocked: CivitaiServer, civman: Civman) -> None:
    civman("download", MISLABELLED)

    assert "stored:" in civman("show", SD1).out
    assert civman("show", SD1, "--json").json["show"]["held"][0]["facts"]["architecture"] == "sd1"
    assert "contradiction" in civman("show", MISLABELLED).out


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"\x80\x02}q\x00(X", b"PK\x03\x04 no archive", b"\x00" * 64, b""])
def test_check_of_a_broken_file_says_what_is_broken(
    suffix: str, content: bytes, stocked: CivitaiServer, civman: Civman, tmp_path: Path
) -> None:
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(content)

    for argv in ((broken,), (SD1, "--lora", broken), (SD1, "--vae", broken)):
        error = civman("check", *argv, "--json").json["error"]
        assert error["code"] in (("invalid-model-file", "pickle") if content else ("invalid-model-file", "unknown-fit"))
        assert "broken" in error["message"]
        if suffix != ".safetensors":
            assert "safetensors" not in error["message"]
