"""Identification rules for ControlNets, image adapters, upscalers and other files.

These rules apply to files that are neither a diffusion model, nor an autoencoder, nor a LoRA. The first matching rule
wins, so specific rules come before general ones.

Source: layouts as the model authors' public code, diffusers and ComfyUI write them.
"""

from civman.domain.architecture import Architecture, Kind
from civman.domain.identification.backbone_rules import CROSS
from civman.domain.identification.rules import Rule

A = Architecture
C = Kind.CONTROLNET

_HINT = r"^(controlnet_cond_embedding|input_hint_block|zero_convs|controlnet_down_blocks)\."
_BLOCKS = r"^controlnet_blocks\.#"
_MOTION = r"motion_modules\.#\.(temporal_transformer|transformer_blocks)\."

_CONTROLNETS: tuple[Rule, ...] = (
    Rule("unet-with-controlnet-xs", A.UNKNOWN, "a UNet that contains a ControlNet-XS", kind=Kind.CHECKPOINT,
         needs=(r"^ctrl_conv_in\.", r"^base_conv_in\.")),
    Rule("controlnet-qwen-image", A.QWEN_IMAGE, "control blocks in addition to Qwen-Image's blocks", kind=C,
         needs=(_BLOCKS, r"^transformer_blocks\.#\.img_mod\.")),
    Rule("controlnet-qwen-image-blocks", A.QWEN_IMAGE, "control layers for the blocks of Qwen-Image", kind=C,
         needs=(r"^controlnet_blocks\.#\.y_rms\.weight$", r"^img_in\.weight$")),
    Rule("controlnet-flux", A.FLUX1, "control blocks in addition to Flux's blocks", kind=C,
         needs=(_BLOCKS, r"^(single_transformer_blocks|double_blocks|controlnet_x_embedder)"),
         lacks=(r"^transformer_blocks\.#\.img_mod\.", r"^time_embed\.", r"token_refiner")),
    Rule("controlnet-sd3", A.SD3, "control blocks in addition to SD 3's blocks", kind=C,
         needs=(_BLOCKS, r"^pos_embed(_input)?\.proj\.weight$",
                r"^transformer_blocks\.#\.attn\.(add_q_proj|to_q|qkv)")),
    Rule("controlnet-hunyuan-dit", A.HUNYUAN_DIT, "control blocks in addition to Hunyuan-DiT's blocks", kind=C,
         needs=(_BLOCKS, r"^time_extra_emb\.")),
    Rule("controlnet-sana", A.SANA, "control blocks in addition to Sana's blocks", kind=C,
         needs=(_BLOCKS, r"^transformer_blocks\.#\.ff\.conv_depth\.")),
    Rule("controlnet-z-image", A.Z_IMAGE, "control layers, 3840 wide", kind=C,
         axis=(r"^control_layers\.#\.attention\.(qkv|to_q)\.weight$", 1, (3840,)), lacks=(r"^layers\.#\.",)),
    Rule("controlnet-cosmos", A.COSMOS, "control blocks and a patch embedding of Cosmos", kind=C,
         needs=(r"^control_blocks\.#\.after_proj\.", r"^patch_embed_base\.proj\.")),
    Rule("controlnet-other", A.UNKNOWN, "control blocks in addition to transformer blocks", kind=C,
         needs=(r"^(controlnet_blocks|control_layers|control_blocks)\.#",)),
    Rule("controlnet-union-promax", A.SDXL, "half of a UNet for eight kinds of control images, 2048 wide", kind=C,
         variant="union-promax", needs=(_HINT, r"^task_embedding$", r"^control_add_embedding\."),
         where=((r"^task_embedding$", 0, (8,)),), axis=(CROSS, 1, (2048,)), also=(A.KOLORS,)),
    Rule("controlnet-union", A.SDXL, "half of a UNet for several kinds of control images, 2048 wide", kind=C,
         variant="union", needs=(_HINT, r"^(task_embedding$|control_add_embedding\.)"), axis=(CROSS, 1, (2048,)),
         also=(A.KOLORS,)),
    Rule("sparsectrl", A.SD1, "half of a UNet with motion modules, 768 wide", kind=C, variant="sparsectrl",
         needs=(r"^(controlnet_cond_embedding|input_hint_block)", _MOTION), axis=(CROSS, 1, (768,))),
    *(Rule(f"controlnet-xs-{family}", family, f"ControlNet-XS, {width} wide", kind=C, variant="xs",
           needs=(r"^down_blocks\.#\.base_to_ctrl\.#",), axis=(CROSS, 1, (width,)))
      for family, width in ((A.SD1, 768), (A.SD2, 1024), (A.SDXL, 2048))),
    *(Rule(f"controlnet-{family}", family, f"half of a UNet with a control image input, {width} wide", kind=C,
           also=also, needs=(_HINT,), lacks=(r"motion_modules|temporal", r"base_to_ctrl", r"ctrl_to_base"),
           axis=(CROSS, 1, (width,)))
      for family, width, also in ((A.SD1, 768, ()), (A.SD2, 1024, ()), (A.SDXL, 2048, (A.KOLORS,)))),
    Rule("controlnet-unknown", A.UNKNOWN, "an input for control images", kind=C,
         needs=(r"^(controlnet_cond_embedding|input_hint_block|zero_convs)\.",)),
    *(Rule(f"control-lora-{family}", family, f"a ControlNet in the form of a LoRA, {width} wide", kind=C,
           variant="lora", needs=(r"^lora_controlnet$",), axis=(r"attn2\.to_[kv]\.down(\.weight)?$", 1, (width,)))
      for family, width in ((A.SD1, 768), (A.SD2, 1024), (A.SDXL, 2048))),
    Rule("control-lora", A.UNKNOWN, "a ControlNet in the form of a LoRA, of unknown width", kind=C,
         needs=(r"^lora_controlnet$",), variant="lora"),
    *(Rule(f"control-lllite-{family}", family, f"control modules for a UNet's attention, {width} wide", kind=C,
           variant="lllite", needs=(r"^lllite_unet",), axis=(r"^lllite_.*attn2_to_[kv]\.down\.#\.weight$", 1, (width,)))
      for family, width in ((A.SD1, 768), (A.SDXL, 2048))),
    Rule("control-lllite", A.SDXL, "control modules for a UNet's attention", kind=C, variant="lllite",
         needs=(r"^lllite_unet",), also=(A.SD1,)),
)  # fmt: skip

