"""Turns the settings in other programs' images into render requests that use files in the library.

A file is found by its hash if the settings contain one, else by its version on CivitAI, else by its name. A notice
reports files that were found by their names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from civman.domain.catalog import VersionId
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Hires, HiresRequest, RenderRequest
from civman.errors import CannotRender, Cause, NotFound
from civman.index import Index
from civman.index.read_pictures import PictureFilter
from civman.pictures import image_text, infotext
from civman.pictures.upscale_text import with_extras
from civman.planning.find_details import without_missing_detector
from civman.planning.find_faces import faces_of
from civman.planning.recipe_sources import pixel_sha256
from civman.planning.redraw import Redraw, redraw
from civman.planning.redraw_controls import with_refs
from civman.planning.redraw_features import Drawable
from civman.planning.redraw_programs import is_known, texts_in
from civman.planning.redraw_result import stand_in
from civman.planning.redraw_stages import stand_in_of
from civman.planning.redraw_tiles import SourceImage
from civman.planning.site_image import SiteImage, listed_versions, settings_row
from civman.planning.vary import as_request
from civman.planning.wanted_files import Wanted, wanted_files

_MOST_TEXT = 1 << 20
"""The largest size of a text file that is read, in bytes."""


def settings_in(index: Index | None, path: Path) -> str | None:
    """Return A1111's `parameters` text, or another program's JSON, from an image or text file.

    None if the file contains neither, or if civman made the image.

    Raises: UsageError (`bad-picture`): the image is damaged.
    """
    if not path.is_file():
        return None
    if image_text.is_picture(path):
        carried = image_text.read(path)
        text = None
        if carried.record is None:
            text = carried.parameters or next(filter(is_known, texts_in(carried.entries)), None)
        if text is not None and index is not None:
            made = PictureFilter(pixel_sha256=pixel_sha256(image_text.pixels(path)))
            text = None if index.pictures(made) else text
        text = with_extras(carried, text)
    elif path.suffix.lower() in (".txt", ".json") and path.stat().st_size <= _MOST_TEXT:
        text = path.read_text(encoding="utf-8", errors="replace")
    else:
        return None
    return text if text is not None and (infotext.is_infotext(text) or is_known(text)) else None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The settings of an image, converted as far as possible, and the files that they name.

    The recipe in `found` has placeholders for the digests of files. `version_ids`: the versions on CivitAI that the
    image lists.
    """

    found: Redraw
    files: tuple[Wanted, ...]
    notices: tuple[str, ...] = ()
    version_ids: tuple[VersionId, ...] = ()


def prepare(index: Index | None, settings: "str | SiteImage", source: SourceImage | None = None) -> Prepared:
    """Read an image's settings as `understood` does, and check that the image can be rendered again.

    Raises: CannotRender (`not-drawable`): the image cannot be rendered again; the message says why. NotFound
    (`no-recipe`).
    """
    prepared = understood(index, settings, source)
    found = prepared.found
    if found.drawable in (Drawable.NO, Drawable.NEEDS_INPUT) or found.made is None:
        raise CannotRender(
            f"the image cannot be rendered again: {'; '.join(found.reasons[:3])}", code=Cause.NOT_DRAWABLE,
            hint="to render a similar image without these features, pass the remaining settings to `civman render`",
        )  # fmt: skip
    return prepared


def understood(index: Index | None, settings: "str | SiteImage", source: SourceImage | None = None) -> Prepared:
    """Read the settings in A1111's `parameters` text or of an image on CivitAI, and find the files that they name.

    `source`: the input image of img2img or of an upscaling script.

    Raises: NotFound (`no-recipe`): CivitAI shows no settings of the image.
    """
    if isinstance(settings, SiteImage) and not settings.meta and settings.text is None:
        raise NotFound(
            f"CivitAI shows no settings for image {settings.id}, and its file contains none",
            hint="the uploader hides the settings or uploaded the image without them; use another image",
            code=Cause.NO_RECIPE,
        )  # fmt: skip
    joined = settings_row(index, settings)
    found = redraw(joined.row | {"source": source})
    return Prepared(
        found, tuple(wanted_files(index, found.resources, joined.versions)), joined.notices,
        tuple(each.id for each in listed_versions(settings)),
    )  # fmt: skip


