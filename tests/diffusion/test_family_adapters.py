# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Adapters of every layout on every transformer family: the loaded model becomes that of a file with the change merged.

The change is what the layout's own definition says of the file's whole layers, computed here. Removing the adapter
leaves the bits that were loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from safetensors.torch import load_file, save_file
from test_flow_pictures import family_of
from test_transformer_adapters import ENDS, SPELLINGS

from civman.diffusion.match_adapter import Adapter
from civman.diffusion.merge_adapters import apply, restore
from civman.diffusion.open_model import load
from civman.domain.adapters.adapter_tensors import read_deltas
from civman.domain.adapters.module_fit import fit_modules
from civman.domain.adapters.module_names import ModuleIndex
from civman.store.read_header import read_header

Tensors = dict[str, Any]
PREFIX = "model.diffusion_model."
R, ALPHA, SCALE = 2, 1.5, 0.6

LAYOUTS = {
    "kohya": "kohya", "ComfyUI and Black Forest Labs": "comfy", "with the checkpoint's prefix": "whole prefix",
    "ai-toolkit": "transformer", "without prefix": "bare", "PEFT": "peft", "OneTrainer": "onetrainer",
    "LyCORIS": "lycoris",
}  # fmt: skip
"""The layouts of a LoRA by the file's own names (fused layers), and what `test_transformer_adapters` calls each."""
SPLIT = {"diffusers and ai-toolkit": "transformer", "ComfyUI": "comfy", "PEFT": "peft", "kohya": "kohya",
         "OneTrainer": "onetrainer"}  # fmt: skip
"""The layouts by the names of diffusers' modules (split layers)."""


