"""The command `civman import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.output import Result, clean, counted, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.manage.import_files import ImportMode, ImportResult


@command(network="option")
def import_(
    session: Session,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Model files, folders, or a bundle.", show_default=False)
    ],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files into the library.")] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link the files into the library (which makes them read-only).")
    ] = False,
    move: Annotated[bool, typer.Option("--move", help="Move the files into the library.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Allow pickle files in a bundle, which could run code when loaded.")
    ] = False,
) -> Result:
    """Add existing model files to the library, or whole folders of other programs, without moving them.

    Files stay where they are unless you use --copy, --link or --move. Every file is hashed once, and CivitAI is asked
    about all of them in one request; files it does not know keep the metadata in their headers and sidecar files. You
    can interrupt the import and run it again. A bundle made by `civman export` is copied and verified.
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
            "--copy, --link and --move exclude each other",
            hint="choose one of them, or none to leave the files where they are",
        )
    return chosen[0] if chosen else ImportMode.IN_PLACE


def _print(console: "Console", imported: "ImportResult") -> None:
    console.print(
        f"{counted(imported.found, 'model file')}: {imported.taken} imported ({imported.on_civitai} known to CivitAI), "
        f"{imported.known_before} already in the library, {imported.duplicates} duplicates of others; "
        f"{size(imported.read_bytes)} read"
    )
    for problem in imported.broken[:20]:
        console.print(f"  skipped: {clean(problem.path)}: {clean(problem.message)}", style="yellow")
    if len(imported.broken) > 20:
        console.print(f"  … and {len(imported.broken) - 20} more; --json lists them all")
