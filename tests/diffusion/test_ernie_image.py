# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Ernie-Image: what its text encoder sees, its published size, its variants' defaults, and its parts."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from diffusers import ErnieImagePipeline, FlowMatchEulerDiscreteScheduler
from diffusion import flow_pipelines
from safetensors.torch import load_file, save_file
from transformers import Ministral3Config

from civman.diffusion import vae_codec
from civman.diffusion.families.ernie_image import ERNIE_IMAGE
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.diffusion.part_kinds import MINISTRAL
from civman.errors import InvalidModelFile
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

ENCODER, TOKENIZER = "text_encoders.ministral3_3b.transformer.model.", "text_encoders.tekken_model"
QUICK = ("--size", "64x96", "--seed", "7", "--device", "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ernie-Image in one file ("whole"), its parts, and text encoders that do not fit."""
    folder = tmp_path_factory.mktemp("ernie")
    whole = tiny_flows.write(folder / "whole.safetensors", "ernie-image", ERNIE_IMAGE)
    tensors = load_file(whole)
    encoder = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)}
    model = {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items() if "diffusion" in key}
    published = {f"model.{key}": value for key, value in encoder.items()}
    tokenizer = {"tekken_model": tensors[TOKENIZER]}
    made = {
        "ernie-image-turbo": model, "ernie-image": model, "drawing": model,
        "vae": {key.removeprefix("vae."): value for key, value in tensors.items() if key.startswith("vae.")},
        "encoder": published | tokenizer | {"vision_tower.patch_conv.weight": torch.zeros(4, 3, 2, 2)},
        "nested": {f"language_model.{key}": value for key, value in published.items()} | tokenizer, "mute": published,
        "broken": published | {"tekken_model": tensors[TOKENIZER][:99].clone()},
        "qwen": published | tokenizer | {"model.layers.0.self_attn.q_norm.weight": torch.ones(128)},
        "narrow": published | tokenizer | {"model.embed_tokens.weight": torch.zeros(640, 32)},
    }  # fmt: skip
    (folder / "tekken.json").write_bytes(tiny_flows.tekken_model())
    # as transformers writes it: nothing in the file says that a text begins with a start token
    (folder / "tokenizer.json").write_text(flow_pipelines.tekken().to_str(), encoding="utf-8")
    for name, each in made.items():
        save_file(each, folder / f"{name}.safetensors")
    return {"whole": whole, "tekken": folder / "tekken.json", "json": folder / "tokenizer.json"} | {
        name: folder / f"{name}.safetensors" for name in made
    }


@pytest.mark.parametrize(
    "prompt", ["", "a photo of a cat, ", "a (cat:1.4)", "[INST] \U0001f431", "cat 猫 " * 1100],
    ids=["empty", "short", "brackets", "control", "cut"],
)  # fmt: skip
def test_the_states_are_those_of_diffusers_pipeline(files: dict[str, Path], prompt: str) -> None:
    model = load(files["whole"], dtype=torch.float32)
    encoder = flow_pipelines.ministral(model.components["text_encoder"])
    texts = FlowTextEncoders(model)

    ours, _ = texts.encode(parse(prompt), None, (), is_negative=False)  # type: ignore[arg-type]

    def cut(text: str, **_: Any) -> Any:
        return {"input_ids": flow_pipelines.start_and_ids(text)["input_ids"][:2048]}

    pipe = ErnieImagePipeline(None, tiny_flows.modules("ernie-image")["vae"], encoder, cut, None)
    (theirs,) = pipe.encode_prompt(prompt, torch.device("cpu"))
    assert torch.allclose(ours, theirs[None], atol=1e-4)
    assert bool(texts.notes) is (len(prompt) > 1000)


def test_the_text_encoder_has_the_options_of_the_published_one() -> None:
    shapes = {
        "embed_tokens.weight": (131072, 3072), "layers.0.self_attn.q_proj.weight": (4096, 3072),
        "layers.0.self_attn.k_proj.weight": (1024, 3072),
        **{f"layers.{number}.mlp.gate_proj.weight": (9216, 3072) for number in range(26)},
    }  # fmt: skip
    published = Ministral3Config(hidden_size=3072, intermediate_size=9216, num_hidden_layers=26, use_cache=False)
    # transformers' defaults are the rest of the published options
    theirs = published.to_dict()

    ours = Ministral3Config(**MINISTRAL.config(shapes)).to_dict()

    for config in (ours, theirs):
        config["rope_parameters"].pop("type", None)
    assert ours == theirs


def test_the_shapes_of_the_published_model_give_the_options_of_diffusers_class() -> None:
    with unfilled():
        published = {
            "hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12288,
            "text_in_dim": 3072,
        }  # fmt: skip
        whole = construct_class(ERNIE_IMAGE.model, published)
    shapes = {name: tuple(value.shape) for name, value in whole.state_dict().items()}

    config = ERNIE_IMAGE.config(shapes)

    assert sum(parameter.numel() for parameter in whole.parameters()) // 10**7 == 803
    assert config == {key: value for key, value in dict(whole.config).items() if not key.startswith("_")}
    assert flow_family_of(shapes) is ERNIE_IMAGE
    assert ERNIE_IMAGE.widths(config) == {"text_encoder": ("hidden_size", 3072), "vae": ("latent_channels", 32)}


