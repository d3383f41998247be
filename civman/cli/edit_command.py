"""The command `civman edit`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import FileOpt, RefArg
from civman.cli.output import Result, clean
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.domain.catalog import Asset

_Words = list[str] | None


@command(needs_library=True)
def edit(
    session: Session,
    ref: RefArg,
    file: FileOpt = None,
    note: Annotated[str | None, typer.Option(help="Set a note; an empty string removes it.")] = None,
    tag: Annotated[_Words, typer.Option("--tag", help="Add a tag (repeatable).")] = None,
    no_tag: Annotated[_Words, typer.Option("--no-tag", help="Remove a tag (repeatable).")] = None,
    trigger: Annotated[_Words, typer.Option("--trigger", help="Add a trigger word (repeatable).")] = None,
    no_trigger: Annotated[_Words, typer.Option("--no-trigger", help="Remove a trigger word (repeatable).")] = None,
    rating: Annotated[int | None, typer.Option(min=0, max=5, help="Set 1 to 5 stars; 0 removes the rating.")] = None,
    favourite: Annotated[
        bool | None, typer.Option("--favourite/--no-favourite", help="Mark or unmark the file as a favourite.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Set an alias: a name of your choice that works as a ref.")] = None,
    no_alias: Annotated[bool, typer.Option("--no-alias", help="Remove the alias.")] = False,
    pin: Annotated[
        bool | None, typer.Option("--pin/--unpin", help="Protect the file from removal (or stop protecting it).")
    ] = None,
) -> Result:
    """Set your own notes, tags, rating, alias and pin for a file. Updates from CivitAI never change them."""
    from civman.manage.annotate import Edit
    from civman.manage.listed_values import asset_value

    wanted = Edit(
        note=note,
        tags=tuple(tag or ()),
        no_tags=tuple(no_tag or ()),
        trigger_words=tuple(trigger or ()),
        no_trigger_words=tuple(no_trigger or ()),
        rating=rating,
        is_favourite=favourite,
        alias="" if no_alias else alias,
        is_pinned=pin,
    )
    assets = session.library.files.edit(ref, wanted, file=file)
    return Result(
        "edit",
        [asset_value(asset) for asset in assets],
        human=lambda console: _print(console, assets),
        ids=(asset.blob.sha256 for asset in assets),
    )


def _print(console: "Console", assets: "Sequence[Asset]") -> None:
    for asset in assets:
        console.print(clean(f"{asset.model_name} {asset.version_name}".strip() or asset.name), style="bold")
        for line in own_lines(asset):
            console.print(f"  {line}")


def own_lines(asset: "Asset") -> list[str]:
    """Format the user's annotations of an asset, one line for each kind of annotation."""
    own = asset.own
    lines = {
        "alias": asset.alias or "",
        "note": own.note,
        "tags": ", ".join(own.tags),
        "trigger words": ", ".join(own.trigger_words),
        "rating": "★" * (own.rating or 0),
        "favourite": "yes" if own.is_favourite else "",
    }
    pinned = ["by you" if reason == "user" else f"for {reason}" for reason in asset.pins]
    said = [f"your {name}: {clean(text)}" for name, text in lines.items() if text]
    return said + ([f"pinned {clean(', '.join(pinned))}"] if pinned else [])
