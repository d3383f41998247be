"""What CivitAI changed since a file was fetched: newer, replaced, gone, in early access."""

from dataclasses import replace
from pathlib import Path

import pytest
from running import Civman

from civman.demo.demo_catalog import Content, DemoFile, DemoGate, DemoImage, DemoVersion, utc
from civman.demo.demo_weights import sd1_lora
from civman.demo.server import CivitaiServer

INK = 139562
"""The LoRA with versions 151090 (v1.0) and 160211 (v1.1), both SD 1.5."""


def lora(seed: str) -> Content:
    return Content.of(sd1_lora(seed, tags={seed: 3}))


def newer(number: int, name: str, **more: object) -> DemoVersion:
    file = DemoFile(number + 500_000, f"ink_{name}.safetensors", lora(name))
    given = {
        "base_model": "SD 1.5",
        "images": (DemoImage(number),),
        "published_at": utc("2026-05-01"),
        "description": f"<p>{name} is <b>new</b>.</p>",
    }
    return DemoVersion(number, name, files=(file,), **(given | more))  # type: ignore[arg-type]


@pytest.fixture
def held(online: CivitaiServer, civman: Civman) -> CivitaiServer:
    """The library holds v1.1 of the LoRA."""
    assert civman("download", "@160211").code == 0
    return online


def paths(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "blobs").rglob("*.safetensors")}


def test_nothing_new_is_told_in_one_question(held: CivitaiServer, civman: Civman) -> None:
    before = len(held.requests_to("api"))

    told = civman("outdated", "--json")

    assert told.code == 0
    assert told.json["outdated"]["offers"] == []
    assert len(held.requests_to("api")) - before == 1


def test_an_older_version_that_is_listed_first_is_not_newer(held: CivitaiServer, civman: Civman) -> None:
    ink = held.catalogue.model(INK)
    assert ink is not None
    held.catalogue.change_model(INK, versions=tuple(reversed(ink.versions)))

    assert civman("outdated", "--json").json["outdated"]["offers"] == []


def test_a_newer_version_is_offered_with_what_changed_and_fetched_beside_the_old_one(
    held: CivitaiServer, civman: Civman, root: Path
) -> None:
    held.catalogue.publish(INK, newer(170001, "v2.0"), as_default=False)
    before = paths(root)

    (offer,) = civman("outdated", "--json").json["outdated"]["offers"]
    assert offer["ref"] == "139562@170001"
    assert (offer["held_version_name"], offer["version_name"]) == ("v1.1", "v2.0")
    assert offer["description"] == "v2.0 is new."
    assert offer["size_bytes"] > 0
    words = civman("outdated").out
    assert "v1.1 → v2.0" in words
    assert paths(root) == before

    asked = civman("update")
    assert asked.code == 2
    assert "--yes" in asked.err
    done = civman("update", "--yes", "--json")
    assert done.code == 0
    assert "no longer knows" not in done.err
    assert done.json["download"][0]["asset"]["version_id"] == 170001
    assert before.items() <= paths(root).items()
    assert civman("outdated", "--json").json["outdated"]["offers"] == []


def test_another_base_model_is_offered_only_when_asked_for(held: CivitaiServer, civman: Civman) -> None:
    held.catalogue.publish(INK, newer(170002, "xl", base_model="SDXL 1.0"))

    assert civman("outdated", "--json").json["outdated"]["offers"] == []
    (offer,) = civman("outdated", "--any-base", "--json").json["outdated"]["offers"]
    assert (offer["held_base_model"], offer["base_model"]) == ("SD 1.5", "SDXL 1.0")


