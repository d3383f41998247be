"""The library: every wish a person has, as a method that says in which order the parts are called.

It holds no rules of its own. What needs the network, the database's write side or torch is loaded when a wish first
needs it: `civman list` opens an SQLite file and nothing else.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.domain.gates import Permits
from civman.domain.patience import PATIENT, Patience
from civman.domain.refs import NameRef, PathRef, parse_ref
from civman.errors import NotFound, UsageError
from civman.index import EVERYTHING, AssetFilter, Fits, Index
from civman.settings import Settings, load_settings
from civman.store.blobs import BlobStore, require_folder

if TYPE_CHECKING:
    from civman.adopting import Adopted, How
    from civman.civitai.answers import Account
    from civman.civitai.client import CivitaiClient
    from civman.civitai.storage import Network
    from civman.doctor import Finding
    from civman.domain.compat import Compatibility
    from civman.domain.search import ModelPage, SearchQuery
    from civman.download.job import Downloads, Examine, Job, Outcome, Wishes
    from civman.fitting import RemoteHeaders
    from civman.inspecting import Inspected
    from civman.resolving import Meant
    from civman.upkeep import Rebuilt, RemovalPlan, Verdict
    from civman.view.asking import ViewWish
    from civman.view.linking import Linked, Step, ViewPlan


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


def quiet(notice: str) -> None:
    """The listener of those who do not listen."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A model page, the version that was meant, and the files of it that the library holds."""

    meant: "Meant"
    assets: tuple[Asset, ...]


