"""Which values a recipe may contain: the limits of its numbers, and the allowed values of its enumerated fields.

Recipes have the type `Any` here, because `recipe` imports this module to validate a recipe while it is constructed.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, Final

from civman.domain.adapters import block_weights, scale_keyframes
from civman.domain.recipes import flow, freeu_settings, prompt_parts, reference, thresholding
from civman.domain.recipes.control import CONTROL_MODES, CONTROL_RESIZE_MODES, CONTROL_TYPES
from civman.domain.recipes.noise_sources import THREADS
from civman.domain.recipes.sampling import PROGRAMS
from civman.errors import Cause, UsageError

MAX_SEED: Final = 2**64 - 1
"""The largest seed that the random generators of torch and ComfyUI accept."""
MAX_SIDE: Final = 16384
"""The maximum width and height in pixels. A larger size is probably a typo and would use up the machine's memory."""
MAX_SLOTS: Final = 256
UPSCALERS: Final = (
    "latent", "latent-antialiased", "latent-bicubic", "latent-bicubic-antialiased", "latent-nearest",
    "latent-nearest-exact", "latent-area", "latent-bislerp", "lanczos", "nearest", "nearest-exact", "bilinear",
    "bicubic", "area", "model",
)  # fmt: skip
RESIZES: Final = ("", "nearest-exact", "bilinear", "bicubic", "area", "lanczos")
"""The filters that resize the result of an upscaler model; "" means that it is resized as in A1111."""
RESIZE_MODES: Final = ("just resize", "crop and resize", "resize and fill", "just resize (latent upscale)")
"""A1111's names for the ways to resize the start image."""
COMFYUI_CROP: Final = "comfyui crop"
COMFYUI_RESIZES: Final = (COMFYUI_CROP, *(f"comfyui {way}" for way in RESIZES if way))
"""ComfyUI's ways to fit the start image: a centre crop to multiples of 8, or resizing with one of its filters."""
_MOST_GROWN: Final = 64
"""The largest number of pixels by which ComfyUI can widen a mask."""
MASK_CHANNELS: Final = ("", "alpha", "red", "green", "blue")
MASKED_CONTENTS: Final = ("fill", "original", "latent noise", "latent nothing")
"""A1111's names for the initial content of the masked area."""
MAX_NOISE: Final = 10000
"""The upper limit of the parameters that control how much noise a sampler adds, and at which noise levels."""
PRECISIONS: Final = ("float32", "float16", "bfloat16")
PROMPT_RULES: Final = ("", "a1111-1.0", "a1111-1.3", "a1111-1.6")
"""The rules for prompts that change during the steps or use `AND`, each named after the A1111 version that introduced
it.
"""
EMPHASIS: Final = ("original", "no norm", "ignore", "none", "comfyui")
"""Rules for weights in brackets.

"original" multiplies the vectors and restores their mean; "no norm" does not restore the mean; "ignore" removes the
brackets and their weights; "none" reads brackets as text. "comfyui" reads prompts as ComfyUI does: a weight scales a
vector's distance from that of an empty prompt, only round brackets count, and `embedding:NAME` is an embedding.
"""
_SIZE: Final = re.compile(r"([0-9]{1,5})\s*[x×]\s*([0-9]{1,5})", re.IGNORECASE)
_TOLD: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})\+([0-9]{1,5})\+([0-9]{1,5}),([0-9]{1,5})x([0-9]{1,5})")
_RNG: Final = re.compile(r"cpu|nv(:[0-9]{3,7})?")


def upscaler_of(name: str) -> str:
    """Convert an upscaler's name in civman or A1111 ("Latent (bicubic)", "None") to its name in civman."""
    plain = "-".join(re.findall(r"[a-z]+", name.casefold()))
    if plain.startswith("latent"):
        plain = plain.replace("bilinear", "").strip("-")
    return "lanczos" if plain == "none" else plain


