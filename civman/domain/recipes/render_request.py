"""What a user asks to render: a request, which may leave values open."""

from dataclasses import dataclass

from civman.domain.recipes.control import ControlRequest
from civman.domain.recipes.details import DetailRequest
from civman.domain.recipes.enlargement import UpscaleRequest
from civman.domain.recipes.reference import ReferenceRequest
from civman.domain.recipes.tiled import TiledRequest
from civman.domain.recipes.ultimate import UltimateRequest


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """A requested adapter: a ref in any form, and its scales for the UNet and the text encoders."""

    ref: str
    scale: float = 1.0
    text_scale: float | None = None
    """The scale for the text encoders; None means the same as `scale`."""
    blocks: str = ""
    """Block weights: a preset, or numbers separated by commas; "" if all blocks have the same scale."""
    keyframes: str = ""
    """How the scale for the UNet changes over the steps, such as "0@0,1@0.5"; "" if it does not change."""
    hires_keyframes: str = ""
    """The scale for the UNet in the second pass: a number or keyframes; "" means as in the first pass."""


@dataclass(frozen=True, slots=True)
class HiresRequest:
    """A requested second pass at a larger size.

    None means the default: twice the width and height, as many steps as the first pass, strength 0.7. If only one side
    is given, or the other side is 0, the aspect ratio of the first pass is kept.
    """

    width: int | None = None
    height: int | None = None
    scale: float | None = None
    steps: int | None = None
    strength: float | None = None
    upscaler: str = "latent"
    token_merging: float | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    resize: str | None = None
    trim: str | None = None
    """How many pixels to crop from the first pass's image before it is stretched to the second size, such as "0x64".

    None: the image is enlarged to cover the second size and then cropped.
    """
    prompt: str | None = None
    """The prompt of the second pass; None means the first pass's."""
    negative_prompt: str | None = None
    """The negative prompt of the second pass; None means the first pass's."""
    loras: tuple[LoraRequest, ...] | None = None
    """The adapters that replace those of the first pass; those in tags of the second pass's prompt are added."""
    hypernetworks: tuple[str, ...] | None = None
    """The hypernetworks that replace those of the first pass; those in tags of the second pass's prompt are added."""
    checkpoint: str | None = None
    """The ref of the second pass's checkpoint; None means the first pass's checkpoint."""


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """What the user asked for. None means the default for the model; refs are as typed."""

    checkpoint: str
    prompt: str = ""
    negative_prompt: str = ""
    typed_prompt: str | None = None
    """The prompt before styles and wildcards were expanded; None if `prompt` is as typed."""
    typed_negative: str | None = None
    """The negative prompt before styles and wildcards were expanded; None if `negative_prompt` is as typed."""
    loras: tuple[LoraRequest, ...] = ()
    embeddings: tuple[str, ...] = ()
    called: tuple[tuple[str, str], ...] = ()
    """For each embedding in the prompts: the word that stands for it, and the ref of its file."""
    hypernetworks: tuple[str, ...] = ()
    """Refs of hypernetworks, each followed by a colon and its strength if that is not 1."""
    controls: tuple[ControlRequest, ...] = ()
    references: tuple[ReferenceRequest, ...] = ()
    vae: str | None = None
    sampler: str | None = None
    schedule: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    width: int | None = None
    height: int | None = None
    clip_skip: int | None = None
    seed: int | None = None
    count: int = 1
    batch_size: int | None = None
    slots: int | None = None
    rng: str | None = None
    eta_seed_delta: int | None = None
    init_image: str | None = None
    mask_image: str | None = None
    strength: float | None = None
    mask_blur: int | None = None
    resize_mode: str | None = None
    masked_content: str | None = None
    only_masked: bool | None = None
    padding: int | None = None
    mask_channel: str | None = None
    grow_mask: int | None = None
    conditioning_weight: float | None = None
    noise_multiplier: float | None = None
    hires: HiresRequest | None = None
    refiner: str | None = None
    """The ref of the checkpoint that takes over during the steps of a pass; None if there is none."""
    refiner_at: float | None = None
    """The fraction of the denoising after which the refiner takes over; None means 0.8."""
    refiner_by_steps: bool | None = None
    """Whether `refiner_at` is a fraction of the steps instead of the training timesteps; None means False."""
    refiner_passes: str | None = None
    """The passes in which the refiner takes over: "first", "second" or "both"; None means "second"."""
    eta: float | None = None
    eta_ddim: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    drop_penultimate: bool | None = None
    half_levels: bool | None = None
    odd_sizes: str | None = None
    rules: int | None = None
    prediction: str | None = None
    is_zero_snr: bool | None = None
    precision: str | None = None
    pad_prompts: bool | None = None
    prompt_rules: str | None = None
    variation_seed: int | None = None
    variation_strength: float | None = None
    seed_resize: str | None = None
    """The size at which noise is generated and then pasted into noise of the image's size, such as "512x768"."""
    emphasis: str | None = None
    fit_negative: bool | None = None
    token_merging: float | None = None
    thresholding: str | None = None
    """The settings of dynamic thresholding, in the form that `thresholding.thresholding_of` parses."""
    skip_negative_below: float | None = None
    skip_negative_always: bool | None = None
    skip_early_guidance: float | None = None
    sampling_rules: str | None = None
    sigmas: str | None = None
    """The noise levels of the steps as numbers separated by commas."""
    step_rng: str | None = None
    noise_slice: str | None = None
    prompt_parts: tuple[str, ...] = ()
    """Additional texts for the prompt, in the form that `prompt_parts.part_of` parses."""
    negative_parts: tuple[str, ...] = ()
    """Additional texts for the negative prompt, in the form that `prompt_parts.part_of` parses."""
    freeu: str | None = None
    """The settings of FreeU, in the form that `freeu_settings.freeu_of` parses."""
    rescales_velocity: bool | None = None
    told_sizes: str | None = None
    parts: tuple[str, ...] = ()
    """Text encoders that are not in the checkpoint, as "ROLE=REF", such as "t5=t5xxl_fp16"."""
    variant: str | None = None
    """The checkpoint's variant within its family, such as "kontext"; None: the variant that its tensors show."""
    shift: float | None = None
    """The shift of a flow-matching model's noise levels; None means the model's default."""
    guidance: float | None = None
    """The embedded guidance scale of a flow-matching model; None means the model's default."""
    config: str | None = None
    """The checkpoint's model config, for values that its tensor shapes do not show; None if they show everything.

    Either the path of a folder with a `<component>/config.json` for each component, as diffusers writes it, or JSON in
    the form of `Recipe.config`.
    """
    face_restoration: str | None = None
    """How to restore faces: "codeformer", "codeformer:WEIGHT", "gfpgan", or the ref of a face restoration model."""
    tiled_upscale: TiledRequest | None = None
    """How to enlarge the input image and redraw it in tiles."""
    ultimate_upscale: UltimateRequest | None = None
    """How to enlarge the input image and redraw it area by area."""
    init_upscale: UpscaleRequest | None = None
    """How to enlarge the input image before image-to-image rendering."""
    tiled_diffusion: str | None = None
    """The settings of Tiled Diffusion, in the form that `tiled_diffusion.tiled_diffusion_of` parses."""
    details: tuple[DetailRequest, ...] = ()
    """The regions of the finished image to redraw, in the order of the passes."""
    upscale: UpscaleRequest | None = None
    """How to enlarge the finished image."""
    file: str | None = None
    """The file of the checkpoint's version: a file id, a name, or words such as "fp16 pruned".

    None: the default file.
    """
