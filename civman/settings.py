"""The settings, read once. Precedence: flag > environment > nearest civman.toml > user's config.toml > default.

`civman doctor` shows where each value comes from. The API key is not among the settings: it is read only when a
command needs it, and it is never printed.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import platformdirs

from civman.errors import ConfigError

DEFAULT_URL = "https://civitai.com"
TOKEN_VARIABLE = "CIVITAI_API_TOKEN"  # noqa: S105  # a name, no secret
PROJECT_FILE = "civman.toml"
USER_FILE = "config.toml"
_VARIABLES = {
    "library": "CIVMAN_LIBRARY", "civitai_url": "CIVMAN_CIVITAI_URL", "offline": "CIVMAN_OFFLINE",
    "object_store": "CIVMAN_OBJECT_STORE",
}  # fmt: skip
_TABLE: Final = "render"
"""The table of a settings file with the user's choices for `civman render`."""
_OTHER_KEYS = (_TABLE, "models")
"""Keys of a settings file that are tables; `models` lists a project's models."""
_RENDER_KEYS = ("checkpoint", "open", "preview", "presets")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


Value = str | int | float | bool | tuple[str | int | float, ...]
"""The value of an option in a preset; a tuple is for an option that may be repeated."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Named values for options of `civman render`, such as "steps"; `source` is the settings file."""

    name: str
    values: Mapping[str, Value]
    source: str


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """The `[render]` table of the settings files.

    `checkpoint`: the ref of the default checkpoint. `opens`: whether to open finished images in the system's viewer.
    `previews`: whether to show finished images in terminals that can display them.
    """

    checkpoint: str | None = None
    opens: bool = False
    previews: bool = True
    presets: Mapping[str, Preset] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run of civman. `sources` maps the name of every other field to where its value comes from.

    The keys for render settings look like "render.checkpoint".
    """

    library: Path
    civitai_url: str = DEFAULT_URL
    offline: bool = False
    object_store: str | None = None
    """The URL of an S3-compatible object store with copies of files, such as `s3://bucket/models`; None: not set."""
    config_folder: Path = field(default_factory=lambda: Path(platformdirs.user_config_path("civman")))
    token_from_environment: str | None = field(default=None, repr=False)
    sources: Mapping[str, str] = field(default_factory=dict)
    render: RenderSettings = RenderSettings()


def load_settings(
    *,
    library: str | os.PathLike[str] | None = None,
    civitai_url: str | None = None,
    offline: bool | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Load the settings for `folder` (default: the working folder) and `environ` (default: the process's environment).

    The first three arguments are flags and take precedence. Raises: ConfigError: a file or a value cannot be used.
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    config_folder = Path(environ.get("CIVMAN_CONFIG_DIR") or platformdirs.user_config_path("civman"))
    flags = {"library": library, "civitai_url": civitai_url, "offline": offline}
    project = nearest_project_file(folder)
    layers: list[tuple[str, Mapping[str, object], Path]] = [
        ("flag", {key: value for key, value in flags.items() if value is not None}, folder),
        ("environment", _from_environment(environ), folder),
    ]
    if project is not None:
        layers.append((str(project), _read(project), project.parent))
    user_file = config_folder / USER_FILE
    if user_file.is_file():
        layers.append((str(user_file), _read(user_file), config_folder))
    files = [(name, layer.get(_TABLE, {})) for name, layer, _ in layers[2:]]
    default = Path(platformdirs.user_data_path("civman")) / "library"
    layers.append(
        ("default", {"library": default, "civitai_url": DEFAULT_URL, "offline": False, "object_store": None}, folder)
    )

    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for key in _VARIABLES:
        name, layer, base = next((name, layer, base) for name, layer, base in layers if key in layer)
        sources[key] = f"{name} {_VARIABLES[key]}" if name == "environment" else name
        values[key] = checked_value(key, layer[key], base, sources[key])
    render = _render(files, sources)
    return Settings(
        library=Path(str(values["library"])),
        civitai_url=str(values["civitai_url"]),
        offline=bool(values["offline"]),
        object_store=None if values["object_store"] is None else str(values["object_store"]),
        config_folder=config_folder,
        token_from_environment=(environ.get(TOKEN_VARIABLE) or "").strip() or None,
        sources=sources,
        render=render,
    )


def nearest_project_file(folder: Path) -> Path | None:
    """Return the path of the nearest civman.toml, in `folder` or a folder above it; None if there is none."""
    for place in (folder, *folder.parents):
        candidate = place / PROJECT_FILE
        if candidate.is_file():
            return candidate
    return None


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    return {key: environ[name] for key, name in _VARIABLES.items() if environ.get(name)}


def _read(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read `{path}`: {error}", hint=f"correct the error in `{path}`, or delete the file", path=str(path)
        ) from error
    return checked_table(text, path)


def checked_table(text: str, path: Path) -> dict[str, object]:
    """Parse the text of the settings file `path`. Raises: ConfigError: it is invalid TOML or has an unknown setting."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"cannot read `{path}`: {error}", hint=f"correct the error in `{path}`, or delete it", path=str(path)
        ) from error
    for key in table:
        if key in ("token", "api_key", "key"):
            raise ConfigError(
                f"`{path}` contains an API key, which others can read if the file is shared",
                hint=f"remove the key from the file and use `civman login` or {TOKEN_VARIABLE}",
                path=str(path),
            )
        if key not in _VARIABLES and key not in _OTHER_KEYS:
            raise _unknown(key, (*_VARIABLES, _TABLE), path)
    _require_render_table(table.get(_TABLE, {}), path)
    return table


