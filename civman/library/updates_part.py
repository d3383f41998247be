"""`library.updates`: what changed on CivitAI."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from civman.library.context import Part

if TYPE_CHECKING:
    from civman.manage.outdated import UpdateReport


class UpdatesPart(Part):
    """Look for newer versions of stored models."""

    def find(self, refs: Sequence[str] = (), *, any_base: bool = False) -> "UpdateReport":
        """What CivitAI has that is newer than what is stored (or than `refs`), what it replaced, what it deleted.

        `any_base`: versions for another base model count too. Raises: NotFound, AmbiguousRef, NetworkError.
        """
        from civman.manage.outdated import find_updates  # 0.3 s, see `LibraryContext.client`

        context = self._context
        assets = context.find(refs) if refs else context.index.assets()
        return find_updates(context.index, context.client, assets, any_base=any_base, clock=context.clock)
