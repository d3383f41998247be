"""Identification rules for diffusion models: the family, its variant, and special properties.

The first matching rule wins, so specific rules come before general ones. A family is certain only if no other known
model has the same tensors; otherwise `also` lists the other families. A model that resembles a family but has layers or
channels that the family does not have is unknown.

Source: layouts as the model authors' public code and diffusers write them.
"""

from typing import Any

from civman.domain.architecture import Architecture
from civman.domain.identification.rules import Rule

A = Architecture

_UNET = r"^(input_blocks|down_blocks|output_blocks|up_blocks|middle_block|mid_block)\."
CROSS = r"attn2\.to_[kv]\.weight$"
_LABEL = r"^(label_emb\.#\.#|add_embedding\.linear_1)\.weight$"
_PROJ_IN = r"^(input_blocks\.#\.#|down_blocks\.#\.attentions\.#)\.proj_in\.weight$"
_CONV_IN = r"^(input_blocks\.#\.#\.weight|conv_in\.weight)$"
_FOREIGN = (
    r"motion_modules|temporal|temp_convs|temp_attentions|time_mixer|time_stack|^transformer_in\.|image_latents_"
    r"|\.depthwise\.|^(base|ctrl)_|resnets_in|add_k_proj|^(controlnet_cond_embedding|input_hint_block|zero_convs)\."
    r"|^encoder_hid_proj\."
)
"""Matches UNet layers that no Stable Diffusion model has: temporal layers, and those of other networks or block types.
"""
_SD: dict[str, Any] = {
    "lacks": (_FOREIGN,),
    "where": ((_CONV_IN, 1, (4, 5, 7, 8, 9)), (r"^(out\.#|conv_out)\.weight$", 0, (4,))),
}
"""Conditions that exclude other UNets: no foreign layers, and numbers of channels that match Stable Diffusion's
latents.
"""


def _sd(width: int) -> dict[str, Any]:
    """Build the conditions for a Stable Diffusion UNet whose cross-attention layers all have this context width."""
    return {**_SD, "where": (*_SD["where"], (CROSS, 1, (width,)))}


_REFINER = r"individual_token_refiner|context_embedder\.token_refiner\.refiner_blocks"
_SINGLE = r"^single_transformer_blocks\.#\.proj_mlp\."
_FLAT_CONTEXT = r"^context_embedder\.weight$"

