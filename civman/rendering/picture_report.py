"""Reports all metadata of a picture made by any program, and which of its models are in the library."""

from dataclasses import dataclass
from pathlib import Path

from civman.domain.catalog import Asset, VersionId
from civman.domain.recipes.record import Record, UpscaleRecord
from civman.errors import CivmanError, NotFound
from civman.index import Index
from civman.pictures import image_text, other_programs
from civman.pictures.image_text import Carried
from civman.pictures.metadata import Generator, PictureMetadata, Resource, Settings
from civman.planning.recipe_sources import find_recipe


@dataclass(frozen=True, slots=True)
class UsedModel:
    """A model with which a picture was made. `held`: its stored file, or None; `by`: how that file was recognised."""

    resource: Resource
    held: Asset | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class PictureReport:
    """What is known about a picture. `record`: its civman record; `number`: its number in the library.

    `problem`: why the recipe cannot be used; empty if the recipe can be used, or if there is none.
    """

    path: Path
    carried: Carried
    metadata: PictureMetadata | None
    models: tuple[UsedModel, ...]
    record: Record | None = None
    upscaled: UpscaleRecord | None = None
    """civman's record of an upscaled image. If it is set, all other metadata describe the image that was upscaled."""
    number: int | None = None
    problem: str = ""


def describe(index: Index | None, path: Path) -> PictureReport:
    """Report on the picture at `path`. Without an index, the picture's models are not looked up.

    Raises: UsageError (`bad-picture`): the file is not a picture, or it is incomplete.
    """
    carried = image_text.read(path)
    record, upscaled, number, problem = None, None, None, ""
    if index is not None:
        try:
            known = find_recipe(index, str(path))
            record, number = known.record, known.kept.id if known.kept else None
            upscaled = known.origin.upscaled_record
            problem = "" if known.origin.recipe or upscaled else "the picture was saved without its recipe"
        except NotFound:
            pass
        except CivmanError as error:
            problem = error.message
    metadata = _of_record(record) if record else other_programs.read(carried)
    models = tuple(_used_model(index, resource) for resource in metadata.resources) if metadata else ()
    return PictureReport(path, carried, metadata, models, record, upscaled, number, problem)


def _of_record(record: Record) -> PictureMetadata:
    """Convert a civman record to the common format for the metadata of all programs."""
    recipe = record.recipe
    uses = {use.sha256: use for use in (*((recipe.hires and recipe.hires.loras) or ()), *recipe.loras)}
    resources = [
        Resource(role, record.name_of(digest).name, digest, air=file.air if (file := recipe.file(digest)) else None,
                 weight=uses[digest].scale if role == "lora" else None,
                 text_weight=uses[digest].text_scale if role == "lora" else None)
        for role, digests in recipe.digests.items() for digest in digests
    ]  # fmt: skip
    settings = Settings(
        recipe.steps, recipe.sampler, recipe.schedule, recipe.guidance_scale, record.seed, recipe.width, recipe.height,
        recipe.clip_skip, recipe.start.strength if recipe.start else None,
    )  # fmt: skip
    return PictureMetadata(
        Generator.CIVMAN, recipe.prompt, recipe.negative_prompt, settings, tuple(resources), record.notes
    )


def _used_model(index: Index | None, resource: Resource) -> UsedModel:
    """Find the stored file of a model by hash, else by version id, else by name (which is not reliable)."""
    if index is None:
        return UsedModel(resource)
    if resource.hash and len(resource.hash) >= 8 and (found := index.find_by_digest(resource.hash)):
        return UsedModel(resource, found[0], "hash")
    if resource.version_id and (found := index.find_by_version(VersionId(resource.version_id))):
        return UsedModel(resource, found[0], "version")
    stem = Path(resource.name.replace("\\", "/")).name.removesuffix(".safetensors")
    same = [each for each in index.find_by_name(stem) if Path(each.name).stem == stem] if stem else []
    return (
        UsedModel(resource, same[0], "name") if len({each.blob.sha256 for each in same}) == 1 else UsedModel(resource)
    )
