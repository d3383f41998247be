"""What is removed can come back; what is needed stays; what nobody needs is freed by a plan."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from running import Civman

from civman.demo.server import CivitaiServer
from civman.domain.digests import Sha256
from civman.errors import NotFound, Refused
from civman.library import Library
from civman.manage.remove import StalePartial, undo
from civman.store.trash import Trash, blob_lock

CHECKPOINT, LORA = "51207", "60344"


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def listed(civman: Civman) -> list[dict[str, Any]]:
    assets: list[dict[str, Any]] = civman("list", "--json").json["list"]["assets"]
    return assets


@pytest.fixture
def held(online: CivitaiServer, civman: Civman) -> dict[str, Any]:
    """A checkpoint with all that a user can say of it."""
    assert civman("download", CHECKPOINT).code == 0
    said = ("--note", "warm at cfg 5", "--tag", "boats", "--rating", "5", "--favourite", "--alias", "harbour",
            "--trigger", "golden hour")  # fmt: skip
    assert civman("edit", CHECKPOINT, *said).code == 0
    return listed(civman)[0]


def test_removing_and_restoring_leaves_everything_as_it_was(held: dict[str, Any], civman: Civman, root: Path) -> None:
    before, stats = files_below(root / "blobs"), Path(held["path"]).stat()

    removed = civman("remove", "harbour", "--yes", "--json").json["remove"]
    assert listed(civman) == []
    assert files_below(root / "blobs") == []
    assert removed["freed_bytes"] == held["blob"]["size_bytes"]

    assert civman("restore").code == 0

    assert listed(civman) == [held | {"blob": held["blob"] | {"verified_at": listed(civman)[0]["blob"]["verified_at"]}}]
    assert files_below(root / "blobs") == before
    assert Path(held["path"]).stat().st_ino == stats.st_ino, "renamed, not copied"
    assert files_below(root / "trash") == []
    assert civman("verify", "--full").code == 0


def test_the_trash_tells_what_is_in_it_and_any_name_brings_it_back(held: dict[str, Any], civman: Civman) -> None:
    civman("download", LORA)
    for ref in (CHECKPOINT, LORA):
        civman("remove", ref, "--yes")

    trash = civman("restore", "--list", "--json").json["trash"]
    assert [len(removal["files"]) for removal in trash] == [1, 1]
    assert held["name"] in civman("restore", "--list").out

    assert civman("restore", "harbour").code == 0
    assert [asset["alias"] for asset in listed(civman)] == ["harbour"]
    assert civman("restore", "nothing like it").code == 3
    assert civman("restore", held["blob"]["sha256"][:10]).code == 3, "no longer in the trash"
    assert civman("restore").code == 0
    assert civman("restore").code == 3


def test_the_plan_is_told_and_nothing_moves_in_a_dry_run(held: dict[str, Any], civman: Civman) -> None:
    plan = civman("remove", "harbour", "--dry-run")

    assert plan.code == 0
    assert held["name"] in plan.out
    assert "the alias harbour is removed too" in plan.out
    assert len(listed(civman)) == 1


def test_pinned_files_stay_without_force_and_their_last_copy_stays_with_it(
    held: dict[str, Any], civman: Civman
) -> None:
    civman("edit", "harbour", "--pin")

    refused = civman("remove", "harbour", "--yes", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (4, "pinned")
    assert len(listed(civman)) == 1

    assert civman("remove", "harbour", "--yes", "--force").code == 0
    assert civman("restore").code == 0
    assert listed(civman)[0]["pins"] == ["user"], "the pin comes back too"


def test_what_a_recipe_needs_is_not_even_emptied_from_the_trash(held: dict[str, Any], library: Library) -> None:
    sha256 = Sha256(held["blob"]["sha256"])
    library.context.index.pin(sha256, "recipe 7", library.context.clock())
    plan = library.trash.plan_removal(["harbour"])

    with pytest.raises(Refused, match="recipe 7"):
        library.remove(plan)
    library.remove(plan, force=True)
    everything = library.maintenance.plan_gc(partials_after=timedelta(0), trash_after=timedelta(0))

    assert everything.removals == ()
    assert everything.kept == (sha256,)
    library.context.index.unpin(sha256, "recipe 7")
    assert len(library.maintenance.plan_gc(partials_after=timedelta(0), trash_after=timedelta(0)).removals) == 1


def test_bytes_that_another_version_needs_stay(held: dict[str, Any], library: Library, root: Path) -> None:
    asset = library.files.find("harbour")[0]
    other = library.context.index.record(
        blob=asset.blob, path=asset.path, name="same.safetensors", origin="import", version=None, file=None,
        added_at=asset.added_at,
    )  # fmt: skip
    assert other.blob == asset.blob
    page = library.context.index.model(asset.model_id)  # type: ignore[arg-type]
    assert page is not None
    twin = next(version for version in page[1] if version.id != asset.version_id)
    library.context.index.record(
        blob=asset.blob, path=asset.path, name="twin.safetensors", origin="civitai", version=twin, file=None,
        added_at=asset.added_at,
    )  # fmt: skip

    plan = library.trash.plan_removal([f"@{asset.version_id}"])
    library.remove(plan)

    assert (plan.blobs, [kept.name for kept in plan.kept]) == ((), ["twin.safetensors"])
    assert Path(asset.path).is_file()
    assert library.trash.restore().assets == 1
    assert len(library.list()) == 2


def test_a_file_that_lies_elsewhere_is_forgotten_and_not_touched(
    library: Library, civman: Civman, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF" + bytes(100))
    library.close()
    assert civman("import", mine, "--offline").code == 0
    civman("edit", "mine", "--note", "home-made")

    removed = civman("remove", "mine", "--yes", "--json").json["remove"]

    assert mine.is_file()
    assert [asset["path"] for asset in removed["outside"]] == [str(mine)]
    assert removed["freed_bytes"] == 0
    assert civman("restore").code == 0
    assert [(asset["path"], asset["own"]["note"]) for asset in listed(civman)] == [(str(mine), "home-made")]


def test_a_file_that_changed_in_the_trash_does_not_come_back(held: dict[str, Any], civman: Civman, root: Path) -> None:
    civman("remove", "harbour", "--yes")
    blob = next((root / "trash").rglob("*.safetensors"))
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")

    result = civman("restore", "--json")

    assert result.code == 6
    assert listed(civman) == []
    assert files_below(root / "blobs") == [], "wrong bytes never get a name, not even on the way"
    assert blob.exists()


def test_of_two_that_remove_the_same_at_once_one_does_and_the_other_says_so(
    held: dict[str, Any], library: Library
) -> None:
    first, second = library.trash.plan_removal(["harbour"]), library.trash.plan_removal(["harbour"])
    removal = library.remove(first)
    assert removal is not None

    with pytest.raises(NotFound, match="another process has already removed"):
        library.remove(second)

    assert [gone.id for gone in library.trash.list()] == [removal.id]
    assert library.trash.restore().assets == 1


def test_a_removal_killed_before_it_took_anything_finds_its_bytes_in_another(
    held: dict[str, Any], library: Library, root: Path
) -> None:
    trash = Trash(library.context.store)
    first = library.remove(library.trash.plan_removal(["harbour"]))
    assert first is not None
    with trash.begin(list(first.entries), reason="remove", now=library.context.clock()):
        pass  # as a kill leaves it: told on disk, nothing taken

    assert library.trash.list()[0].id != first.id
    assert library.trash.restore().assets == 1
    assert [gone.id for gone in library.trash.list()] == [first.id]
    assert library.trash.restore().lost == ()
    assert library.trash.list() == []


def test_a_half_emptied_removal_is_no_longer_offered_and_gc_finishes_it(
    held: dict[str, Any], library: Library, root: Path
) -> None:
    removal = library.remove(library.trash.plan_removal(["harbour"]))
    assert removal is not None
    removal.folder.rename(removal.folder.with_name(removal.id + ".emptied"))  # as a kill leaves it

    with pytest.raises(NotFound, match="empty"):
        library.trash.restore()
    plan = library.maintenance.plan_gc(partials_after=timedelta(0), trash_after=timedelta(days=30))

    assert not plan.is_empty
    promised = plan.freed_bytes
    assert promised > held["blob"]["size_bytes"]
    assert library.maintenance.gc(plan) == promised
    assert files_below(root / "trash") == []


def test_who_restores_what_another_has_just_brought_back_is_told(held: dict[str, Any], library: Library) -> None:
    removal = library.remove(library.trash.plan_removal(["harbour"]))
    assert removal is not None
    library.trash.restore()

    with pytest.raises(NotFound, match="another process has restored it or emptied the trash"):
        undo(library.context.index, library.context.store, removal, now=library.context.clock(), on_notice=print)


def test_collecting_puts_strangers_away_and_frees_what_is_old(held: dict[str, Any], civman: Civman, root: Path) -> None:
    civman("download", LORA)
    library = Library.open(root)
    library.context.index.forget(library.files.find(LORA)[0])  # as a crash between row and file leaves it
    library.close()
    (root / "partial").mkdir(exist_ok=True)
    stale = root / "partial" / f"{'a' * 64}.part"
    stale.write_bytes(bytes(4096))
    month_ago = time.time() - 40 * 86400
    os.utime(stale, (month_ago, month_ago))
    (root / "partial" / f"{'b' * 64}.part").write_bytes(bytes(10))

    plan = civman("gc", "--dry-run")
    assert "it is not in the index" in plan.out
    assert "partial download, last used" in plan.out
    assert stale.exists()

    collected = civman("gc", "--yes", "--json").json["gc"]

    assert (len(collected["orphans"]), len(collected["partials"]), collected["freed_bytes"]) == (1, 1, 4096)
    assert files_below(root / "partial") == [f"{'b' * 64}.part"]
    assert len(list((root / "blobs").rglob("*.safetensors"))) == 1
    assert civman("gc", "--json").json["gc"]["freed_bytes"] == 0

    assert civman("restore").code == 0, "put away is not lost"
    assert len(listed(civman)) == 2
    civman("remove", LORA, "--yes")
    assert civman("gc", "--yes", "--trash", "0", "--json").json["gc"]["freed_bytes"] > 1000
    assert files_below(root / "trash") == []


def test_collecting_refuses_where_the_index_knows_nothing(held: dict[str, Any], civman: Civman, root: Path) -> None:
    for path in root.glob("library.db*"):
        path.unlink()

    refused = civman("gc", "--yes", "--json")

    assert (refused.code, refused.json["error"]["code"]) == (4, "index-empty")
    assert len(list((root / "blobs").rglob("*.safetensors"))) == 1


def test_a_partial_that_a_download_has_is_left_alone(library: Library) -> None:
    partial = library.context.store.partial("c" * 64)
    assert partial.acquire()
    partial.reserve(1000)
    partial.write(0, b"x")
    plan = library.maintenance.plan_gc(partials_after=timedelta(days=-1), trash_after=timedelta(0))
    assert [type(one) for one in plan.partials] == [StalePartial]

    freed = library.maintenance.gc(plan)

    assert freed == 0
    assert partial.path.exists()
    partial.close()


def test_who_changes_a_blob_waits_for_whoever_holds_it(held: dict[str, Any], library: Library) -> None:
    from civman.errors import StoreError

    sha256 = Sha256(held["blob"]["sha256"])

    with (
        blob_lock(library.context.store, sha256),
        pytest.raises(StoreError) as caught,
        blob_lock(library.context.store, sha256, wait_s=0.05),
    ):
        pass

    assert caught.value.code == "blob-busy"


def test_usage_counts_shared_bytes_once_and_says_where_they_lie(held: dict[str, Any], civman: Civman) -> None:
    usage = civman("du", "--json").json["du"]

    assert usage["shares"] == [{"label": "Checkpoint", "count": 1, "size_bytes": held["blob"]["size_bytes"]}]
    assert usage["store_bytes"] == held["blob"]["size_bytes"]
    for group, label in (("base-model", "SD 1.5"), ("architecture", "sd1"), ("used", "never")):
        assert [share["label"] for share in civman("du", "--by", group, "--json").json["du"]["shares"]] == [label]
    assert civman("du", "--by", "colour").code == 2
