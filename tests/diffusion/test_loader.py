# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Checkpoints become components without the network, without copies, and tensor for tensor as diffusers reads them."""

import json
import socket
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import headers
import tiny_models

from civman.diffusion.families.registry import Family
from civman.diffusion.families.sd1 import SD1
from civman.diffusion.families.sd2 import SD2
from civman.diffusion.families.sdxl import SDXL
from civman.diffusion.families.sdxl_refiner import REFINER
from civman.diffusion.loader import load
from civman.errors import CannotRender, InvalidModelFile

VOCAB = tiny_models.SMALL_VOCAB
FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "models"
FAMILIES = {
    "sd1": SD1,
    "sd1-inpaint": SD1,
    "sd2": SD2,
    "sdxl": SDXL,
    "sdxl-inpaint": SDXL,
    "sdxl-vpred": SDXL,
    "refiner": REFINER,
}


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_every_family_is_read_with_the_dimensions_it_was_made_with(tiny_files: dict[str, Path], kind: str) -> None:
    model = load(tiny_files[kind])

    assert model.family is FAMILIES[kind]
    assert model.unused == ()
    for component, wanted in tiny_models.KINDS[kind].items():
        found = model.configs[component]
        assert {k: found.get(k) for k in wanted if k != "sample_size"} == {
            k: v for k, v in wanted.items() if k != "sample_size"
        }


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "refiner", "sd1-inpaint"])
@pytest.mark.filterwarnings("ignore")
def test_every_tensor_equals_what_diffusers_reads(tiny_files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from safetensors.torch import load_file
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder = tiny_models.write_configs(tmp_path / "config", kind, vocab=VOCAB)
    model = load(tiny_files[kind])

    oracles = {
        name: cls.from_single_file(
            str(tiny_files[kind]), config=str(folder), subfolder=name, torch_dtype=torch.float16, local_files_only=True
        )
        for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
    }
    for name, cls in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if name in tiny_models.KINDS[kind]:
            oracles[name] = create_diffusers_clip_model_from_ldm(
                cls,
                checkpoint=load_file(tiny_files[kind]),
                subfolder=name,
                config=str(folder),
                torch_dtype=torch.float16,
                local_files_only=True,
            )

    assert oracles.keys() == model.components.keys()
    for name, oracle in oracles.items():
        ours, theirs = model.components[name].state_dict(), oracle.state_dict()
        assert ours.keys() == theirs.keys()
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="shared fixtures are not here")
@pytest.mark.filterwarnings("ignore")
def test_the_fixture_with_its_config_folder_equals_from_single_file() -> None:
    from diffusers import StableDiffusionPipeline

    file, config = FIXTURES / "tiny-shapes-v0.safetensors", FIXTURES / "tiny-shapes-v0-config"
    oracle = StableDiffusionPipeline.from_single_file(
        str(file), config=str(config), torch_dtype=torch.float16, local_files_only=True
    )

    model = load(file, config=config)

    assert model.unused == ()
    for name, component in model.components.items():
        theirs = getattr(oracle, name).state_dict()
        assert [k for k, v in component.state_dict().items() if not torch.equal(v, theirs[k])] == []
    assert model.configs["unet"]["attention_head_dim"] == oracle.unet.config.attention_head_dim


def test_parameters_are_views_of_the_file_and_not_copies(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sdxl"])

    maps = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(tiny_files["sdxl"]) in line
    ]
    ranges = [(int(a, 16), int(b, 16)) for a, b in maps]
    for component in model.components.values():
        for name, parameter in component.named_parameters():
            assert any(a <= parameter.data_ptr() < b for a, b in ranges), name


