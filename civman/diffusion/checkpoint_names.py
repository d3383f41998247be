"""Names that all families share: the prefixes of single-file checkpoints and the titles of components. No torch."""

from collections.abc import Mapping
from typing import Any, Final

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
METADATA_KEY: Final = "civman.config"

TITLES: Final = {
    "unet": "UNet", "vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder",
}  # fmt: skip
"""Maps each component to its name in messages."""
