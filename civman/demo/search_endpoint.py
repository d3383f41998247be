"""`GET /api/v1/models`: validation as in CivitAI's schema, filters, sort orders and cursors.

Source: CivitAI's public source, August 2026. The odd behaviour is the real site's, and clients have to cope with it: an
ignored page number, flags that are true whatever their value, an unknown tag that disables the tag filter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from civman.demo.demo_catalog import PG, Catalogue, DemoModel, DemoVersion
from civman.demo.enums import Vocabulary
from civman.demo.file_selection import public_files
from civman.demo.query_parameters import Issue, Params, Reader

_RATED = 31
_PERIOD_DAYS = {"Day": 1, "Week": 7, "Month": 30, "Year": 365}


@dataclass(frozen=True, slots=True)
class Search:
    """A valid request for a page of models."""

    limit: int
    page: int | None
    cursor: str | None
    query: str | None
    ids: frozenset[int] | None
    version_ids: frozenset[int] | None
    types: list[str]
    base_models: list[str]
    tag: str | None
    username: str | None
    sort: str
    period: str
    nsfw: bool
    checkpoint_type: str | None
    commercial_use: list[str]
    file_formats: list[str]
    availability: str | None
    supports_generation: bool
    from_platform: bool
    early_access: bool
    archived: bool
    primary_file_only: bool


def read_search(params: Params, vocabulary: Vocabulary) -> Search | list[Issue]:
    """Validate the parameters of a search; return the search or the schema's errors."""
    reader, sets = Reader(params), vocabulary.sets
    reader.unreachable()
    if len(params.get("fileFormats", [])) == 1:
        reader.issues.append({"expected": "array", "code": "invalid_type", "path": ["fileFormats"],
                              "message": "Invalid input: expected array, received string"})  # fmt: skip
    username = reader.text("username")
    search = Search(
        limit=reader.number("limit", 100, 0, 100),
        page=reader.number("page", 1, 1) if "page" in params else None,
        cursor=reader.text("cursor"),
        query=reader.text("query"),
        ids=reader.integers("ids"),
        version_ids=reader.integers("modelVersionIds"),
        types=reader.some_of("types", sets["ModelType"]),
        base_models=list(params.get("baseModels", [])),
        tag=reader.text("tagname") or reader.text("tag"),
        username=slug(username) if username else reader.text("user"),
        sort=reader.one_of("sort", sets["model_sort"], "Highest Rated") or "",
        period=reader.one_of("period", sets["period"], "AllTime") or "",
        nsfw=reader.boolean("nsfw"),
        checkpoint_type=reader.one_of("checkpointType", sets["checkpoint_type"]),
        commercial_use=reader.some_of("allowCommercialUse", sets["commercial_use"]),
        file_formats=reader.some_of("fileFormats", sets["file_format"]),
        availability=reader.one_of("availability", sets["availability"]),
        supports_generation=reader.presence("supportsGeneration"),
        from_platform=reader.presence("fromPlatform"),
        early_access=reader.presence("earlyAccess"),
        archived=reader.presence("archived"),
        primary_file_only=reader.boolean("primaryFileOnly"),
    )
    if reader.one_of("periodMode", sets["period_mode"], "published") == "stats":
        search = _without_period(search)
    return reader.issues or search


def slug(username: str) -> str:
    """Convert a name to the form that the `username` filter expects.

    The filter cannot find names that contain dots or dashes.
    """
    return re.sub(r"[^a-z0-9_]", "", username.lower().replace(" ", "_", 1))


def wanted_uses(value: list[str] | str) -> set[str]:
    """Parse the allowed commercial uses from any of CivitAI's three formats.

    The oldest format is a single word, such as "Rent", which includes all lesser uses.
    """
    ladder = ["Image", "RentCivit", "Rent", "Sell"]
    if isinstance(value, list):
        return set(value)
    if value.startswith("{"):
        return {part for part in value.strip("{}").split(",") if part}
    return set(ladder[: ladder.index(value) + 1]) if value in ladder else set()


