"""`library.views`: show the stored files in the folder layout of another program."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from civman.library.context import Part

if TYPE_CHECKING:
    from civman.exchange.view_links import Linked, Step, ViewPlan
    from civman.exchange.view_request import ViewRequest


class ViewsPart(Part):
    """Plan, create, refresh and remove views."""

    def plan(self, folder: Path, request: "ViewRequest") -> "ViewPlan":
        """Plan which links and files to create, change and remove so that `folder` shows the files of `request`."""
        from civman.exchange.view_request import plan_requested_view

        return plan_requested_view(self._context.index, self._context.store, self._context.root, folder, request)

    def link(self, plan: "ViewPlan") -> "Linked":
        """Apply a plan. Raises: StoreError, DiskFull."""
        from civman.exchange.view_links import apply

        return apply(plan, self._context.store)

    def remove(self, folder: Path) -> "Sequence[Step]":
        """Remove the links and files that the view created in `folder`, except those that were changed since.

        Raises: UsageError: there is no view in `folder`.
        """
        from civman.exchange.view_links import remove_view
        from civman.exchange.view_request import tidy

        return remove_view(tidy(folder), self._context.store)
