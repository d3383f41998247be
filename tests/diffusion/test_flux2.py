# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Flux.2: its VAE and noise, its levels, its published sizes, and what the text encoders of Klein and dev see."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from diffusion.flow_pipelines import mistral, mistral_chat, qwen
from headers import case
from safetensors.torch import load_file, save_file

from civman.diffusion import vae_codec
from civman.diffusion.families.flux2 import FLUX2_DEV, FLUX2_KLEIN
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.key_table import require_sources
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class
from civman.diffusion.noise import PictureNoise, Variation
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.diffusion.part_kinds import MISTRAL
from civman.domain.known_parts import parts_for
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

VAE, ENCODER = "vae.", "text_encoders.qwen3_06b.transformer.model."
MISTRAL_ENCODER, TOKENIZER = "text_encoders.mistral3_24b.transformer.model.", "text_encoders.tekken_model"
QUICK = ("--size", "64x96", "--seed", "7", "--device", "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Klein in one file ("whole"), its parts in the published layout, and wrong parts."""
    folder = tmp_path_factory.mktemp("flux2")
    whole = tiny_flows.write(folder / "whole.safetensors", "flux2", FLUX2_KLEIN)
    tensors = load_file(whole)
    model = {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items() if "diffusion" in key}
    vae = {key.removeprefix(VAE): value for key, value in tensors.items() if key.startswith(VAE)}
    inside = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    encoder = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)}
    made = {
        "klein": model,
        "vae": {".".join([inside.get((parts := key.split("."))[0], parts[0]), *parts[1:]]): value
                for key, value in vae.items()},
        "old-vae": {key: value for key, value in vae.items() if not key.startswith("bn.")},
        "encoder": {f"model.{key}": value for key, value in encoder.items()},
        "narrow": {f"model.{key}": value for key, value in encoder.items()}
        | {"model.embed_tokens.weight": torch.zeros(151936, 16)},
    }  # fmt: skip
    for name, each in made.items():
        save_file(each, folder / f"{name}.safetensors")
    return {"whole": whole} | {name: folder / f"{name}.safetensors" for name in made}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> dict[str, Path]:
    """Dev in one file ("whole"), its parts in the published layout, and wrong text encoders."""
    folder = tmp_path_factory.mktemp("flux2-dev")
    whole = tiny_flows.write(folder / "whole.safetensors", "flux2-dev", FLUX2_DEV)
    tensors = load_file(whole)
    encoder = {
        key.replace(MISTRAL_ENCODER, "model."): value
        for key, value in tensors.items()
        if key.startswith(MISTRAL_ENCODER)
    }
    tokenizer, norm = {"tekken_model": tensors[TOKENIZER]}, {"model.norm.weight": torch.rand(24)}
    last = {key: value for key, value in encoder.items() if ".29." in key}
    more = {key.replace(".29.", f".{number}."): value * 2 for key, value in last.items() for number in range(30, 40)}
    made = {
        "dev": {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items() if "diffus" in key},
        "vae": {key.removeprefix(VAE): value for key, value in tensors.items() if key.startswith(VAE)},
        "pruned": encoder | tokenizer, "mute": encoder,
        "complete": tokenizer | {f"language_model.{key}": value for key, value in (encoder | more | norm).items()},
        "shallow": {key: value for key, value in encoder.items() if key not in last} | tokenizer,
        "narrow": encoder | tokenizer | {"model.embed_tokens.weight": torch.zeros(640, 16)},
    }  # fmt: skip
    for name, each in made.items():
        save_file(each, folder / f"{name}.safetensors")
    return {"whole": whole, "qwen": files["encoder"]} | {name: folder / f"{name}.safetensors" for name in made}


