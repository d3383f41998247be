"""Encodes the reference pictures of a plan, for its IP-Adapters or for an edit model that reads them itself."""

from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from civman.diffusion.edit_images import encode_edit_image
from civman.diffusion.environment import choose_dtype
from civman.diffusion.guard import memory_errors
from civman.diffusion.reference_pictures import ImageAttention, Reference, encode_reference, load_ip_adapter
from civman.diffusion.vision_encoder import ClipVision, encoder_input, load_vision_encoder
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import EditImage, ReferenceUse
from civman.planning.find_references import cropped
from civman.planning.input_pictures import read_picture
from civman.planning.plan_types import Planned
from civman.rendering.engine import Engine

_LOADED: WeakValueDictionary[tuple[Sha256, str, str], ImageAttention] = WeakValueDictionary()
"""The loaded IP-Adapters that are still in use. Plans that are rendered in slots of the same engine share them."""


def encode_references(engine: Engine, planned: Planned) -> tuple[Reference, ...]:
    """Encode a plan's reference pictures for its IP-Adapters, in the recipe's order and precision.

    If the engine has encoded a picture for the same IP-Adapter before, the result comes from its cache. Vision encoders
    are loaded one at a time and released afterwards; the IP-Adapters stay on the device.

    Raises: CannotRender: not enough memory, or a file is incomplete.
    """
    dtype = choose_dtype(engine.device, planned.recipe.precision)
    encoders: dict[Sha256, ClipVision] = {}

    def encoder_of(use: ReferenceUse) -> ClipVision:
        if use.encoder not in encoders:
            encoders.clear()
            encoders[use.encoder] = load_vision_encoder(planned.path(use.encoder), device=engine.device, dtype=dtype)
        return encoders[use.encoder]

    def encoded(use: ReferenceUse) -> Reference:
        adapter = _adapter(planned, use.sha256, engine.device, dtype)

        def encode() -> tuple[Any, Any, tuple[str, ...]]:
            pixels, encoder = cropped(read_picture(planned.path(use.picture)), use.crop).pixels, encoder_of(use)
            inputs = encoder_input(pixels, int(encoder.config.image_size)).to(engine.device, dtype)
            made = encode_reference(adapter, encoder, inputs)
            return made.positive, made.negative, ()

        positive, negative, _ = engine.pictures.get((use.sha256, use.encoder, use.picture, use.crop), encode)
        assert negative is not None
        return Reference(adapter, positive, negative)

    with memory_errors("encoding the reference pictures"):
        return tuple(map(encoded, planned.recipe.references))


def encode_edit_images(engine: Engine, planned: Planned) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Encode the reference pictures of a plan for its edit model, in the recipe's order.

    Pictures that the engine has encoded before are taken from its cache. Returns the latents, (1, channels, h, w) each,
    and notes for the user. Raises: CannotRender: not enough memory, or the VAE has no encoder.
    """

    def encoded(use: EditImage) -> tuple[Any, Any, tuple[str, ...]]:
        made = encode_edit_image(
            engine.model, cropped(read_picture(planned.path(use.sha256)), use.crop).pixels, (use.width, use.height)
        )
        return made.latents, None, made.notes

    found = [engine.pictures.get(use, partial(encoded, use)) for use in planned.recipe.edit_images]
    notes = dict.fromkeys(note for _, _, own in found for note in own)
    return tuple(latents for latents, _, _ in found), tuple(notes)


def _adapter(planned: Planned, digest: Sha256, device: Any, dtype: Any) -> ImageAttention:
    key = digest, str(device), str(dtype)
    found = _LOADED.get(key)
    if found is None:
        found = load_ip_adapter(planned.path(digest), planned.name(digest), device=device, dtype=dtype)
        _LOADED[key] = found
    return found
