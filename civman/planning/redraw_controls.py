"""Reads the units of A1111's ControlNet extension in an image's settings, so that the image can be rendered again.

The user passes the control pictures, which the settings do not contain.

The extension has written units in three forms: as separate entries (`ControlNet 0 Module`), and as one quoted entry for
each unit with the field names of 2023 (`preprocessor: …`) or the current ones (`Module: …`). CivitAI's parsers turn a
quoted entry into an object, or tear it into several entries, the first of which has a name that begins with a quotation
mark.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from civman.domain.recipes.control import MAPS, ControlRequest, control_type, map_named
from civman.domain.recipes.reference import ReferenceRequest
from civman.pictures.site_settings import Entries, NamedFile
from civman.planning.redraw_features import Drawable, Reason
from civman.planning.redraw_tiles import SourceImage

_QUOTED: Final = re.compile(r"ControlNet ([0-9]{1,2})$")
_FLAT: Final = re.compile(
    r"ControlNet(?:[- ]([0-9]{1,2}))? (Enabled|Mod.*|Preproc.*|W.*|Guid.*|Start.*|End.*|Res.*|C.*|P.*)$"
)
_TORN: Final = {
    '"preprocessor': re.compile(
        '("preprocessor|model|weight|resize mode|control mode|pixel perfect|starting/ending|preprocessor params)$'
    ),
    '"Module': re.compile(
        '("Module|Model|Weight|Resize Mode|Processor Res|Threshold [AB]|Guidance (Start|End)|Pixel Perfect|'
        "Control Mode|Union Control Type)$"
    ),
}
"""Maps the name of the first entry of a torn ControlNet unit to a pattern for the names of all its entries.

CivitAI's parsers tear some units into several entries. If several units of an image were torn, the entries of only one
are left. In the current form, the entry with the unit's model is named `Model`, so it replaces the checkpoint's name.
"""
_ANY: Final = re.compile("ControlNet")
_MODEL: Final = re.compile(r"(.*?)(?:\s*\[([0-9a-fA-F]{8,64})\])?", re.DOTALL)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_SIGNED: Final = re.compile(r"-?\d+(?:\.\d+)?")
_IP_ADAPTERS: Final = ("ip-adapter_clip", "ip-adapter-auto")
"""Prefixes of the module names for IP-Adapters. Modules for faces are left out, because they need insightface."""
_Request = TypeVar("_Request", ControlRequest, ReferenceRequest)
_SIZED: Final = ("canny", "blur", "xdog")
"""Preprocessors whose result depends on the size of the image that they process. A1111 chooses that size."""


@dataclass(frozen=True, slots=True)
class Controls:
    """The ControlNet units in an image's settings: requests, the models they name, and why the result may differ.

    The ref of each request is the name of a model.
    """

    requests: tuple[ControlRequest, ...] = ()
    files: tuple[NamedFile, ...] = ()
    reasons: tuple[Reason, ...] = ()
    references: tuple[ReferenceRequest, ...] = ()
    """Requests for the units that use an IP-Adapter. `adapters` lists the models of these requests."""
    adapters: tuple[NamedFile, ...] = ()

    def values(self) -> list[dict[str, Any]]:
        """The units as a JSON value, with the names and hashes of their models."""
        return [
            {"model": {"name": file.name, "hash": file.hash}, "module": request.control_map, "weight": request.weight,
             "start": request.start, "end": request.end, "mode": request.mode, "resize_mode": request.resize_mode}
            for request, file in zip(self.requests, self.files, strict=True)
        ]  # fmt: skip


def controls_in(entries: Entries, source: SourceImage | None, started: Mapping[str, Any]) -> Controls:
    """Read the ControlNet units. `source`: the pictures that the user passed, the start image first if there is one.

    `started`: the fields of the recipe that describe the start image and the tiles.
    """
    units = _units(entries)
    entries.take(_ANY)
    given = [source, *source.others]["start" in started :] if source is not None else []
    requests: list[tuple[ControlRequest, NamedFile]] = []
    references: list[tuple[ReferenceRequest, NamedFile]] = []
    reasons: list[Reason] = []
    for number, unit in enumerate(units):
        made, found = _control(unit, number, given, is_own=entries.is_own)
        reasons += found
        if made is None:
            continue
        request, file = made
        file = file if file.hash else replace(file, hash=entries.listed_hash(f"controlnet:{file.name}"))
        if isinstance(request, ReferenceRequest):
            references.append((request, file))
        else:
            requests.append((request, file))
    if units and started.keys() & {"tiled", "ultimate", "tiled_diffusion"}:
        reasons.append(
            Reason(Drawable.NO, "a ControlNet was used for an image in tiles, which civman does not support")
        )
    return Controls(
        tuple(request for request, _ in requests), tuple(file for _, file in requests), tuple(reasons),
        tuple(request for request, _ in references), tuple(file for _, file in references),
    )  # fmt: skip


def _units(entries: Entries) -> list[dict[str, str]]:
    """Return the enabled units in order, as dictionaries with lower-case field names and values as text."""
    found: dict[int, dict[str, str]] = {}
    for name in entries.names():
        if match := _QUOTED.match(name):
            found[int(match[1])] = _fields(entries.value(name))
        elif match := _FLAT.match(name):
            found.setdefault(int(match[1] or 0), {})[match[2].casefold()] = entries.text(name)
    if not found and (first := next((name for name in _TORN if name in entries), None)):
        found[0] = {name.strip('"').casefold(): entries.text(name) for name in entries.take(_TORN[first])}
    # leave out disabled units; only the oldest format of this metadata lists them
    units = [unit for _, unit in sorted(found.items()) if unit.get("enabled", "True").casefold() != "false"]
    return [unit for unit in units if _field(unit, "model", "module", "preprocessor")]


def _fields(value: Any) -> dict[str, str]:
    """Return the fields of a ControlNet unit's entry, which is quoted text or, if CivitAI has parsed it, an object."""
    if isinstance(value, Mapping):
        return {str(key).casefold(): str(item) for key, item in value.items()}
    pairs = re.findall(r"(?:^|,)\s*([A-Za-z][\w/ ]*?):\s*(\([^)]*\)|[^,]*)", str(value).strip().strip('"'))
    return {key.casefold(): item.strip() for key, item in pairs}


