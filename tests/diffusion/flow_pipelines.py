"""diffusers' own pipelines for the tiny flow-matching models: each draws one image from given start latents."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny_flows
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaPipeline,
    ClassifierFreeGuidance,
    ErnieImagePipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxKontextPipeline,
    FluxPipeline,
    HiDreamImagePipeline,
    Krea2Pipeline,
    Lumina2Pipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from diffusers.modular_pipelines.anima import AnimaAutoBlocks
from tokenizers import Tokenizer, processors
from transformers import (
    BatchEncoding,
    LlamaForCausalLM,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral3Model,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLModel,
)
from transformers.integrations.mistral.tokenizer import MistralConverter

from civman.diffusion.piece_tokenizer import read_pieces
from civman.diffusion.tokenizers import load_tokenizer
from civman.prompts.tokenizer import clip_tokenizer


def clip() -> Any:
    words = Tokenizer.from_str(clip_tokenizer().words.to_str())
    words.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 49406), ("<|endoftext|>", 49407)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<|endoftext|>", eos_token="<|endoftext|>", bos_token="<|startoftext|>",
        model_max_length=77,
    )  # fmt: skip


def t5() -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=load_tokenizer("t5").words, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )


def draw(
    name: str, parts: Mapping[str, Any], prompt: str, negative: str, sigmas: Sequence[float], latents: Any, cfg: float,
    images: Sequence[Any] = (),
) -> Any:  # fmt: skip
    """Return the pixels (3, H, W) in 0 … 1; `latents` (1, 16, h, w) or (1, 128, h, w) are unit noise.

    `images`: Pillow images that an edit model reads.
    """
    height, width = ((16 if latents.shape[1] == 128 else 8) * side for side in latents.shape[-2:])
    common: dict[str, Any] = {
        "prompt": prompt, "height": height, "width": width, "sigmas": list(sigmas[:-1]), "output_type": "pt",
    } | ({"image": list(images)} if images else {})  # fmt: skip
    # the levels are given as they are, so the scheduler must not shift them again
    plain = FlowMatchEulerDiscreteScheduler(shift=1.0)
    with torch.no_grad():
        return next(draw for start, draw in _DRAW.items() if name.startswith(start))(
            plain, parts, negative, latents, cfg, common
        )[0]


def _flux(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    own = (plain, parts["vae"], parts["text_encoder"], clip(), parts["text_encoder_2"], t5(), parts["transformer"])
    pipe = FluxKontextPipeline(*own) if "image" in common else FluxPipeline(*own)
    packed = pipe._pack_latents(latents, *latents.shape)
    more = {"negative_prompt": negative, "true_cfg_scale": cfg} if cfg != 1 else {}
    if "image" in common:  # the pipeline would scale to sizes of a megapixel
        more |= {"max_area": common["width"] * common["height"], "_auto_resize": False}
    return pipe(**common, latents=packed, guidance_scale=3.5, max_sequence_length=256, **more).images


def _chroma(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    pipe = ChromaPipeline(plain, parts["vae"], parts["text_encoder"], t5(), parts["transformer"])
    packed = pipe._pack_latents(latents, *latents.shape)
    # diffusers adds 1 to the scores of tokens that count instead of hiding the others: without padding, all is the same
    length = len(t5()(common["prompt"]).input_ids)
    assert length == len(t5()(negative).input_ids)
    return pipe(
        **common, latents=packed, guidance_scale=cfg, negative_prompt=negative, max_sequence_length=length
    ).images


def qwen(after: str = "") -> Any:
    """Qwen's tokenizer with its chat template; `after` ends it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=load_tokenizer("qwen").words, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        model_max_length=4096,
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\n" + after + "' }}",
    )  # fmt: skip


