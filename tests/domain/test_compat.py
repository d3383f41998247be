"""What goes with what: by label, by architecture, module by module; the deeper witness wins."""

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_cases import CASES, CLASSES, kohya, lora, unet

from civman.domain.adapters.adapter_tensors import read_deltas
from civman.domain.adapters.module_names import ModuleIndex, unet_names
from civman.domain.adapters.spellings import locate
from civman.domain.architecture import Kind
from civman.domain.base_models import Support
from civman.domain.catalog import ModelType
from civman.domain.compatibility import Depth, Part, Verdict, check
from civman.domain.identification.identify import identify
from civman.errors import ExitCode, Incompatible
from tests.headers import SHARED, case, made, of_file, own_names, recorded


@pytest.fixture(scope="module", params=["own/", ""], ids=["own", "recorded"])
def source(request):
    """Which collection of headers a test's names are taken from."""
    where[0] = request.param
    yield request.param
    where[0] = ""


where = [""]
over_both = pytest.mark.usefixtures("source")


def known(name):
    return recorded(where[0] + name)


def part(header, label=None, *, name="part", model_type=None):
    header = known(header) if isinstance(header, str) else header
    identity = identify(header)
    return Part(name, model_type or identity.model_type, label, identity, header)


def one(checkpoint, *parts):
    return check(checkpoint, parts).parts[0]


@pytest.mark.parametrize(
    ("adapter", "checkpoint", "modules"),
    [
        ("lora-sd1-kohya", "ckpt-sd15", 264), ("loha-sd1-lycoris", "ckpt-sd15", 266), ("ia3-sd1-lycoris",
        "ckpt-sd15", 266),
        ("glora-sd1-lycoris", "ckpt-sd15", 266), ("full-sd1-lycoris", "ckpt-sd15", 266), ("dora-sd1-lycoris",
        "ckpt-sd15", 266),
        ("lora-sd1-peft-te", "ckpt-sd15", 208), ("kohya-sd2-lora", "ckpt-sd2", 330), ("kohya-sdxl-lora",
        "ckpt-sdxl", 986),
        ("kohya-sdxl-locon-unet-only", "ckpt-sdxl", 788), ("kohya-sdxl-oft", "ckpt-sdxl", 560),
        ("lokr-sdxl-lycoris", "ckpt-sdxl", 990), ("lora-sdxl-diffusers-legacy", "ckpt-sdxl", 560),
        ("kohya-sdxl-locon-unet-only", "unet-sdxl-diffusers", 788),
        ("lora-sdxl-diffusers-legacy", "unet-sdxl-diffusers", 560), ("lora-flux-kohya", "bfl-flux-dev", 304),
        ("lora-flux-diffusers", "bfl-flux-dev", 494), ("lora-flux-aitoolkit", "bfl-flux-dev-comfy", 228),
        ("lora-flux-xlabs", "bfl-flux-dev", 12), ("kohya-flux2-dev-lora", "bfl-flux2-dev", 160),
        ("kohya-sd3m-lora", "orig-sd3m", 237), ("kohya-sd35l-lora", "orig-sd35l", 377),
        ("kohya-qwen-image-lora", "orig-qwen-image", 840), ("lora-qwen-peft", "orig-qwen-image", 240),
        ("kohya-lumina2-lora", "orig-lumina2", 180), ("lora-lumina2-diffusers", "orig-lumina2", 120),
        ("kohya-hunyuan-video-lora", "orig-hunyuan-video", 240),
    ],
)  # fmt: skip
def test_every_module_of_an_adapter_is_found_in_its_checkpoint(adapter, checkpoint, modules):
    result = one(part(checkpoint), part(adapter))

    assert result.modules.words == f"{modules} of {modules} modules fit"
    assert (result.verdict, result.depth) == (Verdict.FITS, Depth.MODULES)


