# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""HiDream-I1: what its text encoders see, images that are not square, published sizes, variants, and its parts."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import published_sizes
import tiny_flows
from diffusion import flow_pipelines
from headers import made
from safetensors.torch import load_file, save_file
from test_flow_pictures import NEGATIVE, PROMPT, drawn, recipe_for
from tokenizer_files import json_tokenizer
from transformers import LlamaConfig

from civman.diffusion.compiled_regions import CompiledRegions
from civman.diffusion.families.flow_family import FlowEncoded, Instant
from civman.diffusion.families.hidream import HIDREAM
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.diffusion.part_kinds import LLAMA, LONG_CLIP_G, LONG_CLIP_L
from civman.domain.architecture import Architecture, Kind
from civman.domain.identification.identify import identify
from civman.errors import CannotRender, Cause
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

TEXTS = {"clip-l": "text_encoders.clip_l.transformer.", "clip-g": "text_encoders.clip_g.transformer.",
         "t5": "text_encoders.t5xxl.transformer.", "llama": "text_encoders.llama.transformer."}  # fmt: skip
LAYERS = 32
QUICK = ("--size", "64x96", "--seed", "7", "--device", "cpu")
PUBLISHED = {
    "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 16, "num_single_layers": 32,
    "attention_head_dim": 128, "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048,
    "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32),
    "max_resolution": (128, 128), "llama_layers": [*range(32), *[31] * 16],
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """HiDream-I1 in one file ("whole"), its parts, tokenizers, and text encoders that do not fit."""
    folder = tmp_path_factory.mktemp("hidream")
    found = {"whole": tiny_flows.write(folder / "whole.safetensors", "hidream", HIDREAM)}
    tensors = load_file(found["whole"])
    model = {key.removeprefix("model.diffusion_model."): value for key, value in tensors.items() if "diffusion" in key}
    parts = {role: {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
             for role, prefix in (TEXTS | {"vae": "vae."}).items()}  # fmt: skip
    places = "text_model.embeddings.position_embedding.weight"
    short = {role: parts[role] | {places: parts[role][places][:77].clone()} for role in ("clip-l", "clip-g")}
    llama = parts["llama"]
    contents = parts | {
        "hidream_i1_full_fp16": model, "hidream_i1_dev_bf16": model, "hidream-fast": model, "drawing": model,
        "hidream_e1_full_bf16": model, "short-clip-l": short["clip-l"], "short-clip-g": short["clip-g"],
        "shallow": {key: value for key, value in llama.items() if ".layers.31." not in key},
        "narrow": llama | {"model.embed_tokens.weight": torch.zeros(272, 40)},
        "qwen": llama | {"model.layers.0.self_attn.q_norm.weight": torch.ones(128)},
        "speaking": llama | {"tokenizer_json": tiny_flows.byte_tensor(tiny_flows.llama_tokenizer())},
    }  # fmt: skip
    for name, each in contents.items():
        found[name] = folder / f"{name}.safetensors"
        save_file({key: value.clone() for key, value in each.items()}, found[name])
    found["tokenizer"], found["foreign"] = folder / "tokenizer.json", folder / "foreign.json"
    found["tokenizer"].write_bytes(tiny_flows.llama_tokenizer())
    found["foreign"].write_text(json_tokenizer(["a photo of a cat"] * 9, 262).to_str(), encoding="utf-8")
    return found


@pytest.mark.parametrize(
    "prompt", ["", "a photo of a cat, ", "a cat<|eot_id|> \U0001f431", "cat 猫 " * 200],
    ids=["empty", "short", "control", "cut"],
)  # fmt: skip
def test_the_states_are_those_of_diffusers_pipeline(files: dict[str, Path], prompt: str) -> None:
    model = load(files["whole"], dtype=torch.float32)
    texts = FlowTextEncoders(model)

    ours, pooled = texts.encode(parse(prompt), None, (), is_negative=False)  # type: ignore[arg-type]

    pipe = flow_pipelines.hidream(None, model.components)
    with torch.no_grad():
        t5, _, llama, _, theirs, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    assert llama.shape == (LAYERS, 1, 128, 32)
    assert torch.allclose(pooled, theirs, atol=1e-4)
    assert torch.allclose(ours, torch.cat([t5, *llama], dim=-1), atol=1e-4)
    assert bool(texts.notes) is (len(prompt) > 1000)


def test_a_weight_moves_t5_s_states_away_from_those_of_the_empty_text_and_no_others(files: dict[str, Path]) -> None:
    model = load(files["whole"], dtype=torch.float32)
    texts = FlowTextEncoders(model)

    def encoded(text: str) -> Any:
        return texts.encode(parse(text), None, (), is_negative=False)  # type: ignore[arg-type]

    (weighted, pooled), (plain, plainly), (empty, _) = map(encoded, ("(a photo:1.5)", "a photo", ""))

    t5, rest = [24, weighted.shape[-1] - 24], slice(24, None)
    tokens = len(flow_pipelines.t5()("a photo").input_ids) - 1
    moved, before, nothing = (each.split(t5, dim=-1)[0] for each in (weighted, plain, empty))
    expected = torch.cat([nothing + 1.5 * (before - nothing)], dim=1)[:, :tokens]
    assert torch.allclose(moved[:, :tokens], expected, atol=1e-5)
    assert torch.allclose(moved[:, tokens:], before[:, tokens:], atol=1e-5)
    assert torch.equal(weighted[..., rest], plain[..., rest])
    assert torch.equal(pooled, plainly)


def inputs(rows: int, columns: int) -> tuple[Any, Any]:
    """Noise of this size in tokens, and states of a text."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(1, 16, 2 * rows, 2 * columns, generator=generator)
    context = torch.randn(1, 128, 24 + LAYERS * 32, generator=generator)
    return x, FlowEncoded(context, torch.randn(1, 64, generator=generator))


@pytest.mark.parametrize(
    ("rows", "columns", "tokens"),
    [
        (78, 52, 4096),
        (48, 72, 3456),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in ((48, 85, 4096), (55, 73, 4096), (64, 64, 4096), (50, 50, 2500), (80, 64, 5120))
        ),
    ],
)
def test_images_of_about_a_megapixel_are_padded_as_in_diffusers_and_all_others_are_not(
    rows: int, columns: int, tokens: int
) -> None:
    transformer = tiny_flows.modules("hidream")["transformer"]
    x, text = inputs(rows, columns)

    with torch.no_grad():
        ours = HIDREAM.velocity({"transformer": transformer}, Instant(x, (0.7,)), text)
        t5, *llama = text.context.split([24, *[32] * LAYERS], dim=-1)
        transformer.max_seq = tokens  # diffusers' class pads what is not square to this number of tokens
        (theirs,) = transformer(
            hidden_states=x, timesteps=torch.tensor([700.0]), encoder_hidden_states_t5=t5,
            encoder_hidden_states_llama3=torch.stack(llama), pooled_embeds=text.pooled, return_dict=False,
        )  # fmt: skip

    assert construct_class(HIDREAM.model, tiny_flows.HIDREAM).max_seq == 4096
    assert torch.allclose(ours, -theirs, atol=1e-5)
    assert float(theirs.std()) > 0.05


def test_padding_changes_the_velocity() -> None:
    transformer = tiny_flows.modules("hidream")["transformer"]
    x, text = inputs(76, 52)

    with torch.no_grad():
        padded = HIDREAM.velocity({"transformer": transformer}, Instant(x, (0.7,)), text)
        transformer.max_seq = 76 * 52
        plain = HIDREAM.velocity({"transformer": transformer}, Instant(x, (0.7,)), text)

    assert not torch.allclose(padded, plain, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("size", [(1024, 1024), (832, 1248), (1360, 768)], ids=str)
def test_a_megapixel_is_drawn_as_by_diffusers_pipeline_with_its_own_sizes(
    files: dict[str, Path], size: tuple[int, int]
) -> None:
    width, height = size
    recipe = recipe_for("hidream", cfg=3.0, steps=2, width=width, height=height)

    ours, _ = drawn(load(files["whole"]), recipe)

    assert recipe.flow is not None
    sigmas = flow_table(Schedule.SIMPLE, 2, FlowLevels(recipe.flow.shift, recipe.flow.entries))
    noise = torch.randn((1, 16, height // 8, width // 8), generator=torch.Generator().manual_seed(3))
    scheduler = flow_pipelines.FlowMatchEulerDiscreteScheduler(shift=1.0)
    with torch.no_grad():
        (theirs,) = flow_pipelines.hidream(scheduler, tiny_flows.modules("hidream"))(
            prompt=PROMPT, negative_prompt=NEGATIVE, width=width, height=height, sigmas=sigmas[:-1],
            num_inference_steps=2, latents=noise, guidance_scale=3.0, output_type="pt",
        ).images  # fmt: skip
    assert theirs.shape == (3, height, width)
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert float(theirs.std()) > 0.05


def test_experts_are_not_compiled() -> None:
    transformer = tiny_flows.modules("hidream")["transformer"]

    with pytest.raises(CannotRender, match="--compile supports none of the blocks") as caught:
        CompiledRegions(transformer, torch.device("cpu"), backend=lambda graph, _: graph)

    assert caught.value.code == Cause.NOT_COMPILABLE


def test_the_text_encoder_has_the_options_of_llama_3_1() -> None:
    shapes = published_sizes.part_shapes(HIDREAM, "llama", "llama")
    published = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, rms_norm_eps=1e-5, max_position_embeddings=131072, use_cache=False,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ).to_dict()  # fmt: skip

    ours = LlamaConfig(**LLAMA.config(shapes)).to_dict()

    assert ours == published


def test_the_clip_text_encoders_have_the_published_sizes() -> None:
    for kind, size, parameters in (
        (LONG_CLIP_L, "long-clip-l", 123_781_632),
        (LONG_CLIP_G, "long-clip-g", 694_840_320),
    ):
        config = kind.config(published_sizes.part_shapes(HIDREAM, kind.role, size))
        with unfilled():
            model = construct_class(kind.model, config)
        assert sum(each.numel() for each in model.parameters()) == parameters


def test_the_shapes_of_the_published_model_give_the_options_of_diffusers_class() -> None:
    ((_, shapes, _),) = published_sizes.files_of(HIDREAM)

    config = HIDREAM.config(shapes)

    with unfilled():
        whole = construct_class(HIDREAM.model, config)
    assert config == PUBLISHED
    assert {name: tuple(value.shape) for name, value in whole.state_dict().items()} == shapes
    assert sum(parameter.numel() for parameter in whole.parameters()) // 10**8 == 171
    assert flow_family_of(shapes) is HIDREAM
    assert HIDREAM.widths(config) == {
        "text_encoder": ("projection_dim", 768), "text_encoder_2": ("projection_dim", 1280),
        "text_encoder_3": ("d_model", 4096), "text_encoder_4": ("hidden_size", 4096), "vae": ("latent_channels", 16),
    }  # fmt: skip


def test_the_files_are_identified_by_their_tensors() -> None:
    ((_, shapes, parts),) = published_sizes.files_of(HIDREAM)
    named = {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}
    for role in ("clip-l", "clip-g"):
        parts[role] = {f"text_model.{name}": shape for name, shape in parts[role].items()}

    seen = [identify(made({name: ("BF16", [*shape]) for name, shape in each.items()}))
            for each in (shapes, named, *(parts[role] for role in TEXTS))]  # fmt: skip

    assert {(each.kind, each.architecture) for each in seen[:2]} == {(Kind.CHECKPOINT, Architecture.HIDREAM)}
    assert [each.variant for each in seen[2:]] == ["clip-l", "clip-g", "t5-xxl", "llama-3.1-8b"]


def command(civman: Any, files: dict[str, Path], name: str, *more: str, **changed: str) -> Any:
    """Render with all parts in files of their own; `changed` maps roles to other files, or to "" for none."""
    chosen = {role: role for role in (*TEXTS, "tokenizer")}
    chosen |= {role.replace("_", "-"): each for role, each in changed.items()}
    parts = [word for role, each in chosen.items() if each for word in ("--part", f"{role}={files[each]}")]
    return civman("render", str(files[name]), "a cat", *QUICK, "--vae", str(files["vae"]), *parts, *more)


@pytest.mark.parametrize(
    ("name", "more", "values"),
    [
        ("hidream_i1_full_fp16", (), ("full", 50, 5.0, "Euler", "Simple", 3.0)),
        ("hidream_i1_dev_bf16", (), ("dev", 28, 1.0, "LCM", "Normal", 6.0)),
        ("hidream-fast", (), ("fast", 16, 1.0, "LCM", "Normal", 3.0)),
        ("drawing", (), ("full", 50, 5.0, "Euler", "Simple", 3.0)),
        ("drawing", ("--variant", "dev"), ("dev", 28, 1.0, "LCM", "Normal", 6.0)),
        ("hidream_e1_full_bf16", ("--variant", "full"), ("full", 50, 5.0, "Euler", "Simple", 3.0)),
    ],
)  # fmt: skip
def test_the_file_s_name_or_an_option_chooses_the_defaults(
    civman: Any, files: dict[str, Path], name: str, more: tuple[str, ...], values: tuple[Any, ...]
) -> None:
    made = command(civman, files, name, "--dry-run", "--json", *more)

    assert made.code == 0, made.err
    (planned,) = made.json["plan"]
    recipe = planned["recipe"]
    keys = ("variant", "steps", "guidance_scale", "sampler", "schedule")
    assert (*(recipe[key] for key in keys), recipe["flow"]["shift"]) == values
    assert [part["role"] for part in recipe["parts"]] == ["clip-g", "clip-l", "llama", "t5", "tokenizer"]


def test_hidream_e1_is_refused_by_its_name_by_render_and_check(civman: Any, files: dict[str, Path]) -> None:
    made = command(civman, files, "hidream_e1_full_bf16", "--dry-run")
    checked = civman("check", str(files["hidream_e1_full_bf16"]), "--json")
    other = civman("check", str(files["hidream_i1_full_fp16"]), "--json")

    assert "civman renders only HiDream-I1" in " ".join(made.err.split())
    assert "--variant: full, dev, fast" in " ".join(made.err.split())
    assert made.code != 0
    assert "civman renders only HiDream-I1" in checked.out
    assert (checked.json["check"]["verdict"], other.json["check"]["verdict"]) == ("fits with caution", "fits")
    assert "civman renders only HiDream-I1" not in other.out


def test_hidream_o1_is_refused_as_a_family_of_its_own(civman: Any, tmp_path: Path) -> None:
    names = ("language_model.layers.0.self_attn.q_proj", "x_embedder.proj1", "final_layer2.linear")
    path = tmp_path / "drawing.safetensors"
    save_file({f"model.{name}.weight": torch.zeros(8, 8) for name in names}, path)

    refused = civman("render", str(path), "a cat", *QUICK, "--dry-run")
    checked = civman("check", str(path), "--json")

    assert "unknown-family" in refused.err
    assert "is a model of the family hidream-o1, which civman does not render" in " ".join(refused.err.split())
    assert refused.code != 0
    assert "civman does not render the family of `drawing.safetensors`, hidream-o1" in checked.out


def test_missing_and_wrong_parts_are_refused_before_loading(civman: Any, files: dict[str, Path]) -> None:
    def refused(**changed: str) -> str:
        made = command(civman, files, "drawing", "--dry-run", **changed)
        assert made.code != 0
        return " ".join(made.err.split())

    for role, name in (("clip_l", "clip_l_hidream"), ("clip_g", "clip_g_hidream"), ("llama", "llama_3.1_8b_instruct")):
        words = refused(**{role: ""})
        assert "missing-part" in words
        assert f"--part {role.replace('_', '-')}=REF" in words
        assert f"(`{name}" in words
    for role in ("clip_l", "clip_g"):
        words = refused(**{role: f"short-{role.replace('_', '-')}"})
        assert "mismatched-parts" in words
        assert "reads 77 tokens, but the model's own reads at least 128" in words
    assert "has 31 layers" in refused(llama="shallow")
    assert "a width of 40" in refused(llama="narrow")
    assert "is not the required part (Llama 3.1 8B text encoder)" in refused(llama="qwen")
    silent = refused(tokenizer="")
    assert "missing-part" in silent
    assert "`tokenizer.json` is in the public repository" in silent


def test_a_tokenizer_without_llama_s_control_tokens_is_refused(files: dict[str, Path]) -> None:
    model = load(files["drawing"], vae=files["vae"], parts={role: files[role] for role in TEXTS}
                 | {"tokenizer": files["foreign"]})  # fmt: skip

    with pytest.raises(CannotRender, match="not that of Llama 3") as caught:
        FlowTextEncoders(model).encode(parse("a cat"), None, (), is_negative=False)  # type: ignore[arg-type]

    assert caught.value.code == Cause.MISMATCHED_PARTS


def test_the_image_is_the_same_from_given_parts_from_the_library_and_layer_by_layer(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    draws = ("--steps", "2", "--variant", "full", "--json", "-o")

    parted = command(civman, files, "drawing", *draws, str(tmp_path / "parts.png"))
    low = command(civman, files, "drawing", "--low-vram", *draws, str(tmp_path / "low.png"))
    own = command(civman, files, "drawing", *draws, str(tmp_path / "own.png"), llama="speaking", tokenizer="")
    stored = (*TEXTS, "tokenizer", "vae", "short-clip-l", "short-clip-g", "shallow")
    civman("import", "--offline", "--copy", *(str(files[each]) for each in stored))
    found = civman("render", str(files["drawing"]), "a cat", *QUICK, *draws, str(tmp_path / "found.png"))

    made = (parted, low, own, found)
    assert {each.code for each in made} == {0}, [each.err for each in made]
    pictures = [each.json["render"][0]["pixel_sha256"] for each in made]
    assert len(set(pictures)) == 1, pictures
    chosen, by_itself = (each.json["render"][0]["recipe"]["parts"] for each in (parted, found))
    assert chosen == by_itself