BACKBONES: tuple[Rule, ...] = (
    Rule("svd", A.SVD, "time-mixing blocks inside a UNet",
         needs=(_UNET, r"time_stack|temporal_transformer_blocks|attentions\.#\.time_mixer")),
    Rule("kandinsky3", A.KANDINSKY3, "a UNet that projects and normalises the text conditioning",
         needs=(_UNET, r"^encoder_hid_proj\.projection_linear\.", r"^add_time_condition\.")),
    Rule("dreamlite", A.DREAMLITE, "a UNet with separable convolutions", needs=(_UNET, r"\.conv1\.depthwise\.", CROSS)),
    Rule("kolors", A.KOLORS, "UNet whose extra conditioning is 5632 wide", needs=(_UNET,), axis=(_LABEL, 1, (5632,)),
         **_SD),
    Rule("kolors-proj", A.KOLORS, "UNet with a projection of a language model's output", needs=(_UNET, CROSS),
         axis=(r"^encoder_hid_proj\.weight$", 1, (4096,)), where=((CROSS, 1, (2048,)), *_SD["where"])),
    Rule("sdxl-width", A.SDXL, "UNet with 2048-wide cross-attention", needs=(_UNET,),
         axis=(CROSS, 1, (2048,)), **_sd(2048)),
    Rule("refiner-width", A.SDXL_REFINER, "UNet with 1280-wide cross-attention and extra conditioning",
         needs=(_UNET, _LABEL), axis=(CROSS, 1, (1280,)), **_sd(1280)),
    Rule("sd2-width", A.SD2, "UNet with 1024-wide cross-attention", needs=(_UNET,),
         axis=(CROSS, 1, (1024,)), **_sd(1024)),
    Rule("sd1-width", A.SD1, "UNet with 768-wide cross-attention", needs=(_UNET,), axis=(CROSS, 1, (768,)), **_sd(768)),
    *(Rule(f"{name}-layout-{where}", family, f"the block layout of {title} with other widths", flag="thin",
           needs=(_UNET, _LABEL, CROSS), top=(f"^{blocks}", top, top), **_SD)
      for name, family, title, tops in (("sdxl", A.SDXL, "SDXL", (8, 2)),
                                        ("refiner", A.SDXL_REFINER, "SDXL's refiner", (11, 3)))
      for where, blocks, top in (("ldm", "input_blocks", tops[0]), ("diffusers", "down_blocks", tops[1]))),
    Rule("sd1-layout", A.SD1, "the block layout of SD 1.x (attention with 1x1 convolutions) with other widths",
         needs=(_UNET, CROSS), dims=(_PROJ_IN, 4), flag="thin",
         lacks=(_FOREIGN, _LABEL), where=_SD["where"]),
    Rule("sd2-layout", A.SD2, "the block layout of SD 2.x (attention with linear projections) with other widths",
         needs=(_UNET, CROSS), dims=(_PROJ_IN, 2), flag="thin",
         lacks=(_FOREIGN, _LABEL), where=_SD["where"]),
    Rule("unet-other", A.UNKNOWN, "a UNet with layers or channels that no Stable Diffusion model has",
         needs=(_UNET, CROSS), lacks=(r"^(controlnet_|control_)",), dims=(r"resnets\.#\.conv1\.weight$", 4)),
    Rule("flux2", A.FLUX2, "one modulation shared by all blocks",
         needs=(r"^single_stream_modulation\.lin(ear)?\.weight$",)),
    Rule("flux3", A.FLUX3, "a modulation layer named `early_stream_modulations`",
         needs=(r"^early_stream_modulations\.image\.lin(ear)?\.weight$",)),
    Rule("chroma", A.CHROMA, "a distilled guidance layer", needs=(r"^distilled_guidance_layer\.",)),
    Rule("hunyuan-image", A.HUNYUAN_IMAGE, "double or joint blocks, 3584 wide, with a token refiner",
         needs=(_REFINER,),
         axis=(r"^(double_blocks\.#\.img_attn[._]qkv|transformer_blocks\.#\.attn\.to_q)\.weight$", 1, (3584,))),
    Rule("hunyuan-video-1.5", A.HUNYUAN_VIDEO_15, "a token refiner and an embedding of condition types",
         needs=(_REFINER, r"^cond_type_embed(ding)?\.")),
    Rule("hunyuan-video", A.HUNYUAN_VIDEO, "joint blocks with a refiner for a language model's tokens",
         needs=(_REFINER, r"^(time_text_embed|vector_in|guidance_in|double_blocks|transformer_blocks)\."),
         where=((r"^(double_blocks\.#\.img_attn[._]qkv|transformer_blocks\.#\.attn\.to_q)\.weight$", 1, (3072,)),)),
    Rule("joyimage", A.JOYIMAGE, "double blocks with modulation tables",
         needs=(r"^double_blocks\.#\.img_mod\.modulate_table$", r"^double_blocks\.#\.attn\.img_attn_qkv\.")),
    Rule("flux1", A.FLUX1, "double and single stream blocks as in Flux.1",
         needs=(r"^double_blocks\.#\.img_attn\.norm\.key_norm\.(scale|weight)$", r"^double_blocks\.#\.img_mod\.lin\."),
         lacks=(r"^(connector|byt5_in|vision_in|controlnet_blocks)\.",)),
    Rule("bria-fibo", A.BRIA, "a projection of the caption for each block", variant="fibo",
         needs=(_SINGLE, _FLAT_CONTEXT, r"^caption_projection\.#\.linear\.", r"^time_embed\.timestep_embedder\.")),
    Rule("bria-fibo-2", A.BRIA, "a perceiver before layers with gated cross-attention", variant="fibo-2",
         needs=(r"^perceiver\.latent_queries$", r"^layers\.#\.cross_attn_gate$")),
    *(Rule(name, family, f"joint and single transformer blocks with text of width {width}, but no pooled text",
           needs=(_SINGLE, r"^time_embed\.timestep_embedder\."), lacks=(r"^caption_projection\.", r"^controlnet_"),
           axis=(_FLAT_CONTEXT, 1, (width,)))
      for name, family, width in (("longcat-image", A.LONGCAT_IMAGE, 3584), ("bria", A.BRIA, 4096))),
    Rule("ovis-image", A.OVIS_IMAGE, "joint and single transformer blocks with normalised text input",
         needs=(_SINGLE, r"^context_embedder_norm\.weight$")),
    Rule("motif-video", A.MOTIF_VIDEO, "joint and single transformer blocks for patches of a video",
         needs=(_SINGLE, r"^context_embedder\.linear_1\."), dims=(r"^x_embedder\.proj\.weight$", 5)),
    Rule("flux1-diffusers", A.FLUX1, "joint and single transformer blocks with pooled text",
         needs=(_SINGLE, _FLAT_CONTEXT, r"^single_transformer_blocks\.#\.norm\.linear\.",
                r"^time_text_embed\.text_embedder\."),
         lacks=(r"^(controlnet_|caption_projection|context_embedder_)",)),
    Rule("sd3", A.SD3, "joint blocks", needs=(r"^joint_blocks\.#\.context_block\.adaLN_modulation\.#\.",)),
    Rule("sd3-diffusers", A.SD3, "joint transformer blocks with a position table",
         needs=(r"^pos_embed\.proj\.", r"^transformer_blocks\.#\.attn\.add_q_proj\.", _FLAT_CONTEXT,
                r"^time_text_embed\.text_embedder\."), lacks=(r"^(controlnet_|single_transformer_blocks)",)),
    Rule("auraflow", A.AURAFLOW, "joint layers of text and image as in AuraFlow",
         needs=(r"^double_layers\.#\.attn\.w1q\.weight$|^joint_transformer_blocks\.#\.attn\.add_q_proj",)),
    Rule("hidream", A.HIDREAM, "double stream blocks as in HiDream",
         needs=(r"^double_stream_blocks\.#\.block\.adaLN_modulation",)),
    Rule("hidream-o1", A.HIDREAM_O1, "a language model that reads and writes squares of pixels",
         needs=(r"^(model\.)?final_layer2\.linear\.weight$", r"^(model\.)?x_embedder\.proj1\.weight$",
                r"^(model\.)?language_model\.layers\.#\.self_attn\.q_proj\.weight$")),
    Rule("z-image-width", A.Z_IMAGE, "refiner and main layers, 3840 wide",
         needs=(r"^cap_embedder\.#",), axis=(r"^cap_embedder\.#\.weight$", 0, (3840,)), lacks=(r"^control_",)),
    Rule("lumina2-width", A.LUMINA2, "refiner and main layers, 2304 wide, for a 2304-wide text encoder",
         needs=(r"^cap_embedder\.#|^time_caption_embed\.",), lacks=(r"^clip_text_pooled_proj",),
         axis=(r"^(cap_embedder\.#|layers\.#\.attn\.to_q)\.weight$", 0, (2304,)),
         where=((r"^cap_embedder\.#\.weight$", 1, (2304,)),)),
    Rule("lumina-next", A.LUMINA_NEXT, "layers with a gate and a normalised text input",
         needs=(r"^patch_embedder\.proj\.", r"^layers\.#\.norm1_context\.weight$", r"^layers\.#\.gate$")),
    Rule("krea2", A.KREA2, "a layer that fuses several text inputs",
         needs=(r"^(txtfusion|text_fusion)\.projector\.weight$",)),
    Rule("nucleus-image", A.NUCLEUS_IMAGE, "mixture-of-experts blocks with normalised text input",
         needs=(r"^txt_norm\.weight$", r"^transformer_blocks\.#\.img_mlp\.experts\.")),
    Rule("qwen-image", A.QWEN_IMAGE, "joint blocks with separate modulation for image and text",
         needs=(r"^txt_norm\.weight$", r"^transformer_blocks\.#\.attn\.add_k_proj\.",
                r"^transformer_blocks\.#\.txt_mod\."), lacks=(r"^controlnet_", r"\.experts\.")),
    Rule("qwen-image-2", A.QWEN_IMAGE, "joint blocks with normalised text input", variant="2",
         needs=(r"^txt_in\.text_norm\.weight$", r"^transformer_blocks\.#\.img_mlp\.")),
    Rule("helios", A.HELIOS, "video blocks with patch embeddings for several lengths",
         needs=(r"^patch_short\.weight$", r"^patch_long\.weight$", r"^blocks\.#\.attn2\.to_q\.")),
    Rule("wan", A.WAN, "video blocks with a modulated output layer",
         needs=(r"^head\.modulation$", r"^patch_embedding\.weight$")),
    Rule("wan-diffusers", A.WAN, "video blocks with a scale-shift table",
         needs=(r"^scale_shift_table$", r"^condition_embedder\.", r"^blocks\.#\.attn2\.to_q\."),
         lacks=(r"delta_embedder|^far_patch_embedding|^patch_(short|mid|long)\.",)),
    Rule("anima", A.ANIMA, "Cosmos blocks with layers that adapt a language model's output", needs=(r"^llm_adapter\.",),
         lacks=(r"^double_blocks\.",)),
    Rule("cosmos", A.COSMOS, "Cosmos blocks", also=(A.ANIMA,),
         needs=(r"^x_embedder\.proj\.#\.weight$", r"^blocks\.#\.self_attn\.q_proj\.weight$")),
    Rule("cosmos-diffusers", A.COSMOS, "Cosmos blocks", also=(A.ANIMA,), lacks=(r"^control_blocks\.",),
         needs=(r"^transformer_blocks\.#\.norm1\.linear_1\.weight$", r"^time_embed\.t_embedder\.linear_1\.",
                r"^patch_embed\.proj\.weight$")),
    Rule("sana-video", A.SANA_VIDEO, "linear attention blocks with convolutions over time",
         needs=(r"\.ff\.conv_temp\.|\.mlp\.t_conv\.", r"\.conv_depth\.|\.depth_conv\."),
         lacks=(r"^plucker_embedder\.", r"\.attn\.A_log$")),
    Rule("sana", A.SANA, "linear attention blocks with depthwise convolutions",
         needs=(r"^blocks\.#\.mlp\.depth_conv\.conv\.weight$|^transformer_blocks\.#\.ff\.conv_depth\.",),
         lacks=(r"\.ff\.conv_temp\.|\.mlp\.t_conv\.", r"\.attn\.A_log$", r"^controlnet_")),
    Rule("pixart", A.PIXART, "cross-attention whose keys and values come from one layer",
         needs=(r"^blocks\.#\.cross_attn\.kv_linear\.weight$", r"^t_block\.#\.weight$"),
         lacks=(r"\.mlp\.depth_conv\.", r"temporal|temp_attn|t_conv")),
    *(Rule(name, family, f"blocks with a single adaptive norm layer, {width} wide",
           needs=(r"^pos_embed\.proj\.weight$", r"^transformer_blocks\.#\.attn2\."), lacks=(r"temporal",),
           axis=(r"^adaln_single\.linear\.weight$", 1, (width,)))
      for name, family, width in (("pixart-diffusers", A.PIXART, 1152), ("allegro", A.ALLEGRO, 2304))),
    Rule("latte", A.LATTE, "alternating spatial and temporal blocks",
         needs=(r"^adaln_single\.linear\.weight$", r"^temporal_transformer_blocks\.#\.attn1\.")),
    Rule("ltx2", A.LTX2, "cross-attention between audio and video", needs=(r"^av_ca_|audio_to_video_attn",)),
    Rule("ltx-video", A.LTX_VIDEO, "a projection of 128 latent channels and a scale-shift table",
         needs=(r"^scale_shift_table$", r"^(adaln_single|time_embed)\.", r"^transformer_blocks\.#\.attn2\."),
         axis=(r"^(patchify_proj|proj_in)\.weight$", 1, (128,))),
    Rule("mochi", A.MOCHI, "asymmetric attention", needs=(r"^blocks\.#\.attn\.qkv_x\.weight$",)),
    Rule("mochi-diffusers", A.MOCHI, "joint blocks with learned position frequencies",
         needs=(r"^pos_frequencies$", r"^time_embed\.pooler\.to_kv\.")),
    Rule("hunyuan-dit", A.HUNYUAN_DIT, "a projection of T5's output", needs=(r"^mlp_t5\.#\.weight$",)),
    Rule("hunyuan-dit-diffusers", A.HUNYUAN_DIT, "blocks with skip connections and an embedding for text padding",
         needs=(r"^text_embedding_padding$", r"^blocks\.#\.skip_linear\.", r"^time_extra_emb\.")),
    Rule("easyanimate", A.EASYANIMATE, "joint attention with a second feed-forward layer for text",
         needs=(r"^transformer_blocks\.#\.txt_ff\.net\.", r"^transformer_blocks\.#\.attn1\.add_k_proj\.",
                r"^norm_final\.weight$")),
    Rule("cogview", A.COGVIEW, "blocks that are conditioned on image size and crop",
         needs=(r"^time_condition_embed\.condition_embedder\.", r"^patch_embed\.text_proj\.")),
    Rule("cogvideox", A.COGVIDEOX, "joint attention for text and patches of a video",
         needs=(r"^patch_embed\.proj\.weight$", r"^patch_embed\.text_proj\.", r"^norm_final\.weight$",
                r"^transformer_blocks\.#\.norm1\.linear\.")),
    Rule("glm-image", A.GLM_IMAGE, "a projection of glyphs and an embedding of prior tokens",
         needs=(r"^prior_token_embedding\.weight$", r"^glyph_projector\.")),
    Rule("ernie-image", A.ERNIE_IMAGE, "layers with separate adaptive norms",
         needs=(r"^layers\.#\.adaLN_sa_ln\.weight$", r"^layers\.#\.mlp\.linear_fc2\.weight$")),
    Rule("kandinsky6", A.KANDINSKY6, "separate text blocks for audio and for images",
         needs=(r"^audio_text_transformer_blocks\.#\.", r"^video_text_transformer_blocks\.#\.")),
    Rule("kandinsky5", A.KANDINSKY5, "text blocks followed by visual blocks", lacks=(r"audio",),
         needs=(r"^text_transformer_blocks\.#\.", r"^visual_transformer_blocks\.#\.", r"^pooled_text_embeddings\.")),
    Rule("ideogram4", A.IDEOGRAM4, "a projection of a language model's output",
         needs=(r"^llm_cond_proj\.weight$", r"^embed_image_indicator\.weight$")),
    Rule("omnigen", A.OMNIGEN, "a language model that reads and writes image patches",
         needs=(r"^patch_embedding\.input_image_proj\.", r"^time_token\.")),
    Rule("prx", A.PRX, "attention with one joint layer for the image and another for text",
         needs=(r"^blocks\.#\.attention\.img_qkv_proj\.", r"^blocks\.#\.attention\.txt_kv_proj\.")),
    Rule("minimax-h3", A.MINIMAX_H3, "blocks with one adaptive projection, preceded by a token refiner",
         needs=(r"^transformer_blocks\.#\.adaln_proj\.linear\.", r"^token_refiner\.refiner_blocks\.#\.")),
    Rule("amused", A.AMUSED, "a masked language model over image tokens",
         needs=(r"^mlm_layer\.conv2\.", r"^transformer_layers\.#\.attn2\.")),
    Rule("cascade-c", A.CASCADE, "a projection of CLIP's text output", variant="stage-c",
         needs=(r"^clip_txt_mapper\.weight$",)),
    Rule("cascade-b", A.CASCADE, "channel-wise blocks with a small image as input", variant="stage-b",
         needs=(r"^down_blocks\.#\.#\.channelwise\.#\.weight$", r"^(effnet_mapper|pixels_mapper)\.#\.weight$")),
    Rule("cascade", A.CASCADE, "channel-wise blocks with a projection of pooled text",
         needs=(r"^down_blocks\.#\.#\.channelwise\.#\.weight$", r"^clip_txt_pooled_mapper\.weight$")),
)  # fmt: skip
"""The rules that recognise the family of a diffusion model."""

