"""Access to CivitAI's API and its file storage. No other package speaks HTTP."""

import sys

# httpx imports its command-line interface if click, pygments and rich are installed, which takes 0.06 s. This entry
# makes that import fail; the rest of httpx works without it.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
