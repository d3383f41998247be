"""`civman login`."""

import sys
from typing import Annotated

import typer

from civman.cli.options import JsonOpt, LibraryOpt, QuietOpt, open_library
from civman.cli.output import Output, clean


def login(
    forget: Annotated[bool, typer.Option("--forget", help="Remove the stored key instead.")] = False,
    no_keyring: Annotated[
        bool, typer.Option("--no-keyring", help="Keep it in a file even where a keyring is.")
    ] = False,
    library: LibraryOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Prove an API key with CivitAI and keep it where only you can read it.

    Asks for the key, or reads it from stdin: `civman login < key.txt`. Keys are made at
    https://civitai.com/user/account. The key is never printed.
    """
    from civman.civitai import credentials

    output = Output(as_json=as_json, quiet=quiet)
    with open_library(library, None, output) as opened:
        if forget:
            had = credentials.forget(opened.settings)
            output.result(
                "login",
                {"forgotten": had},
                human=lambda console: console.print("the key was removed" if had else "no key was stored"),
            )
            return
        token = (
            typer.prompt("CivitAI API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
        )
        account, place = opened.login(token, use_keyring=not no_keyring)
    output.result(
        "login",
        {"name": account.name, "stored_in": place},
        human=lambda console: console.print(f"the key belongs to {clean(account.name)}; it is kept in {place}"),
        ids=[account.name],
    )
