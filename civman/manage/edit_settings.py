"""Change one setting in a settings file: the user's config.toml, or a project's civman.toml."""

import os
from pathlib import Path
from typing import Any, Final

from civman.errors import Cause, ConfigError, UsageError
from civman.settings import PROJECT_FILE, USER_FILE, Settings, checked_table, checked_value, nearest_project_file
from civman.system.move_files import replace_file

PLAIN_KEYS: Final = (
    "library", "civitai_url", "offline", "object_store", "render.checkpoint", "render.open", "render.preview",
)  # fmt: skip
"""The keys of settings with a single value. `render.presets.NAME.OPTION` is also a valid key."""
PRESETS: Final = "render.presets."
_SWITCHES: Final = ("offline", "render.open", "render.preview")


def settings_file(settings: Settings, folder: Path | None) -> Path:
    """Return the settings file to change: the user's, or a project's if `folder` is given.

    The project file is the nearest one in `folder` or its parent folders; if there is none, a new one in `folder`.
    """
    if folder is None:
        return settings.config_folder / USER_FILE
    return nearest_project_file(folder) or folder / PROJECT_FILE


def set_value(file: Path, key: str, texts: list[str]) -> Any:
    """Set a setting to the value that the user typed as `texts`. Returns the stored value.

    Several texts become a list. Comments in the file are kept.

    Raises: UsageError (`unknown-name`, `bad-value`): there is no such setting, or the value is invalid for it.
    ConfigError: the file cannot be read or written.
    """
    import tomlkit  # imported here: tomlkit takes 0.04 s to import and is only needed for writing
    from tomlkit.exceptions import TOMLKitError

    *tables, last = _split(key)
    value = _value(key, texts)
    if key == "library" and file.name == USER_FILE:
        # store an absolute path: a relative path in a project's file is relative to that file
        value = str(Path(value).expanduser().absolute())
    if not tables:
        checked_value(key, value, file.parent, "the command line")
    try:
        document = tomlkit.parse(_text(file))
        table: Any = document
        for name in tables:
            if name not in table:
                table[name] = tomlkit.table(is_super_table=name != tables[-1])
            table = table[name]
        table[last] = value
        text = tomlkit.dumps(document)
    except (TOMLKitError, TypeError) as error:
        raise ConfigError(
            f"cannot change `{file}`: {error}", hint=f"correct the error in `{file}`, then try again"
        ) from error
    _write(file, text)
    return value


def unset(file: Path, key: str) -> bool:
    """Remove a setting, or a whole preset, from the file. Returns False if the file did not contain it."""
    import tomlkit  # imported here: tomlkit takes 0.04 s to import and is only needed for writing

    is_preset = key.startswith(PRESETS) and key.count(".") == 2
    *tables, last = key.split(".") if is_preset else _split(key)
    document = tomlkit.parse(_text(file))
    table: Any = document
    for name in tables:
        table = table.get(name)
        if not isinstance(table, dict):
            return False
    if last not in table:
        return False
    del table[last]
    _write(file, tomlkit.dumps(document))
    return True


def _split(key: str) -> list[str]:
    """Split a setting's key into its TOML tables and its name. Raises: UsageError (`unknown-name`): no such setting."""
    parts = key.split(".")
    is_preset_value = key.startswith(PRESETS) and len(parts) == 4 and all(parts)
    if key not in PLAIN_KEYS and not is_preset_value:
        raise UsageError(
            f"there is no setting `{key}`",
            hint=f"the settings are: {', '.join(PLAIN_KEYS)}, {PRESETS}NAME.OPTION (such as {PRESETS}portrait.steps)",
            code=Cause.UNKNOWN_NAME, name=key,
        )  # fmt: skip
    return parts


def _value(key: str, texts: list[str]) -> Any:
    """Convert the typed text to a TOML value: a string or a boolean; for a preset, also a number or a list."""
    if len(texts) > 1 and not key.startswith(PRESETS):
        raise UsageError(f"`{key}` takes one value", hint="quote a value that contains spaces", code=Cause.BAD_VALUE)
    if key in _SWITCHES:
        text = texts[0].strip().lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise UsageError(
                f"`{texts[0]}` is not a valid value of `{key}`", hint="use true or false", code=Cause.BAD_VALUE
            )
        return text in ("true", "1", "yes", "on")
    if not key.startswith(PRESETS):
        if not texts[0].strip():
            raise UsageError(
                f"the value of `{key}` is empty", hint=f"run `civman config --unset {key}` to remove the setting"
            )
        return texts[0].strip()
    values = [_number_or_text(text) for text in texts]
    return values[0] if len(values) == 1 else values


def _number_or_text(text: str) -> str | int | float | bool:
    """Convert the text of a number or boolean to its value; return any other text, such as `007`, unchanged."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text and text not in ("inf", "nan", "-inf"):
            return number
    return text


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read `{file}`: {error}", hint=f"correct the error in `{file}`, or delete the file"
        ) from error
    checked_table(text, file)
    return text


def _write(file: Path, text: str) -> None:
    """Replace the file's contents if they are valid settings. Raises: ConfigError."""
    checked_table(text, file)
    temporary = file.with_name(file.name + ".new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        replace_file(temporary, file)
    except OSError as error:
        raise ConfigError(f"cannot write `{file}`: {error.strerror or error}") from error
