"""The API's route for plans, which show what a job would do before anything is rendered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman.domain.json_values import error_value, plain
from civman.errors import CivmanError
from civman.library import Library
from civman.planning.plan_types import PICTURE_ROLES, Planned
from civman.planning.plan_values import plan_value
from civman.serve.api_library import is_set, licence_value, without_paths
from civman.serve.render_requests import changes_of, conditions_of, grid_axes, recipe_of, request_of, require_recipe
from civman.serve.serving import json_body, serving


def planned_value(library: Library, plans: Sequence[Planned], notices: Sequence[str]) -> dict[str, Any]:
    """Convert a job's plans to one JSON object: the first plan, with the files, notices and licence of all plans."""
    for each in plans:
        require_recipe(each.recipe)
    value = plain(plan_value(plans[0]))
    assert isinstance(value, dict)
    files = {(file.role, file.sha256): file for each in plans for file in each.files}.values()
    models = dict.fromkeys(file.sha256 for file in files if file.role not in PICTURE_ROLES)
    terms = library.files.terms([library.inspect(f"sha256:{sha256}") for sha256 in models])
    listed = plain(tuple(files))
    assert isinstance(listed, list)
    return {
        **value, "files": [without_paths({**each, "copy": None}) for each in listed],
        "notices": list(dict.fromkeys(notices)), "licence": licence_value(terms),
        "needed_bytes": max(each.needed_bytes for each in plans), "images": sum(each.recipe.count for each in plans),
    }  # fmt: skip


async def plan(request: Request) -> Response:
    """Plan a job without rendering anything: returns its recipe, notices, memory requirement and licence."""
    body, parts = await json_body(request), serving(request)
    root, device = parts.settings.library, await parts.device()
    try:
        return JSONResponse(await parts.library.run(lambda library: _planned(library, body, root, device)))
    except CivmanError as error:
        if not is_set(request, "soft"):
            raise
        return JSONResponse(
            {"error": {**error_value(error), "facts": {}}}
        )  # return the error as a value: a client plans while its user types, so incomplete input is normal


def _planned(library: Library, body: dict[str, Any], root: Path, device: str | None) -> dict[str, Any]:
    conditions, changes = conditions_of(body, device), changes_of(body.get("set", {}))
    if "axes" in body:
        request = request_of(body.get("request"), library=root)
        grid = library.grids.plan(request, grid_axes(body["axes"]), conditions=conditions)
        cells = [
            {"column": cell.column, "row": cell.row, "values": dict(cell.values), "seed": cell.planned.recipe.seed}
            for cell in grid.cells
        ]
        axes = [{"title": axis.title, "values": list(axis.values)} for axis in grid.axes]
        plans = [cell.planned for cell in grid.cells]
        return {**planned_value(library, plans, grid.notices), "cells": cells, "axes": axes}
    if "picture" in body:
        source = library.pictures.find_recipe(f"picture:{int(body['picture'])}")
        planned = library.pictures.plan_variation(source, changes, conditions=conditions)
    elif "settings" in body:
        planned = library.pictures.plan_settings(str(body["settings"]), conditions)
    elif "recipe" in body:
        planned = library.plan(recipe_of(body["recipe"]))
    else:
        planned = library.plan(request_of(body.get("request"), library=root), conditions)
    if changes and "picture" not in body:
        planned = library.pictures.plan_variation(planned.recipe, changes, conditions=conditions)
    return planned_value(library, [planned], planned.notices)


ROUTES = [Route("/api/v1/plan", plan, methods=["POST"])]
