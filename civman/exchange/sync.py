"""Download exactly the files that a project's lock lists, and create or update the lock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from civman.domain.catalog import Asset, FileId, ModelFile, ModelVersion, VersionId
from civman.domain.digests import Sha256
from civman.domain.refs import FileSelector, HashRef, ImageRef, NameRef, NumberRef, PathRef, VersionRef, parse_ref
from civman.download.job import Examine, Job, Outcome
from civman.errors import AmbiguousRef, Cause, CivmanError, ConfigError, HashMismatch, IntegrityError, NotFound
from civman.exchange.project import Locked, Project, locked_asset, locked_file
from civman.index import Index
from civman.manage.find_assets import find_asset

Fetch = Callable[[Sequence[str], Examine | None], Sequence[Outcome]]


@dataclass(frozen=True, slots=True)
class Synced:
    """The result for one entry of the lock: its file, which was either present or downloaded, or an error."""

    entry: Locked
    asset: Asset | None = None
    was_present: bool = False
    error: CivmanError | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """The result for one ref: its entry in the lock, or an error. `is_new`: the ref was not in civman.toml before."""

    ref: str
    entry: Locked | None = None
    is_new: bool = False
    error: CivmanError | None = None


@dataclass(frozen=True, slots=True)
class Syncing:
    """A project, the library's index, and the function that downloads files."""

    project: Project
    index: Index
    fetch: Fetch
    """A function that downloads refs; its second argument is a function that checks each file before its download."""
    plan: Callable[[str], Job]
    file: str | None = None
    """Selects one of a version's files, as the option `--file` does; None: the default file."""

    def add(self, refs: Sequence[str], *, download: bool) -> list[Added]:
        """Resolve `refs` and write them to civman.toml and the lock, except those that cannot be resolved."""
        found = self._locked_held(refs) if download else {}
        rest = [ref for ref in refs if ref not in found]
        found |= self._fetched(rest) if download else {ref: self._unseen(ref) for ref in rest}
        fresh = self.project.add([entry for ref in refs if isinstance(entry := found[ref], Locked)])
        return [
            Added(ref, entry, entry.ref in fresh) if isinstance(entry, Locked) else Added(ref, error=entry)
            for ref in refs
            for entry in (found[ref],)
        ]

    def relock(self) -> list[Added]:
        """Update the lock to match civman.toml: new entries are resolved, existing entries stay as they are."""
        stale = self.project.stale()
        entries = [entry for entry in self.project.locked() if entry.ref not in stale.extra]
        self.project.write_lock(entries)
        return self.add(stale.missing, download=True)

    def sync(self) -> list[Synced]:
        """Download exactly those files that the lock lists and the library does not have. Removes nothing."""
        entries = self.entries()
        missing = [entry for entry in entries if self._here(entry) is None and entry.exact_ref is not None]
        wanted = {(entry.version_id, entry.file_id): entry for entry in missing}

        def examine(version: ModelVersion, file: ModelFile) -> list[str]:
            check_declared(wanted, version, file)
            return []

        refs = [entry.exact_ref for entry in missing if entry.exact_ref is not None]
        outcomes = dict(zip(missing, self.fetch(refs, examine), strict=True)) if refs else {}
        return [self._synced(entry, outcomes.get(entry)) for entry in entries]

    def check(self) -> list[Synced]:
        """Report which files of the lock are in the library. Changes nothing and needs no network."""
        return [self._synced(entry, None) for entry in self.entries()]

    def entries(self) -> list[Locked]:
        """The entries of the lock, which must match civman.toml.

        Raises: ConfigError: `lock-missing`, `lock-stale`. NotFound: `no-project`.
        """
        if not self.project.manifest.exists() and not self.project.lock.exists():
            raise NotFound(
                f"neither `{self.project.manifest.parent}` nor a folder above it contains a project",
                hint="run `civman add REF` to start a project: it writes civman.toml and civman.lock",
                code=Cause.NO_PROJECT,
            )
        entries, stale = self.project.locked(), self.project.stale()
        if not self.project.lock.exists() and stale:
            raise ConfigError(
                f"there is no `{self.project.lock.name}` next to `{self.project.manifest}`",
                code=Cause.LOCK_MISSING,
                hint="run `civman sync --lock` to write the lock",
            )
        if stale:
            words = [f"{ref} is missing" for ref in stale.missing]
            words += [f"{ref} is no longer in {self.project.manifest.name}" for ref in stale.extra]
            raise ConfigError(
                f"`{self.project.lock}` is out of date: {', '.join(words)}",
                code=Cause.LOCK_STALE,
                hint="run `civman sync --lock` to update the lock",
                missing=list(stale.missing),
                extra=list(stale.extra),
            )
        return entries

    def _synced(self, entry: Locked, outcome: Outcome | None) -> Synced:
        if outcome is not None and outcome.error is not None:
            return Synced(entry, error=outcome.error)
        asset = self._here(entry)
        if asset is not None:
            return Synced(entry, asset, was_present=outcome is None or outcome.was_present)
        if outcome is not None and outcome.asset is not None:
            error: CivmanError = HashMismatch(name=entry.name, expected=entry.sha256, actual=outcome.asset.blob.sha256)
        elif entry.exact_ref is None:
            error = NotFound(
                f"`{entry.name}` is not in the library, and CivitAI does not know it",
                hint="import the file from a bundle: `civman import FILE.civman`",
            )
        else:
            error = NotFound(
                f"`{entry.name}` is not in the library",
                code=Cause.MISSING,
                hint="run `civman sync` to download the file",
            )
        return Synced(entry, error=error)

    def _here(self, entry: Locked) -> Asset | None:
        found = (asset for asset in self.index.referrers(entry.sha256) if Path(asset.path).is_file())
        return next(found, None)

    def _locked_held(self, refs: Sequence[str]) -> dict[str, Locked | CivmanError]:
        """Resolve refs that are names, digests or paths of stored files to lock entries.

        For an ambiguous ref, the error is returned instead. Refs that match no stored file are left out.
        """
        found: dict[str, Locked | CivmanError] = {}
        for ref in refs:
            parsed = parse_ref(ref)
            if not isinstance(parsed, NameRef | HashRef | PathRef):
                continue
            try:
                found[ref] = self._lock(ref, find_asset(self.index, parsed, self.file))
            except NotFound:
                continue
            except AmbiguousRef as error:
                found[ref] = error
        return found

    def _fetched(self, refs: Sequence[str]) -> dict[str, Locked | CivmanError]:
        found: dict[str, Locked | CivmanError] = {}
        for ref, outcome in zip(refs, self.fetch(refs, None) if refs else (), strict=True):
            if outcome.asset is not None:
                found[ref] = self._lock(ref, outcome.asset)
            elif outcome.error is not None:
                found[ref] = outcome.error
        return found

    def _unseen(self, ref: str) -> Locked | CivmanError:
        try:
            job = self.plan(ref)
            return locked_file(_wish(ref, job.version, job.file.id, job.file.hashes.sha256), job.version, job.file)
        except CivmanError as error:
            return error

    def _lock(self, ref: str, asset: Asset) -> Locked:
        version = self.index.version(asset.version_id) if asset.version_id is not None else None
        return locked_asset(_wish(ref, version, asset.file_id, asset.blob.sha256), asset, version)


