"""`library.named_files`: find and download the model files that the settings of another program's image name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.errors import CivmanError, Gone, NotAllowed
from civman.library.context import Part
from civman.library.downloads_part import DownloadsPart
from civman.library.files_part import FilesPart

if TYPE_CHECKING:
    from civman.domain.compatibility import Part as ModelPart
    from civman.domain.compatibility import PartResult
    from civman.download.find_named import KnownVersions, Offer
    from civman.planning.redraw_request import Prepared
    from civman.planning.redraw_tiles import SourceImage
    from civman.planning.site_image import SiteImage


@dataclass(frozen=True, slots=True)
class JudgedOffer:
    """CivitAI's offer for a file that an image's settings name, and how the file fits the image's checkpoint.

    `fit` is the verdict from the file's header. It is None for the checkpoint itself, or if the fit is unknown; `why`
    then gives the reason.
    """

    offer: "Offer"
    fit: "PartResult | None" = None
    why: str = ""


class NamedFilesPart(Part):
    """Find the model files that an image's settings name on CivitAI: by hash, else by version id, else by name."""

    def prepare(
        self, settings: "str | SiteImage", *, asks_site: bool = False, must_draw: bool = True,
        source: "SourceImage | None" = None,
    ) -> "Prepared":  # fmt: skip
        """Parse an image's settings and find the files that they name in the library.

        `settings`: A1111's `parameters` text, or an image on CivitAI. `asks_site`: if the settings contain ids of model
        versions that the library does not know, ask CivitAI which files these versions contain. `must_draw=False`: also
        return settings from which the image cannot be rendered again.

        Raises: CannotRender (`not-drawable`); NotFound (`no-recipe`): CivitAI shows no settings; NetworkError.
        """
        from civman.planning.redraw_request import prepare, understood

        if asks_site:
            from civman.download.find_named import learn_versions
            from civman.planning.site_image import listed_versions

            context = self._context
            learn_versions(context.client, context.index, listed_versions(settings), context.clock())
        return (prepare if must_draw else understood)(
            self._context.index if self._context.has_index else None, settings, source
        )

    def offers(self, prepared: "Prepared") -> "Sequence[JudgedOffer]":
        """Look up on CivitAI any files that the library might lack, and check how well they fit the checkpoint.

        Only headers are downloaded. Raises: NetworkError: CivitAI cannot be reached.
        """
        from civman.download.find_named import NamedFinder

        context = self._context
        downloads = DownloadsPart(context, self._resolve)
        finder = NamedFinder(
            context.client, context.index, self._resolve, lambda ref, file: downloads.plan(ref, file=file)
        )
        wanted = [each for each in prepared.files if not each.is_certain]
        return self._judged(prepared, finder.find(wanted, prepared.version_ids))

    def fetch(
        self, offers: "Sequence[JudgedOffer]", *, permits: Permits | None = None, on_event: OnEvent = ignore
    ) -> Sequence[Asset]:
        """Download the files of the offers and verify their SHA-256. Raises: the first error of a download."""
        from civman.domain.printed_refs import file_ref

        refs = [file_ref(each.offer.job.version, each.offer.job.file) for each in offers if each.offer.job is not None]
        downloads = DownloadsPart(self._context, self._resolve)
        found = []
        for outcome in downloads.fetch_all(list(dict.fromkeys(refs)), permits=permits, on_event=on_event):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.asset is not None, "an outcome without an asset must have an error"
            found.append(outcome.asset)
        return found

    @cached_property
    def _resolve(self) -> "KnownVersions":
        from civman.download.find_named import KnownVersions

        return KnownVersions(self._context.resolve)

    def _judged(self, prepared: "Prepared", offers: "Sequence[Offer]") -> "list[JudgedOffer]":
        headers = [self._header(each) for each in offers]
        base: ModelPart | None = None
        reason = "nothing is known about the checkpoint"
        for wanted in prepared.files:
            if wanted.file.role == "checkpoint":
                read = next((each for each in headers if each.offer.wanted is wanted and each.offer.job), None)
                base, why = (read.part, read.why) if read else self._held_part(wanted.held)
                reason = why or reason
        return [_judged(each, base, reason) for each in headers]

    def _header(self, offer: "Offer") -> "_Read":
        """Read the header of a file on CivitAI. If CivitAI refuses the download, the error is stored in the offer."""
        if offer.job is None:
            return _Read(offer)
        try:
            part = FilesPart(self._context).remote_headers().inspect(offer.job.version, offer.job.file).part
        except (NotAllowed, Gone) as error:
            error.message = f"{offer.wanted.words}: {error.message}"
            return _Read(replace(offer, job=None, problem=error))
        except CivmanError as error:
            return _Read(offer, why=error.message)
        return _Read(offer, part)

    def _held_part(self, asset: Asset | None) -> "tuple[ModelPart | None, str]":
        from civman.manage.inspection import inspect_asset

        if asset is None:
            return None, ""
        try:
            return inspect_asset(asset).part, ""
        except CivmanError as error:
            return None, error.message


@dataclass(frozen=True, slots=True)
class _Read:
    """An offer and what the header of its file shows.

    If the header could not be read, `part` is None and `why` is the reason.
    """

    offer: "Offer"
    part: "ModelPart | None" = None
    why: str = ""


def _judged(read: _Read, base: "ModelPart | None", reason: str) -> JudgedOffer:
    """Check how a file fits the checkpoint `base`. `reason` says why the fit is unknown if `base` is None."""
    role = read.offer.wanted.file.role
    if read.offer.job is None or role in ("checkpoint", "upscaler", "hypernetwork"):
        return JudgedOffer(read.offer)
    if base is None or read.part is None:
        return JudgedOffer(read.offer, None, read.why or reason)
    from civman.domain.compatibility import check
    from civman.planning.check_files import in_role

    return JudgedOffer(read.offer, check(base, [in_role(read.part, role)]).parts[0])
