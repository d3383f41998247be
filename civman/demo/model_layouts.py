"""Tensor names and shapes of Stable Diffusion files, as their authors publish them, but with few channels.

Names, module structure and the widths that distinguish architectures (text width 768, 1280 or 2048, `label_emb`) are
those of real files; channel counts, attention widths and the vocabulary are small. A LoRA's layout is derived from its
checkpoint's, so all of its modules fit that checkpoint.

Source: the LDM layout of SD 1.5 and SDXL 1.0 checkpoints, the key names written by kohya's sd-scripts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]
"""Tensor name → shape, in file order."""

_UNET = "model.diffusion_model."
_VOCABULARY = 64
_POSITIONS = 77
_LABEL_WIDTH = 2816


@dataclass(frozen=True, slots=True)
class _UNet:
    channels: int
    multipliers: tuple[int, ...]
    depths: tuple[int, ...]
    """Transformer blocks per attention, by level; 0 means that the level has no attention."""
    context: int
    linear_projection: bool
    label: bool

    @property
    def time_width(self) -> int:
        return self.channels * 4


_SD1 = _UNet(16, (1, 2, 4, 4), (1, 1, 1, 0), context=768, linear_projection=False, label=False)
_SDXL = _UNet(4, (1, 2, 4), (0, 2, 10), context=2048, linear_projection=True, label=True)


def sd1_checkpoint() -> Shapes:
    """Return the layout of a whole SD 1.5 checkpoint: U-Net, CLIP text encoder, VAE."""
    shapes = {_UNET + name: shape for name, shape in _unet(_SD1)}
    shapes.update(_clip("cond_stage_model.transformer.text_model.", inner=8, hidden=16))
    shapes.update({"first_stage_model." + name: shape for name, shape in vae().items()})
    return shapes


def sdxl_checkpoint() -> Shapes:
    """Return the layout of a whole SDXL 1.0 checkpoint: U-Net with `label_emb`, CLIP-L, OpenCLIP bigG, VAE."""
    shapes = {_UNET + name: shape for name, shape in _unet(_SDXL)}
    shapes.update(_clip("conditioner.embedders.0.transformer.text_model.", inner=4, hidden=8))
    shapes.update(_open_clip("conditioner.embedders.1.model.", inner=4, hidden=8))
    shapes.update({"first_stage_model." + name: shape for name, shape in vae().items()})
    return shapes


def vae() -> Shapes:
    """Return the layout of a standalone Stable Diffusion VAE, with LDM's tensor names."""
    return dict([*_encoder(8), *_decoder(8), *_conv("quant_conv", 8, 8, 1), *_conv("post_quant_conv", 4, 4, 1)])


def kohya_lora(checkpoint: Shapes, rank: int) -> Shapes:
    """Build the layout of a kohya LoRA over the attention and text encoder modules of the layout `checkpoint`."""
    shapes: Shapes = {}
    for name, (out_width, in_width, *kernel) in _lora_targets(checkpoint):
        ones = (1,) * len(kernel)
        shapes[f"{name}.alpha"] = ()
        shapes[f"{name}.lora_down.weight"] = (rank, in_width, *ones)
        shapes[f"{name}.lora_up.weight"] = (out_width, rank, *ones)
    return shapes


def sd1_embedding(vectors: int) -> Shapes:
    """Return the layout of a textual inversion for SD 1.x with `vectors` vectors."""
    return {"emb_params": (vectors, 768)}


_Named = Iterator[tuple[str, tuple[int, ...]]]


def _linear(name: str, out_width: int, in_width: int, *, bias: bool = True) -> _Named:
    if bias:
        yield f"{name}.bias", (out_width,)
    yield f"{name}.weight", (out_width, in_width)


def _conv(name: str, out_width: int, in_width: int, kernel: int) -> _Named:
    yield f"{name}.bias", (out_width,)
    yield f"{name}.weight", (out_width, in_width, kernel, kernel)


def _norm(name: str, width: int) -> _Named:
    yield f"{name}.bias", (width,)
    yield f"{name}.weight", (width,)


