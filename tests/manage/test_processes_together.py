"""Several civmans, a reader, and random kills: afterwards every row has its bytes. The full minute is a benchmark."""

import importlib.util
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.slow
def test_four_processes_and_random_kills_leave_a_sound_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the processes get an environment of their own
    spec = importlib.util.spec_from_file_location("together", REPOSITORY / "benchmarks" / "together.py")
    assert spec is not None
    assert spec.loader is not None
    together = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["together"] = together
    spec.loader.exec_module(together)

    outcome = together.run(tmp_path / "library", 20)

    assert outcome.problems == []
    assert outcome.reads > 0
    assert sum(outcome.runs.values()) >= 4
