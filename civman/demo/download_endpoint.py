"""`/api/download/models/{version id}`: access checks, choice of the file, redirect to storage.

Source: CivitAI's public source (download endpoint), August 2026.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from civman.demo.demo_catalog import Catalogue, DemoModel, DemoVersion
from civman.demo.enums import Vocabulary
from civman.demo.file_selection import computed_name, requested_file
from civman.demo.http_messages import Answer, Request
from civman.demo.response_json import iso
from civman.demo.storage_server import Storage

_BROWSERS = ("mozilla", "chrome", "safari", "firefox", "opera", "edge")


def error(status: int, text: str) -> Answer:
    """Build an error response in the format that most of CivitAI's endpoints use."""
    return Answer.of_json({"error": text}, status)


@dataclass(frozen=True, slots=True)
class Downloads:
    """Redirects clients that may download a file to its signed storage URL."""

    catalogue: Catalogue
    vocabulary: Vocabulary
    storage: Storage
    storage_origin: str
    clock: Callable[[], datetime]
    token: str
    granted: frozenset[int]
    """Versions whose early access the owner of the token has bought."""

    def is_signed_in(self, request: Request) -> bool:
        """Whether the request contains the valid API key, in its `Authorization` header or else in `?token=`."""
        words = request.headers.get("authorization", "").split()
        given = words[1] if len(words) > 1 else request.first.get("token")
        return given == self.token

    def refusal(self, request: Request, model: DemoModel, version: DemoVersion) -> Answer | None:
        """Build the response that refuses a request for the version's files; None if the request is allowed."""
        if model.mode == "Archived":
            return error(410, "Model archived, not available for download")
        if version.usage_control != "Download":
            message = "The creator of this asset has disabled downloads on this file"
            return Answer.of_json({"error": "Unauthorized", "message": message}, 401)
        if not self.is_signed_in(request):
            message = "The creator of this asset requires you to be logged in to download it"
            return Answer.of_json({"error": "Unauthorized", "message": message}, 401)
        if version.id in self.granted:
            return None
        if version.gate and version.gate.is_active(self.clock()):
            message = "This asset is in Early Access. You can use Buzz access it now!"
            deadline = {"deadline": iso(version.gate.ends_at)} if version.gate.ends_at else {}
            return Answer.of_json({"error": "Early Access", **deadline, "message": message}, 403)
        if "Private" in (model.availability, version.availability):
            return error(403, "You do not have access to download this file")
        return None

    def answer(self, request: Request, version_id: int) -> Answer:
        """Redirect to the file in storage, or refuse.

        Some refusals are sent to browsers as a redirect or as text, not as JSON.
        """
        answer = self._answer(request, version_id)
        return self._for_browser(answer, version_id) if _is_browser(request) else answer

    def _answer(self, request: Request, version_id: int) -> Answer:
        if request.method == "HEAD":
            return error(401, "Unauthorized")  # the live site refuses every HEAD request, even with a valid key
        complaint = self._wrong_parameter(request)
        if complaint:
            return error(400, complaint)
        found = self.catalogue.version(version_id)
        if found is None or found[0].poi or (found[0].status, found[1].status) != ("Published", "Published"):
            return error(404, "File not found")
        refusal = self.refusal(request, *found)
        if refusal:
            return refusal
        file = requested_file(self.catalogue, found[1], request.first)
        if file is None:
            return error(404, "File not found")
        return Answer.redirect(self.storage_origin + self.storage.signed_target(file, computed_name(*found, file)))

    def _wrong_parameter(self, request: Request) -> str | None:
        given, sets = request.first, self.vocabulary.sets
        for name, allowed in (("type", "ModelFileType"), ("format", "file_format"), ("size", "file_size")):
            if name in given and given[name] not in sets[allowed]:
                options = "|".join(f'"{value}"' for value in sets[allowed])
                return f"✖ Invalid option: expected one of {options}\n  → at {name}"
        if "fileId" in given and not re.fullmatch(r"\d+", given["fileId"]):
            return "✖ Invalid input: expected number, received NaN\n  → at fileId"
        return None

    def _for_browser(self, answer: Answer, version_id: int) -> Answer:
        body = bytes(answer.body)
        if answer.status == 401 and b"logged in" in body:
            return Answer.redirect(f"/login?returnUrl=%2Fmodel-versions%2F{version_id}&reason=download-auth")
        if answer.status == 403 and b"Early Access" in body:
            return Answer.redirect(f"/model-versions/{version_id}")
        if answer.status in (403, 404, 410):
            text = re.sub(r'^\{"error":"|"\}$', "", body.decode())
            return Answer.of_text(text, answer.status)
        return answer


def _is_browser(request: Request) -> bool:
    agent = request.headers.get("user-agent", "").lower()
    return any(word in agent for word in _BROWSERS)
