"""Full-text search: ranked, forgiving, always in step with the rows, and nothing a person types is a syntax error."""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_values import NOON, file, model, version

from civman.domain.catalog import Asset, FileFacts, Licence, ModelType, Own
from civman.index import AssetFilter, Index, Sort, Source
from civman.index.full_text_query import spelling_distance, tokens_of, understand
from civman.index.search_rows import plain_text, spread


def names(index: Index, *words: str, sort: Sort | None = None, **more: object) -> list[str]:
    found = index.assets(AssetFilter(words=words, **more), sort=sort)  # type: ignore[arg-type]
    assert index.count(AssetFilter(words=words, **more)) == len(found)  # type: ignore[arg-type]
    return [asset.name for asset in found]


@pytest.fixture
def shelf(index: Index, add) -> Index:  # type: ignore[no-untyped-def]
    """A few files with little in common."""
    plain = {"tags": (), "creator": None, "description": None}
    fox = version(
        2,
        model(1, name="dreamFoxXL", creator="Anna", tags=("animal", "red fur"), description="<p>A <b>harbour</b></p>"),
        trained_words=("vulpes",), description=None, base_model="SDXL 1.0",
    )  # fmt: skip
    harbour = version(
        4, model(3, name="Harbour Light", licence=Licence(True, ()), nsfw_level=1, **(plain | {"creator": "Bo"})),
        trained_words=(), description=None, base_model="SD 1.5",
    )  # fmt: skip
    add("fox.safetensors", version=fox, file=fox.files[0])
    add("light.safetensors", version=harbour, file=harbour.files[0])
    add("Café Noir.safetensors", facts=FileFacts(trigger_words=("espresso",)), origin="import")
    return index


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vulpes"], ["fox.safetensors"]),
        (["VULP"], ["fox.safetensors"]),
        (["shaper"], []),
        (["dream"], ["fox.safetensors"]),
        (["reamfo"], ["fox.safetensors"]),
        (["xl"], ["fox.safetensors"]),
        (["cafe"], ["Café Noir.safetensors"]),
        (["CAFÉ", "noi"], ["Café Noir.safetensors"]),
        (["espresso"], ["Café Noir.safetensors"]),
        (["vulpes", "espresso"], []),
        (["anna"], ["fox.safetensors"]),
        (['"red fur"'], ["fox.safetensors"]),
        (['"fur red"'], []),
        (['"red fu"'], []),
        (["fox", "&", "harbour"], ["fox.safetensors"]),
        (["bo"], ["light.safetensors"]),
        (["safetensors"], []),
    ],
)
def test_words_find_what_begins_with_them_or_holds_them(shelf: Index, words: list[str], expected: list[str]) -> None:
    assert names(shelf, *words) == expected


def test_a_name_counts_for_more_than_a_description(shelf: Index) -> None:
    assert names(shelf, "harbour") == ["light.safetensors", "fox.safetensors"]


@pytest.mark.parametrize("typed", ["harbuor", "harbor", "hxrbour", "herbours", "arbour"])
def test_a_slip_of_the_finger_finds_and_is_told(shelf: Index, typed: str) -> None:
    assert "light.safetensors" in names(shelf, typed)

    corrections = shelf.understood([typed]).corrections

    assert corrections == ((typed, "harbour"),) or typed == "arbour"


def test_short_words_and_numbers_are_never_guessed_at(shelf: Index) -> None:
    assert names(shelf, "fux") == []
    assert names(shelf, "123456") == []
    assert shelf.understood(["fux", "123456"]).corrections == ()


def test_what_is_found_is_in_step_with_every_change(shelf: Index) -> None:
    light = shelf.assets(AssetFilter(words=("light",)))[0]
    renamed = version(4, model(3, name="Quay", creator="Bo"), base_model="SD 1.5", description=None)

    shelf.remember(renamed, fetched_at=NOON + timedelta(days=1), source=Source.VERSION)
    assert names(shelf, "quay") == ["light.safetensors"]
    assert names(shelf, "harbour") == ["fox.safetensors"]

    shelf.annotate(light, Own(note="for postcards", tags=("travel",)))
    assert names(shelf, "postcard") == names(shelf, tags=("travel",)) == ["light.safetensors"]

    shelf.set_alias(light, "pier")
    assert names(shelf, "pier") == ["light.safetensors"]

    shelf.update_facts(light.blob.sha256, FileFacts(trigger_words=("gangway",)))
    assert names(shelf, "gangway") == ["light.safetensors"]

    shelf.forget(light)
    assert names(shelf, "quay") == names(shelf, "postcard") == []


def test_the_words_are_made_again_from_the_rows(shelf: Index) -> None:
    everything = "SELECT rowid, * FROM search ORDER BY rowid"
    before = shelf._reader.all(everything)

    shelf.refill_search()

    assert shelf._reader.all(everything) == before
    assert len(before) == 3


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(max_size=12) | st.sampled_from(['"', "NOT", "AND", "NEAR(", "name:x", "*", "^a", "a-b", "''"])))
def test_nothing_a_person_types_is_a_syntax_error(shelf: Index, words: list[str]) -> None:
    words = [word.encode("utf-8", "ignore").decode() for word in words]

    assert shelf.count(AssetFilter(words=tuple(words), tags=tuple(words[:1]))) <= 3


