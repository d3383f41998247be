"""stable-diffusion.cpp's image of a request, drawn in a process of its own, because it ends the process on an error."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def draw(files: Mapping[str, Path], request: Mapping[str, Any], folder: Path) -> np.ndarray:
    """Return the image's pixels (H, W, 3) uint8.

    `files`: argument of the binding's model → file. `request`: the other arguments of the model and of the image.
    """
    image = folder / "theirs.png"
    task = {"model": {key: str(path) for key, path in files.items()} | request["model"], "image": request["image"]}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(task), str(image)], capture_output=True, text=True, check=False
    )
    assert image.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return np.asarray(Image.open(image).convert("RGB"))


if __name__ == "__main__":
    from stable_diffusion_cpp import StableDiffusion

    task = json.loads(sys.argv[1])
    StableDiffusion(**task["model"]).generate_image(**task["image"])[0].save(sys.argv[2])
