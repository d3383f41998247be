"""Every exception that civman raises on purpose; `civman.error_codes` has the codes that they carry.

An error names its cause in the message and the remedy in `hint`. It carries its facts as plain strings and numbers, so
that callers can act on them and `--json` can print them.
"""

from civman.error_codes import Cause as Cause
from civman.error_codes import ExitCode as ExitCode
from civman.error_codes import Recovery as Recovery

Fact = str | int | float | bool | None | list[str] | list[int]


class CivmanError(Exception):
    """Base class of all errors that civman raises on purpose.

    `code` is the cause, `exit_code` is the process's exit code, `hint` is the next step for the user (may
    be empty), and `facts` are plain values for `--json`. `result` contains what was completed despite the error, as the
    result's kind and value; it is empty if nothing was.
    """

    code: Cause = Cause.FAILED
    exit_code: ExitCode = ExitCode.FAILED
    hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None, code: Cause | None = None, **facts: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        self.result: dict[str, object] = {}
        self.is_in_result = False
        """Whether the error was already printed as part of the partial JSON result of the command that failed."""
        if hint is not None:
            self.hint = hint
        if code is not None:
            self.code = code


class UsageError(CivmanError):
    """The command line or an argument is invalid."""

    code = Cause.USAGE
    exit_code = ExitCode.USAGE


class InvalidRef(UsageError):
    """The text is not a ref in any known form."""

    code = Cause.INVALID_REF
    hint = "try a model id, `model@version`, a civitai.com URL, an AIR, a hash or a file path"


class AmbiguousRef(UsageError):
    """The text could mean several things; `facts['candidates']` lists an unambiguous ref for each of them."""

    code = Cause.AMBIGUOUS_REF


class ConfigError(UsageError):
    """A setting is invalid or cannot be read."""

    code = Cause.BAD_SETTING


class NotFound(CivmanError):
    """What was requested was not found on CivitAI or in the library."""

    code = Cause.NOT_FOUND
    exit_code = ExitCode.NOT_FOUND


class Gone(NotFound):
    """What was requested was on CivitAI but is no longer available: archived, taken down or deleted."""

    code = Cause.GONE


class NotAllowed(CivmanError):
    """CivitAI refuses the request with this API key, or without one; `code` is the reason."""

    code = Cause.NOT_ALLOWED
    exit_code = ExitCode.NOT_ALLOWED


class Refused(CivmanError):
    """civman refuses the file for safety: a pickle, a failed scan, or no digest to verify against."""

    code = Cause.REFUSED
    exit_code = ExitCode.NOT_ALLOWED


class NetworkError(CivmanError):
    """The server could not be reached, or responded with an error that may be temporary."""

    code = Cause.NETWORK
    exit_code = ExitCode.NETWORK


class Offline(NetworkError):
    """The command needs the network, but civman is offline."""

    code = Cause.OFFLINE
    hint = "unset CIVMAN_OFFLINE or leave out --offline"


class BadAnswer(NetworkError):
    """The server sent something other than what was requested, such as a login page or invalid JSON."""

    code = Cause.BAD_ANSWER


class UnsafeRedirect(NetworkError):
    """The server redirected to a URL that civman does not open."""

    code = Cause.UNSAFE_REDIRECT


class IntegrityError(CivmanError):
    """Data differs from what was declared."""

    code = Cause.INTEGRITY
    exit_code = ExitCode.INTEGRITY


class HashMismatch(IntegrityError):
    """A file's bytes do not match the declared digest."""

    code = Cause.HASH_MISMATCH
    hint = "download the file again; if the error is the same, CivitAI has replaced the file of this version"

    def __init__(self, *, name: str, expected: str, actual: str, algorithm: str = "sha256") -> None:
        super().__init__(
            f"`{name}` is corrupt: its {algorithm} should be {expected} but is {actual}",
            name=name,
            expected=expected,
            actual=actual,
            algorithm=algorithm,
        )


class InvalidModelFile(IntegrityError):
    """The file is not the kind of model file that its name suggests: it is, for example, truncated or a web page."""

    code = Cause.INVALID_MODEL_FILE


class StoreError(CivmanError):
    """The library's folder cannot be read or written."""

    code = Cause.STORE


class DiskFull(StoreError):
    """There is not enough disk space."""

    code = Cause.DISK_FULL


class LibraryError(CivmanError):
    """The library's database cannot be used."""

    code = Cause.INDEX


class NewerLibrary(LibraryError):
    """A newer version of civman wrote this database."""

    code = Cause.NEWER_LIBRARY
    hint = "update civman, or use another library with --library"


class Incompatible(CivmanError):
    """The files cannot work together."""

    code = Cause.INCOMPATIBLE
    exit_code = ExitCode.INCOMPATIBLE


class UnknownFit(CivmanError):
    """Whether the files work together is unknown, because too little is known about them."""

    code = Cause.UNKNOWN_FIT
    exit_code = ExitCode.UNKNOWN


class Interrupted(CivmanError):
    """The user interrupted the command; finished results were kept."""

    code = Cause.INTERRUPTED
    exit_code = ExitCode.INTERRUPTED


class PartlyFailedError(CivmanError):
    """Some of several items failed, and their errors were shown; the others succeeded.

    The exit code is that of the first failure.
    """

    code = Cause.PARTLY_FAILED

    def __init__(self, message: str, *, exit_code: ExitCode, refs: list[str]) -> None:
        super().__init__(message, refs=refs)
        self.exit_code = exit_code


class CannotRender(CivmanError):
    """No valid image can be produced: parts are missing, there is not enough memory, or the output is invalid."""

    code = Cause.CANNOT_RENDER
    exit_code = ExitCode.CANNOT_RENDER


class NotIdentical(CivmanError):
    """A replayed image does not have the same pixels as the original; the verdict is `close` or `different`."""

    code = Cause.DIFFERENT
    exit_code = ExitCode.DIFFERENT

    def __init__(self, message: str, *, is_close: bool, hint: str | None = None, **facts: Fact) -> None:
        super().__init__(message, hint=hint, code=Cause.CLOSE if is_close else Cause.DIFFERENT, **facts)
        self.exit_code = ExitCode.CLOSE if is_close else ExitCode.DIFFERENT


class AnotherPicture(CivmanError):
    """An image rendered from another program's settings differs from the original.

    `is_known` is False if the comparison cannot tell whether it is the same image.
    """

    code = Cause.ANOTHER_PICTURE
    exit_code = ExitCode.ANOTHER

    def __init__(self, message: str, *, is_known: bool, hint: str | None = None, **facts: Fact) -> None:
        code = Cause.ANOTHER_PICTURE if is_known else Cause.CANNOT_TELL
        super().__init__(message, hint=hint, code=code, **facts)
        self.exit_code = ExitCode.ANOTHER if is_known else ExitCode.UNKNOWN
