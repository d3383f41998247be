"""The user's own data about a file: note, tags, trigger words, rating, favourite, alias, pin."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from civman.domain.catalog import Asset, Own
from civman.errors import UsageError
from civman.index import USER_PIN, Index
from civman.manage.sidecar import write_sidecar
from civman.store.blobs import BlobStore
from civman.store.trash import blob_lock


@dataclass(frozen=True, slots=True)
class Edit:
    """The changes to make. A field that is None or an empty tuple changes nothing.

    An empty string as `note` or `alias` removes the note or the alias, and a rating of 0 removes the rating.
    """

    note: str | None = None
    tags: tuple[str, ...] = ()
    no_tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    no_trigger_words: tuple[str, ...] = ()
    rating: int | None = None
    is_favourite: bool | None = None
    alias: str | None = None
    is_pinned: bool | None = None


def apply(index: Index, store: BlobStore, assets: Sequence[Asset], edit: Edit, *, now: datetime) -> list[Asset]:
    """Apply an edit to each of `assets`, in the index and in the sidecars. Returns the assets in their new state.

    Raises: UsageError: the edit changes nothing, the rating is invalid, or the alias is in use or is set for several
    files at once.
    """
    if edit == Edit():
        raise UsageError(
            "there is nothing to change",
            hint="pass what to change, such as --note TEXT, --tag WORD, --rating 4 or --pin",
        )
    if edit.rating is not None and not 0 <= edit.rating <= 5:
        raise UsageError(
            f"{edit.rating} is not a valid rating", hint="use a rating from 1 to 5, or 0 to remove the rating"
        )
    if edit.alias and len(assets) > 1:
        raise UsageError(
            f"an alias is for one file, but this ref means {len(assets)} files",
            hint="use a ref that means one file, or select one with --file",
        )
    changed: list[Asset] = []
    for asset in assets:
        sha256 = asset.blob.sha256
        with blob_lock(store, sha256):
            if edit.alias is not None:
                asset = index.set_alias(asset, edit.alias.strip() or None)
            own = _edited(asset.own, edit)
            if own != asset.own:
                asset = index.annotate(asset, own)
            if edit.is_pinned:
                index.pin(sha256, USER_PIN, now)
            elif edit.is_pinned is False:
                index.unpin(sha256, USER_PIN)
            write_sidecar(store, index, sha256)
        changed += [other for other in index.referrers(sha256) if _same(other, asset)]
    return changed


def _edited(own: Own, edit: Edit) -> Own:
    return replace(
        own,
        note=own.note if edit.note is None else edit.note.strip(),
        tags=_listed(own.tags, edit.tags, edit.no_tags),
        trigger_words=_listed(own.trigger_words, edit.trigger_words, edit.no_trigger_words),
        rating=own.rating if edit.rating is None else edit.rating or None,
        is_favourite=own.is_favourite if edit.is_favourite is None else edit.is_favourite,
    )


def _listed(old: Iterable[str], more: Iterable[str], fewer: Iterable[str]) -> tuple[str, ...]:
    gone = {word.strip().casefold() for word in fewer}
    words = [word.strip() for word in (*old, *more)]
    return tuple(dict.fromkeys(word for word in words if word and word.casefold() not in gone))


def _same(one: Asset, other: Asset) -> bool:
    return (one.version_id, one.file_id, one.name) == (other.version_id, other.file_id, other.name)
