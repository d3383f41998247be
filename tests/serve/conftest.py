"""The servers that these tests ask."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from serve_running import served as served
from serve_running import stocked_library as stocked_library
