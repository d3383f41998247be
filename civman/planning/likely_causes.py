"""Lists the reasons why an image rendered again from its settings may differ from the original, likeliest first."""

from collections.abc import Iterator

from civman.domain.recipes.noise_sources import THREADS
from civman.domain.recipes.recipe import Recipe
from civman.planning.redraw_request import Prepared
from civman.planning.wanted_files import By

_COMMON = (40960, 43008, 70656, 104448)
_MOST = 3
_SMALLEST_SHARE = 0.02


def likely_causes(prepared: Prepared, recipe: Recipe, size: tuple[int, int]) -> tuple[str, ...]:
    """List at most three likely causes of a difference. `size`: the original's width and height in pixels."""
    found = tuple(dict.fromkeys(_causes(prepared, recipe, size)))[:_MOST]
    return found or ("the settings belong to another image, or the image was edited afterwards",)


def final_size(recipe: Recipe) -> tuple[int, int]:
    """The width and height of the final image of a recipe."""
    return (recipe.hires.width, recipe.hires.height) if recipe.hires else (recipe.width, recipe.height)


def values_of_noise(recipe: Recipe) -> int:
    """The number of values in the largest noise tensor that a recipe needs for one image."""
    width, height = final_size(recipe)
    return max(4 * (recipe.width // 8) * (recipe.height // 8), 4 * (width // 8) * (height // 8))


def depends_on_card(recipe: Recipe) -> bool:
    """Whether the image's noise depends on the model of the GPU, and the recipe does not specify the GPU."""
    return recipe.rng == "nv" and values_of_noise(recipe) > min(THREADS.values())


def cards_to_try(recipe: Recipe) -> list[tuple[str, str]]:
    """List the GPUs whose noise for this recipe may differ, as pairs (noise source, names of the GPUs).

    GPUs that are most common among A1111's users (Colab's T4, RTX 3060, 3070, 3080) come first.
    """
    cards: dict[int, list[str]] = {}
    for name, threads in THREADS.items():
        if threads < values_of_noise(recipe):
            cards.setdefault(threads, []).append(name.upper().replace(" TI", " Ti"))
    order = sorted(cards, key=lambda threads: (_COMMON.index(threads) if threads in _COMMON else len(_COMMON), threads))
    return [(f"nv:{threads}", ", ".join(cards[threads])) for threads in order]


def _causes(prepared: Prepared, recipe: Recipe, size: tuple[int, int]) -> Iterator[str]:
    for each in prepared.files:
        if each.by is By.NAME or (each.by is By.VERSION and each.file.hash) or each.held is None:
            yield each.notice
    width, height = final_size(recipe)
    if abs(width * size[1] / (height * size[0]) - 1) > _SMALLEST_SHARE:
        yield (
            f"the original has {size[0]}x{size[1]} pixels, but its settings give {width}x{height}: it was cropped or"
            " joined with other images, or the settings belong to another image"
        )
    if depends_on_card(recipe):
        yield (
            "the noise depends on the graphics card, which the settings do not name: specify the card with"
            " `--set rng=CARD`, or try the common ones with --try-cards"
        )
    yield from prepared.found.reasons
