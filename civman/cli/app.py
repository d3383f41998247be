"""The root command, and `main`, the only function that turns errors into messages and exit codes."""

import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from civman import __version__
from civman.cli import completion
from civman.cli.command_table import commands
from civman.cli.help_command import prepare_help
from civman.cli.output import Output
from civman.cli.running_server import handed_over
from civman.cli.session import MAKE_LIBRARY, MakeLibrary
from civman.diffusion import quick_start
from civman.errors import Cause, CivmanError, ExitCode, Interrupted, UsageError

_NEED_OTHERS = ("help", "config")
"""Commands that need all other commands to be loaded, because they list or look up their options."""
_RENDERING = ("render", "replay", "upscale")
"""Commands that need torch. For these, `main` starts to load torch's libraries before it parses the options."""


def build(only: str | None = None) -> typer.Typer:
    """Build the typer app with all commands, or with only the command `only`, because that takes less time."""
    built = typer.Typer(
        name="civman",
        help="Find, download, check and manage Stable Diffusion models from CivitAI, and make images with them.\n\n"
        "A command reports success only if the result was verified. New here? Try [bold]civman demo[/bold].",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    built.callback()(_root)
    for panel, each in commands():
        if only in (None, each.name):
            built.command(each.name, rich_help_panel=panel, epilog=each.epilog)(each.run)
        if each.alias and only in (None, each.alias):
            built.command(each.alias, hidden=True, epilog=each.epilog)(each.run)
    return built


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"civman {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print a traceback with every error.")] = False,
) -> None:
    pass


def _needed(arguments: Sequence[str]) -> str | None:
    """Return the name of the only command that these arguments need; None if all commands have to be loaded."""
    words = completion.words_before_cursor()
    name = next((word for word in (arguments if words is None else words) if not word.startswith("-")), None)
    known = {known for _, each in commands() for known in (each.name, each.alias)}
    is_alone = words is not None or name not in _NEED_OTHERS
    return name if name in known and is_alone else None


def main(argv: Sequence[str] | None = None, *, make_library: MakeLibrary | None = None) -> int:
    """Run one command and return its exit code, after printing any error.

    `make_library`: a function that opens the library in place of `Library`, for programs that embed the commands.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    output = Output(as_json="--json" in arguments)
    made = MAKE_LIBRARY.set(make_library)
    prepare_help(arguments)
    try:
        if make_library is None and (code := handed_over(arguments)) is not None:
            return code
        needed = _needed(arguments)
        if argv is None and needed in _RENDERING and not {"--help", "-h", "--dry-run"} & {*arguments}:
            quick_start.begin()
        with completion.answering():
            ended = build(needed)(arguments, prog_name="civman", standalone_mode=False)
        if ended == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt  # noqa: TRY301  # typer had turned it into an exit code
    except CivmanError as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        output.failure(error)
        return error.exit_code
    except KeyboardInterrupt:
        exec("")  # noqa: S102  # else `python -m` ends with SIGINT if Ctrl-C hit an `exec`, as of a dataclass
        output.failure(Interrupted("stopped", hint="run the same command again; a download continues where it stopped"))
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader has closed the pipe: redirect stdout, because Python would flush it at exit and print a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except Exception as error:  # noqa: BLE001  # the outermost level: every other exception is a bug
        return _refused_by_typer(error, output) or _bug(error, output)
    else:
        return ExitCode.DONE
    finally:
        MAKE_LIBRARY.reset(made)
        if argv is None:  # this process ends after the command; with `argv`, the calling program continues
            # exclude the imported modules from garbage collection: searching them at exit takes 0.03 s
            gc.freeze()


def _refused_by_typer(error: Exception, output: Output) -> int | None:
    """Return the exit code for an exception of typer itself; None for other exceptions.

    Typer raises exceptions for `--help`, for an invalid option and for an interrupted prompt.
    """
    kind = type(error).__name__
    if kind == "Exit":
        return int(getattr(error, "exit_code", 0)) or None
    if kind == "NoArgsIsHelpError":
        typer.echo(getattr(error, "message", ""))
        return ExitCode.USAGE
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "civman"
    output.failure(UsageError(_in_plain_words(str(format_message())), hint=_help_hint(path)))
    return ExitCode.USAGE


def _in_plain_words(message: str) -> str:
    """Replace pydantic's sentences about an option's value with shorter ones, such as "the value must be at most 5"."""
    for theirs, ours in _PYDANTIC_WORDS.items():
        pattern = re.escape(theirs).replace(r"\{limit\}", r"(?P<limit>\S+)")
        message = re.sub(pattern, ours.replace("{limit}", r"\g<limit>"), message)
    return message


_PYDANTIC_WORDS = {
    "Input should be a valid number, unable to parse string as a number": "the value is not a number",
    "Input should be a valid integer, unable to parse string as an integer": "the value is not a whole number",
    "Input should be less than or equal to {limit}": "the value must be at most {limit}",
    "Input should be greater than or equal to {limit}": "the value must be at least {limit}",
    "Input should be greater than {limit}": "the value must be above {limit}",
    "Input should be less than {limit}": "the value must be below {limit}",
    "Input should be": "the value must be",
}


def _help_hint(path: str) -> str:
    if path == "civman":
        return "`civman --help` lists all commands"
    return f"`{path} --help` lists the arguments and options of the command"


def _bug(error: Exception, output: Output) -> int:
    traceback.print_exception(error)
    output.failure(
        CivmanError(
            f"civman has a bug: {type(error).__name__}",
            code=Cause.BUG,
            hint="please report the traceback above and the command that you ran",
        )
    )
    return ExitCode.BUG
