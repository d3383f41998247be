"""The command `civman demo`."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from civman.cli.session import LibraryOpt

_STEPS: tuple[tuple[str, ...], ...] = (
    ("search", "--type", "Checkpoint", "--sort", "Most Downloaded"),
    ("show", "51207"),
    ("download", "51207", "--dry-run"),
    ("download", "51207"),
    ("search", "ink", "wash", "--type", "LORA"),
    ("download", "civitai:139562", "urn:air:sdxl:checkpoint:civitai:60344@139700"),
    ("check", "51207", "--lora", "civitai:139562:0.8"),
    ("list",),
    ("verify", "--full"),
)
_DRAWING: tuple[tuple[str, ...], ...] = (
    ("download", "91001", "civitai:91003", "91012"),
    (
        "render", "91012", "a large red circle on a blue background", "--seed", "1", "--threads", "1",
        "--grid", "checkpoint=91012,91001", "--grid", "s/r=red circle,green square,yellow triangle",
    ),
    (
        "render", "91001", "a large red circle on a blue background", "--lora", "91003:1", "--cfg", "4", "--seed", "1",
        "--threads", "1",
        "--grid", "s/r=red circle,green square,yellow triangle", "--grid", "lora:91003=0,0.5,1",
    ),
    ("renders", "--limit", "3"),
)  # fmt: skip
"""Further steps of the demo, run only if the packages for rendering are installed; then the newest image is replayed.
"""


def demo(
    serve: Annotated[
        bool, typer.Option("--serve", help="Only run the server, for commands in another terminal; Ctrl-C stops it.")
    ] = False,
    port: Annotated[int, typer.Option(help="The server's port; 0 chooses any free port.")] = 0,
    library: LibraryOpt = None,
) -> None:
    """Demonstrate civman without a network: start a small copy of CivitAI's API here and run commands with it."""
    from civman.demo.server import CivitaiServer
    from civman.planning.render_extra import missing_parts
    from civman.settings import load_settings

    settings = load_settings(library=library)
    place = settings.library
    if settings.sources["library"] == "default":
        # use a separate folder, so that no demo models are added to the user's library
        place = place.with_name("demo-library")
    with CivitaiServer(port=port) as server:
        environ = {
            **os.environ,
            "CIVMAN_CIVITAI_URL": server.url,
            "CIVITAI_API_TOKEN": server.token,
            "CIVMAN_LIBRARY": str(place),
            "CIVMAN_OFFLINE": "",
        }
        if serve:
            _serve(environ)
            return
        for step in _STEPS:
            _run(step, environ)
        if can_draw := not missing_parts():
            for step in _DRAWING:
                _run(step, environ)
            newest = subprocess.run(
                [sys.executable, "-m", "civman", "renders", "--limit", "1", "--quiet"],
                env=environ, check=True, capture_output=True, text=True,
            ).stdout.strip()  # fmt: skip
            _run(("replay", newest), environ)
    _farewell(place, can_draw=can_draw)


def _run(step: tuple[str, ...], environ: dict[str, str]) -> None:
    """Print a command line and run it. Raises: CivmanError (`demo-failed`): the command failed."""
    from civman.errors import Cause, CivmanError, ExitCode

    typer.echo(f"$ civman {shlex.join(step)}")
    sys.stdout.flush()
    code = subprocess.run([sys.executable, "-m", "civman", *step], env=environ, check=False).returncode  # noqa: S603
    if code != ExitCode.DONE:
        raise CivmanError(
            f"the demo stopped: `civman {' '.join(step)}` failed with exit code {code}",
            code=Cause.DEMO_FAILED,
            hint="`civman doctor` may find the cause",
        )
    typer.echo()


def _serve(environ: dict[str, str]) -> None:
    import threading

    typer.echo("A small copy of CivitAI's API is running. In another terminal, run:\n")
    for name in ("CIVMAN_CIVITAI_URL", "CIVITAI_API_TOKEN", "CIVMAN_LIBRARY"):
        typer.echo(f"  export {name}={environ[name]}")
    typer.echo("  civman search\n\nCtrl-C stops the server.")
    sys.stdout.flush()
    threading.Event().wait()


def _farewell(place: Path, *, can_draw: bool) -> None:
    if can_draw:
        sheets = sorted((place / "renders").glob("grid-*.png"), key=lambda path: path.stat().st_mtime)
        typer.echo(f"The contact sheet of the images: {sheets[-1]}\n")
    else:
        typer.echo("With `pip install 'civman[render]'` the demo also renders an image and replays it.\n")
    typer.echo(f"The library remains in {place}. You can continue there, for example:\n")
    option = f" --library {place}"
    for line in (f"list{option} --type LORA", f"show 51207{option} --offline", f"verify{option}"):
        typer.echo(f"  civman {line}")
    typer.echo("\n`civman demo --serve` runs the server until Ctrl-C, so that you can try your own commands.")
