"""Resolves refs to versions on CivitAI with their files, or to files of the library, by the same rules.

- A number is the id of a model or a version, or 8 or 10 decimal digits of a hash. It is ambiguous if it could be more
  than one of these.
- A model ref means the model's default version on CivitAI, and all its stored versions in the library.
- A version ref means all files of the version where several are accepted. Where one file is needed, it means the only
  stored file, or else the version's primary file with the bytes that CivitAI declares now. Without a primary file, the
  ref is ambiguous.
- A file is selected by its id, its name, or words for its type, format and precision, in the ref or with `--file`.
- A hash may be of any kind that CivitAI supports. A name is an alias, a file name, a model name, or a part of one.
- A path means the file at that path. The URL of an image on CivitAI means the model that the image was made with, if
  CivitAI lists only one.

The error for an ambiguous ref lists refs that each have a single meaning.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from civman.domain.catalog import ModelId, ModelVersion, VersionId
from civman.domain.file_choice import version_ref
from civman.domain.model_refs import not_a_model
from civman.domain.printed_refs import ambiguous_ref, bare_version_ref, picture_ref
from civman.domain.refs import (
    Air,
    HashKind,
    HashRef,
    ImageRef,
    ModelRef,
    NameRef,
    NumberRef,
    PathRef,
    PictureRef,
    PostRef,
    Ref,
    VersionRef,
)
from civman.domain.search_query import ModelPage
from civman.errors import AmbiguousRef, Cause, Gone, NotFound
from civman.index import Index, Source
from civman.manage.find_assets import (
    LEAST_PREFIX,
    SHORT_HASHES,
    find_asset,
    has_picture,
    is_missing_path,
    not_stored,
    stored_assets,
)

if TYPE_CHECKING:
    # imported only for type checking: it takes 0.3 s, which `civman list` need not spend
    from civman.civitai.client import CivitaiClient


@dataclass(frozen=True, slots=True)
class ResolvedVersion:
    """A version with all that is known about its model, and the file that the ref selected."""

    page: ModelPage
    version: ModelVersion
    file: str | None = None
    """A file id, or words that select a file, as for `--file`; None if the ref selects none."""
    is_saved_copy: bool = False
    """Whether this is a copy that the library saved earlier, instead of CivitAI's current response."""
    saved_at: datetime | None = None


