"""A render request, and the recipe made from it, which specifies everything but the machine and library versions.

A `RenderRequest` may leave values open; a `Recipe` may not: it names every file by SHA-256 and contains every number.
Its canonical JSON (sorted keys, no spaces, UTF-8, with the schema number) is stored in images, and the recipe's own
SHA-256 is the digest of that text.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.adapter_uses import EmbeddingUse as EmbeddingUse
from civman.domain.recipes.adapter_uses import HypernetworkUse as HypernetworkUse
from civman.domain.recipes.adapter_uses import LoraUse as LoraUse
from civman.domain.recipes.checkpoint_use import CheckpointUse as CheckpointUse
from civman.domain.recipes.control import ControlUse as ControlUse
from civman.domain.recipes.details import DetailPass, detail_problems
from civman.domain.recipes.enlargement import Enlargement, enlargement_problems
from civman.domain.recipes.faces import FaceRestoration, face_problems
from civman.domain.recipes.flow import Flow as Flow
from civman.domain.recipes.flow import PartUse as PartUse
from civman.domain.recipes.freeu_settings import FreeU as FreeU
from civman.domain.recipes.hires import Hires as Hires
from civman.domain.recipes.hires import own_value_problems
from civman.domain.recipes.prompt_parts import PromptPart as PromptPart
from civman.domain.recipes.recipe_json import canonical, read_json, read_object
from civman.domain.recipes.recipe_limits import problems
from civman.domain.recipes.reference import EditImage as EditImage
from civman.domain.recipes.reference import ReferenceUse as ReferenceUse
from civman.domain.recipes.refiner import Refiner as Refiner
from civman.domain.recipes.refiner import further_checkpoint_problems
from civman.domain.recipes.render_request import HiresRequest as HiresRequest
from civman.domain.recipes.render_request import LoraRequest as LoraRequest
from civman.domain.recipes.render_request import RenderRequest as RenderRequest
from civman.domain.recipes.sampling import SAMPLING as SAMPLING
from civman.domain.recipes.sampling import Sampling as Sampling
from civman.domain.recipes.thresholding import Thresholding as Thresholding
from civman.domain.recipes.tiled import TiledRedraw, tiled_problems
from civman.domain.recipes.tiled_diffusion import TiledDiffusion, tiled_diffusion_problems
from civman.domain.recipes.ultimate import UltimateUpscale, ultimate_problems
from civman.errors import Cause, UsageError

SCHEMA: Final = 21
"""The version of the recipe's JSON format.

Schema 1 had no `files` and `sampling`, and `config` only if it was not empty. Schemas 3 to 21 added the entries in
`_ADDED`; images of schema 2 follow version 1 of the rules (see `RULES`). A recipe that needs no entry of a schema is
still written in the schema before it, so that its digest stays the same.
"""
RULES: Final = 3
"""The version of the rendering rules for new recipes.

