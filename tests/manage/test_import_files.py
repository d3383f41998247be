"""Taking in folders of other programs where they lie."""

import contextlib
import hashlib
import json
import os
import random
import sqlite3
import zlib
from pathlib import Path

import pytest
from running import Civman

from civman.demo.demo_models import Shelf
from civman.demo.demo_weights import safetensors_bytes
from civman.demo.server import CivitaiServer

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def bytes_of(server: CivitaiServer, file_id: int) -> bytes:
    return server.catalogue.file(file_id).content.data


def small_model(number: int) -> bytes:
    shapes = {f"lora_unet_block_{number}.lora_down.weight": (4, 8), f"lora_unet_block_{number}.lora_up.weight": (8, 4)}
    return safetensors_bytes(shapes, seed=str(number))


def state_of(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        stats = path.stat()
        found[str(path)] = (stats.st_ino, stats.st_size, stats.st_mtime_ns, stats.st_mode)
    return found


@pytest.fixture
def tree(tmp_path: Path, online: CivitaiServer) -> Path:
    """An A1111 folder: two files that CivitAI knows (one twice), one that nobody knows, three that are no models."""
    folder = tmp_path / "webui" / "models"
    (folder / "Stable-diffusion").mkdir(parents=True)
    (folder / "Lora" / "styles").mkdir(parents=True)
    (folder / "Stable-diffusion" / "harbour.safetensors").write_bytes(bytes_of(online, 98103))
    lora = next(file for file in online.catalogue.version(160211)[1].files if file.name.endswith("safetensors"))
    (folder / "Lora" / "ink.safetensors").write_bytes(lora.content.data)
    (folder / "Lora" / "styles" / "ink copy.safetensors").write_bytes(lora.content.data)
    (folder / "Lora" / "mine.safetensors").write_bytes(small_model(1))
    (folder / "Lora" / "broken.safetensors").write_bytes(small_model(2)[:-5])
    (folder / "Lora" / "page.safetensors").write_text("<html>log in</html>")
    (folder / "Lora" / "readme.txt").write_text("not a model")
    return folder


def test_files_are_taken_in_where_they_lie_and_nothing_moves(
    online: CivitaiServer, civman: Civman, tree: Path, root: Path
) -> None:
    before = state_of(tree)

    result = civman("import", tree, "--json")

    done = result.json["import"]
    assert (result.code, result.json["error"]["code"]) == (6, "partly-failed")
    assert (done["found"], done["taken"], done["on_civitai"], done["duplicates"]) == (6, 3, 2, 1)
    assert {Path(problem["path"]).name for problem in done["broken"]} == {"broken.safetensors", "page.safetensors"}
    assert state_of(tree) == before
    assert not list((root / "blobs").rglob("*.safetensors"))
    known = {asset["name"]: asset for asset in civman("list", "--json").json["list"]["assets"]}
    assert known["harbour.safetensors"]["model_name"] == "Harbour Light"
    assert known["harbour.safetensors"]["path"] == str(tree / "Stable-diffusion" / "harbour.safetensors")
    assert known["mine.safetensors"]["version_id"] is None


def test_one_question_identifies_them_all(online: CivitaiServer, civman: Civman, tree: Path) -> None:
    civman("import", tree)

    questions = [request.path for request in online.requests if request.method == "POST"]
    assert questions == ["/api/v1/model-versions/by-hash/ids"]


def test_a_second_import_reads_nothing(online: CivitaiServer, civman: Civman, tree: Path) -> None:
    civman("import", tree)

    again = civman("import", tree, "--json").json["import"]

    assert (again["taken"], again["read_bytes"], again["known_before"]) == (0, 0, 3)


def test_a_file_that_changed_is_read_again(online: CivitaiServer, civman: Civman, tree: Path) -> None:
    civman("import", tree)
    mine = tree / "Lora" / "mine.safetensors"
    mine.write_bytes(small_model(77))

    again = civman("import", tree, "--json").json["import"]

    assert (again["taken"], again["read_bytes"]) == (1, mine.stat().st_size)


def test_offline_everything_is_kept_and_a_later_import_online_is_not_needed_for_listing(
    online: CivitaiServer, civman: Civman, tree: Path
) -> None:
    result = civman("import", tree, "--offline", "--json").json["import"]

    assert (result["taken"], result["on_civitai"]) == (3, 0)
    assert not [request for request in online.requests if "by-hash" in request.path]
    assert civman("list", "--json").json["list"]["total"] == 3


def test_a_sidecar_says_what_civitai_no_longer_knows(
    online: CivitaiServer, civman: Civman, tree: Path, shelf: Shelf
) -> None:
    model = tree / "Lora" / "mine.safetensors"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    note = {
        "id": 777001, "modelId": 777000, "name": "v3", "baseModel": "SD 1.5", "trainedWords": ["gone style"],
        "model": {"name": "Gone Model", "type": "LORA"},
        "files": [{"id": 9, "name": "mine.safetensors", "sizeKB": 1.0, "type": "Model", "hashes": {"SHA256": digest}}],
    }  # fmt: skip
    model.with_suffix(".civitai.info").write_text(json.dumps(note))

    civman("import", tree)

    known = {asset["name"]: asset for asset in civman("list", "--json").json["list"]["assets"]}
    assert known["mine.safetensors"]["model_name"] == "Gone Model"
    assert known["mine.safetensors"]["trained_words"] == ["gone style"]


@pytest.mark.parametrize(("option", "stays"), [("--copy", True), ("--link", True), ("--move", False)])
def test_bytes_come_into_the_store_when_asked(
    online: CivitaiServer, civman: Civman, tree: Path, root: Path, option: str, stays: bool
) -> None:
    source = tree / "Stable-diffusion" / "harbour.safetensors"
    inode = source.stat().st_ino

    assert civman("import", tree / "Stable-diffusion", option).code == 0

    blob = next((root / "blobs").rglob("*.safetensors"))
    assert source.exists() is stays
    assert (blob.stat().st_ino == inode) is (option != "--copy")
    assert blob.stat().st_mode & 0o222 == 0
    assert civman("verify").code == 0


def test_removing_an_adopted_file_forgets_it_and_leaves_the_bytes(
    online: CivitaiServer, civman: Civman, tree: Path
) -> None:
    civman("import", tree)
    before = state_of(tree)

    assert civman("remove", "51207", "--yes").code == 0

    assert state_of(tree) == before
    assert civman("list", "--json").json["list"]["total"] == 2


def test_a_folder_that_is_not_there_is_named(civman: Civman, tmp_path: Path) -> None:
    result = civman("import", tmp_path / "nowhere", "--offline", "--json")

    assert result.code == 3
    assert "nowhere" in result.json["error"]["message"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_named_like_models_are_left_out_without_being_read(civman: Civman, tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe.safetensors", tmp_path / "models"
    folder.mkdir()
    os.mkfifo(pipe)
    os.mkfifo(folder / "inside.safetensors")
    (folder / "link.safetensors").symlink_to(pipe)
    (folder / "model.safetensors").write_bytes(small_model(1))

    named = civman("import", pipe, "--offline", "--json")
    found = civman("import", folder, "--offline", "--json").json["import"]

    assert (named.code, named.json["error"]["code"]) == (3, "no-files")
    assert (found["taken"], {group["reason"]: group["count"] for group in found["left_out"]}) == (1, {"other": 2})


def test_one_part_of_a_split_model_is_not_imported_as_a_model(civman: Civman, tmp_path: Path) -> None:
    for name in ("x-00001-of-00002.safetensors", "y-00002-of-00003.sft", "z-00001-of-00001.safetensors"):
        (tmp_path / name).write_bytes(small_model(len(name)))

    part = civman("import", tmp_path / "x-00001-of-00002.safetensors", "--offline", "--json")
    other = civman("import", tmp_path / "y-00002-of-00003.sft", "--offline", "--json")
    whole = civman("import", tmp_path / "z-00001-of-00001.safetensors", "--offline", "--json")

    assert [each.code for each in (part, other, whole)] == [3, 3, 0]
    assert [each.json["import"]["left_out"][0]["reason"] for each in (part, other)] == ["shards", "shards"]
    assert whole.json["import"]["taken"] == 1


@pytest.mark.slow
def test_hundreds_of_files_with_duplicates_and_broken_ones(
    online: CivitaiServer, civman: Civman, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    rng = random.Random(5)
    for number in range(240):
        place = folder / f"group {number % 40}"
        place.mkdir(parents=True, exist_ok=True)
        kind = rng.random()
        if kind < 0.80:
            data = small_model(number)
        elif kind < 0.90:
            data = small_model(number % 6)
        elif kind < 0.95:
            data = small_model(number)[: rng.randrange(4, 60)]
        else:
            data = rng.randbytes(200)
        (place / f"file {number}.safetensors").write_bytes(data)
    before = state_of(folder)

    first = civman("import", folder, "--json").json["import"]
    second = civman("import", folder, "--json").json["import"]

    assert first["found"] == 240
    assert first["taken"] + first["duplicates"] + len(first["broken"]) >= 240 - first["duplicates"]
    assert 10 < len(first["broken"]) < 50
    assert second["read_bytes"] == 0
    assert second["taken"] == 0
    assert state_of(folder) == before
    assert len([request for request in online.requests if request.path.endswith("by-hash/ids")]) == 2


def test_what_lies_beside_a_moved_model_moves_with_it(
    online: CivitaiServer, civman: Civman, tmp_path: Path, root: Path
) -> None:
    folder = tmp_path / "Lora"
    folder.mkdir()
    (folder / "mine.safetensors").write_bytes(small_model(9))
    (folder / "mine.json").write_text(json.dumps({"activation text": "my word", "notes": "my note"}))
    (folder / "mine.preview.png").write_bytes(PNG)
    (folder / "other.txt").write_text("of nothing")

    done = civman("import", folder, "--move", "--json")

    assert (done.code, done.json["import"]["companions"], done.json["import"]["previews"]) == (0, 2, 1)
    assert [path.name for path in folder.iterdir()] == ["other.txt"]
    assert {path.read_bytes() for path in root.rglob("*.preview.png")} == {PNG}
    own = civman("list", "my", "--json").json["list"]["assets"][0]["own"]
    assert (own["note"], own["trigger_words"]) == ("my note", ["my word"])
    assert civman("verify", "--full").code == 0


def test_an_edited_header_is_recognised_by_its_tensors_and_asked_about_again(
    online: CivitaiServer, civman: Civman, tmp_path: Path
) -> None:
    lora = next(file for file in online.catalogue.version(160211)[1].files if file.name.endswith("safetensors"))
    data = lora.content.data
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {"modelspec.title": "edited"}
    text = json.dumps(header).encode()
    edited = tmp_path / "edited.safetensors"
    edited.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    offline = civman("import", edited, "--offline", "--json").json["import"]
    later = civman("import", edited, "--json").json["import"]

    assert (offline["taken"], offline["same_tensors"]) == (1, 0)
    assert (later["taken"], later["same_tensors"], later["identified_later"]) == (0, 1, 1)
    asset = civman("list", "--json").json["list"]["assets"][0]
    assert (asset["version_id"], asset["file_id"], asset["name"]) == (160211, None, "edited.safetensors")


def test_files_are_found_offline_by_the_digests_that_other_programs_use(
    online: CivitaiServer, civman: Civman, tmp_path: Path, root: Path
) -> None:
    data = safetensors_bytes({"lora_unet_block.lora_down.weight": (700, 1000)}, seed="digests")
    body = data[8 + int.from_bytes(data[:8], "little") :]
    autov1 = hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    autov3, crc32 = hashlib.sha256(body).hexdigest()[:12], f"{zlib.crc32(data):08x}"
    (tmp_path / "mine.safetensors").write_bytes(data)
    civman("import", tmp_path / "mine.safetensors", "--offline")
    forget = "UPDATE blob SET autov1 = NULL, autov3 = NULL, crc32 = NULL"

    for digest in (f"autov1:{autov1}", autov3, f"CRC32: {crc32}"):
        with contextlib.closing(sqlite3.connect(root / "library.db")) as database, database:
            database.execute(forget)
        assert "mine.safetensors" in civman("show", digest, "--offline").out
    with contextlib.closing(sqlite3.connect(root / "library.db")) as database, database:
        database.execute(forget)
    civman("verify", "--full")
    with contextlib.closing(sqlite3.connect(root / "library.db")) as database:
        assert database.execute("SELECT autov1, autov3, crc32 FROM blob").fetchall() == [(autov1, autov3, crc32)]
