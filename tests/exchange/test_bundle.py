"""Bundles: exported here, imported on a machine without a network; hostile ones are refused."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Civman
from stock import PNG, put

from civman.demo.server import CivitaiServer
from civman.domain.file_names import safe_name
from civman.errors import CivmanError
from civman.exchange.bundle_archive import MANIFEST, header, is_bundle
from civman.exchange.bundle_export import _digest
from civman.library import Library

LORA = (8).to_bytes(8, "little") + b"{}      "
"""The smallest file with a sound safetensors header."""


def blobs(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "blobs").rglob("*.safetensors")}


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Path]:
    def move() -> Path:
        monkeypatch.setenv("CIVMAN_OFFLINE", "1")
        monkeypatch.setenv("CIVMAN_CIVITAI_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("CIVMAN_LIBRARY", str(tmp_path / "there"))
        return tmp_path / "there"

    return move


@pytest.fixture
def bundle(online: CivitaiServer, civman: Civman, tmp_path: Path) -> Path:
    """A LoRA with its preview and an embedding."""
    civman("download", "@160211", "71820", "--preview", "any")
    assert civman("export", tmp_path / "two.civman", "--all").code == 0
    return tmp_path / "two.civman"


def test_a_bundle_brings_everything_to_a_machine_without_a_network(
    bundle: Path, civman: Civman, root: Path, without_network: Callable[[], Path]
) -> None:
    here = blobs(root)
    listed = civman("list", "--json").json["list"]["assets"]
    shown = civman("show", "@160211", "--json").json["show"]["version"]
    there = without_network()

    done = civman("import", bundle, "--json")

    assert done.code == 0
    assert [each["was_present"] for each in done.json["import-bundle"]] == [False, False]
    assert blobs(there) == here
    assert civman("verify").code == 0
    again = civman("list", "--json").json["list"]["assets"]
    same = ("name", "model_name", "version_name", "trained_words", "file_id", "type", "base_model", "facts")
    assert [[asset[key] for key in same] for asset in again] == [[asset[key] for key in same] for asset in listed]
    offline = civman("show", "@160211", "--json").json["show"]
    assert offline["version"]["files"] == shown["files"]
    assert list((there / "blobs").rglob("*.preview.*"))
    assert len(list((there / "blobs").rglob("*.civman.json"))) == 2

    twice = civman("import", bundle, "--json").json["import-bundle"]
    assert [each["was_present"] for each in twice] == [True, True]
    assert civman("list", "--json").json["list"]["total"] == 2


def test_the_same_content_gives_the_same_bytes_whatever_the_clock(bundle: Path, civman: Civman, tmp_path: Path) -> None:
    civman("verify")
    again = tmp_path / "again.civman"

    assert civman("export", again, "71820", "@160211").code == 0

    assert again.read_bytes() == bundle.read_bytes()


def test_any_tar_can_list_it_and_nothing_private_goes_along(bundle: Path, root: Path) -> None:
    with tarfile.open(bundle) as tar:
        names = tar.getnames()
        texts = [tar.extractfile(member).read() for member in tar if member.name.endswith(".json")]  # type: ignore[union-attr]

    assert names[0] == MANIFEST
    assert sum(name.startswith("blobs/") for name in names) == 2
    assert not any(str(root).encode() in text for text in texts)


def test_a_project_travels_as_lock_and_bundle(
    online: CivitaiServer,
    civman: Civman,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_network: Callable[[], Path],
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    civman("add", "civitai:139562", "70115")
    civman("download", "71820")
    assert civman("export", "project.civman", "--lock", "--json").json["export"]["files"] == 2
    there = without_network()

    missing = civman("sync", "--check")
    assert missing.code == 3
    assert civman("sync").code == 3
    assert civman("import", "project.civman").code == 0
    assert civman("sync").code == 0
    assert len(blobs(there)) == 2


def test_notes_stay_at_home_unless_they_are_asked_for(bundle: Path, civman: Civman, root: Path, tmp_path: Path) -> None:
    with Library.open(root) as library:
        library.context.index.set_alias(library.files.find("@160211")[0], "my-secret-name")

    civman("export", tmp_path / "plain.civman", "--all")
    civman("export", tmp_path / "noted.civman", "--all", "--with-notes")

    assert b"my-secret-name" not in (tmp_path / "plain.civman").read_bytes()
    assert b"my-secret-name" in (tmp_path / "noted.civman").read_bytes()


def test_a_broken_blob_is_not_exported(bundle: Path, civman: Civman, root: Path, tmp_path: Path) -> None:
    broken = next((root / "blobs").rglob("*.safetensors"))
    broken.chmod(0o644)
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")

    refused = civman("export", tmp_path / "broken.civman", "--all")

    assert refused.code == 6
    assert not (tmp_path / "broken.civman").exists()
    assert not list(tmp_path.glob("*.new"))


def test_export_wants_to_know_what_and_overwrites_nothing(bundle: Path, civman: Civman, tmp_path: Path) -> None:
    assert civman("export", tmp_path / "x.civman").code == 2
    assert civman("export", bundle, "--all").code == 2
    assert civman("export", bundle, "--all", "--force").code == 0


# -- hostile bundles ---------------------------------------------------------------------------------------------------


def sidecar(name: str = "a.safetensors", **more: object) -> bytes:
    entry = {"name": name, "origin": "import", "added_at": "2026-01-01T00:00:00+00:00"}
    return json.dumps({"format": 2, "declared_by": "civitai", "assets": [entry | more]}).encode()


def handmade(*members: tuple[str, bytes], data: bytes = LORA, beside: bytes | None = None, **claims: object) -> bytes:
    """A bundle of one file, with `claims` in its manifest; `members` instead of the proper ones."""
    beside = beside if beside is not None else sidecar()
    blob = {
        "sha256": _digest(data), "size_bytes": len(data), "suffix": ".safetensors", "preview": None,
        "sidecar": {"sha256": _digest(beside), "size_bytes": len(beside), "suffix": ".json"},
    } | claims  # fmt: skip
    manifest = json.dumps({"format": 1, "blobs": blob.pop("blobs", [blob])}).encode()
    proper = ((f"sidecars/{blob['sha256']}.json", beside), (f"blobs/{blob['sha256']}{blob['suffix']}", data))
    parts = [(MANIFEST, manifest), *(members or proper)]
    whole = b"".join(header(name, len(part)) + part + bytes(-len(part) % 512) for name, part in parts)
    return whole + bytes(1024)


def imported(tmp_path: Path, root: Path, data: bytes) -> CivmanError | None:
    path = tmp_path / "hand.civman"
    path.write_bytes(data)
    with Library.open(root, offline=True) as library:
        try:
            library.bundles.import_bundle(path)
        except CivmanError as error:
            return error
    return None


def test_a_bundle_made_by_hand_as_civman_would_is_taken(tmp_path: Path, root: Path) -> None:
    assert imported(tmp_path, root, handmade()) is None
    assert list(blobs(root).values()) == [LORA]


def test_its_form_is_what_python_writes_as_ustar() -> None:
    info = tarfile.TarInfo("blobs/x")
    info.size, info.mode = 5, 0o444
    assert header("blobs/x", 5) == info.tobuf(tarfile.USTAR_FORMAT)
    large = tarfile.TarInfo.frombuf(header("blobs/x", 12 << 30), "utf-8", "strict")
    assert large.size == 12 << 30


TWO = [
    {
        "sha256": _digest(LORA), "size_bytes": len(LORA), "suffix": ".safetensors", "preview": None,
        "sidecar": {"sha256": _digest(sidecar()), "size_bytes": len(sidecar()), "suffix": ".json"},
    }
] * 2  # fmt: skip


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(handmade(("../../escaped", LORA)), "bad-bundle", id="traversal"),
        pytest.param(handmade(("/tmp/escaped", LORA)), "bad-bundle", id="absolute"),
        pytest.param(handmade(suffix="/../../x"), "bad-bundle", id="traversal in a suffix"),
        pytest.param(handmade(sha256="../" * 21 + "x"), "bad-bundle", id="traversal in a digest"),
        pytest.param(handmade(sha256="0" * 64), "hash-mismatch", id="wrong digest"),
        pytest.param(handmade(blobs=TWO), "bad-bundle", id="duplicate"),
        pytest.param(handmade()[:-1024], "bad-bundle", id="no end"),
        pytest.param(handmade()[:3000], "bad-bundle", id="truncated"),
        pytest.param(handmade()[:700], "bad-bundle", id="truncated manifest"),
        pytest.param(handmade() + b"\0" * 512, "bad-bundle", id="something follows"),
        pytest.param(handmade(size_bytes=len(LORA) + 1), "bad-bundle", id="longer than it is"),
        pytest.param(handmade(size_bytes=1 << 59), "bad-bundle", id="oversize"),
        pytest.param(handmade(size_bytes=-1), "bad-bundle", id="negative"),
        pytest.param(handmade(size_bytes=True), "bad-bundle", id="no number"),
        pytest.param(
            handmade(sidecar={"sha256": "0" * 64, "size_bytes": 1 << 30, "suffix": ".json"}), "bad-bundle",
            id="oversize sidecar",
        ),
        pytest.param(handmade(beside=b"[" * 100_000), "bad-bundle", id="nested sidecar"),
        pytest.param(handmade(beside=b'{"assets": []}'), "bad-bundle", id="empty sidecar"),
        pytest.param(handmade(beside=sidecar(added_at="soon")), "bad-bundle", id="no time"),
        pytest.param(handmade(beside=sidecar(model=[1], version={"id": 1})), "bad-bundle", id="no model"),
        pytest.param(handmade(beside=sidecar(model={"id": "x"}, version={"id": 1})), "bad-bundle", id="no model id"),
        pytest.param(handmade(data=b"<html>no model</html>"), "invalid-model-file", id="a web page"),
        pytest.param(handmade(data=b"\x80\x04pickle", suffix=".ckpt"), "pickle", id="a pickle"),
        pytest.param(header("README", 0) + bytes(1024), "bad-bundle", id="another tar"),
        pytest.param(handmade().replace(b"ustar\x0000", b"ustar  \0"), "bad-bundle", id="another form"),
    ],
)  # fmt: skip
def test_a_hostile_bundle_is_refused_and_leaves_nothing(tmp_path: Path, root: Path, data: bytes, code: str) -> None:
    error = imported(tmp_path, root, data)

    assert error is not None
    assert error.code == code
    assert blobs(root) == {}
    assert not list((root / "partial").glob("*.part"))
    assert not list(tmp_path.glob("**/escaped"))
    with Library.open(root, offline=True) as library:
        assert library.files.count() == 0


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path, root: Path) -> None:
    whole = bytearray(handmade())
    at = whole.index(b"blobs/" + _digest(LORA).encode())
    info = tarfile.TarInfo(f"blobs/{_digest(LORA)}.safetensors")
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, "/etc/passwd", 0o444
    whole[at : at + 512] = info.tobuf(tarfile.USTAR_FORMAT)

    error = imported(tmp_path, root, bytes(whole))

    assert error is not None
    assert error.code == "bad-bundle"
    assert blobs(root) == {}


def test_names_from_a_stranger_are_made_safe_and_the_future_is_not_believed(tmp_path: Path, root: Path) -> None:
    beside = sidecar("../../../etc/cron.d/evil\u202e.safetensors", added_at="9999-01-01T00:00:00+00:00")

    assert imported(tmp_path, root, handmade(beside=beside)) is None

    with Library.open(root, offline=True) as library:
        (asset,) = library.list()
    assert asset.name == safe_name(asset.name)
    assert "/" not in asset.name
    assert asset.added_at.year < 9999


@pytest.mark.long
@settings(max_examples=60, deadline=None, derandomize=True)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_no_changed_byte_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    whole = bytearray(handmade())
    at %= len(whole)
    changed = whole[at] != value
    whole[at] = value
    folder = tmp_path_factory.mktemp("changed")

    error = imported(folder, folder / "library", bytes(whole))

    assert (error is None) == (not changed)


def test_memory_stays_small_for_large_files(tmp_path: Path, root: Path) -> None:
    import tracemalloc

    head = b'{"x":{"dtype":"U8","shape":[50331648],"data_offsets":[0,50331648]}}'
    data = len(head).to_bytes(8, "little") + head + bytes(48 << 20)
    put(root, 1, data=LORA, preview=PNG)
    path = tmp_path / "large.civman"
    path.write_bytes(handmade(data=data))
    with Library.open(root, offline=True) as library:
        library.files.count()
        tracemalloc.start()
        library.bundles.import_bundle(path)
        library.bundles.export(tmp_path / "out.civman", [f"sha256:{_digest(data)}"])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 32 << 20


def test_a_bundle_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert not is_bundle(path)
    path.write_bytes(b"no")
    assert not is_bundle(path)
    path.write_bytes(handmade())
    assert is_bundle(path)
