"""How an identification rule is written, and how a file looks to it.

A rule looks at *patterns*: tensor names (or, for adapters, module names written with underscores) without their
prefix, numbers between dots (or, there, underscores) replaced by `#`, one per line. `needs` and `lacks` are regular
expressions on those lines; `axis`, `ratio`, `dims`, `top` and `depth` look at shapes and at the highest number. The
rules themselves stand in `civman.domain.rule_tables`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from civman.domain.architecture import Architecture, Kind

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """A file's names as the rules see them."""

    text: str
    """The patterns, one per line."""
    shapes: Mapping[str, frozenset[Shape]] = field(repr=False)
    """Pattern → the shapes that occur."""
    tops: Mapping[str, int] = field(repr=False)
    """Pattern → the highest number at its first `#`."""
    depth: int = -1
    """Highest number of a transformer block inside a UNet's attention; -1 where there is none."""
    _found: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def at(cls, items: Iterable[tuple[str, Shape]]) -> "Look":
        """The look of these names."""
        shapes: dict[str, set[Shape]] = {}
        tops: dict[str, int] = {}
        depth = -1
        for name, shape in items:
            mark = "." if "." in name else "_"
            pattern, count = _NUMBERS[mark].subn("#", name)
            number = int(_NUMBERS[mark].search(name)[0][:9]) if count else -1  # type: ignore[index]  # it was found
            if len(shapes) >= _MAX_PATTERNS and pattern not in shapes:
                continue
            shapes.setdefault(pattern, set()).add(shape)
            if number > tops.get(pattern, -1):
                tops[pattern] = number
            if (at := name.find("transformer_blocks")) > 0:
                inner = name[at + _AFTER : at + _AFTER + 6].split(mark, 1)[0]
                depth = max(depth, int(inner)) if inner.isdecimal() else depth
        frozen = {pattern: frozenset(found) for pattern, found in shapes.items()}
        return cls(text="\n".join(shapes), shapes=frozen, tops=tops, depth=depth)

    @classmethod
    def names(cls, names: Iterable[str]) -> "Look":
        """A look at the names as they are, without shapes: cheap, for rules that ask for no more."""
        return cls(text="\n".join(names), shapes={}, tops={})

    def has(self, expression: str) -> bool:
        """Whether a pattern matches."""
        return _compiled(expression).search(self.text) is not None

    def found(self, expression: str) -> list[str]:
        """The patterns that match. Several rules ask for the same ones."""
        if expression not in self._found:
            self._found[expression] = list(dict.fromkeys(self._lines(_compiled(expression))))
        return self._found[expression]

    def _lines(self, expression: re.Pattern[str]) -> Iterable[str]:
        """The lines that match, found in one pass over the text: a search for each of them takes ten times as long."""
        for match in expression.finditer(self.text):
            if "\n" in match[0]:  # it ran over an end of line, which no single pattern does
                yield from (pattern for pattern in self.shapes if expression.search(pattern))
                return
            end = self.text.find("\n", match.end())
            yield self.text[self.text.rfind("\n", 0, match.start()) + 1 : end if end >= 0 else len(self.text)]


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.MULTILINE)


_NUMBERS = {mark: re.compile(rf"(?<![^{mark}])[0-9]+(?![^{mark}])") for mark in "._"}
"""Numbers that stand alone between two marks."""
_MAX_PATTERNS = 5_000
"""Real files have a few hundred; a hostile one would make every rule search megabytes."""
_AFTER = len("transformer_blocks.")


@dataclass(frozen=True, slots=True)
class Rule:
    """What to look for and what it says. `also`: families whose tensors may look the same."""

    id: str
    says: Architecture
    why: str
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    axis: tuple[str, int, tuple[int, ...]] | None = None
    """(pattern, axis, sizes): some matching tensor has one of these sizes there."""
    ratio: tuple[str, float, float] | None = None
    """(pattern, from, below): size out divided by size in of some matching tensor."""
    dims: tuple[str, int] | None = None
    """(pattern, how many axes)."""
    top: tuple[str, int, int] | None = None
    """(pattern, least, most): the highest first number of all matching patterns."""
    depth: tuple[int, int] | None = None
    also: tuple[Architecture, ...] = ()
    variant: str = ""
    kind: Kind | None = None
    flag: str = ""

    def holds(self, look: Look) -> bool:
        """Whether everything that the rule asks for is so."""
        if not all(look.has(name) for name in self.needs) or any(look.has(name) for name in self.lacks):
            return False
        return self._shape_holds(look) and self._number_holds(look)

    def _shape_holds(self, look: Look) -> bool:
        if self.axis:
            name, axis, sizes = self.axis
            if not any(len(shape) > axis and shape[axis] in sizes for shape in _shapes(look, name)):
                return False
        if self.ratio:
            name, least, below = self.ratio
            if not any(len(s) > 1 and s[1] and least <= s[0] / s[1] < below for s in _shapes(look, name)):
                return False
        return not self.dims or any(len(shape) == self.dims[1] for shape in _shapes(look, self.dims[0]))

    def _number_holds(self, look: Look) -> bool:
        if self.top:
            name, least, most = self.top
            tops = [look.tops.get(pattern, -1) for pattern in look.found(name)]
            if not tops or not least <= max(tops) <= most:
                return False
        return not self.depth or self.depth[0] <= look.depth <= self.depth[1]


def _shapes(look: Look, name: str) -> Iterable[Shape]:
    return (shape for pattern in look.found(name) for shape in look.shapes[pattern])


def first(rules: Iterable[Rule], look: Look) -> Rule | None:
    """The first rule that holds."""
    return next((rule for rule in rules if rule.holds(look)), None)
