"""What the library holds: recording, finding, forgetting."""

import dataclasses
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from index_values import FACTS, NOON, blob, file, model, sha, version

from civman.domain.catalog import Asset, FileFacts, FileId, ModelId, ModelType, VersionId
from civman.domain.digests import Hashes
from civman.domain.refs import HashKind
from civman.errors import LibraryError, NotFound, UsageError
from civman.index import AssetFilter, Fits, Index, Record, SeenFile, Source

Add = Callable[..., Asset]


def names(assets: list[Asset]) -> list[str]:
    return [asset.name for asset in assets]


def test_the_name_that_the_trainer_gave_is_found_after_the_other_names(index: Index, add: Add) -> None:
    add("renamed.safetensors", facts=FileFacts("adapter", "sd1", output_name="Ink"))
    add("other.safetensors", facts=FileFacts("adapter", "sd1", output_name="renamed"))

    assert [asset.name for asset in index.find_by_name("ink")] == ["renamed.safetensors"]
    assert [asset.name for asset in index.find_by_name("renamed")] == ["renamed.safetensors"]


def test_recorded_file_comes_back_whole(index: Index, path: Path) -> None:
    one = version()
    place = path.parent / "blobs" / "ab" / "x.safetensors"

    asset = index.record(
        blob=blob("x2"), path=str(place), name="Fox.safetensors", origin="civitai", version=one, file=one.files[0],
        facts=FACTS, added_at=NOON,
    )  # fmt: skip

    assert asset == Asset(
        blob("x2"), "Fox.safetensors", str(place), "civitai", NOON, ModelType.LORA, "LORA", "SDXL 1.0", ModelId(1),
        VersionId(2), FileId(20), "Model 1 ", "v2", "Ünï", ("red fox", "den"), None, FACTS,
    )  # fmt: skip
    assert index.assets() == [asset]
    assert index.version(one.id) == one


def test_import_without_version_has_the_type_its_tensors_show(index: Index, add: Add) -> None:
    asset = add(origin="import", model_type=ModelType.DORA, blob=blob(declared_by="civman"))

    assert (asset.type, asset.base_model, asset.model_id) == (ModelType.DORA, None, None)
    assert index.update_facts(asset.blob.sha256, FileFacts(kind="vae"), model_type=ModelType.VAE)
    assert index.assets()[0].type is ModelType.VAE
    assert index.assets()[0].facts == FileFacts(kind="vae")


@pytest.mark.parametrize(
    ("word", "kind"),
    [("VAE", ModelType.VAE), ("Text Encoder", ModelType.TEXT_ENCODER), ("Config", ModelType.OTHER)],
)
def test_side_file_of_a_version_is_not_taken_for_the_model(index: Index, add: Add, word: str, kind: ModelType) -> None:
    side = file(7, "side", type=word)

    asset = add(version=version(files=(file(), side)), file=side)

    assert (asset.type, asset.type_raw) == (kind, word)
    assert asset.base_model == "SDXL 1.0"


def test_recording_the_same_file_again_updates_its_row(index: Index, add: Add) -> None:
    one = version()
    first = add("old.safetensors", "x", version=one, file=one.files[0])

    again = add("new.safetensors", "x", version=one, file=one.files[0])

    assert index.assets() == [again]
    assert (again.name, again.added_at) == ("new.safetensors", first.added_at)


def test_one_blob_may_be_files_of_several_versions(index: Index, add: Add) -> None:
    first = add("a.safetensors", "x", version=version(2), file=version(2).files[0])
    second = add("b.safetensors", "x", version=version(3), file=version(3).files[0])

    assert index.referrers(sha("x")) == [
        dataclasses.replace(second, path=second.path), dataclasses.replace(first, path=second.path)
    ]  # fmt: skip
    assert index.find_sha256(sha("x")) == second
    assert list(index.blobs()) == [(sha("x"), 123, ".safetensors")]


def test_version_that_becomes_known_takes_over_the_imported_file(index: Index, add: Add) -> None:
    loose = index.set_alias(add(origin="import"), "fox")

    known = add(version=version(), file=version().files[0])

    assert index.assets() == [known]
    assert (known.alias, known.version_id, known.added_at) == ("fox", 2, loose.added_at)


