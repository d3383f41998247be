"""Wishes about models: found on CivitAI, downloaded, looked into, compared, taken in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.access import Permits
from civman.domain.catalog import Asset, Licence
from civman.domain.events import OnEvent, ignore
from civman.domain.refs import NameRef, PathRef, parse_ref
from civman.errors import LibraryError, NotFound, UsageError
from civman.index import Fits

if TYPE_CHECKING:
    from civman.civitai.storage_connection import Network
    from civman.domain.compatibility import Compatibility
    from civman.domain.licence import Terms
    from civman.domain.search_query import ModelPage, SearchQuery
    from civman.download.job import Downloads, Examine, Job, Outcome, Wishes
    from civman.manage.import_files import Adopted, How
    from civman.manage.inspection import Inspected
    from civman.manage.remote_headers import RemoteHeaders
    from civman.manage.resolve import Meant
from civman.library.opened import Opened

_PLAIN_LABELS = ("SD 1.5", "SD 2.1", "SDXL 1.0", "Flux.1 D")
"""Where several labels share an architecture, the one that says least beyond it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A model page, the version that was meant, and the files of it that the library holds."""

    meant: "Meant"
    assets: tuple[Asset, ...]


class Models(Opened):
    """Search, show, download, inspect, check, adopt."""

    def search(self, query: "SearchQuery", *, fits: str | None = None) -> "Iterator[ModelPage]":
        """Models on CivitAI that match, page by page as they are asked for.

        `fits`: only those of which a version goes with this checkpoint, in part at least, by CivitAI's labels; a ref
        as `inspect` takes it. Nobody has looked at their tensors yet: `download --for` does.
        """
        if fits is None:
            return self.client.search(query)
        from civman.domain.base_models import Support, label_support

        label = self._label_of(fits)
        pages = (
            page
            for page in self.client.search(replace(query, limit=None))
            if any(
                label_support(label, version.base_model or "", page.model.type) is not Support.NONE
                for version in page.versions
            )
        )
        return islice(pages, query.limit)

    def _label_of(self, checkpoint: str) -> str:
        """CivitAI's label for a checkpoint: as CivitAI says, else the plainest one for what its tensors show."""
        from civman.domain.base_models import architectures_of, known_labels

        seen = self.inspect(checkpoint)
        labels = [label for label in known_labels() if seen.part.architecture in architectures_of(label)]
        label = seen.label or next((name for name in _PLAIN_LABELS if name in labels), next(iter(labels), None))
        if label is None:
            raise UsageError(f"CivitAI has no label for what `{checkpoint}` is", hint="try `civman inspect` on it")
        return label

    def show(self, ref: str) -> Shown:
        """What CivitAI says about `ref`, or said when it was last asked, and what of it is held."""
        from civman.manage.resolve import remember  # 0.3 s, see `client`

        meant = self._meant(ref)
        try:
            remember(self.index, meant, self._clock())
        except LibraryError as error:  # a library that cannot be written can still be looked at
            self._on_notice(f"what CivitAI says was not kept: {error.message}")
        return Shown(meant, tuple(self.index.find_by_model(meant.page.model.id)))

    def _meant(self, ref: str) -> "Meant":
        from civman.manage.resolve import Resolver, offline_meant  # 0.3 s, see `client`

        parsed = parse_ref(ref)
        if self.settings.offline:
            return offline_meant(parsed, self.index)
        meant = Resolver(self.client, self.index, self._clock()).meant(parsed)
        if meant.is_saved_copy:
            when = f" on {meant.saved_at:%Y-%m-%d}" if meant.saved_at else ""
            self._on_notice(f"CivitAI no longer knows `{ref}`; this is what it said{when}")
        return meant

    def plan_download(
        self, ref: str, *, file: str | None = None, permits: Permits | None = None, examine: "Examine | None" = None
    ) -> "Job":
        """Which file `ref` means, whether it may be had, and whether it is here already. Moves no bytes of it."""
        return self._downloads().plan(ref, wish=file, permits=permits or Permits(), examine=examine)

    def place_of(self, job: "Job") -> Path | None:
        """Where a job's file lies or will lie; None where only its bytes will tell."""
        sha256 = job.file.hashes.sha256
        return None if sha256 is None else self.store.place_of(sha256, job.file.suffix)

    def download(
        self,
        ref: str,
        *,
        file: str | None = None,
        permits: Permits | None = None,
        wishes: "Wishes | None" = None,
        on_event: OnEvent = ignore,
    ) -> Asset:
        """The file that `ref` means, verified, stored and indexed; at once where it is here already.

        Raises: NotFound, NotAllowed, Refused: it cannot be had. IntegrityError: it is not what CivitAI declares.
            NetworkError, StoreError; what has arrived is kept for the next time.
        """
        outcome = self.download_all([ref], file=file, permits=permits, wishes=wishes, on_event=on_event)[0]
        if outcome.error is not None:
            raise outcome.error
        if outcome.asset is None:
            raise AssertionError("an outcome has an asset or an error")
        return outcome.asset

    def download_all(
        self,
        refs: Sequence[str],
        *,
        file: str | None = None,
        permits: Permits | None = None,
        wishes: "Wishes | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Outcome]":
        """As `download` for several refs, some at a time; an outcome for each, in their order, failed or not.

        `on_event` is called from several threads. A KeyboardInterrupt stops all of them; what has arrived is kept.
        Raises: what concerns all of them: the library cannot be written.
        """
        from civman.download.job import Wishes  # 0.3 s, see `client`

        return self._downloads().run(
            refs, wish=file, permits=permits or Permits(), wishes=wishes or Wishes(), on_event=on_event
        )

    def _downloads(self) -> "Downloads":
        from civman.download.job import Downloads  # 0.3 s, see `client`

        return Downloads(
            index=self.index,
            store=self.store,
            client=self.client,
            network=self._network(),
            meant=self._meant,
            clock=self._clock,
            patience=self._patience,
        )

    def _network(self) -> "Network":
        from civman.civitai import credentials  # 0.3 s, see `client`
        from civman.civitai.allowed_urls import is_loopback
        from civman.civitai.site import user_agent
        from civman.civitai.storage_connection import Network

        return Network(
            user_agent(),
            stall_s=self._patience.stall_s,
            connect_s=self._patience.connect_s,
            loopback_allowed=is_loopback(self.settings.civitai_url),
            token=credentials.load(self.settings).token,
        )

    def inspect(self, ref: str, *, file: str | None = None) -> "Inspected":
        """What a file is: one on this disk, one that is held, or one on CivitAI, of which only the header is fetched.

        Raises: NotFound, AmbiguousRef. InvalidModelFile: it is no sound model file.
        """
        from civman.manage.held import held, one_of
        from civman.manage.inspection import inspect_asset, inspect_path, path_of

        if (path := path_of(ref)) is not None:
            return inspect_path(path)
        parsed = parse_ref(ref)
        try:
            return inspect_asset(one_of(held(self.index, parsed), ref, file))
        except NotFound:
            if self.settings.offline or isinstance(parsed, PathRef | NameRef):
                raise
        from civman.domain.file_choice import choose_file

        meant = self._meant(ref)
        return self._remote_headers().inspect(meant.version, choose_file(meant.version, file or meant.file_wish))

    def check(self, checkpoint: str, parts: Sequence[str]) -> "Compatibility":
        """How adapters, embeddings and VAEs go with a checkpoint, module by module; refs as `inspect` takes them."""
        from civman.domain.compatibility import check

        return check(self.inspect(checkpoint).part, [self.inspect(part).part for part in parts])

    def terms(self, models: "Sequence[Inspected]") -> "Terms":
        """What the licences of models used together allow."""
        from civman.domain import licence

        parts = []
        for seen in models:
            asset = seen.asset
            version = self.index.version(asset.version_id) if asset is not None and asset.version_id else None
            allowed = version.model.licence if version is not None else Licence()
            creator = version.model.creator if version is not None else None
            name = version.model.name if version is not None else seen.name
            parts.append(licence.Part(name, allowed, seen.label, creator))
        return licence.terms_of(parts)

    def examiner(self, checkpoint: str, *, force: bool = False) -> "Examine":
        """For `Wishes.examine`: refuses files that cannot work with `checkpoint` before they are fetched."""
        from civman.manage.remote_headers import require_fit  # 0.3 s, see `client`

        base, headers = self.inspect(checkpoint), self._remote_headers()
        return lambda version, file: require_fit(base, headers.inspect(version, file), force=force)

    def fits(self, checkpoint: str) -> "Fits":
        """For `AssetFilter.fits`: what may go with `checkpoint`, by tensors and, where unread, by CivitAI's labels."""
        from civman.domain.architecture import Architecture
        from civman.domain.base_models import compatible_labels

        base = self.inspect(checkpoint)
        architecture = base.part.architecture
        return Fits(
            architectures=() if architecture is Architecture.UNKNOWN else (str(architecture),),
            base_models=compatible_labels(base.label) if base.label else (),
        )

    def _remote_headers(self) -> "RemoteHeaders":
        from civman.civitai.storage_connection import StorageConnection, tls_context  # 0.3 s, see `client`
        from civman.manage.remote_headers import RemoteHeaders

        network = self._network()
        return RemoteHeaders(self.client, lambda: StorageConnection(network, tls_context))

    def adopt(self, paths: "Sequence[Path]", *, how: "How | None" = None, on_event: OnEvent = ignore) -> "Adopted":
        """Take files and whole folders into the library where they lie, without moving or copying a byte.

        Every file is hashed once; CivitAI is asked once about all of them (not at all when offline). Interrupted, it
        goes on where it was the next time.
        """
        from civman.manage.import_files import How, adopt  # 0.3 s, see `client`

        client = None if self.settings.offline else self.client
        return adopt(
            self.index, self.store, client, paths, how=how or How.IN_PLACE, on_event=on_event, clock=self._clock
        )
