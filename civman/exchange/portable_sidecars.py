"""Sidecars for other machines: private data is left out when writing, and everything is checked when reading."""

import json
from datetime import datetime
from typing import Any

from civman.domain.digests import Sha256
from civman.domain.file_names import safe_name
from civman.errors import BadAnswer, Cause, IntegrityError
from civman.exchange.bundle_archive import MOST_PREVIEW_BYTES
from civman.index import Index
from civman.manage.sidecar import described
from civman.store.blobs import BlobStore

_MOST_ASSETS = 1000
_PRIVATE = ("note", "tags", "trigger_words", "rating", "is_favourite", "alias")
"""The user's own annotations of an asset, which are included only on request."""


class Portable:
    """Creates sidecars and previews one at a time, when they are needed, to save memory."""

    def __init__(self, index: Index, store: BlobStore, *, with_notes: bool) -> None:
        """With `with_notes`, the user's own annotations are included."""
        self._index, self._store, self._with_notes = index, store, with_notes

    def sidecar(self, sha256: Sha256) -> bytes:
        """The JSON of the blob's sidecar, without the data that is specific to this machine (path and pins)."""
        facts = described(self._index, self._index.referrers(sha256), self._store)
        for own in ("path", "pins"):  # the path and the pins belong to this machine, not to the model
            facts.pop(own, None)
        facts["assets"] = [self._public(entry) for entry in facts["assets"]]
        return json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True).encode()

    def preview(self, sha256: Sha256) -> tuple[str, bytes] | None:
        """The suffix and the bytes of the blob's preview image; None if there is none or it is too large."""
        path = self._store.preview(sha256)
        if path is None or not 0 < path.stat().st_size <= MOST_PREVIEW_BYTES:
            return None
        return path.suffix, path.read_bytes()

    def _public(self, entry: dict[str, Any]) -> dict[str, Any]:
        left_out = {"last_used_at"} if self._with_notes else {"last_used_at", *_PRIVATE}
        return {key: value for key, value in entry.items() if key not in left_out}


def bad_sidecar(why: str) -> IntegrityError:
    """Build the error for an unusable sidecar from another machine."""
    return IntegrityError(f"the file's metadata (its sidecar) is invalid: {why}", code=Cause.BAD_SIDECAR)


def checked_facts(data: bytes, now: datetime) -> dict[str, Any]:
    """Parse a sidecar from another machine. Unsafe names and future times are replaced, and pins are removed.

    Raises: IntegrityError (`bad-sidecar`).
    """
    try:
        facts = json.loads(data)
        entries = facts["assets"]
        if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_ASSETS:
            raise bad_sidecar("the sidecar does not describe exactly one file")
        return {**facts, "pins": [], "assets": [_entry(entry, now) for entry in entries]}
    except (BadAnswer, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise bad_sidecar("the sidecar cannot be read") from error


def _entry(entry: dict[str, Any], now: datetime) -> dict[str, Any]:
    added_at = datetime.fromisoformat(entry["added_at"])
    if entry.get("model") and entry.get("version"):
        from civman.civitai import wire_models  # this imports pydantic, which takes 0.2 s

        # parse the metadata before the file's contents are imported, to find errors early
        wire_models.page({**entry["model"], "modelVersions": [entry["version"]]}, now=now, on_notice=lambda _: None)
    asked = {what: _asked((entry.get("asked") or {}).get(what), now) for what in ("model", "version")}
    return {
        **entry,
        "name": safe_name(str(entry["name"])),
        "origin": "civitai" if entry["origin"] == "civitai" else "import",
        "added_at": min(added_at, now).isoformat(),
        "asked": asked,
    }


def _asked(raw: dict[str, Any] | None, now: datetime) -> dict[str, Any] | None:
    """Return the record of a response from CivitAI, or None if its time is in the future.

    The index keeps the latest response, so a time in the future would make it ignore real responses.
    """
    if not raw or datetime.fromisoformat(raw["at"]) > now:
        return None
    return raw
