"""Finds the checkpoint for renders that specify none: the one in the settings, or the only one in the library."""

from dataclasses import dataclass
from pathlib import Path

from civman.domain.architecture import Kind
from civman.domain.catalog import Asset, ModelType
from civman.domain.refs import NameRef, PathRef, parse_ref
from civman.errors import Cause, CivmanError, InvalidRef, UsageError
from civman.index import AssetFilter, Index
from civman.manage.find_assets import find_asset
from civman.settings import Settings

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DefaultCheckpoint:
    """The checkpoint that is used when a render specifies none.

    `reason` says why it was chosen, and completes a sentence that begins with "it is".
    """

    ref: str
    title: str
    reason: str


def default_checkpoint(index: Index | None, settings: Settings) -> DefaultCheckpoint:
    """Find the default checkpoint in the settings or, if none is set, the only checkpoint in the library.

    `index` is None if the library is empty. Raises: UsageError (`no-checkpoint`): no default is set, and the library
    has no checkpoint or several.
    """
    ref = settings.render.checkpoint
    if ref is not None:
        return DefaultCheckpoint(
            ref, _title_of(index, ref), f"the default checkpoint in {settings.sources['render.checkpoint']}"
        )
    stored = _checkpoints(index)
    if len(stored) == 1:
        return DefaultCheckpoint(stored[0].ref, _title(stored[0]), "the only checkpoint in the library")
    if not stored:
        raise UsageError(
            "no checkpoint was given, and the library has none",
            hint="find a checkpoint with `civman search --type Checkpoint`, and download it with `civman download REF`",
            code=Cause.NO_CHECKPOINT,
        )
    listed = ", ".join(f"{asset.ref} ({_title(asset)})" for asset in stored[:_SHOWN])
    more = f" and {len(stored) - _SHOWN} more" if len(stored) > _SHOWN else ""
    raise UsageError(
        f"no checkpoint was given, and the library has {len(stored)}: {listed}{more}",
        hint="pass a checkpoint before the prompt, or set a default: `civman config render.checkpoint "
        f"{stored[0].ref}`",
        code=Cause.NO_CHECKPOINT, refs=[asset.ref for asset in stored],
    )  # fmt: skip


def names_a_model(index: Index | None, text: str) -> bool:
    """Whether `text`, which may also be a prompt, is a ref: an id, an AIR, a path, or a stored file's full name.

    A part of a file name is not accepted as a ref, because a prompt may well contain it.
    """
    try:
        ref = parse_ref(text)
    except InvalidRef:
        return False
    if isinstance(ref, PathRef) and Path(ref.path).expanduser().exists():
        return True
    if not isinstance(ref, NameRef | PathRef):
        return True
    name = text.strip().casefold()
    assets = index.find_by_name(text.strip()) if index is not None else ()
    return any(
        name in {known.casefold() for known in (asset.alias or "", asset.name, Path(asset.name).stem, asset.model_name)}
        for asset in assets
    )


def _checkpoints(index: Index | None) -> list[Asset]:
    """The checkpoints in the library, newest first, each file once."""
    if index is None:
        return []
    by_type = index.assets(AssetFilter(types=(ModelType.CHECKPOINT,)))
    # check tensors and type: some checkpoints have another type on CivitAI, and some files of the type Checkpoint are
    # not checkpoints
    by_tensors = index.assets(AssetFilter(kinds=(Kind.CHECKPOINT.value,)))
    found = [*by_tensors, *(asset for asset in by_type if not asset.facts.kind)]
    return list({asset.blob.sha256: asset for asset in reversed(found)}.values())[::-1]


def _title_of(index: Index | None, ref: str) -> str:
    """The title of the stored checkpoint that `ref` means; empty if no stored file matches, or several do."""
    try:
        return "" if index is None else _title(find_asset(index, parse_ref(ref)))
    except CivmanError:
        return ""


def _title(asset: Asset) -> str:
    return f"{asset.model_name} {asset.version_name}".strip() or asset.name
