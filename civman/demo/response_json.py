"""The JSON of CivitAI's responses, which differs between the list, model, version, by-hash and mini endpoints.

Source: CivitAI's public source and saved responses, August 2026.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from civman.demo import preview_pictures
from civman.demo.demo_catalog import PG, Catalogue, DemoFile, DemoImage, DemoModel, DemoVersion
from civman.demo.enums import Vocabulary
from civman.demo.file_selection import (
    computed_name,
    download_query,
    linked_file,
    metadata_of,
    primary_file,
    public_files,
)

Json = dict[str, Any]
IMAGE_BUCKET = "xG0demo0civman0embedded"
_LIST_IMAGES = 20
_PAGE_IMAGES = 10


def iso(moment: datetime) -> str:
    """Format a time as CivitAI does: with milliseconds and Z."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class Answers:
    """Builds responses about a catalogue at one point in time; `origin` is the scheme and host of all URLs in them."""

    catalogue: Catalogue
    vocabulary: Vocabulary
    origin: str
    now: datetime

    def list_item(self, model: DemoModel, versions: Sequence[DemoVersion], *, nsfw: bool, primary_only: bool) -> Json:
        """Build the entry of a model in the list of `GET /models`."""
        shown = [(index, version) for index, version in enumerate(model.versions) if version in versions]
        items = [self._list_version(model, v, index, nsfw=nsfw, primary_only=primary_only) for index, v in shown]
        return self._model(model, versions) | {"modelVersions": items}

    def model_page(self, model: DemoModel) -> Json:
        """Build the response to `GET /models/{id}`.

        Empty fields of versions are left out; images have no id and may have any rating.
        """
        pages = []
        for index, version in enumerate(model.versions):
            if version.status != "Published" or not public_files(version):
                continue
            page = self._list_version(model, version, index, nsfw=True, primary_only=False)
            page["covered"] = page.pop("supportsGeneration")
            page |= {"status": version.status, "createdAt": iso(version.published_at)}
            page["images"] = [{key: value for key, value in image.items() if key != "id"} for image in page["images"]]
            pages.append({key: value for key, value in page.items() if value is not None and value != []})
        return self._model(model, model.published) | {"modelVersions": pages}

    def version_page(self, model: DemoModel, version: DemoVersion, *, by_hash: bool = False) -> Json:
        """Build the response to `GET /model-versions/{id}`, or the slightly different one to `by-hash`."""
        owner: Json = {"name": model.name, "type": model.type, "nsfw": model.nsfw, "poi": model.poi}
        if model.mode:
            owner["mode"] = model.mode
        page: Json = {
            "id": version.id,
            "modelId": model.id,
            "name": version.name,
            "nsfwLevel": version.nsfw_level,
            "createdAt": iso(version.published_at),
            "updatedAt": iso(version.published_at),
            "status": version.status,
            "publishedAt": iso(version.published_at),
            "trainedWords": list(version.trained_words),
            "trainingStatus": None,
            "trainingDetails": None,
            "baseModel": version.base_model,
            "baseModelType": version.base_model_type,
            "description": version.description,
            "uploadType": version.upload_type,
            "usageControl": version.usage_control,
            "licensingFee": None,
            "paidAccess": self._paid_access(version),
            "air": self.air(model, version),
            "stats": {"downloadCount": version.downloads, "thumbsUpCount": version.thumbs_up},
            "model": owner,
            "files": [self._page_file(file, by_hash=by_hash) for file in self._files(model, version)],
            "images": [self._page_image(image) for image in self._images(model, version)[:_PAGE_IMAGES]],
        }
        if model.mode != "Archived":
            page["downloadUrl"] = self._download_url(version)
        return page

    def mini(self, model: DemoModel, version: DemoVersion, file: DemoFile) -> Json:
        """Build the response to `GET /model-versions/mini/{id}`."""
        page: Json = {
            "air": self.air(model, version),
            "versionName": version.name,
            "modelName": model.name,
            "userId": model.user_id,
            "baseModel": version.base_model,
            "availability": version.availability,
            "publishedAt": iso(version.published_at),
            "size": file.size_kb,
            "fileType": file.type,
            "fileName": file.name,
            "hashes": file.hashes,
            "downloadUrls": [self._download_url(version) + download_query(version, file)],
            "format": file.format,
            "canGenerate": version.supports_generation,
            "isFeatured": False,
            "requireAuth": True,
            "checkPermission": version.gate is not None,
            "additionalResourceCharge": False,
            "minor": model.minor,
            "sfwOnly": False,
            "fees": [],
            "payoutEnabled": False,
        }
        if version.gate and version.gate.ends_at:
            page["earlyAccessEndsAt"] = iso(version.gate.ends_at)
        return page

    def image_item(self, model: DemoModel, version: DemoVersion, image: DemoImage, *, meta: Any) -> Json:
        """Build the entry of an image in the list of `GET /images`."""
        label = {0: "None", PG: "None", 2: "Soft", 4: "Mature", 8: "X", 16: "X"}.get(image.level, "Blocked")
        stats = dict.fromkeys(("cryCount", "laughCount", "likeCount", "dislikeCount", "heartCount", "commentCount"), 0)
        return {
            "id": image.id,
            "url": self._image_url(image),
            "hash": preview_pictures.blur_of(image),
            "width": image.width,
            "height": image.height,
            "nsfwLevel": label,
            "type": image.type,
            "nsfw": image.level > PG,
            "browsingLevel": image.level,
            "createdAt": iso(version.published_at),
            "postId": version.id * 10,
            "stats": stats,
            "meta": meta,
            "username": model.creator,
            "baseModel": version.base_model,
            "modelVersionIds": [version.id],
        }

    def air(self, model: DemoModel, version: DemoVersion) -> str:
        """Build the version's complete AIR."""
        ecosystem = self.vocabulary.air_ecosystems.get(version.base_model, version.base_model.lower().replace(" ", ""))
        kind = self.vocabulary.air_types.get(model.type, "unknown")
        return f"urn:air:{ecosystem}:{kind}:civitai:{model.id}@{version.id}"

    def _model(self, model: DemoModel, versions: Sequence[DemoVersion]) -> Json:
        page: Json = {
            "id": model.id,
            "name": model.name,
            "description": model.description,
            "allowNoCredit": model.allow_no_credit,
            "allowCommercialUse": model.allow_commercial_use,
            "allowDerivatives": model.allow_derivatives,
            "allowDifferentLicense": model.allow_different_license,
            "type": model.type,
            "minor": model.minor,
            "sfwOnly": False,
            "poi": model.poi,
            "nsfw": model.nsfw,
            "nsfwLevel": model.nsfw_level,
            "availability": model.availability,
            "userId": model.user_id,
            "baseModels": list(dict.fromkeys(version.base_model for version in versions)),
            "cosmetic": None,
            "supportsGeneration": any(version.supports_generation for version in versions),
            "hasActivePaidAccess": any(self._paid_access(version) for version in versions),
            "stats": {
                "downloadCount": model.downloads,
                "thumbsUpCount": model.thumbs_up,
                "thumbsDownCount": 0,
                "commentCount": model.comments,
                "tippedAmountCount": None if model.downloads is None else 0,
            },
            "tags": list(model.tags),
        }
        if model.creator:
            page["creator"] = {"username": model.creator, "image": None}
        if model.mode:
            page["mode"] = model.mode
        return page

    def _list_version(
        self, model: DemoModel, version: DemoVersion, index: int, *, nsfw: bool, primary_only: bool
    ) -> Json:
        files = [self._list_file(file) for file in self._files(model, version)]
        images = [image for image in self._images(model, version) if nsfw or image.level == PG]
        page: Json = {
            "id": version.id,
            "index": index,
            "name": version.name,
            "baseModel": version.base_model,
            "baseModelType": version.base_model_type,
            "publishedAt": iso(version.published_at),
            "flags": 0,
            "availability": version.availability,
            "nsfwLevel": version.nsfw_level,
            "description": version.description,
            "trainedWords": list(version.trained_words),
            "vaeId": version.vae_version,
            "paidAccess": self._paid_access(version),
            "stats": {
                "downloadCount": version.downloads,
                "thumbsUpCount": version.thumbs_up,
                "thumbsDownCount": None if version.thumbs_up is None else 0,
            },
            "supportsGeneration": version.supports_generation,
            "files": [file for file in files if file.get("primary") or not primary_only],
            "images": [self._image(image) for image in images[:_LIST_IMAGES]],
        }
        gate = version.gate
        if gate and gate.ends_at and not gate.permanent and gate.is_active(self.now):
            page["earlyAccessDeadline"] = iso(gate.ends_at)
        if model.mode != "Archived":
            page["downloadUrl"] = self._download_url(version)
        return page

    def _files(self, model: DemoModel, version: DemoVersion) -> list[Json]:
        """Build the version's list of files, with a linked VAE last; empty if the model is archived."""
        if model.mode == "Archived":
            return []
        files = [self._file(model, version, file) for file in public_files(version)]
        linked = linked_file(self.catalogue, version)
        found = self.catalogue.version(version.vae_version) if version.vae_version else None
        if linked and found:
            extra = self._file(*found, linked) | {"type": "VAE", "primary": False}
            files.append(extra | {"downloadUrl": self._download_url(version) + "?type=VAE"})
        return files

    def _file(self, model: DemoModel, version: DemoVersion, file: DemoFile) -> Json:
        scanned = file.scanned_at or version.published_at
        return {
            "id": file.id,
            "sizeKB": file.size_kb,
            "name": computed_name(model, version, file),
            "overrideName": file.override_name,
            "type": file.type,
            "pickleScanResult": file.pickle_scan,
            "pickleScanMessage": file.pickle_message,
            "virusScanResult": file.virus_scan,
            "virusScanMessage": None,
            "scannedAt": None if file.virus_scan == "Pending" else iso(scanned),
            "metadata": metadata_of(file),
            "hashes": file.hashes,
            "downloadUrl": self._download_url(version) + download_query(version, file),
            "primary": file is primary_file(version),
        }

    def _list_file(self, file: Mapping[str, Any]) -> Json:
        return {key: value for key, value in file.items() if key != "primary" or value}

    def _page_file(self, file: Mapping[str, Any], *, by_hash: bool) -> Json:
        page = {key: value for key, value in file.items() if by_hash or key != "overrideName"}
        page["metadata"] = {key: value for key, value in file["metadata"].items() if key != "quantType"}
        if page["scannedAt"] and not by_hash:
            page["scannedAt"] = page["scannedAt"].removesuffix("Z")  # the real endpoint leaves out the time zone
        return page

    def _images(self, model: DemoModel, version: DemoVersion) -> tuple[DemoImage, ...]:
        return () if model.mode == "TakenDown" else version.images

    def _image(self, image: DemoImage) -> Json:
        return {
            "id": image.id,
            "url": self._image_url(image),
            "nsfwLevel": image.level,
            "width": image.width,
            "height": image.height,
            "hash": preview_pictures.blur_of(image),
            "type": image.type,
            "minor": False,
            "poi": False,
            "hasMeta": image.meta is not None,
            "hasPositivePrompt": bool(image.meta and image.meta.get("prompt")),
            "onSite": False,
            "remixOfId": None,
        }

    def _page_image(self, image: DemoImage) -> Json:
        page = {key: value for key, value in self._image(image).items() if key != "id"}
        size = {"width": image.width, "height": image.height, "hash": preview_pictures.blur_of(image)}
        return page | {"meta": image.meta, "metadata": size, "availability": "Public"}

    def _image_url(self, image: DemoImage) -> str:
        suffix = "png" if image.type == "image" else "mp4"
        key = uuid5(NAMESPACE_URL, f"civman:image:{image.id}")
        return f"{self.origin}/{IMAGE_BUCKET}/{key}/original=true/{image.id}.{suffix}"

    def _paid_access(self, version: DemoVersion) -> Json | None:
        gate = version.gate
        if gate is None or not gate.is_active(self.now):
            return None
        ends_at = iso(gate.ends_at) if gate.ends_at and not gate.permanent else None
        return {"permanent": gate.permanent, "endsAt": ends_at}

    def _download_url(self, version: DemoVersion) -> str:
        return f"{self.origin}/api/download/models/{version.id}"
