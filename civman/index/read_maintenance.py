"""Queries for verifying, removing and measuring a library's files, run with the standard `sqlite3` module."""

import json
import os
from collections.abc import Iterable
from datetime import datetime

from civman.domain.digests import Hashes, Sha256
from civman.domain.file_suffixes import SAFETENSORS_SUFFIXES
from civman.domain.refs import HashKind
from civman.index.database import Reader
from civman.index.index_types import HeldFile, SeenFile, Share, Source, Undigested

_LEAST_FOR_AUTOV1 = 0x110000
_GROUPS = {
    "type": "a.type_raw",
    "base_model": "coalesce(a.base_model, '')",
    "architecture": "b.architecture",
    "used": (
        "CASE WHEN a.last_used_at IS NULL THEN 'never' "
        "WHEN a.last_used_at >= strftime('%Y-%m-%dT%H:%M:%S', 'now', '-7 days') THEN 'within a week' "
        "WHEN a.last_used_at >= strftime('%Y-%m-%dT%H:%M:%S', 'now', '-30 days') THEN 'within a month' "
        "WHEN a.last_used_at >= strftime('%Y-%m-%dT%H:%M:%S', 'now', '-365 days') THEN 'within a year' "
        "ELSE 'longer ago' END"
    ),
}

_TAGS = (
    "LEFT JOIN model m ON m.id = a.model_id LEFT JOIN annotation n ON n.asset_id = a.id JOIN json_each("
    "json_array(json(coalesce(m.tags, '[]')), json(coalesce(n.tags, '[]')))) l JOIN json_each(l.value) t"
)


def held_files(reader: Reader, digests: Iterable[Sha256] | None = None) -> list[HeldFile]:
    """The file of each blob, or only of those in `digests`, with its stat information at the last verification."""
    sql = (
        "SELECT b.sha256, b.size_bytes, b.path, b.verified_at, "
        "(SELECT a.name FROM asset a WHERE a.blob_sha256 = b.sha256 LIMIT 1), "
        "s.device, s.inode, s.size_bytes, s.mtime_ns, s.sha256 FROM blob b LEFT JOIN seen_file s ON s.path = b.path"
    )
    if digests is None:
        found = reader.all(sql)
    else:
        given = [json.dumps(list(digests))]
        found = reader.all(f"{sql} WHERE b.sha256 IN (SELECT value FROM json_each(?))", given)  # noqa: S608
    files = []
    for sha256, size, kept, verified_at, name, device, inode, seen_size, mtime_ns, seen_sha256 in found:
        seen = None
        if device is not None:
            seen = SeenFile(kept, int(device), int(inode), seen_size, mtime_ns, seen_sha256)
        files.append(
            HeldFile(sha256, size, _absolute(reader, kept), kept, datetime.fromisoformat(verified_at), name or "", seen)
        )
    return files


def places(reader: Reader, digests: Iterable[Sha256]) -> list[SeenFile]:
    """All recorded paths of files with these digests, oldest record first."""
    sql = (
        "SELECT path, device, inode, size_bytes, mtime_ns, sha256 FROM seen_file "
        "WHERE sha256 IN (SELECT value FROM json_each(?)) ORDER BY rowid"
    )
    return [
        SeenFile(path, int(device), int(inode), size, mtime_ns, sha256)
        for path, device, inode, size, mtime_ns, sha256 in reader.all(sql, [json.dumps(list(digests))])
    ]


def pins(reader: Reader) -> dict[Sha256, tuple[str, ...]]:
    """Map a file's SHA-256 to the reasons why it must not be removed."""
    found: dict[Sha256, tuple[str, ...]] = {}
    for sha256, reason in reader.all("SELECT blob_sha256, reason FROM pin ORDER BY blob_sha256, reason"):
        found[sha256] = (*found.get(sha256, ()), reason)
    return found


def shares(reader: Reader, group: str) -> list[Share]:
    """Number of files and bytes per group; bytes shared by several assets of a group count once.

    With the group "tag", a file counts once for each of its tags, whether set by the user or on CivitAI.
    """
    label, more = ("lower(t.value)", _TAGS) if group == "tag" else (_GROUPS[group], "")
    inner = (
        f"SELECT DISTINCT {label} AS label, b.sha256, b.size_bytes FROM asset a "  # noqa: S608
        f"JOIN blob b ON b.sha256 = a.blob_sha256 {more}"
    )
    sql = f"SELECT label, count(*), sum(size_bytes) FROM ({inner}) GROUP BY label ORDER BY 3 DESC, 1"  # noqa: S608
    return [Share(label, count, size) for label, count, size in reader.all(sql)]


def sidecars_due(reader: Reader, sha256: Sha256 | None = None) -> list[tuple[Sha256, str]]:
    """Blobs whose sidecar file must be written, each with the token of the last change of its rows."""
    if sha256 is None:
        return [(digest, token) for digest, token in reader.all("SELECT blob_sha256, token FROM sidecar_due")]
    return [
        (digest, token)
        for digest, token in reader.all("SELECT blob_sha256, token FROM sidecar_due WHERE blob_sha256 = ?", [sha256])
    ]


def hashes(reader: Reader, sha256: Sha256) -> Hashes:
    """The digests of a blob: SHA-256, AutoV1, AutoV3, CRC32 and BLAKE3, as far as they are known."""
    row = reader.one("SELECT blake3, crc32, autov1, autov3 FROM blob WHERE sha256 = ?", [sha256])
    if row is None:
        return Hashes()
    return Hashes(sha256=sha256, blake3=row[0], crc32=row[1], autov1=row[2], autov3=row[3])


def unidentified(reader: Reader) -> list[tuple[Sha256, str]]:
    """SHA-256 and path of each file that has no version, or only a version that CivitAI has not confirmed."""
    sql = (
        "SELECT b.sha256, b.path FROM blob b WHERE NOT EXISTS (SELECT 1 FROM asset a JOIN version v "
        "ON v.id = a.version_id WHERE a.blob_sha256 = b.sha256 AND v.source <> ?) ORDER BY b.sha256"
    )
    found = reader.all(sql, [Source.RECORD.value])
    return [(sha256, _absolute(reader, kept)) for sha256, kept in found]


def without_digests(reader: Reader) -> list[Undigested]:
    """Files that lack AutoV1, AutoV3, CRC32 or BLAKE3 although their format and size allow it; smallest first."""
    sql = (
        "SELECT sha256, path, size_bytes, autov1 IS NULL AND size_bytes >= ?, "
        "autov3 IS NULL AND suffix IN (SELECT value FROM json_each(?)), crc32 IS NULL, blake3 IS NULL "
        "FROM blob ORDER BY size_bytes"
    )
    kinds = (HashKind.AUTOV1, HashKind.AUTOV3, HashKind.CRC32, HashKind.BLAKE3)
    found = []
    for sha256, kept, size, *lacking in reader.all(sql, [_LEAST_FOR_AUTOV1, json.dumps(sorted(SAFETENSORS_SUFFIXES))]):
        missing = tuple(kind for kind, is_missing in zip(kinds, lacking, strict=True) if is_missing)
        if missing:
            found.append(Undigested(sha256, _absolute(reader, kept), size, missing))
    return found


def _absolute(reader: Reader, kept: str) -> str:
    # return strings instead of Path objects, because there may be 30,000 of them
    return kept if os.path.isabs(kept) else os.path.join(reader.folder, *kept.split("/"))  # noqa: PTH117, PTH118
