"""Access to CivitAI's API and its file storage. Other packages send no HTTP requests."""

import sys

# httpx imports its command-line interface if click, pygments and rich are installed, which takes 0.06 s. This entry
# makes that import fail. httpx works without its command-line interface.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
