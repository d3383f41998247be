"""What was asked for, and all that determines the picture: two types for one thing at two ages.

`RenderRequest` may leave things open; `Recipe` may not: every file by SHA-256, every number said. Its canonical JSON
(keys sorted, no spaces, UTF-8, schema number inside) is what travels in pictures and what its own SHA-256 is of.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeVar

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe_json import canonical, read_json, read_object
from civman.domain.recipes.recipe_limits import problems, upscaler_of
from civman.errors import Cause, UsageError

T = TypeVar("T")

SCHEMA: Final = 3
"""1 had no `files` and `sampling`, and `config` only where it said something. 2 had none of the entries in `_SINCE_3`:
its pictures follow rules 1, and a recipe that says nothing beyond it is still written as schema 2."""
RULES: Final = 2
"""How recipes that are made now are drawn. 1: as civman did before schema 3, whose SDE samplers had the noise of
k-diffusion with the opposite sign, and whose DDIM, masks and second pass differ from A1111's. 2: as A1111 does."""
_SINCE_3: Final = {
    "": ("rules", "odd_sizes"),
    "start": ("resize_mode", "masked_content", "only_masked", "padding", "conditioning_weight", "noise_multiplier"),
    "sampling": ("eta_ddim", "s_churn", "s_tmin", "s_tmax"),
}
"""Entries of a recipe, its start picture and its sampling that schema 3 added."""


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """An adapter as asked for: any ref, and how strongly it acts on the UNet and the text encoders."""

    ref: str
    scale: float = 1.0
    text_scale: float | None = None
    """None: as `scale`."""


@dataclass(frozen=True, slots=True)
class HiresRequest:
    """A second pass at a larger size. None: twice as wide and high, as many steps as the first pass, strength 0.7.

    One side alone, or with 0 for the other, keeps the shape of the first pass.
    """

    width: int | None = None
    height: int | None = None
    scale: float | None = None
    steps: int | None = None
    strength: float | None = None
    upscaler: str = "latent"


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """What a person asked for. None means "what is usual for this model"; refs are whatever they typed."""

    checkpoint: str
    prompt: str = ""
    negative_prompt: str = ""
    loras: tuple[LoraRequest, ...] = ()
    embeddings: tuple[str, ...] = ()
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
    conditioning_weight: float | None = None
    noise_multiplier: float | None = None
    hires: HiresRequest | None = None
    eta: float | None = None
    eta_ddim: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    odd_sizes: str | None = None
    rules: int | None = None
    prediction: str | None = None
    is_zero_snr: bool | None = None
    precision: str | None = None
    pad_prompts: bool | None = None
    config: str | None = None
    """A folder of diffusers-style `<component>/config.json`, or their JSON as a recipe keeps it, for dimensions that
    no shape tells."""
    file: str | None = None
    """Which file of the checkpoint's version: a file id, a name, or words such as "fp16 pruned"."""


@dataclass(frozen=True, slots=True)
class LoraUse:
    """An adapter in a recipe: which bytes, how strongly on the UNet and on the text encoders."""

    sha256: Sha256
    scale: float
    text_scale: float


@dataclass(frozen=True, slots=True)
class EmbeddingUse:
    """An embedding in a recipe: which bytes, and the word in the prompt that stands for it."""

    sha256: Sha256
    word: str


@dataclass(frozen=True, slots=True)
class StartImage:
    """The picture a rendering starts from, by the SHA-256 of its file. White in the mask is painted anew."""

    sha256: Sha256
    strength: float
    mask_sha256: Sha256 | None = None
    mask_blur: int = 4
    """Radius in pixels by which the mask's edge is softened."""
    resize_mode: str = "just resize"
    """How the picture gets the size of the rendering; one of `recipe_limits.RESIZE_MODES`."""
    masked_content: str = "original"
    """What the masked part holds at the beginning; one of `recipe_limits.MASKED_CONTENTS`."""
    only_masked: bool = False
    """The masked part with its surroundings is drawn alone at the rendering's size and put back into the picture."""
    padding: int = 32
    """With `only_masked`: pixels around the masked part that are drawn with it."""
    conditioning_weight: float = 1.0
    """How much of the masked part is hidden from an inpainting checkpoint: 1 hides it, 0 shows the picture."""
    noise_multiplier: float = 1.0
    """Factor on the noise that is added to the picture."""


