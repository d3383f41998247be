"""`civman show` and `civman replay --dry-run` for images on CivitAI, and the space that their originals take."""

import io
import os
import sys
from pathlib import Path

import pytest
from running import Civman

from civman.demo.server import CivitaiServer

URL = "https://civitai.com/images/12100402"


def test_show_lists_settings_models_and_whether_an_image_can_be_drawn(civman: Civman, online: CivitaiServer) -> None:
    ran = civman("show", URL)

    assert ran.code == 0, ran.err
    assert "prompt: two red circles on a green background" in ran.out
    assert "sampler DPM++ 2M · schedule type Karras" in ran.out
    assert "checkpoint `tiny-shapes` (4f20cf4bb0) — not in the library" in ran.out
    assert "LoRA `tiny-night` (f08823d2cb80) at 0.9, version 191041 — not in the library" in ran.out
    assert "can be rendered again exactly" in ran.out
    assert online.requests_to("storage") == []
    assert not [each for each in online.requests if each.path.endswith(".png")]


def test_show_says_what_is_held_and_as_json(civman: Civman, online: CivitaiServer) -> None:
    civman("download", "91004@191040")

    shown = civman("show", URL.removeprefix("https://"), "--json").json["image"]

    assert (shown["id"], shown["drawable"], shown["reasons"]) == (12100402, "exact", [])
    held = {each["role"]: each["held"] and each["held"]["name"] for each in shown["resources"]}
    assert held == {"checkpoint": None, "lora": "tiny-night.safetensors"}
    assert online.requests_to("api", "/api/v1/images")


@pytest.mark.usefixtures("online")
def test_an_image_without_settings_or_without_a_page_is_an_error(civman: Civman) -> None:
    bare = civman("show", "https://civitai.com/images/12100701", "--json")
    hidden = civman("show", "https://civitai.com/images/1", "--json")

    assert (bare.code, bare.json["error"]["code"]) == (3, "no-recipe")
    assert hidden.code == 3


def test_originals_count_and_are_collected(civman: Civman, online: CivitaiServer, root: Path) -> None:
    from civman.library import Library

    with Library.open(root) as library:
        library.pictures.fetch_image(URL)
        library.pictures.fetch_image(URL)
    (original,) = (root / "originals").iterdir()
    assert len([each for each in online.requests if each.path.endswith("/12100402.png")]) == 1

    assert civman("du", "--json").json["du"]["originals_bytes"] >= original.stat().st_size
    assert civman("gc", "--dry-run", "--json").json["gc"]["originals"] == []
    os.utime(original, (0, 0))
    assert civman("gc", "--dry-run", "--json").json["gc"]["originals"] == [str(original)]
    freed = civman("gc", "--yes", "--json").json["gc"]["freed_bytes"]

    assert freed >= 2692
    assert not original.exists()


@pytest.mark.usefixtures("online")
def test_many_images_are_listed_by_a_file_stdin_or_a_model(
    civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "images.txt"
    file.write_text("12100402\nhttps://civitai.com/images/12100701\n12100902\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("12100902"))

    listed = civman("replay", "--images", file, "--dry-run", "--json")
    piped = civman("replay", "--images", "-", "--dry-run", "--quiet")
    of_model = civman("replay", "--images-of", "91009@191090", "--dry-run", "--limit", "1", "--json")

    assert [each["verdict"] for each in listed.json["replays"]] == ["exact", "not drawn", "exact"]
    assert listed.json["replays"][1]["error"]["code"] == "no-recipe"
    assert (listed.code, listed.json["error"]["code"]) == (3, "partly-failed")
    assert (piped.code, piped.out.strip()) == (0, "12100902 exact")
    assert len(of_model.json["replays"]) == 1


@pytest.mark.usefixtures("online")
def test_wrong_lists_of_images_are_errors(civman: Civman, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    empty = tmp_path / "empty.txt"
    empty.write_text("", encoding="utf-8")

    assert civman("replay", "--images", empty).code == 2
    assert civman("replay", "--images", tmp_path / "none.txt").code == 2
    assert civman("replay", URL, "--images", empty).code == 2
    assert civman("replay", "--images", empty, "--images-of", "91009").code == 2
