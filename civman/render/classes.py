"""diffusers' and transformers' model classes, imported when a model is built and without the rest of those libraries.

Importing one UNet the plain way also imports every transformer diffusers has, torch's compiler, its distributed
tensors, sympy and (where present) scipy: 5.1 of 6.3 CPU seconds, against 1.4 of 2.7 this way [2 cores, torch 2.13].
While the first import runs, four things are switched off, and nothing else is changed:

* the `__init__` of diffusers' packages that import all their siblings runs at the first use of a name from it;
* `torch._dynamo` is a stand-in whose decorators do nothing (they mark functions for a compiler that is not used);
* `torch.distributed.is_available()` says no, so that transformers leaves its sharding out;
* scipy is not to be found (loss functions of detectors want it).

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
)  # fmt: skip
_LOCK = threading.Lock()


def construct(component: str, config: dict[str, Any]) -> nn.Module:
    """The component ("unet", "vae", "text_encoder", "text_encoder_2") with these arguments, on torch's default device."""
    if component in ("unet", "vae"):
        made: nn.Module = _import(_diffusion)[component](**config)
        return made
    plain, projecting, configuration = _import(_text)
    made = (projecting if component == "text_encoder_2" else plain)(configuration(**config))
    return made


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
        if "diffusers" in sys.modules or "transformers" in sys.modules:
            return what()
        # torch's default device would reach tensors that the libraries make while being imported
        with _alone(), torch.device("cpu"):
            _diffusion()
            return _text() if what is _text else _diffusion()


@contextmanager
def _alone() -> Iterator[None]:
    """The four switches of the module's docstring."""
    original = torch.distributed.is_available
    had_dynamo = sys.modules.get("torch._dynamo")
    if had_dynamo is None:
        sys.modules["torch._dynamo"] = _stand_in()
    hides_scipy = "scipy" not in sys.modules
    if hides_scipy:
        sys.modules["scipy"] = None  # type: ignore[assignment]
    torch.distributed.is_available = lambda: False
    try:
        for name in _LAZY:
            _postpone(name)
        yield
    finally:
        torch.distributed.is_available = original
        if hides_scipy:
            del sys.modules["scipy"]
            _tell_of_scipy()
        if had_dynamo is None:
            del sys.modules["torch._dynamo"]
            if "_dynamo" in vars(torch):
                del torch._dynamo  # noqa: SLF001  (set by the import of the stand-in; the real one comes on first use)


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
    parent = importlib.import_module(name.rpartition(".")[0])
    spec = importlib.machinery.PathFinder.find_spec(name, parent.__path__)
    if spec is not None and name not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Postponed
        sys.modules[name] = module


def _tell_of_scipy() -> None:
    """diffusers remembers whether scipy is there; what it saw while scipy was hidden is not so."""
    facts = sys.modules.get("diffusers.utils.import_utils")
    if hasattr(facts, "_scipy_available"):
        facts._scipy_available = importlib.util.find_spec("scipy") is not None  # type: ignore[union-attr]  # noqa: SLF001
