"""k-diffusion's sampling module alone (the package's own `__init__` wants scikit-image, wandb and more)."""

import importlib.util
import sys
import types
from typing import Any

import pytest


def sampling() -> Any:
    """k_diffusion.sampling; skips the test where k-diffusion, scipy or torchsde is missing."""
    for name in ("scipy", "torchsde", "tqdm"):
        pytest.importorskip(name)
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    if importlib.util.find_spec("torchdiffeq") is None:  # only its log-likelihood wants it
        solver = types.ModuleType("torchdiffeq")
        solver.odeint = None  # type: ignore[attr-defined]
        sys.modules["torchdiffeq"] = solver
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    import k_diffusion.sampling

    return k_diffusion.sampling


def external() -> Any:
    """k_diffusion.external: the denoisers around models of noise and of v."""
    sampling()
    import k_diffusion.external

    return k_diffusion.external