def test_import_of_bytes_that_are_known_says_nothing_new(index: Index, add: Add) -> None:
    known = add("a.safetensors", "x", path="p", version=version(), file=version().files[0])

    again = add(
        "b.safetensors", "x", path="p", origin="import", facts=FileFacts(), blob=blob("x", declared_by="civman")
    )

    assert again == known
    assert index.assets() == [known]


def test_recording_leaves_a_remembered_version_as_it_is(index: Index, add: Add) -> None:
    index.remember(version(), fetched_at=NOON, source=Source.MODEL)

    add(version=version(name="other"), file=version().files[0])

    assert index.version(VersionId(2)) == version()


def test_renewed_version_renews_what_assets_repeat(index: Index, add: Add) -> None:
    add(version=version(), file=version().files[0])
    renamed = version(base_model="Pony", of=model(name="Zebra", type=ModelType.DORA, type_raw="DoRA"))

    index.remember(renamed, fetched_at=NOON + timedelta(days=1), source=Source.VERSION)

    asset = index.assets(AssetFilter(words=("zebra",)))[0]
    assert (asset.base_model, asset.type, asset.model_name) == ("Pony", ModelType.DORA, "Zebra")


def test_many_records_equal_one_after_another(index: Index, tmp_path: Path) -> None:
    records = [
        Record(blob(f"x{number % 4}"), f"p{number}", f"n{number}", "civitai", NOON + timedelta(seconds=number),
               version(2 + number % 3) if number % 2 else None, None, FACTS)
        for number in range(1, 12)
    ]  # fmt: skip

    assert index.record_all(records) == 11

    with Index.open(tmp_path / "other" / "library.db") as other:
        for item in records:
            other.record(
                blob=item.blob, path=item.path, name=item.name, origin=item.origin, version=item.version,
                file=item.file, facts=item.facts, added_at=item.added_at,
            )  # fmt: skip
        assert [(a.name, a.blob, a.version_id, a.added_at) for a in other.assets()] == [
            (a.name, a.blob, a.version_id, a.added_at) for a in index.assets()
        ]


def test_record_that_fails_leaves_nothing_of_itself(index: Index, add: Add) -> None:
    with pytest.raises(LibraryError):
        add(blob=blob(declared_by="hearsay"), version=version(), file=version().files[0])

    assert index.assets() == []
    assert index.version(VersionId(2)) is None


def test_path_below_the_library_moves_with_it(index: Index, add: Add, path: Path, tmp_path: Path) -> None:
    add("in.safetensors", path=str(path.parent / "blobs" / "in.safetensors"))
    add("out.safetensors", path=str(tmp_path / "out.safetensors"))
    index.close()
    moved = path.parent.rename(tmp_path / "moved")

    with Index.open(moved / "library.db") as again:
        assert [asset.path for asset in again.assets()] == [
            str(tmp_path / "out.safetensors"), str(moved / "blobs" / "in.safetensors")
        ]  # fmt: skip


