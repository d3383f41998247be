"""Record the new path of a file that was moved or renamed."""

from collections.abc import Iterable
from pathlib import Path

from civman.domain.digests import Sha256
from civman.domain.file_names import safe_name
from civman.index import rows
from civman.index.transactions import IN_LIST, Connection, listed
from civman.index.write_assets import stem
from civman.index.write_catalog import refresh_assets


def rehome(connection: Connection, moves: Iterable[tuple[Sha256, str, str]], *, folder: Path) -> None:
    """Change the paths of blobs. Each move is a SHA-256, the old path and the new path.

    An imported asset that is named after the old file is renamed after the new one, unless the file is now in the
    store.
    """
    named: list[tuple[str, str, str, str, str]] = []
    given = list(moves)
    for sha256, old, new in given:
        kept = rows.kept_path(new, folder)
        connection.execute("UPDATE blob SET path = ? WHERE sha256 = ?", (kept, sha256))
        before, after = safe_name(Path(old).name), safe_name(Path(new).name)
        if before != after and Path(kept).is_absolute():
            named.append((after, rows.key(after), rows.key(stem(after)), sha256, before))
    connection.executemany(
        "UPDATE asset SET name = ?, name_key = ?, stem_key = ? "
        "WHERE blob_sha256 = ? AND name = ? AND origin = 'import'",
        named,
    )
    digests = listed(sha256 for sha256, _, _ in given)
    refresh_assets(connection, f"a.blob_sha256 {IN_LIST}", digests)
