# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Adapters on tiny transformers: the module names of every layout, joint and split, give what their formula gives."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import transformer_layouts as layouts
from safetensors.torch import save_file

from civman.diffusion.match_adapter import Adapter
from civman.diffusion.merge_adapters import Later, apply, restore
from civman.domain.adapters.module_names import ModuleIndex
from civman.errors import Cause, Incompatible

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TINY = {
    "flux1": {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
              "joint_attention_dim": 24, "pooled_projection_dim": 12, "axes_dims_rope": (2, 2, 4)},
    "chroma": {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
               "joint_attention_dim": 24, "axes_dims_rope": (2, 2, 4), "approximator_hidden_dim": 16,
               "approximator_layers": 1},
    "z-image": {"n_layers": 1, "n_refiner_layers": 1, "dim": 16, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24,
                "axes_dims": [2, 2, 4]},
    "auraflow": {"num_mmdit_layers": 1, "num_single_dit_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
                 "joint_attention_dim": 24, "caption_projection_dim": 16, "pos_embed_max_size": 16},
    "anima": {"num_attention_heads": 1, "attention_head_dim": 24, "num_layers": 1, "text_embed_dim": 24,
              "adaln_lora_dim": 6},
    "ernie-image": {"hidden_size": 16, "num_attention_heads": 1, "num_layers": 2, "ffn_hidden_size": 24,
                    "text_in_dim": 12, "rope_axes_dim": (4, 6, 6)},
    "hidream": {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
                "caption_channels": [12, 14], "text_emb_dim": 10, "axes_dims_rope": (4, 2, 2),
                "llama_layers": [0, 1]},
}  # fmt: skip
R, ALPHA, SCALE = 3, 2.0, 0.7


class Small:
    """A tiny model with random weights, and the relation of its parameters to the tensors of its file."""

    def __init__(self, family: str) -> None:
        shaped = layouts.model(family, **TINY[family])
        self.shapes = layouts.weights(shaped)
        generator = torch.Generator().manual_seed(4)
        values = {name: torch.randn(shape, generator=generator) for name, shape in self.shapes.items()}
        self.module = shaped.to_empty(device="cpu").requires_grad_(requires_grad=False)
        self.module.load_state_dict(values, strict=False)
        self.original = BACKWARDS[family](family, self.shapes)
        index = ModuleIndex.of_header(layouts.header(self.original))
        self.sources = {
            name: replace(source, name=f"model.diffusion_model.{source.name}")
            for name, source in layouts.sources(family, self.shapes, index).items()
        }
        self.values = values

    def base(self, _component: str, name: str) -> torch.Tensor:
        return self.values[name]

    def merge(self, path, **more):
        adapter = Adapter(path, "0" * 64, SCALE)
        return apply({"transformer": self.module}, self.base, [adapter], sources={"transformer": self.sources}, **more)

    def joint(self, original: str) -> list[tuple[str, int, int, bool]]:
        """The parameters that are rows of a layer of the file: name, first row, number of rows, halves swapped."""
        wanted = f"model.diffusion_model.{original}.weight"
        return [
            (name, source.rows[0] if source.rows else 0, self.shapes[name][0], source.swaps_halves)
            for name, source in self.sources.items()
            if source.name == wanted
        ]

    def whole(self, original: str) -> torch.Tensor:
        """A layer of the file, put together from the model's parameters."""
        weight = torch.zeros(self.original[f"{original}.weight"])
        for name, first, count, swaps in self.joint(original):
            weight[first : first + count] = halves(self.values[name], swaps)
        return weight


def halves(tensor: torch.Tensor, swaps: bool) -> torch.Tensor:
    return torch.cat(tensor.chunk(2)[::-1]) if swaps else tensor


def flux_file(_family, shapes):
    """The file of a tiny Flux.1: Chroma's layout and the modules that Chroma lacks."""
    more = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "transformer_blocks.0.norm1.linear": "double_blocks.0.img_mod.lin",
        "transformer_blocks.0.norm1_context.linear": "double_blocks.0.txt_mod.lin",
        "single_transformer_blocks.0.norm.linear": "single_blocks.0.modulation.lin",
    }  # fmt: skip
    found = layouts.backwards("chroma", shapes)
    return {
        (
            f"{more[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" if name.rpartition(".")[0] in more else name
        ): shape
        for name, shape in found.items()
    }


BACKWARDS = dict.fromkeys(TINY, layouts.backwards) | {"flux1": flux_file}

