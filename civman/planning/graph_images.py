"""Finds the images that the nodes of a ComfyUI graph load, among the files that the user gave."""

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
"""The index of LoadImage's output that is a mask made from the image's transparency."""


@dataclass(frozen=True, slots=True)
class StartMask:
    """The mask of an input image: its file, the channel to read, and by how many pixels it is grown.

    `grow` is the value of VAEEncodeForInpaint's `grow_mask_by`; None if the mask is not grown.
    """

    source: SourceImage
    channel: str
    grow: int | None = None


@dataclass(frozen=True, slots=True)
class StartPixels:
    """The input image of the first pass: its file, the filter with which it is resized, and its mask, if any.

    `resize` is "crop" if the image is not resized.
    """

    source: SourceImage
    resize: str
    mask: StartMask | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """The image files that the user gave for the nodes of a graph."""

    images: Sequence[SourceImage] = ()

    def of(self, reader: Reader, node: Node) -> SourceImage:
        """Return the file for a node that loads an image. Raises: Stopped: no file was given; the message explains how.

        The user may give a file for a node by the node's id or by the name of its image. Otherwise, a file with the
        same name is used or, if the graph loads only one image, any file.
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
        file = "FILE" if len(loaded) == 1 else f"{node.id}={plain[:80]}"
        raise Stopped(
            f"{node} loads the image `{plain[:80]}`, which the graph does not contain: pass it with "
            f"`civman replay GRAPH --picture {file}`",
            Drawable.NEEDS_INPUT,
        )

    def mask(self, reader: Reader, link: object, grow: int | None = None) -> StartMask:
        """Return the mask to which a link leads: an image's transparency or one of its channels. Raises: Stopped."""
        node = reader.node(link, "the mask")
        if node.kind == "LoadImage" and isinstance(link, Link) and link.output == _ALPHA:
            return StartMask(self.of(reader, node), "alpha", grow)
        if node.kind != "LoadImageMask":
            raise reader.unknown(node, "the mask")
        channel = reader.text(node, "channel")
        if channel not in ("alpha", "red", "green", "blue"):
            raise Stopped(f"{node} reads the channel `{channel[:40]}`, which civman does not support")
        return StartMask(self.of(reader, node), channel, grow)