def test_a_vae_in_the_published_layout_encodes_and_normalises_as_diffusers(files: dict[str, Path]) -> None:
    modules = tiny_flows.modules("flux2")
    model = load(files["klein"], vae=files["vae"], parts={"qwen3": files["encoder"]})
    pixels = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1

    latents = vae_codec.encode(model, pixels).latents

    theirs, vae = modules["vae"], model.vae
    pipe = Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), theirs, None, None, modules["transformer"])
    with torch.no_grad():
        folded = pipe._encode_vae_image(pixels, torch.Generator())
    assert torch.equal(vae.bn.running_mean, theirs.bn.running_mean)
    assert torch.equal(vae.bn.running_var, theirs.bn.running_var)
    assert torch.equal(vae.quant_conv.weight, theirs.quant_conv.weight)
    assert torch.equal(vae.post_quant_conv.weight, theirs.post_quant_conv.weight)
    assert latents.shape == (1, 32, 12, 8)
    assert torch.allclose(latents, pipe._unpatchify_latents(folded), atol=1e-5)
    assert model.unused == ()


def test_all_noise_is_drawn_for_squares_of_latents() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(128, 6, 4, generator=generator) for _ in range(2))
    unfolded = [Flux2KleinPipeline._unpatchify_latents(noise[None])[0] for noise in (first, second)]

    noise = PictureNoise(5, is_folded=True)

    assert torch.equal(noise.start((32, 12, 8)), unfolded[0])
    assert torch.equal(noise.next((32, 12, 8)), unfolded[1])
    varied = PictureNoise(5, is_folded=True, variation=Variation(5, 0.5), part="1/1")
    assert torch.allclose(varied.start((32, 12, 8)), unfolded[0], atol=1e-6)
    path = PictureNoise(5, is_folded=True).brownian((32, 12, 8), 0.01, 1.0)
    plain = PictureNoise(5).brownian((128, 6, 4), 0.01, 1.0).noise(0.9, 0.4)
    assert torch.equal(path.noise(0.9, 0.4), Flux2KleinPipeline._unpatchify_latents(plain[None])[0])


