"""Draw the previews of the demo's models with civman itself, and write what CivitAI would tell about them.

python -m training.previews civman/demo
python -m training.previews civman/demo --only tiny-edges-1 tiny-edges-2

Each PNG is what `civman render` wrote, with its recipe in it: whoever holds the files can replay it.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from civman.demo.demo_pickles import word_as_pickle
from civman.demo.preview_pictures import blur_hash
from civman.domain.recipes.control import ControlRequest
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraRequest, RenderRequest
from civman.library import Library
from civman.planning.plan import Conditions
from training.control import edge_map
from training.scenes import Scene, draw

CHECKPOINT, CONTROL = "tiny-shapes", "tiny-edges"
NO_BLUE, BLUE = "tiny-no-blue.pt", 1746
"""The demo's embedding in a pickle, and the token whose vector it has."""
SETTINGS: dict[str, Any] = {
    "sampler": "DPM++ 2M", "schedule": "Karras", "steps": 20, "guidance_scale": 4.0, "width": 64, "height": 64,
}  # fmt: skip


FLOW = "tiny-flow"
FLOW_SETTINGS: dict[str, Any] = {
    "sampler": "Euler", "schedule": "SGM Uniform", "steps": 28, "guidance_scale": 4.5, "width": 64, "height": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preview:
    """One picture to draw. `more` are other fields of a request than `SETTINGS` has."""

    name: str
    prompt: str
    seed: int
    loras: tuple[tuple[str, float], ...] = ()
    vae: str | None = None
    embedding: str | None = None
    edges: Scene | None = None
    """The scene whose edges guide the picture, through the ControlNet `CONTROL`."""
    more: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = CHECKPOINT

    @property
    def settings(self) -> dict[str, Any]:
        """The usual settings of the checkpoint."""
        return SETTINGS if self.checkpoint == CHECKPOINT else FLOW_SETTINGS


PREVIEWS = (
    Preview("tiny-shapes-1", "a large red circle on a blue background", 1),
    Preview("tiny-shapes-2", "three yellow triangles on a purple background", 2),
    Preview("tiny-shapes-3", "masterpiece, best quality, two green squares on a white background", 3),
    Preview("tiny-shapes-4", "small orange square, black background", 4),
    Preview("tiny-outline-1", "a large green square on a black background, tiny-outline", 1, (("tiny-outline", 1.0),)),
    Preview("tiny-outline-2", "two white circles on a blue background, tiny-outline", 2, (("tiny-outline", 0.8),)),
    Preview(
        "tiny-outline-v1-1", "a large red circle on a white background, tiny-outline", 1, (("tiny-outline-v1", 1.0),)
    ),
    Preview("tiny-stripes-1", "a large yellow circle on a blue background, tiny-stripes", 1, (("tiny-stripes", 1.0),)),
    Preview("tiny-stripes-2", "three red squares on a white background, tiny-stripes", 2, (("tiny-stripes", 1.0),)),
    Preview("tiny-night-1", "two yellow circles on a blue background, tiny-night", 1, (("tiny-night", 1.0),)),
    Preview("tiny-diamond-1", "a large red tiny-diamond on a white background", 1, embedding="tiny-diamond"),
    Preview("tiny-emblem-1", "tiny-emblem", 1, embedding="tiny-emblem"),
    Preview("tiny-no-blue-1", "a large red circle", 1, embedding=NO_BLUE, more={"negative_prompt": "tiny-no-blue"}),
    Preview(
        "tiny-edges-1", "a white shape on a purple background", 1, edges=Scene("three", "black", "circle", "white")
    ),
    Preview(
        "tiny-edges-2",
        "a yellow shape on a blue background",
        2,
        edges=Scene("small", "black", "triangle", "white", "bottom left"),
    ),
    Preview("tiny-flow-1", "a large green square on a white background", 1, checkpoint=FLOW),
    Preview("tiny-flow-2", "a large red triangle on a yellow background", 2, checkpoint=FLOW),
    Preview(
        "tiny-flow-stripes-1",
        "a large blue circle on a white background",
        1,
        (("tiny-flow-stripes", 1.0),),
        checkpoint=FLOW,
    ),
    Preview("tiny-warm-vae-1", "a large white circle on a green background", 1, vae="tiny-warm-vae"),
)
BOLD = Preview(
    "tiny-stripes-bold-1", "a large purple square on a yellow background, tiny-stripes", 1, (("tiny-stripes", 0.9),)
)
"""Drawn with the ordinary file at 1.5 times the scale of the bold one: the same picture, since the weights are."""


def request(preview: Preview, models: Path) -> RenderRequest:
    """The preview as civman is asked for it."""

    def file(name: str) -> str:
        if name != NO_BLUE:
            return str(models / f"{name}.safetensors")
        made = Path(tempfile.gettempdir()) / name  # not a packaged file: the demo makes it
        made.write_bytes(word_as_pickle("tiny-no-blue", BLUE))
        return str(made)

    controls: tuple[ControlRequest, ...] = ()
    if preview.edges:
        drawn = Path(tempfile.gettempdir()) / f"{preview.name}-edges.png"
        Image.fromarray(edge_map(draw(preview.edges, random.Random(preview.seed)))).save(drawn)
        controls = (ControlRequest(str(drawn), file(CONTROL)),)
    return RenderRequest(
        file(preview.checkpoint), preview.prompt, seed=preview.seed, precision="float32",
        loras=tuple(LoraRequest(file(name), scale) for name, scale in preview.loras),
        vae=file(preview.vae) if preview.vae else None,
        embeddings=(file(preview.embedding),) if preview.embedding else (), controls=controls,
        **{**preview.settings, **preview.more},
    )  # fmt: skip


def settings_as_civitai(preview: Preview, versions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The generation data that CivitAI shows beside a picture."""
    single = (preview.vae, preview.embedding, CONTROL if preview.edges else None)
    used = [(preview.checkpoint, None), *preview.loras, *((name, None) for name in single if name)]
    resources = []
    for name, weight in used:
        known = versions[name if name == NO_BLUE else f"{name}.safetensors"]
        resource = {"type": known["type"], "modelVersionId": known["id"], "modelVersionName": known["name"]}
        resources.append(resource | ({"weight": weight} if weight is not None else {}))
    return {
        "prompt": preview.prompt,
        "negativePrompt": preview.more.get("negative_prompt", ""),
        "seed": preview.seed,
        "steps": preview.settings["steps"],
        "cfgScale": preview.settings["guidance_scale"],
        "sampler": "DPM++ 2M Karras" if preview.settings is SETTINGS else "Euler",
        "Size": f"{preview.settings['width']}x{preview.settings['height']}",
        "civitaiResources": resources,
    }


def versions_by_file(demo: Path) -> dict[str, dict[str, Any]]:
    """Which version of which kind of model each packaged file is, from the demo's catalogue."""
    kinds = {
        "Checkpoint": "checkpoint",
        "LORA": "lora",
        "LoCon": "lycoris",
        "TextualInversion": "embed",
        "VAE": "vae",
        "Controlnet": "controlnet",
    }
    return {
        file["name"]: {"id": version["id"], "name": version["name"], "type": kinds[model["type"]]}
        for model in json.loads((demo / "tiny.json").read_text())
        for version in model["versions"]
        for file in version["files"]
    }


def main() -> None:
    """Draw all and write `previews/` and `previews.json` into the demo's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--only", nargs="+", help="names of previews; the others stay as they are")
    args = parser.parse_args()
    demo = args.demo
    versions, about = versions_by_file(demo), {}
    if args.only:
        about = json.loads((demo / "previews.json").read_text())
    (demo / "previews").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, Library.open(scratch) as library:
        previews = [each for each in (*PREVIEWS, BOLD) if not args.only or each.name in args.only]
        plans = [library.plan(request(each, demo / "models"), Conditions(device="cpu")) for each in previews]
        for preview, made in zip(previews, library.render(plans, machine=Machine("cpu")), strict=True):
            file = demo / "previews" / f"{preview.name}.png"
            file.write_bytes(made.path.read_bytes())
            with Image.open(file) as picture:
                red, green, blue = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).tobytes()
                width, height = picture.size
            about[preview.name] = {
                "width": width,
                "height": height,
                "blur": blur_hash((red, green, blue)),
                "meta": settings_as_civitai(preview, versions),
            }
            print(f"{file.stat().st_size:>7,d}  {file.name}")
    (demo / "previews.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
