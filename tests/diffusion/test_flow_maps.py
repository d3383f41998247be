# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The families' key tables are diffusers' conversions, at the published widths.

A converter sees tensors with their true number of rows and a single column, each value its own row's number, so that a
full-size file costs nothing and a row that goes astray shows.
"""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils

from civman.diffusion.families.registry import FLOW_FAMILIES
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class

FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "flux1": ("flux", {"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True}),
    "flux2-dev": ("flux2", {"num_layers": 2, "num_single_layers": 2}),
    "flux2": (
        "flux2",
        {
            "num_layers": 2,
            "num_single_layers": 2,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
    "chroma": ("chroma", {"num_layers": 2, "num_single_layers": 2}),
    "z-image": ("z_image", {"n_layers": 2}),
    "anima": (
        "cosmos",
        {
            "in_channels": 17,
            "num_attention_heads": 16,
            "num_layers": 2,
            "concat_padding_mask": False,
            "extra_pos_embed_type": None,
        },
    ),
    "hidream": (
        "hidream_transformer",
        {
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "caption_channels": [4096, 4096],
            "axes_dims_rope": (64, 32, 32),
            "llama_layers": [0, 1, 2, 3],
        },
    ),
    "ernie-image": (
        "ernie_image",
        {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_layers": 2,
            "ffn_hidden_size": 12288,
            "text_in_dim": 3072,
        },
    ),
    "auraflow": ("auraflow", {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "pos_embed_max_size": 9216}),
    "krea2": ("krea2", {"num_layers": 2}),
    "lumina2": ("lumina2", {"num_layers": 2, "cap_feat_dim": 2304}),
    "sd3": ("sd3", {"num_layers": 3, "pos_embed_max_size": 192}),
    "sd3.5": (
        "sd3",
        {
            "num_layers": 3,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": (0, 1),
        },
    ),
}
"""Family → diffusers' converter, and what makes the published model shallow."""


def thin(shapes: dict[str, tuple[int, ...]], sources: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """A file's tensors with one column, and each parameter's number of rows."""
    rows = {name: shape[0] for name, shape in shapes.items()}
    sizes: dict[str, int] = {}
    for parameter, source in sources.items():
        end = source.rows[0] + source.rows[1] if source.rows else rows[parameter]
        sizes[source.name] = max(sizes.get(source.name, 0), end)
    start = 0
    tensors = {}
    for name, size in sorted(sizes.items()):
        tensors[name] = torch.arange(start, start + size, dtype=torch.float64)
        start += size
        if not name.endswith((".bias", ".scale")) and len(shapes.get(name, (1, 1))) > 1:
            tensors[name] = tensors[name][:, None]
    return tensors, rows


def read(tensors: dict[str, Any], source: Any) -> Any:
    found = tensors[source.name]
    if source.rows:
        found = found[source.rows[0] : source.rows[0] + source.rows[1]]
    if source.swaps_halves:
        half = len(found) // 2
        found = torch.cat([found[half:], found[:half]])
    return found.flatten()


@pytest.mark.parametrize("name", FULL)
def test_every_parameter_gets_the_rows_that_diffusers_gives_it(name: str) -> None:
    converter, dimensions = FULL[name]
    family = next(each for each in FLOW_FAMILIES if each.name == name.partition(".")[0])
    with unfilled():
        model = construct_class(family.model, dimensions)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    sources = family.sources("transformer", shapes, "")
    tensors, _ = thin(shapes, sources)
    names = (f"convert_{converter}_transformer_checkpoint_to_diffusers", f"convert_{converter}_to_diffusers")
    convert = next(made for each in names if (made := getattr(single_file_utils, each, None)) is not None)

    theirs = convert(dict(tensors), config={})

    assert theirs.keys() == shapes.keys()
    for parameter, source in sources.items():
        assert torch.equal(read(tensors, source), theirs[parameter].flatten()), parameter
