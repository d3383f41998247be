"""The demo's main server: responds to requests for CivitAI's public API, download URLs and preview images.

Source: CivitAI's public source and API documentation, August 2026.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from civman.demo import preview_pictures
from civman.demo.demo_catalog import Catalogue, DemoModel, DemoVersion
from civman.demo.download_endpoint import Downloads, error
from civman.demo.enums import Vocabulary
from civman.demo.file_selection import primary_file, public_files
from civman.demo.http_messages import Answer, Request
from civman.demo.query_parameters import Issue, Reader
from civman.demo.response_json import IMAGE_BUCKET, Answers
from civman.demo.search_endpoint import find, read_search, slug
from civman.demo.tensor_endpoint import tensor_metadata

INT4 = 2147483647
_DEEPEST = 1000
_BULK, _BULK_IDS = 100, 10_000
_PUBLIC = "public, s-maxage=300, stale-while-revalidate=150"
_HASHED = "public, s-maxage=3600, stale-while-revalidate=1800"
_PRIVATE = "max-age=0, private, no-cache"
_IMAGE_LEVELS = {"None": 1, "Soft": 3, "Mature": 7, "X": 31, "Blocked": 32, "true": 60, "false": 1}


@dataclass(frozen=True, slots=True)
class Api:
    """Responds to requests to the demo's main server."""

    catalogue: Catalogue
    vocabulary: Vocabulary
    downloads: Downloads
    clock: Callable[[], datetime]
    origin: str

    def answer(self, request: Request) -> Answer:
        """Build the response that CivitAI would send; an HTML 404 for a path that is not part of the API."""
        if request.headers.get("user-agent", "").lower().startswith("python-urllib"):
            return Answer.of_text("error code: 1010", 403)
        for pattern, handler, is_public in _ROUTES:
            if match := re.fullmatch(pattern, request.path):
                if not is_public and request.method not in ("GET", "HEAD"):
                    return error(405, "Method not allowed")
                return handler(self, request, *match.groups())
        return Answer.of_text("<!DOCTYPE html><title>404</title>", 404, "text/html; charset=utf-8")

    def _answers(self, request: Request) -> Answers:
        origin = f"http://{request.headers['host']}" if "host" in request.headers else self.origin
        return Answers(self.catalogue, self.vocabulary, origin, self.clock())

    def _cache(self, request: Request) -> str:
        return _PRIVATE if self.downloads.is_signed_in(request) else _PUBLIC

    def models(self, request: Request) -> Answer:
        """Respond to `GET /models`."""
        params = request.params
        if ("favorites" in params or "hidden" in params) and not self.downloads.is_signed_in(request):
            return error(401, "Unauthorized")
        search = read_search(params, self.vocabulary)
        if isinstance(search, list):
            return _zod_error(search)
        if search.page is not None and search.query:
            return error(400, "Cannot use page param with query search. Use cursor-based pagination.")
        if search.page is not None and search.page * search.limit > _DEEPEST:
            return error(429, "You've requested too many pages, please use cursors instead")
        if search.availability == "Private":
            return error(401, "Unauthorized")
        if search.username is not None and not any(
            search.username in (slug(model.creator or ""), model.creator) for model in self.catalogue
        ):
            return Answer.of_json({"message": "User not found"}, 404)
        page = find(self.catalogue, search, self.clock())
        if page.wrong_cursor:
            return Answer.of_json({"message": page.wrong_cursor}, 400)
        answers = self._answers(request)
        items = [
            answers.list_item(model, versions, nsfw=search.nsfw, primary_only=search.primary_file_only)
            for model, versions in page.hits
        ]
        metadata: dict[str, Any] = {}
        if page.next_cursor:
            kept = [(key, value) for key, values in params.items() if key != "cursor" for value in values]
            following = urlencode([*kept, ("cursor", page.next_cursor)], quote_via=quote)
            metadata = {"nextCursor": page.next_cursor, "nextPage": f"{answers.origin}{request.path}?{following}"}
        if search.page is not None:
            metadata |= {"currentPage": search.page, "pageSize": search.limit}
        return Answer.of_json({"items": items, "metadata": metadata}, Cache_Control=self._cache(request))

    def model(self, request: Request, text: str) -> Answer:
        """Respond to `GET /models/{id}`."""
        number = _id(text)
        if isinstance(number, str):
            return error(400, number)
        model = self.catalogue.model(number)
        if model is None or model.poi or model.status != "Published":
            return error(404, f"No model with id {number}").with_headers(Cache_Control=_PUBLIC)
        answers = replace(self._answers(request), origin=self.origin)
        return Answer.of_json(answers.model_page(model), Cache_Control=_PUBLIC)

    def version(self, request: Request, text: str) -> Answer:
        """Respond to `GET /model-versions/{id}`."""
        if text.isdecimal() and int(text) > INT4:
            return error(500, "Failed to fetch model version details")
        number = _id(text)
        if isinstance(number, str):
            return error(400, number)
        found = self._published(number)
        if found is None or not found[1].nsfw_level:
            return error(404, "Model not found").with_headers(Cache_Control=self._cache(request))
        if not public_files(found[1]):
            return error(404, "Missing model file")
        return Answer.of_json(self._answers(request).version_page(*found), Cache_Control=self._cache(request))

    def by_hash(self, request: Request, digest: str) -> Answer:
        """Respond to `GET /model-versions/by-hash/{hash}`."""
        found = self.catalogue.by_hash(digest)
        if not found:
            return error(404, "Model not found").with_headers(Cache_Control=_HASHED)
        model, version, _ = found[0]
        page = self._answers(request).version_page(model, version, by_hash=True)
        return Answer.of_json(page, Cache_Control=_HASHED)

    def by_hashes(self, request: Request) -> Answer:
        """Respond to `POST /model-versions/by-hash`, with broken download URLs as on the real site."""
        digests = _digests(request, _BULK)
        if isinstance(digests, Answer):
            return digests
        answers = replace(self._answers(request), origin="https://undefined")
        hits = [hit for digest in digests for hit in self.catalogue.by_hash(digest)]
        return Answer.of_json([answers.version_page(model, version, by_hash=True) for model, version, _ in hits])

    def ids_by_hash(self, request: Request) -> Answer:
        """Respond to `POST /model-versions/by-hash/ids`."""
        digests = _digests(request, _BULK_IDS)
        if isinstance(digests, Answer):
            return digests
        return Answer.of_json(
            [
                {"modelVersionId": version.id, "modelId": model.id, "hash": digest.upper()}
                for digest in digests
                for model, version, _ in self.catalogue.by_hash(digest)
            ]
        )

    def mini(self, request: Request, text: str) -> Answer:
        """Respond to `GET /model-versions/mini/{id}`."""
        found = self._published(int(text)) if text.isdecimal() else None
        if found is None:
            return error(404, "Model not found")
        wanted = request.first.get("modelFileId")
        files = public_files(found[1])
        file = next((each for each in files if str(each.id) == wanted), None) if wanted else primary_file(found[1])
        if file is None:
            return error(404, f"Model file {wanted} not found in version {text}" if wanted else "Missing model file")
        return Answer.of_json(self._answers(request).mini(*found, file), Cache_Control="no-store")

    def tensors(self, request: Request, text: str) -> Answer:
        """Respond to `GET /model-files/{id}/tensor-metadata` with the file's header, without a download."""
        owner = next((hit for hit in self.catalogue.files() if str(hit[2].id) == text), None)
        if owner is None or owner[2].visibility != "Public":
            return error(404, "File not found")
        refusal = self.downloads.refusal(request, *owner[:2])
        if refusal:
            return replace(refusal, status=403) if refusal.status == 401 else refusal
        if owner[2].format != "SafeTensor":
            return error(400, "Tensor metadata is only available for SafeTensor and GGUF files")
        return tensor_metadata(owner[2], is_summary=request.first.get("summaryOnly") == "true")

    def me(self, request: Request) -> Answer:
        """Respond to `GET /me`."""
        if not self.downloads.is_signed_in(request):
            return error(401, "Unauthorized")
        return Answer.of_json({
            "id": 7, "username": "demo", "tier": "free", "status": "active", "isMember": False, "subscriptions": [],
        })  # fmt: skip

    def enums(self, _request: Request) -> Answer:
        """Respond to `GET /enums`."""
        return Answer.of_json(self.vocabulary.enums, Cache_Control=_PUBLIC)

    def tags(self, request: Request) -> Answer:
        """Respond to `GET /tags`."""
        counts = Counter(tag for model in self.catalogue for tag in model.tags)
        link = f"{self._answers(request).origin}/api/v1/models?tag="
        return self._numbered(request, [{"name": tag, "link": link + quote(tag)} for tag, _ in counts.most_common()])

    def creators(self, request: Request) -> Answer:
        """Respond to `GET /creators`."""
        counts = Counter(model.creator for model in self.catalogue if model.creator)
        link = f"{self._answers(request).origin}/api/v1/models?username="
        items = [{"username": name, "modelCount": count, "link": link + quote(name)} for name, count in counts.items()]
        return self._numbered(request, items)

    def images(self, request: Request) -> Answer:
        """Respond to `GET /images`."""
        reader, query = Reader(request.params), request.first
        limit = reader.number("limit", 100, 0, 200)
        wanted = {key: reader.number(key, 0, 1) for key in ("modelId", "modelVersionId", "imageId") if key in query}
        reader.one_of("nsfw", tuple(_IMAGE_LEVELS))
        if reader.issues:
            return _zod_error(reader.issues)
        levels = int(query["browsingLevel"]) if "browsingLevel" in query else _IMAGE_LEVELS[query.get("nsfw", "false")]
        with_meta, flat = query.get("withMeta") == "true", query.get("flatMeta") == "true"
        is_wrapped = not flat and ("imageId" in wanted or list(wanted) == ["modelId"])
        items = []
        for model, version, image in self._pictures():
            ids = {"modelId": model.id, "modelVersionId": version.id, "imageId": image.id}
            if image.level & levels and all(ids[key] == value for key, value in wanted.items()):
                meta: Any = image.meta if with_meta else None
                meta = {"id": image.id, "meta": meta} if with_meta and is_wrapped else meta
                items.append(self._answers(request).image_item(model, version, image, meta=meta))
        start = int(query["cursor"].split("|")[0]) if query.get("cursor", "").split("|")[0].isdecimal() else 0
        metadata: dict[str, Any] = {}
        if start + limit < len(items):
            cursor = f"{start + limit}|{round(self.clock().timestamp() * 1000)}"
            following = urlencode({**query, "cursor": cursor}, quote_via=quote)
            origin = self._answers(request).origin
            metadata = {"nextCursor": cursor, "nextPage": f"{origin}{request.path}?{following}"}
        return Answer.of_json({"items": items[start : start + limit], "metadata": metadata}, Cache_Control=_PUBLIC)

    def picture(self, _request: Request, number: str) -> Answer:
        """Respond with a preview image; the requested size is ignored."""
        image = next((image for _, _, image in self._pictures() if image.id == int(number)), None)
        if image is None or image.type != "image":
            return Answer.of_text("Not Found", 404)
        body = preview_pictures.bytes_of(image)
        return Answer(200, body, {"Content-Type": "image/png", "Cache-Control": "public, max-age=31536000"})

    def download(self, request: Request, text: str) -> Answer:
        """Respond to `GET /api/download/models/{version id}`."""
        return self.downloads.answer(request, int(text))

    def training_data(self, _request: Request, text: str) -> Answer:
        """Respond to the former download URL of training data with a redirect to the current one."""
        return Answer.redirect(f"/api/download/models/{text}?type=Training%20Data", 308)

    def page(self, _request: Request, *_parts: str) -> Answer:
        """Respond with an HTML page for browsers, which clients must not take for a model file. Its status is 200."""
        return Answer.of_text("<!DOCTYPE html><html><title>Civitai</title></html>", 200, "text/html; charset=utf-8")

    def _published(self, version_id: int) -> tuple[DemoModel, DemoVersion] | None:
        found = self.catalogue.version(version_id)
        return found if found and (found[0].status, found[1].status) == ("Published", "Published") else None

    def _pictures(self) -> list[tuple[DemoModel, DemoVersion, Any]]:
        return [
            (model, version, image)
            for model in self.catalogue
            if model.mode != "TakenDown"
            for version in model.published
            for image in version.images
        ]

    def _numbered(self, request: Request, items: list[dict[str, Any]]) -> Answer:
        reader = Reader(request.params)
        limit, page = reader.number("limit", 20, 1, 200), reader.number("page", 1, 1)
        if reader.issues:
            return Answer.of_json(reader.issues, 400)
        wanted = (reader.text("query") or "").lower()
        found = [item for item in items if wanted in str(item.get("name", item.get("username"))).lower()]
        metadata = {"totalItems": len(found), "currentPage": page, "pageSize": limit}
        return Answer.of_json({"items": found[(page - 1) * limit : page * limit], "metadata": metadata})


