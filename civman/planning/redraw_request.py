"""Render requests from the settings in images of other programs, with the files that they name found in the library.

A file is found by its hash if the settings give one, else by its name, which is reported in a notice.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.domain.known_upscalers import known_upscaler
from civman.domain.recipes.recipe import LoraRequest, RenderRequest
from civman.domain.refs import HashKind
from civman.errors import CannotRender, Cause, NotFound
from civman.index import Index
from civman.index.read_pictures import PictureFilter
from civman.pictures import image_text, infotext
from civman.pictures.site_settings import NamedFile
from civman.planning.find_files import plays
from civman.planning.recipe_sources import pixel_sha256
from civman.planning.redraw import Redraw, redraw, stand_in
from civman.planning.redraw_features import Drawable
from civman.planning.vary import as_request

_AUTOV3_DIGITS = 12
_MOST_TEXT = 1 << 20
"""The size in bytes of the largest text file that is read."""


def settings_in(index: Index | None, path: Path) -> str | None:
    """A1111's `parameters` text in an image or text file; None if there is none, or if civman made the image.

    Raises: UsageError (`bad-picture`): the image is damaged.
    """
    if not path.is_file():
        return None
    if image_text.is_picture(path):
        carried = image_text.read(path)
        text = None if carried.record is not None else carried.parameters
        if text is not None and index is not None:
            made = PictureFilter(pixel_sha256=pixel_sha256(image_text.pixels(path)))
            text = None if index.pictures(made) else text
    elif path.suffix.lower() == ".txt" and path.stat().st_size <= _MOST_TEXT:
        text = path.read_text(encoding="utf-8", errors="replace")
    else:
        return None
    return text if text is not None and infotext.is_infotext(text) else None


def row_of(text: str) -> dict[str, Any]:
    """Convert A1111's `parameters` text to a row as in CivitAI's API, for `civman.planning.redraw.redraw`."""
    parsed = infotext.read(text)
    meta: dict[str, Any] = dict(parsed.details)
    return {"meta": meta | {"prompt": parsed.prompt, "negativePrompt": parsed.negative, "hashes": parsed.hashes}}


def request_of(index: Index, row: dict[str, Any]) -> tuple[RenderRequest, str, tuple[str, ...]]:
    """Return the request that draws the image of a row again, with how its pixels are rounded, and notices.

    The notices say what differs from the original.

    Raises: CannotRender (`settings`): it cannot be drawn; the message says why. NotFound (`missing-files`): files that
        the settings name are not in the library.
    """
    found = redraw(row)
    if found.drawable in (Drawable.NO, Drawable.NEEDS_INPUT) or found.made is None:
        raise CannotRender(
            f"the image cannot be drawn again: {'; '.join(found.reasons[:3])}", code=Cause.NOT_DRAWABLE,
            hint="to render it without the missing features, pass the other settings to `civman render`",
        )  # fmt: skip
    digests, notices = _files(index, found)
    request = as_request(found.made)

    def ref(digest: Sha256) -> str:
        return f"sha256:{digests.get(digest, digest)}"

    hires = request.hires
    if hires is not None and found.made.hires is not None and found.made.hires.model is not None:
        hires = replace(hires, upscaler=ref(found.made.hires.model))
    vae = next((each for each in found.resources if each.role == "vae"), None)
    request = replace(
        request, checkpoint=ref(found.made.checkpoint), hires=hires,
        vae=ref(stand_in(vae.name)) if vae is not None else None,
        loras=tuple(LoraRequest(ref(use.sha256), use.scale, use.text_scale, use.blocks) for use in found.made.loras),
        hypernetworks=tuple(f"{ref(use.sha256)}:{use.strength!r}" for use in found.made.hypernetworks),
        prediction=None, is_zero_snr=None, precision=None, config=None,
    )  # fmt: skip
    return request, found.made.rounding, (*found.reasons, *notices)


def _files(index: Index, found: Redraw) -> tuple[dict[Sha256, Sha256], tuple[str, ...]]:
    """Find the files that the settings name. Returns stand-in → SHA-256, and notices. Raises: NotFound."""
    digests: dict[Sha256, Sha256] = {}
    notices: list[str] = []
    missing: list[NamedFile] = []
    for each in found.resources:
        assets = _by_hash(index, each)
        if not assets and each.name and (assets := _by_name(index, each)):
            notices.append(f"the {each.role} `{each.name}` was found by its name only")
        if assets:
            digests[stand_in("checkpoint" if each.role == "checkpoint" else each.name)] = assets[0].blob.sha256
        elif each.role != "embedding":
            missing.append(each)
        else:
            notices.append(f"the embedding `{each.name}` is not in the library, so its name is read as plain words")
    if missing:
        named = ", ".join(f"{each.role} `{each.name}`" + (f" ({each.hash})" if each.hash else "") for each in missing)
        raise NotFound(
            f"the settings name files that are not in the library: {named}",
            hint=f"`civman download {next((each.hash for each in missing if each.hash), missing[0].name)}` looks for "
            "the first of them on CivitAI",
            code=Cause.MISSING_FILES,
        )  # fmt: skip
    return digests, tuple(notices)


def _by_hash(index: Index, wanted: NamedFile) -> Sequence[Asset]:
    """The stored files of the right kind with this hash. A long hash of a LoRA may be AutoV3, stored in 12 digits."""
    if not wanted.hash:
        return []
    if wanted.role == "upscaler" and (known := known_upscaler(wanted.name)):
        held = [index.find_sha256(digest) for digest in known.sha256]
        return [asset for asset in held if asset is not None and plays(asset, wanted.role)]
    found = index.find_by_digest(wanted.hash)
    if not found and len(wanted.hash) > _AUTOV3_DIGITS:
        found = index.find_by_digest(wanted.hash[:_AUTOV3_DIGITS], HashKind.AUTOV3)
    return [asset for asset in found if plays(asset, wanted.role)]


def _by_name(index: Index, wanted: NamedFile) -> Sequence[Asset]:
    """The stored file of the right kind with exactly this name, if there is one; a part of a name is not enough.

    An upscaler's name may be one that A1111 gives to a file of another name.
    """
    known = known_upscaler(wanted.name) if wanted.role == "upscaler" else None
    for name in (wanted.name, *(known.files if known is not None else ())):
        found = [
            asset
            for asset in index.find_by_name(name)
            if plays(asset, wanted.role)
            and name.casefold()
            in {Path(asset.name).stem.casefold(), asset.name.casefold(), (asset.alias or "").casefold()}
        ]
        if len({asset.blob.sha256 for asset in found}) == 1:
            return found
    return []
