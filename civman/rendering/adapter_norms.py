"""Measures how much the LoRAs of a plan change each block of its model, without merging them."""

import json

from civman.diffusion.block_norms import BlockNorm, block_norms
from civman.diffusion.guard import memory_errors
from civman.diffusion.layer_streaming import SMALL
from civman.diffusion.match_adapter import Adapter
from civman.diffusion.open_model import load
from civman.planning.plan_types import Planned
from civman.rendering.weight_files import with_safe_copies


def adapter_norms(planned: Planned) -> list[tuple[BlockNorm, ...]]:
    """Measure how much each LoRA of a plan changes the model's blocks at scale 1, in the order of the recipe.

    Large weights are read from the checkpoint as needed, not all loaded at once. Raises: CannotRender,
    InvalidModelFile: the checkpoint or a LoRA cannot be read.
    """
    planned = with_safe_copies(planned)
    recipe = planned.recipe
    with memory_errors("measuring the adapters"):
        model = load(
            planned.path(recipe.checkpoint), vae=planned.path(recipe.vae) if recipe.vae else None,
            parts={use.role: planned.path(use.sha256) for use in recipe.parts},
            config=json.loads(recipe.config) if recipe.config else None, prediction=recipe.prediction,
            is_zero_snr=recipe.is_zero_snr, leaves=SMALL,
        )  # fmt: skip
        return [
            block_norms(model, Adapter(planned.path(use.sha256), use.sha256, name=planned.name(use.sha256)))
            for use in recipe.loras
        ]
