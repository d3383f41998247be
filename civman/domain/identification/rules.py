"""The format of identification rules, and the view of a file that they are matched against.

Rules are matched against *patterns*, one per line: tensor names without their prefix, in which every number between
dots is replaced with `#`. For adapters, they are module names with underscores, and numbers between underscores are
replaced. `needs` and `lacks` are regular expressions that are searched for in these lines: `needs` must occur, `lacks`
must not. `axis`, `where`, `ratio` and `dims` are conditions on shapes, `top` and `depth` on the highest number in a
name. The rules themselves are listed in `civman.domain.identification.rule_tables`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice

from civman.domain.architecture import Architecture, Kind

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """A file's tensor names and shapes, in the form that rules are matched against."""

    text: str
    """The patterns of the file's tensor names, one per line."""
    shapes: Mapping[str, frozenset[Shape]] = field(repr=False)
    """Maps each pattern to the shapes of its tensors."""
    tops: Mapping[str, int] = field(repr=False)
    """Maps each pattern to the highest number that its first `#` stands for."""
    depth: int = -1
    """The highest index of a transformer block inside a UNet's attention; -1 if there is none."""
    _found: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def at(cls, items: Iterable[tuple[str, Shape]]) -> "Look":
        """Derive the patterns from tensor names and shapes."""
        by_mark: dict[str, list[tuple[str, Shape]]] = {".": [], "_": []}
        for item in items:
            by_mark["." if "." in item[0] else "_"].append(item)
        shapes: dict[str, frozenset[Shape]] = {}
        tops: dict[str, int] = {}
        depth = -1
        for mark, named in by_mark.items():
            alike: dict[str, list[tuple[str, Shape]]] = {}
            for item, pattern in zip(named, _patterns([name for name, _ in named], mark), strict=True):
                alike.setdefault(pattern, []).append(item)
            for pattern, members in islice(alike.items(), _MAX_PATTERNS - len(shapes)):
                shapes[pattern] = frozenset([shape for _, shape in members])
                if (at := pattern.find("#")) >= 0:
                    tops[pattern] = _highest({name[at : at + 9] for name, _ in members}, mark)
                if pattern.find(_INNER) > 0:
                    depth = max(depth, _highest({name.partition(_INNER)[2][1:8] for name, _ in members}, mark))
        return cls(text="\n".join(shapes), shapes=shapes, tops=tops, depth=depth)

    @classmethod
    def names(cls, names: Collection[str]) -> "Look":
        """Derive the patterns from names alone, which is faster and enough for rules without conditions on shapes."""
        return cls(text="\n".join(dict.fromkeys(_patterns(names, "."))), shapes={}, tops={})

    def has(self, expression: str) -> bool:
        """Whether the regular expression matches any of the file's tensor-name patterns."""
        return _compiled(expression).search(self.text) is not None

    def found(self, expression: str) -> list[str]:
        """List the file's tensor-name patterns that the regular expression matches.

        The result is cached, because several rules use the same expression.
        """
        if expression not in self._found:
            self._found[expression] = list(dict.fromkeys(self._lines(_compiled(expression))))
        return self._found[expression]

    def _lines(self, expression: re.Pattern[str]) -> Iterable[str]:
        """Find the matching lines in one pass over the text, because searching line by line takes ten times as long."""
        for match in expression.finditer(self.text):
            if "\n" in match[0]:  # the match spans several lines, so test each pattern on its own
                yield from (pattern for pattern in self.shapes if expression.search(pattern))
                return
            end = self.text.find("\n", match.end())
            yield self.text[self.text.rfind("\n", 0, match.start()) + 1 : end if end >= 0 else len(self.text)]


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.MULTILINE)


def _patterns(names: Collection[str], mark: str) -> list[str]:
    """Replace each number between two occurrences of `mark` with `#`, in all names at once."""
    ends = f"{mark}\n{mark}"
    parts = ends.join([name.replace("\n", " ") for name in names]).split(mark)
    numbers = {part: "#" for part in set(parts) if part.isascii() and part.isdecimal()}
    return mark.join(map(numbers.get, parts, parts)).split(ends) if names else []


def _highest(texts: set[str], mark: str) -> int:
    """Return the highest number before `mark` at the start of these strings; -1 if none starts with a number."""
    numbers = {text.split(mark, 1)[0] for text in texts}
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)


_MAX_PATTERNS = 5_000
"""The maximum number of patterns. Real files have a few hundred; without a limit, every rule would search megabytes of
a malicious file.
"""
_INNER = "transformer_blocks"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what a file must and must not contain, and what a matching file is.

    `also` lists other families whose files look the same.
    """

    id: str
    says: Architecture
    why: str
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    axis: tuple[str, int, tuple[int, ...]] | None = None
    """(pattern, axis, sizes): at least one matching tensor must have one of these sizes on this axis."""
    where: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    """(pattern, axis, sizes): all matching tensors with at least two axes must have one of these sizes on this axis."""
    ratio: tuple[str, float, float] | None = None
    """(pattern, least, below): the ratio out/in of at least one matching tensor's shape must be in `[least, below)`."""
    dims: tuple[str, int] | None = None
    """(pattern, count): at least one matching tensor must have this number of axes."""
    top: tuple[str, int, int] | None = None
    """(pattern, least, most): the highest number at the first `#` of all matching patterns must be in this range."""
    depth: tuple[int, int] | None = None
    also: tuple[Architecture, ...] = ()
    variant: str = ""
    kind: Kind | None = None
    flag: str = ""

    def holds(self, look: Look) -> bool:
        """Whether the file meets all conditions of the rule."""
        if not all(look.has(name) for name in self.needs) or any(look.has(name) for name in self.lacks):
            return False
        return self._shape_holds(look) and self._number_holds(look)

    def _shape_holds(self, look: Look) -> bool:
        if self.axis:
            name, axis, sizes = self.axis
            if not any(len(shape) > axis and shape[axis] in sizes for shape in _shapes(look, name)):
                return False
        for name, axis, sizes in self.where:
            if any(len(shape) > max(axis, 1) and shape[axis] not in sizes for shape in _shapes(look, name)):
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
    """Return the first rule that matches; None if there is none."""
    return next((rule for rule in rules if rule.holds(look)), None)
