"""`library.files`: the stored model files, facts about them, and the user's annotations."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from civman.domain.catalog import Asset, Licence, ModelId
from civman.domain.events import OnEvent, ignore
from civman.domain.refs import ModelRef, NameRef, PathRef, parse_ref
from civman.errors import AmbiguousRef, NotFound
from civman.index import EVERYTHING, AssetFilter, Fits
from civman.library.context import Part

if TYPE_CHECKING:
    from pathlib import Path

    from civman.diffusion.block_norms import BlockNorm
    from civman.domain.digests import Sha256
    from civman.domain.licence import Terms
    from civman.manage.annotate import Edit
    from civman.manage.import_files import ImportMode, ImportResult
    from civman.manage.inspection import Inspected
    from civman.manage.places import Presence
    from civman.manage.remote_headers import RemoteHeaders


class FilesPart(Part):
    """Find, count, import, inspect and annotate model files."""

    def find(self, ref: str, *, file: str | None = None) -> Sequence[Asset]:
        """Find the stored files that `ref` refers to: for a version, all its files; for a model, all its versions.

        Needs no network. `file` selects some of them by file id, file name, or words such as "fp16 pruned".

        Raises: NotFound: no stored file matches. AmbiguousRef: a number, name or digest matches several models.
        """
        return self._context.find([ref], file=file)

    def of_model(self, model_id: ModelId) -> Sequence[Asset]:
        """The stored files of all versions of a model, newest first."""
        return self._context.index.find_by_model(model_id)

    def default_of(self, model_id: ModelId) -> Asset | None:
        """The stored file that a model's id refers to where a single file is needed; None if that is ambiguous."""
        from civman.manage.find_assets import find_asset

        try:
            return find_asset(self._context.index, ModelRef(model_id))
        except AmbiguousRef:
            return None

    def absences(self, assets: Iterable[Asset]) -> "dict[Sha256, Presence]":
        """Return which of the files are missing, and which are away (on a drive that is not connected)."""
        absent = [asset for asset in assets if not os.path.exists(asset.path)]  # noqa: PTH110  # it raises nothing
        if not absent:
            return {}
        from civman.manage.places import absences

        return absences(self._context.index, absent)

    def count(self, wanted: AssetFilter = EVERYTHING) -> int:
        """The number of stored files that match the filter."""
        return self._context.index.count(wanted)

    def model_ids(self) -> set[ModelId]:
        """The CivitAI ids of all models with a stored file."""
        found = self._context.index.assets() if self._context.has_index else ()
        return {asset.model_id for asset in found if asset.model_id is not None}

    def corrections(self, words: Sequence[str]) -> dict[str, str]:
        """Map each search word that matches no file to the similar words that are searched for instead."""
        return dict(self._context.index.understood(words).corrections)

    def edit(self, ref: str, edit: "Edit", *, file: str | None = None) -> Sequence[Asset]:
        """Set notes, tags, ratings and aliases of stored files, in the index and in their sidecar files.

        `file` selects some of a version's files. Raises: NotFound, UsageError.
        """
        from civman.manage.annotate import apply

        context = self._context
        return apply(context.index, context.store, self.find(ref, file=file), edit, now=context.clock())

    def import_files(
        self, paths: "Sequence[Path]", *, mode: "ImportMode | None" = None, on_event: OnEvent = ignore
    ) -> "ImportResult":
        """Import files and whole folders. Files stay in place, unless `mode` is to copy or move them.

        Every file is hashed once, and one lookup on CivitAI identifies them all (none if offline). After an
        interruption, the next call continues from the files that were already hashed.
        """
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.manage.import_files import ImportMode, import_files

        context = self._context
        return import_files(
            context.index, context.store, None if context.settings.offline else context.client, paths,
            mode=mode or ImportMode.IN_PLACE, on_event=on_event, clock=context.clock,
        )  # fmt: skip

    def join_shards(self, index_file: "Path", *, on_event: OnEvent = ignore) -> Asset:
        """Join a model's safetensors shards into one file in the library. The shards stay as they are.

        `index_file` is the model's `….safetensors.index.json`. Raises: InvalidModelFile, NotFound, StoreError,
        DiskFull.
        """
        from civman.domain.catalog import Blob
        from civman.domain.events import Verifying
        from civman.domain.file_names import safe_name
        from civman.manage.inspection import facts_of_file
        from civman.manage.sidecar import write_sidecar
        from civman.store.join_shards import join_shards, joined_name
        from civman.store.trash import blob_lock

        context, name = self._context, safe_name(joined_name(index_file))
        # open the index first, so that an unusable library is reported before the files are read
        _ = context.index
        stored = join_shards(
            index_file, context.store, lambda done, total: on_event(Verifying("join", done, total, name))
        )
        now = context.clock()
        with blob_lock(context.store, stored.sha256):
            blob = Blob(stored.sha256, stored.size_bytes, stored.suffix, "civman", now)
            asset = context.index.record(
                blob=blob, path=str(stored.path), name=name, origin="import", version=None, file=None,
                facts=facts_of_file(stored.path, None), added_at=now,
            )  # fmt: skip
            write_sidecar(context.store, context.index, stored.sha256)
        return asset

    def inspect(self, ref: str, *, file: str | None = None) -> "Inspected":
        """Identify a model file on this computer, in the library or on CivitAI, as `Library.inspect` does."""
        from civman.manage.find_assets import find_asset
        from civman.manage.inspection import inspect_asset, inspect_path, path_of
        from civman.manage.places import at_its_place

        if (path := path_of(ref)) is not None:
            return inspect_path(path)
        parsed = parse_ref(ref)
        try:
            return inspect_asset(at_its_place(self._context.index, find_asset(self._context.index, parsed, file)))
        except NotFound:
            if self._context.settings.offline or isinstance(parsed, PathRef | NameRef):
                raise
        from civman.domain.file_choice import choose_file

        resolved = self._context.resolve(ref)
        chosen = choose_file(resolved.version, file or resolved.file)
        return self.remote_headers().inspect(resolved.version, chosen)

    def remote_headers(self) -> "RemoteHeaders":
        """Create a reader for the headers of files on CivitAI."""
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.civitai.storage_connection import StorageConnection, tls_context
        from civman.manage.remote_headers import RemoteHeaders

        network = self._context.network
        return RemoteHeaders(self._context.client, lambda: StorageConnection(network, tls_context))

    def terms(self, models: "Sequence[Inspected]") -> "Terms":
        """Combine the licence terms of several models for images that are made with all of them."""
        from civman.domain import licence

        parts = []
        for seen in models:
            asset = seen.asset
            version = self._context.index.version(asset.version_id) if asset is not None and asset.version_id else None
            allowed = version.model.licence if version is not None else Licence()
            creator = version.model.creator if version is not None else None
            name = version.model.name if version is not None else seen.name
            parts.append(licence.Part(name, allowed, seen.label, creator))
        return licence.terms_of(parts)

    def block_norms(
        self, checkpoint: str, loras: Sequence[str], *, file: str | None = None, vae: str | None = None,
        on_event: OnEvent = ignore,
    ) -> "list[tuple[BlockNorm, ...]]":  # fmt: skip
        """Measure how much each LoRA changes each block of a checkpoint at scale 1, without merging the LoRAs.

        Modules that do not fit the checkpoint are left out. Needs the render extra. Raises: NotFound: a file is not on
        this machine. CannotRender, InvalidModelFile.
        """
        from civman.domain.recipes.recipe import LoraRequest, RenderRequest
        from civman.planning.plan import Conditions, plan

        request = RenderRequest(checkpoint, file=file, vae=vae, loras=tuple(map(LoraRequest, loras)))
        anyhow = Conditions("cpu", force=True, allow_partial=True, triggers=False, is_device_there=True)
        planned = plan(self._context.index, request, anyhow, on_event=on_event)
        from civman.rendering.adapter_norms import adapter_norms  # imports torch, which takes 2 s or more

        return adapter_norms(planned)

    def fits(self, checkpoint: str, *, on_event: OnEvent = ignore) -> Fits:
        """Return a value for `AssetFilter.fits` that selects the stored files compatible with `checkpoint`.

        Every file is checked once for each stored checkpoint, as `check` does, and the verdicts are saved in the index.
        If the checkpoint is not in the library, compatibility is estimated from the architectures that the tensors
        show, or from CivitAI's base model labels for files whose header has not been read.
        """
        from civman.domain.architecture import Architecture
        from civman.domain.base_models import compatible_labels

        base = self.inspect(checkpoint)
        if base.asset is not None:
            from civman.manage.library_fits import find_fitting

            return find_fitting(self._context.index, base, on_event)
        architecture = base.part.architecture
        return Fits(
            architectures=() if architecture is Architecture.UNKNOWN else (str(architecture),),
            base_models=compatible_labels(base.label) if base.label else (),
        )
