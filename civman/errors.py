"""Every exception that civman raises on purpose, and every exit code.

An error names its cause in the message and the remedy in `hint`. It carries its facts as plain strings and numbers, so
that callers can act on them and `--json` can print them.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of a civman process. Documented in docs/exit-codes.md and never reused."""

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
    """Base class of all errors that civman raises on purpose.

    `code` is kebab-case and stable, `exit_code` is the process's exit code, `hint` is the next step for the user (may
    be empty), `facts` are plain values for `--json`, and `result` is what was completed despite the error, by kind.
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
    """The command line or an argument is invalid."""

    code = "usage"
    exit_code = ExitCode.USAGE


class InvalidRef(UsageError):
    """The text is not a ref in any known form."""

    code = "invalid-ref"
    hint = "try a model id, `model@version`, a civitai.com address, an AIR, a hash or a file path"


class AmbiguousRef(UsageError):
    """The text could mean several things; `facts['candidates']` lists refs that each mean exactly one."""

    code = "ambiguous-ref"


class ConfigError(UsageError):
    """A setting is invalid or cannot be read."""

    code = "bad-setting"


class NotFound(CivmanError):
    """Neither CivitAI nor the library has it."""

    code = "not-found"
    exit_code = ExitCode.NOT_FOUND


class Gone(NotFound):
    """It was on CivitAI but is no longer available: archived, taken down or deleted."""

    code = "gone"


class NotAllowed(CivmanError):
    """CivitAI has it but refuses it to this API key; `code` says why."""

    code = "not-allowed"
    exit_code = ExitCode.NOT_ALLOWED


class Refused(CivmanError):
    """civman refuses for safety: a pickle, a failed scan, or no digest to verify against."""

    code = "refused"
    exit_code = ExitCode.NOT_ALLOWED


class NetworkError(CivmanError):
    """The server could not be reached, or responded with an error that may be temporary."""

    code = "network"
    exit_code = ExitCode.NETWORK


class Offline(NetworkError):
    """The command needs the network, but civman is offline."""

    code = "offline"
    hint = "unset CIVMAN_OFFLINE or leave out --offline"


class BadAnswer(NetworkError):
    """The server sent something other than what was requested, such as a login page or invalid JSON."""

    code = "bad-answer"


class UnsafeRedirect(NetworkError):
    """The server redirected to a URL that civman does not open."""

    code = "unsafe-redirect"


class IntegrityError(CivmanError):
    """Data differs from what was declared."""

    code = "integrity"
    exit_code = ExitCode.INTEGRITY


class HashMismatch(IntegrityError):
    """A file's bytes do not match the declared digest."""

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
    """The file is not a model file of the kind that its name suggests: invalid header, web page, truncated."""

    code = "invalid-model-file"


class StoreError(CivmanError):
    """The library's folder cannot be read or written."""

    code = "store"


class DiskFull(StoreError):
    """Not enough disk space."""

    code = "disk-full"


class LibraryError(CivmanError):
    """The library's database cannot be used."""

    code = "index"


class NewerLibrary(LibraryError):
    """A newer version of civman wrote this database."""

    code = "newer-library"
    hint = "update civman, or use another library with --library"


class Incompatible(CivmanError):
    """The files cannot work together."""

    code = "incompatible"
    exit_code = ExitCode.INCOMPATIBLE


class Interrupted(CivmanError):
    """The user interrupted it; finished results were kept."""

    code = "interrupted"
    exit_code = ExitCode.INTERRUPTED


class PartlyFailedError(CivmanError):
    """Some of several items failed, and their errors were shown; the others are done.

    Has the first failure's exit code.
    """

    code = "partly-failed"

    def __init__(self, message: str, *, exit_code: ExitCode, refs: list[str]) -> None:
        super().__init__(message, refs=refs)
        self.exit_code = exit_code


class CannotRender(CivmanError):
    """No valid image can be made: parts are missing, memory is too small, or the output is invalid."""

    code = "cannot-render"
    exit_code = ExitCode.CANNOT_RENDER


class NotIdentical(CivmanError):
    """A replayed image does not have the same pixels: it is `close` or `different`."""

    code = "different"
    exit_code = ExitCode.DIFFERENT

    def __init__(self, message: str, *, is_close: bool, hint: str | None = None, **facts: Fact) -> None:
        super().__init__(message, hint=hint, code="close" if is_close else "different", **facts)
        self.exit_code = ExitCode.CLOSE if is_close else ExitCode.DIFFERENT
