"""A LoRA for another base is refused before anything is loaded; with --force it is said what did not apply."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from running import Civman
from tiny_studio import MODELS, model

from civman.errors import ExitCode
from civman.store.read_header import read_header

CHECKPOINT, XL = model("tiny-shapes"), model("large-lines-xl")
WHY = (
    "`large-lines-xl.safetensors`: cannot work: 0 of 16 modules fit (2 not in the checkpoint, 14 with a "
    "different shape)"
)


def test_check_refuses_it_and_names_the_modules(civman: Civman) -> None:
    done = civman("check", CHECKPOINT, "--lora", XL)

    assert done.code == ExitCode.INCOMPATIBLE
    assert f"Error [cannot-work]: {WHY}" in done.err
    misfit = "made for the shape 640x640, but the weight has 64x64"
    assert f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k: {misfit}" in done.out
    assert "lora_te2_text_model_encoder_layers_0_self_attn_q_proj: not in the checkpoint" in done.out


def test_render_refuses_it_before_torch_is_even_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; from civman.cli.app import main;"
        f"code = main(['render', {CHECKPOINT!r}, 'a red circle', '--lora', {XL!r}, '--device', 'cpu']);"
        "print(int(code), 'torch' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "CIVMAN_LIBRARY": str(tmp_path / "library")},
    )  # fmt: skip

    assert done.stdout.split() == ["7", "False"], done.stderr
    assert f"Error [cannot-work]: {WHY}" in done.stderr


def test_force_says_exactly_what_did_not_apply(civman: Civman, tmp_path: Path) -> None:
    done = civman(
        "render", CHECKPOINT, "a red circle", "--lora", XL, "--force", "--device", "cpu", "--json",
        "--output", tmp_path / "forced.png",
    )  # fmt: skip

    assert done.code == ExitCode.INCOMPATIBLE
    assert done.err.startswith(f"Note: {WHY}; lora_te1_")
    error = done.json["error"]
    assert error["code"] == "adapter-no-match"
    assert error["message"] == (
        "adapter `large-lines-xl.safetensors` fits no part of this model: "
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj: made for the shape 768x768, but the weight has 48x48"
    )
    modules = {name.split(".")[0] for name in read_header(Path(XL)).shapes}
    assert {line.split(":")[0] for line in error["facts"]["unmatched"]} == modules
    assert "lora_te2_text_model_encoder_layers_0_self_attn_q_proj: not in the model" in error["facts"]["unmatched"]
    assert not (tmp_path / "forced.png").exists()


@pytest.mark.parametrize("name", ["tiny-outline", "tiny-stripes", "tiny-night"])
def test_the_adapters_made_for_it_fit_in_full(civman: Civman, name: str) -> None:
    done = civman("check", CHECKPOINT, "--lora", MODELS / f"{name}.safetensors", "--json")

    assert done.code == 0, done.err
    (part,) = done.json["check"]["parts"]
    assert part["modules"]["fitting"] == part["modules"]["total"] > 100
