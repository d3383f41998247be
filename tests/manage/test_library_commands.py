"""Finding, editing and showing, through the front door."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from running import Civman

from civman.demo.server import CivitaiServer

CHECKPOINT, LORA = "51207", "60344"


@pytest.fixture
def two(online: CivitaiServer, civman: Civman) -> CivitaiServer:
    assert civman("download", CHECKPOINT, LORA).code == 0
    return online


def models(civman: Civman, *argv: object) -> list[int]:
    listed = civman("list", *argv, "--json").json["list"]
    assert listed["total"] == len(listed["assets"])
    return [asset["model_id"] for asset in listed["assets"]]


def test_words_are_found_and_a_slip_is_told(two: CivitaiServer, civman: Civman) -> None:
    assert models(civman, "harbo") == [51207]

    slip = civman("list", "harbuor")

    assert "no results for `harbuor`; showing results for harbour" in slip.err
    assert "@114620+98103" in slip.out
    assert civman("list", "harbuor", "--json").json["list"]["corrections"] == {"harbuor": "harbour"}
    assert models(civman, '"unfinished NOT (', "*") == []


def test_filters_of_the_command_line_narrow(two: CivitaiServer, civman: Civman) -> None:
    sizes = {
        asset["model_id"]: asset["blob"]["size_bytes"] for asset in civman("list", "--json").json["list"]["assets"]
    }
    larger = max(sizes, key=sizes.__getitem__)
    middle = sum(sizes.values()) // 2

    assert models(civman, "--larger", f"{middle / 1e6:.2f}MB") == [larger]
    assert models(civman, "--smaller", str(middle)) == [number for number in sizes if number != larger]
    assert len(models(civman, "--since", "1d")) == 2
    assert models(civman, "--since", (datetime.now(UTC) + timedelta(days=2)).date().isoformat()) == []
    assert models(civman, "--sort", "size")[0] == larger
    assert models(civman, "--favourite") == models(civman, "--tag", "nobody's") == []
    for wrong in (("--larger", "big"), ("--since", "once"), ("--sort", "colour")):
        assert civman("list", *wrong).code == 2


def test_what_is_said_is_found_listed_and_shown(two: CivitaiServer, civman: Civman) -> None:
    edited = civman("edit", CHECKPOINT, "--note", "for postcards", "--tag", "Travel", "--rating", "4", "--favourite",
                    "--trigger", "golden hour", "--alias", "harbour")  # fmt: skip
    assert edited.code == 0
    assert "your note: for postcards" in edited.out

    assert models(civman, "postcard") == models(civman, "--tag", "travel") == models(civman, "--rating", "4") == [51207]
    assert models(civman, "--favourite", "golden") == [51207]
    table = civman("list").out
    assert "=harbour" in table
    assert "★★★★" in table
    shown = civman("show", "civitai:51207", "--offline").out
    assert "your note: for postcards" in shown
    assert "your trigger words: golden hour" in shown

    civman("edit", "harbour", "--no-tag", "travel", "--rating", "0", "--no-favourite", "--note", "", "--no-trigger",
           "golden hour", "--no-alias")  # fmt: skip
    own = civman("list", "harbour", "--json").json["list"]["assets"][0]["own"]
    assert own == {"note": "", "tags": [], "trigger_words": [], "rating": None, "is_favourite": False}


def test_an_edit_that_makes_no_sense_is_refused(two: CivitaiServer, civman: Civman) -> None:
    assert civman("edit", CHECKPOINT).code == 2
    assert civman("edit", CHECKPOINT, "--alias", "12345").code == 2
    civman("edit", CHECKPOINT, "--alias", "mine")
    assert civman("edit", LORA, "--alias", "mine", "--json").json["error"]["code"] == "alias-taken"
    assert civman("edit", "nothing like it", "--rating", "3").code == 3


def test_trigger_words_come_with_where_they_come_from(two: CivitaiServer, civman: Civman) -> None:
    civman("download", "civitai:139562")
    civman("edit", "civitai:139562", "--trigger", "mine")
    asset: dict[str, Any] = civman("list", "--type", "LORA", "--json").json["list"]["assets"][0]

    words = {entry["word"]: entry["from"] for entry in asset["trigger_words"]}

    assert words["mine"] == ["you"]
    assert set(asset["trained_words"]) <= {word for word, sources in words.items() if "CivitAI" in sources}
    assert set(asset["facts"]["trigger_words"]) <= {word for word, sources in words.items() if "file" in sources}


def test_show_says_whether_pictures_may_be_sold(two: CivitaiServer, civman: Civman) -> None:
    shown = civman("show", "civitai:51207")
    terms = civman("show", "civitai:51207", "--json").json["show"]["licence"]

    assert terms["sell_pictures"] in ("yes", "no", "conditional", "unknown")
    assert any(
        line.strip().startswith(("images may", "it is not known whether images")) for line in shown.out.splitlines()
    )
    commercial = models(civman, "--commercial")
    assert (51207 in commercial) is (terms["sell_pictures"] in ("yes", "conditional"))
