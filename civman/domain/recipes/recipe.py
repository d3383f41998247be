"""What was asked for, and all that determines the picture: two types for one thing at two ages.

`RenderRequest` may leave things open; `Recipe` may not: every file by SHA-256, every number said. Its canonical JSON
(keys sorted, no spaces, UTF-8, schema number inside) is what travels in pictures and what its own SHA-256 is of.
"""

import hashlib
import json
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from civman.domain.digests import Sha256, sha256_from
from civman.errors import Cause, UsageError

T = TypeVar("T")

SCHEMA: Final = 2
"""1 had no `files` and `sampling`, and `config` only where it said something."""
MAX_SEED: Final = 2**63 - 1
MAX_SIDE: Final = 16384
"""Pixels. Beyond it a size is a slip of the finger, and the attempt takes the machine's memory."""
UPSCALERS: Final = ("latent", "latent-bicubic", "latent-nearest", "latent-nearest-exact", "lanczos", "nearest")
PRECISIONS: Final = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """An adapter as asked for: any ref, and how strongly it acts on the UNet and the text encoders."""

    ref: str
    scale: float = 1.0
    text_scale: float | None = None
    """None: as `scale`."""


@dataclass(frozen=True, slots=True)
class HiresRequest:
    """A second pass at a larger size. None: twice as wide and high, as many steps as the first pass, strength 0.7."""

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
    hires: HiresRequest | None = None
    prediction: str | None = None
    is_zero_snr: bool | None = None
    precision: str | None = None
    pad_prompts: bool | None = None
    config: str | None = None
    """A folder of diffusers-style `<component>/config.json`, or their JSON as a recipe keeps it, for dimensions that
    no shape tells."""


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
    """Radius in pixels by which the mask's edge is softened when the kept part is put back."""


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
    `beta_shape`: both parameters of the beta distribution. `eta`, `noise_scale`: of ancestral and SDE samplers.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    rho: float = 7.0
    beta_shape: float = 0.6
    eta: float = 1.0
    noise_scale: float = 1.0


SAMPLING: Final = Sampling()
"""What the engine in `civman.diffusion` uses."""


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

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise UsageError(f"the recipe cannot be rendered: {problem}", code=Cause.BAD_RECIPE)

    def to_json(self) -> str:
        """The canonical text: equal recipes have equal texts."""
        return canonical({"schema": SCHEMA, **asdict(self)})

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
            entries = {"config": "", "files": [], "sampling": asdict(SAMPLING)} | entries
        recipe = _read(cls, entries, "recipe")
        assert isinstance(recipe, cls)
        return recipe


def canonical(value: object) -> str:
    """JSON with sorted keys, no spaces, nothing but numbers that JSON has; text as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_json(text: str) -> object:
    """What a text means as JSON. Raises: UsageError (`bad-recipe`): nothing, or one name twice in an object."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"not a recipe: {error}", hint="a recipe is taken whole, as civman wrote it", code=Cause.BAD_RECIPE
        ) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an entry is there twice")
    return value


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the library found out about a request: refs turned into digests, and what the checkpoint is.

    `sampler` and `schedule` are the table's own names (`civman.diffusion.samplers.parse`); `seed` is the one to use
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
        start = StartImage(
            found.init_image, float(_or(request.strength, 0.75)), found.mask_image, _or(request.mask_blur, 4)
        )
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
    )  # fmt: skip


