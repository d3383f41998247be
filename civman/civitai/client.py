"""The client for CivitAI's API. It returns domain values; the contents of files are read by `storage_connection`."""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from civman.civitai import allowed_urls, wire_models
from civman.civitai.failures import Asked, Endpoint, cause, is_login_address, login_page
from civman.civitai.paging import matches
from civman.civitai.responses import Account, DownloadAddress, Glance, Picture, SearchPage
from civman.civitai.transport import Params, Transport, quiet, utc_now
from civman.civitai.wire_values import OnNotice
from civman.domain.catalog import FileId, ModelFile, ModelId, ModelVersion, VersionId
from civman.domain.digests import Sha256
from civman.domain.refs import ANY_FILE, FileSelector
from civman.domain.search_query import ModelPage, SearchQuery, checked_id
from civman.errors import AmbiguousRef, BadAnswer, Cause, CivmanError, InvalidRef, NotFound

_HASHES_PER_QUESTION = 10_000
_IDS_PER_QUESTION = 100
_FILES_PER_QUESTION = 100
_DOWNLOADS = "/api/download/"


class CivitaiClient:
    """The client of CivitAI's public API, with or without an API key. Close it or use it as a context manager.

    Args:
        transport: sends the requests.
        clock: returns the current time, which decides whether early access is still in force.
        on_notice: receives notices that are not errors, such as skipped entries or filters that the site ignored.

    Methods raise the CivmanError that `failures` chooses for an error response, Offline, or BadAnswer if the response
    is not what was requested. A number that cannot be an id raises UsageError before a request is sent.
    """

    def __init__(
        self, transport: Transport, *, clock: Callable[[], datetime] = utc_now, on_notice: OnNotice = quiet
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._on_notice = on_notice

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def search(self, query: SearchQuery, *, before_page: Callable[[], None] = lambda: None) -> Iterator[ModelPage]:
        """Iterate over the models that match the query. A page is requested only when its first model is needed.

        `before_page` is called before each page after the first, so that a caller can show the results so far.
        """
        what = f"creator `{query.username}`" if query.username else "the search"
        ask = partial(self._search_page, what)
        return matches(ask, query, now=self._clock(), on_notice=self._on_notice, before_page=before_page)

    def model(self, model_id: ModelId) -> ModelPage:
        """Request a model with its versions, even if it is archived.

        For some minutes after an update of the model, `versions` may be empty.
        """
        answer = self._get(f"/api/v1/models/{checked_id(model_id, 'model')}", f"model {model_id}")
        page = wire_models.page(answer, now=self._clock(), on_notice=self._on_notice)
        _check_same(page.model.id, model_id, "model")
        return page

    def version(self, version_id: VersionId) -> ModelVersion:
        """Request a model version with its files and a short summary of its model."""
        answer = self._get(
            f"/api/v1/model-versions/{checked_id(version_id, 'version')}", f"version {version_id}"
        )  # fmt: skip
        version = wire_models.version(answer, now=self._clock(), on_notice=self._on_notice)
        _check_same(version.id, version_id, "version")
        return version

    def by_hash(self, digest: str) -> tuple[ModelVersion, ModelFile]:
        """Look up a digest of any kind (8, 10, 12 or 64 hex digits) and return the version and file that have it.

        Raises: AmbiguousRef: several files of the version have the same short digest. BadAnswer: no file of the version
        has it.
        """
        wanted = digest.strip().lower()
        version, found = self.version_by_hash(wanted)
        if len({file.hashes.sha256 for file in found}) > 1:
            raise AmbiguousRef(
                f"several files of version {version.id} have hash {wanted}",
                hint="select one of the files by its SHA-256",
                candidates=[file.hashes.sha256 or file.name for file in found],
            )
        return version, next((file for file in found if file.is_primary), found[0])

    def version_by_hash(self, digest: str) -> tuple[ModelVersion, list[ModelFile]]:
        """Look up a digest and return the version with the files that have this digest.

        The digest has 8, 10, 12 or 64 hex digits. Raises: BadAnswer: no file of the version has it.
        """
        wanted = digest.strip().lower()
        if not re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64}", wanted):
            raise InvalidRef(
                f"`{digest[:80]}` does not have the form of a digest on CivitAI", hint="use 8, 10, 12 or 64 hex digits"
            )
        answer = self._get(f"/api/v1/model-versions/by-hash/{wanted.upper()}", f"a file with hash {wanted}")
        version = wire_models.version(answer, now=self._clock(), on_notice=self._on_notice)
        found = [file for file in version.files if _has_digest(file, wanted)]
        if not found:
            raise BadAnswer(
                f"CivitAI returned version {version.id} for hash {wanted}, but none of its files has "
                        "that hash",
                code=Cause.WRONG_ANSWER, hint="look up the version by its id", version_id=version.id,
            )  # fmt: skip
        return version, found

    def versions_by_hashes(self, sha256s: Iterable[Sha256]) -> dict[Sha256, ModelVersion]:
        """Look up versions by the digests of their files, including versions of models that CivitAI's lists leave out.

        One request covers 100 files. If several versions contain the same file, the version with the lowest id is
        returned. A version that cannot be parsed is left out.
        """
        asked = list(dict.fromkeys(sha256s))
        found: dict[Sha256, ModelVersion] = {}
        for start in range(0, len(asked), _FILES_PER_QUESTION):
            chunk = asked[start : start + _FILES_PER_QUESTION]
            answer = self._transport.post_json(
                "/api/v1/model-versions/by-hash", list(chunk), asked=self._asked(f"{len(chunk)} files")
            )
            wanted = set(chunk)
            for version in wire_models.versions(answer, now=self._clock(), on_notice=self._on_notice):
                for sha256 in wanted.intersection(file.hashes.sha256 for file in version.files if file.hashes.sha256):
                    if sha256 not in found or version.id < found[sha256].id:
                        found[sha256] = version
        return found

    def identify(self, sha256s: Iterable[Sha256]) -> dict[Sha256, tuple[ModelId, VersionId]]:
        """Look up the model and version that each digest belongs to; unknown digests are left out.

        If several versions contain the same file, the oldest one (with the lowest id) is returned.
        """
        return {digest: owners[0] for digest, owners in self.owners(sha256s).items()}

    def owners(self, sha256s: Iterable[Sha256]) -> dict[Sha256, list[tuple[ModelId, VersionId]]]:
        """Look up all versions that contain each digest, the oldest (with the lowest id) first.

        Unknown digests are left out. If the site cannot be reached, the error is raised after one attempt, because the
        caller can ask again later.
        """
        # imported on first use: the import takes 0.02 s, and most requests do not need it
        from civman.civitai import wire_lookups

        asked = list(dict.fromkeys(sha256s))
        found: dict[Sha256, set[tuple[VersionId, ModelId]]] = {}
        for start in range(0, len(asked), _HASHES_PER_QUESTION):
            chunk = asked[start : start + _HASHES_PER_QUESTION]
            answer = self._transport.post_json(
                "/api/v1/model-versions/by-hash/ids",
                list(chunk),
                asked=self._asked(f"{len(chunk)} hashes"),
                is_probe=start == 0,
            )
            wanted = set(chunk)
            for digest, model_id, version_id in wire_lookups.identities(
                answer, now=self._clock(), on_notice=self._on_notice
            ):
                if digest in wanted:
                    found.setdefault(digest, set()).add((version_id, model_id))
        return {digest: [(model, version) for version, model in sorted(pairs)] for digest, pairs in found.items()}

    def models_by_ids(self, ids: Iterable[ModelId]) -> Iterator[ModelPage]:
        """Request models by id, in the order in which the site returns them.

        Archived models are included, unlisted ones are not.
        """
        asked = list(dict.fromkeys(ids))
        for start in range(0, len(asked), _IDS_PER_QUESTION):
            chunk = tuple(asked[start : start + _IDS_PER_QUESTION])
            yield from self.search(SearchQuery(ids=chunk, nsfw=True, include_archived=True, limit=None))

    def mini(self, version_id: VersionId, file_id: FileId | None = None) -> Glance:
        """Request the current state of one file of a version, bypassing all caches.

        If `file_id` is None, the version's primary file is used.
        """
        # imported on first use: the import takes 0.02 s, and most requests do not need it
        from civman.civitai import wire_lookups

        params = [("modelFileId", str(checked_id(file_id, "file")))] if file_id is not None else []
        path = f"/api/v1/model-versions/mini/{checked_id(version_id, 'version')}"
        answer = self._get(path, f"version {version_id}" + (f", file {file_id}" if file_id else ""), params)
        return wire_lookups.glance(answer, file_id, now=self._clock(), on_notice=self._on_notice)

    def tensor_metadata(self, file_id: FileId) -> list[tuple[str, str, tuple[int, ...]]] | None:
        """Request each tensor's name, dtype and shape, not the file itself; None if the site does not list them."""
        # imported on first use: the import takes 0.02 s, and most requests do not need it
        from civman.civitai import wire_lookups

        try:
            answer = self._get(
                f"/api/v1/model-files/{checked_id(file_id, 'file')}/tensor-metadata", f"the tensors of file {file_id}"
            )
        except CivmanError as error:
            if error.facts.get("status") in (400, 404, 422):
                return None
            raise
        return wire_lookups.tensors(answer, now=self._clock(), on_notice=self._on_notice)

    def me(self) -> Account:
        """Request the account that the API key belongs to. Only this endpoint shows that a key is invalid.

        Raises: NotAllowed (`no-key`, `bad-key`).
        """
        # imported on first use: the import takes 0.02 s, and most requests do not need it
        from civman.civitai import wire_lookups

        answer = self._transport.get_json("/api/v1/me", asked=self._asked("your account", Endpoint.ACCOUNT))
        return wire_lookups.account(answer, now=self._clock(), on_notice=self._on_notice)

    def enums(self) -> dict[str, tuple[str, ...]]:
        """Request the values of "ModelType", "ModelFileType", "BaseModel", "ActiveBaseModel", "BaseModelType"."""
        # imported on first use: the import takes 0.02 s, and most requests do not need it
        from civman.civitai import wire_lookups

        return wire_lookups.enums(self._get("/api/v1/enums", "the table of its valid values"))

    def image(self, image_id: int) -> Picture:
        """Request a published image with its generation data. Raises: NotFound: unknown or hidden from this account."""
        # imported on first use: the import takes 0.02 s, and most requests do not need it
        from civman.civitai import wire_lookups

        params = [
            ("imageId", str(checked_id(image_id, "picture"))),
            *(("nsfw", "X"), ("withMeta", "true"), ("flatMeta", "true")),
        ]
        answer = self._get("/api/v1/images", f"picture {image_id}", params)
        found = wire_lookups.pictures(answer, now=self._clock(), on_notice=self._on_notice)
        # the site returns other images if this one is not visible
        match = next((picture for picture in found if picture.id == image_id), None)
        if match is None:
            raise NotFound(
                f"CivitAI does not return image {image_id}", hint="the image may be private, blocked or deleted"
            )
        return match

    def images(self, version_id: VersionId, *, limit: int = 20) -> tuple[Picture, ...]:
        """Request published images, of any rating, that were made with a model version, with their generation data.

        The most popular images come first.
        """
        # imported on first use: the import takes 0.02 s, and most requests do not need it
        from civman.civitai import wire_lookups

        params = [
            ("modelVersionId", str(checked_id(version_id, "version"))), ("limit", str(limit)),
            # 31 is the bit mask of all ratings from PG to XXX
            *(("browsingLevel", "31"), ("withMeta", "true"), ("flatMeta", "true"), ("sort", "Most Reactions")),
        ]  # fmt: skip
        answer = self._get("/api/v1/images", f"images of version {version_id}", params)
        return wire_lookups.pictures(answer, now=self._clock(), on_notice=self._on_notice)

    def download_address(self, version_id: VersionId, file: ModelFile | FileSelector = ANY_FILE) -> DownloadAddress:
        """Request the current download URL of a version's file, without reading any of the file.

        Raises: NotAllowed (`no-key`, `early-access` …), NotFound, Gone (`archived`), UnsafeRedirect.
        """
        checked_id(version_id, "version")
        asked = self._asked(f"version {version_id}", Endpoint.DOWNLOAD)
        *before, last = self._download_urls(version_id, file)
        for url in before:
            try:
                return self._resolved(url, asked)
            except NotFound as error:
                if error.facts.get("status") != 404:
                    raise
                self._on_notice(
                    f"file {file.name if isinstance(file, ModelFile) else ''}: requested by its own URL, because "
                    "the version's URL leads to no file"
                )
        return self._resolved(last, asked)

    def _download_urls(self, version_id: VersionId, file: ModelFile | FileSelector) -> list[str]:
        """List the site's download URLs for a file, in the order in which to try them.

        A second URL is only listed if a digest is known that can verify the downloaded bytes.
        """
        bare = f"{_DOWNLOADS}models/{version_id}"
        if isinstance(file, FileSelector):
            return [self._transport.url(bare, _selector_params(file))]
        own = self._own_url(file.download_url)
        if file.id is not None and not file.is_linked:
            by_id = self._transport.url(bare, [("fileId", str(checked_id(file.id, "file")))])
            return [by_id, own] if own not in (None, by_id) and own and file.hashes.sha256 else [by_id]
        if own is None:
            raise NotFound(
                f"CivitAI has no download URL for file `{file.name}` of version {version_id}",
                hint="look at the model's page; archived models have no download URL", version_id=version_id,
            )  # fmt: skip
        return [own]

    def _own_url(self, download_url: str | None) -> str | None:
        """Return a response's download URL with the host of the configured site; None if the URL is unusable.

        The host in the response is not trusted, so only path and query are used.
        """
        try:
            parts = urlsplit(download_url or "")
        except ValueError:
            return None
        _, mark, rest = parts.path.partition(_DOWNLOADS)
        if not mark or ".." in rest:
            return None
        query = [(name, value) for name, value in parse_qsl(parts.query) if name != "token"]
        return self._transport.url(_DOWNLOADS + rest) + (f"?{urlencode(query)}" if query else "")

    def _resolved(self, url: str, asked: Asked) -> DownloadAddress:
        home = self._transport.address
        for _ in range(allowed_urls.MAX_HOPS):
            answer = self._transport.first_hop(url, asked=asked)
            if answer.status < 300:
                return DownloadAddress(url, send_token=True)
            location = answer.headers["location"]
            if is_login_address(location):
                raise login_page(asked)
            target = allowed_urls.follow(url, location, loopback_allowed=allowed_urls.is_loopback(home))
            if not target.startswith(home + "/"):
                return DownloadAddress(target)
            if re.match(r"/(model-versions|models)/\d+", target[len(home) :]):
                raise cause(answer.status, answer.headers, b"", asked)
            if not target.startswith(home + _DOWNLOADS):
                return DownloadAddress(target)
            url = target  # the site redirects from one of its download paths to another, so follow the redirect
        raise BadAnswer(f"CivitAI redirects the request for {asked.what} in a loop", code=Cause.REDIRECT_LOOP)

    def _search_page(self, what: str, params: Params) -> SearchPage:
        answer = self._transport.get_json("/api/v1/models", params, asked=self._asked(what, Endpoint.SEARCH))
        return wire_models.search_page(answer, now=self._clock(), on_notice=self._on_notice)

    def _get(self, path: str, what: str, params: Params = ()) -> object:
        return self._transport.get_json(path, params, asked=self._asked(what))

    def _asked(self, what: str, endpoint: Endpoint = Endpoint.LOOKUP) -> Asked:
        return Asked(what, endpoint, self._transport.has_key)


def _check_same(given: int, asked: int, what: str) -> None:
    if given != asked:
        raise BadAnswer(
            f"CivitAI returned {what} {given} instead of {what} {asked}",
            code=Cause.WRONG_ANSWER, hint="a proxy may be returning a wrong cached response",
        )  # fmt: skip


def _has_digest(file: ModelFile, wanted: str) -> bool:
    """Whether any digest of `file` equals `wanted`; only the first 12 digits of an AutoV3 digest are compared."""
    if wanted in file.hashes.known().values():
        return True
    return file.hashes.autov3 is not None and wanted[:12] == file.hashes.autov3


def _selector_params(file: FileSelector) -> list[tuple[str, str]]:
    pairs = {
        "fileId": str(file.file_id) if file.file_id is not None else None,
        "type": file.type,
        "format": file.format,
        "size": file.size,
        "fp": file.precision,
        "quantType": file.quant_type,
    }
    return [(name, value) for name, value in pairs.items() if value is not None]
