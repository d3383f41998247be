# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Krea 2: what its text encoder sees, its published size, its variants' defaults, its precision and its parts."""

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline
from diffusion import flow_pipelines
from safetensors.torch import load_file, save_file

from civman.diffusion.families.krea2 import KREA2
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

ENCODER = "text_encoders.qwen3vl_4b.transformer.model."
QUICK = ("--size", "64x64", "--seed", "7", "--device", "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Krea 2 in one file ("whole"), its parts, and text encoders that do not fit."""
    folder = tmp_path_factory.mktemp("krea2")
    whole = tiny_flows.write(folder / "whole.safetensors", "krea2", KREA2)
    tensors = load_file(whole)
    encoder = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)}
    published = {f"model.language_model.{key}": value for key, value in encoder.items()}
    model = {key: value for key, value in tensors.items() if key.startswith("model.diffusion_model.")}
    made = {
        "krea2_raw": model, "krea2_turbo": model, "krea2_drawing": model,
        "vae": {key.removeprefix("vae."): value for key, value in tensors.items() if key.startswith("vae.")},
        "encoder": published | {"model.visual.pos_embed.weight": torch.zeros(4, 4)},
        "plain": {f"model.{key}": value for key, value in encoder.items()},
        "narrow": published | {"model.language_model.embed_tokens.weight": torch.zeros(800, 32)},
        "eleven": model | {"model.diffusion_model.txtfusion.projector.weight": torch.zeros(1, 11)},
    }  # fmt: skip
    for name, each in made.items():
        save_file(each, folder / f"{name}.safetensors")
    return {"whole": whole} | {name: folder / f"{name}.safetensors" for name in made}


@pytest.mark.parametrize(
    "prompt", ["", "a photo of a cat, ", "a (cat:1.4)", "cat " * 600], ids=["empty", "short", "brackets", "cut"]
)
def test_the_states_are_those_that_diffusers_does_not_hide(files: dict[str, Path], prompt: str) -> None:
    model = load(files["whole"], dtype=torch.float32)
    encoder = flow_pipelines.qwen3_vl(model.components["text_encoder"])
    pipe = Krea2Pipeline(None, None, encoder, flow_pipelines.qwen(), None)
    texts = FlowTextEncoders(model)

    ours, _ = texts.encode(parse(prompt), None, (), is_negative=False)  # type: ignore[arg-type]

    with torch.no_grad():
        states, mask = pipe.get_text_hidden_states(prompt, device=torch.device("cpu"))
    theirs = states[mask][None].flatten(2)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert ours.shape[1] <= 512
    assert bool(texts.notes) is (len(prompt) > 1000)


def test_the_shapes_of_the_published_model_give_the_options_of_diffusers_class() -> None:
    with unfilled():
        whole = construct_class("Krea2Transformer2DModel", {})
    wanted = {name: tuple(value.shape) for name, value in whole.state_dict().items()}
    shapes = {source.name: wanted[name] for name, source in KREA2.sources("transformer", wanted, "").items()}

    config = KREA2.config(shapes)

    assert sum(parameter.numel() for parameter in whole.parameters()) // 10**8 == 128
    assert config == {key: value for key, value in dict(whole.config).items() if not key.startswith("_")}
    assert KREA2.widths(config) == {"text_encoder": ("hidden_size", 2560), "vae": ("z_dim", 16)}


@pytest.mark.parametrize("steps", [4, 8, 20, 40])
def test_the_levels_are_those_of_the_distilled_model_in_diffusers(steps: int) -> None:
    usual = KREA2.defaults("turbo")
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], mu=1.15)

    ours = flow_table(Schedule.SIMPLE, steps, FlowLevels(usual.shift, KREA2.entries))

    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "more", "steps", "scale"),
    [
        ("krea2_raw", (), 30, 3.5), ("krea2_turbo", (), 8, 1.0), ("krea2_drawing", (), 8, 1.0),
        ("krea2_turbo", ("--variant", "raw"), 30, 3.5),
    ],
)  # fmt: skip
def test_the_file_s_name_or_an_option_chooses_civitai_s_defaults(
    civman: Any, files: dict[str, Path], name: str, more: tuple[str, ...], steps: int, scale: float
) -> None:
    made = civman(
        "render", str(files[name]), "a cat", *QUICK, "--vae", str(files["vae"]), "--part",
        f"qwen3-vl={files['encoder']}", "--dry-run", "--json", *more,
    )  # fmt: skip

    assert made.code == 0, made.err
    (planned,) = made.json["plan"]
    recipe = planned["recipe"]
    assert (recipe["steps"], recipe["guidance_scale"]) == (steps, scale)
    assert recipe["flow"]["shift"] == pytest.approx(math.exp(1.15))


def test_scales_of_norms_stay_in_single_precision(files: dict[str, Path], tmp_path: Path) -> None:
    halved = {key: value.bfloat16() for key, value in load_file(files["whole"]).items()}
    save_file(halved, tmp_path / "bf16.safetensors")

    model = load(tmp_path / "bf16.safetensors")

    transformer = model.components["transformer"]
    kept = {type(transformer.get_submodule(name.rpartition(".")[0])).__name__
            for name, value in transformer.named_parameters() if value.dtype is torch.float32}  # fmt: skip
    norms = [name for name, module in transformer.named_modules() if type(module).__name__ == "Krea2RMSNorm"]
    single = [name for name, value in transformer.named_parameters() if value.dtype is torch.float32]
    assert kept == {"Krea2RMSNorm"}
    assert len(single) == len(norms) > 10
    model.restore("transformer")
    assert [name for name, value in transformer.named_parameters() if value.dtype is torch.float32] == single


def test_a_missing_or_wrong_encoder_is_refused_before_loading_and_the_right_one_draws(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    def command(model: str, encoder: str, *more: str) -> Any:
        part = ("--part", f"qwen3-vl={files[encoder]}") if encoder else ()
        return civman("render", str(files[model]), "a cat", *QUICK, "--vae", str(files["vae"]), *part, *more)

    draws = ("--steps", "2", "--json", "-o")
    drawn = command("krea2_turbo", "encoder", *draws, str(tmp_path / "a.png"))
    low = command("krea2_turbo", "encoder", "--low-vram", *draws, str(tmp_path / "b.png"))
    absent, plain = command("krea2_turbo", "", "--dry-run"), command("krea2_turbo", "plain", "--dry-run")
    narrow, eleven = command("krea2_turbo", "narrow", "--dry-run"), command("eleven", "encoder", "--dry-run")

    assert "missing-part" in absent.err
    assert "--part qwen3-vl=REF" in absent.err
    assert "qwen3vl_4b_fp8_scaled" in absent.err
    assert "mismatched-parts" in plain.err
    assert "is not the required part (Qwen3-VL text encoder)" in " ".join(plain.err.split())
    assert "mismatched-parts" in narrow.err
    assert "a width of 32" in narrow.err
    assert "reads 11 layers of its text encoder" in " ".join(eleven.err.split())
    assert 0 not in (absent.code, plain.code, narrow.code, eleven.code)
    assert drawn.code == low.code == 0, (drawn.err, low.err)
    (one,), (streamed,) = drawn.json["render"], low.json["render"]
    assert one["pixel_sha256"] == streamed["pixel_sha256"]
    assert [part["role"] for part in one["recipe"]["parts"]] == ["qwen3-vl"]
