"""Requests from one prompt: styles, then variants and wildcards, with the prompts as typed kept."""

from pathlib import Path

import pytest

from civman.domain.recipes.render_request import RenderRequest
from civman.errors import UsageError
from civman.planning.expand_prompts import Expansion, expanded

pytest.importorskip("dynamicprompts", reason="the extra `wildcards` is not installed")


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    (tmp_path / "styles.csv").write_text('name,prompt,negative_prompt\nink,"ink of {prompt}, {fine|bold}",photo\n')
    return tmp_path / "styles.csv"


def test_without_an_expansion_the_request_is_unchanged() -> None:
    request = RenderRequest("m", "a {cat|dog} __x__")

    assert expanded(request, Expansion()) == (request,)


def test_random_expansions_have_the_seeds_that_the_images_would_have_had() -> None:
    request = RenderRequest("m", "a {cat|dog|cow|bird}", "{bad|ugly}", seed=40, count=6, batch_size=2)

    found = expanded(request, Expansion(mode="random"))

    assert [each.seed for each in found] == [40, 41, 42, 43, 44, 45]
    assert {each.count for each in found} == {1}
    assert {(each.typed_prompt, each.typed_negative) for each in found} == {("a {cat|dog|cow|bird}", "{bad|ugly}")}
    assert len({each.prompt for each in found}) > 1
    assert found == expanded(request, Expansion(mode="random"))
    assert found != expanded(
        RenderRequest("m", request.prompt, request.negative_prompt, seed=41, count=6), Expansion(mode="random")
    )


def test_all_combinations_keep_the_number_of_images_of_each() -> None:
    found = expanded(RenderRequest("m", "a {cat|dog} {x|y}", "{bad|ugly}", count=3), Expansion(mode="all"))

    assert [(each.prompt, each.negative_prompt) for each in found] == [
        ("a cat x", "bad"), ("a cat y", "ugly"), ("a dog x", "bad"), ("a dog y", "ugly"),
    ]  # fmt: skip
    assert {each.count for each in found} == {3}


def test_a_style_is_applied_before_its_variants_are_expanded(styles: Path) -> None:
    found = expanded(RenderRequest("m", "a cat", "bad"), Expansion(("ink",), styles, "all"))

    assert [each.prompt for each in found] == ["ink of a cat, fine", "ink of a cat, bold"]
    assert {each.negative_prompt for each in found} == {"bad, photo"}
    assert {each.typed_prompt for each in found} == {"a cat"}


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: Expansion(mode="some"), "bad-wildcards"),
        (lambda: Expansion(folder=Path()), "bad-wildcards"),
        (lambda: Expansion(styles=("ink",)), "no-style"),
    ],
)
def test_contradicting_options_are_refused(make: object, code: str) -> None:
    with pytest.raises(UsageError) as error:
        make()  # type: ignore[operator]
    assert error.value.code == code
    assert error.value.hint
