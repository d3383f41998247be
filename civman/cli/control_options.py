"""The options of `civman render` for ControlNets and T2I-Adapters."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from civman.domain.recipes.control import ControlRequest

ControlOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="FILE:REF[:WEIGHT][:START-END]",
        help="A control image and the ControlNet or T2I-Adapter to use with it. WEIGHT is 1 by default; START and END "
        "are fractions of the steps, by default 0 and 1 (repeatable).",
    ),
]
ControlMapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control-map",
        metavar="none|canny|invert|blur|tile|gray|xdog",
        help="The preprocessor that makes the control image from the file of --control, such as canny:50:150. Pass "
        "one for all files, or one for each --control, in order.",
    ),
]
ControlModeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control-mode",
        metavar="balanced|prompt|control",
        help="A1111's control mode: whether the prompt or the control image is more important. Pass one for all, or "
        "one for each --control, in order.",
    ),
]
ControlTypeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control-type",
        metavar="canny|depth|openpose|lineart|tile|…",
        help="The kind of control image, for union ControlNets, which accept several kinds. Pass one for all, or one "
        "for each --control, in order.",
    ),
]
ControlResizeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--control-resize",
        metavar="just|crop|fill",
        help="A1111's resize mode: how to fit each control image to the size of the rendered image. Default: just.",
    ),
]
_RESIZES = {"just": "just resize", "crop": "crop and resize", "fill": "resize and pad"}


def controls_from(
    texts: list[str] | None, maps: list[str] | None, modes: list[str] | None, types: list[str] | None = None,
    resizes: list[str] | None = None,
) -> "tuple[ControlRequest, ...]":  # fmt: skip
    """Parse the values of --control and of the other options for control models.

    Raises: UsageError (`bad-value`): a value names no existing file, or an option was given more or less often than
        --control.
    """
    from civman.cli.picture_values import chosen, picture_value, require_counts
    from civman.domain.recipes.control import ControlRequest
    from civman.errors import Cause, UsageError

    texts, maps, modes, types, resizes = texts or [], maps or [], modes or [], types or [], resizes or []
    for option, values in (
        ("--control-map", maps), ("--control-mode", modes), ("--control-type", types), ("--control-resize", resizes),
    ):  # fmt: skip
        require_counts(option, values, "--control", texts, "a ControlNet")
    if odd := [each for each in resizes if each not in _RESIZES]:
        raise UsageError(
            f"--control-resize {odd[0]}: `{odd[0]}` is not a resize mode", hint=f"choose one of: {', '.join(_RESIZES)}",
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    found = []
    for number, text in enumerate(texts):
        value = picture_value(text, option="--control", model="a ControlNet", example="edges.png:canny:0.8")
        found.append(ControlRequest(
            value.picture, value.ref, value.weight, value.start, value.end, chosen(modes, number, "balanced"),
            _RESIZES[chosen(resizes, number, "just")],
            control_map=chosen(maps, number, "none"), control_type=chosen(types, number, ""),
        ))  # fmt: skip
    return tuple(found)