_T2I_IN = r"^(adapter\.)?(conv_in|body\.#\.in_conv)\.weight$"
_T2I = (r"^(adapter\.)?body\.#\.((resnets|body)\.#\.)?block1\.weight$",)

_PICTURE_ADAPTERS: tuple[Rule, ...] = (
    *(Rule(f"t2i-adapter-{family}", family, f"feature extractors for a UNet, with images unshuffled by {fold}", kind=C,
           variant="t2i-adapter", needs=_T2I, axis=(_T2I_IN, 1, (fold * fold, 3 * fold * fold)), also=also)
      for family, fold, also in ((A.SDXL, 16, (A.KOLORS,)), (A.SD1, 8, (A.SD2,)))),
    Rule("t2i-adapter", A.UNKNOWN, "feature extractors for a UNet", kind=C, needs=_T2I, variant="t2i-adapter",
         dims=(r"^(adapter\.)?body\.#\.((resnets|body)\.#\.)?block1\.weight$", 4)),
    Rule("redux", A.FLUX1, "layers between an image encoder and Flux's text input", kind=Kind.STYLE_MODEL,
         needs=(r"^redux_down\.weight$",), axis=(r"^redux_up\.weight$", 1, (1152,)), variant="redux"),
    Rule("t2i-style", A.SD1, "a style model of T2I-Adapter, 768 wide", kind=Kind.STYLE_MODEL, variant="t2i-style",
         needs=(r"^style_embedding$", r"^transformer_layes\.#\."), axis=(r"^proj$", 1, (768,))),
    Rule("ip-adapter-sdxl", A.SDXL, "image attention, 2048 wide", kind=Kind.IP_ADAPTER, also=(A.KOLORS,),
         axis=(r"^ip_adapter\.#\.to_k_ip\.weight$", 1, (2048,))),
    Rule("ip-adapter-sd2", A.SD2, "image attention, 1024 wide", kind=Kind.IP_ADAPTER,
         axis=(r"^ip_adapter\.#\.to_k_ip\.weight$", 1, (1024,))),
    Rule("ip-adapter-sd1", A.SD1, "image attention, 768 wide", kind=Kind.IP_ADAPTER,
         axis=(r"^ip_adapter\.#\.to_k_ip\.weight$", 1, (768,))),
    Rule("ip-adapter-flux", A.FLUX1, "image attention in double blocks", kind=Kind.IP_ADAPTER,
         needs=(r"^double_blocks\.#\.processor\.ip_adapter_double_stream_k_proj\.",)),
    Rule("ip-adapter", A.UNKNOWN, "image attention", kind=Kind.IP_ADAPTER, needs=(r"^(ip_adapter|image_proj)\.",)),
    *(Rule(f"motion-module-{family}", family, f"time-mixing modules alone, for {top + 1} levels of a UNet", also=also,
           kind=Kind.MOTION_MODULE, needs=(_MOTION,), lacks=(r"resnets\.#\.conv1", r"^controlnet_"),
           top=(r"^down_blocks\.", top, top))
      for family, top, also in ((A.SD1, 3, (A.SD2,)), (A.SDXL, 2, ()))),
    Rule("motion-module", A.UNKNOWN, "time-mixing modules alone", kind=Kind.MOTION_MODULE, also=(A.SD1, A.SDXL),
         needs=(_MOTION,), lacks=(r"resnets\.#\.conv1", r"^controlnet_")),
    Rule("gligen", A.SD1, "GLIGEN's layers (768 wide), which place objects in the image", kind=Kind.GLIGEN,
         needs=(r"\.fuser\.",), lacks=(r"in_layers|resnets|attn2",),
         axis=(r"^position_net\.linears\.#\.weight$", 0, (768,))),
    Rule("gligen-other", A.UNKNOWN, "GLIGEN's layers, which place objects in the image", kind=Kind.GLIGEN,
         needs=(r"\.fuser\.", r"^position_net\."), lacks=(r"in_layers|resnets|attn2",)),
    Rule("hypernetwork", A.UNKNOWN, "pairs of layers that change keys and values", kind=Kind.HYPERNETWORK,
         needs=(r"^#\.#\.linear(1|\.#)\.weight$",), lacks=(r"^(?!#\.#\.linear)",)),
)  # fmt: skip

