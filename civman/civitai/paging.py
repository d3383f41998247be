"""Searches CivitAI page by page, only as far as needed, and filters the results again.

The site's own filters are unreliable. CivitAI ignores an unknown tag or creator and returns the whole catalogue. If
there is a search text, CivitAI divides the results into pages before it filters them, so a page can be short or empty
although more pages follow. The site ignores the parameter `page`, so it is never sent.

Source: CivitAI's public REST API, `GET /api/v1/models`, August 2026.
"""

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

from civman.civitai.responses import SearchPage
from civman.civitai.transport import Params
from civman.civitai.wire_values import OnNotice
from civman.domain.search_query import ModelPage, Period, SearchQuery

PAGE_SIZE = 100
EMPTY_PAGES = 10
_CACHE_LAG = timedelta(hours=1)


def search_params(query: SearchQuery) -> list[tuple[str, str]]:
    """Build the query parameters of the first page.

    A list is sent as a repeated parameter. A flag is only sent if it is true, because the site takes any value as true.
    """
    pairs = [("limit", str(min(PAGE_SIZE, query.page_size, query.limit or PAGE_SIZE)))]
    pairs += [("query", query.text)] if query.text else []
    pairs += [("types", kind.value) for kind in query.types]
    pairs += [("baseModels", name) for name in query.base_models]
    pairs += [("tag", query.tag)] if query.tag else []
    if query.username:
        # the site removes all characters except letters, digits and `_` from `username`, so other names are sent as
        # `user`
        plain = re.fullmatch(r"[A-Za-z0-9_]+", query.username)
        pairs.append(("username" if plain else "user", query.username))
    pairs += [("sort", query.sort.value)] if query.sort else []
    pairs += [("period", query.period.value)] if query.period is not Period.ALL_TIME else []
    pairs += [("checkpointType", query.checkpoint_type.value)] if query.checkpoint_type else []
    pairs += [("ids", str(number)) for number in query.ids]
    pairs += [("modelVersionIds", ",".join(str(number) for number in query.version_ids))] if query.version_ids else []
    flags = {"nsfw": query.nsfw, "archived": query.include_archived, "earlyAccess": query.early_access}
    return pairs + [(name, "true") for name, is_on in flags.items() if is_on]


def matches(
    ask: Callable[[Params], SearchPage],
    query: SearchQuery,
    *,
    now: datetime,
    on_notice: OnNotice,
    before_page: Callable[[], None] = lambda: None,
) -> Iterator[ModelPage]:
    """Iterate over the matching models without repetition.

    The next page is requested only when it is needed; `before_page` is called first.
    """
    if query.text and query.sort:
        on_notice("CivitAI sorts the results of a text search by relevance and ignores the sort order")
    seen: set[int] = set()
    first = params = search_params(query)
    asked = {tuple(params)}
    given = idle = 0
    while True:
        page = ask(params)
        fresh = [item for item in page.items if item.model.id not in seen]
        seen.update(item.model.id for item in fresh)
        kept = [narrowed for item in fresh if (narrowed := _narrowed(item, query, now)) is not None]
        for item in kept:
            yield item
            given += 1
            if given == query.limit:
                return
        if _is_unfiltered(page, query):
            name = f"tag `{query.tag}`" if query.tag else f"creator `{query.username}`"
            on_notice(f"CivitAI does not know the {name} and returned results without it; the search stops here")
            return
        idle = 0 if kept else idle + 1
        following = _next(page, first)
        if following is None:
            return
        if tuple(following) in asked:
            on_notice("CivitAI's pages repeat; the search stops here and may be incomplete")
            return
        if idle == EMPTY_PAGES:
            on_notice(f"{EMPTY_PAGES} pages in a row contained no match; the search stops here and may be incomplete")
            return
        asked.add(tuple(following))
        params = following
        before_page()


def _next(page: SearchPage, first: list[tuple[str, str]]) -> list[tuple[str, str]] | None:
    """Build the query parameters of the next page from the cursor of `page`, or else from its `nextPage` URL.

    An API key in that URL is left out. None if there is no next page.
    """
    if page.next_cursor:
        return [*first, ("cursor", page.next_cursor)]
    if not page.next_page:
        return None
    try:
        pairs = parse_qsl(urlsplit(page.next_page).query, keep_blank_values=True)
    except ValueError:
        return None
    return [(name, value) for name, value in pairs if name != "token"] or None


def _is_unfiltered(page: SearchPage, query: SearchQuery) -> bool:
    """Whether the site ignored the requested tag or creator, because no model on the page matches."""
    if not page.items or not (query.tag or query.username):
        return False
    return not any(_has_tag(item, query) and _is_by(item, query) for item in page.items)


def _narrowed(item: ModelPage, query: SearchQuery, now: datetime) -> ModelPage | None:
    """Return `item` with only the versions that match, or None if none matches."""
    if query.types and item.model.type not in query.types:
        return None
    if not (_has_tag(item, query) and _is_by(item, query)):
        return None
    if query.ids and item.model.id not in query.ids:
        return None
    if query.base_models and item.versions:
        fitting = tuple(version for version in item.versions if version.base_model in query.base_models)
        return ModelPage(item.model, fitting) if fitting else None
    # with a search text, the site does not apply all filters, so check the period here. With a base model filter, do
    # not check it: the filter may have removed the latest version, and the date of that version counts
    return None if query.text and not query.base_models and not _is_young(item, query, now) else item


def _has_tag(item: ModelPage, query: SearchQuery) -> bool:
    return query.tag is None or query.tag.strip().casefold() in (tag.strip().casefold() for tag in item.model.tags)


def _is_by(item: ModelPage, query: SearchQuery) -> bool:
    if query.username is None or item.model.creator is None:  # responses leave out the name of the site's own account
        return True
    return item.model.creator.casefold() == query.username.strip().casefold()


def _is_young(item: ModelPage, query: SearchQuery, now: datetime) -> bool:
    longest = query.period.longest
    published = [version.published_at for version in item.versions if version.published_at is not None]
    return longest is None or not published or max(published) >= now - longest - _CACHE_LAG