def _z_image(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    pipe = ZImagePipeline(plain, parts["vae"], parts["text_encoder"], qwen(), parts["transformer"])
    # diffusers' scale is on top of the positive prompt's output
    return pipe(**common, latents=latents, guidance_scale=cfg - 1, negative_prompt=negative).images


def _flux2(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    tokenizer = qwen("<think>\n\n</think>\n\n")
    pipe = Flux2KleinPipeline(plain, parts["vae"], parts["text_encoder"], tokenizer, parts["transformer"])
    against, _ = pipe.encode_prompt(negative)
    return pipe(
        **common, num_inference_steps=len(common["sigmas"]), latents=latents, guidance_scale=cfg,
        negative_prompt_embeds=against,
    ).images  # fmt: skip


def _qwen_image(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    assert cfg == 1
    del negative
    pipe = QwenImagePipeline(plain, parts["vae"], _Vl(parts["text_encoder"]), qwen(), parts["transformer"])
    packed = pipe._pack_latents(latents, *latents.shape)
    return pipe(**common, latents=packed, true_cfg_scale=1.0).images


class _Vl(torch.nn.Module):
    """Qwen2.5-VL as transformers builds it, with the weights of the language model alone."""

    def __init__(self, language: Any) -> None:
        super().__init__()
        plain = language.config
        text = {name: getattr(plain, name) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "rms_norm_eps", "max_position_embeddings",
        )}  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
        vision = {"depth": 1, "hidden_size": 16, "num_heads": 1, "out_hidden_size": 24, "intermediate_size": 16}
        config = Qwen2_5_VLConfig(text_config=text | {"head_dim": 128, "rope_parameters": rope}, vision_config=vision)
        self.whole = Qwen2_5_VLForConditionalGeneration(config).eval()
        for layer in self.whole.model.language_model.layers:
            layer.self_attn.head_dim = 128
        self.whole.model.language_model.load_state_dict(language.state_dict())
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.config = config

    def forward(self, **named: Any) -> Any:
        return self.whole(**named)


def _sd3(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    wide = clip()
    wide.pad_token = "!"
    pipe = StableDiffusion3Pipeline(
        parts["transformer"],
        plain,
        parts["vae"],
        parts["text_encoder"],
        clip(),
        parts["text_encoder_2"],
        wide,
        parts["text_encoder_3"],
        t5(),
    )
    return pipe(**common, latents=latents, guidance_scale=cfg, negative_prompt=negative, max_sequence_length=77).images


def _anima(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    blocks = AnimaAutoBlocks().init_pipeline()
    transformer = parts["transformer"]
    blocks.update_components(
        transformer=transformer, text_conditioner=parts["text_conditioner"], text_encoder=parts["text_encoder"],
        tokenizer=qwen(), t5_tokenizer=t5(), vae=parts["vae"], scheduler=plain,
        guider=ClassifierFreeGuidance(guidance_scale=cfg),
    )  # fmt: skip
    original = transformer.forward

    def forward(hidden_states: Any, padding_mask: Any = None, **named: Any) -> Any:
        # the tiny transformer takes the mask as a channel; diffusers adds it only with torchvision, which is not here
        assert not padding_mask.any()
        masked = torch.cat([hidden_states, torch.zeros_like(hidden_states[:, :1])], dim=1)
        return original(hidden_states=masked, **named)

    transformer.forward = forward
    try:
        state = blocks(
            prompt=common["prompt"], negative_prompt=negative, height=common["height"], width=common["width"],
            sigmas=common["sigmas"], num_inference_steps=len(common["sigmas"]), latents=latents[:, :, None],
            output_type="pt",
        )  # fmt: skip
    finally:
        del transformer.forward
    return state.get("images")


class Pieces:
    """The ids of the small SentencePiece model, as transformers' tokenizers return them."""

    padding_side = "right"

    def __call__(self, texts: Sequence[str], *, padding: str, max_length: int = 0, **_: Any) -> Any:
        model = read_pieces(tiny_flows.piece_model(), "Gemma 2 text encoder", "tiny")
        rows = [[model.start, *model.encode(text)] for text in texts]
        size = max_length if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row[:size] + [0] * (size - len(row)) for row in rows])
        mask = torch.tensor([[1] * min(len(row), size) + [0] * (size - len(row)) for row in rows])
        return SimpleNamespace(input_ids=ids, attention_mask=mask)

    def batch_decode(self, rows: Any) -> list[str]:
        return ["" for _ in rows]


def _lumina2(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    pipe = Lumina2Pipeline(parts["transformer"], plain, parts["vae"], parts["text_encoder"], Pieces())
    # ComfyUI does not rescale a guided velocity
    return pipe(
        **common, num_inference_steps=len(common["sigmas"]), latents=latents, guidance_scale=cfg,
        negative_prompt=negative, cfg_normalization=False,
    ).images  # fmt: skip


def qwen3_vl(language: Any) -> Any:
    """Qwen3-VL as transformers builds it, with the weights of the language model alone."""
    plain = language.config
    text = {name: getattr(plain, name) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads", "rms_norm_eps", "max_position_embeddings",
    )}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 1, "out_hidden_size": 24, "intermediate_size": 16,
              "deepstack_visual_indexes": [0]}  # fmt: skip
    whole = Qwen3VLModel(Qwen3VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision)).eval()
    whole.language_model.load_state_dict(language.state_dict())
    return whole


