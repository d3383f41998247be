"""Convert a record into the `parameters` text that A1111, CivitAI and other programs read."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from civman.domain.digests import Sha256, autov2
from civman.domain.file_suffixes import MODEL_SUFFIXES
from civman.domain.recipes.details import SEPARATOR, DetailPass
from civman.domain.recipes.faces import WEIGHT
from civman.domain.recipes.recipe import ControlUse, Hires, HypernetworkUse, LoraUse, Recipe, ReferenceUse, Sampling
from civman.domain.recipes.record import Record
from civman.domain.recipes.thresholding import uses_power
from civman.domain.refs import Air, VersionRef, parse_ref
from civman.pictures.parameters_text import ControlUnit, Generation, Part, SecondPass, Words, text
from civman.pictures.upscale_text import settings_of, upscaler_title


def parameters(record: Record, *, with_words: bool = True) -> str:
    """Write the `parameters` text for one image. `with_words`: include the prompts."""
    recipe = record.recipe
    hires, start = recipe.hires, recipe.start
    # if the second pass stretches the image, as A1111 before 2023 did, `Size` is the size of the second pass
    old = hires if hires and hires.stretches else None
    return text(Generation(
        prompt=_prompt(record, with_words=with_words), negative=recipe.negative_prompt if with_words else "",
        steps=recipe.steps, sampler=recipe.sampler, schedule=recipe.schedule, cfg=recipe.guidance_scale,
        seed=record.seed, width=(old or recipe).width, height=(old or recipe).height,
        clip_skip=recipe.clip_skip if recipe.clip_skip > 1 else None,
        model=_part(record, recipe.checkpoint), vae=_part(record, recipe.vae) if recipe.vae else None,
        loras=_loras(record, recipe.loras),
        controls=(
            *(_control_unit(record, use) for use in recipe.controls),
            *(_reference_unit(record, use) for use in recipe.references),
        ),
        embeddings=tuple(_part(record, use.sha256, name=use.word) for use in recipe.embeddings),
        hires=_second_pass(record, hires, with_words=with_words) if hires and not old else None,
        refiner=_part(record, recipe.refiner.checkpoint.sha256) if recipe.refiner else None,
        denoising=start.strength if start else old.strength if old else None,
        # as in A1111, there is no RNG entry for A1111's default, noise from the GPU
        rng="" if ":" in recipe.rng else recipe.rng.upper(), ensd=recipe.eta_seed_delta or None,
        others=(
            *_of_old_pass(recipe), *_of_noise(recipe), *_of_guidance(recipe), *_of_pictures(recipe),
            *_of_details(recipe), *_of_last(record),
            *_of_second_sampling(recipe), *_of_refiner(recipe),
        ),
        hypernetworks=tuple(_part(record, use.sha256) for use in recipe.hypernetworks),
        version=f"civman {record.environment.get('civman', '')}".strip(),
    ))  # fmt: skip


def _prompt(record: Record, *, with_words: bool) -> str:
    """Return the first pass's prompt with tags for its hypernetworks; only the tags if `with_words` is False."""
    return _with_networks(record, record.recipe.prompt if with_words else "", record.recipe.hypernetworks)


def _with_networks(record: Record, prompt: str, networks: Sequence[HypernetworkUse]) -> str:
    """Add tags for hypernetworks to a prompt, because A1111 reads their strengths from the tags."""
    tags = [f"<hypernet:{_part(record, use.sha256).name}:{use.strength:g}>" for use in networks]
    return " ".join([*([prompt] if prompt else []), *tags])


def _loras(record: Record, uses: Sequence[LoraUse]) -> tuple[Part, ...]:
    return tuple(
        replace(
            _part(record, use.sha256, use.scale, use.text_scale), blocks=use.blocks, keyframes=use.keyframes,
            hires_keyframes=use.hires_keyframes,
        )
        for use in uses
    )  # fmt: skip