_IMG_IN = r"^(img_in|x_embedder)\.weight$"
_GUIDE = r"^(guidance_in|time_text_embed\.guidance_embedder)\."
_WAN_IN = r"^patch_embedding\.weight$"

VARIANTS: tuple[Rule, ...] = (
    Rule("flux1-fill", A.FLUX1, "384 input channels: latents, image and mask", axis=(_IMG_IN, 1, (384,)),
         variant="fill"),
    Rule("flux1-control", A.FLUX1, "128 input channels: latents and a control image", axis=(_IMG_IN, 1, (128,)),
         variant="control"),
    Rule("flux1-dev", A.FLUX1, "an embedding of the guidance scale", needs=(_GUIDE,), variant="dev"),
    Rule("flux1-schnell", A.FLUX1, "no embedding of the guidance scale", lacks=(_GUIDE,), variant="schnell"),
    Rule("flux2-dev", A.FLUX2, "6144 wide", axis=(_IMG_IN, 0, (6144,)), variant="dev"),
    Rule("flux2-klein-9b", A.FLUX2, "4096 wide", axis=(_IMG_IN, 0, (4096,)), variant="klein-9b"),
    Rule("flux2-klein-4b", A.FLUX2, "3072 wide", axis=(_IMG_IN, 0, (3072,)), variant="klein-4b"),
    Rule("sd3.5-large", A.SD3, "38 joint blocks", variant="3.5-large",
         top=(r"^(joint_blocks|transformer_blocks)\.#\.", 37, 99)),
    Rule("sd3.5-medium", A.SD3, "blocks with a second attention layer", variant="3.5-medium",
         needs=(r"\.x_block\.attn2\.|^transformer_blocks\.#\.attn2\.",)),
    Rule("sd3-medium", A.SD3, "24 joint blocks", variant="3-medium", lacks=(r"\.ln_q\.|\.norm_q\.",),
         top=(r"^(joint_blocks|transformer_blocks)\.#\.", 23, 23)),
    Rule("wan-animate", A.WAN, "an input for poses", needs=(r"^pose_patch_embedding\.",), variant="animate"),
    Rule("wan-vace", A.WAN, "control blocks", needs=(r"^vace_blocks\.",), variant="vace"),
    Rule("wan-i2v-14b", A.WAN, "36 input channels, 5120 wide", variant="i2v-14b", needs=(r".",),
         axis=(_WAN_IN, 1, (36,))),
    Rule("wan-ti2v-5b", A.WAN, "48 input channels", axis=(_WAN_IN, 1, (48,)), variant="ti2v-5b"),
    Rule("wan-14b", A.WAN, "5120 wide", axis=(_WAN_IN, 0, (5120,)), variant="t2v-14b"),
    Rule("wan-1.3b", A.WAN, "1536 wide", axis=(_WAN_IN, 0, (1536,)), variant="t2v-1.3b"),
    Rule("chroma-radiance", A.CHROMA, "works on pixels", needs=(r"^nerf_",), variant="radiance"),
)  # fmt: skip
"""The rules that recognise which variant of a family a model is. Each rule is tried only for the family it names."""

