"""A checkpoint's header settles at the plan what would fail after loading: shapes, missing parts, widths."""

from pathlib import Path

import pytest
import tiny_models
import torch
from running import Civman

XL_PROJECTION = "conditioner.embedders.1.model.text_projection"
TEXT = "cond_stage_model.transformer.text_model.embeddings."
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def spoilt(
    path: Path, kind: str, *, drop: tuple[str, ...] = (), replace: dict[str, tuple[int, ...]] | None = None
) -> Path:
    tensors = tiny_models.tensors_of(kind)
    kept = {name: each for name, each in tensors.items() if not name.startswith(drop or ("\0",))}
    tiny_models.save(kept | {name: torch.ones(shape) for name, shape in (replace or {}).items()}, path, {})
    return path


@pytest.mark.parametrize(
    ("kind", "changes", "exit_code", "words"),
    [
        ("sdxl", {"drop": (XL_PROJECTION,)}, 8, XL_PROJECTION),
        ("sd1", {"drop": ("first_stage_model.",)}, 8, "contains no VAE"),
        ("sd1", {"drop": ("model.diffusion_model.out.2.bias",)}, 8, "out.2.bias"),
        ("sd1", {"replace": {"model.diffusion_model.out.0.weight": (5,)}}, 6, "[5] but [16] is required"),
        ("sd1", {"replace": {"cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight": (40, 24)}}, 6,
         "[40, 24] but [48, 24] is required"),
        ("sd1", {"replace": {TO_K: (16, 20)}}, 8, "text conditioning"),
        ("sd1", {"replace": {TO_K.replace("weight", "scale_weight"): (3,)}}, 6, "which does not fit a weight"),
        ("sdxl", {"drop": ("model.diffusion_model.label_emb.",)}, 8, "label_emb.0.0.weight"),
        ("sd2", {"replace": {"model.diffusion_model.label_emb.0.0.weight": (64, 48)}}, 8, "has an additional input"),
        ("sd1", {"replace": {f"{TEXT}token_embedding.weight": (64, 24)}}, 8, "64 tokens and 77 positions"),
        ("sd1", {"replace": {f"{TEXT}position_embedding.weight": (40, 24)}}, 8, "49408 tokens and 40 positions"),
    ],
)  # fmt: skip
def test_what_the_header_shows_is_refused_by_name(
    civman: Civman, tmp_path: Path, kind: str, changes: dict, exit_code: int, words: str
) -> None:
    path = spoilt(tmp_path / "spoilt.safetensors", kind, **changes)

    refused = civman("render", path, "a cat", "--precision", "float32", "--dry-run", "--json")

    assert refused.code == exit_code
    assert words in refused.json["error"]["message"]


def test_tensors_of_the_unet_that_nothing_uses_are_said(civman: Civman, tmp_path: Path) -> None:
    extra = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.fuser.linear.weight"
    path = spoilt(tmp_path / "placed.safetensors", "sd1", replace={extra: (16, 16)})

    planned = civman("render", path, "a cat", "--dry-run", "--json")

    assert planned.code == 0
    assert extra in str(planned.json)


def test_a_vae_with_a_decoder_only_passes_where_no_picture_is_read(civman: Civman, tmp_path: Path) -> None:
    checkpoint = spoilt(tmp_path / "base.safetensors", "sd1")
    vae = {name.replace("first_stage_model.", "vae."): each for name, each in tiny_models.tensors_of("sd1").items()
           if name.startswith(("first_stage_model.decoder", "first_stage_model.post"))}  # fmt: skip
    tiny_models.save(vae, tmp_path / "decoder.safetensors", {})
    asked = ("render", checkpoint, "a cat", "--vae", tmp_path / "decoder.safetensors", "--precision", "float32",
             "--dry-run", "--json")  # fmt: skip

    plain, enlarged = civman(*asked), civman(*asked, "--hires", "2", "--upscaler", "lanczos")

    assert plain.code == 0
    assert (enlarged.code, enlarged.json["error"]["code"]) == (8, "missing-part")
    assert "only a decoder" in enlarged.json["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, each: None if name == "decoder.conv_out.bias" else each, "decoder.conv_out.bias"),
        (lambda _name, each: each.to(torch.int8), "stored as int8"),
        (lambda name, each: None if name.startswith("post") else each, "post_quant_conv"),
    ],
)
def test_a_vae_that_a_render_refuses_cannot_work_says_check(civman: Civman, tmp_path: Path, change, words) -> None:
    from safetensors.torch import save_file

    checkpoint = spoilt(tmp_path / "base.safetensors", "sd1")
    own = {name.removeprefix("first_stage_model."): each for name, each in tiny_models.tensors_of("sd1").items()
           if name.startswith("first_stage_model.")}  # fmt: skip
    made = {name: changed for name, each in own.items() if (changed := change(name, each)) is not None}
    save_file(made, vae := tmp_path / "vae.safetensors")

    checked = civman("check", checkpoint, "--vae", vae, "--json")
    planned = civman("render", checkpoint, "a cat", "--vae", vae, "--dry-run", "--json")

    assert (checked.code, planned.code) == (7, 8)
    assert words in checked.json["error"]["message"]
    assert words in planned.json["error"]["message"]


@pytest.mark.parametrize("data", [b"x", b"\x80\x04" + b"pickle" * 20])
def test_check_of_what_nobody_can_read_is_broken_and_not_0(civman: Civman, tmp_path: Path, data: bytes) -> None:
    (path := tmp_path / "model.ckpt").write_bytes(data)

    checked = civman("check", path, "--json")

    assert (checked.code, checked.json["error"]["code"]) == (6, "invalid-model-file")
    assert "`model.ckpt`" in checked.json["error"]["message"]


def test_check_of_an_empty_file_is_unknown_and_not_0(civman: Civman, tmp_path: Path) -> None:
    (path := tmp_path / "model.ckpt").touch()

    checked = civman("check", path, "--json")

    assert (checked.code, checked.json["error"]["code"]) == (11, "unknown-fit")
    assert checked.json["check"]["verdict"] == "unknown"