def _second_pass(record: Record, hires: Hires, *, with_words: bool) -> SecondPass:
    """Convert the recipe's second pass.

    Its prompt is written only if its text, LoRAs or hypernetworks differ from those of the first pass.
    """
    recipe, (prompt, negative) = record.recipe, (hires.prompt, hires.negative_prompt)
    has_networks = hires.loras is not None or hires.hypernetworks is not None
    if has_networks or (with_words and prompt not in (None, recipe.prompt)):
        words = (recipe.prompt if prompt is None else prompt) if with_words else ""
        networks = recipe.hypernetworks if hires.hypernetworks is None else hires.hypernetworks
        prompt = _with_networks(record, words, networks)
    else:
        prompt = None
    return SecondPass(
        hires.width, hires.height, hires.steps, hires.strength, _upscaler(record), prompt,
        negative if with_words and negative != recipe.negative_prompt else None,
        None if hires.loras is None else _loras(record, hires.loras),
        _part(record, hires.checkpoint.sha256) if hires.checkpoint else None,
    )  # fmt: skip


def _of_second_sampling(recipe: Recipe) -> Iterator[tuple[str, str | float]]:
    """Build the keys for a second pass with its own sampler, schedule (A1111's keys) or CFG scale (Forge's key)."""
    hires = recipe.hires
    if hires is None or hires.stretches:
        return
    if hires.sampler and hires.sampler != recipe.sampler:
        yield "Hires sampler", hires.sampler
    if hires.schedule and (hires.sampler, hires.schedule) != (recipe.sampler, recipe.schedule):
        yield "Hires schedule type", hires.schedule
    if hires.guidance_scale is not None and hires.guidance_scale != recipe.guidance_scale:
        yield "Hires CFG Scale", hires.guidance_scale


def _of_refiner(recipe: Recipe) -> Iterator[tuple[str, str | float]]:
    """Build A1111's keys and values for the refiner: when it takes over, and in which passes it is used."""
    refiner = recipe.refiner
    if refiner is None:
        return
    yield "Refiner switch at", refiner.switch_at
    if refiner.by_steps:
        yield "Refiner switch by sampling steps", "True"
    if recipe.hires and refiner.passes != "second":
        yield "Hires refiner", {"first": "first pass", "both": "both passes"}[refiner.passes]


def _of_old_pass(recipe: Recipe) -> Iterator[tuple[str, str | float]]:
    """Build the keys with which A1111 before 2023 describes a second pass."""
    if recipe.hires and recipe.hires.stretches:
        yield "First pass size", f"{recipe.width}x{recipe.height}"
        if recipe.hires.steps != recipe.steps:
            yield "Hires steps", recipe.hires.steps


def _of_last(record: Record) -> Iterator[tuple[str, str | float]]:
    """Build A1111's keys for face restoration, redraws in tiles, and the enlargement of the finished image."""
    if record.recipe.faces is not None:
        yield "Face restoration", {"codeformer": "CodeFormer", "gfpgan": "GFPGAN"}[record.recipe.faces.method]
        if record.recipe.faces.weight != WEIGHT:
            yield "CodeFormer weight", record.recipe.faces.weight
    tiled = record.recipe.tiled
    if tiled is not None:
        name = _stem(record.name_of(tiled.model).name) if tiled.model else tiled.method.capitalize()
        yield "SD upscale overlap", tiled.overlap
        yield "SD upscale upscaler", name
        if tiled.batch > 1:
            yield "Batch size", tiled.batch
    ultimate = record.recipe.ultimate
    if ultimate is not None:
        name = _stem(record.name_of(ultimate.model).name) if ultimate.model else ultimate.method.capitalize()
        yield "Ultimate SD upscale upscaler", name
        yield "Ultimate SD upscale tile_width", ultimate.tile_width
        yield "Ultimate SD upscale tile_height", ultimate.tile_height
        yield "Ultimate SD upscale mask_blur", ultimate.blur
        yield "Ultimate SD upscale padding", ultimate.padding
    tiles, larger = record.recipe.tiled_diffusion, record.recipe.input_upscale
    # use the entries of the extension's first versions, which CivitAI's reader does not split at commas
    if tiles is not None:
        yield "Tiled Diffusion method", tiles.method
        yield "Tiled Diffusion tile width", tiles.tile_width
        yield "Tiled Diffusion tile height", tiles.tile_height
        yield "Tiled Diffusion overlap", tiles.overlap
    if larger is not None:
        name = _stem(record.name_of(larger.model).name) if larger.model else larger.method.capitalize()
        yield "Tiled Diffusion upscaler", name
    made = record.recipe.upscale
    if made is not None:
        name = record.name_of(made.model).name if made.model else made.method.capitalize()
        size = None if record.recipe.pastes_region else record.recipe.drawn_size
        yield from settings_of(made, upscaler_title(name, made), size).items()


