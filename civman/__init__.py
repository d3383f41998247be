"""civman: find, download, verify, check, render and replay models from CivitAI.

Names are loaded on first use, so `import civman` costs almost nothing.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Library": "civman.library",
    "Settings": "civman.settings",
    "CivmanError": "civman.errors",
    "ExitCode": "civman.errors",
    "parse_ref": "civman.domain.refs",
    "Model": "civman.domain.catalog",
    "ModelVersion": "civman.domain.catalog",
    "ModelFile": "civman.domain.catalog",
    "Asset": "civman.domain.catalog",
    "Machine": "civman.domain.recipes.machine",
    "RenderRequest": "civman.domain.recipes.recipe",
}
__all__ = [
    "Asset",
    "CivmanError",
    "ExitCode",
    "Library",
    "Machine",
    "Model",
    "ModelFile",
    "ModelVersion",
    "RenderRequest",
    "Settings",
    "parse_ref",
    "__version__",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'civman' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
