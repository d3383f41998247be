# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Flux.2 Klein: its VAE and noise, its levels, its published sizes; Flux.2 dev is refused by name."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusion.flow_pipelines import qwen
from headers import case
from safetensors.torch import load_file, save_file

from civman.diffusion import vae_codec
from civman.diffusion.families.flux2 import FLUX2_KLEIN
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.key_table import require_sources
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class
from civman.diffusion.noise import PictureNoise, Variation
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.domain.known_parts import parts_for
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

VAE, ENCODER = "vae.", "text_encoders.qwen3_06b.transformer.model."
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
        "klein": model, "dev": model | {"guidance_in.in_layer.weight": torch.zeros(128, 256)},
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


@pytest.mark.parametrize(("heads", "depth", "text"), [(24, (5, 20), 2560), (32, (8, 24), 4096)], ids=["4b", "9b"])
def test_the_published_shapes_give_the_model_that_has_them(heads: int, depth: tuple[int, int], text: int) -> None:
    arguments = {
        "num_layers": depth[0], "num_single_layers": depth[1], "num_attention_heads": heads,
        "joint_attention_dim": 3 * text, "guidance_embeds": False,
    }  # fmt: skip
    with unfilled():
        published = construct_class(FLUX2_KLEIN.model, arguments).state_dict()
    wanted = {name: tuple(value.shape) for name, value in published.items()}
    sources = FLUX2_KLEIN.sources("transformer", wanted, "")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, source in sources.items():
        rows = shapes.get(source.name, (0,))[0] if source.rows else 0
        shapes[source.name] = (rows + wanted[name][0], *wanted[name][1:])

    config = FLUX2_KLEIN.config(shapes)

    with unfilled():
        ours = construct_class(FLUX2_KLEIN.model, config).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == wanted
    assert flow_family_of(shapes) is FLUX2_KLEIN
    assert FLUX2_KLEIN.widths(config) == {"text_encoder": ("hidden_size", text), "vae": ("latent_channels", 32)}
    assert bool(parts_for("flux2", "qwen3", text)) == (text == 2560)


def test_the_recorded_header_of_klein_has_every_tensor() -> None:
    shapes = {name: tuple(shape) for name, (_, shape) in case("own/bfl-flux2-klein-4b")["tensors"].items()}
    assert flow_family_of(shapes) is FLUX2_KLEIN
    prefix = FLUX2_KLEIN.prefix_in(shapes) or ""
    config = FLUX2_KLEIN.config({name.removeprefix(prefix): shape for name, shape in shapes.items()})
    with unfilled():
        model = construct_class(FLUX2_KLEIN.model, config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    sources = FLUX2_KLEIN.sources("transformer", wanted, prefix)

    require_sources("transformer", wanted, sources, shapes, "bfl-flux2-klein-4b")

    assert shapes.keys() == {source.name for source in sources.values()}
    assert (
        flow_family_of({name: tuple(shape) for name, (_, shape) in case("own/bfl-flux2-dev")["tensors"].items()})
        is None
    )


def test_missing_and_wrong_parts_and_dev_are_refused_before_loading_and_klein_draws(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    def command(model: str, *more: str, vae: str = "vae", encoder: str = "encoder") -> Any:
        parts = ("--vae", str(files[vae]), "--part", f"qwen3={files[encoder]}")
        return civman("render", str(files[model]), "a cat", *QUICK, *parts, *more)

    absent = civman("render", str(files["klein"]), "a cat", *QUICK, "--vae", str(files["vae"]), "--dry-run")
    old, narrow = command("klein", "--dry-run", vae="old-vae"), command("klein", "--dry-run", encoder="narrow")
    dev = command("dev", "--dry-run")
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
    assert dev.code != 0
    assert "Flux.2 dev" in dev.err
    assert "Mistral" in dev.err
    assert whole.code == low.code == base.code == 0, (whole.err, low.err, base.err)
    (drawn,), (streamed,) = whole.json["render"], low.json["render"]
    assert drawn["pixel_sha256"] == streamed["pixel_sha256"]
    recipe = drawn["recipe"]
    assert (recipe["steps"], recipe["guidance_scale"], recipe["variant"]) == (8, 1.0, "distilled")
    assert recipe["flow"]["shift"] == pytest.approx(torch.tensor(compute_empirical_mu(24, 8)).exp().item(), rel=1e-5)


def test_a_start_image_a_second_pass_and_step_noise_work(civman: Any, files: dict[str, Path], tmp_path: Path) -> None:
    start, last = tmp_path / "start.png", tmp_path / "last.png"
    common = (str(files["whole"]), "a cat", *QUICK, "--steps", "2", "--json")

    first = civman("render", *common, "--sampler", "Euler a", "-o", str(start))
    more = ("--init", str(start), "--strength", "0.6", "--sampler", "DPM++ SDE", "-o", str(last))
    second = civman("render", *common, *more)
    larger = civman("render", *common, "--hires", "2", "-o", str(tmp_path / "larger.png"))

    assert first.code == second.code == larger.code == 0, (first.err, second.err, larger.err)
    (made,) = larger.json["render"]
    assert (made["recipe"]["hires"]["width"], made["recipe"]["hires"]["height"]) == (128, 192)
    assert len({each.json["render"][0]["pixel_sha256"] for each in (first, second, larger)}) == 3