def size_of(text: str) -> tuple[int, int]:
    """Parse the width and height in a text such as "512x768". Raises: UsageError (`bad-size`)."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"`{text}` is not a size: expected width x height in pixels, such as 512x768", code=Cause.BAD_SIZE
        )
    return int(found[1]), int(found[2])


def sizes_told(text: str) -> tuple[int, ...]:
    """Parse `Recipe.told_sizes` in SDXL's order: height, width, top, left, and the height and width of the target.

    Empty if the text is invalid.
    """
    found = _TOLD.fullmatch(text)
    if found is None:
        return ()
    width, height, left, top, across, down = map(int, found.groups())
    return height, width, top, left, down, across


def problems(recipe: Any) -> Iterator[str]:
    """Explain why the recipe cannot be rendered, with one clause for each problem."""
    yield from _size_problems(recipe)
    yield from _number_problems(recipe)
    if recipe.start:
        yield from _start_problems(recipe.start)
        yield from _comfyui_start_problems(recipe)
    second = (recipe.hires.prompt, recipe.hires.negative_prompt) if recipe.hires else ()
    if not all(_is_text(words) for words in (recipe.prompt, recipe.negative_prompt, *filter(None, second))):
        yield "a prompt contains invalid Unicode"
    yield from _sampling_problems(recipe.sampling)
    yield from _guidance_problems(recipe)
    for use in (*recipe.loras, *((recipe.hires and recipe.hires.loras) or ())):
        yield from _lora_problems(use, has_hires=recipe.hires is not None)
    yield from _control_problems(recipe)
    yield from reference.problems(recipe)
    yield from _noise_problems(recipe)
    yield from prompt_parts.problems(recipe)
    if recipe.freeu is not None:
        yield from freeu_settings.problems(recipe.freeu)
    yield from flow.problems(recipe)
    if recipe.sampling.half_levels and recipe.is_zero_snr:
        yield "noise levels of zero terminal SNR cannot be rounded to half precision"
    if recipe.rules == 1 and (recipe.sampling.half_levels or recipe.sampling.drop_penultimate):
        yield "recipe rules 1 support neither noise levels in half precision nor a dropped noise level"
    named = {digest for digests in recipe.digests.values() for digest in digests}
    if recipe.files and sorted(file.sha256 for file in recipe.files) != sorted(named):
        yield "the recipe's list of files does not match the files that it uses"
    closed = {
        "prompt_rules": PROMPT_RULES, "emphasis": EMPHASIS, "precision": PRECISIONS, "rounding": ("nearest", "down"),
        "prediction": ("epsilon", "v_prediction", "flow"), "odd_sizes": ("forge", "a1111"), "rules": (1, 2, 3),
    }  # fmt: skip
    for name, allowed in closed.items():
        if getattr(recipe, name) not in allowed:
            listed = ", ".join(str(each) or "(none)" for each in allowed)
            yield f"{name} `{getattr(recipe, name)}` is not one of {listed}"
    for rng in (recipe.rng, recipe.step_rng or "cpu"):
        if _RNG.fullmatch(rng) and not int(rng.partition(":")[2] or 0) % 256:
            continue
        yield (
            f"rng `{rng}` is neither cpu, nv, nor nv:THREADS with a multiple of 256, nor one of the cards "
            + ", ".join(THREADS)
        )


def _start_problems(start: Any) -> Iterator[str]:
    if not 0 < start.strength <= 1:
        yield "strength must be above 0 and at most 1"
    if start.only_masked and start.mask_sha256 is None:
        yield "the recipe inpaints only the masked area, but has no mask"
    if start.resize_mode == RESIZE_MODES[-1] and start.mask_sha256 is not None:
        yield "a latent upscale cannot be combined with a mask"
    if start.mask_blur < 0 or start.padding < 0:
        yield "the mask's blur and padding cannot be negative"
    if not 0 <= start.conditioning_weight <= 1:
        yield "the weight of the inpainting conditioning must be between 0 and 1"
    if not 0 <= start.noise_multiplier <= 10:
        yield "the noise multiplier must be between 0 and 10"
    for name, word, allowed in (
        ("resize mode", start.resize_mode, (*RESIZE_MODES, *COMFYUI_RESIZES)),
        ("mask channel", start.mask_channel, MASK_CHANNELS), ("masked content", start.masked_content, MASKED_CONTENTS),
    ):  # fmt: skip
        if word not in allowed:
            yield f"{name} `{word}` is not one of {', '.join(allowed)}"


def _comfyui_start_problems(recipe: Any) -> Iterator[str]:
    start = recipe.start
    if start.resize_mode not in COMFYUI_RESIZES:
        if start.grow_mask is not None:
            yield f"a mask can be grown only with one of ComfyUI's resize modes: {', '.join(COMFYUI_RESIZES)}"
        return
    if recipe.sampling.program != "comfyui" or recipe.flow is not None or recipe.rules == 1:
        yield "ComfyUI's resize modes need ComfyUI's sampling rules, and a Stable Diffusion model"
    plain = start.mask_blur or start.only_masked or start.masked_content != "original"
    if plain or start.conditioning_weight != 1 or start.noise_multiplier != 1:
        yield "ComfyUI's resize modes do not support mask blur, masked content, only-masked or a noise multiplier"
    if start.mask_sha256 is not None and (recipe.hires is not None or recipe.sampler.endswith("CFG++")):
        yield "a mask with ComfyUI's resize modes cannot be combined with a second pass or a CFG++ sampler"
    if start.grow_mask is not None and (start.mask_sha256 is None or not 0 <= start.grow_mask <= _MOST_GROWN):
        yield f"a recipe that grows its mask must have a mask, and can grow it by at most {_MOST_GROWN} pixels"


def _sampling_problems(sampling: Any) -> Iterator[str]:
    usual = type(sampling)()
    fixed = ("beta_start", "beta_end", "train_steps", "rho", "beta_shape")
    if any(getattr(sampling, name) != getattr(usual, name) for name in fixed):
        yield "the recipe's constants for noise levels and samplers differ from those of this version of civman"
    for name in ("eta", "noise_scale", "eta_ddim", "s_churn", "s_tmin", "s_tmax"):
        number = getattr(sampling, name)
        if not math.isfinite(number) or not 0 <= number <= MAX_NOISE:
            yield f"{name} must be between 0 and {MAX_NOISE}"


def _guidance_problems(recipe: Any) -> Iterator[str]:
    ratios = [recipe.token_merging, *([recipe.hires.token_merging] if recipe.hires else [])]
    if not all(0 <= ratio < 0.9 for ratio in ratios):
        yield "the ratio of merged tokens must be 0 to 0.89"
    second = recipe.hires
    networks = (*recipe.hypernetworks, *((second and second.hypernetworks) or ()))
    if not all(math.isfinite(use.strength) and abs(use.strength) <= 100 for use in networks):
        yield "the strength of a hypernetwork must be between -100 and 100"
    if recipe.thresholding is not None:
        yield from thresholding.problems(recipe.thresholding)
        if recipe.guidance_rescale or recipe.sampler.endswith("CFG++"):
            yield "dynamic thresholding cannot be combined with CFG rescale or a CFG++ sampler"
    if recipe.fit_negative and recipe.pad_prompts:
        yield "fitting the negative prompt to the prompt's length cannot be combined with padding the prompts"
    if not 0 <= recipe.skip_negative_below <= MAX_NOISE:
        yield f"the noise level below which the negative prompt is skipped must be 0 to {MAX_NOISE}"
    if not 0 <= recipe.skip_early_guidance <= 1:
        yield "the fraction of steps without guidance must be 0 to 1"
    if (recipe.skip_negative_below or recipe.skip_early_guidance) and recipe.sampler.endswith("CFG++"):
        yield "a CFG++ sampler needs the negative prompt in each step"


def _lora_problems(use: Any, *, has_hires: bool) -> Iterator[str]:
    if use.blocks and not _are_blocks(use.blocks):
        yield f"`{use.blocks[:40]}` is not a list of block weights"
    wrong = [each for each in (use.keyframes, use.hires_keyframes) if each and not scale_keyframes.are_keyframes(each)]
    if wrong:
        yield f"`{wrong[0][:40]}` is not a list of keyframes in canonical form"
    elif use.keyframes and scale_keyframes.scale_at(use.keyframes, 0, 0) != use.scale:
        yield "the scale of a LoRA differs from the scale that its keyframes have in the first step"
    if use.hires_keyframes and not has_hires:
        yield "a LoRA has a scale for the second pass, but the recipe has no second pass"


def _noise_problems(recipe: Any) -> Iterator[str]:
    sampling = recipe.sampling
    if recipe.noise_slice:
        index, _, count = recipe.noise_slice.partition("/")
        is_slice = index.isdecimal() and count.isdecimal() and len(count) < 5 and 1 <= int(index) <= int(count)
        if not is_slice:
            yield f"`{recipe.noise_slice}` is not a slice of the noise: expected, for example, 2/4"
    own_seed = recipe.hires is not None and recipe.hires.seed is not None
    if (recipe.noise_slice or own_seed) and recipe.count > 1:
        yield "a recipe with a noise slice or a separate seed for the second pass must have exactly one image"
    if own_seed and not 0 <= recipe.hires.seed <= MAX_SEED:
        yield f"the seed of the second pass must be 0 to {MAX_SEED}"
    if sampling.program not in PROGRAMS:
        yield f"sampling rules `{sampling.program}` are not one of {', '.join(PROGRAMS)}"
    if sampling.sigmas and (
        len(sampling.sigmas) != recipe.steps + 1
        or not all(math.isfinite(sigma) and 0 <= sigma <= MAX_NOISE for sigma in sampling.sigmas)
        or any(here <= after for here, after in itertools.pairwise(sampling.sigmas))
    ):
        yield "the noise levels must decrease, and there must be one more noise level than steps"
    if sampling.program == "comfyui" and (sampling.half_levels or sampling.drop_penultimate or recipe.rules == 1):
        yield "ComfyUI's sampling rules cannot be combined with half precision, a dropped noise level or recipe rules 1"
    if recipe.emphasis == "comfyui" and recipe.prompt_rules:
        yield "prompts in ComfyUI's syntax cannot change during the steps or contain AND"
    if recipe.told_sizes and not sizes_told(recipe.told_sizes):
        yield f"`{recipe.told_sizes[:40]}` is not SDXL size conditioning: expected, for example, 1024x1024+0+0,832x1216"
    if recipe.rescales_velocity and not recipe.guidance_rescale:
        yield "rescaling of the velocity needs CFG rescale"


def _control_problems(recipe: Any) -> Iterator[str]:
    for use in recipe.controls:
        if not math.isfinite(use.weight) or not 0 <= use.weight <= 10:
            yield "the weight of a ControlNet must be between 0 and 10"
        if not 0 <= use.start <= use.end <= 1:
            yield "the start and end of a ControlNet must be fractions of the steps, 0 <= start <= end <= 1"
        if use.mode not in CONTROL_MODES:
            yield f"control mode `{use.mode}` is not one of {', '.join(CONTROL_MODES)}"
        if use.type not in ("", *CONTROL_TYPES):
            yield f"type of control image `{use.type}` is not one of {', '.join(CONTROL_TYPES)}"
        if use.resize_mode not in CONTROL_RESIZE_MODES:
            yield f"resize mode `{use.resize_mode}` is not one of {', '.join(CONTROL_RESIZE_MODES)}"
        if use.crops and not (recipe.start and recipe.start.only_masked):
            yield "to crop a control image, render only the masked region of an input image"


def _are_blocks(text: str) -> bool:
    try:
        return block_weights.blocks_of(text) == text
    except UsageError:
        return False


def _is_text(words: str) -> bool:
    try:
        words.encode()
    except UnicodeEncodeError:  # the text has a lone surrogate: bytes on the command line were not UTF-8
        return False
    return True


def _size_problems(recipe: Any) -> Iterator[str]:
    sizes = [(recipe.width, recipe.height)]
    if recipe.hires:
        sizes.append((recipe.hires.width, recipe.hires.height))
        yield from _hires_problems(recipe, recipe.hires)
    for width, height in sizes:
        if width < 8 or height < 8 or width % 8 or height % 8:
            yield f"{width}x{height} is not a size: both sides must be positive multiples of 8"
        elif max(width, height) > MAX_SIDE:
            yield f"{width}x{height} is too large: each side can have at most {MAX_SIDE} pixels"


def _hires_problems(recipe: Any, hires: Any) -> Iterator[str]:
    if hires.upscaler not in UPSCALERS:
        yield f"upscaler `{hires.upscaler}` is not one of {', '.join(UPSCALERS)}"
    if (hires.upscaler == "model") != (hires.model is not None):
        yield "the second pass must have an upscaler model if its upscaler is `model`, and none otherwise"
    if hires.model is not None and recipe.rules == 1:
        yield "recipe rules 1 do not support upscaler models"
    trims = ((hires.trim_width, recipe.width), (hires.trim_height, recipe.height))
    if any(cut < 0 or cut % 16 or cut >= side for cut, side in trims) or (
        any(cut for cut, _ in trims) and not hires.stretches
    ):
        yield (
            "the first pass's image can be trimmed only if it is stretched, and the trimmed width and height must be "
            "multiples of 16 that are smaller than the image"
        )
    if hires.stretches and recipe.rules == 1:
        yield "recipe rules 1 do not support stretching the first pass"
    if hires.resize not in RESIZES:
        yield f"resize filter `{hires.resize}` is not one of {', '.join(filter(None, RESIZES))}"
    if hires.resize and hires.model is None:
        yield "a resize filter needs an upscaler model, whose result it resizes"
    if hires.guidance_scale is not None and not 0 <= hires.guidance_scale <= MAX_NOISE:
        yield f"the guidance of the second pass must be 0 to {MAX_NOISE}"
    if hires.steps < 1 or not 0 < hires.strength <= 1:
        yield "the second pass needs at least one step and a strength above 0 and at most 1"


def _variation_problems(recipe: Any) -> Iterator[str]:
    if not 0 <= recipe.variation_strength <= 1:
        yield "the variation strength must be between 0 and 1"
    if not 0 <= recipe.variation_seed <= MAX_SEED:
        yield f"the variation seed must be 0 to {MAX_SEED}"
    if recipe.variation_strength and recipe.count > 1:
        yield "a recipe with a variation seed must have exactly one image"
    width, height = recipe.seed_resize_width, recipe.seed_resize_height
    if (width or height) and not 8 <= min(width, height) <= max(width, height) <= MAX_SIDE:
        yield f"a seed cannot be resized from {width}x{height}: both sides must be 8 to {MAX_SIDE} pixels"


def _number_problems(recipe: Any) -> Iterator[str]:
    if min(recipe.steps, recipe.count, recipe.batch_size, recipe.clip_skip) < 1:
        yield "steps, count, batch size and clip skip must be at least 1"
    if recipe.slots and not 2 <= recipe.slots <= MAX_SLOTS:
        yield f"slots must be 2 to {MAX_SLOTS}, or 0 for none"
    if recipe.slots and recipe.batch_size > 1:
        yield "a batch size above 1 cannot be combined with slots"
    is_in_tiles = recipe.enlarged_input or recipe.input_upscale or recipe.tiled_diffusion
    if recipe.slots and (is_in_tiles or recipe.changes_scales or recipe.details):
        yield (
            "an enlarged input image, tiles, detail passes or a LoRA whose scale changes over the steps cannot be "
            "computed in slots"
        )
    last_seed = MAX_SEED - (recipe.count - 1)  # image n has seed + n, so the last seed must not exceed the maximum
    if not 0 <= recipe.seed <= last_seed:
        yield f"seed must be 0 to {last_seed}, not {recipe.seed}; without a seed, a random one is chosen and recorded"
    yield from _variation_problems(recipe)
    if recipe.eta_seed_delta and not 0 <= recipe.seed + recipe.eta_seed_delta <= last_seed:
        yield f"seed plus eta seed delta must be 0 to {last_seed}, not {recipe.seed + recipe.eta_seed_delta}"
    loras = (*recipe.loras, *((recipe.hires and recipe.hires.loras) or ()))
    scales = [scale for use in loras for scale in (use.scale, use.text_scale)]
    if not all(math.isfinite(number) for number in (recipe.guidance_scale, recipe.guidance_rescale, *scales)):
        yield "guidance and scales must be finite numbers"
    if recipe.guidance_scale < 0 or not 0 <= recipe.guidance_rescale <= 1:
        yield "the guidance scale cannot be negative, and the CFG rescale must be between 0 and 1"