_V1 = "/api/v1"
_Endpoint = Callable[..., Answer]
_ROUTES: tuple[tuple[str, _Endpoint, bool], ...] = (
    # path pattern, endpoint, whether it accepts any HTTP method
    (f"{_V1}/models", Api.models, False),
    (f"{_V1}/models/([^/]+)", Api.model, True),
    (f"{_V1}/model-versions/by-hash/([^/]+)(?<!/ids)", Api.by_hash, True),
    (f"{_V1}/model-versions/by-hash/ids", Api.ids_by_hash, True),
    (f"{_V1}/model-versions/by-hash", Api.by_hashes, True),
    (f"{_V1}/model-versions/mini/([^/]+)", Api.mini, False),
    (f"{_V1}/model-versions/([^/]+)", Api.version, False),
    (f"{_V1}/model-files/([^/]+)/tensor-metadata", Api.tensors, False),
    (f"{_V1}/me", Api.me, False),
    (f"{_V1}/enums", Api.enums, True),
    (f"{_V1}/tags", Api.tags, True),
    (f"{_V1}/creators", Api.creators, True),
    (f"{_V1}/images", Api.images, True),
    (r"/api/download/models/(\d+)", Api.download, True),
    (r"/api/download/training-data/(\d+)", Api.training_data, True),
    (rf"/{IMAGE_BUCKET}/[\w-]+/[^/]+/(\d+)\.\w+", Api.picture, True),
    (r"/login|/models/\d+.*|/model-versions/\d+", Api.page, True),
)


