"""Without `serve`, nothing of the server is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("argv", [["--help"], ["list"], ["render", "--help"], ["render", "nothing", "a"]])
def test_other_commands_import_nothing_of_the_server(argv: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, civman.cli.app as app\n"
        f"app.main({argv!r})\n"
        "print([name for name in sys.modules if name.startswith(('civman.serve', 'starlette', 'uvicorn', 'anyio'))"
        " and 'httpx' not in sys.modules])"
    )
    environment = {**os.environ, "CIVMAN_LIBRARY": str(tmp_path / "library")}

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert done.stdout.splitlines()[-1] == "[]", done.stderr
