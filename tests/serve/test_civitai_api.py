"""The API's routes for CivitAI, beside the demo's: pages of a search, what fits, what a download would do."""

from collections.abc import Iterator
from typing import Any

import pytest
from browser_running import HOSTILE
from serve_running import Served

from civman.domain.catalog import Model, ModelId, ModelType
from civman.domain.search_query import ModelPage
from civman.errors import NetworkError
from civman.serve.site_searches import SiteSearches


def pages(count: int, asked: list[int] | None = None) -> Iterator[ModelPage]:
    for number in range(1, count + 1):
        if asked is not None:
            asked.append(number)
        yield ModelPage(Model(ModelId(number), f"m{number}", ModelType.LORA, "LORA"))


def numbers(found: tuple[list[ModelPage], bool]) -> tuple[list[int], bool]:
    return [page.model.id for page in found[0]], found[1]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9, 10, 11])
def test_the_pages_of_a_search_are_the_search(count: int) -> None:
    searches, all_ids, offset, more = SiteSearches(), [], 0, True
    while more:
        ids, more = numbers(searches.results("a", lambda: pages(count), offset, 5))
        all_ids += ids
        offset += 5

    assert all_ids == list(range(1, count + 1))
    assert offset <= count + 5


def test_a_page_asks_for_no_more_than_it_shows_and_is_the_same_again() -> None:
    asked: list[int] = []
    searches = SiteSearches()

    first = numbers(searches.results("a", lambda: pages(100, asked), 0, 5))

    assert len(asked) <= 6
    assert numbers(searches.results("a", lambda: pages(0), 0, 5)) == first
    assert len(asked) <= 6
    assert numbers(searches.results("b", lambda: pages(2), 0, 5)) == ([1, 2], False)


def test_a_search_starts_anew_after_ten_minutes_and_after_an_error() -> None:
    now = [0.0]
    searches = SiteSearches(lambda: now[0])

    def broken() -> Iterator[ModelPage]:
        yield from pages(1)
        raise NetworkError("gone")

    with pytest.raises(NetworkError):
        searches.results("a", broken, 0, 5)
    assert numbers(searches.results("a", lambda: pages(2), 0, 5)) == ([1, 2], False)
    now[0] = 601.0
    assert numbers(searches.results("a", lambda: pages(3), 0, 5)) == ([1, 2, 3], False)


def test_pages_of_the_sites_search_are_those_of_the_command_line(page_server: Served) -> None:
    ids, offset, more = [], 0, True
    while more:
        answer = page_server.get("/api/v1/civitai/search", nsfw=1, limit=4, offset=offset)
        ids += [each["model"]["id"] for each in answer["models"]]
        offset, more = offset + 4, answer["more"]

    said = page_server.civman("search", "--nsfw", "--limit", "100", "--quiet").stdout.split()
    assert ids == [int(ref.partition("@")[0]) for ref in said]


def test_a_version_says_by_its_label_whether_it_fits(page_server: Served) -> None:
    answer = page_server.get("/api/v1/civitai/search", against="91001", limit=40)

    words = {each["model"]["name"]: each["versions"][0]["support"] for each in answer["models"]}
    assert (words["Tiny Stripes"], words["Brass Diorama XL"]) == ("full", "none")
    filtered = page_server.get("/api/v1/civitai/search", fits="91001", limit=40)["models"]
    assert {each["model"]["name"] for each in filtered} == {name for name, said in words.items() if said != "none"}


def test_a_check_reads_the_header_of_a_file_that_is_not_here(page_server: Served) -> None:
    def verdict(ref: str) -> Any:
        body = {"checkpoint": "91001", "parts": [{"ref": ref, "role": "lora"}]}
        (part,) = page_server.http.post("/api/v1/check", json=body).json()["parts"]
        return part["verdict"], part["depth"]

    assert verdict("91002") == ("fits", "modules")
    assert verdict("91007")[0] == "cannot work"
    assert page_server.get("/api/v1/models", q="outline")["total"] == 0


def test_a_model_has_versions_files_and_its_description_as_text(page_server: Served) -> None:
    answer = page_server.get("/api/v1/civitai/model", ref="87300")

    assert answer["model"]["name"] == HOSTILE
    assert answer["description"].startswith("Says <hello>")
    assert "onclick" not in answer["description"]
    for version in answer["versions"]:
        assert version["licence"]["words"]
        assert all(file["ref"] and file["words"] for file in version["files"])


def test_a_plan_is_the_dry_run_of_the_command_line(page_server: Served) -> None:
    planned = page_server.get("/api/v1/civitai/plan", ref="91002")
    held = page_server.get("/api/v1/civitai/plan", ref="91001")
    gated = page_server.get("/api/v1/civitai/plan", ref="84410")

    assert planned["size_bytes"] > 500_000
    assert (planned["is_here"], held["is_here"]) == (False, True)
    assert "only an account that has bought access" in " ".join(gated["notices"])
    assert page_server.http.get("/api/v1/civitai/plan", params={"ref": "/etc/passwd"}).status_code == 403


def test_an_example_image_has_the_settings_that_civitai_shows(page_server: Served) -> None:
    version = page_server.get("/api/v1/civitai/model", ref="91002")["versions"][0]
    number = next(each["id"] for each in version["previews"] if each["thumb"])

    found = page_server.get(f"/api/v1/civitai/images/{number}")

    assert found["meta"]["prompt"]
    assert page_server.http.get("/api/v1/civitai/images/7").status_code == 404
    assert page_server.http.get("/api/v1/civitai/images/99999999999").status_code == 400


@pytest.mark.parametrize("more", ["", "?large=1"])
def test_a_larger_thumbnail_is_a_picture_of_its_own(page_server: Served, more: str) -> None:
    version = page_server.get("/api/v1/civitai/model", ref="91002")["versions"][0]

    answer = page_server.http.get(version["previews"][0]["thumb"] + more)

    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
