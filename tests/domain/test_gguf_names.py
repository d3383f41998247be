"""llama.cpp's names of a text encoder's tensors become those of its authors, as the package `gguf` relates them."""

import pytest

from civman.domain.architecture import Kind
from civman.domain.files.gguf_names import ARCHITECTURES, author_names
from civman.domain.identification.identify import identify
from tests.headers import made

LANGUAGE_MODEL = [
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
    *(f"model.layers.{n}.{name}" for n in (0, 11) for name in (
        "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
        "mlp.down_proj.weight")),
]  # fmt: skip
NORMS = [f"model.layers.3.self_attn.{side}_norm.weight" for side in "qk"]
BIASES = [f"model.layers.3.self_attn.{side}_proj.bias" for side in "qkv"]
T5 = [
    "shared.weight", "encoder.final_layer_norm.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    *(f"encoder.block.{n}.layer.{name}.weight" for n in (0, 23) for name in (
        "0.layer_norm", "1.layer_norm", "0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v",
        "0.SelfAttention.o", "1.DenseReluDense.wi_0", "1.DenseReluDense.wi_1", "1.DenseReluDense.wo")),
]  # fmt: skip
NAMES = {
    "QWEN3": LANGUAGE_MODEL + NORMS, "QWEN2": LANGUAGE_MODEL + BIASES, "QWEN2VL": LANGUAGE_MODEL + BIASES, "T5": T5,
    "T5ENCODER": T5, "LLAMA": LANGUAGE_MODEL, "MISTRAL3": LANGUAGE_MODEL,
}  # fmt: skip


@pytest.mark.parametrize("architecture", NAMES)
def test_names_are_those_that_the_package_relates(architecture):
    gguf = pytest.importorskip("gguf")
    kind = gguf.MODEL_ARCH[architecture]
    table = gguf.get_tensor_name_map(kind, 32)

    for theirs in NAMES[architecture]:
        packed = table.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert packed is not None, theirs
        assert author_names(gguf.MODEL_ARCH_NAMES[kind], [packed]) == {packed: theirs}
    assert gguf.MODEL_ARCH_NAMES[kind] in ARCHITECTURES


@pytest.mark.parametrize("architecture", ["flux", "gemma2", "gemma3", "llama4", "mistral4", ""])
def test_names_of_diffusion_models_and_of_language_models_that_llama_cpp_changes_otherwise_are_kept(architecture):
    names = ["double_blocks.0.img_attn.qkv.weight", "blk.0.attn_q.weight"]

    assert author_names(architecture, names) == {name: name for name in names}


def test_a_translated_header_is_identified():
    packed = {"token_embd.weight": [151936, 2560], "blk.0.attn_q.weight": [4096, 2560],
              "blk.0.attn_q_norm.weight": [128], "blk.0.ffn_gate.weight": [9728, 2560]}  # fmt: skip
    names = author_names("qwen3", packed)

    identity = identify(made({names[name]: ("F16", shape) for name, shape in packed.items()}))

    assert (identity.kind, identity.variant) == (Kind.TEXT_ENCODER, "qwen3-4b")


def test_qwen3_vl_keeps_the_level_that_tells_it_from_qwen3():
    packed = {"token_embd.weight": [151936, 2560], "blk.0.attn_q.weight": [4096, 2560],
              "blk.0.attn_q_norm.weight": [128], "blk.0.ffn_gate.weight": [9728, 2560]}  # fmt: skip
    plain, names = author_names("qwen3", packed), author_names("qwen3vl", packed)

    identity = identify(made({names[name]: ("F16", shape) for name, shape in packed.items()}))

    assert names == {name: theirs.replace("model.", "model.language_model.") for name, theirs in plain.items()}
    assert (identity.kind, identity.variant) == (Kind.TEXT_ENCODER, "qwen3-vl-4b")
