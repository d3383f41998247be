"""`civman gc` in a library with an object store as its second home: what it frees, keeps and says."""

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from running import Civman

from civman.domain.digests import Sha256
from civman.library import Library
from civman.library.context import utc_now
from civman.settings import load_settings

pytest.importorskip("moto", reason="needs the extra dev: moto")
pytest.importorskip("obstore", reason="needs the extra s3")


def key(sha256: str) -> str:
    return f"models/blobs/sha256/{sha256[:2]}/{sha256}"


def keys(s3: Any) -> set[str]:
    return {each["Key"] for each in s3.list_objects_v2(Bucket="bucket").get("Contents", [])}


def in_trash(root: Path) -> set[str]:
    return {path.name[:64] for path in (root / "trash").rglob("*.safetensors")}


@pytest.fixture
def second(held: list[str], civman: Civman, url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two files, both pushed to the store in the settings, then removed; the first is pinned for a recipe."""
    civman("push", url, "--all")
    monkeypatch.setenv("CIVMAN_OBJECT_STORE", url)
    for sha256 in held:
        civman("remove", f"sha256:{sha256}", "--yes", "--force")
    with Library.open() as library:
        library.context.index.pin(Sha256(held[0]), "recipe 1", utc_now())
    return held


def test_the_last_copy_of_a_pinned_file_stays_though_the_store_has_one(
    second: list[str], civman: Civman, root: Path, s3: Any
) -> None:
    before = keys(s3)
    shown = civman("gc", "--trash", "0", "--dry-run")
    done = civman("gc", "--trash", "0", "--yes", "--json")

    pinned, other = second
    assert f"keep in the trash: {pinned[:10]}  pinned" in shown.out
    assert "--trust-store deletes it" in shown.out
    assert f"{other[:10]} will remain only in the object store (not verified)" in shown.out
    assert done.code == 0, done.err
    assert done.json["gc"]["kept_pinned"] == [pinned]
    assert {each["sha256"]: each["is_verified"] for each in done.json["gc"]["in_object_store"]} == {
        pinned: False, other: False,
    }  # fmt: skip
    assert in_trash(root) == {pinned}
    assert keys(s3) == before, "nothing is deleted in the store"


def test_with_trust_a_pinned_file_is_freed_after_its_copy_was_read_and_can_be_pulled(
    second: list[str], civman: Civman, root: Path, url: str
) -> None:
    done = civman("gc", "--trash", "0", "--yes", "--trust-store", "--json")

    assert done.code == 0, done.err
    assert {each["sha256"]: each["is_verified"] for each in done.json["gc"]["in_object_store"]} == {
        second[0]: True, second[1]: False,
    }  # fmt: skip
    assert in_trash(root) == set()
    assert civman("pull", url, "--all").code == 0
    stored = {path.name[:64]: path for path in (root / "blobs").rglob("*.safetensors")}
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in stored.values()} == set(second)


@pytest.mark.parametrize("damage", ["one byte", "shorter", "absent", "no sidecar", "broken sidecar"])
def test_a_pinned_file_is_kept_if_the_copy_in_the_store_is_not_whole(
    damage: str, second: list[str], civman: Civman, root: Path, s3: Any
) -> None:
    place = key(second[0])
    body = s3.get_object(Bucket="bucket", Key=place)["Body"].read()
    match damage:
        case "one byte":
            s3.put_object(Bucket="bucket", Key=place, Body=body[:-1] + bytes([body[-1] ^ 1]))
        case "shorter":
            s3.put_object(Bucket="bucket", Key=place, Body=body[:-1])
        case "absent":
            s3.delete_object(Bucket="bucket", Key=place)
        case "no sidecar":
            s3.delete_object(Bucket="bucket", Key=place + ".civman.json")
        case _:
            s3.put_object(Bucket="bucket", Key=place + ".civman.json", Body=b"{}")

    done = civman("gc", "--trash", "0", "--yes", "--trust-store", "--json")

    assert done.code == 0, done.err
    assert done.json["gc"]["kept_pinned"] == [second[0]]
    assert [each["sha256"] for each in done.json["gc"]["in_object_store"]] == [second[1]]
    assert in_trash(root) == {second[0]}


def test_a_file_that_is_also_in_the_library_is_not_said_to_be_in_the_store_only(
    second: list[str], civman: Civman, url: str
) -> None:
    civman("pull", url, "--all")

    assert "object store" not in civman("gc", "--trash", "0", "--dry-run").out


@pytest.mark.parametrize("how", ["offline", "no server", "no keys"])
def test_a_store_that_cannot_be_asked_costs_no_file(
    how: str, second: list[str], civman: Civman, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["gc", "--trash", "0", "--yes", "--json"]
    match how:
        case "offline":
            words.append("--offline")
        case "no server":
            monkeypatch.setenv("CIVMAN_OBJECT_STORE", "s3://bucket?endpoint=http://127.0.0.1:9")
        case _:
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    trusting = civman(*words, "--trust-store")
    assert trusting.code != 0
    assert in_trash(root) == set(second)
    plain = civman(*words)

    assert plain.code == 0, plain.err
    assert ("could not be searched" in plain.err) == (how != "offline")
    assert plain.json["gc"]["kept_pinned"] == [second[0]]
    assert in_trash(root) == {second[0]}


def test_without_a_store_in_the_settings_its_options_are_refused(held: list[str], civman: Civman) -> None:
    for option in ("--trust-store", "--store-leftovers"):
        refused = civman("gc", "--yes", option)
        assert refused.code == 2
        assert "civman config object_store" in refused.err


@pytest.fixture
def later(held: list[str], civman: Civman, url: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library 20 days later; the store has one whole file, and the sidecar and preview of another."""
    civman("push", url, "--all")
    monkeypatch.setenv("CIVMAN_OBJECT_STORE", url)
    s3.delete_object(Bucket="bucket", Key=key(held[0]))
    s3.put_object(Bucket="bucket", Key="models/blobs/sha256/readme.txt", Body=b"of another program")
    with Library(load_settings(), clock=in_20_days) as library:
        yield library


def in_20_days() -> datetime:
    return utc_now() + timedelta(days=20)


def test_what_a_stopped_upload_left_is_listed_and_deleted_only_on_request(
    later: Library, held: list[str], s3: Any
) -> None:
    ages = {"partials_after": timedelta(days=14), "trash_after": timedelta(days=30)}
    before = keys(s3)
    remains = {each for each in before if each.startswith(key(held[0]))}
    assert len(remains) == 2

    plan = later.maintenance.plan_gc(**ages)
    assert {f"models/{each.key}" for each in plan.leftovers} == remains
    assert plan.is_empty, "without the option, nothing is to be done"
    later.maintenance.gc(plan)
    assert keys(s3) == before

    later.maintenance.gc(later.maintenance.plan_gc(**ages, drops_leftovers=True))
    assert keys(s3) == before - remains


def test_remains_stay_if_the_file_arrives_before_they_are_deleted(later: Library, held: list[str], s3: Any) -> None:
    plan = later.maintenance.plan_gc(
        partials_after=timedelta(days=14), trash_after=timedelta(days=30), drops_leftovers=True
    )
    s3.put_object(Bucket="bucket", Key=key(held[0]), Body=b"uploaded by another machine")
    before = keys(s3)

    later.maintenance.gc(plan)

    assert keys(s3) == before


def test_a_running_upload_is_not_taken_for_a_stopped_one(
    held: list[str], civman: Civman, url: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    civman("push", url, "--all")
    monkeypatch.setenv("CIVMAN_OBJECT_STORE", url)
    s3.delete_object(Bucket="bucket", Key=key(held[0]))  # its sidecar is a moment old
    before = keys(s3)

    done = civman("gc", "--yes", "--partials", "0", "--store-leftovers", "--json")

    assert done.code == 0, done.err
    assert done.json["gc"]["store_leftovers"] == []
    assert keys(s3) == before
