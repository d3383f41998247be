"""Text encoders are told apart by their header, and the published files of parts are known by digest."""

import pytest

from civman.domain.architecture import Architecture, Kind
from civman.domain.identification.identify import identify
from civman.domain.known_parts import known_part, known_parts, parts_for
from tests.headers import made


def clip(width, *, prefix="text_model."):
    layer = f"{prefix}encoder.layers.0"
    return {
        f"{prefix}embeddings.token_embedding.weight": ("F16", [49408, width]),
        f"{layer}.self_attn.q_proj.weight": ("F16", [width, width]),
        f"{layer}.mlp.fc1.weight": ("F16", [4 * width, width]),
    }


def open_clip(width):
    block = "transformer.resblocks.0"
    return {
        "token_embedding.weight": ("F16", [49408, width]),
        f"{block}.attn.in_proj_weight": ("F16", [3 * width, width]),
        f"{block}.mlp.c_fc.weight": ("F16", [4 * width, width]),
    }


def t5(width, words, *, dtype="F16", table="shared.weight"):
    attention = "encoder.block.0.layer.0.SelfAttention"
    return {
        table: (dtype, [words, width]), f"{attention}.q.weight": (dtype, [width, width]),
        f"{attention}.relative_attention_bias.weight": (dtype, [32, 64]),
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (dtype, [2 * width, width]),
    }  # fmt: skip


BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def language_model(width, *, prefix="model.", q=4096, norm=False, bias=False, more=()):
    layer = f"{prefix}layers.0"
    tensors = {
        f"{prefix}embed_tokens.weight": ("BF16", [151936, width]),
        f"{layer}.self_attn.q_proj.weight": ("BF16", [q, width]),
        f"{layer}.mlp.gate_proj.weight": ("BF16", [4 * width, width]),
    }
    if norm:
        tensors[f"{layer}.self_attn.q_norm.weight"] = ("BF16", [128])
    if bias:
        tensors[f"{layer}.self_attn.q_proj.bias"] = ("BF16", [q])
    return tensors | {name: ("BF16", [64, 64]) for name in more}


@pytest.mark.parametrize(
    ("tensors", "variant"),
    [
        (clip(768), "clip-l"), (clip(1280), "clip-g"), (open_clip(1280), "clip-g"), (open_clip(1024), "clip-h"),
        (t5(4096, 32128), "t5-xxl"), (t5(4096, 32128, dtype="F8_E4M3"), "t5-xxl"),
        (t5(4096, 32128, table="encoder.embed_tokens.weight"), "t5-xxl"),
        (t5(4096, 256384), "umt5-xxl"), (t5(2048, 32128) | {BIAS.format(1): ("F16", [32, 64])}, "pile-t5-xl"),
        (t5(2048, 32128), ""),
        (language_model(1024, q=2048, norm=True), "qwen3-0.6b"),
        (language_model(1024, q=2048, norm=True, prefix=""), "qwen3-0.6b"),
        (language_model(2560, norm=True), "qwen3-4b"), (language_model(4096, norm=True), "qwen3-8b"),
        (language_model(2560, norm=True, more=("visual.blocks.0.attn.qkv.weight",)), "qwen3-vl-4b"),
        (language_model(2560, norm=True, prefix="model.language_model."), "qwen3-vl-4b"),
        (language_model(3584, q=3584, bias=True), "qwen2.5-vl-7b"),
        (language_model(3584, q=3584, bias=True, prefix="model.language_model."), "qwen2.5-vl-7b"),
        (language_model(2304, q=2048, more=("model.layers.0.pre_feedforward_layernorm.weight",)), "gemma-2-2b"),
        (language_model(5120), "mistral-small-3"), (language_model(3072), "ministral-3-3b"),
        (language_model(4096), "llama-3.1-8b"),
        (clip(512), ""), (t5(1024, 32128), ""), (language_model(777, norm=True), ""),
    ],
)  # fmt: skip
def test_text_encoders_are_told_apart(tensors, variant):
    identity = identify(made(tensors))

    assert identity.kind is Kind.TEXT_ENCODER
    assert (identity.variant or "") == variant


def test_published_parts_are_for_families_that_exist_and_are_listed_once():
    families = {str(each) for each in Architecture}

    assert len({part.sha256 for part in known_parts()}) == len(known_parts()) >= 15
    assert all(set(part.families) <= families for part in known_parts())
    assert [part.name for part in parts_for("flux1", "vae")] == ["ae"]
    assert {part.role for part in known_parts() if "flux1" in part.families} == {"vae", "clip-l", "t5"}
    assert known_part(known_parts()[0].sha256) == known_parts()[0]
