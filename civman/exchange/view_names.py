"""File names in views that never collide and never change while their file stays. Pure functions."""

import re
from collections.abc import Collection, Iterator

from civman.domain.catalog import Asset
from civman.domain.digests import autov2
from civman.domain.file_names import safe_name

_BREAKS = re.compile(r"[^\w.+-]+")


def stem_key(folder: str, name: str) -> tuple[str, str]:
    """What two names may not share: the folder and the name without extension, ignoring case.

    Programs treat `x.safetensors` and `x.ckpt` as the same model, and their companion files would have the same names.
    """
    return folder.casefold(), name.rpartition(".")[0].casefold()


def free_name(asset: Asset, folder: str, taken: Collection[tuple[str, str]], rival: Asset | None) -> str:
    """The first free name for the asset.

    It is its own name, then its own name plus a suffix that distinguishes it from `rival`, then its digest.
    """
    candidates = list(_candidates(asset, rival))
    return next((name for name in candidates if stem_key(folder, name) not in taken), candidates[-1])


def _candidates(asset: Asset, rival: Asset | None) -> Iterator[str]:
    plain = safe_name(asset.name, fallback=autov2(asset.blob.sha256))
    stem, dot, suffix = plain.rpartition(".")
    if not stem or not dot:
        stem, dot, suffix = plain, ".", asset.blob.suffix.lstrip(".")
    yield f"{stem}{dot}{suffix}"
    if rival is not None:
        for own, other in (
            (asset.facts.precision, rival.facts.precision),
            (asset.version_name, rival.version_name),
            (asset.model_name, rival.model_name),
        ):
            word = _BREAKS.sub("-", own).strip("-.")[:40]
            if word and own != other:
                yield safe_name(f"{stem}_{word}{dot}{suffix}")
    yield safe_name(f"{stem}_{autov2(asset.blob.sha256)}{dot}{suffix}")
    yield safe_name(f"{stem[:40]}_{asset.blob.sha256}{dot}{suffix}")