Hit = tuple[DemoModel, list[DemoVersion]]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of search results; `wrong_cursor` is the error message if the cursor belongs to another sort order."""

    hits: list[Hit]
    next_cursor: str | None = None
    wrong_cursor: str | None = None


def find(catalogue: Catalogue, search: Search, now: datetime) -> Page:
    """Return one page. With a search text, filters are applied after paging, so pages may be short or empty."""
    if search.query:
        return _by_text(catalogue, search, now)
    hits = [hit for model in catalogue if (hit := _visible(catalogue, model, search, now))]
    keys = {model.id: _key(model, search.sort) for model, _ in hits}
    newest_first = search.sort != "Oldest"
    hits.sort(key=lambda hit: keys[hit[0].id], reverse=newest_first)
    if search.cursor:
        arity = len(_key(DemoModel(0, "", ""), search.sort))
        start = _cursor_key(search.cursor, search.sort)
        if start is None:
            received = search.cursor.count("|") + 1
            return Page(
                [], wrong_cursor=f"Invalid cursor: expected {arity} value(s) for this sort, received {received}"
            )
        hits = [hit for hit in hits if (keys[hit[0].id] <= start if newest_first else keys[hit[0].id] >= start)]
    if search.limit == 0:
        return Page(hits[:1])
    following = hits[search.limit : search.limit + 1]
    cursor = "|".join(str(part) for part in keys[following[0][0].id]) if following else None
    return Page(hits[: search.limit], cursor)


def _by_text(catalogue: Catalogue, search: Search, now: datetime) -> Page:
    if search.cursor and not search.cursor.isdecimal():
        return Page([], wrong_cursor=_wrong_cursor(search.cursor, 1))
    offset = int(search.cursor or 0)
    levels = _RATED if search.nsfw else PG
    words = re.findall(r"\w+", (search.query or "").lower())
    scored = [
        (score, model)
        for model in catalogue
        if model.nsfw_level & levels and (not search.types or model.type in search.types)
        and (score := _relevance(model, words))
    ]  # fmt: skip
    ranked = [model for _, model in sorted(scored, key=lambda hit: (-hit[0], hit[1].id))]
    taken = ranked[offset : offset + max(search.limit, 1)]
    cursor = str(offset + search.limit) if search.limit and offset + search.limit < len(ranked) else None
    return Page([hit for model in taken if (hit := _visible(catalogue, model, search, now))], cursor)


def _relevance(model: DemoModel, words: Sequence[str]) -> int:
    """Compute the relevance of a model; 0 unless every search word matches.

    A search word matches if a word in the name, the creator or the trigger words, or a file's hash, starts with it.
    """
    name = re.findall(r"\w+", model.name.lower())
    rest = [model.creator or "", *(word for version in model.versions for word in version.trained_words)]
    others = [word for text in rest for word in re.findall(r"\w+", text.lower())]
    others += [value.lower() for version in model.versions for f in version.files for value in f.hashes.values()]
    score = 0
    for word in words:
        if any(each.startswith(word) for each in name):
            score += 10
        elif any(each.startswith(word) for each in others):
            score += 1
        else:
            return 0
    return score


def _visible(catalogue: Catalogue, model: DemoModel, search: Search, now: datetime) -> Hit | None:
    """Return the model with the versions to show, or None if a filter excludes it."""
    ids = None if search.query else search.ids  # CivitAI ignores `ids` if there is a search text
    if not _is_listed(model, search) or (ids is not None and model.id not in ids):
        return None
    known_tag = search.tag and any(_has_tag(each, search.tag) for each in catalogue)
    if known_tag and not _has_tag(model, search.tag or ""):
        return None
    if not _model_matches(model, search, now):
        return None
    versions = [version for version in model.published if public_files(version)]
    if ids is None and search.username is None:
        versions = [version for version in versions if version.availability == "Public"]
    if search.base_models:
        versions = [version for version in versions if version.base_model in search.base_models]
    if search.version_ids is not None:
        versions = [version for version in versions if version.id in search.version_ids]
    return (model, versions) if versions else None


def _is_listed(model: DemoModel, search: Search) -> bool:
    level = model.nsfw_level & (_RATED if search.nsfw else PG)
    hidden = model.poi or model.status != "Published" or model.availability == "Private" or not level
    return not hidden and not (search.nsfw and model.minor) and (search.archived or model.mode != "Archived")


def _has_tag(model: DemoModel, tag: str) -> bool:
    return tag.lower() in (each.lower() for each in model.tags)


def _model_matches(model: DemoModel, search: Search, now: datetime) -> bool:
    versions = model.published
    days = _PERIOD_DAYS.get(search.period)
    files = [file for version in versions for file in version.files if file.type == "Model"]
    gates = [version.gate for version in versions if version.gate]
    return all((
        not search.types or model.type in search.types,
        search.username is None or slug(model.creator or "") == search.username or model.creator == search.username,
        days is None or _last_published(model) > now - timedelta(days=days),
        search.checkpoint_type is None or model.checkpoint_type == search.checkpoint_type,
        not search.commercial_use
        or bool((wanted_uses(model.allow_commercial_use) or {"None"}) & set(search.commercial_use)),
        not search.file_formats or any(file.format in search.file_formats for file in files),
        search.availability is None or model.availability == search.availability,
        not search.supports_generation or any(version.supports_generation for version in versions),
        not search.from_platform or any(version.upload_type == "Trained" for version in versions),
        not search.early_access or any(gate.is_active(now) and not gate.permanent for gate in gates),
    ))  # fmt: skip


def _last_published(model: DemoModel) -> datetime:
    return max((version.published_at for version in model.published), default=datetime.fromisoformat("1970-01-01T00Z"))


def _key(model: DemoModel, sort: str) -> tuple[int, ...]:
    """Build the sort key of a model. It is unique, because it ends with the model's id."""
    if sort in ("Newest", "Oldest"):
        return round(_last_published(model).timestamp() * 1000), model.id
    thumbs, downloads, comments = model.thumbs_up or 0, model.downloads or 0, model.comments or 0
    images = sum(len(version.images) for version in model.published)
    first = {"Most Downloaded": downloads, "Most Discussed": comments, "Most Images": images}.get(sort, thumbs)
    return first, thumbs if first is downloads else downloads, model.id


def _wrong_cursor(cursor: str, arity: int) -> str:
    return f"Invalid cursor: expected {arity} value(s) for this sort, received {cursor.count('|') + 1}"


def _cursor_key(cursor: str, sort: str) -> tuple[int, ...] | None:
    parts = cursor.split("|")
    arity = len(_key(DemoModel(0, "", ""), sort))
    if len(parts) != arity or not all(part.isdecimal() for part in parts):
        return None
    return tuple(int(part) for part in parts)


def _without_period(search: Search) -> Search:
    return Search(**{name: getattr(search, name) for name in Search.__slots__} | {"period": "AllTime"})
