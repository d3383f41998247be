# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Merging into loaded weights gives the bits of a merge from the file, and sends no weight to the device again."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import fake_card
from test_adapters import kohya, mixed, saved
from tiny_adapters import Originals, low_rank, tiny_components

from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.merge_adapters import Adapter, apply, restore
from civman.errors import Incompatible

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def merged(adapters: list[Adapter], stored: Any, computed: Any, *, holds_base: bool) -> dict[str, Any]:
    """Merge into components that were stored in one dtype and are computed in another; merge a second set after it."""
    components: dict[str, Any] = {name: module.to(stored) for name, module in tiny_components("sd1").items()}
    base = Originals(components)
    components = {name: module.to(computed) for name, module in components.items()}
    found = {}
    for number, some in enumerate((adapters, adapters[:1], adapters[1:])):
        reports = apply(components, base, some, holds_base=holds_base)
        for name, module in components.items():
            found |= {f"{number} {name} {key}": each.detach().clone() for key, each in module.named_parameters()}
        found |= {f"{number} norms {each.name}": dict(each.norms) for each in reports}
        restore(components, base, reports)
    for name, module in components.items():
        for key, each in module.named_parameters():
            assert torch.equal(each, base(name, key).to(computed)), "the weights of the file are back"
    return found


@pytest.mark.parametrize(
    ("stored", "computed"), [(F32, F32), (F16, F16), (BF16, BF16), (F16, F32), (BF16, F32), (F32, F16), (F16, BF16)]
)
def test_a_merge_into_loaded_weights_has_the_bits_of_one_from_the_file(
    tmp_path: Path, stored: Any, computed: Any
) -> None:
    torch.manual_seed(0)
    adapters = mixed(tiny_components("sd1"), tmp_path)

    from_file = merged(adapters, stored, computed, holds_base=False)
    in_place = merged(adapters, stored, computed, holds_base=True)

    assert from_file.keys() == in_place.keys()
    for name, value in from_file.items():
        assert torch.equal(value, in_place[name]) if torch.is_tensor(value) else value == in_place[name], name


def test_a_merge_that_fails_leaves_the_weights_of_the_file(tmp_path: Path) -> None:
    components = tiny_components("sd1")
    base = Originals(components)
    tensors = low_rank(kohya(components), 2)
    last = max(tensors)
    tensors[last] = tensors[last] * float("nan")

    with pytest.raises(Incompatible):
        apply(components, base, [saved(tmp_path, tensors)], holds_base=True)

    assert base.untouched(components)


@pytest.fixture
def model(tiny_files: dict[str, Path]) -> LoadedModel:
    return load(tiny_files["sd1"], dtype=F16)


@pytest.mark.parametrize("holds_base", [True, False])
def test_on_a_card_only_the_adapter_is_sent(model: LoadedModel, tmp_path: Path, holds_base: bool) -> None:
    tensors = low_rank(kohya({"unet": model.unet}), 2)
    adapter = saved(tmp_path, tensors)
    with fake_card.fake_card() as card:
        card.put(model.unet)

        apply({"unet": model.unet}, model.base_tensor, [adapter], holds_base=holds_base)

        sent = {where: count for (what, where), count in card.crossings.items() if what.endswith("cpu to cuda")}
    factors = sum(key.endswith(("lora_up.weight", "lora_down.weight")) for key in tensors)
    assert sent.pop("adapter_change.read_change.<locals>.<dictcomp>") == factors
    assert sent.keys() == (set() if holds_base else {"merge_adapters._Buffer.holding"})
