"""What a model file can be: its kind, architecture, kind of adapter, key format and precision.

This module defines the closed sets of values and `Identity`, which `civman.domain.identification.identify` determines
from a header. CivitAI's base models ("Pony") are in `civman.domain.base_models`.
"""

from dataclasses import dataclass
from enum import StrEnum

from civman.domain.catalog import ModelType


class Kind(StrEnum):
    """The role of a model file in image generation."""

    CHECKPOINT = "checkpoint"
    """A diffusion model, with or without text encoders and VAE (see `Identity.has_text_encoder`)."""
    ADAPTER = "adapter"
    EMBEDDING = "embedding"
    VAE = "vae"
    CONTROLNET = "controlnet"
    TEXT_ENCODER = "text-encoder"
    CLIP_VISION = "clip-vision"
    MOTION_MODULE = "motion-module"
    IP_ADAPTER = "ip-adapter"
    STYLE_MODEL = "style-model"
    """Turns an image's embedding into text conditioning, as Flux Redux and T2I-Adapter's style model do."""
    TINY_VAE = "tiny-vae"
    """A small autoencoder for previews (TAESD), which cannot replace the VAE."""
    GLIGEN = "gligen"
    HYPERNETWORK = "hypernetwork"
    UPSCALER = "upscaler"
    TOKENIZER = "tokenizer"
    """Converts text to a text encoder's token ids."""
    FACE_MODEL = "face-model"
    """Finds, segments or restores faces: RetinaFace, ParseNet, GFPGAN, CodeFormer."""
    UNKNOWN = "unknown"

    @property
    def spoken(self) -> str:
        """The kind with its article, such as "an upscaler"."""
        return f"{'an' if self.value[0] in 'aeiou' else 'a'} {self.value.replace('-', ' ')}"


class Architecture(StrEnum):
    """A family of models whose tensors have the same layout, even if their weights differ (SDXL, Pony, Illustrious)."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"
    SDXL_REFINER = "sdxl-refiner"
    SD = "sd"
    """Only used for VAEs, because SD 1, SD 2 and SDXL have the same VAE layout."""
    SD3 = "sd3"
    FLUX1 = "flux1"
    FLUX2 = "flux2"
    FLUX3 = "flux3"
    CHROMA = "chroma"
    AURAFLOW = "auraflow"
    WAN = "wan"
    QWEN_IMAGE = "qwen-image"
    Z_IMAGE = "z-image"
    LUMINA2 = "lumina2"
    HUNYUAN_VIDEO = "hunyuan-video"
    HUNYUAN_IMAGE = "hunyuan-image"
    HUNYUAN_DIT = "hunyuan-dit"
    HIDREAM = "hidream"
    HIDREAM_O1 = "hidream-o1"
    ANIMA = "anima"
    COSMOS = "cosmos"
    PIXART = "pixart"
    SANA = "sana"
    CASCADE = "cascade"
    LTX_VIDEO = "ltx-video"
    LTX2 = "ltx2"
    MOCHI = "mochi"
    COGVIDEOX = "cogvideox"
    KOLORS = "kolors"
    SVD = "svd"
    KREA2 = "krea2"
    ALLEGRO = "allegro"
    AMUSED = "amused"
    BRIA = "bria"
    COGVIEW = "cogview"
    DREAMLITE = "dreamlite"
    EASYANIMATE = "easyanimate"
    ERNIE_IMAGE = "ernie-image"
    GLM_IMAGE = "glm-image"
    HELIOS = "helios"
    HUNYUAN_VIDEO_15 = "hunyuan-video-1.5"
    IDEOGRAM4 = "ideogram4"
    JOYIMAGE = "joyimage"
    KANDINSKY3 = "kandinsky3"
    KANDINSKY5 = "kandinsky5"
    KANDINSKY6 = "kandinsky6"
    LATTE = "latte"
    LONGCAT_IMAGE = "longcat-image"
    LUMINA_NEXT = "lumina-next"
    MINIMAX_H3 = "minimax-h3"
    MOTIF_VIDEO = "motif-video"
    NUCLEUS_IMAGE = "nucleus-image"
    OMNIGEN = "omnigen"
    OVIS_IMAGE = "ovis-image"
    PRX = "prx"
    SANA_VIDEO = "sana-video"
    UNKNOWN = "unknown"


class Adapter(StrEnum):
    """The method with which an adapter changes weights."""

    LORA = "lora"
    DORA = "dora"
    LOHA = "loha"
    LOKR = "lokr"
    OFT = "oft"
    BOFT = "boft"
    GLORA = "glora"
    IA3 = "ia3"
    FULL = "full"


class KeyFormat(StrEnum):
    """The naming convention of a file's tensors."""

    LDM = "ldm"
    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    BFL = "bfl"
    COMFY = "comfy"
    XLABS = "xlabs"
    ORIGINAL = "original"
    UNKNOWN = "unknown"


