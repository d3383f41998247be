# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Checkpoints with packed weights draw the picture of the same numbers in an ordinary file."""

from pathlib import Path

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("gguf")

from packed_files import int8, quantised, settings, write_gguf
from rendering_stock import QUICK
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Packs = dict[str, torch.Tensor]


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def as_gguf(source: Path, folder: Path) -> tuple[Path, Packs]:
    stored, meant = quantised(load_file(source), "Q8_0")
    assert sum(kind == "Q8_0" for _, kind in stored.values()) > 20
    return write_gguf(folder / "packed.gguf", stored, metadata(source)), meant


def as_fp8(source: Path, folder: Path) -> tuple[Path, Packs]:
    stored, meant = {}, {}
    for name, tensor in load_file(source).items():
        meant[name] = stored[name] = tensor
        if name.startswith("model.diffusion_model.") and tensor.ndim == 2:
            scale = tensor.float().abs().max() / 448
            stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale"] = scale
            stored[f"{name.removesuffix('.weight')}.comfy_quant"] = settings(format="float8_e4m3fn")
            meant[name] = stored[name].float() * scale
    save_file(stored, folder / "packed.safetensors", metadata(source))
    return folder / "packed.safetensors", meant


def as_int8(source: Path, folder: Path) -> tuple[Path, Packs]:
    stored, meant = {}, {}
    for name, tensor in load_file(source).items():
        meant[name] = stored[name] = tensor
        if name.startswith("model.diffusion_model.") and tensor.ndim == 2 and tensor.shape[1] % 16 == 0:
            codes, scale, wide = int8(tensor, 16)
            stored[name] = codes
            stored[f"{name}_scale"] = scale
            said = settings(format="int8_tensorwise", convrot=True, convrot_groupsize=16)
            stored[f"{name.removesuffix('.weight')}.comfy_quant"] = said
            meant[name] = wide.float()
    save_file(stored, folder / "packed.safetensors", metadata(source))
    return folder / "packed.safetensors", meant


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize(("kind", "pack"), [("sd1", as_gguf), ("sdxl", as_fp8), ("sd1", as_int8)])
def test_the_picture_is_that_of_the_unpacked_file(civman: Civman, stock: Path, tmp_path: Path, kind, pack) -> None:
    packed, meant = pack(stock / f"tiny-{kind}.safetensors", tmp_path)
    plain, said = tmp_path / "plain.safetensors", metadata(stock / f"tiny-{kind}.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in meant.items()}, plain, said)
    lora = stock / ("ink.safetensors" if kind == "sd1" else "xl-ink.safetensors")

    done = [civman("render", file, "a red cat", "--lora", lora, *QUICK, "--json") for file in (packed, plain)]

    assert [run.code for run in done] == [0, 0], done[0].out + done[0].err + done[1].out + done[1].err
    ours, theirs = (run.json["render"][0] for run in done)
    if pack is as_int8:  # undone rotations are rounded
        import numpy as np
        from PIL import Image

        pictures = [np.asarray(Image.open(each["path"]), dtype=float) for each in (ours, theirs)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
    else:
        assert ours["pixel_sha256"] == theirs["pixel_sha256"]


@pytest.mark.usefixtures("no_sockets")
def test_a_packed_checkpoint_is_inspected_and_checked(civman: Civman, stock: Path, tmp_path: Path) -> None:
    packed, _ = as_gguf(stock / "tiny-sd1.safetensors", tmp_path)

    inspected = civman("inspect", packed)
    checked = civman("check", packed, "--lora", stock / "ink.safetensors")

    assert "GGUF, test" in inspected.out
    assert "checkpoint, sd1" in inspected.out
    assert checked.code == 0, checked.out + checked.err
    assert "fits" in checked.out


def test_a_cut_gguf_is_inspected_with_a_word_and_refused_before_it_is_loaded(
    stocked: Path, civman: Civman, tmp_path: Path
) -> None:
    whole, _ = as_gguf(stocked / "tiny-sd1.safetensors", tmp_path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:-4096])

    seen, render = civman("inspect", cut), civman("render", cut, "a cat", *QUICK, "--dry-run", "--json")

    assert seen.code == 0
    assert "truncated: according to its header" in " ".join(seen.out.split())
    assert (render.code, render.json["error"]["code"]) == (6, "invalid-model-file")
    assert civman("render", whole, "a cat", *QUICK, "--dry-run").code == 0
