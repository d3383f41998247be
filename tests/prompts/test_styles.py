"""Styles of A1111: the table that is read, and the rule by which texts are combined."""

import csv
from pathlib import Path

import pytest

from civman.errors import UsageError
from civman.prompts.styles import Style, chosen_styles, read_styles, with_styles


def combined_as_in_a1111(style: str, prompt: str) -> str:
    """The rule of A1111, written again: `{prompt}` is replaced, else the parts that are not empty are joined."""
    if "{prompt}" in style:
        return prompt.join(style.split("{prompt}"))
    kept = [text.strip() for text in (prompt, style) if text.strip()]
    return ", ".join(kept)


TEXTS = ["", "  ", "ink", "ink of {prompt}", "{prompt}, {prompt}!", " spaced ", "a, b,", "(x:1.2)", "{prompt}"]


@pytest.mark.parametrize("style", TEXTS)
@pytest.mark.parametrize("prompt", ["", "a boat", " a boat ", "{prompt}", "a, b"])
def test_a_style_is_combined_by_a1111s_rule(style: str, prompt: str) -> None:
    found, negative = with_styles(prompt, "bad", [Style("s", style, "worse")])

    assert found == combined_as_in_a1111(style, prompt)
    assert negative == "bad, worse"


def test_several_styles_are_combined_in_the_order_in_which_they_are_named() -> None:
    styles = [Style("a", "first {prompt}", ""), Style("b", "second {prompt}", ""), Style("c", "last", "no")]

    assert with_styles("x", "", styles) == ("second first x, last", "no")


def write(path: Path, rows: list[list[str]], *, encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_of_a1111_is_read_with_commas_line_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    rows = [["name", "prompt", "negative_prompt"], ["ink", 'ink, "fine"\nlines', "photo"], ["empty", "", ""]]
    path = write(tmp_path / "styles.csv", rows, encoding="utf-8-sig")

    assert read_styles(path) == {
        "ink": Style("ink", 'ink, "fine"\nlines', "photo"), "empty": Style("empty", "", ""),
    }  # fmt: skip


def test_a_table_of_2022_calls_the_prompt_text_and_may_lack_the_negative(tmp_path: Path) -> None:
    path = write(tmp_path / "styles.csv", [["name", "text"], ["ink", "an ink drawing"], ["", "no name"], ["short"]])

    assert read_styles(path) == {"ink": Style("ink", "an ink drawing", ""), "short": Style("short", "", "")}


def test_of_two_styles_with_one_name_the_later_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "styles.csv", [["name", "prompt", "negative_prompt"], ["a", "1", ""], ["a", "2", ""]])

    assert read_styles(path)["a"].prompt == "2"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"prompt,negative_prompt\na,b\n", "column names"),
        (b"", "column names"),
        (b"name,prompt\n\xff\xfe,a\n", "UTF-8"),
        (b'name,prompt\n"a,b\n', "end of data"),
    ],
)
def test_a_file_that_is_no_table_of_styles_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "styles.csv").write_bytes(content)

    with pytest.raises(UsageError, match=says) as error:
        read_styles(tmp_path / "styles.csv")
    assert error.value.code == "unreadable-prompts"


def test_a_missing_style_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no style `inc`") as error:
        chosen_styles({"ink": Style("ink", "", "")}, ["inc"], tmp_path / "styles.csv")

    assert error.value.hint == "did you mean `ink`?"