@dataclass
class Base:
    """A tiny model on disk and in memory, and the parameters that its file gives."""

    path: Path
    tensors: Tensors
    model: Any
    loaded: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loaded = {key: value.clone() for key, value in parameters(self.model).items()}

    @property
    def layers(self) -> dict[str, Any]:
        """The matrices of the transformer's file, by module without prefix."""
        return {
            name.removeprefix(PREFIX).removesuffix(".weight"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(PREFIX) and name.endswith(".weight") and tensor.ndim == 2 and ".embed." not in name
        }


def parameters(model: Any) -> Tensors:
    return {
        f"{part}.{name}": value
        for part, module in model.components.items()
        for name, value in module.named_parameters()
    }


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    folder = tmp_path_factory.mktemp("families")

    @cache
    def made(name: str) -> Base:
        path = tiny_flows.write(folder / f"{name}.safetensors", name, family_of(name))
        return Base(path, load_file(path), load(path, dtype=torch.float32))

    return made


def of_merged_file(base: Base, changed: Tensors, folder: Path) -> Tensors:
    """The parameters of a file in which these modules have other weights."""
    merged = base.tensors | {f"{PREFIX}{name}.weight": value.contiguous() for name, value in changed.items()}
    save_file(merged, folder / "merged.safetensors")
    return parameters(load(folder / "merged.safetensors", dtype=torch.float32))


def require_merge(base: Base, adapter: Tensors, expected: Tensors, folder: Path) -> None:
    """Merge an adapter, compare every parameter, and take the adapter out again."""
    save_file({name: value.contiguous() for name, value in adapter.items()}, folder / "adapter.safetensors")
    model = base.model
    places = {name: module for name, module in model.components.items() if name != "vae"}

    (report,) = apply(
        places, model.base_tensor, [Adapter(folder / "adapter.safetensors", "0" * 64, SCALE, SCALE)],
        sources=model.sources,
    )  # fmt: skip

    try:
        assert report.unmatched == ()
        for key, value in parameters(model).items():
            assert torch.allclose(value, expected[key], atol=1e-4), key
    finally:
        restore(model.components, model.base_tensor, [report])
    assert all(torch.equal(value, base.loaded[key]) for key, value in parameters(model).items())


def low_rank(shape: Any, seed: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(R, shape[1], generator=generator), torch.randn(shape[0], R, generator=generator)


@pytest.mark.parametrize(("name", "layout"), tiny_flows.cases(LAYOUTS))
def test_a_lora_by_the_file_s_names_is_the_product_added_to_whole_layers(
    base_of: Callable[[str], Base], tmp_path: Path, name: str, layout: str
) -> None:
    base, adapter, changed = base_of(name), {}, {}
    spelling = LAYOUTS[layout]
    for number, (module, weight) in enumerate(base.layers.items()):
        down, up = low_rank(weight.shape, number)
        spelled = SPELLINGS[spelling](module)
        adapter |= {f"{spelled}.{ENDS[spelling][0]}": down, f"{spelled}.{ENDS[spelling][1]}": up,
                    f"{spelled}.alpha": torch.tensor(ALPHA)}  # fmt: skip
        changed[module] = weight + SCALE * ALPHA / R * (up @ down)

    assert len(changed) > 20
    require_merge(base, adapter, of_merged_file(base, changed, tmp_path), tmp_path)


@pytest.mark.parametrize(("name", "layout"), tiny_flows.cases(SPLIT))
def test_a_lora_by_diffusers_names_is_the_product_added_to_each_parameter(
    base_of: Callable[[str], Base], tmp_path: Path, name: str, layout: str
) -> None:
    base, adapter = base_of(name), {}
    spelling, expected = SPLIT[layout], dict(base.loaded)
    for number, (key, weight) in enumerate(base.loaded.items()):
        module = key.removeprefix("transformer.").removesuffix(".weight")
        if key.startswith("transformer.") and key.endswith(".weight") and weight.ndim == 2:
            down, up = low_rank(weight.shape, number)
            spelled = SPELLINGS[spelling](module)
            adapter |= {f"{spelled}.{ENDS[spelling][0]}": down, f"{spelled}.{ENDS[spelling][1]}": up}
            expected[key] = weight + SCALE * (up @ down)

    assert len(adapter) > 40
    require_merge(base, adapter, expected, tmp_path)


def lokr(weight: Any, seed: int) -> tuple[Tensors, Any]:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (2 if side % 2 == 0 else 1 for side in weight.shape)
    left = torch.randn(rows, columns, generator=generator)
    right = torch.randn(weight.shape[0] // rows, weight.shape[1] // columns, generator=generator)
    return {"lokr_w1": left, "lokr_w2": right, "alpha": torch.tensor(1.0)}, weight + SCALE * torch.kron(left, right)


def loha(weight: Any, seed: int) -> tuple[Tensors, Any]:
    (b1, a1), (b2, a2) = low_rank(weight.shape, seed), low_rank(weight.shape, seed + 999)
    tensors = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(ALPHA)}
    return tensors, weight + SCALE * ALPHA / R * ((a1 @ b1) * (a2 @ b2))


def dora(weight: Any, seed: int) -> tuple[Tensors, Any]:
    down, up = low_rank(weight.shape, seed)
    magnitude = torch.rand(weight.shape[0], 1, generator=torch.Generator().manual_seed(seed)) + 0.5
    turned = weight + up @ down
    whole = turned * magnitude / turned.norm(dim=1, keepdim=True)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude}
    return tensors, weight + SCALE * (whole - weight)


def difference(weight: Any, seed: int) -> tuple[Tensors, Any]:
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    return {"diff": change}, weight + SCALE * change


KINDS = {"LoKr": lokr, "LoHa": loha, "DoRA": dora, "full difference": difference}
"""The kinds of adapters besides LoRA, each by its formula; all on the file's whole layers, in kohya's names."""


@pytest.mark.parametrize(("name", "kind"), tiny_flows.cases(KINDS))
def test_other_kinds_follow_their_formula_on_whole_layers(
    base_of: Callable[[str], Base], tmp_path: Path, name: str, kind: str
) -> None:
    base, adapter, changed = base_of(name), {}, {}
    for number, (module, weight) in enumerate(base.layers.items()):
        tensors, changed[module] = KINDS[kind](weight, number)
        adapter |= {f"{SPELLINGS['kohya'](module)}.{key}": value for key, value in tensors.items()}

    require_merge(base, adapter, of_merged_file(base, changed, tmp_path), tmp_path)


KOHYA_TEXTS = {"clip-l": "lora_te1_", "clip-g": "lora_te2_", "t5": "lora_te3_", "llama": "lora_te4_"}
"""kohya's prefix for each text encoder; a model's only language model is `lora_te_`."""
TEXTS = ("kohya", "ComfyUI")


@pytest.mark.parametrize(("name", "layout"), tiny_flows.cases(TEXTS))
def test_a_lora_on_the_text_encoders_is_the_product_added_to_their_layers(
    base_of: Callable[[str], Base], tmp_path: Path, name: str, layout: str
) -> None:
    base = base_of(name)
    adapter: Tensors = {}
    merged = dict(base.tensors)
    for kind in (need.kind for need in family_of(name).needs if need.component != "vae"):
        for number, (key, weight) in enumerate(base.tensors.items()):
            if not key.startswith(kind.prefixes[0]) or weight.ndim != 2 or "embed" in key or "shared" in key:
                continue
            if not key.endswith(".weight"):
                continue
            down, up = low_rank(weight.shape, number)
            module = key.removesuffix(".weight")
            if layout == "kohya":
                inner = module.removeprefix(kind.prefixes[0]).replace(".", "_")
                module = KOHYA_TEXTS.get(kind.role, "lora_te_") + inner
            adapter |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up,
                        f"{module}.alpha": torch.tensor(ALPHA)}  # fmt: skip
            merged[key] = weight + SCALE * ALPHA / R * (up @ down)
    shapes = {name: tuple(value.shape) for name, value in adapter.items()}
    by_header = fit_modules(read_deltas(shapes), ModuleIndex.of_header(read_header(base.path)))
    assert by_header.fitting == by_header.total, by_header.missing
    assert len(adapter) > 30
    save_file(merged, tmp_path / "merged.safetensors")

    require_merge(base, adapter, parameters(load(tmp_path / "merged.safetensors", dtype=torch.float32)), tmp_path)
