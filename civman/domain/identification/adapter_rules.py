"""Identification rules for adapters: which family's weights an adapter changes, by module names and widths.

The first matching rule wins, so specific rules come before general ones.

Source: layouts as the model authors' and trainers' public code writes them.
"""

from typing import Any

from civman.domain.architecture import Architecture
from civman.domain.identification.rules import Rule

A = Architecture

CROSS_KV = r"attn2_to_[kv]$"
_UNET = r"^(input_blocks|down_blocks|output_blocks|up_blocks|middle_block|mid_block)[._]"
_SD = (A.SD1, A.SD2, A.SDXL, A.SDXL_REFINER, A.KOLORS)
_NOT_SD = (
    r"motion_modules|temporal|temp_conv|temp_attentions|time_mixer|time_stack|^transformer_in_|(^|_)(base|ctrl)_|_fuser_"
    r"|depthwise|image_latents|control"
)
"""Matches UNet modules that no Stable Diffusion model has: those of video models, and those of networks added to a
UNet.
"""


def _sd(width: int) -> dict[str, Any]:
    """Build the conditions for an adapter on a Stable Diffusion UNet whose text conditioning has this width."""
    return {
        "needs": (_UNET,),
        "lacks": (_NOT_SD,),
        "axis": (CROSS_KV, 1, (width,)),
        "where": ((CROSS_KV, 1, (width,)),),
    }


_DIT_WIDTH = r"^double_blocks_#_(img|txt)_(attn_(qkv|proj)|mod_lin(ear)?)$"
_NUMBERED = r"^(layers|noise_refiner|context_refiner)_#_"
_JOINT = r"^transformer_blocks_#_attn_(to_[qkv]|to_out_#|add_[qkv]_proj|to_add_out)$"
_DOUBLE = r"^(double|single)_blocks_#_"
_STREAMS = r"^(single_)?transformer_blocks_#_attn_to_[qkv]$|^single_transformer_blocks_#_(proj_mlp|norm_linear)$"
_ADDED = r"^transformer_blocks_#_(attn1_add_[qkv]_proj|txt_ff_net_#_proj)$"
_LIKE_FLUX = (A.CHROMA, A.HUNYUAN_VIDEO, A.HUNYUAN_IMAGE, A.BRIA, A.LONGCAT_IMAGE, A.OVIS_IMAGE, A.FLUX3, A.MOTIF_VIDEO)
"""Families whose joint and single transformer blocks have the same names as those of Flux.1 in diffusers."""

