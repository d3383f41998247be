"""Finds the models for face restoration: the restorer, the face detector and the face parser."""

from dataclasses import dataclass

from civman.domain.events import ignore
from civman.domain.known_face_models import face_model_with, known_face_models
from civman.domain.recipes.faces import METHODS, WEIGHT, FaceRestoration, faces_from
from civman.domain.recipes.recipe import RenderRequest
from civman.errors import Cause, NotFound, UsageError
from civman.index import Index
from civman.manage.find_assets import ambiguous
from civman.planning.find_files import Finder, Found

_ROLES = {"retinaface": "face-detector", "parsenet": "face-parser"}
_PURPOSE = {"codeformer": "restores faces", "gfpgan": "restores faces", "retinaface": "finds faces",
         "parsenet": "separates a face from its background"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """The models of a face restoration, the entry for the recipe, and notices for the user."""

    restoration: FaceRestoration
    files: tuple[Found, ...]
    notices: tuple[str, ...]


def faces_for(finder: Finder, request: RenderRequest) -> FoundFaces | None:
    """Find the models that restore the faces of a request; None if no face restoration is requested.

    Raises: NotFound: a model is not in the library. AmbiguousRef: several stored models match. UsageError: the request
        is invalid, or its ref means another kind of file.
    """
    if request.face_restoration is None:
        return None
    ref, weight = faces_from(request.face_restoration)
    method = ref.casefold() if ref.casefold() in METHODS else ""
    restorer = _held(finder, method, "face-restorer") if method else finder.find("face-restorer", ref)
    method = restorer.identity.variant
    if method not in METHODS:
        raise UsageError(
            f"`{restorer.inspected.name}` does not restore faces: it "
            f"{_PURPOSE.get(method, 'is another kind of model')}",
            hint="use a CodeFormer or GFPGAN model", code=Cause.WRONG_KIND,
        )  # fmt: skip
    detector, parser = (_held(finder, kind, role) for kind, role in _ROLES.items())
    made = FaceRestoration(
        method, restorer.sha256, detector.sha256, parser.sha256,
        WEIGHT if weight is None or method == "gfpgan" else weight,
    )  # fmt: skip
    return FoundFaces(made, (restorer, detector, parser), tuple(_notices(restorer)))


def face_detector(finder: Finder) -> Found:
    """Find the stored face detector. Raises: NotFound (`missing-files`): the library has none. AmbiguousRef."""
    return _held(finder, "retinaface", _ROLES["retinaface"], "a detail pass for faces")


def _notices(restorer: Found) -> list[str]:
    known, method = face_model_with(restorer.sha256), restorer.identity.variant
    licence = known or known_face_models(method)[0]
    told = []
    if known is None:
        told.append(
            f"`{restorer.inspected.name}` was found by its tensors: its SHA-256 is not that of a published file"
        )
    if not licence.is_commercial:
        told.append(f"the licence of CodeFormer ({licence.licence}) excludes commercial use")
    if method == "gfpgan":
        told.append("A1111 runs GFPGAN with random noise; civman uses the noise in GFPGAN's file instead")
    return told


def _held(finder: Finder, kind: str, role: str, user: str = "face restoration") -> Found:
    """Find the stored model of a kind: a published file if the library has one, else the only file of this kind.

    `user`: the feature that needs the model, for the error message. Raises: NotFound, AmbiguousRef.
    """
    known = known_face_models(kind)
    held = [found for found in finder.stored(role) if found.identity.variant == kind]
    published = [digest for each in known for digest in each.sha256]
    held.sort(key=lambda found: published.index(found.sha256) if found.sha256 in published else len(published))
    if len(held) == 1 or (held and held[0].sha256 in published):
        return held[0]
    if held:
        raise ambiguous(kind, [found.asset for found in held if found.asset is not None])
    raise NotFound(
        f"{user} needs `{known[0].files[0]}.pth`, which {_PURPOSE[kind]} and is not in the library",
        hint="add the file with `civman import FILE`; a web UI that has restored faces keeps a copy in "
        "its models folder",
        code=Cause.MISSING_FILES,
    )  # fmt: skip


def faces_of(index: Index, wanted: FaceRestoration) -> tuple[str | None, tuple[str, ...]]:
    """Return a recipe's face restoration as the text that a request uses, and notices for the user.

    The text is None if the models are not in the library; a notice then says that the faces are not restored.
    """
    finder = Finder(index, ignore)
    try:
        for kind, role in ((wanted.method, "face-restorer"), *_ROLES.items()):
            _held(finder, kind, role)
    except NotFound as error:
        return None, (f"the faces are not restored: {error.message}",)
    return wanted.method + (f":{wanted.weight:g}" if wanted.method == "codeformer" else ""), ()
