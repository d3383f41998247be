"""What every wish starts from: settings, store, index, CivitAI."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from civman.domain.timeouts import PATIENT, Patience
from civman.errors import LibraryError, StoreError
from civman.index import Index
from civman.settings import Settings, load_settings
from civman.store.blobs import BlobStore, require_folder

if TYPE_CHECKING:
    from civman.civitai.client import CivitaiClient


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


def quiet(notice: str) -> None:
    """The listener of those who do not listen."""


class Opened:
    """A library's folder with its index, its store and CivitAI, each opened when a wish first needs it."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_notice: Callable[[str], None] = quiet,
        clock: Callable[[], datetime] = utc_now,
        patience: Patience = PATIENT,
    ) -> None:
        """Nothing is opened or made until a method needs it; `on_notice` hears what is no failure."""
        self.settings = settings
        self.root = settings.library
        self.store = BlobStore(self.root)
        self._on_notice = on_notice
        self._clock = clock
        self._patience = patience

    @classmethod
    def open(
        cls, root: str | Path | None = None, *, offline: bool | None = None, on_notice: Callable[[str], None] = quiet
    ) -> Self:
        """The library in the folder `root` (default: as settings say). Raises: ConfigError."""
        return cls(load_settings(library=root, offline=offline), on_notice=on_notice)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is still to be kept beside files, and give back the database and the connections."""
        if "index" in self.__dict__ and self.index.has_written:
            self._keep_sidecars()
        for name in ("index", "client"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def _keep_sidecars(self) -> None:
        from civman.manage.sidecar import write_due

        try:
            write_due(self.store, self.index)
        except (StoreError, LibraryError) as error:  # what is due stays due: the next command tries again
            self._on_notice(f"what is kept beside the files is not up to date yet: {error.message}")

    @cached_property
    def index(self) -> Index:
        """The index, created or upgraded on first use."""
        require_folder(self.root)
        return Index.open(self.root / "library.db")

    @property
    def has_index(self) -> bool:
        """Whether anything was ever kept here; asking does not make the library."""
        return (self.root / "library.db").is_file()

    @cached_property
    def client(self) -> "CivitaiClient":
        """CivitAI, with the stored key if there is one."""
        from civman.civitai import credentials  # with httpx and pydantic 0.3 s: not for commands that stay at home
        from civman.civitai.client import CivitaiClient
        from civman.civitai.transport import Transport

        token = credentials.load(self.settings).token
        transport = Transport(
            self.settings.civitai_url,
            token=token,
            offline=self.settings.offline,
            timeout_s=self._patience.site_timeout_s,
            backoff_s=self._patience.site_backoff_s,
            on_notice=self._on_notice,
        )
        return CivitaiClient(transport, clock=self._clock, on_notice=self._on_notice)