ADAPTED: tuple[Rule, ...] = (
    Rule("on-flux3", A.FLUX3, "block names as in Flux.3", needs=(r"^early_stream_modulations|^(txt_)?mode_blocks_",)),
    Rule("on-flux2-modulation", A.FLUX2, "block names as in Flux.2",
         needs=(r"^(double|single)_stream_modulation|^single_transformer_blocks_#_attn_to_qkv_mlp_proj",)),
    Rule("on-chroma", A.CHROMA, "changes the distilled guidance layer", needs=(r"^distilled_guidance_layer_",)),
    Rule("on-flux2-single", A.FLUX2, "single blocks whose inner layer is nine times as wide",
         needs=(r"^single_blocks_#_linear1$",),
         ratio=(r"^single_blocks_#_linear1$", 8.5, 9.5)),
    Rule("on-joyimage", A.JOYIMAGE, "double blocks with JoyImage's names for the attention layers",
         needs=(r"^double_blocks_#_(attn_(img|txt)_attn_(qkv|proj)|(img|txt)_mlp_net_#(_proj)?)$",)),
    Rule("on-flux2-double", A.FLUX2, "double blocks whose feed-forward layer is six times as wide",
         ratio=(r"^double_blocks_#_(img|txt)_mlp_#$", 5.5, 6.5)),
    Rule("on-flux2-width", A.FLUX2, "double blocks, 6144 or 4096 wide", axis=(_DIT_WIDTH, 1, (6144, 4096))),
    Rule("on-hunyuan-image", A.HUNYUAN_IMAGE, "double blocks, 3584 wide", axis=(_DIT_WIDTH, 1, (3584,))),
    Rule("on-hunyuan-image-diffusers", A.HUNYUAN_IMAGE, "joint and single transformer blocks, 3584 wide",
         needs=(r"^single_transformer_blocks_#_",), axis=(_STREAMS, 1, (3584,))),
    Rule("on-hunyuan-video", A.HUNYUAN_VIDEO, "double blocks with Hunyuan's names",
         needs=(r"^double_blocks_#_(img|txt)_(mlp_fc\d|mod_linear)$|individual_token_refiner"
                r"|^context_embedder_(#_)?token_refiner|^single_blocks_#_modulation_linear$",),
         also=(A.HUNYUAN_VIDEO_15, A.HUNYUAN_IMAGE)),
    Rule("on-hunyuan-video-single", A.HUNYUAN_VIDEO, "more single blocks than Flux.1 has",
         needs=(_DOUBLE + "|^single_transformer_blocks_#_attn_to_q$",), lacks=(r"^joint_transformer_blocks",),
         also=(A.MOTIF_VIDEO,), where=((_STREAMS, 1, (3072,)),),
         top=(r"^(single_blocks|single_transformer_blocks)_#", 38, 39)),
    Rule("on-hunyuan-video-double", A.HUNYUAN_VIDEO, "more double blocks than Flux.1 has",
         top=(r"^double_blocks_#", 19, 19)),
    Rule("on-flux1-modulation", A.FLUX1, "changes the modulation of Flux.1's blocks",
         needs=(r"^(double_blocks_#_(img|txt)_mod_lin|single_blocks_#_modulation_lin)$",)),
    Rule("on-flux1", A.FLUX1, "names of double and single blocks as in Flux.1", needs=(_DOUBLE,),
         also=(A.CHROMA, A.HUNYUAN_VIDEO, A.FLUX2)),
    Rule("on-sd3.5-large", A.SD3, "joint blocks, 2432 wide", needs=(r"^joint_blocks_#_",), variant="3.5-large",
         axis=(r"^joint_blocks_#_", 1, (2432,))),
    Rule("on-sd3", A.SD3, "joint blocks", needs=(r"^joint_blocks_#_",)),
    Rule("on-auraflow", A.AURAFLOW, "double and single layers as in AuraFlow",
         needs=(r"^(double_layers|single_layers|joint_transformer_blocks)_#_",)),
    Rule("on-auraflow-single", A.AURAFLOW, "single transformer blocks with gated feed-forward layers",
         needs=(r"^single_transformer_blocks_#_(ff_linear_#|ff_out_projection|norm1_linear)$",)),
    Rule("on-single-attention", A.FLUX1, "only attention layers of single transformer blocks",
         needs=(r"^single_transformer_blocks_#_attn_to_",), also=(*_LIKE_FLUX, A.AURAFLOW),
         lacks=(r"^transformer_blocks_#_", r"^single_transformer_blocks_#_(?!attn_)")),
    Rule("on-hidream", A.HIDREAM, "double and single stream blocks as in HiDream",
         needs=(r"^(double_stream_blocks|single_stream_blocks)_#_",)),
    Rule("on-flux1-diffusers", A.FLUX1, "joint and single transformer blocks",
         needs=(r"^single_transformer_blocks_#_(attn_to_|proj_mlp|proj_out|norm_linear)",), also=_LIKE_FLUX),
    Rule("on-qwen-image", A.QWEN_IMAGE, "joint blocks with separate layers for image and text",
         needs=(r"^transformer_blocks_#_txt_(mod|mlp)_",)),
    Rule("on-nucleus-image", A.NUCLEUS_IMAGE, "joint mixture-of-experts blocks",
         needs=(r"^transformer_blocks_#_(img_mlp_shared_expert|img_mlp_gate$|encoder_proj$)",)),
    Rule("on-qwen-image-half", A.QWEN_IMAGE, "joint blocks with separate image layers", also=(A.NUCLEUS_IMAGE,),
         needs=(r"^transformer_blocks_#_img_(mod|mlp)_",)),
    Rule("on-qwen-image-depth", A.QWEN_IMAGE, "more joint blocks than Flux.1 has, 3072 wide",
         needs=(_JOINT,), axis=(_JOINT, 1, (3072,)), top=(_JOINT, 19, 59)),
    Rule("on-sd3-joint", A.SD3, "joint transformer blocks, 1536 or 2432 wide", axis=(_JOINT, 1, (1536, 2432))),
    Rule("on-flux1-joint", A.FLUX1, "joint blocks with plain feed-forward layers, 3072 wide", axis=(_JOINT, 1, (3072,)),
         needs=(r"^transformer_blocks_#_(ff_net_#|ff_context_net_#|norm1_linear|norm1_context_linear)",)),
    Rule("on-qwen-bare", A.QWEN_IMAGE, "joint blocks, 3072 wide, named without a prefix as by trainers of Qwen-Image",
         needs=(_JOINT, r"^:bare$"), axis=(_JOINT, 1, (3072,)), also=(A.FLUX1,)),
    Rule("on-joint", A.UNKNOWN, "joint blocks as both Flux.1 and Qwen-Image have them", axis=(_JOINT, 1, (3072,)),
         also=(A.FLUX1, A.QWEN_IMAGE)),
    Rule("on-ltx2", A.LTX2, "cross-attention between audio and video",
         needs=(r"audio_attn|audio_to_video|video_to_audio|^av_ca_",)),
    Rule("on-anima-adapter", A.ANIMA, "changes the layers that adapt a language model's output",
         needs=(r"^llm_adapter_",)),
    Rule("on-anima", A.ANIMA, "Cosmos blocks, 2048 wide like Anima's", also=(A.COSMOS,),
         axis=(r"^blocks_#_(self_attn|cross_attn)_([qkv]|output)_proj$|^blocks_#_mlp_layer1$", 1, (2048,))),
    Rule("on-cosmos", A.COSMOS, "Cosmos blocks", also=(A.ANIMA,),
         needs=(r"^blocks_#_(self_attn|cross_attn)_output_proj$|^blocks_#_mlp_layer\d$|^blocks_#_adaln_modulation_",)),
    *(Rule(f"on-wan-{said}-diffusers", A.WAN, f"video blocks, {width} wide", variant=said, also=(A.HELIOS,),
           axis=(r"^blocks_#_attn[12]_to_[qkv]$", 1, (width,)))
      for said, width in (("14b", 5120), ("1.3b", 1536), ("5b", 3072))),
    Rule("on-wan-14b", A.WAN, "video blocks, 5120 wide", variant="14b",
         axis=(r"^blocks_#_(self_attn_[qkvo]|cross_attn_[qkvo])$", 1, (5120,))),
    Rule("on-wan-1.3b", A.WAN, "video blocks, 1536 wide", variant="1.3b",
         axis=(r"^blocks_#_(self_attn_[qkvo]|cross_attn_[qkvo])$", 1, (1536,))),
    Rule("on-wan-5b", A.WAN, "video blocks, 3072 wide", variant="5b",
         axis=(r"^blocks_#_(self_attn_[qkvo]|cross_attn_[qkvo])$", 1, (3072,))),
    Rule("on-wan", A.WAN, "block names as in Wan", needs=(r"^blocks_#_((self_attn|cross_attn)_[qkvo]|ffn_#)$",)),
    Rule("on-wan-diffusers", A.WAN, "block names as in Wan", also=(A.HELIOS,),
         needs=(r"^blocks_#_ffn_net_#(_proj)?$",)),
    Rule("on-z-image", A.Z_IMAGE, "refiner and main layers, 3840 wide", axis=(_NUMBERED, 1, (3840,))),
    Rule("on-lumina-next", A.LUMINA_NEXT, "layers with separate attention for text",
         needs=(_NUMBERED + r"attn2_to_[qkv]$",), axis=(_NUMBERED + r"attn[12]_to_q$", 1, (2304,))),
    Rule("on-lumina2", A.LUMINA2, "refiner and main layers, 2304 wide", axis=(_NUMBERED, 1, (2304,))),
    Rule("on-ernie-image", A.ERNIE_IMAGE, "layers with `self_attention.to_q` or `mlp.linear_fc2`",
         needs=(r"^layers_#_(self_attention_to_(q|k|v|out_#)|mlp_linear_fc2)$",)),
    Rule("on-z-image-names", A.Z_IMAGE, "layers with `attention.to_q`", needs=(_NUMBERED + r"attention_to_[qkv]$",),
         also=(A.IDEOGRAM4, A.BRIA)),
    Rule("on-lumina2-names", A.LUMINA2, "layers with `attn.to_q`", also=(A.LUMINA_NEXT,),
         needs=(r"^(noise_refiner|context_refiner)_#_attn_to_[qkv]$",)),
    Rule("on-hunyuan-dit", A.HUNYUAN_DIT, "block names as in Hunyuan-DiT",
         needs=(r"^blocks_#_(attn1_Wqkv|attn2_(kv|q)_proj)$",)),
    Rule("on-mochi", A.MOCHI, "asymmetric attention", needs=(r"^blocks_#_attn_(qkv|proj)_[xy]$",)),
    Rule("on-sana", A.SANA, "linear attention with convolutions",
         needs=(r"^blocks_#_cross_attn_q_linear$|_ff_conv_(inverted|depth|point)$",), lacks=(r"cross_attn_kv_linear",),
         also=(A.SANA_VIDEO,)),
    Rule("on-sana-width", A.SANA, "transformer blocks, 2240 wide", also=(A.SANA_VIDEO,),
         axis=(r"^blocks_#_cross_attn_kv_linear$|^transformer_blocks_#_attn[12]_to_[qkv]$", 1, (2240,))),
    Rule("on-pixart", A.PIXART, "cross-attention whose keys and values come from one layer", also=(A.SANA,),
         needs=(r"^blocks_#_cross_attn_kv_linear$",)),
    Rule("on-pixart-diffusers", A.PIXART, "transformer blocks, 1152 wide", also=(A.SANA, A.LATTE),
         needs=(r"^transformer_blocks_#_attn2_",),
         axis=(r"^transformer_blocks_#_attn1_to_[qkv]$", 1, (1152,))),
    Rule("on-ltx", A.LTX_VIDEO, "transformer blocks, 2048 or 4096 wide", also=(A.COSMOS,),
         axis=(r"^transformer_blocks_#_attn1_to_[qkv]$", 1, (2048, 4096)), needs=(r"^transformer_blocks_#_attn2_",)),
    Rule("on-easyanimate", A.EASYANIMATE, "joint attention with a second feed-forward layer for text",
         needs=(r"^transformer_blocks_#_(txt_ff_net_|attn1_)",), axis=(_ADDED, 1, (3072,))),
    Rule("on-mochi-diffusers", A.MOCHI, "joint attention whose text is half as wide as the video",
         axis=(_ADDED, 1, (1536,))),
    Rule("on-cogvideox", A.COGVIDEOX, "transformer blocks with joint attention, 1920 or 3072 wide",
         axis=(r"^transformer_blocks_#_attn1_to_[qkv]$", 1, (1920, 3072)), also=(A.EASYANIMATE, A.MOCHI),
         lacks=(r"^transformer_blocks_#_attn2_",)),
    Rule("on-svd", A.SVD, "time-mixing blocks inside a UNet",
         needs=(_UNET, r"temporal_transformer_blocks_#|time_stack"), lacks=(r"motion_modules",)),
    Rule("on-unet-of-videos", A.UNKNOWN, "UNet modules together with temporal modules or those of another network",
         needs=(_UNET, _NOT_SD)),
    Rule("on-sdxl", A.SDXL, "cross-attention with text of width 2048", **_sd(2048), also=(A.KOLORS, A.DREAMLITE)),
    Rule("on-refiner", A.SDXL_REFINER, "cross-attention with text of width 1280",
         **{**_sd(1280), "lacks": (_NOT_SD, r"^:level0$")}),
    Rule("on-sd2", A.SD2, "cross-attention with text of width 1024", **_sd(1024)),
    Rule("on-sd1", A.SD1, "cross-attention with text of width 768", **_sd(768)),
    Rule("on-sdxl-depth", A.SDXL, "five to ten transformer blocks in one attention module", needs=(_UNET,),
         depth=(4, 9)),
    Rule("on-sdxl-te2", A.SDXL, "a UNet with two text encoders", needs=(_UNET, r"^:te2$")),
    Rule("on-sd2-text", A.SD2, "a UNet with a 1024-wide text encoder", needs=(_UNET,),
         axis=(r"^:te1_.*self_attn_[kqv]_proj$", 1, (1024,))),
    Rule("on-sd1-text", A.SD1, "a UNet with one 768-wide text encoder", needs=(_UNET, r"^:single-text$"),
         axis=(r"^:te1_.*self_attn_[kqv]_proj$", 1, (768,))),
    Rule("on-sd1-layout", A.SD1, "attention with 1x1 convolutions as projections, as in SD 1.x", needs=(_UNET,),
         dims=(r"attentions_#_proj_(in|out)$|blocks?_#_#_proj_(in|out)$", 4)),
    Rule("on-sd2-layout", A.SD2, "attention on the first level with linear projections, as in SD 2.x",
         needs=(r"^:level0$",), dims=(r"attentions_#_proj_(in|out)$|blocks?_#_#_proj_(in|out)$", 2)),
    Rule("on-sd-layout", A.UNKNOWN, "attention on the first level, as in SD 1.x and 2.x", needs=(r"^:level0$",),
         also=(A.SD1, A.SD2)),
    Rule("on-unet", A.UNKNOWN, "a UNet's module names, but nothing shows which UNet", needs=(_UNET,), also=_SD),
    Rule("on-text-sdxl", A.SDXL, "the second text encoder, 1280 wide", needs=(r"^:te2$",),
         axis=(r"^:te2_.*self_attn_[kqv]_proj$", 1, (1280,)), also=(A.SD3,)),
    Rule("on-text-sd1", A.SD1, "a single 768-wide text encoder", needs=(r"^:only-text$",),
         axis=(r"^:te1_.*self_attn_[kqv]_proj$", 1, (768,))),
    Rule("on-text-sd2", A.SD2, "a single 1024-wide text encoder", needs=(r"^:only-text$",),
         axis=(r"^:te1_.*self_attn_[kqv]_proj$", 1, (1024,))),
)  # fmt: skip
"""The rules that determine which family's weights an adapter changes.

Names that start with `:` are added by `identify._adapter_look`.
"""
