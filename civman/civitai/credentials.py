"""Stores the API key: in the system keyring if there is one, else in a file that only its owner can read.

Only the HTTP client receives the key as a plain string. The key appears in no message and no setting.
"""

import importlib
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from civman.errors import Cause, ConfigError
from civman.settings import TOKEN_VARIABLE, Settings
from civman.system.move_files import remove_file, replace_file

_FILE = "credentials.json"
_SERVICE = "civman"
_TOKEN = re.compile(r"[!-~]{8,512}")


@dataclass(frozen=True, slots=True)
class Credential:
    """The API key, which `repr` hides, and a description of where it comes from for `civman doctor`."""

    source: str
    token: str | None

    def __repr__(self) -> str:
        return f"Credential(source={self.source!r}, token={'(hidden)' if self.token else None})"


def load(settings: Settings) -> Credential:
    """Load the API key that is in effect. Raises: ConfigError: a key is stored but cannot be read."""
    if settings.token_from_environment:
        return Credential(f"environment {TOKEN_VARIABLE}", check_shape(settings.token_from_environment))
    path = settings.config_folder / _FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.get("store") == "keyring":
            return Credential("system keyring", _from_keyring(settings.civitai_url))
        token = stored.get("tokens", {}).get(settings.civitai_url)
    except FileNotFoundError:
        return Credential("none", None)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"cannot read `{path}`", hint="run `civman login` to store the API key again", path=str(path)
        ) from error
    return Credential(str(path), token) if token else Credential("none", None)


def save(settings: Settings, token: str, *, use_keyring: bool) -> str:
    """Store `token` for the configured CivitAI URL. Returns a description of its location. Raises: ConfigError."""
    path = settings.config_folder / _FILE
    token = check_shape(token)
    if use_keyring and importlib.util.find_spec("keyring") is not None:
        # importing keyring takes 0.1 s and needs a desktop service, so only `civman login` imports it
        keyring = importlib.import_module("keyring")

        try:
            keyring.set_password(_SERVICE, settings.civitai_url, token)
        except keyring.errors.KeyringError:
            pass  # the keyring is not available, e.g. without a desktop session, so the file is used instead
        else:
            _write(path, {"store": "keyring"})
            return "the system keyring"
    tokens = _tokens(path)
    tokens[settings.civitai_url] = token
    _write(path, {"store": "file", "tokens": tokens})
    return str(path)


def forget(settings: Settings) -> bool:
    """Remove the stored key for the configured URL. Returns whether there was one."""
    path = settings.config_folder / _FILE
    tokens = _tokens(path)
    had = tokens.pop(settings.civitai_url, None) is not None
    if path.exists():
        _write(path, {"store": "file", "tokens": tokens})
    return had


def check_shape(token: str) -> str:
    """Check the form of an API key, and return it without surrounding white space.

    Raises: ConfigError: the text cannot be a key; the message does not contain it.
    """
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            "not an API key: a key is one word of letters and digits",
            code=Cause.BAD_KEY_SHAPE,
            hint="copy the key again from https://civitai.com/user/account, section API Keys",
        )
    return token


def _tokens(path: Path) -> dict[str, str]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8")).get("tokens", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return dict(stored) if isinstance(stored, dict) else {}


def _from_keyring(address: str) -> str | None:
    if importlib.util.find_spec("keyring") is None:
        raise ConfigError(
            "the key is in the system keyring, but the keyring package is not installed",
            hint="pip install 'civman[keyring]', or run `civman login` again",
        )
    # importing keyring takes 0.1 s, so it is imported only if the key is stored there
    keyring = importlib.import_module("keyring")

    try:
        token = keyring.get_password(_SERVICE, address)
    except keyring.errors.KeyringError as error:
        raise ConfigError(f"cannot access the system keyring: {error}", hint=f"set {TOKEN_VARIABLE}") from error
    return None if token is None else str(token)


def _write(path: Path, stored: dict[str, object]) -> None:
    """Write the credentials file. Only its owner can read it, from the moment it is created."""
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_file(temporary, missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(stored, file)
        replace_file(temporary, path)
    except OSError as error:
        raise ConfigError(f"cannot write `{path}`: {error.strerror}", hint=f"set {TOKEN_VARIABLE} instead") from error
