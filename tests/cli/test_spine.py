"""Search, show, download, list, verify, remove through the front door."""

import json
from pathlib import Path

import pytest
from running import Civman

from civman.demo.server import CivitaiServer


def blobs(root: Path) -> list[Path]:
    return sorted((root / "blobs").rglob("*.safetensors"))


def test_a_search_ends_in_a_verified_indexed_file(online: CivitaiServer, civman: Civman, root: Path) -> None:
    found = civman("search", "--type", "Checkpoint", "--json").json["search"]
    assert [page["model"]["id"] for page in found] == [51207, 60344, 91001, 53990, 91012]

    shown = civman("show", "51207", "--json").json["show"]
    assert shown["version"]["id"] == 114620
    assert not shown["held"]

    done = civman("download", "51207", "--json")
    assert done.code == 0
    asset = done.json["download"][0]["asset"]
    assert asset["blob"]["declared_by"] == "civitai"
    assert asset["facts"]["architecture"] == "sd1"
    path = Path(asset["path"])
    assert path == root / "blobs" / "sha256" / path.name[:2] / path.name
    assert path.stat().st_mode & 0o222 == 0

    listed = civman("list", "--json").json["list"]
    assert listed["total"] == 1
    assert listed["assets"][0]["version_id"] == 114620

    verified = civman("verify", "--json")
    assert verified.code == 0
    assert [verdict["state"] for verdict in verified.json["verify"]] == ["unchanged"]
    assert [verdict["state"] for verdict in civman("verify", "--full", "--json").json["verify"]] == ["ok"]


def test_the_primary_safetensors_file_is_chosen_though_it_is_not_the_first(
    online: CivitaiServer, civman: Civman
) -> None:
    plan = civman("download", "51207", "--dry-run", "--json").json["plan"][0]

    assert plan["file"]["id"] == 98103
    assert not plan["is_here"]


def test_a_dry_run_leaves_nothing_behind(online: CivitaiServer, civman: Civman, root: Path) -> None:
    assert civman("download", "51207", "--dry-run").code == 0

    assert blobs(root) == []
    assert not (root / "partial").exists()
    assert online.requests_to("storage") == []


def test_a_second_download_moves_no_bytes(online: CivitaiServer, civman: Civman) -> None:
    civman("download", "51207")
    before = len(online.requests_to("storage"))

    again = civman("download", "51207", "--json")

    assert again.code == 0
    assert again.json["download"][0]["was_present"]
    assert len(online.requests_to("storage")) == before


def test_a_number_that_is_model_and_version_is_refused_with_both(online: CivitaiServer, civman: Civman) -> None:
    refused = civman("show", "139562", "--json")

    assert refused.code == 2
    assert refused.json["error"]["code"] == "ambiguous-ref"
    assert refused.json["error"]["facts"]["candidates"] == ["139562@160211", "70115@139562"]
    assert civman("show", "civitai:139562", "--json").json["show"]["model"]["name"] == "Ink Wash Sketch"
    assert civman("show", "@139562", "--json").json["show"]["model"]["name"].startswith("Clearwater VAE")


@pytest.mark.parametrize(
    "ref",
    [
        "51207@114620",
        "@114620",
        "urn:air:sd1:checkpoint:civitai:51207@114620",
        "https://civitai.com/models/51207/harbour-light?modelVersionId=114620",
        "https://civitai.red/models/51207?modelVersionId=114620",
        "https://civitai.com/api/download/models/114620?fileId=98103&token=secret",
    ],
)
def test_every_way_to_point_at_a_version_finds_it(online: CivitaiServer, civman: Civman, ref: str) -> None:
    plan = civman("download", ref, "--dry-run", "--json")

    assert plan.code == 0
    assert (plan.json["plan"][0]["version_id"], plan.json["plan"][0]["file"]["id"]) == (114620, 98103)
    assert "secret" not in plan.out + plan.err


def test_a_hash_of_any_kind_finds_the_file(online: CivitaiServer, civman: Civman) -> None:
    hashes = civman("show", "51207", "--json").json["show"]["version"]["files"][2]["hashes"]

    for kind in ("sha256", "autov2", "autov3", "crc32", "autov1"):
        plan = civman("download", hashes[kind].upper(), "--dry-run", "--json")
        assert plan.json["plan"][0]["file"]["id"] == 98103, kind


@pytest.mark.parametrize(
    ("ref", "code", "exit_code"),
    [
        ("99999999", "not-found", 3),
        ("85102", "archived", 3),
        ("86018", "downloads-disabled", 4),
        ("53990", "scan-danger", 4),
        ("88450", "no-hash", 4),
        ("60344@114620", "other-model", 3),
        ("https://example.org/models/1", "invalid-ref", 2),
        ("there is no host of that name", "not-found", 3),
    ],
)
def test_what_cannot_be_had_is_refused_by_cause(
    online: CivitaiServer, civman: Civman, root: Path, ref: str, code: str, exit_code: int
) -> None:
    refused = civman("download", ref, "--json")

    assert (refused.json["error"]["code"], refused.code) == (code, exit_code)
    assert refused.json["error"]["hint"]
    assert blobs(root) == []


def test_a_pickle_comes_with_both_permits_and_is_never_opened(online: CivitaiServer, civman: Civman) -> None:
    assert civman("download", "53990", "--allow-unsafe", "--json").json["error"]["code"] == "pickle"
    assert civman("download", "53990", "--allow-pickle", "--json").json["error"]["code"] == "scan-danger"

    done = civman("download", "53990", "--allow-pickle", "--allow-unsafe", "--json")

    assert done.code == 0
    assert done.json["download"][0]["asset"]["facts"]["kind"] == ""


