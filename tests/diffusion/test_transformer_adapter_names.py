# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Every layer of a transformer is found under its own name and under that of its file, with the right shape."""

from functools import cache

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import transformer_layouts as layouts
from diffusers.loaders import single_file_utils as converters
from headers import case

from civman.diffusion.match_adapter import weights_of
from civman.domain.adapters.adapter_tensors import read_deltas
from civman.domain.adapters.module_fit import fit_modules
from civman.domain.adapters.module_names import ModuleIndex

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CONVERTERS = {
    "chroma": converters.convert_chroma_transformer_checkpoint_to_diffusers,
    "z-image": converters.convert_z_image_transformer_checkpoint_to_diffusers,
    "auraflow": converters.convert_auraflow_transformer_checkpoint_to_diffusers,
    "anima": converters.convert_cosmos_transformer_checkpoint_to_diffusers,
    "ernie-image": converters.convert_ernie_image_transformer_checkpoint_to_diffusers,
    "hidream": converters.convert_hidream_transformer_to_diffusers,
    "krea2": converters.convert_krea2_transformer_checkpoint_to_diffusers,
}


@cache
def model_of(family):
    return layouts.model(family)


@cache
def original(family):
    """The shapes of a family's file, without prefix."""
    if family in layouts.RECORDED:
        tensors = case(layouts.RECORDED[family])["tensors"]
        return {name.removeprefix("model.diffusion_model."): tuple(shape) for name, (_, shape) in tensors.items()}
    return layouts.backwards(family, layouts.weights(model_of(family)))


@pytest.mark.parametrize("family", CONVERTERS)
def test_the_layouts_written_here_are_those_that_diffusers_converts(family) -> None:
    model = model_of(family)
    shapes = layouts.weights(model)
    checkpoint = {name: torch.empty(shape, device="meta") for name, shape in original(family).items()}
    wanted = {name for name in shapes if len(shapes.get(f"{name.rpartition('.')[0]}.weight", ())) > 1}
    if family == "auraflow":
        checkpoint["positional_encoding"] = torch.empty(1, 1024, 3072, device="meta")
    if family == "chroma":
        for number in range(19):
            for side in ("img", "txt"):
                for part in ("query", "key"):
                    name = f"double_blocks.{number}.{side}_attn.norm.{part}_norm.scale"
                    checkpoint[name] = torch.empty(128, device="meta")
        for number in range(38):
            for part in ("query", "key"):
                checkpoint[f"single_blocks.{number}.norm.{part}_norm.scale"] = torch.empty(128, device="meta")
        for number in range(5):
            checkpoint[f"distilled_guidance_layer.norms.{number}.scale"] = torch.empty(5120, device="meta")

    made = CONVERTERS[family](checkpoint)

    found = {name: tuple(made[name].shape) for name in wanted if made.get(name) is not None}
    assert found == {name: shapes[name] for name in wanted}


@pytest.mark.parametrize("family", layouts.FULL)
def test_a_file_s_header_answers_to_every_name_of_diffusers_class(family) -> None:
    index = ModuleIndex.of_header(layouts.header(original(family)))

    shapes = layouts.weights(model_of(family))
    matrices = {name.removesuffix(".weight"): shape for name, shape in shapes.items()
                if name.endswith(".weight") and len(shape) > 1}  # fmt: skip
    found = {name: index.find("unet", name.replace(".", "_")) for name in matrices}
    assert {name: (found[name], shape) for name, shape in matrices.items() if found[name] != shape} == {}


@pytest.mark.parametrize("family", layouts.FULL)
def test_a_loaded_model_answers_to_both_names_of_every_layer(family) -> None:
    shapes = original(family)
    by_header = ModuleIndex.of_header(layouts.header(shapes))
    model = model_of(family)
    origins = layouts.sources(family, layouts.weights(model), by_header, getattr(model.config, "num_layers", 0))

    loaded = weights_of({"transformer": model}, sources={"transformer": origins})

    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) > 1:
            path = name.removesuffix(".weight").replace(".", "_")
            assert loaded.find("unet", path) == shape, name
    for name, shape in layouts.weights(model).items():
        if name.endswith(".weight"):
            assert loaded.find("unet", name.removesuffix(".weight").replace(".", "_")) == shape, name


ADAPTERS = {
    "flux1": ("lora-flux-aitoolkit", "lora-flux-diffusers", "lora-flux-kohya", "lora-flux-xlabs", "lokr-flux-bfl"),
    "flux2-dev": ("kohya-flux2-dev-lora",),
    "sd3": ("kohya-sd3m-lora",), "sd35-large": ("kohya-sd35l-lora",),
    "lumina2": ("kohya-lumina2-lora", "lora-lumina2-diffusers"),
    "qwen-image": ("kohya-qwen-image-lora", "lora-qwen-diffusers", "lora-qwen-peft"),
    "z-image": ("kohya-z-image-lora", "lora-zimage-comfy"),
    "anima": ("lora-anima-kohya",),
}  # fmt: skip


WRONG = {"lokr-flux-bfl": 6, "lora-anima-kohya": 3}
"""Modules with shapes that no model of the family has: another program's test made these two, with sizes of its own."""


def unet_only(name):
    tensors = case(name)["tensors"]
    return read_deltas({key: tuple(shape) for key, (_, shape) in tensors.items() if not key.startswith("lora_te")})


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in ADAPTERS.items() for name in names])
def test_recorded_adapters_fit_whole_by_the_header_and_in_the_loaded_model(family, name) -> None:
    deltas = unet_only(name)
    by_header = ModuleIndex.of_header(layouts.header(original(family)))
    model = model_of(family)
    origins = layouts.sources(family, layouts.weights(model), by_header, getattr(model.config, "num_layers", 0))

    checked = fit_modules(deltas, by_header)
    merged = fit_modules(deltas, weights_of({"transformer": model}, sources={"transformer": origins}))

    assert (checked.missing, checked.unknown) == ((), ())
    assert (checked.fitting, checked.total) == (len(deltas.modules) - WRONG.get(name, 0), len(deltas.modules))
    assert merged == checked


@pytest.mark.parametrize(("family", "name"), [("z-image", "lora-flux-kohya"), ("flux1", "kohya-z-image-lora"),
                                              ("anima", "kohya-qwen-image-lora")])  # fmt: skip
def test_an_adapter_of_another_family_fits_nowhere(family, name) -> None:
    fit = fit_modules(unet_only(name), ModuleIndex.of_header(layouts.header(original(family))))

    assert fit.fitting == 0
