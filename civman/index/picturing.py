"""Writes pictures that were made."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, delete, insert

from civman.domain.record import Record
from civman.index import rows
from civman.index.tables import RENDERING, RENDERING_FILE


def record(connection: Connection, made: Iterable[tuple[Path, Record]], *, at: datetime, folder: Path) -> list[int]:
    """Writes pictures and gives their numbers. A path that was known is now this picture's."""
    numbers = []
    for path, each in made:
        kept = rows.kept_path(path, folder)
        connection.execute(delete(RENDERING).where(RENDERING.c.path == kept))
        recipe = each.recipe
        words = [recipe.prompt, recipe.negative_prompt]
        words += [each.typed.prompt] if each.typed else []
        words += [text for name in each.names for text in (name.name, name.model)]
        inserted = connection.execute(insert(RENDERING).values(
            path=kept, recipe_sha256=recipe.sha256, pixel_sha256=each.pixel_sha256, parent_sha256=each.parent,
            search_text=rows.key("\n".join(words)), record=each.to_json(), made_at=rows.moment(at),
        ))  # fmt: skip
        (number,) = inserted.inserted_primary_key or (0,)
        numbers.append(int(number))
        digests = {digest for digests in recipe.digests.values() for digest in digests}
        connection.execute(
            insert(RENDERING_FILE), [{"rendering_id": number, "sha256": digest} for digest in sorted(digests)]
        )
    return numbers


def forget(connection: Connection, numbers: Iterable[int]) -> int:
    """Takes pictures' rows away; their files stay. Gives how many there were."""
    listed = list(numbers)
    return connection.execute(delete(RENDERING).where(RENDERING.c.id.in_(listed))).rowcount
