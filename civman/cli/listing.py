"""`civman list`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import JsonOpt, LibraryOpt, QuietOpt, open_library
from civman.cli.output import Output, clean, size

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.catalog import Asset, ModelType


def list_assets(
    words: Annotated[list[str] | None, typer.Argument(help="Words that must all occur.", show_default=False)] = None,
    type_: Annotated[
        list[str] | None, typer.Option("--type", "-t", help="Checkpoint, LORA, TextualInversion, VAE … (repeatable)")
    ] = None,
    base_model: Annotated[
        list[str] | None, typer.Option("--base-model", "-b", help="CivitAI's label (repeatable)")
    ] = None,
    architecture: Annotated[
        list[str] | None, typer.Option("--architecture", "-a", help="What the tensors show (repeatable)")
    ] = None,
    creator: Annotated[str | None, typer.Option(help="A creator's user name.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="How many at most; 0 is all.")] = 50,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Leave out the first so many.")] = 0,
    library: LibraryOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """List what the library holds, newest first. Needs no network."""
    from civman.index import AssetFilter

    output = Output(as_json=as_json, quiet=quiet)
    with open_library(library, True, output) as opened:
        wanted = AssetFilter(
            types=tuple(_type(name) for name in type_ or []),
            base_models=tuple(base_model or ()),
            architectures=tuple(architecture or ()),
            creator=creator,
            words=tuple(word for text in words or [] for word in text.split()),
        )
        assets = opened.list(wanted, limit=limit or None, offset=skip)
        total = opened.count(wanted)
    output.result(
        "list",
        {"total": total, "skip": skip, "assets": assets},
        human=lambda console: _table(console, assets, total, skip),
        ids=(asset.blob.sha256 for asset in assets),
    )


def _type(name: str) -> "ModelType":
    from civman.domain.search import model_type_named

    return model_type_named(name)


def _table(console: "Console", assets: "Sequence[Asset]", total: int, skip: int) -> None:
    from rich.table import Table

    if not assets:
        console.print("nothing in the library matches" if total or skip else "the library holds nothing like that yet")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, style in (("ref", "cyan"), ("name", ""), ("type", ""), ("base model", ""), ("is", "dim")):
        table.add_column(name, style=style or None, overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("sha256", style="dim", overflow="fold")
    for asset in assets:
        ref = f"{asset.model_id}@{asset.version_id}" if asset.version_id else asset.alias or asset.blob.sha256[:10]
        title = f"{asset.model_name} {asset.version_name}".strip() or asset.name
        table.add_row(
            ref,
            clean(title),
            asset.type_raw or asset.type.value,
            asset.base_model or "",
            asset.facts.architecture,
            size(asset.blob.size_bytes),
            asset.blob.sha256[:10],
        )
    console.print(table)
    if skip + len(assets) < total:
        console.print(f"{len(assets)} of {total:,}; --limit 0 shows all, --skip {skip + len(assets)} the next")
