"""`civman export`, and what `civman import` does with a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import JsonOpt, LibraryOpt, QuietOpt, open_library
from civman.cli.output import Output, clean, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.exchange.bundle_import import Brought
    from civman.library import Library


def export(
    target: Annotated[
        Path, typer.Argument(metavar="FILE", help="The bundle, for example models.civman.", show_default=False)
    ],
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="What goes into it.", show_default=False)
    ] = None,
    lock: Annotated[bool, typer.Option("--lock", help="What the project's civman.lock names.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Everything the library holds.")] = False,
    with_notes: Annotated[
        bool, typer.Option("--with-notes", help="Your notes, tags, ratings and aliases go along.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    library: LibraryOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Write models with all that is known of them into one file, for a machine without a network.

    `civman import FILE` takes it in there and proves every byte.
    """
    from civman.cli import progress_bars
    from civman.errors import UsageError

    if [bool(refs), lock, everything].count(True) != 1:
        raise UsageError("what should go into the bundle?", hint="name REFs, or say --lock, or --all: one of the three")
    output = Output(as_json=as_json, quiet=quiet)
    with open_library(library, True, output) as opened, progress_bars.reading(output) as on_event:
        exported = opened.export(
            target,
            refs or (),
            project=Path.cwd() if lock else None,
            with_notes=with_notes,
            replace=force,
            on_event=on_event,
        )
    output.result(
        "export",
        {
            "path": exported.path,
            "size_bytes": exported.size_bytes,
            "sha256": exported.sha256,
            "files": len(exported.packed),
        },
        human=lambda console: console.print(
            f"{clean(str(target))}: {len(exported.packed)} files, {size(exported.size_bytes)},"
            f" sha256 {exported.sha256}",
            soft_wrap=True,
        ),
        ids=[exported.path],
    )


def take_bundle(output: Output, library: "Library", path: Path, *, allow_pickle: bool) -> None:
    """Import one bundle and tell of it."""
    from civman.cli import progress_bars
    from civman.domain.access import Permits

    with progress_bars.reading(output) as on_event:
        brought = library.import_bundle(path, permits=Permits(pickle=allow_pickle), on_event=on_event)
    output.result(
        "import-bundle",
        brought,
        human=lambda console: _print(console, path, brought),
        ids=(each.sha256 for each in brought),
    )


def _print(console: "Console", path: Path, brought: "Sequence[Brought]") -> None:
    for each in brought:
        asset = each.assets[0]
        title = clean(f"{asset.model_name} {asset.version_name}".strip() or asset.name)
        how = "was here already" if each.was_present else "taken in and verified"
        console.print(f"{title}: {how}, {size(each.size_bytes)}, sha256 {each.sha256[:12]}…", soft_wrap=True)
    console.print(f"{len(brought)} files from {clean(str(path))}", soft_wrap=True)
