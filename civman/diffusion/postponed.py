"""Modules that are executed only when something from them is first used."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class Postponed(ModuleType):
    """A module that is executed only when an attribute is accessed that it does not have yet.

    Its submodules can be imported without executing it.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        if "__postponed__" in vars(self):
            del vars(self)["__postponed__"]
            self.__spec__.loader.exec_module(self)
            if name in vars(self):
                return vars(self)[name]
        # look up the module again, because transformers replaces itself in sys.modules with another module
        real = sys.modules[self.__name__]
        if real is self:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(real, name)


def postpone(name: str, folders: Sequence[str]) -> None:
    """Put a module from these folders into `sys.modules` without executing it, unless it is already imported."""
    spec = importlib.machinery.PathFinder.find_spec(name, folders)
    if spec is not None and name not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = Postponed
        vars(module)["__postponed__"] = True
        sys.modules[name] = module
