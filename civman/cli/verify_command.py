"""`civman verify`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import JsonOpt, LibraryOpt, QuietOpt, open_library
from civman.cli.output import Output, clean, size
from civman.domain.events import Event, Notice, OnEvent, Started, Verifying

if TYPE_CHECKING:
    from rich.console import Console

    from civman.library import Library
    from civman.manage.verify import Rebuilt, Verdict

_SHOWN = 40


def verify(
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="What to verify; everything if none is named.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Read what looks unchanged, too.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch broken and missing files again.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Fill the index again from the files and what is kept beside them.")
    ] = False,
    library: LibraryOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Prove stored files: read those that changed since they were last proven. Ends with 6 if one is wrong."""
    output = Output(as_json=as_json, quiet=quiet)
    with open_library(library, None if repair else True, output) as opened:
        if rebuild:
            _rebuild(output, opened)
        else:
            _verify(output, opened, refs or [], is_full=full, wants_repair=repair)


def _verify(output: Output, library: "Library", refs: list[str], *, is_full: bool, wants_repair: bool) -> None:
    from civman.cli import progress_bars
    from civman.errors import IntegrityError
    from civman.manage.verify import BROKEN

    with _reading(output) as on_event:
        verdicts = list(library.verify(refs, is_full=is_full, on_event=on_event))
    if wants_repair and any(verdict.state in BROKEN for verdict in verdicts):
        with progress_bars.shown(output) as on_event:
            verdicts = list(library.repair(verdicts, on_event=on_event))
    bad = [verdict for verdict in verdicts if verdict.state in BROKEN]
    error = None
    if bad:
        named = ", ".join(f"{verdict.name} ({verdict.state})" for verdict in bad[:5])
        error = IntegrityError(
            f"{len(bad)} of {len(verdicts)} files are not what they should be: {named}{' …' if len(bad) > 5 else ''}",
            hint=_way_out(bad, was_tried=wants_repair),
            sha256=[str(verdict.sha256) for verdict in bad],
        )
    output.result(
        "verify",
        verdicts,
        human=lambda console: _print(console, verdicts),
        ids=(verdict.sha256 for verdict in bad),
        error=error,
    )


def _way_out(bad: "list[Verdict]", *, was_tried: bool) -> str:
    if was_tried:
        return bad[0].problem
    return "`civman verify --repair` fetches them again; the broken ones stay in the trash"


def _print(console: "Console", verdicts: "list[Verdict]") -> None:
    from civman.manage.verify import State

    unchanged = [verdict for verdict in verdicts if verdict.state is State.UNCHANGED]
    told = sorted((verdict for verdict in verdicts if verdict.state is not State.UNCHANGED), key=_worst_first)
    for verdict in told[:_SHOWN] if all(verdict.state is State.OK for verdict in told) else told:
        style = {State.OK: "green", State.REPAIRED: "green", State.UNKNOWN: "yellow"}.get(verdict.state, "red")
        console.print(f"{verdict.state:<10}", style=style, end=" ")
        console.print(f"{verdict.sha256[:12]}  {clean(verdict.name)}  {size(verdict.size_bytes)}", end="")
        console.print(f"  {clean(verdict.problem)}" if verdict.problem else "")
    read = [verdict for verdict in verdicts if verdict.state is State.OK]
    if len(read) > _SHOWN:
        console.print(f"{len(read):,} files read and proven, {size(sum(verdict.size_bytes for verdict in read))}")
    if unchanged:
        since = min(verdict.proven_at for verdict in unchanged if verdict.proven_at is not None)
        console.print(
            f"{len(unchanged):,} unchanged since they were last read, the first on {since:%Y-%m-%d}; --full reads all"
        )
    if not verdicts:
        console.print("the library is empty")


def _worst_first(verdict: "Verdict") -> tuple[int, str]:
    order = ("corrupt", "missing", "unreadable", "repaired", "unknown", "ok")
    return order.index(verdict.state.value), verdict.name


@contextmanager
def _reading(output: Output) -> Iterator[OnEvent]:
    """A listener for the time in which files are read by several threads: one bar for all, with the time left."""
    if not output.is_live:
        yield lambda event: output.notice(event.message) if isinstance(event, Notice) else None
        return
    from rich.progress import (  # 0.06 s, for a terminal only
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from civman.manage.verify import WHOLE

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=output.console(to_stderr=True),
        transient=True,
    )
    lock, done = threading.Lock(), dict[str, int]()
    with progress:
        task = progress.add_task("looking", total=None)

        def on_event(event: Event) -> None:
            with lock:
                match event:
                    case Started(key, name, total, _) if key == WHOLE:
                        progress.update(task, description=f"reading {name}", total=total)
                    case Verifying(key, count, _):
                        progress.advance(task, count - done.get(key, 0))
                        done[key] = count
                    case Notice(_, message):
                        progress.console.print(f"Note: {clean(message)}")
                    case _:
                        pass

        yield on_event


def _rebuild(output: Output, library: "Library") -> None:
    from civman.cli import progress_bars
    from civman.errors import IntegrityError

    with progress_bars.reading(output) as on_event:
        rebuilt = library.rebuild(on_event=on_event)
    error = None
    if rebuilt.corrupt:
        paths = ", ".join(verdict.path for verdict in rebuilt.corrupt[:5])
        error = IntegrityError(
            f"{len(rebuilt.corrupt)} files are not what their names say and were left out: {paths}",
            hint="delete them and `civman download` them again",
        )
    output.result("rebuild", rebuilt, human=lambda console: _print_rebuilt(console, rebuilt), error=error)


def _print_rebuilt(console: "Console", rebuilt: "Rebuilt") -> None:
    console.print(
        f"the index holds {rebuilt.assets} files again"
        + (f", and {rebuilt.bare} more of which only the bytes are known" if rebuilt.bare else "")
    )
