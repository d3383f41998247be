"""A bucket of an S3-compatible object store that stores blobs under their digests, as a second copy of a library.

Keys below the prefix in the store's URL: `blobs/sha256/ab/<sha256>` is a file; next to it are its sidecar
`<sha256>.civman.json` and its preview image `<sha256>.preview.<ext>`. An object is either complete or absent,
because a multipart upload becomes visible only when it is finished. Callers must verify the digests of what they read.
"""

import configparser
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from civman.domain.digests import Sha256
from civman.errors import BadAnswer, Cause, CivmanError, NetworkError, NotAllowed, NotFound, UsageError
from civman.manage.second_copies import StoreLeftover

_SCHEME = "s3"
_OPTIONS = ("endpoint", "region")
_EXAMPLE = "s3://bucket/models or s3://bucket?endpoint=https://minio.example:9000"
_BLOB = re.compile(r"blobs/sha256/[0-9a-f]{2}/([0-9a-f]{64})")
_BESIDE = re.compile(r"blobs/sha256/[0-9a-f]{2}/([0-9a-f]{64})\.(?:civman\.json|preview\.[A-Za-z0-9]+)")
_SIGNED_FOR = timedelta(hours=1)
_MOST_SMALL_BYTES = 32 << 20
_PART_BYTES = 32 << 20
_PARTS_AT_ONCE = 4
_READ_BYTES = 8 << 20
_OTHER_CREDENTIALS = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                      "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A bucket, the prefix of its keys ("" or ending in a slash), and the server's URL if it is not Amazon's."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse `s3://bucket/prefix?endpoint=URL&region=NAME`. Raises: UsageError (`bad-store`)."""
        try:
            parts = urlsplit(url.strip())
            options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        except ValueError:
            raise _bad(url) from None
        if parts.scheme != _SCHEME or not parts.netloc or "@" in parts.netloc or parts.fragment:
            raise _bad(url)
        if unknown := options.keys() - set(_OPTIONS):
            raise UsageError(
                f"`{url}` has an unknown option `{min(unknown)}`", hint=f"the options are {', '.join(_OPTIONS)}",
                code=Cause.BAD_STORE,
            )  # fmt: skip
        endpoint = options.get("endpoint", [None])[0]
        if endpoint is not None and (
            urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname
        ):
            raise UsageError(
                f"the endpoint in `{url}` is not a web URL", hint=f"for example {_EXAMPLE}", code=Cause.BAD_STORE
            )
        path = parts.path.strip("/")
        return cls(parts.netloc, f"{path}/" if path else "", endpoint, options.get("region", [None])[0])

    def __str__(self) -> str:
        return f"{_SCHEME}://{self.bucket}/{self.prefix}".rstrip("/")


def _bad(url: str) -> UsageError:
    return UsageError(
        f"`{url}` is not the URL of an object store", hint=f"for example {_EXAMPLE}", code=Cause.BAD_STORE
    )


class ObjectStore:
    """An open connection to a bucket. Its methods raise NetworkError, NotAllowed and NotFound (no such bucket)."""

    def __init__(self, address: StoreAddress, store: Any, server: tuple[str, str]) -> None:
        """`store` is obstore's client; `server` is the scheme and the host with port of signed URLs."""
        self.address = address
        self.server = server
        self._store = store

    @classmethod
    def open(cls, url: str, *, environ: Mapping[str, str] | None = None, home: Path | None = None) -> Self:
        """Open the store at `url`. No request is sent yet.

        Access keys are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, else from ~/.aws/credentials (the profile
        in AWS_PROFILE, or "default").

        Raises: UsageError: `url` is invalid, or the extra `s3` is not installed. NotAllowed (`no-key`): there are no
        access keys.
        """
        address = StoreAddress.parse(url)
        environ = os.environ if environ is None else environ
        settings = _credentials(environ, home or Path.home())
        if not settings and not any(environ.get(name) for name in _OTHER_CREDENTIALS):
            raise NotAllowed(
                f"there are no access keys for `{address}`",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to ~/.aws/credentials",
                code=Cause.NO_KEY,
            )
        endpoint = address.endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        region = address.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        settings |= {"region": region, "checksum_algorithm": "SHA256"}
        if endpoint:
            settings["endpoint"] = endpoint.rstrip("/")
        made = _obstore_store()(
            address.bucket,
            prefix=address.prefix.rstrip("/") or None,
            client_options={"allow_http": bool(endpoint and endpoint.startswith("http://")), "connect_timeout": "15s"},
            retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=60)},
            **settings,
        )
        return cls(address, made, _server(made))

    def blobs(self) -> dict[Sha256, int]:
        """Map the digests of all blobs in the store to their sizes in bytes."""
        found: dict[Sha256, int] = {}
        with self._errors():
            for page in _obstore().list(self._store, prefix="blobs/sha256/"):
                for entry in page:
                    if match := _BLOB.fullmatch(entry["path"]):
                        found[Sha256(match[1])] = int(entry["size"])
        return found

    def orphaned_companions(self, before: datetime) -> list[StoreLeftover]:
        """List sidecars and previews that were written before `before` and whose blob is not in the store.

        An upload writes sidecar and preview before the blob, so recent ones may belong to an unfinished upload. Objects
        that civman did not write are left out.
        """
        found: list[StoreLeftover] = []
        blobs: set[str] = set()
        with self._errors():
            for page in _obstore().list(self._store, prefix="blobs/sha256/"):
                for entry in page:
                    key, written_at = str(entry["path"]), entry["last_modified"]
                    if match := _BLOB.fullmatch(key):
                        blobs.add(match[1])
                    elif (match := _BESIDE.fullmatch(key)) and written_at < before:
                        found.append(StoreLeftover(key, Sha256(match[1]), int(entry["size"]), written_at))
        return [each for each in found if each.sha256 not in blobs]

    def drop_companions(self, leftovers: Iterable[StoreLeftover]) -> None:
        """Delete the sidecars and previews in `leftovers`."""
        with self._errors():
            if keys := [each.key for each in leftovers]:
                _obstore().delete(self._store, keys)

    def size_of(self, sha256: Sha256) -> int | None:
        """The size in bytes of a blob in the store; None if the store does not have it."""
        try:
            with self._errors():
                return int(_obstore().head(self._store, _key(sha256))["size"])
        except NotFound:
            return None

    def upload(self, sha256: Sha256, pieces: Iterable[bytes]) -> None:
        """Write a blob as a multipart upload; the server verifies the checksum of each part.

        If `pieces` raises an error, nothing is written.
        """
        with self._errors():
            _obstore().put(
                self._store, _key(sha256), iter(pieces), use_multipart=True, chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )  # fmt: skip

    def read(self, sha256: Sha256) -> Iterator[bytes]:
        """Read a blob from start to end, in pieces of a few megabytes.

        Raises: NotFound: the store does not have the blob.
        """
        with self._errors():
            for piece in _obstore().get(self._store, _key(sha256)).stream(min_chunk_size=_READ_BYTES):
                yield bytes(piece)

    def signed_url(self, sha256: Sha256) -> str:
        """Create a URL from which the blob can be downloaded for an hour without access keys. Sends no request."""
        with self._errors():
            return str(_obstore().sign(self._store, "GET", _key(sha256), _SIGNED_FOR))

    def delete(self, sha256: Sha256) -> None:
        """Delete a blob with its sidecar and preview."""
        with self._errors():
            beside = [entry["path"] for page in _obstore().list(self._store, prefix=_folder(sha256)) for entry in page]
            doomed = [path for path in beside if path.startswith(_key(sha256))]
            _obstore().delete(self._store, sorted(doomed))

    def write_companion(self, sha256: Sha256, ending: str, data: bytes) -> None:
        """Write a small file next to a blob, such as its sidecar (`ending` ".civman.json")."""
        with self._errors():
            _obstore().put(self._store, _key(sha256) + ending, data)

    def read_companion(self, sha256: Sha256, ending: str) -> bytes | None:
        """Read a small file next to a blob; None if it does not exist. Raises: BadAnswer: the file is too large."""
        try:
            with self._errors():
                found = _obstore().get(self._store, _key(sha256) + ending)
                if int(found.meta["size"]) > _MOST_SMALL_BYTES:
                    raise BadAnswer(f"`{_key(sha256)}{ending}` in `{self.address}` is too large")
                return bytes(found.bytes())
        except NotFound:
            return None

    def preview_ending(self, sha256: Sha256) -> str | None:
        """The end of the key of the blob's preview image, such as ".preview.jpeg"; None if there is no preview."""
        key = _key(sha256)
        with self._errors():
            for page in _obstore().list(self._store, prefix=_folder(sha256)):
                for entry in page:
                    if entry["path"].startswith(f"{key}.preview."):
                        return str(entry["path"].removeprefix(key))
        return None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert obstore's exceptions to civman's errors."""
        known = _exceptions()
        try:
            yield
        # for some missing objects, obstore raises Python's FileNotFoundError
        except (known.NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise NotFound(
                    f"there is no bucket `{self.address.bucket}`", hint="check the URL, its endpoint and its region"
                ) from error
            raise NotFound(f"the object is not in `{self.address}`") from error
        except (known.PermissionDeniedError, known.UnauthenticatedError) as error:
            raise NotAllowed(
                f"the object store refused access to `{self.address}`{_reason(error)}",
                hint="check the access keys and their permissions", code=Cause.STORAGE_REFUSED,
            ) from error  # fmt: skip
        except known.BaseError as error:
            raise self._network_error(error) from error

    def _network_error(self, error: Exception) -> CivmanError:
        scheme, host = self.server
        return NetworkError(
            f"the object store `{self.address}` cannot be used: {_first_line(error)}",
            hint=f"check that {scheme}://{host} can be reached, then try again; files that were transferred"
            " completely are kept",
        )


def _key(sha256: Sha256) -> str:
    return f"{_folder(sha256)}/{sha256}"


def _folder(sha256: Sha256) -> str:
    return f"blobs/sha256/{sha256[:2]}"


def _reason(error: Exception) -> str:
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return f": {found[1]}" if found else ""


def _first_line(error: Exception) -> str:
    """The first line of an obstore error, without technical details and without the keys in signed URLs."""
    line = str(error).partition("\n")[0].strip()
    line = re.sub(r"\?X-Amz-[^\s`]*", "", line)
    return line.removeprefix("Generic S3 error: ")[:300]


def _credentials(environ: Mapping[str, str], home: Path) -> dict[str, Any]:
    """The access keys as options for obstore; empty if there are none."""
    found = {name: value for name in _KEYS if (value := environ.get(name.upper()))}
    if found:
        return found
    file = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
    profiles = configparser.RawConfigParser()
    try:
        profiles.read(file, encoding="utf-8")
        profile = profiles[environ.get("AWS_PROFILE") or "default"]
    except (configparser.Error, KeyError, OSError, UnicodeDecodeError):
        return {}
    return {name: profile[name] for name in _KEYS if profile.get(name)}


def _server(store: Any) -> tuple[str, str]:
    parts = urlsplit(str(_obstore().sign(store, "GET", "x", timedelta(seconds=60))))
    return parts.scheme, parts.netloc


def _obstore() -> Any:
    try:
        import obstore  # imported here, because obstore is only installed with the extra `s3`
    except ImportError as error:
        raise UsageError(
            "object stores need the extra `s3`", hint="install it: pip install 'civman[s3]'", code=Cause.NO_S3_EXTRA
        ) from error
    return obstore


def _obstore_store() -> Any:
    _obstore()
    from obstore.store import S3Store

    return S3Store


def _exceptions() -> Any:
    _obstore()
    from obstore import exceptions

    return exceptions
