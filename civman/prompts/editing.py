r"""A1111's prompt syntax for text that changes during sampling (editing, alternation) or is combined with `AND`.

`[from:to:when]`, `[to:when]` and `[from::when]` change the text at one step, and `[a|b|c]` changes it at every step. `a
AND b :0.5` combines two texts with their weights; a number after a colon at the end of a prompt is its weight even
without `AND`. `emphasis` then parses the resulting texts. Standard library only.

`when` is a fraction of the steps or the number of a step, depending on A1111's version (see `Rule`). A bracket that is
not closed, or does not match any of these forms, is plain text; a `|` outside an alternation makes the whole text
plain.

Source: A1111's rules of 1.2, 1.5 and 1.10, reimplemented as a scanner.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from civman.errors import Cause, UsageError

_AND: Final = re.compile(r"\bAND\b")
_PART_WEIGHT: Final = re.compile(r"\s*:\s*([-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+))\s*$")
_WHEN: Final = re.compile(r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*")
_PLAIN: Final = re.compile(r"[^\\()\[\]:|]+")
_MOST_DEEP: Final = 100
"""The maximum nesting depth of brackets for prompt editing."""


class Rule(StrEnum):
    """How the number `when` in an edit is interpreted. Each rule is named after the A1111 version that introduced it.

    `V1_0` counts steps. `V1_3` counts model evaluations, of which some samplers need two per step. In both, a number
    below 1 is a fraction of the pass, and the second pass uses the timing of the first. `V1_6` counts evaluations; a
    number with a decimal point is a fraction of the pass, and the numbers continue from the first pass into the second
    (1.5 is the middle of the second pass).
    """

    V1_0 = "a1111-1.0"
    V1_3 = "a1111-1.3"
    V1_6 = "a1111-1.6"


@dataclass(frozen=True, slots=True)
class Timing:
    """How the numbers in a prompt's edits are converted to evaluations of one pass.

    `length`: the steps or evaluations of the pass, or those of the first pass if the second pass uses the first one's
    timing. `before`: the evaluations of the first pass, if this is a second pass with its own timing.
    """

    rule: Rule
    length: int
    before: int | None = None

    def end(self, when: str) -> int:
        """Return the number of the last evaluation before an edit takes effect; `when` is the number in the edit."""
        value = float(when)
        if self.rule is not Rule.V1_6:
            value = value * self.length if value < 1 else value
        elif "." in when:
            value = (value - (self.before is not None)) * self.length
        else:
            value -= self.before or 0
        return int(max(-1.0, min(value, float(self.length))))


@dataclass(frozen=True, slots=True)
class Stage:
    """The text of a changing prompt from the evaluation after the previous stage's `last` to this stage's `last`."""

    last: int
    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """One of the texts that `AND` combines, and its weight."""

    text: str
    weight: float = 1.0


def timings(
    rule: Rule, *, steps: int, calls_per_step: int, hires_steps: int | None, hires_calls_per_step: int | None = None
) -> tuple[Timing, Timing | None]:
    """Compute the timing of the first pass, and of the second pass if there is one.

    `calls_per_step`: how many evaluations (1 or 2) A1111 counts for each step of the sampler. `hires_calls_per_step`:
    the same for the second pass's sampler; None means that it is the same sampler.
    """
    length = steps if rule is Rule.V1_0 else steps * calls_per_step
    first = Timing(rule, length)
    if hires_steps is None:
        return first, None
    calls = calls_per_step if hires_calls_per_step is None else hires_calls_per_step
    return first, Timing(rule, hires_steps * calls, length) if rule is Rule.V1_6 else first


def parts(prompt: str) -> tuple[Part, ...]:
    """Split a prompt at `AND` and read the weights.

    >>> parts("a cat AND a dog :0.5")
    (Part(text='a cat ', weight=1.0), Part(text=' a dog', weight=0.5))
    """
    found = []
    for text in _AND.split(prompt):
        weight = _PART_WEIGHT.search(text)
        found.append(Part(text[: weight.start()], float(weight[1])) if weight else Part(text))
    return tuple(found)


def stages(text: str, timing: Timing) -> tuple[Stage, ...]:
    """Compute the texts of one pass in order; neighbours with the same text are merged into one stage.

    An evaluation uses the first stage whose `last` is at least the evaluation's number, or else the first stage.

    >>> stages("a [red:blue:0.5] hat", Timing(Rule.V1_6, 20))
    (Stage(last=10, text='a red hat'), Stage(last=20, text='a blue hat'))

    Raises: UsageError (`prompt-syntax`): brackets are nested too deeply.
    """
    items = _Reader(text).items()
    ends = {timing.length}
    for each in _changing(items):
        if isinstance(each, _Alternation):
            ends |= set(range(1, timing.length + 1))
        elif (end := timing.end(each.when)) >= 1:
            ends.add(end)
    found: list[Stage] = []
    for end in sorted(ends):
        words = "".join(_words(items, end, timing))
        if found and found[-1].text == words:
            found.pop()
        found.append(Stage(end, words))
    return tuple(found)


def changes(text: str) -> bool:
    """Whether the text contains editing (`[a:b:0.5]`) or alternation (`[a|b]`)."""
    return any(not isinstance(item, str) for item in _Reader(text).items())


def is_composed(prompt: str) -> bool:
    """Whether the prompt uses `AND` or ends with a weight."""
    return parts(prompt) != (Part(prompt),)


def is_plain_because_of_bar(text: str) -> bool:
    r"""Whether brackets that look like editing are plain text, because of a stray `|` or a trailing `\\`."""
    reader = _Reader(text)
    return reader.items() == [text] and reader.spoiled and reader.changing > 0


@dataclass(frozen=True, slots=True)
class _Edit:
    before: "_Items"
    after: "_Items"
    when: str


@dataclass(frozen=True, slots=True)
class _Alternation:
    options: "tuple[_Items, ...]"


_Items = list[str | _Edit | _Alternation]


@dataclass(slots=True)
class _Frame:
    """An open bracket with its contents so far, split at `separators`."""

    bracket: str
    pieces: list[_Items] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)
    depth: int = 0


class _Reader:
    """Parses a text in one pass from left to right.

    If a bracket turns out to be plain text, all open brackets around it become plain text too, because inside an edit
    or an alternation every bracket must be valid.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._root: _Items = []
        self._open: list[_Frame] = []
        self.spoiled = False
        """Whether the whole text is plain, because of a `|` outside an alternation or a backslash at the end of the
        text or of a line.
        """
        self.changing = 0
        """The number of edits and alternations found, including those that turn out to be plain text."""

    def items(self) -> _Items:
        at = 0
        while at < len(self._text):
            at = self._step(at)
        self._flatten()
        return [self._text] if self.spoiled else self._root

    def _step(self, at: int) -> int:
        if plain := _PLAIN.match(self._text, at):
            self._add(plain[0])
            return plain.end()
        letter = self._text[at]
        if letter == "\\":
            after = self._text[at + 1 : at + 2]
            self.spoiled |= after in ("", "\n")
            self._add(letter + after)
            return at + 2
        if letter in "([":
            self._open.append(_Frame(letter))
        elif letter in ")]":
            self._close(letter)
        elif letter in ":|" and self._open:
            self._open[-1].separators.append(letter)
            self._open[-1].pieces.append([])
        else:
            self.spoiled |= letter == "|"
            self._add(letter)
        return at + 1

    def _add(self, item: "str | _Edit | _Alternation") -> None:
        items = self._open[-1].pieces[-1] if self._open else self._root
        if isinstance(item, str) and items and isinstance(items[-1], str):
            items[-1] += item
        else:
            items.append(item)

    def _close(self, letter: str) -> None:
        frame = self._open[-1] if self._open else None
        made = _construct(frame, letter) if frame and frame.bracket + letter in ("()", "[]") else None
        if frame is None or made is None:
            self._flatten()
            self._add(letter)
            return
        self._open.pop()
        if self._open:
            self._open[-1].depth = max(self._open[-1].depth, frame.depth + (not isinstance(made, list)))
        if not isinstance(made, list):
            self.changing += 1
        if frame.depth > _MOST_DEEP:
            raise UsageError(
                f"the prompt has more than {_MOST_DEEP} nested brackets for prompt editing", code=Cause.PROMPT_SYNTAX
            )
        for item in made if isinstance(made, list) else [made]:
            self._add(item)

    def _flatten(self) -> None:
        """Turn all open brackets and their separators into plain text."""
        frames, self._open = self._open, []
        for frame in frames:
            for item in _as_written(frame):
                self._add(item)
            self.spoiled |= "|" in frame.separators