def test_filters_narrow_what_words_found(shelf: Index) -> None:
    fox = shelf.assets(AssetFilter(words=("vulpes",)))[0]
    shelf.annotate(fox, Own(rating=4, is_favourite=True, tags=("Keep",)))

    assert names(shelf, "harbour", min_rating=4) == ["fox.safetensors"]
    assert names(shelf, is_favourite=True) == names(shelf, min_rating=3) == names(shelf, tags=("keep",)) == [fox.name]
    assert names(shelf, "harbour", min_rating=5) == []
    assert names(shelf, "harbour", tags=("red fur",)) == ["fox.safetensors"]
    assert names(shelf, is_commercial=True) == ["fox.safetensors"], (
        "Harbour Light allows nothing, the import says nothing"
    )
    assert names(shelf, is_safe=True) == ["light.safetensors"]
    assert names(shelf, larger_bytes=124) == []
    assert len(names(shelf, smaller_bytes=123)) == 3
    assert names(shelf, since=NOON + timedelta(seconds=3)) == ["Café Noir.safetensors"]
    assert names(shelf, "harbour", types=(ModelType.LORA,), architectures=("sdxl",), creator="bo") == [
        "light.safetensors"
    ]


def test_files_come_in_the_order_asked_for(shelf: Index, add) -> None:  # type: ignore[no-untyped-def]
    fox, light = (shelf.assets(AssetFilter(words=(word,)))[0] for word in ("vulpes", "light"))
    shelf.annotate(fox, Own(rating=2))
    shelf.annotate(light, Own(rating=5))
    shelf.mark_used([fox.blob.sha256], NOON)
    cafe = "Café Noir.safetensors"

    assert names(shelf) == names(shelf, sort=Sort.ADDED) == [cafe, light.name, fox.name]
    assert names(shelf, sort=Sort.RATING) == [light.name, fox.name, cafe]
    assert names(shelf, sort=Sort.NAME) == [cafe, fox.name, light.name]
    assert names(shelf, sort=Sort.USED)[0] == fox.name
    assert names(shelf, "harbour", sort=Sort.ADDED) == [light.name, fox.name]


def test_pages_of_ranked_results_neither_skip_nor_repeat(index: Index, add) -> None:  # type: ignore[no-untyped-def]
    for number in range(9):
        add(f"same {number}.safetensors")

    pages = [index.assets(AssetFilter(words=("same",)), limit=2, offset=start) for start in range(0, 10, 2)]

    assert len({asset.name for page in pages for asset in page}) == 9


def test_what_the_user_says_comes_back_with_the_asset(shelf: Index) -> None:
    own = Own("note", ("a", "b, c"), ("vixen",), 3, is_favourite=True)

    asset: Asset = shelf.annotate(shelf.assets()[0], own)
    shelf.pin(asset.blob.sha256, "user", NOON)
    shelf.pin(asset.blob.sha256, "recipe 7", NOON)

    again = shelf.assets()[0]
    assert (again.own, again.pins) == (own, ("recipe 7", "user"))
    assert again.trigger_words["vixen"] == ("you",)
    shelf.unpin(asset.blob.sha256, "user")
    shelf.annotate(again, Own())
    assert (shelf.assets()[0].own, shelf.assets()[0].pins) == (Own(), ("recipe 7",))


def test_creators_html_becomes_words() -> None:
    assert plain_text('<p class="a">One<br/>two &lt;lora:x&gt;</p><script>var x</script>') == "One two <lora:x>"
    assert plain_text(None) == plain_text("") == ""


def test_names_whose_words_run_together_are_spread() -> None:
    assert spread("ponyDiffusionV6XL") == "ponyDiffusionV6XL pony Diffusion V 6XL"
    assert spread("plain name") == "plain name"


def test_a_word_in_a_script_without_spaces_is_found_inside_others(index: Index, add) -> None:  # type: ignore[no-untyped-def]
    add("东方水墨画.safetensors")
    add("水.safetensors")

    assert set(names(index, "水墨")) == {"东方水墨画.safetensors"}
    assert len(names(index, "水")) == 2


def test_spelling_distance_counts_swaps_as_one() -> None:
    assert spelling_distance("abcd", "abdc", 2) == 1
    assert spelling_distance("abcd", "abcd", 2) == 0
    assert spelling_distance("abcd", "xy", 1) == 2


def test_an_empty_wish_asks_nothing(shelf: Index) -> None:
    assert understand(shelf._reader, ["", "  "]).is_empty
    assert len(names(shelf, "")) == 3
    assert tokens_of("") == []


def test_descriptions_of_a_version_count_too(index: Index, add) -> None:  # type: ignore[no-untyped-def]
    one = version(2, model(1, description=None), description="<i>brushwork</i>")
    add("x.safetensors", version=one, file=file(20, "x2"))

    assert names(index, "brush") == ["x.safetensors"]
