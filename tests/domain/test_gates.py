"""Whether a file may be fetched, said before any transfer. The fault matrix has the site's own refusals."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from civman.domain.access import Permits, check_gates
from civman.domain.catalog import FileId, Gate, Model, ModelFile, ModelId, ModelType, ModelVersion, Scan, VersionId
from civman.domain.digests import Hashes, Sha256
from civman.errors import CivmanError, Gone, NotAllowed, Refused

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
MODEL = Model(ModelId(1), "Harbour", ModelType.LORA, "LORA")
FILE = ModelFile(
    FileId(3),
    "a.safetensors",
    "Model",
    10,
    Hashes(Sha256("ab" * 32)),
    pickle_scan=Scan.SUCCESS,
    virus_scan=Scan.SUCCESS,
)
PICKLE = replace(FILE, id=FileId(4), name="a.ckpt", format="PickleTensor")
VERSION = ModelVersion(VersionId(9), MODEL, "v1", "SD 1.5", (FILE,))


def gates(
    version: ModelVersion = VERSION, file: ModelFile = FILE, *, has_token: bool = True, **permits: bool
) -> list[str]:
    return check_gates(version, file, permits=Permits(**permits), has_token=has_token, now=NOW)


def test_an_ordinary_file_passes_without_a_word() -> None:
    assert gates() == []
    assert gates(has_token=False) == []


@pytest.mark.parametrize(
    ("version", "file", "has_token", "kind", "code"),
    [
        (replace(VERSION, model=replace(MODEL, mode="Archived")), FILE, True, Gone, "archived"),
        (replace(VERSION, usage_control="Generation"), FILE, True, NotAllowed, "downloads-disabled"),
        (replace(VERSION, gate=Gate(ends_at=NOW + timedelta(days=3))), FILE, False, NotAllowed, "early-access"),
        (VERSION, replace(FILE, virus_scan=Scan.DANGER), True, Refused, "scan-danger"),
        (VERSION, replace(FILE, pickle_scan=Scan.DANGER), True, Refused, "scan-danger"),
        (VERSION, replace(FILE, hashes=Hashes(autov2="ab" * 5)), True, Refused, "no-hash"),
    ],
)
def test_what_may_not_be_had_has_one_cause(
    version: ModelVersion, file: ModelFile, has_token: bool, kind: type[CivmanError], code: str
) -> None:
    with pytest.raises(kind) as refused:
        gates(version, file, has_token=has_token)

    assert refused.value.code == code
    assert refused.value.hint


def test_a_permit_opens_its_own_gate_only() -> None:
    dangerous = replace(PICKLE, virus_scan=Scan.DANGER)

    with pytest.raises(Refused) as refused:
        gates(file=dangerous, pickle=True)

    assert refused.value.code == "scan-danger"
    assert gates(file=dangerous, pickle=True, unsafe=True)[-1] == "CivitAI's virus scan found a threat in `a.ckpt`"


@pytest.mark.parametrize("scan", [Scan.ERROR, Scan.PENDING])
def test_an_unfinished_scan_is_a_word_for_safetensors_and_a_refusal_for_pickles(scan: Scan) -> None:
    assert len(gates(file=replace(FILE, virus_scan=scan))) == 1
    with pytest.raises(Refused, match="scan"):
        gates(file=replace(PICKLE, virus_scan=scan), pickle=True)


def test_a_pickle_needs_no_permit_and_points_at_its_safe_sibling() -> None:
    assert gates(replace(VERSION, files=(PICKLE,)), PICKLE) == []

    (notice,) = gates(replace(VERSION, files=(PICKLE, FILE)), PICKLE)

    assert "--file 3" in notice


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (Gate(ends_at=NOW + timedelta(days=3, hours=1)), "2026-06-04 (3 days left)"),
        (Gate(ends_at=NOW + timedelta(hours=5)), "less than a day"),
        (Gate(), "with no end date yet"),
        (Gate(permanent=True), "paid access"),
    ],
)
def test_a_gate_says_when_it_opens(gate: Gate, words: str) -> None:
    assert words in gates(replace(VERSION, gate=gate))[0]


def test_a_gate_that_is_over_is_no_gate() -> None:
    assert gates(replace(VERSION, gate=Gate(ends_at=NOW - timedelta(hours=1))), has_token=False) == []
