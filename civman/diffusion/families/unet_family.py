"""The common description of the families with a UNet: Stable Diffusion 1, 2, XL and XL's refiner."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from civman.diffusion.checkpoint_names import Config

SD_RGB: Final = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
XL_RGB: Final = (
    (0.3448, 0.4168, 0.4395), (-0.1953, -0.0290, 0.0250), (0.1074, 0.0886, -0.0163), (-0.3730, -0.2499, -0.2088),
)  # fmt: skip
"""Matrices that approximate RGB values in -1 … 1 from latents. Source: keturn, "Decoding latents to RGB without
upscaling", discuss.huggingface.co/t/23204 (SD 1; SD 2 has the same VAE); AUTOMATIC1111's web UI (SDXL).
"""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UNetFamily:
    """Describes one UNet family for rendering.

    `unet`, `vae` and `text_encoders`: config options that no tensor shape reveals. Instances are singletons and compare
    by identity.
    """

    name: str
    title: str
    native_size: int
    """The side length, in pixels, of the square images that the models were trained on."""
    text_mark: str
    """A prefix of tensor names that only this family's text encoder has."""
    context_width: int
    """The width of the text conditioning, which identifies the family of a UNet without text encoders."""
    unet: Config = field(repr=False)
    vae: Config = field(repr=False)
    text_encoders: Mapping[str, Config] = field(repr=False)
    prediction: str = "epsilon"
    is_xl: bool = False
    """Whether the UNet takes image sizes and a pooled text vector in addition to the prompt."""
    needs_picture: bool = False
    """Whether the model needs an input image, as a refiner does."""
    refines: str = ""
    """The name of another family whose images this family's models can finish; empty if there is none."""
    takes_clip_skip: bool = False
    """Whether clip skip has an effect: it chooses which text encoder layer's output is used."""
    is_silent_about_prediction: bool = False
    """Whether the family has epsilon and v-prediction models whose files usually do not show which of them they are."""
    epsilon_size: int | None = None
    """The native size of the models that predict epsilon; None if it is the same as `native_size`."""
    drops_text_layer: bool = False
    """Whether the text encoder's last layer is unused; adapter files may still contain changes to that layer."""
    zero_for_empty_negative: bool = False
    """Whether diffusers replaces the conditioning of an empty negative prompt with zeros."""
    latent_rgb: tuple[tuple[float, ...], ...] = field(default=SD_RGB, repr=False)
    """The approximate colour of each latent channel, for previews."""
    scores: tuple[float, float] | None = None
    """The aesthetic scores (prompt, negative prompt) that the UNet takes instead of a target size, or None."""

    def __str__(self) -> str:
        return self.name

    def native_size_of(self, prediction: str) -> int:
        """Return the native size of this family's models with the prediction type `prediction`."""
        return self.epsilon_size if self.epsilon_size and prediction == "epsilon" else self.native_size

    def is_same(self, other: Any) -> bool:
        """Whether `other` is the same family, so that adapters made for one of them fit the other's checkpoints."""
        return other is self

    def continues(self, other: Any) -> bool:
        """Whether a model of this family can finish an image that a model of the family `other` has begun."""
        return other is self or bool(self.refines and other.name == self.refines)

    @property
    def merges_tokens(self) -> bool:
        """Whether token merging has an effect, which requires attention at the latents' full resolution."""
        return not self.is_xl

    def size_conditioning(self, size: tuple[int, int], *, positive: bool) -> list[float] | None:
        """Return the UNet's size conditioning: original size, crop corner, and target size or aesthetic score.

        `size` is (width, height) in pixels. Returns None if the UNet takes no size conditioning.
        """
        if not self.is_xl:
            return None
        width, height = map(float, size)
        if self.scores is not None:
            return [height, width, 0.0, 0.0, self.scores[0 if positive else 1]]
        return [height, width, 0.0, 0.0, height, width]

    @property
    def vae_overflows(self) -> bool:
        """Whether the original VAE overflows in half precision and is therefore kept in single precision (335 MB)."""
        return self.is_xl
