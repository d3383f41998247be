"""Builds CLIP's tokenizer as diffusers' pipelines expect it, from the merges shipped with civman."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from civman.prompts import tokenizer
from civman.system.move_files import replace_file

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def transformers_tokenizer(folder: Path, padding: int = tokenizer.END) -> "CLIPTokenizer":
    """Load the CLIPTokenizer that a diffusers pipeline expects from files in `folder`.

    Files (1.5 MB in all) that are missing or do not have the expected contents are written first, each atomically.
    """
    # imported here, because the import takes 1.1 s, which programs that only count tokens need not wait for
    from transformers import CLIPTokenizer

    home = folder / f"clip-{padding}"
    words, merges = tokenizer.vocabulary()
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.CHUNK + 2,
        "bos_token": tokenizer.START_TEXT,
        "eos_token": tokenizer.END_TEXT,
        "unk_token": tokenizer.END_TEXT,
        "pad_token": tokenizer.ZERO_TEXT if padding == tokenizer.ZERO else tokenizer.END_TEXT,
    }
    home.mkdir(parents=True, exist_ok=True)
    _write(home / "vocab.json", json.dumps(words, ensure_ascii=False))
    _write(home / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    _write(home / "tokenizer_config.json", json.dumps(settings))
    loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(home, local_files_only=True)
    return loaded


def _write(path: Path, text: str) -> None:
    wanted = text.encode()
    if path.is_file() and path.read_bytes() == wanted:
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(wanted)
    replace_file(Path(file.name), path)
