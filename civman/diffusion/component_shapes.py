"""Computes the shape of every parameter of a component from its config, so that a plan can check a file's header.

Supports three architectures, as far as civman's configs need them: diffusers' UNet2DConditionModel and AutoencoderKL,
and transformers' CLIP text models. A test compares the shapes with those of the classes themselves. Does not import
torch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from civman.diffusion.checkpoint_names import TITLES
from civman.diffusion.component_layouts import Source
from civman.errors import CannotRender, Cause, InvalidModelFile

Shape = tuple[int, ...]
Config = Mapping[str, Any]
_Pairs = Iterator[tuple[str, Shape]]
_SHOWN = 20


def parameter_shapes(component: str, config: Config) -> dict[str, Shape]:
    """Map each parameter of a component ("unet", "vae", "text_encoder", "text_encoder_2") to its shape.

    A VAE whose config has `decoder_only` set has no encoder.
    """
    if component == "unet":
        return dict(_unet(config))
    if component == "vae":
        return dict(_vae(config))
    return dict(_text(config, projects=component == "text_encoder_2"))


def require_tensors(
    component: str, wanted: Mapping[str, Shape], sources: Mapping[str, Source], shapes: Mapping[str, Shape], file: str
) -> None:
    """Check that the file has every tensor that the component needs, in the right shape.

    Raises: CannotRender (`missing-tensor`): a tensor is missing. InvalidModelFile: a tensor has the wrong shape.

    Args:
        component: the component to check.
        wanted: the shapes that its parameters must have.
        sources: the tensor in the file for each parameter.
        shapes: the shapes of the file's tensors.
        file: the file's name, for the message.
    """
    missing = sorted({source.name for source in sources.values()} - shapes.keys())
    if missing:
        raise CannotRender(
            f"the {TITLES[component]} in `{file}` lacks {len(missing)} tensors, such as `{missing[0]}`",
            hint="the file is incomplete or of an unknown kind; another file of this version may be complete",
            code=Cause.MISSING_TENSOR, part=component, missing=missing[:_SHOWN],
        )  # fmt: skip
    for parameter, source in sources.items():
        found = shapes[source.name]
        needed = wanted[parameter]
        if source.third is not None:  # the tensor stacks query, key and value, each as large as the parameter
            needed = (3 * needed[0], *needed[1:])
        if _size(found) != _size(needed):
            raise InvalidModelFile(
                f"`{source.name}` in `{file}` has shape {list(found)} but {list(needed)} is required",
                tensor=source.name,
            )


def _size(shape: Shape) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size


def _layer(name: str, *shape: int, bias: bool = True) -> _Pairs:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _conv(name: str, into: int, out: int, kernel: int = 3) -> _Pairs:
    yield from _layer(name, out, into, kernel, kernel)


def _resnet(name: str, into: int, out: int, time: int | None) -> _Pairs:
    yield from _layer(f"{name}.norm1", into)
    yield from _conv(f"{name}.conv1", into, out)
    if time is not None:
        yield from _layer(f"{name}.time_emb_proj", out, time)
    yield from _layer(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out)
    if into != out:
        yield from _conv(f"{name}.conv_shortcut", into, out, 1)


def _transformer(name: str, width: int, depth: int, config: Config) -> _Pairs:
    ends = (width, width) if config["use_linear_projection"] else (width, width, 1, 1)
    yield from _layer(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", *ends)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for norm in ("norm1", "norm2", "norm3"):
            yield from _layer(f"{block}.{norm}", width)
        for attention, context in (("attn1", width), ("attn2", int(config["cross_attention_dim"]))):
            yield from _layer(f"{block}.{attention}.to_q", width, width, bias=False)
            for side in ("to_k", "to_v"):
                yield from _layer(f"{block}.{attention}.{side}", width, context, bias=False)
            yield from _layer(f"{block}.{attention}.to_out.0", width, width)
        yield from _layer(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from _layer(f"{block}.ff.net.2", width, 4 * width)
    yield from _layer(f"{name}.proj_out", *ends)


def _per_level(value: Any, levels: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


def _depth(value: Any, layer: int) -> int:
    return int(value[layer]) if isinstance(value, (list, tuple)) else int(value)


def _unet(config: Config) -> _Pairs:
    widths = list(config["block_out_channels"])
    levels, first = len(widths), widths[0]
    time = 4 * first
    layers = _per_level(config["layers_per_block"], levels)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    yield from _conv("conv_in", config["in_channels"], first)
    yield from _layer("time_embedding.linear_1", time, first)
    yield from _layer("time_embedding.linear_2", time, time)
    if config.get("addition_embed_type"):
        yield from _layer("add_embedding.linear_1", time, config["projection_class_embeddings_input_dim"])
        yield from _layer("add_embedding.linear_2", time, time)
    skips, width = [first], first
    for level, out in enumerate(widths):
        attends = "CrossAttn" in config["down_block_types"][level]
        for layer in range(layers[level]):
            yield from _resnet(f"down_blocks.{level}.resnets.{layer}", width, out, time)
            if attends:
                name = f"down_blocks.{level}.attentions.{layer}"
                yield from _transformer(name, out, _depth(depths[level], layer), config)
            width = out
            skips.append(width)
        if level < levels - 1:
            yield from _conv(f"down_blocks.{level}.downsamplers.0.conv", width, width)
            skips.append(width)
    yield from _middle(config, width, time, depths[-1])
    climbing = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    for level, out in enumerate(widths[::-1]):
        attends = "CrossAttn" in config["up_block_types"][level]
        for layer in range(layers[levels - 1 - level] + 1):
            yield from _resnet(f"up_blocks.{level}.resnets.{layer}", width + skips.pop(), out, time)
            if attends:
                yield from _transformer(
                    f"up_blocks.{level}.attentions.{layer}", out, _depth(climbing[level], layer), config
                )
            width = out
        if level < levels - 1:
            yield from _conv(f"up_blocks.{level}.upsamplers.0.conv", width, width)
    yield from _layer("conv_norm_out", first)
    yield from _conv("conv_out", first, config["out_channels"])


def _middle(config: Config, width: int, time: int, depth: Any) -> _Pairs:
    kind = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if kind is None:
        return
    attends = kind != "UNetMidBlock2D"
    for number in range(1 + attends):
        yield from _resnet(f"mid_block.resnets.{number}", width, width, time)
    if attends:
        yield from _transformer("mid_block.attentions.0", width, _depth(depth, -1), config)


def _vae(config: Config) -> _Pairs:
    widths, layers, latent = list(config["block_out_channels"]), config["layers_per_block"], config["latent_channels"]
    if not config.get("decoder_only"):
        yield from _conv("encoder.conv_in", config["in_channels"], widths[0])
        width = widths[0]
        for level, out in enumerate(widths):
            for layer in range(layers):
                yield from _resnet(f"encoder.down_blocks.{level}.resnets.{layer}", width, out, None)
                width = out
            if level < len(widths) - 1:
                yield from _conv(f"encoder.down_blocks.{level}.downsamplers.0.conv", width, width)
        yield from _vae_middle("encoder", width)
        yield from _layer("encoder.conv_norm_out", width)
        yield from _conv("encoder.conv_out", width, 2 * latent)
        yield from _conv("quant_conv", 2 * latent, 2 * latent, 1)
    width = widths[-1]
    yield from _conv("post_quant_conv", latent, latent, 1)
    yield from _conv("decoder.conv_in", latent, width)
    yield from _vae_middle("decoder", width)
    for level, out in enumerate(widths[::-1]):
        for layer in range(layers + 1):
            yield from _resnet(f"decoder.up_blocks.{level}.resnets.{layer}", width, out, None)
            width = out
        if level < len(widths) - 1:
            yield from _conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", width, width)
    yield from _layer("decoder.conv_norm_out", width)
    yield from _conv("decoder.conv_out", width, config["out_channels"])


def _vae_middle(side: str, width: int) -> _Pairs:
    for number in (0, 1):
        yield from _resnet(f"{side}.mid_block.resnets.{number}", width, width, None)
    attention = f"{side}.mid_block.attentions.0"
    yield from _layer(f"{attention}.group_norm", width)
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _layer(f"{attention}.{name}", width, width)


def _text(config: Config, *, projects: bool) -> _Pairs:
    width, inner = config["hidden_size"], config["intermediate_size"]
    yield from _layer("embeddings.token_embedding", config["vocab_size"], width, bias=False)
    yield from _layer("embeddings.position_embedding", config["max_position_embeddings"], width, bias=False)
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{number}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{name}", width, width)
        yield from _layer(f"{layer}.layer_norm1", width)
        yield from _layer(f"{layer}.mlp.fc1", inner, width)
        yield from _layer(f"{layer}.mlp.fc2", width, inner)
        yield from _layer(f"{layer}.layer_norm2", width)
    yield from _layer("final_layer_norm", width)
    if projects:
        yield from _layer("text_projection", config["projection_dim"], width, bias=False)


_VOCABULARY, _PLACES = 49408, 77
"""The size of CLIP's vocabulary, and its maximum number of tokens per call."""


