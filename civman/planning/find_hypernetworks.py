"""Finds the hypernetworks of a request: those named by refs, and those that tags in the prompt name."""

from civman.domain.recipes.recipe import HypernetworkUse, RenderRequest
from civman.domain.scales import parse_scaled
from civman.planning.find_files import Finder, Found
from civman.planning.prompt_references import Words


def hypernetworks_for(finder: Finder, request: RenderRequest, words: Words) -> list[tuple[Found, HypernetworkUse]]:
    """Find the hypernetworks in the order in which they act: refs first, then tags.

    Raises: NotFound, AmbiguousRef: a file. UsageError (`wrong-kind`): it is no hypernetwork. Refused.
    """
    found = []
    for text in request.hypernetworks:
        scaled = parse_scaled(text)
        found.append((finder.find("hypernetwork", scaled.ref), 1.0 if scaled.unet is None else scaled.unet))
    found += [(finder.named("hypernetwork", tag.name), tag.te_scale) for tag in words.hypernetworks]
    return [(each, HypernetworkUse(each.sha256, strength)) for each, strength in found]