_CONTROL_MODES = {
    "balanced": "Balanced", "prompt": "My prompt is more important", "control": "ControlNet is more important",
}  # fmt: skip
_CONTROL_TYPES = {
    "openpose": "OpenPose", "depth": "Depth", "softedge": "Soft Edge", "hardedge": "Hard Edge", "normal": "Normal Map",
    "segment": "Segmentation", "tile": "Tile", "inpaint": "Inpaint", "": "",
}  # fmt: skip
_CONTROL_RESIZES = {
    "just resize": "Just Resize", "crop and resize": "Crop and Resize", "resize and fill": "Resize and Fill",
    "resize and pad": "Resize and Fill",
}  # fmt: skip
"""Maps a recipe's resize modes for control images to the names in A1111's ControlNet extension."""


def _reference_unit(record: Record, use: ReferenceUse) -> ControlUnit:
    """Build the ControlNet unit of an IP-Adapter; the unit's module selects the image encoder.

    The crop of the reference picture is left out, because units have no field for it.
    """
    return ControlUnit(
        _part(record, use.sha256), use.weight, use.start, use.end, "Balanced", "Crop and Resize",
        module="ip-adapter-auto",
    )  # fmt: skip


def _control_unit(record: Record, use: ControlUse) -> ControlUnit:
    return ControlUnit(
        _part(record, use.sha256), use.weight, use.start, use.end, _CONTROL_MODES[use.mode],
        _CONTROL_RESIZES[use.resize_mode], _CONTROL_TYPES[use.type],
    )  # fmt: skip


def _of_details(recipe: Recipe) -> Iterator[tuple[str, str | float]]:
    """Build ADetailer's keys for detail passes over faces. ADetailer has no keys for passes over a mask or a box."""
    faces = [made for made in recipe.details if made.region == "faces"]
    for number, made in enumerate(faces, 1):
        end = {1: "", 2: " 2nd", 3: " 3rd"}.get(number, f" {number}th")
        yield from ((f"ADetailer {key}{end}", value) for key, value in _of_detail(recipe, made))


def _of_detail(recipe: Recipe, made: DetailPass) -> Iterator[tuple[str, str | float]]:
    yield "model", "retinaface"
    for key, texts in (("prompt", made.prompts), ("negative prompt", made.negatives)):
        if texts:
            yield key, Words(f" {SEPARATOR} ".join(texts))
    yield from ((key, offset) for key, offset in (("x offset", made.x_offset), ("y offset", made.y_offset)) if offset)
    yield "dilate erode", made.dilate
    yield "mask blur", made.mask_blur
    yield "denoising strength", made.strength
    yield "inpaint only masked", str(made.only_masked)
    if made.only_masked:
        yield "inpaint padding", made.padding
    separate: tuple[tuple[str, bool, tuple[tuple[str, str | float], ...]], ...] = (
        ("use inpaint width height", (made.width, made.height) != (recipe.width, recipe.height),
         (("inpaint width", made.width), ("inpaint height", made.height))),
        ("use separate steps", made.steps != recipe.steps, (("steps", made.steps),)),
        ("use separate CFG scale", made.guidance_scale != recipe.guidance_scale,
         (("CFG scale", made.guidance_scale),)),
        ("use separate sampler", (made.sampler, made.schedule) != (recipe.sampler, recipe.schedule),
         (("sampler", made.sampler), ("scheduler", made.schedule))),
        ("use separate noise multiplier", made.noise_multiplier != 1, (("noise multiplier", made.noise_multiplier),)),
    )  # fmt: skip
    for key, is_own, values in separate:
        if is_own:
            yield key, "True"
            yield from values


def _upscaler(record: Record) -> str:
    """The upscaler's name as A1111 writes it; for an upscaler model, the name of its file."""
    hires = record.recipe.hires
    assert hires is not None
    return _stem(record.name_of(hires.model).name) if hires.model else hires.upscaler