OWN_PAIRS = {
    "ckpt-sd15": [name for name in own_names() if name.startswith(("own/kohya-sd1-", "own/peft-sd1-"))],
    "unet-sd15-diffusers": ["own/peft-sd1-lora"],
    "ckpt-sd2": ["own/kohya-sd2-lora"],
    "ckpt-sdxl": [name for name in own_names() if name.startswith(("own/kohya-sdxl-", "own/peft-sdxl-"))],
    "unet-sdxl-diffusers": ["own/kohya-sdxl-locon-unet-only", "own/peft-sdxl-lora"],
    "bfl-flux-dev": ["own/kohya-flux-dev-lora", "own/peft-flux-dev-lora"],
    "flux-dev-diffusers": ["own/kohya-flux-dev-lora", "own/peft-flux-dev-lora"],
    "bfl-flux2-dev": ["own/kohya-flux2-dev-lora"],
    "orig-sd3m": ["own/kohya-sd3m-lora", "own/peft-sd3m-lora"],
    "orig-sd35l": ["own/kohya-sd35l-lora"],
    "qwen-image-diffusers": ["own/peft-qwen-image-lora"],
    "orig-wan21-t2v-14b": ["own/kohya-wan21-t2v-14b-lora", "own/peft-wan21-t2v-14b-lora"],
    "orig-lumina2": ["own/kohya-lumina2-lora", "own/peft-lumina2-lora"],
    "orig-hunyuan-video": ["own/kohya-hunyuan-video-lora"],
}
NOT_YET = {
    ("flux-dev-diffusers", "own/kohya-flux-dev-lora"),
}
"""Pairs whose modules are not compared yet. The list is exact: whoever makes one right takes it off here."""
ENDING = re.compile(
    r"\.(lora_(up|down|mid|A|B|magnitude_vector)|hada_|lokr_|oft_|boft_|ia3_|[ab][12]\.|diff|alpha|dora_scale|w_norm|b_norm"
    r"|on_input|weight$|bias$).*$"
)


@pytest.mark.parametrize(
    ("checkpoint", "adapter"), [(checkpoint, each) for checkpoint, some in OWN_PAIRS.items() for each in some]
)
def test_every_module_that_a_library_made_is_found_in_the_library_s_checkpoint(checkpoint, adapter):
    names = case(adapter)["tensors"]
    if any(".base_layer." in name for name in names):  # peft saved the model with its adapter
        names = [name for name in names if ".lora_" in name]
    count = len({ENDING.sub("", name) for name in names})

    result = one(part(f"own/{checkpoint}"), part(adapter))

    if (checkpoint, adapter) in NOT_YET:
        assert result.modules is None
        return
    if adapter == "own/kohya-sd1-full":  # made from layers that all have biases: the attention's real ones have none
        assert result.verdict is Verdict.PARTLY
        assert len(result.modules.mismatched) == 6
        assert all("bias of shape" in each for each in result.modules.mismatched)
        return
    if adapter in ("own/peft-sd1-oft", "own/peft-sd1-boft"):  # the file does not show how peft computes the rotation
        assert result.verdict is Verdict.CANNOT
        assert len(result.modules.mismatched) == count
        assert "versions of PEFT" in result.modules.mismatched[0]
        return
    assert result.modules.words == f"{count} of {count} modules fit"
    assert (result.verdict, result.depth) == (Verdict.FITS, Depth.MODULES)