@dataclass(frozen=True, slots=True)
class Hires:
    """The second pass: enlarge to this size, then `steps` more steps from `strength` of the noise."""

    width: int
    height: int
    steps: int
    strength: float
    upscaler: str


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """Where a file that a recipe names can be had again.

    `air`: its AI resource name on CivitAI with model and version, None where it did not come from there. `file_id`:
    CivitAI's number of the file within the version. The digest decides; these tell where to look for it.
    """

    sha256: Sha256
    size_bytes: int
    air: str | None = None
    file_id: int | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """The numbers behind the names of samplers and schedules, as this civman computes with them.

    Training: β from `beta_start` to `beta_end`, linear in its root, `train_steps` times. `rho`: Karras' curve.
    `beta_shape`: both parameters of the beta distribution. `eta`, `noise_scale`: how much fresh noise ancestral and SDE
    samplers add, and the factor on it; `eta_ddim`: the same for DDIM. `s_churn`: how much noise Euler, Heun and DPM2
    add before each step while the level lies within `s_tmin` and `s_tmax` (0: no upper end).
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    rho: float = 7.0
    beta_shape: float = 0.6
    eta: float = 1.0
    noise_scale: float = 1.0
    eta_ddim: float = 0.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 0.0


SAMPLING: Final = Sampling()
"""The usual numbers. The engine computes with others only where they say how much noise is added."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that determines `count` pictures (seeds `seed`, `seed`+1, …) but machine and library versions.

    `batch_size` is in it because pictures computed together differ in the last bit from ones computed alone;
    `precision` because half precision is another picture. Sizes are pixels, multiples of 8.

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
    """How 0 … 1 becomes 0 … 255: "nearest", or "down" as AUTOMATIC1111's web UI does."""
    vae: Sha256 | None = None
    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[EmbeddingUse, ...] = ()
    start: StartImage | None = None
    hires: Hires | None = None
    config: str = ""
    """What was said of the checkpoint's dimensions beside its file: JSON, component → {option: value}."""
    files: tuple[RecipeFile, ...] = ()
    """One for each model file that is named above, by digest; none in recipes of schema 1."""
    sampling: Sampling = SAMPLING
    rules: int = RULES
    """By which rules it is drawn, see `RULES`. Recipes of earlier schemas keep the rules that they were drawn by."""
    odd_sizes: str = "forge"
    """What the UNet does at sizes that are no multiple of 64: "forge" enlarges each level to the size of its skip
    connection, as Forge, ComfyUI and diffusers do; "a1111" doubles it and resizes the result, as A1111 does."""

    def __post_init__(self) -> None:
        for problem in problems(self):
            raise UsageError(f"the recipe cannot be rendered: {problem}", code=Cause.BAD_RECIPE)

    def to_json(self) -> str:
        """The canonical text: equal recipes have equal texts."""
        value = asdict(self)
        earlier = _without_additions(value)
        if self.rules == 1 and _with_additions(earlier) == value:
            return canonical({"schema": 2, **earlier})
        return canonical({"schema": SCHEMA, **value})

    @property
    def uses_negative(self) -> bool:
        """Whether the negative prompt has a part in the picture: at a guidance of 1 it cancels out."""
        if self.rules == 1:
            return self.guidance_scale > 1
        return self.guidance_scale != 1 or self.sampler.endswith("CFG++")

    @property
    def sha256(self) -> Sha256:
        """SHA-256 of the canonical text in UTF-8."""
        return Sha256(hashlib.sha256(self.to_json().encode()).hexdigest())

    @property
    def digests(self) -> dict[str, tuple[Sha256, ...]]:
        """The model files by role: "checkpoint", "vae", "lora", "embedding"; each digest once a role."""
        found = {
            "checkpoint": (self.checkpoint,), "vae": (self.vae,) if self.vae else (),
            "lora": tuple(use.sha256 for use in self.loras), "embedding": tuple(use.sha256 for use in self.embeddings),
        }  # fmt: skip
        return {role: tuple(dict.fromkeys(digests)) for role, digests in found.items()}

    def file(self, sha256: Sha256) -> RecipeFile | None:
        """Where the file with this digest can be had, if the recipe says so."""
        return next((file for file in self.files if file.sha256 == sha256), None)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe a text holds, in any key order, of this schema or an earlier one; inverse of `to_json`.

        Raises: UsageError: `bad-recipe` (not a recipe), `newer-recipe` (a later schema).
        """
        return cls.from_value(read_json(text))

    @classmethod
    def from_value(cls, value: object) -> "Recipe":
        """As `from_json`, from what the text means."""
        schema = value.get("schema") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise UsageError("not a recipe: no schema number", code=Cause.BAD_RECIPE)
        if schema > SCHEMA:
            raise UsageError(
                f"the recipe has schema {schema}, this civman knows {SCHEMA}",
                hint="update civman", code=Cause.NEWER_RECIPE,
            )  # fmt: skip
        entries = {key: item for key, item in value.items() if key != "schema"}
        if schema == 1:
            entries = {"config": "", "files": [], "sampling": _without_additions({"sampling": asdict(SAMPLING)})[
                "sampling"]} | entries  # fmt: skip
        if schema <= 2:
            entries = _with_additions(entries)
        recipe = read_object(cls, entries, "recipe")
        assert isinstance(recipe, cls)
        return recipe


def _without_additions(value: dict[str, Any]) -> dict[str, Any]:
    """A recipe's entries without those that schema 3 added."""
    kept = {key: item for key, item in value.items() if key not in _SINCE_3[""]}
    for part in ("start", "sampling"):
        if isinstance(kept.get(part), dict):
            kept[part] = {key: item for key, item in kept[part].items() if key not in _SINCE_3[part]}
    return kept


