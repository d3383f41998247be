"""Combines a request for a view with what was requested when the view was created."""

import os
from dataclasses import dataclass
from pathlib import Path

from civman.domain.base_models import label_key
from civman.domain.catalog import Asset, ModelType
from civman.domain.refs import parse_ref
from civman.errors import NotFound, UsageError
from civman.exchange import view_manifest as memory
from civman.exchange.view_links import ViewPlan, plan_view
from civman.exchange.view_manifest import Manifest, Method, Wanted
from civman.exchange.view_safe_copies import SafeAssets
from civman.index import AssetFilter, Index
from civman.manage.find_assets import find_assets
from civman.store.blobs import BlobStore


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """The current request for a view. For a None or empty field, the value from the view's creation applies, if any."""

    layout: str | None = None
    method: str | None = None
    has_companions: bool | None = None
    is_safe: bool | None = None
    """Whether to show the safetensors copies of pickles instead of the pickles; None: as before."""
    refs: tuple[str, ...] = ()
    types: tuple[ModelType, ...] = ()
    base_models: tuple[str, ...] = ()
    everything: bool = False
    """Whether to show all files again if an earlier request restricted the view to some of them."""
    is_dry_run: bool = False
    """Whether the plan is only shown; missing safetensors copies are then not created."""


def plan_requested_view(index: Index, store: BlobStore, root: Path, folder: Path, request: ViewRequest) -> ViewPlan:
    """Plan the view in `folder` for the library in `root`. Creates missing safetensors copies, except in a dry run.

    Raises: UsageError: no layout was given, or the folder cannot contain a view. NotFound, AmbiguousRef: a ref matches
    no file or several.
    """
    folder = tidy(folder)
    _check_folder(folder, root)
    before = memory.read(folder)
    after = _joined(before, request, root, folder)
    assets = _assets(index, after.wanted, is_asked_now=bool(request.refs))
    shown = SafeAssets(store, makes_copies=not request.is_dry_run) if after.is_safe else None
    return plan_view(folder, assets, index, store, after, before, shown)


def tidy(folder: Path) -> Path:
    """Return the absolute path of `folder` without `..`, but with symbolic links unresolved."""
    return Path(os.path.abspath(folder))  # noqa: PTH100  # pathlib keeps `..`, and resolving would follow links


def _check_folder(folder: Path, root: Path) -> None:
    resolved = folder.resolve()
    if resolved.is_relative_to(root.resolve()):
        raise UsageError(f"`{folder}` is inside the library", hint="choose a folder outside the library")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder")


def _joined(before: Manifest | None, request: ViewRequest, root: Path, folder: Path) -> Manifest:
    layout = request.layout or (before.layout if before is not None else None)
    if layout is None:
        raise UsageError(
            f"civman does not know which program uses `{folder}`",
            hint="pass --layout with comfyui, a1111, forge, invokeai or swarmui; later runs use the same layout",
        )
    if request.method not in (None, "auto", *Method):
        raise UsageError(
            f"`{request.method}` is not a method of linking files", hint=f"choose one of: auto, {', '.join(Method)}"
        )
    given = Wanted(request.refs, tuple(kind.value for kind in request.types), request.base_models)
    wanted = given if given != Wanted() or request.everything or before is None else before.wanted
    known = before or Manifest(layout.lower(), str(root))
    return Manifest(
        layout=layout.lower(),
        library=str(root),
        method=request.method or known.method,
        has_companions=known.has_companions if request.has_companions is None else request.has_companions,
        is_safe=known.is_safe if request.is_safe is None else request.is_safe,
        wanted=wanted,
    )


def _assets(index: Index, wanted: Wanted, *, is_asked_now: bool) -> list[Asset]:
    types = tuple(ModelType.of(name) for name in wanted.types)
    if not wanted.refs:
        return index.assets(AssetFilter(types=types, base_models=wanted.base_models))
    found: list[Asset] = []
    for ref in wanted.refs:
        try:
            found += find_assets(index, parse_ref(ref))
        # ignore files that are no longer in the library, so that refreshing the view removes their links
        except NotFound:
            if is_asked_now:
                raise
    labels = {label_key(label) for label in wanted.base_models}
    return [
        asset
        for asset in found
        if (not types or asset.type in types) and (not labels or label_key(asset.base_model or "") in labels)
    ]
