"""Files as people have them, written by torch itself in both of its containers: every tensor must equal torch's."""

import argparse
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from civman.errors import Refused
from civman.manage.inspection import inspect_path
from civman.store.read_pickle import read_pickle, read_pickled_numbers, write_safetensors


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def foreign(full: str, base: type = object) -> type:
    """A class as a trainer's package would have it, importable while its file is written."""
    module, _, name = full.rpartition(".")
    made = type(name, (base,), {"__module__": module})
    for end in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:end])
        sys.modules.setdefault(part, types.ModuleType(part))
    setattr(sys.modules[module], name, made)
    return made


def parameter_dict() -> torch.nn.ParameterDict:
    return torch.nn.ParameterDict({"*": torch.nn.Parameter(drawn(4, 8))})


def lightning() -> dict[str, object]:
    callback = foreign("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    config = foreign("omegaconf.dictconfig.DictConfig")()
    config.__dict__.update(_content={"lr": 1e-4}, _parent=None)
    attributes = foreign("pytorch_lightning.utilities.parsing.AttributeDict", dict)(a=1)
    weights = OrderedDict(CHECKPOINT)
    weights._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]  # as `Module.state_dict` has it
    adam = {"state": {0: {"step": 7, "exp_avg": drawn(2, 2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return {
        "epoch": 3, "global_step": np.int64(7), "pytorch-lightning_version": "1.9.0", "state_dict": weights,
        "callbacks": {callback: {"best": np.float64(0.5), "path": PosixPath("/x")}}, "optimizer_states": [adam],
        "hyper_parameters": attributes, "config": config, "args": argparse.Namespace(seed=1, names={"a", "b"}),
    }  # fmt: skip


CHECKPOINT = {
    "model.diffusion_model.input_blocks.0.0.weight": drawn(4, 4, 3, 3).half(), "alphas_cumprod": drawn(5),
    "model.diffusion_model.out.2.bias": drawn(4).half(), "cond_stage_model.position_ids": torch.arange(5)[None],
    "first_stage_model.decoder.conv_in.weight": drawn(3, 2, 3, 3).to(memory_format=torch.channels_last),
    "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3, dtype=torch.int32),
    "model_ema.diffusion_modelout2bias": drawn(4),
}  # fmt: skip
LAYERS = OrderedDict({"linear.0.weight": drawn(6, 3), "linear.0.bias": drawn(6)})
SHARED = drawn(6, 4)
CASES = {
    "A1111's embedding": (
        {"string_to_token": {"*": 265}, "string_to_param": {"*": drawn(4, 8)}, "name": "bad", "step": 200,
         "sd_checkpoint": "aabb", "sd_checkpoint_name": "v1"}, {"string_to_param.*": drawn(4, 8)}),
    "the first embeddings": (
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameter_dict()},
        {"string_to_token.*": torch.tensor(265), "string_to_param.*": drawn(4, 8)}),
    "emb_params": ({"emb_params": drawn(3, 8)}, {"emb_params": drawn(3, 8)}),
    "diffusers' embedding": ({"<cat-toy>": drawn(8)}, {"<cat-toy>": drawn(8)}),
    "diffusers' embedding of a parameter": ({"<s>": torch.nn.Parameter(drawn(2, 8))}, {"<s>": drawn(2, 8)}),
    "an SDXL pair": ({"clip_l": drawn(2, 8), "clip_g": drawn(2, 12)}, {"clip_l": drawn(2, 8), "clip_g": drawn(2, 12)}),
    "a checkpoint": ({"state_dict": CHECKPOINT}, CHECKPOINT),
    "a checkpoint without nesting": (OrderedDict(CHECKPOINT), CHECKPOINT),
    "a checkpoint of Lightning": (lightning(), CHECKPOINT),
    "a VAE": ({"state_dict": {"decoder.conv_in.weight": drawn(2, 2)}, "epoch": 1},
              {"decoder.conv_in.weight": drawn(2, 2)}),
    "a hypernetwork": (
        {320: (LAYERS, LAYERS), 768: [LAYERS, LAYERS], "step": 9, "name": "h", "layer_structure": [1, 2, 1],
         "activation_func": "relu", "is_layer_norm": False, "activate_output": True, "sd_checkpoint": None,
         "optimizer_state_dict": {"state": {0: {"exp_avg": drawn(2)}}}},
        {f"{width}.{part}.{name}": each for width in (320, 768) for part in (0, 1) for name, each in LAYERS.items()}),
    "an upscaler": (
        {"params": {"conv_first.weight": drawn(2, 3)}, "params_ema": {"conv_first.weight": drawn(2, 3, seed=1)}},
        {"conv_first.weight": drawn(2, 3, seed=1)}),
    "a LoRA of kohya": (
        {"lora_unet_x.lora_down.weight": drawn(4, 8).bfloat16(), "lora_unet_x.alpha": torch.tensor(4.0)},
        {"lora_unet_x.lora_down.weight": drawn(4, 8).bfloat16(), "lora_unet_x.alpha": torch.tensor(4.0)}),
    "a LoRA of cloneofsimo": ([drawn(2, 4), drawn(4, 2)], {"0": drawn(2, 4), "1": drawn(4, 2)}),
    "a tensor alone": (drawn(3), {"tensor": drawn(3)}),
    "views of one storage": (
        {"a": SHARED, "b": SHARED[2:5], "c": SHARED[:, 1], "d": SHARED.T, "e": SHARED[1::2, ::3], "f": SHARED[2, 3],
         "g": SHARED[:0]},
        {"a": SHARED, "b": SHARED[2:5], "c": SHARED[:, 1], "d": SHARED.T, "e": SHARED[1::2, ::3], "f": SHARED[2, 3],
         "g": SHARED[:0]}),
    "every type": (
        {str(kind): torch.arange(6).to(kind) for kind in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
            torch.int8, torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2)},
        {str(kind): torch.arange(6).to(kind) for kind in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
            torch.int8, torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2)}),
}  # fmt: skip


def as_safetensors(path: Path) -> dict[str, torch.Tensor]:
    copy = path.with_suffix(".safetensors")
    with copy.open("wb") as target:
        write_safetensors(path, read_pickle(path), target, {})
    return load_file(copy)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert (
            found[name].view(torch.uint8).equal(tensor.contiguous().view(torch.uint8))
            if tensor.ndim
            else (found[name].equal(tensor))
        ), name


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_equals_torchs(tmp_path: Path, case: str, is_zip: bool, protocol: int) -> None:
    value, expected = CASES[case]
    path = tmp_path / "model.pt"
    torch.save(value, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)

    assert_equal(as_safetensors(path), expected)


def test_a_deflated_archive_gives_torchs_numbers_where_torchs_own_memory_map_does_not(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(5000.0)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / "packed.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), zipfile.ZIP_DEFLATED)

    assert_equal(as_safetensors(tmp_path / "packed.pt"), {"a": torch.arange(5000.0)})


def test_plain_values_become_metadata(tmp_path: Path) -> None:
    found = {}
    for case in ("A1111's embedding", "a hypernetwork"):
        torch.save(CASES[case][0], tmp_path / "x.pt")
        found |= read_pickle(tmp_path / "x.pt").named.metadata

    assert found["sd_checkpoint_name"] == "v1"
    assert (found["layer_structure"], found["activate_output"], found["step"]) == ("[1, 2, 1]", "true", "9")


def test_single_numbers_are_read_without_the_rest(tmp_path: Path) -> None:
    torch.save(CASES["a LoRA of kohya"][0], tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt")

    assert read_pickled_numbers(tmp_path / "x.pt", found, found.named.tensors) == {"lora_unet_x.alpha": 4.0}


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")

    with pytest.raises(Refused, match=r"`torch\.nn\.modules\.linear\.Linear` in data\.pkl"):
        read_pickle(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("value", "kind", "architecture"),
    [
        ({"string_to_token": {"*": 265}, "string_to_param": {"*": drawn(2, 768)}, "name": "n"}, "embedding", "sd1"),
        ({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": drawn(2, 768)}}, "embedding", "sd1"),
        ({"emb_params": drawn(1, 1024)}, "embedding", "sd2"),
        ({"<cat-toy>": drawn(768)}, "embedding", "sd1"),
        ({"clip_l": drawn(2, 768), "clip_g": drawn(2, 1280)}, "embedding", "sdxl"),
        (CASES["a hypernetwork"][0], "hypernetwork", "unknown"),
        ({"params_ema": {"conv_first.weight": drawn(4, 3, 3, 3), "body.0.rdb1.conv1.weight": drawn(4, 4, 3, 3)}},
         "upscaler", "unknown"),
    ],
)  # fmt: skip
def test_each_container_is_identified(tmp_path: Path, value: object, kind: str, architecture: str) -> None:
    torch.save(value, tmp_path / "model.pt")

    found = inspect_path(tmp_path / "model.pt")

    assert found.identity is not None
    assert (found.identity.kind, found.identity.architecture) == (kind, architecture)
