"""Builds the OpenAPI description of the server from its routes."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Route

from civman import __version__


def openapi(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """Describe every route: its path, methods and path parameters, and the first line of its docstring."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if not isinstance(route, Route):
            continue
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        named = [
            {"name": name, "in": "path", "required": True,
             "schema": {"type": "integer" if f"{{{name}:int}}" in route.path else "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]  # fmt: skip
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation: dict[str, Any] = {
                "summary": (inspect.getdoc(route.endpoint) or "").partition("\n")[0], "parameters": named,
                "responses": {"200": {"description": "The result."}, "4XX": {"description": "The error."}},
            }  # fmt: skip
            if method in ("POST", "PATCH"):
                operation["requestBody"] = {"content": {"application/json": {"schema": {"type": "object"}}}}
            paths.setdefault(path, {})[method.lower()] = operation
    return {"openapi": "3.1.0", "info": {"title": "civman", "version": __version__}, "paths": paths}