SPELLINGS = {
    "kohya": lambda name: f"lora_unet_{name.replace('.', '_')}",
    "comfy": lambda name: f"diffusion_model.{name}",
    "whole prefix": lambda name: f"model.diffusion_model.{name}",
    "transformer": lambda name: f"transformer.{name}",
    "bare": lambda name: name,
    "peft": lambda name: f"base_model.model.{name}",
    "onetrainer": lambda name: f"lora_transformer_{name.replace('.', '_')}",
    "lycoris": lambda name: f"lycoris_{name.replace('.', '_')}",
}
ENDS = {
    "kohya": ("lora_down.weight", "lora_up.weight"), "comfy": ("lora_A.weight", "lora_B.weight"),
    "whole prefix": ("lora_A.weight", "lora_B.weight"), "transformer": ("lora_A.weight", "lora_B.weight"),
    "bare": ("lora_A.default.weight", "lora_B.default.weight"), "peft": ("lora_A.weight", "lora_B.weight"),
    "onetrainer": ("lora_down.weight", "lora_up.weight"), "lycoris": ("lora_down.weight", "lora_up.weight"),
}  # fmt: skip


def low_rank(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(R, shape[1], generator=generator), torch.randn(shape[0], R, generator=generator)


def cases(spellings):
    """Every family with every spelling; all but a few of them are for the long tests."""
    quick = {("flux1", spelling) for spelling in spellings} | {(family, "kohya") for family in TINY}
    return [
        pytest.param(family, spelling, marks=() if (family, spelling) in quick else (pytest.mark.long,))
        for family in TINY
        for spelling in spellings
    ]


@pytest.mark.parametrize(("family", "spelling"), cases(SPELLINGS))
def test_every_layer_by_the_file_s_names(tmp_path, family, spelling) -> None:
    small = Small(family)
    tensors, expected = {}, {name: value.clone() for name, value in small.values.items()}
    for number, (key, shape) in enumerate(small.original.items()):
        if not key.endswith(".weight") or len(shape) != 2:
            continue
        original = key.removesuffix(".weight")
        down, up = low_rank(shape, number)
        module = SPELLINGS[spelling](original)
        tensors |= {f"{module}.{ENDS[spelling][0]}": down, f"{module}.{ENDS[spelling][1]}": up,
                    f"{module}.alpha": torch.tensor(ALPHA)}  # fmt: skip
        change = SCALE * ALPHA / R * (up @ down)
        for name, first, count, swaps in small.joint(original):
            expected[name] += halves(change[first : first + count], swaps)
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "a.safetensors")

    (report,) = small.merge(tmp_path / "a.safetensors")

    assert report.unmatched == ()
    assert len(report.matched) == len(tensors) // 3 > 10
    for name, value in expected.items():
        assert torch.allclose(small.module.get_parameter(name), value, atol=1e-4), name

    restore({"transformer": small.module}, small.base, [report])
    assert all(torch.equal(small.module.get_parameter(name), value) for name, value in small.values.items())


@pytest.mark.parametrize(("family", "spelling"), cases(["kohya", "comfy", "transformer", "peft", "onetrainer"]))
def test_every_layer_by_the_names_of_diffusers(tmp_path, family, spelling) -> None:
    small = Small(family)
    tensors, expected = {}, {name: value.clone() for name, value in small.values.items()}
    for number, (key, shape) in enumerate(small.shapes.items()):
        if key.endswith(".weight") and len(shape) == 2:
            down, up = low_rank(shape, number)
            module = SPELLINGS[spelling](key.removesuffix(".weight"))
            tensors |= {f"{module}.{ENDS[spelling][0]}": down, f"{module}.{ENDS[spelling][1]}": up}
            expected[key] += SCALE * (up @ down)
    save_file(tensors, tmp_path / "a.safetensors")

    (report,) = small.merge(tmp_path / "a.safetensors")

    assert report.unmatched == ()
    for name, value in expected.items():
        assert torch.allclose(small.module.get_parameter(name), value, atol=1e-4), name


def lokr(weight):
    left, right = torch.randn(2, 4), torch.randn(weight.shape[0] // 2, weight.shape[1] // 4)
    return {"lokr_w1": left, "lokr_w2": right, "alpha": torch.tensor(1.0)}, weight + SCALE * torch.kron(left, right)


def loha(weight):
    a1, b1, a2, b2 = (torch.randn(weight.shape[0], R), torch.randn(R, weight.shape[1]),
                      torch.randn(weight.shape[0], R), torch.randn(R, weight.shape[1]))  # fmt: skip
    tensors = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(ALPHA)}
    return tensors, weight + SCALE * ALPHA / R * ((a1 @ b1) * (a2 @ b2))


