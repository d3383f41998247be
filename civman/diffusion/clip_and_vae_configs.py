"""Computes the config of a CLIP text encoder or of a plain autoencoder (VAE) from tensor names and shapes.

Does not import torch.
"""

from civman.diffusion.checkpoint_names import Config, Shapes


def vae_config(usual: Config, shapes: Shapes) -> Config:
    """Build the arguments of diffusers' AutoencoderKL from a VAE's tensor shapes (names without prefix)."""
    decoder_only = not any(name.startswith("encoder.") for name in shapes)
    side = "decoder.up" if decoder_only else "encoder.down"
    channels, level = [], 0
    while (shape := shapes.get(f"{side}.{level}.block.0.conv1.weight")) is not None:
        channels.append(shape[0])
        level += 1
    layers = count(shapes, f"{side}.0.block.") - int(decoder_only)
    usual_groups = int(usual["norm_num_groups"])
    return usual | {
        "in_channels": shapes["decoder.conv_out.weight"][0] if decoder_only else shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        **({"decoder_only": True} if decoder_only else {}),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * level,
        "up_block_types": ["UpDecoderBlock2D"] * level,
        # Stable Diffusion's VAE has at least 128 channels in 32 groups; if 32 groups do not fit, use four channels per
        # group
        "norm_num_groups": usual_groups
        if fits(usual_groups, channels)
        else groups(max(1, min(channels) // 4), channels),
    }


def text_config(usual: Config, shapes: Shapes, prefix: str) -> Config:
    """Build the arguments of transformers' CLIPTextConfig for the text encoder whose tensors have this prefix."""
    if usual["layout"] == "transformers":
        table, places = shapes[f"{prefix}embeddings.token_embedding.weight"], "embeddings.position_embedding.weight"
        layers, inner = count(shapes, f"{prefix}encoder.layers."), "encoder.layers.0.mlp.fc1.weight"
    else:
        table, places = shapes[f"{prefix}token_embedding.weight"], "positional_embedding"
        layers, inner = count(shapes, f"{prefix}transformer.resblocks."), "transformer.resblocks.0.mlp.c_fc.weight"
    hidden = table[1]
    # diffusers skips the last of SD 2's 24 layers; a file with 23 layers has already been pruned that way
    dropped = 0 if layers == 23 else int(usual["drop_last_layers"])
    return {
        "vocab_size": table[0],
        "hidden_size": hidden,
        "max_position_embeddings": shapes[prefix + places][0],
        "num_hidden_layers": layers - dropped,
        "intermediate_size": shapes[prefix + inner][0],
        "num_attention_heads": hidden // 64 if hidden % 64 == 0 else divisor(int(usual["heads"]), hidden),
        "projection_dim": projection_width(shapes, prefix) or hidden,
        "hidden_act": usual["hidden_act"],
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        # do not use 2, the value in the configs on Hugging Face: with 2, transformers would pool at the token with the
        # highest id, which may belong to an added embedding
        "eos_token_id": 49407,
        "pad_token_id": 49407 if usual["layout"] == "transformers" else 0,
    }


def count(shapes: Shapes, prefix: str) -> int:
    """Count the numbered blocks whose names begin with `prefix`."""
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def divisor(wanted: int, number: int) -> int:
    """Return the largest divisor of `number` that is at most `wanted`."""
    return next(n for n in range(min(wanted, number), 0, -1) if number % n == 0)


def fits(groups: int, channels: list[int]) -> bool:
    """Whether all `channels` (channel counts) are divisible by `groups`."""
    return all(width % groups == 0 for width in channels)


def groups(wanted: int, channels: list[int]) -> int:
    """Return the largest number of groups, up to `wanted`, by which all `channels` (channel counts) are divisible."""
    return next(n for n in range(wanted, 0, -1) if fits(n, channels))


def projection_width(shapes: Shapes, prefix: str) -> int | None:
    """Return the width of the projection of the pooled text; None if the file has no projection."""
    if (bare := shapes.get(f"{prefix}text_projection")) is not None:
        return bare[1]
    linear = shapes.get(f"{prefix}text_projection.weight")
    return None if linear is None else linear[0]
