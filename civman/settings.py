"""The settings, read once. Precedence: flag > environment > nearest civman.toml > user's config.toml > default.

The source of every value is kept for `civman doctor`. The API key is not a setting here: it is read when a command
needs it, and never printed.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from civman.errors import ConfigError

DEFAULT_URL = "https://civitai.com"
TOKEN_VARIABLE = "CIVITAI_API_TOKEN"  # noqa: S105  # a name, no secret
PROJECT_FILE = "civman.toml"
_VARIABLES = {"library": "CIVMAN_LIBRARY", "civitai_url": "CIVMAN_CIVITAI_URL", "offline": "CIVMAN_OFFLINE"}
_LATER_KEYS = ("models",)
"""Keys of civman.toml that are not settings."""
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run of civman. `sources` names the origin of each of the other fields."""

    library: Path
    civitai_url: str = DEFAULT_URL
    offline: bool = False
    config_folder: Path = field(default_factory=lambda: Path(platformdirs.user_config_path("civman")))
    token_from_environment: str | None = field(default=None, repr=False)
    sources: Mapping[str, str] = field(default_factory=dict)


def load_settings(
    *,
    library: str | os.PathLike[str] | None = None,
    civitai_url: str | None = None,
    offline: bool | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """The settings in effect in `folder` (default: the working folder) with `environ` (default: the process's).

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
    user_file = config_folder / "config.toml"
    if user_file.is_file():
        layers.append((str(user_file), _read(user_file), config_folder))
    default = Path(platformdirs.user_data_path("civman")) / "library"
    layers.append(("default", {"library": default, "civitai_url": DEFAULT_URL, "offline": False}, folder))

    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for key in _VARIABLES:
        name, layer, base = next((name, layer, base) for name, layer, base in layers if key in layer)
        sources[key] = f"{name} {_VARIABLES[key]}" if name == "environment" else name
        values[key] = _value(key, layer[key], base, sources[key])
    return Settings(
        library=Path(str(values["library"])),
        civitai_url=str(values["civitai_url"]),
        offline=bool(values["offline"]),
        config_folder=config_folder,
        token_from_environment=(environ.get(TOKEN_VARIABLE) or "").strip() or None,
        sources=sources,
    )


def nearest_project_file(folder: Path) -> Path | None:
    """The nearest civman.toml in `folder` or a folder above it."""
    for place in (folder, *folder.parents):
        candidate = place / PROJECT_FILE
        if candidate.is_file():
            return candidate
    return None


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    return {key: environ[name] for key, name in _VARIABLES.items() if environ.get(name)}


def _read(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read `{path}`: {error}", hint="mend or remove that file", path=str(path)) from error
    for key in table:
        if key in ("token", "api_key", "key"):
            raise ConfigError(
                f"`{path}` holds an API key; such files get shared",
                hint=f"take it out and use `civman login` or {TOKEN_VARIABLE}",
                path=str(path),
            )
        if key not in _VARIABLES and key not in _LATER_KEYS:
            near = get_close_matches(key, _VARIABLES, 1)
            raise ConfigError(
                f"`{path}` has an unknown setting `{key}`",
                hint=f"did you mean `{near[0]}`?" if near else f"settings: {', '.join(_VARIABLES)}",
                path=str(path),
            )
    return table


def _value(key: str, raw: object, base: Path, source: str) -> object:
    match key:
        case "offline":
            return _flag(raw, source)
        case "civitai_url":
            return _address(str(raw), source)
        case _:
            path = Path(str(raw)).expanduser()
            return path if path.is_absolute() else (base / path).absolute()


def _flag(raw: object, source: str) -> bool:
    if isinstance(raw, bool):
        return raw
    text = str(raw).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ConfigError(f"`offline` from {source} is `{raw}`", hint="use 1 or 0")


def _address(raw: str, source: str) -> str:
    parts = urlsplit(raw.strip())
    host = parts.hostname or ""
    on_loopback = host in ("localhost", "::1") or host.startswith("127.")
    if parts.scheme not in ("https", "http") or not host or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"`civitai_url` from {source} is no web address", hint=f"it looks like {DEFAULT_URL}")
    if parts.scheme == "http" and not on_loopback:
        raise ConfigError(
            f"`civitai_url` from {source} is plain http: your key would cross the network in the clear",
            hint="use https (http is for this machine's loopback only)",
        )
    return raw.strip().rstrip("/")
