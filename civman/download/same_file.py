"""Checks that a response belongs to the requested file, and to the same file as the bytes received earlier."""

from civman.civitai.response_body import Body
from civman.errors import BadAnswer, Cause, CivmanError, IntegrityError
from civman.store.partial import Partial
from civman.store.resume_journal import Validator


class Changed(Exception):  # this exception signals a restart, not a failure, so its name does not end in Error
    """The file on the server has changed since the first bytes were received, so those bytes cannot be used."""


class Identity:
    """The known size and ETag of the file that is being downloaded. Not thread-safe: the owner must hold a lock."""

    def __init__(
        self, partial: Partial, *, size_bytes: int | None, name: str, has_digest: bool, compares_etags: bool
    ) -> None:
        """`size_bytes` is the size that CivitAI declares, or None.

        `has_digest`: the complete file will be compared with a declared SHA-256. Without it, bytes from an earlier
        attempt are used only if the storage server sends the same strong ETag as before. `compares_etags`: whether a
        changed ETag raises Changed.
        """
        self.size_bytes = size_bytes
        self._partial = partial
        self._name = name
        self._has_digest = has_digest
        self._compares_etags = compares_etags

    @property
    def etag(self) -> str | None:
        """The ETag that the file must still have, to be sent as If-Range. None: unknown, or not compared."""
        validator = self._partial.validator if self._compares_etags else None
        return validator.etag if validator else None

    def check(self, body: Body, *, is_first: bool) -> int:
        """Check that the response `body` belongs to this file, and return the file's size.

        `is_first`: no response was accepted before in this attempt.

        Raises: Changed. IntegrityError: the size is not the declared one. BadAnswer: neither the server nor CivitAI
            states a size.
        """
        self._check_size(body.total_bytes, body.host)
        self._check_etag(body, is_first=is_first)
        size = body.total_bytes or self.size_bytes
        if size is None:
            raise BadAnswer(f"`{body.host}` does not state the size of `{self._name}`", code=Cause.NO_LENGTH)
        if is_first and self._partial.size_bytes not in (None, size):
            raise Changed(f"the file's size changed from {self._partial.size_bytes:,} to {size:,} bytes")
        return size

    def keep(self, body: Body) -> None:
        """Record the ETag of an accepted response in the partial file, for checking later responses."""
        if body.etag:
            self._partial.validator = Validator(body.host, body.etag)

    def check_refusal(self, error: CivmanError) -> None:
        """Compare the file size in a response with status 416 with the known size.

        Raises: IntegrityError, Changed.
        """
        total = error.facts.get("total_bytes")
        offered = total if isinstance(total, int) else None
        self._check_size(offered, str(error.facts.get("host")))
        if offered is not None and self._partial.size_bytes not in (None, offered):
            raise Changed(f"the file's size changed from {self._partial.size_bytes:,} to {offered:,} bytes")

    def _check_size(self, offered: int | None, host: str) -> None:
        declared = self.size_bytes
        if offered is not None and declared is not None and offered != declared:
            raise IntegrityError(
                f"`{self._name}` should have {declared:,} bytes, but on `{host}` it has {offered:,}",
                code=Cause.SIZE_MISMATCH,
                expected_bytes=declared,
                offered_bytes=offered,
                hint="the creator has replaced the file, or another server is answering in place of CivitAI; "
                "check again later with `civman show`",
            )

    def _check_etag(self, body: Body, *, is_first: bool) -> None:
        known = self._partial.validator
        is_same_host = known is not None and known.host == body.host
        if self._compares_etags and known and is_same_host and body.etag and known.etag != body.etag:
            raise Changed("the file on the server was replaced")
        if not is_first or self._has_digest or not self._partial.held_bytes:
            return
        if not (known and is_same_host and known.etag == body.etag and not known.etag.startswith("W/")):
            raise Changed("the bytes from an earlier attempt may belong to another version of the file")
