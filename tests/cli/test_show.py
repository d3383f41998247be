"""`show` shows all that is known about a model, also about one that CivitAI lists without versions."""

from dataclasses import replace
from pathlib import Path

import pytest
from running import Civman

from civman.demo.demo_catalog import Content, DemoFile, DemoImage, DemoModel, DemoVersion, utc
from civman.demo.demo_weights import sd1_lora
from civman.demo.server import CivitaiServer

INK = 139562


def version(number: int, *, files: bool = True, **more: object) -> DemoVersion:
    content = Content.of(sd1_lora(f"show {number}", tags={"t": 1}))
    listed = (DemoFile(number + 500_000, f"file{number}.safetensors", content),) if files else ()
    given = DemoVersion(number, f"v{number}", "SD 1.5", listed, (DemoImage(number),), utc("2025-03-01"))
    return replace(given, **more)  # type: ignore[arg-type]


def test_a_model_without_versions_is_shown_and_cannot_be_downloaded(online: CivitaiServer, civman: Civman) -> None:
    online.catalogue.add(DemoModel(700, "Empty Shelf", "LORA"))

    shown = civman("show", 700)
    assert shown.code == 0
    assert "Empty Shelf" in shown.out
    assert "no version" in shown.out
    as_json = civman("show", "civitai:700", "--json").json["show"]
    assert (as_json["ref"], as_json["model"]["name"], as_json["versions"]) == ("civitai:700", "Empty Shelf", [])
    assert civman("show", 700, "--quiet").out.split() == ["civitai:700"]
    assert civman("download", 700, "--json").json["error"]["code"] == "no-versions"


def test_stored_files_of_which_civitai_lists_no_version_any_more_are_shown(
    online: CivitaiServer, civman: Civman
) -> None:
    assert civman("download", f"civitai:{INK}").code == 0
    model = online.catalogue.model(INK)
    assert model is not None
    (ref,) = (asset["ref"] for asset in civman("list", "--json").json["list"]["assets"])

    online.catalogue.change_model(INK, versions=())
    assert ref in civman("show", f"civitai:{INK}").out.split()
    online.catalogue.change_model(INK, versions=(version(170_009),))
    shown = civman("show", f"civitai:{INK}").out
    assert "that CivitAI no longer lists" in shown
    assert ref in shown.split()


def test_a_version_that_is_announced_for_later_is_not_the_default(online: CivitaiServer, civman: Civman) -> None:
    announced = version(801, published_at=utc("2999-01-01"))
    online.catalogue.add(DemoModel(800, "Two Shelves", "LORA", (announced, version(802))))

    assert civman("show", 800, "--json").json["show"]["version"]["id"] == 802
    assert civman("download", 800, "--json").json["download"][0]["ref"] == "800@802"
    assert civman("outdated").out.startswith("no newer versions")
    assert civman("show", "civitai:800", "--offline", "--json").json["show"]["version"]["id"] == 802
    assert civman("show", "@801", "--json").json["show"]["version"]["id"] == 801


def test_files_that_are_missing_are_marked_in_list_and_show(
    online: CivitaiServer, civman: Civman, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    gone, here = folder / "gone.safetensors", folder / "here.safetensors"
    for path in (gone, here):
        path.write_bytes(sd1_lora(path.name, tags={"own": 1}))
    assert civman("import", folder).code == 0
    assert "missing" not in civman("list").out
    gone.unlink()

    found = {asset["name"]: asset["presence"] for asset in civman("list", "--json").json["list"]["assets"]}
    assert found == {"gone.safetensors": "missing", "here.safetensors": "here"}
    (line,) = (line for line in civman("list").out.splitlines() if "gone.safetensors" in line)
    assert "missing" in line.split()
    assert "(missing)" in civman("show", "gone").out
    assert "(missing)" not in civman("show", "here").out
    (folder / "renamed.safetensors").write_bytes(sd1_lora("gone.safetensors", tags={"own": 1}))
    assert civman("import", folder).code == 0
    assert "missing" not in civman("list").out


def test_base_models_are_found_in_every_spelling(online: CivitaiServer, civman: Civman, tmp_path: Path) -> None:
    labels = {901: "Krea2", 902: "Krea 2", 903: "SD 1.5 Hyper", 904: "SD 1.5"}
    online.catalogue.add(
        DemoModel(900, "Labels", "LORA", tuple(version(n, base_model=label) for n, label in labels.items()))
    )
    assert civman("download", *(f"@{number}" for number in labels)).code == 0

    for typed in ("krea 2", "Krea2", "KREA-2"):
        found = civman("list", "--base-model", typed, "--json").json["list"]["assets"]
        assert {asset["version_id"] for asset in found} == {901, 902}, typed
        linked = civman("link", tmp_path / typed, "--layout", "comfyui", "--base-model", typed)
        assert linked.code == 0
        assert len(list((tmp_path / typed).rglob("*.safetensors"))) == 2
    for number in (903, 904):
        found = civman("list", "--base-model", labels[number], "--json").json["list"]["assets"]
        assert [asset["version_id"] for asset in found] == [number]


@pytest.mark.parametrize(
    ("kind", "name", "is_told"),
    [
        ("Workflows", "graph.json", True), ("Wildcards", "colors.txt", True), ("Poses", "poses.zip", True),
        ("LORA", "packed.zip", True), ("LORA", "plain.safetensors", False),
    ],
)  # fmt: skip
def test_a_download_that_is_no_model_says_so(
    kind: str, name: str, is_told: bool, online: CivitaiServer, civman: Civman
) -> None:
    contents = {"json": b'{"nodes": []}', "txt": b"red\nblue\n", "zip": b"PK\x05\x06" + bytes(18)}
    content = Content.of(contents.get(name.rpartition(".")[2]) or sd1_lora("plain", tags={"t": 1}))
    listed = version(951, files=False)
    online.catalogue.add(DemoModel(950, "Thing", kind, (replace(listed, files=(DemoFile(952, name, content),)),)))

    run = civman("download", 950)
    assert run.code == 0, run.err
    assert ("not a model" in run.out) is is_told
    assert not is_told or kind in run.out