def test_a_flipped_byte_is_named_and_ends_with_6(online: CivitaiServer, civman: Civman, root: Path) -> None:
    civman("download", "51207")
    blob = blobs(root)[0]
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1000] ^= 1
    blob.write_bytes(data)

    result = civman("verify")

    assert result.code == 6
    assert "corrupt" in result.out
    assert "harbourLight_v20.safetensors (corrupt)" in result.err


def test_a_deleted_database_is_refilled_from_the_files(online: CivitaiServer, civman: Civman, root: Path) -> None:
    civman("download", "51207", "civitai:139562", "60344")
    before = civman("list", "--json").json["list"]["assets"]
    for path in root.glob("library.db*"):
        path.unlink()
    assert civman("list", "--json").json["list"]["total"] == 0

    rebuilt = civman("verify", "--rebuild", "--json")

    assert rebuilt.code == 0
    assert rebuilt.json["rebuild"]["assets"] == 3
    after = civman("list", "--json").json["list"]["assets"]
    assert _known(after) == _known(before)


def test_a_rebuild_leaves_out_a_file_whose_bytes_changed(online: CivitaiServer, civman: Civman, root: Path) -> None:
    civman("download", "51207")
    blob = blobs(root)[0]
    blob.chmod(0o644)
    with blob.open("ab") as file:
        file.write(b"!")
    for path in root.glob("library.db*"):
        path.unlink()

    rebuilt = civman("verify", "--rebuild", "--json")

    assert rebuilt.code == 6
    assert civman("list", "--json").json["list"]["total"] == 0


def _known(assets: list[dict[str, object]]) -> list[str]:
    volatile = ("blob", "added_at")
    return sorted(json.dumps({k: v for k, v in asset.items() if k not in volatile}, sort_keys=True) for asset in assets)


def test_what_civitai_deletes_stays_known(online: CivitaiServer, civman: Civman) -> None:
    civman("download", "51207")
    online.catalogue.remove(51207)

    shown = civman("show", "51207", "--json")

    assert shown.code == 0
    assert shown.json["show"]["is_saved_copy"]
    assert shown.json["show"]["version"]["id"] == 114620
    assert "no longer knows" in shown.err
    assert civman("list", "--json").json["list"]["total"] == 1


def test_offline_show_tells_what_was_kept_and_downloads_say_why_not(online: CivitaiServer, civman: Civman) -> None:
    civman("download", "51207")
    asked = len(online.requests)

    assert civman("show", "51207", "--offline", "--json").json["show"]["version"]["id"] == 114620
    assert civman("download", "51207", "--offline", "--json").json["download"][0]["was_present"]
    refused = civman("download", "60344", "--offline", "--json")

    assert refused.code in (3, 5)
    assert len(online.requests) == asked


def test_removing_without_a_yes_and_without_a_terminal_is_refused(online: CivitaiServer, civman: Civman) -> None:
    civman("download", "51207")

    refused = civman("remove", "51207")

    assert refused.code == 2
    assert "--yes" in refused.err
    assert civman("list", "--json").json["list"]["total"] == 1


def test_removing_frees_the_bytes(online: CivitaiServer, civman: Civman, root: Path) -> None:
    civman("download", "51207", "civitai:139562")

    removed = civman("remove", "51207", "--yes", "--json")

    assert removed.code == 0
    assert removed.json["remove"]["freed_bytes"] > 8_000_000
    assert len(blobs(root)) == 1
    assert civman("list", "--json").json["list"]["total"] == 1
    assert civman("verify").code == 0


def test_several_refs_come_from_stdin_and_one_failure_stops_none(
    online: CivitaiServer, civman: Civman, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = tmp_path / "refs.txt"
    listed.write_text("# my models\n51207\n\n85102 # archived\ncivitai:139562\n")

    result = civman("download", "--from", listed)

    assert result.code == 3
    assert "1 of 3 downloads failed: 85102" in result.err
    assert civman("list", "--json").json["list"]["total"] == 2


def test_the_label_that_the_tensors_contradict_is_told(online: CivitaiServer, civman: Civman) -> None:
    done = civman("download", "81977")

    assert done.code == 0
    assert "caution" in done.out


def test_a_preview_that_is_safe_is_kept_beside_the_file(online: CivitaiServer, civman: Civman, root: Path) -> None:
    civman("download", "51207")
    assert len(list((root / "blobs").rglob("*.preview.*"))) == 1

    civman("download", "60344", "--preview", "none")
    assert len(list((root / "blobs").rglob("*.preview.*"))) == 1


def test_a_version_that_only_its_models_page_lists_is_not_gone(online: CivitaiServer, civman: Civman) -> None:
    online.catalogue.change_version(88410, images=())
    civman("show", "51207")

    shown = civman("show", "51207@88410", "--json").json["show"]

    assert not shown["is_saved_copy"]
    assert shown["version"]["id"] == 88410


def test_a_held_file_answers_to_its_file_name(online: CivitaiServer, civman: Civman) -> None:
    civman("download", "51207")

    seen = civman("inspect", "harbourLight_v20.safetensors", "--offline", "--json")

    assert seen.json["inspect"]["asset"]["version_id"] == 114620
