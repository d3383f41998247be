"""The models that `civman demo` offers.

Names are invented and the metadata is honest: files are what their labels say, except for models that exist to show
that a label can be wrong. models.json describes models whose files are created on first use. tiny.json describes models
that really generate images: their files are in models/, the images that they generated in previews/, and the settings
of these images in previews.json. In both JSON files, `content` contains the name of the function that creates a file's
bytes, and the function's arguments.
"""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from civman.demo import demo_pickles, demo_weights
from civman.demo.demo_catalog import Catalogue, Content, DemoFile, DemoGate, DemoImage, DemoModel, DemoVersion, utc

_CONFIG = b"""model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
"""
_MAKERS: dict[str, Callable[..., bytes]] = {
    "sd1_checkpoint": lambda seed, dtype="F16": demo_weights.sd1_checkpoint(seed, dtype=dtype),
    "sdxl_checkpoint": demo_weights.sdxl_checkpoint,
    "sd1_lora": lambda seed, tags: demo_weights.sd1_lora(seed, tags=tags),
    "sdxl_lora": lambda seed, tags: demo_weights.sdxl_lora(seed, tags=tags),
    "sd1_embedding": demo_weights.sd1_embedding,
    "vae": demo_weights.vae,
    "harmless_pickle": demo_pickles.harmless_pickle,
    "config": lambda: _CONFIG,
    "packaged": demo_weights.packaged,
    "stronger": demo_weights.stronger,
    "word_as_pickle": demo_pickles.word_as_pickle,
}


class Shelf:
    """A collection of file contents that creates each one only once. Catalogues with the same shelf share the bytes.

    With `folder`, the bytes are stored there for later processes.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._contents: dict[str, Content] = {}

    def content(self, recipe: list[Any]) -> Content:
        """Return the content that `recipe` describes, without creating its bytes yet.

        `recipe` consists of a function name and the function's arguments.
        """
        key = "-".join(str(part).replace("/", "-") for part in recipe if not isinstance(part, dict))
        if key not in self._contents:
            kind, *arguments = recipe
            # packaged contents are files already, so they need no cache
            folder = None if kind == "packaged" else self._folder
            self._contents[key] = Content(lambda: _MAKERS[kind](*arguments), folder=folder, name=f"{key}.bin")
        return self._contents[key]


def demo_catalogue(shelf: Shelf | None = None) -> Catalogue:
    """Create a catalogue of the demo's models; their bytes are created on first use."""
    shelf = shelf or Shelf()
    return Catalogue([_model(raw, shelf) for name in ("models.json", "tiny.json") for raw in _read(name)])


def _read(name: str) -> Any:
    return json.loads(files("civman.demo").joinpath(name).read_text(encoding="utf-8"))


def _model(raw: dict[str, Any], shelf: Shelf) -> DemoModel:
    versions = tuple(_version(each, shelf) for each in raw["versions"])
    return DemoModel(**_tuples(raw) | {"versions": versions})


def _version(raw: dict[str, Any], shelf: Shelf) -> DemoVersion:
    gate = raw.get("gate")
    special = {
        "files": tuple(DemoFile(**each | {"content": shelf.content(each["content"])}) for each in raw["files"]),
        "images": tuple(DemoImage(**_about_drawn(each) | each) for each in raw["images"]),
        "published_at": utc(raw["published_at"]),
        "gate": DemoGate(ends_at=utc(gate["ends_at"])) if gate else None,
    }
    return DemoVersion(**_tuples(raw) | special)


def _about_drawn(image: dict[str, Any]) -> dict[str, Any]:
    """Read the size, settings and BlurHash of a preview that a model generated; return {} for other images."""
    return dict(_read("previews.json")[image["drawn"]]) if "drawn" in image else {}


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if key in ("tags", "trained_words") else value for key, value in raw.items()}