def check_declared(
    wanted: dict[tuple[VersionId | None, FileId | None], Locked], version: ModelVersion, file: ModelFile
) -> None:
    """Check that CivitAI still declares the locked SHA-256 for a file.

    Raises: IntegrityError, before anything is downloaded.
    """
    entry = wanted.get((version.id, file.id))
    declared = file.hashes.sha256
    if entry is not None and declared is not None and declared != entry.sha256:
        raise IntegrityError(
            f"`{entry.name}` no longer matches the lock: {entry.sha256[:12]} is locked, but CivitAI now has"
            f" {declared[:12]} under the same id; nothing was downloaded",
            code=Cause.LOCK_MISMATCH,
            hint="import the locked file from a bundle (`civman import FILE.civman`), or lock the new file:"
            f" `civman add {entry.ref}`",
            name=entry.name,
            expected=entry.sha256,
            actual=declared,
        )


def _wish(ref: str, version: ModelVersion | None, file_id: FileId | None, sha256: Sha256 | None) -> str:
    """Return the ref to write to civman.toml: as typed if it is unambiguous, else the exact ref of the file."""
    parsed = parse_ref(ref)
    if isinstance(parsed, NameRef | HashRef | PathRef | NumberRef | ImageRef):
        if version is None:
            return f"sha256:{sha256}"
        if str(version.model.id) == str(parsed):
            return f"civitai:{version.model.id}"
        is_exact = isinstance(parsed, NameRef | HashRef | PathRef)
        return str(VersionRef(version.id, version.model.id, FileSelector(file_id if is_exact else None)))
    return str(parsed)
