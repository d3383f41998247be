"""Tables that translate tensor names of a checkpoint's original layout to the parameter names of diffusers' classes.

A table is a string with one module or tensor per line: `original = target`. `#` is a block's index. An original module
that diffusers splits has several targets, listed in the order of their rows in the original tensor. `~` after the
equals sign swaps the two halves of the rows (shift and scale). Names that are not in the table are the same in both
layouts. Does not import torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from civman.diffusion.component_layouts import Source
from civman.errors import CannotRender, Cause, InvalidModelFile

Shape = tuple[int, ...]
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: the original name, and its targets, which are names in diffusers.

    Several targets are in the order of their rows in the original tensor. `swaps`: whether the two halves of the rows
    are swapped.
    """

    original: str
    targets: tuple[str, ...]
    swaps: bool = False


class KeyTable:
    """The table that translates the names of one component of a family."""

    def __init__(self, text: str = "") -> None:
        self.rows = tuple(_row(line) for line in text.strip().splitlines() if line.strip())
        self._by_target = {target: row for row in self.rows for target in row.targets}

    def sources(self, wanted: Mapping[str, Shape], prefix: str = "") -> dict[str, Source]:
        """Map each parameter to its tensor in a file.

        `wanted` maps the parameters to their shapes; `prefix` precedes the original names in the file.
        """
        return {parameter: self._source(parameter, wanted, prefix) for parameter in wanted}

    def _source(self, parameter: str, wanted: Mapping[str, Shape], prefix: str) -> Source:
        found = self.original_of(parameter)
        if found is None:
            return Source(prefix + parameter)
        row, name, siblings = found
        if len(siblings) == 1:
            return Source(prefix + name, swaps_halves=row.swaps)
        start = 0
        for sibling in siblings:
            if sibling == parameter:
                return Source(prefix + name, rows=(start, wanted[parameter][0]), swaps_halves=row.swaps)
            start += wanted[sibling][0]
        raise AssertionError(parameter)

    def original_of(self, parameter: str) -> tuple[Row, str, tuple[str, ...]] | None:
        """Return a parameter's table row, its tensor's original name, and all parameters stored in that tensor."""
        block = _NUMBER.search(parameter)
        forms = [(parameter, "")]
        if block is not None:
            forms.append((f"{parameter[: block.start()]}#{parameter[block.end() :]}", block[0]))
        for form, number in forms:
            module, _, leaf = form.rpartition(".")
            for target, tail in ((form, ""), (module, f".{leaf}")):
                if (row := self._by_target.get(target)) is not None:
                    names = tuple(each.replace("#", number) + tail for each in row.targets)
                    return row, row.original.replace("#", number) + tail, names
        return None


def _row(line: str) -> Row:
    original, _, right = line.partition(" = ")
    words = right.split()
    swaps = words[0] == "~"
    return Row(original.strip(), tuple(words[swaps:]), swaps)


def require_sources(
    title: str, wanted: Mapping[str, Shape], sources: Mapping[str, Source], shapes: Mapping[str, Shape], file: str
) -> None:
    """Check that `file` has every tensor that a component needs, with as many elements as its parameters.

    Args:
        title: the component, for the message.
        wanted: the shapes that its parameters must have.
        sources: the tensor in the file for each parameter.
        shapes: the shapes of the file's tensors.
        file: the file's name, for the message.

    Raises: CannotRender (`missing-tensor`): a tensor is missing. InvalidModelFile: a tensor has the wrong size.
    """
    missing = sorted({source.name for source in sources.values()} - shapes.keys())
    if missing:
        raise CannotRender(
            f"the {title} in `{file}` lacks {len(missing)} tensors, such as `{missing[0]}`",
            hint="the file is incomplete or of an unknown kind; another file of this version may be complete",
            code=Cause.MISSING_TENSOR, part=title, missing=missing[:_SHOWN],
        )  # fmt: skip
    sizes: dict[str, int] = {}
    for parameter, source in sources.items():
        needed = prod(wanted[parameter])
        sizes[source.name] = sizes.get(source.name, 0) + needed if source.rows is not None else needed
    for name, needed in sizes.items():
        if prod(shapes[name]) != needed:
            raise InvalidModelFile(
                f"`{name}` in `{file}` has shape {list(shapes[name])}, but {needed} elements are required", tensor=name
            )