def _krea2(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    pipe = Krea2Pipeline(plain, parts["vae"], qwen3_vl(parts["text_encoder"]), qwen(), parts["transformer"])
    packed = pipe._pack_latents(latents, *latents.shape)
    # diffusers' scale is on top of the positive prompt's output
    return pipe(**common, latents=packed, guidance_scale=cfg - 1, negative_prompt=negative).images


@cache
def tekken() -> Tokenizer:
    """The tokenizer that transformers makes of the small Tekken vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tekken.json"
        path.write_bytes(tiny_flows.tekken_model())
        return MistralConverter(str(path)).converted()


class GivenLevels(FlowMatchEulerDiscreteScheduler):
    """A scheduler for a pipeline that makes its own levels: it uses the given ones instead."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        super().__init__(shift=1.0)
        self._given = sigmas

    def set_timesteps(self, *_: Any, **named: Any) -> None:
        super().set_timesteps(sigmas=list(self._given), device=named.get("device"))


def ministral(language: Any) -> Any:
    """Mistral 3 with Ministral as transformers builds it, with the weights of the language model alone."""
    plain = language.config
    text = {name: getattr(plain, name) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads",
    )}  # fmt: skip
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, head_dim=16
    )
    whole = Mistral3Model(Mistral3Config(text_config=Ministral3Config(**text), vision_config=vision)).eval()
    whole.language_model.load_state_dict(language.state_dict())
    return whole


def start_and_ids(text: str, **_: Any) -> dict[str, list[int]]:
    return {"input_ids": [1, *tekken().encode(text).ids]}


def _ernie_image(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    del plain
    sigmas = common.pop("sigmas")
    pipe = ErnieImagePipeline(
        parts["transformer"], parts["vae"], ministral(parts["text_encoder"]), start_and_ids, GivenLevels(sigmas)
    )
    return pipe(
        **common, num_inference_steps=len(sigmas), latents=latents, guidance_scale=cfg, negative_prompt=negative
    ).images


def mistral(language: Any) -> Any:
    """Mistral 3 as transformers builds it, with two layers more than the language model and a final norm."""
    plain = language.config
    text = {name: getattr(plain, name) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim", "num_key_value_heads",
        "rms_norm_eps", "rope_parameters", "sliding_window",
    )}  # fmt: skip
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, head_dim=16
    )
    config = Mistral3Config(
        text_config=MistralConfig(num_hidden_layers=plain.num_hidden_layers + 2, **text), vision_config=vision
    )
    whole = Mistral3ForConditionalGeneration(config).eval()
    lost = whole.model.language_model.load_state_dict(language.state_dict(), strict=False)
    assert not lost.unexpected_keys
    return whole


