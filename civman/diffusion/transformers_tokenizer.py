"""CLIP's tokenizer as the object that diffusers' pipelines hold, built from the merges that ship with civman."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from civman.prompts import tokenizer
from civman.system.move_files import replace_file

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def transformers_tokenizer(folder: Path, padding: int = tokenizer.END) -> "CLIPTokenizer":
    """The object a diffusers pipeline wants to hold, loaded from files kept in `folder`.

    The files (1.5 MB) are written when they are missing or differ from what they should be, each whole or not at all.
    """
    from transformers import CLIPTokenizer  # here: 1.1 s, and token counting does without

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
