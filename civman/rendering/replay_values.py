"""Converts results of replays to JSON objects, and finds out whether a replay has anything new to save."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from civman.rendering.compare_pictures import Verdict

if TYPE_CHECKING:
    from civman.planning.recipe_sources import RecipeSource
    from civman.rendering.replay import ReplayResult


def replay_value(result: "ReplayResult") -> dict[str, object]:
    """Convert a replayed image to a JSON object."""
    return {
        "verdict": result.verdict.value,
        "seed": result.record.seed,
        "pixel_sha256": result.record.pixel_sha256,
        "was": result.original.pixel_sha256 if result.original else None,
        "psnr_db": result.distance.psnr_db if result.distance else None,
        "largest_difference": result.distance.largest if result.distance else None,
        "environment": [{"what": each.what, "then": each.then, "now": each.now} for each in result.environment],
        "notices": result.notices,
        "file_change": {"kind": change.kind.value, "words": change.words} if (change := result.file_change) else None,
    }


def is_unchanged(source: "RecipeSource", results: "Sequence[ReplayResult]") -> bool:
    """Whether the original's file already has exactly the pixels of the replayed images."""
    return source.path is not None and all(
        each.verdict is Verdict.IDENTICAL and each.file_change is None for each in results
    )