def mistral_chat() -> Any:
    """Transformers' tokenizer of the small Tekken vocabulary with the chat template of Mistral Small 3."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tekken(), pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        model_max_length=4096,
        chat_template="<s>{% for m in messages %}{% for part in m.content %}{% if m.role == 'system' %}"
        "[SYSTEM_PROMPT]{{ part.text }}[/SYSTEM_PROMPT]{% else %}[INST]{{ part.text }}[/INST]{% endif %}"
        "{% endfor %}{% endfor %}",
    )  # fmt: skip


def _flux2_dev(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    assert cfg == 1
    del negative
    encoder = mistral(parts["text_encoder"])
    pipe = Flux2Pipeline(plain, parts["vae"], encoder, mistral_chat(), parts["transformer"])
    return pipe(**common, num_inference_steps=len(common["sigmas"]), latents=latents, guidance_scale=3.5).images


class PilePieces:
    """The ids of the small SentencePiece model with LLaMA's options, as LLaMA's tokenizer returns them for Pile-T5."""

    def __call__(self, text: Any, *, padding: str, truncation: bool = False, max_length: int = 0, **_: Any) -> Any:
        model = read_pieces(tiny_flows.piece_model("llama"), "Pile-T5 text encoder", "tiny")
        (one,) = [text] if isinstance(text, str) else text
        row = [*model.encode(one)[: max_length - 1 if truncation else None], 2]
        size = max_length if padding == "max_length" else len(row)
        mask = [1] * len(row) + [0] * (size - len(row))
        row += [1] * (size - len(row))
        return BatchEncoding({"input_ids": torch.tensor([row]), "attention_mask": torch.tensor([mask])})

    def batch_decode(self, rows: Any) -> list[str]:
        return ["" for _ in rows]


def auraflow(transformer: Any) -> Any:
    """diffusers' own class with the weights of civman's, which is made from it."""
    whole = AuraFlowTransformer2DModel.from_config(dict(transformer.config)).eval()
    whole.load_state_dict(transformer.state_dict())
    return whole


def _auraflow(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    pipe = AuraFlowPipeline(PilePieces(), parts["text_encoder"], parts["vae"], auraflow(parts["transformer"]), plain)
    return pipe(**common, latents=latents, guidance_scale=cfg, negative_prompt=negative).images


def long_clip() -> Any:
    """CLIP's tokenizer for text encoders with more than 77 positions."""
    words = clip()
    words.model_max_length = 248
    return words


def llama_tokenizer() -> Any:
    """Transformers' tokenizer of the small vocabulary with Llama's rules; the pipeline pads with its end token."""
    start, end = tiny_flows.LLAMA_ENDS
    words = Tokenizer.from_str(tiny_flows.llama_tokenizer().decode())
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=start, eos_token=end, model_max_length=131072)


def llama(language: Any) -> Any:
    """Llama as transformers builds it for diffusers' pipeline, with the weights of the language model."""
    whole = LlamaForCausalLM(language.config).eval()
    whole.model.load_state_dict(language.state_dict())
    return whole


def hidream(plain: Any, parts: Any) -> Any:
    """HiDream's pipeline with the tiny parts."""
    wide = long_clip()
    wide.pad_token = "!"
    return HiDreamImagePipeline(
        plain, parts["vae"], parts["text_encoder"], long_clip(), parts["text_encoder_2"], wide,
        parts["text_encoder_3"], t5(), llama(parts["text_encoder_4"]), llama_tokenizer(), parts["transformer"],
    )  # fmt: skip


def _hidream(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    pipe = hidream(plain, parts)
    # the pipeline scales every size to a megapixel: here the image's own size counts as such
    pixels = common["width"] * common["height"]
    pipe.default_sample_size = (pixels**0.5 + 1e-6) / 8
    parts["transformer"].max_seq = min(pixels // 256, 4096)
    return pipe(
        **common, num_inference_steps=len(common["sigmas"]), latents=latents, guidance_scale=cfg,
        negative_prompt=negative,
    ).images  # fmt: skip


_DRAW = {
    "flux1": _flux, "flux2-dev": _flux2_dev, "flux2": _flux2, "chroma": _chroma, "z-image": _z_image,
    "qwen-image": _qwen_image, "sd3": _sd3, "anima": _anima, "lumina2": _lumina2, "krea2": _krea2,
    "ernie-image": _ernie_image, "auraflow": _auraflow, "hidream": _hidream,
}  # fmt: skip
