"""Variants and wildcards: the same expansions as sd-dynamic-prompts' own library, and no silent leftovers."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from civman.errors import UsageError

generators = pytest.importorskip("dynamicprompts.generators", reason="the extra `wildcards` is not installed")
from dynamicprompts.wildcards import WildcardManager  # noqa: E402

from civman.prompts.wildcards import combinations, drawn, is_dynamic  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "colour.txt").write_text("red\ngreen\n# a comment\n\nblue\n")
    (tmp_path / "animal.txt").write_text("{cat|dog}\n__colour__ bird\n")
    (tmp_path / "places").mkdir()
    (tmp_path / "places" / "sea.txt").write_text("harbour\nbay\n")
    return tmp_path


# the forms of the extension's syntax
TEMPLATES = [
    "a {red|green|blue} ball", "{2$$a|b|c}", "{2$$ and $$a|b|c}", "{1-2$$a|b|c}", "{0.9::often|0.1::rarely}",
    "__colour__ and __colour__", "__animal__", "__places/sea__", "__places/*__", "{a|{b|c __colour__}}",
    "${x=!{a|b}} ${x} ${x}", "(x:1.2) [a:b:3] <lora:n:0.8> BREAK {p|q}", "[a|b] __colour__", "{|a}",
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_one_seed_gives_the_expansions_of_the_extensions_library(folder: Path, template: str, seed: int) -> None:
    own = generators.RandomPromptGenerator(WildcardManager(folder), seed=seed)

    assert drawn(template, folder, seed, 5) == [str(each).strip() for each in own.generate(template, 5)]


def test_the_choices_are_those_that_the_syntax_describes(folder: Path) -> None:
    pairs = set(drawn("{2$$ and $$a|b|c}", None, 1, 200))
    weighted = Counter(drawn("{0.9::often|0.1::rarely}", None, 1, 500))

    assert pairs == {" and ".join(two) for two in product("abc", repeat=2) if two[0] != two[1]}
    assert weighted["often"] > 5 * weighted["rarely"] > 0
    assert set(drawn("__animal__", folder, 3, 200)) == {"cat", "dog", "red bird", "green bird", "blue bird"}


def test_all_combinations_are_made_each_once(folder: Path) -> None:
    found = combinations("a {cat|dog} in __places/sea__, {x|y}", folder)

    assert sorted(found) == sorted(
        f"a {animal} in {place}, {end}" for animal, place, end in product(("cat", "dog"), ("harbour", "bay"), "xy")
    )


def test_syntax_of_the_prompt_itself_is_left_alone(folder: Path) -> None:
    assert drawn("(x:1.2) [a:b:3] [c|d] <lora:n:0.8> BREAK {p}", None, 1, 1) == [
        "(x:1.2) [a:b:3] [c|d] <lora:n:0.8> BREAK p"
    ]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("a {cat|dog", "invalid at `{cat"),
        ("a __nowhere__ b", "the wildcard `__nowhere__` has no values"),
        ("{a|__nowhere__} __nowhere__", "has no values"),
        ("a_b__c {x|y}", "the syntax is invalid"),
        ("x" * 70_000 + "{a|b}", "longer than"),
    ],
)
def test_what_the_library_would_leave_in_the_prompt_or_refuse_is_an_error(
    folder: Path, template: str, says: str
) -> None:
    for expand in (lambda: drawn(template, folder, 1, 2), lambda: combinations(template, folder)):
        with pytest.raises(UsageError) as error:
            expand()
        assert error.value.code == "bad-wildcards"
        assert says in error.value.message
        assert len(error.value.message) < 300


def test_combinations_are_bounded_even_if_there_are_more_than_could_ever_be_listed() -> None:
    with pytest.raises(UsageError, match="more than 1,000 combinations"):
        combinations(" ".join(["{a|b|c|d|e|f|g|h}"] * 12), None)
    assert len(combinations("{a|b|c|d|e|f|g|h|i|j} " * 3, None)) == 1000


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        drawn("{a|b}", tmp_path / "none", 1, 1)


def test_a_prompt_without_variants_and_wildcards_is_not_dynamic() -> None:
    assert not any(map(is_dynamic, ["a cat", "[a|b]", "a_b", "snake_case_name", "(x:1.2), BREAK"]))
    assert all(map(is_dynamic, ["{a|b}", "__colour__", "{x}"]))
