"""Published face models: those that restore faces, and those that find and segment them (`data/face_models.json`)."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from civman.domain.digests import Sha256


@dataclass(frozen=True, slots=True)
class KnownFaceModel:
    """A published face model: its kind ("codeformer", "gfpgan", "retinaface", "parsenet"), files and licence."""

    kind: str
    files: tuple[str, ...]
    """The names of the model's files, without extension."""
    sha256: tuple[Sha256, ...]
    """The SHA-256 of the model's published files; empty if none is known."""
    licence: str
    is_commercial: bool
    """Whether the model's licence allows commercial use."""


def known_face_models(kind: str) -> tuple[KnownFaceModel, ...]:
    """The published models of one kind. The model that A1111 downloads comes first."""
    return tuple(each for each in _all() if each.kind == kind)


def face_model_with(sha256: Sha256) -> KnownFaceModel | None:
    """Look up a published face model by the SHA-256 of its file."""
    return next((each for each in _all() if sha256 in each.sha256), None)


@cache
def _all() -> tuple[KnownFaceModel, ...]:
    data = json.loads(files("civman.domain").joinpath("data/face_models.json").read_text(encoding="utf-8"))
    return tuple(
        KnownFaceModel(
            entry["kind"], tuple(entry["files"]), tuple(map(Sha256, entry["sha256"])), entry["licence"],
            entry["commercial"],
        )
        for entry in data["models"]
    )  # fmt: skip