def _field(unit: Mapping[str, str], *names: str) -> str:
    return next((unit[name].strip().strip('"') for name in names if unit.get(name)), "")


def _number(unit: Mapping[str, str], usual: float, *names: str) -> float:
    found = _NUMBER.search(_field(unit, *names))
    return float(found[0]) if found else usual


def _control(
    unit: Mapping[str, str], number: int, given: Sequence[SourceImage], *, is_own: bool
) -> tuple[tuple[ControlRequest | ReferenceRequest, NamedFile] | None, list[Reason]]:
    """Convert a ControlNet unit to a request. Also return its model, and the reasons why the result may differ.

    If the user passed no picture for the unit, the request's path is empty; this is also one of the reasons.
    """
    module = _field(unit, "module", "preprocessor") or "none"
    model = _MODEL.fullmatch(_field(unit, "model"))
    name, digest = (model[1].strip(), (model[2] or "").casefold()) if model else ("", "")
    is_reference = module.casefold().startswith(_IP_ADAPTERS)
    unknown = not is_reference and module.casefold().startswith(("reference", "ip-adapter", "revision", "inpaint"))
    if unknown or name.casefold() in ("", "none"):
        words = f"the ControlNet extension used the module `{module}`, which civman does not support"
        return None, [Reason(Drawable.NO, words)]
    shares = _NUMBER.findall(_field(unit, "starting/ending"))
    start = _number(unit, float(shares[0]) if shares else 0.0, "guidance start", "starting step")
    end = _number(unit, float(shares[1]) if len(shares) > 1 else 1.0, "guidance end", "ending step")
    if is_reference:
        return _reference(unit, name, digest, given[number] if number < len(given) else None, (start, end))
    request = ControlRequest(
        str(given[number].path) if number < len(given) else "", name, _number(unit, 1.0, "weight"), start, end,
        _mode(unit), _resize_mode(unit), _map(unit, module), control_type(_field(unit, "union control type")) or "",
    )  # fmt: skip
    reasons = [] if is_own else [*_differences(unit, module, request)]
    if number >= len(given):
        reasons.append(Reason(
            Drawable.NEEDS_INPUT,
            f"the ControlNet `{name}` (module `{module}`) used a control image that the settings do not contain: pass "
            "it with `civman replay IMAGE --picture CONTROL`",
        ))  # fmt: skip
    return (request, NamedFile("controlnet", name, digest)), reasons


