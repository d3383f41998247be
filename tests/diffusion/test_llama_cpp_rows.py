# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""GGUF files of Llama and Mistral, whose queries and keys llama.cpp reorders, give the authors' model.

The reader of GGUF files in transformers says what the order of the rows is.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
gguf = pytest.importorskip("gguf")

import tiny_flows
from gguf import GGMLQuantizationType as Kind
from packed_files import SCALES, llama_cpp, quantised, random_blocks, write_gguf
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

from civman.diffusion.component_layouts import Source
from civman.diffusion.families.ernie_image import ERNIE_IMAGE
from civman.diffusion.families.flux2 import FLUX2_DEV
from civman.diffusion.families.hidream import HIDREAM
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.model_classes import construct_class
from civman.diffusion.part_kinds import LLAMA, MINISTRAL, MISTRAL, PartKind
from civman.errors import InvalidModelFile
from civman.manage.inspection import inspect_path

HEADS, KEYS, WIDTH = 6, 2, 256
QUICK = ("--size", "64x96", "--seed", "7", "--device", "cpu", "--steps", "2", "--json")


def said(architecture: str, **changed: int) -> dict[str, str | int]:
    counts = {"attention.head_count": HEADS, "attention.head_count_kv": KEYS} | {
        key.replace("__", "."): value for key, value in changed.items()
    }
    return {f"{architecture}.{key}": value for key, value in counts.items() if value}


def numbers(kind: str, rows: int) -> np.ndarray:
    if kind in SCALES:
        return random_blocks(kind, rows, WIDTH, seed=rows)
    drawn = np.random.default_rng(rows).standard_normal((rows, WIDTH)).astype(np.float32)
    return np.asarray(gguf.quants.quantize(drawn, Kind[kind]))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *SCALES])
@pytest.mark.parametrize("architecture", ["llama", "mistral3"])
def test_rows_have_the_order_that_transformers_own_reader_gives_them(
    tmp_path: Path, kind: str, architecture: str
) -> None:
    stored = {f"blk.1.attn_{side}.weight": (numbers(kind, 16 * heads), kind)
              for side, heads in (("q", HEADS), ("k", KEYS), ("v", KEYS))}  # fmt: skip
    bias = np.arange(16 * HEADS, dtype=np.float32)
    path = write_gguf(
        tmp_path / "a.gguf", stored | {"blk.1.attn_q.bias": (bias, "F32")}, said(architecture),
        architecture=architecture,
    )  # fmt: skip

    weights = Weights(path)

    reader = TENSOR_PROCESSORS["llama"]({"num_attention_heads": HEADS, "num_key_value_heads": KEYS})
    for name, (data, _) in stored.items():
        values = gguf.quants.dequantize(data, Kind[kind]).reshape(-1, WIDTH)
        theirs = torch.from_numpy(reader.process(values, name).weights.copy())
        ours = f"model.layers.1.self_attn.{name[11]}_proj.weight"
        assert torch.equal(weights.read(Source(ours)).float(), theirs), name
        assert torch.equal(weights.read(Source(ours, rows=(5, 9))).float(), theirs[5:14]), name
        assert ("_v" in name) is torch.equal(theirs, torch.from_numpy(values.copy()))
        # a reordered tensor is a copy; all others are views of the file, unless they are unpacked
        assert weights.is_packed(ours) is ("_v" not in name or kind in SCALES)
    theirs = torch.from_numpy(reader.process(bias, "blk.1.attn_q.bias").weights.copy())
    assert torch.equal(weights.read(Source("model.layers.1.self_attn.q_proj.bias")), theirs)


