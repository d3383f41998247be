"""What a file is: recorded headers of real models, and one small file per rule with its near misses."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_cases import CASES, W, flux, kohya, lora, plain, unet

from civman.domain.adapters.adapter_tensors import read_deltas
from civman.domain.architecture import Adapter, Architecture, Confidence, KeyFormat, Kind, Precision
from civman.domain.catalog import ModelType
from civman.domain.compatibility import Part, check
from civman.domain.identification.claims import claims
from civman.domain.identification.identify import _adapter_look, facts, identify
from civman.domain.identification.rule_tables import ADAPTED, ALL
from civman.domain.identification.rules import Look, Rule, first
from tests.headers import RECORDED, SHARED, case, made, of_file, own_names, recorded


def answer(name):
    identity = identify(recorded(name))
    return {
        "type": identity.model_type.value, "family": identity.architecture.value,
        "adapter": identity.adapter.value if identity.adapter else None, "format": identity.key_format.value,
    }  # fmt: skip


NOT_YET: dict[str, set[str]] = {
    "own/vae-tiny-diffusers": {"format"},
    "own/motion-sd1-diffusers": {"format"},
    "own/motion-sdxl-diffusers": {"format"},
    "own/lumina2-diffusers": {"format"},
    "own/z-image-diffusers": {"format"},
    "own/sana-diffusers": {"format"},
    "own/hunyuan-dit-diffusers": {"format"},
    "own/hidream-diffusers": {"format"},
    "own/cogvideox-2b-diffusers": {"format"},
    "own/ltx-diffusers": {"format"},
    "own/ltx2-diffusers": {"format"},
    "own/mochi-diffusers": {"format"},
    "own/cosmos-diffusers": {"format"},
    "own/peft-sd1-ia3": {"family"},
}
"""What is not answered rightly yet. The list is exact: whoever makes one right takes it off here."""


def wrong_answers(name):
    expected, also = case(name)["expected"], case(name)["also_ok"]
    return {
        key: (value, expected[key])
        for key, value in answer(name).items()
        if value != expected[key] and value not in also.get(key, [])
    }


@pytest.mark.parametrize("name", [*own_names(), *RECORDED])
def test_header_is_what_its_source_says(name):
    wrong = wrong_answers(name)

    assert set(wrong) == NOT_YET.get(name, set()), wrong


@pytest.mark.parametrize("names", [own_names(), RECORDED], ids=["own", "recorded"])
def test_table_of_headers_has_no_wrong_answer_and_three_percent_unknown_at_most(names, capsys):
    if not names:
        pytest.skip("the recorded headers are not here")
    outcome = Counter()
    lines = [f"{'header':34} {'what it is':62} {'keys':10} {'sure':8} rules"]
    for name in names:
        identity, wrong = identify(recorded(name)), wrong_answers(name)
        known = "family" in NOT_YET.get(name, ())
        family = identity.architecture.value
        outcome["not yet" if known else "right" if "family" not in wrong else "unknown" if family == "unknown"
                else "wrong"] += 1  # fmt: skip
        lines.append(
            f"{name:34} {identity.describe():62} {identity.key_format:10} {identity.confidence:8} "
            + ", ".join(identity.rules)
        )
    with capsys.disabled():
        print("\n" + "\n".join(lines) + f"\n{dict(outcome)}")

    assert outcome["wrong"] == 0
    assert outcome["unknown"] <= 0.03 * len(names)


def test_rule_ids_are_unique_and_every_rule_has_a_case():
    ids = [rule.id for rule in ALL]

    assert len(ids) == len(set(ids))
    assert set(ids) == set(CASES)


@pytest.mark.parametrize("rule_id", CASES)
def test_each_rule_speaks_on_its_case(rule_id):
    identity = identify(made(CASES[rule_id]))

    assert rule_id in identity.rules
    assert identity.kind is not Kind.UNKNOWN
    assert len(identity.reasons) >= 1


def near_misses(rule: Rule, look: Look):
    """The look with one condition of the rule broken at a time."""
    for expression in rule.needs:
        yield expression, without(look, look.found(expression))
    for name, axis, _ in rule.where:
        if found := look.found(name):
            changed = {p: frozenset((*s[:axis], 7777, *s[axis + 1 :]) for s in look.shapes[p]) for p in found}
            yield f"where {name}", replace(look, shapes={**look.shapes, **changed})
    for name, change in (
        (rule.axis and rule.axis[0], lambda s: tuple(size + 1 for size in s)),
        (rule.ratio and rule.ratio[0], lambda s: (s[0] * 3, *s[1:])),
        (rule.dims and rule.dims[0], lambda s: (*s, 5)),
    ):
        if name:
            changed = {p: frozenset(map(change, look.shapes[p])) for p in look.found(name)}
            yield name, replace(look, shapes={**look.shapes, **changed})
    if rule.top:
        yield "top", replace(look, tops=dict.fromkeys(look.tops, 150))
    if rule.depth:
        yield "depth", replace(look, depth=99)


def without(look: Look, patterns: list[str]) -> Look:
    kept = {pattern: shapes for pattern, shapes in look.shapes.items() if pattern not in patterns}
    return replace(look, text="\n".join(kept), shapes=kept)


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.id)
def test_each_rule_is_silent_when_any_one_of_its_conditions_fails(rule):
    tensors = CASES[rule.id]
    prefixes = ("", "model.diffusion_model.", "control_model.")
    looks = [Look.at((name.removeprefix(prefix), shape) for name, shape in tensors.items()) for prefix in prefixes]
    looks.append(_adapter_look(read_deltas(tensors).modules))
    look = next(look for look in looks if rule.holds(look))

    broken = list(near_misses(rule, look))

    assert broken or rule.lacks
    assert [what for what, near in broken if rule.holds(near)] == []


@pytest.mark.parametrize(
    ("tensors", "family"),
    [
        pytest.param(flux(guide=False), "flux1", id="schnell is not Chroma, which also has no guidance input"),
        pytest.param(unet(768, label=1280), "sd1", id="extra conditioning alone does not make SDXL"),
        pytest.param(unet(1280), "unknown", id="1280 wide without extra conditioning is no refiner"),
        pytest.param(unet(2048, blocks=8, label=2816), "sdxl", id="2816 wide conditioning is not Kolors"),
        pytest.param(plain("txt_norm.weight"), "unknown", id="half of Qwen-Image's marks"),
        pytest.param(plain("head.modulation"), "unknown", id="half of Wan's marks"),
        pytest.param(kohya(("double_blocks_0_img_mlp_0", 12288, 3072)), "flux1", id="fourfold is not Flux.2"),
        pytest.param(kohya(("double_blocks_18_img_attn_qkv", 9216, 3072)), "flux1", id="as many blocks as Flux.1 has"),
        pytest.param(
            lora(("transformer.transformer_blocks.18.attn.to_q", 3072, 3072)), "unknown", id="Flux.1 or Qwen-Image"
        ),
        pytest.param(
            kohya(("input_blocks_4_1_transformer_blocks_3_attn1_to_q", 640, 640)), "unknown", id="four blocks deep"
        ),
        pytest.param(lora((f"lora_te1_{'text_model_encoder_layers_0_self_attn_q_proj'}", 768, 768)), "unknown",
                     id="CLIP-L of SDXL, SD 3 or Flux.1"),
        pytest.param({f"model.{name}": shape for name, shape in CASES["auraflow"].items()}, "auraflow",
                     id="AuraFlow under its own prefix"),
        pytest.param({"diffusion_model.blocks.0.self_attn.q.diff_b": (5120,),
                      **lora(("diffusion_model.blocks.0.self_attn.q", 5120, 5120)),
                      "diffusion_model.blocks.0.norm3.diff": (5120,)}, "wan", id="a LoRA with changed biases"),
        pytest.param(lora(("base_model.model.transformer.single_transformer_blocks.0.proj_mlp", 12288, 3072)), "flux1",
                     id="PEFT around a whole pipeline"),
        pytest.param(lora(("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 768, 768)), "unknown",
                     id="the first text encoder of a pipeline that may have more"),
        pytest.param({"layers.0.weight": W, "layers.0.bias": (8,)}, "unknown", id="anybody's layers"),
        pytest.param({}, "unknown", id="no tensors at all"),
    ],
)  # fmt: skip
def test_lookalikes_are_told_apart_or_left_unknown(tensors, family):
    identity = identify(made(tensors))

    if family == "unknown":
        assert identity.architecture is Architecture.UNKNOWN or identity.kind is Kind.CHECKPOINT
        assert identity.confidence is not Confidence.CERTAIN or identity.architecture is not Architecture.SDXL_REFINER
    else:
        assert identity.architecture.value == family


def test_thin_checkpoint_is_recognised_by_its_layout_and_keeps_its_width():
    path = SHARED / "fixtures" / "models" / "tiny-shapes-v0.safetensors"
    if not path.exists():
        pytest.skip("the tiny model is not here")

    identity = identify(of_file(path))

    assert identity.architecture is Architecture.SD1
    assert (identity.context_width, identity.text_widths) == (48, (48,))
    assert "thin" in identity.flags
    assert identity.has_text_encoder
    assert identity.has_vae


def test_metadata_chooses_only_among_families_that_the_tensors_allow():
    tensors = kohya(("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 48, 48))

    assert identify(made(tensors)).architecture is Architecture.UNKNOWN
    assert identify(made(tensors, {"ss_base_model_version": "sd_v1"})).architecture is Architecture.SD1
    assert identify(made(tensors, {"ss_base_model_version": "sdxl_base_v1-0"})).architecture is Architecture.UNKNOWN


def test_three_witnesses_stay_apart_and_contradictions_are_named():
    metadata = {"ss_base_model_version": "sd_v1", "ss_network_dim": "32"}
    header = made(CASES["on-sdxl"], metadata)

    found = facts(header, "SD 1.5")

    assert found.architecture == "sdxl"
    assert found.claimed_base == "sd_v1"
    assert [line.split(",")[0] for line in found.conflicts] == [
        "CivitAI says SD 1.5", "the file's metadata says sd_v1", "the file's metadata says rank 32",
    ]  # fmt: skip
    assert facts(made(CASES["on-sdxl"]), "Pony").conflicts == ()


@pytest.mark.parametrize(
    ("dtypes", "precision"),
    [
        (("F16", "F16"), Precision.FP16), (("F16", "F32"), Precision.MIXED), (("BF16", "I64"), Precision.BF16),
        (("F8_E4M3", "F8_E5M2"), Precision.FP8), (("I64", "I64"), Precision.UNKNOWN), (("F32", "F32"), Precision.FP32),
    ],
)  # fmt: skip
def test_precision_is_the_type_of_nine_tenths_of_the_weights(dtypes, precision):
    tensors = {f"t{index}.weight": (dtype, [4, 4]) for index, dtype in enumerate(dtypes)}

    assert identify(made(tensors)).precision is precision


def test_ranks_give_the_common_one_and_the_range():
    tensors = {
        **kohya(("down_blocks_0_a", 8, 8), ("down_blocks_0_b", 8, 8)),
        "lora_unet_down_blocks_0_c.lora_down.weight": (16, 8),
        "lora_unet_down_blocks_0_c.lora_up.weight": (8, 16),
    }

    assert identify(made(tensors)).ranks == (4, 16)


@pytest.mark.parametrize(
    ("parts", "adapter", "model_type"),
    [
        ({"lora_down.weight": (4, 8), "lora_up.weight": (8, 4)}, Adapter.LORA, ModelType.LORA),
        ({"lora_down.weight": (4, 8, 3, 3), "lora_up.weight": (8, 4, 1, 1)}, Adapter.LORA, ModelType.LOCON),
        ({"lora_down.weight": (4, 8, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (8, 4, 1, 1)},
         Adapter.LORA, ModelType.LOCON),
        ({"lora_A.weight": (4, 8), "lora_B.weight": (8, 4), "lora_magnitude_vector": (8,)}, Adapter.DORA,
        ModelType.DORA),
        ({"lora_down.weight": (4, 8), "lora_up.weight": (8, 4), "dora_scale": (1, 8)}, Adapter.DORA, ModelType.DORA),
        ({"hada_w1_a": (8, 4), "hada_w1_b": (4, 8), "hada_w2_a": (8, 4), "hada_w2_b": (4, 8)},
         Adapter.LOHA, ModelType.LOCON),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)}, Adapter.LOKR, ModelType.LOCON),
        ({"oft_blocks": (2, 4, 4), "alpha": ()}, Adapter.OFT, ModelType.LOCON),
        ({"oft_blocks": (2, 2, 4, 4)}, Adapter.BOFT, ModelType.LOCON),
        ({"a1.weight": (8, 4), "a2.weight": (4, 8), "b1.weight": (8, 4), "b2.weight": (4, 8)},
         Adapter.GLORA, ModelType.LOCON),
        ({"weight": (8,), "on_input": ()}, Adapter.IA3, ModelType.LOCON),
        ({"diff": (8, 8), "diff_b": (8,)}, Adapter.FULL, ModelType.LOCON),
    ],
)  # fmt: skip
def test_each_way_of_writing_an_adapter_is_told_apart(parts, adapter, model_type):
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

    identity = identify(made({f"{module}.{ending}": shape for ending, shape in parts.items()}))

    assert (identity.adapter, identity.model_type) == (adapter, model_type)
    assert "damaged-modules" not in identity.flags


@pytest.mark.parametrize(
    ("tensors", "key_format"),
    [
        (lora(("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072)), KeyFormat.KOHYA),
        (lora(("lycoris_down_blocks_0_x", 8, 8)), KeyFormat.KOHYA),
        (lora(("unet.down_blocks.0.attentions.0.proj_in", 8, 8)), KeyFormat.DIFFUSERS),
        (lora(("diffusion_model.layers.0.attention.to_q", 3840, 3840)), KeyFormat.COMFY),
        (lora(("diffusion_model.double_blocks.0.img_attn.qkv", 9216, 3072)), KeyFormat.BFL),
        ({"double_blocks.0.processor.qkv_lora1.down.weight": (4, 3072),
          "double_blocks.0.processor.qkv_lora1.up.weight": (9216, 4)}, KeyFormat.XLABS),
        ({"unet.down_blocks.0.attn1.processor.to_q_lora.down.weight": (4, 320),
          "unet.down_blocks.0.attn1.processor.to_q_lora.up.weight": (320, 4)}, KeyFormat.DIFFUSERS),
    ],
)  # fmt: skip
def test_the_names_tell_whose_format_an_adapter_has(tensors, key_format):
    assert identify(made(tensors)).key_format is key_format


@pytest.mark.parametrize(
    ("tensors", "family", "widths"),
    [
        ({"emb_params": (4, 768)}, Architecture.SD1, (768,)),
        ({"emb_params": (1, 1024)}, Architecture.SD2, (1024,)),
        ({"clip_l": (8, 768), "clip_g": (8, 1280)}, Architecture.SDXL, (768, 1280)),
        ({"emb_params": (2, 48)}, Architecture.UNKNOWN, (48,)),
        ({"<my-token>": (768,)}, Architecture.SD1, (768,)),
    ],
)  # fmt: skip
def test_embeddings_are_known_by_the_width_of_their_vectors(tensors, family, widths):
    identity = identify(made(tensors))

    assert (identity.kind, identity.architecture, identity.text_widths) == (Kind.EMBEDDING, family, widths)


def test_a_single_ordinary_weight_is_no_embedding():
    assert identify(made({"linear.weight": (4, 768)})).kind is Kind.UNKNOWN


def test_metadata_says_v_prediction_where_no_tensor_does():
    header = made(CASES["sd2-width"], {"modelspec.prediction_type": "v"})

    assert "v-prediction" in identify(header).flags
    assert "v-prediction" not in identify(made(CASES["sd2-width"])).flags


def test_claims_are_read_and_broken_json_inside_is_tolerated():
    said = claims({
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_tag_frequency": '{"5_me": {"1girl": 9, " ohwx  woman": 10, "x": 2}}',
        "ss_network_args": "{not json", "ss_network_dim": "16", "ss_network_alpha": "8.0",
        "ss_v_parameterization": "True",
        "modelspec.title": "T", "modelspec.author": "A", "modelspec.license": "L", "ss_resolution": "(1024, 1024)",
        "modelspec.thumbnail": "data:image/jpeg;base64," + "A" * 100_000,
    })  # fmt: skip

    assert said.architecture is Architecture.SDXL
    assert said.tags == (("ohwx woman", 10), ("1girl", 9), ("x", 2))
    assert said.trigger_words == ("ohwx woman", "1girl")
    assert said.unreadable == ("ss_network_args",)
    assert (said.network_dim, said.network_alpha, said.prediction_type) == (16, 8.0, "v")
    assert (said.title, said.author, said.licence, said.resolution) == ("T", "A", "L", "1024x1024")
    assert said.has_thumbnail


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '{"a": 3}', '{"a": {"b": "c"}}', '{"a": {"b": -1e999}}', "[" * 5000, "NaN", "{}", ""]
)
def test_claims_survive_any_tag_frequency(text):
    assert len(claims({"ss_tag_frequency": text, "ss_network_args": text}).tags) <= 1


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("stable-diffusion-v1", "sd1"), ("stable-diffusion-v2-768-v", "sd2"), ("sd_v2_v", "sd2"),
        ("stable-diffusion-xl-v1-base/lora", "sdxl"), ("stable-diffusion-xl-v1-refiner", "sdxl-refiner"),
        ("sd3m", "sd3"), ("flux-1-dev/lora", "flux1"), ("flux.2-dev", "flux2"), ("chroma", "chroma"), ("", "unknown"),
        ("something-new", "unknown"), ("hunyuan-image-2.1", "hunyuan-image"),
    ],
)  # fmt: skip
def test_claimed_bases_are_understood(text, family):
    assert json.dumps(claims({"modelspec.architecture": text}).architecture.value) == json.dumps(family)


def test_adapter_rules_prefer_the_special_before_the_general():
    look = Look.at([("double_blocks_0_img_mlp_0", (18432, 3072)), ("single_blocks_0_linear1", (27648, 3072))])

    rule = first(ADAPTED, look)

    assert rule is not None
    assert rule.id == "on-flux2-single"


FRAGMENTS = st.sampled_from(
    [
        "model.diffusion_model",
        "input_blocks",
        "down_blocks",
        "0",
        "11",
        "999999",
        "²",
        "attn2",
        "to_k",
        "weight",
        "lora_unet_",
        "lora_down",
        "lora_up",
        "hada_w1_a",
        "lokr_w1",
        "lokr_w1_b",
        "lokr_w2",
        "oft_blocks",
        "diff",
        "dora_scale",
        "on_input",
        "a1",
        "in_proj_weight",
        "decoder.conv_in",
        "emb_params",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn",
        "alpha",
        "control_model",
        "lora_te_",
        "double_blocks",
        "joint_blocks",
        "conv_in",
        "resnets",
        "processor",
        "qkv_lora1",
        "down",
        "up",
    ]
)
TENSORS = st.dictionaries(
    st.lists(FRAGMENTS, min_size=1, max_size=6).map(".".join),
    st.lists(st.sampled_from([0, 1, 3, 4, 768, 2048]), max_size=4).map(tuple),
    max_size=12,
)


@settings(max_examples=250, deadline=None)
@given(tensors=TENSORS, others=TENSORS)
def test_no_mixture_of_names_and_shapes_makes_a_question_fail(tensors, others):
    one, other = (made({name: ("F16", list(shape)) for name, shape in each.items()}) for each in (tensors, others))
    parts = [Part("p", identify(header).model_type, "SDXL 1.0", identify(header), header) for header in (one, other)]

    assert facts(one, "SDXL 1.0").tensor_count == len(tensors)
    assert check(parts[0], [parts[1]]).parts[0].name == "p"
    read_deltas(one.shapes)


def test_a_loha_written_flat_does_not_pass_for_sd2():
    module = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {f"{module}.hada_w{n}_{side}": (48, 4) if side == "a" else (4, 48) for n in (1, 2) for side in "ab"}

    assert identify(made(tensors)).architecture is Architecture.UNKNOWN


def test_a_light_t2i_adapter_is_known_by_its_folded_input():
    names = {"body.0.in_conv.weight": (320, 192, 1, 1), "body.0.body.0.block1.weight": (320, 320, 3, 3),
             "body.0.out_conv.weight": (320, 320, 1, 1)}  # fmt: skip
    diffusers = {f"adapter.{name.replace('.body.', '.resnets.')}": shape for name, shape in names.items()}

    for tensors in (names, diffusers):
        found = identify(made(tensors))
        assert (found.kind, found.architecture, found.variant) == (Kind.CONTROLNET, Architecture.SD1, "t2i-adapter")


def test_the_sd3_controlnet_of_stability_is_known_by_its_joint_layers():
    tensors = plain("controlnet_blocks.0.weight", "transformer_blocks.0.attn.qkv.weight", "pos_embed_input.proj.weight")

    found = identify(made(tensors))

    assert (found.kind, found.architecture) == (Kind.CONTROLNET, Architecture.SD3)