class Precision(StrEnum):
    """The data type of the weights; MIXED if no data type makes up nine tenths of them."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    FP4 = "fp4"
    INT8 = "int8"
    FP64 = "fp64"
    MIXED = "mixed"
    UNKNOWN = "unknown"


class Confidence(StrEnum):
    """How certain the architecture is.

    CERTAIN: no other known family has these tensor names and widths. LIKELY: several families have them, see
    `Identity.also`. NONE: unknown.
    """

    CERTAIN = "certain"
    LIKELY = "likely"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file is, according to its tensors.

    `rules` are the ids of the identification rules that matched (see `civman.domain.identification.rules`), and
    `reasons` explain the result in words. `variant` is free text that narrows down the architecture ("3.5-large",
    "schnell"). `flags` are further facts: "inpainting", "v-prediction", "zero-terminal-snr", "distilled-layers", "thin"
    (narrower or wider than the family's models), "conv" (an adapter that also changes 3x3 convolutions), "ema",
    "quantised" …
    """

    kind: Kind = Kind.UNKNOWN
    architecture: Architecture = Architecture.UNKNOWN
    variant: str = ""
    key_format: KeyFormat = KeyFormat.UNKNOWN
    adapter: Adapter | None = None
    ranks: tuple[int, ...] = ()
    """The most common rank, followed by the smallest and the largest if they differ from it."""
    precision: Precision = Precision.UNKNOWN
    weights: str = ""
    """How the weights are stored, in words, such as "UNet fp8 with scales, rest fp16"."""
    flags: tuple[str, ...] = ()
    confidence: Confidence = Confidence.NONE
    also: tuple[Architecture, ...] = ()
    """Other architectures whose files look the same; empty if the architecture is certain."""
    rules: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    tensor_count: int = 0
    parameter_count: int = 0
    context_width: int | None = None
    """The width of the text conditioning that a UNet's cross-attention expects."""
    latent_channels: int | None = None
    """The number of latent channels, according to the shapes in a diffusion model or autoencoder."""
    downscale: int | None = None
    """An autoencoder's downscaling factor: the number of image pixels per latent pixel, in each direction."""
    text_widths: tuple[int, ...] = ()
    """The widths of an embedding's vectors or of a checkpoint's CLIP text encoders, smallest first."""
    module_count: int = 0
    """The number of modules that an adapter changes."""
    has_text_encoder: bool = False
    has_vae: bool = False
    has_diffusion_model: bool = False

    @property
    def rank(self) -> int | None:
        """The most common rank among the modules; None if the file has no ranks."""
        return self.ranks[0] if self.ranks else None

    @property
    def model_type(self) -> ModelType:
        """CivitAI's model type for a file of this kind."""
        if self.kind is Kind.ADAPTER:
            if self.adapter is Adapter.DORA:
                return ModelType.DORA
            plain = self.adapter is Adapter.LORA and "conv" not in self.flags
            return ModelType.LORA if plain else ModelType.LOCON
        return _TYPES.get(self.kind, ModelType.OTHER)

    def describe(self) -> str:
        """Describe the file on one line, such as "checkpoint, sdxl, fp16, with text encoder and VAE"."""
        words = [str(self.adapter) if self.adapter else str(self.kind), str(self.architecture)]
        words += [word for word in (self.variant, self.weights or str(self.precision)) if word and word != "unknown"]
        words += [f"rank {self.rank}"] if self.rank else []
        if self.kind is Kind.CHECKPOINT:
            inside = [name for has, name in ((self.has_text_encoder, "text encoder"), (self.has_vae, "VAE")) if has]
            words.append("with " + " and ".join(inside) if inside else "without text encoder and VAE")
        return ", ".join([*words, *self.flags])


_TYPES = {
    Kind.CHECKPOINT: ModelType.CHECKPOINT, Kind.EMBEDDING: ModelType.EMBEDDING, Kind.VAE: ModelType.VAE,
    Kind.CONTROLNET: ModelType.CONTROLNET, Kind.TEXT_ENCODER: ModelType.TEXT_ENCODER,
    Kind.CLIP_VISION: ModelType.CLIP_VISION, Kind.MOTION_MODULE: ModelType.MOTION_MODULE,
    Kind.UPSCALER: ModelType.UPSCALER, Kind.TINY_VAE: ModelType.VAE, Kind.HYPERNETWORK: ModelType.HYPERNETWORK,
}  # fmt: skip
