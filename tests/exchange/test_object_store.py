"""Push to an S3-compatible server on loopback (moto), pull on another machine, and what happens when things go wrong.

What lies in the bucket is read and damaged with boto3, which civman does not use.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Civman

from civman.demo.server import CivitaiServer
from civman.domain.digests import Sha256
from civman.domain.events import Received, Started
from civman.errors import HashMismatch, NotAllowed, UsageError
from civman.exchange.object_store import ObjectStore, StoreAddress
from civman.library import Library

pytest.importorskip("moto", reason="needs the extra dev: moto")
pytest.importorskip("obstore", reason="needs the extra s3")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The library of another machine."""
    return tmp_path / "there"


def keys(s3: Any) -> dict[str, int]:
    return {each["Key"]: each["Size"] for each in s3.list_objects_v2(Bucket="bucket").get("Contents", [])}


def key(sha256: str) -> str:
    return f"models/blobs/sha256/{sha256[:2]}/{sha256}"


def weights(path: Path, count: int) -> Path:
    """A file with one tensor of zeros, which takes no space on the disk."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + count)
    return path


def digests(root: Path) -> set[str]:
    with Library.open(root, offline=True) as library:
        return {str(asset.blob.sha256) for asset in library.list()}


def test_another_machine_gets_the_same_files_and_names_without_civitai(
    held: list[str], civman: Civman, root: Path, there: Path, url: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = civman("push", url, "--all", "--json")

    assert pushed.code == 0, pushed.err
    assert [each["was_present"] for each in pushed.json["push"]] == [False, False]
    for sha256 in held:
        body = s3.get_object(Bucket="bucket", Key=key(sha256))["Body"].read()
        assert hashlib.sha256(body).hexdigest() == sha256

    monkeypatch.setenv("CIVMAN_CIVITAI_URL", "http://127.0.0.1:9")
    pulled = civman("pull", url, "--all", "--library", there, "--json")
    assert pulled.code == 0, pulled.err
    assert digests(there) == set(held)
    here, other = (civman("list", "--json", "--library", each).json["list"]["assets"] for each in (root, there))
    for mine, theirs in zip(here, other, strict=True):
        assert {name: mine[name] for name in ("name", "ref", "type", "version_id")} == {
            name: theirs[name] for name in ("name", "ref", "type", "version_id")
        }
        assert (theirs["alias"], theirs["own"]["note"]) == (None, ""), "notes travel only on request"
    assert list(there.rglob("*.preview.*"))
    assert civman("verify", "--full", "--library", there).code == 0


def test_nothing_is_transferred_twice(held: list[str], civman: Civman, there: Path, url: str, s3: Any) -> None:
    civman("push", url, "--all")
    first = {each["Key"]: each["LastModified"] for each in s3.list_objects_v2(Bucket="bucket")["Contents"]}
    civman("pull", url, "--all", "--library", there)

    again = civman("push", url, "--all", "--json").json["push"]
    pulled = civman("pull", url, "--all", "--library", there, "--json").json["pull"]

    assert all(each["was_present"] for each in [*again, *pulled])
    assert {each["Key"]: each["LastModified"] for each in s3.list_objects_v2(Bucket="bucket")["Contents"]} == first


@pytest.mark.parametrize("ref", ["@160211", "sha256:{0}", "{0:.10}", "{name}"])
def test_a_ref_selects_in_the_store_as_it_does_in_the_library(
    ref: str, held: list[str], civman: Civman, there: Path, url: str
) -> None:
    civman("push", url, "--all")
    (asset,) = civman("list", "--json", "--type", "LORA").json["list"]["assets"]
    wanted = asset["blob"]["sha256"]

    done = civman("pull", url, ref.format(wanted, name=asset["name"]), "--library", there, "--json")

    assert done.code == 0, done.err
    assert digests(there) == {wanted}


def test_a_corrupt_object_is_refused_and_found_by_verify(
    held: list[str], civman: Civman, there: Path, url: str, s3: Any
) -> None:
    civman("push", url, "--all")
    bad, good = held
    size = keys(s3)[key(bad)]
    s3.put_object(Bucket="bucket", Key=key(bad), Body=b"\0" * size)

    pulled = civman("pull", url, "--all", "--library", there, "--json")
    assert pulled.code == 6
    assert digests(there) == {good}
    assert not list((there / "partial").glob("*")) or bad not in str(list((there / "partial").glob("*")))
    verified = civman("verify", url, "--json")
    assert verified.code == 6
    assert {each["sha256"]: each["error"] is None for each in verified.json["verify-store"]} == {bad: False, good: True}


@pytest.mark.parametrize("sidecar", [b"", b"{}", b"[1]", b'{"assets": [{"name": 7}]}', b"\xff\xfe"])
def test_a_broken_sidecar_hides_its_file_and_no_other(
    sidecar: bytes, held: list[str], civman: Civman, url: str, s3: Any
) -> None:
    civman("push", url, "--all")
    s3.put_object(Bucket="bucket", Key=key(held[0]) + ".civman.json", Body=sidecar)

    listed = civman("pull", url, "--list", "--json")

    assert [each["sha256"] for each in listed.json["offers"]] == [held[1]]


def test_a_corrupt_file_of_the_library_leaves_nothing_in_the_store(
    held: list[str], civman: Civman, root: Path, url: str, s3: Any
) -> None:
    path = next((root / "blobs").rglob(f"{held[0]}.*[sn]"))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    done = civman("push", url, "--all", "--json")

    assert done.code == 6
    assert key(held[0]) not in keys(s3)
    assert key(held[1]) in keys(s3)


@pytest.mark.long
def test_a_push_that_is_killed_leaves_no_object_and_can_be_repeated(tmp_path: Path, url: str, s3: Any) -> None:
    large, root = weights(tmp_path / "large.safetensors", 300 << 20), tmp_path / "library"
    start = [sys.executable, "-m", "civman"]
    subprocess.run([*start, "import", str(large), "--offline", "--quiet"], check=True, capture_output=True)
    (sha256,) = digests(root)

    running = subprocess.Popen([*start, "push", url, "--all"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not s3.list_multipart_uploads(Bucket="bucket").get("Uploads") and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()

    assert key(sha256) not in keys(s3)
    again = subprocess.run([*start, "push", url, "--all"], check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert keys(s3)[key(sha256)] == large.stat().st_size


def test_a_pull_that_was_interrupted_continues_where_it_ended(
    held: list[str], civman: Civman, there: Path, url: str, tmp_path: Path
) -> None:
    large = weights(tmp_path / "large.safetensors", 40 << 20)
    civman("import", large, "--offline")
    civman("push", url, "--all")
    started: list[int] = []

    def stop(event: object) -> None:
        if isinstance(event, Received):
            received.append(event.count_bytes)
            if sum(received) > 24 << 20:
                raise KeyboardInterrupt

    received: list[int] = []
    with Library.open(there) as library:
        (offer,) = library.object_store.offers(["large.safetensors"], url=url)
        with pytest.raises(KeyboardInterrupt):
            list(library.object_store.pull([offer], url=url, on_event=stop))
    assert digests(there) == set()
    with Library.open(there) as library:
        (moved,) = library.object_store.pull(
            [offer],
            url=url,
            on_event=lambda event: started.extend([event.held_bytes] if isinstance(event, Started) else []),
        )
    assert moved.error is None
    assert started[0] > 0
    assert digests(there) == {offer.sha256}


def test_two_machines_push_and_pull_at_once(held: list[str], tmp_path: Path, url: str, s3: Any, root: Path) -> None:
    start = [sys.executable, "-m", "civman"]

    def at_once(verb: str, roots: list[Path]) -> None:
        running = [
            subprocess.Popen([*start, verb, url, "--all", "--library", str(each)], stderr=subprocess.PIPE, text=True)
            for each in roots
        ]
        for process in running:
            assert (process.communicate()[1], process.returncode)[1] == 0

    at_once("push", [root, root])
    assert {each for each in keys(s3) if "." not in each.rpartition("/")[2]} == {key(each) for each in held}
    both = [tmp_path / "one", tmp_path / "two"]
    at_once("pull", [*both, both[0]])
    for each in both:
        assert digests(each) == set(held)


def test_a_project_is_synced_from_the_store_in_the_settings_without_civitai(
    online: CivitaiServer, civman: Civman, there: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    assert civman("add", "@160211").code == 0
    assert civman("push", url, "--lock").code == 0
    monkeypatch.setenv("CIVMAN_CIVITAI_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CIVMAN_OBJECT_STORE", url)

    done = civman("sync", "--library", there)

    assert done.code == 0, done.err
    assert len(digests(there)) == 1


def test_verify_repairs_from_the_store_in_the_settings(
    held: list[str], civman: Civman, root: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    civman("push", url, "--all")
    monkeypatch.setenv("CIVMAN_CIVITAI_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CIVMAN_OBJECT_STORE", url)
    path = next(each for each in (root / "blobs").rglob(f"{held[0]}.*") if each.suffix == ".safetensors")
    path.chmod(0o644)
    path.write_bytes(b"\0" + path.read_bytes()[1:])

    done = civman("verify", "--full", "--repair")

    assert done.code == 0, done.err
    assert hashlib.sha256(path.read_bytes()).hexdigest() == held[0]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket", StoreAddress("bucket")),
        ("s3://bucket/", StoreAddress("bucket")),
        ("s3://bucket/a/b/", StoreAddress("bucket", "a/b/")),
        ("s3://b?region=eu-west-1", StoreAddress("b", "", None, "eu-west-1")),
        ("s3://b/m?endpoint=http://10.0.0.5:9000", StoreAddress("b", "m/", "http://10.0.0.5:9000")),
    ],
)
def test_a_store_is_named_by_a_url(text: str, address: StoreAddress) -> None:
    assert StoreAddress.parse(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "bucket", "https://bucket", "s3://", "s3:///models", "s3://key:secret@bucket", "s3://b?x=1", "s3://b?endpoint=b:9",
     "s3://b#x", "s3://b?endpoint"],
)  # fmt: skip
def test_what_is_no_store_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        StoreAddress.parse(text)


def test_access_keys_come_from_the_environment_or_the_credentials_file(tmp_path: Path, endpoint: str, s3: Any) -> None:
    url = f"s3://bucket?endpoint={endpoint}"
    with pytest.raises(NotAllowed) as failed:
        ObjectStore.open(url, environ={}, home=tmp_path)
    assert failed.value.code == "no-key"
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[work]\naws_access_key_id = a\naws_secret_access_key = b\n")
    with pytest.raises(NotAllowed):
        ObjectStore.open(url, environ={}, home=tmp_path)
    assert ObjectStore.open(url, environ={"AWS_PROFILE": "work"}, home=tmp_path).blobs() == {}


@pytest.mark.parametrize(
    ("where", "code", "words"),
    [
        ("s3://other?endpoint={0}", 3, "there is no bucket `other`"),
        ("s3://bucket?endpoint=http://127.0.0.1:9", 5, "cannot be used"),
        ("bucket", 3, ""),
    ],
)
def test_a_store_that_cannot_be_used_says_why(
    where: str, code: int, words: str, held: list[str], civman: Civman, endpoint: str, s3: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CIVMAN_OBJECT_STORE", f"s3://bucket?endpoint={endpoint}")
    done = civman("push", where.format(endpoint), *(["--all"] if where != "bucket" else []))
    assert done.code == code, done.err
    assert words in done.err
    assert "X-Amz" not in done.err


def test_without_a_store_or_a_choice_the_remedy_is_said(held: list[str], civman: Civman, url: str) -> None:
    assert "civman config object_store" in civman("push", "--all").err
    assert "--lock or --all" in civman("push", url).err
    assert civman("push", url, "@160211", "--all").code == 2
    assert civman("pull", url, "--all", "--offline").code == 5


def test_uploads_are_hashed_while_they_are_read(url: str) -> None:
    remote = ObjectStore.open(url)
    sha256 = Sha256("0" * 64)

    def pieces() -> Iterator[bytes]:
        yield b"a" * (6 << 20)
        raise HashMismatch(name="x", expected=sha256, actual=sha256)

    with pytest.raises(HashMismatch):
        remote.upload(sha256, pieces())
    assert remote.blobs() == {}