class Library:
    """A folder of verified files, its index, and the CivitAI they come from. A context manager.

    For one thread; downloads use threads of their own inside. Every method may raise CivmanError by cause.
    """

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
    ) -> "Library":
        """The library in the folder `root` (default: as settings say). Raises: ConfigError."""
        return cls(load_settings(library=root, offline=offline), on_notice=on_notice)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the database and the connections."""
        for name in ("index", "client"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

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
        from civman import credentials  # with httpx and pydantic 0.3 s: not for commands that stay at home
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

    # -- search and show -------------------------------------------------------------------------------------------

    def search(self, query: "SearchQuery") -> "Iterator[ModelPage]":
        """Models on CivitAI that match, page by page as they are asked for."""
        return self.client.search(query)

    def show(self, ref: str) -> Shown:
        """What CivitAI says about `ref`, or said when it was last asked, and what of it is held."""
        meant = self._meant(ref)
        return Shown(meant, tuple(self.index.find_by_model(meant.page.model.id)))

    def _meant(self, ref: str) -> "Meant":
        from civman.resolving import Resolver, offline_meant  # 0.3 s, see `client`

        parsed = parse_ref(ref)
        if self.settings.offline:
            return offline_meant(parsed, self.index)
        meant = Resolver(self.client, self.index, self._clock()).meant(parsed)
        if meant.is_saved_copy:
            when = f" on {meant.saved_at:%Y-%m-%d}" if meant.saved_at else ""
            self._on_notice(f"CivitAI no longer knows `{ref}`; this is what it said{when}")
        return meant

    # -- download --------------------------------------------------------------------------------------------------

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
        from civman import credentials  # 0.3 s, see `client`
        from civman.civitai.redirects import is_loopback
        from civman.civitai.site import user_agent
        from civman.civitai.storage import Network

        return Network(
            user_agent(),
            stall_s=self._patience.stall_s,
            connect_s=self._patience.connect_s,
            loopback_allowed=is_loopback(self.settings.civitai_url),
            token=credentials.load(self.settings).token,
        )

    # -- what files are, and what they fit -------------------------------------------------------------------------

    def inspect(self, ref: str, *, file: str | None = None) -> "Inspected":
        """What a file is: one on this disk, one that is held, or one on CivitAI, of which only the header is fetched.

        Raises: NotFound, AmbiguousRef. InvalidModelFile: it is no sound model file.
        """
        from civman.fitting import is_file
        from civman.holding import held, one_of
        from civman.inspecting import inspect_asset, inspect_path

        if is_file(ref):
            return inspect_path(Path(ref).expanduser())
        parsed = parse_ref(ref)
        try:
            return inspect_asset(one_of(held(self.index, parsed), ref, file))
        except NotFound:
            if self.settings.offline or isinstance(parsed, PathRef | NameRef):
                raise
        from civman.domain.choose import choose_file

        meant = self._meant(ref)
        return self._remote_headers().inspect(meant.version, choose_file(meant.version, file or meant.file_wish))

    def check(self, checkpoint: str, parts: Sequence[str]) -> "Compatibility":
        """How adapters, embeddings and VAEs go with a checkpoint, module by module; refs as `inspect` takes them."""
        from civman.domain.compat import check

        return check(self.inspect(checkpoint).part, [self.inspect(part).part for part in parts])

    def examiner(self, checkpoint: str, *, force: bool = False) -> "Examine":
        """For `Wishes.examine`: refuses files that cannot work with `checkpoint` before they are fetched."""
        from civman.fitting import require_fit  # 0.3 s, see `client`

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
        from civman.civitai.storage import StorageConnection, tls_context  # 0.3 s, see `client`
        from civman.fitting import RemoteHeaders

        network = self._network()
        return RemoteHeaders(self.client, lambda: StorageConnection(network, tls_context))

    def adopt(
        self, paths: "Sequence[Path]", *, how: "How | None" = None, on_event: OnEvent = ignore
    ) -> "Adopted":
        """Take files and whole folders into the library where they lie, without moving or copying a byte.

        Every file is hashed once; CivitAI is asked once about all of them (not at all when offline). Interrupted, it
        goes on where it was the next time.
        """
        from civman.adopting import How, adopt  # 0.3 s, see `client`

        client = None if self.settings.offline else self.client
        return adopt(
            self.index, self.store, client, paths, how=how or How.IN_PLACE, on_event=on_event, clock=self._clock
        )

    # -- what is held ----------------------------------------------------------------------------------------------

    def list(self, wanted: AssetFilter = EVERYTHING, *, limit: int | None = None, offset: int = 0) -> Sequence[Asset]:
        """What the library holds, newest first. Needs no network."""
        return self.index.assets(wanted, limit=limit, offset=offset)

    def count(self, wanted: AssetFilter = EVERYTHING) -> int:
        """How many assets pass the filter."""
        return self.index.count(wanted)

    def held(self, ref: str) -> Sequence[Asset]:
        """The assets that `ref` means; every file of a version, every version of a model. Needs no network.

        Raises: NotFound: none. AmbiguousRef: a name that several could answer to.
        """
        from civman.holding import held

        return held(self.index, parse_ref(ref))

    def verify(self, refs: Iterable[str] = (), *, on_event: OnEvent = ignore) -> "Iterator[Verdict]":
        """Read every byte of what is held (or of `refs`) and compare digests; a verdict for each file."""
        from civman.upkeep import verify

        assets = [asset for ref in refs for asset in self.held(ref)]
        return verify(self.index, self.store, assets, on_event=on_event, clock=self._clock)

    def rebuild(self, *, on_event: OnEvent = ignore) -> "Rebuilt":
        """Fill the index again from the blobs and what is kept beside them, reading and proving every byte."""
        from civman.upkeep import rebuild

        return rebuild(self.index, self.store, on_event=on_event, clock=self._clock)

    def plan_removal(self, refs: Sequence[str]) -> "RemovalPlan":
        """What removing `refs` would take away: assets, and the bytes that nothing else refers to."""
        from civman.upkeep import plan_removal

        return plan_removal(self.index, [asset for ref in refs for asset in self.held(ref)])

    def remove(self, plan: "RemovalPlan") -> int:
        """Carry out a plan: rows first, then bytes. The bytes freed."""
        from civman.upkeep import remove

        return remove(self.index, self.store, plan)

    # -- for other programs, people and machines -------------------------------------------------------------------

    def plan_view(self, folder: Path, wish: "ViewWish") -> "ViewPlan":
        """What `link` would do so that `folder` shows what is wished for, as another program's folders."""
        from civman.view.asking import plan_wished

        return plan_wished(self.index, self.store, self.root, folder, wish)

    def link(self, plan: "ViewPlan") -> "Linked":
        """Carry out the plan of a view. Raises: StoreError, DiskFull."""
        from civman.view.linking import apply

        return apply(plan, self.store)

    def remove_view(self, folder: Path) -> "Sequence[Step]":
        """Take the view out of `folder`: what it made and nobody changed. Raises: UsageError: there is none."""
        from civman.view.linking import remove_view

        return remove_view(folder.absolute(), self.store)

    # -- the account and the machine -------------------------------------------------------------------------------

    def login(self, token: str, *, use_keyring: bool = True) -> "tuple[Account, str]":
        """Prove `token` with CivitAI, then keep it; whose it is and where it went. Raises: NotAllowed: `bad-key`."""
        from civman import credentials  # see `client`
        from civman.civitai.client import CivitaiClient
        from civman.civitai.transport import Transport

        token = credentials.check_shape(token)
        if self.settings.offline:
            raise UsageError("a key can only be proven online", hint="leave out --offline")
        with CivitaiClient(Transport(self.settings.civitai_url, token=token), clock=self._clock) as client:
            account = client.me()
        return account, credentials.save(self.settings, token, use_keyring=use_keyring)

    def doctor(self) -> "Iterator[Finding]":
        """What holds here and what is wrong, finding by finding."""
        from civman.doctor import examine

        return examine(self.settings)