@over_both
@pytest.mark.parametrize(
    ("adapter", "checkpoint"),
    [
        ("lora-sd1-kohya", "ckpt-sdxl"), ("lora-sd1-kohya", "ckpt-sd2"), ("kohya-sdxl-lora", "ckpt-sd15"),
        ("kohya-sd2-lora", "ckpt-sd15"), ("kohya-sdxl-lora", "ckpt-sdxl-refiner"), ("lora-flux-kohya", "ckpt-sdxl"),
        ("kohya-sd35l-lora", "orig-sd3m"), ("kohya-hunyuan-video-lora", "bfl-flux-dev"),
        ("kohya-flux2-dev-lora", "bfl-flux-dev"), ("kohya-wan21-t2v-14b-lora", "orig-wan21-t2v-1.3b"),
        ("lora-qwen-peft", "bfl-flux-dev"),
    ],
)  # fmt: skip
def test_adapter_of_another_family_cannot_work_even_where_names_or_labels_agree(adapter, checkpoint):
    result = one(part(checkpoint, "SDXL 1.0"), part(adapter, "SDXL 1.0"))

    assert result.verdict is Verdict.CANNOT


def test_module_of_another_width_is_named_with_both_shapes():
    tensors = {
        **CASES["sdxl-width"],
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    }
    adapter = kohya(("input_blocks_4_1_transformer_blocks_0_attn2_to_k", 320, 768))

    result = one(part(made(tensors)), part(made(adapter)))

    assert result.modules.mismatched == (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k: made for the shape 320x768, but the weight has "
        "640x2048",
    )
    assert result.modules.words == "0 of 1 modules fit (1 with a different shape)"


@over_both
def test_tiny_lora_fits_the_tiny_checkpoint_and_no_other():
    folder = SHARED / "fixtures" / "models"
    if not folder.is_dir():
        pytest.skip("the tiny models are not here")
    checkpoint, adapter = (
        part(of_file(folder / f"{name}.safetensors"), "SD 1.5") for name in ("tiny-shapes-v0", "tiny-outline-v0")
    )

    assert one(checkpoint, adapter).reasons == ("160 of 160 modules fit",)
    assert one(checkpoint, adapter).verdict is Verdict.FITS
    assert one(part("ckpt-sd15", "SD 1.5"), adapter).verdict is Verdict.CANNOT
    assert one(checkpoint, part("lora-sd1-kohya", "SD 1.5")).verdict is Verdict.CANNOT


@over_both
@pytest.mark.parametrize(
    ("checkpoint", "adapter", "words"),
    [
        pytest.param(("ckpt-sdxl", "Illustrious"), ("kohya-sdxl-lora", "Pony"), "partly", id="other sub-family"),
        pytest.param(("ckpt-sdxl", "SDXL Lightning"), ("kohya-sdxl-lora", "SDXL 1.0"), "few steps", id="few steps"),
        pytest.param(("ckpt-sd15-inpaint", "SD 1.5"), ("lora-sd1-kohya", "SD 1.5"), "inpainting", id="inpainting"),
        pytest.param(
            ("ckpt-sdxl", "SDXL 1.0"), ("kohya-sdxl-lora", "SD 1.5"), "the tensors show that they do", id="label no"
        ),
        pytest.param(
            ("ckpt-sdxl", "SD 1.5"), ("kohya-sdxl-lora", "SDXL 1.0"), "show that they do", id="checkpoint's label no"
        ),
        pytest.param(("unet-sdxl-diffusers", None), ("kohya-sdxl-lora", None), "another file", id="bare UNet"),
    ],
)
def test_what_fits_with_a_doubt_says_so(checkpoint, adapter, words):
    result = one(part(*checkpoint), part(*adapter))

    assert result.verdict is Verdict.CAUTION
    assert any(words in reason for reason in result.reasons)


@over_both
def test_labels_that_agree_do_not_help_tensors_that_do_not():
    result = one(part("ckpt-sdxl", "SDXL 1.0"), part("lora-sd1-kohya", "SDXL 1.0"))

    assert (result.verdict, result.support) == (Verdict.CANNOT, Support.FULL)
    assert "CivitAI labels `part` SDXL 1.0, but its tensors show sd1" in result.reasons
    assert any("tensors show that they do" in reason for reason in result.reasons)


