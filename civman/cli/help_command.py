"""The command `civman help`."""

from typing import Annotated

import typer


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
