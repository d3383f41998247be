"""Write the user's annotations, pins, compatibility verdicts, and which sidecar files are out of date."""

from collections.abc import Iterable
from datetime import datetime

from civman.domain.catalog import NOTHING_SAID, Asset, Own
from civman.domain.digests import Sha256
from civman.index import rows, search_rows
from civman.index.index_types import Fits
from civman.index.transactions import IN_LIST, Connection, insert, listed


def annotate(connection: Connection, number: int, own: Own) -> None:
    """Replace the user's annotations of the asset with this row id."""
    connection.execute("DELETE FROM annotation WHERE asset_id = ?", (number,))
    if own != NOTHING_SAID:
        insert(connection, "annotation", [{"asset_id": number, **rows.own_values(own)}])
    search_rows.refresh(connection, [number])
    sidecar_is_due(connection, [number])


def pin(connection: Connection, sha256: Sha256, reason: str, at: datetime) -> None:
    """Record a reason why these bytes must be kept. If the reason is already recorded, its time does not change."""
    sql = "INSERT INTO pin (blob_sha256, reason, pinned_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
    connection.execute(sql, (sha256, reason, rows.moment(at)))
    _due(connection, "VALUES (?, hex(randomblob(8)))", sha256)


def save_verdicts(connection: Connection, fits: Fits, verdicts: Iterable[tuple[Asset, str]]) -> None:
    """Save how compatible assets are with the checkpoint of `fits`, replacing verdicts of earlier rules."""
    sql = (
        "INSERT INTO fit (checkpoint_sha256, part_sha256, labels, rules, verdict) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (checkpoint_sha256, part_sha256, labels) DO UPDATE SET rules = excluded.rules,"
        " verdict = excluded.verdict"
    )
    connection.executemany(
        sql,
        [
            (fits.checkpoint, asset.blob.sha256, f"{fits.label}\n{asset.base_model or ''}", fits.rules, verdict)
            for asset, verdict in verdicts
        ],
    )


def unpin(connection: Connection, sha256: Sha256, reason: str) -> None:
    """Remove a reason why bytes must be kept."""
    connection.execute("DELETE FROM pin WHERE blob_sha256 = ? AND reason = ?", (sha256, reason))
    _due(connection, "VALUES (?, hex(randomblob(8)))", sha256)


def sidecar_is_due(connection: Connection, ids: Iterable[int]) -> None:
    """Mark these assets' sidecar files as out of date: the database rows are newer."""
    changed = f"SELECT DISTINCT blob_sha256, hex(randomblob(8)) FROM asset WHERE id {IN_LIST}"  # noqa: S608
    _due(connection, changed, listed(ids))


def sidecar_kept(connection: Connection, due: Iterable[tuple[Sha256, str]]) -> None:
    """Remove the out-of-date marks of sidecar files that were just written, unless their rows have changed again."""
    connection.executemany("DELETE FROM sidecar_due WHERE blob_sha256 = ? AND token = ?", list(due))


def sidecar_goes(connection: Connection, sha256: Sha256) -> None:
    """Remove the out-of-date mark of a sidecar file when its blob is removed."""
    connection.execute("DELETE FROM sidecar_due WHERE blob_sha256 = ?", (sha256,))


def forget_seen(connection: Connection, paths: Iterable[str]) -> None:
    """Remove the saved digests of files that no longer exist."""
    connection.execute(f"DELETE FROM seen_file WHERE path {IN_LIST}", (listed(paths),))  # noqa: S608


def _due(connection: Connection, values: str, parameter: str) -> None:
    connection.execute(f"INSERT OR REPLACE INTO sidecar_due (blob_sha256, token) {values}", (parameter,))
