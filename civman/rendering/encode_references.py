"""The reference pictures of one plan, encoded for their IP-Adapters."""

from typing import Any
from weakref import WeakValueDictionary

from civman.diffusion.environment import choose_dtype
from civman.diffusion.guard import memory_errors
from civman.diffusion.reference_pictures import ImageAttention, Reference, encode_reference, load_ip_adapter
from civman.diffusion.vision_encoder import encoder_input, load_vision_encoder
from civman.domain.digests import Sha256
from civman.planning.find_references import cropped
from civman.planning.input_pictures import read_picture
from civman.planning.plan_types import Planned

_LOADED: WeakValueDictionary[tuple[Sha256, str, str], ImageAttention] = WeakValueDictionary()
"""The IP-Adapters in use: plans that share the slots of an engine also share them."""


def encode_references(planned: Planned, device: Any) -> tuple[Reference, ...]:
    """Encode a plan's reference pictures in the recipe's precision, in the order of the recipe.

    Each encoder is loaded once and released afterwards; the IP-Adapters stay on the device.

    Raises: CannotRender: not enough memory, or a file is incomplete.
    """
    recipe, dtype = planned.recipe, choose_dtype(device, planned.recipe.precision)
    found: dict[int, Reference] = {}
    with memory_errors("encoding the reference pictures"):
        adapters = {digest: _adapter(planned, digest, device, dtype) for digest in recipe.digests["ip-adapter"]}
        for digest in recipe.digests["clip-vision"]:
            encoder = load_vision_encoder(planned.path(digest), device=device, dtype=dtype)
            side = int(encoder.config.image_size)
            for number, use in enumerate(recipe.references):
                if use.encoder == digest:
                    pixels = cropped(read_picture(planned.path(use.picture)), use.crop).pixels
                    inputs = encoder_input(pixels, side).to(device, dtype)
                    found[number] = encode_reference(adapters[use.sha256], encoder, inputs)
            del encoder
    return tuple(found[number] for number in range(len(recipe.references)))


def _adapter(planned: Planned, digest: Sha256, device: Any, dtype: Any) -> ImageAttention:
    key = digest, str(device), str(dtype)
    found = _LOADED.get(key)
    if found is None:
        found = load_ip_adapter(planned.path(digest), planned.name(digest), device=device, dtype=dtype)
        _LOADED[key] = found
    return found
