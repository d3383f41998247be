"""Draw the demo's images that other programs made: they carry A1111's text and no recipe of civman.

python -m training.foreign_previews civman/demo

Each of them was made with a file that is hard to find: deleted, in early access, in two versions, or called by a word.
The images are drawn from their own texts, with the files at hand that the texts name.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from civman.demo.demo_weights import packaged, stronger
from civman.demo.preview_pictures import blur_hash
from civman.domain.recipes.machine import Machine
from civman.library import Library
from civman.pictures import image_text, infotext
from civman.planning.plan import Conditions

DELETED = "tiny-outline-v15.safetensors"
"""Version 191022 of Tiny Outline, which its creator has deleted."""
FILES: Mapping[str, Callable[[], bytes]] = {
    "tiny-shapes.safetensors": lambda: packaged("tiny-shapes.safetensors"),
    "tiny-night.safetensors": lambda: packaged("tiny-night.safetensors"),
    "tiny-emblem.safetensors": lambda: packaged("tiny-emblem.safetensors"),
    "tiny-stripes-bold.safetensors": lambda: stronger("tiny-stripes.safetensors", 1.5),
    DELETED: lambda: stronger("tiny-outline-v1.safetensors", 1.2),
}


def _autov2(name: str) -> str:
    return hashlib.sha256(FILES[name]()).hexdigest()[:10]


def _autov3(name: str) -> str:
    data = FILES[name]()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Foreign:
    """One image. `more`: the entries of its settings that name files besides the checkpoint."""

    name: str
    prompt: str
    seed: int
    more: Mapping[str, str]

    @property
    def text(self) -> str:
        """The text as A1111 writes it."""
        details = {
            "Steps": "20", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "4", "Seed": str(self.seed),
            "Size": "64x64", "Model hash": _autov2("tiny-shapes.safetensors"), "Model": "tiny-shapes", **self.more,
            "Version": "v1.10.1",
        }  # fmt: skip
        return self.prompt + "\n" + ", ".join(f"{key}: {value}" for key, value in details.items())


def _gone() -> str:
    lora = {"type": "lora", "weight": 0.9, "air": "urn:air:sd1:lora:civitai:91002@191022", "modelName": "Tiny Outline",
            "versionName": "v1.5"}  # fmt: skip
    return json.dumps([{"type": "checkpoint", "modelVersionId": 191010}, lora])


IMAGES = (
    Foreign("foreign-deleted", "a large red circle on a white background, tiny-outline", 5,
            {"Civitai resources": _gone()}),
    Foreign("foreign-early-access", "a large blue square on a yellow background <lora:tiny-stripes-bold:0.6>", 6,
            {"Lora hashes": f'"tiny-stripes-bold: {_autov3("tiny-stripes-bold.safetensors")}"'}),
    Foreign("foreign-two-versions", "two red circles on a green background <lora:tiny-night:0.9>", 7,
            {"Lora hashes": f'"tiny-night: {_autov3("tiny-night.safetensors")}"'}),
    Foreign("foreign-word", "tiny-emblem", 8,
            {"TI hashes": f'"tiny-emblem: {_autov2("tiny-emblem.safetensors")}"'}),
)  # fmt: skip


def as_civitai(text: str) -> dict[str, Any]:
    """What CivitAI's API shows of such a text."""
    parsed = infotext.read(text)
    details = dict(parsed.details)
    hashes = {"model": details["Model hash"]}
    resources = [{"type": "model", "name": details["Model"], "hash": details["Model hash"]}]
    for tag in parsed.tags:
        digest = parsed.lora_hashes[tag.name]
        hashes[f"lora:{tag.name}"] = digest
        resources.append({"type": "lora", "name": tag.name, "hash": digest, "weight": tag.scale})  # type: ignore[dict-item]
    for name, digest in infotext.pairs(details.pop("TI hashes", "")):
        hashes[f"embed:{name}"] = digest
    listed = json.loads(details.pop("Civitai resources", "null"))
    names = {"Steps": "steps", "Sampler": "sampler", "CFG scale": "cfgScale", "Seed": "seed"}
    meta: dict[str, Any] = {"prompt": parsed.prompt, "negativePrompt": parsed.negative}
    for key, value in details.items():
        number = float(value) if key == "CFG scale" else int(value) if key in names and value.isdecimal() else value
        meta[names.get(key, key)] = number
    meta |= {"hashes": hashes, "resources": resources}
    return meta | ({"civitaiResources": listed} if listed else {})


def main() -> None:
    """Draw all and write `previews/` and `previews.json` into the demo's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    demo = parser.parse_args().demo
    about = json.loads((demo / "previews.json").read_text())
    with tempfile.TemporaryDirectory() as scratch, Library.open(Path(scratch) / "library") as library:
        for name, make in FILES.items():
            (Path(scratch) / name).write_bytes(make())
        library.files.import_files([Path(scratch) / name for name in FILES])
        for image in IMAGES:
            # the deleted file is not in any catalogue: name it as somebody who still has it would
            drawn_from = image.text
            if image.name == "foreign-deleted":
                tagged = f"{image.prompt}<lora:{Path(DELETED).stem}:0.9>"
                drawn_from = image.text.replace(image.prompt, tagged).replace("Civitai resources", "Civitai metadata")
            planned = library.pictures.plan_settings(drawn_from, Conditions("cpu"))
            (made,) = library.render(planned, machine=Machine("cpu"))
            data = image_text.write(image_text.pixels(made.path), record=None, parameters=image.text, format="png")
            file = demo / "previews" / f"{image.name}.png"
            file.write_bytes(data)
            with Image.open(file) as picture:
                red, green, blue = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).tobytes()
            about[image.name] = {
                "width": 64, "height": 64, "blur": blur_hash((red, green, blue)), "meta": as_civitai(image.text),
            }  # fmt: skip
            print(f"{file.stat().st_size:>7,d}  {file.name}: {planned.notices}")
    (demo / "previews.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