def _unet(net: _UNet) -> _Named:
    yield from _linear("time_embed.0", net.time_width, net.channels)
    yield from _linear("time_embed.2", net.time_width, net.time_width)
    if net.label:
        yield from _linear("label_emb.0.0", net.time_width, _LABEL_WIDTH)
        yield from _linear("label_emb.0.2", net.time_width, net.time_width)
    yield from _conv("input_blocks.0.0", net.channels, 4, 3)
    skips, width, block = [net.channels], net.channels, 1
    last = len(net.multipliers) - 1
    for level, multiplier in enumerate(net.multipliers):
        for _ in range(2):
            out = net.channels * multiplier
            yield from _residual(net, f"input_blocks.{block}.0", width, out)
            yield from _attention(net, f"input_blocks.{block}.1", out, net.depths[level])
            skips.append(out)
            width, block = out, block + 1
        if level < last:
            yield from _conv(f"input_blocks.{block}.0.op", width, width, 3)
            skips.append(width)
            block += 1
    yield from _residual(net, "middle_block.0", width, width)
    yield from _attention(net, "middle_block.1", width, net.depths[last] or 1)
    yield from _residual(net, "middle_block.2", width, width)
    block = 0
    for level in range(last, -1, -1):
        out, depth = net.channels * net.multipliers[level], net.depths[level]
        for part in range(3):
            yield from _residual(net, f"output_blocks.{block}.0", width + skips.pop(), out)
            yield from _attention(net, f"output_blocks.{block}.1", out, depth)
            if part == 2 and level:
                yield from _conv(f"output_blocks.{block}.{2 if depth else 1}.conv", out, out, 3)
            width, block = out, block + 1
    yield from _norm("out.0", width)
    yield from _conv("out.2", 4, width, 3)


def _residual(net: _UNet, name: str, in_width: int, out_width: int) -> _Named:
    yield from _linear(f"{name}.emb_layers.1", out_width, net.time_width)
    yield from _norm(f"{name}.in_layers.0", in_width)
    yield from _conv(f"{name}.in_layers.2", out_width, in_width, 3)
    yield from _norm(f"{name}.out_layers.0", out_width)
    yield from _conv(f"{name}.out_layers.3", out_width, out_width, 3)
    if in_width != out_width:
        yield from _conv(f"{name}.skip_connection", out_width, in_width, 1)