def _zod_error(issues: list[Issue]) -> Answer:
    message = json.dumps(issues, indent=2, ensure_ascii=False)
    return Answer.of_json({"error": {"name": "ZodError", "message": message}}, 400)


def _id(text: str) -> int | str:
    """Parse the id in a path. If the id is invalid, return the text of the validation error."""
    if not re.fullmatch(r"[+-]?\d+", text):
        return "✖ Invalid input: expected number, received NaN\n  → at id"
    if int(text) > INT4:
        return f"✖ Too big: expected number to be <={INT4}\n  → at id"
    return int(text) if int(text) > 0 else "✖ Too small: expected number to be >0\n  → at id"


def _digests(request: Request, most: int) -> list[str] | Answer:
    """Parse the SHA-256 digests of a bulk request; returns an error response if the request is invalid."""
    if request.method != "POST":
        return error(405, "Method not allowed")
    issues: list[dict[str, Any]] = []
    digests: Any = None
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            digests = json.loads(request.body)
        except ValueError:
            return error(400, "Invalid JSON")
    if not isinstance(digests, list):
        issues = [{"expected": "array", "code": "invalid_type", "path": [],
                   "message": "Invalid input: expected array"}]  # fmt: skip
    elif len(digests) > most:
        issues = [{"origin": "array", "code": "too_big", "maximum": most, "inclusive": True, "path": [],
                   "message": f"Too big: expected array to have <={most} items"}]  # fmt: skip
    else:
        issues = [
            {"code": "custom", "path": [place], "message": "Invalid hash"}
            for place, digest in enumerate(digests)
            if not (isinstance(digest, str) and re.fullmatch(r"[0-9A-Fa-f]{64}", digest))
        ]
    if issues:
        return error(400, f"Request must include an array of SHA256 Hashes. {json.dumps(issues, indent=2)}")
    return list(digests)
