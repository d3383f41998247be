"""One small file per identification rule: rule id → tensors (name → shape) that must make it speak."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

Shape = tuple[int, ...]
Tensors = dict[str, Shape]

W = (8, 8)


def lora(*modules: tuple[str, int, int], conv: bool = False) -> Tensors:
    """LoRA tensors of rank 4 for (module, out, in)."""
    tail = (1, 1) if conv else ()
    found: Tensors = {}
    for module, out, width in modules:
        found[f"{module}.lora_down.weight"] = (4, width, *tail)
        found[f"{module}.lora_up.weight"] = (out, 4, *tail)
        found[f"{module}.alpha"] = ()
    return found


def kohya(*modules: tuple[str, int, int], conv: bool = False) -> Tensors:
    return lora(*((f"lora_unet_{name}", out, width) for name, out, width in modules), conv=conv)


def unet(width: int, *, blocks: int = 11, label: int = 0, channels: int = 4, linear: bool = False) -> Tensors:
    """A few tensors of a UNet in the original layout."""
    found: Tensors = {
        "input_blocks.0.0.weight": (320, channels, 3, 3),
        f"input_blocks.{blocks}.0.in_layers.0.weight": (320,),
        "input_blocks.1.1.proj_in.weight": (320, 320) if linear else (320, 320, 1, 1),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
    }
    if label:
        found["label_emb.0.0.weight"] = (1280, label)
    return {f"model.diffusion_model.{name}": shape for name, shape in found.items()}


def unet_diffusers(width: int, *, levels: int, label: int) -> Tensors:
    return {
        "conv_in.weight": (320, 4, 3, 3),
        f"down_blocks.{levels}.resnets.0.conv1.weight": (320, 320, 3, 3),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, width),
        "add_embedding.linear_1.weight": (1280, label),
    }


def plain(*names: str, shape: Shape = W) -> Tensors:
    return dict.fromkeys(names, shape)


def flux(width: int = 64, *, guide: bool = True) -> Tensors:
    return {
        **plain("double_blocks.0.img_attn.norm.key_norm.scale", "double_blocks.0.img_mod.lin.weight"),
        "img_in.weight": (3072, width),
        **(plain("guidance_in.in_layer.weight") if guide else {}),
    }


def sd3(*, blocks: int, qk_norm: bool = False, second: bool = False) -> Tensors:
    last = f"joint_blocks.{blocks - 1}.x_block"
    return {
        **plain("joint_blocks.0.context_block.adaLN_modulation.1.weight", f"{last}.attn.qkv.weight"),
        **(plain(f"{last}.attn.ln_q.weight") if qk_norm else {}),
        **(plain(f"{last}.attn2.qkv.weight") if second else {}),
    }


def wan(width: int, channels: int) -> Tensors:
    return {"head.modulation": (1, 2, width), "patch_embedding.weight": (width, channels, 1, 2, 2)}


def flux2(width: int) -> Tensors:
    return {"single_stream_modulation.lin.weight": W, "img_in.weight": (width, 128)}


def control(width: int) -> Tensors:
    return {
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, width),
    }


CLASSES_FILE = Path(__file__).parent.parent / "fixtures" / "diffusers_classes.json.gz"
CLASSES: dict[str, Tensors] = {
    name: {tensor: tuple(shape) for tensor, shape in tensors.items()}
    for name, tensors in json.loads(gzip.decompress(CLASSES_FILE.read_bytes()))["classes"].items()
}
"""Every model class of diffusers, built from its defaults: see `tests/fixtures/make_diffusers_classes.py`."""


def xs(width: int) -> Tensors:
    return {"down_blocks.0.base_to_ctrl.0.weight": W, "controlnet_cond_embedding.conv_in.weight": W,
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (4, width)}  # fmt: skip


def control_lora(width: int) -> Tensors:
    return {**lora(("input_blocks.1.0.in_layers.2", 8, 8)), "lora_controlnet": (),
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.down": (64, width),
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.up": (640, 64)}  # fmt: skip


def lllite(width: int) -> Tensors:
    module = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    return {f"{module}.down.0.weight": (64, width), f"{module}.up.0.weight": (640, 64),
            f"{module}.conditioning1.0.weight": (16, 3, 4, 4)}  # fmt: skip


def autoencoder(channels: int) -> Tensors:
    return {"decoder.conv_in.weight": (512, channels, 3, 3), "decoder.mid.block_1.conv1.weight": (512, 512, 3, 3)}


CLIP = "text_model_encoder_layers_0_self_attn_q_proj"
SDXL_KV = "input_blocks_4_1_transformer_blocks_0_attn2_to_k"
LEVEL0 = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

_NORM = "model.layers.0.self_attn.q_norm.weight"

CASES: dict[str, Tensors] = {
    # whole diffusion models
    "svd": {**unet(1024), "model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight": W},
    "kolors": unet(2048, blocks=8, label=5632),
    "kolors-proj": {**unet(2048, blocks=8, label=2816), "model.diffusion_model.encoder_hid_proj.weight": (2048, 4096)},
    "sdxl-width": unet(2048, blocks=8, label=2816, linear=True),
    "refiner-width": unet(1280, label=2560, linear=True),
    "sd2-width": unet(1024, linear=True),
    "sd1-width": unet(768),
    "sdxl-layout-ldm": unet(56, blocks=8, label=352),
    "sdxl-layout-diffusers": unet_diffusers(56, levels=2, label=352),
    "refiner-layout-ldm": unet(56, blocks=11, label=352),
    "refiner-layout-diffusers": unet_diffusers(56, levels=3, label=352),
    "sd1-layout": unet(48),
    "sd2-layout": unet(48, linear=True),
    "flux2": flux2(5000),
    "flux3": plain("early_stream_modulations.image.lin.weight"),
    "chroma": {**flux(guide=False), "distilled_guidance_layer.in_proj.bias": (8,)},
    "hunyuan-image": {
        "txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,),
        "double_blocks.0.img_attn_qkv.weight": (10752, 3584),
    },
    "hunyuan-video": {
        "txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,),
        "double_blocks.0.img_attn_qkv.weight": (9216, 3072),
    },
    "flux1": flux(),
    "flux1-diffusers": CLASSES["FluxTransformer2DModel"],
    "sd3": sd3(blocks=5),
    "sd3-diffusers": CLASSES["SD3Transformer2DModel"],
    "auraflow": plain("double_layers.0.attn.w1q.weight", "cond_seq_linear.weight"),
    "hidream": plain("double_stream_blocks.0.block.adaLN_modulation.1.bias"),
    "hidream-o1": plain(
        "model.language_model.layers.0.self_attn.q_proj.weight", "model.x_embedder.proj1.weight",
        "model.final_layer2.linear.weight", "lm_head.weight",
    ),
    "z-image-width": {"cap_embedder.0.weight": (2560,), "cap_embedder.1.weight": (3840, 2560)},
    "lumina2-width": {"cap_embedder.0.weight": (2304,), "cap_embedder.1.weight": (2304, 2304)},
    "krea2": plain("txtfusion.projector.weight"),
    "qwen-image": CLASSES["QwenImageTransformer2DModel"],
    "qwen-image-2": CLASSES["QwenImage21Transformer2DModel"],
    "wan": wan(1000, 17),
    "wan-diffusers": plain(
        "scale_shift_table", "condition_embedder.time_proj.weight", "blocks.0.attn2.to_q.weight"
    ),
    "anima": plain("llm_adapter.blocks.0.self_attn.q_proj.weight", "x_embedder.proj.1.weight"),
    "cosmos": plain("x_embedder.proj.1.weight", "blocks.0.self_attn.q_proj.weight"),
    "sana": plain("blocks.0.cross_attn.q_linear.weight", "blocks.0.mlp.depth_conv.conv.weight"),
    "pixart": plain("blocks.0.cross_attn.kv_linear.weight", "t_block.1.weight"),
    "pixart-diffusers": CLASSES["PixArtTransformer2DModel"],
    "ltx2": plain("av_ca_a2v_gate_adaln_single.linear.weight", "patchify_proj.weight"),
    "ltx-video": CLASSES["LTXVideoTransformer3DModel"],
    "mochi": plain("blocks.0.attn.qkv_x.weight"),
    "hunyuan-dit": plain("mlp_t5.0.weight"),
    "cogvideox": CLASSES["CogVideoXTransformer3DModel"],
    "cascade-c": plain("clip_txt_mapper.weight"),
    "cascade-b": plain("down_blocks.1.0.channelwise.0.weight", "effnet_mapper.0.weight"),
    "unet-other": CLASSES["UNet3DConditionModel"],
    "kandinsky3": CLASSES["Kandinsky3UNet"],
    "dreamlite": CLASSES["DreamLiteUNetModel"],
    "hunyuan-video-1.5": CLASSES["HunyuanVideo15Transformer3DModel"],
    "joyimage": CLASSES["JoyImageEditTransformer3DModel"],
    "bria-fibo": CLASSES["BriaFiboTransformer2DModel"],
    "bria-fibo-2": CLASSES["BriaFibo2Transformer2DModel"],
    "longcat-image": CLASSES["LongCatImageTransformer2DModel"],
    "bria": CLASSES["BriaTransformer2DModel"],
    "ovis-image": CLASSES["OvisImageTransformer2DModel"],
    "motif-video": CLASSES["MotifVideoTransformer3DModel"],
    "lumina-next": CLASSES["LuminaNextDiT2DModel"],
    "nucleus-image": CLASSES["NucleusMoEImageTransformer2DModel"],
    "helios": CLASSES["HeliosTransformer3DModel"],
    "cosmos-diffusers": CLASSES["CosmosTransformer3DModel"],
    "sana-video": CLASSES["SanaVideoTransformer3DModel"],
    "allegro": CLASSES["AllegroTransformer3DModel"],
    "latte": CLASSES["LatteTransformer3DModel"],
    "mochi-diffusers": CLASSES["MochiTransformer3DModel"],
    "hunyuan-dit-diffusers": CLASSES["HunyuanDiT2DModel"],
    "easyanimate": CLASSES["EasyAnimateTransformer3DModel"],
    "cogview": CLASSES["CogView4Transformer2DModel"],
    "glm-image": CLASSES["GlmImageTransformer2DModel"],
    "ernie-image": CLASSES["ErnieImageTransformer2DModel"],
    "kandinsky6": CLASSES["Kandinsky6Transformer3DModel"],
    "kandinsky5": CLASSES["Kandinsky5Transformer3DModel"],
    "ideogram4": CLASSES["Ideogram4Transformer2DModel"],
    "omnigen": CLASSES["OmniGenTransformer2DModel"],
    "prx": CLASSES["PRXTransformer2DModel"],
    "minimax-h3": CLASSES["MiniMaxH3Transformer3DModel"],
    "amused": CLASSES["UVit2DModel"],
    "cascade": CLASSES["StableCascadeUNet"],
    # members of a family
    "flux1-fill": flux(384),
    "flux1-control": flux(128),
    "flux1-dev": flux(),
    "flux1-schnell": flux(guide=False),
    "flux2-dev": flux2(6144),
    "flux2-klein-9b": flux2(4096),
    "flux2-klein-4b": flux2(3072),
    "sd3.5-large": sd3(blocks=38, qk_norm=True),
    "sd3.5-medium": sd3(blocks=24, qk_norm=True, second=True),
    "sd3-medium": sd3(blocks=24),
    "wan-animate": CLASSES["WanAnimateTransformer3DModel"],
    "wan-vace": {**wan(5120, 16), "vace_blocks.0.self_attn.q.weight": W},
    "wan-i2v-14b": wan(5120, 36),
    "wan-ti2v-5b": wan(3072, 48),
    "wan-14b": wan(5120, 16),
    "wan-1.3b": wan(1536, 16),
    "chroma-radiance": plain("distilled_guidance_layer.in_proj.weight", "nerf_blocks.0.param_generator.weight"),
    # further facts
    "inpainting": unet(768, channels=9),
    "edit": unet(768, channels=8),
    "depth": unet(1024, channels=5, linear=True),
    "upscaling": unet(1024, channels=7, linear=True),
    "distilled-sdxl": unet(2048, blocks=8, label=2816, linear=True),
    "no-middle": {**unet(768), "model.diffusion_model.output_blocks.0.0.in_layers.0.weight": (1280,)},
    "gligen-inside": {
        **unet(768), "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.fuser.linear.weight": (320, 768)
    },
    "motion-inside": CLASSES["UNetMotionModel"],
    "v-pred": {**unet(2048, blocks=8, label=2816), "v_pred": ()},
    "ztsnr": {**unet(2048, blocks=8, label=2816), "ztsnr": ()},
    "edm-v": {**unet(2048, blocks=8, label=2816), "edm_vpred.sigma_max": ()},
    "edm": {**unet(2048, blocks=8, label=2816), "edm_mean": (4,)},
    "ema": {**unet(768), "model_ema.decay": ()},
    "quantised": {**flux(), "double_blocks.0.img_mod.lin.weight_scale": ()},
    # other parts
    "controlnet-flux": plain("controlnet_blocks.0.weight", "controlnet_x_embedder.weight"),
    "controlnet-sd3": CLASSES["SD3ControlNetModel"],
    "unet-with-controlnet-xs": CLASSES["UNetControlNetXSModel"],
    "controlnet-hunyuan-dit": CLASSES["HunyuanDiT2DControlNetModel"],
    "controlnet-sana": CLASSES["SanaControlNetModel"],
    "controlnet-z-image": CLASSES["ZImageControlNetModel"],
    "controlnet-cosmos": CLASSES["CosmosControlNetModel"],
    "controlnet-union": CLASSES["ControlNetUnionModel"],
    "controlnet-union-promax": {**CLASSES["ControlNetUnionModel"], "task_embedding": (8, 320)},
    "sparsectrl": CLASSES["SparseControlNetModel"],
    "controlnet-xs-sd1": xs(768),
    "controlnet-xs-sd2": xs(1024),
    "controlnet-xs-sdxl": xs(2048),
    "control-lora-sd1": control_lora(768),
    "control-lora-sd2": control_lora(1024),
    "control-lora-sdxl": control_lora(2048),
    "control-lllite-sd1": lllite(768),
    "control-lllite-sdxl": lllite(2048),
    "controlnet-qwen-image": plain("controlnet_blocks.0.weight", "transformer_blocks.0.img_mod.1.weight"),
    "controlnet-qwen-image-blocks": plain("controlnet_blocks.0.y_rms.weight", "img_in.weight"),
    "controlnet-other": plain("control_layers.0.attention.qkv.weight"),
    "controlnet-sd1": control(768),
    "controlnet-sd2": control(1024),
    "controlnet-sdxl": control(2048),
    "controlnet-unknown": control(99),
    "control-lora": {**lora(("input_blocks.1.0.in_layers.2", 8, 8)), "lora_controlnet": ()},
    "control-lllite": lora(("lllite_unet_input_blocks_4_1_attn1_to_q", 8, 8)),
    "t2i-adapter": {"adapter.body.0.block1.weight": (8, 8, 3, 3), "adapter.conv_in.weight": (320, 99, 3, 3)},
    "t2i-adapter-sd1": CLASSES["T2IAdapter"],
    "t2i-adapter-sdxl": {"body.0.block1.weight": (8, 8, 3, 3), "conv_in.weight": (320, 768, 3, 3)},
    "redux": CLASSES["ReduxImageEncoder"],
    "t2i-style": {"style_embedding": (1, 8, 1024), "transformer_layes.0.ln_1.weight": (8,), "proj": (1024, 768)},
    "ip-adapter-sd2": {"ip_adapter.1.to_k_ip.weight": (320, 1024)},
    "ip-adapter-flux": plain("double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"),
    "gligen": {
        "output_blocks.3.1.transformer_blocks.0.fuser.linear.weight": (1280, 768),
        "position_net.linears.4.weight": (768, 512)
    },
    "gligen-other": plain(
        "output_blocks.3.1.transformer_blocks.0.fuser.linear.weight", "position_net.linears.4.weight"
    ),
    "hypernetwork": plain("768.0.linear.0.weight", "768.1.linear.0.weight"),
    "ip-adapter-sdxl": {"ip_adapter.1.to_k_ip.weight": (640, 2048), "image_proj.norm.weight": (8,)},
    "ip-adapter-sd1": {"ip_adapter.1.to_k_ip.weight": (320, 768)},
    "ip-adapter": {"ip_adapter.1.to_k_ip.weight": (320, 99), "image_proj.norm.weight": (8,), "x.y.z": W},
    "motion-module-sd1": plain("down_blocks.3.motion_modules.0.temporal_transformer.proj_in.weight"),
    "motion-module-sdxl": plain("down_blocks.2.motion_modules.0.temporal_transformer.proj_in.weight"),
    "motion-module": plain("up_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"),
    "vae-flux2": {**autoencoder(32), "bn.running_mean": (128,)},
    "vae-16": autoencoder(16),
    "vae-4": autoencoder(4),
    "vae-wan-2.1": CLASSES["AutoencoderKLWan"],
    "vae-wan-2.2": {**plain("decoder.middle.0.residual.0.gamma"), "decoder.conv1.weight": (1024, 48, 3, 3, 3)},
    "vae-qwen-image-2": CLASSES["AutoencoderKLQwenImage21"],
    "vae-hunyuan-video": CLASSES["AutoencoderKLHunyuanVideo"],
    "vae-hunyuan-video-1.5": CLASSES["AutoencoderKLHunyuanVideo15"],
    "vae-hunyuan-image": CLASSES["AutoencoderKLHunyuanImage"],
    "vae-ltx": CLASSES["AutoencoderKLLTXVideo"],
    "vae-sana": CLASSES["AutoencoderDC"],
    "vae-deep": plain("decoder.stages.0.0.conv1.weight"),
    "vae-other-of-videos": CLASSES["AutoencoderVidTok"],
    "vae-quantised": CLASSES["VQModel"],
    "vae-asymmetric": CLASSES["AsymmetricAutoencoderKL"],
    "vae-consistency": CLASSES["ConsistencyDecoderVAE"],
    "vae-svd": CLASSES["AutoencoderKLTemporalDecoder"],
    "vae-allegro": CLASSES["AutoencoderKLAllegro"],
    "vae-easyanimate": CLASSES["AutoencoderKLMagvit"],
    "vae-cosmos": CLASSES["AutoencoderKLCosmos"],
    "vae-cogvideox": CLASSES["AutoencoderKLCogVideoX"],
    "vae-mochi": CLASSES["AutoencoderKLMochi"],
    "tiny-vae-4": CLASSES["AutoencoderTiny"],
    "tiny-vae-16": {"decoder.layers.0.weight": (64, 16, 3, 3), "decoder.layers.2.conv.0.weight": (64, 64, 3, 3)},
    "tiny-vae": plain("1.weight", "3.conv.0.weight"),
    "vae-other": {"decoder.conv_in.weight": (512, 7, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)},
    "clip-vision": plain("vision_model.encoder.layers.0.mlp.fc1.weight"),
    "clip-text": plain("text_model.encoder.layers.0.self_attn.q_proj.weight"),
    "open-clip-text": plain("transformer.resblocks.0.attn.in_proj_weight"),
    "t5": plain("encoder.block.0.layer.0.SelfAttention.q.weight"),
    "language-model": plain("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"),
    **{f"clip-text-{name}": {"text_model.encoder.layers.0.self_attn.q_proj.weight": (width, width)}
       for name, width in (("clip-l", 768), ("clip-h", 1024), ("clip-g", 1280))},
    **{f"open-clip-text-{name}": {"transformer.resblocks.0.attn.in_proj_weight": (3 * width, width)}
       for name, width in (("clip-h", 1024), ("clip-g", 1280))},
    **{f"t5-{name}": {"encoder.block.0.layer.0.SelfAttention.q.weight": (width, width), "shared.weight": (words, width),
                      **{f"encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64)
                         for n in range(blocks)}}
       for name, width, words, blocks in (
           ("t5-xxl", 4096, 32128, 1), ("umt5-xxl", 4096, 256384, 2), ("pile-t5-xl", 2048, 32128, 2))},
    **{f"language-model-{name}": {
           "model.layers.0.self_attn.q_proj.weight": (4096, width), "model.layers.0.mlp.gate_proj.weight": (8, width),
           **dict.fromkeys(marks, (128,))}
       for name, width, marks in (
           ("qwen3-vl-4b", 2560, (_NORM, "visual.blocks.0.attn.qkv.weight")), ("qwen3-0.6b", 1024, (_NORM,)),
           ("qwen3-4b", 2560, (_NORM,)), ("qwen3-8b", 4096, (_NORM,)),
           ("qwen2.5-vl-7b", 3584, ("model.layers.0.self_attn.q_proj.bias",)),
           ("gemma-2-2b", 2304, ("model.layers.0.pre_feedforward_layernorm.weight",)),
           ("mistral-small-3", 5120, ()), ("ministral-3-3b", 3072, ()), ("llama-3.1-8b", 4096, ()))},
    "esrgan": plain("model.1.sub.0.RDB1.conv1.0.weight"),
    "swinir": plain("layers.0.residual_group.blocks.0.attn.relative_position_bias_table", "conv_first.weight"),
    "upscaler-of-windows": plain("layers.0.blocks.0.attn.qkv.weight", "conv_first.weight", "conv_after_body.weight"),
    "hat": plain("layers.0.residual_group.overlap_attn.q.weight", "conv_first.weight"),
    "span": plain("block_1.c1_r.sk.weight"),
    "plksr": plain("feats.1.lk.conv.weight"),
    "codeformer": plain(
        "quantize.embedding.weight", "ft_layers.0.self_attn.in_proj_weight", "idx_pred_layer.1.weight"
    ),
    "gfpgan": plain(
        "stylegan_decoder.style_convs.0.modulated_conv.weight", "condition_scale.0.0.weight", "conv_body_first.weight"
    ),
    "retinaface": plain("LandmarkHead.0.conv1x1.weight", "body.layer4.0.conv3.weight"),
    "parsenet": plain("out_mask_conv.conv2d.weight", "body.0.conv1.conv2d.weight"),
    "compact-upscaler": {"body.0.weight": (64, 3, 3, 3), "body.0.bias": (64,)},
    # adapters
    "on-flux3": lora(("transformer.txt_mode_blocks.0.attn.to_q", 3072, 3072)),
    "on-joyimage": lora(("transformer.double_blocks.0.attn.img_attn_qkv", 9216, 3072)),
    "on-hunyuan-image-diffusers": lora(("transformer.single_transformer_blocks.0.attn.to_q", 3584, 3584)),
    "on-flux2-modulation": kohya(("double_stream_modulation_img_lin", 8, 8)),
    "on-chroma": kohya(("distilled_guidance_layer_layers_0_in_layer", 8, 8)),
    "on-flux2-single": kohya(("single_blocks_0_linear1", 27648, 3072)),
    "on-flux2-double": kohya(("double_blocks_0_img_mlp_0", 18432, 3072)),
    "on-flux2-width": kohya(("double_blocks_0_img_attn_qkv", 12288, 4096)),
    "on-hunyuan-image": kohya(("double_blocks_0_img_attn_qkv", 10752, 3584)),
    "on-hunyuan-video": kohya(("double_blocks_0_img_mlp_fc1", 12288, 3072)),
    "on-hunyuan-video-double": kohya(("double_blocks_19_img_attn_qkv", 9216, 3072)),
    "on-hunyuan-video-single": lora(("transformer.single_transformer_blocks.39.attn.to_q", 3072, 3072)),
    "on-flux1-modulation": kohya(("double_blocks_0_img_mod_lin", 18432, 3072)),
    "on-flux1": kohya(("double_blocks_0_img_attn_qkv", 9216, 3072)),
    "on-sd3.5-large": kohya(("joint_blocks_0_x_block_attn_qkv", 7296, 2432)),
    "on-sd3": kohya(("joint_blocks_0_x_block_attn_qkv", 4608, 1536)),
    "on-auraflow": lora(("transformer.joint_transformer_blocks.0.attn.to_q", 3072, 3072)),
    "on-auraflow-single": lora(("transformer.single_transformer_blocks.0.ff.linear_1", 8192, 3072)),
    "on-single-attention": lora(("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072)),
    "on-hidream": lora(("diffusion_model.double_stream_blocks.0.block.attn1.to_q", 2560, 2560)),
    "on-flux1-diffusers": lora(("transformer.single_transformer_blocks.0.proj_mlp", 12288, 3072)),
    "on-qwen-image": kohya(("transformer_blocks_0_txt_mlp_net_2", 3072, 12288)),
    "on-nucleus-image": lora(("transformer.transformer_blocks.0.encoder_proj", 2048, 3584)),
    "on-qwen-image-half": kohya(("transformer_blocks_0_img_mlp_net_2", 3072, 12288)),
    "on-qwen-image-depth": lora(("transformer.transformer_blocks.30.attn.to_q", 3072, 3072)),
    "on-sd3-joint": lora(("transformer.transformer_blocks.0.attn.to_q", 1536, 1536)),
    "on-flux1-joint": lora(
        ("transformer.transformer_blocks.0.attn.to_q", 3072, 3072),
        ("transformer.transformer_blocks.0.ff.net.2", 3072, 12288)
    ),
    "on-qwen-bare": lora(("transformer_blocks.0.attn.to_q", 3072, 3072)),
    "on-joint": lora(("transformer.transformer_blocks.0.attn.to_q", 3072, 3072)),
    "on-ltx2": lora(("diffusion_model.transformer_blocks.0.audio_attn1.to_q", 2048, 2048)),
    "on-anima-adapter": kohya(("llm_adapter_blocks_0_self_attn_q_proj", 1024, 1024)),
    "on-anima": kohya(("blocks_0_self_attn_q_proj", 2048, 2048)),
    "on-cosmos": kohya(("blocks_0_self_attn_output_proj", 5120, 5120)),
    "on-wan-14b": kohya(("blocks_0_self_attn_q", 5120, 5120)),
    "on-wan-1.3b": lora(("diffusion_model.blocks.0.self_attn.q", 1536, 1536)),
    "on-wan-14b-diffusers": lora(("transformer.blocks.0.attn1.to_q", 5120, 5120)),
    "on-wan-1.3b-diffusers": lora(("transformer.blocks.0.attn1.to_q", 1536, 1536)),
    "on-wan-5b-diffusers": lora(("transformer.blocks.0.attn2.to_k", 3072, 3072)),
    "on-wan-diffusers": lora(("transformer.blocks.0.ffn.net.0.proj", 13824, 5120)),
    "on-wan-5b": lora(("diffusion_model.blocks.0.cross_attn.k", 3072, 3072)),
    "on-wan": kohya(("blocks_0_ffn_0", 999, 333)),
    "on-z-image": lora(("diffusion_model.layers.0.attention.to_q", 3840, 3840)),
    "on-lumina-next": lora(("transformer.layers.0.attn2.to_q", 2304, 2304)),
    "on-lumina2": lora(("transformer.layers.0.attn.to_q", 2304, 2304)),
    "on-ernie-image": lora(("diffusion_model.layers.0.self_attention.to_q", 4096, 4096)),
    "on-z-image-names": lora(("diffusion_model.layers.0.attention.to_q", 64, 64)),
    "on-lumina2-names": lora(("transformer.noise_refiner.0.attn.to_q", 64, 64)),
    "on-hunyuan-dit": kohya(("blocks_0_attn1_Wqkv", 4224, 1408)),
    "on-mochi": lora(("diffusion_model.blocks.0.attn.qkv_x", 9216, 3072)),
    "on-sana": lora(("transformer.transformer_blocks.0.ff.conv_inverted", 64, 64)),
    "on-sana-width": lora(("transformer.transformer_blocks.0.attn1.to_q", 2240, 2240)),
    "on-pixart": kohya(("blocks_0_cross_attn_kv_linear", 2304, 1152)),
    "on-pixart-diffusers": lora(
        ("transformer.transformer_blocks.0.attn1.to_q", 1152, 1152),
        ("transformer.transformer_blocks.0.attn2.to_q", 1152, 1152),
    ),
    "on-easyanimate": lora(("transformer.transformer_blocks.0.attn1.add_q_proj", 3072, 3072)),
    "on-mochi-diffusers": lora(("transformer.transformer_blocks.0.attn1.add_q_proj", 3072, 1536)),
    "on-ltx": lora(
        ("transformer.transformer_blocks.0.attn1.to_q", 2048, 2048),
        ("transformer.transformer_blocks.0.attn2.to_q", 2048, 2048)
    ),
    "on-cogvideox": lora(("transformer.transformer_blocks.0.attn1.to_q", 1920, 1920)),
    "on-svd": lora(("unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q", 320, 320)),
    "on-unet-of-videos": lora(
        ("down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q", 320, 320)
    ),
    "on-sdxl": kohya((SDXL_KV, 640, 2048)),
    "on-refiner": kohya((SDXL_KV, 768, 1280)),
    "on-sd2": kohya(("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 1024)),
    "on-sd1": kohya(("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 768)),
    "on-sdxl-depth": kohya(("input_blocks_7_1_transformer_blocks_9_attn1_to_q", 1280, 1280)),
    "on-sdxl-te2": {
        **kohya(("input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640, 640)), **lora((f"lora_te2_{CLIP}", 64, 64))
    },
    "on-sd2-text": {**kohya((LEVEL0, 320, 320)), **lora((f"lora_te_{CLIP}", 1024, 1024))},
    "on-sd1-text": {**kohya((LEVEL0, 320, 320)), **lora((f"lora_te_{CLIP}", 768, 768))},
    "on-sd1-layout": kohya(("down_blocks_0_attentions_0_proj_in", 48, 48), conv=True),
    "on-sd2-layout": kohya(("down_blocks_0_attentions_0_proj_in", 48, 48)),
    "on-sd-layout": kohya((LEVEL0, 48, 48)),
    "on-unet": kohya(("mid_block_attentions_0_transformer_blocks_0_attn1_to_q", 1280, 1280)),
    "on-text-sdxl": lora((f"lora_te2_{CLIP}", 1280, 1280)),
    "on-text-sd1": lora((f"lora_te_{CLIP}", 768, 768)),
    "on-text-sd2": lora((f"lora_te_{CLIP}", 1024, 1024)),
}  # fmt: skip


def without(tensors: Tensors, names: Iterable[str]) -> Tensors:
    dropped = set(names)
    return {name: shape for name, shape in tensors.items() if name not in dropped}
