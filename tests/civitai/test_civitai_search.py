"""Searching: what is sent, when it goes on, when it stops, and what it lets through."""

from datetime import timedelta
from itertools import islice
from typing import Any

import pytest
from scripted_server import NOW, Canned, ScriptedServer

from civman.civitai.client import CivitaiClient
from civman.domain.catalog import ModelId, ModelType, VersionId
from civman.domain.search_query import (
    Period,
    SearchQuery,
    Sort,
    base_model_named,
    checked_id,
    known_base_models,
    model_type_named,
    period_named,
    sort_named,
)
from civman.errors import NetworkError, NotFound, Offline, UsageError


def item(number: int, **more: Any) -> dict[str, Any]:
    version = {"id": number * 10, "baseModel": "SDXL 1.0", "publishedAt": "2026-08-15T00:00:00Z"}
    return {"id": number, "type": "LORA", "tags": ["anime"], "modelVersions": [version], **more}


def page(*numbers: int, cursor: str | None = None, **more: Any) -> dict[str, Any]:
    metadata = {"nextCursor": cursor} if cursor else {}
    return {"items": [item(number, **more) for number in numbers], "metadata": metadata}


def ids(client: CivitaiClient, query: SearchQuery) -> list[int]:
    return [found.model.id for found in client.search(query)]


def test_all_filters_are_sent_as_the_site_wants_them(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"items": [], "metadata": {}})

    ids(client, SearchQuery(
        types=(ModelType.LORA, ModelType.DORA), base_models=("Pony", "SDXL 1.0"), tag="anime", username="some_one",
        sort=Sort.NEWEST, period=Period.WEEK, nsfw=True, limit=250, version_ids=(VersionId(1), VersionId(2)),
        include_archived=True, early_access=True,
    ))  # fmt: skip

    assert site.asked[0].path == "/api/v1/models"
    assert site.asked[0].params == [
        ("limit", "100"), ("types", "LORA"), ("types", "DoRA"), ("baseModels", "Pony"), ("baseModels", "SDXL 1.0"),
        ("tag", "anime"), ("username", "some_one"), ("sort", "Newest"), ("period", "Week"),
        ("modelVersionIds", "1,2"), ("nsfw", "true"), ("archived", "true"), ("earlyAccess", "true"),
    ]  # fmt: skip


def test_what_is_off_is_not_sent_at_all(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"items": []})

    ids(client, SearchQuery(text="harbour", limit=7))

    assert site.asked[0].params == [("limit", "7"), ("query", "harbour")]


def test_name_the_slug_would_spoil_is_sent_unslugged(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"items": []})

    ids(client, SearchQuery(username="a.b-c"))

    assert ("user", "a.b-c") in site.asked[0].params


