"""The command `civman import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.output import Result, clean, counted, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.errors import CivmanError
    from civman.manage.import_files import ImportMode, ImportResult, Problem


_MOST_SHOWN = 20


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
        bool,
        typer.Option(
            "--allow-pickle", help="Also import pickles from a bundle, although they could run code when loaded."
        ),
    ] = False,
) -> Result:
    """Add existing model files, or whole model folders of other programs, to the library without moving them.

    Files stay where they are unless you use --copy, --link or --move. Every file is hashed once, and all hashes are
    looked up on CivitAI in one request; files that CivitAI does not know keep the metadata in their headers and sidecar
    files. You can interrupt the import and run it again. A bundle made by `civman export` is copied and verified. If
    you pass an index such as model.safetensors.index.json, the files of the split model are joined into one file in the
    library.
    """
    from civman.cli.export_command import import_bundle
    from civman.exchange.bundle_archive import is_bundle
    from civman.store.join_shards import is_shard_index

    if len(paths) == 1 and is_bundle(paths[0]):
        return import_bundle(session, paths[0], allow_pickle=allow_pickle)
    if len(paths) == 1 and is_shard_index(paths[0]):
        return _join(session, paths[0])
    with session.reading() as on_event:
        imported = session.library.files.import_files(paths, mode=_mode(copy, link, move), on_event=on_event)
    return Result(
        "import",
        imported,
        human=lambda console: _print(console, imported),
        ids=[imported.taken],
        error=_fault(imported),
    )


def _join(session: Session, index_file: Path) -> Result:
    """Join the shards of a split model, which an index file lists, into one file in the library."""
    with session.reading() as on_event:
        asset = session.library.files.join_shards(index_file, on_event=on_event)
    words = f"{clean(asset.name)}: joined, {size(asset.blob.size_bytes)}, sha256 {asset.blob.sha256[:12]}…"
    return Result(
        "import-shards", asset, human=lambda console: console.print(words, soft_wrap=True), ids=[asset.blob.sha256]
    )


def _fault(imported: "ImportResult") -> "CivmanError | None":
    """Return the error to report, if any.

    An error is reported if files could not be moved, folders could not be read, files are damaged, or no file was
    found.
    """
    from civman.errors import Cause, ExitCode, NotFound, PartlyFailedError, StoreError
    from civman.manage.scan_folders import FAULTS

    kept = [each for each in imported.kept if each.is_fault]
    if kept:
        return StoreError(
            f"{counted(len(kept), 'file')} could not be moved: {kept[0].path}: {kept[0].message}",
            hint="the library has a verified copy of each file; delete the old files yourself, or make "
            "their folder writable and run the same command again",
            paths=[each.path for each in kept],
        )
    unread = [group for group in imported.left_out if group.reason in FAULTS]
    if unread:
        count = sum(group.count for group in unread)
        return StoreError(
            f"{'1 path' if count == 1 else f'{count:,} paths'} could not be read: {unread[0].paths[0]}: "
            f"{unread[0].words}",
            code=Cause.STORE,
            hint="everything else was imported; make these files or folders readable, or correct their "
            "names, and run the same command again",
            paths=[path for group in unread for path in group.paths],
        )
    if imported.broken:
        return PartlyFailedError(
            f"{counted(len(imported.broken), 'model file')} of {imported.found:,} cannot be used: "
            f"{imported.broken[0].path}: {imported.broken[0].message}",
            exit_code=ExitCode.INTEGRITY,
            refs=[problem.path for problem in imported.broken],
        )
    if not imported.found:
        return NotFound(
            "there are no model files to import",
            hint="civman imports .safetensors, .ckpt, .pt, .pth, .bin, .gguf and other model files, and bundles",
            code=Cause.NO_FILES,
        )
    return None


def _mode(copy: bool, link: bool, move: bool) -> "ImportMode":
    from civman.errors import UsageError
    from civman.manage.import_files import ImportMode

    chosen = [
        mode for mode, wanted in ((ImportMode.COPY, copy), (ImportMode.LINK, link), (ImportMode.MOVE, move)) if wanted
    ]
    if len(chosen) > 1:
        raise UsageError(
            "--copy, --link and --move cannot be combined",
            hint="choose one of these options, or none to leave the files where they are",
        )
    return chosen[0] if chosen else ImportMode.IN_PLACE


def _print(console: "Console", imported: "ImportResult") -> None:
    console.print(
        f"{counted(imported.found, 'model file')}: {imported.taken} imported ({imported.on_civitai} known to CivitAI), "
        f"{imported.known_before} already in the library, {imported.duplicates} duplicates; "
        f"{size(imported.read_bytes)} read"
    )
    _print_problems(console, "skipped", imported.broken)
    if imported.identified_later:
        console.print(
            f"  {counted(imported.identified_later, 'file')} in the library found on CivitAI for the first time"
        )
    if imported.same_tensors:
        console.print(
            f"  {counted(imported.same_tensors, 'file')} identified by the tensors: the file on CivitAI has the "
            "same tensors, but a different header"
        )
    beside = [
        *([f"notes or tags of {counted(imported.noted, 'file')}"] if imported.noted else []),
        *([counted(imported.previews, "preview image")] if imported.previews else []),
        *([f"{counted(imported.companions, 'file')} moved along with the models"] if imported.companions else []),
    ]
    if beside:
        console.print(f"  taken over from other programs: {', '.join(beside)}")
    _print_problems(console, "not identified yet", imported.unanswered)
    _print_problems(console, "note not used", imported.notes_refused)
    if imported.rehomed:
        console.print(f"  {counted(imported.rehomed, 'file')} in the library found at a new path")
    for kept in imported.kept[:20]:
        console.print(f"  not moved: {clean(kept.path)}: {clean(kept.message)}", style="yellow")
    _print_left_out(console, imported)


def _print_problems(console: "Console", title: str, problems: "Sequence[Problem]") -> None:
    for problem in problems[:_MOST_SHOWN]:
        console.print(f"  {title}: {clean(problem.path)}: {clean(problem.message)}", style="yellow")
    if len(problems) > _MOST_SHOWN:
        console.print(f"  … and {len(problems) - _MOST_SHOWN} more files; --json lists all")


def _print_left_out(console: "Console", imported: "ImportResult") -> None:
    from civman.manage.scan_folders import TOLD_BY_PATH

    left = imported.entries - imported.found
    if left:
        console.print(f"  {counted(left, 'file')} of {imported.entries:,} left out:")
    for group in imported.left_out:
        console.print(f"    {group.count:,} {group.words}")
        if group.reason in TOLD_BY_PATH:
            for path in group.paths[:5]:
                console.print(f"      {clean(path)}")