@over_both
def test_label_that_contradicts_the_checkpoint_s_tensors_is_a_caution_by_itself():
    outcome = check(part("ckpt-sdxl", "SD 1.5", name="ck"), [])

    assert outcome.verdict is Verdict.CAUTION
    assert outcome.reasons == ("CivitAI labels `ck` SD 1.5, but its tensors show sdxl",)


@pytest.mark.parametrize(
    ("marks", "metadata", "words"),
    [
        ({"v_pred": ()}, {}, "states no prediction type"),
        ({"v_pred": ()}, {"modelspec.prediction_type": "epsilon"}, "for noise"),
        ({"v_pred": ()}, {"modelspec.prediction_type": "v"}, None), ({}, {"modelspec.prediction_type": "v"},
        "shows no sign"),
        ({}, {}, None),
    ],
)  # fmt: skip
def test_mixing_noise_and_v_prediction_is_a_caution(marks, metadata, words):
    checkpoint = part(made({**unet(2048, blocks=8, label=2816), **marks}))
    adapter = part(made(kohya(("input_blocks_1_1_transformer_blocks_0_attn2_to_k", 320, 2048)), metadata))

    result = one(checkpoint, adapter)

    assert result.verdict is (Verdict.CAUTION if words else Verdict.FITS)
    assert words is None or words in result.reasons[-1]


def test_adapter_for_a_missing_block_applies_partly_and_names_it():
    names = ("input_blocks_1_1_transformer_blocks_0_attn2_to_k", "input_blocks_8_1_transformer_blocks_0_attn2_to_k")
    adapter = made(kohya(*((name, 320, 768) for name in names)))

    outcome = check(part(made(unet(768))), [part(adapter)])

    assert outcome.verdict is Verdict.PARTLY
    assert outcome.parts[0].modules.missing == (f"lora_unet_{names[1]}",)
    with pytest.raises(Incompatible) as caught:
        outcome.raise_if_blocked()
    assert (caught.value.code, caught.value.exit_code) == ("partly-applies", ExitCode.INCOMPATIBLE)
    outcome.raise_if_blocked(allow_partial=True)


def test_damaged_module_does_not_fit():
    tensors = kohya(("input_blocks_1_1_transformer_blocks_0_attn2_to_k", 320, 768))
    del tensors["lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k.lora_up.weight"]

    assert one(part(made(unet(768))), part(made(tensors))).verdict is not Verdict.FITS


EMBEDDINGS = {
    "sd1": {"emb_params": (2, 768)}, "sd2": {"emb_params": (2, 1024)}, "sdxl": {"clip_l": (2, 768),
    "clip_g": (2, 1280)},
}  # fmt: skip


@over_both
@pytest.mark.parametrize(
    ("embedding", "checkpoint", "verdict"),
    [
        ("sd1", "ckpt-sd15", Verdict.FITS), ("sd2", "ckpt-sd2", Verdict.FITS), ("sdxl", "ckpt-sdxl", Verdict.FITS),
        ("sd1", "ckpt-sdxl", Verdict.PARTLY), ("sdxl", "ckpt-sd15", Verdict.CANNOT), ("sd1", "ckpt-sd2",
        Verdict.CANNOT),
        ("sd2", "ckpt-sdxl", Verdict.CANNOT), ("sdxl", "unet-sdxl-diffusers", Verdict.FITS),
        ("sd1", "orig-qwen-image", Verdict.CANNOT),
    ],
)  # fmt: skip
def test_embedding_is_compared_with_the_widths_of_the_text_encoders(embedding, checkpoint, verdict):
    assert one(part(checkpoint), part(made(EMBEDDINGS[embedding]))).verdict is verdict


