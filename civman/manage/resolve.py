"""From what a person typed to the version and file that are meant: asked of CivitAI, or of the library."""

from dataclasses import dataclass, replace
from datetime import datetime

from civman.civitai.client import CivitaiClient
from civman.domain.catalog import FileId, Model, ModelId, ModelVersion, VersionId
from civman.domain.refs import (
    Air,
    FileWish,
    HashRef,
    ImageRef,
    ModelRef,
    NameRef,
    NumberRef,
    PathRef,
    PostRef,
    Ref,
    VersionRef,
)
from civman.domain.search_query import ModelPage
from civman.errors import AmbiguousRef, Cause, Gone, NotFound, UsageError
from civman.index import Index, Source
from civman.manage.held import ambiguous, held


@dataclass(frozen=True, slots=True)
class Meant:
    """A version with all that is known of its model, and the file where the ref named one."""

    page: ModelPage
    version: ModelVersion
    file_wish: str | None = None
    is_saved_copy: bool = False
    """CivitAI no longer knows it; this is what the library kept."""
    saved_at: datetime | None = None


class Resolver:
    """Asks CivitAI, and falls back to what was kept when CivitAI has forgotten.

    What it hears is for the caller to keep (`remember`): a write costs half a second of imports, which a download hides
    behind its transfer.
    """

    def __init__(self, client: CivitaiClient, index: Index, now: datetime) -> None:
        self._client = client
        self._index = index
        self._now = now

    def meant(self, ref: Ref) -> Meant:
        """The one version that `ref` means.

        Raises: NotFound, AmbiguousRef (its `candidates` are refs that mean one each), UsageError: a ref to something
            that is no model; and what CivitAI's client raises.
        """
        match ref:
            case NumberRef():
                return self._number(ref.number)
            case ModelRef():
                return self._model(ref.model_id, None, _wish(ref.file))
            case VersionRef():
                return self._version(ref.version_id, ref.model_id, _wish(ref.file))
            case Air():
                wish = str(ref.file_id) if ref.file_id is not None else None
                if ref.version_id is None:
                    return self._model(ref.model_id, None, wish)
                return self._version(ref.version_id, ref.model_id, wish)
            case HashRef():
                version, file = self._client.by_hash(ref.digest)
                return self._version(version.id, None, str(file.id) if file.id is not None else file.name)
            case NameRef():
                return self._name(ref.name)
            case ImageRef():
                return self._image(ref.image_id)
            case PostRef():
                raise UsageError(
                    f"{ref} is a post: it may show many pictures", hint="open it and take the address of one picture"
                )
            case PathRef():
                raise UsageError(
                    f"`{ref.path}` is a file path; CivitAI knows files by their content",
                    hint=f"`civman inspect {ref.path}` tells what it is",
                )

    def _number(self, number: int) -> Meant:
        model, model_error = self._page(ModelId(number))
        try:
            version = self._client.version(VersionId(number))
        except NotFound:
            version = None
        if model is not None and version is not None and version.model.id != number:
            raise AmbiguousRef(
                f"{number} is the model `{model.model.name}` and also version `{version.name}` of"
                f" `{version.model.name}`",
                hint=f"say civitai:{number} for the model, @{number} for the version",
                candidates=[f"civitai:{number}", f"@{number}"],
            )
        if model is not None:
            return self._model(ModelId(number), model, None)
        if version is not None:
            return self._version(version.id, version.model.id, None)
        saved = self._saved_page(ModelId(number))
        if saved is not None:
            return self._saved(saved, None)
        raise NotFound(
            f"CivitAI knows neither a model nor a version {number}",
            hint="it may be deleted or private; `civman search WORDS` finds models by name",
            number=number,
        ) from model_error

    def _model(self, model_id: ModelId, page: ModelPage | None, wish: str | None) -> Meant:
        if page is None:
            page, error = self._page(model_id)
            if page is None:
                saved = self._saved_page(model_id)
                if saved is None:
                    raise error or NotFound(f"CivitAI knows no model {model_id}")
                return self._saved(saved, None, wish)
        if not page.versions:
            raise NotFound(
                f"CivitAI lists no version of `{page.model.name}` at the moment",
                code=Cause.NO_VERSIONS,
                hint="after an update this lasts some minutes; a version is reached by its id: `@VERSION`",
                model_id=model_id,
            )
        return self._complete(page, page.versions[0], wish)

    def _version(self, version_id: VersionId, model_id: ModelId | None, wish: str | None) -> Meant:
        try:
            version = self._client.version(version_id)
        except NotFound as error:
            saved_version = self._index.version(version_id)
            listed = self._listed(version_id, model_id or (saved_version.model.id if saved_version else None))
            if listed is not None:  # unrated versions are on their model's page and nowhere else
                return self._complete(*listed, wish)
            self._mark_gone(error, version_id=version_id)
            if saved_version is None:
                raise
            saved = self._saved_page(saved_version.model.id)
            return self._saved(saved or ModelPage(saved_version.model, (saved_version,)), version_id, wish)
        if model_id is not None and version.model.id != model_id:
            raise NotFound(
                f"version {version_id} belongs to model {version.model.id} (`{version.model.name}`), not {model_id}",
                code=Cause.OTHER_MODEL,
                hint=f"say {version.model.id}@{version_id}, or only @{version_id}",
                version_id=version_id,
                model_id=version.model.id,
            )
        page, _ = self._page(version.model.id)
        if page is None:
            page = ModelPage(version.model, (version,))
        return self._complete(page, version, wish)

    def _listed(self, version_id: VersionId, model_id: ModelId | None) -> tuple[ModelPage, ModelVersion] | None:
        page = self._page(model_id)[0] if model_id is not None else None
        versions = page.versions if page is not None else ()
        version = next((version for version in versions if version.id == version_id), None)
        return (page, version) if page is not None and version is not None else None

    def _complete(self, page: ModelPage, version: ModelVersion, wish: str | None) -> Meant:
        """Join what the model's page and the version's own answer say; each leaves out what the other has."""
        listed = next((other for other in page.versions if other.id == version.id), None)
        own = version
        if listed is version:
            try:
                own = self._client.version(version.id)
            except Gone:
                own = version
            except NotFound:
                own = version  # caches lag: the page is the better witness
        joined = replace(
            listed if listed is not None and listed.files else own,
            model=page.model,
            air=own.air or version.air,
            usage_control=own.usage_control,
            gate=own.gate or (listed.gate if listed is not None else None),
            trained_words=own.trained_words or (listed.trained_words if listed is not None else ()),
        )
        versions = tuple(joined if other.id == joined.id else other for other in page.versions)
        return Meant(ModelPage(page.model, versions if listed is not None else (*versions, joined)), joined, wish)

    def _page(self, model_id: ModelId) -> tuple[ModelPage | None, NotFound | None]:
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

    def _saved(self, page: ModelPage, version_id: VersionId | None, wish: str | None = None) -> Meant:
        chosen = next((version for version in page.versions if version.id == version_id), None)
        if chosen is None and not page.versions:
            raise NotFound(f"nothing was kept of the versions of `{page.model.name}`", model_id=page.model.id)
        version = chosen or page.versions[0]
        snapshot = self._index.snapshot_of_version(version.id)
        saved_at = snapshot.fetched_at if snapshot is not None else None
        return Meant(page, version, wish, is_saved_copy=True, saved_at=saved_at)

    def _name(self, name: str) -> Meant:
        found = self._index.find_by_name(name)
        if not found:
            raise NotFound(
                f"nothing in the library is called `{name}`",
                hint=f'look on CivitAI: `civman search "{name}"`',
                name=name,
            )
        if len({asset.version_id for asset in found}) > 1:
            raise ambiguous(name, found)
        asset = found[0]
        if asset.version_id is None:
            raise NotFound(
                f"`{asset.name}` is in the library, but CivitAI does not know it", hint=f"see `civman inspect {name}`"
            )
        return self._version(asset.version_id, asset.model_id, _id_text(asset.file_id))

    def _image(self, image_id: int) -> Meant:
        picture = self._client.image(image_id)
        if len(picture.version_ids) == 1:
            return self._version(picture.version_ids[0], None, None)
        raise AmbiguousRef(
            f"picture {image_id} was made with {len(picture.version_ids) or 'no'} models that CivitAI names",
            hint="take them one by one: " + ", ".join(f"@{number}" for number in picture.version_ids)
            if picture.version_ids
            else "its page may name them in words",
            candidates=[f"@{number}" for number in picture.version_ids],
        )


