"""Create, refresh and remove a view. Only files that its manifest lists, and that are unchanged, are modified.

Once a blob has a name in a view, it keeps this name for as long as it is in the view.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath

from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.domain.file_names import MOST_BYTES
from civman.errors import NotFound, StoreError, UsageError
from civman.exchange import view_manifest as memory
from civman.exchange.view_companions import Beside, companions, config_of
from civman.exchange.view_files import place, remove_entry_file, write_companion
from civman.exchange.view_folders import Companion, Layout, layout_named, slot_of
from civman.exchange.view_manifest import Entry, Manifest, Method, State
from civman.exchange.view_names import free_name, stem_key
from civman.exchange.view_safe_copies import SafeAssets
from civman.index import Index
from civman.manage.places import at_its_place
from civman.store.blobs import BlobStore
from civman.store.partial import store_error
from civman.system.move_files import remove_file, rename_file
from civman.system.path_rules import require_room
from civman.system.process_lock import FileLock

_LOCK = ".civman-view.lock"
_SHORTEST_NAME = 40
"""File names of at least this many bytes must be possible in the view, so that a suffix or a digest fits into them."""


class Act(StrEnum):
    """What happens to one path of a view."""

    ADD = "add"
    RENAME = "rename"
    RENEW = "renew"
    """The file is created again at the same path, because the method or a companion file changed, or because the model
    was downloaded again.
    """
    REMOVE = "remove"
    KEEP = "keep"
    LEAVE = "leave"
    """A file of the user or of another program exists at the path; it is not touched."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the plan, for one path. `old_path` is the path before a rename."""

    act: Act
    entry: Entry
    asset: Asset | None = None
    data: bytes | None = None
    old_path: str = ""
    reason: str = ""

    @property
    def path(self) -> str:
        """The path relative to the view's folder, with slashes."""
        return self.entry.path