@over_both
@pytest.mark.parametrize(
    ("vae", "checkpoint", "verdict"),
    [
        (("vae-sd-ldm", "SDXL 1.0"), ("ckpt-sdxl", "SDXL 1.0"), Verdict.FITS),
        (("vae-sd-ldm", "SD 1.5"), ("ckpt-sdxl", "SDXL 1.0"), Verdict.CANNOT),
        (("vae-sd-ldm", "SDXL 1.0"), ("ckpt-sdxl", "Pony"), Verdict.CAUTION),
        (("vae-sd-diffusers", None), ("ckpt-sdxl", None), Verdict.CAUTION),
        (("vae-sd-ldm", "SDXL 1.0"), ("ckpt-sdxl", None), Verdict.FITS),
        (("vae-sd-ldm", "SD 1.5"), ("ckpt-sdxl", None), Verdict.CANNOT),
        (("vae-sd-ldm", "PixArt a"), ("ckpt-sdxl", None), Verdict.CAUTION),
        (("bfl-flux-ae", "Flux.1 D"), ("ckpt-sdxl", "SDXL 1.0"), Verdict.CANNOT),
        (("bfl-flux-ae", "Flux.1 D"), ("bfl-flux-schnell", "Flux.1 S"), Verdict.FITS),
        (("bfl-flux-ae", None), ("bfl-flux2-dev", None), Verdict.CANNOT),
    ],
)  # fmt: skip
def test_vae_goes_by_latent_channels_and_where_they_agree_by_label(vae, checkpoint, verdict):
    assert one(part(*checkpoint), part(*vae)).verdict is verdict


@pytest.mark.parametrize(
    ("vae", "label", "checkpoint", "verdict"),
    [
        ("vae-sd-ldm", "SDXL 1.0", ("auraflow-diffusers", "Pony V7"), Verdict.FITS),
        ("vae-sd-ldm", "Pony", ("auraflow-diffusers", "AuraFlow"), Verdict.FITS),
        ("vae-sd-ldm", "SDXL 1.0", ("auraflow-diffusers", None), Verdict.FITS),
        ("vae-sd-ldm", "SD 1.5", ("auraflow-diffusers", "Pony V7"), Verdict.CANNOT),
        ("vae-sd-ldm", "SD 2.1", ("auraflow-diffusers", None), Verdict.CANNOT),
        ("vae-sd-ldm", None, ("auraflow-diffusers", "Pony V7"), Verdict.CAUTION),
        ("bfl-flux-ae", "Flux.1 D", ("orig-z-image", "ZImageTurbo"), Verdict.FITS),
        ("bfl-flux-ae", "Flux.1 D", ("orig-lumina2", None), Verdict.FITS),
        ("bfl-flux-ae", "SD 3", ("orig-z-image", "ZImageTurbo"), Verdict.CANNOT),
        ("bfl-flux-ae", "Flux.1 D", ("orig-sd3m", "SD 3"), Verdict.CANNOT),
        ("vae-wan-diffusers", "Wan Video 2.1", ("qwen-image-diffusers", "Qwen"), Verdict.CANNOT),
    ],
)  # fmt: skip
def test_a_vae_fits_the_families_whose_latents_have_its_scale(vae, label, checkpoint, verdict):
    name, said = checkpoint
    found = one(part(recorded(f"own/{name}"), said), part(recorded(f"own/{vae}"), label))

    assert found.verdict is verdict, found.reasons


def test_labels_alone_answer_where_nothing_was_read():
    def asked(ours, theirs, model_type=ModelType.LORA):
        return one(Part("c", ModelType.CHECKPOINT, ours), Part("p", model_type, theirs))

    assert (asked("Pony", "Pony").verdict, asked("Pony", "Pony").depth) == (Verdict.FITS, Depth.LABELS)
    assert asked("Illustrious", "Pony").verdict is Verdict.CAUTION
    assert asked("SDXL 1.0", "SD 1.5").verdict is Verdict.CANNOT
    assert (asked("SDXL 1.0", None).verdict, asked(None, None).depth) == (Verdict.UNKNOWN, Depth.NOTHING)


