"""Finds on CivitAI the files that an image's settings name: by hash, else by version id, else by file name.

A match by a short hash is accepted only if the file is of the kind that the image needs. For a file that cannot be
downloaded, the reason and possible replacements are described; no file is replaced unless the user asks for it.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from civman.civitai.client import CivitaiClient
from civman.domain.catalog import ModelFile, ModelId, ModelType, ModelVersion, VersionId
from civman.domain.digests import Sha256
from civman.domain.file_choice import version_ref
from civman.domain.printed_refs import bare_version_ref
from civman.domain.refs import VersionRef, parse_ref
from civman.domain.search_query import SearchQuery
from civman.download.job import Job
from civman.errors import BadAnswer, Cause, CivmanError, Gone, NetworkError, NotFound
from civman.index import Index, Source
from civman.manage.resolve import ResolvedVersion
from civman.planning.site_image import NamedVersion, role_of
from civman.planning.wanted_files import By, Wanted

_TYPES: Final[Mapping[str, tuple[ModelType, ...]]] = {
    "checkpoint": (ModelType.CHECKPOINT,), "lora": (ModelType.LORA, ModelType.LOCON, ModelType.DORA),
    "embedding": (ModelType.EMBEDDING,), "vae": (ModelType.VAE,), "upscaler": (ModelType.UPSCALER,),
    "hypernetwork": (ModelType.HYPERNETWORK,),
}  # fmt: skip
_SEARCHED: Final = 20
"""The maximum number of models to request when searching for a file by name."""
_MOST_STAND_INS: Final = 4
_LENGTHS: Final = (8, 10, 12, 64)
"""The lengths in hexadecimal digits of the hashes that CivitAI can look up."""

Hit = tuple[ModelVersion, ModelFile]


@dataclass(frozen=True, slots=True)
class Offer:
    """What CivitAI offers for a file that an image's settings name: a download, or the reason why there is none.

    `job`: the download, or None; `by`: whether the file was found by hash, version or name; `notices`: what the user
    should know about this choice; `stand_ins`: descriptions of files that could be used instead.
    """

    wanted: Wanted
    job: Job | None = None
    by: By = By.NOTHING
    notices: tuple[str, ...] = ()
    problem: CivmanError | None = None
    stand_ins: tuple[str, ...] = ()


class KnownVersions:
    """Resolves refs of versions, and looks up each version only once."""

    def __init__(self, resolve: Callable[[str], ResolvedVersion]) -> None:
        self._resolve = resolve
        self._known: dict[VersionId, ResolvedVersion] = {}

    def __call__(self, ref: str) -> ResolvedVersion:
        """Resolve `ref`, or return the earlier result for the same version.

        Raises: the errors of the constructor's `resolve`.
        """
        parsed = parse_ref(ref)
        if not isinstance(parsed, VersionRef):
            return self._resolve(ref)
        found = self._known.get(parsed.version_id)
        if found is None:
            found = self._resolve(bare_version_ref(parsed.version_id))
            self._known[parsed.version_id] = found
        return replace(found, file=parsed.file.words)


def learn_versions(client: CivitaiClient, index: Index, named: Iterable[NamedVersion], now: datetime) -> None:
    """Request the versions that an image names and the index lacks, and save them in the index.

    One request covers all of these versions. Versions that CivitAI's list leaves out are then requested one by one.
    """
    unknown = tuple(each.id for each in named if index.version(each.id) is None)
    if not unknown:
        return
    query = SearchQuery(version_ids=unknown, nsfw=True, include_archived=True, limit=None)
    pages = [(page.model, page.versions) for page in client.search(query)]
    index.remember_all(pages, fetched_at=now, source=Source.SEARCH)
    listed = {version.id for _, versions in pages for version in versions}
    for version_id in unknown:
        if version_id not in listed:
            with contextlib.suppress(NotFound):
                index.remember(client.version(version_id), fetched_at=now, source=Source.VERSION)


@dataclass(frozen=True, slots=True)
class NamedFinder:
    """Finds on CivitAI the files that an image's settings name.

    `resolve` looks up a version. `plan` plans a download from a ref and the id of a file, or raises an error if the
    file cannot be downloaded.
    """

    client: CivitaiClient
    index: Index
    resolve: Callable[[str], ResolvedVersion]
    plan: Callable[[str, str | None], Job]

    def find(self, files: Sequence[Wanted], listed: Collection[VersionId] = ()) -> list[Offer]:
        """Find the files.

        `listed`: the image's versions, which are preferred if several versions contain the same file.

        Raises: NetworkError: CivitAI cannot be reached.
        """
        hits = self._by_hashes([each.file.hash for each in files if each.file.hash])
        digests = [file.hashes.sha256 for _, file in hits.values() if file.hashes.sha256 is not None]
        owners = self.client.owners(digests) if digests else {}
        return [self._offer(each, hits.get(each.file.hash), owners, listed) for each in files]

    def _by_hashes(self, hashes: Sequence[str]) -> dict[str, Hit]:
        """Look up hashes of any kind: full ones in one request, short ones in one request each."""
        found: dict[str, Hit] = {}
        full = [Sha256(each) for each in dict.fromkeys(hashes) if len(each) == 64]
        for sha256, version in (self.client.versions_by_hashes(full) if full else {}).items():
            found[sha256] = version, next(file for file in version.files if file.hashes.sha256 == sha256)
        for digest in dict.fromkeys(hashes):
            if digest not in found and (hit := self._by_hash(digest)):
                found[digest] = hit
        return found

    def _by_hash(self, digest: str) -> Hit | None:
        """Look up a hash, shortened to 12 or 10 digits if CivitAI does not support its length or does not find it."""
        forms = [digest] if len(digest) in _LENGTHS else []
        forms += [digest[:12], digest[:10]] if len(digest) > 10 else []
        for form in dict.fromkeys(each for each in forms if len(each) in _LENGTHS):
            try:
                version, files = self.client.version_by_hash(form)
            except (NotFound, BadAnswer):
                continue
            is_cut = len(form) == 10 and len(digest) > 10
            for file in sorted(files, key=lambda file: not file.is_primary):
                if not is_cut or (file.hashes.sha256 or "").startswith(digest):
                    return version, file
        return None

    def _offer(
        self, wanted: Wanted, hit: Hit | None, owners: Mapping[Sha256, list[tuple[ModelId, VersionId]]],
        listed: Collection[VersionId],
    ) -> Offer:  # fmt: skip
        role, named = wanted.file.role, wanted.version
        if hit is not None and not _plays(*hit, role):
            version, _ = hit
            said = (
                f"the hash of the {wanted.words} is that of `{version.model.name}` ({version.model.type_raw}) on"
                " CivitAI, which is another kind of file"
            )
            return self._without(wanted, NotFound(said, code=Cause.NOT_ON_CIVITAI), self._named_alike(wanted))
        if hit is not None:
            sha256 = hit[1].hashes.sha256
            owned = owners.get(sha256, []) if sha256 is not None else []
            return self._of_hash(wanted, hit, owned or [(hit[0].model.id, hit[0].id)], listed)
        if named is not None:
            return self._of_version(wanted, named)
        if wanted.file.hash:
            said = (
                f"CivitAI knows no file with the hash of the {wanted.words}: it was never uploaded there, is not"
                " published, or was saved again by another program"
            )
            return self._without(wanted, NotFound(said, code=Cause.NOT_ON_CIVITAI), self._named_alike(wanted))
        return self._of_name(wanted)

    def _of_hash(
        self, wanted: Wanted, hit: Hit, owned: Sequence[tuple[ModelId, VersionId]], listed: Collection[VersionId]
    ) -> Offer:
        """Choose a version that contains the file: one that the image lists, else the oldest downloadable one."""
        named = wanted.version.id if wanted.version is not None else None
        order = sorted(owned, key=lambda each: (each[1] != named, each[1] not in listed, each[1]))
        first: CivmanError | None = None
        for place, (model_id, version_id) in enumerate(order):
            try:
                job = self._job(VersionRef(version_id, model_id), hit[1].hashes.sha256)
            except NetworkError:
                raise
            except CivmanError as error:
                first = first or error
                continue
            why = "the versions before it cannot be downloaded" if place else (
                "the image lists it" if version_id == named or version_id in listed else "it is the oldest version"
            )  # fmt: skip
            shown = ", ".join(bare_version_ref(version, model) for model, version in order)
            notice = f"the {wanted.words} belongs to {len(order)} versions on CivitAI ({shown});" \
                     f" civman uses {bare_version_ref(version_id, model_id)}, because {why}"  # fmt: skip
            return Offer(wanted, job, By.HASH, (notice,) if len(order) > 1 else ())
        assert first is not None, "a file that CivitAI knows is in at least one version"
        return self._without(wanted, first, self._versions_beside(*order[0]))

    def _of_version(self, wanted: Wanted, named: NamedVersion) -> Offer:
        try:
            job = self._job(VersionRef(named.id, named.model_id), None)
        except NetworkError:
            raise
        except CivmanError as error:
            saved = self.index.version(named.id)
            model_id = named.model_id or (saved.model.id if saved is not None else None)
            if isinstance(error, NotFound) and not isinstance(error, Gone):
                error = Gone(
                    f"the {wanted.words} is no longer on CivitAI: version {named.id} was deleted or withdrawn",
                    code=Cause.DELETED_UPSTREAM, version_id=named.id, model_id=model_id,
                )  # fmt: skip
            stand_ins = [*self._same_tensors(saved), *(self._versions_beside(model_id, named.id) if model_id else ())]
            return self._without(wanted, error, stand_ins)
        notice = f"CivitAI does not know the hash of the {wanted.words}; civman uses the file that is now in version" \
                 f" {named.id}, which the image names"  # fmt: skip
        return Offer(wanted, job, By.VERSION, (notice,) if wanted.file.hash else ())

    def _of_name(self, wanted: Wanted) -> Offer:
        alike = list(self._searched(wanted))
        if len({file.hashes.sha256 for _, file in alike}) != 1:
            said = f"CivitAI has {len(alike) or 'no'} files with the name of the {wanted.words}, for which the" \
                   " settings contain no hash"  # fmt: skip
            return self._without(
                wanted, NotFound(said, code=Cause.NOT_ON_CIVITAI), [_words_of(version) for version, _ in alike]
            )
        version, file = alike[0]
        try:
            job = self._job(VersionRef(version.id, version.model.id), file.hashes.sha256)
        except NetworkError:
            raise
        except CivmanError as error:
            return self._without(wanted, error, ())
        notice = f"the {wanted.words} was found on CivitAI by its name only; another file may have the same name"
        return Offer(wanted, job, By.NAME, (notice,))

    def _job(self, ref: VersionRef, sha256: Sha256 | None) -> Job:
        """Plan the download of the version's file with this SHA-256, or of its default file.

        Raises: Gone: CivitAI no longer has the version; NotAllowed, Refused, NotFound.
        """
        resolved = self.resolve(str(ref))
        if resolved.is_saved_copy:
            raise Gone(
                f"`{resolved.version.model.name}` {resolved.version.name} is no longer on CivitAI: version"
                f" {ref.version_id} was deleted or withdrawn",
                code=Cause.DELETED_UPSTREAM, version_id=ref.version_id, model_id=resolved.version.model.id,
            )  # fmt: skip
        file = next((file for file in resolved.version.files if sha256 and file.hashes.sha256 == sha256), None)
        return self.plan(str(ref), str(file.id) if file is not None and file.id is not None else None)

    def _without(self, wanted: Wanted, problem: CivmanError, stand_ins: Iterable[str]) -> Offer:
        found = tuple(dict.fromkeys(stand_ins))[:_MOST_STAND_INS]
        if found:
            problem.hint = f"these could be used instead, but the image will differ: {'; '.join(found)}"
        return Offer(wanted, None, problem=problem, stand_ins=found)

    def _versions_beside(self, model_id: ModelId, version_id: VersionId) -> Iterator[str]:
        """Describe the other versions of a model that are on CivitAI or in the library."""
        held = {asset.version_id: asset for asset in self.index.find_by_model(model_id)}
        try:
            for version in self.client.model(model_id).versions:
                if version.id != version_id:
                    yield _words_of(version, is_held=held.pop(version.id, None) is not None)
        except NotFound:
            pass
        for asset in held.values():
            yield f"{asset.ref} ({asset.model_name} {asset.version_name}, in the library)"

    def _same_tensors(self, saved: ModelVersion | None) -> Iterator[str]:
        """Describe the stored files that have the same tensors (by AutoV3) as a file of a deleted version."""
        for file in saved.files if saved is not None else ():
            for asset in self.index.find_by_digest(file.hashes.autov3) if file.hashes.autov3 else ():
                yield f"{asset.ref} (`{asset.name}` in the library, with the same tensors)"

    def _named_alike(self, wanted: Wanted) -> Iterator[str]:
        if wanted.held is not None:
            yield f"{wanted.held.ref} (`{wanted.held.name}` in the library; only its name matches)"
        for version, _ in self._searched(wanted):
            yield f"{_words_of(version)} (only the name of its file matches)"

    def _searched(self, wanted: Wanted) -> Iterator[Hit]:
        """Search CivitAI for files of the right kind that have exactly this name."""
        name = wanted.file.name
        if not name.strip():
            return
        query = SearchQuery(
            text=_search_words(name), types=_TYPES.get(wanted.file.role, ()), nsfw=True, limit=_SEARCHED
        )
        for page in self.client.search(query):
            for version in page.versions:
                for file in version.files:
                    if name.casefold() in (file.name.casefold(), Path(file.name).stem.casefold()):
                        yield replace(version, model=page.model), file


def _search_words(name: str) -> str:
    """Guess the words of a model's name from the name of its file, because CivitAI searches by model name.

    >>> _search_words("tinyShapes_v10")
    'tiny Shapes'
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"[_\-]+", " ", name)).split()
    kept = [word for word in words if not re.fullmatch(r"[vV]?[0-9][0-9.]*", word)]
    return " ".join(kept or words)


def _plays(version: ModelVersion, file: ModelFile, role: str) -> bool:
    """Whether a file can have this role in a recipe; a checkpoint's version may also contain a VAE file."""
    return role_of(version.model.type) == role or (role == "vae" and file.type == "VAE")


def _words_of(version: ModelVersion, *, is_held: bool = False) -> str:
    label = f", {version.base_model}" if version.base_model else ""
    place = ", in the library" if is_held else ""
    return f"{version_ref(version)} ({version.model.name} {version.name}{label}{place})"
