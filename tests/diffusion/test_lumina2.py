# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Lumina 2: what its text encoder sees, its weights, its published size, and files without their tokenizer."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from diffusion.flow_pipelines import Pieces
from headers import case
from safetensors.torch import load_file, save_file

from civman.diffusion.families.lumina2 import LUMINA2
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.key_table import require_sources
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class
from civman.diffusion.open_model import load
from civman.errors import CannotRender, InvalidModelFile
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

INSTRUCTION = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
ENCODER, TOKENIZER = "text_encoders.gemma2_2b.transformer.", "text_encoders.spiece_model"
QUICK = ("--size", "64x64", "--steps", "2", "--seed", "7", "--device", "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Lumina 2 in one file ("whole"), and its parts, the encoder with and without tokenizer."""
    folder = tmp_path_factory.mktemp("lumina2")
    whole = tiny_flows.write(folder / "whole.safetensors", "lumina2", LUMINA2)
    tensors = load_file(whole)
    bare = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)}
    made = {
        "model": {key: value for key, value in tensors.items() if key.startswith("model.")},
        "vae": {key.removeprefix("vae."): value for key, value in tensors.items() if key.startswith("vae.")},
        "encoder": bare | {"spiece_model": tensors[TOKENIZER]}, "mute": bare,
        "broken": bare | {"spiece_model": tensors[TOKENIZER][:99].clone()},
        "both": {key: value for key, value in tensors.items() if key.startswith(("model.", ENCODER))},
        "narrow": bare | {"spiece_model": tensors[TOKENIZER], "model.embed_tokens.weight": torch.zeros(800, 32)},
    }  # fmt: skip
    for name, each in made.items():
        save_file(each, folder / f"{name}.safetensors")
    return {"whole": whole} | {name: folder / f"{name}.safetensors" for name in made}


def encoded(model: Any, prompt: str, *, is_negative: bool = False) -> Any:
    context, _ = FlowTextEncoders(model).encode(parse(prompt), None, (), is_negative=is_negative)  # type: ignore[arg-type]
    return context


def states(model: Any, text: str) -> Any:
    ids = Pieces()([text], padding="longest").input_ids
    with torch.no_grad():
        return model.components["text_encoder"](input_ids=ids, output_hidden_states=True).hidden_states[-2]


def test_the_instruction_stands_before_a_prompt_that_has_none_and_never_before_a_negative_one(
    files: dict[str, Path],
) -> None:
    model = load(files["whole"], dtype=torch.float32)
    own = "You are an assistant that draws anime. <Prompt Start> a cat"

    assert torch.equal(encoded(model, "a cat"), states(model, INSTRUCTION + "a cat"))
    assert torch.equal(encoded(model, own), states(model, own))
    assert torch.equal(encoded(model, "a cat", is_negative=True), states(model, "a cat"))
    assert encoded(model, "", is_negative=True).shape == (1, 1, 24)


def test_a_weight_moves_the_states_of_its_tokens_from_those_of_hidden_padding(files: dict[str, Path]) -> None:
    model = load(files["whole"], dtype=torch.float32)
    words = [("a photo of a ", 1.0), ("cat", 1.4), (" at dawn", 1.0)]
    tokenizer = model.tokenizers["text_encoder"]
    ids = [tokenizer.start] + [number for text, _ in words for number in tokenizer.encode(text)]
    weights = torch.tensor([1.0] + [weight for text, weight in words for _ in tokenizer.encode(text)])
    with torch.no_grad():
        encoder = model.components["text_encoder"]
        text = encoder(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-2]
        # hidden padding sees the first token and itself: each place alone, after that token
        empty = [text[:, 0]]
        for place in range(1, len(ids)):
            places = torch.tensor([[0, place]])
            found = encoder(
                input_ids=torch.tensor([[tokenizer.start, 0]]), position_ids=places, output_hidden_states=True,
                attention_mask={"full_attention": mask(), "sliding_attention": mask()},
            ).hidden_states[-2]  # fmt: skip
            empty.append(found[:, 1])
    without = torch.stack(empty, dim=1)

    moved = encoded(model, "a photo of a (cat:1.4) at dawn", is_negative=True)

    assert torch.allclose(moved, without + weights[None, :, None] * (text - without), atol=1e-4)
    assert not torch.allclose(moved, text, atol=1e-2)