def _with_additions(value: dict[str, Any]) -> dict[str, Any]:
    """The entries of an earlier schema with what they mean in this one. An entry that is there already stays."""
    usual = {
        "": {"rules": 1, "odd_sizes": "forge"},
        "start": asdict(StartImage(Sha256(""), 1.0)),
        "sampling": asdict(SAMPLING),
    }
    added = {part: {key: usual[part][key] for key in keys} for part, keys in _SINCE_3.items()}
    whole = added[""] | value
    for part in ("start", "sampling"):
        if isinstance(whole.get(part), dict):
            whole[part] = added[part] | whole[part]
    return whole


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the library found out about a request: refs turned into digests, and what the checkpoint is.

    `sampler` and `schedule` are the table's own names (`diffusion.sampler_names.parse`); `seed` is the one to use
    where none was asked for.
    """

    checkpoint: Sha256
    native_size: int
    prediction: str
    is_zero_snr: bool
    precision: str
    sampler: str
    schedule: str
    seed: int
    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[EmbeddingUse, ...] = ()
    vae: Sha256 | None = None
    init_image: Sha256 | None = None
    mask_image: Sha256 | None = None
    config: str = ""
    files: tuple[RecipeFile, ...] = ()


def complete(request: RenderRequest, found: Resolved) -> Recipe:
    """The one way from request to recipe. Usual values: 20 steps, guidance 7, the checkpoint's native square.

    Raises: UsageError (`bad-recipe`): the values make no picture.
    """
    width = _or(request.width, found.native_size)
    height = _or(request.height, found.native_size)
    steps = _or(request.steps, 20)
    start = None
    if found.init_image is not None:
        start = _start(request, found.init_image, found.mask_image)
    return Recipe(
        checkpoint=found.checkpoint, prompt=request.prompt, negative_prompt=request.negative_prompt,
        sampler=found.sampler, schedule=found.schedule, steps=steps,
        guidance_scale=float(_or(request.guidance_scale, 7.0)),
        guidance_rescale=float(_or(request.guidance_rescale, 0.0)),
        width=width, height=height, seed=_or(request.seed, found.seed), clip_skip=_or(request.clip_skip, 1),
        count=request.count, batch_size=min(_or(request.batch_size, 1), max(request.count, 1)),
        rng=_or(request.rng, "cpu"), eta_seed_delta=_or(request.eta_seed_delta, 0),
        pad_prompts=_or(request.pad_prompts, False),
        prediction=found.prediction, is_zero_snr=found.is_zero_snr, precision=found.precision,
        vae=found.vae, loras=found.loras, embeddings=found.embeddings, start=start,
        hires=_hires(request.hires, width, height, steps) if request.hires else None,
        config=found.config, files=tuple(sorted(set(found.files), key=lambda file: file.sha256)),
        sampling=sampling(request), rules=_or(request.rules, RULES), odd_sizes=_or(request.odd_sizes, "forge"),
    )  # fmt: skip


def sampling(request: RenderRequest) -> Sampling:
    """The numbers behind the sampler that a request asks for."""
    return replace(
        SAMPLING, eta=float(_or(request.eta, SAMPLING.eta)), eta_ddim=float(_or(request.eta_ddim, SAMPLING.eta_ddim)),
        noise_scale=float(_or(request.s_noise, SAMPLING.noise_scale)),
        s_churn=float(_or(request.s_churn, SAMPLING.s_churn)), s_tmin=float(_or(request.s_tmin, SAMPLING.s_tmin)),
        s_tmax=float(_or(request.s_tmax, SAMPLING.s_tmax)),
    )  # fmt: skip


def _start(request: RenderRequest, image: Sha256, mask: Sha256 | None) -> StartImage:
    return StartImage(
        image, float(_or(request.strength, 0.75)), mask, _or(request.mask_blur, 4),
        resize_mode=_or(request.resize_mode, "just resize"), masked_content=_or(request.masked_content, "original"),
        only_masked=_or(request.only_masked, False), padding=_or(request.padding, 32),
        conditioning_weight=float(_or(request.conditioning_weight, 1.0)),
        noise_multiplier=float(_or(request.noise_multiplier, 1.0)),
    )  # fmt: skip


def _hires(asked: HiresRequest, width: int, height: int, steps: int) -> Hires:
    scale = _or(asked.scale, 2.0)
    larger = int(width * scale) // 8 * 8, int(height * scale) // 8 * 8
    if asked.width and not asked.height:  # one side alone keeps the shape, as A1111's "Hires resize" with a 0 does
        larger = asked.width, asked.width * height // width // 8 * 8
    elif asked.height and not asked.width:
        larger = asked.height * width // height // 8 * 8, asked.height
    return Hires(
        width=asked.width or larger[0],
        height=asked.height or larger[1],
        steps=_or(asked.steps, steps),
        strength=float(_or(asked.strength, 0.7)),
        upscaler=upscaler_of(asked.upscaler),
    )


def _or(value: T | None, usual: T) -> T:
    return usual if value is None else value