@over_both
def test_architecture_answers_where_the_checkpoint_s_tensors_are_not_at_hand():
    checkpoint = Part("c", ModelType.CHECKPOINT, None, identify(known("ckpt-sdxl")))

    assert one(checkpoint, part("kohya-sdxl-lora")).depth is Depth.ARCHITECTURE
    assert one(checkpoint, part("kohya-sdxl-lora")).verdict is Verdict.FITS
    assert one(checkpoint, part("lora-sd1-kohya")).verdict is Verdict.CANNOT


@over_both
def test_refiner_and_wrong_kinds_are_called_what_they_are():
    refiner = check(part("ckpt-sdxl-refiner", "SDXL 1.0"), [])
    swapped = check(part("kohya-sdxl-lora", name="x"), [part("kohya-sdxl-lora")])
    posing = one(part("ckpt-sdxl"), part("vae-sd-ldm", model_type=ModelType.LORA))

    assert refiner.verdict is Verdict.CAUTION
    assert "is a refiner" in refiner.reasons[0]
    assert (swapped.verdict, swapped.parts[0].verdict) == (Verdict.CANNOT, Verdict.CANNOT)
    assert posing.verdict is Verdict.CANNOT


@over_both
def test_controlnet_goes_by_architecture_and_upscaler_with_anything():
    assert one(part("ckpt-sd15"), part("controlnet-sd1-diffusers")).verdict is Verdict.FITS
    assert one(part("ckpt-sdxl"), part("controlnet-sd1-diffusers")).verdict is Verdict.CANNOT
    assert one(part("bfl-flux-dev"), part("controlnet-flux-instantx")).verdict is Verdict.FITS
    assert one(part("ckpt-sd15"), part(made(CASES["esrgan"]))).verdict is Verdict.FITS


def test_names_nobody_has_joined_leave_the_answer_to_the_architecture():
    checkpoint = part(made(CASES["hidream"]))
    adapter = part(made(lora(("lora_unet_single_stream_blocks_0_block_attn1_to_q", 64, 64))))

    result = one(checkpoint, adapter)

    assert (result.verdict, result.depth) == (Verdict.FITS, Depth.ARCHITECTURE)


@over_both
def test_the_two_unet_conventions_name_each_other_through_the_whole_of_sdxl():
    ours = ModuleIndex.of_header(known("ckpt-sdxl"))
    theirs = ModuleIndex.of_header(known("unet-sdxl-diffusers"))
    both = unet_names(name.removeprefix("model.diffusion_model.") for name in known("ckpt-sdxl").tensors)
    back = unet_names(known("unet-sdxl-diffusers").tensors)

    paths = {name.removesuffix(".weight").replace(".", "_") for name in known("unet-sdxl-diffusers").tensors
             if name.endswith(".weight")}  # fmt: skip
    assert {path: ours.find("unet", path) for path in paths}.keys() == paths
    for path in paths:
        assert len(ours.find("unet", path)) == len(theirs.find("unet", path))
        assert ours.find("unet", path) == theirs.find("unet", path)
    assert all(both[theirs] == other for other, theirs in back.items() if theirs in both and other in both.values())


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", ("te1", "encoder_layers_0_mlp_fc1")),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", ("te1", "encoder_layers_0_mlp_fc1")),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", ("te2", "encoder_layers_0_mlp_fc1")),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", ("te1", "encoder_layers_0_mlp_fc1")),
        ("unet.mid_block.attentions.0.proj_in", ("unet", "mid_block_attentions_0_proj_in")),
        ("lycoris_mid_block_attentions_0_proj_in", ("unet", "mid_block_attentions_0_proj_in")),
        ("transformer.single_transformer_blocks.0.proj_out", ("unet", "single_transformer_blocks_0_proj_out")),
        ("transformer_blocks.0.attn.to_q", ("unet", "transformer_blocks_0_attn_to_q")),
        ("base_model.model.blocks.0.attn.q", ("unet", "blocks_0_attn_q")),
        ("diffusion_model.layers.0.attention.out", ("unet", "layers_0_attention_out")),
        ("unet:18", ("unet", "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q")),
        ("unet:144", ("unet", "unet:144")),
        ("text_encoder:5", ("te1", "encoder_layers_1_self_attn_v_proj")),
    ],
)
def test_module_names_of_all_trainers_are_taken_apart(module, where):
    assert locate(module) == where


