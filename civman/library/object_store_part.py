"""`library.object_store`: a copy of the files in an S3-compatible object store, which several libraries may share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.library.context import Part
from civman.library.open_store import open_store, pull_digests, puller
from civman.library.project_part import ProjectPart

if TYPE_CHECKING:
    from civman.exchange.second_home import Moved, Offer


class ObjectStorePart(Part):
    """Push files to an object store, pull them from it, and verify them there.

    `url` is the store's URL, such as `s3://bucket/models`; None: the URL in the settings (`object_store`).

    All methods raise UsageError: `url` is invalid, or there is no URL; NotAllowed: no access; NetworkError: the store
    cannot be reached.
    """

    def push(
        self,
        refs: Sequence[str] = (),
        *,
        url: str | None = None,
        file: str | None = None,
        project: Path | None = None,
        with_notes: bool = False,
        on_event: OnEvent = ignore,
    ) -> "Iterator[Moved]":
        """Upload the files that `refs` refer to or that the project's lock lists; with neither, the whole library.

        Files that are already in the store are not uploaded again. Yields a result for each file.
        """
        from civman.exchange.second_home import push

        context = self._context
        if project is not None:
            assets: Sequence[Asset] = ProjectPart(context).locked_assets(project)
        else:
            assets = context.find(refs, file=file) if refs else context.index.assets()
        return push(
            open_store(self._context, url),
            assets,
            context.index,
            context.store,
            with_notes=with_notes,
            on_event=on_event,
        )

    def offers(self, refs: Sequence[str] = (), *, url: str | None = None, file: str | None = None) -> "Sequence[Offer]":
        """List the files in the store that `refs` refer to, or all files in it.

        Refs follow the same rules as for files in the library. Raises: NotFound, AmbiguousRef: a ref matches no file or
        several.
        """
        from civman.exchange.second_home import choose, offers

        now = self._context.clock()
        offered = offers(open_store(self._context, url), now=now)
        return choose(offered, refs, file=file, now=now) if refs else offered

    def pull(
        self,
        offers: "Sequence[Offer]",
        *,
        url: str | None = None,
        permits: Permits | None = None,
        on_event: OnEvent = ignore,
    ) -> "Iterator[Moved]":
        """Download the files of `offers`, verify them and add them to the library. Yields a result for each file."""
        return puller(self._context, open_store(self._context, url)).pull(
            offers, permits=permits or Permits(), on_event=on_event
        )

    def pull_locked(
        self, folder: Path, *, url: str | None = None, permits: Permits | None = None, on_event: OnEvent = ignore
    ) -> "Iterator[Moved]":
        """Download the files that the lock of the project in `folder` lists but the library does not have.

        Files that the store does not have are left out. Also raises ConfigError: the lock file cannot be used.
        """
        synced = ProjectPart(self._context).sync(folder=folder, check=True)
        return self.pull_digests(
            [each.entry.sha256 for each in synced if each.asset is None], url=url, permits=permits, on_event=on_event
        )

    def pull_digests(
        self,
        digests: Sequence[Sha256],
        *,
        url: str | None = None,
        permits: Permits | None = None,
        on_event: OnEvent = ignore,
    ) -> "Iterator[Moved]":
        """Download those files with these digests that the store has.

        Yields a result for each downloaded file.
        """
        return pull_digests(self._context, digests, url=url, permits=permits or Permits(), on_event=on_event)

    def verify(
        self, refs: Sequence[str] = (), *, url: str | None = None, on_event: OnEvent = ignore
    ) -> "Iterator[Moved]":
        """Read the files in the store that `refs` refer to, or all files in it, and compare their SHA-256.

        Yields a result for each file, with its error if there is one.
        """
        from civman.exchange.second_home import verify_remote

        remote = open_store(self._context, url)
        digests = [each.sha256 for each in self.offers(refs, url=url)] if refs else sorted(remote.blobs())
        return verify_remote(remote, digests, on_event=on_event)
