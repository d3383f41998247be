"""Pickles from the download to the replay: read without running them, drawn from a safetensors copy.

The demo's embedding `tiny-no-blue.pt` has the vector of the word `blue`, so a picture that it helps to draw must be the
picture that the word itself draws.
"""

import json
from pathlib import Path

import pytest
from running import Civman

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import hostile_pickles
import torch
from safetensors.torch import load_file

from civman.demo.server import CivitaiServer
from civman.pictures import image_text

TINY, NO_BLUE = "91001", "91010"
QUICK = ("--steps", "3", "--cfg", "4", "--seed", "7", "--device", "cpu", "--threads", "1", "--quiet")
ASKED = ("render", TINY, "a large red circle", *QUICK)


def pixels(path: Path) -> bytes:
    return bytes(image_text.pixels(path).tobytes())


def copies(root: Path) -> list[Path]:
    return sorted(root.glob("blobs/sha256/*/*.safe.safetensors"))


def test_the_demos_pickle_is_downloaded_checked_drawn_and_replayed_elsewhere(
    online: CivitaiServer, civman: Civman, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    before = civman("inspect", NO_BLUE, "--json").json["inspect"]
    assert (before["content"], before["tensors_show"]["kind"], before["path"]) == ("pickle", "embedding", None)
    assert civman("download", TINY, "--quiet").code == 0
    assert civman("download", NO_BLUE, "--for", TINY, "--quiet").code == 0
    assert copies(root) == []
    assert "read without running" in civman("show", NO_BLUE).out
    checked = civman("check", TINY, "--embedding", NO_BLUE, "--json").json["check"]
    assert (checked["verdict"], checked["parts"][0]["depth"]) == ("fits", "modules")
    listed = civman("list", "--type", "embedding", "--json").json["list"]["assets"]
    assert [each["facts"]["kind"] for each in listed] == ["embedding"]

    named, said, plain = (tmp_path / f"{name}.png" for name in ("named", "said", "plain"))
    assert civman(*ASKED, "-n", "tiny-no-blue", "--output", named).code == 0
    assert civman(*ASKED, "-n", "blue", "--output", said).code == 0
    assert civman(*ASKED, "--output", plain).code == 0
    assert pixels(named) == pixels(said) != pixels(plain)

    recipe = json.loads(image_text.read(named.read_bytes()).record or "")["recipe"]
    (copy,) = copies(root)
    (embedding,) = recipe["embeddings"]
    assert copy.name.startswith(embedding["sha256"])
    assert any(each["sha256"] == embedding["sha256"] for each in recipe["files"])

    monkeypatch.setenv("CIVMAN_LIBRARY", str(tmp_path / "elsewhere"))
    replayed = civman("replay", named, "--fetch", "--device", "cpu", "--threads", "1", "--json")
    assert (replayed.code, replayed.json["replay"]["pictures"][0]["verdict"]) == (0, "identical")
    (again,) = copies(tmp_path / "elsewhere")
    assert again.read_bytes() == copy.read_bytes()


def test_a_hostile_pickle_is_never_stored(
    online: CivitaiServer, civman: Civman, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    online.catalogue.replace_bytes(159100, hostile_pickles.archive(hostile_pickles.RUNS["REDUCE"]))

    refused = civman("download", NO_BLUE, "--json")

    assert (refused.code, refused.json["error"]["code"]) == (4, "pickle")
    assert "`tiny-no-blue.pt`: `os.mkdir` in data.pkl is not allowed" in refused.json["error"]["message"]
    assert list(root.glob("blobs/sha256/*/*")) == list(root.glob("partial/*.part")) == []
    assert civman("download", NO_BLUE, "--allow-pickle", "--quiet").code == 0
    for command in (("inspect", NO_BLUE), ("render", NO_BLUE, "a"), ("check", NO_BLUE)):
        said = civman(*command, "--json").json["error"]
        assert (said["code"], "os.mkdir" in said["message"]) == ("pickle", True), command
    assert not (tmp_path / hostile_pickles.CANARY).exists()


@pytest.fixture(scope="module")
def twins(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a LoRA, a VAE and an embedding, each as safetensors and as a pickle of torch.save."""
    folder = tmp_path_factory.mktemp("twins")
    for name, suffix, is_zip in (
        ("tiny-sd1", ".ckpt", False), ("ink", ".pt", True), ("other-vae", ".pt", True), ("easydream", ".bin", True),
    ):  # fmt: skip
        tensors = load_file(stock / f"{name}.safetensors")
        tiny = {key: value.clone() for key, value in tensors.items()}
        value = {"state_dict": tiny, "global_step": 3} if name in ("tiny-sd1", "other-vae") else tiny
        torch.save(value, folder / f"{name}{suffix}", _use_new_zipfile_serialization=is_zip)
        (folder / f"{name}.safetensors").write_bytes((stock / f"{name}.safetensors").read_bytes())
    return folder


NAMES = {"tiny-sd1": ".ckpt", "ink": ".pt", "other-vae": ".pt", "easydream": ".bin"}


def test_a_pickle_is_identified_and_checked_as_its_safetensors_twin_is(twins: Path, civman: Civman) -> None:
    def shown(path: Path) -> object:
        found = civman("inspect", path, "--json").json["inspect"]
        assert found["content"] == ("safetensors" if path.suffix == ".safetensors" else "pickle")
        return found["tensors_show"]

    for name, suffix in NAMES.items():
        assert shown(twins / f"{name}{suffix}") == shown(twins / f"{name}.safetensors"), name

    def judged(of: str, suffixes: dict[str, str]) -> object:
        ref = {name: str(twins / f"{name}{suffix}") for name, suffix in suffixes.items()}
        done = civman(
            "check", ref[of], "--lora", ref["ink"], "--vae", ref["other-vae"], "-e", ref["easydream"], "--json"
        )
        found = done.json["check"]
        parts = [{**part, "name": Path(part["name"]).stem} for part in found["parts"]]
        return done.code, found["verdict"], parts

    assert judged("tiny-sd1", NAMES) == judged("tiny-sd1", dict.fromkeys(NAMES, ".safetensors"))


def test_every_role_draws_the_same_picture_from_a_pickle(
    twins: Path, civman: Civman, root: Path, tmp_path: Path
) -> None:
    def drawn(suffixes: dict[str, str]) -> bytes:
        ref = {name: str(twins / f"{name}{suffix}") for name, suffix in suffixes.items()}
        target = tmp_path / f"{suffixes['tiny-sd1'][1:]}.png"
        done = civman(
            "render", ref["tiny-sd1"], "a cat, easydream", "--lora", ref["ink"], "--vae", ref["other-vae"],
            "--embedding", ref["easydream"], *QUICK, "--size", "64x64", "--output", target,
        )  # fmt: skip
        assert done.code == 0, done.err
        return pixels(target)

    assert drawn(NAMES) == drawn(dict.fromkeys(NAMES, ".safetensors"))
    assert len(copies(root)) == 4


def test_a_copy_is_verified_dropped_and_made_again(twins: Path, civman: Civman, root: Path) -> None:
    civman("import", "--offline", twins / "easydream.bin", "--copy")
    asked = ("render", twins / "tiny-sd1.safetensors", "a cat, easydream", *QUICK, "--size", "64x64")
    assert civman(*asked).code == 0
    (copy,) = copies(root)
    first = copy.read_bytes()

    verified = civman("verify", "--full", "--json").json["verify"]
    assert ("easydream.bin (safetensors copy)", "ok") in {(each["name"], each["state"]) for each in verified}

    copy.chmod(0o644)
    copy.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    repaired = civman("verify", "--json").json["verify"]
    assert ["its bytes have changed" in each["problem"] for each in repaired if each["state"] == "repaired"] == [True]
    assert copies(root) == []

    assert civman(*asked).code == 0
    assert copy.read_bytes() == first
    copy.chmod(0o644)
    copy.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))  # a changed copy is never used
    assert civman(*asked).code == 0
    assert copy.read_bytes() == first

    assert civman("gc", "--yes").code == 0
    assert copies(root) == [copy]
    assert civman("gc", "--yes", "--safe-copies").code == 0
    assert copies(root) == []


def test_a_view_shows_the_original_or_its_safe_copy(twins: Path, civman: Civman, root: Path, tmp_path: Path) -> None:
    civman("import", "--offline", twins / "easydream.bin", "--copy")
    view = tmp_path / "view"

    def files() -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in view.rglob("easydream.*")
            if path.suffix in (".bin", ".safetensors")
        }

    original = (twins / "easydream.bin").read_bytes()
    assert civman("link", view, "--layout", "comfyui").code == 0
    assert files() == {"easydream.bin": original}

    assert civman("link", view, "--safe", "--dry-run").code == 0
    assert (copies(root), files()) == ([], {"easydream.bin": original})
    assert civman("link", view, "--safe").code == 0
    (copy,) = copies(root)
    assert files() == {"easydream.safetensors": copy.read_bytes()}
    usage = civman("du", "--json").json["du"]
    assert usage["safe_copy_bytes"] >= copy.stat().st_size
    assert usage["store_bytes"] == len(original)
    assert "safetensors copies of pickles" in civman("du").out
    assert civman("link", view).code == 0, "later runs remember it"
    assert files() == {"easydream.safetensors": copy.read_bytes()}

    assert civman("link", view, "--no-safe").code == 0
    assert files() == {"easydream.bin": original}
    assert copy.exists()
    assert civman("link", view, "--remove").code == 0
    assert files() == {}
