"""The only code that speaks HTTP."""

import sys

# httpx brings a command line of its own where click, pygments and rich happen to be there: 0.06 s of imports. It does
# without where that cannot be imported.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
