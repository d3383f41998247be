"""Every model class of the installed diffusers is identified right or left unknown.

`RIGHT` says what each class is, written from the classes' own documentation. What is not in it must be unknown.
"""

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from rule_cases import CLASSES, CLASSES_FILE

from civman.domain.architecture import Architecture, Confidence, Kind
from civman.domain.identification.identify import identify
from tests.headers import made

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent

RIGHT = {
    "checkpoint": """
        AllegroTransformer3DModel=allegro AuraFlowTransformer2DModel=auraflow BriaFibo2Transformer2DModel=bria
        BriaFiboTransformer2DModel=bria BriaTransformer2DModel=bria ChromaTransformer2DModel=chroma
        ChronoEditTransformer3DModel=wan CogVideoXTransformer3DModel=cogvideox CogView3PlusTransformer2DModel=cogview
        CogView4Transformer2DModel=cogview ConsisIDTransformer3DModel=cogvideox CosmosTransformer3DModel=cosmos
        DreamLiteUNetModel=dreamlite EasyAnimateTransformer3DModel=easyanimate
        ErnieImageTransformer2DModel=ernie-image Flux2Transformer2DModel=flux2 Flux3Transformer2DModel=flux3
        FluxTransformer2DModel=flux1 GlmImageTransformer2DModel=glm-image HeliosTransformer3DModel=helios
        HiDreamImageTransformer2DModel=hidream HunyuanDiT2DModel=hunyuan-dit
        HunyuanImageTransformer2DModel=hunyuan-image HunyuanVideo15Transformer3DModel=hunyuan-video-1.5
        HunyuanVideoFramepackTransformer3DModel=hunyuan-video HunyuanVideoTransformer3DModel=hunyuan-video
        I2VGenXLUNet Ideogram4Transformer2DModel=ideogram4 JoyImageEditPlusTransformer3DModel=joyimage
        JoyImageEditTransformer3DModel=joyimage Kandinsky3UNet=kandinsky3 Kandinsky5Transformer3DModel=kandinsky5
        Kandinsky6Transformer3DModel=kandinsky6 Krea2Transformer2DModel=krea2 LTX2VideoTransformer3DModel=ltx2
        LTXVideoTransformer3DModel=ltx-video LatteTransformer3DModel=latte LongCatImageTransformer2DModel=longcat-image
        Lumina2Transformer2DModel=lumina2 LuminaNextDiT2DModel=lumina-next MiniMaxH3Transformer3DModel=minimax-h3
        MochiTransformer3DModel=mochi MotifVideoTransformer3DModel=motif-video
        NucleusMoEImageTransformer2DModel=nucleus-image OmniGenTransformer2DModel=omnigen
        OvisImageTransformer2DModel=ovis-image PRXTransformer2DModel=prx PixArtTransformer2DModel=pixart
        QwenImage21Transformer2DModel=qwen-image QwenImageTransformer2DModel=qwen-image SD3Transformer2DModel=sd3
        SanaTransformer2DModel=sana SanaVideoTransformer3DModel=sana-video SanaWMLTX2RefinerTransformer3DModel=ltx2
        SkyReelsV2Transformer3DModel=wan StableCascadeUNet=cascade UNet2DConditionModel=sd1 UNet3DConditionModel
        UNetControlNetXSModel UNetFlatConditionModel UNetMotionModel UNetSpatioTemporalConditionModel=svd
        UVit2DModel=amused WanAnimate2Transformer3DModel=wan WanAnimateTransformer3DModel=wan WanTransformer3DModel=wan
        WanVACETransformer3DModel=wan ZImageTransformer2DModel=z-image AudioLDM2UNet2DConditionModel=sd1
    """,
    "vae": """
        AsymmetricAutoencoderKL AutoencoderDC=sana AutoencoderKL=sd AutoencoderKLAllegro=allegro
        AutoencoderKLCogVideoX=cogvideox AutoencoderKLCosmos=cosmos AutoencoderKLFlux2=flux2
        AutoencoderKLHunyuanImage=hunyuan-image AutoencoderKLHunyuanImageRefiner=hunyuan-image
        AutoencoderKLHunyuanVideo=hunyuan-video AutoencoderKLHunyuanVideo15=hunyuan-video-1.5 AutoencoderKLKVAE
        AutoencoderKLKVAEVideo AutoencoderKLLTX2Audio AutoencoderKLLTX2Video=ltx2 AutoencoderKLLTXVideo=ltx-video
        AutoencoderKLMagvit=easyanimate AutoencoderKLMochi=mochi AutoencoderKLQwenImage=qwen-image
        AutoencoderKLQwenImage21=qwen-image AutoencoderKLTemporalDecoder=svd AutoencoderKLWan=wan AutoencoderVidTok
        ConsistencyDecoderVAE Kandinsky6SRVAE VQModel
    """,
    "tiny-vae": "AutoencoderTiny=sd",
    "controlnet": """
        ControlNetModel ControlNetUnionModel=sdxl ControlNetXSAdapter=sd2 CosmosControlNetModel=cosmos
        FluxControlNetModel=flux1 HunyuanDiT2DControlNetModel=hunyuan-dit QwenImageControlNetModel=qwen-image
        SD3ControlNetModel=sd3 SanaControlNetModel=sana SparseControlNetModel=sd1 T2IAdapter=sd1
        ZImageControlNetModel=z-image
    """,
    "motion-module": "MotionAdapter=sd1",
    "style-model": "ReduxImageEncoder=flux1",
}
"""Kind → classes, each with its family where civman has a name for that."""
EXPECTED = {
    name: (Kind(kind), Architecture(family or "unknown"))
    for kind, words in RIGHT.items()
    for name, _, family in (word.partition("=") for word in words.split())
}


