"""The objects that all parts of the library share: settings, store, index and client, each opened on first use."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from civman.domain.catalog import Asset
from civman.domain.refs import parse_ref
from civman.domain.timeouts import PATIENT, Patience
from civman.errors import LibraryError, StoreError
from civman.index import Index
from civman.settings import Settings
from civman.store.blobs import BlobStore, require_folder

if TYPE_CHECKING:
    from civman.civitai.client import CivitaiClient
    from civman.civitai.storage_connection import Network
    from civman.manage.resolve import ResolvedVersion


def utc_now() -> datetime:
    """The current UTC time as a timezone-aware datetime."""
    return datetime.now(UTC)


def ignore_notice(notice: str) -> None:
    """Ignore a notice. The default for callers that do not show notices."""


class LibraryContext:
    """A library's folder, with its store, its index and its CivitAI client. Each is opened on first use."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_notice: Callable[[str], None] = ignore_notice,
        clock: Callable[[], datetime] = utc_now,
        patience: Patience = PATIENT,
    ) -> None:
        """`on_notice` receives messages that are not errors; `patience` sets the network timeouts."""
        self.settings = settings
        self.root = settings.library
        self.renders = self.root / "renders"
        self.store = BlobStore(self.root)
        self.on_notice = on_notice
        self.clock = clock
        self.patience = patience

    def close(self) -> None:
        """Write pending sidecar files, then close the database and the connections."""
        if "index" in self.__dict__ and self.index.has_written:
            self._write_sidecars()
        for name in ("index", "client"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def _write_sidecars(self) -> None:
        from civman.manage.sidecar import write_due

        try:
            write_due(self.store, self.index)
        # the sidecar files stay marked as pending, so the next command that writes tries again
        except (StoreError, LibraryError) as error:
            self.on_notice(f"the sidecar files could not be updated: {error.message}")

    @cached_property
    def index(self) -> Index:
        """The index. The database is created or upgraded on first use."""
        require_folder(self.root)
        return Index.open(self.root / "library.db")

    @property
    def has_index(self) -> bool:
        """Whether this folder already contains a library. Does not create one."""
        return (self.root / "library.db").is_file()

    @cached_property
    def client(self) -> "CivitaiClient":
        """The client for CivitAI's API, with the stored API key, if any."""
        # importing the client, httpx and pydantic takes 0.3 s, which commands that need no network can skip
        from civman.civitai import credentials
        from civman.civitai.client import CivitaiClient
        from civman.civitai.transport import Transport

        token = credentials.load(self.settings).token
        transport = Transport(
            self.settings.civitai_url,
            token=token,
            offline=self.settings.offline,
            timeout_s=self.patience.site_timeout_s,
            backoff_s=self.patience.site_backoff_s,
            on_notice=self.on_notice,
        )
        return CivitaiClient(transport, clock=self.clock, on_notice=self.on_notice)

    @property
    def network(self) -> "Network":
        """The settings for connections to CivitAI's storage servers, with the stored API key, if any."""
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.civitai import credentials
        from civman.civitai.allowed_urls import is_loopback
        from civman.civitai.site import user_agent
        from civman.civitai.storage_connection import Network

        return Network(
            user_agent(),
            stall_s=self.patience.stall_s,
            connect_s=self.patience.connect_s,
            loopback_allowed=is_loopback(self.settings.civitai_url),
            token=credentials.load(self.settings).token,
        )

    def resolve(self, ref: str) -> "ResolvedVersion":
        """Resolve `ref` to a model version, by a request to CivitAI or, if offline, from the index.

        Raises: NotFound, AmbiguousRef, UsageError; NetworkError.
        """
        from civman.manage.resolve import Resolver

        client = None if self.settings.offline else self.client
        resolved = Resolver(client, self.index, self.clock()).resolve(parse_ref(ref))
        if resolved.is_saved_copy and client is not None:
            when = f" on {resolved.saved_at:%Y-%m-%d}" if resolved.saved_at else ""
            self.on_notice(f"CivitAI no longer knows `{ref}`; this is the metadata that was saved{when}")
        return resolved

    def find(self, refs: Sequence[str], *, file: str | None = None) -> list[Asset]:
        """Find the stored files that `refs` refer to: for a version, all its files; for a model, all its versions.

        Needs no network. `file` selects some of them by file id, file name, or words such as "fp16 pruned". Raises:
        NotFound: no stored file matches a ref. AmbiguousRef: a number, name or digest matches several models.
        """
        from civman.manage.find_assets import find_assets

        return [asset for ref in refs for asset in find_assets(self.index, parse_ref(ref), file)]


class Part:
    """A part of the library: the operations on one subject, which use the shared context."""

    def __init__(self, context: LibraryContext) -> None:
        self._context = context
