"""Downloads the model files that a recipe needs and the library lacks, by CivitAI's id or else by SHA-256.

Every file is verified by its SHA-256. If an id now belongs to a different file, that file is never used as a
replacement.
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
    """Download all `missing` files, in order.

    `resolve` asks CivitAI for the version that a ref refers to; `download` fetches and verifies a file.

    Raises:
        Gone: a file was deleted from CivitAI, and no other version there has a file with this SHA-256.
        IntegrityError (`replaced-upstream`): the id now belongs to a file with another SHA-256.
        NotFound (`not-on-civitai`): the file did not come from CivitAI, and CivitAI does not know its SHA-256.
        NotAllowed, NetworkError, StoreError: the download failed.
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
        raise _final_error(lost, by_id) from by_id
    if by_id is not None:
        on_notice(
            f"`{lost.name}` was found under another id: {elsewhere.version.model.name}, version {elsewhere.version.id}"
        )
    return asset


def _ref(lost: Missing, air: str, resolve: Callable[[str], ResolvedVersion]) -> str:
    """Return a ref to the file with the needed SHA-256 in the version `air`.

    Raises: IntegrityError: no file of the version has this SHA-256.
    """
    version = resolve(air).version
    declared: dict[Sha256, int | None] = {
        file.hashes.sha256: file.id for file in version.files if file.hashes.sha256 is not None
    }
    if lost.sha256 not in declared:
        now = ", ".join(f"{sha256[:12]}…" for sha256 in declared) or "none"
        raise IntegrityError(
            f"`{lost.name}`: CivitAI now has a different file under {air} (SHA-256 {now}; needed: {lost.sha256[:12]}…)",
            hint="get the old file from somebody who has it and run `civman import FILE`, or render a new "
                    "picture with the new file (`civman render`)",
            code=Cause.REPLACED_UPSTREAM, expected=lost.sha256, air=air,
        )  # fmt: skip
    parsed = parse_ref(air)
    file_id = declared[lost.sha256]
    if isinstance(parsed, Air) and file_id is not None:
        return str(replace(parsed, file_id=FileId(file_id)))
    return air


def _final_error(lost: Missing, by_id: CivmanError | None) -> CivmanError:
    if isinstance(by_id, IntegrityError):
        return by_id
    facts = {"sha256": str(lost.sha256), "air": lost.air or ""}
    hint = "get the file from somebody who has it and run `civman import FILE`"
    if lost.air is None:
        return NotFound(
            f"`{lost.name}` did not come from CivitAI, and no file there has its SHA-256 ({lost.sha256[:12]}…)",
            hint=hint, code=Cause.NOT_ON_CIVITAI, **facts,
        )  # fmt: skip
    return Gone(
        f"`{lost.name}` is no longer on CivitAI: {lost.air} was deleted, and no other version has a file with this"
        f" SHA-256 ({lost.sha256[:12]}…)",
        hint=hint, code=Cause.DELETED_UPSTREAM, **facts,
    )  # fmt: skip
