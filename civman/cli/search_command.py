"""The command `civman search`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.output import Result
from civman.cli.session import Session, command
from civman.cli.table_layout import Column, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.catalog import ModelId
    from civman.domain.search_query import ModelPage


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
    early_access: Annotated[bool, typer.Option("--early-access", help="Only models in early access.")] = False,
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
) -> Result:
    """Find models on CivitAI."""
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
    pages = list(session.library.search(query, fits=fits))
    held = session.library.files.model_ids()
    return Result(
        "search",
        [
            {"ref": _ref(page), "model": page.model, "versions": page.versions, "is_held": page.model.id in held}
            for page in pages
        ],
        human=lambda console: _table(console, pages, held),
        ids=(_ref(page) for page in pages),
    )


def _ref(page: "ModelPage") -> str:
    """The ref of the version that is downloaded by default; that of the model itself if it lists no version."""
    from civman.domain.file_choice import version_ref

    return version_ref(page.versions[0]) if page.versions else f"civitai:{page.model.id}"


def _table(console: "Console", pages: "list[ModelPage]", held: "set[ModelId]") -> None:
    if not pages:
        console.print("no models match; try fewer words or filters, or --nsfw for models rated above PG")
        return
    rows = []
    for page in pages:
        model, version = page.model, page.versions[0] if page.versions else None
        count = "" if model.download_count is None else f"{model.download_count:,}"
        base_model = version.base_model or "" if version else ""
        stored = "yes" if model.id in held else ""
        rows.append([_ref(page), model.name, model.type_raw, base_model, model.creator or "", count, stored])
    print_table(console, _COLUMNS, rows)
