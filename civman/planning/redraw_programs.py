"""Turn the JSON that programs other than A1111 write into images into recipes, or say why that is impossible."""

from collections.abc import Iterator, Mapping

from civman.pictures.comfyui_graph import graph_of
from civman.planning.redraw_features import Drawable
from civman.planning.redraw_graph import redraw_graph
from civman.planning.redraw_result import Redraw

_NAMES = ("prompt", "workflow")


def texts_in(entries: Mapping[str, str]) -> Iterator[str]:
    """The texts of an image that may be such JSON, in the order in which they are tried."""
    for name in _NAMES:
        if entries.get(name, "").lstrip().startswith("{"):
            yield entries[name]
    for name in ("Model", "Make", "ImageDescription"):
        text = entries.get(name, "")
        if text.startswith(("prompt:", "workflow:")):
            yield text.partition(":")[2]


def is_known(text: str) -> bool:
    """Whether a text is JSON of a program that civman knows."""
    return text.lstrip().startswith("{") and graph_of(text) is not None


def redraw_program(text: str, name: object = None) -> Redraw:
    """Plan the image of such a text; the model files that it names are assumed to be present."""
    graph = graph_of(text)
    if graph is None:
        return Redraw(name, Drawable.NO, ("the image's metadata are of no program that civman knows",))
    return redraw_graph(graph, name)