def _unknown(key: str, known: Sequence[str], path: Path) -> ConfigError:
    near = get_close_matches(key, known, 1)
    return ConfigError(
        f"`{path}` has an unknown setting `{key}`",
        hint=f"did you mean `{near[0]}`?" if near else f"the settings are {', '.join(known)}",
        path=str(path),
    )


def _require_render_table(table: object, path: Path) -> None:
    """Check the `[render]` table of a settings file. Raises: ConfigError: an unknown key or an invalid value."""
    if not isinstance(table, dict):
        raise ConfigError(f"`render` in `{path}` is not a table", hint="write [render] on a line of its own")
    for key, value in table.items():
        if key not in _RENDER_KEYS:
            raise _unknown(key, _RENDER_KEYS, path)
        if key in ("open", "preview") and not isinstance(value, bool):
            raise ConfigError(
                f"`render.{key}` in `{path}` must be true or false, not `{value}`", hint="use true or false"
            )
        if key == "checkpoint" and (not isinstance(value, str | int) or not str(value).strip()):
            raise ConfigError(
                f"`render.checkpoint` in `{path}` is not a ref", hint='use a ref such as "4384@128713" or an alias'
            )
    presets = table.get("presets", {})
    for name, values in presets.items() if isinstance(presets, dict) else [("presets", None)]:
        if not isinstance(values, dict) or not all(map(_is_value, values.values())):
            raise ConfigError(
                f"`{path}` has a preset that is not a table of options: `{name}`",
                hint=f"write [render.presets.NAME], and below it lines such as steps = 30 or lora = [{_EXAMPLE_LORA}]",
            )


_EXAMPLE_LORA = '"12345:0.8"'


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str | int | float) for item in value)
    return isinstance(value, str | int | float)


def _render(files: Sequence[tuple[str, Any]], sources: dict[str, str]) -> RenderSettings:
    """Merge the `[render]` tables of the settings files.

    `files`: the tables with their sources, the one with the highest precedence first. The source of each value is added
    to `sources`.
    """
    found: dict[str, Any] = {"checkpoint": None, "open": False, "preview": True}
    for key in found:
        sources[f"{_TABLE}.{key}"] = "default"
    presets: dict[str, Preset] = {}
    for source, table in reversed(files):
        for key in found.keys() & table.keys():
            found[key], sources[f"{_TABLE}.{key}"] = table[key], source
        for name, values in table.get("presets", {}).items():
            plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            presets[name] = Preset(name, MappingProxyType(plain), source)
    checkpoint = None if found["checkpoint"] is None else str(found["checkpoint"]).strip()
    return RenderSettings(checkpoint, found["open"], found["preview"], MappingProxyType(presets))


def checked_value(key: str, raw: object, base: Path, source: str) -> object:
    """Convert and check the value of a setting. `source`: where the value comes from, for error messages.

    Relative paths are relative to `base`. Raises: ConfigError: the value is invalid.
    """
    match key:
        case "offline":
            return _flag(raw, source)
        case "civitai_url":
            return _address(str(raw), source)
        case "object_store":
            return None if raw is None else _object_store(str(raw), source)
        case _:
            path = Path(str(raw)).expanduser()
            return path if path.is_absolute() else (base / path).absolute()


def _flag(raw: object, source: str) -> bool:
    if isinstance(raw, bool):
        return raw
    text = str(raw).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ConfigError(f"`offline` from {source} must be 1 or 0, not `{raw}`", hint="use 1 or 0")


def _object_store(raw: str, source: str) -> str:
    if not raw.strip().startswith("s3://"):
        raise ConfigError(
            f"`object_store` from {source} is not the URL of an object store: `{raw}`",
            hint="use a URL such as s3://bucket/models",
        )
    return raw.strip()


def _address(raw: str, source: str) -> str:
    parts = urlsplit(raw.strip())
    host = parts.hostname or ""
    on_loopback = host in ("localhost", "::1") or host.startswith("127.")
    if parts.scheme not in ("https", "http") or not host or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"`civitai_url` from {source} is not a web URL", hint=f"use a URL such as {DEFAULT_URL}")
    if parts.scheme == "http" and not on_loopback:
        raise ConfigError(
            f"`civitai_url` from {source} is plain http: your API key would be sent unencrypted",
            hint="use https (http is allowed for loopback addresses only)",
        )
    return raw.strip().rstrip("/")