def _attention(net: _UNet, name: str, width: int, depth: int) -> _Named:
    if not depth:
        return
    yield from _norm(f"{name}.norm", width)
    for projection in ("proj_in", "proj_out"):
        if net.linear_projection:
            yield from _linear(f"{name}.{projection}", width, width)
        else:
            yield from _conv(f"{name}.{projection}", width, width, 1)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, context in (("attn1", width), ("attn2", net.context)):
            yield from _linear(f"{block}.{attention}.to_k", width, context, bias=False)
            yield from _linear(f"{block}.{attention}.to_out.0", width, width)
            yield from _linear(f"{block}.{attention}.to_q", width, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_v", width, context, bias=False)
        yield from _linear(f"{block}.ff.net.0.proj", width * 8, width)
        yield from _linear(f"{block}.ff.net.2", width, width * 4)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{block}.{norm}", width)


def _clip(prefix: str, *, inner: int, hidden: int, width: int = 768, layers: int = 12) -> _Named:
    yield f"{prefix}embeddings.position_embedding.weight", (_POSITIONS, width)
    yield f"{prefix}embeddings.position_ids", (1, _POSITIONS)
    yield f"{prefix}embeddings.token_embedding.weight", (_VOCABULARY, width)
    for layer in range(layers):
        block = f"{prefix}encoder.layers.{layer}"
        yield from _norm(f"{block}.layer_norm1", width)
        yield from _norm(f"{block}.layer_norm2", width)
        yield from _linear(f"{block}.mlp.fc1", hidden, width)
        yield from _linear(f"{block}.mlp.fc2", width, hidden)
        yield from _linear(f"{block}.self_attn.k_proj", inner, width)
        yield from _linear(f"{block}.self_attn.out_proj", width, inner)
        yield from _linear(f"{block}.self_attn.q_proj", inner, width)
        yield from _linear(f"{block}.self_attn.v_proj", inner, width)
    yield from _norm(f"{prefix}final_layer_norm", width)


def _open_clip(prefix: str, *, inner: int, hidden: int, width: int = 1280, layers: int = 32) -> _Named:
    yield from _norm(f"{prefix}ln_final", width)
    yield f"{prefix}logit_scale", ()
    yield f"{prefix}positional_embedding", (_POSITIONS, width)
    yield f"{prefix}text_projection", (width, inner)
    yield f"{prefix}token_embedding.weight", (_VOCABULARY, width)
    for layer in range(layers):
        block = f"{prefix}transformer.resblocks.{layer}"
        yield f"{block}.attn.in_proj_bias", (3 * inner,)
        yield f"{block}.attn.in_proj_weight", (3 * inner, width)
        yield from _linear(f"{block}.attn.out_proj", width, inner)
        yield from _norm(f"{block}.ln_1", width)
        yield from _norm(f"{block}.ln_2", width)
        yield from _linear(f"{block}.mlp.c_fc", hidden, width)
        yield from _linear(f"{block}.mlp.c_proj", width, hidden)


def _encoder(base: int) -> _Named:
    widths = [base, base * 2, base * 4, base * 4]
    yield from _conv("encoder.conv_in", base, 3, 3)
    width = base
    for level, out in enumerate(widths):
        for block in range(2):
            yield from _vae_residual(f"encoder.down.{level}.block.{block}", width, out)
            width = out
        if level < len(widths) - 1:
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    yield from _vae_middle("encoder.mid", width)
    yield from _norm("encoder.norm_out", width)
    yield from _conv("encoder.conv_out", 8, width, 3)


def _decoder(base: int) -> _Named:
    widths = [base, base * 2, base * 4, base * 4]
    width = widths[-1]
    yield from _conv("decoder.conv_in", width, 4, 3)
    yield from _vae_middle("decoder.mid", width)
    for level in range(len(widths) - 1, -1, -1):
        for block in range(3):
            yield from _vae_residual(f"decoder.up.{level}.block.{block}", width, widths[level])
            width = widths[level]
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    yield from _norm("decoder.norm_out", width)
    yield from _conv("decoder.conv_out", 3, width, 3)


def _vae_middle(name: str, width: int) -> _Named:
    for part in ("k", "proj_out", "q", "v"):
        yield from _conv(f"{name}.attn_1.{part}", width, width, 1)
    yield from _norm(f"{name}.attn_1.norm", width)
    yield from _vae_residual(f"{name}.block_1", width, width)
    yield from _vae_residual(f"{name}.block_2", width, width)


def _vae_residual(name: str, in_width: int, out_width: int) -> _Named:
    yield from _conv(f"{name}.conv1", out_width, in_width, 3)
    yield from _conv(f"{name}.conv2", out_width, out_width, 3)
    yield from _norm(f"{name}.norm1", in_width)
    yield from _norm(f"{name}.norm2", out_width)
    if in_width != out_width:
        yield from _conv(f"{name}.nin_shortcut", out_width, in_width, 1)


_UNET_TARGET = re.compile(r"\.(proj_in|proj_out|to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2)\.weight$")
_CLIP_TARGET = re.compile(r"\.(text_model\.encoder\.layers\.\d+\.(?:self_attn|mlp)\.\w+)\.weight$")
_OPEN_CLIP_TARGET = re.compile(r"\.resblocks\.(\d+)\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.\w+\.weight)$")
_OPEN_CLIP_NAMES = {
    "attn.in_proj_weight": ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj"),
    "attn.out_proj.weight": ("self_attn_out_proj",),
    "mlp.c_fc.weight": ("mlp_fc1",),
    "mlp.c_proj.weight": ("mlp_fc2",),
}


def _lora_targets(checkpoint: Shapes) -> _Named:
    """Find the modules that kohya trains by default; yield kohya's name of each module and the shape of its weight."""
    is_sdxl = any(name.startswith("conditioner.") for name in checkpoint)
    for name, shape in checkpoint.items():
        if name.startswith(_UNET) and _UNET_TARGET.search(name):
            path = name.removeprefix(_UNET).removesuffix(".weight")
            yield "lora_unet_" + (path if is_sdxl else _diffusers_path(path)).replace(".", "_"), shape
        elif match := _CLIP_TARGET.search(name):
            yield ("lora_te1_" if is_sdxl else "lora_te_") + match[1].replace(".", "_"), shape
        elif match := _OPEN_CLIP_TARGET.search(name):
            parts = _OPEN_CLIP_NAMES[match[2]]
            for part in parts:
                yield f"lora_te2_text_model_encoder_layers_{match[1]}_{part}", (shape[0] // len(parts), shape[1])


def _diffusers_path(path: str) -> str:
    """Translate the path of an SD 1.x attention module to diffusers' numbering, which kohya uses for such modules."""
    side, rest = path.split(".", 1)
    if side == "middle_block":
        return "mid_block.attentions.0." + rest.split(".", 1)[1]
    number, _, rest = rest.split(".", 2)
    level, part = divmod(int(number) - 1, 3) if side == "input_blocks" else divmod(int(number), 3)
    return f"{'down' if side == 'input_blocks' else 'up'}_blocks.{level}.attentions.{part}.{rest}"