def test_early_access_is_told_apart_and_the_newest_free_version_offered(held: CivitaiServer, civman: Civman) -> None:
    held.catalogue.publish(INK, newer(170003, "free"))
    gate = DemoGate(ends_at=utc("2099-01-01"))
    held.catalogue.publish(INK, newer(170004, "early", published_at=utc("2026-06-01"), gate=gate))

    told = civman("outdated", "--json").json["outdated"]

    assert [offer["version_name"] for offer in told["offers"]] == ["free"]
    assert [offer["version_name"] for offer in told["early_access"]] == ["early"]
    assert told["total_bytes"] == told["offers"][0]["size_bytes"]
    assert "early access until 2099-01-01" in civman("outdated").out
    assert "early access until 2099-01-01" in civman("show", "@170004").out
    assert [each["asset"]["version_name"] for each in civman("update", "--yes", "--json").json["download"]] == ["free"]


def test_replaced_bytes_raise_the_alarm_and_both_are_kept(held: CivitaiServer, civman: Civman, root: Path) -> None:
    held.catalogue.replace_bytes(133701, sd1_lora("silently other", tags={"x": 1}))
    before = paths(root)

    told = civman("outdated", "--json")
    assert told.code == 0
    (alarm,) = told.json["outdated"]["replaced"]
    assert alarm["held_sha256"] == next(iter(before)).partition(".")[0]
    assert alarm["declared_sha256"] != alarm["held_sha256"]
    assert "WARNING" in civman("outdated").out
    assert "CivitAI replaced the contents of" in civman("show", "@160211").out
    assert [each["file_id"] for each in civman("show", "@160211", "--json").json["show"]["replaced"]] == [133701]

    assert civman("update", "--yes").code == 0
    assert before.items() <= paths(root).items()
    assert len(paths(root)) == 2
    assert civman("list", "--json").json["list"]["total"] == 2
    assert civman("outdated", "--json").json["outdated"]["replaced"] == []
    assert civman("verify").code == 0


def test_a_deleted_model_is_told_and_nothing_held_is_lost(held: CivitaiServer, civman: Civman, root: Path) -> None:
    held.catalogue.remove(INK)
    before = paths(root)

    told = civman("outdated", "--json").json["outdated"]
    assert [(lost["loss"], lost["assets"]) for lost in told["lost"]] == [("model-deleted", 1)]
    assert "CivitAI deleted this model; the library keeps 1 file of the model" in civman("outdated").out
    assert civman("update", "--yes").code == 0
    shown = civman("show", "@160211")
    assert shown.code == 0
    assert "no longer knows" in shown.err
    assert paths(root) == before
    (asset,) = civman("list", "--json").json["list"]["assets"]
    assert asset["model_name"] == "Ink Wash Sketch"


def test_a_deleted_version_and_an_archived_model_are_told(held: CivitaiServer, civman: Civman) -> None:
    ink = held.catalogue.model(INK)
    assert ink is not None
    held.catalogue.add(replace(ink, versions=ink.versions[1:]))
    told = civman("outdated", "--json").json["outdated"]
    assert [(lost["loss"], lost["version_id"]) for lost in told["lost"]] == [("version-deleted", 160211)]
    assert told["offers"] == []

    held.catalogue.add(replace(ink, mode="Archived"))
    assert [lost["loss"] for lost in civman("outdated", "--json").json["outdated"]["lost"]] == ["archived"]


def test_an_update_takes_the_file_that_is_like_the_held_one(online: CivitaiServer, civman: Civman) -> None:
    civman("download", "51207@114620", "--file", "98102")
    old = online.catalogue.version(114620)
    assert old is not None
    files = tuple(
        replace(file, id=file.id + 900_000, content=lora(f"next {file.id}"))
        for file in old[1].files
        if file.id != 98101
    )
    online.catalogue.publish(51207, replace(old[1], id=199_001, files=files, published_at=utc("2026-05-05")))

    (offer,) = civman("outdated", "--json").json["outdated"]["offers"]

    assert offer["file_id"] == 998102


def test_offline_is_said_before_anything_else(held: CivitaiServer, civman: Civman) -> None:
    refused = civman("outdated", "--offline")

    assert refused.code == 5
    assert "[offline]" in refused.err
