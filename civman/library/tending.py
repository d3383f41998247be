"""Wishes about what is held: listed, noted, verified, removed, measured."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.domain.refs import parse_ref
from civman.index import EVERYTHING, AssetFilter, Sort

if TYPE_CHECKING:
    from civman.manage.annotate import Edit
    from civman.manage.disk_usage import Usage
    from civman.manage.remove import Collection, RemovalPlan, Restored
    from civman.manage.verify import Rebuilt, Verdict
    from civman.store.trash import Removal
from civman.library.models import Models


class Tending(Models):
    """List, edit, verify, rebuild, remove, restore, collect."""

    def list(
        self,
        wanted: AssetFilter = EVERYTHING,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> Sequence[Asset]:
        """What the library holds: without `sort` the best match first, newest first without words. Needs no network."""
        return self.index.assets(wanted, sort=sort, limit=limit, offset=offset)

    def count(self, wanted: AssetFilter = EVERYTHING) -> int:
        """How many assets pass the filter."""
        return self.index.count(wanted)

    def held(self, ref: str) -> Sequence[Asset]:
        """The assets that `ref` means; every file of a version, every version of a model. Needs no network.

        Raises: NotFound: none. AmbiguousRef: a name that several could answer to.
        """
        from civman.manage.held import held

        return held(self.index, parse_ref(ref))

    def edit(self, ref: str, edit: "Edit") -> Sequence[Asset]:
        """Write what the user says of a file, into the index and beside the file. Raises: NotFound, UsageError."""
        from civman.manage.annotate import apply

        return apply(self.index, self.store, self.held(ref), edit, now=self._clock())

    def verify(
        self, refs: Iterable[str] = (), *, is_full: bool = False, on_event: OnEvent = ignore
    ) -> "Iterator[Verdict]":
        """Prove what is held (or `refs`), reading what has changed since it was last proven; a verdict for each file.

        `is_full` reads every byte. `on_event` is called from several threads.
        """
        from civman.manage.verify import verify

        assets = [asset for ref in refs for asset in self.held(ref)]
        return verify(self.index, self.store, assets, is_full=is_full, on_event=on_event, clock=self._clock)

    def repair(self, verdicts: "Iterable[Verdict]", *, on_event: OnEvent = ignore) -> "Iterator[Verdict]":
        """Fetch what is broken or gone again; a verdict for each. The broken file lies in the trash afterwards."""
        from civman.manage.verify import refetch, repair

        return repair(
            verdicts,
            self.index,
            self.store,
            fetch=lambda asset: refetch(asset, self.plan_download, self.download, on_event),
            now=self._clock(),
            on_event=on_event,
        )

    def rebuild(self, *, on_event: OnEvent = ignore) -> "Rebuilt":
        """Fill the index again from the blobs and what is kept beside them, reading and proving every byte."""
        from civman.manage.verify import rebuild
        from civman.rendering.import_pictures import scan

        rebuilt = rebuild(self.index, self.store, on_event=on_event, clock=self._clock)
        renders = self.root / "renders"
        if renders.is_dir():
            scan(self.index, renders)
        return rebuilt

    def plan_removal(self, refs: Sequence[str]) -> "RemovalPlan":
        """What removing `refs` would take away: assets, and the bytes that nothing else refers to."""
        from civman.manage.remove import plan_removal

        return plan_removal(self.index, self.store, [asset for ref in refs for asset in self.held(ref)])

    def remove(self, plan: "RemovalPlan", *, force: bool = False) -> "Removal | None":
        """Carry out a plan: rows first, then bytes into the trash. Raises: Refused: `pinned`, without `force`."""
        from civman.manage.remove import remove

        return remove(self.index, self.store, plan, force=force, now=self._clock())

    def trash(self) -> "Sequence[Removal]":
        """What was removed and can still come back, the last removal first."""
        from civman.store.trash import Trash

        return Trash(self.store).removals()

    def restore(self, name: str | None = None) -> "Restored":
        """Undo the last removal, or the one that `name` means: its id, or a name, ref or digest of what was in it."""
        from civman.manage.remove import removal_named, undo

        removal = removal_named(self.store, name)
        return undo(self.index, self.store, removal, now=self._clock(), on_notice=self._on_notice)

    def plan_collection(self, *, partials_after: timedelta, trash_after: timedelta) -> "Collection":
        """What nobody needs: files unknown to the index, partial downloads and trash untouched for so long."""
        from civman.manage.remove import plan_collection

        return plan_collection(
            self.index, self.store, now=self._clock(), partials_after=partials_after, trash_after=trash_after
        )

    def collect(self, plan: "Collection") -> int:
        """Carry out a plan; the bytes freed."""
        from civman.manage.remove import collect

        return collect(self.index, self.store, plan, now=self._clock())

    def usage(self, group: str) -> "Usage":
        """What the library takes: by "type", "base_model", "architecture" or "used", and by kind of storage."""
        from civman.manage.disk_usage import usage

        return usage(self.index, self.store, group)