def test_pages_are_asked_for_only_when_needed(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(page(1, 2, cursor="a"), page(3, cursor="b"), page(4))

    search = client.search(SearchQuery(limit=None))
    assert site.asked == []
    first = [found.model.id for found in islice(search, 2)]
    assert (first, len(site.asked)) == ([1, 2], 1)
    assert [found.model.id for found in search] == [3, 4]

    assert [dict(asked.params).get("cursor") for asked in site.asked] == [None, "a", "b"]
    assert all("page" not in dict(asked.params) for asked in site.asked)


def test_limit_ends_the_search_without_another_page(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(page(1, 2, 3, cursor="a"))

    assert ids(client, SearchQuery(limit=3)) == [1, 2, 3]
    assert len(site.asked) == 1


def test_short_and_empty_pages_are_no_end(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(page(cursor="a"), page(1, cursor="b"), page(cursor="c"), page(2))

    assert ids(client, SearchQuery(text="x")) == [1, 2]


def test_ten_empty_pages_in_a_row_are_an_end_that_is_told(
    site: ScriptedServer, client: CivitaiClient, notices: list[str]
) -> None:
    site.answers(page(1, cursor="start"), *(page(cursor=f"c{number}") for number in range(30)))

    assert ids(client, SearchQuery(text="x")) == [1]
    assert len(site.asked) == 11
    assert any("may be incomplete" in notice for notice in notices)


def test_repeated_cursor_is_an_end_that_is_told(
    site: ScriptedServer, client: CivitaiClient, notices: list[str]
) -> None:
    site.answers(page(1, cursor="a"), page(2, cursor="b"), page(3, cursor="a"))

    assert ids(client, SearchQuery()) == [1, 2, 3]
    assert len(site.asked) == 3
    assert any("repeat" in notice for notice in notices)


def test_next_page_is_followed_verbatim_on_the_configured_site(site: ScriptedServer, client: CivitaiClient) -> None:
    following = "https://elsewhere.test/api/v1/models?query=x&page=2&limit=5&token=secret"
    site.answers({"items": [item(1)], "metadata": {"nextPage": following}}, page(2))

    assert ids(client, SearchQuery(text="x")) == [1, 2]
    assert site.asked[1].params == [("query", "x"), ("page", "2"), ("limit", "5")]


def test_same_model_on_two_pages_is_given_once(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(page(1, 2, cursor="a"), page(2, 3))

    assert ids(client, SearchQuery()) == [1, 2, 3]


def test_tag_the_site_does_not_know_gives_nothing_instead_of_everything(
    site: ScriptedServer, client: CivitaiClient, notices: list[str]
) -> None:
    site.answers(page(1, 2, cursor="a"), page(3, 4))

    assert ids(client, SearchQuery(tag="harbuor")) == []
    assert len(site.asked) == 1
    assert any("does not know the tag `harbuor`" in notice for notice in notices)


def test_stray_models_are_dropped_by_tag_type_creator_base_model_and_period(
    site: ScriptedServer, client: CivitaiClient
) -> None:
    by = {"creator": {"username": "Some_One"}}
    old = [{"id": 70, "baseModel": "SDXL 1.0", "publishedAt": (NOW - timedelta(days=9)).isoformat()}]
    items = [
        item(1, **by),
        item(2, **by, tags=["photo"]),
        item(3, **by, type="Checkpoint"),
        item(4, creator={"username": "else"}),
        item(5, **by, modelVersions=[{"id": 50, "baseModel": "Pony"}]),
    ]
    filters: dict[str, Any] = {"tag": "Anime", "types": (ModelType.LORA,), "username": "some_one"}
    site.answers({"items": items}, {"items": [item(1, **by), item(7, **by, modelVersions=old)]})

    assert ids(client, SearchQuery(**filters, base_models=("SDXL 1.0",))) == [1]
    assert ids(client, SearchQuery(**filters, text="x", period=Period.WEEK)) == [1]


def test_house_account_is_found_although_answers_do_not_name_it(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(page(1, 2))

    assert ids(client, SearchQuery(username="civitai")) == [1, 2]


def test_versions_are_narrowed_to_the_base_model(site: ScriptedServer, client: CivitaiClient) -> None:
    versions = [{"id": 1, "baseModel": "Pony"}, {"id": 2, "baseModel": "SDXL 1.0"}]
    site.answers({"items": [item(1, modelVersions=versions)]})

    (found,) = client.search(SearchQuery(base_models=("SDXL 1.0",)))

    assert [version.id for version in found.versions] == [2]


def test_malformed_item_is_left_out_and_told(site: ScriptedServer, client: CivitaiClient, notices: list[str]) -> None:
    site.answers({"items": [item(1), {"id": "x"}, item(3)]})

    assert ids(client, SearchQuery()) == [1, 3]
    assert any("entry 2 of `items`" in notice for notice in notices)


def test_unknown_creator_is_named(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers({"message": "User not found"}, status=404)

    with pytest.raises(NotFound, match="creator `nobody`"):
        ids(client, SearchQuery(username="nobody"))


def test_page_cap_in_the_middle_is_no_quiet_end(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(page(1, cursor="a"), Canned(429, {"error": "You've requested too many pages"}))
    search = client.search(SearchQuery())

    assert next(search).model.id == 1
    with pytest.raises(NetworkError) as caught:
        next(search)
    assert caught.value.code == "page-cap"


def test_sort_with_a_text_is_told_to_be_ignored(
    site: ScriptedServer, client: CivitaiClient, notices: list[str]
) -> None:
    site.answers({"items": []})

    ids(client, SearchQuery(text="x", sort=Sort.NEWEST))

    assert any("ignores the sort order" in notice for notice in notices)


def test_offline_search_says_so(transport: Any) -> None:
    with pytest.raises(Offline):
        ids(CivitaiClient(transport(offline=True)), SearchQuery())


def test_many_ids_are_asked_in_hundreds_whatever_their_rating(site: ScriptedServer, client: CivitaiClient) -> None:
    site.answers(page(1, 2), page(150))

    found = [one.model.id for one in client.models_by_ids(ModelId(number) for number in range(1, 151))]

    assert found == [1, 2, 150]
    asked = [[value for name, value in one.params if name == "ids"] for one in site.asked]
    assert [len(chunk) for chunk in asked] == [100, 50]
    assert all(("nsfw", "true") in one.params for one in site.asked)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("lora", ModelType.LORA), ("CHECKPOINT", ModelType.CHECKPOINT), ("lycoris", ModelType.LOCON),
     ("embedding", ModelType.EMBEDDING), ("motion-module", ModelType.MOTION_MODULE)],
)  # fmt: skip
def test_types_are_known_by_the_names_people_use(text: str, kind: ModelType) -> None:
    assert model_type_named(text) is kind


def test_names_are_found_in_any_case_and_spacing() -> None:
    assert sort_named("most-downloaded") is Sort.MOST_DOWNLOADED
    assert period_named("all time") is Period.ALL_TIME
    assert base_model_named("sdxl 1.0") == "SDXL 1.0"
    assert base_model_named("=Brand New 2") == "Brand New 2"
    assert len(known_base_models()) == 99
    assert all(base_model_named(name) == name for name in known_base_models())


@pytest.mark.parametrize(
    ("named", "text", "suggestion"),
    [
        (model_type_named, "chekpoint", "Checkpoint"),
        (sort_named, "newst", "Newest"),
        (period_named, "weak", "Week"),
        (base_model_named, "SDXL1", "SDXL 1.0"),
        (base_model_named, "Ilustrious", "Illustrious"),
    ],
)
def test_misspelt_names_are_answered_with_near_ones(named: Any, text: str, suggestion: str) -> None:
    with pytest.raises(UsageError) as caught:
        named(text)

    assert f"`{suggestion}`" in caught.value.hint
    assert text in caught.value.message


@pytest.mark.parametrize(
    "wrong",
    [{"limit": 0}, {"text": "x", "ids": (1,)}, {"ids": (0,)}, {"version_ids": (2**31,)}, {"tag": " "},
     {"username": ""}, {"tag": "a,b"}],
)  # fmt: skip
def test_senseless_queries_are_refused_before_anything_is_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SearchQuery(**wrong)


@pytest.mark.parametrize("number", [0, -1, 2**31, True])
def test_numbers_that_are_no_ids_are_refused(number: int) -> None:
    with pytest.raises(UsageError):
        checked_id(number, "model")
