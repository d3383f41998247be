"""All that a picture tells, whoever made it, and which of its models the library holds. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from civman.domain.catalog import Asset, VersionId
from civman.domain.recipes.record import Record
from civman.errors import CivmanError, NotFound
from civman.index import Index
from civman.pictures import image_text, other_programs
from civman.pictures.image_text import Carried
from civman.pictures.metadata import Generator, Resource, Settings, Told
from civman.planning.recipe_sources import told_by


@dataclass(frozen=True, slots=True)
class Part:
    """A model that a picture was made with. `held`: the library's file for it; `by`: how it was recognised."""

    resource: Resource
    held: Asset | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a picture. `record` is civman's own, `number` the library's.

    `problem`: why there is no recipe, where there should be.
    """

    path: Path
    carried: Carried
    told: Told | None
    parts: tuple[Part, ...]
    record: Record | None = None
    number: int | None = None
    problem: str = ""


def about(index: Index | None, path: Path) -> About:
    """What `path` tells; without an index nothing is looked up.

    Raises: UsageError (`bad-picture`): no picture, or not a whole one.
    """
    carried = image_text.read(path)
    record, number, problem = None, None, ""
    if index is not None:
        try:
            known = told_by(index, str(path))
            record, number = known.record, known.kept.id if known.kept else None
            problem = "" if known.origin.recipe else "its recipe was left out when it was written"
        except NotFound:
            pass
        except CivmanError as error:
            problem = error.message
    told = _of_record(record) if record else other_programs.read(carried)
    parts = tuple(_part(index, resource) for resource in told.resources) if told else ()
    return About(path, carried, told, parts, record, number, problem)


def _of_record(record: Record) -> Told:
    """Civman's own record in the form that is used for all."""
    recipe = record.recipe
    scales = {use.sha256: use.scale for use in recipe.loras}
    resources = [
        Resource(role, record.name_of(digest).name, digest, air=file.air if (file := recipe.file(digest)) else None,
                 weight=scales.get(digest) if role == "lora" else None)
        for role, digests in recipe.digests.items() for digest in digests
    ]  # fmt: skip
    settings = Settings(
        recipe.steps, recipe.sampler, recipe.schedule, recipe.guidance_scale, record.seed, recipe.width, recipe.height,
        recipe.clip_skip, recipe.start.strength if recipe.start else None,
    )  # fmt: skip
    return Told(Generator.CIVMAN, recipe.prompt, recipe.negative_prompt, settings, tuple(resources), record.notes)


def _part(index: Index | None, resource: Resource) -> Part:
    """The library's file for a resource: by digest, by CivitAI's number, else by its name, which proves nothing."""
    if index is None:
        return Part(resource)
    if resource.hash and len(resource.hash) >= 8 and (found := index.find_by_digest(resource.hash)):
        return Part(resource, found[0], "hash")
    if resource.version_id and (found := index.find_by_version(VersionId(resource.version_id))):
        return Part(resource, found[0], "version")
    stem = Path(resource.name.replace("\\", "/")).name.removesuffix(".safetensors")
    same = [each for each in index.find_by_name(stem) if Path(each.name).stem == stem] if stem else []
    return Part(resource, same[0], "name") if len({each.blob.sha256 for each in same}) == 1 else Part(resource)
