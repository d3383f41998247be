"""No odd file makes a command end as a bug would; `make fuzz` runs this for longer."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tests.fuzz_header import run_commands


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_odd_checkpoints_and_adapters_are_answered_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVMAN_OFFLINE", "1")

    codes = run_commands(8, seed=20261128)

    assert codes["exit 0"] > 0
    assert "exit 70" not in codes
