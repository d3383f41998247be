"""Finds the upscaler model of a second pass and estimates its cost."""

from civman.domain.recipes.recipe import RenderRequest
from civman.domain.recipes.recipe_limits import UPSCALERS, upscaler_of
from civman.errors import NotFound
from civman.planning.find_files import Finder, Found


def upscaler_for(finder: Finder, request: RenderRequest) -> tuple[Found | None, tuple[str, ...]]:
    """Find the upscaler model of a request; None if it needs none. Also returns a notice about the model's cost.

    Raises: NotFound: it is neither a built-in upscaler nor a stored model. UsageError (`wrong-kind`). Refused.
    """
    if request.hires is None or upscaler_of(request.hires.upscaler) in UPSCALERS[:-1]:
        return None, ()
    try:
        found = finder.find("upscaler", request.hires.upscaler)
    except NotFound as error:
        error.hint = f"civman's own upscalers are {', '.join(UPSCALERS[:-1])}; `civman import` adds models"
        raise
    words = f"the upscaler `{found.inspected.name}` runs in tiles, which can take minutes on a CPU"
    return found, (words,)
