"""The frame of every command: the options that all commands have, the library, progress bars, and the shown result.

A command turns its options into calls of the library and returns a `Result`. The result is shown after the library was
closed, so that nothing is said to be done before it is.
"""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Concatenate, Literal, ParamSpec, Protocol

import typer

from civman.cli.output import Output, Result

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.events import OnEvent
    from civman.library import Library
    from civman.settings import Settings

_PANEL = "Common options"
LibraryOpt = Annotated[
    Path | None,
    typer.Option("--library", help="Folder of the library.", show_default="settings", rich_help_panel=_PANEL),
]
_OfflineOpt = Annotated[bool | None, typer.Option("--offline", help="Do not use the network.", rich_help_panel=_PANEL)]
_JsonOpt = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, also for errors.", rich_help_panel=_PANEL)
]
_QuietOpt = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only ids or paths, one per line.", rich_help_panel=_PANEL)
]
_Options = ParamSpec("_Options")


class MakeLibrary(Protocol):
    """What opens a library: `Library` itself, or it with arguments of its own (another patience)."""

    def __call__(self, settings: "Settings", *, on_notice: "Callable[[str], None]") -> "Library":
        """The library that `settings` describe."""
        ...


MAKE_LIBRARY: ContextVar[MakeLibrary | None] = ContextVar("make_library", default=None)
"""Set by `main` for the time of one command: typer hands its commands nothing but options."""


class Session:
    """One run of a command: where its words go, and the library that its options name, opened on first use."""

    def __init__(self, output: Output, folder: Path | None, offline: bool | None) -> None:
        self.output = output
        self.offline = offline
        """True: never use the network; else as settings say. To be changed before `library` is used."""
        self._folder = folder

    @cached_property
    def library(self) -> "Library":
        """The library; its notices go to `output`."""
        from civman.library import Library  # 0.1 s and more, which --help need not wait for
        from civman.settings import load_settings

        settings = load_settings(library=self._folder, offline=self.offline or None)
        return (MAKE_LIBRARY.get() or Library)(settings, on_notice=self.output.notice)

    def close(self) -> None:
        """Close the library if it was opened."""
        if "library" in self.__dict__:
            self.library.close()

    def confirm(self, question: str, show: "Callable[[Console], None]", *, otherwise: str) -> bool:
        """Whether a person says yes, having seen what `show` prints; `otherwise` is noted where they say no.

        Raises: UsageError: there is nobody to ask.
        """
        show(self.output.console(to_stderr=True))
        agreed = self.output.confirm(question)
        if not agreed:
            self.output.notice(otherwise)
        return agreed

    def downloading(self) -> "AbstractContextManager[OnEvent]":
        """A listener that shows downloads, a bar for each file."""
        from civman.cli import progress_bars  # 0.01 s, which --help need not wait for

        return progress_bars.downloading(self.output)

    def reading(self) -> "AbstractContextManager[OnEvent]":
        """A listener that shows how files are read one after the other."""
        from civman.cli import progress_bars

        return progress_bars.reading(self.output)

    def verifying(self) -> "AbstractContextManager[OnEvent]":
        """A listener that shows how files are read by several threads."""
        from civman.cli import progress_bars

        return progress_bars.verifying(self.output)

    def drawing(self, plans: int, *, called: str = "prompt") -> "AbstractContextManager[OnEvent]":
        """A listener that shows how plans become pictures."""
        from civman.cli import progress_bars

        return progress_bars.drawing(self.output, plans, called=called)


def command(
    *, network: Literal["never", "settings", "option"] = "never", has_library: bool = True
) -> Callable[[Callable[Concatenate[Session, _Options], Result | None]], Callable[..., None]]:
    """Make a function a command: with the common options, a session as its first argument, and its result shown.

    `network`: "never" works offline, "settings" as settings say, "option" adds --offline.
    """
    added: dict[str, object] = {"as_json": _JsonOpt, "quiet": _QuietOpt}
    if network == "option":
        added = {"offline": _OfflineOpt, **added}
    if has_library:
        added = {"library": LibraryOpt, **added}

    def decorate(function: Callable[Concatenate[Session, _Options], Result | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(library: Path | None = None, offline: bool | None = network == "never",
                as_json: bool = False, quiet: bool = False, **options: object) -> None:  # fmt: skip
            session = Session(Output(as_json=as_json, quiet=quiet), library, offline)
            try:
                result = function(session, **options)  # type: ignore[call-arg, arg-type]  # as the signature says
            finally:
                session.close()
            if result is not None:
                session.output.show(result)

        own = list(inspect.signature(function).parameters.values())[1:]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        common = [
            inspect.Parameter(name, kind, default=False if name in ("as_json", "quiet") else None, annotation=option)
            for name, option in added.items()
        ]
        run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in [*own, *common]}
        return run

    return decorate
