"""`library.downloads`: download several files at once, and plan downloads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.architecture import Kind
from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.errors import NetworkError, NotFound
from civman.library.context import LibraryContext, Part
from civman.library.files_part import FilesPart

if TYPE_CHECKING:
    from civman.domain.catalog import Preview
    from civman.download.job import DownloadOptions, Downloads, Examine, Job, Outcome
    from civman.manage.resolve import ResolvedVersion
    from civman.planning.needed_parts import NeededPart


class DownloadsPart(Part):
    """Plan downloads, and download several files at once."""

    def __init__(self, context: LibraryContext, resolve: "Callable[[str], ResolvedVersion] | None" = None) -> None:
        """`resolve` finds the version that a ref means; None: `LibraryContext.resolve` does."""
        super().__init__(context)
        self._resolve = resolve or context.resolve

    def plan(
        self, ref: str, *, file: str | None = None, permits: Permits | None = None, examine: "Examine | None" = None
    ) -> "Job":
        """Find out which file `ref` refers to, whether it may be downloaded and whether it is stored; download nothing.

        Raises: NotFound, AmbiguousRef, Gone, NotAllowed, Refused.
        """
        return self._downloads().plan(ref, file=file, permits=permits or Permits(), examine=examine)

    def plan_or_find(
        self, ref: str, *, file: str | None = None, permits: Permits | None = None, examine: "Examine | None" = None
    ) -> "Job | Outcome":
        """Plan a download as `plan` does, or return the stored file's outcome if CivitAI does not know the file."""
        downloads = self._downloads()
        try:
            return downloads.plan(ref, file=file, permits=permits or Permits(), examine=examine)
        except NotFound:
            stored = downloads.find_stored(ref, file)
            if stored is None:
                raise
            return stored

    def place_of(self, job: "Job | Outcome") -> Path | None:
        """Where a job's file is or will be stored; None if CivitAI declares no SHA-256, which decides the path."""
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.download.job import Outcome

        if isinstance(job, Outcome):
            return None if job.asset is None else Path(job.asset.path)
        if job.held is not None:
            return Path(job.held.path)
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
        """Download the file that `ref` refers to, verify it, store it and index it, as `Library.download` does."""
        outcome = self.fetch_all([ref], file=file, permits=permits, options=options, on_event=on_event)[0]
        if outcome.error is not None:
            raise outcome.error
        if outcome.asset is None:
            raise AssertionError("an outcome without an asset must have an error")
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
        """Download the files of several refs, a few at a time.

        Returns an outcome for each ref, failed or not, in the same order.

        `on_event` is called from several threads. A KeyboardInterrupt stops all downloads; the bytes received so far
        are kept.

        Raises: an error that concerns all downloads, such as a library that is not writable.
        """
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.download.job import DownloadOptions

        return self._downloads().run(
            refs, file=file, permits=permits or Permits(), options=options or DownloadOptions(), on_event=on_event
        )

    def require_fit(self, checkpoint: str, *, force: bool = False) -> "Examine":
        """Create a check for `DownloadOptions.examine` that refuses files that cannot work with `checkpoint`.

        With `force`, the check returns a notice instead of refusing.
        """
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.manage.remote_headers import require_fit

        files = FilesPart(self._context)
        base, headers = files.inspect(checkpoint), files.remote_headers()
        return lambda version, file: require_fit(base, headers.inspect(version, file), force=force)

    def needed_parts(self, asset: Asset) -> "tuple[NeededPart, ...]":
        """List the text encoders and the VAE that a checkpoint lacks, or the image encoder that an IP-Adapter needs.

        `asset` is the stored checkpoint or IP-Adapter. For parts that the library does not have, CivitAI is asked for
        published files; if it cannot be reached, `was_asked` of these parts is False.

        Raises: the errors of reading the file.
        """
        if asset.facts.kind not in (Kind.CHECKPOINT.value, Kind.IP_ADAPTER.value):
            return ()
        # imported on first use: planning imports all model families, which takes 0.1 s
        from civman.planning.find_files import Finder
        from civman.planning.needed_parts import needed_parts, with_offers

        finder = Finder(self._context.index, ignore)
        parts = needed_parts(finder, finder.of_asset(asset.facts.kind, asset))
        try:
            return with_offers(parts, self._context.client.versions_by_hashes)
        except NetworkError:
            return parts

    def preview_bytes(self, preview: "Preview") -> bytes:
        """Download a version's preview image. Raises: NetworkError, NotFound, UnsafeRedirect."""
        return self._downloads().preview_bytes(preview)

    def _downloads(self) -> "Downloads":
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.download.job import Downloads

        context = self._context
        return Downloads(
            index=context.index,
            store=context.store,
            client=context.client,
            network=context.network,
            resolve=self._resolve,
            clock=context.clock,
            patience=context.patience,
        )
