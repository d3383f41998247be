"""diffusers' and transformers' model classes, imported when a model is built and without the rest of those libraries.

Importing one UNet the plain way also imports every transformer diffusers has, torch's compiler, its distributed
tensors, sympy and (where present) scipy: 5.1 of 6.3 CPU seconds, against 1.4 of 2.7 this way [2 cores, torch 2.13].
While the first import runs, four things are switched off, and nothing else is changed:

* the `__init__` of packages that import all their siblings (four of diffusers', two of scipy's) runs at the first use
  of a name from it;
* `torch._dynamo` is a stand-in whose decorators do nothing (they mark functions for a compiler that is not used);
* `torch.distributed.is_available()` says no, so that transformers leaves its sharding out;
* transformers does not find scipy (its loss functions for detectors want it).

Where another part of the program has imported diffusers or transformers already, all of this is left out.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

# civman's pictures come from files it holds; nothing that is imported below may think of asking a hub
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_LAZY = (
    "diffusers.hooks", "diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets",
    "scipy.integrate", "scipy.stats",
)  # fmt: skip
_LOCK = threading.Lock()


def construct(component: str, config: dict[str, Any]) -> nn.Module:
    """A component ("unet", "vae", "text_encoder", "text_encoder_2") with these arguments, on torch's default device."""
    if component in ("unet", "vae"):
        made: nn.Module = _import(_diffusion)[component](**config)
        return made
    plain, projecting, configuration = _import(_text)
    encoder: nn.Module = (projecting if component == "text_encoder_2" else plain)(configuration(**config))
    return encoder


def _diffusion() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}


def _text() -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    return CLIPTextModel, CLIPTextModelWithProjection, CLIPTextConfig


def _import(what: Callable[[], Any]) -> Any:
    with _LOCK:
        if "diffusers" not in sys.modules and "transformers" not in sys.modules:
            # torch's default device would reach tensors that the libraries make while being imported
            with _no_compiler(), _no_distribution(), torch.device("cpu"):
                importlib.import_module("diffusers")  # it notes here whether scipy exists
                with _no_scipy():
                    _text()
                for name in _LAZY:
                    _postpone(name)
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
        # set by the import of the stand-in; the real one comes on first use
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
    sys.modules["scipy"] = None  # type: ignore[assignment]  # what makes an import fail, in Python's own words
    try:
        yield
    finally:
        del sys.modules["scipy"]


def _stand_in() -> ModuleType:
    """Enough of torch._dynamo for decorators. Its submodules are the real ones."""

    def unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
        return (lambda inner: inner) if function is None else function

    module = ModuleType("torch._dynamo")
    module.__spec__ = importlib.machinery.ModuleSpec("torch._dynamo", None, is_package=True)
    module.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    for name in ("disable", "allow_in_graph", "assume_constant_result"):
        setattr(module, name, unchanged)
    return module


class _Postponed(ModuleType):
    """A package whose submodules can be imported before its own `__init__` has run; that runs at the first miss."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _postpone(name: str) -> None:
    try:
        parent = importlib.import_module(name.rpartition(".")[0])
    except ModuleNotFoundError:
        return
    spec = importlib.machinery.PathFinder.find_spec(name, parent.__path__)
    if spec is not None and name not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Postponed
        sys.modules[name] = module
