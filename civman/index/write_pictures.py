"""Record the images that were made with this library."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from civman.domain.recipes.record import AnyRecord
from civman.index import rows
from civman.index.transactions import IN_LIST, Connection, insert, listed, scalar


def record(connection: Connection, made: Iterable[tuple[Path, AnyRecord]], *, at: datetime, folder: Path) -> list[int]:
    """Record images and return their ids. If a path is already recorded, its row is replaced."""
    numbers = []
    for path, each in made:
        kept = rows.kept_path(path, folder)
        connection.execute("DELETE FROM rendering WHERE path = ?", (kept,))
        recipe = each.recipe
        insert(connection, "rendering", [{
            "path": kept, "recipe_sha256": recipe.sha256, "pixel_sha256": each.pixel_sha256,
            "parent_sha256": each.parent, "search_text": rows.key("\n".join(each.words)), "record": each.to_json(),
            "made_at": rows.moment(at),
        }])  # fmt: skip
        number = int(scalar(connection, "SELECT last_insert_rowid()"))
        numbers.append(number)
        digests = {digest for digests in recipe.digests.values() for digest in digests}
        insert(connection, "rendering_file", [{"rendering_id": number, "sha256": digest} for digest in sorted(digests)])
    return numbers


def forget(connection: Connection, numbers: Iterable[int]) -> int:
    """Remove the rows of these images; their files stay on disk. Returns the number removed."""
    return connection.execute(f"DELETE FROM rendering WHERE id {IN_LIST}", (listed(numbers),)).rowcount  # noqa: S608