def _hires(asked: HiresRequest, width: int, height: int, steps: int) -> Hires:
    scale = _or(asked.scale, 2.0)
    return Hires(
        width=_or(asked.width, int(width * scale) // 8 * 8),
        height=_or(asked.height, int(height * scale) // 8 * 8),
        steps=_or(asked.steps, steps),
        strength=float(_or(asked.strength, 0.7)),
        upscaler=asked.upscaler,
    )


def _or(value: T | None, usual: T) -> T:
    return usual if value is None else value


def _problems(recipe: Recipe) -> Iterator[str]:
    """What keeps it from being rendered, in words."""
    yield from _size_problems(recipe)
    yield from _number_problems(recipe)
    if recipe.start and not 0 < recipe.start.strength <= 1:
        yield "strength must be above 0, at most 1"
    if recipe.start and recipe.start.mask_blur < 0:
        yield "the mask's blur cannot be negative"
    if not all(_is_text(words) for words in (recipe.prompt, recipe.negative_prompt)):
        yield "a prompt holds what is no Unicode text"
    if recipe.sampling != SAMPLING:
        yield "it was made with other numbers for noise levels and samplers than this civman's"
    named = {digest for digests in recipe.digests.values() for digest in digests}
    if recipe.files and sorted(file.sha256 for file in recipe.files) != sorted(named):
        yield "the files it lists are not the ones it names"
    closed = {
        "rng": ("cpu", "nv"), "precision": PRECISIONS, "rounding": ("nearest", "down"),
        "prediction": ("epsilon", "v_prediction"),
    }  # fmt: skip
    for name, allowed in closed.items():
        if getattr(recipe, name) not in allowed:
            yield f"{name} `{getattr(recipe, name)}` is none of {', '.join(allowed)}"


def _is_text(words: str) -> bool:
    try:
        words.encode()
    except UnicodeEncodeError:  # half a surrogate pair: bytes on a command line that were no UTF-8
        return False
    return True


def _size_problems(recipe: Recipe) -> Iterator[str]:
    sizes = [(recipe.width, recipe.height)]
    if recipe.hires:
        sizes.append((recipe.hires.width, recipe.hires.height))
        if recipe.hires.upscaler not in UPSCALERS:
            yield f"upscaler `{recipe.hires.upscaler}` is none of {', '.join(UPSCALERS)}"
        if recipe.hires.steps < 1 or not 0 < recipe.hires.strength <= 1:
            yield "the second pass needs at least one step and a strength above 0, at most 1"
    for width, height in sizes:
        if width < 8 or height < 8 or width % 8 or height % 8:
            yield f"{width}x{height} is not a size: both sides must be positive multiples of 8"
        elif max(width, height) > MAX_SIDE:
            yield f"{width}x{height} is too large: at most {MAX_SIDE} a side"


def _number_problems(recipe: Recipe) -> Iterator[str]:
    if min(recipe.steps, recipe.count, recipe.batch_size, recipe.clip_skip) < 1:
        yield "steps, count, batch size and clip skip are at least 1"
    if not 0 <= recipe.seed <= MAX_SEED - recipe.count:
        yield f"seed must be 0 to {MAX_SEED - recipe.count}"
    if not 0 <= recipe.seed + recipe.eta_seed_delta <= MAX_SEED - recipe.count:
        yield "seed and eta seed delta leave the range of seeds"
    scales = [scale for use in recipe.loras for scale in (use.scale, use.text_scale)]
    if not all(math.isfinite(number) for number in (recipe.guidance_scale, recipe.guidance_rescale, *scales)):
        yield "guidance and scales must be finite numbers"
    if recipe.guidance_scale < 0 or not 0 <= recipe.guidance_rescale <= 1:
        yield "guidance cannot be negative, its rescaling lies between 0 and 1"


def _read(kind: Any, value: object, where: str) -> Any:
    """A JSON value as the type an annotation says; anything else is an error that says where."""
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _read(get_args(kind)[0], value, where)
    if is_dataclass(kind):
        return _read_object(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _wrong(where, "a list")
        return tuple(_read(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is Sha256:
        try:
            return sha256_from(value if isinstance(value, str) else "")
        except ValueError as error:
            raise _wrong(where, "a SHA-256") from error
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise _wrong(where, {str: "text", int: "a whole number", bool: "true or false"}.get(kind, "a number"))
    return value


def _read_object(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object")
    hints, known = get_type_hints(kind), {field.name for field in fields(kind)}
    if unknown := sorted(map(str, value.keys() - known)):
        raise UsageError(f"not a recipe: unknown entry `{where}.{unknown[0]}`", code=Cause.BAD_RECIPE)
    # a recipe leaves nothing to a default, not even when read
    if missing := sorted(known - value.keys()):
        raise UsageError(f"not a recipe: `{where}.{missing[0]}` is missing", code=Cause.BAD_RECIPE)
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _wrong(where: str, wanted: str) -> UsageError:
    return UsageError(f"not a recipe: `{where}` is not {wanted}", code=Cause.BAD_RECIPE)
