"""The machine that reads pickles: nothing in a hostile corpus runs, and every refusal names the cause."""

import contextlib
import io
import pickle
import time
from pathlib import Path

import hostile_pickles as corpus
import pytest

from civman.domain.files.pickle_globals import ALLOWED
from civman.domain.files.pickle_machine import NeedsMore, run
from civman.domain.files.pickle_tensors import name_tensors
from civman.errors import CivmanError, InvalidModelFile, Refused

MOST_SECONDS = 4.0
"""Processor time for the worst file of the corpus; it takes under a second on an idle core."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", corpus.RUNS)
def test_a_real_unpickler_runs_what_civman_refuses(case: str, here: Path) -> None:
    data = corpus.RUNS[case]

    with pytest.raises(Refused) as refused:
        run(data, member="data.pkl")
    assert refused.value.code == "pickle"
    assert str(refused.value.facts["global"]) in refused.value.message
    assert "in data.pkl" in refused.value.message
    assert not (here / corpus.CANARY).exists()

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: object) -> object:
            return pid

    with contextlib.suppress(Exception):  # what comes of it does not matter: the canary does
        Unpickler(io.BytesIO(data)).load()
    assert (here / corpus.CANARY).is_dir(), "this pickle does not do what the corpus says"


@pytest.mark.parametrize("case", corpus.NAMES)
def test_what_is_not_allowed_is_refused_by_name(case: str, here: Path) -> None:
    data, words = corpus.NAMES[case]

    with pytest.raises(CivmanError) as refused:
        run(data, member="data.pkl")

    assert isinstance(refused.value, Refused | InvalidModelFile)
    assert words in refused.value.message
    assert len(refused.value.message) < 400
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("case", corpus.BOMBS)
def test_no_small_file_takes_long(case: str) -> None:
    data, began = corpus.BOMBS[case], time.process_time()

    with pytest.raises((CivmanError, NeedsMore)):
        name_tensors(run(data, member="data.pkl").value)

    assert time.process_time() - began < MOST_SECONDS


@pytest.mark.parametrize("case", ["no tensors", "a tensor alone"])
def test_values_without_names(case: str) -> None:
    value = run(corpus.PROTO + (b"}" if case == "no tensors" else corpus.TENSOR) + corpus.STOP, member="data.pkl").value

    if case == "no tensors":
        with pytest.raises(InvalidModelFile, match="no tensors"):
            name_tensors(value)
    else:
        assert list(name_tensors(value).tensors) == ["tensor"]


def test_no_prefix_of_a_pickle_is_taken_for_a_whole_one() -> None:
    for end in range(len(corpus.HARMLESS)):
        with pytest.raises((NeedsMore, InvalidModelFile)):
            run(corpus.HARMLESS[:end], member="data.pkl")


def test_the_allow_list_names_nothing_that_loads_or_runs() -> None:
    """No allowed name is of a module that can run things, apart from plain types of `builtins`."""
    doubtful = {
        "os", "posix", "nt", "subprocess", "sys", "runpy", "webbrowser", "socket", "importlib", "pickle", "io",
        "shutil", "ctypes", "code", "pty", "threading", "multiprocessing", "operator", "functools", "builtins",
        "__builtin__", "torch.hub",
    }  # fmt: skip
    harmless = {
        "set", "frozenset", "list", "tuple", "dict", "complex", "slice", "int", "long", "float", "str", "unicode",
        "bool", "bytes", "object",
    }  # fmt: skip

    for full in ALLOWED:
        module, _, attribute = full.rpartition(".")
        is_type = module in ("builtins", "__builtin__") and attribute in harmless
        assert is_type or not {module, module.split(".")[0]} & doubtful, full
        assert attribute not in ("load", "loads", "eval", "exec", "compile", "getattr", "open", "apply", "__import__")
