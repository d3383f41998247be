"""CivitAI's API and its file storage. The only code that speaks HTTP."""

import sys

# httpx imports its own command line if click, pygments and rich are installed, which takes 0.06 s. With this entry the
# import fails, and httpx works without it.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
