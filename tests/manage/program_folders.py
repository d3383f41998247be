"""Makes the folders of four programs: models with links, doubles, junk, broken and unfinished files, and notes.

    python tests/manage/program_folders.py FOLDER OTHER_FOLDER [COUNT]

makes about COUNT files (5,000) in FOLDER, and some behind a link in OTHER_FOLDER.
"""

import json
import os
import sys
from pathlib import Path

from civman.demo.demo_weights import safetensors_bytes

LORAS = ("a1111/models/Lora", "ComfyUI/models/loras", "forge/models/Lora/sub", "SwarmUI/Models/Lora")
NOTES = (
    (".civitai.info", json.dumps({"id": 0, "files": []})), (".json", json.dumps({"notes": "mine"})), (".txt", "words"),
    (".cm-info.json", "{}"), (".swarm.json", "{}"), (".metadata.json", "{}"), (".preview.png", "png"),
    (".yaml", "a: 1"),
)  # fmt: skip
KINDS = 20


def model(number: int) -> bytes:
    shapes = {f"lora_unet_block_{number}.lora_down.weight": (4, 8), f"lora_unet_block_{number}.lora_up.weight": (8, 4)}
    return safetensors_bytes(shapes, seed=str(number))


def make(folder: Path, elsewhere: Path, count: int) -> int:
    """Make the folders. Returns the number of different intact models."""
    for program in LORAS:
        (folder / program).mkdir(parents=True)
    models: list[Path] = []
    made = 0
    while made < count:
        made += _one(folder / LORAS[made % len(LORAS)], made, models)
    intact = len(models)
    elsewhere.mkdir(parents=True)
    (elsewhere / "behind.safetensors").write_bytes(model(10**6))
    (folder / LORAS[0] / "other-disk").symlink_to(elsewhere)
    (folder / LORAS[0] / "up").symlink_to(folder)
    (folder / LORAS[1] / "dead.safetensors").symlink_to(folder / "nothing")
    pipeline = folder / "ComfyUI/models/diffusers/thing"
    for name in ("model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"):
        (pipeline / name).parent.mkdir(parents=True, exist_ok=True)
        (pipeline / name).write_bytes(b"{}")
    for number in (1, 2):
        (folder / LORAS[3] / f"t5-0000{number}-of-00002.safetensors").write_bytes(model(number))
    for name in (".cache/x.safetensors", ".Trash-1000/files/y.safetensors", "venv/lib/z.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return intact + 1


def _one(place: Path, number: int, models: list[Path]) -> int:
    """Make one file, or a model with a note. Returns the number of files made."""
    kind, path = number % KINDS, place / f"m{number}.safetensors"
    if kind < 11 or not models:
        path = path.with_suffix(".sft" if kind == 3 else ".safetensors")
        path.write_bytes(model(number))
        models.append(path)
        ending, text = NOTES[number // 2 % len(NOTES)]
        path.with_suffix(ending).write_text(text)
        return 2
    if kind == 11:
        path.write_bytes(models[-1].read_bytes())
    elif kind == 12:
        os.link(models[-1], path)
    elif kind == 13:
        path.symlink_to(models[-1])
    elif kind == 14:
        path.write_bytes(model(number)[:-7])
    elif kind == 15:
        path.write_text("<!DOCTYPE html><p>log in")
    else:
        ending = {16: ".safetensors.part", 17: ".zip", 18: ".png", 19: ".workflow.json"}[kind]
        path.with_name(f"junk{number}{ending}").write_text("{}")
    return 1


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5000)
