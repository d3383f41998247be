"""A safe name is one path component everywhere, whatever a stranger wrote."""

import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from civman.domain.file_names import folded, marked_name, safe_name

NAMES = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="./\\: conauxlptCOMNULiINUT$019¹²³<>|?*\x00\n\u202e\ud800 ", max_size=40),
)
RESERVED = {"con", "prn", "aux", "nul", "clock$", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}


@given(NAMES)
@example("con .txt")
@example("nul.tar.gz")
@example("a." + "b" * 20 + ".")
@example(" . ")
@example("é" * 300 + ".safetensors")
@example("CON")
@example("_" + "x" * 199)
@example("con" + "\u0301")
def test_a_safe_name_is_safe_everywhere(name: str) -> None:
    safe = safe_name(name)

    assert safe
    assert not set(safe) & set('<>:"/\\|?*')
    assert all(unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in safe)
    assert safe == safe.strip(" .")
    assert len(safe.encode()) <= 201
    assert safe.partition(".")[0].strip().casefold() not in RESERVED
    assert Path(safe).name == PureWindowsPath(safe).name == safe


@given(NAMES)
@example("con .txt")
@example("a" * 199 + ".b.")
@example("com" + "\u0301" + "1")
@example(" .con")
def test_a_safe_name_stays_as_it_is(name: str) -> None:
    safe = safe_name(name)

    assert safe_name(safe) == safe


@given(st.text(alphabet="abc d.-_é漢", max_size=300))
def test_the_suffix_survives(stem: str) -> None:
    assert safe_name(f"a{stem}.safetensors").endswith(".safetensors")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("model.safetensors", "model.safetensors"),
        ("../../../etc/passwd", "passwd"),
        ("C:\\Windows\\x.pt", "x.pt"),
        ("my model (v2) [fp16].safetensors", "my model (v2) [fp16].safetensors"),
        ("モデル.safetensors", "モデル.safetensors"),
        ("CON.safetensors", "_CON.safetensors"),
        ("a:b.pt", "a_b.pt"),
        ("..", "file"),
        ("", "file"),
    ],
)
def test_what_people_see(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(NAMES, st.integers(min_value=32, max_value=200))
@example("CON" + "x" * 40 + ".safetensors", 32)
def test_a_shortened_name_keeps_to_its_length_and_stays(name: str, most_bytes: int) -> None:
    safe = safe_name(name, most_bytes=most_bytes)

    assert len(safe.encode()) <= most_bytes + 1
    assert safe_name(safe, most_bytes=most_bytes + 1) == safe


@given(NAMES, NAMES, st.integers(min_value=40, max_value=200))
def test_a_mark_tells_two_names_apart_however_short_they_must_be(one: str, other: str, most_bytes: int) -> None:
    marks = "0123456789", "0123456780"
    made = [
        marked_name(safe_name(name), mark, most_bytes=most_bytes)
        for name, mark in zip((one, other), marks, strict=True)
    ]

    assert folded(made[0]) != folded(made[1])
    assert all(mark in name for mark, name in zip(marks, made, strict=True))
    assert all(len(name.encode()) <= most_bytes + 1 for name in made)
    assert all(safe_name(name, most_bytes=most_bytes + 1) == name for name in made)


@pytest.mark.parametrize(
    ("one", "other"),
    [("A.PT", "a.pt"), ("\u00e9", "e\u0301"), ("STRASSE", "straße"), ("\u017f", "s"), ("\u0131", "I"), ("Σ", "ς")],
)
def test_names_that_some_file_system_takes_for_one(one: str, other: str) -> None:
    assert folded(one) == folded(other)
