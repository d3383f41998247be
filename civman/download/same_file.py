"""Whether an answer is of the file that was meant, and of the same one as the bytes that are here."""

from civman.civitai.response_body import Body
from civman.errors import BadAnswer, Cause, CivmanError, IntegrityError
from civman.store.partial import Partial
from civman.store.resume_journal import Validator


class Changed(Exception):  # a turn of events, not an error
    """The file behind the address is not the one that the first bytes came from: they are of no use any more."""


class Identity:
    """What is known of a file before and while it comes. Not thread-safe: the owner holds a lock."""

    def __init__(
        self, partial: Partial, *, size_bytes: int | None, name: str, has_digest: bool, compares_etags: bool
    ) -> None:
        """`size_bytes` is what CivitAI declares, if it does.

        `has_digest`: all bytes will be compared with a declared SHA-256. Without one, bytes of an earlier attempt
        count only if the storage calls both by one ETag. `compares_etags`: whether a changed ETag means Changed.
        """
        self.size_bytes = size_bytes
        self._partial = partial
        self._name = name
        self._has_digest = has_digest
        self._compares_etags = compares_etags

    @property
    def etag(self) -> str | None:
        """What the storage is to compare before it sends a part, if anything."""
        validator = self._partial.validator if self._compares_etags else None
        return validator.etag if validator else None

    def check(self, body: Body, *, is_first: bool) -> int:
        """The file's size, if `body` is of the file; `is_first`: no answer has been accepted in this attempt.

        Raises: Changed. IntegrityError: not as long as declared. BadAnswer: nobody says how long it is.
        """
        self._check_size(body.total_bytes, body.host)
        self._check_etag(body, is_first=is_first)
        size = body.total_bytes or self.size_bytes
        if size is None:
            raise BadAnswer(f"`{body.host}` does not say how long `{self._name}` is", code=Cause.NO_LENGTH)
        if is_first and self._partial.size_bytes not in (None, size):
            raise Changed(f"it had {self._partial.size_bytes:,} bytes before and has {size:,} now")
        return size

    def keep(self, body: Body) -> None:
        """Remember by which name the storage calls the content of `body`, which was accepted."""
        if body.etag:
            self._partial.validator = Validator(body.host, body.etag)

    def check_refusal(self, error: CivmanError) -> None:
        """Hold a 416's word on the length against what is known. Raises: IntegrityError, Changed."""
        total = error.facts.get("total_bytes")
        offered = total if isinstance(total, int) else None
        self._check_size(offered, str(error.facts.get("host")))
        if offered is not None and self._partial.size_bytes not in (None, offered):
            raise Changed("the server has another number of bytes than it had")

    def _check_size(self, offered: int | None, host: str) -> None:
        declared = self.size_bytes
        if offered is not None and declared is not None and offered != declared:
            raise IntegrityError(
                f"`{self._name}` should have {declared:,} bytes, `{host}` offers {offered:,}",
                code=Cause.SIZE_MISMATCH,
                expected_bytes=declared,
                offered_bytes=offered,
                hint="the file behind this version has changed, or something answers in CivitAI's place; "
                "look at `civman show` again later",
            )

    def _check_etag(self, body: Body, *, is_first: bool) -> None:
        known = self._partial.validator
        is_same_host = known is not None and known.host == body.host
        if self._compares_etags and known and is_same_host and body.etag and known.etag != body.etag:
            raise Changed("the file behind the address was replaced")
        if not is_first or self._has_digest or not self._partial.held_bytes:
            return
        if not (known and is_same_host and known.etag == body.etag and not known.etag.startswith("W/")):
            raise Changed("nothing proves that the bytes kept from an earlier attempt are of the same file")