def test_loading_asks_nobody_on_the_network(tiny_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    assert load(tiny_files["sdxl"]).family is SDXL


def test_another_dtype_is_converted_once_and_said(tiny_files: dict[str, Path]) -> None:
    plain, converted = load(tiny_files["sd1"]), load(tiny_files["sd1"], dtype=torch.float32)

    assert plain.notes == ()
    assert next(plain.unet.parameters()).dtype is torch.float16
    assert next(converted.unet.parameters()).dtype is torch.float32
    assert converted.notes[0] == "UNet: float16 in the file, computed in float32"
    assert torch.equal(converted.unet.conv_in.weight, plain.unet.conv_in.weight.float())


def test_v_prediction_and_zero_snr_are_read_from_the_file_or_its_metadata(
    tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    claimed = tiny_models.write(
        tmp_path / "v.safetensors", "sd2", vocab=VOCAB, metadata={"modelspec.prediction_type": "v"}
    )

    assert (load(tiny_files["sdxl-vpred"]).prediction, load(tiny_files["sdxl-vpred"]).is_zero_snr) == (
        "v_prediction",
        True,
    )
    assert (load(tiny_files["sdxl"]).prediction, load(tiny_files["sdxl"]).is_zero_snr) == ("epsilon", False)
    assert load(claimed).prediction == "v_prediction"
    assert load(claimed, prediction="epsilon").prediction == "epsilon"
    assert "epsilon is assumed" in load(tiny_files["sd2"]).notes[0]


@pytest.mark.parametrize(
    ("prefix", "part"),
    [("first_stage_model.", "vae"), ("cond_stage_model.", "text_encoder"), ("model.diffusion_model.", "unet")],
)
def test_a_missing_part_is_named_with_the_remedy(tmp_path: Path, prefix: str, part: str) -> None:
    file = tiny_models.write(tmp_path / "part.safetensors", "sd1", vocab=VOCAB, leave_out=(prefix,))

    with pytest.raises(CannotRender) as caught:
        # without its text encoder the tiny UNet's width tells no family; the real ones' does
        load(file)

    assert caught.value.code in ("missing-part", "unknown-family")
    if caught.value.code == "missing-part":
        assert caught.value.facts["part"] == part
        assert caught.value.hint


def test_a_missing_second_text_encoder_does_not_pass_for_another_family(tmp_path: Path) -> None:
    file = tiny_models.write(tmp_path / "x.safetensors", "sdxl", vocab=VOCAB, leave_out=("conditioner.embedders.0.",))

    with pytest.raises(CannotRender) as caught:
        load(file)

    assert caught.value.facts["part"] == "text_encoder"


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    name = "model.diffusion_model.middle_block.1.proj_in.weight"
    file = tiny_models.write(tmp_path / "x.safetensors", "sd1", vocab=VOCAB, leave_out=(name,))

    with pytest.raises(CannotRender) as caught:
        load(file)

    assert caught.value.code == "missing-tensor"
    assert caught.value.facts["missing"] == [name]


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    tensors = tiny_models.tensors_of("sd1", vocab=VOCAB)
    name = "model.diffusion_model.output_blocks.3.0.in_layers.2.bias"
    tensors[name] = torch.zeros(5)
    tiny_models.save(tensors, tmp_path / "x.safetensors", {})

    with pytest.raises(InvalidModelFile, match=r"output_blocks\.3\.0\.in_layers\.2\.bias"):
        load(tmp_path / "x.safetensors")


def test_tensors_that_nothing_wants_are_reported(tmp_path: Path) -> None:
    tensors = tiny_models.tensors_of("sd1", vocab=VOCAB) | {"control_model.hint": torch.zeros(2)}
    tiny_models.save(tensors, tmp_path / "x.safetensors", {})

    assert load(tmp_path / "x.safetensors").unused == ("control_model.hint",)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{]"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)

    with pytest.raises(InvalidModelFile):
        load(tmp_path / "x.safetensors")


def test_a_cut_file_is_refused(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(tiny_files["sd1"].read_bytes()[:-100])

    with pytest.raises(InvalidModelFile):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("style", ["original", "prefixed", "diffusers"])
def test_another_vae_is_used_in_any_layout(tiny_files: dict[str, Path], tmp_path: Path, style: str) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(3)
    other = AutoencoderKL(**tiny_models.VAE)
    state = dict(other.state_dict())
    if style != "diffusers":
        state = tiny_models.vae_tensors(state)
    if style == "prefixed":
        state = {f"first_stage_model.{name}": value for name, value in state.items()}
    tiny_models.save({name: value.contiguous() for name, value in state.items()}, tmp_path / "vae.safetensors", {})

    model = load(tiny_files["sd1"], vae=tmp_path / "vae.safetensors")

    ours = model.vae.state_dict()
    assert [name for name, value in other.state_dict().items() if not torch.equal(ours[name], value)] == []
    assert model.unused == ()


def test_changed_parameters_come_back_from_the_file(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sd2"])
    name = "text_model.encoder.layers.1.self_attn.k_proj.weight"
    name = name if name in dict(model.components["text_encoder"].named_parameters()) else name[11:]
    parameter = model.components["text_encoder"].get_parameter(name)
    before = parameter.detach().clone()
    parameter.data = torch.zeros_like(before)

    count = model.restore("text_encoder", [name])

    assert count == 1
    assert torch.equal(model.components["text_encoder"].get_parameter(name), before)
    assert torch.equal(model.base_tensor("text_encoder", name), before)


def test_a_file_states_what_no_shape_tells(tmp_path: Path) -> None:
    words = json.dumps({"unet": {"attention_head_dim": 4}, "vae": {"norm_num_groups": 4}})
    file = tiny_models.write(tmp_path / "x.safetensors", "sd1", vocab=VOCAB, metadata={"civman.config": words})

    model = load(file)

    assert model.unet.config.attention_head_dim == 4
    assert model.vae.config.norm_num_groups == 4


def test_modules_are_listed_by_name(tiny_files: dict[str, Path]) -> None:
    modules = load(tiny_files["sd1"]).modules("unet")

    assert isinstance(modules["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"], torch.nn.Linear)
    assert "" not in modules


def resident_bytes() -> int:
    """This process's resident memory, mapped files included."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what is resident")
@pytest.mark.parametrize(
    ("name", "family", "unet_parameters"),
    [
        ("own/ckpt-sd15", SD1, 859_520_964),
        ("own/ckpt-sdxl", SDXL, 2_567_463_684),
        ("ckpt-sd15", SD1, 859_520_964),
        ("ckpt-sdxl", SDXL, 2_567_463_684),
    ],
)
def test_a_file_of_full_size_loads_without_a_weight_being_read(
    tmp_path: Path, tiny_files: dict[str, Path], name: str, family: Family, unet_parameters: int
) -> None:
    load(tiny_files["sdxl"])  # the imports are not what is measured
    file = headers.write_sparse(name, tmp_path / "model.safetensors")
    size = file.stat().st_size
    if file.stat().st_blocks * 512 > 8 << 20:
        pytest.skip("this file system keeps no holes")
    before = resident_bytes()

    model = load(file)

    assert size > 2_000_000_000
    assert resident_bytes() - before < 64 << 20
    assert model.family is family
    assert sum(each.numel() for each in model.unet.parameters()) == unet_parameters
    loaded = {tensor.data_ptr() for module in model.components.values() for tensor in module.parameters()}
    mapped = sum(tensor.numel() * tensor.element_size() for module in model.components.values()
                 for tensor in module.parameters())  # fmt: skip
    assert max(loaded) - min(loaded) < size
    assert 0.9 * size < mapped <= size
    parameter = model.unet.get_parameter("conv_in.weight")
    assert torch.equal(parameter, torch.zeros_like(parameter))


def test_weights_that_were_let_go_are_read_again(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sdxl"])
    names = [name for name, _ in model.unet.named_parameters()]
    before = {name: model.base_tensor("unet", name).clone() for name in names}

    for name in names:
        model.forget("unet", name)

    assert all(torch.equal(model.base_tensor("unet", name), before[name]) for name in names)
    assert all(torch.equal(model.unet.get_parameter(name), before[name]) for name in names)
