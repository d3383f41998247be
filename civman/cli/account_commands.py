"""The commands `civman login`, `civman logout` and `civman whoami`."""

import sys
from typing import Annotated

import typer

from civman.cli.output import Result, clean
from civman.cli.session import Session, command


@command(network="settings")
def login(
    session: Session,
    forget: Annotated[bool, typer.Option("--forget", help="Remove the stored key, as `civman logout` does.")] = False,
    no_keyring: Annotated[
        bool, typer.Option("--no-keyring", help="Store the key in a file, even if the system has a keyring.")
    ] = False,
) -> Result:
    """Check an API key with CivitAI and store it where only you can read it.

    Asks for the key, or reads it from stdin. Create a key at https://civitai.com/user/account. The key is never
    printed.
    """
    if forget:
        return _logout(session)
    token = typer.prompt("CivitAI API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    account, place = session.library.account.login(token, use_keyring=not no_keyring)
    return Result(
        "login",
        {"name": account.name, "stored_in": place},
        human=lambda console: console.print(f"the key belongs to {clean(account.name)}; it is stored in {place}"),
        ids=[account.name],
    )


@command(network="settings")
def logout(session: Session) -> Result:
    """Remove the stored API key from this computer. On CivitAI the key stays valid until you delete it there."""
    return _logout(session)


def _logout(session: Session) -> Result:
    had = session.library.account.logout()
    return Result(
        "login",
        {"forgotten": had},
        human=lambda console: console.print("the key was removed" if had else "there was no stored key to remove"),
    )


@command(network="settings")
def whoami(session: Session) -> Result:
    """Show the CivitAI account that the stored API key belongs to."""
    account = session.library.account.current()
    return Result(
        "account",
        account,
        human=lambda console: console.print(
            clean(account.name) + (f" ({account.tier} member)" if account.tier else "")
        ),
        ids=[account.name],
    )