def test_numbers_of_an_extended_file_count_the_resnets_of_each_block_after_its_attention():
    """The order in which diffusers creates the modules; the counts of layers are those of SD 1's UNet."""
    blocks = [*((f"down_blocks_{n}", 2 * (n < 3), 2) for n in range(4)), *((f"up_blocks_{n}", 3 * (n > 0), 3)
              for n in range(4)), ("mid_block", 1, 2)]  # fmt: skip
    number, firsts = 0, {}
    for block, attentions, resnets in blocks:
        if attentions:
            firsts[number] = f"{block}_attentions_0_transformer_blocks_0_attn1_to_q"
        number += 9 * attentions
        firsts[number] = f"{block}_resnets_0_conv1"
        widened = resnets if block.startswith("up") else int(block in ("down_blocks_1", "down_blocks_2"))
        number += 3 * resnets + widened

    assert number == 224
    assert {each: locate(f"unet:{each}", is_extended=True)[1] for each in firsts} == firsts
    index = ModuleIndex.of_header(known("own/ckpt-sd15"))
    assert all(index.find(*locate(f"unet:{each}", is_extended=True)) for each in range(224))


def test_factors_of_whole_numbers_are_refused_by_name():
    adapter = kohya(("input_blocks_4_1_transformer_blocks_0_attn2_to_k", 640, 2048))
    typed = {name: ("I8" if name.endswith("up.weight") else "F16", list(shape)) for name, shape in adapter.items()}

    result = one(part("own/ckpt-sdxl"), part(made(typed)))

    assert result.verdict is Verdict.CANNOT
    assert any("the data type I8" in reason for reason in result.reasons)


@pytest.mark.parametrize("role", [Kind.EMBEDDING, Kind.VAE])
def test_a_file_used_as_what_it_is_not_cannot_work(role):
    adapter = part("own/kohya-sdxl-lora")

    result = one(part("own/ckpt-sdxl"), replace(adapter, role=role))

    assert result.verdict is Verdict.CANNOT
    assert f"used as {role}" in result.reasons[-1]


def test_packed_weights_are_named_and_no_module_is_compared():
    layer = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    tensors = {name: ("F16", list(shape)) for name, shape in CASES["sdxl-width"].items()}
    tensors |= {f"{layer}.quant_state.bitsandbytes__nf4": ("U8", [80])}

    found = check(part(made(tensors)), [part("own/kohya-sdxl-lora")])

    assert found.weights == "nf4 (bitsandbytes)"
    assert found.parts[0].depth is Depth.ARCHITECTURE


@over_both
def test_open_clip_s_joint_projection_answers_for_query_key_and_value():
    index = ModuleIndex.of_header(known("ckpt-sdxl"))

    for which in "qkv":
        assert index.find("te2", f"encoder_layers_31_self_attn_{which}_proj") == (1280, 1280)
    assert index.find("te2", "encoder_layers_0_mlp_fc1") == (5120, 1280)
    assert index.find("te2", "encoder_layers_32_mlp_fc1") is None


@over_both
def test_every_tensor_of_an_adapter_belongs_to_a_module():
    for name in ("kohya-sdxl-lora", "lokr-sdxl-lycoris", "glora-sd1-lycoris", "lora-flux-xlabs"):
        deltas = read_deltas(known(name).shapes)
        assert deltas.loose == ()
        assert all(delta.is_whole for delta in deltas.modules)


