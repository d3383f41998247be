"""Other processes find a library's server through `serve.json` in the library's folder; only the owner can read it.

Imports only the standard library, since a command that may be handed over reads the file before anything else.
"""

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from civman.system.move_files import remove_file

PROTOCOL = 1
"""The version of the protocol between server and commands. Increase it with every incompatible change."""
NAME = "serve.json"


@dataclass(frozen=True, slots=True)
class ServerFile:
    """The port on which a server listens, and the token that proves that a caller can read the library's folder."""

    pid: int
    port: int
    token: str
    version: str
    protocol: int = PROTOCOL

    def write(self, library: Path) -> None:
        """Write the file atomically, readable by its owner only."""
        path = library / NAME
        partial = path.with_name(f".{NAME}.{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        partial.replace(path)

    def remove(self, library: Path) -> None:
        """Remove the file, unless another server has replaced it with its own in the meantime."""
        if read_server_file(library) == self:
            with contextlib.suppress(OSError):
                remove_file(library / NAME)


def read_server_file(library: Path) -> ServerFile | None:
    """Read the file in which a library's server stores its port and token.

    Returns None if the file is missing or invalid, or if it has another protocol version than this civman.
    """
    try:
        value = json.loads((library / NAME).read_text(encoding="utf-8"))
        found = ServerFile(**value)
    except (OSError, ValueError, TypeError):
        return None
    return found if found.protocol == PROTOCOL else None
