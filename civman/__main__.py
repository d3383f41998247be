"""The entry point of `civman` and of `python -m civman`: prepares the process before anything else is imported."""

import gc
import io
import os
import sys

_GARBAGE_EVERY = 500_000
"""The garbage collection threshold: the imports of a render create 360,000 objects and no garbage.

With Python's default of 700, they take 0.3 s longer, and with 100,000 still 0.2 s.
"""


def main() -> int:
    """Run the command given on the process's command line. Returns its exit code."""
    gc.set_threshold(_GARBAGE_EVERY)
    # otherwise pydantic asks every installed package whether it has a plugin, which takes 0.015 s
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    for stream in (sys.stdout, sys.stderr):
        # encodings other than UTF-8 lack characters; print `?` instead of failing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    from civman.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
