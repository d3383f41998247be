"""What a ref means in the library and on CivitAI, and what is said where it means several things."""

import hashlib
import zlib
from pathlib import Path

import pytest
from running import Civman

from civman.demo.demo_catalog import DemoFile, DemoVersion, utc
from civman.demo.demo_weights import sd1_checkpoint, sd1_lora
from civman.demo.server import CivitaiServer

HARBOUR, INK = 51207, 139562
PRUNED, FULL = "@114620+98103", "@114620+98102"


@pytest.fixture
def both(online: CivitaiServer, civman: Civman) -> CivitaiServer:
    """The library has both precisions of one version."""
    assert civman("download", HARBOUR).code == 0
    assert civman("download", HARBOUR, "-f", "98102").code == 0
    return online


def inspected(civman: Civman, *argv: object) -> int:
    return int(civman("inspect", *argv, "--json").json["inspect"]["asset"]["file_id"])


def test_a_version_with_several_stored_files_is_its_primary_file(both: CivitaiServer, civman: Civman) -> None:
    assert [inspected(civman, ref) for ref in (HARBOUR, "@114620", "Harbour Light")] == [98103] * 3
    assert inspected(civman, "@114620", "--offline") == 98103


@pytest.mark.parametrize("words", ["98102", "fp32", "full"])
def test_the_option_selects_one_file(both: CivitaiServer, civman: Civman, words: str) -> None:
    assert inspected(civman, HARBOUR, "-f", words) == 98102
    removed = civman("remove", HARBOUR, "-f", words, "--yes", "--json").json["remove"]["removed"]
    assert [asset["file_id"] for asset in removed] == [98102]


def test_words_that_select_nothing_list_the_stored_files(both: CivitaiServer, civman: Civman) -> None:
    refused = civman("edit", HARBOUR, "-f", "int8", "--note", "x", "--json").json["error"]

    assert refused["code"] == "no-such-file"
    assert PRUNED in refused["hint"]
    assert FULL in refused["hint"]


def test_without_a_primary_file_every_candidate_is_offered_and_works(online: CivitaiServer, civman: Civman) -> None:
    for ref in ("@160211", "@151090"):
        assert civman("download", ref).code == 0

    refused = civman("inspect", f"civitai:{INK}", "--json")

    assert refused.code == 2
    candidates = refused.json["error"]["facts"]["candidates"]
    assert sorted(candidates) == ["139562@151090", "139562@160211"]
    assert [inspected(civman, ref) for ref in candidates] == [127444, 133701]


def test_an_update_says_which_refs_stay_exact(online: CivitaiServer, civman: Civman) -> None:
    assert civman("download", "@160211").code == 0
    file = DemoFile(670001, "ink_v2.safetensors", online.catalogue.model(INK).versions[1].files[0].content)  # type: ignore[union-attr]
    online.catalogue.publish(
        INK, DemoVersion(170001, "v2.0", base_model="SD 1.5", files=(file,), images=(), published_at=utc("2026-05-01"))
    )

    told = civman("update", "--yes").err

    assert "no longer identify one file" in told
    assert "@160211 (v1.1" in told
    assert "@170001 (v2.0" in told


def test_a_file_that_civitai_does_not_know_is_found_by_every_hash_and_shown(
    online: CivitaiServer, civman: Civman, tmp_path: Path
) -> None:
    data = sd1_checkpoint("mine alone")
    (tmp_path / "mine.safetensors").write_bytes(data)
    assert civman("import", tmp_path / "mine.safetensors").code == 0
    body = data[8 + int.from_bytes(data[:8], "little") :]
    hashes = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "autov2": hashlib.sha256(data).hexdigest()[:10],
        "autov3": hashlib.sha256(body).hexdigest()[:12],
        "autov1": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
        "crc32": f"{zlib.crc32(data):08x}",
    }
    (listed,) = civman("list", "--json").json["list"]["assets"]

    for ref in (*hashes.values(), *(f"{kind}:{digest.upper()}" for kind, digest in hashes.items()), listed["ref"]):
        for network in ((), ("--offline",)):
            shown = civman("show", ref, *network, "--json")
            assert shown.code == 0, (ref, shown.out)
            assert shown.json["show"]["held"][0]["name"] == "mine.safetensors"
    assert "place" in civman("show", "mine").out
    assert civman("download", listed["ref"], "--json").json["download"][0]["was_present"]


def test_a_hash_of_eight_decimal_digits_is_found_in_the_library(
    online: CivitaiServer, civman: Civman, tmp_path: Path
) -> None:
    number = next(
        number for number in range(2000)
        if (crc := f"{zlib.crc32(sd1_lora(str(number), tags={'x': 1})):08x}").isdecimal() and crc[0] != "0"
    )  # fmt: skip
    data = sd1_lora(str(number), tags={"x": 1})
    (tmp_path / "decimal.safetensors").write_bytes(data)
    assert civman("import", tmp_path / "decimal.safetensors").code == 0

    for command in (("show",), ("show", "--offline"), ("inspect",)):
        assert civman(*command, f"{zlib.crc32(data):08x}").code == 0


def test_a_scale_with_a_comma_gets_a_hint(online: CivitaiServer, civman: Civman) -> None:
    refused = civman("check", HARBOUR, "--lora", "91003:0,8", "--json")

    assert refused.code == 2
    assert "91003:0.8" in refused.json["error"]["hint"]
