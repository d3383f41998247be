"""Prepares the reference images that an edit model reads: resized, cropped to whole patches, encoded by the VAE."""

from civman.diffusion import vae_codec
from civman.diffusion.families.flow_family import FlowFamily
from civman.diffusion.loader import LoadedModel
from civman.diffusion.pixels import Pixels, resized, to_tensor
from civman.diffusion.uploads import sent


def encode_edit_image(model: LoadedModel, pixels: Pixels, size: tuple[int, int]) -> vae_codec.Encoded:
    """Resize an image to `size`, crop it to whole patches of the model, and encode it.

    The latents are the mean of the VAE's distribution, as in diffusers' pipelines for edit models.
    """
    assert isinstance(model.family, FlowFamily)
    whole = whole_patches(resized(pixels, *size), model.family.multiple)
    return vae_codec.encode(model, sent(to_tensor(whole), model.device))


def whole_patches(pixels: Pixels, multiple: int) -> Pixels:
    """Crop an image centrally, so that both sides become multiples of `multiple` pixels."""
    height, width = (side // multiple * multiple for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
