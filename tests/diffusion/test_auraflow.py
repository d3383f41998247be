# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""AuraFlow and Pony V7: what the text encoder sees, images of any size, defaults, parts, and files as published."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("gguf")

import tiny_flows
import tokenizer_files
from diffusers import AuraFlowPipeline, FlowMatchEulerDiscreteScheduler
from diffusion import flow_pipelines
from diffusion.test_piece_tokenizer import RECORDED
from headers import case
from packed_files import write_gguf
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import UMT5Config

from civman.diffusion.families.auraflow import AURAFLOW
from civman.diffusion.families.flow_family import FlowEncoded, Instant
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.layer_streaming import stream
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.diffusion.part_kinds import PILE_T5, T5
from civman.domain.adapters.adapter_tensors import read_deltas
from civman.domain.adapters.module_fit import fit_modules
from civman.domain.adapters.module_names import ModuleIndex
from civman.errors import InvalidModelFile
from civman.manage.inspection import inspect_path
from civman.planning.flow_plan import fitting_files, variant_of
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

PREFIX, ENCODER, TOKENIZER = "model.diffusion_model.", PILE_T5.prefixes[0], "text_encoders.spiece_model"
QUICK = ("--size", "64x96", "--seed", "7", "--device", "cpu")
TEXTS = [text for text, _ in RECORDED["llama"]["ids"]]
PUBLISHED = {"d_model": 2048, "d_kv": 64, "num_heads": 32, "d_ff": 5120, "num_layers": 24, "vocab_size": 32128}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """AuraFlow in one file ("whole", and "published" with the prefix of the published one), its parts, and others."""
    folder = tmp_path_factory.mktemp("auraflow")
    tensors = load_file(tiny_flows.write(folder / "whole.safetensors", "auraflow", AURAFLOW))
    encoder = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)}
    model = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    rest = {key: value for key, value in tensors.items() if not key.startswith(PREFIX)}
    pieces = {"spiece_model": tensors[TOKENIZER]}
    made = {
        "published": rest | {f"model.{key}": value for key, value in model.items()},
        "silent": {key: value for key, value in rest.items() if key != TOKENIZER}
        | {f"model.{key}": value for key, value in model.items()},
        "pony-v7-base": model, "aura_flow_0.3": model, "drawing": model,
        "vae": {key.removeprefix("vae."): value for key, value in tensors.items() if key.startswith("vae.")},
        "encoder": encoder | pieces, "mute": encoder,
        "broken": encoder | {"spiece_model": tensors[TOKENIZER][:99].clone()},
        "t5": {key: value for key, value in encoder.items() if ".1.layer.0.SelfAttention.relative" not in key} | pieces,
        "narrow": {key: value[:, :16].clone() if value.shape[-1] == 24 and value.ndim == 2 else value
                   for key, value in encoder.items()} | pieces,
        "wide-vae": {key.removeprefix("vae."): value for key, value in tiny_flows.original_tensors(
            "flux1", flow_family("flux1"), tiny_flows.modules("flux1")).items() if key.startswith("vae.")},
    }  # fmt: skip
    for name, each in made.items():
        save_file(each, folder / f"{name}.safetensors")
    (folder / "tokenizer.model").write_bytes(tiny_flows.piece_model("llama"))
    ends = json.loads(tokenizer_files.json_tokenizer(TEXTS, 790, end="</s>").to_str())
    for name, each in (("ends", ends), ("open", ends | {"post_processor": None})):
        (folder / f"{name}.json").write_text(json.dumps(each, indent=1), encoding="utf-8")
    found = {name: folder / f"{name}.safetensors" for name in ("whole", *made)}
    return found | {name: folder / name for name in ("tokenizer.model", "ends.json", "open.json")}


def flow_family(name: str) -> Any:
    from civman.diffusion.families.registry import FLOW_FAMILIES

    return next(each for each in FLOW_FAMILIES if each.name == name)


def encoded(model: Any, prompt: str) -> tuple[Any, tuple[str, ...]]:
    texts = FlowTextEncoders(model)
    context, _ = texts.encode(parse(prompt), None, (), is_negative=False)  # type: ignore[arg-type]
    return context, texts.notes


