"""`civman verify`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import JsonOpt, LibraryOpt, QuietOpt, open_library
from civman.cli.output import Output, clean, size

if TYPE_CHECKING:
    from rich.console import Console

    from civman.library import Library
    from civman.upkeep import Rebuilt, Verdict


def verify(
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="What to verify; everything if none is named.")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Fill the index again from the files and what is kept beside them.")
    ] = False,
    library: LibraryOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Read every byte of stored files again and compare digests. Ends with 6 if one is not what it should be."""
    output = Output(as_json=as_json, quiet=quiet)
    with open_library(library, True, output) as opened:
        if rebuild:
            _rebuild(output, opened)
        else:
            _verify(output, opened, refs or [])


def _verify(output: Output, library: "Library", refs: list[str]) -> None:
    from civman.cli import progress
    from civman.errors import IntegrityError
    from civman.upkeep import State

    with progress.reading(output) as on_event:
        verdicts = list(library.verify(refs, on_event=on_event))
    bad = [verdict for verdict in verdicts if verdict.state not in (State.OK, State.UNKNOWN)]
    error = None
    if bad:
        named = ", ".join(f"{verdict.name} ({verdict.state})" for verdict in bad[:5])
        error = IntegrityError(
            f"{len(bad)} of {len(verdicts)} files are not what they should be: {named}{' …' if len(bad) > 5 else ''}",
            hint="`civman remove` the broken ones and `civman download` them again",
            sha256=[str(verdict.sha256) for verdict in bad],
        )
    output.result(
        "verify",
        verdicts,
        human=lambda console: _print(console, verdicts),
        ids=(verdict.sha256 for verdict in bad),
        error=error,
    )


def _print(console: "Console", verdicts: "list[Verdict]") -> None:
    for verdict in verdicts:
        style = {"ok": "green", "unknown": "yellow"}.get(verdict.state, "red")
        console.print(f"{verdict.state:<10}", style=style, end=" ")
        console.print(f"{verdict.sha256[:12]}  {clean(verdict.name)}  {size(verdict.size_bytes)}", end="")
        console.print(f"  {clean(verdict.problem)}" if verdict.problem else "")
    if not verdicts:
        console.print("the library is empty")


def _rebuild(output: Output, library: "Library") -> None:
    from civman.cli import progress
    from civman.errors import IntegrityError

    with progress.reading(output) as on_event:
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