def _of_noise(recipe: Recipe) -> Iterator[tuple[str, str | float]]:
    """Build A1111's keys and values for sampler, noise and prompt settings that differ from the defaults."""
    made, usual = recipe.sampling, Sampling()
    for key, name in (
        ("Eta", "eta"), ("Eta DDIM", "eta_ddim"), ("Sigma churn", "s_churn"), ("Sigma tmin", "s_tmin"),
        ("Sigma tmax", "s_tmax"), ("Sigma noise", "noise_scale"),
    ):  # fmt: skip
        if getattr(made, name) != getattr(usual, name):
            yield key, getattr(made, name)
    if recipe.variation_strength:
        yield "Variation seed", recipe.variation_seed
        yield "Variation seed strength", recipe.variation_strength
    if recipe.seed_resize_width:
        yield "Seed resize from", f"{recipe.seed_resize_width}x{recipe.seed_resize_height}"
    if recipe.prompt_rules in ("a1111-1.0", "a1111-1.3"):
        yield "Old prompt editing timelines", "True"
    if made.drop_penultimate:
        yield "Discard penultimate sigma", "True"
    if made.half_levels:
        yield "Downcast alphas_cumprod", "True"
    if recipe.emphasis != "original":
        yield "Emphasis", recipe.emphasis.capitalize()
    if recipe.fit_negative:
        yield "Pad conds v0", "True"
    if recipe.pad_prompts:
        yield "Pad conds", "True"


def _of_guidance(recipe: Recipe) -> Iterator[tuple[str, str | float]]:
    """Build the keys and values of A1111 and its extensions for guidance and attention settings."""
    if recipe.guidance_rescale:
        yield "CFG Rescale phi", recipe.guidance_rescale
    if recipe.token_merging:
        yield "Token merging ratio", recipe.token_merging
    if recipe.hires and recipe.hires.token_merging:
        yield "Token merging ratio hr", recipe.hires.token_merging
    if recipe.skip_negative_below:
        yield "NGMS", recipe.skip_negative_below
        if recipe.skip_negative_always:
            yield "NGMS all steps", "True"
    if recipe.skip_early_guidance:
        yield "Skip Early CFG", recipe.skip_early_guidance
    if (found := recipe.thresholding) is not None:
        yield "Dynamic thresholding enabled", "True"
        yield "Mimic scale", found.mimic_scale
        yield "Separate Feature Channels", str(found.per_channel)
        yield "Scaling Startpoint", "MEAN" if found.starts_at_mean else "ZERO"
        yield "Variability Measure", "STD" if found.by_deviation else "AD"
        yield "Interpolate Phi", found.phi
        yield "Threshold percentile", found.percentile
        for name, mode, least in (
            ("Mimic", found.mimic_mode, found.mimic_minimum), ("CFG", found.cfg_mode, found.cfg_minimum),
        ):  # fmt: skip
            if mode != "Constant" or least:
                yield f"{name} mode", mode
                yield f"{name} scale minimum", least
        if uses_power(found):
            yield "Scheduler value", found.power


def _of_pictures(recipe: Recipe) -> Iterator[tuple[str, str | float]]:
    """Build A1111's keys and values for an input image and a mask."""
    start = recipe.start
    if start is None:
        return
    if start.mask_sha256 is not None:
        if start.mask_blur:
            yield "Mask blur", start.mask_blur
        if start.masked_content != "original":
            yield "Masked content", start.masked_content
        if start.only_masked:
            yield "Inpaint area", "Only masked"
            yield "Masked area padding", start.padding
    if start.conditioning_weight != 1:
        yield "Conditional mask weight", start.conditioning_weight
    if start.noise_multiplier != 1:
        yield "Noise multiplier", start.noise_multiplier


def _part(
    record: Record,
    sha256: Sha256,
    scale: float = 1.0,
    text_scale: float | None = None,
    name: str | None = None,
) -> Part:
    called, listed = record.name_of(sha256), record.recipe.file(sha256)
    air = listed.air if listed else None
    return Part(
        name or _stem(called.name), autov2(sha256), called.autov3 or None,
        _version_id(air), air, scale, text_scale,
    )  # fmt: skip


def _stem(name: str) -> str:
    """Return the name of a file without its extension, as A1111 shows it."""
    return next((name.removesuffix(end) for end in MODEL_SUFFIXES if name.endswith(end)), name)


def _version_id(air: str | None) -> int | None:
    parsed = parse_ref(air) if air else None
    target = parsed.target if isinstance(parsed, Air) else None
    return int(target.version_id) if isinstance(target, VersionRef) else None