@pytest.mark.parametrize(
    "prompt", ["", "a photo of a cat, ", "  two  spaces\nand a line", "cat 猫 " * 300],
    ids=["empty", "short", "spaces", "cut"],
)  # fmt: skip
def test_the_states_are_those_of_diffusers_pipeline(files: dict[str, Path], prompt: str) -> None:
    model = load(files["whole"], dtype=torch.float32)

    ours, notes = encoded(model, prompt)

    pipe = AuraFlowPipeline(
        flow_pipelines.PilePieces(), model.components["text_encoder"], tiny_flows.modules("auraflow")["vae"], None, None
    )
    theirs, *_ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, device=torch.device("cpu"))
    assert ours.shape == (1, 256, 24)
    assert torch.allclose(ours, theirs, atol=1e-5)
    is_cut = len(prompt) > 1000
    assert bool(ours[:, -1].any()) is is_cut
    assert (["reads only the first 255" in note for note in notes] or [False]) == [is_cut]


def test_a_weight_moves_the_states_of_its_tokens_from_those_of_the_empty_prompt(files: dict[str, Path]) -> None:
    model = load(files["whole"], dtype=torch.float32)
    words = [("a photo of a ", 1.0), ("cat", 1.4), (" at dawn", 1.0)]
    tokenizer = model.tokenizers["text_encoder"]
    ids = [number for text, _ in words for number in tokenizer.encode(text)] + [2]
    weights = [weight for text, weight in words for _ in tokenizer.encode(text)] + [1.0]
    rows = torch.tensor([ids + [1] * (256 - len(ids)), [2] + [1] * 255])
    mask = torch.tensor([[1] * len(ids) + [0] * (256 - len(ids)), [1] + [0] * 255])
    with torch.no_grad():
        text, empty = model.components["text_encoder"](rows, attention_mask=mask).last_hidden_state * mask[..., None]
    scale = torch.tensor(weights + [1.0] * (256 - len(ids)))[:, None]

    moved, _ = encoded(model, "a photo of a (cat:1.4) at dawn")

    assert torch.allclose(moved[0], empty + scale * (text - empty), atol=1e-5)
    assert not torch.allclose(moved[0], text, atol=1e-2)


def test_the_text_encoder_has_the_options_of_the_published_one() -> None:
    with unfilled():
        shapes = {
            name: tuple(value.shape) for name, value in construct_class(PILE_T5.model, PUBLISHED).state_dict().items()
        }

    ours = UMT5Config(**PILE_T5.config(PILE_T5.shapes_in(shapes, ""))).to_dict()

    published = PUBLISHED | {
        "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": True, "eos_token_id": 2,
        "layer_norm_epsilon": 1e-6, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
    }  # fmt: skip
    assert {key: ours[key] for key in published} == published


@pytest.mark.parametrize("table", [4096, 9216])
def test_the_shapes_of_the_published_models_give_the_options_of_diffusers_class(table: int) -> None:
    with unfilled():
        whole = construct_class(AURAFLOW.model, {"pos_embed_max_size": table})
    wanted = {name: tuple(value.shape) for name, value in whole.state_dict().items()}
    shapes = {source.name: wanted[name] for name, source in AURAFLOW.sources("transformer", wanted, "").items()}

    config = AURAFLOW.config(shapes)

    theirs = {key: value for key, value in dict(whole.config).items() if not key.startswith("_")}
    assert sum(parameter.numel() for parameter in whole.parameters()) // 10**7 == (684 if table == 4096 else 685)
    assert theirs == config | {"sample_size": 64}
    assert flow_family_of(shapes) is AURAFLOW
    assert AURAFLOW.widths(config) == {"text_encoder": ("d_model", 2048), "vae": ("latent_channels", 4)}