def test_newest_come_first_and_pages_neither_skip_nor_repeat(index: Index, add: Add) -> None:
    for number in range(5):
        add(f"{number}.safetensors", added_at=NOON + timedelta(seconds=number // 2))

    pages = [names(index.assets(limit=2, offset=offset)) for offset in (0, 2, 4, 6)]

    assert pages == [
        ["4.safetensors", "3.safetensors"], ["2.safetensors", "1.safetensors"], ["0.safetensors"], [],
    ]  # fmt: skip
    assert [name for page in pages for name in page] == names(index.assets())


@pytest.fixture
def zoo(index: Index, add: Add) -> Index:
    fox = version(2, model(1, name="Red Fox", creator="Ann"), base_model="SDXL 1.0", trained_words=("vulpes",))
    owl = version(3, model(2, name="Snow Öwl", creator="Bob", type=ModelType.CHECKPOINT), base_model="Pony")
    cat = version(4, model(3, name="Cat_100%", creator="Ann"), base_model="SD 1.5", trained_words=())
    add("fox.safetensors", version=fox, file=None, facts=FileFacts("adapter", "sdxl"))
    add("owl.safetensors", version=owl, file=None, facts=FileFacts("checkpoint", "sdxl"))
    add("cat.safetensors", version=cat, file=None, facts=FileFacts())
    add("loose.safetensors", origin="import", facts=FileFacts("vae", "sd"))
    return index


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (AssetFilter(), "loose cat owl fox"),
        (AssetFilter(types=(ModelType.LORA,)), "cat fox"),
        (AssetFilter(types=(ModelType.CHECKPOINT, ModelType.LORA)), "cat owl fox"),
        (AssetFilter(base_models=("pony", "sd 1.5")), "cat owl"),
        (AssetFilter(architectures=("sdxl",)), "owl fox"),
        (AssetFilter(kinds=("vae", "adapter")), "loose fox"),
        (AssetFilter(creator="ANN"), "cat fox"),
        (AssetFilter(creator="nobody"), ""),
        (AssetFilter(words=("ÖWL",)), "owl"),
        (AssetFilter(words=("vulp", "red")), "fox"),
        (AssetFilter(words=("vulp", "owl")), ""),
        (AssetFilter(words=("100%",)), "cat"),
        (AssetFilter(words=("t_1",)), "cat"),
        (AssetFilter(words=("x_s",)), ""),
        (AssetFilter(fits=Fits(("sdxl",), ("SD 1.5",))), "cat owl fox"),
        (AssetFilter(fits=Fits(("sd1",), ("SDXL 1.0",))), ""),
        (AssetFilter(fits=Fits()), ""),
        (AssetFilter(model_id=ModelId(2)), "owl"),
        (AssetFilter(types=(ModelType.LORA,), creator="ann", words=("fox",), architectures=("sdxl",)), "fox"),
    ],
)
def test_filter_gives_what_it_asks_for(zoo: Index, wanted: AssetFilter, found: str) -> None:
    assert [name.removesuffix(".safetensors") for name in names(zoo.assets(wanted))] == found.split()
    assert [name.removesuffix(".safetensors") for name in names(zoo.assets(wanted, limit=9))] == found.split()
    assert zoo.count(wanted) == len(found.split())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("fox", "fox"),
        ("FOX.safetensors", "fox"),
        ("red fox", "fox"),
        ("snow öwl", "owl"),
        ("snow", "owl"),
        ("öw", "owl"),
        ("cat_", "cat"),
        ("cat%", ""),
        ("o", "owl"),
        ("oo", "loose"),
        ("a", "cat"),
        ("s", "owl"),
        ("e", "loose fox"),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_name_finds_by_the_closest_way_that_finds_any(zoo: Index, name: str, found: str) -> None:
    assert [one.removesuffix(".safetensors") for one in names(zoo.find_by_name(name))] == found.split()


def test_alias_goes_before_any_other_name(zoo: Index) -> None:
    owl = zoo.find_by_name("owl")[0]

    aliased = zoo.set_alias(owl, "fox")

    assert aliased.alias == "fox"
    assert zoo.find_by_name("fox") == [aliased]
    assert zoo.set_alias(aliased, None) == owl
    assert names(zoo.find_by_name("fox")) == ["fox.safetensors"]


def test_alias_belongs_to_one_asset_only(zoo: Index) -> None:
    fox, owl = zoo.find_by_name("fox")[0], zoo.find_by_name("owl")[0]
    zoo.set_alias(fox, "pet")

    with pytest.raises(UsageError) as caught:
        zoo.set_alias(owl, "pet")

    assert caught.value.code == "alias-taken"
    assert names(zoo.find_by_name("pet")) == ["fox.safetensors"]
    assert zoo.set_alias(fox, "pet").alias == "pet"


@pytest.mark.parametrize("alias", ["", " x", "123", "1@2", "deadbeef", "./x", "x.safetensors", "civitai:x", "name:x"])
def test_alias_that_reads_as_something_else_is_refused(zoo: Index, alias: str) -> None:
    with pytest.raises(UsageError) as caught:
        zoo.set_alias(zoo.assets()[0], alias)

    assert caught.value.code == "bad-alias"


