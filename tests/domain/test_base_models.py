"""CivitAI's labels: the whole table, pair by pair, against what the site publishes."""

import json

import pytest

from civman.domain.architecture import Architecture
from civman.domain.base_models import (
    Support,
    architectures_of,
    ecosystem_of,
    is_few_steps,
    known_labels,
    label_support,
)
from civman.domain.catalog import ModelType
from tests.headers import SHARED

TABLE = SHARED / "reference" / "base-model-compatibility.json"


def test_every_pair_of_labels_for_every_model_type_is_answered_as_the_site_answers():
    if not TABLE.exists():
        pytest.skip("the site's table is not here")
    table = json.loads(TABLE.read_text())
    labels, counts = list(table["ecosystem_of"]), dict.fromkeys(Support, 0)

    for model_type in ModelType:
        partial = table["partial_by_base_model"].get(model_type.value, {})
        for resource in labels:
            for checkpoint in labels:
                full = checkpoint in table["full_by_base_model"][resource]
                part = checkpoint in partial.get(resource, [])
                expected = Support.FULL if full else Support.PARTIAL if part else Support.NONE
                assert label_support(checkpoint, resource, model_type) is expected, (checkpoint, resource, model_type)
                counts[expected] += 1

    assert set(labels) == set(known_labels())
    assert sum(counts.values()) == len(labels) ** 2 * len(ModelType)
    assert counts[Support.PARTIAL] == sum(
        len(checkpoints) for rows in table["partial_by_base_model"].values() for checkpoints in rows.values()
    )


@pytest.mark.parametrize(
    ("checkpoint", "resource", "model_type", "expected"),
    [
        ("SD 1.5", "SD 1.4", ModelType.LORA, Support.FULL),
        ("Illustrious", "Pony", ModelType.LORA, Support.PARTIAL),
        ("Illustrious", "Pony", ModelType.CONTROLNET, Support.NONE),
        ("SDXL 1.0", "SD 1.5", ModelType.EMBEDDING, Support.PARTIAL),
        ("SD 1.5", "SDXL 1.0", ModelType.EMBEDDING, Support.NONE),
        ("ZImageTurbo", "ZImageBase", ModelType.LORA, Support.PARTIAL),
        ("ZImageBase", "ZImageTurbo", ModelType.LORA, Support.NONE),
        ("Brand New 9", "Brand New 9", ModelType.LORA, Support.FULL),
        ("Brand New 9", "SDXL 1.0", ModelType.LORA, Support.NONE),
        ("Other", "Other", ModelType.VAE, Support.FULL),
    ],
)
def test_support_is_directed_and_unknown_labels_go_with_themselves(checkpoint, resource, model_type, expected):
    assert label_support(checkpoint, resource, model_type) is expected


@pytest.mark.parametrize("label", ["Krea 2", "Krea2", "krea-2", "KREA_2"])
def test_a_label_is_known_in_every_spelling(label):
    assert ecosystem_of(label) == ecosystem_of("Krea 2") is not None
    assert label_support("Krea 2", label, ModelType.LORA) is Support.FULL
    assert is_few_steps("sdxl-lightning")
    assert ecosystem_of("Krea 20") is None


def test_labels_tell_which_tensors_to_expect():
    assert architectures_of("Pony") == {Architecture.SDXL}
    assert architectures_of("SDXL 1.0") == {Architecture.SDXL, Architecture.SDXL_REFINER}
    assert architectures_of(None) == architectures_of("never heard of") == frozenset()
    assert (ecosystem_of("SDXL Turbo"), ecosystem_of("never heard of")) == ("SDXL", None)
    assert is_few_steps("SDXL Lightning")
    assert not is_few_steps("SDXL 1.0")
    assert not is_few_steps(None)
