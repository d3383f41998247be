"""Import diffusers' and transformers' model classes when a model is built, without the rest of those libraries.

Importing one UNet the plain way also imports all of diffusers' transformer models, torch's compiler, its distributed
tensors, PEFT, sympy and (if installed) scipy: 5.1 of 6.3 CPU seconds, against 1.1 of 2.4 this way [2 cores, torch
2.13]. During the first import, five things are disabled or replaced, and nothing else is changed:

* the `__init__` of packages that import or list all their submodules (four of diffusers', two of transformers', two of
  scipy's) runs when a name from it is first used;
* PEFT is replaced by a stub with the one class that diffusers needs, which behaves like the real one once that is
  imported; and calling a UNet does not import PEFT just to scale layers that only PEFT creates;
* `torch._dynamo` is replaced by a stub whose decorators do nothing (they mark functions for a compiler that is not
  used);
* `torch.distributed.is_available()` returns False, so that transformers skips its sharding code;
* transformers does not find scipy (which it needs only for the loss functions of object detectors).

If another part of the program has already imported diffusers or transformers, none of this is done.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

# civman renders from local files, so nothing imported below may contact a model hub
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_LAZY_FIRST = ("transformers.models", "transformers.models.clip")
_LAZY = (
    "diffusers.hooks", "diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets",
    "scipy.integrate", "scipy.stats",
)  # fmt: skip
_LOCK = threading.Lock()


def construct(component: str, config: dict[str, Any]) -> nn.Module:
    """Build a component on torch's default device.

    It is "unet", "vae", "text_encoder", "text_encoder_2", or one of the control models in `_CONTROLS`.
    """
    if component in _CONTROLS:
        made_control: nn.Module = _import(lambda: _control(component))(**config)
        return made_control
    if component in ("unet", "vae"):
        has_encoder = not config.get("decoder_only")
        made: Any = _import(_diffusion)[component](**{k: v for k, v in config.items() if k != "decoder_only"})
        if not has_encoder:  # a VAE without an encoder cannot encode; `vae_codec` raises the error
            made.encoder = made.quant_conv = None
        model: nn.Module = made
        return model
    plain, projecting, configuration = _import(_text)
    encoder: nn.Module = (projecting if component == "text_encoder_2" else plain)(configuration(**config))
    return encoder


_CLASSES = {
    "FluxTransformer2DModel": "diffusers.models.transformers.transformer_flux",
    "ChromaTransformer2DModel": "diffusers.models.transformers.transformer_chroma",
    "ZImageTransformer2DModel": "diffusers.models.transformers.transformer_z_image",
    "QwenImageTransformer2DModel": "diffusers.models.transformers.transformer_qwenimage",
    "CosmosTransformer3DModel": "diffusers.models.transformers.transformer_cosmos",
    "AnimaTextConditioner": "diffusers.models.condition_embedders.condition_embedder_anima",
    "SD3Transformer2DModel": "diffusers.models.transformers.transformer_sd3",
    "Flux2Transformer2DModel": "diffusers.models.transformers.transformer_flux2",
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
    "AutoencoderKLQwenImage": "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
    "AutoencoderKLFlux2": "diffusers.models.autoencoders.autoencoder_kl_flux2",
    "CLIPTextModel": "transformers.models.clip.modeling_clip",
    "CLIPTextModelWithProjection": "transformers.models.clip.modeling_clip",
    "T5EncoderModel": "transformers.models.t5.modeling_t5",
    "Qwen3Model": "transformers.models.qwen3.modeling_qwen3",
    "Qwen2Model": "transformers.models.qwen2.modeling_qwen2",
}
"""The classes of the transformer families, and the modules that define them."""


def construct_class(name: str, config: dict[str, Any]) -> nn.Module:
    """Build one of diffusers' or transformers' models on torch's default device, by the name of its class."""
    _import(lambda: None)
    with warnings.catch_warnings():  # diffusers' own classes use names that diffusers calls deprecated
        warnings.simplefilter("ignore", FutureWarning)
        kind: Any = getattr(importlib.import_module(_CLASSES[name]), name)
        if _CLASSES[name].startswith("transformers."):
            encoder: nn.Module = kind(kind.config_class(**config, attn_implementation="sdpa"))
            return encoder
        made: Any = kind(**{key: value for key, value in config.items() if key != "decoder_only"})
    if config.get("decoder_only"):
        made.encoder = made.quant_conv = None
    model: nn.Module = made
    return model


