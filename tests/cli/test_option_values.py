"""Messages about values of options that are of the wrong type or out of range."""

import pytest
from running import Civman


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("render", "a cat", "--cfg", "abc"), "the value is not a number"),
        (("render", "a cat", "--steps", "2.5"), "the value is not a whole number"),
        (("edit", "harbour", "--rating", "9"), "the value must be at most 5"),
    ],
)
def test_a_wrong_value_is_explained_in_plain_words(civman: Civman, arguments: tuple[str, ...], words: str) -> None:
    result = civman(*arguments)

    assert result.code == 2
    assert words in " ".join(result.err.split())
    assert "Input should" not in result.err
