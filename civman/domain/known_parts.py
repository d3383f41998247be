"""Published files of the parts that checkpoints need besides their transformer: text encoders and VAEs.

The files are identified by SHA-256 (`data/model_parts.json`), so that they can be looked up on CivitAI, and a file that
was downloaded elsewhere can be recognised. Which parts a checkpoint needs is decided by its family in
`civman.diffusion`.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from civman.domain.digests import Sha256


@dataclass(frozen=True, slots=True)
class KnownPart:
    """A published text encoder or VAE."""

    role: str
    """The part's role in recipes and on the command line, such as "t5"."""
    title: str
    families: tuple[str, ...]
    """The architectures of the checkpoints that use the part."""
    name: str
    """The file's usual name, without extension."""
    sha256: Sha256
    published: str
    """The public repository that contains the file, and the file's path in the repository."""
    width: int | None = None
    """The width of a text encoder's hidden states, if the checkpoints of a family need different widths; else None."""


@cache
def known_parts() -> tuple[KnownPart, ...]:
    """List all published text encoders and VAEs that civman knows."""
    data = json.loads(files("civman.domain").joinpath("data/model_parts.json").read_text(encoding="utf-8"))
    return tuple(
        KnownPart(
            entry["role"], entry["title"], tuple(entry["families"]), entry["name"], Sha256(entry["sha256"]),
            entry["published"], entry.get("width"),
        )
        for entry in data["parts"]
    )  # fmt: skip


def parts_for(family: str, role: str, width: int | None = None) -> tuple[KnownPart, ...]:
    """List the published files for a role in checkpoints of a family; `width` leaves out parts of another width."""
    return tuple(
        part
        for part in known_parts()
        if part.role == role and family in part.families and (None in (width, part.width) or part.width == width)
    )


def known_part(sha256: Sha256) -> KnownPart | None:
    """Look up a published text encoder or VAE by the SHA-256 of its file."""
    return next((part for part in known_parts() if part.sha256 == sha256), None)
