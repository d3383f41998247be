"""Stored files and recorded images as JSON objects, for `--json` and the server."""

import dataclasses
from collections.abc import Iterable, Mapping

from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.domain.printed_refs import picture_ref
from civman.domain.recipes.record import UpscaleRecord
from civman.index.read_pictures import KeptPicture
from civman.manage.places import Presence


def asset_value(asset: Asset) -> dict[str, object]:
    """Convert an asset to a JSON object, with the source of each trigger word."""
    value: dict[str, object] = {field.name: getattr(asset, field.name) for field in dataclasses.fields(asset)}
    value["trigger_words"] = [{"word": word, "from": list(sources)} for word, sources in asset.trigger_words.items()]
    return value


def asset_values(assets: Iterable[Asset], absent: Mapping[Sha256, Presence]) -> list[dict[str, object]]:
    """Convert assets to JSON objects that show whether each file is present, on a disconnected drive, or missing."""
    return [{**asset_value(asset), "presence": absent.get(asset.blob.sha256, "here")} for asset in assets]


def picture_value(picture: KeptPicture) -> dict[str, object]:
    """Convert a recorded image to a JSON object."""
    record = picture.record
    common: dict[str, object] = {
        "ref": picture_ref(picture.id), "id": picture.id, "path": picture.path, "is_here": picture.is_here,
        "made_at": picture.made_at, "files": record.names, "recipe_sha256": record.recipe.sha256,
        "pixel_sha256": record.pixel_sha256, "parent": record.parent,
    }  # fmt: skip
    if isinstance(record, UpscaleRecord):
        width, height = record.recipe.enlargement.final_size
        return common | {
            "seed": None, "prompt": "", "negative_prompt": "", "width": width, "height": height, "sampler": None,
            "steps": None, "upscaled": record.picture_name, "upscaler": record.upscaler_name,
        }  # fmt: skip
    recipe = record.recipe
    return common | {
        "seed": record.seed, "prompt": recipe.prompt, "negative_prompt": recipe.negative_prompt,
        "width": recipe.width, "height": recipe.height, "sampler": recipe.sampler, "steps": recipe.steps,
    }  # fmt: skip
