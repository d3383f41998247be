"""`library.downloads`: several files at once, and what a download would do."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.errors import NotFound
from civman.library.context import Part
from civman.library.files_part import FilesPart

if TYPE_CHECKING:
    from civman.download.job import DownloadOptions, Downloads, Examine, Job, Outcome


class DownloadsPart(Part):
    """Plan downloads, and fetch several files together."""

    def plan(
        self, ref: str, *, file: str | None = None, permits: Permits | None = None, examine: "Examine | None" = None
    ) -> "Job":
        """Which file `ref` means, whether it may be downloaded, and whether it is stored already. Fetches nothing.

        Raises: NotFound, AmbiguousRef, Gone, NotAllowed, Refused.
        """
        return self._downloads().plan(ref, file=file, permits=permits or Permits(), examine=examine)

    def plan_or_find(
        self, ref: str, *, file: str | None = None, permits: Permits | None = None, examine: "Examine | None" = None
    ) -> "Job | Outcome":
        """As `plan`; an outcome if CivitAI does not have the file but the library does."""
        downloads = self._downloads()
        try:
            return downloads.plan(ref, file=file, permits=permits or Permits(), examine=examine)
        except NotFound:
            stored = downloads.find_stored(ref, file)
            if stored is None:
                raise
            return stored

    def place_of(self, job: "Job | Outcome") -> Path | None:
        """Where a job's file is or will be; None where CivitAI declares no hash, so that only its bytes will tell."""
        from civman.download.job import Outcome  # 0.3 s, see `LibraryContext.client`

        if isinstance(job, Outcome):
            return None if job.asset is None else Path(job.asset.path)
        sha256 = job.file.hashes.sha256
        return None if sha256 is None else self._context.store.place_of(sha256, job.file.suffix)

    def fetch(
        self,
        ref: str,
        *,
        file: str | None = None,
        permits: Permits | None = None,
        options: "DownloadOptions | None" = None,
        on_event: OnEvent = ignore,
    ) -> Asset:
        """As `Library.download`."""
        outcome = self.fetch_all([ref], file=file, permits=permits, options=options, on_event=on_event)[0]
        if outcome.error is not None:
            raise outcome.error
        if outcome.asset is None:
            raise AssertionError("an outcome has an asset or an error")
        return outcome.asset

    def fetch_all(
        self,
        refs: Sequence[str],
        *,
        file: str | None = None,
        permits: Permits | None = None,
        options: "DownloadOptions | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Outcome]":
        """As `fetch` for several refs, some at a time; an outcome for each, in their order, failed or not.

        `on_event` is called from several threads. A KeyboardInterrupt stops all of them; what has arrived is kept.
        Raises: what concerns all of them: the library cannot be written.
        """
        from civman.download.job import DownloadOptions  # 0.3 s, see `LibraryContext.client`

        return self._downloads().run(
            refs, file=file, permits=permits or Permits(), options=options or DownloadOptions(), on_event=on_event
        )

    def require_fit(self, checkpoint: str, *, force: bool = False) -> "Examine":
        """For `options.examine`: refuses files that cannot work with `checkpoint`, before they are fetched.

        `force`: says so instead of refusing.
        """
        from civman.manage.remote_headers import require_fit  # 0.3 s, see `LibraryContext.client`

        files = FilesPart(self._context)
        base, headers = files.inspect(checkpoint), files.remote_headers()
        return lambda version, file: require_fit(base, headers.inspect(version, file), force=force)

    def _downloads(self) -> "Downloads":
        from civman.download.job import Downloads  # 0.3 s, see `LibraryContext.client`

        context = self._context
        return Downloads(
            index=context.index,
            store=context.store,
            client=context.client,
            network=context.network,
            resolve=context.resolve,
            clock=context.clock,
            patience=context.patience,
        )
