"""`civman import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import JsonOpt, LibraryOpt, OfflineOpt, QuietOpt, open_library
from civman.cli.output import Output, clean, size

if TYPE_CHECKING:
    from rich.console import Console

    from civman.manage.import_files import Adopted, How


def import_(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Model files or folders.", show_default=False)],
    copy: Annotated[bool, typer.Option("--copy", help="Copy into the store instead of leaving them in place.")] = False,
    link: Annotated[bool, typer.Option("--link", help="Hard-link into the store (makes the files read-only).")] = False,
    move: Annotated[bool, typer.Option("--move", help="Move into the store.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also files of a bundle that could run code.")
    ] = False,
    library: LibraryOpt = None,
    offline: OfflineOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Take in models that are here already, whole folders of other programs too, where they lie.

    No byte is moved or copied unless asked. Each file is hashed once and CivitAI is asked once about all of them;
    what it does not know is kept with what the files and their sidecars say. Interrupt it and run it again as you
    like. A bundle (`civman export`) is copied into the store, every byte proven.
    """
    from civman.cli import export_command, progress_bars
    from civman.exchange.bundle_archive import is_bundle

    output = Output(as_json=as_json, quiet=quiet)
    if len(paths) == 1 and is_bundle(paths[0]):
        with open_library(library, offline, output) as opened:
            export_command.take_bundle(output, opened, paths[0], allow_pickle=allow_pickle)
        return
    with open_library(library, offline, output) as opened, progress_bars.reading(output) as on_event:
        adopted = opened.adopt(paths, how=_how(copy, link, move), on_event=on_event)
    output.result("import", adopted, human=lambda console: _print(console, adopted), ids=[adopted.taken])


def _how(copy: bool, link: bool, move: bool) -> "How":
    from civman.errors import UsageError
    from civman.manage.import_files import How

    chosen = [how for how, wanted in ((How.COPY, copy), (How.LINK, link), (How.MOVE, move)) if wanted]
    if len(chosen) > 1:
        raise UsageError(
            "--copy, --link and --move exclude each other", hint="choose one, or none to leave files in place"
        )
    return chosen[0] if chosen else How.IN_PLACE


def _print(console: "Console", adopted: "Adopted") -> None:
    console.print(
        f"{adopted.found} model files: {adopted.taken} taken in ({adopted.on_civitai} known to CivitAI), "
        f"{adopted.known_before} were known, {adopted.duplicates} have the same bytes as another; "
        f"{size(adopted.read_bytes)} read"
    )
    for problem in adopted.broken[:20]:
        console.print(f"  left out: {clean(problem.path)}: {clean(problem.message)}", style="yellow")
    if len(adopted.broken) > 20:
        console.print(f"  … and {len(adopted.broken) - 20} more; --json lists them all")
