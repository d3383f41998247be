"""The requests of `civman gc` to an object store. It may delete remains of uploads there, never a file."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.exchange.object_store import ObjectStore
from civman.exchange.second_home import offers, verify_remote
from civman.manage.second_copies import SecondCopy, StoreLeftover

SHORTEST_AGE = timedelta(days=1)
"""The minimum age of a sidecar or preview that may be deleted; a younger one may belong to an upload that is still
running.
"""


def second_copies(
    remote: ObjectStore, last: Collection[Sha256], read: Collection[Sha256], *, now: datetime,
    on_event: OnEvent = ignore,
) -> list[SecondCopy]:  # fmt: skip
    """Find out which of the files `last` can be pulled from the store. Those in `read` are read there and verified.

    Left out are files without a readable sidecar, which cannot be pulled, and files whose bytes are wrong.

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
    """List sidecars and previews in the store without their file, older than `older_than` and than a day."""
    return remote.beside_missing(now - max(older_than, SHORTEST_AGE))


def drop_leftovers(remote: ObjectStore, chosen: Iterable[StoreLeftover], *, now: datetime) -> list[StoreLeftover]:
    """Delete those sidecars and previews of `chosen` that have not changed and whose blob is still missing.

    Returns the ones that were deleted. Raises: NetworkError, NotAllowed, NotFound: the store cannot be used.
    """
    still = set(remote.beside_missing(now - SHORTEST_AGE))
    doomed = [each for each in chosen if each in still]
    remote.drop_beside(doomed)
    return doomed
