"""File names in views. They never collide, and never change while the file stays in the view. Pure functions."""

import re
from collections.abc import Collection, Iterator

from civman.domain.catalog import Asset
from civman.domain.digests import autov2
from civman.domain.file_names import MOST_BYTES, folded, marked_name, safe_name

_BREAKS = re.compile(r"[^\w.+-]+")


def stem_key(folder: str, name: str) -> tuple[str, str]:
    """The key that must be unique in a view: the folder and the name without extension, ignoring case.

    Programs treat `x.safetensors` and `x.ckpt` as the same model, and the two would have companion files of the same
    name.
    """
    return folded(folder), folded(name.rpartition(".")[0])


def free_name(
    asset: Asset,
    folder: str,
    taken: Collection[tuple[str, str]],
    rival: Asset | None,
    most_bytes: int = MOST_BYTES,
) -> str:
    """The first free name for the asset, of at most `most_bytes`.

    The candidates are the asset's own name, then this name with a suffix that distinguishes it from `rival`, then this
    name with the digest.
    """
    candidates = list(_candidates(asset, rival, most_bytes))
    return next((name for name in candidates if stem_key(folder, name) not in taken), candidates[-1])


def _candidates(asset: Asset, rival: Asset | None, most_bytes: int) -> Iterator[str]:
    plain = safe_name(asset.name, fallback=autov2(asset.blob.sha256), most_bytes=most_bytes)
    stem, dot, _ = plain.rpartition(".")
    if not stem or not dot:
        plain = safe_name(f"{plain}.{asset.blob.suffix.lstrip('.')}", most_bytes=most_bytes)
    yield plain
    if rival is not None:
        for own, other in (
            (asset.facts.precision, rival.facts.precision),
            (asset.version_name, rival.version_name),
            (asset.model_name, rival.model_name),
        ):
            word = _BREAKS.sub("-", own).strip("-.")[:40]
            if word and own != other and len(word.encode()) < most_bytes // 2:
                yield marked_name(plain, word, most_bytes=most_bytes)
    yield marked_name(plain, autov2(asset.blob.sha256), most_bytes=most_bytes)
    yield marked_name(plain, asset.blob.sha256[: max(16, most_bytes - 60)], most_bytes=most_bytes)
