"""Open the object store of a library, and download files from it by digest."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent
from civman.errors import Offline, UsageError
from civman.library.context import LibraryContext

if TYPE_CHECKING:
    from civman.exchange.object_store import ObjectStore
    from civman.exchange.second_home import Moved, Puller


def is_configured(context: LibraryContext) -> bool:
    """Whether an object store is set and the network may be used."""
    return context.settings.object_store is not None and not context.settings.offline


def open_store(context: LibraryContext, url: str | None = None) -> "ObjectStore":
    """Open the object store at `url`, or the one in the settings. No request is sent yet.

    Raises: UsageError: no store is given or set, or `url` is invalid. NotAllowed: there are no access keys. Offline.
    """
    url = url or context.settings.object_store
    if url is None:
        raise UsageError(
            "no object store is given",
            hint="pass the store's URL as the first argument, or set it: civman config object_store s3://bucket/models",
        )
    if context.settings.offline:
        raise Offline("the object store was not contacted because civman is offline")
    from civman.exchange.object_store import ObjectStore

    return ObjectStore.open(url)


def puller(context: LibraryContext, remote: "ObjectStore") -> "Puller":
    """Create the object that downloads files from `remote` into the library."""
    from civman.civitai.site import user_agent
    from civman.civitai.storage_connection import Network
    from civman.exchange.second_home import Puller

    patience = context.patience
    network = Network(user_agent(), stall_s=patience.stall_s, connect_s=patience.connect_s, own_server=remote.server)
    return Puller(remote, context.index, context.store, network, patience, context.clock)


def pull_digests(
    context: LibraryContext, digests: Sequence[Sha256], *, url: str | None, permits: Permits, on_event: OnEvent
) -> "Iterator[Moved]":
    """Download those files with these digests that the object store has. Yields a result for each of them."""
    from civman.exchange.second_home import offers

    remote = open_store(context, url)
    found = offers(remote, digests, now=context.clock()) if digests else []
    return puller(context, remote).pull(found, permits=permits, on_event=on_event)