def _construct(frame: _Frame, closing: str) -> "_Edit | _Alternation | _Items | None":
    """Interpret a closed bracket as an edit, an alternation or plain text; None if it is malformed."""
    bars, colons = frame.separators.count("|"), frame.separators.count(":")
    if frame.bracket == "(":
        return [*_as_written(frame), closing] if not bars and colons <= 1 else None
    if not bars and not colons:
        return [*_as_written(frame), closing]
    if not colons:
        return _Alternation(tuple(frame.pieces))
    when = "".join(item for item in frame.pieces[-1] if isinstance(item, str))
    found = _WHEN.fullmatch(when) if all(isinstance(item, str) for item in frame.pieces[-1]) else None
    if bars or colons > 2 or found is None:
        return None
    return _Edit(frame.pieces[0] if colons == 2 else [], frame.pieces[-2], found[1])


def _as_written(frame: _Frame) -> _Items:
    items: _Items = [frame.bracket, *frame.pieces[0]]
    for separator, piece in zip(frame.separators, frame.pieces[1:], strict=True):
        items += [separator, *piece]
    return items


def _changing(items: _Items) -> "Iterator[_Edit | _Alternation]":
    for item in items:
        if isinstance(item, str):
            continue
        yield item
        for inner in item.options if isinstance(item, _Alternation) else (item.before, item.after):
            yield from _changing(inner)


def _words(items: _Items, end: int, timing: Timing) -> Iterator[str]:
    """Yield the pieces of the text for the stage that ends with evaluation `end`."""
    for item in items:
        if isinstance(item, str):
            yield item
        elif isinstance(item, _Alternation):
            yield from _words(item.options[(end - 1) % len(item.options)], end, timing)
        else:
            yield from _words(item.before if end <= timing.end(item.when) else item.after, end, timing)
