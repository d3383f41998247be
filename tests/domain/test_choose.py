"""Which file of a version is meant."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from civman.domain.catalog import FileId, Model, ModelFile, ModelId, ModelType, ModelVersion, VersionId
from civman.domain.file_choice import choose_file, is_pickle
from civman.domain.search_query import ModelPage
from civman.errors import AmbiguousRef, NotFound

MODEL = Model(ModelId(1), "Harbour", ModelType.CHECKPOINT, "Checkpoint")


def file(number: int, name: str, **facts: object) -> ModelFile:
    return ModelFile(FileId(number), name, facts.pop("type", "Model"), 10, **facts)


FULL = file(1, "full.safetensors", format="SafeTensor", size_class="full", precision="fp32")
PRUNED = file(2, "pruned.safetensors", format="SafeTensor", size_class="pruned", precision="fp16")
PICKLE = file(3, "old.ckpt", format="PickleTensor", is_primary=True)
VAE = file(4, "side.vae.safetensors", type="VAE")
CONFIG = file(5, "config.yaml", type="Config", format="Other")


def version(*files: ModelFile) -> ModelVersion:
    return ModelVersion(VersionId(9), MODEL, "v1", "SD 1.5", files)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ((CONFIG, FULL, PRUNED), PRUNED),
        ((PICKLE, FULL, VAE), FULL),
        ((PICKLE, VAE, CONFIG), PICKLE),
        ((CONFIG, VAE), VAE),
        ((CONFIG,), CONFIG),
    ],
)
def test_without_a_wish_the_safest_weights_are_chosen(files: tuple[ModelFile, ...], chosen: ModelFile) -> None:
    assert choose_file(version(*files)) == chosen


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [("1", FULL), ("old.ckpt", PICKLE), ("OLD.CKPT", PICKLE), ("fp16", PRUNED), ("full fp32", FULL), ("vae", VAE)],
)
def test_a_wish_names_one_file(wish: str, chosen: ModelFile) -> None:
    assert choose_file(version(FULL, PRUNED, PICKLE, VAE, CONFIG), wish) == chosen


def test_a_wish_that_fits_several_names_them() -> None:
    with pytest.raises(AmbiguousRef) as ambiguous:
        choose_file(version(FULL, PRUNED), "safetensor")

    assert ambiguous.value.facts["candidates"] == ["1@9+1", "1@9+2"]


@pytest.mark.parametrize("wish", ["77", "int8", "  ", "²"])
def test_a_wish_that_fits_nothing_says_what_there_is(wish: str) -> None:
    with pytest.raises(NotFound, match="no file") as unknown:
        choose_file(version(FULL), wish)

    assert "full.safetensors" in unknown.value.hint


def test_a_version_without_files_is_told() -> None:
    with pytest.raises(NotFound) as empty:
        choose_file(version())

    assert empty.value.code == "no-files"


def test_a_pickle_is_known_by_its_suffix_or_by_civitais_word() -> None:
    assert is_pickle(PICKLE)
    assert is_pickle(file(6, "model", format="PickleTensor"))
    assert is_pickle(file(7, "model.PT"))
    assert not is_pickle(file(8, "model.safetensors", format="PickleTensor"))


NOW = datetime(2026, 6, 1, tzinfo=UTC)
FILE = ModelFile(FileId(5), "a.safetensors", "Model", 1)


@pytest.mark.parametrize(
    "first",
    [
        {"status": "Draft"}, {"status": "Unpublished"}, {"status": "Scheduled"}, {"files": ()},
        {"published_at": datetime(2026, 6, 2, tzinfo=UTC)},
        {"status": "Scheduled", "published_at": datetime(2026, 6, 2, tzinfo=UTC)},
    ],
)  # fmt: skip
def test_the_default_version_is_published_and_lists_files(first: dict[str, object]) -> None:
    model = Model(ModelId(1), "Two", ModelType.LORA, "LORA")
    plain = ModelVersion(VersionId(2), model, "v1", "SD 1.5", (FILE,), status="Published")
    other = replace(plain, id=VersionId(3), **first)

    assert ModelPage(model, (other, plain)).default_version(NOW) == plain
    assert ModelPage(model, (plain, other)).default_version(NOW) == plain
    assert ModelPage(model, (other,)).default_version(NOW) == other
    assert ModelPage(model, (other, replace(plain, files=()))).default_version(NOW) is not None
    assert ModelPage(model).default_version(NOW) is None