def dora(weight):
    down, up = low_rank(weight.shape, 9)
    scale = torch.rand(weight.shape[0], 1) + 0.5
    turned = weight + up @ down
    full = turned * scale / turned.norm(dim=1, keepdim=True)
    return {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": scale}, weight + SCALE * (full - weight)


def dora_by_column(weight):
    down, up = low_rank(weight.shape, 9)
    scale = torch.rand(1, weight.shape[1]) + 0.5
    turned = weight + up @ down
    full = turned * scale / turned.norm(dim=0, keepdim=True)
    return {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": scale}, weight + SCALE * (full - weight)


def diff(weight):
    change = torch.randn_like(weight)
    return {"diff": change}, weight + SCALE * change


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", [lokr, loha, dora, dora_by_column, diff])
@pytest.mark.parametrize(
    ("family", "layer"),
    [("flux1", "double_blocks.0.img_attn.qkv"), ("flux1", "single_blocks.0.linear1"),
     ("flux1", "final_layer.adaLN_modulation.1"), ("z-image", "layers.0.attention.qkv")],
)  # fmt: skip
def test_other_kinds_on_joint_layers_are_computed_on_the_whole_layer(tmp_path, family, layer, kind, streamed) -> None:
    small = Small(family)
    torch.manual_seed(1)
    tensors, merged = kind(small.whole(layer))
    path = tmp_path / "a.safetensors"
    save_file(
        {f"lora_unet_{layer.replace('.', '_')}.{key}": value.contiguous() for key, value in tensors.items()}, path
    )

    later = Later(torch.device("cpu")) if streamed else None
    if later is not None:
        small.module.to("meta")
    small.merge(path, later=later)

    for name, first, count, swaps in small.joint(layer):
        if later is not None:
            found = torch.empty(small.shapes[name])
            later.write(("transformer", name), small.values[name], found)
        else:
            found = small.module.get_parameter(name)
        assert torch.allclose(found, halves(merged[first : first + count], swaps), atol=1e-4), name


def test_a_bias_of_a_joint_layer_is_divided_like_its_weight(tmp_path) -> None:
    small = Small("flux1")
    layer, change = "lora_unet_double_blocks_0_txt_attn_qkv", torch.randn(48)
    save_file({f"{layer}.diff_b": change}, tmp_path / "a.safetensors")

    small.merge(tmp_path / "a.safetensors")

    for number, name in enumerate(("add_q_proj", "add_k_proj", "add_v_proj")):
        key = f"transformer_blocks.0.attn.{name}.bias"
        expected = small.values[key] + SCALE * change[16 * number : 16 * number + 16]
        assert torch.allclose(small.module.get_parameter(key), expected, atol=1e-5)


def test_an_adapter_that_names_a_layer_jointly_and_in_parts_is_refused(tmp_path) -> None:
    small = Small("flux1")
    tensors = {}
    for module, rows in (
        ("lora_unet_double_blocks_0_img_attn_qkv", 48),
        ("transformer.transformer_blocks.0.attn.to_k", 16),
    ):
        tensors |= {f"{module}.lora_A.weight": torch.randn(R, 16), f"{module}.lora_B.weight": torch.randn(rows, R)}
    save_file(tensors, tmp_path / "a.safetensors")

    with pytest.raises(Incompatible, match="changes the same weight") as caught:
        small.merge(tmp_path / "a.safetensors")

    assert caught.value.code == Cause.ADAPTER_PARTIAL


def test_an_adapter_of_another_family_is_one_clear_refusal(tmp_path) -> None:
    tensors = {}
    for number in range(4):
        module = f"lora_unet_layers_{number}_attention_qkv"
        tensors |= {f"{module}.lora_down.weight": torch.randn(R, 16), f"{module}.lora_up.weight": torch.randn(48, R)}
    save_file(tensors, tmp_path / "a.safetensors")

    with pytest.raises(Incompatible, match="fits no part of this model") as caught:
        Small("flux1").merge(tmp_path / "a.safetensors")

    assert caught.value.code == Cause.ADAPTER_NO_MATCH
