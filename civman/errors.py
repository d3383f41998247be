"""Every exception civman raises on purpose, and every exit code.

An error names its cause in the message, the way out in `hint`, and carries its facts as plain strings and
numbers, so that a caller can act on them and `--json` can print them.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a civman process ends with. Documented in docs/exit-codes.md, never reused."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    NETWORK = 5
    INTEGRITY = 6
    INCOMPATIBLE = 7
    CANNOT_RENDER = 8
    CLOSE = 9
    DIFFERENT = 10
    BUG = 70
    INTERRUPTED = 130


Fact = str | int | float | bool | None | list[str] | list[int]


class CivmanError(Exception):
    """Root of all errors civman raises on purpose.

    `code` is kebab-case and stable, `exit_code` what the process ends with, `hint` the next step for a person
    (may be empty), `facts` plain values for `--json`, `result` what was done all the same, by kind.
    """

    code: str = "failed"
    exit_code: ExitCode = ExitCode.FAILED
    hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None, **facts: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        self.result: dict[str, object] = {}
        if hint is not None:
            self.hint = hint
        if code is not None:
            self.code = code


class UsageError(CivmanError):
    """The command was asked for something that makes no sense as typed."""

    code = "usage"
    exit_code = ExitCode.USAGE


class InvalidRef(UsageError):
    """The text names nothing civman knows how to look up."""

    code = "invalid-ref"
    hint = "try a model id, `model@version`, a civitai.com address, an AIR, a hash or a file path"


class AmbiguousRef(UsageError):
    """The text could mean several things; `facts['candidates']` lists refs that mean one each."""

    code = "ambiguous-ref"


class ConfigError(UsageError):
    """A setting cannot be read or makes no sense."""

    code = "bad-setting"


class NotFound(CivmanError):
    """Neither CivitAI nor the library knows it."""

    code = "not-found"
    exit_code = ExitCode.NOT_FOUND


class Gone(NotFound):
    """CivitAI knew it and took it away: archived, taken down or deleted."""

    code = "gone"


class NotAllowed(CivmanError):
    """CivitAI knows it but will not hand it to this key: `code` tells which gate."""

    code = "not-allowed"
    exit_code = ExitCode.NOT_ALLOWED


class Refused(CivmanError):
    """civman itself declines for safety (a pickle, a failed scan, no hash to verify by)."""

    code = "refused"
    exit_code = ExitCode.NOT_ALLOWED


class NetworkError(CivmanError):
    """The other side could not be reached, or answered in a way that may pass."""

    code = "network"
    exit_code = ExitCode.NETWORK


class Offline(NetworkError):
    """The network is needed and switched off."""

    code = "offline"
    hint = "unset CIVMAN_OFFLINE or leave out --offline"


class BadAnswer(NetworkError):
    """The other side answered with something that is not what was asked for (a login page, broken JSON)."""

    code = "bad-answer"


class UnsafeRedirect(NetworkError):
    """The other side pointed at a place civman does not follow."""

    code = "unsafe-redirect"


class IntegrityError(CivmanError):
    """Bytes are not what they are declared to be."""

    code = "integrity"
    exit_code = ExitCode.INTEGRITY


class HashMismatch(IntegrityError):
    """The bytes are not the bytes that were declared."""

    code = "hash-mismatch"
    hint = "download again; if it repeats, the file behind this version has changed"

    def __init__(self, *, name: str, expected: str, actual: str, algorithm: str = "sha256") -> None:
        super().__init__(
            f"wrong bytes in `{name}`: {algorithm} should be {expected}, is {actual}",
            name=name,
            expected=expected,
            actual=actual,
            algorithm=algorithm,
        )


class InvalidModelFile(IntegrityError):
    """The file is not a model file of the kind its name says (broken header, web page, truncated)."""

    code = "invalid-model-file"


class StoreError(CivmanError):
    """The library's folder cannot be read or written."""

    code = "store"


class DiskFull(StoreError):
    """There is not room enough."""

    code = "disk-full"


class LibraryError(CivmanError):
    """The library's database cannot be used."""

    code = "index"


class NewerLibrary(LibraryError):
    """A newer civman wrote this database."""

    code = "newer-library"
    hint = "update civman, or use another library with --library"


class Incompatible(CivmanError):
    """The parts cannot work together."""

    code = "incompatible"
    exit_code = ExitCode.INCOMPATIBLE


class Interrupted(CivmanError):
    """The user stopped it; what can be kept was kept."""

    code = "interrupted"
    exit_code = ExitCode.INTERRUPTED


class PartlyFailedError(CivmanError):
    """Of several things some failed, and were told of; the rest is done. Ends with the first failure's code."""

    code = "partly-failed"

    def __init__(self, message: str, *, exit_code: ExitCode, refs: list[str]) -> None:
        super().__init__(message, refs=refs)
        self.exit_code = exit_code


class CannotRender(CivmanError):
    """No picture that could be called one can come of it: parts missing, memory short, or the pixels are spoilt."""

    code = "cannot-render"
    exit_code = ExitCode.CANNOT_RENDER


class NotIdentical(CivmanError):
    """A picture was made again and its pixels are not the same: `close` or `different`."""

    code = "different"
    exit_code = ExitCode.DIFFERENT

    def __init__(self, message: str, *, is_close: bool, hint: str | None = None, **facts: Fact) -> None:
        super().__init__(message, hint=hint, code="close" if is_close else "different", **facts)
        self.exit_code = ExitCode.CLOSE if is_close else ExitCode.DIFFERENT
