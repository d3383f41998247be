"""A download that is killed at any moment goes on, and nothing wrong is ever left behind."""

import statistics
import sys
from pathlib import Path

import pytest
from crashing import kills
from rig import model_bytes


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_download_killed_eight_times_ends_verified_and_fetches_little_again(tmp_path: Path) -> None:
    data = model_bytes(16_000_000)
    root = tmp_path / "library"

    rounds = list(kills(data, root, 8, seconds=6.0, seed=20))

    assert statistics.median(kill.lost_bytes for kill in rounds) <= 0.05 * len(data)
    assert max(kill.held_bytes for kill in rounds) > 0.3 * len(data)
