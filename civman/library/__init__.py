"""The Python API: `Library` has the everyday methods, and attributes such as `files` group the other methods.

`Library` contains no logic of its own; its methods call the modules that do the work, in the right order. Everything
that needs the network, write access to the database or torch is imported on first use, so that listing files only opens
an SQLite file.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from civman.domain.access import Permits
from civman.domain.catalog import Asset, ModelId
from civman.domain.events import OnEvent, ignore
from civman.domain.refs import parse_ref
from civman.domain.timeouts import PATIENT, Patience
from civman.errors import Cause, LibraryError, NotFound
from civman.index import EVERYTHING, AssetFilter, Sort
from civman.library.account_part import AccountPart
from civman.library.bundles_part import BundlesPart
from civman.library.context import LibraryContext, ignore_notice, utc_now
from civman.library.downloads_part import DownloadsPart
from civman.library.files_part import FilesPart
from civman.library.grids_part import GridsPart
from civman.library.maintenance_part import MaintenancePart
from civman.library.named_files_part import NamedFilesPart
from civman.library.object_store_part import ObjectStorePart
from civman.library.pictures_part import PicturesPart
from civman.library.project_part import ProjectPart
from civman.library.trash_part import TrashPart
from civman.library.updates_part import UpdatesPart
from civman.library.upscaling_part import UpscalingPart
from civman.library.views_part import ViewsPart
from civman.settings import Settings, load_settings

if TYPE_CHECKING:
    from civman.domain.catalog import Model
    from civman.domain.compatibility import Compatibility
    from civman.domain.recipes.machine import Machine
    from civman.domain.recipes.recipe import Recipe, RenderRequest
    from civman.domain.search_query import ModelPage, SearchQuery
    from civman.download.job import DownloadOptions
    from civman.errors import CivmanError
    from civman.manage.inspection import Inspected
    from civman.manage.remove import RemovalPlan
    from civman.manage.resolve import ResolvedVersion
    from civman.manage.verify import Verdict
    from civman.planning.plan import Conditions
    from civman.planning.plan_types import Planned, Rendering
    from civman.planning.recipe_sources import RecipeSource
    from civman.rendering.replay import ReplayResult
    from civman.rendering.save_pictures import OutputOptions
    from civman.store.trash import Removal

__all__ = ["Library", "Shown"]


@dataclass(frozen=True, slots=True)
class Shown:
    """What is known about a ref.

    `resolved`: its model and version; None if CivitAI does not know the file, or lists no version of the model.
    `assets`: the stored files of the model, or the one stored file that CivitAI does not know. `model`: the model, if
    CivitAI lists no version of it.
    """

    resolved: "ResolvedVersion | None"
    assets: tuple[Asset, ...]
    model: "Model | None" = None


class Library:
    """A library: a folder of verified model files, their index, and access to CivitAI. Usable as a context manager.

    Use a `Library` from one thread only; downloads start their own threads. Every method may raise a CivmanError.
    `context` contains what all parts share: settings, store, index and client.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_notice: Callable[[str], None] = ignore_notice,
        clock: Callable[[], datetime] = utc_now,
        patience: Patience = PATIENT,
    ) -> None:
        """Open nothing yet; methods open what they need. `on_notice` receives messages that are not errors."""
        self.context = LibraryContext(settings, on_notice=on_notice, clock=clock, patience=patience)
        self.files = FilesPart(self.context)
        self.downloads = DownloadsPart(self.context)
        self.pictures = PicturesPart(self.context)
        self.upscaling = UpscalingPart(self.context)
        self.named_files = NamedFilesPart(self.context)
        self.grids = GridsPart(self.context)
        self.trash = TrashPart(self.context)
        self.maintenance = MaintenancePart(self.context)
        self.updates = UpdatesPart(self.context)
        self.project = ProjectPart(self.context)
        self.bundles = BundlesPart(self.context)
        self.views = ViewsPart(self.context)
        self.object_store = ObjectStorePart(self.context)
        self.account = AccountPart(self.context)

    @classmethod
    def open(
        cls,
        root: str | Path | None = None,
        *,
        offline: bool | None = None,
        on_notice: Callable[[str], None] = ignore_notice,
    ) -> Self:
        """Open the library in the folder `root` (default: from the settings). Raises: ConfigError."""
        return cls(load_settings(library=root, offline=offline), on_notice=on_notice)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write pending sidecar files, then close the database and the connections."""
        self.context.close()

    def search(
        self, query: "SearchQuery", *, fits: str | None = None, before_page: "Callable[[], None]" = lambda: None
    ) -> "Iterator[ModelPage]":
        """Search CivitAI for models, page by page. Each page is requested only when it is needed.

        `fits`: return only models with a version that works, at least in part, with this checkpoint (a ref as for
        `inspect`). This is judged by CivitAI's base model labels, whereas `civman download --for` compares the tensors.
        `before_page` is called before each page after the first is requested.
        """
        if fits is None:
            return self.context.client.search(query, before_page=before_page)
        from civman.manage.search_fits import label_of, search_fitting

        return search_fitting(self.context.client, query, label_of(self.inspect(fits)), before_page)

    def show(self, ref: str) -> Shown:
        """Return CivitAI's information about `ref` (offline: as last saved), and the stored files of the model.

        For a stored file that CivitAI does not know, return what the library knows about it.
        """
        from civman.manage.find_assets import find_unlisted
        from civman.manage.resolve import remember

        context = self.context
        try:
            resolved = context.resolve(ref)
        except NotFound as error:
            number = error.facts.get("model_id")
            if error.code == Cause.NO_VERSIONS and isinstance(number, int):
                return self._without_versions(ModelId(number))
            asset = find_unlisted(context.index, parse_ref(ref))
            if asset is None:
                raise
            return Shown(None, (asset,))
        try:
            remember(context.index, resolved, context.clock())
        except LibraryError as error:  # continue without saving: a read-only library can still be listed and searched
            context.on_notice(f"CivitAI's information could not be saved: {error.message}")
        return Shown(resolved, tuple(context.index.find_by_model(resolved.page.model.id)))

    def _without_versions(self, model_id: ModelId) -> Shown:
        """Return CivitAI's information (offline: as last saved) about a model without any listed version."""
        context = self.context
        saved = context.index.model(model_id)
        model = saved[0] if context.settings.offline and saved is not None else context.client.model(model_id).model
        return Shown(None, tuple(context.index.find_by_model(model_id)), model)

    def download(
        self,
        ref: str,
        *,
        file: str | None = None,
        permits: Permits | None = None,
        options: "DownloadOptions | None" = None,
        on_event: OnEvent = ignore,
    ) -> Asset:
        """Download the file that `ref` refers to, verify it, store it and index it.

        A file that is already in the library is returned without downloading. Raises: NotFound, NotAllowed, Refused:
        the file cannot be downloaded. IntegrityError: the bytes do not match CivitAI's digests. NetworkError,
        StoreError: the bytes received so far are kept for the next attempt.
        """
        return self.downloads.fetch(ref, file=file, permits=permits, options=options, on_event=on_event)

    def list(
        self,
        wanted: AssetFilter = EVERYTHING,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> Sequence[Asset]:
        """List the stored files that match the filter. Needs no network.

        If `sort` is None: best match first if the filter has search words, else newest first.
        """
        return self.context.index.assets(wanted, sort=sort, limit=limit, offset=offset)

    def inspect(self, ref: str, *, file: str | None = None) -> "Inspected":
        """Identify a model file on this computer, in the library or on CivitAI (only its header is downloaded).

        Raises: NotFound, AmbiguousRef. InvalidModelFile: it is not a valid model file.
        """
        return self.files.inspect(ref, file=file)

    def check(self, checkpoint: str, parts: Sequence[str], *, file: str | None = None) -> "Compatibility":
        """Check how adapters, embeddings and VAEs fit a checkpoint, module by module. Refs are as for `inspect`.

        `file` selects one of the checkpoint's files.
        """
        from civman.planning.check_files import check_files

        return check_files(self.inspect(checkpoint, file=file), [(None, self.inspect(part)) for part in parts])

    def verify(
        self,
        refs: Iterable[str] = (),
        *,
        file: str | None = None,
        is_full: bool = False,
        on_event: OnEvent = ignore,
    ) -> "Iterator[Verdict]":
        """Verify stored files (default: all) by reading those that changed since they were last verified.

        Yields a verdict for each file. With `is_full`, every byte of every file is read. `on_event` is called from
        several threads.
        """
        from civman.manage.verify import verify

        context, assets = self.context, self.context.find(list(refs), file=file)
        return verify(context.index, context.store, assets, is_full=is_full, on_event=on_event, clock=context.clock)

    def remove(self, what: "Sequence[str] | RemovalPlan", *, force: bool = False) -> "Removal | None":
        """Move files to the trash: those that the refs refer to, or those of a plan (`trash.plan_removal`).

        Raises: Refused (`pinned`): a file is pinned, and `force` is not set. NotFound, AmbiguousRef: a ref cannot be
        resolved.
        """
        from civman.manage.remove import RemovalPlan, remove

        context = self.context
        plan = what if isinstance(what, RemovalPlan) else self.trash.plan_removal(what)
        return remove(context.index, context.store, plan, force=force, now=context.clock())

    def plan(
        self,
        what: "RenderRequest | Recipe",
        conditions: "Conditions | None" = None,
        *,
        pictures: Sequence[Path] = (),
        on_event: OnEvent = ignore,
    ) -> "Planned":
        """Resolve everything that determines the images, before any weights are loaded. Needs no network.

        A recipe is planned unchanged, with its files found by SHA-256; `pictures` are the files of its input image and
        mask. Raises: NotFound, AmbiguousRef, Incompatible, IntegrityError: a file is not available or cannot be used.
        UsageError: a value is invalid. CannotRender: civman cannot render this combination.
        """
        from civman.domain.recipes.recipe import Recipe
        from civman.planning.plan import Conditions, plan, plan_recipe

        if isinstance(what, Recipe):
            return plan_recipe(self.context.index, what, pictures, on_event=on_event)
        return plan(self.context.index, what, conditions or Conditions(), on_event=on_event)

    def render(
        self,
        what: "Planned | Recipe | Sequence[Planned]",
        *,
        output: Path | None = None,
        options: "OutputOptions | None" = None,
        machine: "Machine | None" = None,
        on: str | None = None,
        resume: bool = False,
        on_event: OnEvent = ignore,
        on_failure: "Callable[[Planned, CivmanError], None] | None" = None,
    ) -> "Sequence[Rendering]":
        """Render one plan, a recipe or several plans and save the images in `output` (default: the library's renders/).

        `on`: the workers to render on: "auto", a number of processes, "ray" or "ray://HOST:PORT"; None: this process.
        `resume`: skip images that were already rendered with the same recipe to the same folder. `on_failure` (only
        with `on` or `resume`) is called with each plan that fails and its error; the other plans are still rendered.

        Uses the network only for Ray. Raises: CannotRender, Incompatible, StoreError. Interrupted: images that were
        finished before are kept.
        """
        from civman.domain.recipes.machine import Machine
        from civman.domain.recipes.recipe import Recipe
        from civman.planning.compiling import require_compilable
        from civman.planning.plan_types import Planned, Rendering
        from civman.rendering.save_pictures import OutputOptions, Place

        if isinstance(what, Recipe):
            what = self.plan(what, on_event=on_event)
        plans, context = [what] if isinstance(what, Planned) else list(what), self.context
        place = Place(output or context.renders, options or OutputOptions())
        require_compilable([plan.recipe for plan in plans], machine or Machine())
        if on is not None or resume:
            from civman.workers.choose_pool import choose_pool
            from civman.workers.render_on import render_on

            made = render_on(
                context.index, context.root, plans, place, resumes=resume, clock=context.clock, on_event=on_event,
                start=choose_pool(on, machine or Machine()),
                on_failure=None if on_failure is None else lambda task, error: on_failure(plans[task.plan], error),
            )  # fmt: skip
            return [each for each in made if isinstance(each, Rendering)]
        from civman.rendering.render_and_save import render  # imports torch, which takes 2 s or more

        return render(
            context.index, context.root, plans, place, machine=machine or Machine(), clock=context.clock,
            on_event=on_event,
        )  # fmt: skip

    def pipeline(
        self,
        planned: "Planned",
        kind: str | None = None,
        *,
        machine: "Machine | None" = None,
        on_event: OnEvent = ignore,
    ) -> Any:
        """Create a diffusers pipeline for a plan's model, with its adapters merged and its sampler as the scheduler.

        `pipe(**library.pipeline_call(planned, pipe))` renders the plan's images; their pixel values (0 to 255) differ
        by at most 2 from those of `render`. `kind`: "txt2img", "img2img" or "inpaint"; None: whichever the plan needs.
        Nothing is saved. Raises: CannotRender (`no-pipeline`, `no-pipeline-sampler`): the plan needs something that
        diffusers' pipelines cannot do. Incompatible. UsageError: `kind` is unknown.
        """
        from civman.domain.recipes.machine import Machine

        # imported on first use, because importing torch takes 2 s or more
        from civman.rendering.plan_pipeline import pipeline

        return pipeline(planned, kind, machine=machine or Machine(), on_event=on_event)

    def pipeline_call(self, planned: "Planned", pipe: Any) -> dict[str, Any]:
        """Return the arguments with which a pipeline from `library.pipeline` renders a plan's images, in seed order.

        The arguments are the embeddings, steps, guidance scale, number of images and a generator for each image, and
        either size and initial latents or, if there is an input image, its latents and the strength. The plan may
        differ from the pipeline's plan in prompts, embeddings, clip skip, seed, size, steps and guidance. A call
        advances the generators, so create new arguments for each call.

        Raises: CannotRender: the pipeline has another model or other LoRAs, or cannot render the plan.
        """
        # imported on first use, because importing torch takes 2 s or more
        from civman.rendering.plan_pipeline import call

        return call(planned, pipe)

    def embeddings(
        self,
        planned: "Planned",
        pipe: Any | None = None,
        *,
        machine: "Machine | None" = None,
        on_event: OnEvent = ignore,
    ) -> dict[str, Any]:
        """Encode a plan's prompts as civman does. Returns keyword arguments for the call of any diffusers pipeline.

        Clip skip, emphasis, textual inversions and prompts of any length are taken into account. `prompt_embeds` and
        `negative_prompt_embeds` have the shape (1, 77·n, width), where the width is 768 for SD 1, 1024 for SD 2 and
        2048 for SDXL; the shorter of the two is repeated to the same length, which does not change the image. For SDXL,
        there are also `pooled_prompt_embeds` and `negative_pooled_prompt_embeds`, (1, 1280). At a guidance scale of 1
        there are no negative embeddings. Dtype and device are those of the text encoders of `pipe` (made by
        `pipeline`); without `pipe`, the plan's own text encoders are loaded. Raises: CannotRender: `pipe` has another
        model or other LoRAs. Incompatible: an embedding does not fit.
        """
        from civman.domain.recipes.machine import Machine

        # imported on first use, because importing torch takes 2 s or more
        from civman.rendering.plan_pipeline import embeddings

        return embeddings(planned, pipe, machine=machine or Machine(), on_event=on_event)

    def replay(
        self,
        source: "RecipeSource",
        *,
        pictures: Sequence[Path] = (),
        machine: "Machine | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[ReplayResult]":
        """Render a recipe again and compare the images with the originals. Saves nothing; `pictures.save` does.

        `source` comes from `pictures.find_recipe`. Raises: NotFound (`missing-files`): `pictures.fetch_missing` can
        download the files. CannotRender, Incompatible, IntegrityError.
        """
        from civman.domain.recipes.machine import Machine
        from civman.planning.input_pictures import kept_inputs
        from civman.planning.plan import plan_replay
        from civman.planning.recipe_sources import recipe_of, require_all

        require_all(self.pictures.missing_files(source))
        inputs = kept_inputs(self.context.root, recipe_of(source), pictures)
        planned = plan_replay(self.context.index, source, tuple(inputs.values()), on_event=on_event)
        from civman.rendering.replay import replay  # imports torch, which takes 2 s or more

        return replay(source, planned, machine=machine or Machine(), on_event=on_event)
