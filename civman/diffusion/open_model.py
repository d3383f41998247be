"""Loads a checkpoint of any family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from civman.diffusion import loader
from civman.diffusion.checkpoint_names import Config
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.flow_model import load_flow
from civman.diffusion.flow_parts import TOKENIZER
from civman.diffusion.loader import LoadedModel
from civman.diffusion.mapped_weights import Weights


def load(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    vae: Path | None = None,
    parts: Mapping[str, Path] | None = None,
    config: Mapping[str, Config] | None = None,
    leaves: int | None = None,
    **for_unets: Any,
) -> LoadedModel:
    """Load a checkpoint of any family.

    Args:
        path: the checkpoint.
        device: where to put the components.
        dtype: the dtype to compute in; None uses the file's dtype.
        vae: a separate VAE file to use instead of the checkpoint's VAE.
        parts: the files of text encoders and of a tokenizer that are not in the checkpoint, by role, such as "t5".
        config: config options that no tensor shape reveals, by component.
        leaves: as in `loader.load`.
        for_unets: further arguments of `loader.load`, which are ignored for transformers.

    Raises: CannotRender, InvalidModelFile: as in `loader.load` and `flow_model.load_flow`.
    """
    family = flow_family_of(Weights(path).shapes)
    if family is None:
        return loader.load(path, device=device, dtype=dtype, vae=vae, config=config, leaves=leaves, **for_unets)
    given = dict(parts or {}) | ({"vae": vae} if vae is not None else {})
    placed = {need.component: given[need.kind.role] for need in family.needs if need.kind.role in given}
    placed |= {TOKENIZER: given[TOKENIZER]} if TOKENIZER in given else {}
    return load_flow(path, family, parts=placed, device=device, dtype=dtype, config=config, leaves=leaves)