def _reference(
    unit: Mapping[str, str], name: str, digest: str, picture: SourceImage | None, share: tuple[float, float]
) -> tuple[tuple[ReferenceRequest, NamedFile], list[Reason]]:
    """Convert a unit that uses an IP-Adapter to a request and the IP-Adapter's name."""
    weight = _SIGNED.match(_field(unit, "weight"))
    request = ReferenceRequest(str(picture.path) if picture else "", name, float(weight[0]) if weight else 1.0, *share)
    words = "A1111 may crop or prepare the picture for an IP-Adapter differently; civman does it like diffusers"
    reasons = [Reason(Drawable.DIFFERS, words)]
    if _mode(unit) != "balanced":
        words = f"civman does not support the control mode of the IP-Adapter `{name}`"
        reasons.append(Reason(Drawable.DIFFERS, words))
    if picture is None:
        reasons.append(Reason(
            Drawable.NEEDS_INPUT,
            f"the IP-Adapter `{name}` used a picture that the settings do not contain: pass it with "
            "`civman replay IMAGE --picture PICTURE`",
        ))  # fmt: skip
    return (request, NamedFile("ip-adapter", name, digest)), reasons


def _mode(unit: Mapping[str, str]) -> str:
    text = _field(unit, "control mode").casefold()
    if "prompt" in text:
        return "prompt"
    return "control" if text.startswith("controlnet") or text.endswith(".control") else "balanced"


def _resize_mode(unit: Mapping[str, str]) -> str:
    text = _field(unit, "resize mode").casefold()
    if any(word in text for word in ("fill", "outer", "envelope")) and not text.startswith("inner"):
        return "resize and pad"
    return "just resize" if "just" in text or text.endswith(".resize") else "crop and resize"


def _map(unit: Mapping[str, str], module: str) -> str:
    """Return the preprocessor with its settings, as in `ControlRequest.control_map`; "none" if civman lacks it."""
    name = map_named(module)
    if name is None:
        return "none"
    listed = _NUMBER.findall(_field(unit, "preprocessor params", "preprocessor parameters"))[1:]
    numbers = []
    for place, (usual, least, most) in enumerate(MAPS[name]):
        stated = float(listed[place]) if place < len(listed) else usual
        given = _number(unit, stated, f"threshold {'ab'[place]}")
        numbers.append(f"{given if least <= given <= most else usual:g}")
    return ":".join([name, *numbers])


def _differences(unit: Mapping[str, str], module: str, request: ControlRequest) -> list[Reason]:
    if map_named(module) is None:
        return [Reason(
            Drawable.DIFFERS,
            f"civman does not support the ControlNet module `{module}`: pass a picture that has already been processed "
            "with it",
        )]  # fmt: skip
    words = [
        "A1111 chooses the filter with which it resizes a control image by the image's content; civman uses Lanczos"
    ]
    if request.control_map.partition(":")[0] in _SIZED:
        words.append(
            f"civman runs the ControlNet module `{module}` at the picture's original size; A1111 may use another size"
        )
    if "starting/ending" in unit and len(_NUMBER.findall(unit["starting/ending"])) < 2:
        words.append("the settings lack the end of a ControlNet's range of steps; it acts until the last step")
    return [Reason(Drawable.DIFFERS, each) for each in words]


def with_refs(requests: Sequence[_Request], ref: Any) -> tuple[_Request, ...]:
    """Replace the model names in requests with refs; `ref` returns the ref for a name."""
    return tuple(replace(each, ref=ref(each.ref)) for each in requests)