@pytest.mark.parametrize("steps", [20, 40, 50])
def test_the_levels_are_those_of_diffusers_scheduler_with_the_same_shift(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 0.0, steps + 1)[:-1].tolist())

    ours = flow_table(Schedule.SIMPLE, steps, FlowLevels(AURAFLOW.defaults("base").shift, AURAFLOW.entries))

    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def bilinear(table: Any, size: int) -> Any:
    """Enlarge a square table (n, n, width): each new place is a weighted mean of its four neighbours."""
    n = len(table)
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, None)
    low = at.astype(int)
    high, share = np.minimum(low + 1, n - 1), at - low
    rows = table[low] * (1 - share)[:, None, None] + table[high] * share[:, None, None]
    return rows[:, low] * (1 - share)[None, :, None] + rows[:, high] * share[None, :, None]


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 7), (3, 8), (8, 9), (12, 6), (10, 17)], ids=str)
def test_positions_are_cut_from_the_middle_of_the_table_which_grows_for_larger_images(rows: int, columns: int) -> None:
    module = tiny_flows.modules("auraflow")["transformer"]
    latents = torch.randn(2, 4, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(4))
    context = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(5))
    theirs = flow_pipelines.auraflow(module)
    longest = max(rows, columns)
    table = module.pos_embed.pos_embed.numpy().reshape(8, 8, -1)
    if (
        longest > 8
    ):  # diffusers' class with the table that ComfyUI makes; its size and the image's both end in the middle
        table, top, left = bilinear(table, longest), (longest - rows) // 2, (longest - columns) // 2
        cut = torch.from_numpy(table[top : top + rows, left : left + columns].reshape(1, rows * columns, -1)).float()
        theirs.pos_embed.pos_embed = torch.nn.Parameter(cut)
        theirs.pos_embed.pe_selection_index_based_on_dim = lambda h, w: torch.arange(rows * columns)

    with torch.no_grad():
        at = Instant(latents, (0.7, 0.2))
        ours = AURAFLOW.velocity({"transformer": module}, at, FlowEncoded(context))
        expected = theirs(latents, context, torch.tensor([0.7, 0.2])).sample

    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "label", "asked", "variant", "steps"),
    [
        ("pony-v7-base", None, None, "pony-v7", 40), ("aura_flow_0.3", None, None, "base", 50),
        ("drawing", "Pony V7", None, "pony-v7", 40), ("drawing", "AuraFlow", None, "base", 50),
        ("drawing", None, None, "base", 50), ("drawing", "AuraFlow", "pony-v7", "pony-v7", 40),
    ],
)  # fmt: skip
def test_the_label_the_file_s_name_or_an_option_tells_pony_v7(
    name: str, label: str | None, asked: str | None, variant: str, steps: int
) -> None:
    file: Any = SimpleNamespace(name=f"{name}.safetensors", label=label)

    found, told = variant_of(AURAFLOW, file, AURAFLOW.variants({}), asked)

    assert (found, AURAFLOW.defaults(found).steps) == (variant, steps)
    assert bool(told) is (asked is None)


def test_a_plan_has_the_defaults_of_the_variant(civman: Any, files: dict[str, Path]) -> None:
    parts = ("--vae", str(files["vae"]), "--part", f"pile-t5={files['encoder']}")
    plans = [
        civman("render", str(files[name]), "a cat", *QUICK, *parts, "--dry-run", "--json")
        for name in ("pony-v7-base", "aura_flow_0.3")
    ]

    found = []
    for plan in plans:
        assert plan.code == 0, plan.err
        (planned,) = plan.json["plan"]
        recipe = planned["recipe"]
        found.append((recipe["variant"], recipe["steps"], recipe["guidance_scale"], recipe["sampler"]))
        assert (recipe["schedule"], recipe["flow"]["shift"]) == ("Simple", 1.73)
    assert found == [("pony-v7", 40, 3.5, "Euler"), ("base", 50, 3.5, "Euler")]