FLAGS: tuple[Rule, ...] = (
    Rule("inpainting", A.UNKNOWN, "9 input channels: image and mask", axis=(_CONV_IN, 1, (9,)), flag="inpainting"),
    Rule(
        "edit",
        A.UNKNOWN,
        "8 input channels: an image to edit",
        axis=(_CONV_IN, 1, (8,)),
        flag="edit",
        lacks=(_FOREIGN,),
    ),
    Rule("depth", A.UNKNOWN, "5 input channels: a depth map", axis=(_CONV_IN, 1, (5,)), flag="depth"),
    Rule(
        "upscaling", A.UNKNOWN, "7 input channels: a low-resolution image", axis=(_CONV_IN, 1, (7,)), flag="upscaling"
    ),
    Rule(
        "distilled-sdxl",
        A.SDXL,
        "fewer transformer blocks than SDXL",
        needs=(_UNET,),
        depth=(0, 8),
        axis=(CROSS, 1, (2048,)),
        flag="distilled-layers",
    ),
    Rule(
        "no-middle",
        A.UNKNOWN,
        "no middle block, as in some distilled models",
        flag="no-middle-block",
        needs=(r"^(output_blocks|up_blocks)\.", CROSS),
        lacks=(r"^(middle_block|mid_block)\.",),
    ),
    Rule(
        "gligen-inside",
        A.UNKNOWN,
        "GLIGEN's layers, which place objects in the image",
        needs=(_UNET, r"\.fuser\."),
        flag="gligen",
    ),
    Rule(
        "motion-inside",
        A.UNKNOWN,
        "motion modules of AnimateDiff",
        flag="motion",
        needs=(_UNET, r"\.motion_modules\.#\."),
    ),
)
"""The rules for additional properties of a diffusion model. Every rule that matches adds its property."""

