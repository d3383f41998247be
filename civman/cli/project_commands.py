"""The commands `civman add`, `civman drop` and `civman sync`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import FileOpt, RefsArg, given_refs
from civman.cli.output import Result, clean, counted, error_value, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.errors import CivmanError
    from civman.exchange.sync import Added, Synced

AllowPickleOpt = Annotated[bool, typer.Option("--allow-pickle", help="Store pickles that could run code when loaded.")]


@command(network="option")
def add(
    session: Session,
    refs: RefsArg = None,
    file: FileOpt = None,
    no_download: Annotated[
        bool,
        typer.Option(
            "--no-download",
            help="Only lock the SHA-256 that CivitAI lists for each file; download the files later with `civman sync`.",
        ),
    ] = False,
    allow_pickle: AllowPickleOpt = False,
) -> Result:
    """Add models to the project's civman.toml, and the digests of their files to civman.lock.

    A ref without a version is locked to the current default version; to update it, add the ref again.
    """
    from civman.domain.access import Permits

    with session.downloading() as on_event:
        added = session.library.project.add(
            given_refs(refs),
            folder=Path.cwd(),
            file=file,
            download=not no_download,
            permits=Permits(pickle=allow_pickle),
            on_event=on_event,
        )
    return Result(
        "add",
        [_added_value(each) for each in added],
        human=lambda console: _print_added(console, added),
        ids=(each.entry.sha256 for each in added if each.entry is not None),
        error=first_error([(each.ref, each.error) for each in added]),
    )


@command()
def drop(
    session: Session,
    refs: RefsArg = None,
) -> Result:
    """Remove models from civman.toml and civman.lock. The library keeps their files."""
    dropped = session.library.project.drop(given_refs(refs), folder=Path.cwd())
    return Result(
        "drop",
        dropped,
        human=lambda console: console.print("\n".join(clean(f"dropped {each.title or each.name}") for each in dropped)),
        ids=(entry.sha256 for entry in dropped),
    )


@command(network="option")
def sync(
    session: Session,
    check: Annotated[bool, typer.Option("--check", help="Only list missing files; exit code 3 if there are any.")] = (
        False
    ),
    lock: Annotated[bool, typer.Option("--lock", help="First update civman.lock from civman.toml.")] = False,
    allow_pickle: AllowPickleOpt = False,
) -> Result:
    """Download the files listed in civman.lock and verify their SHA-256. Nothing is removed."""
    from civman.domain.access import Permits

    with session.downloading() as on_event:
        synced = session.library.project.sync(
            folder=Path.cwd(), check=check, relock=lock, permits=Permits(pickle=allow_pickle), on_event=on_event
        )
    return Result(
        "sync",
        [_synced_value(each) for each in synced],
        human=lambda console: _print_synced(console, synced),
        ids=(each.entry.sha256 for each in synced if each.asset is not None),
        error=first_error([(each.entry.ref, each.error) for each in synced]),
    )


def first_error(results: "Sequence[tuple[str, CivmanError | None]]") -> "CivmanError | None":
    """Return None if no ref failed, the error if one failed, or an error that lists the refs if several failed."""
    from civman.errors import PartlyFailedError

    failed = [(ref, error) for ref, error in results if error is not None]
    if not failed:
        return None
    if len(failed) == 1:
        return failed[0][1]
    refs = [ref for ref, _ in failed]
    return PartlyFailedError(
        f"{len(failed)} of {len(results)} failed: {', '.join(refs)}", exit_code=failed[0][1].exit_code, refs=refs
    )


def _added_value(added: "Added") -> dict[str, object]:
    error = error_value(added.error) if added.error is not None else None
    return {"ref": added.ref, "entry": added.entry, "is_new": added.is_new, "error": error}


def _synced_value(synced: "Synced") -> dict[str, object]:
    error = error_value(synced.error) if synced.error is not None else None
    is_here = synced.asset is not None
    return {"entry": synced.entry, "is_here": is_here, "was_present": synced.was_present, "error": error}


def _print_added(console: "Console", added: "Sequence[Added]") -> None:
    for each in added:
        if each.entry is not None:
            entry = each.entry
            how = "added" if each.is_new else "locked"
            console.print(
                f"{how}  {entry.ref}  {clean(entry.title or entry.name)}  {size(entry.size_bytes)}"
                f"  sha256 {entry.sha256[:12]}…",
                soft_wrap=True,
            )
        elif each.error is not None:
            _print_failed(console, each.ref, each.error)


def _print_synced(console: "Console", synced: "Sequence[Synced]") -> None:
    for each in synced:
        if each.error is not None:
            _print_failed(console, each.entry.ref, each.error)
        else:
            how = "stored    " if each.was_present else "downloaded"
            console.print(
                f"{how}  {clean(each.entry.title or each.entry.name)}  {size(each.entry.size_bytes)}"
                f"  sha256 {each.entry.sha256[:12]}…",
                soft_wrap=True,
            )
    here = sum(each.asset is not None for each in synced)
    if synced:
        console.print(f"{here} of {counted(len(synced), 'locked file')} in the library")
    else:
        console.print("the project has no models; `civman add REF` adds one")


def _print_failed(console: "Console", ref: str, error: "CivmanError") -> None:
    console.print(f"failed    {clean(ref)} [{error.code}]: {clean(error.message)}", style="red", soft_wrap=True)
