"""Downloading the files that a recipe names and that are not stored: by id first, by digest where that fails.

Every file is verified by its SHA-256; another file under the same id is never accepted for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from civman.domain.catalog import Asset, FileId
from civman.domain.digests import Sha256
from civman.domain.refs import Air, parse_ref
from civman.errors import Cause, CivmanError, Gone, IntegrityError, NetworkError, NotAllowed, NotFound
from civman.manage.resolve import ResolvedVersion
from civman.planning.recipe_sources import Missing

Download = Callable[[str], Asset]


def fetch_missing(
    missing: Sequence[Missing],
    resolve: Callable[[str], ResolvedVersion],
    download: Download,
    on_notice: Callable[[str], None],
) -> list[Asset]:
    """Fetch all that is missing, in order; `resolve` asks CivitAI what a ref means, `download` fetches and verifies.

    Raises:
        Gone: deleted upstream, and nobody there has the bytes under another id. IntegrityError (`replaced-upstream`):
            the id now stands for other bytes. NotFound (`not-on-civitai`): it never came from there.
        NotAllowed, NetworkError, StoreError: as downloads do.
    """
    return [_fetch(each, resolve, download, on_notice) for each in missing]


def _fetch(
    lost: Missing, resolve: Callable[[str], ResolvedVersion], download: Download, on_notice: Callable[[str], None]
) -> Asset:
    by_id: CivmanError | None = None
    if lost.air is not None:
        try:
            return download(_ref(lost, lost.air, resolve))
        except (NotFound, IntegrityError) as error:
            by_id = error
    by_hash = f"sha256:{lost.sha256}"
    try:
        elsewhere = resolve(by_hash)
        asset = download(by_hash)
    except (NetworkError, NotAllowed):
        raise
    except CivmanError:
        raise _explained(lost, by_id) from by_id
    if by_id is not None:
        on_notice(
            f"`{lost.name}` was found under another id: {elsewhere.version.model.name}, version {elsewhere.version.id}"
        )
    return asset


def _ref(lost: Missing, air: str, resolve: Callable[[str], ResolvedVersion]) -> str:
    """A ref for the file with these bytes among the version's. Raises: IntegrityError: there is none any more."""
    version = resolve(air).version
    declared: dict[Sha256, int | None] = {
        file.hashes.sha256: file.id for file in version.files if file.hashes.sha256 is not None
    }
    if lost.sha256 not in declared:
        now = ", ".join(f"{sha256[:12]}…" for sha256 in declared) or "none"
        raise IntegrityError(
            f"`{lost.name}`: CivitAI has other bytes under {air} now (sha256 {now}; wanted {lost.sha256[:12]}…)",
            hint="somebody who has the old file can give it to you: `civman import FILE`; `civman render` makes a new"
            " picture with the new file",
            code=Cause.REPLACED_UPSTREAM, expected=lost.sha256, air=air,
        )  # fmt: skip
    parsed = parse_ref(air)
    file_id = declared[lost.sha256]
    if isinstance(parsed, Air) and file_id is not None:
        return str(replace(parsed, file_id=FileId(file_id)))
    return air


def _explained(lost: Missing, by_id: CivmanError | None) -> CivmanError:
    if isinstance(by_id, IntegrityError):
        return by_id
    facts = {"sha256": str(lost.sha256), "air": lost.air or ""}
    hint = "somebody who has the file can give it to you: `civman import FILE`"
    if lost.air is None:
        return NotFound(
            f"`{lost.name}` did not come from CivitAI, which does not know these bytes (sha256 {lost.sha256[:12]}…)",
            hint=hint, code=Cause.NOT_ON_CIVITAI, **facts,
        )  # fmt: skip
    return Gone(
        f"`{lost.name}` is no longer on CivitAI: {lost.air} was deleted, and no other version has these bytes"
        f" (sha256 {lost.sha256[:12]}…)",
        hint=hint, code=Cause.DELETED_UPSTREAM, **facts,
    )  # fmt: skip