def test_a_model_as_wide_as_its_text_encoder_has_no_layer_between_them() -> None:
    with unfilled():
        model = construct_class(ERNIE_IMAGE.model, tiny_flows.ERNIE_IMAGE | {"text_in_dim": 256})
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    assert "text_proj.weight" not in shapes
    assert ERNIE_IMAGE.config(shapes)["text_in_dim"] == 256


@pytest.mark.parametrize("steps", [8, 20, 50])
def test_the_levels_are_those_of_diffusers_scheduler_with_the_same_shift(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 0.0, steps + 1)[:-1].tolist())

    ours = flow_table(Schedule.SIMPLE, steps, FlowLevels(ERNIE_IMAGE.defaults("base").shift, ERNIE_IMAGE.entries))

    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_latents_are_normalised_with_the_number_of_ernie_image_s_pipeline(files: dict[str, Path]) -> None:
    model = load(files["whole"], dtype=torch.float32)
    pixels = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1

    latents = vae_codec.encode(model, pixels).latents

    vae = tiny_flows.modules("ernie-image")["vae"]
    with torch.no_grad():
        own = ErnieImagePipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
    mean, deviation = vae.bn.running_mean, torch.sqrt(vae.bn.running_var + 1e-5)
    expected = (own - mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)
    assert torch.allclose(latents, ErnieImagePipeline._unpatchify_latents(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "more", "variant", "steps", "scale"),
    [
        ("ernie-image", (), "base", 20, 4.0), ("ernie-image-turbo", (), "turbo", 8, 1.0),
        ("drawing", (), "base", 20, 4.0), ("ernie-image", ("--variant", "turbo"), "turbo", 8, 1.0),
    ],
)  # fmt: skip
def test_the_file_s_name_or_an_option_chooses_civitai_s_defaults(
    civman: Any, files: dict[str, Path], name: str, more: tuple[str, ...], variant: str, steps: int, scale: float
) -> None:
    made = civman(
        "render", str(files[name]), "a cat", *QUICK, "--vae", str(files["vae"]), "--part",
        f"ministral={files['encoder']}", "--dry-run", "--json", *more,
    )  # fmt: skip

    assert made.code == 0, made.err
    (planned,) = made.json["plan"]
    recipe = planned["recipe"]
    assert (recipe["variant"], recipe["steps"], recipe["guidance_scale"]) == (variant, steps, scale)
    assert (recipe["sampler"], recipe["schedule"], recipe["flow"]["shift"]) == ("Euler", "Simple", 3.0)


def test_missing_and_wrong_parts_are_refused_before_loading_and_the_right_ones_draw(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    def command(encoder: str, *more: str) -> Any:
        part = ("--part", f"ministral={files[encoder]}") if encoder else ()
        return civman(
            "render", str(files["ernie-image-turbo"]), "a cat", *QUICK, "--vae", str(files["vae"]), *part, *more
        )

    draws = ("--steps", "2", "--json", "-o")
    drawn, nested = (command(each, *draws, str(tmp_path / f"{each}.png")) for each in ("encoder", "nested"))
    given = [command("mute", "--part", f"tokenizer={files[kind]}", *draws, str(tmp_path / f"{kind}.png"))
             for kind in ("tekken", "json")]  # fmt: skip
    low = command("encoder", "--low-vram", *draws, str(tmp_path / "low.png"))
    refused = {each: command(each, "--dry-run") for each in ("", "mute", "qwen", "narrow")}

    assert "missing-part" in refused[""].err
    assert "--part ministral=REF" in refused[""].err
    assert "`ministral-3-3b`" in refused[""].err
    assert "missing-part" in refused["mute"].err
    assert "`tekken_model`" in refused["mute"].err
    assert "mismatched-parts" in refused["qwen"].err
    assert "is not the required part (Ministral 3 text encoder)" in " ".join(refused["qwen"].err.split())
    assert "a width of 32" in refused["narrow"].err
    assert 0 not in {each.code for each in refused.values()}
    made = (drawn, nested, low, *given)
    assert {each.code for each in made} == {0}, [each.err for each in made]
    digests = {each.json["render"][0]["pixel_sha256"] for each in made}
    assert len(digests) == 1
    assert [part["role"] for part in drawn.json["render"][0]["recipe"]["parts"]] == ["ministral"]


def test_a_broken_tokenizer_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(
        InvalidModelFile, match=r"the tokenizer of the Ministral 3 text encoder in `broken\.safetensors`"
    ):
        load(files["ernie-image"], vae=files["vae"], parts={"ministral": files["broken"]})
