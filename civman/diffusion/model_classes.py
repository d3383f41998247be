"""Builds models from diffusers' and transformers' classes, and imports these classes without the rest of the libraries.

The parts of Stable Diffusion come from `diffusers_files` and `clip_text_model`, which import neither library. For the
transformer families and for diffusers' pipelines, the libraries themselves are imported.

A plain import of one UNet also imports all of diffusers' transformer models, torch's compiler, its distributed tensors,
PEFT, sympy and (if installed) scipy. These take 5.1 of the 6.3 CPU seconds that the import takes; with this module,
they take 1.1 of 2.4 [2 cores, torch 2.13]. During the first import, five things are disabled or replaced:
    * The `__init__` of packages that import or list all their submodules (four of diffusers', two of transformers', two
      of scipy's) runs only when a name from it is first used.
    * PEFT is replaced with a stub that has the one class that diffusers needs, and that acts like the real PEFT once
      that is imported. Calling a UNet does not import PEFT just to scale layers that only PEFT creates.
    * `torch._dynamo` is replaced with a stub whose decorators do nothing. The real ones mark functions for a compiler
      that is not used.
    * `torch.distributed.is_available()` returns False, so that transformers skips its sharding code.
    * transformers does not find scipy, which it needs only for the loss functions of object detectors.

Nothing is disabled or replaced if another part of the program has already imported diffusers or transformers.
"""

import contextlib
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from civman.diffusion.clip_text_model import ClipText, ClipTextWithProjection
from civman.diffusion.diffusers_files import class_of
from civman.diffusion.no_compiler import no_compiler
from civman.diffusion.postponed import postpone

# keep the libraries imported below from contacting a model hub, because civman renders from local files
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_LAZY_FIRST = ("transformers.models", "transformers.models.clip")
_LAZY = (
    "diffusers.hooks", "diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets",
    "scipy.integrate", "scipy.stats",
)  # fmt: skip
_LOCK = threading.Lock()


_FILES: dict[str, tuple[str, str]] = {
    "unet": ("models.unets.unet_2d_condition", "UNet2DConditionModel"),
    "vae": ("models.autoencoders.autoencoder_kl", "AutoencoderKL"),
    "controlnet": ("models.controlnets.controlnet", "ControlNetModel"),
    "controlnet-union": ("models.controlnets.controlnet_union", "ControlNetUnionModel"),
    "t2i-adapter": ("models.adapter", "T2IAdapter"),
}
"""Maps each component to (the module of diffusers that defines the component's class, the class's name)."""


def construct(component: str, config: dict[str, Any], *, for_diffusers: bool = False) -> nn.Module:
    """Build a component (a key of `_FILES`, "text_encoder" or "text_encoder_2") on torch's default device.

    `for_diffusers`: build diffusers' and transformers' own classes, which diffusers' pipelines need but which take much
    longer to import. Both variants compute the same bits.
    """
    if component in _FILES:
        has_encoder = not config.get("decoder_only")
        kind: Any = _import(lambda: _diffusion(component)) if for_diffusers else class_of(*_FILES[component])
        made: Any = kind(**{k: v for k, v in config.items() if k != "decoder_only"})
        if not has_encoder:  # remove the encoder, which has no weights; `vae_codec` raises an error if it is needed
            made.encoder = made.quant_conv = None
        model: nn.Module = made
        return model
    projects = component == "text_encoder_2"
    if not for_diffusers:
        return ClipTextWithProjection(config) if projects else ClipText(config)
    plain, projecting, configuration = _import(_text)
    encoder: nn.Module = (projecting if projects else plain)(configuration(**config))
    return encoder


_CLASSES = {
    "FluxTransformer2DModel": "diffusers.models.transformers.transformer_flux",
    "AuraFlowTransformer2DModel": "civman.diffusion.auraflow_transformer",
    "ChromaTransformer2DModel": "diffusers.models.transformers.transformer_chroma",
    "ZImageTransformer2DModel": "diffusers.models.transformers.transformer_z_image",
    "QwenImageTransformer2DModel": "diffusers.models.transformers.transformer_qwenimage",
    "CosmosTransformer3DModel": "diffusers.models.transformers.transformer_cosmos",
    "AnimaTextConditioner": "diffusers.models.condition_embedders.condition_embedder_anima",
    "Krea2Transformer2DModel": "diffusers.models.transformers.transformer_krea2",
    "Lumina2Transformer2DModel": "diffusers.models.transformers.transformer_lumina2",
    "SD3Transformer2DModel": "diffusers.models.transformers.transformer_sd3",
    "HiDreamImageTransformer2DModel": "diffusers.models.transformers.transformer_hidream_image",
    "ErnieImageTransformer2DModel": "diffusers.models.transformers.transformer_ernie_image",
    "Flux2Transformer2DModel": "diffusers.models.transformers.transformer_flux2",
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
    "AutoencoderKLQwenImage": "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
    "AutoencoderKLFlux2": "diffusers.models.autoencoders.autoencoder_kl_flux2",
    "CLIPTextModel": "transformers.models.clip.modeling_clip",
    "CLIPTextModelWithProjection": "transformers.models.clip.modeling_clip",
    "T5EncoderModel": "transformers.models.t5.modeling_t5",
    "UMT5EncoderModel": "transformers.models.umt5.modeling_umt5",
    "Gemma2Model": "transformers.models.gemma2.modeling_gemma2",
    "LlamaModel": "transformers.models.llama.modeling_llama",
    "MistralModel": "transformers.models.mistral.modeling_mistral",
    "Ministral3Model": "transformers.models.ministral3.modeling_ministral3",
    "Qwen3Model": "transformers.models.qwen3.modeling_qwen3",
    "Qwen2Model": "transformers.models.qwen2.modeling_qwen2",
}
"""Maps the names of the transformer families' classes to the modules that define them."""