def test_digest_of_any_kind_finds_its_file(index: Index, add: Add) -> None:
    digests = Hashes(sha("x"), "b" * 64, "c" * 8, "d" * 8, sha("x")[:10], "e" * 12)
    asset = add(text="x", hashes=digests)
    add("other.safetensors", hashes=Hashes())

    assert index.find_by_digest(sha("x")) == [asset]
    assert index.find_by_digest(sha("x")[:10].upper()) == [asset]
    assert index.find_by_digest(sha("x")[:6], HashKind.SHA256) == [asset]
    for kind in HashKind:
        assert index.find_by_digest(getattr(digests, kind.value), kind) == [asset]
        assert index.find_by_digest(getattr(digests, kind.value)) == [asset]
    assert index.find_by_digest("c" * 8, HashKind.AUTOV1) == []
    assert index.find_by_digest("f" * 64) == []


def test_declared_digests_count_only_for_the_bytes_they_were_declared_for(index: Index, add: Add) -> None:
    one = version()

    add(text="x2", version=one, file=one.files[0])
    add("other.safetensors", text="y", version=version(3), file=version(3).files[0])

    assert names(index.find_by_digest("e" * 12, HashKind.AUTOV3)) == ["fox.safetensors"]


def test_assets_are_found_by_version_model_and_file(index: Index, add: Add) -> None:
    one = version(files=(file(33, "x"), file(34, "y")))
    first = add("a.safetensors", "x", version=one, file=one.files[0])
    second = add("b.safetensors", "y", version=one, file=one.files[1])

    assert index.find_by_version(VersionId(2)) == [second, first]
    assert index.find_by_model(ModelId(1)) == [second, first]
    assert index.find_by_file(FileId(33)) == [first]
    assert index.find_by_version(VersionId(99)) == []


def test_forgotten_asset_is_gone_and_its_blob_with_the_last_one(index: Index, add: Add) -> None:
    first = add("a.safetensors", "x", version=version(2), file=version(2).files[0])
    second = add("b.safetensors", "x", version=version(3), file=version(3).files[0])

    assert index.forget(first)
    assert index.referrers(sha("x")) == [second]
    assert list(index.blobs()) != []

    assert index.forget(second)
    assert list(index.blobs()) == []
    assert index.version(VersionId(3)) == version(3)
    assert not index.forget(second)


def test_what_is_not_there_is_said(index: Index, add: Add) -> None:
    asset = add()
    index.forget(asset)

    with pytest.raises(NotFound):
        index.set_alias(asset, "fox")
    assert not index.update_facts(asset.blob.sha256, FACTS)
    assert not index.set_verified(asset.blob.sha256, NOON)


def test_verification_moves_forward_and_declared_digests_are_not_lost(index: Index, add: Add) -> None:
    asset = add()
    later = NOON + timedelta(days=3)

    assert index.set_verified(asset.blob.sha256, later)
    add(blob=blob("fox.safetensors", declared_by="civman"))

    assert index.assets()[0].blob == dataclasses.replace(asset.blob, verified_at=later)


def test_use_is_noted(index: Index, add: Add, path: Path) -> None:
    asset = add()

    index.mark_used([asset.blob.sha256], NOON)

    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT last_used_at FROM asset").fetchone() == ("2026-03-01T12:00:00.000000+00:00",)
    connection.close()


def test_seen_files_come_back_with_their_large_numbers(index: Index) -> None:
    one = SeenFile("/a/ü", 2**64 - 1, 2**64 - 2, 5, 1_700_000_000_123_456_789, sha("x"))
    two = SeenFile("/b", 1, 2, 3, 4, sha("y"))
    index.save_seen([one, two])
    index.save_seen([changed := dataclasses.replace(two, size_bytes=9)])
    index.save_seen([])

    assert index.seen_files() == {"/a/ü": one, "/b": changed}
    assert index.seen_files(["/b", "/c"]) == {"/b": changed}
    assert index.seen_files([]) == {}
