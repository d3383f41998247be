"""Pictures that `civman render` wrote, read by the rules of the site: the strength of every LoRA, VAE and embedding."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from rendering_stock import QUICK
from running import Civman
from site_rules import judge, linked_vaes, stored_strengths

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file

from civman.domain.recipes.recipe import RecipeFile
from civman.domain.recipes.record import Record, read_origin
from civman.pictures import image_text, record_text

pytestmark = pytest.mark.long

NAMES = ("plain", "my lora", "lora (v2)", "lora [v2]", "猫 v2")
SCALES = {"0.8": 0.8, "-0.35": -0.35, "0.8:0.3": 0.8}
"""As typed, and what the site is to store: the strength on the UNet."""


@pytest.mark.usefixtures("no_sockets", "stocked")
@pytest.mark.parametrize("typed", SCALES)
def test_the_site_stores_every_strength_vae_and_embedding_of_a_rendered_picture(
    civman: Civman, stock: Path, tmp_path: Path, typed: str
) -> None:
    (tmp_path / "loras").mkdir()
    for number, name in enumerate(NAMES):
        tensors = load_file(stock / "ink.safetensors")
        save_file({key: value * (number + 1) / 4 for key, value in tensors.items()},
                  tmp_path / "loras" / f"{name}.safetensors")  # fmt: skip
    loras = [word for name in NAMES for word in ("--lora", f"{tmp_path / 'loras' / name}.safetensors:{typed}")]

    run = civman(
        "render", "tiny-sd1", "a cat", "--negative", "dull, easydream", *loras, "--vae", "other-vae", *QUICK, "--json"
    )

    assert run.code == 0, run.err
    (made,) = run.json["render"]
    texts = image_text.read(Path(made["path"]))
    record = read_origin(texts.record or "").record
    assert record is not None
    by_hash = judge(texts.parameters or "")
    data = (stock / "easydream.safetensors").read_bytes()
    tensors_begin = 8 + int.from_bytes(data[:8], "little")
    assert by_hash.hashes["embed:easydream"] == sha256(data[tensors_begin:]).hexdigest()[:12]  # AutoV3
    assert by_hash.negative == "dull, easydream"
    linked = judge(record_text.parameters(with_ids(record)))
    ids = versions(record)
    expected = {ids[use.sha256]: SCALES[typed] for use in record.recipe.loras}
    assert {
        key: value for key, value in stored_strengths(linked, hashes(record)).items() if key in expected
    } == expected
    entries = json.loads(record_text.parameters(with_ids(record)).partition("Civitai resources: ")[2])
    assert linked_vaes(entries) == [ids[record.recipe.vae]]


def versions(record: Record) -> dict[Any, int]:
    """A version's id for each file of the recipe."""
    files = [digest for digests in record.recipe.digests.values() for digest in digests]
    return {digest: 100 + number for number, digest in enumerate(dict.fromkeys(files))}


def hashes(record: Record) -> dict[str, int]:
    """The same ids by the hashes that the text may name."""
    ids = versions(record)
    return {key: ids[digest] for digest in ids for key in (digest[:10], record.name_of(digest).autov3) if key}


def with_ids(record: Record) -> Record:
    """The record as if all of its files came from the site."""
    files = tuple(
        RecipeFile(each.sha256, each.size_bytes, f"urn:air:sd1:lora:civitai:{number}@{number}")
        for each in record.recipe.files for number in (versions(record)[each.sha256],)
    )  # fmt: skip
    return replace(record, recipe=replace(record.recipe, files=files))
