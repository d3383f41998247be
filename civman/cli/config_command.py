"""The command `civman config`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.output import Result, clean, plain
from civman.cli.render_defaults import preset_options, require_options, values_text
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.settings import Settings


@command(network="settings")
def config(
    session: Session,
    context: typer.Context,
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY]",
            autocompletion=completion.setting_names,
            help="The name of the setting: library, render.checkpoint, render.presets.NAME.OPTION …",
            show_default=False,
        ),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VALUE]...",
            help="The new value; pass several values for a setting that is a list.",
            show_default=False,
        ),
    ] = None,
    project: Annotated[
        bool, typer.Option("--project", help="Change the nearest civman.toml instead of your own config.toml.")
    ] = False,
    unset: Annotated[bool, typer.Option("--unset", help="Remove the setting KEY from the file.")] = False,
) -> Result:
    """Show the settings in effect and where each one comes from, or change one.

    A value comes from the first source that has it: flags, environment, the nearest civman.toml, your config.toml.
    """
    from civman.errors import UsageError

    settings = session.library.context.settings
    if key is None:
        if project or unset:
            raise UsageError(
                "--project and --unset need the name of a setting", hint="`civman config` lists all settings"
            )
        return _listed(settings)
    if unset or value:
        if unset and value:
            raise UsageError("--unset takes no value", hint=f"`civman config --unset {key}` removes the setting")
        return _changed(context, settings, key, value or [], is_project=project)
    return _one(settings, key)


def _values(settings: "Settings") -> dict[str, dict[str, object]]:
    """List every setting with its value and its source. The options of a preset form one value."""
    render = settings.render
    values: dict[str, object] = {
        "library": settings.library, "civitai_url": settings.civitai_url, "offline": settings.offline,
        "object_store": settings.object_store,
        "render.checkpoint": render.checkpoint, "render.open": render.opens, "render.preview": render.previews,
    }  # fmt: skip
    found = {name: {"value": value, "source": settings.sources.get(name, "default")} for name, value in values.items()}
    for name, preset in render.presets.items():
        found[f"render.presets.{name}"] = {"value": dict(preset.values), "source": preset.source}
    return found


def _text(value: object) -> str:
    if isinstance(value, dict):
        return values_text(value)
    if isinstance(value, list | tuple):
        return clean(", ".join(map(str, value)))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else clean(str(value))


def _listed(settings: "Settings") -> Result:
    listed, file = _values(settings), settings.config_folder / "config.toml"

    def human(console: "Console") -> None:
        width = max(map(len, listed))
        for name, entry in listed.items():
            source = clean(str(entry["source"]))
            console.print(f"{clean(name):<{width}}  {_text(entry['value'])}  (from {source})", soft_wrap=True)
        state = "" if file.is_file() else " (does not exist yet)"
        console.print(f"{'config file':<{width}}  {clean(str(file))}{state}", soft_wrap=True)

    return Result("config", {"settings": listed, "config_file": file}, human=human, ids=listed)


def _one(settings: "Settings", key: str) -> Result:
    from civman.errors import Cause, UsageError
    from civman.manage.edit_settings import PLAIN_KEYS

    listed = _values(settings)
    preset, _, option = key.rpartition(".")
    if key in listed:
        found = listed[key]
    elif isinstance(values := listed.get(preset, {}).get("value"), dict) and option in values:
        found = {"value": values[option], "source": listed[preset]["source"]}
    else:
        raise UsageError(
            f"there is no setting `{key}`",
            hint=f"settings: {', '.join(PLAIN_KEYS)}; `civman config {key} VALUE` sets an option of a preset"
            if key.startswith("render.presets.") else f"settings: {', '.join(PLAIN_KEYS)}",
            code=Cause.UNKNOWN_NAME, name=key,
        )  # fmt: skip
    text = _text(found["value"])
    return Result(
        "config", {"settings": {key: found}},
        human=lambda console: console.print(f"{text}  (from {clean(str(found['source']))})", soft_wrap=True),
        ids=[plain(found["value"]) if isinstance(found["value"], Path) else text],
    )  # fmt: skip


def _changed(context: typer.Context, settings: "Settings", key: str, texts: list[str], *, is_project: bool) -> Result:
    from civman.manage.edit_settings import PRESETS, set_value, settings_file, unset

    file = settings_file(settings, Path.cwd() if is_project else None)
    if not texts:
        had = unset(file, key)
        words = f"{key} was removed from {file}" if had else f"{key} is not set in {file}"
        return Result("config", {"removed": had, "file": file}, human=lambda console: _say(console, words))
    if key.startswith(PRESETS) and key.count(".") == PRESETS.count(".") + 1:
        group = context.find_root().command
        render = group.get_command(context, "render")  # type: ignore[attr-defined]  # the root command is a group
        options, name = preset_options(render), key.rpartition(".")[2]
        require_options({name: texts}, options, f"`{key}`")
        if name in options:  # let typer check the value, because it raises a usage error if the value is invalid
            option = options[name]
            option.process_value(context, texts if getattr(option, "multiple", False) else texts[0])
    stored = set_value(file, key, texts)
    shown = _text(stored)
    words = f"{key} is now {shown}, set in {file}"
    return Result(
        "config", {"settings": {key: {"value": stored, "source": file}}},
        human=lambda console: _say(console, words), ids=[shown],
    )  # fmt: skip


def _say(console: "Console", words: str) -> None:
    console.print(clean(words), soft_wrap=True)
