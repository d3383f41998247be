"""What other programs noted beside a model: believed only where the digest in it is the file's."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from civman.domain.catalog import Own
from civman.domain.digests import Sha256
from civman.manage.program_metadata import ProgramMetadata, companions, joined, read_metadata, read_preview

SHA = Sha256("ab" * 32)
OTHER = "cd" * 32
TENSORS = "123456789abc"
VERSION = {
    "id": 5151, "modelId": 4242, "name": "v2", "baseModel": "SD 1.5", "trainedWords": ["harbor style"],
    "model": {"name": "Harbor", "type": "LORA"},
}  # fmt: skip


def beside(folder: Path, ending: str, content: object, *, autov3: str | None = TENSORS) -> ProgramMetadata:
    place = folder / f"a.v1{ending}"
    place.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_metadata([folder / "a.v1.safetensors"], SHA, lambda: autov3, now=datetime.now(UTC))


def info(digest: str, kind: str = "SHA256") -> dict[str, object]:
    return {**VERSION, "files": [{"id": 7, "name": "a.safetensors", "type": "Model", "hashes": {kind: digest.upper()}}]}


MATRIX = {
    "ModelId": 4242, "ModelName": "Harbor", "ModelType": "LORA", "VersionId": 5151, "VersionName": "v2", "Nsfw": False,
    "BaseModel": "SD 1.5", "TrainedWords": ["harbor style"], "UserTitle": "my harbor", "Tags": ["style"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".civitai.info", info(SHA)),
        (".civitai.info", info(SHA[:10], "AutoV2")),
        (".civitai.info", info(TENSORS, "AutoV3")),
        (".metadata.json", {"sha256": SHA, "civitai": info(OTHER)}),
        (".metadata.json", {"sha256": "", "civitai": info(SHA)}),
        (".cm-info.json", {**MATRIX, "Hashes": {"SHA256": SHA.upper(), "CRC32": None, "BLAKE3": None}}),
    ],
)
def test_a_note_with_the_digest_of_the_file_says_which_version_it_is(
    tmp_path: Path, ending: str, content: object
) -> None:
    found = beside(tmp_path, ending, content)

    assert found.version is not None
    assert (found.version.model.id, found.version.id, found.version.trained_words) == (4242, 5151, ("harbor style",))
    assert not found.refused


@pytest.mark.parametrize(
    ("ending", "content", "reason"),
    [
        (".civitai.info", info(OTHER), "another file"),
        (".civitai.info", info(OTHER[:12], "AutoV3"), "another file"),
        (".civitai.info", {**VERSION, "files": []}, "contains no SHA-256"),
        (".metadata.json", {"sha256": OTHER, "civitai": info(SHA), "notes": "of an older file"}, "another file"),
        (".cm-info.json", {**MATRIX, "Hashes": {"SHA256": OTHER}}, "another file"),
        (".cm-info.json", {**MATRIX, "Hashes": None}, "contains no SHA-256"),
        (".swarm.json", {"modelspec.title": "x", "modelspec.hash_sha256": "0x" + OTHER}, "another file"),
        (".json", {"notes": "x", "sha256": OTHER}, "another file"),
        (".civitai.info", b'{"id": 5151, "mod', "not valid JSON"),
        (".metadata.json", b"", "empty"),
    ],
)
def test_a_note_about_another_file_and_a_damaged_one_are_refused_with_the_reason(
    tmp_path: Path, ending: str, content: object, reason: str
) -> None:
    found = beside(tmp_path, ending, content)

    assert found.version is None
    assert [reason in each.message for each in found.refused] == [True]


@pytest.mark.parametrize("content", [b"null", b"[1, 2]", b"{}", b'"words"', b"[" * 3000, b"\xff\xfe"])
def test_a_json_file_of_another_kind_changes_nothing(tmp_path: Path, content: bytes) -> None:
    found = beside(tmp_path, ".json", content)

    assert (found.version, found.own) == (None, Own())


def test_the_words_of_each_program_become_the_users(tmp_path: Path) -> None:
    words = {
        "activation text": "abc, def",
        "preferred weight": 0.7,
        "notes": "with <lora:x:1>",
        "negative text": "mist",
    }
    webui = beside(tmp_path, ".json", words)
    kept = {"notes": "nice", "tags": ["ink"], "favorite": True, "usage_tips": '{"strength": 0.8}', "civitai": {}}
    manager = beside(tmp_path, ".metadata.json", {"sha256": SHA, **kept})

    assert webui.own.trigger_words == ("abc", "def")
    assert webui.own.note == "with <lora:x:1>\npreferred weight: 0.7\nnegative prompt: mist"
    assert (manager.own.tags, manager.own.is_favourite) == (("ink",), True)
    assert manager.own.note == "nice\nusage tips: strength 0.8"  # the first note wins, A1111's comes later
    swarm = {
        "modelspec.title": "T",
        "modelspec.trigger_phrase": "one, two",
        "modelspec.hash_sha256": "0x" + TENSORS + "0" * 52,
    }
    assert beside(tmp_path, ".swarm.json", swarm).own.trigger_words == ("one", "two", "abc", "def")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_notes_in_any_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    text = json.dumps({"notes": "Grüße \U0001f600"}, ensure_ascii=False)

    assert beside(tmp_path, ".json", text.encode(encoding)).own.note == "Grüße \U0001f600"
    assert beside(tmp_path, ".txt", "plain".encode(encoding)).own.note.startswith("Grüße")


def test_half_a_surrogate_pair_becomes_storable(tmp_path: Path) -> None:
    assert beside(tmp_path, ".json", b'{"notes": "a\\ud83d"}').own.note.encode()


def test_words_in_the_library_are_not_replaced() -> None:
    mine = Own("mine", ("a",), (), 3, False)

    assert joined(mine, Own("theirs", ("b",), ("w",), None, True)) == Own("mine", ("a", "b"), ("w",), 3, True)


def test_companions_and_the_preview_are_found_by_the_name_of_the_model(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.json", "a.yaml", "a.preview.png", "a.png", "ab.json", "b.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" if name == "a.png" else b"text")

    found = companions(tmp_path / "a.safetensors")

    assert {path.name for path in found} == {"a.json", "a.yaml", "a.preview.png", "a.png"}
    # `a.preview.png` is no picture
    assert read_preview([tmp_path / "a.safetensors"]) == (b"\x89PNG\r\n\x1a\n", ".png")
