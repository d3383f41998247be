"""Identification rules for autoencoders: which models an autoencoder belongs to.

The first matching rule wins, so specific rules come before general ones. The number of latent channels alone is never
enough, because many families have 16: the names of the blocks and the type of convolution must match too.

Source: layouts as the model authors' public code and diffusers write them.
"""

from civman.domain.architecture import Architecture, Kind
from civman.domain.identification.rules import Rule

A = Architecture
V = Kind.VAE

_IN = r"^decoder\.conv_in\.weight$"
_CAUSAL_IN = r"^decoder\.conv_in\.conv\.weight$"
_MIDDLE = r"^decoder\.(mid\.block_1|mid_block\.resnets\.#)\.conv1\.weight$"
_FOREIGN = r"conv_[by]\b|temp|time_|condition_encoder|norm_layer|\.gamma$|^quantize\.|\.convs\.|_temporal"
"""Matches layers that the plain autoencoders of Stable Diffusion and Flux do not have."""
_LIKE_SD = (A.SD1, A.SD2, A.SDXL, A.SDXL_REFINER, A.KOLORS, A.PIXART, A.AURAFLOW, A.HUNYUAN_DIT, A.COGVIEW)
_LIKE_FLUX = (A.SD3, A.Z_IMAGE, A.CHROMA, A.HIDREAM, A.LUMINA2, A.COGVIEW, A.OVIS_IMAGE, A.LONGCAT_IMAGE, A.KANDINSKY5)

