"""Finds the model files that refs refer to, in the library or elsewhere on this disk, and verifies them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from civman.diffusion.families.registry import FLOW_FAMILIES
from civman.domain.architecture import Identity, Kind
from civman.domain.catalog import Asset, ModelType
from civman.domain.compatibility import Part
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, Started, Verifying
from civman.domain.files.header import Header
from civman.domain.printed_refs import air_of
from civman.domain.recipes.recipe import RecipeFile
from civman.domain.refs import HashKind, HashRef, NameRef, PathRef, parse_ref
from civman.errors import Cause, HashMismatch, NotFound, Refused, UsageError
from civman.index import AssetFilter, Index
from civman.manage.file_state import seen_now
from civman.manage.find_assets import ambiguous, find_asset
from civman.manage.inspection import Inspected, inspect_asset, inspect_path, path_of
from civman.manage.places import at_its_place
from civman.planning.plan_types import PlannedFile
from civman.store.blobs import BlobStore, digest_of
from civman.store.safe_copies import copy_place

_WANTED = {
    "checkpoint": (Kind.CHECKPOINT,), "hires-checkpoint": (Kind.CHECKPOINT,), "refiner": (Kind.CHECKPOINT,),
    "lora": (Kind.ADAPTER,), "embedding": (Kind.EMBEDDING,), "vae": (Kind.VAE,),
    "controlnet": (Kind.CONTROLNET,), "upscaler": (Kind.UPSCALER,), "hypernetwork": (Kind.HYPERNETWORK,),
    "tokenizer": (Kind.TOKENIZER,), "ip-adapter": (Kind.IP_ADAPTER,), "clip-vision": (Kind.CLIP_VISION,),
    "face-restorer": (Kind.FACE_MODEL,), "face-detector": (Kind.FACE_MODEL,), "face-parser": (Kind.FACE_MODEL,),
}  # fmt: skip

_PART = (Kind.TEXT_ENCODER,)
"""The file kind for roles that `_WANTED` does not list, such as "t5" or "clip-l"."""

_TYPES = {
    "checkpoint": (ModelType.CHECKPOINT,),
    "hires-checkpoint": (ModelType.CHECKPOINT,),
    "refiner": (ModelType.CHECKPOINT,),
    "embedding": (ModelType.EMBEDDING,),
    "vae": (ModelType.VAE,),
    "controlnet": (ModelType.CONTROLNET,),
    "upscaler": (ModelType.UPSCALER,),
    "hypernetwork": (ModelType.HYPERNETWORK,),
    "clip-vision": (ModelType.CLIP_VISION,),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A model file for one role: its path, its SHA-256, and what its header shows.

    `inspected.header` lists the tensors in the file; `header` lists the tensors that the model gets after unpacking.
    """

    role: str
    path: Path
    sha256: Sha256
    inspected: Inspected
    header: Header
    identity: Identity
    asset: Asset | None = None
    air: str | None = None
    autov3: str = ""
    copy: Path | None = None
    """The path for a pickle's safetensors copy, which might not exist yet; None for all other files."""

    @property
    def in_recipe(self) -> RecipeFile:
        """The file as a recipe lists it."""
        file_id = self.asset.file_id if self.asset and self.air else None
        return RecipeFile(self.sha256, self.path.stat().st_size, self.air, file_id)

    @property
    def part(self) -> Part:
        """The file as an argument for the compatibility check."""
        return self.inspected.part

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which a prompt can refer to the file: its alias and its file name without the suffix."""
        alias = (self.asset.alias,) if self.asset and self.asset.alias else ()
        return (*alias, Path(self.inspected.name).stem)

    @property
    def planned(self) -> PlannedFile:
        """The file as a plan lists it."""
        asset = self.asset
        said = (asset.model_name, asset.version_name) if asset else ("", "")
        return PlannedFile(
            self.role, self.inspected.name, self.sha256, self.path, *said, self.autov3, self.identity.weights, self.copy
        )  # fmt: skip


class Finder:
    """Finds files and verifies their SHA-256.

    A file that has not changed on disk since it was last read is not read again.
    """

    def __init__(self, index: Index, on_event: OnEvent) -> None:
        self._index = index
        self._on_event = on_event

    def find(self, role: str, ref: str, file: str | None = None) -> Found:
        """Find the file that `ref` means, for use in this role.

        `file` selects one of a version's files, like `--file`.

        Raises: NotFound, AmbiguousRef: no file matches, or several do. UsageError (`wrong-kind`): the file is of
            another kind. HashMismatch: a stored file was changed. InvalidModelFile, Refused: the file's weights cannot
            be loaded.
        """
        path = path_of(ref)
        if path is not None:
            return self._of_path(role, path.absolute())
        parsed = parse_ref(ref)
        if isinstance(parsed, HashRef) and parsed.kind in (None, HashKind.SHA256) and len(parsed.digest) == 64:
            return self.with_digest(role, Sha256(parsed.digest))
        try:
            asset = find_asset(self._index, parsed, file, suits=lambda asset: plays(asset, role))
        except NotFound as error:
            if not isinstance(parsed, NameRef | PathRef) and error.code is not Cause.NO_SUCH_FILE:
                error.hint = f"`civman download {ref}` downloads it"
            raise
        return self.of_asset(role, asset)

    def named(self, role: str, name: str) -> Found:
        """Find the stored file that a prompt refers to as `name`. Raises: the errors of `find`."""
        assets = [asset for asset in self._index.find_by_name(name) if plays(asset, role)]
        if not assets:
            raise NotFound(
                f"the prompt uses the {_title(role)} `{name}`, which is not in the library",
                hint="`civman list` lists the stored files; `civman download` adds more", name=name,
            )  # fmt: skip
        if len({asset.blob.sha256 for asset in assets}) > 1:
            error = ambiguous(name, assets)
            error.hint = (
                "use --lora with a ref, or give one of the files an alias (`civman edit REF --alias NAME`); "
                f"{error.hint}"
            )
            raise error
        return self.of_asset(role, assets[0])

    def holds(self, role: str, name: str) -> bool:
        """Whether a stored file with this name can be used in this role."""
        return any(plays(asset, role) for asset in self._index.find_by_name(name))

    def has_file(self, role: str, stem: str) -> bool:
        """Whether a stored file with exactly this name, without its suffix, can be used in this role."""
        wanted = stem.casefold()
        assets = self._index.find_by_name(stem)
        return any(plays(asset, role) and Path(asset.name).stem.casefold() == wanted for asset in assets)

    def with_digest(self, role: str, sha256: Sha256) -> Found:
        """Find the file with this SHA-256, in the library or elsewhere on this disk. Raises: NotFound."""
        asset = self._index.find_sha256(sha256)
        if asset is not None:
            return self.of_asset(role, asset)
        for seen in self._index.seen_files().values():
            if seen.sha256 == sha256 and seen_now(seen.path, sha256) == seen:
                return self._of_path(role, Path(seen.path))
        raise NotFound(
            f"the {_title(role)} with SHA-256 {sha256[:12]}… is not in the library",
            hint=f"if CivitAI has it, `civman download sha256:{sha256}` downloads it", sha256=sha256,
        )  # fmt: skip

    def stored(self, role: str) -> list[Found]:
        """List all stored files that can be used in a role, each once."""
        kinds = tuple(kind.value for kind in _WANTED.get(role, _PART))
        found: dict[Sha256, Found] = {}
        for asset in self._index.assets(AssetFilter(kinds=kinds)):
            if asset.blob.sha256 not in found and Path(asset.path).exists() and inspect_asset(asset).header is not None:
                found[asset.blob.sha256] = self.of_asset(role, asset)
        return list(found.values())

    def embeddings(self) -> Sequence[Asset]:
        """List all stored embeddings."""
        return self._index.assets(AssetFilter(kinds=(Kind.EMBEDDING.value,)))

    def of_asset(self, role: str, asset: Asset) -> Found:
        """Verify a stored file and return it for use in this role. Raises: the errors of `find`."""
        asset = at_its_place(self._index, asset)
        inspected = inspect_asset(asset)
        _require_kind(role, inspected)
        known = next(iter(self._index.held_files([asset.blob.sha256])), None)
        seen, kept_path = (known.seen, known.kept_path) if known is not None else (None, None)
        # `known` describes a copy at another path, so look up when the file at this path was last read
        if known is not None and known.path != asset.path:
            seen, kept_path = self._index.seen_files([asset.path]).get(asset.path), None
        now = seen_now(asset.path, asset.blob.sha256, kept_path=kept_path)
        if seen is None or seen != now:
            actual = self._read(Path(asset.path))
            if actual != asset.blob.sha256:
                error = HashMismatch(name=asset.name, expected=asset.blob.sha256, actual=actual)
                error.hint = (
                    f"`{asset.path}` has changed since it was imported: restore the old file, or import the new one"
                    f" (`civman import {asset.path}`)"
                )
                raise error
            if now is not None:
                self._index.save_seen([now])
        return self._found(role, Path(asset.path), asset.blob.sha256, inspected, asset)

    def _of_path(self, role: str, path: Path) -> Found:
        inspected = inspect_path(path)
        _require_kind(role, inspected)
        known = self._index.seen_files([str(path)]).get(str(path))
        if known is not None and seen_now(str(path), known.sha256) == known:
            sha256 = known.sha256
        else:
            sha256 = self._read(path)
            now = seen_now(str(path), sha256)
            if now is not None:
                self._index.save_seen([now])
        return self._found(role, path, sha256, inspected, self._index.find_sha256(sha256))

    def _found(self, role: str, path: Path, sha256: Sha256, inspected: Inspected, asset: Asset | None) -> Found:
        if inspected.header is None or inspected.identity is None:
            raise AssertionError("the header of the file must be read first")
        version = self._index.version(asset.version_id) if asset and asset.version_id else None
        air = str(air_of(version)) if version else None
        autov3 = (self._index.hashes(sha256).autov3 or "") if asset else ""
        copy = copy_place(BlobStore(self._index.folder), sha256) if inspected.pickle is not None else None
        header = model_header(role, inspected) or inspected.header
        return Found(role, path, sha256, inspected, header, inspected.identity, asset, air, autov3, copy)

    def _read(self, path: Path) -> Sha256:
        total = path.stat().st_size
        self._on_event(Started("plan", path.name, total))
        return digest_of(path, _reporter(self._on_event, total))


def model_header(role: str, inspected: Inspected) -> Header | None:
    """Return a file's header for a role; for a checkpoint or VAE, with the tensors as they are after unpacking."""
    return inspected.model_header() if role in _WITH_WEIGHTS else inspected.header