class Resolver:
    """Resolves refs to versions by asking CivitAI. Uses saved copies of models and versions that CivitAI no longer has.

    Without a client, only the library is used. The caller decides when to save the responses with `remember`: the
    imports that saving needs take half a second, so a download saves the responses during its transfer.
    """

    def __init__(self, client: "CivitaiClient | None", index: Index, now: datetime) -> None:
        self._client = client
        self._index = index
        self._now = now

    def resolve(self, ref: Ref) -> ResolvedVersion:
        """Resolve `ref` to a version.

        Raises: NotFound; AmbiguousRef: its `candidates` are refs with a single meaning each; UsageError: the ref is not
            a model; and what CivitAI's client raises.
        """
        match ref:
            case NumberRef():
                return self._number(ref.number)
            case ModelRef():
                return self._model(ref.model_id, None, ref.file.words)
            case VersionRef():
                return self._version(ref.version_id, ref.model_id, ref.file.words)
            case Air():
                file = str(ref.file_id) if ref.file_id is not None else None
                if ref.version_id is None:
                    return self._model(ref.model_id, None, file)
                return self._version(ref.version_id, ref.model_id, file)
            case HashRef():
                return self._hash(ref)
            case NameRef():
                return self._stored(ref, f'look for it on CivitAI: `civman search "{ref.name}"`')
            case PathRef():
                return self._stored(ref, f"`civman inspect {ref.path}` shows what a file on this disk is")
            case ImageRef():
                return self._image(ref)
            case PostRef() | PictureRef():
                raise not_a_model(ref)

    def _number(self, number: int) -> ResolvedVersion:
        page, page_error = self._page(ModelId(number))
        version = self._own_version(VersionId(number))
        with_hash = self._index.find_by_digest(str(number)) if len(str(number)) in SHORT_HASHES else []
        meanings: dict[str, str] = {}
        if page is not None:
            default = page.default_version(self._now)
            ref = str(ModelRef(ModelId(number))) if default is None else version_ref(default)
            meanings[ref] = f"the model {page.model.name}"
        if version is not None and version.model.id != number:
            meanings[version_ref(version)] = f"the version {version.name} of {version.model.name}"
        if meanings:
            meanings |= {asset.ref: f"the file {asset.name} with this hash" for asset in with_hash}
        if len(meanings) > 1:
            raise ambiguous_ref(f"{number} has several meanings: {'; '.join(meanings.values())}", meanings)
        if page is not None:
            return self._model(ModelId(number), page, None)
        if version is not None:
            return self._version(version.id, version.model.id, None)
        if with_hash or (self._client is not None and len(str(number)) in SHORT_HASHES):
            try:
                return self._hash(HashRef(str(number)))
            except NotFound:
                if with_hash:
                    raise
        saved = self._saved_page(ModelId(number))
        if saved is not None and self._client is not None:
            return self._saved(saved, None)
        raise self._unknown_number(number) from page_error

    def _unknown_number(self, number: int) -> NotFound:
        hint = (
            "the model may be deleted or private; `civman search WORDS` finds models by name, and "
            f"`civman show https://civitai.com/images/{number}` shows an image"
        )
        if has_picture(self._index, number):
            hint = f"to refer to the picture with this number, use `{picture_ref(number)}`"
        elif self._client is None:
            return self._unknown_offline(str(number))
        return NotFound(f"CivitAI has neither a model nor a version with id {number}", hint=hint, number=number)

    def _model(self, model_id: ModelId, page: ModelPage | None, file: str | None) -> ResolvedVersion:
        if page is None:
            page, error = self._page(model_id)
            if page is None:
                saved = self._saved_page(model_id)
                if saved is None:
                    raise error or NotFound(f"CivitAI has no model with id {model_id}")
                return self._saved(saved, None, file)
        default = page.default_version(self._now)
        if default is None:
            raise NotFound(
                f"CivitAI lists no version of `{page.model.name}` at the moment",
                code=Cause.NO_VERSIONS,
                hint="wait a few minutes if the model was just updated; until then, name a version by its id: "
                "`@VERSION`",
                model_id=model_id,
            )
        if self._client is None:
            return self._saved(page, None, file)
        return self._complete(page, default, file)

    def _version(self, version_id: VersionId, model_id: ModelId | None, file: str | None) -> ResolvedVersion:
        if self._client is None:
            return self._saved_version(version_id, file)
        try:
            version = self._client.version(version_id)
        except NotFound as error:
            saved_version = self._index.version(version_id)
            listed = self._listed(version_id, model_id or (saved_version.model.id if saved_version else None))
            # use the model's page, because a version that has no rating yet is listed only there
            if listed is not None:
                return self._complete(*listed, file)
            self._mark_gone(error, version_id=version_id)
            if saved_version is None:
                raise
            return self._saved_version(version_id, file)
        if model_id is not None and version.model.id != model_id:
            raise NotFound(
                f"version {version_id} belongs to model {version.model.id} (`{version.model.name}`), not {model_id}",
                code=Cause.OTHER_MODEL,
                hint=f"use {version_ref(version)}",
                version_id=version_id,
                model_id=version.model.id,
            )
        page, _ = self._page(version.model.id)
        if page is None:
            page = ModelPage(version.model, (version,))
        return self._complete(page, version, file)

    def _own_version(self, version_id: VersionId) -> ModelVersion | None:
        if self._client is None:
            return self._index.version(version_id)
        try:
            return self._client.version(version_id)
        except NotFound:
            return None

    def _listed(self, version_id: VersionId, model_id: ModelId | None) -> tuple[ModelPage, ModelVersion] | None:
        page = self._page(model_id)[0] if model_id is not None else None
        versions = page.versions if page is not None else ()
        version = next((version for version in versions if version.id == version_id), None)
        return (page, version) if page is not None and version is not None else None

    def _complete(self, page: ModelPage, version: ModelVersion, file: str | None) -> ResolvedVersion:
        """Combine the model's page with the version's own response, since each omits something that the other has."""
        listed = next((other for other in page.versions if other.id == version.id), None)
        own = version
        if listed is version and self._client is not None:
            try:
                own = self._client.version(version.id)
            except (Gone, NotFound):
                # keep the model page's entry, because CivitAI's caches of single versions lag behind its pages
                own = version
        joined = replace(
            listed if listed is not None and listed.files else own,
            model=page.model,
            air=own.air or version.air,
            usage_control=own.usage_control,
            gate=own.gate or (listed.gate if listed is not None else None),
            trained_words=own.trained_words or (listed.trained_words if listed is not None else ()),
        )
        versions = tuple(joined if other.id == joined.id else other for other in page.versions)
        joined_page = ModelPage(page.model, versions if listed is not None else (*versions, joined))
        return ResolvedVersion(joined_page, joined, file)

    def _page(self, model_id: ModelId) -> tuple[ModelPage | None, NotFound | None]:
        if self._client is None:
            page = self._saved_page(model_id)
            return page, None if page is not None else self._unknown_offline(f"civitai:{model_id}")
        try:
            return self._client.model(model_id), None
        except NotFound as error:
            self._mark_gone(error, model_id=model_id)
            return None, error

    def _mark_gone(
        self, error: NotFound, *, model_id: ModelId | None = None, version_id: VersionId | None = None
    ) -> None:
        status = error.facts.get("status")
        if isinstance(status, int) and status in (404, 410):
            if model_id is not None and self._index.snapshot_of_model(model_id) is not None:
                self._index.mark_model_gone(model_id, status=status, at=self._now)
            if version_id is not None and self._index.snapshot_of_version(version_id) is not None:
                self._index.mark_version_gone(version_id, status=status, at=self._now)

    def _saved_page(self, model_id: ModelId) -> ModelPage | None:
        saved = self._index.model(model_id)
        return None if saved is None else ModelPage(*saved)

    def _saved_version(self, version_id: VersionId, file: str | None) -> ResolvedVersion:
        version = self._index.version(version_id)
        if version is None:
            raise self._unknown_offline(bare_version_ref(version_id))
        page = self._saved_page(version.model.id)
        return self._saved(page or ModelPage(version.model, (version,)), version_id, file)

    def _saved(self, page: ModelPage, version_id: VersionId | None, file: str | None = None) -> ResolvedVersion:
        chosen = next((version for version in page.versions if version.id == version_id), None)
        version = chosen or page.default_version(self._now)
        if version is None:
            raise NotFound(
                f"no version of `{page.model.name}` was saved", code=Cause.NO_VERSIONS, model_id=page.model.id
            )
        snapshot = self._index.snapshot_of_version(version.id)
        saved_at = snapshot.fetched_at if snapshot is not None else None
        return ResolvedVersion(page, version, file, is_saved_copy=True, saved_at=saved_at)

    def _hash(self, ref: HashRef) -> ResolvedVersion:
        if self._client is None:
            return self._stored(ref, "leave out --offline and unset CIVMAN_OFFLINE to ask CivitAI")
        is_cut = ref.kind is HashKind.SHA256 and len(ref.digest) < 64
        # cut the digest to its first ten digits, which CivitAI knows as AutoV2
        digest = ref.digest[:LEAST_PREFIX] if is_cut else ref.digest
        try:
            version, file = self._client.by_hash(digest)
        except NotFound as error:
            return self._stored(ref, error.hint, error)
        if is_cut and file.hashes.sha256 is not None and not file.hashes.sha256.startswith(ref.digest):
            return self._stored(ref, "CivitAI knows another file whose SHA-256 begins with the same ten digits")
        return self._version(version.id, None, str(file.id) if file.id is not None else file.name)

    def _stored(self, ref: Ref, hint: str, error: NotFound | None = None) -> ResolvedVersion:
        """Resolve `ref` to the version of the stored file that it means."""
        assets = stored_assets(self._index, ref)
        if not assets:
            if is_missing_path(ref):
                raise not_stored(self._index, ref, [], None)
            raise error or NotFound(f"`{ref}` is not in the library", hint=hint)
        asset = find_asset(self._index, ref)
        if asset.version_id is None:
            raise error or NotFound(
                f"`{asset.name}` is in the library, but CivitAI does not know it",
                hint=f"`civman show {asset.ref}` shows what the library knows about this file",
            )
        return self._version(asset.version_id, asset.model_id, str(asset.file_id) if asset.file_id else None)

    def _image(self, ref: ImageRef) -> ResolvedVersion:
        if self._client is None:
            raise self._unknown_offline(str(ref))
        picture = self._client.image(ref.image_id)
        if len(picture.version_ids) == 1:
            return self._version(picture.version_ids[0], None, None)
        versions = [version for number in picture.version_ids if (version := self._own_version(number)) is not None]
        made_with = {version_ref(version): f"{version.model.name} {version.name}" for version in versions}
        message = (
            f"CivitAI lists {len(picture.version_ids) or 'no'} models for image {ref.image_id} instead of exactly one"
        )
        if not made_with:
            raise AmbiguousRef(
                message,
                hint="look at the picture's page on CivitAI, whose description may mention the model",
                candidates=[],
            )
        raise ambiguous_ref(message, made_with)

    def _unknown_offline(self, text: str) -> NotFound:
        return NotFound(
            f"the library knows nothing about `{text}`, and civman is offline",
            hint="leave out --offline and unset CIVMAN_OFFLINE to ask CivitAI",
        )


def remember(index: Index, resolved: ResolvedVersion, now: datetime) -> None:
    """Save CivitAI's responses in the index."""
    if not resolved.is_saved_copy:
        index.remember((resolved.page.model, resolved.page.versions), fetched_at=now, source=Source.MODEL)
