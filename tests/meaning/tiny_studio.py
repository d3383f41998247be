"""Pictures by the demo's tiny model, made the way civman makes every picture, as what the judge reads in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraRequest, RenderRequest
from civman.library import Library
from civman.planning.plan import Conditions
from training.judge import Reading, read

MODELS = Path(__file__).parents[2] / "civman" / "demo" / "models"
USUAL: dict[str, Any] = {
    "sampler": "DPM++ 2M", "schedule": "Karras", "steps": 10, "guidance_scale": 4.0, "precision": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """One way to ask. `more` are further fields of a request; files are called as in the demo's models folder."""

    prompt: str
    loras: Mapping[str, float] = field(default_factory=dict)
    vae: str | None = None
    embedding: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def request(self, count: int) -> RenderRequest:
        return RenderRequest(
            model("tiny-shapes"), self.prompt, seed=0, count=count, batch_size=count,
            loras=tuple(LoraRequest(model(name), scale) for name, scale in self.loras.items()),
            vae=model(self.vae) if self.vae else None,
            embeddings=(model(self.embedding),) if self.embedding else (),
            **{**USUAL, **self.more},
        )  # fmt: skip


@dataclass(frozen=True)
class Shots:
    """The pictures of one ask, seeds 0, 1, 2 …; (64, 64, 3) float32 in [0, 1]."""

    pictures: list[Any]
    pixels: list[str]
    """SHA-256 of each."""

    @property
    def readings(self) -> list[Reading]:
        return [read(picture) for picture in self.pictures]

    def mean(self, fact: str) -> float:
        return float(np.mean([getattr(reading, fact) for reading in self.readings]))

    def share(self, **facts: str) -> float:
        """How many of the pictures show all of these facts, 0 to 1."""
        return float(np.mean([all(getattr(r, k) == v for k, v in facts.items()) for r in self.readings]))

    @property
    def area(self) -> float:
        """The share of pixels that differ from the corner's colour."""
        far = [np.linalg.norm(picture - picture[0, 0], axis=2) > 0.3 for picture in self.pictures]
        return float(np.mean(far))


Draw = Callable[..., list[Shots]]


def model(name: str) -> str:
    return str(MODELS / f"{name}.safetensors")


def shots(studio: Library, asks: Sequence[Ask], count: int) -> list[Shots]:
    """`count` pictures of each ask, computed together, seeds 0 and up."""
    return shots_of(studio, [ask.request(count) for ask in asks], count)


def shots_of(studio: Library, requests: Sequence[RenderRequest], count: int) -> list[Shots]:
    """`count` pictures of each request, computed together; the requests have `count` images each."""
    plans = [studio.plan(request, Conditions(device="cpu")) for request in requests]
    made = studio.render(plans, machine=Machine("cpu"))
    assert [each.seed for each in made] == list(range(count)) * len(requests)
    out = []
    for start in range(0, len(made), count):
        part = made[start : start + count]
        pictures = [np.asarray(Image.open(each.path).convert("RGB"), np.float32) / 255 for each in part]
        out.append(Shots(pictures, [each.pixel_sha256 for each in part]))
    return out