_WITH_WEIGHTS = frozenset({"checkpoint", "vae"})


def seen_here(index: Index, sha256: Sha256) -> bool:
    """Whether a file with this SHA-256 is stored, or was read elsewhere on this disk and is unchanged since then."""
    if any(Path(asset.path).exists() for asset in index.referrers(sha256)):
        return True
    return any(seen.sha256 == sha256 and seen_now(seen.path, sha256) == seen for seen in index.seen_files().values())


def _reporter(on_event: OnEvent, total: int) -> Callable[[int], None]:
    return lambda done: on_event(Verifying("plan", done, total))


def plays(asset: Asset, role: str) -> bool:
    """Whether a stored file can be used in this role, judged by its tensors or, if unknown, by its type on CivitAI."""
    if asset.facts.kind:
        return asset.facts.kind in _WANTED.get(role, _PART)
    return (role == "lora" and asset.type.is_adapter) or asset.type in _TYPES.get(
        role, (ModelType.TEXT_ENCODER,) if role not in _WANTED else ()
    )


def _require_kind(role: str, inspected: Inspected) -> None:
    if inspected.refusal is not None:
        raise inspected.refusal
    if inspected.gguf is not None:
        inspected.gguf.require_complete()
    if inspected.header is None:
        raise Refused(
            f"`{inspected.name}` is not a safetensors file: its content is {inspected.content}",
            hint="pass a safetensors or GGUF file, or a pickle that contains only weights",
            code=Cause.NOT_SAFETENSORS,
        )  # fmt: skip
    kind = inspected.part.kind
    if kind not in (*_WANTED.get(role, _PART), Kind.UNKNOWN):
        raise UsageError(
            f"`{inspected.name}` is not {_article(_title(role))}: its tensors are those of {_article(kind.value)}",
            hint=_OPTIONS.get(kind, "`civman inspect` shows what kind of file it is"),
            code=Cause.WRONG_KIND, kind=kind.value,
        )  # fmt: skip


_OPTIONS = {
    Kind.ADAPTER: "pass the file with --lora", Kind.EMBEDDING: "pass the file with --embedding",
    Kind.VAE: "pass the file with --vae",
    Kind.CHECKPOINT: "pass the file as the checkpoint", Kind.UPSCALER: "pass the file with --upscaler",
    Kind.FACE_MODEL: "pass the file with --face-restoration", Kind.IP_ADAPTER: "pass the file with --reference",
    Kind.CLIP_VISION: "pass the file with --part clip-vision=REF",
    Kind.TOKENIZER: "pass the file with --part tokenizer=REF",
    Kind.CONTROLNET: "pass the file with --control",
}  # fmt: skip


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouI' else 'a'} {noun}"


def _title(role: str) -> str:
    titles = {need.kind.role: need.kind.title for family in reversed(FLOW_FAMILIES) for need in family.needs} | {
        "lora": "LoRA",
        "controlnet": "ControlNet",
        "ip-adapter": "IP-Adapter",
        "clip-vision": "CLIP vision encoder",
    }
    return titles.get(role, role.replace("-", " "))