_CLIP_TEXT = r"(^|\.)text_model\.encoder\.layers\.#\.self_attn\.q_proj\.weight$"
_OPEN_CLIP_TEXT = r"^(model\.)?transformer\.resblocks\.#\.attn\.in_proj_weight$"
_T5 = r"^(.*\.)?encoder\.block\.#\.layer\.#\.SelfAttention\.q\.weight$"
_T5_TABLE = r"^(.*\.)?(shared|encoder\.embed_tokens)\.weight$"
_LLM = r"(^|\.)layers\.#\.self_attn\.q_proj\.weight$"
_LLM_MLP = r"(^|\.)layers\.#\.mlp\.gate_proj\."
_Q_NORM, _Q_BIAS = r"\.self_attn\.q_norm\.", r"\.self_attn\.q_proj\.bias$"

_ENCODERS: tuple[Rule, ...] = (
    Rule("clip-vision", A.UNKNOWN, "a vision encoder", kind=Kind.CLIP_VISION,
         needs=(r"^(vision_model\.(embeddings|encoder)|visual\.transformer\.resblocks)\.",)),
    *(Rule(f"clip-text-{said}", A.UNKNOWN, f"CLIP's text encoder, {width} wide", kind=Kind.TEXT_ENCODER, variant=said,
           needs=(_CLIP_TEXT,), axis=(_CLIP_TEXT, 1, (width,)))
      for said, width in (("clip-l", 768), ("clip-h", 1024), ("clip-g", 1280))),
    Rule("clip-text", A.UNKNOWN, "CLIP's text encoder", kind=Kind.TEXT_ENCODER, needs=(_CLIP_TEXT,)),
    *(Rule(f"open-clip-text-{said}", A.UNKNOWN, f"OpenCLIP's text encoder, {width} wide", kind=Kind.TEXT_ENCODER,
           variant=said, needs=(_OPEN_CLIP_TEXT,), axis=(_OPEN_CLIP_TEXT, 1, (width,)))
      for said, width in (("clip-h", 1024), ("clip-g", 1280))),
    Rule("open-clip-text", A.UNKNOWN, "OpenCLIP's text encoder", kind=Kind.TEXT_ENCODER, needs=(_OPEN_CLIP_TEXT,)),
    *(Rule(f"t5-{said}", A.UNKNOWN, f"T5's encoder, {width} wide, {words} tokens", kind=Kind.TEXT_ENCODER, variant=said,
           needs=(_T5,), where=((_T5, 1, (width,)), (_T5_TABLE, 0, (words,))))
      for said, width, words in (
          ("t5-xxl", 4096, 32128), ("umt5-xxl", 4096, 256384))),
    Rule("t5-pile-t5-xl", A.UNKNOWN, "T5's encoder, 2048 wide, with a position bias in every block",
         kind=Kind.TEXT_ENCODER, variant="pile-t5-xl", needs=(_T5,),
         where=((_T5, 1, (2048,)), (_T5_TABLE, 0, (32128,))),
         top=(r"^(.*\.)?encoder\.block\.#\.layer\.#\.SelfAttention\.relative_attention_bias\.weight$", 1, 99)),
    Rule("t5", A.UNKNOWN, "T5's encoder", kind=Kind.TEXT_ENCODER, needs=(_T5,)),
    *(Rule(f"language-model-{said}", A.UNKNOWN, f"a language model's layers, {width} wide", kind=Kind.TEXT_ENCODER,
           variant=said, needs=(_LLM, _LLM_MLP, *marks), lacks=lacks, axis=(_LLM, 1, (width,)))
      for said, width, marks, lacks in (
          ("qwen3-vl-4b", 2560, (_Q_NORM, r"(^|\.)(visual|language_model)\."), ()),
          ("qwen3-0.6b", 1024, (_Q_NORM,), ()), ("qwen3-4b", 2560, (_Q_NORM,), ()), ("qwen3-8b", 4096, (_Q_NORM,), ()),
          ("qwen2.5-vl-7b", 3584, (_Q_BIAS,), ()),
          ("gemma-2-2b", 2304, (r"\.pre_feedforward_layernorm\.",), (_Q_NORM,)),
          ("mistral-small-3", 5120, (), (_Q_NORM, _Q_BIAS)), ("ministral-3-3b", 3072, (), (_Q_NORM, _Q_BIAS)),
          ("llama-3.1-8b", 4096, (), (_Q_NORM, _Q_BIAS)))),
    Rule("language-model", A.UNKNOWN, "a language model's layers", kind=Kind.TEXT_ENCODER, needs=(_LLM, _LLM_MLP)),
)  # fmt: skip

