"""Bundles: models with all that is known of them in one file, for machines without a network."""

from civman.bundle.archive import is_bundle
from civman.bundle.exporting import Exported, export_bundle
from civman.bundle.importing import Brought, import_bundle

__all__ = ["Brought", "Exported", "export_bundle", "import_bundle", "is_bundle"]
