"""The command `civman help`, and a faster import of typer's help pages."""

import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated

import typer

_UNUSED = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}
"""Modules that typer's help pages import but civman does not need, each with the class that typer imports from it."""


def prepare_help(arguments: Sequence[str]) -> None:
    """If `arguments` ask for help, import typer's help pages without the parts of rich that civman does not use.

    The help pages need markdown only in typer's mode "markdown", and tracebacks only for typer's exception pages.
    civman uses neither; importing both takes 0.06 s, a quarter of the time of `civman --help`.
    """
    completing = os.environ.get("_CIVMAN_COMPLETE")
    if completing == "complete_bash":
        return  # completions in bash have no descriptions, so they do not need the help pages
    if not completing and arguments and arguments[0] != "help" and not {"--help", "-h"} & set(arguments):
        return
    absent = {name: class_ for name, class_ in _UNUSED.items() if name not in sys.modules}
    for name, class_ in absent.items():
        sys.modules[name] = ModuleType(name)
        setattr(sys.modules[name], class_, None)
    try:
        import typer.rich_utils  # noqa: F401  # typer imports it when it prints a help page
    finally:
        for name in absent:
            del sys.modules[name]


def help_(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[COMMAND]", help="The command to explain.")] = None,
) -> None:
    """Show the help page of a command, or the list of all commands."""
    import difflib

    from civman.errors import UsageError

    root = context.find_root()
    if name is None:
        typer.echo(root.get_help())
        return
    group = root.command
    found = group.get_command(root, name)  # type: ignore[attr-defined]  # the root command is a group
    if found is None:
        near = difflib.get_close_matches(name, group.list_commands(root), n=3)  # type: ignore[attr-defined]
        hint = f"did you mean {' or '.join(f'`civman {each}`' for each in near)}?" if near else None
        raise UsageError(f"there is no command `{name}`", hint=hint or "`civman --help` lists all commands")
    typer.echo(found.get_help(context.__class__(found, info_name=name, parent=root)))
