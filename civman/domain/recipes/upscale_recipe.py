"""The recipe of an upscaled image, and the record in it.

Unlike a `Recipe`, an upscale recipe starts from an image file and needs no checkpoint. It identifies that file and the
upscaler model by SHA-256. Its canonical JSON has `"kind": "upscale"`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.enlargement import Enlargement, enlargement_problems
from civman.domain.recipes.recipe import RecipeFile
from civman.domain.recipes.recipe_json import canonical, read_json, read_object
from civman.domain.recipes.record_parts import (
    Environment,
    FileName,
    names_value,
    read_environment,
    read_names,
    read_notes,
    read_sha256,
)
from civman.errors import Cause, IntegrityError, UsageError

SCHEMA: Final = 1
"""The version of the JSON format of upscale recipes and of their records."""
KIND: Final = "upscale"
"""The value of `kind` in the JSON of an upscale recipe."""


@dataclass(frozen=True, slots=True)
class UpscaleRecipe:
    """Everything that determines an upscaled image, except the machine and library versions.

    `picture`: the SHA-256 of the source image's file. Raises: UsageError (`bad-recipe`).
    """

    picture: Sha256
    enlargement: Enlargement
    files: tuple[RecipeFile, ...] = ()
    """One entry for each model file, by digest."""

    def __post_init__(self) -> None:
        problems = list(enlargement_problems(self.enlargement))
        named = {digest for digests in self.digests.values() for digest in digests}
        if sorted(file.sha256 for file in self.files) != sorted(named):
            problems.append("the recipe's list of files does not match the files that it uses")
        if problems:
            raise UsageError(f"the image cannot be upscaled: {problems[0]}", code=Cause.BAD_RECIPE)

    def to_json(self) -> str:
        """Serialise to the canonical JSON text; equal recipes have equal texts."""
        return canonical({"schema": SCHEMA, "kind": KIND, **asdict(self)})

    @property
    def sha256(self) -> Sha256:
        """The SHA-256 of the canonical JSON text in UTF-8."""
        return Sha256(hashlib.sha256(self.to_json().encode()).hexdigest())

    @property
    def digests(self) -> dict[str, tuple[Sha256, ...]]:
        """The digests of the model files by role."""
        return {"upscaler": (self.enlargement.model,) if self.enlargement.model else ()}

    def file(self, sha256: Sha256) -> RecipeFile | None:
        """Return the download source of the file with this digest, if the recipe contains one."""
        return next((file for file in self.files if file.sha256 == sha256), None)

    @classmethod
    def from_value(cls, value: object) -> "UpscaleRecipe":
        """Convert a parsed JSON value to an upscale recipe.

        Raises: UsageError: `bad-recipe` (not an upscale recipe), `newer-recipe` (a later schema).
        """
        if not is_upscale(value):
            raise UsageError("not the recipe of an upscaled image", code=Cause.BAD_RECIPE)
        assert isinstance(value, dict)
        if value.get("schema") != SCHEMA:
            raise UsageError(
                f"the upscale recipe has schema {value.get('schema')}, but this civman reads schemas up to {SCHEMA}",
                hint="update civman", code=Cause.NEWER_RECIPE,
            )  # fmt: skip
        entries = {key: item for key, item in value.items() if key not in ("schema", "kind")}
        recipe = read_object(cls, entries, "recipe")
        assert isinstance(recipe, cls)
        return recipe


def is_upscale(value: object) -> bool:
    """Whether a parsed JSON value claims to be an upscale recipe, valid or not."""
    return isinstance(value, dict) and value.get("kind") == KIND


@dataclass(frozen=True, slots=True)
class UpscaleRecord:
    """One upscaled image. `pixel_sha256` is the digest of its pixels: rows of 8-bit RGB, or RGBA if it is transparent.

    `picture_name`: the name of the file that was enlarged; `picture_size`: its width and height in pixels. `parent`:
    the SHA-256 of the recipe in that file, if civman made it.
    """

    recipe: UpscaleRecipe
    pixel_sha256: Sha256
    environment: Environment
    names: tuple[FileName, ...] = ()
    notes: tuple[str, ...] = ()
    picture_name: str = ""
    picture_size: tuple[int, int] = (0, 0)
    parent: Sha256 | None = None

    def to_json(self) -> str:
        """Serialise to the canonical JSON text; equal records have equal texts."""
        return canonical({
            "civman_upscaled": SCHEMA, "recipe": json.loads(self.recipe.to_json()), "recipe_sha256": self.recipe.sha256,
            "pixel_sha256": self.pixel_sha256, "environment": dict(self.environment), "names": names_value(self.names),
            "notes": list(self.notes), "picture": [self.picture_name, *self.picture_size], "parent": self.parent,
        })  # fmt: skip

    @property
    def words(self) -> tuple[str, ...]:
        """The words by which `civman renders` finds the image."""
        return (self.picture_name, *(text for name in self.names for text in (name.name, name.model)))

    def name_of(self, sha256: Sha256) -> FileName:
        """Return the name of a file; if it is unknown, the first digits of the file's SHA-256."""
        return next((name for name in self.names if name.sha256 == sha256), FileName(sha256, f"sha256:{sha256[:12]}"))

    @property
    def upscaler_name(self) -> str:
        """The name of the upscaler model's file, or the name of the method."""
        made = self.recipe.enlargement
        if made.model is None:
            return made.method.capitalize()
        return self.name_of(made.model).name

    @classmethod
    def from_json(cls, text: str) -> "UpscaleRecord":
        """Parse the JSON of a record. Raises: UsageError, IntegrityError: as `from_value`."""
        return cls.from_value(read_json(text))

    @classmethod
    def from_value(cls, value: object) -> "UpscaleRecord":
        """Convert a parsed JSON value to a record.

        Raises: UsageError (`bad-recipe`, `newer-recipe`). IntegrityError (`edited-recipe`): the recipe does not match
            the digest stored with it.
        """
        if not isinstance(value, dict) or "civman_upscaled" not in value:
            raise UsageError("not the record of an upscaled image", code=Cause.BAD_RECIPE)
        if value["civman_upscaled"] != SCHEMA:
            raise UsageError(
                f"the record has schema {value['civman_upscaled']}, but this civman reads schemas up to {SCHEMA}",
                hint="update civman", code=Cause.NEWER_RECIPE,
            )  # fmt: skip
        recipe, stated = UpscaleRecipe.from_value(value.get("recipe")), read_sha256(value, "recipe_sha256")
        if recipe.sha256 != stated:
            raise IntegrityError(
                f"the recipe was changed after the image was upscaled: its SHA-256 is {recipe.sha256[:12]}…, but the "
                f"image contains the digest {stated[:12]}…",
                hint="use the image as civman wrote it", code=Cause.EDITED_RECIPE, expected=stated,
                actual=recipe.sha256,
            )  # fmt: skip
        match value.get("picture"):
            case [str() as name, int() as width, int() as height]:
                pass
            case _:
                raise UsageError("not a recipe: `picture` is invalid", code=Cause.BAD_RECIPE)
        return cls(
            recipe, read_sha256(value, "pixel_sha256"), read_environment(value), read_names(value), read_notes(value),
            name, (width, height), None if value.get("parent") is None else read_sha256(value, "parent"),
        )  # fmt: skip


AnyUpscale = UpscaleRecord | UpscaleRecipe
"""What the JSON in an upscaled image can be: a whole record, or a recipe alone."""


def read_upscale(value: Any) -> AnyUpscale | None:
    """Return the record or recipe of an upscaled image in a parsed JSON value; None if the value contains neither.

    Raises: UsageError, IntegrityError: as `UpscaleRecord.from_value`.
    """
    if isinstance(value, dict) and "civman_upscaled" in value:
        return UpscaleRecord.from_value(value)
    return UpscaleRecipe.from_value(value) if is_upscale(value) else None
