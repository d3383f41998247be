"""What `civman gc` does in an object store: it deletes the remains of interrupted uploads, but never a model file."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.exchange.object_store import ObjectStore
from civman.exchange.second_home import offers, verify_remote
from civman.manage.second_copies import SecondCopy, StoreLeftover

SHORTEST_AGE = timedelta(days=1)
"""The minimum age of a sidecar or preview that may be deleted. A younger one may belong to an unfinished upload."""


def second_copies(
    remote: ObjectStore, last: Collection[Sha256], read: Collection[Sha256], *, now: datetime,
    on_event: OnEvent = ignore,
) -> list[SecondCopy]:  # fmt: skip
    """List the store's copies of the files in `last`. Copies of files that are also in `read` are read and verified.

    Copies that cannot be pulled, because their sidecar is missing or unreadable, are left out, and so are copies that
    turn out to be corrupt.

    Raises: NetworkError, NotAllowed, NotFound: the store cannot be used.
    """
    found = {offer.sha256: offer.size_bytes for offer in offers(remote, sorted(last), now=now)}
    chosen = [sha256 for sha256 in found if sha256 in read]
    states = {moved.sha256: moved.error is None for moved in verify_remote(remote, chosen, on_event=on_event)}
    return [
        SecondCopy(sha256, size, states.get(sha256, False))
        for sha256, size in sorted(found.items())
        if states.get(sha256, True)
    ]


def leftovers(remote: ObjectStore, *, now: datetime, older_than: timedelta) -> list[StoreLeftover]:
    """List sidecars and previews in the store that have no blob and are older than `older_than` (at least a day)."""
    return remote.orphaned_companions(now - max(older_than, SHORTEST_AGE))


def drop_leftovers(remote: ObjectStore, chosen: Iterable[StoreLeftover], *, now: datetime) -> list[StoreLeftover]:
    """Delete those of the `chosen` sidecars and previews that are unchanged and still have no blob.

    Returns the deleted ones. Raises: NetworkError, NotAllowed, NotFound: the store cannot be used.
    """
    still = set(remote.orphaned_companions(now - SHORTEST_AGE))
    doomed = [each for each in chosen if each in still]
    remote.drop_companions(doomed)
    return doomed
