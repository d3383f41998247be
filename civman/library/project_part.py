"""`library.project`: the models that a project's civman.toml and civman.lock list."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.errors import NotFound
from civman.library.context import Part
from civman.library.downloads_part import DownloadsPart
from civman.library.open_store import is_configured, pull_digests

if TYPE_CHECKING:
    from civman.exchange.project import Locked, Project
    from civman.exchange.sync import Added, Synced, Syncing


class ProjectPart(Part):
    """Add models to a project, and download the models in its lock file.

    `folder` is the project's folder or one of its subfolders.
    """

    def add(
        self,
        refs: Sequence[str],
        *,
        folder: Path,
        file: str | None = None,
        download: bool = True,
        permits: Permits | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Added]":
        """Add `refs` to the project's civman.toml, and their exact files to its civman.lock.

        Returns an outcome for each.

        Raises: ConfigError: civman.toml or civman.lock cannot be read or written.
        """
        return self._syncing(folder, file, permits, on_event).add(refs, download=download)

    def drop(self, refs: Sequence[str], *, folder: Path) -> "Sequence[Locked]":
        """Remove the entries that `refs` refer to from the project's civman.toml and civman.lock.

        Raises: NotFound: the project has no entry for a ref.
        """
        from civman.exchange.project import Project

        project = Project.nearest(folder)
        return project.drop([ref if project.find(ref) else self._digest_of(project, ref) for ref in refs])

    def _digest_of(self, project: "Project", ref: str) -> str:
        """The SHA-256 of the stored file that `ref` refers to, if the project's lock lists that file; else `ref`."""
        if not self._context.has_index:
            return ref
        try:
            digests = {str(asset.blob.sha256) for asset in self._context.find([ref])}
        except NotFound:
            return ref
        return next((digest for digest in digests if project.find(digest)), ref)

    def sync(
        self,
        *,
        folder: Path,
        check: bool = False,
        relock: bool = False,
        permits: Permits | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Synced]":
        """Download exactly those files in the lock that are not stored yet. Returns an outcome for each entry.

        A file is downloaded from the object store in the settings if the store has it, else from CivitAI.

        `check`: only check, change nothing. `relock`: update the lock file first. Raises: ConfigError: `lock-missing`
        or `lock-stale`.
        """
        syncing = self._syncing(folder, None, permits, on_event)
        failed = [added for added in syncing.relock() if added.error is not None] if relock else []
        if failed and failed[0].error is not None:
            raise failed[0].error
        if not check and is_configured(self._context):
            missing = [each.entry.sha256 for each in syncing.check() if each.asset is None]
            for moved in pull_digests(
                self._context, missing, url=None, permits=permits or Permits(), on_event=on_event
            ):
                if moved.error is not None:
                    self._context.on_notice(
                        f"`{moved.name}` cannot be downloaded from the object store: {moved.error.message}"
                    )
        return syncing.check() if check else syncing.sync()

    def locked_assets(self, folder: Path) -> Sequence[Asset]:
        """The stored files in the lock of the project in `folder`. Raises an error if one of them is missing."""
        synced = self.sync(folder=folder, check=True)
        for each in synced:
            if each.error is not None:
                raise each.error
        return [each.asset for each in synced if each.asset is not None]

    def _syncing(self, folder: Path, file: str | None, permits: Permits | None, on_event: OnEvent) -> "Syncing":
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.download.job import DownloadOptions
        from civman.exchange.project import Project
        from civman.exchange.sync import Syncing

        downloads = DownloadsPart(self._context)
        return Syncing(
            Project.nearest(folder),
            self._context.index,
            fetch=lambda refs, examine: downloads.fetch_all(
                refs, file=file, permits=permits, options=DownloadOptions(examine=examine), on_event=on_event
            ),
            plan=lambda ref: downloads.plan(ref, file=file, permits=permits),
            file=file,
        )
