"""Runs each kind of job in the engine's process: renders, grids, replays, redraws and upscales.

Every function takes the library and the job's payload and returns the job's result as JSON values.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from civman.domain.events import Event, Notice, OnEvent
from civman.domain.json_values import plain
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import Recipe
from civman.planning.plan_values import rendering_value
from civman.serve.render_requests import (
    changes_of,
    conditions_of,
    grid_axes,
    recipe_of,
    request_of,
    require_enlarged,
    require_recipe,
)

if TYPE_CHECKING:
    from civman.library import Library
    from civman.planning.plan_types import Planned, Rendering


@dataclass(frozen=True, slots=True)
class JobCallbacks:
    """Functions that a job calls to report its progress.

    `started` receives the number of images and the number of steps, and raises KeyboardInterrupt if the job was
    cancelled. `on_event` receives the library's events, from which the notices in the job's result are collected.
    """

    started: Callable[[int, int], None]
    on_event: OnEvent


def run_job(kind: str, library_folder: Path, payload: dict[str, Any], started: Callable[[int, int], None]) -> Any:
    """Run a job. Raises: CivmanError: the job failed. KeyboardInterrupt: the job was cancelled."""
    from civman.library import Library

    notices: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.message)

    is_offline = not payload.get("fetch")
    with Library.open(library_folder, offline=is_offline or None, on_notice=notices.append) as library:
        result = _KINDS[kind](library, payload, JobCallbacks(started, on_event))
    told = [*result.pop("notices", []), *notices]
    return plain({**result, "notices": list(dict.fromkeys(told))})


def _render(library: "Library", payload: dict[str, Any], callbacks: JobCallbacks) -> dict[str, Any]:
    conditions, root = conditions_of(payload), library.context.root
    plans = [library.plan(request_of(value, library=root), conditions) for value in payload["requests"]]
    made = _made(library, plans, payload, callbacks)
    return {"pictures": made, "notices": [notice for each in plans for notice in each.notices]}


def _grid(library: "Library", payload: dict[str, Any], callbacks: JobCallbacks) -> dict[str, Any]:
    request = request_of(payload["request"], library=library.context.root)
    grid = library.grids.plan(request, grid_axes(payload["axes"]), conditions=conditions_of(payload))
    _begin([cell.planned for cell in grid.cells], callbacks)
    drawn = library.grids.draw(grid, machine=Machine(payload.get("device")), on_event=callbacks.on_event)
    cells = [
        {"column": cell.column, "row": cell.row, "values": dict(cell.values), "picture": made.id}
        for cell, made in zip(grid.cells, drawn.pictures, strict=True)
    ]
    return {
        "pictures": [rendering_value(each) for each in drawn.pictures], "cells": cells, "sheet": drawn.path,
        "axes": [{"title": axis.title, "values": axis.values} for axis in grid.axes], "notices": grid.notices,
    }  # fmt: skip


def _replay(library: "Library", payload: dict[str, Any], callbacks: JobCallbacks) -> dict[str, Any]:
    """Render an image of the library again and compare it with the original, or render it with changed fields."""
    source = library.pictures.find_recipe(f"picture:{payload['picture']}")
    missing = library.pictures.missing_files(source)
    if missing and payload.get("fetch"):
        library.pictures.fetch_missing(missing, on_event=callbacks.on_event)
    changes = changes_of(payload.get("set", {}))
    about = {"of": source.name, "recipe_sha256": source.origin.recipe_sha256}
    if changes:
        planned = library.pictures.plan_variation(source, changes, conditions=conditions_of(payload))
        return {**about, "pictures": _made(library, [planned], payload, callbacks), "notices": planned.notices}
    from civman.rendering.replay_values import is_unchanged, replay_value

    recipe = source.origin.recipe
    callbacks.started(recipe.count if recipe else 1, recipe.steps if recipe else 1)
    results = library.replay(source, machine=Machine(payload.get("device")), on_event=callbacks.on_event)
    saved: Sequence[Rendering] = ()
    if not is_unchanged(source, results):
        saved = library.pictures.save([each.drawn for each in results])
    replayed = [replay_value(each) for each in results]
    return {**about, "replayed": replayed, "pictures": [rendering_value(each) for each in saved]}


def _redraw(library: "Library", payload: dict[str, Any], callbacks: JobCallbacks) -> dict[str, Any]:
    """Render a recipe or A1111's `parameters` text; if `pixel_sha256` is given, compare the result's pixels with it."""
    conditions, changes = conditions_of(payload), changes_of(payload.get("set", {}))
    if "settings" in payload:
        planned = library.pictures.plan_settings(payload["settings"], conditions)
        if changes:
            planned = library.pictures.plan_variation(planned.recipe, changes, conditions=conditions)
    elif changes:
        planned = library.pictures.plan_variation(recipe_of(payload["recipe"]), changes, conditions=conditions)
    else:
        planned = library.plan(recipe_of(payload["recipe"]))
    made = _made(library, [planned], payload, callbacks)
    wanted = payload.get("pixel_sha256")
    is_same = wanted in [each["pixel_sha256"] for each in made]
    verdict = None if wanted is None or changes else "identical" if is_same else "different"
    return {"pictures": made, "verdict": verdict, "notices": planned.notices}


def _upscale(library: "Library", payload: dict[str, Any], callbacks: JobCallbacks) -> dict[str, Any]:
    """Enlarge images with an upscaler."""
    from civman.domain.recipes.enlargement import UpscaleRequest
    from civman.rendering.upscale_values import upscaled_value

    asked = UpscaleRequest(payload["upscaler"], payload.get("scale"), payload.get("size"), multiple=payload["multiple"])
    plans = library.upscaling.plan([Path(each) for each in payload["files"]], asked)
    for each in plans:
        require_enlarged(each.recipe.enlargement.final_size)
    callbacks.started(len(plans), 1)
    made = library.upscaling.run(plans, machine=Machine(payload.get("device")), on_event=callbacks.on_event)
    notices = [notice for each in plans for notice in each.notices]
    return {"pictures": [upscaled_value(each) for each in made], "notices": notices}


def _begin(plans: "Iterable[Planned]", callbacks: JobCallbacks) -> None:
    """Check that no image is larger than the server allows, then report how much work the job has. Raises: Refused."""
    recipes: list[Recipe] = [each.recipe for each in plans]
    for recipe in recipes:
        require_recipe(recipe)
    callbacks.started(sum(each.count for each in recipes), recipes[0].steps)


def _made(library: "Library", plans: "list[Planned]", payload: dict[str, Any], callbacks: JobCallbacks) -> list[Any]:
    _begin(plans, callbacks)
    made = library.render(plans, machine=Machine(payload.get("device")), on_event=callbacks.on_event)
    return [rendering_value(each) for each in made]


_KINDS: dict[str, "Callable[[Library, dict[str, Any], JobCallbacks], dict[str, Any]]"] = {
    "render": _render, "grid": _grid, "replay": _replay, "redraw": _redraw, "upscale": _upscale,
}  # fmt: skip
