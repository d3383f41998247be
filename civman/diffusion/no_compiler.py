"""Prevents libraries from importing torch's compiler if they only want to mark functions for it."""

import importlib.machinery
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_LOCK = threading.RLock()


@contextmanager
def no_compiler() -> Iterator[None]:
    """Replace `torch._dynamo` with a stub inside this context, unless it is imported already.

    The stub's decorators do nothing; the real ones would only mark functions for the compiler.
    """
    with _LOCK:
        if "torch._dynamo" in sys.modules:
            yield
            return
        sys.modules["torch._dynamo"] = _stand_in()
        try:
            yield
        finally:
            del sys.modules["torch._dynamo"]
            # importing the stub has set this attribute of torch; remove it, so that the real module is imported on
            # first use
            vars(torch).pop("_dynamo", None)


def _stand_in() -> ModuleType:
    """Build a stub for torch._dynamo with only the decorators that libraries use; its submodules are real."""

    def unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
        return (lambda inner: inner) if function is None else function

    module = ModuleType("torch._dynamo")
    module.__spec__ = importlib.machinery.ModuleSpec("torch._dynamo", None, is_package=True)
    module.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    for name in ("disable", "allow_in_graph", "assume_constant_result"):
        setattr(module, name, unchanged)
    return module
