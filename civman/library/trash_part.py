"""`library.trash`: removed files, and how they come back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from civman.library.context import Part

if TYPE_CHECKING:
    from civman.manage.remove import RemovalPlan, Restored
    from civman.store.trash import Removal


class TrashPart(Part):
    """Plan a removal, list the trash, restore."""

    def plan_removal(self, refs: Sequence[str], *, file: str | None = None) -> "RemovalPlan":
        """What removing `refs` would remove: stored files, and the bytes that no other file needs.

        `file` selects some of a version's files.
        """
        from civman.manage.remove import plan_removal

        return plan_removal(self._context.index, self._context.store, self._context.find(refs, file=file))

    def list(self) -> "Sequence[Removal]":
        """What was removed and can still be restored, the last removal first."""
        from civman.store.trash import Trash

        return Trash(self._context.store).removals()

    def restore(self, name: str | None = None) -> "Restored":
        """Undo the last removal, or the one that `name` means: its id, or a name, ref or digest of what was in it."""
        from civman.manage.remove import removal_named, undo

        context = self._context
        removal = removal_named(context.store, name)
        return undo(context.index, context.store, removal, now=context.clock(), on_notice=context.on_notice)
