"""The library: every wish a person has, as a method that says in which order the parts are called.

It holds no rules of its own. What needs the network, the database's write side or torch is loaded when a wish first
needs it: `civman list` opens an SQLite file and nothing else.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from civman.domain.catalog import Asset, Licence
from civman.domain.events import OnEvent, ignore
from civman.domain.gates import Permits
from civman.domain.patience import PATIENT, Patience
from civman.domain.refs import NameRef, PathRef, parse_ref
from civman.errors import LibraryError, NotFound, StoreError, UsageError
from civman.index import EVERYTHING, AssetFilter, Fits, Index, Sort
from civman.settings import Settings, load_settings
from civman.store.blobs import BlobStore, require_folder

if TYPE_CHECKING:
    from civman.adopting import Adopted, How
    from civman.bundle import Brought, Exported
    from civman.civitai.answers import Account
    from civman.civitai.client import CivitaiClient
    from civman.civitai.storage import Network
    from civman.doctor import Finding
    from civman.domain.compat import Compatibility
    from civman.domain.licence import Terms
    from civman.domain.recipe import Recipe, RenderRequest
    from civman.domain.search import ModelPage, SearchQuery
    from civman.download.job import Downloads, Examine, Job, Outcome, Wishes
    from civman.fitting import RemoteHeaders
    from civman.index.pictures import KeptPicture, PictureFilter
    from civman.inspecting import Inspected
    from civman.own import Edit
    from civman.removal import Collection, RemovalPlan, Restored
    from civman.rendering.about import About
    from civman.rendering.axes import Axis
    from civman.rendering.gridding import DrawnGrid, Grid
    from civman.rendering.keeping import Manner
    from civman.rendering.making import Drawn
    from civman.rendering.origins import Missing, Told
    from civman.rendering.planning import Conditions
    from civman.rendering.plans import Planned, Rendering
    from civman.rendering.replaying import Again
    from civman.rendering.scanning import Scanned
    from civman.rendering.varying import Change
    from civman.resolving import Meant
    from civman.store.trash import Removal
    from civman.syncing import Added, Synced, Syncing
    from civman.updates import Outlook
    from civman.upkeep import Rebuilt, Verdict
    from civman.usage import Usage
    from civman.view.asking import ViewWish
    from civman.view.linking import Linked, Step, ViewPlan

_PLAIN_LABELS = ("SD 1.5", "SD 2.1", "SDXL 1.0", "Flux.1 D")
"""Where several labels share an architecture, the one that says least beyond it."""


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
        """Write what is still to be kept beside files, and give back the database and the connections."""
        if "index" in self.__dict__ and self.index.has_written:
            self._keep_sidecars()
        for name in ("index", "client"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def _keep_sidecars(self) -> None:
        from civman.sidecar import write_due

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
        from civman.resolving import remember  # 0.3 s, see `client`

        meant = self._meant(ref)
        try:
            remember(self.index, meant, self._clock())
        except LibraryError as error:  # a library that cannot be written can still be looked at
            self._on_notice(f"what CivitAI says was not kept: {error.message}")
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
        from civman.holding import held, one_of
        from civman.inspecting import inspect_asset, inspect_path, path_of

        if (path := path_of(ref)) is not None:
            return inspect_path(path)
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

    def adopt(self, paths: "Sequence[Path]", *, how: "How | None" = None, on_event: OnEvent = ignore) -> "Adopted":
        """Take files and whole folders into the library where they lie, without moving or copying a byte.

        Every file is hashed once; CivitAI is asked once about all of them (not at all when offline). Interrupted, it
        goes on where it was the next time.
        """
        from civman.adopting import How, adopt  # 0.3 s, see `client`

        client = None if self.settings.offline else self.client
        return adopt(
            self.index, self.store, client, paths, how=how or How.IN_PLACE, on_event=on_event, clock=self._clock
        )

    # -- pictures --------------------------------------------------------------------------------------------------

    def plan(
        self, request: "RenderRequest", conditions: "Conditions | None" = None, *, on_event: OnEvent = ignore
    ) -> "Planned":
        """Settle everything that decides the pictures, before a weight is loaded. Needs no network.

        Raises: NotFound, AmbiguousRef, Incompatible, IntegrityError: the files. UsageError: the values. CannotRender.
        """
        from civman.rendering.planning import Conditions, plan

        return plan(self.index, request, conditions or Conditions(), on_event=on_event)

    def plan_recipe(self, recipe: "Recipe", pictures: Sequence[Path] = (), *, on_event: OnEvent = ignore) -> "Planned":
        """A recipe as it stands, its files found by digest; `pictures` are those that it may start from."""
        from civman.rendering.planning import plan_recipe

        return plan_recipe(self.index, recipe, pictures, on_event=on_event)

    def vary(
        self,
        what: "Recipe | Told",
        changes: "Sequence[Change]",
        *,
        pictures: Sequence[Path] = (),
        conditions: "Conditions | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Planned":
        """A recipe with fields changed (`civman.rendering.varying.FIELDS`); a picture's is remembered as its parent."""
        from civman.domain.recipe import Recipe
        from civman.rendering.inputs import kept_inputs
        from civman.rendering.origins import recipe_of
        from civman.rendering.planning import Conditions
        from civman.rendering.varying import vary

        recipe = what if isinstance(what, Recipe) else recipe_of(what)
        kept = kept_inputs(self.root, recipe, pictures)
        planned = vary(self.index, recipe, changes, conditions or Conditions(), pictures=kept, on_event=on_event)
        return planned if isinstance(what, Recipe) else replace(planned, parent=recipe.sha256)

    def render(
        self,
        what: "Planned | Recipe | Sequence[Planned]",
        *,
        output: Path | None = None,
        manner: "Manner | None" = None,
        device: str | None = None,
        low_vram: bool = False,
        threads: int | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Rendering]":
        """The pictures of a plan, a recipe or several plans, kept in `output` (default: renders/ of the library).

        Never reaches for the network. Raises: CannotRender, Incompatible, StoreError; Interrupted: what was made
        until then is kept.
        """
        from civman.domain.recipe import Recipe
        from civman.rendering.keeping import Manner, Place
        from civman.rendering.plans import Planned

        if isinstance(what, Recipe):
            what = self.plan_recipe(what, on_event=on_event)
        plans = [what] if isinstance(what, Planned) else list(what)
        place = Place(output or self.root / "renders", manner or Manner())
        from civman.rendering.making import Machine  # torch: 2 s and more, so last of all
        from civman.rendering.session import render

        machine = Machine(device, low_vram, threads)
        return render(self.index, self.root, plans, place, machine=machine, clock=self._clock, on_event=on_event)

    def plan_grid(
        self,
        what: "RenderRequest | Recipe | Told",
        axes: "Sequence[Axis]",
        *,
        changes: "Sequence[Change]" = (),
        pictures: Sequence[Path] = (),
        conditions: "Conditions | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Grid":
        """Every cell of a grid, settled: of a request, or of variations of a picture's recipe with `changes` for all.

        Raises: UsageError (`bad-grid`); as `plan` and `vary`, of whichever cell.
        """
        from civman.domain.recipe import Recipe, RenderRequest
        from civman.rendering.gridding import of_recipe, of_request
        from civman.rendering.origins import recipe_of
        from civman.rendering.planning import Conditions

        if isinstance(what, RenderRequest):
            return of_request(self.index, what, axes, conditions or Conditions(), on_event=on_event)

        def vary(cell: "Sequence[Change]") -> "Planned":
            return self.vary(what, cell, pictures=pictures, conditions=conditions, on_event=on_event)

        recipe = what if isinstance(what, Recipe) else recipe_of(what)
        record = None if isinstance(what, Recipe) else what.record
        return of_recipe(self.index, recipe, axes, vary, seed=record.seed if record else None, changes=changes)

    def draw_grid(
        self,
        grid: "Grid",
        *,
        output: Path | None = None,
        manner: "Manner | None" = None,
        device: str | None = None,
        low_vram: bool = False,
        threads: int | None = None,
        on_event: OnEvent = ignore,
    ) -> "DrawnGrid":
        """Every cell as a picture of its own, and a labelled sheet in `output`: a folder, or the sheet's PNG.

        Raises: as `render`; what was done until then is kept, without a sheet.
        """
        from civman.rendering.gridding import draw
        from civman.rendering.keeping import Manner
        from civman.rendering.making import Machine  # torch, see `render`

        return draw(
            self.index, self.root, grid, output or self.root / "renders", manner or Manner(),
            machine=Machine(device, low_vram, threads), clock=self._clock, on_event=on_event,
        )  # fmt: skip

    def pictures(
        self, wanted: "PictureFilter | None" = None, *, limit: int | None = None, offset: int = 0
    ) -> "Sequence[KeptPicture]":
        """Pictures that this library made and that pass the filter, newest first."""
        return self.index.pictures(wanted, limit=limit, offset=offset) if self.has_index else []

    def scan_pictures(self, folder: Path) -> "Scanned":
        """Take in pictures below `folder` that carry a recipe of civman's."""
        from civman.rendering.scanning import scan

        return scan(self.index, folder)

    def about(self, path: Path) -> "About":
        """All that a picture tells, whoever made it, and which of its models are here. Raises: UsageError."""
        from civman.rendering.about import about

        return about(self.index if self.has_index else None, path)

    def told(self, what: str) -> "Told":
        """What a picture, a recipe's JSON, a picture's number or a recipe's digest tells.

        Raises: NotFound, AmbiguousRef; UsageError (`bad-picture`, `bad-recipe`); IntegrityError (`edited-recipe`).
        """
        from civman.rendering.origins import told_by

        return told_by(self.index, what)

    def missing(self, told: "Told") -> "Sequence[Missing]":
        """The model files that a picture was made with and that are not here."""
        from civman.rendering.origins import missing

        return missing(self.index, told)

    def regain(self, missing: "Sequence[Missing]", *, on_event: OnEvent = ignore) -> "Sequence[Asset]":
        """Fetch them from CivitAI by their ids, each verified by its digest.

        Raises: Gone (`deleted-upstream`), IntegrityError (`replaced-upstream`), NotFound (`not-on-civitai`); as
            `download`.
        """
        from civman.regaining import regain

        return regain(missing, self._meant, lambda ref: self.download(ref, on_event=on_event), self._on_notice)

    def replay(
        self,
        told: "Told",
        *,
        pictures: Sequence[Path] = (),
        device: str | None = None,
        low_vram: bool = False,
        threads: int | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Again]":
        """Make a picture again and compare; its files must be here (`missing`, `regain`). Keeps nothing.

        Raises: NotFound (`missing-files`); CannotRender, Incompatible, IntegrityError.
        """
        from civman.rendering.inputs import kept_inputs
        from civman.rendering.origins import recipe_of, require_all
        from civman.rendering.planning import plan_again

        require_all(self.missing(told))
        kept = kept_inputs(self.root, recipe_of(told), pictures)
        planned = plan_again(self.index, told, tuple(kept.values()), on_event=on_event)
        from civman.rendering.making import Machine  # torch, see `render`
        from civman.rendering.replaying import again

        return again(told, planned, machine=Machine(device, low_vram, threads), on_event=on_event)

    def keep(
        self, drawn: "Sequence[Drawn]", *, output: Path | None = None, manner: "Manner | None" = None
    ) -> "Sequence[Rendering]":
        """Write pictures that `replay` made into `output` (default: renders/ of the library), and remember them."""
        from civman.rendering.session import keep

        return keep(self.index, drawn, output or self.root / "renders", manner, self._clock())

    # -- what is held ----------------------------------------------------------------------------------------------

    def list(
        self,
        wanted: AssetFilter = EVERYTHING,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> Sequence[Asset]:
        """What the library holds: without `sort` the best match first, newest first without words. Needs no network."""
        return self.index.assets(wanted, sort=sort, limit=limit, offset=offset)

    def count(self, wanted: AssetFilter = EVERYTHING) -> int:
        """How many assets pass the filter."""
        return self.index.count(wanted)

    def held(self, ref: str) -> Sequence[Asset]:
        """The assets that `ref` means; every file of a version, every version of a model. Needs no network.

        Raises: NotFound: none. AmbiguousRef: a name that several could answer to.
        """
        from civman.holding import held

        return held(self.index, parse_ref(ref))

    def edit(self, ref: str, edit: "Edit") -> Sequence[Asset]:
        """Write what the user says of a file, into the index and beside the file. Raises: NotFound, UsageError."""
        from civman.own import apply

        return apply(self.index, self.store, self.held(ref), edit, now=self._clock())

    def verify(
        self, refs: Iterable[str] = (), *, is_full: bool = False, on_event: OnEvent = ignore
    ) -> "Iterator[Verdict]":
        """Prove what is held (or `refs`), reading what has changed since it was last proven; a verdict for each file.

        `is_full` reads every byte. `on_event` is called from several threads.
        """
        from civman.upkeep import verify

        assets = [asset for ref in refs for asset in self.held(ref)]
        return verify(self.index, self.store, assets, is_full=is_full, on_event=on_event, clock=self._clock)

    def repair(self, verdicts: "Iterable[Verdict]", *, on_event: OnEvent = ignore) -> "Iterator[Verdict]":
        """Fetch what is broken or gone again; a verdict for each. The broken file lies in the trash afterwards."""
        from civman.upkeep import refetch, repair

        return repair(
            verdicts,
            self.index,
            self.store,
            fetch=lambda asset: refetch(asset, self.plan_download, self.download, on_event),
            now=self._clock(),
            on_event=on_event,
        )

    def rebuild(self, *, on_event: OnEvent = ignore) -> "Rebuilt":
        """Fill the index again from the blobs and what is kept beside them, reading and proving every byte."""
        from civman.upkeep import rebuild

        rebuilt = rebuild(self.index, self.store, on_event=on_event, clock=self._clock)
        renders = self.root / "renders"
        if renders.is_dir():
            self.scan_pictures(renders)
        return rebuilt

    def plan_removal(self, refs: Sequence[str]) -> "RemovalPlan":
        """What removing `refs` would take away: assets, and the bytes that nothing else refers to."""
        from civman.removal import plan_removal

        return plan_removal(self.index, self.store, [asset for ref in refs for asset in self.held(ref)])

    def remove(self, plan: "RemovalPlan", *, force: bool = False) -> "Removal | None":
        """Carry out a plan: rows first, then bytes into the trash. Raises: Refused: `pinned`, without `force`."""
        from civman.removal import remove

        return remove(self.index, self.store, plan, force=force, now=self._clock())

    def trash(self) -> "Sequence[Removal]":
        """What was removed and can still come back, the last removal first."""
        from civman.store.trash import Trash

        return Trash(self.store).removals()

    def restore(self, name: str | None = None) -> "Restored":
        """Undo the last removal, or the one that `name` means: its id, or a name, ref or digest of what was in it."""
        from civman.removal import removal_named, undo

        removal = removal_named(self.store, name)
        return undo(self.index, self.store, removal, now=self._clock(), on_notice=self._on_notice)

    def plan_collection(self, *, partials_after: timedelta, trash_after: timedelta) -> "Collection":
        """What nobody needs: files unknown to the index, partial downloads and trash untouched for so long."""
        from civman.removal import plan_collection

        return plan_collection(
            self.index, self.store, now=self._clock(), partials_after=partials_after, trash_after=trash_after
        )

    def collect(self, plan: "Collection") -> int:
        """Carry out a plan; the bytes freed."""
        from civman.removal import collect

        return collect(self.index, self.store, plan, now=self._clock())

    def usage(self, group: str) -> "Usage":
        """What the library takes: by "type", "base_model", "architecture" or "used", and by kind of storage."""
        from civman.usage import usage

        return usage(self.index, self.store, group)

    # -- for other programs, people and machines -------------------------------------------------------------------

    def outdated(self, refs: Sequence[str] = (), *, any_base: bool = False) -> "Outlook":
        """What CivitAI has that is newer than what is held (or than `refs`), what it replaced, what it took away.

        `any_base`: versions for another base model count too. Raises: NotFound, AmbiguousRef, NetworkError.
        """
        from civman.updates import outlook  # 0.3 s, see `client`

        assets = [asset for ref in refs for asset in self.held(ref)] if refs else self.index.assets()
        return outlook(self.index, self.client, assets, any_base=any_base, clock=self._clock)

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
        from civman.view.asking import tidy
        from civman.view.linking import remove_view

        return remove_view(tidy(folder), self.store)

    def add(
        self,
        refs: Sequence[str],
        *,
        folder: Path,
        file: str | None = None,
        download: bool = True,
        permits: Permits | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Added]":
        """Write what `refs` mean into the project that `folder` is in, down to their bytes; an outcome for each.

        Raises: ConfigError: civman.toml or civman.lock cannot be read or written.
        """
        return self._syncing(folder, file, permits, on_event).add(refs, download=download)

    def sync(
        self,
        *,
        folder: Path,
        check: bool = False,
        relock: bool = False,
        permits: Permits | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Synced]":
        """Fetch exactly what the lock of the project names and is not here; an outcome for each of its entries.

        `check`: only tell. `relock`: bring the lock up to date first. Raises: ConfigError: `lock-missing`,
        `lock-stale`.
        """
        syncing = self._syncing(folder, None, permits, on_event)
        failed = [added for added in syncing.relock() if added.error is not None] if relock else []
        if failed and failed[0].error is not None:
            raise failed[0].error
        return syncing.check() if check else syncing.sync()

    def export(
        self,
        target: Path,
        refs: Sequence[str] = (),
        *,
        project: Path | None = None,
        with_notes: bool = False,
        replace: bool = False,
        on_event: OnEvent = ignore,
    ) -> "Exported":
        """Write a bundle of `refs`, or of what the lock of the project in `project` names, or of everything.

        Raises: NotFound, AmbiguousRef: a ref. UsageError: nothing to write, or `target` exists. HashMismatch.
        """
        from civman.bundle import export_bundle

        if project is not None:
            assets: Sequence[Asset] = self._locked_assets(project)
        else:
            assets = [asset for ref in refs for asset in self.held(ref)] if refs else self.index.assets()
        return export_bundle(
            target, assets, self.index, self.store, with_notes=with_notes, replace=replace, on_event=on_event
        )

    def _locked_assets(self, folder: Path) -> Sequence[Asset]:
        synced = self.sync(folder=folder, check=True)
        for each in synced:
            if each.error is not None:
                raise each.error
        return [each.asset for each in synced if each.asset is not None]

    def import_bundle(
        self, path: Path, *, permits: Permits | None = None, on_event: OnEvent = ignore
    ) -> "Sequence[Brought]":
        """Take in a bundle, every file proven. Asks nobody. Raises: IntegrityError: it is altered; Refused: pickles."""
        from civman.bundle import import_bundle

        return import_bundle(
            path, self.index, self.store, permits=permits or Permits(), clock=self._clock, on_event=on_event
        )

    def _syncing(self, folder: Path, file: str | None, permits: Permits | None, on_event: OnEvent) -> "Syncing":
        from civman.download.job import Wishes  # 0.3 s, see `client`
        from civman.project import Project
        from civman.syncing import Syncing

        return Syncing(
            Project.nearest(folder),
            self.index,
            fetch=lambda refs, examine: self.download_all(
                refs, file=file, permits=permits, wishes=Wishes(examine=examine), on_event=on_event
            ),
            plan=lambda ref: self.plan_download(ref, file=file, permits=permits),
        )

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
