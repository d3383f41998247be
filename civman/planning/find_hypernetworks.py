"""Finds the hypernetworks of a request: those given by refs, and those that tags in the prompt name."""

from civman.domain.recipes.recipe import HypernetworkUse, RenderRequest
from civman.domain.scales import parse_scaled
from civman.planning.find_files import Finder, Found
from civman.planning.prompt_references import Words


def hypernetworks_for(finder: Finder, request: RenderRequest, words: Words) -> list[tuple[Found, HypernetworkUse]]:
    """Find the hypernetworks in the order in which they are applied: those given by refs first, then those in tags.

    Raises: NotFound, AmbiguousRef: no file matches, or several do. UsageError (`wrong-kind`): a file is not a
        hypernetwork. Refused: a file cannot be loaded.
    """
    found = []
    for text in request.hypernetworks:
        scaled = parse_scaled(text)
        found.append((finder.find("hypernetwork", scaled.ref), 1.0 if scaled.unet is None else scaled.unet))
    found += [(finder.named("hypernetwork", tag.name), tag.te_scale) for tag in words.hypernetworks]
    return [(each, HypernetworkUse(each.sha256, strength)) for each, strength in found]
