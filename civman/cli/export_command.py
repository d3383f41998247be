"""The command `civman export`, and the part of `civman import` that imports a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import FileOpt
from civman.cli.output import Result, clean, counted, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.exchange.bundle_import import ImportedFile


@command(needs_library=True)
def export(
    session: Session,
    target: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The bundle file to write, for example models.civman.", show_default=False),
    ],
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="The models to export.", show_default=False)
    ] = None,
    file: FileOpt = None,
    lock: Annotated[bool, typer.Option("--lock", help="Export the files listed in the project's civman.lock.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Export the whole library.")] = False,
    with_notes: Annotated[
        bool, typer.Option("--with-notes", help="Include your notes, tags, ratings and aliases.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE if it exists.")] = False,
) -> Result:
    """Write models with their metadata to a bundle file, for a computer without a network.

    Import it there with `civman import FILE`, which verifies every file.
    """
    from civman.errors import UsageError

    if [bool(refs), lock, everything].count(True) != 1:
        raise UsageError(
            "export needs either REFs, --lock or --all", hint="pass exactly one of the three: REFs, --lock or --all"
        )
    with session.reading() as on_event:
        exported = session.library.bundles.export(
            target,
            refs or (),
            file=file,
            project=Path.cwd() if lock else None,
            with_notes=with_notes,
            replace=force,
            on_event=on_event,
        )
    return Result(
        "export",
        {
            "path": exported.path,
            "size_bytes": exported.size_bytes,
            "sha256": exported.sha256,
            "files": len(exported.packed),
        },
        human=lambda console: console.print(
            f"{clean(str(target))}: {counted(len(exported.packed), 'file')}, {size(exported.size_bytes)},"
            f" sha256 {exported.sha256}",
            soft_wrap=True,
        ),
        ids=[exported.path],
    )


def import_bundle(session: Session, path: Path, *, allow_pickle: bool) -> Result:
    """Import one bundle file into the library."""
    from civman.domain.access import Permits

    permits = Permits(pickle=allow_pickle)
    with session.reading() as on_event:
        imported = session.library.bundles.import_bundle(path, permits=permits, on_event=on_event)
    return Result(
        "import-bundle",
        imported,
        human=lambda console: _print(console, path, imported),
        ids=(each.sha256 for each in imported),
    )


def _print(console: "Console", path: Path, imported: "Sequence[ImportedFile]") -> None:
    for each in imported:
        asset = each.assets[0]
        title = clean(f"{asset.model_name} {asset.version_name}".strip() or asset.name)
        how = "was already in the library" if each.was_present else "imported and verified"
        console.print(f"{title}: {how}, {size(each.size_bytes)}, sha256 {each.sha256[:12]}…", soft_wrap=True)
    console.print(f"{counted(len(imported), 'file')} in the bundle {clean(str(path))}", soft_wrap=True)
