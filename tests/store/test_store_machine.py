"""The store under any order of receiving, cutting, poisoning, crashing, committing and removing."""

import hashlib
import os
import shutil
import tempfile
import threading
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from civman.domain.digests import Sha256
from civman.errors import HashMismatch
from civman.store.blobs import BlobStore
from civman.store.digester import Digester
from civman.store.partial import Partial
from civman.system.process_lock import FileLock

SIZE = 4000
TRUTHS = [(bytes(range(number, 251)) * 17)[:SIZE] for number in range(3)]
KEYS = [Sha256(hashlib.sha256(truth).hexdigest()) for truth in TRUTHS]
WHICH = st.integers(0, len(TRUTHS) - 1)


class Store(RuleBasedStateMachine):
    """One process with a store; `crash` forgets all that is open, as a kill does."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="civman-machine-"))
        self.store = BlobStore(self.root)
        self.open: dict[int, Partial] = {}

    @rule(which=WHICH)
    def acquire(self, which: int) -> None:
        if which not in self.open:
            partial = self.store.partial(KEYS[which])
            assert partial.acquire()
            partial.reserve(SIZE)
            self.open[which] = partial

    @precondition(lambda self: self.open)
    @rule(data=st.data(), start=st.integers(0, SIZE - 1), length=st.integers(1, SIZE), is_poison=st.booleans())
    def receive(self, data: st.DataObject, start: int, length: int, is_poison: bool) -> None:
        which = data.draw(st.sampled_from(sorted(self.open)))
        truth = TRUTHS[which][start : start + length]
        self.open[which].write(start, bytes(byte ^ 0xFF for byte in truth) if is_poison else truth)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def receive_the_rest(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from(sorted(self.open)))
        for start, end in self.open[which].missing():
            self.open[which].write(start, TRUTHS[which][start:end])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        self.open.pop(data.draw(st.sampled_from(sorted(self.open)))).close()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def start_over(self, data: st.DataObject) -> None:
        partial = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        partial.reset()
        partial.reserve(SIZE)

    @rule()
    def crash(self) -> None:
        """The system closes descriptors and drops locks; nobody brings a journal up to date."""
        for partial in self.open.values():
            partial._close_file()
            _drop(partial._lock)
        self.open.clear()

    @precondition(lambda self: any(partial.is_complete for partial in self.open.values()))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from(sorted(key for key, partial in self.open.items() if partial.is_complete)))
        partial = self.open.pop(which)
        actual = Digester(partial, lambda done: None).finish(threading.Event())
        on_disk = hashlib.sha256(partial.path.read_bytes()).hexdigest()
        assert actual == on_disk
        try:
            blob = self.store.commit(partial, expected=KEYS[which], actual=actual, name="x", suffix=".bin")
        except HashMismatch:
            assert actual != KEYS[which]
        else:
            assert blob.path.read_bytes() == TRUTHS[which]

    @rule(which=WHICH)
    def remove(self, which: int) -> None:
        self.store.remove(KEYS[which])

    @invariant()
    def every_blob_is_what_its_name_says(self) -> None:
        for blob in self.store.blobs():
            assert hashlib.sha256(blob.path.read_bytes()).hexdigest() == blob.sha256

    @invariant()
    def what_counts_as_received_is_on_disk(self) -> None:
        for which, partial in self.open.items():
            data = partial.path.read_bytes()
            truth = TRUTHS[which]
            for start, end in partial.ranges:
                for at in range(start, end, 97):
                    assert data[at] in (truth[at], truth[at] ^ 0xFF)

    def teardown(self) -> None:
        for partial in self.open.values():
            partial.close()
        shutil.rmtree(self.root)


def _drop(lock: FileLock) -> None:
    assert lock._descriptor is not None
    os.close(lock._descriptor)
    lock._descriptor = None


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
