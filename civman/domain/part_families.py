"""Which CLIP text encoders and autoencoders an architecture uses, as far as tensor shapes show it."""

from collections.abc import Set
from typing import Final

from civman.domain.architecture import Architecture

TEXT_WIDTHS: Final = {
    Architecture.SD1: (768,), Architecture.SD2: (1024,), Architecture.SDXL: (768, 1280),
    Architecture.SDXL_REFINER: (1280,), Architecture.SD3: (768, 1280), Architecture.FLUX1: (768,),
}  # fmt: skip
"""The widths of each architecture's CLIP text encoders. Source: the models' own configurations."""

VAE_FAMILIES: Final = {
    Architecture.SD: {Architecture.SD1, Architecture.SD2, Architecture.SDXL, Architecture.SDXL_REFINER,
                      Architecture.KOLORS, Architecture.PIXART, Architecture.AURAFLOW, Architecture.HUNYUAN_DIT},
    Architecture.FLUX1: {Architecture.FLUX1, Architecture.SD3, Architecture.CHROMA, Architecture.Z_IMAGE,
                         Architecture.LUMINA2, Architecture.HIDREAM},
    Architecture.FLUX2: {Architecture.FLUX2, Architecture.ERNIE_IMAGE},
    Architecture.WAN: {Architecture.WAN, Architecture.QWEN_IMAGE, Architecture.ANIMA, Architecture.KREA2},
}  # fmt: skip
"""Maps the architecture that a VAE's tensors show to the model architectures whose latents have the same layout."""

SCALED_VAES: Final = frozenset({Architecture.FLUX2})
"""Architectures whose VAE files contain the scale of their latents."""

_SAME_SCALE: Final = (
    frozenset({Architecture.SD1, Architecture.SD2}),
    frozenset({Architecture.SDXL, Architecture.SDXL_REFINER, Architecture.KOLORS, Architecture.AURAFLOW}),
    frozenset({Architecture.FLUX1, Architecture.CHROMA, Architecture.Z_IMAGE, Architecture.LUMINA2,
               Architecture.HIDREAM}),
    frozenset({Architecture.SD3}),
    frozenset({Architecture.FLUX2, Architecture.ERNIE_IMAGE}),
    frozenset({Architecture.WAN, Architecture.QWEN_IMAGE, Architecture.ANIMA, Architecture.KREA2}),
)  # fmt: skip
"""Groups of architectures whose latents have the same scale, so that each can use the VAEs of the others.

Source: the configurations of the models' VAEs.
"""


def same_scale(ours: Architecture, theirs: Set[Architecture]) -> bool | None:
    """Whether `ours` scales its latents in the same way as one of `theirs`; None if that is not known."""
    group = next((group for group in _SAME_SCALE if ours in group), None)
    if group is None or not theirs:
        return None
    if group & theirs:
        return True
    return False if theirs <= frozenset().union(*_SAME_SCALE) else None