def construct_class(name: str, config: dict[str, Any]) -> nn.Module:
    """Build a model of diffusers or transformers on torch's default device, by the name of its class."""
    _import(lambda: None)
    with warnings.catch_warnings():  # hide diffusers' deprecation warnings, which its own classes trigger
        warnings.simplefilter("ignore", FutureWarning)
        kind: Any = getattr(importlib.import_module(_CLASSES[name]), name)
        if _CLASSES[name].startswith("transformers."):
            attention = "sdpa" if kind._supports_sdpa else "eager"  # noqa: SLF001  # Gemma 2 caps its attention scores
            options = {key: value for key, value in config.items() if key != "final_norm"}
            encoder: nn.Module = kind(kind.config_class(**options, attn_implementation=attention))
            if not config.get("final_norm", True):
                encoder.norm = nn.Identity()
            return encoder
        made: Any = kind(**{key: value for key, value in config.items() if key != "decoder_only"})
    if config.get("decoder_only"):
        made.encoder = made.quant_conv = None
    model: nn.Module = made
    return model


def _diffusion(component: str) -> Any:
    module, name = _FILES[component]
    return getattr(importlib.import_module(f"diffusers.{module}"), name)


def _text() -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    return CLIPTextModel, CLIPTextModelWithProjection, CLIPTextConfig


def _import(what: Callable[[], Any]) -> Any:
    with _LOCK:
        if "diffusers" not in sys.modules and "transformers" not in sys.modules:
            # make the CPU torch's default device during the import, because the libraries create tensors when they are
            # imported
            with no_compiler(), _no_distribution(), torch.device("cpu"):
                # import diffusers before scipy and PEFT are hidden, because it checks for them on import
                importlib.import_module("diffusers")
                with _no_scipy():
                    for name in _LAZY_FIRST:
                        _postpone(name)
                    _text()
                for name in _LAZY:
                    _postpone(name)
                with _no_peft():
                    _diffusion("unet")
                    _diffusion("vae")
        return what()


@contextmanager
def _no_distribution() -> Iterator[None]:
    original = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = original


@contextmanager
def _no_scipy() -> Iterator[None]:
    if "scipy" in sys.modules:
        yield
        return
    sys.modules["scipy"] = None  # type: ignore[assignment]  # makes `import scipy` fail
    try:
        yield
    finally:
        del sys.modules["scipy"]


_PEFT = ("peft", "peft.tuners", "peft.tuners.tuners_utils")


@contextmanager
def _no_peft() -> Iterator[None]:
    if _PEFT[0] in sys.modules:
        yield
        return
    for name in _PEFT:
        sys.modules[name] = _PeftStandIn(name)
    vars(sys.modules[_PEFT[2]])["BaseTunerLayer"] = _TunerLayer
    try:
        yield
        _scale_where_peft_is()
    finally:
        _forget_peft()


def _scale_where_peft_is() -> None:
    """Prevent UNet calls from importing PEFT just to scale PEFT's layers, which cannot exist without it."""
    utils = importlib.import_module("diffusers.utils.peft_utils")
    for name in ("scale_lora_layers", "unscale_lora_layers"):
        setattr(utils, name, _only_with_peft(getattr(utils, name)))


def _only_with_peft(function: Callable[..., None]) -> Callable[..., None]:
    def wrapped(model: Any, *arguments: Any, **named: Any) -> None:
        # check the model, not the imported modules: otherwise torch.compile would recompile whenever a module is
        # imported
        if torch.compiler.is_compiling():
            has_layers = bool(getattr(model, "_hf_peft_config_loaded", False))
        else:
            has_layers = _PEFT[2] in sys.modules
        if has_layers:
            function(model, *arguments, **named)

    return wrapped


def _forget_peft() -> None:
    for name in _PEFT:
        if isinstance(sys.modules.get(name), _PeftStandIn):
            del sys.modules[name]


class _PeftStandIn(ModuleType):
    """A stub for PEFT; imports the real package as soon as any other attribute is accessed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _forget_peft()
        return getattr(importlib.import_module(self.__name__), name)


class _IsTunerLayer(type):
    def __instancecheck__(cls, instance: object) -> bool:
        # unless the real PEFT has been imported, no layer of this class can exist
        real = sys.modules.get(_PEFT[2])
        return real is not None and isinstance(instance, real.BaseTunerLayer)


class _TunerLayer(metaclass=_IsTunerLayer):
    """Replaces PEFT's BaseTunerLayer, which diffusers only uses in isinstance checks."""


def _postpone(name: str) -> None:
    with contextlib.suppress(ModuleNotFoundError):
        postpone(name, importlib.import_module(name.rpartition(".")[0]).__path__)
