"""Wishes that reach beyond one library: upstream changes, other programs, projects, bundles."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore

if TYPE_CHECKING:
    from civman.exchange.bundle_export import Exported
    from civman.exchange.bundle_import import Brought
    from civman.exchange.sync import Added, Synced, Syncing
    from civman.exchange.view_links import Linked, Step, ViewPlan
    from civman.exchange.view_request import ViewWish
    from civman.manage.outdated import Outlook
from civman.library.tending import Tending


class Sharing(Tending):
    """Outdated, link, add, sync, export, import."""

    def outdated(self, refs: Sequence[str] = (), *, any_base: bool = False) -> "Outlook":
        """What CivitAI has that is newer than what is held (or than `refs`), what it replaced, what it took away.

        `any_base`: versions for another base model count too. Raises: NotFound, AmbiguousRef, NetworkError.
        """
        from civman.manage.outdated import outlook  # 0.3 s, see `client`

        assets = [asset for ref in refs for asset in self.held(ref)] if refs else self.index.assets()
        return outlook(self.index, self.client, assets, any_base=any_base, clock=self._clock)

    def plan_view(self, folder: Path, wish: "ViewWish") -> "ViewPlan":
        """What `link` would do so that `folder` shows what is wished for, as another program's folders."""
        from civman.exchange.view_request import plan_wished

        return plan_wished(self.index, self.store, self.root, folder, wish)

    def link(self, plan: "ViewPlan") -> "Linked":
        """Carry out the plan of a view. Raises: StoreError, DiskFull."""
        from civman.exchange.view_links import apply

        return apply(plan, self.store)

    def remove_view(self, folder: Path) -> "Sequence[Step]":
        """Take the view out of `folder`: what it made and nobody changed. Raises: UsageError: there is none."""
        from civman.exchange.view_links import remove_view
        from civman.exchange.view_request import tidy

        return remove_view(tidy(folder), self.store)

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
        """Write what `refs` mean into the project that `folder` is in, down to their bytes; an outcome for each.

        Raises: ConfigError: civman.toml or civman.lock cannot be read or written.
        """
        return self._syncing(folder, file, permits, on_event).add(refs, download=download)

    def sync(
        self,
        *,
        folder: Path,
        check: bool = False,
        relock: bool = False,
        permits: Permits | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Synced]":
        """Fetch exactly what the lock of the project names and is not here; an outcome for each of its entries.

        `check`: only tell. `relock`: bring the lock up to date first. Raises: ConfigError: `lock-missing`,
        `lock-stale`.
        """
        syncing = self._syncing(folder, None, permits, on_event)
        failed = [added for added in syncing.relock() if added.error is not None] if relock else []
        if failed and failed[0].error is not None:
            raise failed[0].error
        return syncing.check() if check else syncing.sync()

    def export(
        self,
        target: Path,
        refs: Sequence[str] = (),
        *,
        project: Path | None = None,
        with_notes: bool = False,
        replace: bool = False,
        on_event: OnEvent = ignore,
    ) -> "Exported":
        """Write a bundle of `refs`, or of what the lock of the project in `project` names, or of everything.

        Raises: NotFound, AmbiguousRef: a ref. UsageError: nothing to write, or `target` exists. HashMismatch.
        """
        from civman.exchange.bundle_export import export_bundle

        if project is not None:
            assets: Sequence[Asset] = self._locked_assets(project)
        else:
            assets = [asset for ref in refs for asset in self.held(ref)] if refs else self.index.assets()
        return export_bundle(
            target, assets, self.index, self.store, with_notes=with_notes, replace=replace, on_event=on_event
        )

    def _locked_assets(self, folder: Path) -> Sequence[Asset]:
        synced = self.sync(folder=folder, check=True)
        for each in synced:
            if each.error is not None:
                raise each.error
        return [each.asset for each in synced if each.asset is not None]

    def import_bundle(
        self, path: Path, *, permits: Permits | None = None, on_event: OnEvent = ignore
    ) -> "Sequence[Brought]":
        """Take in a bundle, every file proven. Asks nobody. Raises: IntegrityError: it is altered; Refused: pickles."""
        from civman.exchange.bundle_import import import_bundle

        return import_bundle(
            path, self.index, self.store, permits=permits or Permits(), clock=self._clock, on_event=on_event
        )

    def _syncing(self, folder: Path, file: str | None, permits: Permits | None, on_event: OnEvent) -> "Syncing":
        from civman.download.job import Wishes  # 0.3 s, see `client`
        from civman.exchange.project import Project
        from civman.exchange.sync import Syncing

        return Syncing(
            Project.nearest(folder),
            self.index,
            fetch=lambda refs, examine: self.download_all(
                refs, file=file, permits=permits, wishes=Wishes(examine=examine), on_event=on_event
            ),
            plan=lambda ref: self.plan_download(ref, file=file, permits=permits),
        )
