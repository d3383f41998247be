"""Resumable searches of CivitAI: each page of results continues where the previous one ended."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from civman.domain.search_query import ModelPage

_MOST = 20
_SECONDS = 600.0


@dataclass(slots=True)
class _Search:
    pages: Iterator[ModelPage]
    started: float
    found: list[ModelPage] = field(default_factory=list)
    is_over: bool = False


class SiteSearches:
    """Keeps the latest searches of CivitAI, by query. Not thread-safe: use it only in the thread that searches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._searches: dict[str, _Search] = {}
        self._clock = clock

    def results(
        self, key: str, begin: Callable[[], Iterator[ModelPage]], offset: int, limit: int
    ) -> tuple[list[ModelPage], bool]:
        """Return results `offset` to `offset + limit` of a search, and whether there may be more.

        `begin` starts the search if none is stored under `key`. After an error, the next call starts the search again.
        """
        search = self._searches.pop(key, None)
        if search is None or (offset == 0 and self._clock() - search.started > _SECONDS):
            search = _Search(begin(), self._clock())
        while not search.is_over and len(search.found) < offset + limit:
            page = next(search.pages, None)
            if page is None:
                search.is_over = True
            else:
                search.found.append(page)
        self._searches[key] = search
        while len(self._searches) > _MOST:
            del self._searches[next(iter(self._searches))]
        return search.found[offset : offset + limit], not search.is_over or len(search.found) > offset + limit
