# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Merged tokens are those of the published tomesd, in both families and at odd sizes."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
tomesd = pytest.importorskip("tomesd")

from civman.diffusion.loader import load
from civman.diffusion.token_merging import match, merging


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (4, 3), (12, 5)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.89])
def test_tokens_are_merged_as_in_tomesd(size: tuple[int, int], ratio: float) -> None:
    (height, width), generator = size, torch.Generator().manual_seed(2)
    tokens = torch.randn(3, height * width, 8, generator=generator)
    count = int(height * width * ratio)
    merge, undo = tomesd.merge.bipartite_soft_matching_random2d(tokens, width, height, 2, 2, count, no_rand=True)
    pair = match(tokens, height, width, count)

    assert pair is not None
    other = torch.randn(3, height * width, 8, generator=generator)
    # their order may differ, because tomesd's sorting is not stable; attention does not depend on it
    assert torch.allclose(pair[0](other).sort(dim=1).values, merge(other).sort(dim=1).values, atol=1e-6)
    assert torch.allclose(pair[1](pair[0](other)), undo(merge(other)), atol=1e-6)


def test_nothing_is_merged_at_a_ratio_of_zero() -> None:
    assert match(torch.randn(1, 16, 4), 4, 4, 0) is None


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("size", [(8, 8), (12, 8)])
def test_a_unet_computes_what_tomesd_s_patched_unet_computes(
    tiny_files: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    unet: Any = load(tiny_files[kind], device="cpu", dtype=torch.float32).unet
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, *size, generator=generator)
    width = int(unet.config.cross_attention_dim)
    more: dict[str, Any] = {}
    if kind == "sdxl":
        pooled = int(unet.config.projection_class_embeddings_input_dim) - 6 * int(unet.config.addition_time_embed_dim)
        more["added_cond_kwargs"] = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.ones(2, 6)}
    context = torch.randn(2, 77, width, generator=generator)

    def run() -> Any:
        with torch.no_grad():
            return unet(x, torch.tensor(500.0), encoder_hidden_states=context, return_dict=False, **more)[0]

    plain = run()
    with merging(unet, 0.5, size):
        mine = run()
    assert torch.equal(run(), plain), "nothing stays behind"
    tomesd.apply_patch(unet, ratio=0.5, use_rand=False)
    try:
        theirs = run()
    finally:
        tomesd.remove_patch(unet)

    apart = float((mine - plain).abs().max())
    assert float((mine - theirs).abs().max()) <= 1e-4 * apart
    # SDXL has no attention at the latents' own resolution, so nothing is merged there
    assert torch.equal(mine, plain) == (kind == "sdxl")