def test_missing_and_wrong_parts_are_refused_before_loading_and_the_right_ones_draw(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    def command(encoder: str, *more: str, vae: str = "vae") -> Any:
        part = ("--part", f"pile-t5={files[encoder]}") if encoder else ()
        given = ("--vae", str(files[vae])) if vae else ()
        return civman("render", str(files["pony-v7-base"]), "a cat", *QUICK, *given, *part, *more)

    draws = ("--steps", "2", "--json", "-o")
    drawn = command("encoder", *draws, str(tmp_path / "own.png"))
    apart, ends, unended = (
        command("mute", "--part", f"tokenizer={files[kind]}", *draws, str(tmp_path / f"{kind}.png"))
        for kind in ("tokenizer.model", "ends.json", "open.json")
    )
    low = command("encoder", "--low-vram", *draws, str(tmp_path / "low.png"))
    whole = civman("render", str(files["published"]), "a cat", *QUICK, *draws, str(tmp_path / "whole.png"))
    refused = {each: command(each, "--dry-run") for each in ("", "mute", "t5", "narrow")}
    no_vae, wide = command("encoder", "--dry-run", vae=""), command("encoder", "--dry-run", vae="wide-vae")

    said = {each: " ".join(result.err.split()) for each, result in refused.items()}
    assert "missing-part" in said[""]
    assert "--part pile-t5=REF" in said[""]
    assert "`pile_t5xl`" in said[""]
    assert "missing-part" in said["mute"]
    assert "`tokenizer.model` is in the public repository EleutherAI/pile-t5-xl" in said["mute"]
    assert "is not the required part (Pile-T5 text encoder)" in said["t5"]
    assert "a width of 16" in said["narrow"]
    assert "contains no VAE" in no_vae.err
    assert "`sdxl_vae`" in " ".join(no_vae.err.split())
    assert "a width of 16, but" in " ".join(wide.err.split())
    assert 0 not in {each.code for each in (*refused.values(), no_vae, wide)}
    made = (drawn, apart, low, ends, unended, whole)
    assert {each.code for each in made} == {0}, [each.err for each in made]
    digests = [each.json["render"][0]["pixel_sha256"] for each in made]
    assert len(set(digests[:3])) == 1
    assert digests[3] == digests[4] != digests[0], "with and without a rule for the end token"
    # in another file, weights lie at other addresses, on which the last bits of products depend
    one, other = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("own.png", "whole.png"))
    assert abs(one - other).max() <= 1
    assert [part["role"] for part in drawn.json["render"][0]["recipe"]["parts"]] == ["pile-t5"]


def test_check_asks_for_the_parts_that_render_asks_for(civman: Any, files: dict[str, Path]) -> None:
    def check(name: str) -> str:
        return " ".join(civman("check", str(files[name])).out.split())

    alone, silent, whole = check("pony-v7-base"), check("silent"), check("published")

    assert "contains no Pile-T5 text encoder" in alone
    assert "contains no VAE" in alone
    assert "the Pile-T5 text encoder in `silent.safetensors` has no tokenizer" in silent
    assert "contains no" not in silent
    assert "contains no" not in whole
    assert "has no tokenizer" not in whole


def test_a_vae_that_civitai_labels_for_another_scale_is_never_taken_by_itself(files: dict[str, Path]) -> None:
    def found(name: str, label: str | None) -> Any:
        inspected = replace(inspect_path(files[name]), name=str(label), label=label)
        return SimpleNamespace(header=inspected.header, inspected=inspected)

    labels = ("SD 1.5", "SD 2.1", "SDXL 1.0", "Pony", "Pony V7", None)
    finder: Any = SimpleNamespace(stored=lambda _role: [found("vae", label) for label in labels])
    (need,) = (need for need in AURAFLOW.needs if need.component == "vae")

    fitting = fitting_files(finder, need, AURAFLOW, found("drawing", None))

    assert [each.inspected.name for each in fitting] == ["SDXL 1.0", "Pony", "Pony V7", "None"]


def test_a_broken_tokenizer_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(InvalidModelFile, match=r"the tokenizer of the Pile-T5 text encoder in `broken\.safetensors`"):
        load(files["drawing"], vae=files["vae"], parts={"pile-t5": files["broken"]})


