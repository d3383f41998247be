"""Writes what the user says of files, why bytes must stay, and which sidecars have to be written anew."""

import json
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, delete, insert
from sqlalchemy.dialects.sqlite import insert as upsert

from civman.domain.catalog import NOTHING_SAID, Own
from civman.domain.digests import Sha256
from civman.index import rows, searching
from civman.index.tables import ANNOTATION, PIN, SIDECAR_DUE


def annotate(connection: Connection, number: int, own: Own) -> None:
    """Writes all that the user says of the asset with this row id."""
    connection.execute(delete(ANNOTATION).where(ANNOTATION.c.asset_id == number))
    if own != NOTHING_SAID:
        connection.execute(insert(ANNOTATION).values(asset_id=number, **rows.own_values(own)))
    searching.refresh(connection, [number])
    sidecar_is_due(connection, [number])


def pin(connection: Connection, sha256: Sha256, reason: str, at: datetime) -> None:
    """Writes a reason why these bytes must stay; the time of the first writing stays."""
    values = {"blob_sha256": sha256, "reason": reason, "pinned_at": rows.moment(at)}
    connection.execute(upsert(PIN).values(values).on_conflict_do_nothing())
    _due(connection, "VALUES (?, hex(randomblob(8)))", sha256)


def unpin(connection: Connection, sha256: Sha256, reason: str) -> None:
    """Takes a reason away."""
    connection.execute(delete(PIN).where(PIN.c.blob_sha256 == sha256, PIN.c.reason == reason))
    _due(connection, "VALUES (?, hex(randomblob(8)))", sha256)


def sidecar_is_due(connection: Connection, ids: Iterable[int]) -> None:
    """Notes that what is kept beside these assets' blobs is older than their rows."""
    listed = json.dumps(list(ids))
    _due(
        connection,
        "SELECT DISTINCT blob_sha256, hex(randomblob(8)) FROM asset WHERE id IN (SELECT value FROM json_each(?))",
        listed,
    )


def sidecar_kept(connection: Connection, due: Iterable[tuple[Sha256, str]]) -> None:
    """Takes away what was due, where it is still the same change."""
    for sha256, token in due:
        connection.execute(delete(SIDECAR_DUE).where(SIDECAR_DUE.c.blob_sha256 == sha256, SIDECAR_DUE.c.token == token))


def sidecar_goes(connection: Connection, sha256: Sha256) -> None:
    """Nothing is due for a blob that nobody refers to."""
    connection.execute(delete(SIDECAR_DUE).where(SIDECAR_DUE.c.blob_sha256 == sha256))


def forget_seen(connection: Connection, paths: Iterable[str]) -> None:
    """Takes away what is known of files that are no more."""
    connection.exec_driver_sql(
        "DELETE FROM seen_file WHERE path IN (SELECT value FROM json_each(?))", (json.dumps(list(paths)),)
    )


def _due(connection: Connection, values: str, parameter: str) -> None:
    connection.exec_driver_sql(f"INSERT OR REPLACE INTO sidecar_due (blob_sha256, token) {values}", (parameter,))
