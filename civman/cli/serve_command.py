"""The command `civman serve`."""

import re
from typing import Annotated

import typer

from civman.cli.output import Result
from civman.cli.session import Session, command


@command(network="option")
def serve(
    session: Session,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 chooses any free port.")] = 7860,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The address to listen on. If other computers can reach it, their clients need a token.",
        ),
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further host name under which browsers reach the server (repeatable)."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Origin of another site whose pages may use the API, such as https://example.org (repeatable).",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Maximum memory for loaded models, such as 12GB.",
            show_default="half of the free memory",
        ),
    ] = None,
    warm: Annotated[
        bool, typer.Option("--warm", help="Start the rendering process now instead of with the first render.")
    ] = False,
) -> Result | None:
    """Serve a web page and APIs, keep models loaded, and render for other commands and programs.

    Open the printed URL in a browser of this computer for the page with the library, CivitAI, images and jobs. While
    the server runs, `civman render` and `civman replay` use it and start at once. Other programs can use its JSON API,
    which `/api/v1/openapi.json` describes, or the image APIs of AUTOMATIC1111 and OpenAI. Ctrl-C stops it.
    """
    _require_serve_extra()
    from civman.cli.app import main
    from civman.serve.web_app import ServeOptions, run_server

    settings = session.library.context.settings
    session.close()
    output, is_local = session.output, host in ("127.0.0.1", "localhost", "::1")
    options = ServeOptions(host, port, tuple(allow_origin or ()), tuple(name or ()), _budget(keep), warm)

    def ready(address: str, token: str) -> None:
        if output.as_json:
            output.show(Result("serve", {"address": address}, human=lambda _: None))
        elif output.quiet:
            output.line(address)
            output.flush()
        else:
            output.notice(f"serving the library in {settings.library} on {address}; Ctrl-C stops it")
            if not is_local:
                output.notice(f"other computers need this token: {token}; in a browser, add /?token={token}")

    run_server(settings, options, main, ready)
    return None


def _require_serve_extra() -> None:
    from importlib.util import find_spec

    from civman.errors import CannotRender, Cause

    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise CannotRender(
            f"serving needs packages that are not installed: {', '.join(missing)}",
            hint='install them with `pip install "civman[serve,render]"`', code=Cause.NO_RENDER_EXTRA, missing=missing,
        )  # fmt: skip


def _budget(text: str | None) -> int:
    """Return the maximum memory for loaded models in bytes. Raises: UsageError: `text` is not a size."""
    from civman.errors import UsageError
    from civman.system.system_facts import available_memory_bytes

    if text is None:
        return (available_memory_bytes() or 0) // 2
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"--keep {text}: expected a size such as 12GB")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " "))