def _diffusion() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}


_CONTROLS = {
    "controlnet": ("diffusers.models.controlnets.controlnet", "ControlNetModel"),
    "controlnet-union": ("diffusers.models.controlnets.controlnet_union", "ControlNetUnionModel"),
    "t2i-adapter": ("diffusers.models.adapter", "T2IAdapter"),
}
"""Kinds of control models, and the modules and names of their classes."""


def _control(component: str) -> Any:
    module, name = _CONTROLS[component]
    return getattr(importlib.import_module(module), name)


def _text() -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    return CLIPTextModel, CLIPTextModelWithProjection, CLIPTextConfig


def _import(what: Callable[[], Any]) -> Any:
    with _LOCK:
        if "diffusers" not in sys.modules and "transformers" not in sys.modules:
            # torch's default device would also apply to tensors that the libraries create while being imported
            with _no_compiler(), _no_distribution(), torch.device("cpu"):
                importlib.import_module("diffusers")  # diffusers detects scipy and PEFT here
                with _no_scipy():
                    for name in _LAZY_FIRST:
                        _postpone(name)
                    _text()
                for name in _LAZY:
                    _postpone(name)
                with _no_peft():
                    _diffusion()
        return what()


@contextmanager
def _no_compiler() -> Iterator[None]:
    if "torch._dynamo" in sys.modules:
        yield
        return
    sys.modules["torch._dynamo"] = _stand_in()
    try:
        yield
    finally:
        del sys.modules["torch._dynamo"]
        # importing the stub sets this attribute; the real module is imported on first use
        vars(torch).pop("_dynamo", None)


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
    """Prevent UNet calls from importing PEFT to scale its layers: if PEFT was never imported, there are none."""
    utils = importlib.import_module("diffusers.utils.peft_utils")
    for name in ("scale_lora_layers", "unscale_lora_layers"):
        setattr(utils, name, _only_with_peft(getattr(utils, name)))


def _only_with_peft(function: Callable[..., None]) -> Callable[..., None]:
    def wrapped(model: Any, *arguments: Any, **named: Any) -> None:
        # torch.compile would recompile whenever a module is imported, so compiled code looks at the model instead
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
        # if the real module is not imported, no such layer exists
        real = sys.modules.get(_PEFT[2])
        return real is not None and isinstance(instance, real.BaseTunerLayer)


class _TunerLayer(metaclass=_IsTunerLayer):
    """Replaces PEFT's BaseTunerLayer, which diffusers only uses in isinstance checks."""


def _stand_in() -> ModuleType:
    """Build a stub for torch._dynamo with just enough for its decorators. Its submodules are the real ones."""

    def unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
        return (lambda inner: inner) if function is None else function

    module = ModuleType("torch._dynamo")
    module.__spec__ = importlib.machinery.ModuleSpec("torch._dynamo", None, is_package=True)
    module.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    for name in ("disable", "allow_in_graph", "assume_constant_result"):
        setattr(module, name, unchanged)
    return module


class _Postponed(ModuleType):
    """A package whose submodules can be imported before its own `__init__` runs. A missing attribute runs it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        if "__postponed__" in vars(self):
            del vars(self)["__postponed__"]
            self.__spec__.loader.exec_module(self)
            if name in vars(self):
                return vars(self)[name]
        real = sys.modules[self.__name__]  # transformers replaces itself in sys.modules by another module
        if real is self:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(real, name)


def _postpone(name: str) -> None:
    try:
        parent = importlib.import_module(name.rpartition(".")[0])
    except ModuleNotFoundError:
        return
    spec = importlib.machinery.PathFinder.find_spec(name, parent.__path__)
    if spec is not None and name not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Postponed
        vars(module)["__postponed__"] = True
        sys.modules[name] = module