@pytest.mark.parametrize("words", [32128, 256384], ids=["pile-t5-xl", "umt5-xxl"])
def test_an_encoder_with_a_table_of_distances_in_every_block_is_not_t5(words: int) -> None:
    with unfilled():
        plain = construct_class("T5EncoderModel", PUBLISHED | {"vocab_size": words, "feed_forward_proj": "gated-gelu"})
        tabled = construct_class("UMT5EncoderModel", PUBLISHED | {"vocab_size": words})
    shapes, others = (
        {name: tuple(value.shape) for name, value in module.state_dict().items()} for module in (plain, tabled)
    )

    assert (T5.prefix_in(shapes), T5.prefix_in(others)) == ("", None)
    assert (PILE_T5.prefix_in(shapes), PILE_T5.prefix_in(others)) == (None, "")


def test_tokens_that_belong_to_no_layer_are_streamed_too(files: dict[str, Path]) -> None:
    at = Instant(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6)), (0.5,))
    text = FlowEncoded(torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(7)))
    kept, streamed = load(files["whole"]), load(files["whole"], leaves=0)

    stream(streamed)

    assert streamed.components["transformer"].register_tokens.is_meta
    with torch.no_grad():
        expected = AURAFLOW.velocity(kept.components, at, text)
        assert torch.equal(AURAFLOW.velocity(streamed.components, at, text), expected)
    assert streamed.components["transformer"].register_tokens.is_meta


def test_a_gguf_file_may_lack_the_first_dimension_of_the_positions(files: dict[str, Path], tmp_path: Path) -> None:
    stored = {
        name: ((value[0] if value.ndim == 3 else value).float().numpy(), "F32")
        for name, value in load_file(files["drawing"]).items()
    }

    model = load(
        write_gguf(tmp_path / "pony.gguf", stored, architecture="aura"), vae=files["vae"],
        parts={"pile-t5": files["encoder"]},
    )  # fmt: skip

    assert stored["positional_encoding"][0].ndim == 2
    expected = load(files["whole"]).components["transformer"].state_dict()
    for name, value in model.components["transformer"].state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_in_half_precision_the_parts_that_overflow_are_in_single_precision(files: dict[str, Path]) -> None:
    half, brain = (load(files["whole"], dtype=dtype) for dtype in (torch.float16, torch.bfloat16))

    assert {name: next(module.parameters()).dtype for name, module in half.components.items()} == {
        "transformer": torch.float16, "text_encoder": torch.float32, "vae": torch.float32,
    }  # fmt: skip
    assert {next(module.parameters()).dtype for module in brain.components.values()} == {torch.bfloat16}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_lora_by_diffusers_names_fits_a_file_of_the_published_size(prefix: str) -> None:
    with unfilled():
        whole = construct_class(AURAFLOW.model, {})
    wanted = {name: tuple(value.shape) for name, value in whole.state_dict().items()}
    sources = AURAFLOW.sources("transformer", wanted, prefix)
    from transformer_layouts import header

    index = ModuleIndex.of_header(header({source.name: wanted[name] for name, source in sources.items()}))
    adapter = {name: tuple(shape) for name, (_, shape) in case("own/peft-auraflow-lora")["tensors"].items()}

    fit = fit_modules(read_deltas(adapter), index)

    assert (fit.fitting, fit.total) == (144, 144)
    assert math.isclose(len(adapter), 2 * fit.total)


def test_a_file_with_diffusers_names_is_refused_by_render_and_check_with_the_reason(
    civman: Any, tmp_path: Path
) -> None:
    tensors = tiny_flows.modules("auraflow")["transformer"].state_dict()
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "diffusion.safetensors")

    drawn = civman("render", str(tmp_path / "diffusion.safetensors"), "a cat", *QUICK, "--dry-run")
    checked = civman("check", str(tmp_path / "diffusion.safetensors"))

    reason = (
        "is a model of the family AuraFlow, but not of a kind that civman renders: it has no tensor `double_layers.0"
    )
    assert drawn.code != 0
    assert "unknown-family" in drawn.err
    assert reason in " ".join(drawn.err.split())
    assert reason in " ".join(checked.out.split())
    assert "all together: fits with caution" in checked.out
