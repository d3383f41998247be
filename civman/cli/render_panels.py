"""The panels of `civman render --help`, and the options listed in each."""

from typing import Final

PANELS: Final[dict[str, tuple[str, ...]]] = {
    "Prompt": (
        "negative", "join_prompt", "join_negative", "prompts", "style", "styles", "dynamic", "wildcards",
        "trigger", "preset",
    ),
    "Models": (
        "file", "lora", "embedding", "hypernetwork", "vae", "part", "variant", "require", "force", "allow_partial",
    ),
    "ControlNet": ("control", "control_map", "control_mode", "control_type", "control_resize"),
    "Reference pictures": ("reference", "reference_crop", "reference_size"),
    "Images": (
        "picture_size", "seed", "count", "batch_size", "slots", "exact", "grid", "output", "dry_run", "open_",
        "preview",
    ),
    "Sampling": (
        "sampler", "schedule", "steps", "sigmas", "cfg", "cfg_rescale", "cfg_rescale_v", "clip_skip", "shift",
        "guidance",
    ),
    "Second pass": (
        "hires", "upscaler", "hires_steps", "hires_strength", "hires_token_merging", "hires_trim", "hires_resize",
        "hires_seed", "hires_cfg", "hires_sampler", "hires_schedule", "hires_prompt", "hires_negative", "hires_lora",
        "hires_checkpoint",
    ),
    "Refiner": ("refiner", "refiner_at", "refiner_by_steps", "refiner_passes"),
    "Finished image": (
        "face_restoration", "detail", "detail_prompt", "detail_negative", "detail_strength", "upscale",
    ),
    "Input image and mask": (
        "init", "strength", "resize_mode", "noise_multiplier", "mask", "mask_blur", "mask_content",
        "mask_channel", "grow_mask", "only_masked",
        "padding", "conditional_mask_weight", "tiled_upscale", "tile_overlap", "tile_batch",
        "ultimate_upscale", "init_upscale",
    ),
    "Noise": (
        "rng", "step_rng", "noise_slice", "ensd", "eta", "eta_ddim", "s_churn", "s_tmin", "s_tmax", "s_noise",
        "variation_seed", "variation_strength", "seed_resize",
    ),
    "Fine control": (
        "thresholding", "ngms", "ngms_all", "skip_early_cfg", "token_merging", "drop_penultimate", "half_levels",
        "emphasis", "prompt_rules", "fit_negative", "pad_prompts", "odd_sizes", "prediction", "config",
        "sampling_rules", "freeu", "tiled_diffusion", "told_sizes",
    ),
    "Files": ("format", "quality", "no_metadata", "strip_prompt"),
    "Computing": ("device", "precision", "fast", "compile_", "low_vram", "threads", "on", "resume", "here"),
}  # fmt: skip
"""Maps the title of each panel to parameters of `civman render`. Their order here does not matter: the help lists them
in the command's order.
"""
