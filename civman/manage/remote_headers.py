"""Inspects files on CivitAI without downloading them, for example to check whether they fit a checkpoint.

Only the header is needed: CivitAI's list of the file's tensors if it has one, else the first bytes of the file, less
than a megabyte.
"""

from collections.abc import Callable

from civman.civitai.client import CivitaiClient
from civman.civitai.responses import DownloadAddress
from civman.civitai.storage_connection import StorageConnection
from civman.domain.catalog import ModelFile, ModelVersion
from civman.domain.compatibility import Verdict, check
from civman.domain.file_choice import is_pickle
from civman.domain.files.header import Header, Sniffed, Tensor, needed_bytes, parse, sniff
from civman.errors import BadAnswer, Cause, CivmanError, Incompatible
from civman.manage.inspection import Inspected, inspect_header
from civman.store.read_pickle import read_pickle_bytes

_FIRST_BYTES = 1 << 16
_MOST_BYTES = 8 << 20
"""The longest header that is downloaded just to inspect a file. The largest known ones are below 2 MB."""


class RemoteHeaders:
    """Downloads the headers of files on CivitAI, without the rest of the files."""

    def __init__(self, client: CivitaiClient, connect: Callable[[], StorageConnection]) -> None:
        self._client = client
        self._connect = connect

    def inspect(self, version: ModelVersion, file: ModelFile) -> Inspected:
        """Inspect a file of `version`.

        Raises: BadAnswer: the server cannot send the file's header alone. All errors of a download are possible, too.
        """
        header = self._from_list(file) or self._from_file(version, file)
        return inspect_header(
            header, name=file.name, label=version.base_model, model_type=version.model.type,
            content=Sniffed.PICKLE if is_pickle(file) else Sniffed.SAFETENSORS,
        )  # fmt: skip

    def _from_list(self, file: ModelFile) -> Header | None:
        """Convert CivitAI's list of the file's tensors to a header, without metadata and tensor offsets.

        None if there is no list.
        """
        if file.id is None:
            return None
        try:
            tensors = self._client.tensor_metadata(file.id)
        except CivmanError:
            return None  # the list is optional: the file itself is requested next, and its error is the one to report
        if not tensors:
            return None
        return Header({name: Tensor(dtype, shape, 0, 0) for name, dtype, shape in tensors}, {}, 0, file.size_bytes or 0)

    def _from_file(self, version: ModelVersion, file: ModelFile) -> Header:
        address = self._client.download_address(version.id, file)
        connection = self._connect()
        try:
            body = connection.open(address.url, start=0, end=_FIRST_BYTES, send_token=address.send_token)
            if not body.is_partial or body.total_bytes is None:
                raise BadAnswer(
                    f"`{body.host}` does not support downloading only a part of `{file.name}`", code=Cause.NO_RANGES
                )
            size = body.total_bytes
            first = body.read_all(_FIRST_BYTES)
            if sniff(first) is Sniffed.PICKLE:
                return self._of_pickle(connection, address, first, size, file.name)
            needed = needed_bytes(first, size)
            if needed > _MOST_BYTES:
                raise BadAnswer(
                    f"the header of `{file.name}` is too long to download separately ({needed:,} bytes)",
                    code=Cause.LONG_HEADER,
                )
            if needed > len(first):
                rest = connection.open(address.url, start=len(first), end=needed, send_token=address.send_token)
                first += rest.read_all(needed)
        finally:
            connection.close()
        return parse(first, file_size=size)

    def _of_pickle(
        self, connection: StorageConnection, address: DownloadAddress, first: bytes, size: int, name: str
    ) -> Header:
        """Download a small pickle completely. Returns the header that its safetensors copy would have."""
        if size > _MOST_BYTES:
            raise BadAnswer(
                f"`{name}` is a pickle of {size:,} bytes, which has to be downloaded to be inspected",
                code=Cause.LONG_HEADER, hint="download the file: civman inspects a pickle without running it",
            )  # fmt: skip
        if size > len(first):
            rest = connection.open(address.url, start=len(first), end=size, send_token=address.send_token)
            first += rest.read_all(size)
        return read_pickle_bytes(first).header


def require_fit(checkpoint: Inspected, candidate: Inspected, *, force: bool) -> list[str]:
    """Check that `candidate` fits `checkpoint`. Returns warnings as sentences.

    Raises: Incompatible: it does not fit, or only in part. Never raised with `force`.
    """
    found = check(checkpoint.part, [candidate.part])
    if not force:
        try:
            found.raise_if_blocked()
        except Incompatible as error:
            error.hint = "nothing was downloaded; use --force to download the file anyway"
            raise
    return [] if found.verdict is Verdict.FITS else list(found.cautions)
