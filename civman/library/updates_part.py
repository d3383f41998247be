"""`library.updates`: new, replaced and deleted versions on CivitAI."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from civman.library.context import Part

if TYPE_CHECKING:
    from civman.manage.outdated import UpdateReport


class UpdatesPart(Part):
    """Find newer versions of stored models."""

    def find(self, refs: Sequence[str] = (), *, any_base: bool = False) -> "UpdateReport":
        """Find newer, replaced and deleted versions on CivitAI for the stored files of `refs` (default: all files).

        `any_base`: include versions for other base models. Raises: NotFound, AmbiguousRef, NetworkError.
        """
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.manage.outdated import find_updates

        context = self._context
        assets = context.find(refs) if refs else context.index.assets()
        return find_updates(context.index, context.client, assets, any_base=any_base, clock=context.clock)
