r"""Parse prompts in A1111's syntax: brackets, tags and `BREAK`.

`(x)` multiplies the weight by 1.1, `[x]` divides it by 1.1, `(x:1.3)` multiplies it by 1.3, and the factors of nested
brackets multiply. Round and square brackets may overlap; an unclosed bracket extends to the end of the prompt. `\`
makes the next character literal. `BREAK` ends a chunk. `<lora:name:scale>` (also `<lora:name:te:unet>`, or `lyco` for
`lora`) requests an adapter and is not part of the text. A scale may be keyframes such as `0@0,1@0.5`, and `hr=` sets
the scale for the second pass, as in the extension sd-webui-loractl. `<hypernet:name:strength>` requests a hypernetwork.

Other kinds of tags raise an error with their name and position; they are never ignored. Syntax that needs several texts
for one image (`AND`, `[from:to:when]`, `[a|b]`) is resolved by `editing` beforehand; this module would read it as plain
text. No third-party package.
"""

import math
import re
from dataclasses import dataclass, field

from civman.domain.adapters.block_weights import PRESETS, blocks_of
from civman.domain.adapters.scale_keyframes import is_changing, read_scale
from civman.errors import Cause, UsageError

_ROUND, _SQUARE = 1.1, 1 / 1.1
_TAG = re.compile(r"<(\w+):([^<>]*)>")
_ADAPTERS = ("lora", "lyco", "loractl")
_HYPERNETWORK = "hypernet"
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_WEIGHT = re.compile(r":\s*([+-]?[.\d]+)\s*\)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_SPECIAL = re.compile(r"[\\()\[\]]")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of text with a single weight. Each fragment is tokenized separately."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """An adapter requested by a tag in the prompt; the caller looks up the file by name."""

    name: str
    te_scale: float
    unet_scale: float
    blocks: str = ""
    """Block weights from the tag's third field or from `lbw=`; "" if there are none."""
    keyframes: str = ""
    hires_keyframes: str = ""
    """The keyframes of the UNet's scale as typed: `keyframes` for the first pass, `hires_keyframes` for the second.

    An empty string means a constant scale; for the second pass, it means the scale of the first pass.
    """
    kind: str = "lora"
    """"lora" or "hypernet". For a hypernetwork, both scales are its strength."""


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A parsed prompt: sections separated by `BREAK`, each a tuple of fragments, and the requested adapters.

    `text` is the prompt without the tags.
    """

    text: str
    sections: tuple[tuple[Fragment, ...], ...]
    loras: tuple[LoraRequest, ...] = ()
    syntax: str = "a1111"
    """The program whose rules divide the prompt into chunks: "a1111" or "comfyui"."""

    @property
    def is_empty(self) -> bool:
        """Whether the prompt contains no text to encode."""
        return not self.text.strip()


def parse(prompt: str) -> ParsedPrompt:
    """Parse a prompt into weighted fragments and requested adapters.

    >>> parse("a (cat:1.3), [dog] <lora:ink:0.8>").sections
    ((Fragment(text='a ', weight=1.0), Fragment(text='cat', weight=1.3), Fragment(text=', ', weight=1.0), \
Fragment(text='dog', weight=0.9090909090909091), Fragment(text=' ', weight=1.0)),)

    Raises: UsageError (`code` `prompt-syntax`): it uses what civman does not support, or a number cannot be read;
    `position` counts characters from 1.
    """
    loras = tuple(_lora(prompt, tag) for tag in _TAG.finditer(prompt))
    inside = {place for tag in _TAG.finditer(prompt) for place in range(*tag.span())}
    places = [place for place in range(len(prompt)) if place not in inside]
    text = "".join(prompt[place] for place in places)
    scanner = _Scanner(prompt, text, places)
    return ParsedPrompt(text, scanner.sections(), loras)


def escape(text: str) -> str:
    r"""Escape brackets with backslashes, so that `parse` returns the text with weight 1.

    The keywords `AND` and `BREAK` are not escaped, nor are tags (see `tags_as_words`). A colon and a number at the end
    are still read as a weight (see `editing.parts`).

    >>> escape("a (b)")
    'a \\(b\\)'
    """
    return _SPECIAL.sub(lambda letter: f"\\{letter[0]}", text)


def tags_as_words(prompt: str) -> str:
    r"""Escape the tags in a prompt, so that `parse` reads them as plain text with the weight of their surroundings.

    A backslash is inserted after `<`; A1111 drops a backslash there, too. All other syntax in the prompt keeps its
    meaning.

    >>> tags_as_words("a <lora:ink:0.8>")
    'a <\\lora:ink:0.8>'
    """
    return _TAG.sub(lambda tag: f"<\\{tag[0][1:]}", prompt)


_WEIGHT_HINT = r"write a number such as `(word:1.2)`, or `\(` and `\)` to make the brackets plain text"
_TAG_HINT = "write `<lora:NAME:SCALE>`, such as `<lora:ink:0.8>`"


def _refusal(prompt: str, place: int, reason: str, hint: str) -> UsageError:
    near = prompt[max(0, place - 10) : place + 30]
    return UsageError(
        f"prompt, character {place + 1}: {reason}: `{near}`",
        code=Cause.PROMPT_SYNTAX,
        hint=hint,
        position=place + 1,
        near=near,
    )


def _lora(prompt: str, tag: re.Match[str]) -> LoraRequest:
    """Parse a tag such as `<lora:name:0.8>` into the adapter that it requests, with its scales.

    A single scale applies to both the UNet and the text encoder; `te=` and `unet=` set them separately. The text
    encoder's scale cannot change during sampling: if it is given as keyframes, the scale of the first step is used in
    both passes.

    Source: A1111, `<lora:name:te:unet>`; cheald/sd-webui-loractl for `hr=`, `hrunet=` and `hrte=` (which has no
    effect).
    """
    kind, place = tag[1].lower(), tag.start()
    if kind not in (*_ADAPTERS, _HYPERNETWORK):
        raise _refusal(prompt, place, f"tags of the kind `{kind}` are not supported", f"remove `{tag[0]}`")
    name, *arguments = (part.strip() for part in tag[2].split(":"))
    if not name:
        raise _refusal(prompt, place, "the tag contains no file name", _TAG_HINT)
    positional = [argument for argument in arguments if "=" not in argument]
    named = dict(_setting(argument) for argument in arguments if "=" in argument)
    if kind == _HYPERNETWORK and (len(positional) > 1 or named):
        raise _refusal(prompt, place, "a hypernetwork takes only one strength", f"write `<hypernet:{name}:STRENGTH>`")
    blocks = named.pop("lbw", "")
    if len(positional) == 2 and not _is_scale(positional[1]) and _looks_like_blocks(positional[1]):
        blocks = positional.pop()
    if len(positional) > 2 or not set(named) <= {"te", "unet", "hr", "hrte", "hrunet"}:
        reason = "only a name and the scales for text encoder and UNet are supported in a tag"
        short = ":".join([tag[1], name, *positional[:2]])
        raise _refusal(prompt, place, reason, f"write `<{short}>`, without the rest")

    def number(written: str) -> float:
        try:
            value = float(written)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _refusal(prompt, place, f"`{written}` is not a number", _TAG_HINT)
        return value

    te_text = named.get("te", positional[0] if positional else "1")
    unet_text = named.get("unet", positional[1] if len(positional) > 1 else te_text)
    hires = named.get("hrunet", named.get("hr", ""))
    try:
        te, unet, _ = (
            read_scale(text)[0] if is_changing(text) else number(text) for text in (te_text, unet_text, hires or "1")
        )
        blocks = blocks_of(blocks) if blocks else ""
    except UsageError as error:
        if error.code is Cause.PROMPT_SYNTAX:
            raise
        raise _refusal(prompt, place, error.message, error.hint or _TAG_HINT) from error
    keyframes = unet_text if is_changing(unet_text) else ""
    kind = kind if kind == _HYPERNETWORK else "lora"
    return LoraRequest(name, te, unet, blocks, keyframes, hires, kind)


def _is_scale(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None or is_changing(text)


def _looks_like_blocks(text: str) -> bool:
    return "," in text or text.upper() in PRESETS


def _setting(argument: str) -> tuple[str, str]:
    name, _, value = argument.partition("=")
    return name.strip().lower(), value.strip()


@dataclass(slots=True)
class _Span:
    text: str
    weight: float = 1.0
    starts_section: bool = False


@dataclass(slots=True)
class _Scanner:
    """Parses the prompt in one pass from left to right. A closing bracket applies its weight to the text inside."""

    prompt: str
    text: str
    places: list[int]
    spans: list[_Span] = field(default_factory=list)
    literal: list[str] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)
    """The open square brackets, each as the index of the first span inside it; `rounds` contains the open round
    brackets.
    """

    def sections(self) -> tuple[tuple[Fragment, ...], ...]:
        at = 0
        while at < len(self.text):
            at = self._step(at)
        self._flush()
        for left, factor in ((self.rounds, _ROUND), (self.squares, _SQUARE)):
            while left:
                self._weigh(left.pop(), factor)
        return self._joined()

    def _step(self, at: int) -> int:
        """Parse the syntax at index `at` and return the index after it."""
        letter = self.text[at]
        if letter == "\\":
            self.literal.append(self.text[at + 1 : at + 2])
            return at + 2
        if letter in "([":
            self._flush()
            (self.rounds if letter == "(" else self.squares).append(len(self.spans))
        elif letter == ":" and self.rounds and (weight := _WEIGHT.match(self.text, at)):
            self._close(self.rounds, self._weight(weight))
            return weight.end()
        elif letter == ")" and self.rounds:
            self._close(self.rounds, _ROUND)
        elif letter == "]" and self.squares:
            self._close(self.squares, _SQUARE)
        else:
            self.literal.append(letter)
        return at + 1

    def _weight(self, found: re.Match[str]) -> float:
        if not _NUMBER.fullmatch(found[1]):
            raise _refusal(self.prompt, self.places[found.start()], f"`{found[1]}` is not a number", _WEIGHT_HINT)
        return float(found[1])

    def _close(self, stack: list[int], factor: float) -> None:
        self._flush()
        self._weigh(stack.pop(), factor)

    def _weigh(self, first: int, factor: float) -> None:
        for span in self.spans[first:]:
            span.weight *= factor

    def _flush(self) -> None:
        text = "".join(self.literal)
        self.literal.clear()
        for number, part in enumerate(_BREAK.split(text)):
            if part or number:
                self.spans.append(_Span(part, starts_section=number > 0))

    def _joined(self) -> tuple[tuple[Fragment, ...], ...]:
        """Build the sections, joining adjacent fragments with equal weights."""
        sections: list[list[Fragment]] = [[]]
        for span in self.spans:
            if span.starts_section:
                sections.append([])
            section = sections[-1]
            if section and section[-1].weight == span.weight:
                section[-1] = Fragment(section[-1].text + span.text, span.weight)
            elif span.text:
                section.append(Fragment(span.text, span.weight))
        return tuple(tuple(section) for section in sections)