def mask() -> Any:
    """Both tokens see the first one alone."""
    return torch.tensor([[[[0.0, float("-inf")], [0.0, float("-inf")]]]])


def test_a_long_prompt_is_cut_at_256_tokens_and_a_note_says_so(files: dict[str, Path]) -> None:
    texts = FlowTextEncoders(load(files["whole"], dtype=torch.float32))

    context, _ = texts.encode(parse("cat " * 300), None, (), is_negative=True)  # type: ignore[arg-type]

    assert context.shape[1] == 256
    assert "Gemma 2 text encoder reads only the first 256" in texts.notes[0]


def test_the_published_file_has_the_tensors_of_the_model_that_its_shapes_describe() -> None:
    shapes = {name: tuple(shape) for name, (_, shape) in case("orig-lumina2")["tensors"].items()}
    family = flow_family_of(shapes)
    assert family is LUMINA2
    prefix = family.prefix_in(shapes)
    config = family.config({name.removeprefix(prefix): shape for name, shape in shapes.items()})
    with unfilled():
        model = construct_class(family.model, config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    sources = family.sources("transformer", wanted, prefix)

    require_sources("transformer", wanted, sources, shapes, "orig-lumina2")

    assert (config["num_attention_heads"], config["num_kv_heads"], config["num_layers"]) == (24, 8, 26)
    assert shapes.keys() - {source.name for source in sources.values()} <= {f"{prefix}norm_final.weight"}


def test_an_encoder_without_its_tokenizer_is_refused_before_loading_and_one_with_it_draws(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    def command(encoder: str, *more: str) -> Any:
        return civman("render", str(files["model"]), "a cat", *QUICK, *vae, "--part", f"gemma2={files[encoder]}", *more)

    vae = ("--vae", str(files["vae"]))
    mute, whole = command("mute", "--dry-run"), command("encoder", "--json", "-o", str(tmp_path / "a.png"))
    low = command("encoder", "--low-vram", "--json", "-o", str(tmp_path / "b.png"))
    absent = civman("render", str(files["model"]), "a cat", *QUICK, *vae, "--dry-run")
    wrong, narrow = command("vae", "--dry-run"), command("narrow", "--dry-run")
    checked = civman("check", str(files["both"]))

    assert mute.code != 0
    assert "missing-part" in mute.err
    assert "`spiece_model`" in mute.err
    assert "gemma_2_2b_fp16" in mute.err
    assert "missing-part" in absent.err
    assert "--part gemma2=REF" in absent.err
    assert "wrong-kind" in wrong.err
    assert "mismatched-parts" in narrow.err
    assert "a width of 32" in narrow.err
    assert "the Gemma 2 text encoder in `both.safetensors` has no tokenizer" in " ".join(checked.out.split())
    assert whole.code == low.code == 0, (whole.err, low.err)
    (drawn,), (streamed,) = whole.json["render"], low.json["render"]
    assert drawn["pixel_sha256"] == streamed["pixel_sha256"]
    assert [part["role"] for part in drawn["recipe"]["parts"]] == ["gemma2"]


def test_a_broken_tokenizer_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(InvalidModelFile, match=r"the tokenizer of the Gemma 2 text encoder in `broken\.safetensors`"):
        load(files["model"], vae=files["vae"], parts={"gemma2": files["broken"]})
    with pytest.raises(CannotRender, match="has no tokenizer"):
        load(files["model"], vae=files["vae"], parts={"gemma2": files["mute"]})


def test_a_negative_prompt_has_no_instruction_beside_a_prompt_that_changes_either(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    def drawn(prompt: str, negative: str) -> str:
        made = civman(
            "render", str(files["model"]), prompt, "--negative", negative, *QUICK, "--vae", str(files["vae"]),
            "--part", f"gemma2={files['encoder']}", "--json", "-o", str(tmp_path / f"{len(prompt + negative)}.png"),
        )  # fmt: skip
        assert made.code == 0, made.err
        return str(made.json["render"][0]["pixel_sha256"])

    assert drawn("[a cat:a cat:0.5]", "a dog") == drawn("a cat", "a dog")
    assert drawn("a cat", f"{INSTRUCTION}a dog") != drawn("a cat", "a dog")