def require_widths(configs: Mapping[str, Config], file: str) -> None:
    """Check that the components' widths match, and that the text encoders are large enough for CLIP's tokens.

    Raises: CannotRender (`mismatched-parts`): a text encoder is too small for CLIP's tokens, or the UNet's input widths
    do not match the text encoders or the VAE.
    """
    unet = configs["unet"]
    named = {name: config for name, config in configs.items() if name.startswith("text_encoder")}
    encoders = list(named.values())
    for name, config in named.items():
        words, places = int(config["vocab_size"]), int(config["max_position_embeddings"])
        if words < _VOCABULARY or places < _PLACES:
            raise CannotRender(
                f"the {TITLES[name]} of `{file}` has a vocabulary of {words} tokens and {places} positions, "
                f"but CLIP needs {_VOCABULARY} and {_PLACES}",
                hint="the file is incomplete or of an unknown kind; another file of this version may be complete",
                code=Cause.MISMATCHED_PARTS,
                file=file,
            )
    given = sum(int(config["hidden_size"]) for config in encoders)
    pairs = [("text conditioning", given, int(unet["cross_attention_dim"]), "text encoders")]
    if "vae" in configs:
        pairs.append(("latents", int(configs["vae"]["latent_channels"]), int(unet["out_channels"]), "VAE"))
    if unet.get("addition_embed_type") and "text_encoder_2" in configs:
        label, pooled = (
            int(unet["projection_class_embeddings_input_dim"]),
            int(configs["text_encoder_2"]["projection_dim"]),
        )
        times = int(unet["addition_time_embed_dim"])
        sizes = (label - pooled) // times if times > 0 else 0
        pairs.append(("pooled text with size conditioning", pooled + sizes * times, label, "second text encoder"))
    for what, ours, theirs, giver in pairs:
        if ours != theirs or ours <= 0:
            raise CannotRender(
                f"parts of `{file}` do not match: the {giver} gives {what} of width {ours}, but the "
                f"UNet expects width {theirs}",
                hint="the file's parts come from different model families; another file of this version may be correct",
                code=Cause.MISMATCHED_PARTS,
                file=file,
            )
