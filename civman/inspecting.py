"""What a file shows of itself, from its header alone."""

from pathlib import Path

from civman.domain.catalog import FileFacts
from civman.domain.identify import facts
from civman.store.header import read_header


def facts_of_file(path: Path, base_model: str | None) -> FileFacts:
    """What the file at `path` is; `base_model` is CivitAI's label, held against what the tensors show.

    Raises: InvalidModelFile: a `.safetensors` file without a sound header. StoreError.
    """
    return facts(read_header(path), base_model) if path.suffix == ".safetensors" else FileFacts()
