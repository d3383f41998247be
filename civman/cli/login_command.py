"""`civman login`."""

import sys
from typing import Annotated

import typer

from civman.cli.output import Result, clean
from civman.cli.session import Session, command


@command(network="settings")
def login(
    session: Session,
    forget: Annotated[bool, typer.Option("--forget", help="Remove the stored key instead.")] = False,
    no_keyring: Annotated[
        bool, typer.Option("--no-keyring", help="Keep it in a file even where a keyring is.")
    ] = False,
) -> Result:
    """Prove an API key with CivitAI and keep it where only you can read it.

    Asks for the key, or reads it from stdin: `civman login < key.txt`. Keys are made at
    https://civitai.com/user/account. The key is never printed.
    """
    if forget:
        had = session.library.account.logout()
        return Result(
            "login",
            {"forgotten": had},
            human=lambda console: console.print("the key was removed" if had else "no key was stored"),
        )
    token = typer.prompt("CivitAI API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    account, place = session.library.account.login(token, use_keyring=not no_keyring)
    return Result(
        "login",
        {"name": account.name, "stored_in": place},
        human=lambda console: console.print(f"the key belongs to {clean(account.name)}; it is kept in {place}"),
        ids=[account.name],
    )
