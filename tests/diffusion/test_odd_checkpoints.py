# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Checkpoints as they are found: scaled 8-bit weights, no middle block, other noise levels, packed weights."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_models
from safetensors.torch import load_file, save_file

from civman.diffusion.loader import load
from civman.diffusion.mapped_weights import Weights
from civman.errors import CannotRender, Cause, InvalidModelFile

SCALED = ("to_q.weight", "to_k.weight", "proj_in.weight", "in_layers.2.weight")


def with_scales(tensors, ending, *, by_row):
    """The tensors with some weights as 8-bit floats and their scales, and what each must become."""
    stored, exact = dict(tensors), {}
    for name, tensor in tensors.items():
        if name.startswith("model.diffusion_model.") and name.endswith(SCALED):
            wide = tensor.float()
            scale = wide.flatten(1).abs().amax(1) / 448 if by_row else wide.abs().max() / 448
            shaped = scale.reshape(-1, *[1] * (wide.ndim - 1)) if by_row else scale
            stored[name] = (wide / shaped).to(torch.float8_e4m3fn)
            stored[f"{name.removesuffix('weight')}{ending}"] = scale.reshape(-1, 1) if by_row else scale
            exact[name] = stored[name].float() * shaped
    return stored, exact


@pytest.mark.parametrize("by_row", [False, True], ids=["one scale", "a scale for each row"])
@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
def test_scaled_weights_are_the_product_in_float32_then_the_dtype(tiny_files, tmp_path, ending, by_row):
    stored, exact = with_scales(load_file(tiny_files["sd1"]), ending, by_row=by_row)
    stored["model.diffusion_model.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(stored, tmp_path / "scaled.safetensors", load_metadata(tiny_files["sd1"]))

    model = load(tmp_path / "scaled.safetensors", dtype=torch.float16)

    sources = {source.name: parameter for parameter, source in model.sources["unet"].items()}
    assert len(exact) > 10
    for name, wanted in exact.items():
        found = model.unet.get_parameter(sources[name])
        assert torch.equal(found, wanted.reshape(found.shape).to(torch.float16)), name
        assert torch.equal(model.base_tensor("unet", sources[name]), wanted.reshape(found.shape)), name
    assert model.unused == ()
    assert any("scale" in note for note in model.notes)


def test_a_restored_parameter_has_its_scale_again(tiny_files, tmp_path):
    stored, exact = with_scales(load_file(tiny_files["sd1"]), "scale_weight", by_row=False)
    save_file(stored, tmp_path / "scaled.safetensors", load_metadata(tiny_files["sd1"]))
    model = load(tmp_path / "scaled.safetensors", dtype=torch.float32)
    name = next(name for name in exact if name.endswith("to_q.weight"))
    parameter = next(p for p, source in model.sources["unet"].items() if source.name == name)
    model.unet.get_parameter(parameter).data = torch.zeros_like(exact[name])

    model.restore("unet", [parameter])

    assert torch.equal(model.unet.get_parameter(parameter), exact[name])


def test_a_scale_of_a_wrong_shape_is_refused_by_name(tiny_files, tmp_path):
    stored, exact = with_scales(load_file(tiny_files["sd1"]), "scale_weight", by_row=False)
    name = f"{next(iter(exact)).removesuffix('weight')}scale_weight"
    stored[name] = torch.ones(7)
    save_file(stored, tmp_path / "odd.safetensors", load_metadata(tiny_files["sd1"]))

    with pytest.raises(InvalidModelFile, match="does not fit a weight"):
        load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("kind", "extra", "named"),
    [
        ("sdxl", {"edm_mean": torch.zeros(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1)}, "Playground 2.5"),
        ("sdxl", {"edm_vpred.sigma_max": torch.ones(1)}, "CosXL"),
    ],
)
def test_other_noise_levels_are_refused_by_name(tiny_files, tmp_path, kind, extra, named):
    save_file(load_file(tiny_files[kind]) | extra, tmp_path / "edm.safetensors", load_metadata(tiny_files[kind]))

    with pytest.raises(CannotRender, match=named) as caught:
        load(tmp_path / "edm.safetensors")

    assert caught.value.code == Cause.UNKNOWN_PREDICTION


def test_packed_weights_are_refused_by_name(tiny_files, tmp_path):
    tensors = load_file(tiny_files["sd1"])
    name = next(name for name in tensors if name.endswith("to_q.weight"))
    tensors[f"{name.removesuffix('.weight')}.wscales"] = torch.zeros(80)
    save_file(tensors, tmp_path / "nunchaku.safetensors", load_metadata(tiny_files["sd1"]))

    with pytest.raises(CannotRender, match="svdquant") as caught:
        load(tmp_path / "nunchaku.safetensors")

    assert caught.value.code == Cause.QUANTISED_WEIGHTS


@pytest.mark.filterwarnings("ignore")
def test_a_unet_without_a_middle_block_computes_what_diffusers_does(tiny_files, tmp_path):
    from diffusers import UNet2DConditionModel

    depths = {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 3], "mid_block_type": None}
    config = tiny_models.KINDS["sdxl"]["unet"] | depths
    oracle = UNet2DConditionModel(**config)
    values = {name: torch.randn_like(tensor) * 0.05 for name, tensor in oracle.state_dict().items()}
    oracle.load_state_dict(values)
    rest = {k: v.float() for k, v in load_file(tiny_files["sdxl"]).items() if "diffusion_model" not in k}
    prefixes = tiny_models.unet_prefixes(config)
    unet = {tiny_models.unet_name(name, prefixes): tensor for name, tensor in values.items()}
    save_file(rest | unet, tmp_path / "koala.safetensors", load_metadata(tiny_files["sdxl"]))

    model = load(tmp_path / "koala.safetensors", dtype=torch.float32)

    pooled = model.configs["text_encoder_2"]["projection_dim"]
    width = config["cross_attention_dim"]
    added = {"text_embeds": torch.ones(1, pooled), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    with torch.no_grad():
        ours, theirs = (
            net(torch.ones(1, 4, 8, 8), 10, torch.ones(1, 77, width), added_cond_kwargs=added).sample
            for net in (model.unet, oracle.eval())
        )
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert model.unused == ()


def load_metadata(path):
    return Weights(path).metadata
