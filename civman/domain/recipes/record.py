"""The record in an image: its recipe, the digest of the resulting pixels, and the environment.

The recipe determines the image. A `Record` adds what is known only afterwards (the digest of the pixels, the
environment) and the names of the files. Its JSON is written into images and into the index.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.recipe_json import canonical, read_json
from civman.domain.recipes.record_parts import Environment as Environment
from civman.domain.recipes.record_parts import FileName as FileName
from civman.domain.recipes.record_parts import (
    names_value,
    read_environment,
    read_list,
    read_names,
    read_notes,
    read_sha256,
    read_whole,
)
from civman.domain.recipes.upscale_recipe import AnyUpscale, read_upscale
from civman.domain.recipes.upscale_recipe import UpscaleRecord as UpscaleRecord
from civman.errors import Cause, IntegrityError, UsageError

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class TypedPrompts:
    """Both prompts as typed: with tags, and without trigger words that civman added."""

    prompt: str
    negative_prompt: str


@dataclass(frozen=True, slots=True)
class Record:
    """One rendered image: the one with `seed` from the batch of `recipe`.

    `typed` contains the prompts as typed, if they differ from the recipe's. `pixel_sha256` is the digest of the pixels
    (rows of 8-bit RGB), not of a file. `environment` lists what else determines the pixels. `parent` is the SHA-256 of
    the recipe of which this one is a variation.
    """

    recipe: Recipe
    seed: int
    pixel_sha256: Sha256
    environment: Environment
    names: tuple[FileName, ...] = ()
    notes: tuple[str, ...] = ()
    parent: Sha256 | None = None
    typed: TypedPrompts | None = None
    licence: tuple[str, ...] = ()
    """What the licences of the model files permitted when the image was made, in sentences; empty if not determined."""

    def __post_init__(self) -> None:
        if not self.recipe.seed <= self.seed < self.recipe.seed + self.recipe.count:
            raise UsageError(
                f"the recipe does not include an image with seed {self.seed}", code=Cause.BAD_RECIPE, seed=self.seed
            )

    def to_json(self) -> str:
        """Serialise to the canonical JSON text; equal records have equal texts."""
        return canonical({
            "civman_picture": SCHEMA,
            "recipe": json.loads(self.recipe.to_json()),
            "recipe_sha256": self.recipe.sha256,
            "seed": self.seed,
            "pixel_sha256": self.pixel_sha256,
            "environment": dict(self.environment),
            "names": names_value(self.names),
            "notes": list(self.notes),
            "parent": self.parent,
            "typed": [self.typed.prompt, self.typed.negative_prompt] if self.typed else None,
            **({"licence": list(self.licence)} if self.licence else {}),
        })  # fmt: skip

    @property
    def words(self) -> tuple[str, ...]:
        """The words by which `civman renders` finds the image: prompts, and names of files and models."""
        typed = (self.typed.prompt,) if self.typed else ()
        names = (text for name in self.names for text in (name.name, name.model))
        return self.recipe.prompt, self.recipe.negative_prompt, *typed, *names

    def name_of(self, sha256: Sha256) -> FileName:
        """Return the name of a file; if it is unknown, the first digits of the file's SHA-256."""
        return next((name for name in self.names if name.sha256 == sha256), FileName(sha256, f"sha256:{sha256[:12]}"))


AnyRecord = Record | UpscaleRecord
"""The record of an image that was made: rendered, or upscaled from another image."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin that is read from a text or an image: a recipe with its record, a recipe alone, or only their digests.

    `upscaled`: for an upscaled image, its upscale recipe or record, in place of `recipe` and `record`.
    """

    recipe_sha256: Sha256
    recipe: Recipe | None = None
    record: Record | None = None
    pixel_sha256: Sha256 | None = None
    upscaled: AnyUpscale | None = None

    @classmethod
    def of(cls, record: AnyRecord) -> "Origin":
        """Create the origin that consists of a complete record."""
        if isinstance(record, UpscaleRecord):
            return cls(record.recipe.sha256, None, None, record.pixel_sha256, record)
        return cls(record.recipe.sha256, record.recipe, record, record.pixel_sha256)

    @property
    def upscaled_record(self) -> UpscaleRecord | None:
        """The record of an upscaled image, if there is one."""
        return self.upscaled if isinstance(self.upscaled, UpscaleRecord) else None


def stripped(record: Record) -> str:
    """Serialise a record to canonical JSON without its prompts.

    The recipe is replaced with its digest, by which someone who has the recipe can recognise it.
    """
    return canonical({
        "civman_picture": SCHEMA, "recipe_sha256": record.recipe.sha256, "seed": record.seed,
        "pixel_sha256": record.pixel_sha256,
    })  # fmt: skip


def read_origin(text: str) -> Origin:
    """Parse the JSON of a record, of a recipe, or of a record without prompts, with keys in any order.

    Raises: UsageError (`bad-recipe`, `newer-recipe`): the text is none of these, or truncated. IntegrityError
        (`edited-recipe`): the recipe does not match the digest stored with it.
    """
    value = read_json(text)
    if not isinstance(value, dict):
        raise UsageError("not a recipe: it is not a JSON object", code=Cause.BAD_RECIPE)
    if isinstance(upscaled := read_upscale(value), UpscaleRecord):
        return Origin.of(upscaled)
    if upscaled is not None:
        return Origin(upscaled.sha256, upscaled=upscaled)
    if "civman_picture" not in value:
        recipe = Recipe.from_value(value)
        return Origin(recipe.sha256, recipe)
    if value["civman_picture"] != SCHEMA:
        raise UsageError(
            f"the record has schema {value['civman_picture']}, but this civman reads schemas up to {SCHEMA}",
            hint="update civman", code=Cause.NEWER_RECIPE,
        )  # fmt: skip
    stated = read_sha256(value, "recipe_sha256")
    if "recipe" not in value:
        return Origin(stated, pixel_sha256=read_sha256(value, "pixel_sha256"))
    recipe = _unedited(value["recipe"], stated)
    record = Record(
        recipe, read_whole(value, "seed"), read_sha256(value, "pixel_sha256"), read_environment(value),
        read_names(value), read_notes(value),
        None if value.get("parent") is None else read_sha256(value, "parent"), _typed(value),
        tuple(str(words) for words in read_list(value, "licence")),
    )  # fmt: skip
    return Origin(stated, recipe, record, record.pixel_sha256)


def _unedited(value: object, stated: Sha256) -> Recipe:
    recipe = Recipe.from_value(value)
    # first compare the recipe's text as stored in the record: that is cheaper than serialising the recipe
    if hashlib.sha256(canonical(value).encode()).hexdigest() != stated and recipe.sha256 != stated:
        raise IntegrityError(
            f"the recipe was changed after the image was made: its SHA-256 is {recipe.sha256[:12]}…, but the"
            f" image contains the digest {stated[:12]}…",
            hint="use the image as civman wrote it, or make a variation with `civman replay … --set "
                    "FIELD=VALUE`",
            code=Cause.EDITED_RECIPE, expected=stated, actual=recipe.sha256,
        )  # fmt: skip
    return recipe


def _typed(value: dict[str, Any]) -> TypedPrompts | None:
    match value.get("typed"):
        case None:
            return None
        case [str() as prompt, str() as negative]:
            return TypedPrompts(prompt, negative)
    raise UsageError("not a recipe: `typed` is not a pair of strings", code=Cause.BAD_RECIPE)
