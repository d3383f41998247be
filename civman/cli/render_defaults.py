"""Applies settings to a render: the values of a preset (`--preset`), and the default checkpoint."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from civman.cli import completion
from civman.cli.output import clean
from civman.cli.session import Session

if TYPE_CHECKING:
    from civman.settings import Preset

_NOT_IN_PRESETS: Final = frozenset({
    "prompt", "prompts", "preset", "grid", "dry-run", "here", "library", "json", "quiet", "help", "checkpoint",
})  # fmt: skip
"""Options of `civman render` that a preset cannot set. A preset's `checkpoint` is handled separately."""


def preset_options(render: Any) -> dict[str, Any]:
    """Map each `civman render` option that a preset can set, by its name without dashes, to typer's parameter."""
    return {
        text.removeprefix("--"): option
        for option in render.params
        for text in option.opts
        if text.startswith("--") and text.removeprefix("--") not in _NOT_IN_PRESETS
    }


def _apply(context: typer.Context, name: str | None) -> str | None:
    """Make a preset's values the defaults of the other options; typer calls this before it reads those options."""
    if name is None or context.resilient_parsing:
        return name
    from civman.settings import load_settings  # the import takes 0.02 s, which --help can skip

    preset = load_settings().render.presets.get(name)
    if preset is None:
        # `chosen_preset` reports an unknown preset later, so that errors in the command line are reported first
        return name
    options = preset_options(context.command)
    defaults: dict[str, Any] = {}
    for key, value in preset.values.items():
        option = options.get(key)
        if option is not None:
            is_list = getattr(option, "multiple", False)
            defaults[option.name] = list(value if isinstance(value, tuple) else (value,)) if is_list else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return name


PresetOpt = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", callback=_apply, is_eager=True, autocompletion=completion.presets,
        help="Use a preset from the settings; options on the command line override it.",
    ),
]  # fmt: skip


def chosen_preset(session: Session, context: typer.Context, name: str | None) -> "Preset | None":
    """Look up the preset `name` and print a notice that lists its values.

    Raises: UsageError (`no-preset`): there is no such preset. ConfigError: the preset sets an unknown option.
    """
    if name is None:
        return None
    from civman.errors import Cause, UsageError

    presets = session.library.context.settings.render.presets
    if name not in presets:
        near = get_close_matches(name, presets, 1)
        hint = (
            f"did you mean `{near[0]}`?" if near else f"presets: {', '.join(presets)}" if presets else
            f"the settings have no presets; `civman config render.presets.{name}.steps 30` adds one"
        )  # fmt: skip
        raise UsageError(f"there is no preset `{name}`", hint=hint, code=Cause.NO_PRESET, name=name)
    preset = presets[name]
    options = preset_options(context.command)
    require_options(preset.values, options, f"the preset `{name}` in `{preset.source}`")
    used = {key: value for key, value in preset.values.items() if not _is_typed(context, options.get(key))}
    session.output.notice(f"preset `{name}` from {preset.source}: {values_text(used)}")
    return preset


def _is_typed(context: typer.Context, option: Any) -> bool:
    """Whether the option is on the command line itself and therefore overrides the preset's value."""
    source = context.get_parameter_source(option.name) if option is not None else None
    return source is not None and source.name == "COMMANDLINE"


def require_options(values: Mapping[str, object], options: Mapping[str, object], what: str) -> None:
    """Check that the preset's `values` set only `options`. Raises: ConfigError. `what`: the preset, for the message."""
    from civman.errors import ConfigError

    known = ["checkpoint", *options]
    for key in values:
        if key not in known:
            near = get_close_matches(key.replace("_", "-"), known, 1)
            raise ConfigError(
                f"{what} sets `{key}`, which is not an option of `civman render` that a preset can set",
                hint=f"did you mean `{near[0]}`?" if near else "write the names of options without the leading dashes",
            )


def values_text(values: Mapping[str, object]) -> str:
    """Format a preset's values in one line, such as "steps 30, size 832x1216"."""
    words = []
    for key, value in values.items():
        items = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words.append(f"{key} {str(value).lower() if isinstance(value, bool) else items}")
    return clean(", ".join(words)) or "no values"


def checkpoint_and_prompt(
    session: Session, first: str | None, second: str | None, preset: "Preset | None", *, has_prompts: bool
) -> tuple[str, str | None]:
    """Tell the checkpoint and the prompt apart in the arguments, and fill in the default checkpoint.

    A single argument is the prompt, unless there is another source of prompts (`has_prompts`).

    Raises: UsageError: the prompt is missing. UsageError (`no-checkpoint`): no checkpoint is given or set.
    """
    if first is not None and (second is not None or has_prompts):
        return first, second
    if first is None and not has_prompts:
        raise _prompt_missing("CHECKPOINT")
    pictures = session.library.pictures
    if first is not None and pictures.is_model_name(first):
        raise _prompt_missing(first)
    stated = preset.values.get("checkpoint") if preset else None
    if stated is not None:
        return str(stated), first
    default = pictures.default_checkpoint()
    title = f" ({clean(default.title)})" if default.title else ""
    session.output.notice(f"rendering with {clean(default.ref)}{title}, {default.reason}")
    return default.ref, first


def _prompt_missing(checkpoint: str) -> Exception:
    from civman.errors import UsageError

    return UsageError(
        "a prompt is missing",
        hint=f'add a prompt, as in `civman render {checkpoint} "a harbour at dawn"`, or pass a file with --prompts',
    )
