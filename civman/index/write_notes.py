"""Writes what the user says of files, why bytes must stay, and which sidecars have to be written anew."""

from collections.abc import Iterable
from datetime import datetime

from civman.domain.catalog import NOTHING_SAID, Own
from civman.domain.digests import Sha256
from civman.index import rows, search_rows
from civman.index.transactions import IN_LIST, Connection, insert, listed


def annotate(connection: Connection, number: int, own: Own) -> None:
    """Writes all that the user says of the asset with this row id."""
    connection.execute("DELETE FROM annotation WHERE asset_id = ?", (number,))
    if own != NOTHING_SAID:
        insert(connection, "annotation", [{"asset_id": number, **rows.own_values(own)}])
    search_rows.refresh(connection, [number])
    sidecar_is_due(connection, [number])


def pin(connection: Connection, sha256: Sha256, reason: str, at: datetime) -> None:
    """Writes a reason why these bytes must stay; the time of the first writing stays."""
    sql = "INSERT INTO pin (blob_sha256, reason, pinned_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
    connection.execute(sql, (sha256, reason, rows.moment(at)))
    _due(connection, "VALUES (?, hex(randomblob(8)))", sha256)


def unpin(connection: Connection, sha256: Sha256, reason: str) -> None:
    """Takes a reason away."""
    connection.execute("DELETE FROM pin WHERE blob_sha256 = ? AND reason = ?", (sha256, reason))
    _due(connection, "VALUES (?, hex(randomblob(8)))", sha256)


def sidecar_is_due(connection: Connection, ids: Iterable[int]) -> None:
    """Notes that what is kept beside these assets' blobs is older than their rows."""
    changed = f"SELECT DISTINCT blob_sha256, hex(randomblob(8)) FROM asset WHERE id {IN_LIST}"  # noqa: S608
    _due(connection, changed, listed(ids))


def sidecar_kept(connection: Connection, due: Iterable[tuple[Sha256, str]]) -> None:
    """Takes away what was due, where it is still the same change."""
    connection.executemany("DELETE FROM sidecar_due WHERE blob_sha256 = ? AND token = ?", list(due))


def sidecar_goes(connection: Connection, sha256: Sha256) -> None:
    """Nothing is due for a blob that nobody refers to."""
    connection.execute("DELETE FROM sidecar_due WHERE blob_sha256 = ?", (sha256,))


def forget_seen(connection: Connection, paths: Iterable[str]) -> None:
    """Takes away what is known of files that are no more."""
    connection.execute(f"DELETE FROM seen_file WHERE path {IN_LIST}", (listed(paths),))  # noqa: S608


def _due(connection: Connection, values: str, parameter: str) -> None:
    connection.execute(f"INSERT OR REPLACE INTO sidecar_due (blob_sha256, token) {values}", (parameter,))