def test_keys_have_as_many_heads_as_queries_if_the_file_states_no_other_number(tmp_path: Path) -> None:
    data = numbers("F32", 16 * HEADS)
    metadata = said("llama", attention__head_count_kv=0)
    path = write_gguf(tmp_path / "a.gguf", {"blk.0.attn_k.weight": (data, "F32")}, metadata, architecture="llama")

    found = Weights(path).read(Source("model.layers.0.self_attn.k_proj.weight"))

    reader = TENSOR_PROCESSORS["llama"]({"num_attention_heads": HEADS, "num_key_value_heads": HEADS})
    assert torch.equal(found, torch.from_numpy(reader.process(data, "blk.0.attn_k.weight").weights.copy()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention__head_count": 0}, r"number of attention heads \(`llama\.attention\.head_count`\)"),
        ({"attention__head_count": 5}, "has 96 rows, which cannot be divided among 5 attention heads"),
        ({"attention__head_count": 32}, "has 96 rows, which cannot be divided among 32 attention heads"),
        ({"rope__dimension_count": 8}, "has 16 rows in each attention head, but the file states 8"),
    ],
)  # fmt: skip
def test_numbers_of_heads_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, int], message: str) -> None:
    tensors = {"blk.0.attn_q.weight": (numbers("F32", 16 * HEADS), "F32")}
    path = write_gguf(tmp_path / "a.gguf", tensors, said("llama", **changed), architecture="llama")

    for read in (Weights, inspect_path):
        with pytest.raises(InvalidModelFile, match=message):
            read(path)


def test_packed_numbers_without_rows_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"blk.0.attn_q.bias": (random_blocks("Q8_0", 1, 96, 1)[0], "Q8_0")},
                      said("llama"), architecture="llama")  # fmt: skip

    with pytest.raises(InvalidModelFile, match="no whole blocks of Q8_0"):
        Weights(path)


ENCODERS = {
    "llama": (LLAMA, 32, "llama"), "mistral": (MISTRAL, 32, "llama"), "mistral, new": (MISTRAL, 32, "mistral3"),
    "ministral": (MINISTRAL, 3, "mistral3"),
}  # fmt: skip


def encoder(layers: int) -> dict[str, Any]:
    """The tensors of a language model 64 wide, with random numbers; two heads of queries and one of keys and values."""
    drawn = torch.Generator().manual_seed(layers)
    shapes = {"self_attn.q_proj": (256, 64), "self_attn.k_proj": (128, 64), "self_attn.v_proj": (128, 64),
              "self_attn.o_proj": (64, 256), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64),
              "mlp.down_proj": (64, 96), "input_layernorm": (64,), "post_attention_layernorm": (64,)}  # fmt: skip
    every = {
        f"model.layers.{number}.{name}.weight": shape for number in range(layers) for name, shape in shapes.items()
    }
    every |= {"model.embed_tokens.weight": (300, 64), "model.norm.weight": (64,)}
    return {name: torch.randn(shape, generator=drawn) / 4 for name, shape in every.items()}


def states(kind: PartKind, path: Path) -> Any:
    """The hidden states of all layers for the same tokens, from the encoder in a file."""
    weights = Weights(path)
    prefix = kind.prefix_in(weights.shapes)
    assert prefix is not None
    config = kind.config(kind.shapes_in(weights.shapes, prefix))
    model = construct_class(kind.model, config).eval()
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    sources = kind.sources_in(wanted, config, weights.shapes, prefix)
    model.load_state_dict({name: weights.read(source).float() for name, source in sources.items()})
    with torch.no_grad():
        found = model(torch.arange(3, 40)[None], output_hidden_states=True)
    return torch.cat([*found.hidden_states, found.last_hidden_state])


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_states_are_those_of_the_authors_file(tmp_path: Path, name: str, kind: str) -> None:
    part, layers, architecture = ENCODERS[name]
    path, meant = llama_cpp(tmp_path / "a.gguf", encoder(layers), kind, architecture=architecture)
    # the same tensors under the name of an architecture that llama.cpp does not reorder
    other, _ = llama_cpp(tmp_path / "other.gguf", encoder(layers), kind, architecture="qwen2")
    save_file(meant, tmp_path / "a.safetensors")

    ours, theirs = states(part, path), states(part, tmp_path / "a.safetensors")

    assert torch.equal(ours, theirs)
    assert not torch.allclose(states(part, other), theirs, atol=1e-2)


