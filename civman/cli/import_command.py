"""`civman import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.output import Result, clean, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.manage.import_files import ImportMode, ImportResult


@command(network="option")
def import_(
    session: Session,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Model files or folders.", show_default=False)],
    copy: Annotated[bool, typer.Option("--copy", help="Copy into the store instead of leaving them in place.")] = False,
    link: Annotated[bool, typer.Option("--link", help="Hard-link into the store (makes the files read-only).")] = False,
    move: Annotated[bool, typer.Option("--move", help="Move into the store.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also files of a bundle that could run code.")
    ] = False,
) -> Result:
    """Take in models that are here already, whole folders of other programs too, where they lie.

    No byte is moved or copied unless asked. Each file is hashed once and CivitAI is asked once about all of them;
    what it does not know is kept with what the files and their sidecars say. Interrupt it and run it again as you
    like. A bundle (`civman export`) is copied into the store, every byte proven.
    """
    from civman.cli.export_command import import_bundle
    from civman.exchange.bundle_archive import is_bundle

    if len(paths) == 1 and is_bundle(paths[0]):
        return import_bundle(session, paths[0], allow_pickle=allow_pickle)
    with session.reading() as on_event:
        imported = session.library.files.import_files(paths, mode=_mode(copy, link, move), on_event=on_event)
    return Result("import", imported, human=lambda console: _print(console, imported), ids=[imported.taken])


def _mode(copy: bool, link: bool, move: bool) -> "ImportMode":
    from civman.errors import UsageError
    from civman.manage.import_files import ImportMode

    chosen = [
        mode for mode, wanted in ((ImportMode.COPY, copy), (ImportMode.LINK, link), (ImportMode.MOVE, move)) if wanted
    ]
    if len(chosen) > 1:
        raise UsageError(
            "--copy, --link and --move exclude each other", hint="choose one, or none to leave files in place"
        )
    return chosen[0] if chosen else ImportMode.IN_PLACE


def _print(console: "Console", imported: "ImportResult") -> None:
    console.print(
        f"{imported.found} model files: {imported.taken} taken in ({imported.on_civitai} known to CivitAI), "
        f"{imported.known_before} were known, {imported.duplicates} have the same bytes as another; "
        f"{size(imported.read_bytes)} read"
    )
    for problem in imported.broken[:20]:
        console.print(f"  left out: {clean(problem.path)}: {clean(problem.message)}", style="yellow")
    if len(imported.broken) > 20:
        console.print(f"  … and {len(imported.broken) - 20} more; --json lists them all")
