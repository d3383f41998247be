"""The command `civman search`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.session import Session, command
from civman.cli.streamed_rows import StreamedRows
from civman.cli.table_layout import Column

if TYPE_CHECKING:
    from civman.domain.catalog import Model, ModelId, ModelVersion


_COLUMNS = (
    Column("ref", "cyan", is_whole=True), Column("name"), Column("type", is_whole=True), Column("base model", drop=1),
    Column("by", "dim", drop=3), Column("downloads", is_whole=True, drop=2, is_right=True),
    Column("here", is_whole=True, drop=4),
)  # fmt: skip


@command(network="option")
def search(
    session: Session,
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Words to search for in names, tags and descriptions.", show_default=False),
    ] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            "-t",
            autocompletion=completion.model_types,
            help="Model type: Checkpoint, LORA, TextualInversion, VAE … (repeatable)",
        ),
    ] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            "--base-model",
            "-b",
            autocompletion=completion.base_models,
            help='Base model: "SD 1.5", "SDXL 1.0", "Pony" … (repeatable)',
        ),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only models with this tag.")] = None,
    creator: Annotated[str | None, typer.Option(help="Only models by this creator (CivitAI user name).")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.sort_orders, help="Sort order: Most Downloaded, Newest, Highest Rated …"
        ),
    ] = None,
    period: Annotated[
        str, typer.Option(help="Only models updated in this period: Day, Week, Month, Year or AllTime.")
    ] = "AllTime",
    nsfw: Annotated[bool, typer.Option("--nsfw", help="Include models rated above PG.")] = False,
    early_access: Annotated[bool, typer.Option("--early-access", help="Only models that are in early access.")] = False,
    archived: Annotated[bool, typer.Option("--archived", help="Include archived models.")] = False,
    fits: Annotated[
        str | None,
        typer.Option(
            "--fits",
            metavar="CHECKPOINT",
            autocompletion=completion.refs,
            help="Only models that fit this checkpoint, by CivitAI's base-model labels.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of models.")] = 20,
) -> None:
    """Find models on CivitAI."""
    from civman.domain.file_choice import version_ref
    from civman.domain.refs import ModelRef
    from civman.domain.search_query import SearchQuery, base_model_named, model_type_named, period_named, sort_named

    query = SearchQuery(
        text=" ".join(words or []),
        types=tuple(model_type_named(name) for name in type_ or []),
        base_models=tuple(base_model_named(name) for name in base_model or []),
        tag=tag,
        username=creator,
        sort=sort_named(sort) if sort else None,
        period=period_named(period),
        nsfw=nsfw,
        limit=limit,
        early_access=early_access,
        include_archived=archived,
    )
    held, now = session.library.files.model_ids(), session.library.context.clock()
    empty = "no models match; try fewer words or filters, or --nsfw for models rated above PG"
    with StreamedRows(session.output, "search", _COLUMNS, empty=empty) as rows:
        # show the results so far before the next page is requested, so that they stay visible if that request fails
        for page in session.library.search(query, fits=fits, before_page=rows.flush):
            version = page.default_version(now)
            ref = version_ref(version) if version is not None else str(ModelRef(page.model.id))
            value = {"ref": ref, "model": page.model, "versions": page.versions, "is_held": page.model.id in held}
            rows.add(value, _cells(ref, page.model, version, held), ref)


def _cells(ref: str, model: "Model", version: "ModelVersion | None", held: "set[ModelId]") -> list[str]:
    count = "" if model.download_count is None else f"{model.download_count:,}"
    base_model = version.base_model or "" if version else ""
    return [ref, model.name, model.type_raw, base_model, model.creator or "", count, "yes" if model.id in held else ""]
