"""Decide from CivitAI's metadata whether a file may be downloaded: early access, scans, pickles, missing digests."""

from dataclasses import dataclass
from datetime import datetime

from civman.domain.catalog import Gate, ModelFile, ModelVersion, Scan
from civman.domain.file_choice import describe, is_pickle
from civman.domain.file_suffixes import SAFETENSORS_SUFFIXES
from civman.errors import Cause, Gone, NotAllowed, Refused

_SCAN_CAUSES = {
    Scan.DANGER: Cause.SCAN_DANGER,
    Scan.ERROR: Cause.SCAN_ERROR,
    Scan.PENDING: Cause.SCAN_PENDING,
}


@dataclass(frozen=True, slots=True)
class Permits:
    """The risks that the user has explicitly accepted."""

    pickle: bool = False
    """Accept pickles that civman cannot read without running them."""
    unsafe: bool = False
    """Accept files that CivitAI's scan flags or has not finished scanning."""
    unverified: bool = False
    """Accept files for which CivitAI declares no SHA-256."""


def check_gates(
    version: ModelVersion, file: ModelFile, *, permits: Permits, has_token: bool, now: datetime
) -> list[str]:
    """Check whether a file may be downloaded, and return notices for the user (empty if there are none).

    Raises: Gone, NotAllowed: CivitAI does not offer the file. Refused: the download needs a permit that the user has
    not given.
    """
    check_version(version, has_token=has_token, now=now)
    notices = []
    if version.model.mode == "TakenDown":
        notices.append("CivitAI has taken this model down; it may refuse the download")
    if gate_of(version, now) is not None:
        notices.append(
            f"this version is in {gate_words(version, now)}; only an account that has bought access can download it"
        )
    if is_pickle(file):
        other = next((other for other in version.files if other.suffix in SAFETENSORS_SUFFIXES), None)
        if other is not None:
            notices.append(f"`{file.name}` is a pickle; `--file {other.id}` ({describe(other)}) is safetensors")
    notices += _check_scans(file, permits)
    if file.hashes.sha256 is None and not permits.unverified:
        raise Refused(
            f"CivitAI gives no SHA-256 for `{file.name}`"
            + (" (its scan has not finished)" if file.virus_scan is Scan.PENDING else ""),
            code=Cause.NO_HASH,
            name=file.name,
            hint="try again later, or pass --allow-unverified to store the file under the digest of the received "
            "bytes, marked as unverified",
        )
    return notices


def check_version(version: ModelVersion, *, has_token: bool, now: datetime) -> None:
    """Check whether CivitAI offers the files of `version` at all. Raises: Gone, NotAllowed."""
    if version.model.mode == "Archived":
        raise Gone(
            f"`{version.model.name}` is archived: CivitAI no longer provides its files",
            code=Cause.ARCHIVED,
            hint="if you have the file, import it with `civman import`, which adds its metadata from CivitAI",
            model_id=version.model.id,
            version_id=version.id,
        )
    if version.usage_control not in (None, "Download"):
        raise NotAllowed(
            f"the creator of `{version.model.name}` has disabled downloads of version `{version.name}`",
            code=Cause.DOWNLOADS_DISABLED,
            hint="this version can only be used on the site; no API key changes that",
            version_id=version.id,
            usage_control=version.usage_control,
        )
    gate = gate_of(version, now)
    if gate is not None and not has_token:
        raise NotAllowed(
            f"version `{version.name}` of `{version.model.name}` is in {gate_words(version, now)}",
            code=Cause.EARLY_ACCESS,
            hint="buy access on the site and run `civman login` with that account, or wait until the "
            "version becomes free",
            version_id=version.id,
            ends_at=gate.ends_at.isoformat() if gate.ends_at else None,
        )


def gate_of(version: ModelVersion, now: datetime) -> Gate | None:
    """Return the paid or early access that restricts the version at `now`; None if there is none or it has ended."""
    gate = version.gate
    return None if gate is not None and gate.ends_at is not None and gate.ends_at <= now else gate


def gate_words(version: ModelVersion, now: datetime) -> str:
    """Describe paid or early access in words, such as "early access until 2026-03-01 (9 days left)"."""
    gate = version.gate
    if gate is None or gate.permanent:
        return "paid access with no end date"
    if gate.ends_at is None:
        return "early access with no end date yet"
    days = (gate.ends_at - now).days
    return f"early access until {gate.ends_at:%Y-%m-%d} ({'less than a day' if days < 1 else f'{days} days'} left)"


def _check_scans(file: ModelFile, permits: Permits) -> list[str]:
    notices = []
    for scan, what in ((file.pickle_scan, "pickle"), (file.virus_scan, "virus")):
        if scan in (Scan.SUCCESS, Scan.UNKNOWN):
            continue
        message = {
            Scan.DANGER: f"CivitAI's {what} scan found a threat in `{file.name}`",
            Scan.ERROR: f"CivitAI's {what} scan of `{file.name}` failed",
            Scan.PENDING: f"CivitAI's {what} scan of `{file.name}` has not finished",
        }[scan]
        if file.scan_message and scan is Scan.DANGER:
            message += f": {file.scan_message}"
        if (scan is Scan.DANGER or is_pickle(file)) and not permits.unsafe:
            raise Refused(
                message,
                code=_SCAN_CAUSES[scan],
                name=file.name,
                hint="--allow-unsafe stores the file anyway; civman never runs pickles",
            )
        notices.append(message)
    return notices
