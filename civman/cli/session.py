"""What all commands share: common options, the library, progress bars, and showing the result.

A command turns its options into calls of the library and returns a `Result`. The result is shown only after the library
was closed, so that no command reports success before its changes are complete.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from copy import copy
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Concatenate, Literal, ParamSpec, Protocol, get_args

import typer

from civman.cli.output import Output, Result

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.events import OnEvent
    from civman.domain.recipes.recipe import Recipe
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
    """A function that opens a library: `Library` itself, or one that passes further arguments, such as timeouts."""

    def __call__(self, settings: "Settings", *, on_notice: "Callable[[str], None]") -> "Library":
        """Open the library that `settings` describe; `on_notice` receives its notices."""
        ...


MAKE_LIBRARY: ContextVar[MakeLibrary | None] = ContextVar("make_library", default=None)
"""The `make_library` passed to `main`, while a command runs; typer has no way to pass it on to the command."""


class Session:
    """One run of a command: its output, and the library that its options select, which is opened when first used."""

    def __init__(
        self, output: Output, folder: Path | None, offline: bool | None, *, needs_library: bool = False
    ) -> None:
        self.output = output
        self.offline = offline
        """True: never use the network; otherwise the settings decide.

        A change has an effect only before `library` is first used.
        """
        self._folder = folder
        self._needs_library = needs_library

    @cached_property
    def library(self) -> "Library":
        """The open library. Its notices are written to `output`."""
        from civman.library import Library  # the import takes 0.1 s or more, which --help can skip
        from civman.settings import load_settings

        settings = load_settings(library=self._folder, offline=self.offline or None)
        if self._needs_library and self._folder is not None:
            _require_library(settings.library)
        return (MAKE_LIBRARY.get() or Library)(settings, on_notice=self.output.notice)

    def close(self) -> None:
        """Close the library if it was opened."""
        if "library" in self.__dict__:
            self.library.close()

    def confirm(self, question: str, show: "Callable[[Console], None]", *, otherwise: str) -> bool:
        """Print details with `show` and ask a yes/no question; if the user declines, print the notice `otherwise`.

        Raises: UsageError: the command does not run in a terminal.
        """
        show(self.output.console(to_stderr=True))
        agreed = self.output.confirm(question)
        if not agreed:
            self.output.notice(otherwise)
        return agreed

    def downloading(self, files: int = 1) -> "AbstractContextManager[OnEvent]":
        """Show a progress bar for each download and, if there are several (`files` are expected), one for the total."""
        from civman.cli import progress_bars  # the import takes 0.01 s, which --help can skip

        return progress_bars.downloading(self.output, files)

    def reading(self) -> "AbstractContextManager[OnEvent]":
        """Show a progress bar while files are read one after another."""
        from civman.cli import progress_bars

        return progress_bars.reading(self.output)

    def verifying(self) -> "AbstractContextManager[OnEvent]":
        """Show a progress bar while several threads read files."""
        from civman.cli import progress_bars

        return progress_bars.verifying(self.output)

    def upscaling(self, images: int) -> "AbstractContextManager[OnEvent]":
        """Show a progress bar while this number of images is upscaled."""
        from civman.cli import progress_bars

        return progress_bars.upscaling(self.output, images)

    def drawing(
        self, recipes: "Sequence[Recipe]", *, called: str = "prompt", is_spread: bool = False
    ) -> "AbstractContextManager[OnEvent]":
        """Show a progress bar while recipes are rendered.

        `is_spread`: they are rendered on several workers, so that their events do not arrive in order.
        """
        from civman.cli import progress_bars
        from civman.cli.job_progress import Share, shares

        whole = [Share(sum(recipe.count for recipe in recipes))]
        is_spread = is_spread or any(recipe.slots for recipe in recipes)
        return progress_bars.drawing(self.output, whole if is_spread else shares(recipes), called=called)


def _require_library(folder: Path) -> None:
    """Check that `folder` contains a library. Raises: NotFound (`no-library`): it does not."""
    if (folder / "library.db").exists() or (folder / "blobs").exists():
        return
    from civman.errors import Cause, NotFound

    raise NotFound(
        f"there is no library in `{folder}`",
        hint="check the path; `civman download` and `civman import` create a library in the folder of --library",
        code=Cause.NO_LIBRARY, path=str(folder),
    )  # fmt: skip


def command(
    *,
    network: Literal["never", "settings", "option"] = "never",
    has_library: bool = True,
    needs_library: bool = False,
    panels: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Callable[[Callable[Concatenate[Session, _Options], Result | None]], Callable[..., None]]:
    """Turn a function into a command: add the common options, pass it a `Session` first, and show its `Result`.

    `network`: "never" makes the command work offline, "settings" lets the settings decide, and "option" adds --offline.
    `needs_library`: refuse a --library folder that contains no library, because a mistyped path would look like an
    empty library. `panels`: maps the title of each panel of the help page to the parameters listed in it.
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
            session = Session(Output(as_json=as_json, quiet=quiet), library, offline, needs_library=needs_library)
            try:
                result = function(session, **options)  # type: ignore[call-arg, arg-type]  # its signature was built to match
            finally:
                session.close()
            if result is not None:
                session.output.show(result)

        panel_of = {name: title for title, names in panels.items() for name in names}
        own = [_in_panel(each, panel_of) for each in list(inspect.signature(function).parameters.values())[1:]]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        common = [
            inspect.Parameter(name, kind, default=False if name in ("as_json", "quiet") else None, annotation=option)
            for name, option in added.items()
        ]
        run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in [*own, *common]}
        return run

    return decorate


def _in_panel(parameter: inspect.Parameter, panel_of: Mapping[str, str]) -> inspect.Parameter:
    """Return the parameter with its option in the help panel that `panel_of` assigns to it, if there is one."""
    if parameter.name not in panel_of:
        return parameter
    kind, option = get_args(parameter.annotation)
    option = copy(option)
    option.rich_help_panel = panel_of[parameter.name]
    return parameter.replace(annotation=Annotated[kind, option])
