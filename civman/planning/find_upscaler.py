"""Finds upscaler models: for a second pass, for the finished image, or for the input image.

An upscaler's name from A1111's image metadata ("R-ESRGAN 4x+") means the published file of that upscaler.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from civman.domain.known_upscalers import KnownUpscaler, known_upscaler, upscaler_with
from civman.domain.recipes.enlargement import METHODS
from civman.domain.recipes.recipe import RenderRequest
from civman.domain.recipes.recipe_limits import UPSCALERS, upscaler_of
from civman.errors import Cause, NotFound, UsageError
from civman.planning.find_files import Finder, Found


def upscaler_for(finder: Finder, request: RenderRequest) -> tuple[Found | None, tuple[str, ...]]:
    """Find the upscaler model for the second pass of a request. Also returns notices.

    The model is None if the second pass needs none. Raises: NotFound: the name is neither a built-in upscaler nor a
    stored model. UsageError (`wrong-kind`). Refused.
    """
    if request.hires is None or upscaler_of(request.hires.upscaler) in UPSCALERS[:-1]:
        return None, ()
    return upscaler_model(finder, request.hires.upscaler, own=UPSCALERS[:-1])


def last_upscaler_for(finder: Finder, request: RenderRequest) -> tuple[Found | None, tuple[str, ...]]:
    """Find the model that enlarges the finished image; None if none is needed. Raises: the errors of `upscaler_for`."""
    if request.upscale is None:
        return None, ()
    return any_upscaler(finder, request.upscale.upscaler)


def input_upscaler_for(finder: Finder, request: RenderRequest) -> tuple[Found | None, tuple[str, ...]]:
    """Find the model that enlarges the input image before img2img; None if none is needed.

    Raises: the errors of `upscaler_for`. UsageError: several options of the request enlarge the image.
    """
    ways = (request.tiled_upscale, request.ultimate_upscale, request.init_upscale)
    asked = [each.upscaler for each in ways if each is not None]
    if len(asked) > 1:
        raise UsageError(
            "the input image can be enlarged only once",
            hint="leave out all but one of the options that enlarge the input image",
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    if not asked or asked[0].casefold() == "none":
        return None, ()
    return any_upscaler(finder, asked[0])


def any_upscaler(finder: Finder, ref: str) -> tuple[Found | None, tuple[str, ...]]:
    """Find an upscaler model by its ref; None for the built-in "lanczos" and "nearest".

    Raises: the errors of `upscaler_model`.
    """
    own = METHODS[1:]
    return (None, ()) if ref.casefold() in own else upscaler_model(finder, ref, own=own)


def scale_of(found: Found | None) -> int | None:
    """The scaling factor of an upscaler model; None if its tensors do not show it."""
    number = found.identity.variant.rpartition(" x")[2] if found is not None else ""
    return int(number) if number.isdecimal() else None


def upscaler_model(finder: Finder, ref: str, *, own: Sequence[str]) -> tuple[Found, tuple[str, ...]]:
    """Find an upscaler model by a ref or by A1111's name for it. Also returns notices about the model.

    `own`: the names of the built-in upscalers, which the error message lists.

    Raises: NotFound. UsageError (`wrong-kind`). Refused.
    """
    known = known_upscaler(ref)
    try:
        found = _published(finder, known) or finder.find("upscaler", ref)
    except NotFound as error:
        error.hint = f"the built-in upscalers are {', '.join(own)}; `civman import` adds upscaler models"
        if known is not None:
            error.hint = f"its file is usually called `{known.files[0]}.pth`; `civman import` adds it to the library"
        raise
    return found, tuple(_notices(found, ref, known))


def _published(finder: Finder, known: KnownUpscaler | None) -> Found | None:
    """Find the stored file of a published upscaler, by its SHA-256 or else by its file name."""
    if known is None:
        return None
    for sha256 in known.sha256:
        try:
            return finder.with_digest("upscaler", sha256)
        except NotFound:
            continue
    stem = next((stem for stem in known.files if finder.has_file("upscaler", stem)), None)
    return finder.find("upscaler", stem) if stem else None


def _notices(found: Found, ref: str, known: KnownUpscaler | None) -> Iterator[str]:
    name = found.inspected.name
    yield f"the upscaler `{name}` runs in tiles, which can take minutes on a CPU"
    if known is not None and found.sha256 not in known.sha256:
        yield (
            f"`{name}` was found by its name only: its SHA-256 is not that of a published `{ref}`"
            if known.sha256
            else f"`{name}` was found by its name only: civman does not know the SHA-256 of the published `{ref}`"
        )
    licensed = upscaler_with(found.sha256)
    if licensed is not None and not licensed.is_commercial:
        yield f"the licence of the upscaler `{Path(name).stem}` ({licensed.licence}) excludes commercial use"
