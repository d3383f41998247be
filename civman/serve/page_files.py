"""Serves the files of the web page, which are installed with the package.

Each file is read once. Requests can only name one of these files, not a path.
"""

import hashlib
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from civman.errors import NotFound

_KINDS = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip
START = "index.html"


@cache
def page_files() -> dict[str, tuple[bytes, str, str]]:
    """Map the name of each file of the web page to its bytes, its content type and its ETag."""
    found = {}
    for each in files("civman.serve").joinpath("page").iterdir():
        kind = _KINDS.get(each.name[each.name.rfind(".") :])
        if each.is_file() and kind is not None:
            data = each.read_bytes()
            found[each.name] = (data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found


def wants_page(request: Request) -> bool:
    """Whether the request comes from a browser, and not from a program that expects JSON."""
    return "text/html" in request.headers.get("accept", "")


def page_answer(request: Request, name: str) -> Response:
    """Send a file of the web page, or status 304 if the browser has the current version. Raises: NotFound."""
    found = page_files().get(name)
    if found is None:
        raise NotFound(f"the page has no file `{name}`")
    data, kind, tag = found
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


async def page_file(request: Request) -> Response:
    """Send a file of the page."""
    return page_answer(request, request.path_params["name"])


ROUTES = [Route("/page/{name}", page_file)]