def remember(index: Index, meant: Meant, now: datetime) -> None:
    """Keep what CivitAI said."""
    if not meant.is_saved_copy:
        index.remember((meant.page.model, meant.page.versions), fetched_at=now, source=Source.MODEL)


def offline_meant(ref: Ref, index: Index) -> Meant:
    """The one version in the library that `ref` means, as CivitAI last described it. Asks nobody.

    Raises: NotFound: nothing was kept of it. AmbiguousRef: several versions are held.
    """
    found: tuple[Model, tuple[ModelVersion, ...]] | None = None
    version_id: VersionId | None = None
    match ref:
        case NumberRef():
            found = index.model(ModelId(ref.number))
            if found is None:
                version_id = VersionId(ref.number)
        case VersionRef():
            version_id = ref.version_id
        case ModelRef() | Air():
            found = index.model(ref.model_id)
            version_id = ref.version_id if isinstance(ref, Air) else None
        case _:
            assets = held(index, ref)
            version_ids = {asset.version_id for asset in assets if asset.version_id is not None}
            if len(version_ids) > 1:
                raise ambiguous(str(ref), assets)
            version_id = next(iter(version_ids), None)
    version = index.version(version_id) if version_id is not None else None
    if found is None and version is not None:
        found = index.model(version.model.id)
    if found is None or not found[1]:
        raise NotFound(
            f"the library knows nothing of `{ref}`, and civman is offline", hint="unset CIVMAN_OFFLINE to ask CivitAI"
        )
    snapshot = index.snapshot_of_version((version or found[1][0]).id)
    return Meant(
        ModelPage(*found),
        version or found[1][0],
        is_saved_copy=True,
        saved_at=snapshot.fetched_at if snapshot is not None else None,
    )


def _wish(wish: FileWish) -> str | None:
    if wish.file_id is not None:
        return str(wish.file_id)
    words = [word for word in (wish.type, wish.format, wish.size, wish.precision, wish.quant_type) if word]
    return " ".join(words) or None


def _id_text(file_id: FileId | None) -> str | None:
    return None if file_id is None else str(file_id)
