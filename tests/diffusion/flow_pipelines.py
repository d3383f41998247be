"""diffusers' own pipelines for the tiny flow-matching models: each draws one image from given start latents."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ChromaPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

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
    name: str, parts: Mapping[str, Any], prompt: str, negative: str, sigmas: Sequence[float], latents: Any, cfg: float
) -> Any:
    """Return the pixels (3, H, W) in 0 … 1; `latents` (1, 16, h, w) are unit noise."""
    height, width = (8 * side for side in latents.shape[-2:])
    common: dict[str, Any] = {
        "prompt": prompt, "height": height, "width": width, "sigmas": list(sigmas[:-1]), "output_type": "pt",
    }  # fmt: skip
    # the levels are given as they are, so the scheduler must not shift them again
    plain = FlowMatchEulerDiscreteScheduler(shift=1.0)
    with torch.no_grad():
        return _DRAW[name.partition("-")[0]](plain, parts, negative, latents, cfg, common)[0]


def _flux(plain: Any, parts: Any, negative: str, latents: Any, cfg: float, common: Any) -> Any:
    pipe = FluxPipeline(
        plain, parts["vae"], parts["text_encoder"], clip(), parts["text_encoder_2"], t5(), parts["transformer"]
    )
    packed = pipe._pack_latents(latents, *latents.shape)
    more = {"negative_prompt": negative, "true_cfg_scale": cfg} if cfg != 1 else {}
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


_DRAW = {"flux1": _flux, "chroma": _chroma}
