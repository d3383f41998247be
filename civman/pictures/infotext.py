"""Parse generation data in A1111's format as written by many programs. Malformed text never causes an error.

Forge, SD.Next, CivitAI's generator, Fooocus and many others write this format with small differences; `other_programs`
identifies the program.

Sources: AUTOMATIC1111's reader (1.10), CivitAI's (run, August 2026).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_NEGATIVE: Final = "Negative prompt:"
_STEPS: Final = re.compile(r"\s*Steps: ?[0-9]")
_PAIR: Final = re.compile(r"(?:^|,)\s*\w[\w /-]{0,60}:")
_MOST_KEY: Final = 200
_MOST_FAILED: Final = 100
"""The maximum number of failed attempts to parse a value as JSON.

A failed attempt is slow, because Python counts lines for the error message.
"""
_NOT_IN_KEYS: Final = frozenset('"{}[]')
_TAG: Final = re.compile(r"<(lora|lyco|hypernet):([^:<>]{1,300}+):?([^<>]{0,800}+)>")
_DIGITS: Final = re.compile(r"-?[0-9]{1,20}(\.0*)?")
_SIZE: Final = re.compile(r"\s*([0-9]{1,6})\s*x\s*([0-9]{1,6})\s*")
_SCALE: Final = re.compile(r"(?:te=|unet=)?([+-]?(?:[0-9]{1,20}\.?[0-9]{0,350}|\.[0-9]{1,350}))")


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag such as `<lora:name:scale>` in a prompt; `kind` is lora, lyco or hypernet."""

    kind: str
    name: str
    scale: float = 1.0
    text_scale: float | None = None


@dataclass(frozen=True, slots=True)
class CivitaiEntry:
    """An entry of `Civitai resources`: a model version on CivitAI, and its weight (None if not given)."""

    version_id: int | None
    kind: str = ""
    weight: float | None = None
    air: str | None = None
    model_name: str = ""
    version_name: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed text in A1111's format. `details` maps settings to their text, in order; JSON values are not parsed."""

    prompt: str
    negative: str
    details: Mapping[str, str]

    def whole(self, key: str) -> int | None:
        """Return a setting as an integer; None if it is missing or not an integer."""
        value = self.details.get(key, "")
        return int(value.partition(".")[0]) if _DIGITS.fullmatch(value) else None

    def number(self, key: str) -> float | None:
        """Return a setting as a number; None if it is missing or not a number."""
        return number(self.details.get(key, ""))

    @property
    def size(self) -> tuple[int, int] | None:
        """The width and height of the first pass, in pixels."""
        match = _SIZE.fullmatch(self.details.get("Size", ""))
        return (int(match[1]), int(match[2])) if match else None

    @property
    def hashes(self) -> dict[str, str]:
        """The entries of `Hashes`, which map "model", "lora:<name>", "embed:<name>" … to a hash."""
        value = _json(self.details.get("Hashes", ""))
        return {key: item for key, item in value.items() if isinstance(item, str)} if isinstance(value, dict) else {}

    @property
    def lora_hashes(self) -> dict[str, str]:
        """Maps the names of LoRAs to their hashes, from `Lora hashes`."""
        return dict(pairs(self.details.get("Lora hashes", "")))

    @property
    def civitai(self) -> tuple[CivitaiEntry, ...]:
        """The entries of `Civitai resources`."""
        value = _json(self.details.get("Civitai resources", ""))
        return tuple(_entry(item) for item in value if isinstance(item, dict)) if isinstance(value, list) else ()

    @property
    def tags(self) -> tuple[Tag, ...]:
        """The tags in the prompt (`<lora:…>` and others), in order."""
        return tuple(_tags(self.prompt))


def read(text: str) -> Parsed:
    """Parse a text in A1111's format. If it contains no line of settings, the whole text is the prompt."""
    lines = text.replace("\r\n", "\n").split("\n")
    at = _details_at(lines)
    details = dict(settings(lines[at])) if at < len(lines) else {}
    words = "\n".join(lines[:at])
    match = re.search(rf"(?:^|\n)[^\S\n]*{_NEGATIVE}", words)
    if match is None:
        return Parsed(words.strip(), "", details)
    return Parsed(words[: match.start()].strip(), words[match.end() :].strip(), details)


def is_infotext(text: str) -> bool:
    """Whether the text contains a line of settings."""
    lines = text.split("\n")
    return _details_at(lines) < len(lines)


def _details_at(lines: list[str]) -> int:
    """Return the index of the line of settings, or the number of lines if there is none.

    It is the last line that starts with "Steps:", else the last line if that has at least 3 settings.
    """
    for at in range(len(lines) - 1, -1, -1):
        if _STEPS.match(lines[at]):
            return at
    filled = [at for at, line in enumerate(lines) if line.strip()]
    if filled and len(_PAIR.findall(lines[filled[-1]])) >= 3:
        return filled[-1]
    return len(lines)


def settings(line: str) -> Iterator[tuple[str, str]]:
    """Parse a line of settings into keys and values.

    This uses plain string searches, because regular expressions would take quadratic time on crafted input.
    """
    at, decoder, failed = 0, json.JSONDecoder(), 0
    while (colon := line.find(":", at)) >= 0:
        key = line[line.rfind(",", at, colon) + 1 or at : colon].strip()
        at = colon + 1
        if not key or len(key) > _MOST_KEY or not _NOT_IN_KEYS.isdisjoint(key):
            continue
        at += len(line[at : at + 10]) - len(line[at : at + 10].lstrip())
        if line[at : at + 1] in ('"', "{", "[") and failed < _MOST_FAILED:
            try:
                value, end = decoder.raw_decode(line, at)
                yield key, value if isinstance(value, str) else line[at:end]
                at = end
                continue
            except (ValueError, RecursionError):
                failed += 1
        end = line.find(",", at)
        end = len(line) if end < 0 else end
        yield key, line[at:end].strip()
        at = end


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """Parse `name: value, name: value`; malformed items are skipped."""
    for item in text.split(","):
        name, colon, value = item.rpartition(":")
        if colon and name.strip() and value.strip():
            yield name.strip(), value.strip()


def number(text: str) -> float | None:
    """Parse a number; None if the text is not a number."""
    match = _SCALE.fullmatch(text.strip())
    return float(match[1]) if match else None


def _tags(prompt: str) -> Iterator[Tag]:
    for match in _TAG.finditer(prompt):
        scales = [number(word) for word in match[3].split(":") if word.strip()]
        first = scales[0] if scales else 1.0
        second = scales[1] if len(scales) > 1 else None
        if first is None:
            continue
        yield Tag(match[1], match[2].strip(), first if second is None else second, None if second is None else first)


def _entry(value: dict[str, Any]) -> CivitaiEntry:
    air = value.get("air") if isinstance(value.get("air"), str) else None
    version = value.get("modelVersionId")
    if air and (match := re.search(r"@([0-9]{1,18})", air)):
        version = int(match[1])
    weight = value.get("weight")
    kind = value.get("type")
    if air and len(air.split(":")) >= 4:
        kind = air.split(":")[3]
    return CivitaiEntry(
        version if isinstance(version, int) and not isinstance(version, bool) else None,
        kind if isinstance(kind, str) else "",
        float(weight) if isinstance(weight, int | float) and not isinstance(weight, bool) else None,
        air, str(value.get("modelName") or ""), str(value.get("modelVersionName") or value.get("versionName") or ""),
    )  # fmt: skip


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