_UPSCALERS: tuple[Rule, ...] = (
    Rule("esrgan", A.UNKNOWN, "residual-in-residual dense blocks", kind=Kind.UPSCALER, variant="esrgan",
         needs=(r"(^|\.)[rR][dD][bB]\d\.conv\d(\.#)?\.weight$",)),
    Rule("hat", A.UNKNOWN, "residual groups with overlapping window attention", kind=Kind.UPSCALER, variant="hat",
         needs=(r"^layers\.#\.residual_group\.overlap_attn\.", r"^conv_first\.")),
    Rule("swinir", A.UNKNOWN, "residual groups with window attention", kind=Kind.UPSCALER, variant="swinir",
         needs=(r"^layers\.#\.residual_group\.blocks\.#\.attn\.relative_position_bias_table$", r"^conv_first\."),
         lacks=(r"overlap_attn", r"aligned_|logit_scale|cpb_mlp|attn_win|\.adjust\d")),
    Rule("upscaler-of-windows", A.UNKNOWN, "a convolution, attention blocks and an upsampling layer",
         kind=Kind.UPSCALER, needs=(r"^layers\.#\.(residual_group\.|blocks\.|swin)", r"^conv_first\.",
                                    r"^(conv_after_body|conv_last|conv_before_upsample\.#|upsample(\.#)?)\.")),
    Rule("span", A.UNKNOWN, "a swift parameter-free attention network", kind=Kind.UPSCALER, variant="span",
         needs=(r"^block_1\.c1_r\.sk\.weight$",)),
    Rule("plksr", A.UNKNOWN, "blocks with partial large-kernel convolutions", kind=Kind.UPSCALER, variant="plksr",
         needs=(r"^feats\.#\.lk\.conv\.weight$",)),
    Rule("compact-upscaler", A.UNKNOWN, "a plain stack of convolutions", kind=Kind.UPSCALER, variant="compact",
         needs=(r"^body\.#\.weight$",), dims=(r"^body\.#\.weight$", 4), lacks=(r"^(?!body\.#\.)",)),
)  # fmt: skip

_FACES: tuple[Rule, ...] = (
    Rule("codeformer", A.UNKNOWN, "a codebook for faces and a transformer that selects its entries",
         kind=Kind.FACE_MODEL, variant="codeformer",
         needs=(r"^quantize\.embedding\.weight$", r"^ft_layers\.#\.self_attn\.in_proj_weight$",
                r"^idx_pred_layer\.#\.")),
    Rule("gfpgan", A.UNKNOWN, "a StyleGAN2 that a face encoder controls", kind=Kind.FACE_MODEL, variant="gfpgan",
         needs=(r"^stylegan_decoder\.style_convs\.#\.modulated_conv\.weight$", r"^condition_scale\.#\.",
                r"^conv_body_first\.")),
    Rule("retinaface", A.UNKNOWN, "a ResNet with heads for face boxes and landmarks", kind=Kind.FACE_MODEL,
         variant="retinaface",
         needs=(r"^(module\.)?LandmarkHead\.#\.conv1x1\.", r"^(module\.)?body\.layer4\.#\.conv3\.")),
    Rule("parsenet", A.UNKNOWN, "a face-parsing network", kind=Kind.FACE_MODEL, variant="parsenet",
         needs=(r"^out_mask_conv\.conv2d\.weight$", r"^body\.#\.conv1\.conv2d\.weight$")),
)  # fmt: skip

PARTS: tuple[Rule, ...] = (*_FACES, *_CONTROLNETS, *_PICTURE_ADAPTERS, *_ENCODERS, *_UPSCALERS)
"""The rules for files that are neither a diffusion model, nor an autoencoder, nor an adapter that changes weights."""