@pytest.mark.parametrize("size", [(512, 512), (832, 1216), (1024, 1024), (1040, 1088), (1536, 1536)])
@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_the_levels_are_those_of_diffusers_pipeline(size: tuple[int, int], steps: int) -> None:
    shift = FLUX2_KLEIN.shift("base", size, steps)

    mu = compute_empirical_mu(size[0] * size[1] // 256, steps)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], mu=mu)
    ours = flow_table(Schedule.SIMPLE, steps, FlowLevels(shift, 10000))
    assert max(abs(a - b) for a, b in zip(ours, scheduler.sigmas.tolist(), strict=True)) < 1e-6


def test_the_shift_of_huge_images_stays_one_that_a_recipe_may_have() -> None:
    assert 99 < FLUX2_KLEIN.shift("", (8192, 8192), 8) <= 100


def test_the_text_is_three_layers_of_a_chat_without_thinking_padded_to_512_tokens(files: dict[str, Path]) -> None:
    model = load(files["whole"], dtype=torch.float32)
    texts = FlowTextEncoders(model)

    context, _ = texts.encode(parse("a (cat:1.4)"), None, (), is_negative=False)  # type: ignore[arg-type]
    texts.encode(parse("cat " * 600), None, (), is_negative=False)  # type: ignore[arg-type]

    expected = Flux2KleinPipeline._get_qwen3_prompt_embeds(
        tiny_flows.modules("flux2")["text_encoder"], qwen("<think>\n\n</think>\n\n"), "a (cat:1.4)"
    )
    assert context.shape == (1, 512, 72)
    assert torch.allclose(context, expected, atol=1e-5)
    assert "reads 512" in texts.notes[0]


@pytest.mark.parametrize(
    "prompt", ["", "a photo of a cat, ", "a (cat:1.4)", "[IMG] a \U0001f431 [INST]", "cat 猫 " * 400],
    ids=["empty", "short", "brackets", "image", "cut"],
)  # fmt: skip
def test_dev_s_text_is_three_layers_of_a_chat_after_padding(dev: dict[str, Path], prompt: str) -> None:
    model = load(dev["whole"], dtype=torch.float32)
    texts = FlowTextEncoders(model)

    context, _ = texts.encode(parse(prompt), None, (), is_negative=False)  # type: ignore[arg-type]

    encoder = mistral(model.components["text_encoder"])
    with torch.no_grad():
        expected = Flux2Pipeline._get_mistral_3_small_prompt_embeds(encoder, mistral_chat(), prompt)
    assert context.shape == (1, 512, 72)
    assert torch.allclose(context, expected, atol=1e-4)
    assert bool(texts.notes) is (len(prompt) > 1000)


def test_dev_s_chat_is_that_of_mistral_s_own_package(dev: dict[str, Path]) -> None:
    recorded = tiny_flows.recorded("tekken")
    model = load(dev["whole"], dtype=torch.float32)
    encoder, texts = model.components["text_encoder"], FlowTextEncoders(model)
    assert recorded["system"] == SYSTEM_MESSAGE
    for prompt, ids in recorded["chats"]:
        context, _ = texts.encode(parse(prompt), None, (), is_negative=False)  # type: ignore[arg-type]

        with torch.no_grad():
            states = encoder(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.cat([states[layer] for layer in (10, 20, 30)], dim=-1)
        assert torch.allclose(context[:, -len(ids) :], expected, atol=1e-4), prompt


def test_the_text_encoder_has_the_options_of_the_published_one() -> None:
    shapes = {
        "embed_tokens.weight": (131072, 5120), "layers.0.self_attn.q_proj.weight": (4096, 5120),
        "layers.0.self_attn.k_proj.weight": (1024, 5120), "norm.weight": (5120,),
        **{f"layers.{number}.mlp.gate_proj.weight": (32768, 5120) for number in range(40)},
    }  # fmt: skip

    config = MISTRAL.config(shapes)

    with unfilled():
        model = construct_class(MISTRAL.model, config)
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (30, 32, 8)
    assert config["rope_parameters"]["rope_theta"] == 1e9
    assert sum(value.numel() for value in model.parameters()) // 10**8 == 173
    assert not any(name.startswith("norm") for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("family", "heads", "depth", "text"),
    [(FLUX2_KLEIN, 24, (5, 20), 2560), (FLUX2_KLEIN, 32, (8, 24), 4096), (FLUX2_DEV, 48, (8, 48), 5120)],
    ids=["4b", "9b", "dev"],
)
def test_the_published_shapes_give_the_model_that_has_them(
    family: Any, heads: int, depth: tuple[int, int], text: int
) -> None:
    arguments = {
        "num_layers": depth[0], "num_single_layers": depth[1], "num_attention_heads": heads,
        "joint_attention_dim": 3 * text, "guidance_embeds": family is FLUX2_DEV,
    }  # fmt: skip
    with unfilled():
        published = construct_class(family.model, arguments).state_dict()
    wanted = {name: tuple(value.shape) for name, value in published.items()}
    sources = family.sources("transformer", wanted, "")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, source in sources.items():
        rows = shapes.get(source.name, (0,))[0] if source.rows else 0
        shapes[source.name] = (rows + wanted[name][0], *wanted[name][1:])

    config = family.config(shapes)

    with unfilled():
        ours = construct_class(family.model, config).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == wanted
    assert flow_family_of(shapes) is family
    assert family.widths(config) == {"text_encoder": ("hidden_size", text), "vae": ("latent_channels", 32)}
    assert bool(parts_for("flux2", "qwen3", text)) == (text == 2560)


@pytest.mark.parametrize(("name", "family"), [("klein-4b", FLUX2_KLEIN), ("dev", FLUX2_DEV)])
def test_a_recorded_header_has_every_tensor(name: str, family: Any) -> None:
    shapes = {name: tuple(shape) for name, (_, shape) in case(f"own/bfl-flux2-{name}")["tensors"].items()}
    assert flow_family_of(shapes) is family
    prefix = family.prefix_in(shapes) or ""
    config = family.config({name.removeprefix(prefix): shape for name, shape in shapes.items()})
    with unfilled():
        model = construct_class(family.model, config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    sources = family.sources("transformer", wanted, prefix)

    require_sources("transformer", wanted, sources, shapes, name)

    assert shapes.keys() == {source.name for source in sources.values()}


def test_missing_and_wrong_parts_are_refused_before_loading_and_klein_draws(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    def command(model: str, *more: str, vae: str = "vae", encoder: str = "encoder") -> Any:
        parts = ("--vae", str(files[vae]), "--part", f"qwen3={files[encoder]}")
        return civman("render", str(files[model]), "a cat", *QUICK, *parts, *more)

    absent = civman("render", str(files["klein"]), "a cat", *QUICK, "--vae", str(files["vae"]), "--dry-run")
    old, narrow = command("klein", "--dry-run", vae="old-vae"), command("klein", "--dry-run", encoder="narrow")
    base = command("klein", "--dry-run", "--variant", "base", "--json")
    whole, low = (
        command("klein", *more, "--json", "-o", str(tmp_path / f"{len(more)}.png"))
        for more in ((), ("--low-vram",))
    )  # fmt: skip

    assert "missing-part" in absent.err
    assert "--part qwen3=REF" in absent.err
    assert "qwen_3_4b" not in absent.err
    assert old.code != 0
    assert "VAE" in old.err
    assert "mismatched-parts" in narrow.err
    assert whole.code == low.code == base.code == 0, (whole.err, low.err, base.err)
    (drawn,), (streamed,) = whole.json["render"], low.json["render"]
    assert drawn["pixel_sha256"] == streamed["pixel_sha256"]
    recipe = drawn["recipe"]
    assert (recipe["steps"], recipe["guidance_scale"], recipe["variant"]) == (8, 1.0, "distilled")
    assert recipe["flow"]["shift"] == pytest.approx(torch.tensor(compute_empirical_mu(24, 8)).exp().item(), rel=1e-5)


def test_dev_s_wrong_text_encoders_are_refused_before_loading_and_layers_after_the_30th_change_nothing(
    civman: Any, dev: dict[str, Path], tmp_path: Path
) -> None:
    def command(encoder: str, *more: str) -> Any:
        part = ("--part", f"mistral={dev[encoder]}") if encoder else ()
        return civman("render", str(dev["dev"]), "a cat", *QUICK, "--vae", str(dev["vae"]), *part, *more)

    draws = ("--steps", "2", "--json", "-o")
    pruned, complete = (command(each, *draws, str(tmp_path / f"{each}.png")) for each in ("pruned", "complete"))
    low = command("pruned", "--low-vram", *draws, str(tmp_path / "low.png"))
    weaker = command("pruned", "--guidance", "1", *draws, str(tmp_path / "weaker.png"))
    planned = command("pruned", "--dry-run", "--json")
    refused = {each: command(each, "--dry-run") for each in ("", "mute", "shallow", "narrow", "qwen")}

    assert "missing-part" in refused[""].err
    assert "--part mistral=REF" in refused[""].err
    assert "`tekken_model`" in refused["mute"].err
    assert "has 29 layers, but the transformer reads 30" in " ".join(refused["shallow"].err.split())
    assert "a width of 16" in refused["narrow"].err
    assert "is not the required part (Mistral Small 3 text encoder)" in " ".join(refused["qwen"].err.split())
    assert 0 not in {each.code for each in refused.values()}
    made = (pruned, complete, low, weaker, planned)
    assert {each.code for each in made} == {0}, [each.err for each in made]
    digests = [each.json["render"][0]["pixel_sha256"] for each in (pruned, complete, low, weaker)]
    assert len(set(digests[:3])) == 1
    assert digests[3] != digests[0]
    recipe = planned.json["plan"][0]["recipe"]
    assert (recipe["steps"], recipe["guidance_scale"], recipe["flow"]["guidance"]) == (25, 1.0, 3.5)
    assert recipe["flow"]["shift"] == pytest.approx(torch.tensor(compute_empirical_mu(24, 25)).exp().item(), rel=1e-5)
