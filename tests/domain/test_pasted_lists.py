"""Refs and lists of refs as people paste them."""

import pytest

from civman.domain.pasted_lists import decoded, listed_refs, split_refs
from civman.domain.refs import HashRef, ModelRef, NameRef, NumberRef, PathRef, VersionRef, parse_ref

PAGE = "https://civitai.com/models/9409"


@pytest.mark.parametrize(
    "text",
    [
        f"<{PAGE}>", f'"{PAGE}",', f"“{PAGE}”", f"- {PAGE}", f"* {PAGE}", f"• {PAGE}", f"1. {PAGE}", f"- [ ] {PAGE}",
        f"> {PAGE}", f"**{PAGE}**", f"({PAGE})", f"{PAGE})", f"{PAGE}.", f"{PAGE}…", f"{PAGE}?", f"[Or](<{PAGE}>)",
        f'[Or]({PAGE} "title")', f"![x]({PAGE})", f'<a href="{PAGE}">Or</a>', f"see {PAGE}, it is good",
        f"\ufeff{PAGE}", f"{PAGE}\u200b", "https%3A%2F%2Fcivitai.com%2Fmodels%2F9409",
    ],
)  # fmt: skip
def test_an_address_in_any_wrapping_is_the_address(text: str) -> None:
    ref = parse_ref(text)

    assert isinstance(ref, ModelRef)
    assert ref.model_id == 9409


@pytest.mark.parametrize("text", ["- 9409@12", '"9409@12",', "civitai: 9409 @ 12", "`9409@12`", "2) 9409@12;"])
def test_a_version_in_any_wrapping_is_the_version(text: str) -> None:
    ref = parse_ref(text)

    assert isinstance(ref, VersionRef)
    assert ref.version_id == 12


HEX = "6ce0161689"


@pytest.mark.parametrize(
    "text",
    [
        HEX, HEX.upper(), f"0x{HEX}", f"[{HEX}]", f"({HEX})", f"{HEX},", f"hash: {HEX}", f"hash: [{HEX}]",
        f"Model hash: {HEX},", f"AutoV2 {HEX}", f"AutoV2: 0x{HEX}", f"sha256:{HEX}.", f"model.safetensors [{HEX}]",
    ],
)  # fmt: skip
def test_a_digest_in_any_wrapping_is_the_digest(text: str) -> None:
    ref = parse_ref(text)

    assert isinstance(ref, HashRef)
    assert ref.digest == HEX


@pytest.mark.parametrize("text", [f"sha256{sign}{'a' * 64}" for sign in "-:= "] + [f"{'a' * 64}  model.safetensors"])
def test_a_sha256_with_its_name_or_from_a_checksum_file_is_a_digest(text: str) -> None:
    ref = parse_ref(text)

    assert isinstance(ref, HashRef)
    assert ref.digest == "a" * 64


@pytest.mark.parametrize("text", ["my name, with comma", "name [v2]", "it's", "#9409", '"quoted name"', "face-cafe"])
def test_a_name_stays_a_name_with_all_its_characters(text: str) -> None:
    assert parse_ref(text) == NameRef(text)
    assert split_refs(text) == [text]


@pytest.mark.parametrize("text", ["/home/me/from civitai.com/models/9409", "./a, b.safetensors", "C:\\a\\b 1@2.pt"])
def test_a_path_stays_a_path(text: str) -> None:
    assert parse_ref(text) == PathRef(text)
    assert split_refs(text) == [text]


@pytest.mark.parametrize(
    ("line", "refs"),
    [
        (f"{PAGE}, civitai.com/models/10", [PAGE, "civitai.com/models/10"]),
        (f"{PAGE} civitai.com/models/10", [PAGE, "civitai.com/models/10"]),
        ("9409, 10;11", ["9409", "10", "11"]),
        (f"Or Anything,{PAGE},v5", [PAGE]),
        (f"| Or | {PAGE} | 12 |", [PAGE]),
        ("9409@12,", ["9409@12,"]),
    ],
)
def test_several_refs_on_a_line_are_several(line: str, refs: list[str]) -> None:
    assert [parse_ref(ref) for ref in split_refs(line)] == [parse_ref(ref) for ref in refs]


def test_a_list_keeps_its_order_and_ignores_comments() -> None:
    text = f"\ufeff# my models\n\n- {PAGE}  # the best\r\n10,\n{PAGE}#reviews\n"

    assert [parse_ref(ref) for ref in listed_refs(text)] == [parse_ref(PAGE), NumberRef(10), parse_ref(PAGE)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_list_in_any_encoding_is_read(encoding: str) -> None:
    assert listed_refs(decoded(f"{PAGE}\nGrüße\n".encode(encoding))) == [PAGE, "Grüße"]


def test_a_list_in_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded("Grüße".encode("latin-1"))
