"""`library.trash`: removed files, and restoring them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from civman.library.context import Part

if TYPE_CHECKING:
    from civman.manage.remove import RemovalPlan, Restored
    from civman.store.trash import Removal


class TrashPart(Part):
    """Plan removals, list the trash and restore from it."""

    def plan_removal(self, refs: Sequence[str], *, file: str | None = None) -> "RemovalPlan":
        """Plan the removal of `refs`: which files would be removed, and how much disk space that would free.

        `file` selects some of a version's files.
        """
        from civman.manage.remove import plan_removal

        return plan_removal(self._context.index, self._context.store, self._context.find(refs, file=file))

    def list(self) -> "Sequence[Removal]":
        """List the removals that can still be undone, the latest first."""
        from civman.store.trash import Trash

        return Trash(self._context.store).removals()

    def restore(self, name: str | None = None) -> "Restored":
        """Undo a removal: the latest one if `name` is None.

        Otherwise, `name` is the id of a removal, or the name, ref or digest of a file in it.
        """
        from civman.manage.remove import removal_named, undo

        context = self._context
        removal = removal_named(context.store, name)
        return undo(context.index, context.store, removal, now=context.clock(), on_notice=context.on_notice)
