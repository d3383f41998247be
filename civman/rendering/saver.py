"""Saves images in a separate thread, so that the next image can be computed meanwhile.

Compressing a PNG of 1024x1024 pixels takes about as long as several sampling steps on a fast GPU. Images are saved in
the order in which they were queued. If too many are waiting because the disk is slower than the GPU, `put` waits until
one of them is saved.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_WAITING = 3
"""The maximum number of images that wait to be saved, including the one that is being saved."""


class Saver(Generic[Item, Result]):
    """Calls `save` for each item in a thread, in order. Use it as a context manager, from one thread.

    After an error in `save`, nothing more is saved, and the next `put` or the end of the block raises the error. If the
    block ends for any other reason, all items that were put are saved first.
    """

    def __init__(self, save: Callable[[Item], Result], done: Callable[[Result], None]) -> None:
        """`done` is called with each result of `save`, in order, in the thread that calls `put`."""
        self._save, self._done = save, done
        self._pool = ThreadPoolExecutor(1, "civman saver")
        self._unsaved: deque[Future[Result]] = deque()
        self._failed: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def put(self, item: Item) -> None:
        """Queue an item to be saved after all earlier ones. Raises: what `save` raised for an earlier item."""
        while self._unsaved and (len(self._unsaved) >= _MOST_WAITING or self._unsaved[0].done()):
            self._done(self._unsaved.popleft().result())
        self._unsaved.append(self._pool.submit(self._guarded, item))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        while self._unsaved:
            saved = self._unsaved.popleft()
            if (failure := saved.exception()) is None:
                self._done(saved.result())
            elif failure is not error:
                # raise the first error of `save`, not the error that ended the block
                raise failure from error
            else:
                return

    def _guarded(self, item: Item) -> Result:
        if self._failed is not None:
            raise self._failed
        try:
            return self._save(item)
        except BaseException as error:
            self._failed = error
            raise