def request_of(
    index: Index, prepared: Prepared, source: SourceImage | None = None
) -> tuple[RenderRequest, str, tuple[str, ...]]:
    """Return the request that renders an image again, the rounding rule for its pixels, and notices.

    The notices say how the result may differ from the original.

    Raises: NotFound (`missing-files`): files that the settings name are not in the library.
    """
    found = prepared.found
    assert found.made is not None, "`prepared` must contain a recipe, which `prepare` has checked"
    require_held(prepared.files)
    digests = {stand_in_of(each.file): each.held.blob.sha256 for each in prepared.files if each.held is not None}
    request = as_request(found.made, {each.sha256: each.path for each in source.all} if source is not None else {})
    left: dict[str, Any] = dict.fromkeys(found.leaves)

    def ref(digest: Sha256) -> str:
        return f"sha256:{digests.get(digest, digest)}"

    hires = request.hires
    if hires is not None and found.made.hires is not None and found.made.hires.model is not None:
        hires = replace(hires, upscaler=ref(found.made.hires.model))
    if hires is not None and found.made.hires is not None:
        hires = _with_files(hires, found.made.hires, ref)
    refiner = found.made.refiner
    upscale = request.upscale
    if upscale is not None and found.made.upscale is not None and found.made.upscale.model is not None:
        upscale = replace(upscale, upscaler=ref(found.made.upscale.model))
    tiled = request.tiled_upscale
    if tiled is not None and found.made.tiled is not None and found.made.tiled.model is not None:
        tiled = replace(tiled, upscaler=ref(found.made.tiled.model))
    ultimate = request.ultimate_upscale
    if ultimate is not None and found.made.ultimate is not None and found.made.ultimate.model is not None:
        ultimate = replace(ultimate, upscaler=ref(found.made.ultimate.model))
    larger = request.init_upscale
    if larger is not None and found.made.input_upscale is not None and found.made.input_upscale.model is not None:
        larger = replace(larger, upscaler=ref(found.made.input_upscale.model))
    vae = next((each for each in found.resources if each.role == "vae"), None)
    request = replace(
        request, checkpoint=ref(found.made.checkpoint), hires=hires, upscale=upscale,
        refiner=ref(refiner.checkpoint.sha256) if refiner is not None else None,
        tiled_upscale=tiled, ultimate_upscale=ultimate, init_upscale=larger,
        controls=with_refs(found.controls, lambda name: ref(stand_in(name))),
        references=with_refs(found.references, lambda name: ref(stand_in(name))),
        vae=ref(stand_in(vae.name)) if vae is not None else None,
        loras=tuple(use.request(ref(use.sha256)) for use in found.made.loras),
        hypernetworks=tuple(f"{ref(use.sha256)}:{use.strength!r}" for use in found.made.hypernetworks),
        called=tuple(
            (each.file.name, f"sha256:{each.held.blob.sha256}")
            for each in prepared.files
            if each.file.role == "embedding" and each.held is not None
        ),
        **left,
    )  # fmt: skip
    of_files = [each.notice for each in prepared.files if each.notice]
    if found.made.faces is not None:
        text, without = faces_of(index, found.made.faces)
        request, of_files = replace(request, face_restoration=text), [*of_files, *without]
    request, left_out = without_missing_detector(index, request)
    of_files = [*of_files, *left_out]
    return request, found.made.rounding, (*prepared.notices, *found.reasons, *of_files)


def _with_files(asked: HiresRequest, made: Hires, ref: Callable[[Sha256], str]) -> HiresRequest:
    """Return the request for the second pass, with refs for the files that only the second pass uses."""
    networks = made.hypernetworks
    return replace(
        asked, checkpoint=ref(made.checkpoint.sha256) if made.checkpoint is not None else None,
        loras=None if made.loras is None else tuple(use.request(ref(use.sha256)) for use in made.loras),
        hypernetworks=None if networks is None else tuple(f"{ref(use.sha256)}:{use.strength!r}" for use in networks),
    )  # fmt: skip


def require_held(files: Sequence[Wanted]) -> None:
    """Check that all files except embeddings are in the library; a missing embedding's name is read as plain text.

    Raises: NotFound (`missing-files`): the message lists the missing files.
    """
    missing = [each for each in files if each.held is None and each.file.role != "embedding"]
    if missing:
        raise NotFound(
            f"the settings name files that are not in the library: {', '.join(each.words for each in missing)}",
            hint="look for the files on CivitAI with --fetch (by hash and version id), or add your own "
            "copies with `civman import`",
            code=Cause.MISSING_FILES,
        )  # fmt: skip
