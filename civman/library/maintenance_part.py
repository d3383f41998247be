"""`library.maintenance`: repair files, rebuild the index, free disk space, find problems."""

from collections.abc import Collection as Some
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.errors import CivmanError
from civman.library.context import Part
from civman.library.downloads_part import DownloadsPart
from civman.library.open_store import is_configured, open_store, pull_digests

if TYPE_CHECKING:
    from civman.manage.disk_usage import Usage
    from civman.manage.doctor import Finding
    from civman.manage.remove import Collection
    from civman.manage.second_copies import SecondCopy, StoreLeftover
    from civman.manage.verify import Rebuilt, Verdict


class MaintenancePart(Part):
    """Repair files, rebuild the index, free disk space, and diagnose problems."""

    def repair(self, verdicts: "Iterable[Verdict]", *, on_event: OnEvent = ignore) -> "Iterator[Verdict]":
        """Replace corrupt and missing files with intact copies from elsewhere or by downloading.

        Yields a verdict for each file.

        A file is downloaded from the object store in the settings if the store has it, else from CivitAI.
        """
        from civman.manage.verify import refetch, repair

        context, downloads = self._context, DownloadsPart(self._context)

        def fetch(asset: Asset) -> Asset:
            return self._from_store(asset, on_event) or refetch(asset, downloads.plan, downloads.fetch, on_event)

        return repair(
            verdicts,
            context.index,
            context.store,
            fetch=fetch,
            now=context.clock(),
            on_event=on_event,
        )

    def _from_store(self, asset: Asset, on_event: OnEvent) -> Asset | None:
        """Download a file from the object store in the settings; None if no store is set or it lacks the file."""
        context, sha256 = self._context, asset.blob.sha256
        if not is_configured(context):
            return None
        moved = next(pull_digests(context, [sha256], url=None, permits=Permits(pickle=True), on_event=on_event), None)
        stored = context.store.find(sha256)
        if moved is None or moved.error is not None or stored is None:
            return None
        return replace(asset, path=str(stored.path))

    def rebuild(self, *, on_event: OnEvent = ignore) -> "Rebuilt":
        """Rebuild the index from the stored files and their sidecars, reading and verifying every byte."""
        from civman.manage.verify import rebuild
        from civman.rendering.import_pictures import import_pictures

        context = self._context
        rebuilt = rebuild(context.index, context.store, on_event=on_event, clock=context.clock)
        if context.renders.is_dir():
            import_pictures(context.index, context.renders)
        return rebuilt

    def plan_gc(
        self, *, partials_after: timedelta, trash_after: timedelta, all_copies: bool = False,
        trusts_store: bool = False, drops_leftovers: bool = False, on_event: OnEvent = ignore,
    ) -> "Collection":  # fmt: skip
        """Plan what to delete: files that are not in the index, and partial downloads and trash older than these ages.

        `all_copies`: also delete all safetensors copies of pickles, which are recreated when they are next needed. If
        an object store is set, it is searched for copies of files that are otherwise only in old trash. `trusts_store`:
        also delete such files if they are pinned, provided that the copy in the object store was read completely and
        has the right SHA-256. `drops_leftovers`: also delete the remains of interrupted uploads in the object store.
        Without `trusts_store` and `drops_leftovers`, errors of the object store are only reported as notices.

        Raises, with `trusts_store` or `drops_leftovers`: UsageError: no object store is set. NotAllowed, NetworkError.
        """
        from civman.manage.remove import plan_collection

        context = self._context
        if trusts_store or drops_leftovers:
            open_store(context)  # raise an error now if no object store is set

        def ask(last: Some[Sha256], pinned: Some[Sha256]) -> "Some[SecondCopy]":
            return self._second_copies(last, pinned if trusts_store else (), on_event, is_needed=trusts_store)

        plan = plan_collection(
            context.index, context.store, now=context.clock(), partials_after=partials_after, trash_after=trash_after,
            all_copies=all_copies, ask_second_home=ask,
        )  # fmt: skip
        found = self._leftovers(partials_after, is_needed=drops_leftovers)
        return replace(plan, leftovers=found, drops_leftovers=drops_leftovers)

    def _second_copies(
        self, last: Some[Sha256], read: Some[Sha256], on_event: OnEvent, *, is_needed: bool
    ) -> "Some[SecondCopy]":
        if not is_needed and not is_configured(self._context):
            return ()
        from civman.exchange.collect_store import second_copies

        try:
            remote = open_store(self._context)
            return second_copies(remote, last, read, now=self._context.clock(), on_event=on_event)
        except CivmanError as error:
            if is_needed:
                raise
            self._context.on_notice(f"the object store could not be searched for copies of files: {error.message}")
            return ()

    def _leftovers(self, older_than: timedelta, *, is_needed: bool) -> "tuple[StoreLeftover, ...]":
        if not is_needed and not is_configured(self._context):
            return ()
        from civman.exchange.collect_store import leftovers

        try:
            return tuple(leftovers(open_store(self._context), now=self._context.clock(), older_than=older_than))
        except CivmanError as error:
            if is_needed:
                raise
            self._context.on_notice(f"the object store could not be searched for remains of uploads: {error.message}")
            return ()

    def gc(self, plan: "Collection") -> int:
        """Delete what a plan lists. Returns the number of bytes freed in the library.

        Raises: NetworkError, NotAllowed: the remains of interrupted uploads in the object store could not be deleted,
        after everything in the library was.
        """
        from civman.manage.remove import collect

        freed = collect(self._context.index, self._context.store, plan, now=self._context.clock())
        if plan.drops_leftovers and plan.leftovers:
            from civman.exchange.collect_store import drop_leftovers

            drop_leftovers(open_store(self._context), plan.leftovers, now=self._context.clock())
        return freed

    def disk_usage(self, group: str) -> "Usage":
        """Compute the disk usage per type, base model, architecture or time of last use, and per kind of storage."""
        from civman.manage.disk_usage import usage

        return usage(self._context.index, self._context.store, group)

    def doctor(self) -> "Iterator[Finding]":
        """Check the installation and the settings. Yields the findings one by one."""
        from civman.manage.doctor import examine

        return examine(self._context.settings)