Version 1 renders as civman did before schema 3: its SDE samplers use k-diffusion's noise with the opposite sign, and
its DDIM, masks and second pass differ from A1111's. Version 2 renders as A1111 does, except for two details that
version 3 corrects: the noise levels of zero terminal SNR are computed in single precision, and SDXL's second pass is
conditioned on the size before the crop.
"""
_ADDED: Final[dict[int, dict[str, tuple[str, ...]]]] = {
    3: {
        "": ("rules", "odd_sizes"),
        "start": (
            "resize_mode", "masked_content", "only_masked", "padding", "conditioning_weight", "noise_multiplier",
        ),
        "sampling": ("eta_ddim", "s_churn", "s_tmin", "s_tmax"),
    },
    4: {
        "": ("prompt_rules", "variation_seed", "variation_strength", "seed_resize_width", "seed_resize_height"),
        "hires": ("model",),
    },
    5: {
        "loras": ("blocks",),
        "": (
            "token_merging", "thresholding", "skip_negative_below", "skip_negative_always", "skip_early_guidance",
            "hypernetworks", "emphasis", "fit_negative",
        ),
        "hires": ("token_merging", "trim_width", "trim_height", "stretches"),
        "sampling": ("drop_penultimate", "half_levels"),
    },
    6: {
        "": ("step_rng", "noise_slice", "prompt_parts", "negative_parts", "freeu", "rescales_velocity", "upscale",
             "told_sizes", "controls"),
        "hires": ("seed", "guidance_scale", "sampler", "schedule", "resize"),
        "sampling": ("program", "sigmas"),
    },
    7: {"": ("parts", "flow", "variant")},
    8: {"": ("faces",)},
    9: {"": ("tiled",)},
    10: {"": (), "loras": ("keyframes", "hires_keyframes")},
    11: {"": (), "controls": ("type",)},
    12: {"": ("ultimate",)},
    13: {"": ("slots",)},
    14: {"": ("references",)},
    15: {"": ("tiled_diffusion", "input_upscale")},
    16: {"": ("details",)},
    17: {"": (), "controls": ("pools",)},
    18: {"": ("refiner",), "hires": ("prompt", "negative_prompt", "loras", "hypernetworks", "checkpoint")},
    19: {"": (), "start": ("mask_channel", "grow_mask")},
    20: {"": (), "controls": ("crops",)},
    21: {"": ("edit_images",)},
}  # fmt: skip
"""For each schema: the entries that it added, grouped by the part of the recipe; "" is the recipe itself."""


@dataclass(frozen=True, slots=True)
class StartImage:
    """The image that image-to-image rendering starts from, by the SHA-256 of its file.

    White areas of the mask are inpainted.
    """

    sha256: Sha256
    strength: float
    mask_sha256: Sha256 | None = None
    mask_blur: int = 4
    """The blur radius of the mask's edge in pixels."""
    resize_mode: str = "just resize"
    """How the image is resized to the size of the rendering.

    One of `recipe_limits.RESIZE_MODES` or `COMFYUI_RESIZES`; the latter prepare image and mask by ComfyUI's rules.
    """
    masked_content: str = "original"
    """The initial content of the masked area; one of `recipe_limits.MASKED_CONTENTS`."""
    only_masked: bool = False
    """Whether only the masked area and its surroundings are rendered, at the rendering's full size, and then pasted
    back.
    """
    padding: int = 32
    """With `only_masked`: the width in pixels of the surroundings that are rendered with the masked area."""
    conditioning_weight: float = 1.0
    """How much of the masked area is hidden from an inpainting checkpoint: 1 hides it completely, 0 not at all."""
    noise_multiplier: float = 1.0
    """The factor for the noise that is added to the image."""
    mask_channel: str = ""
    """The channel of the mask's file that is used as the mask: "red", "green", "blue" or "alpha" (inverted); "" means
    its grey values.
    """
    grow_mask: int | None = None
    """By how many pixels ComfyUI's "VAE Encode (for Inpainting)" widens the mask; None: that node is not used."""

    def pastes_region(self, rules: int, *, is_redrawn: bool) -> bool:
        """Whether only a region is redrawn and pasted into this image. `is_redrawn`: a second pass or tiles follow."""
        return self.only_masked and rules > 1 and not is_redrawn


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """Where a file of a recipe can be downloaded again.

    `air`: its AI resource name on CivitAI with model and version, None if it is not from CivitAI. `file_id`: CivitAI's
    id of the file within the version. Both are only hints: a downloaded file is used only if its digest matches.
    """

    sha256: Sha256
    size_bytes: int
    air: str | None = None
    file_id: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines `count` images (seeds `seed`, `seed`+1, …), except the machine and library versions.

    `batch_size` is included because images computed together differ in the last bit from images computed alone;
    `precision`, because half precision gives a different image. Sizes are in pixels, multiples of 8.

    Raises: UsageError (`bad-recipe`): a value that cannot be rendered.
    """

    checkpoint: Sha256
    prompt: str
    negative_prompt: str
    sampler: str
    schedule: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    seed: int
    clip_skip: int
    prediction: str
    is_zero_snr: bool
    precision: str
    guidance_rescale: float = 0.0
    count: int = 1
    batch_size: int = 1
    rng: str = "cpu"
    eta_seed_delta: int = 0
    pad_prompts: bool = False
    rounding: str = "nearest"
    """How values from 0 to 1 become 0 to 255: rounded to "nearest", or "down" as in AUTOMATIC1111's web UI."""
    vae: Sha256 | None = None
    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[EmbeddingUse, ...] = ()
    start: StartImage | None = None
    hires: Hires | None = None
    config: str = ""
    """The checkpoint's model config, if it was given separately: JSON that maps each component to {option: value}."""
    files: tuple[RecipeFile, ...] = ()
    """One entry for each model file in the recipe, by digest; empty in recipes of schema 1."""
    sampling: Sampling = SAMPLING
    rules: int = RULES
    """The version of the rendering rules, see `RULES`.

    Recipes of earlier schemas keep the version they were made with.
    """
    odd_sizes: str = "forge"
    """How the UNet upscales at sizes that are not multiples of 64.

    "forge" upscales each level to the size of its skip connection, as Forge, ComfyUI and diffusers do; "a1111" doubles
    each level and then resizes it to that size, as A1111 does.
    """
    prompt_rules: str = ""
    """The rules for prompts with editing or `AND` (`recipe_limits.PROMPT_RULES`); "" if the prompts have neither."""
    variation_seed: int = 0
    variation_strength: float = 0.0
    """How much of the noise of `seed` is replaced with that of `variation_seed`: 0 none of it, 1 all of it."""
    seed_resize_width: int = 0
    seed_resize_height: int = 0
    """The size in pixels at which noise is generated and then pasted into noise of the image's size; 0 means that size.
    """
    token_merging: float = 0.0
    """The fraction of tokens that are merged before self-attention at full resolution; 0: none."""
    thresholding: Thresholding | None = None
    skip_negative_below: float = 0.0
    """The noise level below which every second evaluation is unguided; 0: all are guided."""
    skip_negative_always: bool = False
    """Whether every evaluation below the noise level `skip_negative_below` is unguided, not only every second one."""
    emphasis: str = "original"
    """How weights in brackets act: one of `recipe_limits.EMPHASIS`."""
    fit_negative: bool = False
    """Whether the negative prompt is cut or padded to the prompt's length.

    A1111 before 1.6 did this with DDIM, PLMS and UniPC.
    """
    hypernetworks: tuple[HypernetworkUse, ...] = ()
    """The hypernetworks in the order in which they are applied."""
    skip_early_guidance: float = 0.0
    """The fraction of the evaluations, counted from the first one, that are unguided."""
    step_rng: str = ""
    """The random generator for the noise that is added during the steps; "" means the initial noise's generator."""
    noise_slice: str = ""
    """If several images share one noise tensor: which slice of it this image uses, such as "2/4"; else ""."""
    prompt_parts: tuple[PromptPart, ...] = ()
    negative_parts: tuple[PromptPart, ...] = ()
    freeu: FreeU | None = None
    told_sizes: str = ""
    """The sizes for SDXL's size conditioning, such as "1024x1024+0+0,832x1216"; "" means the image's own size.

    The text contains the original size, the left and top crop, and the target size, as in SDXL's training.
    """
    rescales_velocity: bool = False
    """Whether `guidance_rescale` is applied to the velocity (v), whatever the model predicts, as ComfyUI does."""
    parts: tuple[PartUse, ...] = ()
    """The text encoders that are not in the checkpoint."""
    flow: Flow | None = None
    """The noise levels of a flow-matching model; None for all other models."""
    variant: str = ""
    """The checkpoint's variant within its family, such as "kontext"; "" if its tensors show the variant."""
    upscale: Enlargement | None = None
    """How the finished image is enlarged."""
    controls: tuple[ControlUse, ...] = ()
    """The ControlNets that guide the image, each with its control image."""
    faces: FaceRestoration | None = None
    """How faces in the finished image are restored; this precedes `upscale`."""
    tiled: TiledRedraw | None = None
    """How the input image is enlarged and redrawn in tiles; each tile has the size `width` x `height`."""
    ultimate: UltimateUpscale | None = None
    """How the input image is enlarged to `width` x `height` and redrawn area by area (Ultimate SD upscale)."""
    slots: int = 0
    """The fixed number of images for which the UNet is called at once; 0: as many as the batch contains.

    An image depends on this number but not on the other images: an image that is rendered alone is computed together
    with copies of itself.
    """
    references: tuple[ReferenceUse, ...] = ()
    """The reference images, each with the IP-Adapter that reads it."""
    tiled_diffusion: TiledDiffusion | None = None
    """How the UNet's predictions in the first pass are averaged over tiles of the latents."""
    input_upscale: Enlargement | None = None
    """How the input image is enlarged before it is resized to `width` x `height`."""
    refiner: Refiner | None = None
    """The checkpoint that takes over in the middle of a pass."""

    details: tuple[DetailPass, ...] = ()
    """The detail passes over the finished image, which follow `faces` and precede `upscale`."""
    edit_images: tuple[EditImage, ...] = ()
    """The reference images that the model itself reads, in order, as additional tokens of its input."""

    def __post_init__(self) -> None:
        finishing = enlargement_problems(self.upscale) if self.upscale is not None else ()
        faces = face_problems(self.faces) if self.faces is not None else ()
        tiled = tiled_problems(self) if self.tiled is not None else ()
        ultimate = ultimate_problems(self) if self.ultimate is not None else ()
        own = own_value_problems(self) if self.hires is not None else ()
        found = (*problems(self), *own, *finishing, *faces, *tiled, *ultimate, *self._tile_problems(),
                 *detail_problems(self), *further_checkpoint_problems(self))  # fmt: skip
        for problem in found:
            raise UsageError(f"the recipe cannot be rendered: {problem}", code=Cause.BAD_RECIPE)

    def to_json(self) -> str:
        """Serialise to the canonical JSON text; equal recipes have equal texts."""
        value, schema = asdict(self), SCHEMA
        while schema in _ADDED and (schema != 4 or ":" not in self.rng):
            earlier = _without_additions(value, schema)
            if canonical(_with_additions(earlier, schema)) != canonical(value):
                break
            value, schema = earlier, schema - 1
        return canonical({"schema": schema, **value})

    @property
    def uses_negative(self) -> bool:
        """Whether the negative prompt affects the image: with a guidance of 1 and a single prompt it cancels out."""
        if self.prompt_rules:
            return True
        if self.rules == 1:
            return self.guidance_scale > 1
        second = (self.hires.guidance_scale, self.hires.sampler) if self.hires else (None, "")
        is_guided = self.guidance_scale != 1 or second[0] not in (None, 1)
        return is_guided or any(name.endswith("CFG++") for name in (self.sampler, second[1]))

    @property
    def at_a_time(self) -> int:
        """The number of images for which the UNet is called at once."""
        return self.slots or self.batch_size

    @property
    def sha256(self) -> Sha256:
        """The SHA-256 of the canonical JSON text in UTF-8."""
        return Sha256(hashlib.sha256(self.to_json().encode()).hexdigest())

    @property
    def digests(self) -> dict[str, tuple[Sha256, ...]]:
        """The digests of the model files by role ("checkpoint", "vae", "lora" …), each once per role."""
        second, refiner = self.hires and self.hires.checkpoint, self.refiner and self.refiner.checkpoint
        loras = (*self.loras, *self._second_loras)
        networks = (*self.hypernetworks, *((self.hires and self.hires.hypernetworks) or ()))
        found = {
            "checkpoint": (self.checkpoint, *(other.sha256 for other in (second, refiner) if other)),
            "vae": (self.vae,) if self.vae else (),
            "lora": tuple(use.sha256 for use in loras), "embedding": tuple(use.sha256 for use in self.embeddings),
            "hypernetwork": tuple(use.sha256 for use in networks),
            "part": tuple(use.sha256 for use in self.parts),
            "controlnet": tuple(use.sha256 for use in self.controls),
            "ip-adapter": tuple(use.sha256 for use in self.references),
            "clip-vision": tuple(use.encoder for use in self.references),
            "face-restorer": (self.faces.model,) if self.faces else (),
            "face-detector": (
                *((self.faces.detector,) if self.faces else ()),
                *(made.detector for made in self.details if made.detector),
            ),
            "face-parser": (self.faces.parser,) if self.faces else (),
            "upscaler": tuple(
                made.model for made in (self.hires, self.enlarged_input, self.input_upscale, self.upscale)
                if made and made.model
            ),
        }  # fmt: skip
        return {role: tuple(dict.fromkeys(digests)) for role, digests in found.items()}

    @property
    def changes_scales(self) -> bool:
        """Whether the scale of a LoRA changes between the steps or the passes."""
        return any(use.keyframes or use.hires_keyframes for use in (*self.loras, *self._second_loras))

    @property
    def changes_model(self) -> bool:
        """Whether the passes use different checkpoints, adapters or hypernetworks, or a refiner takes over a pass."""
        own = (self.hires.loras, self.hires.hypernetworks, self.hires.checkpoint) if self.hires else ()
        return self.refiner is not None or any(each is not None for each in own)

    @property
    def _second_loras(self) -> tuple[LoraUse, ...]:
        return (self.hires.loras if self.hires else None) or ()

    def _tile_problems(self) -> Iterator[str]:
        if self.tiled_diffusion is not None:
            yield from tiled_diffusion_problems(self)
        if self.input_upscale is not None:
            yield from enlargement_problems(self.input_upscale)
            if self.start is None or self.enlarged_input is not None:
                yield "`input_upscale` needs an input image, and cannot be combined with a redraw in tiles"
            if self.input_upscale.model is not None and self.hires is not None and self.hires.model is not None:
                yield "either the input image or the second pass can have an upscaler model, but not both"

    @property
    def enlarged_input(self) -> TiledRedraw | UltimateUpscale | None:
        """How the input image is enlarged before it is redrawn in tiles or area by area; None if it is not."""
        return self.tiled or self.ultimate

    @property
    def drawn_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height in pixels of everything that the UNet renders for this recipe, each size once."""
        if self.ultimate is not None:
            return self.ultimate.drawn_sizes((self.width, self.height))
        second = [(self.hires.width, self.hires.height)] if self.hires else []
        details = [(made.width, made.height) for made in self.details if made.only_masked]
        return tuple(dict.fromkeys([(self.width, self.height), *second, *details]))

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Width and height of what the last pass renders, in pixels: a masked region or the image before `upscale`."""
        last = self.hires or self.tiled or self
        return last.width, last.height

    @property
    def pastes_region(self) -> bool:
        """Whether only the masked region is rendered and pasted into the input image, which keeps its size."""
        is_redrawn = self.hires is not None or self.enlarged_input is not None
        return self.start is not None and self.start.pastes_region(self.rules, is_redrawn=is_redrawn)

    def file(self, sha256: Sha256) -> RecipeFile | None:
        """Return the download source of the file with this digest, if the recipe contains one."""
        return next((file for file in self.files if file.sha256 == sha256), None)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Parse a recipe's JSON, with keys in any order, of this schema or an earlier one; the inverse of `to_json`.

        Raises: UsageError: `bad-recipe` (not a recipe), `newer-recipe` (a later schema).
        """
        return cls.from_value(read_json(text))

    @classmethod
    def from_value(cls, value: object) -> "Recipe":
        """Convert an already parsed JSON value to a recipe, as `from_json` does with text."""
        schema = value.get("schema") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise UsageError("not a recipe: it has no schema number", code=Cause.BAD_RECIPE)
        if schema > SCHEMA:
            raise UsageError(
                f"the recipe has schema {schema}, but this civman reads schemas up to {SCHEMA}",
                hint="update civman", code=Cause.NEWER_RECIPE,
            )  # fmt: skip
        entries = {key: item for key, item in value.items() if key != "schema"}
        if schema == 1:
            earliest = {"sampling": asdict(SAMPLING)}
            for later in _ADDED:
                earliest = _without_additions(earliest, later)
            numbers = earliest["sampling"]
            entries = {"config": "", "files": [], "sampling": numbers} | entries
        for later in range(max(schema, 2) + 1, SCHEMA + 1):
            entries = _with_additions(entries, later)
        recipe = read_object(cls, entries, "recipe")
        assert isinstance(recipe, cls)
        return recipe


def _without_additions(value: dict[str, Any], schema: int) -> dict[str, Any]:
    """Return a recipe's entries without the entries that `schema` added."""
    added = _ADDED[schema]
    kept = {key: item for key, item in value.items() if key not in added[""]}
    for part in added.keys() - {""}:
        kept[part] = _each(kept.get(part), lambda one: {k: v for k, v in one.items() if k not in added[part]})  # noqa: B023
        if part not in value:
            del kept[part]
    return kept


def _with_additions(value: dict[str, Any], schema: int) -> dict[str, Any]:
    """Add the entries that `schema` added, with the values that earlier schemas imply; existing entries are kept."""
    usual: dict[str, dict[str, Any]] = {
        "": {each.name: each.default for each in fields(Recipe)} | {"rules": 1},
        "start": asdict(StartImage(Sha256(""), 1.0)),
        "hires": {each.name: each.default for each in fields(Hires)},
        "sampling": asdict(SAMPLING),
        "loras": {"blocks": "", "keyframes": "", "hires_keyframes": ""},
        "controls": {"type": "", "pools": False, "crops": False},
    }
    added = {part: {key: usual[part][key] for key in keys} for part, keys in _ADDED[schema].items()}
    whole = added[""] | value
    for part in added.keys() - {""}:
        if part in whole:
            whole[part] = _each(whole[part], lambda one: added[part] | one)  # noqa: B023
    return whole


def _each(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Change an object, or each object in a list; any other value is returned unchanged."""
    if isinstance(value, list | tuple):
        return [_each(one, change) for one in value]
    return change(value) if isinstance(value, dict) else value