VAES: tuple[Rule, ...] = (
    *(Rule(f"tiny-vae-{channels}", family, f"a small autoencoder for previews, {channels} latent channels",
           kind=Kind.TINY_VAE, also=also, lacks=(r"^(?!(de|en)coder\.layers\.#\.)",),
           needs=(r"^decoder\.layers\.#\.conv\.#\.weight$",), axis=(r"^decoder\.layers\.#\.weight$", 1, (channels,)))
      for channels, family, also in ((4, A.SD, (A.SD1, A.SDXL)), (16, A.FLUX1, (A.SD3,)))),
    Rule("tiny-vae", A.UNKNOWN, "a small autoencoder for previews", kind=Kind.TINY_VAE,
         needs=(r"^((de|en)coder\.(layers\.)?)?#\.conv\.#\.weight$", r"^((de|en)coder\.(layers\.)?)?#\.weight$"),
         lacks=(r"^(?!((de|en)coder\.(layers\.)?)?#\.)",)),
    Rule("vae-quantised", A.UNKNOWN, "an autoencoder with a codebook", kind=V, needs=(_IN, r"^quantize\.")),
    Rule("vae-asymmetric", A.UNKNOWN, "an autoencoder whose decoder also gets the masked image", kind=V,
         needs=(r"^decoder\.condition_encoder\.",)),
    Rule("vae-consistency", A.UNKNOWN, "an autoencoder whose decoder is a UNet", kind=V, needs=(r"^decoder_unet\.",)),
    Rule("vae-svd", A.SVD, "an autoencoder whose decoder has temporal layers", kind=V,
         needs=(r"^decoder\.(.*\.)?(time_mixer|time_stack|time_mix_conv|time_conv_out)\.|^decoder\.conv_out\.time",)),
    Rule("vae-allegro", A.ALLEGRO, "an autoencoder with temporal convolutions at both ends", kind=V,
         needs=(r"^decoder\.temp_conv_in\.",)),
    Rule("vae-easyanimate", A.EASYANIMATE, "a causal autoencoder with plain convolution blocks", kind=V,
         needs=(r"^decoder\.mid_block\.convs\.#\.conv1\.",)),
    Rule("vae-cosmos", A.COSMOS, "an autoencoder with separate convolutions for space and time", kind=V,
         needs=(r"^decoder\.conv_in\.conv_s\.",)),
    Rule("vae-cogvideox", A.COGVIDEOX, "a causal autoencoder whose norms depend on the latents", kind=V,
         needs=(r"^decoder\.(mid_block\.resnets\.#|mid\.block_1)\.norm1\.conv_b\.conv\.weight$",),
         axis=(_CAUSAL_IN, 1, (16,)), lacks=(r"norm_layer\.(norm_layer|gamma)",)),
    Rule("vae-mochi", A.MOCHI, "an asymmetric video autoencoder with 12 latent channels", kind=V,
         needs=(r"^decoder\.(block_in\.resnets\.#|blocks\.#\.#)\.",), lacks=(r"_tokens$", r"snake", r"gamma$"),
         axis=(r"^decoder\.(conv_in|blocks\.#\.#)\.weight$", 1, (12,))),
    *(Rule(f"vae-wan-{said}", A.WAN, f"autoencoder with RMS norms and {channels} latent channels", kind=V, also=also,
           needs=(r"^decoder\.(middle\.#\.residual\.#|mid_block\.resnets\.#\.norm1)\.gamma$",), variant=said,
           lacks=(r"\.upsampler\.", r"norm_layer"), dims=(r"^decoder\.(conv1|conv_in)\.weight$", 5),
           axis=(r"^decoder\.(conv1|conv_in)\.weight$", 1, (channels,)))
      for said, channels, also in (
          ("2.1", 16, (A.QWEN_IMAGE, A.ANIMA, A.KREA2, A.COSMOS, A.SANA_VIDEO)), ("2.2", 48, ()))),
    Rule("vae-qwen-image-2", A.QWEN_IMAGE, "autoencoder with gated residuals and 64 latent channels", kind=V,
         variant="2",
         needs=(r"^decoder\.mid_block\.resnets\.#\.norm1\.gamma$", r"^decoder\.up_blocks\.#\.upsampler\.time_conv\."),
         axis=(_IN, 1, (64,))),
    Rule("vae-hunyuan-video-1.5", A.HUNYUAN_VIDEO_15, "causal autoencoder with gated residuals and 32 latent channels",
         kind=V, also=(A.HUNYUAN_IMAGE,), lacks=(r"norm_layer",), axis=(_CAUSAL_IN, 1, (32,)),
         needs=(r"^decoder\.(mid_block\.resnets\.#\.norm1|mid\.block_1\.norm1)\.gamma$",)),
    Rule("vae-hunyuan-image", A.HUNYUAN_IMAGE, "autoencoder with 64 latent channels", kind=V, axis=(_IN, 1, (64,)),
         needs=(_MIDDLE, r"^decoder\.(up_blocks\.#\.conv1|up\.#\.block\.#\.conv1)\.weight$"), dims=(_IN, 4),
         lacks=(_FOREIGN,)),
    Rule("vae-hunyuan-video", A.HUNYUAN_VIDEO, "causal autoencoder with 16 latent channels", kind=V,
         axis=(_CAUSAL_IN, 1, (16,)), lacks=(r"conv_[by]\b|norm_layer|\.gamma$|temporal|^decoder\.norm_out\.norm",),
         needs=(r"^decoder\.(up_blocks\.#\.resnets\.#|up\.#\.block\.#)\.conv1\.conv\.weight$",)),
    Rule("vae-ltx", A.LTX_VIDEO, "causal autoencoder with 128 latent channels", kind=V, also=(A.LTX2,),
         axis=(_CAUSAL_IN, 1, (128,)), lacks=(r"norm_layer|\.gamma$",)),
    Rule("vae-sana", A.SANA, "deep-compression autoencoder with 32 latent channels", kind=V,
         needs=(r"^decoder\.(stages\.#\.|up_blocks\.#\.#\.(conv1|conv_inverted)\.)",),
         axis=(r"^decoder\.(conv_in|project_in(\.(main|conv))*)\.(conv\.)?weight$", 1, (32,))),
    Rule("vae-deep", A.UNKNOWN, "deep-compression autoencoder", kind=V,
         needs=(r"^decoder\.(stages\.#\.|up_blocks\.#\.#\.(conv1|conv_inverted)\.)",)),
    Rule("vae-flux2", A.FLUX2, "autoencoder with 32 latent channels, with batch normalisation", kind=V, dims=(_IN, 4),
         needs=(_MIDDLE, r"^bn\.running_mean$"), axis=(_IN, 1, (32,)), lacks=(_FOREIGN,),
         also=(A.ERNIE_IMAGE,)),
    Rule("vae-16", A.FLUX1, "autoencoder with 16 latent channels, as in Flux.1 and SD 3", kind=V, needs=(_MIDDLE,),
         axis=(_IN, 1, (16,)), dims=(_IN, 4), lacks=(_FOREIGN,), also=_LIKE_FLUX),
    Rule("vae-4", A.SD, "autoencoder with 4 latent channels, as in SD 1, SD 2 and SDXL", kind=V, needs=(_MIDDLE,),
         axis=(_IN, 1, (4,)), dims=(_IN, 4), lacks=(_FOREIGN,), also=_LIKE_SD),
    *(Rule(f"vae-other{mark}", A.UNKNOWN, "an encoder and a decoder", kind=V, needs=(r"^encoder\.conv_in\.",),
           dims=(r"^decoder\.conv_in(\.conv)?\.weight$", axes))
      for mark, axes in (("", 4), ("-of-videos", 5))),
)  # fmt: skip
"""The rules that recognise VAEs and determine which model family each one belongs to."""
