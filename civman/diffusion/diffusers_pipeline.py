"""Builds diffusers pipelines from the components of a loaded model.

`library.render` does not use pipelines; they are for callers who want to continue with diffusers.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from civman.diffusion.loader import LoadedModel
from civman.errors import Cause, UsageError

_KINDS = {
    ("txt2img", False): "StableDiffusionPipeline", ("txt2img", True): "StableDiffusionXLPipeline",
    ("img2img", False): "StableDiffusionImg2ImgPipeline", ("img2img", True): "StableDiffusionXLImg2ImgPipeline",
    ("inpaint", False): "StableDiffusionInpaintPipeline", ("inpaint", True): "StableDiffusionXLInpaintPipeline",
}  # fmt: skip


def pipeline_of(model: LoadedModel, kind: str = "txt2img", *, tokenizers: Mapping[str, Any] | None = None) -> Any:
    """Build a diffusers pipeline from the model's components; `kind` is "txt2img", "img2img" or "inpaint".

    The model must have been loaded with `for_diffusers`.

    Pipelines of several kinds share the components. Without `tokenizers` ("tokenizer", "tokenizer_2"), the pipeline
    accepts only prompt embeddings. Importing diffusers' pipelines takes about 2 s, which `render` avoids.

    Raises: UsageError: `kind` is unknown.
    """
    if not type(model.unet).__module__.startswith("diffusers."):
        raise ValueError("a pipeline needs a model that was loaded with `for_diffusers`")
    if kind not in model.pipelines or tokenizers:
        model.pipelines[kind] = _build(model, kind, tokenizers or {})
    return model.pipelines[kind]


def _build(model: LoadedModel, kind: str, tokenizers: Mapping[str, Any]) -> Any:
    import diffusers  # imported here, because importing diffusers' pipelines takes 2 s

    if (kind, model.family.is_xl) not in _KINDS:
        raise UsageError(
            f"unknown kind of pipeline: `{kind}`", hint="use txt2img, img2img or inpaint", code=Cause.BAD_KIND
        )
    if kind == "txt2img" and model.family.needs_picture:
        raise UsageError("a refiner model needs an input image", hint="use img2img", code=Cause.BAD_KIND)
    parts: dict[str, Any] = {
        "unet": model.unet, "vae": model.vae, "scheduler": _scheduler(model),
        "text_encoder": model.components.get("text_encoder"), "tokenizer": tokenizers.get("tokenizer"),
    }  # fmt: skip
    if model.family.is_xl:
        parts |= {
            "text_encoder_2": model.components["text_encoder_2"], "tokenizer_2": tokenizers.get("tokenizer_2"),
            "force_zeros_for_empty_prompt": model.family.zero_for_empty_negative, "add_watermarker": False,
        }  # fmt: skip
        if kind != "txt2img":
            parts["requires_aesthetics_score"] = model.family.scores is not None
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    made = getattr(diffusers, _KINDS[kind, model.family.is_xl])(**parts)
    if not model.family.is_xl:
        _allow_clip_skip(made)
    return made


def _scheduler(model: LoadedModel) -> Any:
    import diffusers

    # imported here, because the module imports diffusers' schedulers, which takes up to 2 s
    from civman.diffusion.pipeline_scheduler import model_config

    kind: Any = diffusers.EulerDiscreteScheduler
    taken = inspect.signature(kind.__init__).parameters
    config = model_config(model.prediction, is_zero_snr=model.is_zero_snr)
    return kind(**{name: value for name, value in config.items() if name in taken})


def _allow_clip_skip(pipe: Any) -> None:
    """Make `pipe(clip_skip=…)` of SD 1.x and 2.x work with transformers 5, whose encoders have no `text_model`.

    For clip skip, diffusers 0.42 reads `text_encoder.text_model`; elsewhere (when loading LoRAs), it takes the presence
    of this attribute as a sign of transformers 4. So the attribute is set only while a prompt is being encoded.
    """
    encoder, original = pipe.text_encoder, pipe.encode_prompt
    if encoder is None or hasattr(encoder, "text_model"):
        return

    @functools.wraps(original)
    def encode_prompt(*arguments: Any, **named: Any) -> Any:
        vars(encoder)["text_model"] = encoder
        try:
            return original(*arguments, **named)
        finally:
            del vars(encoder)["text_model"]

    pipe.encode_prompt = encode_prompt