@dataclass(frozen=True, slots=True)
class Skipped:
    """An asset that the view cannot show, with the reason."""

    asset: Asset
    reason: str


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """The changes that `apply` makes to a view, and the files that the view cannot show."""

    folder: Path
    layout: Layout
    before: Manifest | None
    after: Manifest
    steps: tuple[Step, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Linked:
    """The result of applying a plan. `notices`: which kinds of links could not be created, and why."""

    plan: ViewPlan
    entries: tuple[Entry, ...]
    notices: tuple[str, ...]


def plan_view(
    folder: Path, assets: Iterable[Asset], index: Index, store: BlobStore, after: Manifest, before: Manifest | None,
    safe: SafeAssets | None = None,
) -> ViewPlan:  # fmt: skip
    """Plan the changes after which `folder` shows `assets` as `after` specifies. Changes nothing in `folder`.

    With `safe`, the safetensors copies of pickles are shown.

    Raises: UsageError: the folder contains a view for another program. StoreError.
    """
    layout = layout_named(after.layout)
    if before is not None and before.layout != after.layout:
        raise UsageError(
            f"`{folder}` is a view for {before.layout}",
            hint=f"choose another folder, or remove that view first: `civman link {folder} --remove`",
        )
    planner = _Planner(folder, layout, index, store, after, before, safe)
    return planner.plan(assets)


def apply(plan: ViewPlan, store: BlobStore) -> Linked:
    """Carry out the plan.

    Raises: StoreError, DiskFull: files that were created before the error are recorded in the manifest.
    """
    lock = _locked(plan.folder)
    try:
        if memory.read(plan.folder) != plan.before:
            raise StoreError(
                "another civman process has just changed this view", hint="try again", path=str(plan.folder)
            )
        return _Worker(plan, store).run()
    finally:
        lock.release()


def remove_view(folder: Path, store: BlobStore) -> list[Step]:
    """Remove a view: its unchanged files, then its empty folders. The blobs are not touched."""
    before = memory.read(folder)
    if before is None:
        raise UsageError(f"there is no view in `{folder}`", hint="`civman link DIR --layout NAME` creates a view")
    lock = _locked(folder)
    try:
        steps = [_removal(folder, entry, store) for entry in before.entries]
        for step in steps:
            if step.act is Act.REMOVE:
                remove_entry_file(folder, step.entry, store)
        _remove_folders(folder, before.folders)
        remove_file(folder / memory.FILE, missing_ok=True)
    except OSError as error:
        raise store_error(error, folder) from error
    finally:
        lock.release()
    return steps


class _Planner:
    def __init__(
        self, folder: Path, layout: Layout, index: Index, store: BlobStore, after: Manifest, before: Manifest | None,
        safe: SafeAssets | None,
    ) -> None:  # fmt: skip
        self._safe = safe
        self._folder, self._layout, self._index, self._store, self._after = folder, layout, index, store, after
        self._before = before.entries if before is not None else ()
        self._manifest = before
        self._home = folder.resolve()
        self._by_path = memory.entries_by_path(self._before)
        self._taken: dict[tuple[str, str], Asset | None] = {}
        self._listed: dict[str, set[str]] = {}
        self._steps: list[Step] = []

    def plan(self, assets: Iterable[Asset]) -> ViewPlan:
        placed, skipped = self._placed(assets)
        shown = {asset.blob.sha256: self._digest_and_size(asset)[0] for _, asset in placed}
        # drop entries whose file the view no longer shows, because it switched between a pickle and the pickle's
        # safetensors copy
        fitting = [each for each in self._before if each.kind == "model" and shown.get(each.of, "") == each.sha256]
        models = {(entry.folder, entry.of): entry for entry in fitting}
        elsewhere = {entry.of: entry for entry in fitting}
        wanted = {(folder, asset.blob.sha256) for folder, asset in placed}
        for folder, asset in placed:
            kept = models.get((folder, asset.blob.sha256))
            if kept is not None:
                self._taken[stem_key(folder, kept.name)] = asset
        for folder, asset in placed:
            kept = models.get((folder, asset.blob.sha256))
            moved = elsewhere.get(asset.blob.sha256)
            if kept is not None:
                self._keep(kept, asset)
            elif moved is not None and (moved.folder, moved.of) not in wanted:
                self._add(folder, asset, moved)
            else:
                self._add(folder, asset, None)
        self._drop_others()
        after = replace(self._after, folders=self._manifest.folders if self._manifest is not None else ())
        return ViewPlan(self._folder, self._layout, self._manifest, after, tuple(self._steps), tuple(skipped))

    def _placed(self, assets: Iterable[Asset]) -> tuple[list[tuple[str, Asset]], list[Skipped]]:
        """Choose a folder for the oldest asset of each blob.

        Older assets come first, so they get names without a suffix.
        """
        found: dict[tuple[str, Sha256], Asset] = {}
        skipped: list[Skipped] = []
        for asset in sorted(assets, key=lambda asset: (asset.added_at, asset.blob.sha256)):
            slot = slot_of(asset)
            folder = self._layout.folders.get(slot) if slot is not None else None
            if folder is None:
                what = asset.type_raw or asset.blob.suffix or asset.type.value
                skipped.append(Skipped(asset, f"{self._layout.name} has no folder for this kind of file ({what})"))
                continue
            try:
                asset = at_its_place(self._index, asset)
            except NotFound as error:
                skipped.append(Skipped(asset, error.message))
                continue
            if Path(asset.path).resolve().is_relative_to(self._home):
                skipped.append(Skipped(asset, "the file is already in this folder"))
            else:
                safe = asset if self._safe is None else self._safe.shown(asset)
                if isinstance(safe, str):
                    skipped.append(Skipped(asset, safe))
                else:
                    found.setdefault((folder, asset.blob.sha256), safe)
        return [(folder, asset) for (folder, _), asset in found.items()], skipped

    def _digest_and_size(self, asset: Asset) -> tuple[Sha256, int]:
        """The digest and size of the file that the view shows for an asset."""
        if self._safe is None:
            return asset.blob.sha256, asset.blob.size_bytes
        return self._safe.digest_and_size(asset)

    def _keep(self, entry: Entry, asset: Asset) -> None:
        blob = Path(asset.path)
        state = memory.state_of(self._folder, entry, blob)
        if state is State.FOREIGN:
            self._steps.append(
                Step(Act.LEAVE, entry, asset, reason="the file is no longer the one that civman created")
            )
            self._steps += [Step(Act.KEEP, other) for other in self._beside(entry) if other.path not in self._done()]
            return
        act = Act.ADD if state is State.MISSING else Act.RENEW if self._is_stale(entry, blob) else Act.KEEP
        self._steps.append(Step(act, entry, asset))
        self._companions(entry, asset)

    def _is_stale(self, entry: Entry, blob: Path) -> bool:
        if self._after.method not in ("auto", entry.method) or not entry.inode:
            return True
        path = self._folder / entry.path
        if entry.method is Method.SYMLINK:
            return not path.exists()
        return entry.method is Method.HARDLINK and blob.exists() and not path.samefile(blob)

    def _add(self, folder: str, asset: Asset, moved: Entry | None) -> None:
        named = replace(asset, name=moved.name) if moved is not None else asset
        room = require_room(self._folder / folder, _SHORTEST_NAME, MOST_BYTES)
        rival = self._taken.get(stem_key(folder, free_name(named, folder, (), None, room)))
        name = free_name(named, folder, self._taken.keys() | self._strangers(folder), rival, room)
        self._taken[stem_key(folder, name)] = asset
        path = str(PurePosixPath(folder) / name)
        sha256, size_bytes = self._digest_and_size(asset)
        entry = Entry(path, asset.blob.sha256, "model", size_bytes, sha256)
        if moved is not None and memory.state_of(self._folder, moved, Path(asset.path)) is State.OURS:
            entry = replace(moved, path=path)
            self._steps.append(Step(Act.RENAME, entry, asset, old_path=moved.path))
        else:
            self._steps.append(Step(Act.ADD, entry, asset))
        self._companions(entry, asset)

    def _strangers(self, folder: str) -> set[tuple[str, str]]:
        """Names of files in a folder of the view that the view did not create."""
        if folder not in self._listed:
            try:
                self._listed[folder] = {entry.name for entry in (self._folder / folder).iterdir()}
            except (FileNotFoundError, NotADirectoryError):
                self._listed[folder] = set()
        return {stem_key(folder, name) for name in self._listed[folder] if self._is_strange(folder, name)}

    def _is_strange(self, folder: str, name: str) -> bool:
        entry = self._by_path.get(str(PurePosixPath(folder) / name))
        return entry is None or memory.state_of(self._folder, entry, None) is State.FOREIGN

    def _companions(self, model: Entry, asset: Asset) -> None:
        config = config_of(asset, self._index)
        besides = self._wanted_beside(asset) if self._after.has_companions else []
        for beside in [*besides, config] if config is not None else besides:
            path = model.path.removesuffix(PurePosixPath(model.path).suffix) + beside.ending
            digest = Sha256(hashlib.sha256(beside.data).hexdigest())
            entry = Entry(path, asset.blob.sha256, beside.kind.value, len(beside.data), digest)
            old = self._by_path.get(path)
            if old is None:
                is_free = not os.path.lexists(self._folder / path)
                reason = "" if is_free else "a file of this name already exists"
                self._steps.append(Step(Act.ADD if is_free else Act.LEAVE, entry, data=beside.data, reason=reason))
                continue
            state = memory.state_of(self._folder, old, None)
            if state is State.FOREIGN:
                self._steps.append(Step(Act.LEAVE, old, reason="the file has been edited since civman wrote it"))
            else:
                act = Act.ADD if state is State.MISSING else Act.KEEP if old.sha256 == digest else Act.RENEW
                self._steps.append(Step(act, old if act is Act.KEEP else entry, data=beside.data))

    def _wanted_beside(self, asset: Asset) -> list[Beside]:
        wanted = self._layout.companions
        if not wanted:
            return []
        version = self._index.version(asset.version_id) if asset.version_id is not None else None
        preview = self._store.preview(asset.blob.sha256) if Companion.PREVIEW in wanted else None
        try:
            picture = preview.read_bytes() if preview is not None else None
        except OSError as error:
            raise store_error(error, preview or self._folder) from error
        return companions(asset, version, picture, wanted)

    def _beside(self, model: Entry) -> list[Entry]:
        return [
            entry
            for entry in self._before
            if entry.kind != "model" and entry.of == model.of and entry.folder == model.folder
        ]

    def _done(self) -> set[str]:
        return {step.path for step in self._steps} | {step.old_path for step in self._steps if step.old_path}

    def _drop_others(self) -> None:
        done = self._done()
        self._steps += [_removal(self._folder, entry, self._store) for entry in self._before if entry.path not in done]


class _Worker:
    def __init__(self, plan: ViewPlan, store: BlobStore) -> None:
        self._plan = plan
        self._store = store
        self._entries: dict[str, Entry] = memory.entries_by_path(plan.before.entries if plan.before else ())
        self._folders = list(plan.after.folders)
        self._notices: dict[str, None] = {}

    def run(self) -> Linked:
        plan = self._plan
        try:
            plan.folder.mkdir(parents=True, exist_ok=True)
            self._announce()
            for act in (Act.REMOVE, Act.RENAME, Act.RENEW, Act.ADD, Act.LEAVE):
                for step in plan.steps:
                    if step.act is act:
                        _ACTS[act](self, step)
        except OSError as error:
            raise store_error(error, plan.folder) from error
        finally:
            self._remember()
        kept = _remove_folders(plan.folder, self._folders)
        self._folders = [folder for folder in self._folders if folder in kept]
        self._remember()
        return Linked(plan, tuple(self._entries.values()), tuple(self._notices))

    def _announce(self) -> None:
        """Write the manifest before any file is created, so that files left by a crash are known to be the view's."""
        coming = {step.path: step.entry for step in self._plan.steps if step.act in (Act.ADD, Act.RENAME)}
        memory.write(
            self._plan.folder,
            replace(self._plan.after, entries=tuple(({**coming, **self._entries}).values())),
        )

    def _remember(self) -> None:
        if self._plan.folder.is_dir():
            entries = tuple(self._entries.values())
            memory.write(self._plan.folder, replace(self._plan.after, entries=entries, folders=tuple(self._folders)))

    def remove(self, step: Step) -> None:
        remove_entry_file(self._plan.folder, step.entry, self._store)
        self._entries.pop(step.path, None)

    def rename(self, step: Step) -> None:
        target = self._plan.folder / step.path
        if os.path.lexists(target):
            raise StoreError(
                f"`{target}` was created by another program in the meantime; it is left unchanged", path=str(target)
            )
        self._make_folder(step.entry.folder)
        # create the link again, because a relative link depends on its own location
        if step.entry.method is Method.SYMLINK:
            remove_file(self._plan.folder / step.old_path)
            self._entries.pop(step.old_path, None)
            self.add(step)
            return
        rename_file(self._plan.folder / step.old_path, target)
        self._entries.pop(step.old_path, None)
        self._entries[step.path] = step.entry

    def renew(self, step: Step) -> None:
        if step.data is None:
            remove_entry_file(self._plan.folder, step.entry, self._store)
        self.add(step)

    def add(self, step: Step) -> None:
        self._make_folder(step.entry.folder)
        if step.data is not None:
            self._entries[step.path] = write_companion(self._plan.folder, step.entry, step.data)
        elif step.asset is not None:
            made, reasons = place(Path(step.asset.path), self._plan.folder, step.entry, self._methods())
            self._entries[step.path] = made
            self._notices.update(dict.fromkeys(reasons))

    def leave(self, step: Step) -> None:
        """Keep the manifest's entry if its file is still wanted, so that the name stays taken; otherwise, drop it."""
        if step.asset is None and step.entry.kind == "model":
            self._entries.pop(step.path, None)

    def _methods(self) -> tuple[Method, ...]:
        chosen = self._plan.after.method
        return tuple(Method) if chosen == "auto" else (Method(chosen),)

    def _make_folder(self, folder: str) -> None:
        missing = []
        place_ = PurePosixPath(folder)
        while str(place_) != "." and not (self._plan.folder / place_).is_dir():
            missing.append(str(place_))
            place_ = place_.parent
        for name in reversed(missing):
            (self._plan.folder / name).mkdir()
            if name not in self._folders:
                self._folders.append(name)


_ACTS: dict[Act, Callable[[_Worker, Step], None]] = {
    Act.REMOVE: _Worker.remove,
    Act.RENAME: _Worker.rename,
    Act.RENEW: _Worker.renew,
    Act.ADD: _Worker.add,
    Act.LEAVE: _Worker.leave,
}


def _removal(folder: Path, entry: Entry, store: BlobStore) -> Step:
    stored = store.find(entry.of) if not entry.inode else None
    state = memory.state_of(folder, entry, stored.path if stored is not None else None)
    if state is State.FOREIGN:
        return Step(Act.LEAVE, entry, reason="the file is no longer the one that civman created")
    return Step(Act.REMOVE, entry)


def _remove_folders(folder: Path, made: Sequence[str]) -> set[str]:
    """Remove those of the folders `made` that are empty, deepest first. Returns the folders that are not empty."""
    kept = set()
    for name in sorted(made, key=lambda name: name.count("/"), reverse=True):
        path = folder / name
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_dir():
            kept.add(name)
    return kept


def _locked(folder: Path) -> FileLock:
    lock = FileLock(folder / _LOCK)
    if not lock.acquire():
        raise StoreError(
            f"another civman process is working on `{folder}`",
            hint="wait until the other process has finished, then try again",
        )
    return lock
