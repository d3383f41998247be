"""Finds the family of a checkpoint from its tensor names and shapes."""

import re
from typing import Final

from civman.diffusion.checkpoint_names import UNET, Shapes
from civman.diffusion.families.anima import ANIMA
from civman.diffusion.families.auraflow import AURAFLOW
from civman.diffusion.families.chroma import CHROMA
from civman.diffusion.families.ernie_image import ERNIE_IMAGE
from civman.diffusion.families.flow_family import FlowFamily
from civman.diffusion.families.flux1 import FLUX1
from civman.diffusion.families.flux2 import FLUX2_DEV, FLUX2_KLEIN
from civman.diffusion.families.hidream import HIDREAM
from civman.diffusion.families.krea2 import KREA2
from civman.diffusion.families.lumina2 import LUMINA2
from civman.diffusion.families.qwen_image import QWEN_IMAGE
from civman.diffusion.families.sd1 import SD1
from civman.diffusion.families.sd2 import SD2
from civman.diffusion.families.sd3 import SD3_FAMILY
from civman.diffusion.families.sdxl import SDXL
from civman.diffusion.families.sdxl_refiner import REFINER
from civman.diffusion.families.unet_family import UNetFamily
from civman.diffusion.families.z_image import Z_IMAGE
from civman.domain.architecture import Architecture
from civman.errors import CannotRender, Cause

Family = UNetFamily | FlowFamily
"""A model family of any kind that civman renders."""

UNET_FAMILIES: Final = (SDXL, REFINER, SD2, SD1)
"""The UNet families in the order in which they are tried. XL precedes its refiner, because one of XL's text encoders
has the tensor names by which the refiner is recognised.
"""


FLOW_FAMILIES: Final[tuple[FlowFamily, ...]] = (
    FLUX1, FLUX2_DEV, FLUX2_KLEIN, CHROMA, Z_IMAGE, ANIMA, QWEN_IMAGE, SD3_FAMILY, LUMINA2, KREA2, ERNIE_IMAGE,
    AURAFLOW, HIDREAM,
)  # fmt: skip


RENDERED: Final = frozenset(
    (*(Architecture(family.name) for family in UNET_FAMILIES), *(family.architecture for family in FLOW_FAMILIES))
)
"""The architectures that civman renders, at least in the original layout."""


def family_of(names: Shapes) -> Family:
    """Identify a checkpoint's family by its tensors. Raises: CannotRender: civman does not render the family."""
    return flow_family_of(names) or unet_family_of(names)


def flow_family_of(names: Shapes) -> FlowFamily | None:
    """Find the flow-matching family of a checkpoint; None if no family that civman renders matches."""
    return next((family for family in FLOW_FAMILIES if family.prefix_in(names) is not None), None)


def unet_family_of(names: Shapes) -> UNetFamily:
    """Identify the family by the text encoders in the file or, if it has none, by the UNet's context width.

    Raises: CannotRender: the file has no UNet in the original layout, or civman cannot render the UNet's family.
    """
    if f"{UNET}input_blocks.0.0.weight" not in names:
        raise CannotRender(
            "the file has no UNet of Stable Diffusion 1, 2 or XL in the original layout",
            hint="choose a checkpoint; adapters, embeddings and VAEs can only be used together with a checkpoint",
            code=Cause.MISSING_PART,
            part="unet",
        )
    for family in UNET_FAMILIES:
        if any(name.startswith(family.text_mark) for name in names):
            return family
    width = context_width(names)
    for family in UNET_FAMILIES:
        if family.context_width == width:
            return family
    raise CannotRender(
        f"civman renders no model family whose UNet has a context width of {width}", code=Cause.UNKNOWN_FAMILY
    )


def context_width(shapes: Shapes) -> int:
    """Return the width of the text conditioning that the UNet takes; 0 if it takes none."""
    pattern = re.compile(re.escape(UNET) + r".*\.attn2\.to_k\.weight")
    return next((shape[1] for name, shape in shapes.items() if pattern.fullmatch(name) and len(shape) > 1), 0)
