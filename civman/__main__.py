"""The `civman` program, also as `python -m civman`: what must be set before anything is imported, then the commands."""

import gc
import io
import os
import sys

_GARBAGE_EVERY = 100_000
"""Containers made between two searches for circles of garbage; Python's own 700 take 0.04 s of a command's imports."""


def main() -> int:
    """Run the command that the process was started with; its exit code."""
    gc.set_threshold(_GARBAGE_EVERY)
    # or pydantic asks every package that is installed whether it has a plugin: 0.015 s
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no encoding but UTF-8 has every name: a `?` is better than an error
            stream.reconfigure(errors="replace")
    from civman.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
