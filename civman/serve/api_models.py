"""The API's routes that the page needs for stored models: counts for filters, annotations, and compatibility."""

from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman.domain.json_values import plain
from civman.domain.refs import parse_ref
from civman.errors import UsageError
from civman.library import Library
from civman.manage.annotate import Edit
from civman.planning.check_files import ROLES, check_files
from civman.serve.api_library import digest_of, licence_value, model_values
from civman.serve.render_requests import require_name
from civman.serve.serving import json_body, serving

_EDIT: TypeAdapter[Edit] = TypeAdapter(Edit)
_EDITED = frozenset(Edit.__dataclass_fields__)
_MOST_TAGS = 200


async def facets(request: Request) -> Response:
    """Count the stored files by type, base model and tag, as choices for the page's filters."""

    def find(library: Library) -> Any:
        if not library.context.has_index:
            return {"total": 0, "type": [], "base": [], "tag": []}
        index = library.context.index
        groups = {name: index.shares(group) for name, group in _GROUPS.items()}
        counted = {
            name: [{"value": share.label, "count": share.count} for share in sorted(shares, key=_by_count)]
            for name, shares in groups.items()
        }
        return {"total": library.files.count(), **counted, "tag": counted["tag"][:_MOST_TAGS]}

    return JSONResponse(await serving(request).library.run(find))


_GROUPS = {"type": "type", "base": "base_model", "tag": "tag"}


def _by_count(share: Any) -> tuple[int, str]:
    return -share.count, share.label


async def edit(request: Request) -> Response:
    """Change the user's annotations of a stored file; the body contains the fields of `Edit` to change."""
    sha256, body = digest_of(request), await json_body(request)
    unknown = sorted(set(body) - _EDITED)
    if unknown:
        raise UsageError(
            f"`{unknown[0]}` is not a field that can be edited", hint=f"fields: {', '.join(sorted(_EDITED))}"
        )
    try:
        wanted = _EDIT.validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"the field `{'.'.join(map(str, first['loc']))}` of the edit is invalid: {first['msg']}"
        ) from None

    def change(library: Library) -> Any:
        changed = library.files.edit(f"sha256:{sha256}", wanted)
        return {"models": model_values(library, changed)}

    return JSONResponse(await serving(request).library.run(change))


async def check(request: Request) -> Response:
    """Check whether LoRAs, embeddings and a VAE fit a checkpoint, as `civman check` does.

    `parts` is a list of refs, or of `{ref, role}` with the role lora, embedding or vae. If a ref names a file on
    CivitAI, only the file's header is downloaded.
    """
    body = await json_body(request)
    checkpoint, parts = body.get("checkpoint"), body.get("parts")
    if not isinstance(checkpoint, str) or not isinstance(parts, list) or not 0 < len(parts) <= 50:
        raise UsageError("a check needs the fields `checkpoint` (a ref) and `parts` (a list of 1 to 50 refs)")
    asked = [_part(each) for each in parts]
    require_name(checkpoint)

    def judge(library: Library) -> Any:
        base = library.inspect(checkpoint)
        seen = [(role, library.inspect(ref, file=file)) for role, ref, file in asked]
        for model in (base, *(model for _, model in seen)):
            if model.refusal is not None:
                raise model.refusal
        terms = library.files.terms([base, *(model for _, model in seen)])
        return {**_plain(check_files(base, seen)), "licence": licence_value(terms)}

    return JSONResponse(await serving(request).site.run(judge))


def _part(value: object) -> tuple[str | None, str, str | None]:
    """Return the role, the ref and the file of one entry of `parts`. Raises: UsageError, Refused."""
    given = {"ref": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not isinstance(given.get("ref"), str):
        raise UsageError("each entry of `parts` must be a ref, or an object with a `ref`")
    role, file = given.get("role"), given.get("file")
    if role not in (None, *ROLES) or not isinstance(file, str | None):
        raise UsageError(f"the `role` of a part must be one of {', '.join(ROLES)}, and its `file` must be a string")
    parse_ref(given["ref"])
    return role, require_name(given["ref"]), file


def _plain(value: object) -> dict[str, Any]:
    found = plain(value)
    assert isinstance(found, dict)
    for part in found["parts"]:
        part.pop("modules", None)
    return found


ROUTES = [
    Route("/api/v1/models/facets", facets), Route("/api/v1/models/{sha256}", edit, methods=["PATCH"]),
    Route("/api/v1/check", check, methods=["POST"]),
]  # fmt: skip
