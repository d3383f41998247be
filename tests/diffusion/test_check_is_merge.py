"""What `check` says of an adapter, from headers, is what the merge does: all spellings x kinds x families."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_models
import torch
from adapter_layouts import CONTAINERS, KINDS, R
from tiny_adapters import write_safetensors
from torch import nn

import civman
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.merge_adapters import Adapter, apply, restore
from civman.domain.adapters.spellings import ENDINGS
from civman.domain.catalog import ModelType
from civman.domain.compatibility import PartResult, Verdict, check
from civman.errors import Incompatible
from civman.manage.inspection import Inspected, inspect_path

pytestmark = pytest.mark.long

FAMILIES = ("sd1", "sd2", "sdxl")
FITS = (Verdict.FITS, Verdict.CAUTION)
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
ENDS = {
    "linear": ("attn2.to_k", "attn1.to_out.0", "linear_1", "layers.0.mlp.fc1", "layers.1.self_attn.q_proj"),
    "conv": ("resnets.0.conv1", "downsamplers.0.conv"),
    "norm": ("resnets.0.norm2", "layers.0.layer_norm1"),
}  # fmt: skip
BIASED = ("attn1.to_out.0", "resnets.0.conv1", "layers.1.self_attn.q_proj")


class Studio(NamedTuple):
    """A tiny checkpoint: as `check` sees it, and loaded."""

    checkpoint: Inspected
    model: LoadedModel
    components: dict[str, nn.Module]
    ldm: list[tuple[str, str]]

    def targets(self, which: str) -> list[tuple[int, str, nn.Module]]:
        """(component's number, module, the module), the first of each ending."""
        ends = {"any": ENDS["linear"] + ENDS["conv"], "biased": BIASED}.get(which) or ENDS[which]
        found = []
        for number, name in enumerate(COMPONENTS):
            modules = dict(self.components[name].named_modules()) if name in self.components else {}
            firsts = (next((each for each in modules if f".{each}".endswith(f".{end}")), None) for end in ends)
            found += [
                (number, module.removeprefix("text_model."), modules[module]) for module in firsts if module is not None
            ]
        return found

    def original(self, component: int, module: str) -> str:
        if component:
            return module
        name = tiny_models.unet_name(f"{module}.weight", self.ldm)
        return name.removeprefix("model.diffusion_model.").removesuffix(".weight")


@pytest.fixture(scope="module", params=FAMILIES)
def studio(request, tmp_path_factory) -> Studio:
    path = tiny_models.write(
        tmp_path_factory.mktemp("studio") / "base.safetensors", request.param, vocab=64, dtype=torch.float32
    )
    model = load(path)
    components = {name: model.components[name] for name in COMPONENTS if name in model.components}
    return Studio(
        inspect_path(path), model, components, tiny_models.unet_prefixes(tiny_models.KINDS[request.param]["unet"])
    )


def judged(studio: Studio, path: Path) -> PartResult:
    part = inspect_path(path).part
    part = part if part.kind != "unknown" else part.__class__(part.name, ModelType.LORA, None, None, part.header)
    return check(studio.checkpoint.part, [part]).parts[0]


def merged(studio: Studio, path: Path, sha256: str):
    return apply(
        studio.components, studio.model.base_tensor, [Adapter(path, sha256)], unused=studio.model.unused_layers
    )


def described(studio: Studio, container: str, kind: str):
    """An adapter of the kind in the container: its tensors, and module → what it must become."""
    make, which = KINDS[kind]
    tensors, expected = {}, []
    for seed, (component, name, module) in enumerate(studio.targets(which)):
        stem = CONTAINERS[container](component, name, studio.original(component, name))
        if stem is not None:
            made = make(module.weight.detach(), None if module.bias is None else module.bias.detach(), seed)
            tensors |= {f"{stem}.{ending}": tensor for ending, tensor in made.tensors.items()}
            expected.append((module, made))
    return tensors, expected


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_fits_by_its_header_is_merged_module_by_module(studio, container, tmp_path):
    for kind in KINDS:
        tensors, expected = described(studio, container, kind)
        path = tmp_path / "adapter.safetensors"
        sha256 = write_safetensors(path, tensors)
        before = [None if module.bias is None else module.bias.detach().clone() for module, _ in expected]

        verdict = judged(studio, path)
        reports = merged(studio, path, sha256)

        assert verdict.verdict in FITS, (kind, verdict)
        assert verdict.modules is not None
        assert verdict.modules.fitting == len(expected), kind
        assert len(reports[0].matched) == len(expected), kind
        for (module, made), bias in zip(expected, before, strict=True):
            assert torch.allclose(module.weight, made.weight, atol=2e-5), (kind, module)
            if bias is not None:
                assert torch.allclose(module.bias, bias if made.bias is None else made.bias, atol=2e-5), (kind, module)
        restore(studio.components, studio.model.base_tensor, reports)


def broken(tensors: dict[str, torch.Tensor]):
    """Ways to spoil an adapter: what is done, and the tensors."""
    names = sorted(tensors)
    stem = names[0].partition(".lora")[0].rpartition(".")[0] if "lora" not in names[0] else names[0].partition(".")[0]
    for name in names[:3]:
        if not name.endswith(("alpha", "on_input", "bias")) and tensors[name].ndim > 1:
            yield f"{name} of another size", {**tensors, name: torch.ones([size + 1 for size in tensors[name].shape])}
    whole = next(name for name in names if tensors[name].numel() > 1)
    yield f"{whole} in whole numbers", {**tensors, whole: tensors[whole].to(torch.int8)}
    yield "a tensor that nobody knows", {**tensors, f"{stem}.mystery": torch.ones(1)}
    yield "a module that the model lacks", {**tensors, **_plain("lora_unet_down_blocks_9_attentions_0_proj_in")}
    yield "a module of another family", {**tensors, **_plain("lora_unet_double_blocks_0_img_attn_qkv")}
    for name in names:
        if not name.endswith(("alpha", "on_input", "diff_b", "b_norm", "bias", "dora_scale")) and len(names) > 1:
            yield f"{name} is missing", {other: tensors[other] for other in names if other != name}
            break


def _plain(stem: str) -> dict[str, torch.Tensor]:
    return {f"{stem}.lora_down.weight": torch.ones(R, 16), f"{stem}.lora_up.weight": torch.ones(16, R)}


LEFT_OUT_WITH_ONE_TENSOR = (
    "ia3, peft",
    "ia3, peft, a name",
    "ia3, peft, in",
    "full",
    "only bias",
    "set",
    "oft, early",
    "norm",
    "oft",
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_from_the_header_and_by_the_merge(studio, kind, tmp_path):
    tensors, _ = described(studio, "kohya", kind)
    for number, (what, spoilt) in enumerate(broken(tensors)):
        if "is missing" in what and kind in LEFT_OUT_WITH_ONE_TENSOR:
            continue  # such a module is the one tensor, or two that stand for themselves
        path = tmp_path / f"{number}.safetensors"
        sha256 = write_safetensors(path, spoilt)

        assert judged(studio, path).verdict not in FITS, what
        with pytest.raises(Incompatible):
            merged(studio, path, sha256)


def test_alpha_0_is_said_and_changes_nothing(studio, tmp_path):
    tensors, expected = described(studio, "kohya", "kohya")
    name = next(name for name in sorted(tensors) if name.endswith("attn2_to_k.alpha"))
    path = tmp_path / "adapter.safetensors"
    sha256 = write_safetensors(path, {**tensors, name: torch.tensor(0.0)})
    module = next(module for _, end, module in studio.targets("any") if end.endswith("attn2.to_k"))
    weight = module.weight.detach().clone()

    verdict = judged(studio, path)
    [report] = reports = merged(studio, path, sha256)

    assert verdict.verdict is Verdict.CAUTION
    assert any("its alpha is 0" in reason for reason in verdict.reasons)
    assert [miss.module for miss in report.idle] == [name.removesuffix(".alpha")]
    assert len(report.matched) == len(expected) - 1
    assert torch.equal(module.weight, weight)
    restore(studio.components, studio.model.base_tensor, reports)


def test_alpha_0_throughout_is_refused_by_both(studio, tmp_path):
    tensors, _ = described(studio, "kohya", "kohya")
    path = tmp_path / "adapter.safetensors"
    sha256 = write_safetensors(
        path, {name: torch.tensor(0.0) if name.endswith("alpha") else each for name, each in tensors.items()}
    )

    assert judged(studio, path).verdict is Verdict.CANNOT
    with pytest.raises(Incompatible) as caught:
        merged(studio, path, sha256)
    assert caught.value.code == "adapter-no-change"


def test_the_layer_that_sd_2_leaves_out_is_no_misfit(studio, tmp_path):
    if studio.model.family.name != "sd2":
        pytest.skip("only SD 2 leaves a layer out")
    tensors, expected = described(studio, "kohya", "kohya")
    width = studio.components["text_encoder"].config.hidden_size
    path = tmp_path / "adapter.safetensors"
    stem = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"
    extra = {f"{stem}.lora_down.weight": torch.ones(R, width), f"{stem}.lora_up.weight": torch.ones(width, R)}
    sha256 = write_safetensors(path, {**tensors, **extra})

    verdict = judged(studio, path)
    [report] = reports = merged(studio, path, sha256)

    assert verdict.verdict in FITS
    assert (len(report.matched), [miss.module for miss in report.idle]) == (len(expected), [stem])
    restore(studio.components, studio.model.base_tensor, reports)


TEXTS = Path(civman.__file__).parent
ALSO_WORDS = {"alpha", "weight", "diff", "rescale", "lora_A.weight", "down.weight", "up.weight"}


def test_no_second_table_of_spellings_exists():
    endings = set(ENDINGS) - ALSO_WORDS
    prefix = re.compile(r"(lora|oft|lycoris)_(unet|te\d?)_$")
    found = []
    for path in sorted(TEXTS.rglob("*.py")):
        if path.is_relative_to(TEXTS / "domain" / "adapters") or path.is_relative_to(TEXTS / "demo"):
            continue  # the table itself; and the demo, which writes adapters and reads none
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                if (text.lstrip(".") in endings and "." in text) or prefix.match(text):
                    found.append(f"{path.relative_to(TEXTS)}:{node.lineno}: {text}")

    assert found == []
