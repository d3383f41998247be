"""Converts plans and finished images to JSON objects, for `--json` and the server."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from civman.planning.plan_types import Planned, Rendering
    from civman.settings import Preset


def plan_value(plan: "Planned", preset: "Preset | None" = None) -> dict[str, object]:
    """Convert a render plan to a JSON object; `preset` is the preset that was used, if any."""
    return {
        "recipe": json.loads(plan.recipe.to_json()), "recipe_sha256": plan.recipe.sha256,
        "files": plan.files, "notices": plan.notices,
        "memory": plan.memory, "licence": plan.licence,
        "preset": {"name": preset.name, "values": preset.values, "source": preset.source} if preset else None,
    }  # fmt: skip


def rendering_value(made: "Rendering") -> dict[str, object]:
    """Convert a finished image to a JSON object."""
    record = made.record
    return {
        "id": made.id, "path": made.path, "seed": made.seed, "pixel_sha256": made.pixel_sha256,
        "recipe": json.loads(record.recipe.to_json()), "recipe_sha256": record.recipe.sha256, "parent": record.parent,
        "environment": record.environment, "notes": record.notes, "applied": made.applied,
    }  # fmt: skip
