"""Imports diffusers' UNet, VAE and ControlNet from diffusers' own files, without the rest of diffusers.

The files that define the networks are diffusers' own, imported under another package name. Other modules of diffusers,
which download, save, quantise and shard models or apply adapters, are replaced with the few lines that computing needs.
This way, importing the classes takes 0.1 s instead of 0.5 s or more. The real diffusers can be imported in the same
process; its pipelines need its own classes, which `loader.load(for_diffusers=True)` builds.
"""

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from civman.diffusion.no_compiler import no_compiler

_NAME: Final = "civman_diffusers_files"


def class_of(module: str, name: str) -> Any:
    """Import a class from one of diffusers' modules, such as "models.unets.unet_2d_condition"."""
    # make the CPU torch's default device during the import, because the files create tensors when they are imported
    with no_compiler(), torch.device("cpu"):
        if _NAME not in sys.modules:
            _make_packages()
        return getattr(importlib.import_module(f"{_NAME}.{module}"), name)


class Config(dict[str, Any]):
    """The arguments that a model was built with, accessible as items and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class ConfigMixin:
    """Stores a model's constructor arguments in `config`."""

    config: Config

    def register_to_config(self, **changes: Any) -> None:
        """Change entries of the config."""
        vars(self)["config"] = Config({**vars(self).get("config", {}), **changes})


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate a constructor so that its arguments, including defaults, become the model's config."""
    parameters = list(inspect.signature(init).parameters.values())[1:]

    @functools.wraps(init)
    def wrapped(self: Any, *given: Any, **named: Any) -> None:
        named = {name: value for name, value in named.items() if not name.startswith("_")}
        defaults = {each.name: each.default for each in parameters}
        first = dict(zip(defaults, given, strict=False))
        self.register_to_config(**{**defaults, **first, **named})
        init(self, *given, **named)

    return wrapped


class ModelMixin(nn.Module):
    """The base class of the models, without methods for loading and saving."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.parameters()).device


class _Nothing:
    """A stub for base classes and helpers that diffusers' files import but do not need for computing."""


def _unscaled(_name: str = "") -> Callable[[Any], Any]:
    """Replace diffusers' decorator that scales PEFT's layers.

    It returns `forward` unchanged, because PEFT is not used here.
    """
    return lambda forward: forward


def _before(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method so that it first triggers the hook that moves the model to its device, as `forward` does."""

    @functools.wraps(method)
    def wrapped(self: Any, *given: Any, **named: Any) -> Any:
        before = getattr(vars(self).get("_hf_hook"), "pre_forward", None)
        if before is not None:
            before(self)
        return method(self, *given, **named)

    return wrapped


def _deprecate(*words: Any, **_: Any) -> None:
    warnings.warn(" ".join(map(str, words)), FutureWarning, stacklevel=3)


def _is_torch_version(sign: str, wanted: str) -> bool:
    at_least = torch.__version__ >= wanted  # torch's version object parses the string and compares versions
    return at_least if sign in (">=", ">") else not at_least


class _Checks(ModuleType):
    """Replaces diffusers' checks for optional packages; it reports only torch as available."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("is_"):
            return lambda *_: name == "is_torch_available"
        raise AttributeError(name)


def _make_packages() -> None:
    origin = importlib.util.find_spec("diffusers")
    assert origin is not None
    assert origin.origin is not None
    root = Path(origin.origin).parent
    folders = ("", "models", "models.unets", "models.autoencoders", "models.transformers", "models.controlnets",
               "utils", "loaders")  # fmt: skip
    for name in folders:
        module = _module(name)
        module.__path__ = [str(root.joinpath(*name.split(".")))]
    checks = _module("utils.import_utils", _Checks)
    log = _module("utils.logging", get_logger=logging.getLogger)
    vars(checks)["is_torch_version"] = _is_torch_version
    vars(_module(""))["__version__"] = version("diffusers")
    _module("configuration_utils", ConfigMixin=ConfigMixin, LegacyConfigMixin=ConfigMixin,
            register_to_config=register_to_config)  # fmt: skip
    _module("models.modeling_utils", ModelMixin=ModelMixin, LegacyModelMixin=ModelMixin)
    _module("loaders", PeftAdapterMixin=_base("Peft"), UNet2DConditionLoadersMixin=_base("Loaders"))
    _module("loaders.single_file_model", FromOriginalModelMixin=_base("File"))
    _module("image_processor", IPAdapterMaskProcessor=_Nothing)
    _module("utils.accelerate_utils", apply_forward_hook=_before)
    _module(
        "utils", logging=log, deprecate=_deprecate, apply_lora_scale=_unscaled, is_torch_version=_is_torch_version,
        is_torch_xla_available=lambda: False, is_torch_npu_available=lambda: False,
        is_torch_available=lambda: True, get_logger=logging.getLogger,
    )  # fmt: skip
    outputs = importlib.import_module(f"{_NAME}.utils.outputs")
    _module("utils", BaseOutput=outputs.BaseOutput)


def _base(name: str) -> type:
    """Create a new empty base class: each use needs one, because a class cannot inherit from the same base twice."""
    return type(name, (_Nothing,), {})


def _module(name: str, kind: type[ModuleType] = ModuleType, **values: Any) -> ModuleType:
    """Get a module of the replacement package, creating it if necessary, and set its attributes."""
    full = f"{_NAME}.{name}".rstrip(".")
    module = sys.modules.get(full)
    if module is None:
        module = sys.modules[full] = kind(full)
        parent, _, last = full.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    vars(module).update(values)
    return module
