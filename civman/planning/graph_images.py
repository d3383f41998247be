"""The images that a ComfyUI graph loads: which node loads which file, and the files that were given for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from civman.pictures.comfyui_graph import Link, Node
from civman.planning.graph_values import Reader, Stopped
from civman.planning.redraw_features import Drawable
from civman.planning.redraw_tiles import SourceImage

_LOADERS: Final = ("LoadImage", "LoadImageMask")
_ALPHA: Final = 1
"""The output of LoadImage that is the mask from the image's transparency."""


@dataclass(frozen=True, slots=True)
class StartMask:
    """The mask of an input image: its file, the channel, and by how much VAEEncodeForInpaint grows it, else None."""

    source: SourceImage
    channel: str
    grow: int | None = None


@dataclass(frozen=True, slots=True)
class StartPixels:
    """What the first pass starts from: a file, the filter that resizes it ("crop": none), and perhaps a mask."""

    source: SourceImage
    resize: str
    mask: StartMask | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """The image files that were given for a graph."""

    images: Sequence[SourceImage] = ()

    def of(self, reader: Reader, node: Node) -> SourceImage:
        """The file for a node that loads an image. Raises: Stopped: none was given, and the error asks for it.

        A file may be given for the node by its id or by the name of the image; a file of the same name fits, too, and
        so does any file if the graph loads a single image.
        """
        name = reader.text(node, "image").replace("\\", "/").partition(" [")[0]
        plain = PurePosixPath(name).name
        found = [each for each in self.images if each.node and each.node in (node.id, plain, name)]
        found = found or [each for each in self.images if not each.node and each.path.name == plain]
        loaded = {
            str(each.inputs.get("image")) for each in reader.graph.values() if each.kind in _LOADERS
        }  # fmt: skip
        if not found and len(loaded) == 1:
            found = [each for each in self.images if not each.node]
        if found:
            return found[0]
        raise Stopped(
            f"{node} loads an image that the graph does not contain, `{plain[:80]}`: "
            + ("`civman replay GRAPH --picture FILE`" if len(loaded) == 1 else
               f"`civman replay GRAPH --picture {node.id}={plain[:80]}`") + " passes it", Drawable.NEEDS_INPUT,
        )  # fmt: skip

    def mask(self, reader: Reader, link: object, grow: int | None = None) -> StartMask:
        """The mask that a link stands for: an image's transparency, or a channel. Raises: Stopped."""
        node = reader.node(link, "the mask")
        if node.kind == "LoadImage" and isinstance(link, Link) and link.output == _ALPHA:
            return StartMask(self.of(reader, node), "alpha", grow)
        if node.kind != "LoadImageMask":
            raise reader.unknown(node, "the mask")
        channel = reader.text(node, "channel")
        if channel not in ("alpha", "red", "green", "blue"):
            raise Stopped(f"{node} takes the channel `{channel[:40]}`, which civman does not know")
        return StartMask(self.of(reader, node), channel, grow)
