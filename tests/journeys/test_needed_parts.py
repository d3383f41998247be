"""A transformer checkpoint is downloaded: civman says which parts it needs, which are stored, and what CivitAI has."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import ip_adapter_files
import tiny_flows
from running import Civman
from safetensors.torch import save_file

from civman.demo.demo_catalog import Content
from civman.demo.server import CivitaiServer
from civman.diffusion.families.flux1 import FLUX1
from civman.domain.known_parts import parts_for

(T5,) = parts_for("flux1", "t5")
(CLIP,) = parts_for("flux1", "clip-l")
(VAE,) = parts_for("flux1", "vae")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A transformer alone, and its text encoder and VAE in files of their own."""
    folder = tmp_path_factory.mktemp("parts")
    tensors = tiny_flows.original_tensors("flux1", FLUX1, tiny_flows.modules("flux1"))
    found = {}
    for name, prefix in (
        ("transformer", "model.diffusion_model."), ("t5", "text_encoders.t5xxl.transformer."), ("vae", "vae."),
    ):  # fmt: skip
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        assert own
        found[name] = folder / f"{name}.safetensors"
        save_file(own, found[name])
    return found


@pytest.fixture
def checkpoint(online: CivitaiServer, files: dict[str, Path]) -> str:
    """A checkpoint on the demo's CivitAI whose file is the transformer alone; CivitAI has the published T5, too."""
    catalogue = online.catalogue
    rows = [row for row in catalogue.files() if row[0].type == "Checkpoint" and row[2].format == "SafeTensor"]
    model, version, file = rows[0]
    catalogue.replace_bytes(file.id, files["transformer"].read_bytes())
    *_, other = next(row for row in catalogue.files() if row[0].type == "LORA")
    declared = Content.of(b"published elsewhere")
    declared.hashes = {"SHA256": T5.sha256.upper(), "AutoV2": T5.sha256[:10].upper()}
    catalogue.change_file(other.id, declared=declared)
    return f"{model.id}@{version.id}+{file.id}"


def test_the_parts_that_are_missing_are_named_and_what_civitai_has_is_offered(
    civman: Civman, online: CivitaiServer, checkpoint: str
) -> None:
    done = civman("download", checkpoint, "--json")

    assert done.code == 0, done.out + done.err
    (made,) = done.json["download"]
    needs = {need["role"]: need for need in made["needs"]}
    (owner,) = online.catalogue.by_hash(T5.sha256)
    assert needs.keys() == {"clip-l", "t5", "vae"}
    assert all(need["held"] == [] and need["was_asked"] for need in needs.values())
    assert needs["t5"]["refs"] == {T5.sha256: f"{owner[0].id}@{owner[1].id}"} or list(needs["t5"]["refs"]) == [
        T5.sha256
    ]
    assert needs["clip-l"]["refs"] == {}
    assert [known["sha256"] for known in needs["vae"]["published"]] == [VAE.sha256]


def test_people_read_how_to_get_each_part(civman: Civman, checkpoint: str) -> None:
    done = civman("download", checkpoint)

    said = " ".join(done.out.split())
    assert "needs a T5 text encoder, which is not in the library: `civman download " in said
    assert f"CivitAI has none of the known files: get CLIP-L as `clip_l` ({CLIP.published}" in said
    assert VAE.sha256 in said.replace(" ", "")


def test_stored_parts_that_fit_are_listed(civman: Civman, checkpoint: str, files: dict[str, Path]) -> None:
    assert civman("import", "--offline", files["vae"], files["t5"]).code == 0

    done = civman("download", checkpoint, "--json")

    needs = {need["role"]: need for need in done.json["download"][0]["needs"]}
    assert (needs["t5"]["held"], needs["vae"]["held"]) == (["t5.safetensors"], ["vae.safetensors"])
    assert not needs["vae"]["was_asked"]


def test_a_render_without_a_part_says_which_file_to_fetch(civman: Civman, checkpoint: str) -> None:
    assert civman("download", checkpoint, "--quiet").code == 0

    done = civman("render", checkpoint, "a cat", "--dry-run", "--json")

    assert done.json["error"]["code"] == "missing-part"
    assert f"`civman download {CLIP.sha256}` fetches CLIP-L" in done.json["error"]["hint"]


def test_other_checkpoints_need_nothing_more(civman: Civman, online: CivitaiServer) -> None:
    model, version, file = next(
        row for row in online.catalogue.files() if row[0].type == "Checkpoint" and row[2].format == "SafeTensor"
    )

    done = civman("download", f"{model.id}@{version.id}+{file.id}", "--json")

    assert done.json["download"][0]["needs"] == []


def test_a_downloaded_ip_adapter_names_the_encoder_that_it_needs(
    civman: Civman, online: CivitaiServer, tmp_path: Path
) -> None:
    *_, file = row = next(row for row in online.catalogue.files() if row[2].format == "SafeTensor")
    ip_adapter_files.write(ip_adapter_files.adapter("plain", "sd1", projection=1024), tmp_path / "ip.safetensors")
    online.catalogue.replace_bytes(file.id, (tmp_path / "ip.safetensors").read_bytes())
    ref = f"{row[0].id}@{row[1].id}+{file.id}"

    done = civman("download", ref, "--json")
    encoder = ip_adapter_files.write_encoder(ip_adapter_files.encoder(projection=1024), tmp_path / "h.safetensors")
    assert civman("import", "--offline", encoder).code == 0
    again = civman("download", ref, "--json")
    shown = " ".join(civman("download", ref).out.split())

    (need,) = done.json["download"][0]["needs"]
    (stored,) = again.json["download"][0]["needs"]
    assert (need["role"], need["title"], need["held"]) == ("clip-vision", "CLIP vision encoder ViT-H/14", [])
    assert [known["name"] for known in need["published"]] == ["CLIP-ViT-H-14-laion2B-s32B-b79K"]
    assert stored["held"] == ["h.safetensors"]
    assert "needs a CLIP vision encoder ViT-H/14: the library has `h.safetensors`" in shown
