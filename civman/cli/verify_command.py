"""The command `civman verify`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import FileOpt
from civman.cli.output import Result, clean, counted, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.manage.verify import Rebuilt, Verdict

_SHOWN = 40
_STYLES = {"ok": "green", "repaired": "green", "unknown": "yellow", "away": "yellow"}


@command(network="settings", needs_library=True)
def verify(
    session: Session,
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="The files to verify; default: all.")
    ] = None,
    file: FileOpt = None,
    full: Annotated[bool, typer.Option("--full", help="Read every file, including those that look unchanged.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Replace corrupt and missing files.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Rebuild the index from the files and their sidecar files.")
    ] = False,
) -> Result:
    """Verify stored files by their SHA-256. Files unchanged since the last check are not read again.

    A URL such as s3://bucket/models as the first REF verifies the files in that object store instead.
    """
    if refs and refs[0].startswith("s3://"):
        from civman.cli.store_commands import verify_store

        return verify_store(session, refs[0], refs[1:])
    if not repair:
        session.offline = True
    if rebuild:
        return _rebuild(session)
    from civman.errors import Cause, IntegrityError, StoreError
    from civman.manage.verify import BROKEN, State

    with session.verifying() as on_event:
        verdicts = list(session.library.verify(refs or (), file=file, is_full=full, on_event=on_event))
    if repair and any(verdict.state in (*BROKEN, State.AWAY) for verdict in verdicts):
        with session.downloading() as on_event:
            verdicts = list(session.library.maintenance.repair(verdicts, on_event=on_event))
    bad = [verdict for verdict in verdicts if verdict.state in BROKEN]
    away = [verdict for verdict in verdicts if verdict.state is State.AWAY]
    error: IntegrityError | StoreError | None = None
    if away:
        error = StoreError(
            f"{counted(len(away), 'file')} of {len(verdicts)} could not be verified, because their drive is not "
            f"connected: {', '.join(verdict.path for verdict in away[:3])}{' …' if len(away) > 3 else ''}",
            code=Cause.AWAY,
            hint="connect the drive and run `civman verify` again; if files were moved, run `civman "
            "import` with their new folder",
            sha256=[str(verdict.sha256) for verdict in away],
        )
    if bad:
        named = ", ".join(f"{verdict.name} ({verdict.state})" for verdict in bad[:5]) + (" …" if len(bad) > 5 else "")
        error = IntegrityError(
            f"{counted(len(bad), 'file')} of {len(verdicts)} failed verification: {named}",
            hint=_way_out(bad, was_tried=repair),
            sha256=[str(verdict.sha256) for verdict in bad],
        )
    return Result(
        "verify",
        verdicts,
        human=lambda console: _print(console, verdicts),
        ids=(verdict.sha256 for verdict in bad),
        error=error,
    )


def _way_out(bad: "list[Verdict]", *, was_tried: bool) -> str:
    if was_tried:
        return bad[0].problem
    from civman.manage.verify import State

    repair = "`civman verify --repair` replaces the files with copies that it finds or downloads"
    if all(verdict.state is State.MISSING for verdict in bad):
        return f"if the files were moved or renamed, `civman import FOLDER` finds them again; {repair}"
    return (
        f"{repair}; corrupt files in the library are moved to the trash, files outside the library are left unchanged"
    )


def _print(console: "Console", verdicts: "list[Verdict]") -> None:
    from civman.manage.verify import State

    unchanged = [verdict for verdict in verdicts if verdict.state is State.UNCHANGED]
    told = sorted((verdict for verdict in verdicts if verdict.state is not State.UNCHANGED), key=_worst_first)
    for verdict in told[:_SHOWN] if all(verdict.state is State.OK for verdict in told) else told:
        style = {State.OK: "green", State.REPAIRED: "green", State.UNKNOWN: "yellow", State.AWAY: "yellow"}.get(
            verdict.state, "red"
        )
        console.print(f"{verdict.state:<10}", style=style, end=" ")
        console.print(f"{verdict.sha256[:12]}  {clean(verdict.name)}  {size(verdict.size_bytes)}", end="")
        console.print(f"  {clean(verdict.problem)}" if verdict.problem else "")
    read = [verdict for verdict in verdicts if verdict.state is State.OK]
    if len(read) > _SHOWN:
        console.print(
            f"{counted(len(read), 'file')} read and verified, {size(sum(verdict.size_bytes for verdict in read))}"
        )
    if unchanged:
        since = min(verdict.proven_at for verdict in unchanged if verdict.proven_at is not None)
        console.print(
            f"{counted(len(unchanged), 'file')} unchanged since the last verification ({since:%Y-%m-%d} or "
            "later); --full "
            "reads every file"
        )
    if not verdicts:
        console.print("the library is empty; `civman download REF` and `civman import FOLDER` add models")


def _worst_first(verdict: "Verdict") -> tuple[int, str]:
    order = ("corrupt", "missing", "away", "unreadable", "repaired", "unknown", "ok")
    return order.index(verdict.state.value), verdict.name


def _rebuild(session: Session) -> Result:
    from civman.errors import IntegrityError

    with session.reading() as on_event:
        rebuilt = session.library.maintenance.rebuild(on_event=on_event)
    error = None
    if rebuilt.corrupt:
        paths = ", ".join(verdict.path for verdict in rebuilt.corrupt[:5])
        error = IntegrityError(
            f"skipped {counted(len(rebuilt.corrupt), 'file')} with contents that do not match the digest in the "
            f"name: {paths}",
            hint="delete the files and download them again with `civman download`",
        )
    return Result("rebuild", rebuilt, human=lambda console: _print_rebuilt(console, rebuilt), error=error)


def _print_rebuilt(console: "Console", rebuilt: "Rebuilt") -> None:
    console.print(
        f"the index was rebuilt with {counted(rebuilt.assets, 'file')}"
        + (f", and {rebuilt.bare} more without metadata" if rebuilt.bare else "")
    )
