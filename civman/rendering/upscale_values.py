"""Converts upscaled images to JSON objects, for `--json` and the server."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from civman.rendering.upscale import SavedUpscale


def upscaled_value(made: "SavedUpscale") -> dict[str, object]:
    """Convert an upscaled image to a JSON object."""
    record = made.record
    return {
        "id": made.id, "path": made.path, "pixel_sha256": record.pixel_sha256, "recipe": record.recipe,
        "recipe_sha256": record.recipe.sha256, "parent": record.parent, "environment": record.environment,
        "picture": record.picture_name, "upscaler": record.upscaler_name,
    }  # fmt: skip