FAMILIES = {
    "hidream": (HIDREAM, "text_encoders.llama.transformer.", "llama", "llama", "tokenizer.json"),
    "flux2-dev": (FLUX2_DEV, "text_encoders.mistral3_24b.transformer.", "mistral", "llama", "tekken.json"),
    "ernie-image": (ERNIE_IMAGE, "text_encoders.ministral3_3b.transformer.", "ministral", "mistral3", "tekken.json"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_image_is_that_of_the_authors_file_and_other_files_are_refused_before_loading(
    civman: Any, tmp_path: Path, name: str
) -> None:
    family, prefix, role, architecture, tokenizer = FAMILIES[name]
    tensors = load_file(tiny_flows.write(tmp_path / "whole.safetensors", name, family))
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    rest = {key: value for key, value in tensors.items() if not key.startswith(prefix) and "tekken" not in key
            and "tokenizer" not in key}  # fmt: skip
    save_file(rest, tmp_path / "rest.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(tiny_flows.llama_tokenizer())
    (tmp_path / "tekken.json").write_bytes(tiny_flows.tekken_model())
    path, meant = llama_cpp(tmp_path / "encoder.gguf", own, "Q8_0", architecture=architecture)
    odd, _ = llama_cpp(tmp_path / "odd.gguf", own, "Q8_0", architecture="mistral4")
    save_file(meant, tmp_path / "encoder.safetensors")

    def command(encoder: Path, *more: str) -> Any:
        parts = ("--part", f"{role}={encoder}", "--part", f"tokenizer={tmp_path / tokenizer}")
        return civman("render", str(tmp_path / "rest.safetensors"), "a cat", *QUICK, *parts, *more)

    plain, packed, low = (
        command(tmp_path / "encoder.safetensors", "-o", str(tmp_path / "plain.png")),
        command(path, "-o", str(tmp_path / "packed.png")),
        command(path, "--low-vram", "-o", str(tmp_path / "low.png")),
    )
    planned = command(path, "--dry-run")
    refused = command(odd, "--dry-run")
    mute = civman(
        "render", str(tmp_path / "rest.safetensors"), "a cat", *QUICK, "--part", f"{role}={path}", "--dry-run"
    )

    made = (plain, packed, low, planned)
    assert {each.code for each in made} == {0}, [each.err for each in made]
    assert packed.json["render"][0]["pixel_sha256"] == low.json["render"][0]["pixel_sha256"]
    # the last bit of a product depends on where in memory the weights of a file begin
    first, second = (np.asarray(Image.open(tmp_path / f"{each}.png")).astype(int) for each in ("plain", "packed"))
    assert abs(first - second).max() <= 1
    assert role in [part["role"] for part in planned.json["plan"][0]["recipe"]["parts"]]
    assert "`odd.gguf` is not the required part" in refused.json["error"]["message"]
    assert "has no tokenizer" in mute.json["error"]["message"]
    assert 0 not in {refused.code, mute.code}

    imported = [civman("import", str(each)) for each in (path, tmp_path / tokenizer)]
    found = civman("render", str(tmp_path / "rest.safetensors"), "a cat", *QUICK, "--dry-run")

    assert {each.code for each in imported} == {0}, [each.err for each in imported]
    assert found.code == 0, found.err
    assert found.json["plan"][0]["recipe"]["parts"] == planned.json["plan"][0]["recipe"]["parts"], "from the library"


@pytest.mark.parametrize(
    ("variant", "width", "architecture"),
    [("llama-3.1-8b", 4096, "llama"), ("mistral-small-3", 5120, "llama"), ("mistral-small-3", 5120, "mistral3"),
     ("ministral-3-3b", 3072, "mistral3")],
)  # fmt: skip
def test_the_published_files_are_identified(
    civman: Any, tmp_path: Path, variant: str, width: int, architecture: str
) -> None:
    shapes = {"token_embd.weight": (64, width), "blk.0.attn_q.weight": (4096, width),
              "blk.0.attn_k.weight": (1024, width), "blk.0.ffn_gate.weight": (64, width)}  # fmt: skip
    stored, _ = quantised({name: torch.zeros(shape) for name, shape in shapes.items()}, "Q8_0")
    counts = {"attention__head_count": 32, "attention__head_count_kv": 8, "rope__dimension_count": 128}
    path = write_gguf(tmp_path / "a.gguf", stored, said(architecture, **counts), architecture=architecture)

    inspected = civman("inspect", str(path), "--json")

    assert inspected.code == 0, inspected.err
    assert (inspect_path(path).identity.variant, f'"{variant}"' in inspected.out) == (variant, True)
