"""What CivitAI said comes back as it went in, and a poorer answer never wipes a richer one."""

import dataclasses
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_values import NOON, file, model, version

from civman.domain.catalog import (
    FileId,
    Gate,
    Licence,
    Model,
    ModelFile,
    ModelId,
    ModelType,
    ModelVersion,
    Preview,
    Scan,
    VersionId,
)
from civman.domain.digests import Hashes
from civman.index import Index, Page, Snapshot, Source

LATER = NOON + timedelta(days=1)


def raws(page: Page) -> list[str]:
    """What dataclass equality leaves out."""
    return [
        page[0].raw,
        *(raw for one in page[1] for raw in (one.raw, one.model.raw, *(file.raw for file in one.files))),
    ]


def complete(page: Page | None) -> Page:
    assert page is not None
    return page


@pytest.mark.parametrize(
    "one",
    [
        version(),
        ModelVersion(VersionId(5), Model(ModelId(9), "bare", ModelType.OTHER, "Brand New"), "v", None),
        version(of=model(licence=Licence(None, (), None, None), mode=None, creator=None, description=None)),
        version(of=model(is_complete=False)),
        version(gate=None),
        version(gate=Gate(permanent=True)),
        version(gate=Gate()),
        version(files=(), previews=(), trained_words=()),
        version(files=(file(None), file(None), file(7), file(7, is_linked=True, is_primary=False))),
        version(files=(ModelFile(None, "", "Odd", None),)),
        version(published_at=datetime(2025, 1, 1, 3, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
        version(name="a\x00b \u2028 'quoted' \\ %_ \U0001f98a"),
    ],
    ids=lambda one: one.name,
)
def test_version_comes_back_equal_to_what_went_in(index: Index, one: ModelVersion) -> None:
    index.remember(one, fetched_at=NOON, source=Source.VERSION)

    back = index.version(one.id)

    assert back == one
    assert raws((one.model, (one,))) == raws(complete(index.model(one.model.id)))
    assert index.model(one.model.id) == (one.model, (one,))


_text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
_maybe = st.none() | _text
_count = st.none() | st.integers(0, 2**53)
_flag = st.none() | st.booleans()
_words = st.lists(_text, max_size=3).map(tuple)
_when = st.datetimes(datetime(1980, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
_id = st.integers(1, 2**31 - 1)
_types = st.sampled_from(ModelType)
_models = st.builds(
    Model, _id, _text, _types, _text, st.booleans(), st.integers(0, 63), st.booleans(), _maybe, _maybe, _words, _maybe,
    st.builds(Licence, _flag, st.none() | _words, _flag, _flag), _count, _count, st.booleans(), _text,
)  # fmt: skip
_scans = st.sampled_from(Scan)
_files = st.builds(
    ModelFile, st.none() | _id.map(FileId), _text, _text, _count, st.builds(Hashes, *[_maybe] * 6), st.booleans(),
    st.booleans(), _maybe, _maybe, _maybe, _maybe, _scans, _scans, _maybe, _maybe, _text,
)  # fmt: skip
_previews = st.builds(Preview, _text, st.integers(0, 63), _count, _count, _text)
_gates = st.none() | st.builds(Gate, st.booleans(), st.none() | _when)


@st.composite
def _pages(draw: st.DrawFn) -> Page:
    of = draw(_models)
    ids = draw(st.lists(_id, unique=True, max_size=3))
    one = st.builds(
        ModelVersion, st.just(VersionId(1)), st.just(of), _text, _maybe, st.lists(_files, max_size=3).map(tuple),
        _maybe, st.none() | _when, _words, _maybe, _maybe, _gates, _maybe, _maybe, _maybe, st.integers(0, 63),
        st.lists(_previews, max_size=2).map(tuple), _maybe, _count, _count, _text,
    )  # fmt: skip
    return of, tuple(dataclasses.replace(draw(one), id=VersionId(number)) for number in ids)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(page=_pages(), serial=st.integers(1, 2**31 - 1))
def test_every_page_of_domain_values_comes_back_equal(index: Index, page: Page, serial: int) -> None:
    with index._writer.transaction() as connection:  # every example starts from nothing
        for table in ("preview", "file", "version", "model"):
            connection.execute(f"DELETE FROM {table}")

    index.remember(page, fetched_at=NOON, source=Source.MODEL)

    back = complete(index.model(page[0].id))
    assert back == page
    assert raws(back) == raws(page)


def test_what_was_never_remembered_is_none(index: Index) -> None:
    assert index.version(VersionId(2)) is None
    assert index.model(ModelId(1)) is None
    assert index.snapshot_of_model(ModelId(1)) is None


def test_partial_description_of_a_model_does_not_wipe_the_complete_one(index: Index) -> None:
    full = model()
    few_words = Model(full.id, "Model 1 ", ModelType.LORA, "LORA", is_complete=False)
    index.remember((full, ()), fetched_at=NOON, source=Source.MODEL)

    index.remember(version(of=few_words), fetched_at=LATER, source=Source.VERSION)

    assert index.model(full.id) == (full, (version(of=full),))


def test_complete_description_replaces_a_partial_one_even_an_older_one_of_it(index: Index) -> None:
    few_words = Model(ModelId(1), "x", ModelType.LORA, "LORA", is_complete=False)
    index.remember(version(of=few_words), fetched_at=LATER, source=Source.VERSION)

    index.remember((model(), ()), fetched_at=NOON, source=Source.SEARCH)

    assert complete(index.model(ModelId(1)))[0] == model()


def test_older_answer_does_not_replace_a_newer_one(index: Index) -> None:
    index.remember(version(name="new", of=model(name="new")), fetched_at=LATER, source=Source.VERSION)

    index.remember(version(name="old", of=model(name="old")), fetched_at=NOON, source=Source.MODEL)

    back = index.version(VersionId(2))
    assert back is not None
    assert (back.name, back.model.name) == ("new", "new")


def test_newer_answer_replaces_and_keeps_what_its_endpoint_leaves_out(index: Index) -> None:
    index.remember(version(), fetched_at=NOON, source=Source.VERSION)
    poorer = version(air=None, usage_control=None, description=None, gate=None, name="renamed", raw="{}")

    index.remember(poorer, fetched_at=LATER, source=Source.SEARCH)

    assert index.version(VersionId(2)) == version(gate=None, name="renamed")
    assert index.snapshot_of_version(VersionId(2)) == Snapshot(LATER, "search")


def test_archived_models_empty_lists_keep_files_and_previews(index: Index) -> None:
    index.remember(version(), fetched_at=NOON, source=Source.MODEL)

    index.remember(version(files=(), previews=()), fetched_at=LATER, source=Source.MODEL)

    assert index.version(VersionId(2)) == version()


def test_file_that_is_no_longer_listed_keeps_its_row_and_its_asset(index: Index, add) -> None:  # type: ignore[no-untyped-def]
    old = file(33, "fox.safetensors")
    asset = add(version=version(files=(old,)), file=old)

    index.remember(version(files=(file(34, "new"),)), fetched_at=LATER, source=Source.VERSION)

    assert index.version(VersionId(2)) == version(files=(file(34, "new"),))
    assert index.find_by_file(FileId(33)) == [asset]


def test_replaced_file_does_not_inherit_digests_of_the_old_bytes(index: Index) -> None:
    index.remember(version(files=(file(33, "old"),)), fetched_at=NOON, source=Source.VERSION)
    new = dataclasses.replace(file(33, "new"), hashes=Hashes(file(33, "new").hashes.sha256), precision=None)

    index.remember(version(files=(new,)), fetched_at=LATER, source=Source.VERSION)

    assert complete(index.model(ModelId(1)))[1][0].files == (new,)


def test_versions_come_in_the_creators_order_then_the_unlisted(index: Index) -> None:
    page = (model(), (version(5), version(9), version(7)))
    index.remember(page, fetched_at=NOON, source=Source.MODEL)

    index.remember((model(), (version(7), version(5))), fetched_at=LATER, source=Source.MODEL)
    index.remember((model(), (version(5),)), fetched_at=LATER, source=Source.SEARCH)

    assert [one.id for one in complete(index.model(ModelId(1)))[1]] == [7, 5, 9]


def test_page_without_versions_leaves_the_known_ones(index: Index) -> None:
    index.remember((model(), (version(5), version(9))), fetched_at=NOON, source=Source.MODEL)

    index.remember((model(), ()), fetched_at=LATER, source=Source.MODEL)

    assert [one.id for one in complete(index.model(ModelId(1)))[1]] == [5, 9]


def test_gone_is_noted_without_touching_what_was_saved(index: Index) -> None:
    index.remember(version(), fetched_at=NOON, source=Source.VERSION)

    assert index.mark_version_gone(VersionId(2), status=410, at=LATER)
    assert index.mark_model_gone(ModelId(1), status=404, at=LATER)

    assert index.version(VersionId(2)) == version()
    assert index.snapshot_of_version(VersionId(2)) == Snapshot(NOON, "version", LATER, 410)
    assert index.snapshot_of_model(ModelId(1)) == Snapshot(NOON, "version", LATER, 404)


def test_gone_says_whether_there_was_anything_to_mark(index: Index) -> None:
    assert not index.mark_version_gone(VersionId(2), status=404, at=NOON)
    assert index.version(VersionId(2)) is None


def test_what_answers_again_is_no_longer_gone(index: Index) -> None:
    index.remember(version(), fetched_at=NOON, source=Source.VERSION)
    index.mark_version_gone(VersionId(2), status=404, at=LATER)
    index.mark_model_gone(ModelId(1), status=404, at=LATER)

    index.remember(version(), fetched_at=LATER + timedelta(hours=1), source=Source.VERSION)

    assert index.snapshot_of_version(VersionId(2)) == Snapshot(LATER + timedelta(hours=1), "version")
    assert index.snapshot_of_model(ModelId(1)) == Snapshot(LATER + timedelta(hours=1), "version")


def test_time_without_a_zone_is_a_mistake_of_the_caller(index: Index) -> None:
    with pytest.raises(ValueError, match="without a time zone"):
        index.remember(version(), fetched_at=datetime(2026, 1, 1), source=Source.VERSION)  # noqa: DTZ001
