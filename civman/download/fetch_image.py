"""Downloads the original of an image on CivitAI. The API key is never sent to the image server."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from civman.civitai.storage_connection import StorageConnection
from civman.errors import Cause, UsageError

MOST_BYTES: Final = 64 << 20
"""The maximum size in bytes of an image that is downloaded."""
_SIZED: Final = re.compile(r"/(?:[a-z]+=[^/]*)(/[^/]*)$")


def original_url(url: str) -> str:
    """Return the URL of the original image: the parameters for a resized copy are replaced with `original=true`."""
    return _SIZED.sub(r"/original=true\1", url)


def fetch_image(connect: Callable[[], StorageConnection], url: str, target: Path) -> None:
    """Download the image at `url` to the file `target`; its folder is created if necessary.

    Raises: UsageError (`bad-picture`): the image is too large. NetworkError, NotFound, NotAllowed, UnsafeRedirect.
    """
    connection = connect()
    try:
        body = connection.open(original_url(url), start=0, end=None)
        if (body.total_bytes or 0) > MOST_BYTES:
            raise UsageError(
                f"the image has {body.total_bytes} bytes, which is more than civman reads", code=Cause.BAD_PICTURE
            )
        data = body.read_all(MOST_BYTES)
    finally:
        connection.close()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_bytes(data)
    part.replace(target)
