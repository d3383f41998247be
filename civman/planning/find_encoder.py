"""Finds the CLIP vision encoder that an IP-Adapter needs: the requested encoder, or else a stored one that fits."""

from collections.abc import Sequence
from typing import Final

from civman.domain.adapters.ip_adapters import IpAdapter
from civman.domain.known_parts import KnownPart, known_parts
from civman.domain.vision_encoders import read_vision_encoder
from civman.errors import AmbiguousRef, CannotRender, Cause
from civman.planning.find_files import Finder, Found

ROLE: Final = "clip-vision"


def known_encoders(adapter: IpAdapter) -> tuple[KnownPart, ...]:
    """List the published CLIP vision encoders that fit an IP-Adapter."""
    return tuple(part for part in known_parts() if part.role == ROLE and part.title.endswith(adapter.encoder_title))


def fitting_encoders(finder: Finder, adapter: IpAdapter) -> list[Found]:
    """List the stored CLIP vision encoders that fit an IP-Adapter."""
    return [file for file in finder.stored(ROLE) if _fits(file, adapter)]


def encoder_for(finder: Finder, adapter: IpAdapter, name: str, given: Sequence[Found]) -> tuple[Found, str]:
    """Find the vision encoder for the IP-Adapter in the file `name`: one of `given`, else the only stored one.

    Also returns a notice for the user, which is empty if the encoder was given.

    Raises: CannotRender: no stored encoder fits (`missing-part`), or none of those given (`mismatched-parts`).
        AmbiguousRef: several stored files fit.
    """
    if found := next((file for file in given if _fits(file, adapter)), None):
        return found, ""
    if given:
        raise CannotRender(
            f"`{given[0].inspected.name}` is not the encoder for `{name}`, which needs the "
            f"{adapter.encoder_title}",
            hint=f"pass the right encoder with --part {ROLE}=REF", code=Cause.MISMATCHED_PARTS, part=ROLE, file=name,
        )  # fmt: skip
    fitting = fitting_encoders(finder, adapter)
    if len(fitting) > 1:
        raise AmbiguousRef(
            f"{len(fitting)} stored files could be the {adapter.encoder_title}: "
            + ", ".join(f"`{each.inspected.name}` (sha256 {each.sha256[:12]}…)" for each in fitting),
            hint=f"choose one of these files with --part {ROLE}=REF",
        )  # fmt: skip
    if not fitting:
        raise CannotRender(
            f"`{name}` needs the {adapter.encoder_title}, which is not in the library",
            hint=_how_to_get(adapter), code=Cause.MISSING_PART, part=ROLE, file=name,
        )  # fmt: skip
    return fitting[0], f"the {adapter.encoder_title} is `{fitting[0].inspected.name}`, the only stored file that fits"


def _fits(file: Found, adapter: IpAdapter) -> bool:
    encoder = read_vision_encoder(file.header.shapes)
    return encoder is not None and adapter.takes(encoder)


def _how_to_get(adapter: IpAdapter) -> str:
    known = known_encoders(adapter)
    if not known:
        return "add an encoder with `civman import FILE`"
    return (
        f"download the encoder with `civman download {known[0].sha256}`; if CivitAI does not have it, get "
        f"`{known[0].name}` ({known[0].published}) and add it with `civman import FILE`"
    )
