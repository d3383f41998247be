"""Names that all families share: the prefixes of single-file checkpoints and the titles of components.

Does not import torch.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from civman.errors import InvalidModelFile

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
METADATA_KEY: Final = "civman.config"

TITLES: Final = {
    "unet": "UNet", "vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder",
}  # fmt: skip
"""Maps each component to its name in messages."""


def stated_in(metadata: Mapping[str, str]) -> dict[str, Config]:
    """Read config options that no tensor shape shows from a file's metadata: {component: {option: value}}.

    Raises: InvalidModelFile: the metadata entry is not a JSON object whose values are JSON objects.
    """
    try:
        words = json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise InvalidModelFile(f"metadata entry `{METADATA_KEY}` is not JSON") from error
    if not isinstance(words, dict) or not all(isinstance(value, dict) for value in words.values()):
        raise InvalidModelFile(f"metadata entry `{METADATA_KEY}` is not a JSON object whose values are JSON objects")
    return words
