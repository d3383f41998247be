"""spandrel, the library by which A1111 runs upscaler models, imported without torchvision."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def spandrel_model(tensors: dict[str, Any]) -> Any:
    """spandrel's network with these tensors; the test is skipped where spandrel is not installed.

    Only two kinds of networks use torchvision, neither of them here, so empty modules stand for it during the import.
    """
    if "spandrel" not in sys.modules and "torchvision" not in sys.modules:
        names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        for name in names:
            module: Any = ModuleType(name)
            module.InterpolationMode = SimpleNamespace(NEAREST=0, BILINEAR=1)
            module.rotate = module.normalize = None
            sys.modules[name] = module
        try:
            pytest.importorskip("spandrel")
        finally:
            for name in names:
                del sys.modules[name]
    spandrel = pytest.importorskip("spandrel")
    return spandrel.ModelLoader().load_from_state_dict(tensors).model.eval()
