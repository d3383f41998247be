"""The settings of an image on CivitAI: the API's answer, with the model versions that it names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from civman.domain.catalog import VersionId
from civman.index import Index


@dataclass(frozen=True, slots=True)
class SiteImage:
    """An image on CivitAI. `path`: its downloaded original; `has_recipe`: whether civman's recipe is in it.

    `text`: A1111's `parameters` in the original, which are complete where the API's answer is not; or None.
    """

    id: int
    path: Path
    meta: Mapping[str, Any] | None
    base_model: str
    has_recipe: bool
    text: str | None


@dataclass(frozen=True, slots=True)
class NamedVersion:
    """A model version that an image names. `weight`: the scale of a LoRA, 1 if it is not stated."""

    role: str
    id: VersionId
    weight: float = 1.0


def versions_of(meta: Mapping[str, Any] | None) -> list[NamedVersion]:
    """List the versions that an image's settings name by their ids (`civitaiResources`)."""
    listed = (meta or {}).get("civitaiResources")
    found = []
    for each in listed if isinstance(listed, list) else []:
        number = each.get("modelVersionId") if isinstance(each, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
            continue
        weight = each.get("weight")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        role = str(each.get("type") or "").casefold()
        role = {"lycoris": "lora", "locon": "lora", "textualinversion": "embedding", "embed": "embedding"}.get(
            role, role
        )
        found.append(NamedVersion(role, VersionId(number), float(weight) if is_number else 1.0))
    return found


def row_of_image(index: Index, image: SiteImage) -> dict[str, Any]:
    """Return the image's settings as a row for `civman.planning.redraw.redraw`, with stored versions named by SHA-256.

    A LoRA that the prompt does not name gets a tag in it: CivitAI's generator lists LoRAs without tags.
    """
    meta = dict(image.meta or {})
    for each in versions_of(meta):
        assets = index.find_by_version(each.id)
        if not assets:
            continue
        digest = str(assets[0].blob.sha256)
        name = Path(assets[0].name).stem
        if each.role == "checkpoint":
            meta |= {"Model": name, "Model hash": digest}
        elif each.role == "vae":
            meta |= {"VAE": name, "VAE hash": digest}
        elif each.role == "lora":
            name = name if re.fullmatch(r"[\w .-]+", name) else f"version {each.id}"
            prompt = str(meta.get("prompt") or "")
            if f"<lora:{name}:" not in prompt:
                meta["prompt"] = f"{prompt}<lora:{name}:{each.weight:g}>"
            listed = meta.get("resources")
            meta["resources"] = [
                *(listed if isinstance(listed, list) else []), {"type": "lora", "name": name, "hash": digest}
            ]  # fmt: skip
    meta.pop("civitaiResources", None)
    return {"id": image.id, "meta": meta, "baseModel": image.base_model}
