"""The servers that these tests ask, and the browser that looks at their page."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from browser_running import axe as axe
from browser_running import chromium as chromium
from browser_running import look as look
from browser_running import page_environment as page_environment
from browser_running import page_server as page_server
from browser_running import site as site
from serve_running import served as served
from serve_running import stocked_library as stocked_library