MARKS: tuple[Rule, ...] = (
    Rule("v-pred", A.UNKNOWN, "the tensor `v_pred`", needs=(r"^v_pred$",), flag="v-prediction"),
    Rule("ztsnr", A.UNKNOWN, "the tensor `ztsnr`", needs=(r"^ztsnr$",), flag="zero-terminal-snr"),
    Rule("edm-v", A.UNKNOWN, "tensors named `edm_vpred`", needs=(r"^edm_vpred\.sigma_(max|min)$",), flag="edm-v"),
    Rule("edm", A.UNKNOWN, "tensors named `edm_mean` or `edm_std`", needs=(r"^edm_(mean|std)$",), flag="edm"),
    Rule("ema", A.UNKNOWN, "averaged (EMA) weights in addition to the normal weights",
         needs=(r"^model_ema\.",), flag="ema"),
    Rule("quantised", A.UNKNOWN, "quantisation tables in addition to the weights", flag="quantised",
         needs=(r"\.(scale_weight|weight_scale|quant_state\.|absmax|qweight|comfy_quant|smooth_factor)"
                r"|^scaled_fp8$|\.input_scale$",)),
)  # fmt: skip
"""The rules for properties that show in tensors outside the diffusion model. They are matched against all tensor names.
"""

LATENT: tuple[tuple[frozenset[str], str, int, int], ...] = (
    (frozenset({"qwen-image-2"}), r"^proj_out\.weight$", 0, 1),
    (frozenset({A.SD1, A.SD2, A.SDXL, A.SDXL_REFINER, A.KOLORS, A.KANDINSKY3, A.SVD, A.DREAMLITE}),
     r"^(out\.#|conv_out)\.weight$", 0, 1),
    (frozenset({A.FLUX1, A.FLUX2, A.CHROMA, A.LONGCAT_IMAGE, A.BRIA, A.OVIS_IMAGE, A.QWEN_IMAGE, A.Z_IMAGE, A.LUMINA2,
                A.HIDREAM, A.ERNIE_IMAGE, A.IDEOGRAM4, A.KREA2, A.PRX, A.HUNYUAN_VIDEO, A.ANIMA, A.COSMOS,
                A.COGVIEW, A.GLM_IMAGE}),
     r"^(proj_out|final_linear|norm_out\.linear_2|(last|final_layer|all_final_layer\.2-1)\.linear)\.weight$", 0, 4),
    (frozenset({A.HUNYUAN_IMAGE, A.HUNYUAN_VIDEO_15, A.LTX_VIDEO, A.LTX2, A.SANA}),
     r"^(proj_out|final_layer\.linear)\.weight$", 0, 1),
    (frozenset({A.SD3, A.PIXART, A.HUNYUAN_DIT, A.MOCHI}),
     r"^(pos_embed|x_embedder|patch_embed)\.proj\.weight$|^x_embedder\.weight$", 1, 1),
    (frozenset({A.WAN, A.SANA_VIDEO, A.COGVIDEOX}), r"^(head\.head|proj_out)\.weight$", 0, 4),
    (frozenset({A.AURAFLOW}), r"^(final_linear|proj_out)\.weight$", 0, 4),
)  # fmt: skip
"""The tensors that show the number of latent channels.

Each row: rule ids or families, the pattern of the tensor, the axis, and the number of latent pixels per patch.
"""
