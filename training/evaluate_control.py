"""Whether the ControlNet is obeyed: civman draws held-out scenes from their edges, and the judge reads the pictures.

The prompts name two colours and nothing else ("a red shape on a blue background").

python -m training.evaluate_control civman/demo/models --each 100 --sheet docs/images/tiny-edges.png
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from civman.domain.recipes.control import ControlRequest
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import RenderRequest
from civman.library import Library
from civman.planning.plan import Conditions
from training.control import colours_only, edge_map
from training.evaluate import contact_sheet
from training.judge import STRICT_IOU, mark, overlap, read
from training.scenes import KINDS, Picture, Scene, draw, held_out_scenes, trained_scenes

SETTINGS: dict[str, Any] = {"sampler": "DPM++ 2M", "schedule": "Karras", "steps": 20, "guidance_scale": 4.0}


@dataclass(frozen=True, slots=True)
class Trial:
    """One scene, the picture whose edges the ControlNet gets, and what was drawn with and without them."""

    scene: Scene
    shown: Picture
    controlled: Picture
    free: Picture


def obeys(scene: Scene, shown: Picture, drawn: Picture) -> bool:
    """Whether the picture has the shape, size and number of the one shown, in the same place."""
    marks = mark(scene, read(drawn))
    return marks.shape and marks.kind and overlap(shown, drawn) >= STRICT_IOU


def trials(models: Path, scenes: Sequence[Scene], *, first_seed: int = 0, weight: float = 1.0) -> list[Trial]:
    """Draw each scene twice, with the edges of a picture of it and without; scene i has the seed first_seed + i."""
    rng = random.Random(first_seed + 16)
    shown = [draw(scene, rng) for scene in scenes]
    checkpoint, net = (str(models / f"tiny-{name}.safetensors") for name in ("shapes", "edges"))
    with tempfile.TemporaryDirectory() as folder, Library.open(folder, offline=True) as library:
        plans = []
        for number, (scene, picture) in enumerate(zip(scenes, shown, strict=True)):
            edges = Path(folder) / f"edges-{number}.png"
            Image.fromarray(edge_map(picture)).save(edges)
            for controls in ((ControlRequest(str(edges), net, weight),), ()):
                request = RenderRequest(
                    checkpoint, colours_only(scene), seed=first_seed + number, controls=controls, **SETTINGS
                )
                plans.append(library.plan(request, Conditions(device="cpu")))
        drawn = [_pixels(made.path) for made in library.render(plans, machine=Machine("cpu"))]
    return [Trial(*each) for each in zip(scenes, shown, drawn[::2], drawn[1::2], strict=True)]


def _pixels(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255


def summary(made: Sequence[Trial], pictures: Sequence[Picture]) -> str:
    """The shares of pictures in which shape, size or number, place and colours are right, and the mean overlap."""
    pairs = list(zip(made, pictures, strict=True))
    marks = [mark(trial.scene, read(picture)) for trial, picture in pairs]
    obeyed = [obeys(trial.scene, trial.shown, picture) for trial, picture in pairs]
    kinds = {k: [o for t, o in zip(made, obeyed, strict=True) if t.scene.kind == k] for k in KINDS}
    return (
        f"obeyed {np.mean(obeyed):.1%}; shape {np.mean([m.shape for m in marks]):.1%}, "
        f"size or number {np.mean([m.kind for m in marks]):.1%}, "
        f"colours {np.mean([m.ground and m.colour for m in marks]):.1%}, "
        f"mean overlap {np.mean([overlap(trial.shown, picture) for trial, picture in pairs]):.2f}; "
        + ", ".join(f"{kind} {sum(each)}/{len(each)}" for kind, each in kinds.items())
    )


def main() -> None:
    """Read the command line, and print and show the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--first-seed", type=int, default=0, help="5000 for a list to choose by")
    parser.add_argument("--trained", action="store_true", help="new pictures of triples that were trained")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    rng = random.Random(args.first_seed + 17)
    scenes = [rng.choice(trained_scenes() if args.trained else held_out_scenes()) for _ in range(args.each)]
    made = trials(args.models, scenes, first_seed=args.first_seed, weight=args.weight)
    for name, pictures in (("with", [t.controlled for t in made]), ("without", [t.free for t in made])):
        print(f"{name} edges: {summary(made, pictures)}")
    if args.sheet:
        first = made[:8]
        rows = [[edge_map(t.shown) / 255 for t in first], [t.controlled for t in first], [t.free for t in first]]
        contact_sheet([picture for row in rows for picture in row], columns=8, path=args.sheet)


if __name__ == "__main__":
    main()
