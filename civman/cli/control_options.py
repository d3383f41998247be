"""The options of `civman render` for ControlNets and T2I-Adapters."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from civman.domain.recipes.control import ControlRequest

ControlOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="FILE:REF[:WEIGHT][:START-END]",
        help="A ControlNet or T2I-Adapter and its picture, with its weight and the share of steps (repeatable).",
    ),
]
ControlMapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control-map",
        metavar="none|canny|invert|blur|tile|gray|xdog",
        help="How to make the control image from each --control picture, such as canny:50:150; one applies to all.",
    ),
]
ControlModeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control-mode",
        metavar="balanced|prompt|control",
        help="What counts more, the prompt or the control image (A1111's control mode), for each --control in order.",
    ),
]
ControlTypeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control-type",
        metavar="canny|depth|openpose|lineart|tile|…",
        help="What each --control picture shows, for a union of ControlNets that reads several kinds.",
    ),
]
ControlResizeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control-resize",
        metavar="just|crop|fill",
        help="How each control image gets the size of the image (A1111's resize mode); default: just.",
    ),
]
_RESIZES = {"just": "just resize", "crop": "crop and resize", "fill": "resize and pad"}
_NUMBER = r"\d+(?:\.\d+)?"
_SHARE = re.compile(rf"(.+):({_NUMBER})-({_NUMBER})")


def controls_from(
    texts: list[str] | None, maps: list[str] | None, modes: list[str] | None, types: list[str] | None = None,
    resizes: list[str] | None = None,
) -> "tuple[ControlRequest, ...]":  # fmt: skip
    """Parse the values of --control with those of the other options of this module.

    Raises: UsageError (`bad-value`): a value names no existing file, or the options are not equal in number.
    """
    from civman.domain.recipes.control import ControlRequest
    from civman.domain.scales import parse_scaled
    from civman.errors import Cause, UsageError

    texts, maps, modes, types, resizes = texts or [], maps or [], modes or [], types or [], resizes or []
    for option, values in (
        ("--control-map", maps), ("--control-mode", modes), ("--control-type", types), ("--control-resize", resizes),
    ):  # fmt: skip
        if len(values) > 1 and len(values) != len(texts):
            raise UsageError(
                f"{option} is given {len(values)} times, but --control {len(texts)} times",
                hint=f"pass {option} once for all, or once for each --control", code=Cause.BAD_VALUE,
            )  # fmt: skip
        if values and not texts:
            raise UsageError(
                f"{option} requires a ControlNet", hint="add a ControlNet with --control", code=Cause.BAD_VALUE
            )
    if odd := [each for each in resizes if each not in _RESIZES]:
        raise UsageError(
            f"--control-resize {odd[0]}: not a resize mode", hint=f"choose one of: {', '.join(_RESIZES)}",
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    found = []
    for number, text in enumerate(texts):
        share = _SHARE.fullmatch(text)
        before, start, end = share.groups() if share else (text, "0", "1")
        picture, model = _parted(before)
        scaled = parse_scaled(model)
        if scaled.text_encoder != scaled.unet:
            raise UsageError(
                f"--control {text}: a ControlNet has one weight, not two",
                hint="write a single weight, such as edges.png:canny:0.8", code=Cause.BAD_VALUE,
            )  # fmt: skip
        found.append(ControlRequest(
            picture, scaled.ref, 1.0 if scaled.unet is None else scaled.unet, float(start), float(end),
            _chosen(modes, number, "balanced"), _RESIZES[_chosen(resizes, number, "just")],
            control_map=_chosen(maps, number, "none"), control_type=_chosen(types, number, ""),
        ))  # fmt: skip
    return tuple(found)


def _chosen(values: list[str], number: int, usual: str) -> str:
    return usual if not values else values[number if len(values) > 1 else 0]


def _parted(text: str) -> tuple[str, str]:
    """Split FILE:REF at the first colon that follows the path of an existing file."""
    from pathlib import Path

    from civman.errors import Cause, UsageError

    places = [place for place, sign in enumerate(text) if sign == ":"]
    for place in places:
        if text[place + 1 :] and Path(text[:place]).expanduser().is_file():
            return text[:place], text[place + 1 :]
    raise UsageError(
        f"--control {text}: no picture of this name was found, or no ControlNet is named",
        hint="write the picture, a colon and the ControlNet, such as edges.png:canny:0.8", code=Cause.BAD_VALUE,
    )  # fmt: skip