POOL = (
    ("kohya-sdxl-lora", "Pony"), ("kohya-sdxl-lora", "SDXL 1.0"), ("lora-sd1-kohya", "SD 1.5"), ("vae-sd-ldm",
    "SDXL 1.0"),
    ("kohya-sdxl-oft", None), ("lora-flux-kohya", "Flux.1 D"),
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(source):
    return [part("ckpt-sdxl", label) for label in ("SDXL 1.0", "Pony", None)]


@pytest.fixture(scope="module")
def pool(source):
    return [part(name, label, name=f"{name} {label}") for name, label in POOL]


@over_both
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_verdict_and_each_result_do_not_depend_on_the_order(pool, checkpoints, data):
    chosen = data.draw(st.lists(st.sampled_from(pool), max_size=4, unique_by=lambda item: item.name))
    shuffled = data.draw(st.permutations(chosen))
    checkpoint = data.draw(st.sampled_from(checkpoints))

    one_way, other_way = check(checkpoint, chosen), check(checkpoint, shuffled)

    assert one_way.verdict is other_way.verdict
    assert one_way.reasons == other_way.reasons
    assert sorted(map(repr, one_way.parts)) == sorted(map(repr, other_way.parts))


@over_both
def test_verdict_of_several_is_the_worst_of_each(pool):
    checkpoint = part("ckpt-sdxl", "SDXL 1.0")
    order = list(Verdict)

    for pair in itertools.combinations(pool, 2):
        outcome = check(checkpoint, pair)
        assert order.index(outcome.verdict) == max(order.index(result.verdict) for result in outcome.parts)
        assert [result.name for result in outcome.parts] == [item.name for item in pair]


@pytest.mark.parametrize(
    ("part_class", "checkpoint_class", "verdict"),
    [
        ("MotionAdapter", "UNet3DConditionModel", "unknown"),
        ("AutoencoderDC", "SanaTransformer2DModel", "fits"),
        ("AutoencoderDC", "Flux2Transformer2DModel", "cannot work"),
        ("AutoencoderKLCogVideoX", "HunyuanVideoTransformer3DModel", "cannot work"),
        ("AutoencoderKLCogVideoX", "CogVideoXTransformer3DModel", "fits"),
        ("AutoencoderKLHunyuanVideo15", "WanTransformer3DModel", "cannot work"),
        ("AutoencoderKLHunyuanVideo15", "HunyuanVideo15Transformer3DModel", "fits with caution"),
        ("AutoencoderKLHunyuanImageRefiner", "HunyuanVideo15Transformer3DModel", "fits with caution"),
        ("AutoencoderKLWan", "QwenImageTransformer2DModel", "fits with caution"),
        ("AutoencoderKLWan", "Krea2Transformer2DModel", "fits with caution"),
        ("AutoencoderKL", "Krea2Transformer2DModel", "cannot work"),
        ("AutoencoderKLFlux2", "ErnieImageTransformer2DModel", "fits"),
        ("AutoencoderKLWan", "ErnieImageTransformer2DModel", "cannot work"),
        ("AutoencoderKLFlux2", "Flux2Transformer2DModel", "fits"),
        ("ReduxImageEncoder", "FluxTransformer2DModel", "fits"),
        ("ReduxImageEncoder", "SD3Transformer2DModel", "cannot work"),
        ("QwenImageControlNetModel", "FluxTransformer2DModel", "cannot work"),
    ],
)
def test_parts_of_other_families_are_judged_by_what_they_are(part_class, checkpoint_class, verdict):
    found = check(part(made(CLASSES[checkpoint_class])), [part(made(CLASSES[part_class]))])

    assert found.parts[0].verdict == verdict, found


def test_a_part_that_two_families_may_have_is_not_refused_for_one_of_them():
    sd2 = made(unet(1024, linear=True))

    found = check(part(sd2), [part(made(CLASSES["MotionAdapter"]))])

    assert found.parts[0].verdict == "unknown"
    assert any("look the same" in reason for reason in found.parts[0].reasons)