PREFIXED = [(name, "model.diffusion_model.") for name in CLASSES if EXPECTED.get(name, ("",))[0] == "checkpoint"]
PREFIXED += [(name, "vae.") for name in CLASSES if EXPECTED.get(name, ("",))[0] == "vae"]


@pytest.mark.parametrize(("name", "prefix"), [*((name, "") for name in CLASSES), *PREFIXED])
def test_each_class_is_identified_right_or_left_unknown(name, prefix):
    kind, family = EXPECTED.get(name, (Kind.UNKNOWN, Architecture.UNKNOWN))

    identity = identify(made({prefix + tensor: shape for tensor, shape in CLASSES[name].items()}))

    assert identity.kind in (kind, Kind.UNKNOWN)
    if identity.confidence is Confidence.CERTAIN:
        assert identity.architecture is family
    elif identity.architecture is not Architecture.UNKNOWN:
        assert family in (identity.architecture, *identity.also)


def test_nine_in_ten_of_the_classes_that_have_a_family_are_named():
    asked = [name for name, (_, family) in EXPECTED.items() if family is not Architecture.UNKNOWN]

    named = [name for name in asked if identify(made(CLASSES[name])).architecture is not Architecture.UNKNOWN]

    assert len(named) >= 0.9 * len(asked), sorted(set(asked) - set(named))


def test_the_unet_of_a_sound_model_has_the_same_tensors_as_stable_diffusions_at_its_defaults():
    """Why the table above calls it SD 1: at the defaults of the two classes nothing in a file tells them apart."""
    assert CLASSES["AudioLDM2UNet2DConditionModel"] == CLASSES["UNet2DConditionModel"]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("FluxTransformer2DModel", 16), ("Flux2Transformer2DModel", 32), ("QwenImage21Transformer2DModel", 64),
        ("SD3Transformer2DModel", 16), ("PixArtTransformer2DModel", 4), ("SanaTransformer2DModel", 32),
        ("WanAnimateTransformer3DModel", 16), ("HunyuanImageTransformer2DModel", 64), ("MochiTransformer3DModel", 12),
        ("AutoencoderDC", 32), ("AutoencoderKLFlux2", 32), ("AutoencoderTiny", 4), ("UNet2DConditionModel", 4),
    ],
)  # fmt: skip
def test_latent_channels_are_those_of_the_class(name, channels):
    assert identify(made(CLASSES[name])).latent_channels == channels


def test_recorded_classes_are_those_of_the_installed_diffusers(tmp_path):
    """A sample is built again from the classes themselves; the list of classes is compared whole."""
    pytest.importorskip("diffusers")
    module = loaded(CLASSES_FILE.parent / "make_diffusers_classes.py")
    if version("diffusers") != "0.42.1":
        pytest.skip("another diffusers is installed than the one recorded")
    kinds = {kind.__name__: kind for kind in module.classes()}

    sample = ["AutoencoderTiny", "T2IAdapter", "ReduxImageEncoder", "MotionAdapter", "AutoencoderDC"]

    assert set(CLASSES) <= set(kinds)
    assert {name: module.tensors(kinds[name]) for name in sample} == {
        name: {tensor: list(shape) for tensor, shape in CLASSES[name].items()} for name in sample
    }


def test_page_about_identification_is_current():
    page = (ROOT / "docs" / "identification.md").read_text(encoding="utf-8")

    assert page == loaded(ROOT / "docs" / "identification.py").page(), "run `python docs/identification.py`"


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


ADAPTED = [name for name in CLASSES if EXPECTED.get(name, ("",))[0] in ("checkpoint", "controlnet", "motion-module")]


@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapter_on_each_class_is_identified_right_or_left_unknown(name):
    """LoRAs on all linear layers of a class, on its attention alone and on its feed-forward layers alone."""
    _, family = EXPECTED[name]
    layers = {each[:-7]: shape for each, shape in CLASSES[name].items() if each.endswith(".weight") and len(shape) == 2}
    for part in ("", "attn", "to_q", ".ff", "mlp"):
        chosen = {each: shape for each, shape in layers.items() if part in each}
        for prefix, mark in (("transformer.", "."), ("lora_unet_", "_")):
            names = {prefix + each.replace(".", mark): shape for each, shape in chosen.items()}
            ends = ("lora_A", "lora_B") if mark == "." else ("lora_down", "lora_up")
            tensors = {f"{each}.{ends[0]}.weight": (4, shape[1]) for each, shape in names.items()}
            tensors |= {f"{each}.{ends[1]}.weight": (shape[0], 4) for each, shape in names.items()}

            identity = identify(made(tensors))

            assert identity.kind in (Kind.ADAPTER, Kind.UNKNOWN)
            if identity.confidence is Confidence.CERTAIN:
                assert identity.architecture is family, (part, prefix)
            elif identity.architecture is not Architecture.UNKNOWN:
                assert family in (identity.architecture, *identity.also), (part, prefix)
