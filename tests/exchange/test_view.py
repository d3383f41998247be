"""Views: another program's folders over the library's blobs."""

import json
import os
from pathlib import Path

import pytest
from running import Civman
from stock import PNG, fill, put, stock

from civman.domain.catalog import ModelType
from civman.library import Library


def weights(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".safetensors", ".ckpt") and not path.is_dir()
    }


def disk_blocks(*folders: Path) -> int:
    """Blocks that the files below take, each inode once."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            stat = path.lstat()
            if path.is_file() and not path.is_symlink():
                found[stat.st_dev, stat.st_ino] = stat.st_blocks
    return sum(found.values())


def blobs(root: Path) -> dict[str, tuple[int, int, bytes]]:
    found = sorted(path for path in (root / "blobs").rglob("*") if path.is_file())
    return {path.name: (path.stat().st_ino, path.stat().st_mode, path.read_bytes()) for path in found}


def names_by_inode(folder: Path) -> dict[str, int]:
    return {name: path.stat().st_ino for name, path in weights(folder).items()}


def test_two_programs_share_two_hundred_models_in_no_extra_byte(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 200)
    comfy, forge = tmp_path / "ComfyUI" / "models", tmp_path / "forge"
    before, blobs_before = disk_blocks(root / "blobs"), blobs(root)

    first = civman("link", comfy, "--layout", "comfyui", "--method", "hardlink", "--no-sidecars", "--json")
    second = civman("link", forge, "--layout", "forge", "--method", "hardlink", "--no-sidecars", "--json")

    assert (first.code, second.code) == (0, 0)
    assert first.json["link"]["methods"] == {"hardlink": 200}
    assert len(weights(comfy)) == len(weights(forge)) == 200
    manifests = sum((folder / ".civman-view.json").stat().st_blocks for folder in (comfy, forge))
    assert disk_blocks(root / "blobs", comfy, forge) - manifests == before
    assert blobs(root) == blobs_before
    assert {path.parts[0] for path in map(Path, weights(comfy))} == {
        "checkpoints", "diffusion_models", "loras", "vae", "embeddings", "controlnet", "upscale_models",
        "text_encoders",
    }  # fmt: skip
    assert (forge / "embeddings" / "model_002.safetensors").is_file()


def test_names_survive_reruns_additions_and_removals(civman: Civman, root: Path, tmp_path: Path) -> None:
    records = stock(root, 40)
    view = tmp_path / "view"
    civman("link", view, "--layout", "a1111")
    names = names_by_inode(view)

    again = civman("link", view, "--json").json["link"]
    assert {step["act"] for step in again["steps"]} == {"keep"}
    assert names_by_inode(view) == names

    older = put(root, -1, name="model_000.safetensors", data=b"an older file of the same name" * 9)
    fill(root, [older])
    civman("link", view)
    assert names.items() <= names_by_inode(view).items()

    with Library.open(root) as library:
        library.remove(library.trash.plan_removal([records[8].blob.sha256]))
    removed = civman("link", view, "--json").json["link"]
    gone = [step["path"] for step in removed["steps"] if step["act"] == "remove" and step["kind"] == "model"]
    assert gone == ["models/Lora/model_008.safetensors"]
    names.pop(gone[0])
    assert names.items() <= names_by_inode(view).items()


def test_files_of_one_name_get_readable_suffixes_in_order_of_age(civman: Civman, root: Path, tmp_path: Path) -> None:
    fill(
        root,
        [
            put(root, 1, name="flux_dev.safetensors", type_=ModelType.UNET, precision="fp16"),
            put(root, 2, name="flux_dev.safetensors", type_=ModelType.UNET, precision="fp8"),
            put(
                root, 3, name="Flux_Dev.safetensors", type_=ModelType.UNET, precision="fp16", version_name="v 2 / beta"
            ),
            put(root, 4, name="flux_dev.safetensors", type_=ModelType.UNET, precision="fp8", version_name="v1"),
        ],
    )
    view, other = tmp_path / "view", tmp_path / "other"

    assert civman("link", view, "--layout", "comfyui").code == 0
    assert civman("link", other, "--layout", "comfyui").code == 0

    folder = view / "diffusion_models"
    assert (folder / "flux_dev.safetensors").read_bytes().startswith(b"model 1")
    assert (folder / "flux_dev_fp8.safetensors").read_bytes().startswith(b"model 2")
    assert (folder / "Flux_Dev_v-2-beta.safetensors").read_bytes().startswith(b"model 3")
    assert (folder / "flux_dev_Model-4.safetensors").read_bytes().startswith(b"model 4")
    assert names_by_inode(view) == names_by_inode(other)


def test_taking_a_view_away_leaves_blobs_and_strangers(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 24)
    view = tmp_path / "view"
    (view / "loras").mkdir(parents=True)
    (view / "loras" / "mine.safetensors").write_bytes(b"mine")
    civman("link", view, "--layout", "comfyui")
    before = blobs(root)

    gone = civman("link", view, "--remove")

    assert gone.code == 0
    assert blobs(root) == before
    assert sorted(str(path.relative_to(view)) for path in view.rglob("*")) == ["loras", "loras/mine.safetensors"]


def test_what_a_person_put_or_replaced_is_never_touched_and_is_told(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 24)
    view = tmp_path / "view"
    loras = view / "loras"
    loras.mkdir(parents=True)
    (loras / "model_000.safetensors").write_bytes(b"was there first")
    civman("link", view, "--layout", "comfyui")
    assert (loras / "model_000.safetensors").read_bytes() == b"was there first"
    (named,) = (name for name in weights(view) if name.startswith("loras/model_000_"))

    replaced = loras / "model_008.safetensors"
    replaced.unlink()
    replaced.write_bytes(b"put by hand")
    edited = loras / "model_016.civitai.info"
    edited.write_text('{"my": "notes"}')
    told = civman("link", view)
    assert "leave  loras/model_008.safetensors" in told.out
    assert "leave  loras/model_016.civitai.info" in told.out
    assert (view / named).exists()

    left = civman("link", view, "--remove", "--json").json["unlink"]
    assert {step["path"] for step in left if step["act"] == "leave"} == {
        "loras/model_008.safetensors", "loras/model_016.civitai.info",
    }  # fmt: skip
    assert replaced.read_bytes() == b"put by hand"
    assert edited.read_text() == '{"my": "notes"}'
    assert (loras / "model_000.safetensors").read_bytes() == b"was there first"


def test_a_link_that_was_deleted_comes_back(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 2)
    view = tmp_path / "view"
    civman("link", view, "--layout", "comfyui")
    (view / "loras" / "model_000.safetensors").unlink()

    civman("link", view)

    assert (view / "loras" / "model_000.safetensors").is_file()


@pytest.mark.parametrize("method", ["hardlink", "symlink", "copy"])
def test_a_method_can_be_forced_and_changed(civman: Civman, root: Path, tmp_path: Path, method: str) -> None:
    (record,) = stock(root, 1)
    view = tmp_path / "view"
    civman("link", view, "--layout", "comfyui", "--method", "copy" if method != "copy" else "symlink")

    done = civman("link", view, "--method", method, "--json").json["link"]

    path, blob = view / "loras" / "model_000.safetensors", Path(record.path)
    assert done["methods"] == {method: 1}
    assert path.read_bytes() == blob.read_bytes()
    assert path.is_symlink() == (method == "symlink")
    assert (path.stat().st_ino == blob.stat().st_ino) == (method != "copy")
    assert not path.is_symlink() or not path.readlink().is_absolute()
    assert blob.stat().st_mode & 0o222 == 0


def test_another_file_system_falls_through_to_the_next_method_and_says_so(
    civman: Civman, root: Path, tmp_path: Path
) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev or not os.access(elsewhere, os.W_OK):
        pytest.skip("no second file system here")
    stock(root, 3)
    view = elsewhere / f"civman-test-{os.getpid()}"
    try:
        done = civman("link", view, "--layout", "comfyui", "--json").json["link"]
        assert done["methods"] == {"symlink": 3}
        assert any("hard links do not work across the file systems" in notice for notice in done["notices"])
        assert (view / "loras" / "model_000.safetensors").read_bytes().startswith(b"model 0")

        forced = civman("link", view, "--method", "hardlink")
        assert forced.code == 1
        assert "hard links do not work across the file systems" in forced.err
    finally:
        civman("link", view, "--remove")
        view.rmdir()


def test_a_dry_run_changes_nothing(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 5)
    view = tmp_path / "view"

    plan = civman("link", view, "--layout", "swarmui", "--dry-run", "--json").json["link"]

    assert not plan["is_done"]
    assert "Lora/model_000.safetensors" in {step["path"] for step in plan["steps"]}
    assert not view.exists()


def test_sidecars_are_what_each_program_reads(civman: Civman, root: Path, tmp_path: Path) -> None:
    fill(root, [put(root, 7, preview=PNG)])
    for layout in ("comfyui", "a1111", "swarmui", "invokeai"):
        assert civman("link", tmp_path / layout, "--layout", layout).code == 0

    def beside(layout: str, folder: str) -> set[str]:
        return {path.name.removeprefix("model_007") for path in (tmp_path / layout / folder).iterdir()}

    assert beside("comfyui", "loras") == {".safetensors", ".civitai.info", ".preview.png"}
    assert beside("a1111", "models/Lora") == {".safetensors", ".civitai.info", ".preview.png", ".json"}
    assert beside("swarmui", "Lora") == {".safetensors", ".swarm.json", ".preview.png"}
    assert beside("invokeai", "lora") == {".safetensors"}
    info = json.loads((tmp_path / "comfyui/loras/model_007.civitai.info").read_text())
    assert (info["id"], info["modelId"], info["model"]["name"]) == (10007, 9, "Model 7")
    webui = json.loads((tmp_path / "a1111/models/Lora/model_007.json").read_text())
    assert webui["activation text"] == "red fox"
    assert webui["sd version"] == "SDXL"
    assert webui["description"] == "Warm & soft."
    swarm = json.loads((tmp_path / "swarmui/Lora/model_007.swarm.json").read_text())
    assert swarm["modelspec.title"] == "Model 7 v1"
    assert swarm["modelspec.trigger_phrase"] == "red fox"


def test_filters_are_remembered_until_all_is_wanted(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 16)
    view = tmp_path / "view"

    civman("link", view, "--layout", "comfyui", "--type", "lora", "--no-sidecars")
    civman("link", view)
    assert set(weights(view)) == {"loras/model_000.safetensors", "loras/model_008.safetensors"}

    civman("link", view, "--all")
    assert len(weights(view)) == 16
    assert not list(view.rglob("*.civitai.info"))


def test_a_blob_that_was_fetched_anew_is_linked_anew(civman: Civman, root: Path, tmp_path: Path) -> None:
    (record,) = stock(root, 1)
    view = tmp_path / "view"
    civman("link", view, "--layout", "comfyui", "--method", "hardlink")
    blob = Path(record.path)
    data = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(data)

    civman("link", view)

    assert (view / "loras" / "model_000.safetensors").stat().st_ino == blob.stat().st_ino


def test_what_a_crash_left_is_known_as_the_views_own(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 3)
    view = tmp_path / "view"
    civman("link", view, "--layout", "comfyui", "--method", "copy")
    manifest = view / ".civman-view.json"
    facts = json.loads(manifest.read_text())
    for entry in facts["entries"]:
        entry["inode"] = entry["mtime_ns"] = 0
    manifest.write_text(json.dumps(facts))
    names = set(weights(view))

    assert civman("link", view).code == 0
    assert set(weights(view)) == names

    civman("link", view, "--remove")
    assert list(view.iterdir()) == []


def test_a_spoilt_manifest_stops_everything(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 1)
    view = tmp_path / "view"
    civman("link", view, "--layout", "comfyui")
    manifest = view / ".civman-view.json"
    manifest.write_text(manifest.read_text().replace("loras/model_000", "../model_000"))

    refused = civman("link", view, "--remove")

    assert refused.code == 1
    assert "damaged" in refused.err
    assert (view / "loras" / "model_000.safetensors").is_file()


@pytest.mark.parametrize(
    ("argv", "code", "word"),
    [
        (["{view}"], 2, "which program"),
        (["{view}", "--layout", "nonsense"], 2, "is not a layout"),
        (["{root}/blobs/x", "--layout", "comfyui"], 2, "inside the library"),
        (["{view}", "--remove"], 2, "no view"),
        (["{view}", "--layout", "comfyui", "--method", "telepathy"], 2, "not a method"),
        (["{view}", "--layout", "comfyui", "sha256:" + "0" * 64], 3, "not in the library"),
    ],
)
def test_what_makes_no_sense_is_refused(
    civman: Civman, root: Path, tmp_path: Path, argv: list[str], code: int, word: str
) -> None:
    stock(root, 1)
    view = tmp_path / "view"

    refused = civman("link", *(word.format(view=view, root=root) for word in argv))

    assert refused.code == code
    assert word in refused.err


def test_one_folder_shows_one_program(civman: Civman, root: Path, tmp_path: Path) -> None:
    stock(root, 1)
    view = tmp_path / "view"
    civman("link", view, "--layout", "comfyui")

    refused = civman("link", view, "--layout", "forge")

    assert refused.code == 2
    assert "is a view for comfyui" in refused.err
