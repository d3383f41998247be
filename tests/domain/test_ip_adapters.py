"""IP-Adapters and CLIP vision encoders by their headers: kinds, layouts, encoders, and the attention that must fit."""

from collections.abc import Mapping
from typing import Any

import pytest

from civman.domain.adapters.ip_adapters import ip_adapter_kind, read_ip_adapter
from civman.domain.architecture import Architecture, Kind
from civman.domain.compatibility import Depth, Part, Verdict, check
from civman.domain.identification.identify import identify
from civman.domain.vision_encoders import read_vision_encoder
from civman.errors import CannotRender
from tests.headers import made, recorded

Shapes = Mapping[str, tuple[int, ...]]


def linear(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(context: int, widths: list[int]) -> Shapes:
    return {
        f"ip_adapter.{2 * place + 1}.to_{side}_ip.weight": (width, context)
        for place, width in enumerate(widths)
        for side in "kv"
    }


def resampler(hidden: int, width: int, context: int, tokens: int = 16) -> Shapes:
    found = {"latents": (1, tokens, hidden), **linear("proj_in", hidden, width), **linear("proj_out", context, hidden)}
    found |= norm("norm_out", context)
    for block in range(4):
        layer = f"layers.{block}"
        found |= {
            **norm(f"{layer}.0.norm1", hidden), **norm(f"{layer}.0.norm2", hidden), **norm(f"{layer}.1.0", hidden),
            f"{layer}.0.to_q.weight": (hidden, hidden), f"{layer}.0.to_kv.weight": (2 * hidden, hidden),
            f"{layer}.0.to_out.weight": (hidden, hidden), f"{layer}.1.1.weight": (4 * hidden, hidden),
            f"{layer}.1.3.weight": (hidden, 4 * hidden),
        }  # fmt: skip
    return found


SD1 = attention(768, [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280])
XL = attention(2048, [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10)
PROJECTIONS: dict[str, tuple[Shapes, Shapes, str, int]] = {
    "sd15 plain and light": ({**linear("proj", 3072, 1024), **norm("norm", 768)}, SD1, "plain", 1024),
    "sdxl plain": ({**linear("proj", 8192, 1280), **norm("norm", 2048)}, XL, "plain", 1280),
    "sdxl plain with ViT-H": ({**linear("proj", 8192, 1024), **norm("norm", 2048)}, XL, "plain", 1024),
    "sd15 plus and plus-face": (resampler(768, 1280, 768), SD1, "plus", 1280),
    "sdxl plus with ViT-H": (resampler(1280, 1280, 2048), XL, "plus", 1280),
    "sd15 full-face": (
        {**linear("proj.0", 1280, 1280), **linear("proj.2", 768, 1280), **norm("proj.3", 768)}, SD1, "full-face", 1280
    ),
    "plain, diffusers": ({**linear("image_embeds", 3072, 1024), **norm("norm", 768)}, SD1, "plain", 1024),
    "full-face, diffusers": (
        {**linear("ff.net.0.proj", 1280, 1280), **linear("ff.net.2", 768, 1280), **norm("norm", 768)},
        SD1, "full-face", 1280,
    ),
}  # fmt: skip
REFUSED: dict[str, tuple[Shapes, str]] = {
    "faceid": ({**linear("proj.0", 1024, 512), **linear("proj.2", 3072, 1024), **norm("norm", 768)}, "FaceID adapters"),
    "faceid, diffusers": (
        {**linear("ff.net.0.proj", 1024, 512), **linear("ff.net.2", 3072, 1024), **norm("norm", 768)}, "FaceID adapters"
    ),
    "faceid plus": (
        {**linear("proj.0", 1024, 512), **linear("proj.2", 3072, 1024), **norm("norm", 768),
         **linear("perceiver_resampler.proj_in", 768, 1280)},
        "FaceID Plus",
    ),
    "instantid": (resampler(1280, 512, 2048), "InstantID"),
    "unknown": ({"mystery.weight": (3, 3)}, "lacks the image projection"),
    "incomplete": ({**linear("proj", 3072, 1024), "norm.weight": (768,)}, "lacks the tensor `norm.bias`"),
}  # fmt: skip


def whole(projection: Shapes, layers: Shapes) -> dict[str, tuple[int, ...]]:
    return {f"image_proj.{name}": shape for name, shape in projection.items()} | dict(layers)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_kinds_and_the_features_that_they_read(name: str) -> None:
    projection, layers, kind, width = PROJECTIONS[name]
    shapes = whole(projection, layers)

    found, identity = read_ip_adapter(shapes, "file"), identify(made(shapes))

    assert (found.kind, found.input_width) == (kind, width)
    assert found.width == (768 if layers is SD1 else 2048)
    assert found.layers == tuple(range(1, 2 * len(found.layers), 2))
    assert (identity.kind, identity.variant) == (Kind.IP_ADAPTER, kind)
    assert identity.architecture is (Architecture.SD1 if layers is SD1 else Architecture.SDXL)


@pytest.mark.parametrize("name", REFUSED)
def test_what_civman_cannot_use_is_refused_by_name_with_the_reason(name: str) -> None:
    projection, says = REFUSED[name]
    shapes = whole(projection, SD1)

    with pytest.raises(CannotRender) as found:
        read_ip_adapter(shapes, "some-file")

    assert says in found.value.message
    assert "`some-file`" in found.value.message
    assert found.value.hint
    if name.startswith(("faceid", "instantid")):
        assert "insightface" in found.value.message
        assert ip_adapter_kind(shapes) in ("faceid", "faceid-plus", "instantid")


def part(header: Any, name: str = "part") -> Part:
    identity = identify(header)
    return Part(name, identity.model_type, None, identity, header)


@pytest.mark.parametrize(
    ("layers", "checkpoint", "verdict", "says"),
    [
        (SD1, "own/ckpt-sd15", Verdict.FITS, "16 attention layers fit"),
        (XL, "own/ckpt-sdxl", Verdict.FITS, "70 attention layers fit"),
        (XL, "own/ckpt-sd15", Verdict.CANNOT, "made for 70 cross-attention layers, but the checkpoint has 16"),
        (SD1, "own/ckpt-sdxl", Verdict.CANNOT, "made for 16"),
        (SD1, "own/ckpt-sd2", Verdict.CANNOT, "layer 1 has the shape 320x768 in the adapter, but 320x1024"),
        ({**SD1, "ip_adapter.9.to_k_ip.weight": (640, 768)}, "own/ckpt-sd15", Verdict.CANNOT, "layer 5 has the shape"),
    ],
)  # fmt: skip
def test_every_attention_layer_must_fit_the_checkpoint(
    layers: Shapes, checkpoint: str, verdict: Verdict, says: str
) -> None:
    projection = PROJECTIONS["sd15 plain and light"][0]

    found = check(part(recorded(checkpoint)), [part(made(whole(projection, layers)))])

    assert found.parts[0].verdict is verdict
    assert found.parts[0].depth is Depth.MODULES
    assert says in found.parts[0].reasons[0]


def test_an_adapter_that_fits_but_cannot_be_used_is_a_caution() -> None:
    (found,) = check(part(recorded("own/ckpt-sd15")), [part(made(whole(REFUSED["faceid"][0], SD1)))]).parts

    assert found.verdict is Verdict.CAUTION
    assert any("insightface" in reason for reason in found.reasons)


def test_an_encoder_is_read_from_both_layouts() -> None:
    theirs = recorded("own/clip-vision-h").shapes
    ours = {
        "visual.conv1.weight": (1280, 3, 14, 14), "visual.positional_embedding": (257, 1280),
        "visual.class_embedding": (1280,), "visual.proj": (1280, 1024),
        **{f"visual.transformer.resblocks.{n}.mlp.c_fc.weight": (5120, 1280) for n in range(32)},
    }  # fmt: skip

    found, other = read_vision_encoder(theirs), read_vision_encoder(ours)

    assert found is not None
    assert other is not None
    assert found.title == other.title == "ViT-H/14"
    assert found.config == other.config
    assert found.config["num_attention_heads"] == 16
    assert (found.image_size, found.patch, found.layers) == (224, 14, 32)
    assert identify(made(theirs)).variant == identify(made(ours)).variant == "vit-h"
    for lost in ("visual.proj", "visual.class_embedding", "visual.transformer.resblocks.7.mlp.c_fc.weight"):
        assert read_vision_encoder({name: shape for name, shape in ours.items() if name != lost}) is None
