"""Show the safetensors copies of pickles in a view instead of the pickles themselves."""

from dataclasses import replace
from pathlib import Path

from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.errors import IntegrityError, Refused
from civman.store.blobs import BlobStore
from civman.store.read_pickle import looks_like_pickle
from civman.store.safe_copies import SafeCopy, copy_place, find_copy, make_copy


class SafeAssets:
    """Finds or creates the safetensors copies that a view shows instead of pickles."""

    def __init__(self, store: BlobStore, *, makes_copies: bool) -> None:
        """With `makes_copies`, missing copies are created."""
        self._store = store
        self._makes_copies = makes_copies
        self._copies: dict[Sha256, SafeCopy] = {}

    def shown(self, asset: Asset) -> Asset | str:
        """Return the asset with the path and name of its safetensors copy, or the reason why there is no such copy.

        Assets that are not pickles are returned unchanged. Raises: StoreError, DiskFull.
        """
        path = Path(asset.path)
        if not looks_like_pickle(path):
            return asset
        place = copy_place(self._store, asset.blob.sha256)
        try:
            copy = make_copy(path, place) if self._makes_copies else find_copy(place)
        except (Refused, IntegrityError) as error:
            return error.message
        if copy is not None:
            self._copies[asset.blob.sha256] = copy
        stem = asset.name.removesuffix(path.suffix) if asset.name.endswith(path.suffix) else asset.name
        return replace(asset, path=str(place), name=f"{stem}.safetensors")

    def digest_and_size(self, asset: Asset) -> tuple[Sha256, int]:
        """The digest and size of the file that the view shows for an asset."""
        copy = self._copies.get(asset.blob.sha256)
        return (copy.sha256, copy.size_bytes) if copy is not None else (asset.blob.sha256, asset.blob.size_bytes)
