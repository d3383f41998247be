"""Estimates how much memory a plan needs, from the headers of all its files."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from civman.diffusion.checkpoint_names import Shapes
from civman.diffusion.control_lora_shapes import is_control_lora, whole_shapes
from civman.diffusion.control_shapes import original_names
from civman.diffusion.families.registry import family_of
from civman.diffusion.memory_plan import Estimate, MemoryPlan, estimate, layer_bytes
from civman.diffusion.t2i_shapes import adapter_names, is_adapter
from civman.domain.recipes.recipe import Recipe
from civman.planning.find_encoder import ROLE
from civman.planning.find_files import Found
from civman.planning.plan_stages import FurtherCheckpoints


def memory_of(recipe: Recipe, checkpoint: Found, further: FurtherCheckpoints, parts: Sequence[Found]) -> Estimate:
    """Estimate the memory that a recipe needs with its largest checkpoint; only one checkpoint is loaded at a time."""
    each = [_memory(recipe, found, parts) for found in (checkpoint, *further.files)]
    return max(each, key=lambda estimated: estimated.needed(MemoryPlan.RESIDENT))


def _memory(recipe: Recipe, checkpoint: Found, parts: Sequence[Found]) -> Estimate:
    width, height = max(recipe.drawn_sizes, key=lambda size: size[0] * size[1])
    shapes = checkpoint.header.shapes
    single = recipe.precision == "float32"
    value = 4 if single else 2
    files = {file.sha256: file for file in parts}
    controls = {digest: files[digest].header.shapes for digest in recipe.digests["controlnet"]}
    attached = sum(_control_numbers(shapes, each) for each in controls.values())
    attached += sum(_numbers(file) for file in files.values() if file.role == "ip-adapter")
    needed = estimate(
        shapes, width=width, height=height, batch=recipe.at_a_time, is_guided=recipe.uses_negative,
        dtype_bytes=value,
        # SDXL's VAE is computed in float32, because it overflows in float16; see `civman.diffusion.loader`
        vae_bytes=4 if single or (recipe.precision == "float16" and family_of(shapes).vae_overflows) else 2,
        layer=layer_bytes(checkpoint.header.tensors.values(), value),
        controlnets=sum(not is_adapter(controls[use.sha256]) for use in recipe.controls),
        attached=attached * value,
    )  # fmt: skip
    encoders = sum(_numbers(file) for file in files.values() if file.role == ROLE)
    return replace(needed, text=needed.text + encoders * value)


def _numbers(file: Found) -> int:
    """Count the numbers in the tensors of a file."""
    return sum(map(prod, file.header.shapes.values()))


def _control_numbers(checkpoint: Shapes, control: Shapes) -> int:
    """Count the numbers in a loaded control model.

    A ControlLoRA becomes a whole ControlNet when it is loaded, with weights of the checkpoint.
    """
    if is_adapter(control):
        return sum(prod(control[name]) for name in adapter_names(control).values())
    if is_control_lora(control):
        return sum(map(prod, whole_shapes(checkpoint, control).values()))
    return sum(prod(control[name]) for name in original_names(control).values())
