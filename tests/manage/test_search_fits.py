"""What CivitAI's labels say of a version beside a checkpoint."""

from types import SimpleNamespace
from typing import Any

import pytest

from civman.domain.base_models import Support
from civman.domain.catalog import ModelType
from civman.manage.search_fits import support_of


@pytest.mark.parametrize(
    ("checkpoint", "label", "kind", "support"),
    [
        ("Pony V7", "SDXL 1.0", ModelType.VAE, Support.PARTIAL), ("Pony V7", "SD 1.5", ModelType.VAE, Support.NONE),
        ("Pony V7", "SDXL 1.0", ModelType.LORA, Support.NONE), ("Pony V7", "AuraFlow", ModelType.LORA, Support.PARTIAL),
        ("ZImageTurbo", "Flux.1 D", ModelType.VAE, Support.PARTIAL), ("SD 3", "Flux.1 D", ModelType.VAE, Support.NONE),
        ("SDXL 1.0", "SDXL 1.0", ModelType.VAE, Support.FULL), ("SDXL 1.0", "Pony", ModelType.VAE, Support.PARTIAL),
        ("Pony V7", "", ModelType.VAE, Support.NONE),
    ],
)  # fmt: skip
def test_a_vae_for_other_models_with_the_same_scale_of_latents_is_partly_supported(
    checkpoint: str, label: str, kind: ModelType, support: Support
) -> None:
    version: Any = SimpleNamespace(base_model=label)

    assert support_of(version, checkpoint, kind) is support
