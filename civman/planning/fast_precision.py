"""Chooses the precision of a render: the usual one of the device, or the fastest one (`--fast`)."""

from dataclasses import replace
from typing import Final

from civman.diffusion.families.registry import family_of
from civman.domain.recipes.recipe import Recipe
from civman.planning.find_files import Found
from civman.planning.flow_request import usual_precision
from civman.system.system_facts import computes_bfloat16

FAST: Final = "fast"
"""The value of a request's `precision` that selects the fastest precision, as chosen by `fast_precision`."""


def fast_precision(usual: str, *, vae_overflows: bool) -> tuple[str, str]:
    """Return the fastest precision for a device whose usual precision is `usual`, and a notice on how images change.

    "float32" is the usual precision of CPUs only. `vae_overflows`: the VAE overflows in float16, so it is computed in
    float32 if the other components are computed in float16.
    """
    if usual == "float32":
        if not computes_bfloat16():
            return usual, "--fast changes nothing: this processor has no instructions for bfloat16 (AVX512_BF16)"
        return (
            "bfloat16",
            "--fast computes in bfloat16 instead of float32: a step takes about half the time (measured with SD 1.5), "
            "and images differ by 36 to 44 dB PSNR",
        )
    if usual == "float16" and vae_overflows:
        return (
            "bfloat16",
            "--fast computes in bfloat16 instead of float16, because the VAE can then compute in 16 bits as well; "
            "images differ slightly (not measured)",
        )
    return usual, f"--fast changes nothing: on a GPU, {usual} is already the fastest precision for this model"


def with_precision(
    wanted: str | None, recipe: Recipe, checkpoint: Found, device: str | None, *, is_flow: bool, is_there: bool
) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with the precision `wanted`, and notices about that choice.

    `wanted`: None means the usual precision of the device, and `FAST` means the fastest one. `is_there`: the device is
    known to exist.
    """
    if wanted not in (None, FAST):
        return replace(recipe, precision=wanted), ()
    usual = usual_precision(device, is_flow=is_flow, is_there=is_there)
    if wanted is None:
        return replace(recipe, precision=usual), ()
    overflows = not is_flow and family_of(checkpoint.header.shapes).vae_overflows
    precision, notice = fast_precision(usual, vae_overflows=overflows)
    return replace(recipe, precision=precision), (notice,)
