"""The command `civman list`."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.output import Result, clean, size
from civman.cli.session import Session, command
from civman.cli.table_layout import Column, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.catalog import Asset, ModelType
    from civman.domain.digests import Sha256
    from civman.index import Fits, Sort
    from civman.manage.places import Presence

_COLUMNS = (
    Column("ref", "cyan", is_whole=True), Column("name"), Column("file", "red", is_whole=True),
    Column("type", is_whole=True), Column("base model", drop=2),
    Column("is", "dim", is_whole=True, drop=3), Column("size", is_whole=True, drop=1, is_right=True),
    Column("sha256", "dim", is_whole=True, drop=5), Column("yours", drop=4),
)  # fmt: skip
_FILTERS = "Type and contents"
_YOURS = "Your annotations"


@command(needs_library=True)
def list_assets(
    session: Session,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Words in names, tags, trigger words, notes or descriptions; prefixes match too.", show_default=False
        ),
    ] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            "-t",
            autocompletion=completion.model_types,
            help="Model type: Checkpoint, LORA, TextualInversion, VAE … (repeatable)",
            rich_help_panel=_FILTERS,
        ),
    ] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            "--base-model",
            "-b",
            autocompletion=completion.base_models,
            help='CivitAI base model, such as "SDXL 1.0" (repeatable)',
            rich_help_panel=_FILTERS,
        ),
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            "--architecture",
            "-a",
            help="Architecture of the tensors: sd1, sdxl, flux … (repeatable)",
            rich_help_panel=_FILTERS,
        ),
    ] = None,
    fits: Annotated[
        str | None,
        typer.Option(
            "--fits",
            metavar="CHECKPOINT",
            autocompletion=completion.refs,
            help="Only files that fit this checkpoint.",
            rich_help_panel=_FILTERS,
        ),
    ] = None,
    creator: Annotated[
        str | None, typer.Option(help="Only models by this creator (CivitAI user name).", rich_help_panel=_FILTERS)
    ] = None,
    commercial: Annotated[
        bool,
        typer.Option("--commercial", help="Only files whose licence allows selling images.", rich_help_panel=_FILTERS),
    ] = False,
    safe: Annotated[
        bool, typer.Option("--safe", help="Only models that CivitAI rates PG or PG-13.", rich_help_panel=_FILTERS)
    ] = False,
    larger: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Minimum file size, such as 500MB or 2GB.", rich_help_panel=_FILTERS),
    ] = None,
    smaller: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Maximum file size.", rich_help_panel=_FILTERS)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Only files added since this date (2026-03-01) or at most this long ago (30d).",
            rich_help_panel=_FILTERS,
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag", help="Only files with this tag, yours or CivitAI's (repeatable).", rich_help_panel=_YOURS
        ),
    ] = None,
    favourite: Annotated[
        bool | None,
        typer.Option(
            "--favourite/--no-favourite",
            help="Only favourites, or only files that are not favourites.",
            rich_help_panel=_YOURS,
        ),
    ] = None,
    rating: Annotated[
        int | None, typer.Option(min=1, max=5, help="Minimum rating in stars.", rich_help_panel=_YOURS)
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="Sort order: relevance, added, name, size, rating or used (time of last use).",
            show_default="relevance, added",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Maximum number of results; 0 for all.")] = 50,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Number of results to skip.")] = 0,
) -> Result:
    """List or search the files in the library: best matches first, or newest first without search words."""
    from civman.index import AssetFilter
    from civman.manage.listed_values import asset_values

    wanted = AssetFilter(
        types=tuple(_type(name) for name in type_ or []),
        base_models=tuple(base_model or ()),
        architectures=tuple(architecture or ()),
        fits=_fitting(session, fits) if fits else None,
        creator=creator,
        is_commercial=commercial,
        is_safe=safe,
        larger_bytes=_size(larger, "--larger"),
        smaller_bytes=_size(smaller, "--smaller"),
        since=since_of(since),
        tags=tuple(tag or ()),
        is_favourite=favourite,
        min_rating=rating,
        words=tuple(words or ()),
    )
    assets = session.library.list(wanted, sort=_sort(sort), limit=limit or None, offset=skip)
    total = len(assets) if not skip and (not limit or len(assets) < limit) else session.library.files.count(wanted)
    absent = session.library.files.absences(assets)
    corrections = session.library.files.corrections(wanted.words)
    if not session.output.as_json:
        for typed, read in corrections.items():
            session.output.notice(f"no results for `{typed}`; showing results for {read}")
    return Result(
        "list",
        {"total": total, "skip": skip, "corrections": corrections, "assets": asset_values(assets, absent)},
        human=lambda console: _table(console, assets, absent, total, skip),
        ids=(asset.blob.sha256 for asset in assets),
    )


def _fitting(session: Session, checkpoint: str) -> "Fits":
    with session.reading() as on_event:
        return session.library.files.fits(checkpoint, on_event=on_event)


def _type(name: str) -> "ModelType":
    from civman.domain.search_query import model_type_named

    return model_type_named(name)


def _sort(name: str | None) -> "Sort | None":
    from civman.errors import UsageError
    from civman.index import Sort

    if name is None or name == Sort.RELEVANCE:
        return None
    try:
        return Sort(name.lower())
    except ValueError:
        raise UsageError(f"unknown sort order: `{name}`", hint=f"choose one of: {', '.join(Sort)}") from None


def _size(text: str | None, option: str) -> int | None:
    from civman.errors import UsageError

    if text is None:
        return None
    number = text.strip().lower().removesuffix("b").rstrip()
    factor = {"k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}.get(number[-1:], 1)
    try:
        return round(float(number.rstrip("kmgt")) * factor)
    except (ValueError, OverflowError):
        raise UsageError(f"{option}: `{text}` is not a file size", hint="write a size such as 500MB or 2GB") from None


def since_of(text: str | None) -> datetime | None:
    """Parse the value of `--since`, a date or an age such as "30d"; None if the option is not given.

    Raises: UsageError.
    """
    from civman.errors import UsageError

    if text is None:
        return None
    units = {"d": 1, "w": 7, "m": 30, "y": 365}
    try:
        if text[-1:].lower() in units and text[:-1].isdecimal():
            return datetime.now(UTC) - timedelta(days=int(text[:-1]) * units[text[-1].lower()])
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since: `{text}` is not a date", hint="write a date such as 2026-03-01, or an age such as 30d"
        ) from None


def _table(
    console: "Console", assets: "Sequence[Asset]", absent: "Mapping[Sha256, Presence]", total: int, skip: int
) -> None:
    if not assets:
        console.print(
            "no further files match" if total or skip else
            "no files in the library match; `civman download REF` and `civman import FOLDER` add models"
        )  # fmt: skip
        return
    names = Counter(asset.name for asset in assets if asset.version_id is None)
    same_names = {name for name, count in names.items() if count > 1}
    rows = [
        [
            asset.ref,
            f"{asset.model_name} {asset.version_name}".strip() or _place(asset, same_names),
            absent.get(asset.blob.sha256, ""),
            asset.type_raw or asset.type.value,
            asset.base_model or "",
            asset.facts.architecture,
            size(asset.blob.size_bytes),
            asset.blob.sha256[:10],
            _marks(asset),
        ]
        for asset in assets
    ]
    print_table(console, _COLUMNS, rows)
    if absent:
        console.print(
            "missing: the file is no longer at its path; away: its drive is not connected. `civman "
            "verify` shows details",
            style="dim",
        )
    if skip + len(assets) < total:
        console.print(
            f"{len(assets)} of {total:,} files; --limit 0 shows all, --skip {skip + len(assets)} shows the next ones"
        )


def _place(asset: "Asset", same_names: "Collection[str]") -> str:
    """Return the name to show for a file that is not on CivitAI.

    If another listed file has the same name, the name of the file's folder precedes it.
    """
    return str(Path(Path(asset.path).parent.name, asset.name)) if asset.name in same_names else asset.name


def _marks(asset: "Asset") -> str:
    """Abbreviate the user's annotations of an asset to a few characters, such as "=alias ♥"."""
    own = asset.own
    words = [f"={asset.alias}"] if asset.alias else []
    words += ["♥"] if own.is_favourite else []
    words += ["★" * own.rating] if own.rating else []
    words += ["pinned"] if asset.pins else []
    words += [f"#{tag}" for tag in own.tags]
    words += [own.note] if own.note else []
    return clean(" ".join(words))
