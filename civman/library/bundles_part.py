"""`library.bundles`: models packed into one file, for machines without network access."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.library.context import Part
from civman.library.project_part import ProjectPart

if TYPE_CHECKING:
    from civman.exchange.bundle_export import Exported
    from civman.exchange.bundle_import import ImportedFile


class BundlesPart(Part):
    """Export and import bundles."""

    def export(
        self,
        target: Path,
        refs: Sequence[str] = (),
        *,
        file: str | None = None,
        project: Path | None = None,
        with_notes: bool = False,
        replace: bool = False,
        on_event: OnEvent = ignore,
    ) -> "Exported":
        """Write a bundle of `refs`, of the files in a project's lock file, or of the whole library.

        `file` selects some of a version's files.

        Raises: NotFound, AmbiguousRef: a ref matches no file or several. UsageError: there is nothing to write, or
            `target` exists. HashMismatch: a stored file is corrupt.
        """
        from civman.exchange.bundle_export import export_bundle

        context = self._context
        if project is not None:
            assets: Sequence[Asset] = ProjectPart(context).locked_assets(project)
        else:
            assets = context.find(refs, file=file) if refs else context.index.assets()
        return export_bundle(
            target, assets, context.index, context.store, with_notes=with_notes, replace=replace, on_event=on_event
        )

    def import_bundle(
        self, path: Path, *, permits: Permits | None = None, on_event: OnEvent = ignore
    ) -> "Sequence[ImportedFile]":
        """Verify the files of a bundle and import them into the library. Needs no network.

        Raises: IntegrityError: the bundle is corrupt or was modified. Refused: it contains pickle files.
        """
        from civman.exchange.bundle_import import import_bundle

        context = self._context
        return import_bundle(
            path, context.index, context.store, permits=permits or Permits(), clock=context.clock, on_event=on_event
        )
